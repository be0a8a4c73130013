"""Checks of labels, boxes and keypoints: each is one expression on arrays of all annotations.

Boxes are `(x1, y1, x2, y2)` in absolute pixels, continuous coordinates. `M` is the number of annotations of an
`AnnotationTable`.
"""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from detectron2.data.checks.findings import MAX_CASES, AnnotationTable, Case, Finding, Level, image_findings, quantity
from detectron2.structures import BoxMode

__all__ = [
    "box_findings",
    "classify_boxes",
    "form_findings",
    "keypoint_findings",
    "label_findings",
    "overhang",
    "record_findings",
    "small_boxes",
    "structure_findings",
    "usable",
]

_NUMBERS = (int, float, np.number)


def record_findings(dicts: Sequence[Any]) -> list[Finding]:
    """Check that there is a dict for each image, and that its "annotations", if it has any, are a list of dicts.

    Nothing else can be checked where this is not so.
    """
    wrong = [n for n, d in enumerate(dicts) if not isinstance(d, Mapping)]
    if wrong:
        cases = [Case(f"element {n} is a {type(dicts[n]).__name__}") for n in wrong[:MAX_CASES]]
        what = f"{quantity(len(wrong), 'element', 'is')} no dict"
        return [Finding("record-type", "error", what, "There must be one dict for each image.", len(wrong), cases)]
    wrong = [n for n, d in enumerate(dicts) if "annotations" in d and not _is_list_of_dicts(d["annotations"])]
    shown = {n: reprlib.repr(dicts[n]["annotations"]) for n in wrong}
    cure = "An image without objects has an empty list."
    flaw = "'annotations' that are not a list of dicts"
    return image_findings(dicts, "annotations-type", "error", shown, flaw, cure)


def _is_list_of_dicts(annotations: Any) -> bool:
    return isinstance(annotations, (list, tuple)) and all(isinstance(a, Mapping) for a in annotations)


def structure_findings(table: AnnotationTable) -> list[Finding]:
    """Check that every annotation has a box of numbers, a kind of box that fits, and a label."""
    findings: list[Finding] = []
    for key, cure in (
        ("bbox", "Each annotation needs 'bbox': four numbers."),
        ("bbox_mode", _MODES),
        ("category_id", "Each annotation needs 'category_id': a label from 0 to the number of classes less one."),
    ):
        lacking = [i for i, a in enumerate(table.annotations) if key not in a]
        findings += table.findings(f"no-{key}", "error", lacking, f"no '{key}'", lambda i: "none", cure)
    if not findings and not _have_fitting_boxes(table):
        boxes = [(i, a["bbox"], a["bbox_mode"]) for i, a in enumerate(table.annotations)]
        odd = [i for i, box, _ in boxes if not _is_box(box)]
        flaw = "a 'bbox' without exactly four numbers (five if rotated)"
        findings += table.findings("box-numbers", "error", odd, flaw, lambda i: _shown(table.annotations[i]["bbox"]))
        unfit = [i for i, box, mode in boxes if _is_box(box) and not _mode_fits(box, mode)]
        flaw = "a 'bbox_mode' that does not exist or does not fit the length of 'bbox'"
        cure = _MODES + " XYWHA_ABS is for the five numbers of a rotated box, all others for four."
        findings += table.findings("box-mode", "error", unfit, flaw, lambda i: _shown_mode(table, i), cure)
    return findings


def usable(table: AnnotationTable) -> AnnotationTable:
    """Return the table of those annotations in which `structure_findings` finds nothing."""
    keys = {"bbox", "bbox_mode", "category_id"}
    good = [
        i
        for i, a in enumerate(table.annotations)
        if keys <= a.keys() and _is_box(a["bbox"]) and _mode_fits(a["bbox"], a["bbox_mode"])
    ]
    return table.take(np.array(good, dtype=np.int64))


_MODES = "Set 'bbox_mode' to a member of structures.BoxMode, e.g. BoxMode.XYXY_ABS."
_LENGTHS = {mode: 5 if mode == BoxMode.XYWHA_ABS else 4 for mode in BoxMode}


