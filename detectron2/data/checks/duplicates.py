"""Checks for what is there twice: ids, files, annotations; and for images without any.

`N` images, `M` annotations.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.data.checks.findings import MAX_CASES, AnnotationTable, Case, Finding, image_findings, quantity

__all__ = [
    "annotation_id_findings",
    "class_name_findings",
    "duplicate_annotations",
    "file_name_findings",
    "image_id_findings",
    "near_duplicates",
    "without_annotations",
]

_NEAR_IOU = 0.9


def image_id_findings(dicts: list[dict[str, Any]]) -> list[Finding]:
    """Find images that share an id."""
    ids = [d.get("image_id") for d in dicts]
    try:
        if len(set(ids)) == len(ids):
            return []
        counts = Counter(i for i in ids if i is not None)
    except TypeError:  # lists and such: ids of the user's own kind
        return []
    wrong = [n for n, i in enumerate(ids) if counts.get(i, 0) > 1]
    cure = "Evaluation would take them for the same image; give each its own."
    return image_findings(dicts, "image-id-twice", "warning", wrong, "an image_id that another one has too", cure)


def file_name_findings(dicts: list[dict[str, Any]]) -> list[Finding]:
    """Find files that are listed more than once."""
    counts = Counter(d["file_name"] for d in dicts if isinstance(d.get("file_name"), str))
    wrong = [n for n, d in enumerate(dicts) if counts.get(d.get("file_name"), 0) > 1]
    cure = "Objects annotated in one of them count as background in the other; put the annotations together."
    return image_findings(dicts, "file-twice", "warning", wrong, "a file that another one has too", cure)


def without_annotations(dicts: list[dict[str, Any]], filter_empty: bool | None) -> list[Finding]:
    """Find images without annotations (crowd regions aside), and say what becomes of them.

    That there are no others is a warning, unless training uses them: it may be a data set to predict on.
    """
    if not any("annotations" in d for d in dicts):
        return []  # not a data set of objects
    empty = [n for n, d in enumerate(dicts) if all(a.get("iscrowd", 0) for a in d.get("annotations") or ())]
    fate = {
        None: "DATALOADER.FILTER_EMPTY_ANNOTATIONS decides whether training leaves them out; it does so by default.",
        True: "DATALOADER.FILTER_EMPTY_ANNOTATIONS is True: training leaves them out.",
        False: "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False: training uses them as images of background.",
    }[filter_empty]
    if len(empty) == len(dicts) and filter_empty is not False:
        what = "none of its images has objects (crowd regions aside), so that they can be predicted on, but not learnt"
        cure = f"{fate} To train on them alone, see whether the annotations are in another file."
        return [Finding("all-empty", "warning", what, cure, len(empty))]
    return image_findings(dicts, "image-empty", "note", empty, "no objects", fate)


def annotation_id_findings(dicts: list[dict[str, Any]]) -> list[Finding]:
    """Find annotations that share an id."""
    known = [
        (n, position, a["id"])
        for n, d in enumerate(dicts)
        for position, a in enumerate(d.get("annotations") or ())
        if a.get("id") is not None
    ]
    counts = Counter(annotation_id for _, _, annotation_id in known)
    if len(counts) == len(known):
        return []
    twice = [place for place in known if counts[place[2]] > 1]
    cases = [
        Case("", dicts[n].get("file_name"), dicts[n].get("image_id"), position, annotation_id)
        for n, position, annotation_id in twice[:MAX_CASES]
    ]
    images = np.array([n for n, _, _ in twice], dtype=np.int64)
    what = f"{quantity(len(twice))} an id that another one has too"
    cure = "Evaluation counts only one of them; give each its own id."
    return [Finding("annotation-id-twice", "error", what, cure, len(twice), cases, images)]


def duplicate_annotations(table: AnnotationTable, boxes_xyxy: np.ndarray) -> list[Finding]:
    """Find annotations that repeat box and label of an earlier one, or its box with another label."""
    labels = np.fromiter((int(a["category_id"]) for a in table.annotations), dtype=np.int64, count=len(table))
    known = np.flatnonzero(~np.isnan(boxes_xyxy).any(axis=1))
    # -0.0 and 0.0 are equal, but have different bits; adding 0.0 makes one of them
    columns = [table.image_of[known], *(boxes_xyxy[known] + 0.0).T.copy().view(np.int64)]
    same_box = _repeats(columns)
    same_both = _repeats([*columns, labels[known]])

    def show(i: int) -> str:
        return _box_text(boxes_xyxy, labels, i)

    flaw = "the box and the label of another annotation of the image"
    cure = "Such duplicates make the object count twice; take them out."
    findings = table.findings("annotation-twice", "warning", known[same_both], flaw, show, cure)
    flaw = "the box of another annotation of the image, with another label"
    cure = "Unless objects have several classes, one of the two is wrong."
    return findings + table.findings("two-labels", "warning", known[same_box & ~same_both], flaw, show, cure)


def _repeats(columns: list[np.ndarray]) -> np.ndarray:
    """Which rows repeat an earlier one: bool; columns are int64. Sorting one hash is far cheaper than sorting rows."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashes = (hashes ^ (hashes >> np.uint64(29)) ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    repeats = earlier != np.arange(len(hashes))
    for column in columns:
        repeats &= column == column[earlier]
    return repeats


