"""The COCO format: read a file with all its mistakes, and write one.

See `detectron2.data.datasets.coco` for the loader, which stops at mistakes.
"""

import json
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from detectron2.data.checks.findings import Case, Finding, quantity
from detectron2.data.formats.annotated_images import (
    AnnotatedImages,
    findings_of,
    flat_names,
    place_images,
    read_images_hw,
)
from detectron2.data.formats.reading import (
    AnnotationFileError,
    checked_file_name,
    checked_id,
    checked_objects,
    checked_size,
    describe,
    find_duplicates,
    image_size_hw,
    is_polygon,
    paused_gc,
    read_json,
    shorten,
)
from detectron2.data.formats.run_lengths import is_compressed, run_length_totals, run_lengths
from detectron2.structures import BoxMode
from detectron2.utils.file_io import atomic_write

__all__ = [
    "AnnotationConverter",
    "CocoReader",
    "check_annotation_ids",
    "content_to_dicts",
    "guess_image_root",
    "image_records",
    "keypoint_metadata",
    "read_coco",
    "renamed_images",
    "write_coco",
    "write_content",
]

logger = logging.getLogger("detectron2.data.datasets.coco")

# What Pillow raises for files that are not images, or damaged ones.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# Far more pixels than any image has; beyond it, float32 and the drawing of polygons have no use for a number.
_LARGEST = 1e7
_LINE_COLOR = (102, 204, 255)
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
_SIDE = re.compile("|".join(_OTHER_SIDE))


def read_coco(json_file: str | os.PathLike[str], image_root: str | None = None, split: str = "") -> AnnotatedImages:
    """Read an annotation file.

    Args:
        json_file: the file.
        image_root: folder of the images; None to look for it near the file.
        split: name of the split that it is; "" to take it from the name of the file.

    Returns:
        what it holds; lists that it lacks are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, not an object, or in the panoptic format.
    """
    content = read_json(json_file)
    annotations = content.get("annotations")
    if isinstance(annotations, list) and any(isinstance(a, dict) and "segments_info" in a for a in annotations[:1]):
        raise ValueError(
            f"'{json_file}' is in the panoptic format of COCO, whose segments are in PNG files. Register it in a .py "
            "file, detectron2.data.datasets.register_coco_panoptic(name, metadata, image_root, panoptic_root, "
            "panoptic_json), and give the name and --import FILE.py."
        )
    findings = [
        Finding("format", "error", f"'{key}' is not a list but {type(content[key]).__name__}", "See the COCO format.")
        for key in ("images", "annotations", "categories")
        if key in content and not isinstance(content[key], list)
    ]
    if "images" not in content:
        findings.append(
            Finding("format", "error", f"there is no 'images'; there is {list(content)}", "See the COCO format.")
        )
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        content[key] = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        if isinstance(entries, list) and len(content[key]) != len(entries):
            what = f"{len(entries) - len(content[key])} entries of '{key}' are not objects"
            findings.append(Finding("format", "error", what, "See the COCO format."))
    root = guess_image_root(json_file, content["images"]) if image_root is None else os.fspath(image_root)
    stem = Path(json_file).stem.lower()
    name = split or next((s for s in ("train", "val", "test") if s in stem), "train")
    ids = [i["id"] for i in content["images"] if "id" in i]
    return AnnotatedImages(os.fspath(json_file), "coco", content, root, {name: ids}, findings)


def guess_image_root(json_file: str | os.PathLike[str], images: list[dict[str, Any]]) -> str:
    """Return the folder near an annotation file that has one of the first images; by default the folder of the file."""
    folder = Path(json_file).parent
    plain = Path(json_file).stem.replace("instances_", "").replace("person_keypoints_", "")
    names = [i["file_name"] for i in images[:5] if isinstance(i.get("file_name"), str)]
    for base in (folder, folder.parent):
        for candidate in (base, base / "images", base / plain, base / "images" / plain, base / "JPEGImages"):
            if any((candidate / name).is_file() for name in names):
                return str(candidate)
    return str(folder)