def _have_fitting_boxes(table: AnnotationTable) -> bool:
    """Whether all boxes are surely right; with a loop that is not in Python, since there may be millions."""
    boxes = [a["bbox"] for a in table.annotations]
    if any(issubclass(t, (Mapping, str, bytes)) for t in set(map(type, boxes))):
        return False
    try:
        kinds = set(zip((a["bbox_mode"] for a in table.annotations), map(len, boxes), strict=True))
        types = set(map(type, chain.from_iterable(boxes)))
    except TypeError:
        return False
    return all(_LENGTHS.get(mode) == n for mode, n in kinds) and all(issubclass(t, _NUMBERS) for t in types)


def _is_box(box: Any) -> bool:
    if _length(box) not in (4, 5) or isinstance(box, (str, bytes, Mapping)):
        return False
    try:  # text would be taken for numbers, but x + width of texts is another text
        return np.asarray(box, dtype=np.float64).ndim == 1 and not any(isinstance(v, (str, bytes)) for v in box)
    except (TypeError, ValueError):
        return False


def _mode_fits(box: Any, mode: Any) -> bool:
    try:
        return _LENGTHS.get(mode) == len(box)
    except TypeError:  # a list or such
        return False


def _shown_mode(table: AnnotationTable, index: int) -> str:
    annotation = table.annotations[index]
    return f"bbox_mode {annotation['bbox_mode']!r} with {_shown(annotation['bbox'])}"


def _length(box: Any) -> int:
    return len(box) if hasattr(box, "__len__") else -1


def _shown(box: Any) -> str:
    return str(list(box)) if _length(box) >= 0 and not isinstance(box, str) else repr(box)


def label_findings(
    table: AnnotationTable,
    num_classes: int | None,
    num_classes_key: str,
    mapped: bool = False,
    class_names: Sequence[str] | None = None,
) -> list[Finding]:
    """Check that labels are integers from 0 to the number of classes less one.

    `mapped` says that they were made from the category ids of a file, so that the ids cannot be the cause, but perhaps
    categories without objects, some of which are placeholders.
    """
    values = [a["category_id"] for a in table.annotations]
    try:
        labels = np.asarray(values)
    except ValueError:  # lists among them
        labels = np.zeros(0)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        wrong = [i for i, v in enumerate(values) if not isinstance(v, (int, np.integer))]
        if wrong:
            flaw, cure = "a category_id that is not an integer", "Use labels from 0 on."
            return table.findings("label-type", "error", wrong, flaw, lambda i: repr(values[i]), cure)
        labels = np.array([int(v) for v in values], dtype=np.int64)

    def show(i: int) -> str:
        return f"category_id {labels[i]}"

    flaw, cure = "a negative category_id", "Labels start at 0."
    findings = table.findings("label-negative", "error", np.flatnonzero(labels < 0), flaw, show, cure)
    if num_classes is not None and len(labels):
        flaw = f"a category_id of {num_classes} or more, while {num_classes_key} is {num_classes}"
        cure = f"Set {num_classes_key} to {int(labels.max()) + 1}."
        if labels.min() == 1 and not mapped:
            cure += " No label is 0: if the ids start at 1, subtract 1 instead."
        unused = [c for label, c in enumerate(class_names or ()) if label not in labels] if mapped else []
        if unused and len(class_names or ()) - len(unused) <= num_classes:
            names = ", ".join(map(repr, unused[:5])) + (f" and {len(unused) - 5} more" if unused[5:] else "")
            cure += f" Or take out of 'categories' what no object is of: {names}."
        findings += table.findings("label-too-large", "error", np.flatnonzero(labels >= num_classes), flaw, show, cure)
    return findings


