"""Data sets in the COCO panoptic format, in two forms.

The *standard* form has, for each image, the panoptic PNG and a description of its segments; things and stuff share one
range of labels. The *separated* form, used by Panoptic FPN, has instance annotations and a semantic segmentation in
which all things are label 0, each with its own labels.
"""

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import CLASS_KEYS, load_coco_json, load_sem_seg, read_classes
from detectron2.data.formats.reading import (
    AnnotationFileError,
    check_keys,
    checked_file_name,
    checked_id,
    checked_objects,
    checked_size,
    describe,
    read_json,
    shorten,
    timed,
)
from detectron2.utils.collector import paused_gc

__all__ = [
    "image_number",
    "load_coco_panoptic_json",
    "merge_to_panoptic",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]

logger = logging.getLogger(__name__)


def load_coco_panoptic_json(
    json_file: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    meta: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Load a file in the COCO panoptic format. No image is read.

    Args:
        json_file: the panoptic annotation file.
        image_dir: folder of the input images.
        gt_dir: folder of the panoptic PNG files.
        meta: has `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`. Without them, the file's
            `categories` get the labels 0, 1 ... in the order of their ids, and `isthing` says which are things.

    Returns:
        one dict per annotated image, in the order of the file, with `file_name, image_id, pan_seg_file_name,
        segments_info` (and `height, width` if the file tells them). Each segment has its label as `category_id`
        and `isthing`.

    Raises:
        ValueError: the file is not in this format, or a segment has an unknown category; the message names the place.
    """
    image_dir, gt_dir = os.fspath(image_dir), os.fspath(gt_dir)
    with timed(str(json_file)), paused_gc():
        content = read_json(json_file)
        meta = _with_class_tables(meta, content, json_file)
        images = _images_by_id(content, json_file)
        records = []
        for image_id, png, segments in read_segments(content, meta, json_file):
            image = images.get(image_id, {})
            # Cityscapes' files do not name the images; there, as in COCO, an image is called as its PNG is.
            name = image.get("file_name", os.path.splitext(png)[0] + ".jpg")
            record = {
                "file_name": os.path.join(image_dir, name),
                "image_id": image_number(image_id),
                "pan_seg_file_name": os.path.join(gt_dir, png),
                "segments_info": segments,
            }
            record.update({key: image[key] for key in ("height", "width") if key in image})
            records.append(record)
    logger.info("Loaded %d images in COCO panoptic format from %s", len(records), json_file)
    return records


def _with_class_tables(
    meta: Mapping[str, Any], content: dict[str, Any], json_file: Any, separated: bool = False
) -> dict[str, Any]:
    """Add the tables of classes and ids that are missing, from the file's categories and the names that are given."""
    if all(meta.get(key) is not None for key in _TABLES[1::2]):
        return dict(meta)
    ids: Any = set()
    for index, category in enumerate(categories := checked_objects(content, "categories", json_file)):
        check_keys(category, json_file, where := f"categories[{index}]", "id", "name", "isthing")
        if category["isthing"] not in (0, 1):
            raise AnnotationFileError(json_file, where, f"needs 'isthing' 0 or 1; it has: {shorten(category)}.")
        if not isinstance(category["name"], str):
            raise AnnotationFileError(json_file, where, f"'name' must be a string, not {describe(category['name'])}.")
        if checked_id(category["id"], json_file, where) in ids:
            raise AnnotationFileError(json_file, where, f"an earlier category has the id {category['id']!r}, too.")
        ids.add(category["id"])
    categories = sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"]))
    known = dict(meta)
    for kind, is_thing in (("thing", 1), ("stuff", 0)):
        own = [c for c in categories if c["isthing"] == is_thing]
        listed = own if separated else categories
        names = [*(["things"] if separated and not is_thing else []), *(c["name"] for c in listed)]
        given = list(known.get(f"{kind}_classes") or names)
        if given != names and (lacking := [c["name"] for c in own if given.count(c["name"]) != 1]):
            raise AnnotationFileError(
                json_file,
                "categories",
                f"{kind}_classes of the metadata are {shorten(given)}, without {shorten(lacking)}. Give "
                f"{shorten(names)}, or a table of ids and labels, {kind}_dataset_id_to_contiguous_id, too.",
            )
        number = {c["id"]: i for i, c in enumerate(listed, len(names) - len(listed))}
        ids = {c["id"]: number[c["id"]] if given == names else given.index(c["name"]) for c in own}
        table = {0: 0, **ids} if len(names) > len(listed) else ids
        known = {f"{kind}_classes": given, f"{kind}_dataset_id_to_contiguous_id": table, **known}
    labels = [set(known[key].values()) for key in _TABLES[1::2]]
    if not separated and (both := sorted(labels[0] & labels[1])):
        raise AnnotationFileError(
            json_file,
            "categories",
            f"the labels {both} would be a thing and stuff at once. In this form the two share one range of labels: "
            f"leave out thing_classes and stuff_classes, or give {shorten([c['name'] for c in categories])} as both.",
        )
    return known


_TABLES = tuple(f"{kind}_{key}" for kind in ("thing", "stuff") for key in ("classes", "dataset_id_to_contiguous_id"))


def _read_classes(name: str, json_file: str, keys: Iterable[str], separated: bool) -> None:
    """Put what the categories of a file tell into the metadata, without loading the data set."""
    metadata = MetadataCatalog.get(name)
    given = {key: value for key in keys if (value := metadata.get(key)) is not None}
    tables = _with_class_tables(given, read_json(json_file), json_file, separated)
    metadata.set(**{key: tables[key] for key in keys})


def _images_by_id(content: dict[str, Any], json_file: Any) -> dict[int | str, dict[str, Any]]:
    """Return what the file tells about the images: some of `file_name, height, width`."""
    by_id: dict[int | str, dict[str, Any]] = {}
    for index, image in enumerate(checked_objects(content, "images", json_file, required=False)):
        where = f"images[{index}]"
        check_keys(image, json_file, where, "id")
        image_id = checked_id(image["id"], json_file, where)
        if image_id in by_id:
            raise AnnotationFileError(json_file, where, f"another image has the id {image_id!r}, too.")
        known = by_id[image_id] = {}
        if image.get("file_name") is not None:
            known["file_name"] = checked_file_name(image["file_name"], json_file, where)
        for key in ("height", "width"):
            if image.get(key) is not None:
                known[key] = checked_size(image[key], json_file, where, key)
    return by_id


def image_number(image_id: int | str) -> int | str:
    """Turn ids like "000000000139" into numbers, as the evaluation of COCO writes them."""
    return int(image_id) if isinstance(image_id, str) and image_id.isdecimal() and len(image_id) < 19 else image_id


def read_segments(
    content: dict[str, Any], meta: Mapping[str, Any], json_file: Any
) -> Iterator[tuple[int | str, str, list[dict[str, Any]]]]:
    """Yield for each annotation the id of its image, its PNG file, and its segments with labels for category ids."""
    for index, annotation in enumerate(checked_objects(content, "annotations", json_file)):
        where = f"annotations[{index}]"
        check_keys(annotation, json_file, where, "image_id", "file_name", "segments_info")
        image_id = checked_id(annotation["image_id"], json_file, where, "image_id")
        png = checked_file_name(annotation["file_name"], json_file, where)
        yield image_id, png, _segments(annotation, meta, json_file, f"image id {image_id}")


def _segments(annotation: dict[str, Any], meta: Mapping[str, Any], json_file: Any, where: str) -> list[dict[str, Any]]:
    """Return the descriptions of the segments of one image, with labels for category ids."""
    things, stuff = meta["thing_dataset_id_to_contiguous_id"], meta["stuff_dataset_id_to_contiguous_id"]
    segments, ids = [], set()
    for index, segment in enumerate(checked_objects(annotation, "segments_info", json_file)):
        place = f"segment {segment.get('id', index)} of {where}"
        check_keys(segment, json_file, place, "id", "category_id")
        segment_id = checked_id(segment["id"], json_file, place)
        # The id is the colour of the segment in the PNG: red + 256 green + 256 * 256 blue.
        if isinstance(segment_id, str) or not 0 <= segment_id < 256**3 or segment_id in ids:
            raise AnnotationFileError(
                json_file, place, "'id' must be a number from 0 to 16777215 that no other segment of the image has."
            )
        ids.add(segment_id)
        if segment.get("iscrowd") not in (None, 0, 1):
            crowd = describe(segment["iscrowd"])
            raise AnnotationFileError(json_file, place, f"'iscrowd' must be 0 or 1, not {crowd}.")
        category = checked_id(segment["category_id"], json_file, place, "category_id")
        is_thing = category in things
        if not is_thing and category not in stuff:
            raise AnnotationFileError(
                json_file,
                place,
                f"it has category_id {category!r}, which is neither among the things nor among the stuff of the "
                "metadata.",
            )
        label = things[category] if is_thing else stuff[category]
        segments.append({**segment, "id": segment_id, "category_id": label, "isthing": is_thing})
    return segments


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Register a panoptic data set in the standard form.

    Args:
        name: the name to register, e.g. "coco_2017_train_panoptic".
        metadata: the data set's metadata; may be empty, since the file tells classes and ids.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNG files.
        panoptic_json: the panoptic annotation file.
        instances_json: an instance annotation file, for evaluation of the things.
    """
    DatasetCatalog.register(name, functools.partial(_load_standard, panoptic_json, image_root, panoptic_root, name))
    known = MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **metadata,
    )
    known.derive(_TABLES, functools.partial(_read_classes, name, panoptic_json, _TABLES, False))


def _load_standard(panoptic_json: str, image_root: str, panoptic_root: str, name: str) -> list[dict[str, Any]]:
    return load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, MetadataCatalog.get(name).as_dict())


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register a panoptic data set in the separated form as `name + "_separated"`.

    The instances come from COCO's instance annotations, whose polygons may overlap, rather than from the panoptic
    masks. The semantic labels alone become another data set, `name + "_stuffonly"`.

    Args:
        name: the first part of the names to register, e.g. "coco_2017_train_panoptic".
        metadata: the data sets' metadata; may be empty, since the files tell classes and ids.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNG files.
        panoptic_json: the panoptic annotation file.
        sem_seg_root: folder of the semantic segmentations, in which all things are label 0 and stuff is 1, 2 ... in the
            order of `stuff_classes`, or else of the category ids.
        instances_json: the instance annotation file.
    """
    separated, stuff_only = name + "_separated", name + "_stuffonly"
    DatasetCatalog.register(
        separated, functools.partial(_load_separated, instances_json, image_root, sem_seg_root, separated)
    )
    known = MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        **metadata,
    )
    known.derive(CLASS_KEYS, functools.partial(read_classes, instances_json, separated))
    known.derive(_TABLES[2:], functools.partial(_read_classes, separated, panoptic_json, _TABLES[2:], True))
    DatasetCatalog.register(stuff_only, functools.partial(load_sem_seg, sem_seg_root, image_root))
    known = MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root, image_root=image_root, evaluator_type="sem_seg", ignore_label=255, **metadata
    )
    known.derive(_TABLES[2:], functools.partial(_read_classes, stuff_only, panoptic_json, _TABLES[2:], True))


def _load_separated(instances_json: str, image_root: str, sem_seg_root: str, name: str) -> list[dict[str, Any]]:
    return merge_to_panoptic(load_coco_json(instances_json, image_root, name), load_sem_seg(sem_seg_root, image_root))


def merge_to_panoptic(
    detection_dicts: list[dict[str, Any]], sem_seg_dicts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Join instance annotations with semantic segmentations of the same images.

    Returns the first list, each dict with the keys of both; an image without a semantic segmentation is a `ValueError`.
    """
    semantic = {os.path.normpath(d["file_name"]): d for d in sem_seg_dicts}
    missing = [d["file_name"] for d in detection_dicts if os.path.normpath(d["file_name"]) not in semantic]
    if missing or not semantic:
        raise ValueError(f"{len(missing)} images have no semantic segmentation: {shorten(missing, 3)}.")
    return [{**semantic[os.path.normpath(d["file_name"])], **d} for d in detection_dicts]
