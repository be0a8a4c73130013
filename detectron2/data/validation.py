"""Finding the mistakes of a data set before training starts, rather than as a crash or a NaN hours later.

Annotations (crowd regions aside, which training leaves out) of all images are gathered into arrays, and each check is
one expression on those. All findings are raised together, each with file, annotation, value and cure.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.checks.annotations import (
    box_findings,
    classify_boxes,
    form_findings,
    keypoint_findings,
    label_findings,
    overhang,
    record_findings,
    structure_findings,
)
from detectron2.data.checks.duplicates import duplicate_annotations, image_id_findings
from detectron2.data.checks.files import file_findings, nameless_findings
from detectron2.data.checks.findings import AnnotationTable, Case, Finding
from detectron2.data.checks.label_maps import label_map_findings, number_of_categories, segment_findings
from detectron2.data.checks.masks import flat_polygon_findings, mask_findings
from detectron2.data.checks.report import EMPTY, FULL_CHECK_LIMIT, DatasetReport, inspect_dataset_dicts
from detectron2.data.datasets.builtin import is_builtin
from detectron2.data.formats.reading import shorten
from detectron2.utils.collector import paused_gc

__all__ = [
    "DatasetError",
    "DatasetReport",
    "Finding",
    "class_names_of",
    "compare_classes",
    "drops_degenerate",
    "inspect_dataset_dicts",
    "label_names_of",
    "validate_class_names",
    "validate_dataset_dicts",
]

logger = logging.getLogger(__name__)

MAX_FINDINGS = 10


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


# Before training


def validate_dataset_dicts(
    dicts: list[dict[str, Any]],
    *,
    name: str,
    num_classes: int | None = None,
    num_classes_key: str = "MODEL.ROI_HEADS.NUM_CLASSES",
    num_keypoints: int | None = None,
    mask_format: str | None = None,
    num_labels: int | None = None,
    ignore_label: int = 255,
    check_files: bool = True,
    check_annotations: bool = True,
    only_warns_of_annotations: bool = False,
    max_files: int = FULL_CHECK_LIMIT,
    skips_bad_images: bool = False,
    exif: str = "apply",
    raise_on_error: bool = True,
) -> list[dict[str, Any]]:
    """Check a data set, and raise one error that lists everything that is wrong with it.

    Boxes without area, with numbers that are not finite, or wholly outside their image are errors. In the built-in
    data sets, which are known to have a few, and where `MetadataCatalog.get(name).degenerate_boxes == "drop"`, such
    annotations are left out with a warning instead. Boxes that are partly outside are clipped in mapping, and only
    counted here; annotations and image ids that are there twice, and polygons without area, are warned of.

    Args:
        dicts: the data set in the standard format; it is not changed.
        name: its name, for messages and for the metadata.
        num_classes: number of classes of the model; None leaves the upper end of the labels unchecked.
        num_classes_key: the config key that sets it, for the message.
        num_keypoints: number of keypoints of the model; None leaves keypoints unchecked.
        mask_format: "polygon" or "bitmask" if the model is trained on masks; None leaves masks unchecked.
        num_labels: number of classes of semantic segmentation (`MODEL.SEM_SEG_HEAD.NUM_CLASSES`); None leaves the
            upper end of the labels in label maps unchecked.
        ignore_label: label of the pixels that do not count.
        check_files: whether to look for the files of images and label maps, and compare their size with what the data
            set says. Only the headers are read, and the end, to see whether a file is whole; of label maps a sample is
            decoded. Names with a scheme, like "s3://...", are left alone.
        check_annotations: whether to check annotations, and what is in label maps.
        only_warns_of_annotations: whether mistakes in annotations are warned of, and label maps not decoded, as for
            evaluation, which some of them do not hinder.
        max_files: check all files if there are no more than this many, else this number of files, evenly spaced.
        skips_bad_images: whether the loader takes another image in place of one that cannot be read
            (`DATALOADER.ON_BAD_IMAGE: "skip"`); then files that are missing or damaged are only warned of.
        exif: "apply" or "ignore": how the mapper reads images (`INPUT.EXIF`).
        raise_on_error: whether to raise, or only to log a warning.

    Returns:
        the data set; where annotations were left out, with new dicts for the images concerned.

    Raises:
        DatasetError: something is wrong.
    """
    findings = ([] if len(dicts) else [EMPTY]) + record_findings(dicts)
    readable = not findings
    if readable:
        findings += image_id_findings(dicts)
    of_annotations: list[Finding] = []
    if check_annotations and readable:
        _warn_of_spare_classes(name, num_classes, num_classes_key)
        _warn_of_other_labels(name, num_labels)
        with paused_gc():
            table = AnnotationTable.gather(dicts)
        structure = structure_findings(table)
        of_annotations += structure
        if not structure and len(table):
            known = MetadataCatalog.get(name)
            mapped = known.get("thing_dataset_id_to_contiguous_id") is not None
            names = known.get("thing_classes")
            of_annotations += label_findings(table, num_classes, num_classes_key, mapped, names)
            left, more = _check_boxes(dicts, table, name)
            dicts = dicts if only_warns_of_annotations else left
            of_annotations += more
            if num_keypoints is not None:
                of_annotations += keypoint_findings(table, num_keypoints)
            if mask_format is not None:
                of_annotations += mask_findings(table, mask_format)
                of_annotations += flat_polygon_findings(table)
    if check_files and readable:
        # A mapper of the user's own may have its data from elsewhere.
        findings += nameless_findings(dicts) if raise_on_error else []
        files = file_findings(dicts, max_files, exif=exif)
        if skips_bad_images:
            files = [f if f.kind in ("file-size", "file-exif") else replace(f, level="warning") for f in files]
        findings += files
        decode = check_annotations and not only_warns_of_annotations
        findings += label_map_findings(
            dicts, max_files, num_labels=num_labels, ignore_label=ignore_label, decode=decode
        )
        if check_annotations:
            of_annotations += segment_findings(dicts, *number_of_categories(MetadataCatalog.get(name)))
    findings += [replace(f, level="warning") for f in of_annotations] if only_warns_of_annotations else of_annotations
    for finding in findings:
        if finding.level != "error":
            logger.warning("Dataset '%s': %s", name, finding.text)
    errors = [f.text for f in findings if f.level == "error"]
    if errors:
        error = DatasetError(name, errors)
        if raise_on_error:
            raise error
        logger.warning("%s", error)
    return dicts


def drops_degenerate(name: str) -> bool:
    """Whether training leaves out degenerate boxes of this data set; else they are errors."""
    known = name in MetadataCatalog
    return is_builtin(name) or (known and MetadataCatalog.get(name).get("degenerate_boxes") == "drop")


def _check_boxes(
    dicts: list[dict[str, Any]], table: AnnotationTable, name: str
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Check boxes; return the data set without those that are to be dropped, and the findings."""
    boxes_xyxy, bad = classify_boxes(table)
    findings: list[Finding] = []
    if any(len(indices) for indices in bad.values()):
        if drops_degenerate(name):
            dropped = np.unique(np.concatenate(list(bad.values())))
            (left_out,) = table.findings(
                "",
                "warning",
                dropped,
                "degenerate boxes and are left out",
                lambda i: f"box {table.annotations[i]['bbox']}",
            )
            logger.warning("Dataset '%s': %s", name, left_out.text)
            dicts = _without(dicts, table, dropped)
        else:
            drop = f'or leave such annotations out: MetadataCatalog.get({name!r}).degenerate_boxes = "drop"'
            file = MetadataCatalog.get(name).get("json_file")
            how = f" (detectron2 data check {file} --fix cleaned.json)" if file else ""
            findings += box_findings(table, bad, f"Correct them{how}, {drop}.")
    findings += form_findings(table, boxes_xyxy, bad) or overhang(table, boxes_xyxy, bad)
    if all(isinstance(a["category_id"], (int, np.integer)) for a in table.annotations):
        # Another label for the same box is usual where classes overlap; only a report tells of it.
        findings += [f for f in duplicate_annotations(table, boxes_xyxy) if f.kind == "annotation-twice"]
    return dicts, findings


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