def classify_boxes(table: AnnotationTable) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Find boxes that no model can be trained on, in a table without `structure_findings`.

    Returns the boxes, `float64[M, 4]`, `(x1, y1, x2, y2)` in pixels (NaN for rotated ones), and the indices of those
    that are "not finite", "empty" or "outside".
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

    last = flat[start + lengths - 1]  # the angle of rotated ones
    finite = np.isfinite(raw).all(axis=1) & np.isfinite(last)
    side_wh = np.where(rotated[:, None], raw[:, 2:], xyxy[:, 2:] - xyxy[:, :2])
    empty = finite & (side_wh <= 0).any(axis=1)
    turned = np.concatenate([raw[rotated], last[rotated, None]], axis=1)
    turned[~np.isfinite(turned)] = np.nan  # the cosine of infinity is a warning
    xyxy[rotated] = BoxMode.convert(turned, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    # Comparisons with NaN (images of unknown size) are false: those are not judged.
    outside = (xyxy[:, 0] >= width) | (xyxy[:, 1] >= height) | (xyxy[:, 2] <= 0) | (xyxy[:, 3] <= 0)
    xyxy[rotated] = np.nan
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
    """Turn what `classify_boxes` found into findings."""
    findings = []
    for kind, indices in bad.items():
        name = "box-" + kind.replace(" ", "-")
        findings += table.findings(name, level, indices, _BAD_BOXES[kind], lambda i: _describe_box(table, i), cure)
    return findings


def _describe_box(table: AnnotationTable, index: int) -> str:
    annotation = table.annotations[index]
    record = table.dicts[int(table.image_of[index])]
    mode = BoxMode(annotation["bbox_mode"]).name
    return f"{mode} {list(annotation['bbox'])} (image {record.get('width')} x {record.get('height')})"


def form_findings(table: AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray]) -> list[Finding]:
    """Find that all boxes seem to be written in another form than is said: as shares of the image, or as corners."""
    absolute = [i for i, a in enumerate(table.annotations) if a["bbox_mode"] in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)]
    if not absolute or len(absolute) < len(table) or any(map(len, (bad["not finite"], bad["outside"]))):
        return []
    if np.abs(boxes_xyxy).max() <= 1 and (boxes_xyxy % 1).any():
        flaw = "a box within the first pixel, as all have: they seem to be shares of the image's width and height"
        cure = "Boxes are in pixels: multiply them by width and height."
        return table.findings("box-shares", "error", absolute, flaw, lambda i: _describe_box(table, i), cure)
    over = _over(table, boxes_xyxy)
    is_xywh = all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in table.annotations)
    if not is_xywh or len(table) < 2 or 4 * over.sum() < len(table):
        return []
    xy, wh = boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    for kind, other, (flaw, cure) in (
        ("box-corners", np.concatenate([xy, wh], axis=1), _CORNERS),
        ("box-centres", np.concatenate([xy - wh / 2, xy + wh / 2], axis=1), _CENTRES),
    ):
        if not _over(table, other).any() and (other[:, 2:] > other[:, :2]).all():
            return table.findings(kind, "warning", np.flatnonzero(over), flaw, lambda i: _describe_box(table, i), cure)
    return []


_CORNERS = (
    "a box that ends beyond the edge of the image, and all would fit as corners (x1, y1, x2, y2)",
    "If they are corners, write [x1, y1, x2 - x1, y2 - y1], or set 'bbox_mode' to XYXY_ABS.",
)
_CENTRES = (
    "a box that ends beyond the edge of the image, and all would fit as centre and size (x, y, w, h)",
    "If x and y are the centre, write [x - w / 2, y - h / 2, w, h].",
)


def _over(table: AnnotationTable, boxes_xyxy: np.ndarray) -> np.ndarray:
    # One pixel more or less is a matter of convention: some formats count pixels from one.
    height, width = table.sizes_hw().T
    return (boxes_xyxy[:, :2] < -1.0).any(axis=1) | (boxes_xyxy[:, 2] > width + 1.0) | (boxes_xyxy[:, 3] > height + 1.0)


def overhang(table: AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray]) -> list[Finding]:
    """Find boxes that end more than a pixel beyond the edge of their image."""
    over = _over(table, boxes_xyxy)
    for indices in bad.values():
        over[indices] = False
    flaw = "a box that ends beyond the edge of the image and will be clipped"
    return table.findings("box-overhang", "warning", np.flatnonzero(over), flaw, lambda i: _describe_box(table, i))


