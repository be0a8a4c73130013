"""Pictures of `detectron2 analyze`: the truth (left) beside the predictions (right) of images with many errors."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectron2.cli._analysis_charts import Names
from detectron2.cli._html import figure
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.analysis import DetectionAnalysis
from detectron2.utils.file_io import atomic_write
from detectron2.visualization.visualizer import Visualizer

__all__ = ["draw_worst", "picture_scale", "read_picture", "remove_old_pictures", "write_pair"]

_GREEN, _RED, _GREY = (0.1, 0.7, 0.2), (0.9, 0.1, 0.1), (0.6, 0.6, 0.6)
_LEAST_SIDE, _MOST_SIDE = 480, 900
_GAP = 12
_NAME = "worst_{:02d}.png"
_SKELETON_COLOR = (255, 165, 0)


def draw_worst(
    analysis: DetectionAnalysis,
    api: Any,
    results: Sequence[dict[str, Any]],
    roots: Sequence[str],
    count: int,
    folder: Path,
) -> tuple[dict[str, str], list[str]]:
    """Draw the images with the most errors.

    Found objects and right detections are green, missed objects and wrong detections red, what does not count grey.

    Args:
        analysis: of the results.
        api: the ground truth, a pycocotools `COCO`.
        results: predictions in COCO's result format.
        roots: folders in which images may lie.
        count: how many.
        folder: gets the PNG files.

    Returns:
        For each caption both pictures as HTML, and the names of images that could not be read.
    """
    worst = analysis.worst_images(count)
    wanted = {s.image_id for s in worst}
    objects = _by_image(api.dataset.get("annotations", []), wanted)
    found = _by_image(results, wanted)
    labels = Names([s.name for s in analysis.per_class])
    ids = sorted((c["id"] for c in api.dataset["categories"]), key=lambda i: (isinstance(i, str), i))
    names = {i: labels.plain(scores.name) for i, scores in zip(ids, analysis.per_class, strict=True)}
    metadata = _skeleton(api.dataset["categories"])
    drawn, unread = {}, []
    for scores in worst:
        image = api.imgs[scores.image_id]
        file_name = _file_name(image)
        pixels = read_picture(file_name, roots)
        if pixels is None:
            unread.append(file_name)
            continue
        true = [(_true_style(n, a, names, analysis), a) for n, a in objects.get(scores.image_id, [])]
        predicted = [
            (_found_style(n, r, names, analysis), r)
            for n, r in found.get(scores.image_id, [])
            if r["score"] >= analysis.score_threshold
        ]
        sides = [_draw(pixels, entries, analysis.iou_type, metadata) for entries in (true, predicted)]
        name = os.path.basename(file_name) if os.path.isabs(file_name) else file_name
        caption = f"{name}: {scores.num_right} right, {scores.num_wrong} wrong, {scores.num_missed} missed"
        drawn[caption] = write_pair(folder, len(drawn) + 1, *sides)
    return drawn, unread


def _file_name(image: dict[str, Any]) -> str:
    """Return the file name; LVIS has it only as the end of the address, folder and file."""
    if "file_name" not in image and "coco_url" in image:
        return "/".join(str(image["coco_url"]).split("/")[-2:])
    return str(image.get("file_name", image["id"]))


def _by_image(entries: Iterable[dict[str, Any]], wanted: set[Any]) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group the entries of the wanted images, with their places."""
    grouped: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for place, entry in enumerate(entries):
        if entry["image_id"] in wanted:
            grouped.setdefault(entry["image_id"], []).append((place, entry))
    return grouped


_Style = tuple[str, tuple[float, float, float]]


def _true_style(place: int, entry: dict[str, Any], names: dict[Any, str], analysis: DetectionAnalysis) -> _Style:
    """Return label and colour of an annotation; the label repeats in words what the colour says."""
    name = names[entry["category_id"]]
    if analysis.is_ignored[place]:
        return f"{name} (not counted)", _GREY
    return (name, _GREEN) if analysis.is_found[place] else (f"{name}, missed", _RED)


