"""Data sets in the LVIS format: COCO's, with categories that were not searched for in every image."""

import functools
import os
from collections.abc import Mapping
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_coco_instances_meta
from detectron2.data.datasets.coco import CLASS_KEYS, load_content, read_classes, set_class_metadata
from detectron2.data.formats.coco import CocoReader
from detectron2.data.formats.reading import (
    AnnotationFileError,
    checked_file_name,
    checked_objects,
    is_polygon,
    read_json,
    shorten,
    timed,
)
from detectron2.utils.collector import paused_gc

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]


def register_lvis_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a data set in the LVIS format. Nothing is read yet.

    Args:
        name: the name to register, e.g. "lvis_v1_train".
        metadata: further metadata of the data set; may be empty.
        json_file: the annotation file.
        image_root: folder that contains the folders `train2017`, `val2017` ... of COCO's images.
    """
    DatasetCatalog.register(name, functools.partial(load_lvis_json, json_file, image_root, name))
    known = MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)
    known.derive(CLASS_KEYS, functools.partial(_describe, json_file, name))


def _describe(json_file: str, name: str) -> None:
    """Put the class tables into the metadata, without loading the data set."""
    if any(version in name for version in _VERSIONS):
        MetadataCatalog.get(name).set(**get_lvis_instances_meta(name))
    else:
        read_classes(json_file, name)


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Return the class tables of an LVIS data set.

    Args:
        dataset_name: a name that contains "v0.5", "v1" or "cocofied" (then the classes are COCO's).

    Returns:
        `thing_classes`, and `class_image_count` where it is known.

    Raises:
        ValueError: the name tells none of these versions.
    """
    if "cocofied" in dataset_name:
        return _get_coco_instances_meta()
    if "v0.5" in dataset_name:
        from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES

        return {"thing_classes": [c["synonyms"][0] for c in LVIS_CATEGORIES]}
    if "v1" in dataset_name:
        from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
        from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

        return {
            "thing_classes": [c["synonyms"][0] for c in LVIS_CATEGORIES],
            "class_image_count": [dict(c) for c in LVIS_CATEGORY_IMAGE_COUNT],
        }
    raise ValueError(
        f"There are no built-in class tables for dataset '{dataset_name}'; its name should contain 'v1', 'v0.5' or "
        "'cocofied'."
    )


def load_lvis_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load a file in the LVIS format. No image is read.

    Masks are polygons in LVIS itself; run lengths are accepted as well, and so are boxes without masks.

    Args:
        json_file: the annotation file.
        image_root: folder that contains the folders `train2017`, `val2017` ... of COCO's images.
        dataset_name: name of the data set, e.g. "lvis_v1_train"; if given, its metadata receives `thing_classes`.
        extra_annotation_keys: further keys of each annotation to hand through as they are.

    Returns:
        one dict per image in the standard format, in the order of the image ids, with
        `not_exhaustive_category_ids` and `neg_category_ids` as in the file (ids of LVIS, which count from 1).

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: the file is not in this format; or an annotation has an invalid polygon or an unknown category.
    """
    with timed(str(json_file)), paused_gc():
        content = read_json(json_file)
        images = checked_objects(content, "images", json_file)
        for index, image in enumerate(images):
            if "coco_url" in image:  # LVIS draws its images from several folders of COCO; only this URL tells which
                url = checked_file_name(image["coco_url"], json_file, f"images[{index}]", "coco_url")
                image["file_name"] = os.path.join(*url.split("/")[-2:])
            for key in LISTS:
                check_list(image.get(key), json_file, f"images[{index}]", key)
        for annotation in checked_objects(content, "annotations", json_file, required=False):
            _check_polygons(annotation, json_file)

        def labels(reader: CocoReader) -> Mapping[Any, int]:
            return _labels(reader, dataset_name)

        records = load_content(content, json_file, image_root, labels, extra_annotation_keys)
        lists = {i["id"]: {key: i.get(key) or [] for key in LISTS} for i in images}
        return [{**record, **lists[record["image_id"]]} for record in records]


_VERSIONS = ("cocofied", "v0.5", "v1")
LISTS = ("not_exhaustive_category_ids", "neg_category_ids")


def check_list(ids: Any, json_file: Any, where: str, key: str) -> None:
    """Refuse a list of categories that is none; it may be null."""
    if ids is not None and not (isinstance(ids, list) and all(type(i) in (int, float) and i % 1 == 0 for i in ids)):
        what = f"{key!r} must be a list of category ids, such as [1, 2], not {shorten([ids])}."
        raise AnnotationFileError(json_file, where, what)


def _check_polygons(annotation: dict[str, Any], json_file: Any) -> None:
    polygons = annotation.get("segmentation")
    if isinstance(polygons, list) and (not polygons or not all(is_polygon(p) for p in polygons)):
        raise AnnotationFileError(
            json_file,
            f"annotation id {annotation.get('id')}",
            f"every polygon needs at least three points: {str(polygons)[:200]}.",
        )


class _OneLess(dict):
    """LVIS numbers its categories from 1 without gaps, so the label is the id less one."""

    def __missing__(self, category_id: int) -> int:
        return category_id - 1


def _labels(reader: CocoReader, dataset_name: str | None) -> Mapping[Any, int]:
    """Put the class tables into the metadata; return the label of each category id."""
    if dataset_name is None:
        return _OneLess()
    metadata = MetadataCatalog.get(dataset_name)
    if not any(version in dataset_name for version in _VERSIONS):
        # Someone's own data set in this format: it tells its classes itself.
        return set_class_metadata(reader, dataset_name)
    metadata.set(**get_lvis_instances_meta(dataset_name))
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    return ids if ids is not None else {label + 1: label for label in range(len(metadata.thing_classes))}