def small_boxes(table: AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray]) -> list[Finding]:
    """Find boxes of at most a pixel's width or height, which are mostly slips of the mouse."""
    side = np.minimum(boxes_xyxy[:, 2] - boxes_xyxy[:, 0], boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    small = side <= 1.0  # false for NaN
    for indices in bad.values():
        small[indices] = False
    flaw = "a box of no more than a pixel in width or height"
    cure = "Most such boxes are slips of the mouse: look at them, and take out those that are; --fix leaves them."
    return table.findings("box-tiny", "warning", np.flatnonzero(small), flaw, lambda i: _describe_box(table, i), cure)


def keypoint_findings(
    table: AnnotationTable, num_keypoints: int | None, key: str = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
) -> list[Finding]:
    """Check the keypoints: their number, that they are numbers, and that no object of an image lacks them.

    `num_keypoints` is how many each object has that has any (None: as many as most of them), `key` what sets it.
    """
    keypoints = [a.get("keypoints") for a in table.annotations]
    counts = np.fromiter(map(_count_numbers, keypoints), dtype=np.int64, count=len(table))
    if not counts.any():
        return []
    given = num_keypoints is not None
    usual = Counter(counts[counts > 0].tolist()).most_common(1)
    expected = 3 * num_keypoints if given else (usual[0][0] if usual else 3)
    wrong = np.flatnonzero((counts != 0) & ((counts != expected) | (counts % 3 != 0)))
    if len(wrong):
        cure = "Each keypoint is three numbers: x, y, visibility."
        lengths = set(counts[wrong].tolist())
        if given and len(lengths) == 1 and min(lengths) > 0 and min(lengths) % 3 == 0:
            right = min(lengths) // 3
            cure += f" If {right} is right, set {key} to {right}."
        origin = f"({key} = {num_keypoints})" if given else "(as most others have)"
        flaw = f"keypoints that are not {expected} numbers {origin}"
        shown = {i: f"{counts[i]} numbers" if counts[i] > 0 else repr(keypoints[i]) for i in wrong[:MAX_CASES].tolist()}
        return table.findings("keypoint-count", "error", wrong, flaw, shown.__getitem__, cure)
    having = np.flatnonzero(counts)
    findings = _unusable_keypoints(table, having, expected)
    if given:
        some = np.zeros(len(table.dicts), dtype=bool)
        some[table.image_of[having]] = True
        lacking = np.flatnonzero((counts == 0) & some[table.image_of])
        flaw = "no keypoints, while others of the image have"
        cure = f"Give each object {num_keypoints} keypoints; those that are not labelled are 0, 0, 0."
        findings += table.findings("keypoint-missing", "error", lacking, flaw, lambda i: "none", cure)
    return findings


def _count_numbers(keypoints: Any) -> int:
    """Return how many numbers there are; -1 if these can be no keypoints."""
    if isinstance(keypoints, list) and (not keypoints or isinstance(keypoints[0], _NUMBERS)):
        return len(keypoints)
    if keypoints is None:
        return 0
    try:
        return np.asarray(keypoints, dtype=np.float64).size if _length(keypoints) >= 0 else -1
    except (TypeError, ValueError):
        return -1


def _unusable_keypoints(table: AnnotationTable, having: np.ndarray, numbers: int) -> list[Finding]:
    """Find labelled keypoints with coordinates that are not finite, among annotations of equal length."""
    keypoints = [table.annotations[i]["keypoints"] for i in having.tolist()]
    try:
        xyv = np.array([np.asarray(k, dtype=np.float64) for k in keypoints]).reshape(-1, numbers // 3, 3)
    except (TypeError, ValueError):  # lists and arrays, or words among them
        xyv = np.stack([_as_xyv(k, numbers // 3) for k in keypoints])
    labelled = ~(xyv[:, :, 2] == 0)
    wrong = having[(labelled & ~np.isfinite(xyv).all(axis=2)).any(axis=1)]
    cure = "Correct them; one that is not labelled is 0, 0, 0."
    flaw = "keypoints that are not finite numbers"
    return table.findings(
        "keypoint-numbers", "error", wrong, flaw, lambda i: reprlib.repr(table.annotations[i]["keypoints"]), cure
    )


def _as_xyv(keypoints: Any, count: int) -> np.ndarray:
    try:
        return np.asarray(keypoints, dtype=np.float64).reshape(count, 3)
    except (TypeError, ValueError):
        return np.full((count, 3), np.nan)
