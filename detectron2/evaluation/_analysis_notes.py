"""What a reader of an analysis should know beyond the numbers, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``K`` classes.
"""

import numpy as np

from ._analysis_inputs import Found, Truth
from ._analysis_matching import Matching
from ._coco_diagnosis import explain_class_overlap, score_histogram

_MOST_OUTSIDE = 0.1  # share of boxes that leave their image by more than a tenth of its size


def find_notes(truth: Truth, found: Found, matching: Matching, is_right: np.ndarray) -> list[str]:
    """Look for what makes numbers mean something else than they seem to.

    Args:
        truth: ground truth.
        found: detections.
        matching: of both.
        is_right: bool array (D,).

    Returns:
        Sentences.
    """
    if not len(found.score):
        return ["There are no predictions."]
    notes = _about_images(truth, found) + _about_limits(truth, found, matching)
    if not is_right.any() and truth.objects_per_class.any():
        annotated = [truth.class_ids[k] for k in np.flatnonzero(truth.objects_per_class)]
        predicted = [truth.class_ids[k] for k in np.unique(found.label)]
        reason = explain_class_overlap(predicted, annotated) or (
            "predicted classes do have objects, so the classes fit and the places do not: boxes in another frame than "
            "the images of the ground truth, another order than (x, y, width, height), another data set with the same "
            "ids, or untrained weights"
        )
        notes.append(f"No detection has found an object: {reason}. Scores: {score_histogram(found.score)}.")
    if found.score.min() < 0 or found.score.max() > 1:
        notes.append(
            f"Scores lie between {found.score.min():.3g} and {found.score.max():.3g}, so they are not probabilities; "
            "calibration says nothing."
        )
    return notes


def _about_images(truth: Truth, found: Found) -> list[str]:
    notes, count = [], len(truth.image_ids)
    is_empty = np.bincount(found.image, minlength=count) == 0
    lost = int((is_empty[truth.image] & ~truth.is_ignored).sum())
    if lost:
        notes.append(f"{is_empty.sum()} of {count} images have no predictions; their {lost} objects count as missed.")
    sizes = [truth.api.imgs[i] for i in truth.image_ids]
    if truth.iou_type == "bbox" and all({"width", "height"} <= s.keys() for s in sizes):
        wh = np.array([(s["width"], s["height"]) for s in sizes], float)[found.image]
        outside = ((found.box_xywh[:, :2] + found.box_xywh[:, 2:]) > 1.1 * wh).any(1)
        if outside.mean() > _MOST_OUTSIDE:
            notes.append(
                f"{outside.mean():.0%} of the predicted boxes reach far beyond their images. Boxes are (x, y, width, "
                "height), not two corners, in pixels of the image as annotated."
            )
    return notes


def _about_limits(truth: Truth, found: Found, matching: Matching) -> list[str]:
    notes = []
    if truth.is_searched is not None:
        notes.append(
            f"The images were searched for some classes each (LVIS). {int((~found.is_searched).sum())} of "
            f"{len(found.score)} detections are of others and do not count; nor do wrong ones of classes of which not "
            "all objects are annotated."
        )
    beyond = int((found.is_searched & ~matching.is_used).sum())
    if beyond:
        limit = "300 best of each image" if truth.is_searched is not None else "best of each image and class"
        notes.append(f"{beyond} of {len(found.score)} detections are not among the {limit} and do not count.")
    return notes
