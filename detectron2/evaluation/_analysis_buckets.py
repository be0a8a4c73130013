"""Scores of parts of a data set, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``G`` annotated objects, ``I`` images, ``K`` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ._analysis_inputs import Found, Truth
from ._analysis_matching import Matches, in_coco_order
from ._analysis_scores import mean_defined, precision_curve

# Each part goes from its first number up to, and without, its second.
_PARTS = {
    "area": {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)},
    "width / height": {"below 1/2": (0.0, 0.5), "1/2 to 2": (0.5, 2.0), "2 and more": (2.0, np.inf)},
    "objects in the image": {"1": (1, 2), "2 to 5": (2, 6), "6 to 15": (6, 16), "16 and more": (16, np.inf)},
}


@dataclass(frozen=True)
class PartScores:
    """Scores of a part of the objects.

    A detection belongs to the part of the object it has found; one that has found none to the part that it would be in
    itself.

    Args:
        num_objects: how many.
        ap: mean over classes, at the IoU threshold of the analysis.
        recall: of all classes together, at its score threshold.
    """

    num_objects: int
    ap: float
    recall: float


def score_parts(
    truth: Truth, found: Found, matches: Matches, score_threshold: float
) -> dict[str, dict[str, PartScores]]:
    """Score small and large, tall and wide, lone and crowded objects.

    Args:
        truth: ground truth.
        found: detections.
        matches: of both.
        score_threshold: for recall.

    Returns:
        For each property (area in square pixels, aspect ratio of the box, number of objects in the image) and each of
        its parts the scores.
    """
    per_image = np.bincount(truth.image[~truth.is_crowd], minlength=len(truth.image_ids)).astype(float)
    of_objects = {**_shape(truth.objects, truth), "objects in the image": per_image[truth.image]}
    of_detections = {**_shape(found.results, truth), "objects in the image": per_image[found.image]}
    is_found = matches.matched >= 0
    scores = {}
    for name, parts in _PARTS.items():
        values = of_detections[name].copy()
        values[is_found] = of_objects[name][matches.matched[is_found]]
        scores[name] = {
            part: _score_part(
                truth,
                found,
                matches,
                (of_objects[name] >= low) & (of_objects[name] < high) & ~truth.is_crowd,
                matches.counts & (values >= low) & (values < high),
                score_threshold,
            )
            for part, (low, high) in parts.items()
        }
    return scores


def _score_part(
    truth: Truth, found: Found, matches: Matches, objects: np.ndarray, detections: np.ndarray, score_threshold: float
) -> PartScores:
    """-> scores of objects (bool array (G,)) with detections (bool array (D,))."""
    count = int(objects.sum())
    averages = []
    for k in range(len(truth.class_ids)):
        chosen = in_coco_order(detections & (found.label == k), found)
        right = matches.matched[chosen] >= 0
        averages.append(precision_curve(found.score[chosen], right, int((objects & (truth.label == k)).sum())).mean())
    hits = detections & (matches.matched >= 0) & (found.score >= score_threshold)
    return PartScores(count, mean_defined(np.array(averages)), int(hits.sum()) / count if count else np.nan)


def _shape(entries: Sequence[dict[str, Any]], truth: Truth) -> dict[str, np.ndarray]:
    """-> area in square pixels and aspect ratio of annotations or detections; annotations know their area."""
    if truth.iou_type == "bbox" or not entries:
        wh = np.array([e["bbox"][2:4] for e in entries], float).reshape(-1, 2)
        area = wh[:, 0] * wh[:, 1]
    else:
        masks: Any = [truth.api.annToRLE(e) for e in entries]
        wh, area = mask_util.toBbox(masks)[:, 2:], mask_util.area(masks).astype(float)
    area = np.array([e.get("area", a) for e, a in zip(entries, area, strict=True)], float)
    return {"area": area, "width / height": wh[:, 0] / np.maximum(wh[:, 1], 1e-9)}
