"""Finding the mistakes of a data set before training starts, rather than as a crash or a NaN hours later.

``M`` annotations (crowd regions aside, which training leaves out) of all images are gathered into arrays, and each
check is one expression on those.  All findings are raised together, each with file, annotation, value and cure.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from detectron2.data._file_checks import MAX_EXAMPLES, describe_image, file_findings
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets._reading import is_polygon, paused_gc
from detectron2.data.datasets.builtin import is_builtin
from detectron2.structures import BoxMode

__all__ = ["DatasetError", "validate_dataset_dicts"]

logger = logging.getLogger(__name__)

MAX_FINDINGS = 10
_FULL_CHECK_LIMIT = 10_000


class DatasetError(ValueError):
    """A data set has mistakes that training or evaluation would stumble over.

    Args:
        name: name of the data set.
        findings: what is wrong, one text each.
    """

    def __init__(self, name: str, findings: Sequence[str]) -> None:
        self.name = name
        self.findings = list(findings)
        shown = [f"  {i}. {text}" for i, text in enumerate(self.findings[:MAX_FINDINGS], start=1)]
        more = len(self.findings) - MAX_FINDINGS
        if more > 0:
            shown.append(f"  ... and {more} more.")
        count = "a problem" if len(self.findings) == 1 else f"{len(self.findings)} problems"
        super().__init__("\n".join([f"Dataset '{name}' has {count}:", *shown]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.findings)


def validate_dataset_dicts(
    dicts: list[dict[str, Any]],
    *,
    name: str,
    num_classes: int | None = None,
    num_classes_key: str = "MODEL.ROI_HEADS.NUM_CLASSES",
    num_keypoints: int | None = None,
    mask_format: str | None = None,
    check_files: bool = True,
    check_annotations: bool = True,
    max_files: int = _FULL_CHECK_LIMIT,
    raise_on_error: bool = True,
) -> list[dict[str, Any]]:
    """Check a data set, and raise one error that lists everything that is wrong with it.

    Boxes without area, with numbers that are not finite, or wholly outside their image are errors. In the built-in
    data sets, which are known to have a few, and where ``MetadataCatalog.get(name).degenerate_boxes == "drop"``, such
    annotations are left out with a warning instead. Boxes that are partly outside are clipped in mapping, and only
    counted here.

    Args:
        dicts: the data set in the standard format; it is not changed.
        name: its name, for messages and for the metadata.
        num_classes: number of classes of the model; None leaves the upper end of the labels unchecked.
        num_classes_key: the config key that sets it, for the message.
        num_keypoints: number of keypoints of the model; None leaves keypoints unchecked.
        mask_format: "polygon" or "bitmask" if the model is trained on masks; None leaves masks unchecked.
        check_files: whether to look for the image files and compare their size with what the data set says. Only the
            headers are read. Names with a scheme, like "s3://...", are left alone.
        check_annotations: whether to check the annotations.
        max_files: check all files if there are no more than this many, else so many, evenly spaced.
        raise_on_error: whether to raise, or only to log a warning.

    Returns:
        the data set; where annotations were left out, with new dicts for the images concerned.

    Raises:
        DatasetError: something is wrong.
    """
    findings: list[str] = []
    if len(dicts) == 0:
        findings.append(
            "it is empty. Check the function that loads it, and that its annotation file lists images ('images')."
        )
    if check_annotations:
        _warn_of_spare_classes(name, num_classes, num_classes_key)
        with paused_gc():
            table = _AnnotationTable.gather(dicts)
        findings += _structure_findings(table)
        if not findings and len(table):
            dicts, more = _check_annotations(dicts, table, name, num_classes, num_classes_key)
            findings += more
            if num_keypoints is not None:
                findings += _keypoint_findings(table, num_keypoints)
            if mask_format is not None:
                findings += _mask_findings(table, mask_format)
    if check_files:
        findings += file_findings(dicts, max_files)
    if findings:
        error = DatasetError(name, findings)
        if raise_on_error:
            raise error
        logger.warning("%s", error)
    return dicts


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _AnnotationTable:
    """All annotations of a data set but crowd regions, one behind the other."""

    dicts: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    image_of: np.ndarray  # int64[M], index into `dicts`
    position: np.ndarray  # int64[M], index into `dicts[image_of]["annotations"]`

    def __len__(self) -> int:
        return len(self.annotations)

    @classmethod
    def gather(cls, dicts: list[dict[str, Any]]) -> "_AnnotationTable":
        per_image = [d.get("annotations") or () for d in dicts]
        counts = np.fromiter(map(len, per_image), dtype=np.int64, count=len(per_image))
        annotations: list[dict[str, Any]] = list(chain.from_iterable(per_image))
        image_of = np.repeat(np.arange(len(dicts)), counts)
        first = np.cumsum(counts) - counts
        position = np.arange(len(annotations)) - np.repeat(first, counts)
        crowd = np.fromiter((bool(a.get("iscrowd", 0)) for a in annotations), dtype=bool, count=len(annotations))
        if crowd.any():
            kept = np.flatnonzero(~crowd)
            annotations = [annotations[i] for i in kept.tolist()]
            image_of, position = image_of[kept], position[kept]
        return cls(dicts, annotations, image_of, position)

    def where(self, index: int) -> str:
        """Say which annotation this is, as one would look for it."""
        record = self.dicts[int(self.image_of[index])]
        text = f"annotation {int(self.position[index])}"
        if "id" in self.annotations[index]:
            text += f" (id {self.annotations[index]['id']})"
        return f"{text} of {describe_image(record)}"

    def examples(self, indices: np.ndarray, show: Callable[[int], str]) -> str:
        """Describe the first few of some annotations."""
        parts = [f"{show(i)} in {self.where(i)}" for i in indices[:MAX_EXAMPLES].tolist()]
        more = len(indices) - len(parts)
        return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _structure_findings(table: _AnnotationTable) -> list[str]:
    """Check that every annotation has a box, a kind of box, and a label."""
    findings = []
    for key, cure in (
        ("bbox", "Each annotation needs 'bbox': four numbers."),
        ("bbox_mode", "Set 'bbox_mode' to a member of structures.BoxMode, e.g. BoxMode.XYXY_ABS."),
        ("category_id", "Each annotation needs 'category_id': a label from 0 to the number of classes less one."),
    ):
        lacking = np.array([i for i, a in enumerate(table.annotations) if key not in a], dtype=np.int64)
        if len(lacking):
            findings.append(f"{_count(lacking)} no '{key}': {table.examples(lacking, lambda i: 'none')}. {cure}")
    if not findings:
        lengths = np.fromiter((len(a["bbox"]) for a in table.annotations), dtype=np.int64, count=len(table))
        odd = np.flatnonzero((lengths != 4) & (lengths != 5))
        if len(odd):
            examples = table.examples(odd, lambda i: str(list(table.annotations[i]["bbox"])))
            findings.append(f"{_count(odd)} a 'bbox' without exactly four numbers (five if rotated): {examples}.")
    return findings


def _count(indices: np.ndarray, verb: str = "has") -> str:
    plural = {"has": "have", "is": "are", "ends": "end"}[verb]
    return f"1 annotation {verb}" if len(indices) == 1 else f"{len(indices)} annotations {plural}"


def _check_annotations(
    dicts: list[dict[str, Any]], table: _AnnotationTable, name: str, num_classes: int | None, num_classes_key: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Check labels and boxes; return the data set without the boxes that are to be dropped, and the findings."""
    findings = _label_findings(table, num_classes, num_classes_key)
    boxes_xyxy, bad = _classify_boxes(table)
    if any(len(indices) for indices in bad.values()):
        if is_builtin(name) or MetadataCatalog.get(name).get("degenerate_boxes") == "drop":
            dropped = np.unique(np.concatenate(list(bad.values())))
            logger.warning(
                "Dataset '%s': %d annotations with degenerate boxes are left out: %s.",
                *(name, len(dropped), table.examples(dropped, lambda i: f"box {table.annotations[i]['bbox']}")),
            )
            dicts = _without(dicts, table, dropped)
        else:
            findings += _box_findings(table, boxes_xyxy, bad, name)
    _warn_of_overhang(table, boxes_xyxy, bad, name)
    return dicts, findings