def _box_text(boxes_xyxy: np.ndarray, labels: np.ndarray, index: int) -> str:
    return f"label {labels[index]}, box (x1, y1, x2, y2) {[round(v, 2) for v in boxes_xyxy[index].tolist()]}"


def near_duplicates(table: AnnotationTable, boxes_xyxy: np.ndarray) -> list[Finding]:
    """Find pairs of boxes of one image and label that nearly coincide (IoU of 0.9 or more), but not quite."""
    labels = np.fromiter((int(a["category_id"]) for a in table.annotations), dtype=np.int64, count=len(table))
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    usable = np.flatnonzero((sides > 0).all(axis=1))
    order = usable[np.lexsort((boxes_xyxy[usable, 0], labels[usable], table.image_of[usable]))]
    boxes, image, label = boxes_xyxy[order], table.image_of[order], labels[order]
    area = sides[order].prod(axis=1)
    found: list[np.ndarray] = []
    left = np.arange(len(order))
    for distance in range(1, len(order)):
        # Sorted by their left edge: once a box begins far right of another, so do all that follow.
        left = left[left + distance < len(order)]
        right = left + distance
        reach = boxes[left, 2] > boxes[right, 0]
        near = (image[left] == image[right]) & (label[left] == label[right]) & reach
        left, right = left[near], right[near]
        if not len(left):
            break
        low, high = np.maximum(boxes[left, :2], boxes[right, :2]), np.minimum(boxes[left, 2:], boxes[right, 2:])
        common = (high - low).clip(min=0).prod(axis=1)
        iou = common / (area[left] + area[right] - common)
        different = (boxes[left] != boxes[right]).any(axis=1)
        found.append(order[right[(iou >= _NEAR_IOU) & different]])
    indices = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    flaw = f"nearly the box of another annotation of the same label (IoU {_NEAR_IOU} or more)"
    return table.findings(
        "annotation-nearly-twice",
        "note",
        indices,
        flaw,
        lambda i: _box_text(boxes_xyxy, labels, i),
        "Perhaps the object was annotated twice.",
    )


def class_name_findings(names: Sequence[str]) -> list[Finding]:
    """Find class names that are the same but for capitals and spaces, or wholly."""
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault("".join(str(name).split()).casefold(), []).append(str(name))
    alike = [group for group in plain.values() if len(group) > 1]
    if not alike:
        return []
    cases = [Case(" and ".join(repr(n) for n in group)) for group in alike[:MAX_CASES]]
    what = f"{quantity(len(alike), 'group', '')} of class names with no difference but in capitals and spaces"
    cure = "Make one class of each group, unless they are meant to be different."
    return [Finding("class-names-alike", "warning", what, cure, len(alike), cases)]
