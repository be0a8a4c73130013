"""The COCO format: read a file, for training or with all its mistakes, and write one."""

import functools
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.checks.findings import Case
from detectron2.data.formats.annotated_images import (
    AnnotatedImages,
    flat_names,
    image_path,
    place_images,
    read_images_hw,
)
from detectron2.data.formats.reading import (
    AnnotationFileError,
    Meaning,
    Report,
    check_keys,
    checked_file_name,
    checked_id,
    checked_objects,
    checked_size,
    describe,
    is_polygon,
    read_json,
    shorten,
)
from detectron2.data.formats.run_lengths import is_compressed, run_length_totals, run_lengths
from detectron2.structures import BoxMode
from detectron2.utils.collector import paused_gc
from detectron2.utils.file_io import atomic_write

__all__ = [
    "COCO_MISTAKES",
    "CocoReader",
    "PanopticFileError",
    "guess_image_root",
    "ids_by_text",
    "keypoint_metadata",
    "read_coco",
    "read_content",
    "renamed_images",
    "write_coco",
    "write_content",
]

logger = logging.getLogger("detectron2.data.datasets.coco")

# Far more pixels than any image has; beyond it, float32 and the drawing of polygons have no use for a number.
_LARGEST = 1e7
_LINE_COLOR = (102, 204, 255)
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
_SIDE = re.compile("|".join(_OTHER_SIDE))

COCO_MISTAKES = {
    "format": Meaning("error", "part", "another form than the COCO format", "See the COCO format."),
    "category-incomplete": Meaning("error", "category", "no usable 'id' or 'name'", "Each needs both."),
    "category-twice": Meaning("error", "category", "the id of an earlier one", "Renumber them."),
    "category-ids-mixed": Meaning(
        "error", "list of categories", "numbers and strings as ids, so they have no order", "Write all alike."
    ),
    "image-incomplete": Meaning("error", "image", "no usable 'id' or 'file_name'", "Each needs both."),
    "image-id-twice": Meaning(
        "error", "image", "an id that an earlier one has too", "Annotations may be of either; give each its own id."
    ),
    "image-size": Meaning(
        "error", "image", "no usable 'width' and 'height'", "Write both, in pixels, or neither: they are then read."
    ),
    "annotation-id-twice": Meaning(
        "error", "annotation", "an id that an earlier one has too", "Evaluation counts only one; give each its own id."
    ),
    "no-image_id": Meaning("error", "annotation", "no usable 'image_id'", "Give it the id of its image."),
    "image_id-type": Meaning(
        *("error", "annotation", "an 'image_id' that is the id of an image written otherwise, or its file name"),
        "Write the id as the image has it.",
    ),
    "no-annotation-fits": Meaning(
        "error",
        "list of annotations",
        "only such of other images",
        "Is it the list of another split, or with other ids?",
    ),
    "annotation-orphan": Meaning("warning", "annotation", "an 'image_id' that no image has", "Loading leaves it out."),
    "category-unknown": Meaning(
        "error",
        "annotation",
        "a category_id that is not among the ids of 'categories'",
        "Add the category, or correct it; --fix of 'data check' does so for its name, or the id as text.",
    ),
    "category-shifted": Meaning(
        *("error", "annotation", "an unknown category_id, and all are one off: they count from another number"),
        "Add the difference to every 'category_id' of 'annotations', also to those that are known.",
    ),
    "annotation-ignore": Meaning("error", "annotation", "'ignore' set", "Mark what is to be left out: 'iscrowd': 1."),
    "annotation-unusable": Meaning("error", "annotation", "values that cannot be used", "Correct or remove them."),
    "polygon-points": Meaning(
        "warning",
        "annotation",
        "a polygon of less than three points or an odd count of numbers",
        "Loading leaves it out, and the annotation if it has no other; so does evaluation.",
    ),
}
"""What can be wrong with a file in this format."""