def _label_findings(table: _AnnotationTable, num_classes: int | None, num_classes_key: str) -> list[str]:
    values = [a["category_id"] for a in table.annotations]
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        wrong = np.array([i for i, v in enumerate(values) if not _is_integer(v)], dtype=np.int64)
        if len(wrong):
            shown = table.examples(wrong, lambda i: repr(values[i]))
            return [f"{_count(wrong)} a category_id that is not an integer: {shown}. Use labels from 0 on."]
        labels = np.array([int(v) for v in values], dtype=np.int64)

    findings = []
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        shown = table.examples(negative, lambda i: f"category_id {labels[i]}")
        findings.append(f"{_count(negative)} a negative category_id: {shown}. Labels start at 0.")
    if num_classes is not None:
        excess = np.flatnonzero(labels >= num_classes)
        if len(excess):
            shown = table.examples(excess, lambda i: f"category_id {labels[i]}")
            needed = int(labels.max()) + 1
            from_one = "" if labels.min() != 1 else " No label is 0: if the ids start at 1, subtract 1 instead."
            findings.append(
                f"{_count(excess)} a category_id of {num_classes} or more, while {num_classes_key} is {num_classes}: "
                f"{shown}. Set {num_classes_key} to {needed}.{from_one}"
            )
    return findings


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer))


