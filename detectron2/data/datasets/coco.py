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
from detectron2.data.datasets._coco_writing import convert_to_coco_dict, convert_to_coco_json
from detectron2.data.datasets._reading import (
    find_duplicates,
    group_by_image,
    image_size_hw,
    is_polygon,
    paused_gc,
    read_json,
    run_lengths,
    shorten,
    timed,
)
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)

_ANNOTATION_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load a file in the COCO format of instances or person keypoints. No image is read.

    Args:
        json_file: the annotation file.
        image_root: folder that the file names of the images are relative to.
        dataset_name: name of the data set, e.g. "coco_2017_train". If given, its metadata receives ``thing_classes``
            and ``thing_dataset_id_to_contiguous_id``, and the category ids become labels ``0 .. K - 1`` in the order
            of the ids. Without it, the category ids are those of the file.
        extra_annotation_keys: further keys of each annotation to hand through as they are.

    Returns:
        one dict per image in the standard format, in the order of the image ids.

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: the file is not in the COCO format, ids occur twice, or an annotation has an unknown category.
    """
    with timed(str(json_file)), paused_gc():
        content = read_json(json_file)
        images = _images_by_id(content, json_file)
        annotations = content.get("annotations", [])
        _check_annotation_ids(annotations, json_file)
        labels = None if dataset_name is None else _set_class_metadata(content, json_file, dataset_name)
        converter = _AnnotationConverter(json_file, labels, extra_annotation_keys or [])
        grouped = group_by_image(annotations, images, json_file, converter)
        converter.report()
        root = os.fspath(image_root)
        records = [_record(image, root, json_file, grouped[image_id]) for image_id, image in images.items()]
    logger.info("Loaded %d images in COCO format from %s", len(records), json_file)
    return records


def _images_by_id(content: dict[str, Any], json_file: Any) -> dict[Any, dict[str, Any]]:
    """Return the images, in the order of their ids."""
    if "images" not in content:
        raise ValueError(f"{json_file}: expected the key 'images' of the COCO format; there is: {shorten(content)}.")
    images = content["images"]
    for index, image in enumerate(images):
        if "id" not in image or "file_name" not in image:
            raise ValueError(f"{json_file}: images[{index}] needs 'id' and 'file_name'; it has: {shorten(image)}.")
    by_id = {image["id"]: image for image in images}
    if len(by_id) != len(images):
        duplicates = find_duplicates(image["id"] for image in images)
        raise ValueError(f"{json_file}: several images have the same id: {shorten(duplicates)}. Ids must be unique.")
    try:
        return dict(sorted(by_id.items()))
    except TypeError:  # ids of several types: any fixed order will do
        return dict(sorted(by_id.items(), key=lambda item: str(item[0])))


def _check_annotation_ids(annotations: list[dict[str, Any]], json_file: Any) -> None:
    ids = [a["id"] for a in annotations if "id" in a]
    # The ids of the published 2014 "minival" files are known not to be unique; nothing depends on them.
    if len(set(ids)) != len(ids) and "minival" not in os.path.basename(os.fspath(json_file)):
        raise ValueError(
            f"{json_file}: several annotations have the same id: {shorten(find_duplicates(ids))}. Evaluation would "
            "count only one of them; give each annotation its own id."
        )


def _set_class_metadata(content: dict[str, Any], json_file: Any, dataset_name: str) -> dict[int, int]:
    """Put the class names and ids into the metadata; return the label of each category id."""
    if "categories" not in content:
        raise ValueError(
            f"{json_file}: expected the key 'categories' of the COCO format; there is: {shorten(content)}."
        )
    categories = sorted(content["categories"], key=lambda c: c["id"])
    duplicates = find_duplicates(c["id"] for c in categories)
    if duplicates:
        raise ValueError(f"{json_file}: several categories have the same id: {shorten(duplicates)}.")
    labels = {c["id"]: label for label, c in enumerate(categories)}
    if "coco" not in dataset_name and [c["id"] for c in categories] != list(range(1, len(categories) + 1)):
        logger.info(
            "%s: the category ids are not 1 to %d; they become the labels 0 to %d in the order of the ids.",
            json_file,
            len(categories),
            len(categories) - 1,
        )
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[c["name"] for c in categories], thing_dataset_id_to_contiguous_id=labels
    )
    return labels


class _AnnotationConverter:
    """Turns annotations of the file into those of a dataset dict, and counts what it had to leave out."""

    def __init__(self, json_file: Any, labels: dict[int, int] | None, extra_keys: list[str]) -> None:
        self._json_file = json_file
        self._labels = labels
        self._keys = (*_ANNOTATION_KEYS, *extra_keys)
        self._without_valid_polygon: list[Any] = []

    def __call__(self, annotation: dict[str, Any]) -> dict[str, Any] | None:
        if annotation.get("ignore", 0):
            raise self._error(annotation, "'ignore' is not supported; mark regions to be left out with 'iscrowd': 1")
        converted = {key: annotation[key] for key in self._keys if key in annotation}

        segmentation = annotation.get("segmentation")
        if segmentation:
            segmentation = self._segmentation(annotation, segmentation)
            if segmentation is None:
                return None
            converted["segmentation"] = segmentation

        keypoints = annotation.get("keypoints")
        if keypoints:
            converted["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]

        box = converted.get("bbox")
        if box is not None and len(box) not in (4, 5):
            raise self._error(annotation, f"'bbox' must be [x, y, width, height], not {box}")
        converted["bbox_mode"] = BoxMode.XYWHA_ABS if box is not None and len(box) == 5 else BoxMode.XYWH_ABS

        if self._labels is not None:
            try:
                converted["category_id"] = self._labels[annotation["category_id"]]
            except KeyError:
                raise self._error(
                    annotation,
                    f"category_id {annotation.get('category_id')!r} is not among the ids of 'categories': "
                    f"{shorten(self._labels, 10)}",
                ) from None
        return converted

    def _segmentation(self, annotation: dict[str, Any], segmentation: Any) -> Any:
        """Return polygons, or a mask as compressed run lengths; None if no polygon has three points."""
        if isinstance(segmentation, dict):
            if isinstance(segmentation.get("counts"), list):
                return run_lengths(segmentation)
            return segmentation
        if not isinstance(segmentation, list):
            raise self._error(annotation, f"'segmentation' must be a list or an object, not {segmentation!r}")
        polygons = [p for p in segmentation if is_polygon(p)]
        if not polygons:
            self._without_valid_polygon.append(annotation.get("id"))
            return None
        return polygons

    def _error(self, annotation: dict[str, Any], what: str) -> ValueError:
        return ValueError(
            f"{self._json_file}: annotation id {annotation.get('id')} of image id {annotation.get('image_id')}: {what}."
        )

    def report(self) -> None:
        """Log what was left out."""
        if self._without_valid_polygon:
            logger.warning(
                "%s: %d annotations are left out, since none of their polygons has three points or more (ids %s).",
                self._json_file,
                len(self._without_valid_polygon),
                shorten(self._without_valid_polygon),
            )


def _record(image: dict[str, Any], root: str, json_file: Any, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    file_name = os.path.join(root, image["file_name"])
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        try:
            height, width = image_size_hw(file_name)
        except OSError as e:
            raise ValueError(
                f"{json_file}: image id {image['id']} has no 'height' and 'width', and '{file_name}' cannot be read "
                f"instead: {e}"
            ) from e
    return {
        "file_name": file_name,
        "height": height,
        "width": width,
        "image_id": image["id"],
        "annotations": annotations,
    }


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
