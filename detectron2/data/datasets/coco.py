"""Data sets in the COCO format: load them, register them, and write any data set in this format.

Boxes stay ``(x, y, width, height)`` in absolute pixels, as in the files.  Keypoints are moved by half a pixel: in the
files they are indices of pixels, in a dataset dict they are continuous coordinates, in which the pixel ``i`` spans
``[i, i + 1]``.
"""

import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._coco_annotations import AnnotationConverter, check_annotation_ids
from detectron2.data.datasets._coco_images import image_records
from detectron2.data.datasets._coco_writing import convert_to_coco_dict, convert_to_coco_json
from detectron2.data.datasets._keypoint_metadata import keypoint_metadata
from detectron2.data.datasets._reading import (
    AnnotationFileError,
    checked_id,
    checked_objects,
    describe,
    find_duplicates,
    group_by_image,
    paused_gc,
    read_json,
    shorten,
    timed,
)
from detectron2.utils.file_io import PathManager

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load a file in the COCO format of instances or person keypoints. No image is read.

    Of the format, only ``images`` with ``id`` and ``file_name`` is needed (and ``categories`` if a name is given).
    ``null`` is the same as a key that is missing, and sizes of images that are missing are read from the image files.
    What cannot be right is an error that names its place; a box that is merely useless (negative, not a number, outside
    of its image) is left to :func:`~detectron2.data.validation.validate_dataset_dicts`, which can leave it out.

    Args:
        json_file: the annotation file.
        image_root: folder that the file names of the images are relative to. Names with the separators of Windows are
            understood everywhere.
        dataset_name: name of the data set, e.g. "coco_2017_train". If given, its metadata receives ``thing_classes``
            and ``thing_dataset_id_to_contiguous_id``, and the category ids become labels ``0 .. K - 1`` in the order
            of the ids; ``keypoint_names`` of the categories hold unless others are set. Without it, the category ids
            are those of the file.
        extra_annotation_keys: further keys of each annotation to hand through as they are.

    Returns:
        one dict per image in the standard format, in the order of the image ids.

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: the file is not in the COCO format, ids occur twice, an annotation has an unknown category, or
            numbers that cannot be (a mask of another size than its image, half a keypoint, infinite polygons).
    """
    with timed(str(json_file)), paused_gc():
        content = read_json(json_file)
        records = image_records(content, os.fspath(image_root), json_file)
        annotations = checked_objects(content, "annotations", json_file, required=False)
        check_annotation_ids(annotations, json_file)
        labels = None if dataset_name is None else _set_class_metadata(content, json_file, dataset_name)
        converter = AnnotationConverter(json_file, labels, records, extra_annotation_keys or [])
        grouped = group_by_image(annotations, records, json_file, converter, consume=True)
        converter.finish()
        for image_id, record in records.items():
            record["annotations"] = grouped[image_id]
    logger.info("Loaded %d images in COCO format from %s", len(records), json_file)
    return list(records.values())


def _set_class_metadata(content: dict[str, Any], json_file: Any, dataset_name: str) -> dict[int | str, int]:
    """Put the class names and ids into the metadata; return the label of each category id."""
    names: dict[int | str, str] = {}
    for index, category in enumerate(checked_objects(content, "categories", json_file)):
        where = f"categories[{index}]"
        missing = [key for key in ("id", "name") if key not in category]
        if missing:
            raise AnnotationFileError(json_file, where, f"needs 'id' and 'name'; it has: {shorten(category)}.")
        category_id = checked_id(category["id"], json_file, where)
        if not isinstance(category["name"], str):
            raise AnnotationFileError(json_file, where, f"'name' must be a string, not {describe(category['name'])}.")
        if category_id in names:
            duplicates = find_duplicates(c.get("id") for c in content["categories"])
            raise AnnotationFileError(
                json_file, "categories", f"several categories have the same id: {shorten(sorted(duplicates, key=str))}."
            )
        names[category_id] = category["name"]
    if len({isinstance(category_id, str) for category_id in names}) > 1:
        raise AnnotationFileError(
            json_file,
            "categories",
            "some ids are numbers and others strings, so they have no order. Write all alike.",
        )
    ids: list[Any] = list(names)
    ids.sort()
    labels = {category_id: label for label, category_id in enumerate(ids)}
    classes = [names[category_id] for category_id in ids]
    if len(set(classes)) != len(classes):
        logger.warning(
            "%s: several categories have the same name: %s. They stay different classes, but results of evaluation "
            "that are listed by name show only one of them.",
            *(json_file, shorten(find_duplicates(classes))),
        )
    if "coco" not in dataset_name and ids != list(range(1, len(ids) + 1)):
        logger.info(
            "%s: the category ids are not 1 to %d; they become the labels 0 to %d in the order of the ids.",
            *(json_file, len(ids), len(ids) - 1),
        )
    metadata = MetadataCatalog.get(dataset_name).set(thing_classes=classes, thing_dataset_id_to_contiguous_id=labels)
    metadata.suggest(**keypoint_metadata(content["categories"]))
    return labels


def load_sem_seg(
    gt_root: str | os.PathLike[str], image_root: str | os.PathLike[str], gt_ext: str = "png", image_ext: str = "jpg"
) -> list[dict[str, Any]]:
    """Pair images with semantic segmentation files by their paths below the two folders, without the extensions.

    Args:
        gt_root: folder of the ground truth, images whose pixel values are labels. Subfolders are included.
        image_root: folder of the input images.
        gt_ext: extension of the ground truth files.
        image_ext: extension of the input images.

    Returns:
        one dict per pair with ``file_name`` and ``sem_seg_file_name``, in the order of the paths. Nothing is read.

    Raises:
        ValueError: no pair was found.
    """
    gt_root, image_root = os.fspath(gt_root), os.fspath(image_root)
    gt_files = dict(_files_below(gt_root, gt_ext))
    image_files = dict(_files_below(image_root, image_ext))
    common = sorted(gt_files.keys() & image_files.keys())
    if not common:
        raise ValueError(
            f"No image is paired with a ground truth: '{gt_root}' has {len(gt_files)} files *.{gt_ext}, '{image_root}' "
            f"has {len(image_files)} files *.{image_ext}, and none have the same path without the extension."
        )
    if len(gt_files) != len(common) or len(image_files) != len(common):
        logger.warning(
            "Only %d pairs of image and semantic segmentation: '%s' has %d files *.%s, '%s' has %d files *.%s.",
            *(len(common), image_root, len(image_files), image_ext, gt_root, len(gt_files), gt_ext),
        )
    logger.info("Loaded %d images with semantic segmentation from %s", len(common), image_root)
    return [{"file_name": image_files[key], "sem_seg_file_name": gt_files[key]} for key in common]


def _files_below(root: str, extension: str) -> Iterator[tuple[str, str]]:
    """Yield ``(path below root without extension, path)``."""
    if not PathManager.isdir(root):
        raise FileNotFoundError(f"There is no folder '{root}' (working directory: '{os.getcwd()}').")
    if os.path.isdir(root):
        folders = ((folder, files) for folder, _, files in os.walk(root, followlinks=True))
    else:  # not on this machine's disk
        folders = [(root, PathManager.ls(root))]
    for folder, files in folders:
        for file in files:
            if file.endswith(extension):
                path = os.path.join(folder, file)
                yield os.path.splitext(os.path.normpath(os.path.relpath(path, root)))[0], path


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Register a data set of boxes, masks or keypoints in the COCO format. Nothing is read yet.

    Args:
        name: the name to register, e.g. "my_dataset_train".
        metadata: further metadata of the data set; may be empty.
        json_file: the annotation file.
        image_root: folder that the file names of the images are relative to.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of a data set is a string, not {name!r}.")
    for label, path in (("json_file", json_file), ("image_root", image_root)):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{label} of dataset '{name}' is a path, not {path!r}.")
    DatasetCatalog.register(name, functools.partial(load_coco_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
