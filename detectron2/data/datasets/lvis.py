"""Data sets in the LVIS format: COCO's, with categories that were not searched for in every image."""

import functools
import logging
import os
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._reading import group_by_image, is_polygon, paused_gc, read_json, shorten, timed
from detectron2.data.datasets.builtin_meta import _get_coco_instances_meta
from detectron2.structures import BoxMode

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)


def register_lvis_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a data set in the LVIS format. Nothing is read yet.

    Args:
        name: the name to register, e.g. "lvis_v1_train".
        metadata: further metadata of the data set; may be empty.
        json_file: the annotation file.
        image_root: folder that contains the folders ``train2017``, ``val2017`` ... of COCO's images.
    """
    DatasetCatalog.register(name, functools.partial(load_lvis_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Return the class tables of an LVIS data set.

    Args:
        dataset_name: a name that contains "v0.5", "v1" or "cocofied" (then the classes are COCO's).

    Returns:
        ``thing_classes``, and ``class_image_count`` where it is known.

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

    Args:
        json_file: the annotation file.
        image_root: folder that contains the folders ``train2017``, ``val2017`` ... of COCO's images.
        dataset_name: name of the data set, e.g. "lvis_v1_train"; if given, its metadata receives ``thing_classes``.
        extra_annotation_keys: further keys of each annotation to hand through as they are.

    Returns:
        one dict per image in the standard format, in the order of the image ids, with
        ``not_exhaustive_category_ids`` and ``neg_category_ids`` as in the file (ids of LVIS, which count from 1).

    Raises:
        ValueError: an annotation has no valid polygon or an unknown category.
    """
    with timed(str(json_file)), paused_gc():
        content = read_json(json_file)
        labels = _labels(content, dataset_name)
        images = sorted(content["images"], key=lambda image: image["id"])
        keys = extra_annotation_keys or []

        def convert(annotation: dict[str, Any]) -> dict[str, Any]:
            return _convert(annotation, labels, keys, json_file)

        grouped = group_by_image(content.get("annotations", []), [image["id"] for image in images], json_file, convert)
        records = [_record(image, os.fspath(image_root), labels, grouped[image["id"]]) for image in images]
    logger.info("Loaded %d images in the LVIS format from %s", len(records), json_file)
    return records


class _OneLess(dict):
    """LVIS numbers its categories from 1 without gaps, so the label is the id less one."""

    def __missing__(self, category_id: int) -> int:
        return category_id - 1


def _labels(content: dict[str, Any], dataset_name: str | None) -> dict[int, int]:
    if dataset_name is None:
        return _OneLess()
    metadata = MetadataCatalog.get(dataset_name)
    try:
        metadata.set(**get_lvis_instances_meta(dataset_name))
    except ValueError:
        if any(version in dataset_name for version in ("cocofied", "v0.5", "v1")):
            raise
        # Someone's own data set in this format: it tells its classes itself.
        categories = sorted(content["categories"], key=lambda c: c["id"])
        metadata.set(
            thing_classes=[c["name"] for c in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: label for label, c in enumerate(categories)},
        )
    return metadata.get("thing_dataset_id_to_contiguous_id") or _OneLess()


def _convert(
    annotation: dict[str, Any], labels: dict[int, int], extra_keys: list[str], json_file: Any
) -> dict[str, Any]:
    polygons = annotation["segmentation"]
    if not polygons or not all(is_polygon(p) for p in polygons):
        raise ValueError(
            f"{json_file}: annotation id {annotation.get('id')}: every polygon needs at least three points: {polygons}."
        )
    try:
        label = labels[annotation["category_id"]]
    except KeyError:
        raise ValueError(
            f"{json_file}: annotation id {annotation.get('id')} has the unknown category_id "
            f"{annotation['category_id']}; known are {shorten(labels, 10)}."
        ) from None
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": label,
        "segmentation": polygons,
        **{key: annotation[key] for key in extra_keys if key in annotation},
    }


def _record(
    image: dict[str, Any], image_root: str, labels: dict[int, int], annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    if "coco_url" in image:  # LVIS draws its images from several folders of COCO; only this URL tells which
        folder, file_name = image["coco_url"].split("/")[-2:]
        path = os.path.join(image_root, folder, file_name)
    else:
        path = os.path.join(image_root, image["file_name"])
    return {
        "file_name": path,
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": image.get("neg_category_ids", []),
        "annotations": annotations,
    }