class PanopticFileError(ValueError):
    """A file is in the panoptic format, not in that of instances."""


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
        ValueError: it is not JSON or not an object; a `PanopticFileError`: it is in the panoptic format.
    """
    content = read_json(json_file)
    annotations = content.get("annotations")
    if isinstance(annotations, list) and any(isinstance(a, dict) and "segments_info" in a for a in annotations[:1]):
        raise PanopticFileError(
            f"'{json_file}' is in the panoptic format of COCO, whose segments are in PNG files: it can be checked and "
            "shown, but neither fixed nor converted, since the other formats have objects with boxes and masks."
        )
    report = Report(COCO_MISTAKES)
    for key in ("images", "annotations", "categories"):
        content[key] = _objects(content, key, json_file, report, required=key == "images" or key in content)
    root = guess_image_root(json_file, content["images"]) if image_root is None else os.fspath(image_root)
    stem = Path(json_file).stem.lower()
    name = split or next((s for s in ("train", "val", "test") if s in stem), "train")
    ids = [i["id"] for i in content["images"] if "id" in i]
    return AnnotatedImages(os.fspath(json_file), "coco", content, root, {name: ids}, report.findings)


def _objects(content: dict[str, Any], key: str, file: Any, report: Report, required: bool) -> list[dict[str, Any]]:
    try:
        return checked_objects(content, key, file, required=required)
    except AnnotationFileError as e:
        report("format", e)
        entries = content.get(key)
        return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def guess_image_root(json_file: str | os.PathLike[str], images: list[dict[str, Any]], parts: Sequence[str] = ()) -> str:
    """Return the folder near an annotation file that has one of the first images; by default the folder of the file.

    The `parts` are looked for before the usual names of such folders.
    """
    folder = Path(json_file).parent
    stem = Path(json_file).stem
    plain = re.sub("instances_|person_keypoints_|panoptic_", "", stem)
    names = [i["file_name"] for i in images[:5] if isinstance(i.get("file_name"), str)]
    for base in (folder, folder.parent):
        for part in (*parts, "", "images", plain, f"images/{plain}", "JPEGImages", stem):
            if any((base / part / name).is_file() for name in names):
                return str(base / part)
    return str(folder)


def ids_by_text(entries: Iterable[dict[str, Any]], name_key: str) -> dict[str, Any]:
    """Return the id that a text means among images or categories: one written as text, or a name that is there once."""
    known = [(e["id"], e.get(name_key)) for e in entries if e.get("id") is not None]
    names = Counter(name for _, name in known if isinstance(name, str))
    named = {name: i for i, name in known if isinstance(name, str) and names[name] == 1}
    return {**named, **{str(i): i for i, _ in known}}


# To dataset dicts


def read_content(data: AnnotatedImages) -> "CocoReader":
    """Read what an `AnnotatedImages` holds as far as possible; mistakes are in `report.findings` of the result.

    Annotations get "id" besides, and labels for category ids.
    """
    with paused_gc():
        reader = CocoReader(data.source, data.content, data.image_root, Report(COCO_MISTAKES))
        labels = {category_id: label for label, category_id in enumerate(reader.categories)}
        reader.read_annotations(labels, ["id"])
    return reader


class CocoReader:
    """Walks the content of a COCO file once, and turns it into dataset dicts.

    Args:
        json_file: the file, for messages.
        content: what it holds.
        image_root: folder that the file names are relative to.
        report: takes the mistakes.

    Attributes:
        file, content, report: the arguments.
        records: a dict for each image id, in the order of the ids, with `file_name, height, width, image_id` (the size
            may be missing unless `report` is strict), and `annotations` after `read_annotations`.
        unusable: positions of the annotations with an error.
    """

    def __init__(self, json_file: Any, content: dict[str, Any], image_root: str, report: Report) -> None:
        self.report = report
        self.unusable: list[int] = []
        self._unknown: list[Any] = []
        self.file, self.content = json_file, content
        self._labels: Mapping[Any, int] | None = None
        # Of compressed run lengths: text, converted annotation, and what `_mistake` asks for.
        self._compressed: list[tuple[str, dict[str, Any], Any, dict[str, Any], int]] = []
        self.records = self._read_images(image_root)

    @functools.cached_property
    def categories(self) -> dict[int | str, str]:
        """The name of each category id, in the order of the labels."""
        names: dict[int | str, str] = {}
        for index, category in enumerate(_objects(self.content, "categories", self.file, self.report, True)):
            where = f"categories[{index}]"
            try:
                check_keys(category, self.file, where, "id", "name")
                category_id, name = checked_id(category["id"], self.file, where), category["name"]
                if not isinstance(name, str):
                    raise AnnotationFileError(self.file, where, f"'name' must be a string, not {describe(name)}.")
            except AnnotationFileError as e:
                self.report("category-incomplete", e)
                continue
            if category_id in names:
                what = f"an earlier category has the id {category_id!r}, too."
                self.report("category-twice", AnnotationFileError(self.file, where, what))
            names.setdefault(category_id, name)
        if len({isinstance(category_id, str) for category_id in names}) > 1:
            what = "some ids are numbers and others strings, so they have no order. Write all alike."
            self.report("category-ids-mixed", AnnotationFileError(self.file, "categories", what))
        return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def _read_images(self, root: str) -> dict[int | str, dict[str, Any]]:
        records: dict[int | str, dict[str, Any]] = {}
        unsized = []
        from_windows = 0
        for index, image in enumerate(_objects(self.content, "images", self.file, self.report, True)):
            where = f"images[{index}]"
            try:
                check_keys(image, self.file, where, "id", "file_name")
                image_id = checked_id(image["id"], self.file, where)
                name = checked_file_name(image["file_name"], self.file, where)
            except AnnotationFileError as e:
                self.report("image-incomplete", e)
                continue
            if image_id in records:
                what = f"an earlier image has the id {image_id!r}, too. Ids must be unique."
                self.report("image-id-twice", AnnotationFileError(self.file, where, what), Case("", name, image_id))
                continue
            path = image_path(root, name)
            from_windows += "\\" in name and not path.endswith(name)
            height, width = image.get("height"), image.get("width")
            records[image_id] = record = {"file_name": path, "height": height, "width": width, "image_id": image_id}
            if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
                continue
            try:
                if height is None or width is None:
                    unsized.append(record)
                else:
                    hint = " (Where both are missing, they are read from the image.)"
                    for key in ("height", "width"):
                        record[key] = checked_size(image[key], self.file, f"image id {image_id}", key, hint)
            except AnnotationFileError as e:
                self.report("image-size", e, Case(f"({e.what})", path, image_id))
                del record["height"], record["width"]
        for record, size in zip(unsized, read_images_hw(r["file_name"] for r in unsized), strict=True):
            if isinstance(size, Exception):
                image_id, path = record["image_id"], record["file_name"]
                what = f"it has no 'height' and 'width', and '{path}' cannot be read instead: {size}"
                mistake = AnnotationFileError(self.file, f"image id {image_id}", what)
                self.report("image-size", mistake, Case(f"({what})", path, image_id))
                del record["height"], record["width"]
            else:
                record["height"], record["width"] = size
        if from_windows:
            logger.info("%s: %d file names have '\\' between folders, which is read as '/'.", self.file, from_windows)
        try:
            return dict(sorted(records.items()))
        except TypeError:  # ids of several types: any fixed order will do
            return dict(sorted(records.items(), key=lambda item: str(item[0])))

    def read_annotations(
        self, labels: Mapping[Any, int] | None, extra_keys: Iterable[str] = (), *, consume: bool = False
    ) -> None:
        """Convert the annotations one by one, and put them into the records.

        Args:
            labels: the label of each category id; None leaves the ids as they are.
            extra_keys: further keys of each annotation to hand through.
            consume: empty the list of the content on the way, so that the old and the new annotations need not be in
                memory together.
        """
        self._labels = labels
        annotations = _objects(self.content, "annotations", self.file, self.report, False)
        self._check_ids(annotations)
        records = self.records
        for record in records.values():
            record["annotations"] = []
        count, orphans = len(annotations), 0
        for position, annotation in enumerate(_taken_out(annotations) if consume else annotations):
            try:
                record = records[annotation["image_id"]]
            except (KeyError, TypeError):
                orphans += self._without_image(annotation, position)
                continue
            try:
                converted = self._convert(annotation, record, position)
            except AnnotationFileError as e:
                self._mistake("annotation-unusable", e.what, annotation, record, position)
                continue
            if converted is not None:
                if extra_keys:
                    converted = {**{k: annotation[k] for k in extra_keys if k in annotation}, **converted}
                record["annotations"].append(converted)
        if 1 < count == orphans:
            what = f"none of {count} belongs to an image of the file, whose ids are: {shorten(records)}."
            self.report("no-annotation-fits", AnnotationFileError(self.file, "annotations", what))
        totals = run_length_totals([text for text, *_ in self._compressed]).tolist()
        for total, (_, converted, annotation, record, position) in zip(totals, self._compressed, strict=True):
            what = _total_is_wrong(total, converted["segmentation"]["size"])
            if what:
                self._mistake("annotation-unusable", what, annotation, record, position)
                del converted["segmentation"]

    def _check_ids(self, annotations: list[dict[str, Any]]) -> None:
        """Check that ids, where annotations have any, are ids, and that each occurs once."""
        ids = [a["id"] for a in annotations if a.get("id") is not None]
        # The ids of the published 2014 "minival" files are known not to be unique; nothing depends on them.
        may_repeat = "minival" in os.path.basename(os.fspath(self.file))
        if not set(map(type, ids)) - {int, str} and (may_repeat or len(set(ids)) == len(ids)):
            return
        seen = set()
        for position, annotation in enumerate(annotations):
            value, where = annotation.get("id"), f"annotations[{position}]"
            if value is None:
                continue
            try:
                known = checked_id(value, self.file, where)
            except AnnotationFileError as e:
                self.unusable.append(position)
                self.report("annotation-unusable", e)
                continue
            if known in seen and not may_repeat:
                what = f"an earlier annotation has the id {known!r}, too. Evaluation would count only one of them."
                self.report("annotation-id-twice", AnnotationFileError(self.file, where, what))
            seen.add(known)

    def _without_image(self, annotation: dict[str, Any], position: int) -> bool:
        """Report an annotation whose image is not among the records; return whether it belongs to none of the file."""
        image_id, annotation_id = annotation.get("image_id"), annotation.get("id")
        where, known = f"annotation id {annotation_id}", f"image_id {image_id!r}"
        kind, what = "annotation-orphan", "it belongs to no image of the file."
        try:
            if image_id is None:
                raise AnnotationFileError(self.file, where, "it has no 'image_id'.")
            text = str(checked_id(image_id, self.file, where, "image_id"))
            meant = self._ids_by_text.get(text)
            if meant is not None:
                kind = "image_id-type"
                what = f"'image_id' is {image_id!r}, while the id of that image is {meant!r}: write it so."
        except AnnotationFileError as e:
            kind, what, known = "no-image_id", e.what, e.what.rstrip(".")
        if kind != "annotation-orphan":
            self.unusable.append(position)
        place = position if annotation_id is None else None
        case = Case(known, annotation=place, annotation_id=annotation_id)
        self.report(kind, AnnotationFileError(self.file, where, what), case)
        return kind == "annotation-orphan"

    @functools.cached_property
    def _ids_by_text(self) -> dict[str, int | str]:
        return ids_by_text(self.content["images"], "file_name")

    @functools.cached_property
    def _are_shifted(self) -> bool:
        """Whether some categories are unknown, and all would be known with one more, or with one less."""
        done = {a["category_id"] for record in self.records.values() for a in record["annotations"]}
        used = [i for i, label in (self._labels or {}).items() if label in done]
        used += [a.get("category_id") for a in self.content["annotations"]] + self._unknown
        if not all(type(i) is int for i in used) or len(set(used)) < 2:
            return False
        return any(set(self._labels or ()).issuperset(i + d for i in used) for d in (1, -1))

    def _mistake(self, kind: str, what: str, annotation: dict[str, Any], record: dict[str, Any], position: int) -> None:
        """Report a mistake in an annotation of a known image."""
        annotation_id, image_id = annotation.get("id"), record["image_id"]
        mistake = AnnotationFileError(
            self.file, f"annotation id {annotation_id} of image id {image_id}", what.rstrip(".") + "."
        )
        place = position if annotation_id is None else None
        case = Case(what.rstrip(".") + ",", record["file_name"], image_id, place, annotation_id)
        if COCO_MISTAKES[kind].level == "error":
            self.unusable.append(position)
        self.report(kind, mistake, case)

    def _convert(self, annotation: dict[str, Any], record: dict[str, Any], position: int) -> dict[str, Any] | None:
        """Return one annotation of a dataset dict; None if it is left out."""
        converted: dict[str, Any] = {}
        if annotation.get("ignore"):
            what = "'ignore' is not supported; mark regions to be left out with 'iscrowd': 1"
            self._mistake("annotation-ignore", what, annotation, record, position)
        crowd = annotation.get("iscrowd")
        if crowd is not None:
            if crowd not in (0, 1):
                raise self._error(f"'iscrowd' must be 0 or 1, not {describe(crowd)}")
            converted["iscrowd"] = int(crowd)

        box = annotation.get("bbox")
        if box is not None:
            if not isinstance(box, list) or len(box) not in (4, 5):
                got = f"[{shorten(box, 6)}]" if isinstance(box, list) and len(box) < 20 else describe(box)
                raise self._error(f"'bbox' must be [x, y, width, height], not {got}")
            # NaN and infinity are left to the validation of the data set, which reports all such boxes, or drops them.
            self._check_numbers("bbox", box, finite=False)
            converted["bbox"] = box
        converted["bbox_mode"] = BoxMode.XYWHA_ABS if box is not None and len(box) == 5 else BoxMode.XYWH_ABS

        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and mask:
            if "height" in record:  # else it is not known which size it should have
                converted["segmentation"] = mask = self._mask(mask, [record["height"], record["width"]])
                if isinstance(mask["counts"], str):
                    self._compressed.append((mask["counts"], converted, annotation, record, position))
        elif mask:
            polygons = self._polygons(mask)
            if len(polygons) < len(mask):
                self._mistake("polygon-points", str(mask)[:80], annotation, record, position)
            if not polygons:
                return None
            converted["segmentation"] = polygons
        elif mask not in (None, [], {}):
            raise self._error(f"'segmentation' must be a list or an object, not {describe(mask)}")

        keypoints = annotation.get("keypoints")
        if keypoints is not None:
            if not isinstance(keypoints, list) or len(keypoints) % 3:
                what = "'keypoints' must be three numbers for each keypoint, [x1, y1, v1, ...], not "
                raise self._error(what + describe(keypoints))
            self._check_numbers("keypoints", keypoints)
            moved = [v + 0.5 for v in keypoints]
            moved[2::3] = keypoints[2::3]
            converted["keypoints"] = moved

        category_id = annotation.get("category_id")
        if self._labels is not None:
            if type(category_id) is bool:
                checked_id(category_id, self.file, "", "category_id")
            try:
                converted["category_id"] = self._labels[category_id]
            except (KeyError, TypeError):  # the second: a list or such
                known = shorten(self._labels, 10)
                what = f"category_id {shorten([category_id])} is not among the ids of 'categories': {known}"
                self._unknown.append(category_id)
                kind = "category-shifted" if self._are_shifted else "category-unknown"
                if self._are_shifted:
                    what += "; all are one off: add the difference to each"
                self._mistake(kind, what, annotation, record, position)
                return None
        elif "category_id" in annotation:
            converted["category_id"] = checked_id(category_id, self.file, "", "category_id")
        return converted

    def _error(self, what: str) -> AnnotationFileError:
        return AnnotationFileError(self.file, "", what)

    def _check_numbers(self, key: str, numbers: list[Any], *, finite: bool = True) -> None:
        try:
            if math.hypot(*numbers) < _LARGEST:
                return
        except (TypeError, OverflowError):
            pass
        for v in numbers:
            is_number = isinstance(v, (int, float)) and not isinstance(v, bool)
            is_useless = v != v or v in (math.inf, -math.inf)
            if not is_number or (not abs(v) < _LARGEST and (finite or not is_useless)):
                raise self._error(f"'{key}' must be numbers of pixels, below {_LARGEST:.0e}; one is {describe(v)}")

    def _polygons(self, polygons: Any) -> list[list[float]]:
        """Return the polygons of three points or more."""
        if not isinstance(polygons, list):
            raise self._error(f"'segmentation' must be a list or an object, not {describe(polygons)}")
        good = [p for p in polygons if is_polygon(p)]
        if len(good) != len(polygons):
            for p in polygons:
                if not isinstance(p, list) or (p and isinstance(p[0], list)):
                    found = f"has pairs of numbers: {str(p)[:60]}" if isinstance(p, list) else f"is {describe(p)}"
                    raise self._error(
                        "'segmentation' must be a list of polygons, each of them one list of numbers: "
                        f"[[x1, y1, x2, y2, ...], ...]; one {found}"
                    )
        for polygon in good:
            self._check_numbers("segmentation", polygon)
        return good

    def _mask(self, mask: dict[str, Any], size_hw: list[int]) -> dict[str, Any]:
        """Return a mask as compressed run lengths; those that are compressed already are still to be added up."""
        size, counts = mask.get("size"), mask.get("counts")
        if size != size_hw:
            got = f"[{shorten(size)}]" if isinstance(size, list) and len(size) < 5 else describe(size)
            raise self._error(
                "the 'size' of run lengths in 'segmentation' must be that of the image, [height, width] = "
                f"{size_hw}, not {got}"
            )
        if isinstance(counts, list):
            if not all(type(v) is int and v >= 0 for v in counts):
                raise self._error("'counts' of run lengths in 'segmentation' must be whole numbers from 0")
            what = _total_is_wrong(sum(counts), size_hw)
            if what:
                raise self._error(what)
            return run_lengths({"size": size_hw, "counts": counts})
        if not is_compressed(counts):
            raise self._error(
                "'counts' of run lengths in 'segmentation' must be a list of numbers, or a whole string of "
                f"pycocotools, not {describe(counts)}"
            )
        return {"size": size_hw, "counts": counts}


def _total_is_wrong(total: int, size_hw: list[int]) -> str:
    """Say what is wrong with the total of run lengths; nothing if it is right."""
    pixels = size_hw[0] * size_hw[1]
    if total == pixels:
        return ""
    there = f"of {total} pixels" if 0 <= total < 2**63 else "with a number that is too large"
    return f"the run lengths in 'segmentation' are {there}, while the image has {pixels}"


def _taken_out(values: list[Any]) -> Iterator[Any]:
    values.reverse()
    while values:
        yield values.pop()


# Keypoints


def keypoint_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `keypoint_names`, `keypoint_connection_rules`, and `keypoint_flip_map` where "left" and "right" tell it.

    Nothing where no category has keypoints, or categories differ in them.
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


# Writing


def write_coco(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write `annotations/SPLIT.json` for each split, and `images`, into an empty folder; nothing is lost.

    `images` is a mode of `place_images`.
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


def write_content(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write an annotation file whole or not at all."""
    with atomic_write(path, "w") as f:
        f.write(json.dumps(content))  # json.dump() takes the slow encoder, several times slower
