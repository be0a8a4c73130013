"""A thorough check of a data set, and its report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detectron2.data.checks.annotations import (
    box_findings,
    classify_boxes,
    form_findings,
    keypoint_findings,
    label_findings,
    overhang,
    record_findings,
    small_boxes,
    structure_findings,
    usable,
)
from detectron2.data.checks.duplicates import (
    annotation_id_findings,
    class_name_findings,
    duplicate_annotations,
    file_name_findings,
    image_id_findings,
    near_duplicates,
    without_annotations,
)
from detectron2.data.checks.files import file_findings
from detectron2.data.checks.findings import AnnotationTable, Finding, Level
from detectron2.data.checks.label_maps import label_map_findings, segment_findings
from detectron2.data.checks.masks import flat_polygon_findings, malformed_masks, mask_findings, self_intersections
from detectron2.utils.collector import paused_gc

__all__ = ["EMPTY", "FULL_CHECK_LIMIT", "DatasetReport", "inspect_dataset_dicts"]

FULL_CHECK_LIMIT = 10_000
"""The number of image files that are looked at in larger data sets."""

# What is found where a data set has no images.
EMPTY = Finding(
    "empty",
    "error",
    "it is empty",
    "Check the function that loads it, and that its annotation file lists images ('images').",
)


@dataclass
class DatasetReport:
    """What a thorough check found out about a data set.

    Args:
        name: its name.
        findings: errors first, then warnings, then notes.
        num_images: how many images it has.
        num_empty: how many of them have no objects (crowd regions aside).
        num_annotations: how many objects it has, crowd regions aside.
        num_crowd: how many crowd regions.
        classes: for each class its name, and how many objects and images with such objects there are.
        sizes: how many objects are "small", "medium", "large" as in COCO's evaluation: by the area of the box, with
            bounds at 32 and 96 pixels squared.
        worst: image files with the most errors and warnings, and how many.
    """

    name: str
    findings: list[Finding]
    num_images: int = 0
    num_empty: int = 0
    num_annotations: int = 0
    num_crowd: int = 0
    classes: list[tuple[str, int, int]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    worst: list[tuple[str, int]] = field(default_factory=list)

    def of_level(self, level: Level) -> list[Finding]:
        """Return the findings of one level: "error", "warning" or "note"."""
        return [f for f in self.findings if f.level == level]

    @property
    def passes(self) -> bool:
        """Whether there are no errors."""
        return not self.of_level("error")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON can hold them."""
        return {
            "name": self.name,
            "passes": self.passes,
            "images": self.num_images,
            "images_without_objects": self.num_empty,
            "annotations": self.num_annotations,
            "crowd_regions": self.num_crowd,
            "sizes": self.sizes,
            "classes": [{"name": name, "annotations": n, "images": images} for name, n, images in self.classes],
            "findings": [f.to_dict() for f in self.findings],
            "worst_images": [{"file": file, "problems": n} for file, n in self.worst],
        }


_WORST_IMAGES = 10