def _warn_of_other_labels(name: str, num_labels: int | None) -> None:
    known = MetadataCatalog.get(name).get("stuff_classes")
    if known is not None and num_labels is not None and len(known) != num_labels:
        logger.warning(
            "Dataset '%s': MODEL.SEM_SEG_HEAD.NUM_CLASSES is %d, but the metadata has %d stuff_classes (%s); an "
            "evaluation counts only these. Name every label, or set MODEL.SEM_SEG_HEAD.NUM_CLASSES to %d.",
            *(name, num_labels, len(known), shorten(list(known)), len(known)),
        )


def _without(dicts: list[dict[str, Any]], table: AnnotationTable, dropped: np.ndarray) -> list[dict[str, Any]]:
    """Return the data set without some annotations."""
    positions = defaultdict(set)
    for image, position in zip(table.image_of[dropped].tolist(), table.position[dropped].tolist(), strict=True):
        positions[image].add(position)
    result = list(dicts)
    for image, left_out in positions.items():
        kept = [a for i, a in enumerate(dicts[image]["annotations"]) if i not in left_out]
        result[image] = {**dicts[image], "annotations": kept}
    return result


# Several data sets


def compare_classes(tables: Mapping[str, Sequence[str] | None]) -> list[Finding]:
    """Compare the classes of data sets that are used with one model, by name.

    Args:
        tables: for each data set its class names in the order of the labels; None where they are not known. The first
            is the one that the others are compared with, usually that of training.

    Returns:
        an error for each data set in which a class has another label than in the first one, a warning for each that
        has other classes besides.
    """
    known = {name: list(classes) for name, classes in tables.items() if classes is not None}
    findings: list[Finding] = []
    if not known:
        return findings
    first, expected = next(iter(known.items()))
    labels = {c: i for i, c in enumerate(expected)}
    for name, classes in list(known.items())[1:]:
        moved = [(c, labels[c], i) for i, c in enumerate(classes) if c in labels and labels[c] != i]
        other = [(i, a, b) for i, (a, b) in enumerate(zip(expected, classes, strict=False)) if a != b]
        if moved:
            cases = [Case(f"'{c}' is label {a} in '{first}' and label {b} in '{name}'") for c, a, b in moved]
            what = f"the classes of '{name}' are in another order than those of '{first}'"
            cure = "A model that is trained on one of them gives wrong labels on the other; make the lists the same."
            findings.append(Finding("classes-order", "error", what, cure, len(moved), cases))
        elif other:
            cases = [Case(f"label {i} is '{a}' in '{first}' and '{b}' in '{name}'") for i, a, b in other]
            what = f"'{name}' has other classes than '{first}'"
            cure = "Unless these are two words for the same, predictions of these labels count as wrong."
            findings.append(Finding("classes-names", "error", what, cure, len(other), cases))
        elif len(classes) != len(expected):
            what = f"'{name}' has {len(classes)} classes and '{first}' has {len(expected)}; those in common are equal"
            cases = [Case(f"'{c}'") for c in (classes[len(expected) :] or expected[len(classes) :])]
            cure = "Objects of a class that only one of them has cannot be learnt, or not be evaluated."
            findings.append(Finding("classes-number", "warning", what, cure, len(cases), cases))
    return findings


