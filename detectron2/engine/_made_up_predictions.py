"""Predictions that nobody made, in the form of those that a model makes, to try an evaluator with.

``N`` objects, ``H`` and ``W`` the size of the original image, ``K`` classes of the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.structures import Boxes, Instances, RotatedBoxes

__all__ = ["made_up_instances", "made_up_panoptic", "number_of_classes"]

# More would not try more, and each may have a mask of the size of the image.
_MOST_OBJECTS = 100
_MOST_MASK_PIXELS = 50_000_000


def number_of_classes(model: nn.Module) -> int | None:
    """-> how many classes of objects a model tells apart, where it says so."""
    for part in (getattr(model, "roi_heads", None), model):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None


def made_up_instances(template: Instances, classes: Sequence[int]) -> Instances:
    """Make objects with the fields that a model's objects have.

    Every object is the same box in the middle of the image, of another class. Fields of unknown kinds are left out.

    Args:
        template: what the model found, often nothing.
        classes: labels; of very many, some that are evenly spread, the first and the last among them.

    Returns:
        the objects, on the device of the template.
    """
    height, width = template.image_size
    most = min(_MOST_OBJECTS, max(1, _MOST_MASK_PIXELS // max(1, height * width)))
    if len(classes) > most:
        classes = [classes[round(k)] for k in np.linspace(0, len(classes) - 1, most)]
    made = Instances(template.image_size)
    for name, value in template.get_fields().items():
        field = _field(name, value, classes, (height, width))
        if field is not None:
            made.set(name, field)
    return made


def _field(name: str, value: Any, classes: Sequence[int], size_hw: tuple[int, int]) -> Any:
    """One field of all objects, or None where it is of an unknown kind."""
    count = len(classes)
    if name == "pred_classes":
        return torch.tensor(classes, dtype=value.dtype, device=value.device)
    if name == "scores":
        return torch.linspace(1.0, 0.5, count, device=value.device).to(value.dtype)
    if isinstance(value, RotatedBoxes):
        height, width = size_hw
        box = torch.tensor([[width / 2, height / 2, width / 2, height / 2, 0.0]])
        return RotatedBoxes(box.to(value.tensor).repeat(count, 1))
    if isinstance(value, Boxes):
        return Boxes(_middle_xyxy(size_hw).to(value.tensor).repeat(count, 1))
    if isinstance(value, list):
        return [_run_lengths(size_hw) for _ in classes] if name == "pred_masks_rle" else None
    tensor = value if isinstance(value, torch.Tensor) else getattr(value, "tensor", None)
    if not isinstance(tensor, torch.Tensor):
        return None
    made = tensor.new_zeros((count, *tensor.shape[1:]))
    if tensor.shape[1:] == size_hw:  # masks of whole images
        y1, x1, y2, x2 = _middle_yxyx(size_hw)
        made[:, y1:y2, x1:x2] = 1
    elif name == "pred_masks":  # masks of boxes
        made.fill_(1)
    return made if isinstance(value, torch.Tensor) else type(value)(made)  # pyright: ignore[reportCallIssue]


def _middle_yxyx(size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size_hw
    return height // 4, width // 4, height // 4 + max(1, height // 2), width // 4 + max(1, width // 2)


def _middle_xyxy(size_hw: tuple[int, int]) -> torch.Tensor:
    y1, x1, y2, x2 = _middle_yxyx(size_hw)
    return torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)


def _run_lengths(size_hw: tuple[int, int]) -> dict[str, Any]:
    """Compressed COCO run lengths of the box in the middle."""
    import pycocotools.mask as mask_util

    mask = np.zeros(size_hw, dtype=np.uint8, order="F")
    y1, x1, y2, x2 = _middle_yxyx(size_hw)
    mask[y1:y2, x1:x2] = 1
    return mask_util.encode(mask)  # type: ignore[return-value]


def made_up_panoptic(ids: torch.Tensor, things: Sequence[int], stuff: Sequence[int]) -> tuple[torch.Tensor, list]:
    """Divide an image into columns, for the first and the last class of things, and the last class of stuff.

    The first of stuff is in some data sets what stands for all things, which is no class.

    Args:
        ids: the model's map (H, W), for its size and type.
        things: contiguous labels of things, in ascending order.
        stuff: contiguous labels of stuff, in ascending order.

    Returns:
        the map, and its segments in the documented form.
    """
    labels = [(True, label) for label in sorted({*things[:1], *things[-1:]})] + [(False, x) for x in stuff[-1:]]
    made = torch.zeros_like(ids)
    segments: list[Mapping[str, Any]] = []
    width = ids.shape[-1]
    for number, (is_thing, label) in enumerate(labels, start=1):
        columns = slice((number - 1) * width // len(labels), number * width // len(labels))
        made[:, columns] = number
        area = made[:, columns].numel()
        segment: dict[str, Any] = {"id": number, "isthing": is_thing, "category_id": label, "area": area}
        segments.append({**segment, "score": 1.0, "instance_id": number} if is_thing else segment)
    return made, segments