def inspect_dataset_dicts(
    dicts: list[dict[str, Any]],
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    category_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    num_classes_key: str = "MODEL.ROI_HEADS.NUM_CLASSES",
    num_keypoints: int | None = None,
    mask_format: str | None = None,
    num_labels: int | None = None,
    num_labels_key: str = "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    ignore_label: int = 255,
    filter_empty: bool | None = None,
    drop_degenerate: bool = False,
    check_files: bool = True,
    max_files: int | None = FULL_CHECK_LIMIT,
    exif: str = "apply",
    findings: Sequence[Finding] | None = None,
) -> DatasetReport:
    """Check a data set thoroughly, and report everything that is worth knowing. Nothing is raised or logged.

    Arguments are those of `detectron2.data.validation.validate_dataset_dicts`, where None for `num_classes` is the
    number of `class_names`, for `num_keypoints` as many as most objects have, and for `max_files` all. Besides, there
    are the names of the classes in the order of their labels, of the categories of segments in the order of their
    numbers (by default the same), what becomes of images without objects (`filter_empty`) and of degenerate boxes
    (`drop_degenerate`) in training, and the findings of the reader of the files, which has checked their ids.
    """
    found = [*(findings or ()), *([] if dicts else [EMPTY])]
    report = DatasetReport(name, found, num_images=len(dicts))
    unreadable = record_findings(dicts)
    if unreadable:  # nothing else can be said
        found += unreadable
        return report
    found += image_id_findings(dicts) + file_name_findings(dicts)
    found += annotation_id_findings(dicts) if findings is None else []
    found += without_annotations(dicts, filter_empty) + class_name_findings(class_names or ())
    if num_classes is None and class_names is not None:
        num_classes, num_classes_key = len(class_names), "the number of classes of the data set"
    with paused_gc():
        table = AnnotationTable.gather(dicts)
    _count(report, dicts, table)
    # The further checks take the annotations that have what those need.
    structure = structure_findings(table)
    found += structure
    if structure:
        table = usable(table)
    labels = label_findings(table, num_classes, num_classes_key, findings is not None, class_names)
    found += labels
    boxes_xyxy, bad = classify_boxes(table)
    found += box_findings(
        table,
        bad,
        "Training leaves them out." if drop_degenerate else "Correct them or take them out.",
        "warning" if drop_degenerate else "error",
    )
    form = form_findings(table, boxes_xyxy, bad)
    found += form or overhang(table, boxes_xyxy, bad) + small_boxes(table, boxes_xyxy, bad)
    if not any(f.kind == "label-type" for f in labels):
        found += duplicate_annotations(table, boxes_xyxy) + near_duplicates(table, boxes_xyxy)
        _count_classes(report, table, boxes_xyxy, class_names)
    found += keypoint_findings(table, num_keypoints)
    found += malformed_masks(table) if mask_format is None else mask_findings(table, mask_format)
    found += flat_polygon_findings(table) + self_intersections(table)
    if check_files:
        found += file_findings(dicts, max_files, exif=exif)
        found += label_map_findings(
            dicts, max_files, num_labels=num_labels, num_labels_key=num_labels_key, ignore_label=ignore_label
        )
    categories = category_names or class_names
    number = None if categories is None else len(categories)
    segments = segment_findings(dicts, number, "the number of categories of the data set", decode=check_files)
    found += segments
    if not any(f.kind == "segments" for f in segments):
        _count_segments(report, dicts, categories)
    order = {"error": 0, "warning": 1, "note": 2}
    found.sort(key=lambda f: order[f.level])
    _count_problems(report, dicts)
    return report


def _count(report: DatasetReport, dicts: list[dict[str, Any]], table: AnnotationTable) -> None:
    report.num_annotations = len(table)
    report.num_crowd = sum(len(d.get("annotations") or ()) for d in dicts) - len(table)
    if any("annotations" in d for d in dicts):  # else it is not a data set of objects
        report.num_empty = len(dicts) - len(np.unique(table.image_of))


def _count_classes(
    report: DatasetReport, table: AnnotationTable, boxes_xyxy: np.ndarray, class_names: Sequence[str] | None
) -> None:
    labels = np.array([int(a["category_id"]) for a in table.annotations], dtype=np.int64)
    known = list(class_names) if class_names is not None else []
    used, objects = np.unique(labels, return_counts=True)
    pairs = np.unique(np.stack([labels, table.image_of], axis=1), axis=0)
    images = dict(zip(*(a.tolist() for a in np.unique(pairs[:, 0], return_counts=True)), strict=True))
    counts = dict(zip(used.tolist(), objects.tolist(), strict=True))
    for label in sorted({*range(len(known)), *counts}):
        name = known[label] if 0 <= label < len(known) else f"label {label}"
        report.classes.append((name, counts.get(label, 0), images.get(label, 0)))
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    area = area[np.isfinite(area)]
    bounds = np.digitize(area, [32.0**2, 96.0**2], right=False)
    report.sizes = {size: int((bounds == i).sum()) for i, size in enumerate(("small", "medium", "large"))}


def _count_segments(report: DatasetReport, dicts: list[dict[str, Any]], class_names: Sequence[str] | None) -> None:
    """Count the segments of a panoptic data set, which has no other objects."""
    if len(dicts) == 0 or any("annotations" in d or "segments_info" not in d for d in dicts):
        return
    of_image = [[s["category_id"] for s in d["segments_info"] if not s.get("iscrowd", 0)] for d in dicts]
    segments = Counter(c for image in of_image for c in image)
    images = Counter(c for image in of_image for c in set(image))
    names = dict(enumerate(class_names or ()))
    report.classes = [(names.get(c, f"label {c}"), segments[c], images[c]) for c in sorted({*names, *segments})]


def _count_problems(report: DatasetReport, dicts: list[dict[str, Any]]) -> None:
    concerned = [f.images for f in report.findings if f.level != "note"]
    counts = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *concerned]), minlength=len(dicts))
    for n in np.argsort(-counts, kind="stable")[:_WORST_IMAGES].tolist():
        if counts[n]:
            record = dicts[n]
            report.worst.append((str(record.get("file_name", f"image id {record.get('image_id')!r}")), int(counts[n])))
