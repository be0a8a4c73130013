"""The COCO format: read a file with all its mistakes, and write one.

See :mod:`detectron2.data.datasets.coco` for the loader, which stops at mistakes.
"""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from detectron2.data._findings import Case, Finding, quantity
from detectron2.data._formats import AnnotatedImages, findings_of, flat_names, place_images, read_images_hw
from detectron2.data.datasets._coco_annotations import AnnotationConverter
from detectron2.data.datasets._coco_images import checked_file_name, checked_size
from detectron2.data.datasets._reading import AnnotationFileError, checked_id, is_polygon, paused_gc, read_json
from detectron2.data.datasets._run_lengths import run_length_totals
from detectron2.utils.file_io import atomic_write

__all__ = [
    "CocoReader",
    "content_to_dicts",
    "guess_image_root",
    "read_coco",
    "renamed_images",
    "write_coco",
    "write_content",
]


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
    """-> the folder near an annotation file in which one of the first images is; that of the file if there is none."""
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
        self, converter: AnnotationConverter, annotation: dict[str, Any], record: dict[str, Any], position: int
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
        elif isinstance(mask, dict) and "height" not in record:  # nobody knows which size it should have
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
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_coco(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write ``annotations/SPLIT.json`` for each split, and ``images``.

    Args:
        data: what to write.
        folder: an empty folder.
        images: "copy", "link" or "none"; see ``place_images``.

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
    """-> the content with file names as they are below the new folder: those they have, if possible."""
    entries = data.content["images"]
    names = [i["file_name"] for i in entries]
    if images != "none" and any(os.path.isabs(n) or ".." in Path(n).parts for n in names):
        names = flat_names(names)
    return {**data.content, "images": [{**i, "file_name": n} for i, n in zip(entries, names, strict=True)]}


def write_content(content: dict[str, Any], path: Path) -> None:
    """Write an annotation file whole or not at all."""
    with atomic_write(path, "w") as f:
        json.dump(content, f)
