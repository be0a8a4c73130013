"""Checks of labels, boxes and keypoints: each is one expression on arrays of all annotations.

``M`` annotations, as in :class:`~detectron2.data._findings.AnnotationTable`. Boxes are ``(x1, y1, x2, y2)`` in absolute
pixels, continuous coordinates.
"""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np

from detectron2.data._findings import AnnotationTable, Finding, Level, quantity
from detectron2.structures import BoxMode

__all__ = [
    "box_findings",
    "classify_boxes",
    "keypoint_findings",
    "label_findings",
    "overhang",
    "small_boxes",
    "structure_findings",
]


def structure_findings(table: AnnotationTable) -> list[Finding]:
    """Check that every annotation has a box, a kind of box, and a label."""
    findings = []
    for key, cure in (
        ("bbox", "Each annotation needs 'bbox': four numbers."),
        ("bbox_mode", "Set 'bbox_mode' to a member of structures.BoxMode, e.g. BoxMode.XYXY_ABS."),
        ("category_id", "Each annotation needs 'category_id': a label from 0 to the number of classes less one."),
    ):
        lacking = np.array([i for i, a in enumerate(table.annotations) if key not in a], dtype=np.int64)
        if len(lacking):
            what = f"{quantity(len(lacking))} no '{key}'"
            findings.append(table.finding(f"no-{key}", "error", lacking, what, lambda i: "none", cure))
    if not findings:
        lengths = np.fromiter((_length(a["bbox"]) for a in table.annotations), dtype=np.int64, count=len(table))
        odd = np.flatnonzero((lengths != 4) & (lengths != 5))
        if len(odd):
            what = f"{quantity(len(odd))} a 'bbox' without exactly four numbers (five if rotated)"
            findings.append(
                table.finding("box-numbers", "error", odd, what, lambda i: _shown(table.annotations[i]["bbox"]))
            )
    return findings


def _length(box: Any) -> int:
    return len(box) if hasattr(box, "__len__") else -1


def _shown(box: Any) -> str:
    return str(list(box)) if _length(box) >= 0 else repr(box)


def label_findings(table: AnnotationTable, num_classes: int | None, num_classes_key: str) -> list[Finding]:
    """Check that labels are integers from 0 to the number of classes less one."""
    values = [a["category_id"] for a in table.annotations]
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        wrong = np.array([i for i, v in enumerate(values) if not isinstance(v, (int, np.integer))], dtype=np.int64)
        if len(wrong):
            what = f"{quantity(len(wrong))} a category_id that is not an integer"
            cure = "Use labels from 0 on."
            return [table.finding("label-type", "error", wrong, what, lambda i: repr(values[i]), cure)]
        labels = np.array([int(v) for v in values], dtype=np.int64)

    findings = []
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        what = f"{quantity(len(negative))} a negative category_id"
        findings.append(
            table.finding(
                "label-negative",
                "error",
                negative,
                what,
                lambda i: f"category_id {labels[i]}",
                "Labels start at 0.",
            )
        )
    if num_classes is not None:
        excess = np.flatnonzero(labels >= num_classes)
        if len(excess):
            from_one = "" if labels.min() != 1 else " No label is 0: if the ids start at 1, subtract 1 instead."
            what = (
                f"{quantity(len(excess))} a category_id of {num_classes} or more, while {num_classes_key} is "
                f"{num_classes}"
            )
            cure = f"Set {num_classes_key} to {int(labels.max()) + 1}.{from_one}"
            findings.append(
                table.finding("label-too-large", "error", excess, what, lambda i: f"category_id {labels[i]}", cure)
            )
    return findings


