"""Scores of parts of a data set, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``G`` annotated objects, ``K`` classes, ``P`` keypoints.
"""

from dataclasses import dataclass

import numpy as np

from ._analysis_inputs import Found, Truth
from ._analysis_matching import Matches, Matching
from ._analysis_overlaps import keypoint_similarity
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


@dataclass(frozen=True)
class KeypointScores:
    """How well one keypoint is placed, in the detections that are right and above the score threshold.

    Args:
        name: of the keypoint.
        count: labelled ones among the objects they have found.
        similarity: mean contribution to OKS, from 0 to 1.
    """

    name: str
    count: int
    similarity: float


def score_parts(
    truth: Truth, found: Found, matching: Matching, matches: Matches, score_threshold: float
) -> dict[str, dict[str, PartScores]]:
    """Score small and large, tall and wide, lone and crowded objects.

    Args:
        truth: ground truth.
        found: detections.
        matching: of both.
        matches: at the IoU threshold.
        score_threshold: for recall.

    Returns:
        For each property (area in square pixels, aspect ratio of the box, number of objects in the image) and each of
        its parts the scores.
    """
    per_image = np.bincount(truth.image[~truth.is_ignored], minlength=len(truth.image_ids)).astype(float)
    of_objects = _properties(truth, per_image)
    of_detections = _properties(found, per_image)
    is_found = matches.matched >= 0
    scores = {}
    for name, parts in _PARTS.items():
        values = of_detections[name].copy()
        values[is_found] = of_objects[name][matches.matched[is_found]]
        scores[name] = {
            part: _score_part(
                truth,
                found,
                matching,
                matches,
                (of_objects[name] >= low) & (of_objects[name] < high) & ~truth.is_ignored,
                matches.counts & (values >= low) & (values < high),
                score_threshold,
            )
            for part, (low, high) in parts.items()
        }
    return scores


def _properties(entries: Truth | Found, per_image: np.ndarray) -> dict[str, np.ndarray]:
    wh = entries.box_xywh[:, 2:]
    return {
        "area": entries.area,
        "width / height": wh[:, 0] / np.maximum(wh[:, 1], 1e-9),
        "objects in the image": per_image[entries.image],
    }


def _score_part(
    truth: Truth,
    found: Found,
    matching: Matching,
    matches: Matches,
    objects: np.ndarray,
    detections: np.ndarray,
    score_threshold: float,
) -> PartScores:
    """-> scores of objects (bool array (G,)) with detections (bool array (D,))."""
    per_class = np.bincount(truth.label[objects], minlength=len(truth.class_ids))
    averages = []
    for k in np.flatnonzero(per_class).tolist():
        rows = matching.of_class(k)
        rows = rows[detections[rows]]
        averages.append(precision_curve(found.score[rows], matches.matched[rows] >= 0, int(per_class[k])).mean())
    count, hits = int(objects.sum()), detections & (matches.matched >= 0) & (found.score >= score_threshold)
    return PartScores(count, mean_defined(np.array(averages)), int(hits.sum()) / count if count else np.nan)


def score_keypoints(truth: Truth, found: Found, matches: Matches, score_threshold: float) -> list[KeypointScores]:
    """Score each keypoint on its own.

    Args:
        truth: ground truth.
        found: detections.
        matches: at the OKS threshold.
        score_threshold: of detections.

    Returns:
        P scores; none for other tasks.
    """
    if not truth.keypoints.shape[1]:
        return []
    rows = np.flatnonzero(matches.is_right & (found.score >= score_threshold))
    similar, counts = keypoint_similarity(truth, found, rows, matches.matched[rows])
    number = counts.sum(0)
    means = np.where(number, similar.sum(0) / np.maximum(number, 1), np.nan)
    names: list[str] = next((c["keypoints"] for c in truth.api.dataset["categories"] if c.get("keypoints")), [])
    if len(names) != len(number):
        names = [str(n) for n in range(1, len(number) + 1)]
    columns = (names, number.tolist(), means.tolist())
    return [KeypointScores(str(name), count, mean) for name, count, mean in zip(*columns, strict=True)]
