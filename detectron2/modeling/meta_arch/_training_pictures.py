"""Pictures of training progress: ground truth beside predictions, for the event storage."""

import numpy as np
import torch

from detectron2.structures import Boxes

__all__ = ["image_to_rgb", "side_by_side"]

# Y, U, V (BT.601, U and V around zero) to R, G, B.
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


def image_to_rgb(image: torch.Tensor, input_format: str | None) -> np.ndarray:
    """Turn a model's input `Tensor[C, H, W]` in [0, 255] into a contiguous RGB array `(H, W, 3)` of bytes.

    `input_format` is the config's `INPUT.FORMAT`; None counts as RGB. Unless C is 3, the first channel shows in grey.
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
    """Draw ground truth left and predictions right on copies of one image: RGB bytes `(3, H, 2 W)` for `put_image`."""
    from detectron2.utils.visualizer import Visualizer

    rgb = image_to_rgb(image, input_format)
    drawn = [
        Visualizer(rgb).overlay_instances(boxes=boxes.tensor.detach().cpu().numpy()).get_image()
        for boxes in (gt_boxes, pred_boxes)
    ]
    return np.concatenate(drawn, axis=1).transpose(2, 0, 1)