def _classify_boxes(table: _AnnotationTable) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Find boxes that no model can be trained on.

    Returned are the boxes as ``float64[M, 4]``, ``(x1, y1, x2, y2)`` in pixels (NaN for rotated ones), and the
    annotations with a box that is "not finite", "empty" or "outside".
    """
    num = len(table)
    modes = np.fromiter((a["bbox_mode"] for a in table.annotations), dtype=np.int64, count=num)
    boxes = [a["bbox"] for a in table.annotations]
    lengths = np.fromiter(map(len, boxes), dtype=np.int64, count=num)
    flat = np.fromiter(chain.from_iterable(boxes), dtype=np.float64, count=int(lengths.sum()))
    start = np.cumsum(lengths) - lengths
    raw = flat[start[:, None] + np.arange(4)]
    height, width = _image_sizes(table)

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


def _image_sizes(table: _AnnotationTable) -> tuple[np.ndarray, np.ndarray]:
    """Return ``float64[M]`` height and width of each annotation's image; NaN where the data set does not tell."""
    sizes = np.array(
        [(d.get("height") or np.nan, d.get("width") or np.nan) for d in table.dicts], dtype=np.float64
    ).reshape(-1, 2)
    return sizes[table.image_of, 0], sizes[table.image_of, 1]


def _box_findings(table: _AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray], name: str) -> list[str]:
    drop = f'or leave such annotations out: MetadataCatalog.get({name!r}).degenerate_boxes = "drop"'
    what = {
        "not finite": "a box with NaN or infinity",
        "empty": "a box without area (width and height must be positive; is 'bbox_mode' right?)",
        "outside": "a box wholly outside its image (are coordinates, image size and 'bbox_mode' right?)",
    }

    def show(i: int) -> str:
        annotation = table.annotations[i]
        record = table.dicts[int(table.image_of[i])]
        mode = BoxMode(annotation["bbox_mode"]).name
        return f"{mode} {list(annotation['bbox'])} (image {record.get('width')} x {record.get('height')})"

    return [
        f"{_count(indices)} {what[kind]}: {table.examples(indices, show)}. Correct them, {drop}."
        for kind, indices in bad.items()
        if len(indices)
    ]


def _warn_of_spare_classes(name: str, num_classes: int | None, num_classes_key: str) -> None:
    # Not an error: several data sets with different classes may train one model. But an evaluator, which knows only
    # the classes of its data set, refuses predictions of others, and would say so after the whole training.
    known = MetadataCatalog.get(name).get("thing_classes")
    if known is not None and num_classes is not None and len(known) < num_classes:
        logger.warning(
            "Dataset '%s': %s is %d, but it has %d classes; an evaluation on it refuses predictions of other classes. "
            "Set %s to %d unless more are meant.",
            *(name, num_classes_key, num_classes, len(known), num_classes_key, len(known)),
        )


