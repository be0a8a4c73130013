"""What the drawing functions are given, or an error that says what they take."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = []


def as_array(values: Any) -> Any:
    """Unpack `Boxes`, `RotatedBoxes`, `BitMasks`, `Keypoints` and tensors to numpy; others stay as they are."""
    values = getattr(values, "tensor", values)
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def shape_of(value: Any) -> str:
    """Describe a wrong argument: its type and shape, or the keys of a dictionary."""
    keys = f" with the keys {sorted(map(str, value))[:8]}" if isinstance(value, Mapping) else ""
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}{keys}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def as_rgb_image(image: Any) -> np.ndarray:
    """An RGB image as uint8; floats from 0 to 1 and 16 bits are scaled, and others outside 0 to 255 refused."""
    array = np.asarray(as_array(image))
    if array.dtype.kind not in "buif":
        raise TypeError(f"The image is an RGB array (height, width, 3), got {shape_of(image)}: was the file read?")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"Visualizer needs an RGB image (height, width, 3), got shape {array.shape}.")
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if array.dtype == np.uint16 and high > 255:
        return (array // 257).astype(np.uint8)
    if array.dtype.kind in "bf" and low >= 0 and high <= 1:
        return (array * 255.0).round().astype(np.uint8)
    # resizing overshoots a little; normalised images are around 0
    if not (low >= -64 and high <= 319) or (low < 0 and high < 16):
        raise ValueError(
            f"The image has values from {low:g} to {high:g} ({array.dtype}); an RGB image is from 0 to 255, or as "
            "floats from 0 to 1. Undo a normalisation (image * pixel_std + pixel_mean) before drawing."
        )
    return array.clip(0, 255).astype(np.uint8)


def check_instances(predictions: Any) -> None:
    """Refuse what is not an `Instances`, with the part that it is in."""
    if hasattr(predictions, "get_fields") and hasattr(predictions, "has"):
        return
    cure = 'Pass the Instances of one image: predictions["instances"].'
    if isinstance(predictions, Mapping) and "instances" not in predictions:
        cure = "Draw sem_seg with draw_sem_seg(), and panoptic_seg with draw_panoptic_seg()."
    elif isinstance(predictions, list | tuple):
        cure = 'Pass the Instances of one image: predictions[0]["instances"].'
    elif hasattr(predictions, "shape"):
        cure = "To leave some out, index with the mask: instances[instances.scores > 0.7]."
    raise TypeError(f"Expected an Instances, got {shape_of(predictions)}. {cure}")


def as_label_map(sem_seg: Any, size_hw: tuple[int, ...]) -> np.ndarray:
    """A map of labels; of scores (classes, height, width) the best."""
    if isinstance(sem_seg, Mapping):
        raise TypeError(f'draw_sem_seg() takes predictions["sem_seg"], got {shape_of(sem_seg)}.')
    array = np.asarray(as_array(sem_seg))
    labels = array.argmax(axis=0) if array.ndim == 3 and array.dtype.kind == "f" else array
    if labels.dtype.kind not in "buif" or labels.shape != size_hw or (labels % 1).any():
        raise (ValueError if labels.dtype.kind in "buif" else TypeError)(
            f"draw_sem_seg() takes integers (height, width) or scores (classes, height, width), as large as the image, "
            f"{size_hw}; got {shape_of(array)} of {array.dtype}."
        )
    return labels


def check_panoptic(panoptic_seg: Any, segments_info: Any, size_hw: tuple[int, ...]) -> None:
    """Refuse what is not a map of ids and a list of segments."""
    shape, segments = tuple(getattr(panoptic_seg, "shape", ())), () if segments_info is None else segments_info
    is_list = isinstance(segments, list | tuple)
    is_list = is_list and all(isinstance(s, Mapping) and {"id", "category_id"} <= s.keys() for s in segments)
    if not is_list or shape != size_hw:
        raise (ValueError if is_list and shape else TypeError)(
            f"Expected a map {size_hw} of segment ids, as large as the image, and a list of segments with `id` and "
            f"`category_id`; got {shape_of(panoptic_seg)} and {shape_of(segments_info)}. Draw a model's output with "
            'draw_panoptic_seg(*predictions["panoptic_seg"]).'
        )


def as_numbers(values: Any, name: str, wanted: str, dims: tuple[int, tuple[int, ...]] | None) -> np.ndarray:
    """Numbers as an array of this number of dimensions, the last of one of these lengths."""
    try:
        array = np.asarray(as_array(values), dtype=float)
    except (TypeError, ValueError, NotImplementedError):
        raise TypeError(f"{name}: expected numbers {wanted}, got {shape_of(values)}.") from None
    if dims is not None and array.size and (array.ndim != dims[0] or array.shape[-1] not in dims[1]):
        raise TypeError(f"{name}: expected {wanted}, got shape {array.shape}.")
    return array
