"""Pictures of what a model found."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.data import Metadata
from detectron2.visualization import VisImage, Visualizer
from detectron2.visualization.colors import class_color, instance_colors, to_rgb

__all__ = ["draw"]

_COLOR_BY = ("instance", "class")


def draw(
    result: Any,
    *,
    color_by: str = "instance",
    boxes: bool = True,
    masks: bool = True,
    labels: bool = True,
    keypoints: bool = True,
    alpha: float | None = None,
    scale: float = 1.0,
) -> VisImage:
    """Draw a `Result`: its panoptic segmentation, or else its objects, or else its classes of pixels.

    Args:
        result: a `Result`.
        color_by: `"instance"`: each object has a colour of its own, and a tracked object the same one in each frame;
            `"class"`: objects of a class have one colour. Classes of pixels always have that of their class.
        boxes: draw the boxes.
        masks: draw the masks, the segments, and the classes of pixels.
        labels: write class, score and the identity of tracked objects, as in `dog #3 97%`.
        keypoints: draw the keypoints.
        alpha: opacity of masks from 0 to 1; None for 0.5 of objects, 0.7 of segments and 0.8 of classes of pixels.
        scale: size of the picture relative to the image.

    Returns:
        the picture; `get_image()` gives the pixels, and `save()` writes a file.

    Raises:
        ValueError: there is no image, `color_by` is another word, or `alpha` is out of range.

    Example:
        >>> from types import SimpleNamespace
        >>> from detectron2.data import Metadata
        >>> from detectron2.inference.results import Result
        >>> from detectron2.structures import Boxes, Instances
        >>> image = np.zeros((60, 80, 3), np.uint8)
        >>> frame = SimpleNamespace(image=image, name="a.jpg", path=None, index=0, time=None, error=None, source=None)
        >>> found = Instances((60, 80), pred_boxes=Boxes([[10, 20, 50, 50]]))
        >>> found.scores, found.pred_classes = torch.tensor([0.75]), torch.tensor([0])
        >>> result = Result({"instances": found}, frame=frame, image_format="RGB", metadata=None)
        >>> draw(result, color_by="class", scale=2).get_image().shape
        (120, 160, 3)
    """
    if color_by not in _COLOR_BY:
        raise ValueError(f"color_by is one of {', '.join(map(repr, _COLOR_BY))}, got {color_by!r}.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the opacity of masks, is from 0 to 1, got {alpha}.")
    visualizer = Visualizer(result.image_rgb, result.metadata, scale=scale)
    if result.panoptic_seg is not None:
        if masks:
            _draw_panoptic(visualizer, result, color_by, labels, 0.7 if alpha is None else alpha)
    elif result.instances is not None:
        shown = {"boxes": boxes, "masks": masks, "labels": labels, "keypoints": keypoints}
        _draw_instances(visualizer, result, color_by, shown, 0.5 if alpha is None else alpha)
    elif masks:
        _draw_labels(visualizer, result.label_map, labels, 0.8 if alpha is None else alpha)
    return visualizer.output


def _draw_instances(visualizer: Visualizer, result: Any, color_by: str, shown: dict[str, bool], alpha: float) -> None:
    """Draw objects, and what of them is to be shown."""
    instances = result.instances
    if not instances.get_fields() or not len(instances):
        return
    classes = instances.pred_classes.tolist() if instances.has("pred_classes") else [0] * len(instances)
    frames = instances.pred_boxes if instances.has("pred_boxes") else None
    masks = result.masks_rle if shown["masks"] else None
    texts = _texts(result) if shown["labels"] else None
    boxes = frames if shown["boxes"] else None
    colors = _colors(visualizer, classes, color_by, result.track_ids)
    points = instances.pred_keypoints if shown["keypoints"] and instances.has("pred_keypoints") else None
    if boxes is not None and boxes.tensor.shape[1] == 5:
        # rotated boxes are drawn by themselves
        visualizer.overlay_instances(masks=masks, keypoints=points, assigned_colors=colors, alpha=alpha)
        visualizer.overlay_rotated_instances(boxes=boxes, labels=texts, assigned_colors=colors)
        return
    visualizer.overlay_instances(
        boxes=boxes, masks=masks, labels=texts, keypoints=points, assigned_colors=colors, alpha=alpha
    )
    if boxes is None and masks is None and texts is not None and frames is not None:
        for text, box, color in zip(texts, frames.tensor[:, :2].tolist(), colors, strict=True):
            visualizer.draw_text(text, box, color=color, horizontal_alignment="left")


def _draw_panoptic(visualizer: Visualizer, result: Any, color_by: str, labels: bool, alpha: float) -> None:
    """Draw stuff, and things above it."""
    ids, segments = result.panoptic_seg[0].numpy(), result.panoptic_seg[1]
    things = [s for s in segments if s.get("isthing", True)]
    stuff = np.full(ids.shape, -1, np.int32)
    for segment in segments:
        if not segment.get("isthing", True):
            stuff[ids == segment["id"]] = segment["category_id"]
    _draw_labels(visualizer, stuff, labels, alpha)
    found = [(ids == s["id"], s) for s in things]
    found = sorted([(mask, s) for mask, s in found if mask.any()], key=lambda pair: -int(pair[0].sum()))
    if not found:
        return
    classes = [s["category_id"] for _, s in found]
    names = result.thing_classes
    texts = [_text(_name(s["category_id"], names), s.get("score"), None) for _, s in found]
    visualizer.overlay_instances(
        masks=[mask for mask, _ in found],
        labels=texts if labels else None,
        assigned_colors=_colors(visualizer, classes, color_by, None),
        alpha=alpha,
    )


def _draw_labels(visualizer: Visualizer, label_map: np.ndarray, labels: bool, alpha: float) -> None:
    """Draw classes of pixels, with their names, or their numbers where they have none."""
    whole = visualizer.metadata
    names = list(whole.get("stuff_classes") or [])
    names += [str(label) for label in range(len(names), int(label_map.max(initial=-1)) + 1)]
    known = {key: whole.get(key) for key in ("stuff_colors", "ignore_label") if whole.get(key) is not None}
    try:
        visualizer.metadata = Metadata(**known, stuff_classes=names if labels else [])
        visualizer.draw_sem_seg(label_map, alpha=alpha)
    finally:
        visualizer.metadata = whole


def _colors(
    visualizer: Visualizer, classes: Sequence[int], color_by: str, track_ids: Sequence[int] | None
) -> list[tuple[float, float, float]]:
    """The colour of each object."""
    given = visualizer.metadata.get("thing_colors")
    if color_by == "class":
        return [to_rgb(class_color(label, given)) for label in classes]
    if track_ids is not None:
        return [class_color(number) for number in track_ids]
    return instance_colors(classes, given)


def _texts(result: Any) -> list[str]:
    """The label of each object."""
    instances, count = result.instances, len(result.instances)
    names = result.names if instances.has("pred_classes") else [""] * count
    scores = instances.scores.tolist() if instances.has("scores") else [None] * count
    numbers = result.track_ids or [None] * count
    return [_text(*parts) for parts in zip(names, scores, numbers, strict=True)]


def _text(name: str, score: float | None, number: int | None) -> str:
    parts = [name, "" if number is None else f"#{number}", "" if score is None else f"{score * 100:.0f}%"]
    return " ".join(part for part in parts if part)


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)