def validate_class_names(train: Sequence[str], test: Sequence[str], *, is_strict: bool = True) -> None:
    """Check before training that the data sets of the evaluation have the same classes as those of training.

    Other names are warned of; classes (of objects, or of label maps) under other labels are an error, since every
    prediction of them would count as wrong. A test set whose classes are not known yet is loaded for them; if that is
    impossible, this is warned of.

    Args:
        train: names of the data sets of training, already loaded.
        test: names of those of the evaluation.
        is_strict: whether the model has fixed classes; for one of an open vocabulary there are warnings alone.

    Raises:
        DatasetError: a class has one label in training and another one in the evaluation.
    """
    for key in ("thing_classes", "stuff_classes"):
        known = [name for name in train if MetadataCatalog.get(name).get(key) is not None][:1]
        for first, name in itertools.product(known, test):
            classes = class_names_of(name) if key == "thing_classes" else label_names_of(name)
            expected = MetadataCatalog.get(first).thing_classes if key == "thing_classes" else label_names_of(first)
            for finding in compare_classes({first: expected, name: classes}):
                if finding.kind == "classes-order" and is_strict:
                    raise DatasetError(name, [finding.text])
                logger.warning("Dataset '%s': %s", name, finding.text)


def label_names_of(name: str) -> list[str] | None:
    """Return the names of the labels in label maps; None where they are unknown, or the same as those of objects."""
    stuff, things = (MetadataCatalog.get(name).get(f"{kind}_classes") for kind in ("stuff", "thing"))
    return None if stuff is None or stuff == things else list(stuff)


def class_names_of(name: str) -> list[str] | None:
    """Return the class names of a data set, which is loaded if they are not known; None if it has none."""
    if MetadataCatalog.get(name).get("thing_classes") is None:
        try:
            DatasetCatalog.get(name)  # data sets in COCO format learn their class names by being loaded
        except (OSError, KeyError) as e:
            logger.warning("Dataset '%s' is named for the evaluation, but it cannot be loaded: %s", name, e)
    return MetadataCatalog.get(name).get("thing_classes")