# ---------------------------------------------------------------------------------------------------------------------
# To dataset dicts
# ---------------------------------------------------------------------------------------------------------------------


def content_to_dicts(data: AnnotatedImages) -> tuple[list[dict[str, Any]], list[str], list[Finding]]:
    """Turn what was read into dataset dicts, as far as possible.

    Args:
        data: what was read.

    Returns:
        one dict for each image, the class names in the order of the labels, and what is wrong with the structure.
    """
    reader = CocoReader(data)
    return reader.dicts, reader.class_names, reader.findings


_MEANINGS: Any = {
    "image-incomplete": ("error", "image", "no usable 'id' or 'file_name'", "Each needs both."),
    "image-id-twice": (
        "error",
        "image",
        "an id that an earlier one has too",
        "It is not clear to which of them annotations belong; give each its own id.",
    ),
    "image-size": (
        "error",
        "image",
        "no usable 'width' and 'height'",
        "Write the size of the file in pixels, or leave both out; then they are read from the file.",
    ),
    "no-image_id": ("error", "annotation", "no 'image_id'", "Give it the id of its image, or take it out."),
    "annotation-orphan": (
        "warning",
        "annotation",
        "an 'image_id' that no image has",
        "Such annotations are left out in loading.",
    ),
    "category-unknown": (
        "error",
        "annotation",
        "a category_id that is not among the ids of 'categories'",
        "Add the category, or correct the annotation.",
    ),
    "annotation-ignore": ("error", "annotation", "'ignore' set", "Mark regions to be left out with 'iscrowd': 1."),
    "annotation-unusable": ("error", "annotation", "values that cannot be used", "Correct them or take it out."),
    "polygon-points": (
        "warning",
        "annotation",
        "a polygon of less than three points or with an odd count of numbers",
        "Such polygons are left out in loading, and so are annotations that have no others.",
    ),
}


