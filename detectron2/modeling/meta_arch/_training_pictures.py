"""Pictures of training progress: ground truth beside predictions, for the event storage."""

import numpy as np
import torch

from detectron2.structures import Boxes

__all__ = ["image_to_rgb", "side_by_side"]

# Y, U, V (BT.601, U and V around zero) to R, G, B.
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


def image_to_rgb(image: torch.Tensor, input_format: str | None) -> np.ndarray:
    """Turn a model's input `Tensor[C, H, W]` in [0, 255] into an RGB array `(H, W, 3)` of bytes.

    Args:
        image: not normalised.
        input_format: the config's `INPUT.FORMAT`: "BGR", "YUV-BT.601", "L" and so on; None counts as RGB. Of images
            with other than 1 or 3 channels the first is shown in grey.

    Returns:
        The array, contiguous.
    """
    pixels = image.detach().float().cpu().numpy().transpose(1, 2, 0)
    if pixels.shape[2] != 3:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    elif input_format == "BGR":
        pixels = pixels[:, :, ::-1]
    elif input_format == "YUV-BT.601":
        pixels = pixels @ _YUV_TO_RGB.T * 255.0
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def side_by_side(image: torch.Tensor, input_format: str | None, gt_boxes: Boxes, pred_boxes: Boxes) -> np.ndarray:
    """Draw ground truth on the left and predictions on the right of one picture.

    Args:
        image: `Tensor[C, H, W]`, not normalised.
        input_format: see `image_to_rgb`.
        gt_boxes: in pixels of this image.
        pred_boxes: in pixels of this image.

    Returns:
        `(3, H, 2 W)` bytes, RGB, as `put_image` takes it.
    """
    from detectron2.utils.visualizer import Visualizer

    rgb = image_to_rgb(image, input_format)
    drawn = [
        Visualizer(rgb).overlay_instances(boxes=boxes.tensor.detach().cpu().numpy()).get_image()
        for boxes in (gt_boxes, pred_boxes)
    ]
    return np.concatenate(drawn, axis=1).transpose(2, 0, 1)
