"""Pictures of ``detectron2 analyze``: the truth (left) beside the predictions (right) of images with many errors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.analysis import DetectionAnalysis
from detectron2.utils.file_io import atomic_write
from detectron2.visualization.visualizer import Visualizer

__all__ = ["draw_worst"]

_GREEN, _RED, _GREY = (0.1, 0.7, 0.2), (0.9, 0.1, 0.1), (0.6, 0.6, 0.6)
_LEAST_SIDE, _MOST_SIDE = 480, 900
_GAP = 12


def draw_worst(
    analysis: DetectionAnalysis,
    api: Any,
    results: Sequence[dict[str, Any]],
    roots: Sequence[str],
    count: int,
    folder: Path,
) -> tuple[dict[str, Path], list[str]]:
    """Draw the images with the most errors.

    Found objects and right detections are green, missed objects and wrong detections red, what does not count grey.

    Args:
        analysis: of the results.
        api: the ground truth, a pycocotools ``COCO``.
        results: predictions in COCO's result format.
        roots: folders in which images may lie.
        count: how many.
        folder: gets the PNG files.

    Returns:
        For each caption the file, and the names of images that could not be read.
    """
    names = {c["id"]: str(c.get("name", c["id"])) for c in api.dataset["categories"]}
    drawn, unread = {}, []
    for place, scores in enumerate(analysis.worst_images(count), 1):
        image = api.imgs[scores.image_id]
        file_name = str(image.get("file_name", scores.image_id))
        pixels = _read(file_name, roots)
        if pixels is None:
            unread.append(file_name)
            continue
        objects = [(n, a) for n, a in enumerate(api.dataset.get("annotations", [])) if a["image_id"] == scores.image_id]
        found = [
            (n, r)
            for n, r in enumerate(results)
            if r["image_id"] == scores.image_id and r["score"] >= analysis.score_threshold
        ]
        left = _draw(
            pixels,
            [a for _, a in objects],
            [names[a["category_id"]] for _, a in objects],
            [_GREY if a.get("iscrowd", 0) else _GREEN if analysis.is_found[n] else _RED for n, a in objects],
            analysis.iou_type,
        )
        right = _draw(
            pixels,
            [r for _, r in found],
            [f"{names[r['category_id']]} {r['score']:.0%}" for _, r in found],
            [_GREEN if analysis.is_right[n] else _RED if analysis.is_counted[n] else _GREY for n, _ in found],
            analysis.iou_type,
        )
        path = folder / f"worst_{place:02d}.png"
        gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
        with atomic_write(path, "wb") as f:
            Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(f, format="PNG")
        caption = f"{file_name}: {scores.num_right} right, {scores.num_wrong} wrong, {scores.num_missed} missed"
        drawn[caption] = path
    return drawn, unread


def _read(file_name: str, roots: Sequence[str]) -> np.ndarray | None:
    """-> the RGB image, or None if there is none that can be read."""
    for root in roots:
        path = os.path.join(root, file_name)
        if os.path.isfile(path):
            try:
                return read_image(path, "RGB")
            except OSError:
                return None  # damaged; reported by the caller with those that are missing
    return None


def _draw(
    pixels: np.ndarray,
    entries: Sequence[dict[str, Any]],
    labels: Sequence[str],
    colors: Sequence[tuple[float, float, float]],
    iou_type: str,
) -> np.ndarray:
    """-> the image with annotations or detections on it."""
    longest = max(pixels.shape[:2])
    scale = min(max(_LEAST_SIDE, longest), _MOST_SIDE) / longest
    visualizer = Visualizer(pixels, Metadata().set(name="analysis"), scale=scale)
    if entries and iou_type == "segm":
        visualizer.overlay_instances(
            masks=[e["segmentation"] for e in entries], labels=labels, assigned_colors=colors, alpha=0.35
        )
    elif entries:
        xywh = np.array([e["bbox"] for e in entries], float)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        visualizer.overlay_instances(boxes=xyxy, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()