class CocoReader:
    """Reads all that can be read of a COCO annotation file.

    Args:
        data: what the file holds.

    Attributes:
        dicts: one dict for each image.
        class_names: in the order of the labels.
        findings: what is wrong.
        unusable: positions in the file of annotations that the loader would stop at.
    """

    def __init__(self, data: AnnotatedImages) -> None:
        self.dicts: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self.unusable: list[int] = []
        self._cases: dict[str, list[Case]] = defaultdict(list)
        self._labels, self.class_names = _labels(data.content["categories"], self.findings)
        by_id = self._read_images(data)
        with paused_gc():
            self._read_annotations(data, by_id)
        for kind, (level, noun, what, cure) in _MEANINGS.items():
            self.findings += findings_of(
                kind, level, self._cases[kind], lambda n, noun=noun, what=what: f"{quantity(n, noun)} {what}", cure
            )

    def _read_images(self, data: AnnotatedImages) -> dict[Any, dict[str, Any]]:
        by_id: dict[Any, dict[str, Any]] = {}
        for position, image in enumerate(data.content["images"]):
            image_id, file_name = image.get("id"), image.get("file_name")
            try:
                checked_id(image_id, "", "")
                checked_file_name(file_name, "", "")
            except AnnotationFileError as e:
                self._cases["image-incomplete"].append(Case(f"images[{position}]: {e.what}"))
                continue
            if image_id in by_id:
                self._cases["image-id-twice"].append(Case("", str(file_name), image_id))
                continue
            record = {"file_name": data.path(image), "image_id": image_id, "annotations": []}
            height, width = image.get("height"), image.get("width")
            if height is not None and width is not None:
                try:
                    record["height"] = checked_size(height, "", "", "height")
                    record["width"] = checked_size(width, "", "", "width")
                except AnnotationFileError as e:
                    self._cases["image-size"].append(Case(f"({e.what})", record["file_name"], image_id))
                    record.pop("height", None)
            by_id[image_id] = record
            self.dicts.append(record)
        unknown = [d for d in self.dicts if "width" not in d]
        said = {c.image_id for c in self._cases["image-size"]}
        for record, size in zip(unknown, read_images_hw(d["file_name"] for d in unknown), strict=True):
            if not isinstance(size, Exception):
                record["height"], record["width"] = size
            elif record["image_id"] not in said:
                value = f"(not in the annotations, and not to be read from the file: {size})"
                self._cases["image-size"].append(Case(value, record["file_name"], record["image_id"]))
        return by_id

    def _read_annotations(self, data: AnnotatedImages, by_id: dict[Any, dict[str, Any]]) -> None:
        converter = AnnotationConverter(data.source, self._labels, by_id, ["id"])
        texts, owners = [], []
        for position, annotation in enumerate(data.content["annotations"]):
            image_id = _hashable(annotation.get("image_id"))
            record = by_id.get(image_id)
            if record is None:
                lacking = image_id is None
                value = f"annotations[{position}]" if lacking else f"image_id {image_id!r}"
                case = Case(value, annotation_id=annotation.get("id"))
                self._cases["no-image_id" if lacking else "annotation-orphan"].append(case)
                if lacking:
                    self.unusable.append(position)
                continue
            converted = self._convert(converter, annotation, record, position)
            if converted is None:
                continue
            record["annotations"].append(converted)
            mask = converted.get("segmentation")
            if isinstance(mask, dict) and isinstance(mask["counts"], str):
                texts.append(mask["counts"])
                owners.append((converted, record, annotation, position))
        totals = run_length_totals(texts).tolist()
        for total, (converted, record, annotation, position) in zip(totals, owners, strict=True):
            pixels = record["height"] * record["width"]
            if total != pixels:
                value = f"the run lengths in 'segmentation' are of {total} pixels, while the image has {pixels}"
                self._report("annotation-unusable", value, annotation, record, position)
                del converted["segmentation"]

    def _convert(
        self, converter: "AnnotationConverter", annotation: dict[str, Any], record: dict[str, Any], position: int
    ) -> dict[str, Any] | None:
        if _hashable(annotation.get("category_id")) not in self._labels:
            value = f"category_id {annotation.get('category_id')!r}"
            self._report("category-unknown", value, annotation, record, position)
            return None
        if annotation.get("ignore"):
            self._report("annotation-ignore", f"ignore {annotation['ignore']!r}", annotation, record, position)
            annotation = {**annotation, "ignore": 0}
        mask = annotation.get("segmentation")
        if isinstance(mask, list) and all(isinstance(p, list) for p in mask):
            if not all(is_polygon(p) or (p and isinstance(p[0], list)) for p in mask):  # pairs are an error
                where = None if _hashable(annotation.get("id")) is not None else position
                case = Case(str(mask)[:80], record["file_name"], record["image_id"], where, annotation.get("id"))
                self._cases["polygon-points"].append(case)
        elif isinstance(mask, dict) and "height" not in record:  # the size that it should have is unknown
            annotation = {k: v for k, v in annotation.items() if k != "segmentation"}
        try:
            converted = converter(annotation)
            if converted is not None and converted.get("id") is not None:
                checked_id(converted["id"], "", "")
            elif converted is not None:
                converted.pop("id", None)
            return converted
        except AnnotationFileError as e:
            self._report("annotation-unusable", f"{e.what.rstrip('.')},", annotation, record, position)
            return None

    def _report(self, kind: str, value: str, annotation: dict[str, Any], record: dict[str, Any], position: int) -> None:
        known = annotation.get("id")
        where = position if known is None else None
        self._cases[kind].append(Case(value, record["file_name"], record["image_id"], where, known))
        self.unusable.append(position)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _labels(categories: list[dict[str, Any]], findings: list[Finding]) -> tuple[dict[Any, int], list[str]]:
    whole = [c for c in categories if _hashable(c.get("id")) is not None and isinstance(c.get("name"), str)]
    if len(whole) < len(categories):
        what = f"{len(categories) - len(whole)} of 'categories' have no usable 'id' or 'name'"
        findings.append(Finding("category-incomplete", "error", what, "Each needs both.", len(categories) - len(whole)))
    counts = Counter(c["id"] for c in whole)
    twice = [Case(f"id {i!r}") for i, n in counts.items() if n > 1]
    findings += findings_of(
        "category-twice", "error", twice, lambda n: "ids of categories occur twice", "Renumber them."
    )
    if len({isinstance(i, str) for i in counts}) > 1:
        what = "some ids of categories are numbers and others are strings, so they have no order"
        findings.append(Finding("category-ids-mixed", "error", what, "Write all alike."))
    ordered = sorted({c["id"]: c for c in reversed(whole)}.values(), key=lambda c: (isinstance(c["id"], str), c["id"]))
    return {c["id"]: label for label, c in enumerate(ordered)}, [c["name"] for c in ordered]


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def image_records(content: dict[str, Any], root: str, json_file: Any) -> dict[int | str, dict[str, Any]]:
    """Check the images of a file.

    Args:
        content: what the file holds.
        root: folder that the file names are relative to.
        json_file: the file, for messages.

    Returns:
        a dataset dict for each id, in the order of the ids, with `file_name, height, width, image_id`.

    Raises:
        ValueError: an image lacks something, ids occur twice, or an image without a size cannot be read.
    """
    images = checked_objects(content, "images", json_file)
    records: dict[int | str, dict[str, Any]] = {}
    from_windows = 0
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if "id" not in image or "file_name" not in image:
            raise AnnotationFileError(json_file, where, f"needs 'id' and 'file_name'; it has: {shorten(image)}.")
        image_id = checked_id(image["id"], json_file, where)
        if image_id in records:
            duplicates = find_duplicates(i.get("id") for i in images)
            raise AnnotationFileError(
                json_file, "images", f"several images have the same id: {shorten(duplicates)}. Ids must be unique."
            )
        name = checked_file_name(image["file_name"], json_file, where)
        path = os.path.join(root, name)
        if "\\" in name and os.sep != "\\" and not os.path.exists(path):
            path = os.path.join(root, name.replace("\\", "/"))
            from_windows += 1
        height, width = _size_hw(image, path, json_file, f"image id {image_id}")
        records[image_id] = {"file_name": path, "height": height, "width": width, "image_id": image_id}
    if from_windows:
        logger.info("%s: %d file names have '\\' between folders, which is read as '/'.", json_file, from_windows)
    try:
        return dict(sorted(records.items()))
    except TypeError:  # ids of several types: any fixed order will do
        return dict(sorted(records.items(), key=lambda item: str(item[0])))