def _warn_of_overhang(table: _AnnotationTable, boxes_xyxy: np.ndarray, bad: dict[str, np.ndarray], name: str) -> None:
    height, width = _image_sizes(table)
    # One pixel more or less is a matter of convention: some formats count pixels from one.
    over = (boxes_xyxy[:, :2] < -1.0).any(axis=1) | (boxes_xyxy[:, 2] > width + 1.0) | (boxes_xyxy[:, 3] > height + 1.0)
    for indices in bad.values():
        over[indices] = False
    partly = np.flatnonzero(over)
    if len(partly):
        logger.warning(
            "Dataset '%s': %s beyond the edge of the image and will be clipped: %s.",
            *(name, _count(partly, "ends"), table.examples(partly, lambda i: str(list(table.annotations[i]["bbox"])))),
        )


def _without(dicts: list[dict[str, Any]], table: _AnnotationTable, dropped: np.ndarray) -> list[dict[str, Any]]:
    """Return the data set without some annotations."""
    positions = defaultdict(set)
    for image, position in zip(table.image_of[dropped].tolist(), table.position[dropped].tolist(), strict=True):
        positions[image].add(position)
    result = list(dicts)
    for image, left_out in positions.items():
        kept = [a for i, a in enumerate(dicts[image]["annotations"]) if i not in left_out]
        result[image] = {**dicts[image], "annotations": kept}
    return result


def _keypoint_findings(table: _AnnotationTable, num_keypoints: int) -> list[str]:
    wrong = np.array(
        [i for i, a in enumerate(table.annotations) if a.get("keypoints") and len(a["keypoints"]) != 3 * num_keypoints],
        dtype=np.int64,
    )
    if not len(wrong):
        return []
    lengths = [len(table.annotations[i]["keypoints"]) for i in wrong.tolist()]
    cure = "Each keypoint is three numbers: x, y, visibility."
    if len(set(lengths)) == 1 and lengths[0] % 3 == 0:
        cure += f" If {lengths[0] // 3} is right, set MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS to {lengths[0] // 3}."
    shown = table.examples(wrong, lambda i: f"{len(table.annotations[i]['keypoints'])} numbers")
    return [
        f"{_count(wrong)} keypoints that are not {3 * num_keypoints} numbers "
        f"(MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = {num_keypoints}): {shown}. {cure}"
    ]


def _mask_findings(table: _AnnotationTable, mask_format: str) -> list[str]:
    """Check that every annotation has a mask that the mapper can turn into the wanted format."""
    missing, malformed, run_lengths = [], [], []
    for i, annotation in enumerate(table.annotations):
        mask = annotation.get("segmentation")
        if mask is None or (isinstance(mask, list) and not mask):
            missing.append(i)
        elif isinstance(mask, list):
            if not all(is_polygon(p) or _is_polygon_array(p) for p in mask):
                malformed.append(i)
        elif isinstance(mask, dict) and mask_format == "polygon":
            run_lengths.append(i)
    findings = []
    if missing:
        indices = np.array(missing)
        findings.append(
            f"{_count(indices)} no 'segmentation', while MODEL.MASK_ON is True: "
            f"{table.examples(indices, lambda i: 'none')}. Add masks, or set MODEL.MASK_ON to False."
        )
    if malformed:
        indices = np.array(malformed)
        findings.append(
            f"{_count(indices)} a polygon of less than three points or with an odd count of numbers: "
            f"{table.examples(indices, lambda i: str(table.annotations[i]['segmentation'])[:80])}. A polygon is "
            "[x1, y1, x2, y2, x3, y3, ...], and 'segmentation' is a list of polygons."
        )
    if run_lengths:
        indices = np.array(run_lengths)
        findings.append(
            f"{_count(indices)} a mask as run lengths, while INPUT.MASK_FORMAT is 'polygon': "
            f"{table.examples(indices, lambda i: 'run lengths')}. Set INPUT.MASK_FORMAT to 'bitmask'."
        )
    return findings


def _is_polygon_array(polygon: Any) -> bool:
    return isinstance(polygon, (np.ndarray, tuple)) and len(polygon) >= 6 and len(polygon) % 2 == 0
