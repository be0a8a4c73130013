"""What callers may pass to the visualizer, as plain arrays and lists."""

from typing import IO, Any, cast

import numpy as np
import torch

from detectron2.layers.mask_ops import paste_masks_in_boxes
from detectron2.structures import PolygonMasks, ROIMasks
from detectron2.utils.file_io import PathManager

from .masks import GenericMask

__all__ = ["as_array", "as_boxes", "as_masks", "common_length", "masks_in_boxes", "read_image"]


def as_array(values: Any) -> Any:
    """Unpack ``Boxes``, ``RotatedBoxes``, ``BitMasks``, ``Keypoints`` and tensors to numpy; others stay as they are."""
    values = getattr(values, "tensor", values)
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def as_boxes(boxes: Any) -> np.ndarray:
    """Boxes of any kind as an array (N, 4) or, rotated, (N, 5)."""
    array = np.asarray(as_array(boxes), dtype=float)
    return array if array.ndim == 2 else array.reshape(len(array), -1 if array.size else 4)


def as_masks(masks: Any, height: int, width: int) -> list[GenericMask]:
    """Masks of any kind, one object for each instance of an image of this size in pixels."""
    if isinstance(masks, ROIMasks):
        raise TypeError(
            "ROIMasks cover boxes that they do not know. Draw predictions with draw_instance_predictions(), which "
            "pastes them into pred_boxes, or paste them with to_bitmasks()."
        )
    masks = masks.polygons if isinstance(masks, PolygonMasks) else as_array(masks)
    return [mask if isinstance(mask, GenericMask) else GenericMask(as_array(mask), height, width) for mask in masks]


def masks_in_boxes(predictions: Any, height: int, width: int) -> list[GenericMask]:
    """The masks of predictions that come as ``ROIMasks``, pasted into ``pred_boxes`` at the threshold 0.5."""
    parts = paste_masks_in_boxes(predictions.pred_masks.tensor, predictions.pred_boxes, (height, width))
    return [GenericMask.from_part(part, corner_xy, height, width) for part, corner_xy in parts]


def common_length(**columns: Any) -> int:
    """The number of instances, which all that is given must agree on."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Instances must have as many of each; got {lengths}.")
    return next(iter(lengths.values()), 0)


def read_image(path: str) -> np.ndarray:
    """An image file as it is, without conversion of colours."""
    from PIL import Image

    with PathManager.open(path, "rb") as f:
        return np.asarray(Image.open(cast("IO[bytes]", f)))