def _size_hw(image: dict[str, Any], path: str, json_file: Any, where: str) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
        return height, width
    if height is not None and width is not None:
        hint = " (Where both are missing, they are read from the image.)"
        return (
            checked_size(height, json_file, where, "height", hint),
            checked_size(width, json_file, where, "width", hint),
        )
    try:
        return image_size_hw(path)
    except _UNREADABLE as e:
        raise AnnotationFileError(
            json_file, where, f"it has no 'height' and 'width', and '{path}' cannot be read instead: {e}"
        ) from e


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------


def check_annotation_ids(annotations: list[dict[str, Any]], json_file: Any) -> None:
    """Check that no two annotations have the same id.

    Args:
        annotations: those of the file; ids are optional.
        json_file: the file, for messages.

    Raises:
        ValueError: an id occurs twice, or is neither a number nor a string.
    """
    ids = [a["id"] for a in annotations if a.get("id") is not None]
    if set(map(type, ids)) - {int, str}:
        ids = [
            checked_id(a["id"], json_file, f"annotations[{index}]")
            for index, a in enumerate(annotations)
            if a.get("id") is not None
        ]
    # The ids of the published 2014 "minival" files are known not to be unique; nothing depends on them.
    if len(set(ids)) != len(ids) and "minival" not in os.path.basename(os.fspath(json_file)):
        raise AnnotationFileError(
            json_file,
            "annotations",
            f"several annotations have the same id: {shorten(find_duplicates(ids))}. Evaluation would count only one "
            "of them; give each annotation its own id.",
        )