def classify_boxes(table: AnnotationTable) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Find boxes that no model can be trained on.

    Args:
        table: annotations without :func:`structure_findings`.

    Returns:
        the boxes, ``float64[M, 4]``, ``(x1, y1, x2, y2)`` in pixels (NaN for rotated ones), and the indices of
        annotations with a box that is "not finite", "empty" or "outside".
    """
    num = len(table)
    modes = np.fromiter((a["bbox_mode"] for a in table.annotations), dtype=np.int64, count=num)
    boxes = [a["bbox"] for a in table.annotations]
    lengths = np.fromiter(map(len, boxes), dtype=np.int64, count=num)
    flat = np.fromiter(chain.from_iterable(boxes), dtype=np.float64, count=int(lengths.sum()))
    start = np.cumsum(lengths) - lengths
    raw = flat[start[:, None] + np.arange(4)]
    height, width = table.sizes_hw().T

    rotated = (modes == BoxMode.XYWHA_ABS) | (lengths == 5)
    xywh = modes == BoxMode.XYWH_ABS
    relative = (modes == BoxMode.XYXY_REL) | (modes == BoxMode.XYWH_REL)
    xyxy = raw.copy()
    xyxy[modes == BoxMode.XYWH_REL, 2:] += raw[modes == BoxMode.XYWH_REL, :2]
    xyxy[xywh, 2:] += raw[xywh, :2]
    xyxy[relative] *= np.stack([width, height, width, height], axis=1)[relative]

    finite = np.isfinite(raw).all(axis=1)
    side_wh = np.where(rotated[:, None], raw[:, 2:], xyxy[:, 2:] - xyxy[:, :2])
    empty = finite & (side_wh <= 0).any(axis=1)
    xyxy[rotated] = np.nan
    # Comparisons with NaN (rotated boxes, images of unknown size) are false: those are not judged.
    outside = (xyxy[:, 0] >= width) | (xyxy[:, 1] >= height) | (xyxy[:, 2] <= 0) | (xyxy[:, 3] <= 0)
    bad = {"not finite": ~finite, "empty": empty, "outside": finite & ~empty & outside}
    return xyxy, {kind: np.flatnonzero(which) for kind, which in bad.items()}


_BAD_BOXES = {
    "not finite": "a box with NaN or infinity",
    "empty": "a box without area (width and height must be positive; is 'bbox_mode' right?)",
    "outside": "a box wholly outside its image (are coordinates, image size and 'bbox_mode' right?)",
}


def box_findings(
    table: AnnotationTable, bad: dict[str, np.ndarray], cure: str, level: Level = "error"
) -> list[Finding]:
    """Turn what :func:`classify_boxes` found into findings."""
    return [
        table.finding(
            "box-" + kind.replace(" ", "-"),
            level,
            indices,
            f"{quantity(len(indices))} {_BAD_BOXES[kind]}",
            lambda i: _describe_box(table, i),
            cure,
        )
        for kind, indices in bad.items()
        if len(indices)
    ]


def _describe_box(table: AnnotationTable, index: int) -> str:
    annotation = table.annotations[index]
    record = table.dicts[int(table.image_of[index])]
    mode = BoxMode(annotation["bbox_mode"]).name
    return f"{mode} {list(annotation['bbox'])} (image {record.get('width')} x {record.get('height')})"


def overhang(table: AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray]) -> Finding | None:
    """Find boxes that end more than a pixel beyond the edge of their image."""
    height, width = table.sizes_hw().T
    # One pixel more or less is a matter of convention: some formats count pixels from one.
    over = (boxes_xyxy[:, :2] < -1.0).any(axis=1) | (boxes_xyxy[:, 2] > width + 1.0) | (boxes_xyxy[:, 3] > height + 1.0)
    for indices in bad.values():
        over[indices] = False
    partly = np.flatnonzero(over)
    if not len(partly):
        return None
    what = f"{quantity(len(partly), verb='ends')} beyond the edge of the image and will be clipped"
    return table.finding("box-overhang", "warning", partly, what, lambda i: _describe_box(table, i))


def small_boxes(table: AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray]) -> Finding | None:
    """Find boxes of at most a pixel's width or height, which are mostly slips of the mouse."""
    side = np.minimum(boxes_xyxy[:, 2] - boxes_xyxy[:, 0], boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    small = side <= 1.0  # false for NaN
    for indices in bad.values():
        small[indices] = False
    found = np.flatnonzero(small)
    if not len(found):
        return None
    what = f"{quantity(len(found))} a box of no more than a pixel in width or height"
    cure = "Most such boxes are slips of the mouse: look at them, and take them out."
    return table.finding("box-tiny", "warning", found, what, lambda i: _describe_box(table, i), cure)


def keypoint_findings(
    table: AnnotationTable, num_keypoints: int | None, key: str = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
) -> list[Finding]:
    """Check the number of keypoints.

    Args:
        table: all annotations.
        num_keypoints: how many each object has that has any; None: as many as most of them.
        key: where this number is set.

    Returns:
        at most one finding.
    """
    counts = np.array([len(a.get("keypoints") or ()) for a in table.annotations], dtype=np.int64)
    if not counts.any():
        return []
    given = num_keypoints is not None
    expected = 3 * num_keypoints if given else Counter(counts[counts > 0].tolist()).most_common(1)[0][0]
    wrong = np.flatnonzero((counts > 0) & ((counts != expected) | (counts % 3 != 0)))
    if not len(wrong):
        return []
    cure = "Each keypoint is three numbers: x, y, visibility."
    lengths = set(counts[wrong].tolist())
    if given and len(lengths) == 1 and min(lengths) % 3 == 0:
        right = min(lengths) // 3
        cure += f" If {right} is right, set {key} to {right}."
    origin = f"({key} = {num_keypoints})" if given else "(as most others have)"
    what = f"{quantity(len(wrong))} keypoints that are not {expected} numbers {origin}"
    return [table.finding("keypoint-count", "error", wrong, what, lambda i: f"{counts[i]} numbers", cure)]