def _found_style(place: int, entry: dict[str, Any], names: dict[Any, str], analysis: DetectionAnalysis) -> _Style:
    """Return label and colour of a detection."""
    label = f"{names[entry['category_id']]} {entry['score']:.0%}"
    if analysis.is_right[place]:
        return label, _GREEN
    if not analysis.is_counted[place]:
        return f"{label} (not counted)", _GREY
    return f"{label}, {list(analysis.errors)[analysis.error[place]]}", _RED


def _skeleton(categories: Sequence[dict[str, Any]]) -> Metadata:
    """Return metadata with the keypoint connections of the ground truth, if it has any."""
    metadata = Metadata().set(name="analysis")
    for category in categories:
        if category.get("keypoints"):
            names = [str(n) for n in category["keypoints"]]
            ends = [(names[a - 1 : a], names[b - 1 : b]) for a, b in category.get("skeleton") or []]  # from 1 on
            rules = [(a[0], b[0], _SKELETON_COLOR) for a, b in ends if a and b]
            return metadata.set(keypoint_names=names, keypoint_connection_rules=rules)
    return metadata


def read_picture(file_name: str, roots: Sequence[str]) -> np.ndarray | None:
    """Read an image.

    Args:
        file_name: as the data set has it.
        roots: folders in which it may lie.

    Returns:
        The RGB image, uint8 array (height, width, 3), or None if there is none that can be read.
    """
    for root in roots:
        path = os.path.join(root, file_name)
        if os.path.isfile(path):
            try:
                return read_image(path, "RGB")
            except OSError:
                return None  # damaged; reported by the caller with those that are missing
    return None


def picture_scale(pixels: np.ndarray) -> float:
    """Return the scale of a picture; small images are enlarged, so that labels do not cover the objects."""
    longest = max(pixels.shape[:2])
    return min(max(_LEAST_SIDE, longest), _MOST_SIDE) / longest


def _draw(
    pixels: np.ndarray, entries: Sequence[tuple[_Style, dict[str, Any]]], iou_type: str, metadata: Metadata
) -> np.ndarray:
    """Return the image with annotations or detections on it."""
    visualizer = Visualizer(pixels, metadata, scale=picture_scale(pixels))
    if not entries:
        return visualizer.get_output().get_image()
    labels, colors = [style[0] for style, _ in entries], [style[1] for style, _ in entries]
    if iou_type == "segm":
        masks = [e["segmentation"] for _, e in entries]
        visualizer.overlay_instances(masks=masks, labels=labels, assigned_colors=colors, alpha=0.35)
    else:
        boxes = np.array([_box_xywh(e) for _, e in entries], float)
        boxes[:, 2:] += boxes[:, :2]
        if iou_type == "keypoints":
            for _, entry in entries:
                if entry.get("keypoints"):
                    points = np.array(entry["keypoints"], float).reshape(-1, 3)
                    visualizer.draw_and_connect_keypoints(points + np.array([0.5, 0.5, 0.0]))  # files name the pixel
        visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()


def _box_xywh(entry: dict[str, Any]) -> list[float]:
    """Return the box; for a detection without one, the box around its keypoints."""
    if "bbox" in entry:
        return entry["bbox"][:4]
    xy = np.array(entry["keypoints"], float).reshape(-1, 3)[:, :2]
    return [*xy.min(0).tolist(), *np.ptp(xy, axis=0).tolist()]


def write_pair(folder: Path, place: int, left: np.ndarray, right: np.ndarray) -> str:
    """Write two pictures side by side into a PNG file.

    Args:
        folder: gets the file.
        place: its number, from 1 on.
        left: of the truth, RGB.
        right: of the predictions.

    Returns:
        Both as HTML; on a narrow screen they are below each other.
    """
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    with atomic_write(folder / _NAME.format(place), "wb") as f:
        Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(f, format="PNG")
    return f"<div class=pair>{figure(left, 'truth')}{figure(right, 'predictions')}</div>"


def remove_old_pictures(folder: Path) -> None:
    """Remove what an earlier analysis has drawn into the same folder and this one might not draw again."""
    for path in folder.glob("worst_*.png"):
        if path.stem.removeprefix("worst_").isdigit():
            path.unlink()
    (folder / "comparison.png").unlink(missing_ok=True)
