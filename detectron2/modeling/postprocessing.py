"""From a network's resolution to the one that was asked for.

A detector usually sees a resized and padded image. These functions bring its raw output to the size of the original
image or any other. Sizes are `(height, width)` in pixels; boxes are `(x1, y1, x2, y2)` in continuous pixel
coordinates.
"""

from typing import Literal, get_args

import torch
from torch.nn import functional as F

from detectron2.layers.mask_ops import paste_masks_as_rle
from detectron2.structures import Instances, ROIMasks

__all__ = [
    "MaskFormat",
    "areas_and_certainties",
    "check_mask_format",
    "detector_postprocess",
    "paste_predicted_masks",
    "sem_seg_postprocess",
]

MaskFormat = Literal["full", "rle", "roi"]
"""How masks come out of a model: see `detector_postprocess`."""


def check_mask_format(mask_format: str) -> MaskFormat:
    """Return `mask_format`, or raise a ValueError if it is unknown."""
    if mask_format not in get_args(MaskFormat):
        raise ValueError(f"mask_format is one of {get_args(MaskFormat)}, not {mask_format!r}")
    return mask_format  # pyright: ignore[reportReturnType]  # it is one of them


def detector_postprocess(
    results: Instances,
    output_height: int,
    output_width: int,
    mask_threshold: float = 0.5,
    mask_format: MaskFormat = "full",
) -> Instances:
    """Scale detections to the size that was asked for and paste their masks into it.

    Whole masks take a byte for each pixel of the image and each detection. Where images are large, or masks are only
    evaluated, drawn or written, the other formats are faster and smaller; our evaluators and `Visualizer` take all of
    them. Of 300 objects in an image of 8000 x 4000 pixels, whole masks span 8.9 GiB, of which the CPU's memory holds
    0.7 GiB; run lengths and raw masks take less than 50 MiB, and less than 150 MiB however large the boxes.

    Args:
        results: detections of one image with `pred_boxes` (or `proposal_boxes`), and possibly `pred_masks`
            (probabilities inside the box, `Tensor[D, 1, M, M]` or `ROIMasks`) and `pred_keypoints`
            (`Tensor[D, K, 3]` of x, y, score). `results.image_size` is the size the network saw, without padding.
            Its boxes are scaled in place; give a copy to keep them.
        output_height: wanted height in pixels.
        output_width: wanted width in pixels.
        mask_threshold: a mask covers the pixels whose probability is at least this.
        mask_format: how masks come out. "full": `pred_masks` is a boolean `Tensor[D, output_height, output_width]`.
            "rle": `pred_masks_rle` in place of `pred_masks` is a list of COCO's compressed run lengths, on the CPU.
            "roi": `pred_masks` are `ROIMasks`, probabilities inside `pred_boxes`, not pasted.

    Returns:
        New instances of size `(output_height, output_width)`: boxes clipped to it, those without area dropped.

    Raises:
        ValueError: boxes are missing, or the format is unknown.
    """
    check_mask_format(mask_format)
    scale_x, scale_y = output_width / results.image_size[1], output_height / results.image_size[0]
    results = Instances((output_height, output_width), **results.get_fields())

    name = next((x for x in ("pred_boxes", "proposal_boxes") if results.has(x)), None)
    if name is None:
        raise ValueError(
            f"detector_postprocess needs pred_boxes or proposal_boxes, got fields {sorted(results.get_fields())}"
        )
    boxes = results.get(name)
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        if not isinstance(results.pred_masks, ROIMasks):
            results.pred_masks = ROIMasks(results.pred_masks[:, 0])
        if mask_format != "roi":
            results = paste_predicted_masks(results, mask_format, mask_threshold, name)
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x  # the choice of rows above has made a copy
        results.pred_keypoints[:, :, 1] *= scale_y
    return results


def paste_predicted_masks(
    results: Instances, mask_format: MaskFormat = "full", mask_threshold: float = 0.5, boxes_name: str = "pred_boxes"
) -> Instances:
    """Return new instances whose `pred_masks`, if they are `ROIMasks`, have another format of `detector_postprocess`.

    `boxes_name` is the field with the boxes of the masks, in pixels of `results.image_size`.
    """
    check_mask_format(mask_format)
    if mask_format == "roi" or not results.has("pred_masks") or not isinstance(results.pred_masks, ROIMasks):
        return results
    masks, boxes = results.pred_masks, results.get(boxes_name)
    results = Instances(results.image_size, **results.get_fields())
    if mask_format == "full":
        results.pred_masks = masks.to_bitmasks(boxes, *results.image_size, mask_threshold).tensor
    else:
        results.remove("pred_masks")
        results.pred_masks_rle = paste_masks_as_rle(masks.tensor, boxes, results.image_size, mask_threshold)
    return results


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off semantic scores and resize them to the size that was asked for.

    Args:
        result: scores of one image, `Tensor[C, H, W]`, at the size of the padded input.
        img_size: `(height, width)` of the input without padding.
        output_height: wanted height in pixels.
        output_width: wanted width in pixels.

    Returns:
        `Tensor[C, output_height, output_width]`, bilinearly interpolated. Resizing scores and not labels keeps the
        borders between classes smooth.
    """
    unpadded = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(unpadded, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]


def areas_and_certainties(mask_logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure masks of queries one by one, each in the cache of the processor, in a fifth of the time of all at once.

    Args:
        mask_logits: `Tensor[Q, H, W]`, above 0 inside.
        rows: int64 `Tensor[D]`, which of the queries; they may repeat.

    Returns:
        For each row the number of its pixels, int32 `Tensor[D]`, and their mean probability, float32 `Tensor[D]`, 0
        without pixels.

    Example:
        >>> from detectron2.modeling.postprocessing import areas_and_certainties
        >>> areas, certainties = areas_and_certainties(torch.tensor([[[9.0, 9.0, -9.0]]]), torch.tensor([0, 0]))
        >>> areas.tolist(), certainties.round(decimals=2).tolist()
        ([2, 2], [1.0, 1.0])
    """
    used, place = rows.unique(return_inverse=True)
    areas = torch.zeros(len(used), dtype=torch.int32, device=mask_logits.device)
    sums = torch.zeros(len(used), device=mask_logits.device)
    for i, row in enumerate(used.tolist()):
        logits = mask_logits[row]
        mask = logits > 0
        areas[i] = mask.sum(dtype=torch.int32)  # 64 bits, the default of PyTorch, take ten times as long
        sums[i] = (logits.sigmoid() * mask).sum(dtype=torch.float32)
    return areas[place], (sums / (areas + 1e-6))[place]