class AnnotationConverter:
    """Turns annotations of the file into those of a dataset dict, and counts what it had to leave out.

    Args:
        json_file: the file, for messages.
        labels: the label of each category id; None leaves the ids as they are.
        records: dataset dicts by image id, for the size that masks must have.
        extra_keys: further keys to hand through.
    """

    def __init__(
        self,
        json_file: Any,
        labels: Mapping[int | str, int] | None,
        records: Mapping[Any, dict[str, Any]],
        extra_keys: list[str],
    ) -> None:
        self._json_file = json_file
        self._labels = labels
        self._records = records
        self._extra_keys = extra_keys
        self._without_valid_polygon: list[Any] = []
        self._compressed: list[tuple[Any, Any, str, int]] = []  # annotation id, image id, text, number of pixels

    def __call__(self, annotation: dict[str, Any]) -> dict[str, Any] | None:
        """Convert one annotation, whose image is among the records; None if no polygon of it has three points."""
        converted: dict[str, Any] = {}
        if annotation.get("ignore"):
            raise self._error(annotation, "'ignore' is not supported; mark regions to be left out with 'iscrowd': 1")
        crowd = annotation.get("iscrowd")
        if crowd is not None:
            if crowd not in (0, 1):
                raise self._error(annotation, f"'iscrowd' must be 0 or 1, not {describe(crowd)}")
            converted["iscrowd"] = int(crowd)

        box = annotation.get("bbox")
        if box is not None:
            self._check_box(annotation, box)
            converted["bbox"] = box
        converted["bbox_mode"] = BoxMode.XYWHA_ABS if box is not None and len(box) == 5 else BoxMode.XYWH_ABS

        segmentation = annotation.get("segmentation")
        if segmentation:
            segmentation = self._segmentation(annotation, segmentation)
            if segmentation is None:
                return None
            converted["segmentation"] = segmentation
        elif segmentation not in (None, [], {}):
            raise self._segmentation_error(annotation, segmentation)

        keypoints = annotation.get("keypoints")
        if keypoints is not None:
            self._check_keypoints(annotation, keypoints)
            moved = [v + 0.5 for v in keypoints]
            moved[2::3] = keypoints[2::3]
            converted["keypoints"] = moved

        if self._labels is not None or "category_id" in annotation:
            converted["category_id"] = self._label(annotation)
        for key in self._extra_keys:
            if key in annotation:
                converted.setdefault(key, annotation[key])
        return converted

    def _label(self, annotation: dict[str, Any]) -> int | str:
        category_id = annotation.get("category_id")
        if self._labels is None:
            if type(category_id) is int and 0 <= category_id < 2**31:
                return category_id
            return checked_id(category_id, self._json_file, self._where(annotation), "category_id")
        try:
            return self._labels[category_id]  # pyright: ignore[reportArgumentType] (another type is not a key then)
        except (KeyError, TypeError):
            raise self._error(
                annotation,
                f"category_id {shorten([category_id])} is not among the ids of 'categories': "
                f"{shorten(self._labels, 10)}",
            ) from None

    def _check_box(self, annotation: dict[str, Any], box: Any) -> None:
        if not isinstance(box, list) or len(box) not in (4, 5):
            what = f"[{shorten(box, 6)}]" if isinstance(box, list) and len(box) < 20 else describe(box)
            raise self._error(annotation, f"'bbox' must be [x, y, width, height], not {what}")
        try:
            if math.hypot(*box) < _LARGEST:
                return
        except (TypeError, OverflowError):
            pass
        # NaN and infinity are left to the validation of the data set, which reports all such boxes, or drops them.
        bad = [v for v in box if not _is_number(v) or (abs(v) >= _LARGEST and abs(v) != math.inf)]
        if bad:
            raise self._error(
                annotation,
                f"'bbox' must be four numbers of pixels (five if it is rotated), below {_LARGEST:.0e}; one is "
                f"{describe(bad[0])}",
            )

    def _check_keypoints(self, annotation: dict[str, Any], keypoints: Any) -> None:
        if not isinstance(keypoints, list) or len(keypoints) % 3:
            raise self._error(
                annotation,
                f"'keypoints' must be three numbers for each keypoint, [x1, y1, v1, ...], not {describe(keypoints)}",
            )
        self._check_numbers(annotation, "keypoints", keypoints)

    def _check_numbers(self, annotation: dict[str, Any], key: str, numbers: list[Any]) -> None:
        try:
            if math.hypot(*numbers) < _LARGEST:
                return
        except (TypeError, OverflowError):
            pass
        bad = [v for v in numbers if not _is_number(v) or not abs(v) < _LARGEST]
        if bad:
            raise self._error(
                annotation, f"'{key}' must be numbers of pixels, below {_LARGEST:.0e}; one is {describe(bad[0])}"
            )

    def _segmentation(self, annotation: dict[str, Any], segmentation: Any) -> Any:
        """Return polygons, or a mask as compressed run lengths; None if no polygon has three points."""
        if isinstance(segmentation, dict):
            return self._mask(annotation, segmentation)
        if not isinstance(segmentation, list):
            raise self._segmentation_error(annotation, segmentation)
        polygons = [p for p in segmentation if is_polygon(p)]
        if len(polygons) != len(segmentation):
            wrong = [p for p in segmentation if not isinstance(p, list)]
            if wrong:
                hint = " (for a single polygon: [[x1, y1, x2, y2, ...]])" if _is_number(wrong[0]) else ""
                raise self._error(
                    annotation,
                    f"'segmentation' must be a list of polygons, which are lists themselves{hint}; one is "
                    f"{describe(wrong[0])}",
                )
            if any(p and isinstance(p[0], list) for p in segmentation):
                raise self._error(
                    annotation,
                    "'segmentation' must have polygons [x1, y1, x2, y2, ...], all numbers in one list; one has pairs "
                    f"of them: {str(segmentation[0])[:60]}",
                )
        for polygon in polygons:
            self._check_numbers(annotation, "segmentation", polygon)
        if not polygons:
            self._without_valid_polygon.append(annotation.get("id"))
            return None
        return polygons

    def _mask(self, annotation: dict[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
        record = self._records[annotation["image_id"]]
        size_hw = [record["height"], record["width"]]
        if mask.get("size") != size_hw:
            got = mask.get("size")
            got = f"[{shorten(got)}]" if isinstance(got, list) and len(got) < 5 else describe(got)
            raise self._error(
                annotation,
                f"the 'size' of run lengths in 'segmentation' must be that of the image, [height, width] = {size_hw}, "
                f"not {got}",
            )
        counts, pixels = mask.get("counts"), size_hw[0] * size_hw[1]
        if isinstance(counts, list):
            if not all(type(v) is int and v >= 0 for v in counts):
                raise self._error(annotation, "'counts' of run lengths in 'segmentation' must be whole numbers from 0")
            if sum(counts) != pixels:
                raise self._wrong_total(annotation.get("id"), annotation["image_id"], sum(counts), pixels)
            return run_lengths({"size": size_hw, "counts": counts})
        if not isinstance(counts, str) or not is_compressed(counts):
            raise self._error(
                annotation,
                "'counts' of run lengths in 'segmentation' must be a list of numbers, or a whole string of "
                f"pycocotools, not {describe(counts)}",
            )
        self._compressed.append((annotation.get("id"), annotation["image_id"], counts, pixels))
        return {"size": size_hw, "counts": counts}

    def _wrong_total(self, annotation_id: Any, image_id: Any, total: int, pixels: int) -> AnnotationFileError:
        there = f"of {total} pixels" if 0 <= total < 2**63 else "with a number that is too large"
        return AnnotationFileError(
            self._json_file,
            f"annotation id {annotation_id} of image id {image_id}",
            f"the run lengths in 'segmentation' are {there}, while the image has {pixels}.",
        )

    def _segmentation_error(self, annotation: dict[str, Any], segmentation: Any) -> ValueError:
        return self._error(annotation, f"'segmentation' must be a list or an object, not {describe(segmentation)}")

    def _where(self, annotation: dict[str, Any]) -> str:
        return f"annotation id {annotation.get('id')} of image id {annotation.get('image_id')}"

    def _error(self, annotation: dict[str, Any], what: str) -> AnnotationFileError:
        return AnnotationFileError(self._json_file, self._where(annotation), what + ".")

    def finish(self) -> None:
        """Do the checks that are faster for all annotations together, and log what was left out."""
        totals = run_length_totals([text for _, _, text, _ in self._compressed]).tolist()
        for (annotation_id, image_id, _, pixels), total in zip(self._compressed, totals, strict=True):
            if total != pixels:
                raise self._wrong_total(annotation_id, image_id, total, pixels)
        if self._without_valid_polygon:
            logger.warning(
                "%s: %d annotations are left out, since none of their polygons has three points or more (ids %s).",
                *(self._json_file, len(self._without_valid_polygon), shorten(self._without_valid_polygon)),
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Keypoints
# ---------------------------------------------------------------------------------------------------------------------


def keypoint_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Read "keypoints" and "skeleton" of the categories.

    Args:
        categories: those of the file.

    Returns:
        `keypoint_names` and `keypoint_connection_rules`; `keypoint_flip_map` where names with "left" and "right"
        tell it. Nothing where no category has keypoints, or categories differ in them.
    """
    having = [c for c in categories if _are_names(c.get("keypoints"))]
    if not having or any(c["keypoints"] != having[0]["keypoints"] for c in having):
        return {}
    names = having[0]["keypoints"]
    found: dict[str, Any] = {
        "keypoint_names": list(names),
        "keypoint_connection_rules": _connections(names, having[0].get("skeleton")),
    }
    mirrored = {n: _SIDE.sub(lambda side: _OTHER_SIDE[side[0]], n) for n in names if _SIDE.search(n)}
    if mirrored and set(mirrored.values()) <= set(names):
        position = {n: i for i, n in enumerate(names)}
        found["keypoint_flip_map"] = [(n, m) for n, m in mirrored.items() if position[n] < position[m]]
    return found


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)


def _connections(names: list[str], skeleton: Any) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Lines between keypoints, which the file counts from one."""
    pairs = skeleton if isinstance(skeleton, list) else []
    numbers = range(1, len(names) + 1)
    return [
        (names[pair[0] - 1], names[pair[1] - 1], _LINE_COLOR)
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and pair[0] in numbers and pair[1] in numbers
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_coco(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write `annotations/SPLIT.json` for each split, and `images`.

    Args:
        data: what to write.
        folder: an empty folder.
        images: "copy", "link" or "none"; see `place_images`.

    Returns:
        what the format cannot express, and how often: nothing.
    """
    named = renamed_images(data, images)
    for split, ids in data.splits.items():
        part = AnnotatedImages(data.source, data.format, named, "", {split: ids}).select(split)
        write_content(part.content, folder / "annotations" / f"{split}.json")
    pairs = zip(data.content["images"], named["images"], strict=True)
    place_images(((data.path(a), folder / "images" / b["file_name"]) for a, b in pairs), images)
    return {}


def renamed_images(data: AnnotatedImages, images: str) -> dict[str, Any]:
    """Return the content with file names as they are below the new folder: those they have, if possible."""
    entries = data.content["images"]
    names = [i["file_name"] for i in entries]
    if images != "none" and any(os.path.isabs(n) or ".." in Path(n).parts for n in names):
        names = flat_names(names)
    return {**data.content, "images": [{**i, "file_name": n} for i, n in zip(entries, names, strict=True)]}


def write_content(content: dict[str, Any], path: Path) -> None:
    """Write an annotation file whole or not at all."""
    with atomic_write(path, "w") as f:
        json.dump(content, f)
