"""Data sets in the COCO format: load them, register them, and write any data set in this format.

Boxes stay `(x, y, width, height)` in absolute pixels, as in the files. Keypoints are moved by half a pixel: in the
files they are indices of pixels, in a dataset dict they are continuous coordinates, in which the pixel `i` spans
`[i, i + 1]`.
"""

import datetime
import functools
import hashlib
import io
import logging
import math
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.formats.coco import COCO_MISTAKES, CocoReader, keypoint_metadata, write_content
from detectron2.data.formats.reading import Report, find_duplicates, read_json, shorten, timed
from detectron2.data.formats.run_lengths import encode_mask, mask_area, run_lengths
from detectron2.structures import BoxMode
from detectron2.utils.collector import paused_gc
from detectron2.utils.file_io import PathManager

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)

# What a file's categories tell.
CLASS_KEYS = (
    *("thing_classes", "thing_dataset_id_to_contiguous_id"),
    *("keypoint_names", "keypoint_connection_rules", "keypoint_flip_map"),
)
_IMAGE_KEYS = ("image_id", "file_name", "height", "width")
_ANNOTATION_KEYS = ("bbox", "category_id", "iscrowd", "segmentation", "keypoints", "num_keypoints")


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load a file in the COCO format of instances or person keypoints. No image is read.

    Of the format, only `images` with `id` and `file_name` is needed (and `categories` if a name is given).
    `null` is the same as a key that is missing, and sizes of images that are missing are read from the image files.
    What cannot be right is an error that names its place; a box that is merely useless (negative, not a number, outside
    of its image) is left to `detectron2.data.validation.validate_dataset_dicts`, which can leave it out.

    Args:
        json_file: the annotation file.
        image_root: folder that the file names of the images are relative to. Names with the separators of Windows are
            understood everywhere.
        dataset_name: name of the data set, e.g. "coco_2017_train". If given, its metadata receives `thing_classes`
            and `thing_dataset_id_to_contiguous_id`, and the category ids become labels `0 .. K - 1` in the order
            of the ids; `keypoint_names` of the categories hold unless others are set. Without it, the category ids
            are those of the file.
        extra_annotation_keys: further keys of each annotation to hand through as they are.

    Returns:
        one dict per image in the standard format, in the order of the image ids.

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: the file is not in the COCO format, ids occur twice, an annotation has an unknown category, or
            numbers that cannot be (a mask of another size than its image, half a keypoint, infinite polygons).
    """

    def labels(reader: CocoReader) -> dict[int | str, int] | None:
        return None if dataset_name is None else set_class_metadata(reader, dataset_name)

    with timed(str(json_file)), paused_gc():
        return load_content(read_json(json_file), json_file, image_root, labels, extra_annotation_keys)


def load_content(
    content: dict[str, Any],
    json_file: Any,
    image_root: str | os.PathLike[str],
    labels: Callable[[CocoReader], Mapping[Any, int] | None],
    extra_annotation_keys: Iterable[str] | None,
) -> list[dict[str, Any]]:
    """Turn the content of a file, which is used up, into dataset dicts; the first error in it is raised."""
    reader = CocoReader(json_file, content, os.fspath(image_root), Report(COCO_MISTAKES, strict=True))
    reader.read_annotations(labels(reader), extra_annotation_keys or (), consume=True)
    reader.report.log_warnings(json_file)
    logger.info("Loaded %d images in COCO format from %s", len(reader.records), json_file)
    return list(reader.records.values())


def set_class_metadata(reader: CocoReader, dataset_name: str) -> dict[int | str, int]:
    """Put the class names and ids of a file into the metadata; return the label of each category id."""
    names = reader.categories
    ids, classes = list(names), list(names.values())
    labels = {category_id: label for label, category_id in enumerate(ids)}
    if len(set(classes)) != len(classes):
        logger.warning(
            "%s: several categories have the same name: %s. They stay different classes, but results of evaluation "
            "that are listed by name show only one of them.",
            *(reader.file, shorten(find_duplicates(classes))),
        )
    if "coco" not in dataset_name and ids != list(range(1, len(ids) + 1)):
        logger.info(
            "%s: the category ids are not 1 to %d; they become the labels 0 to %d in the order of the ids.",
            *(reader.file, len(ids), len(ids) - 1),
        )
    metadata = MetadataCatalog.get(dataset_name).set(thing_classes=classes, thing_dataset_id_to_contiguous_id=labels)
    metadata.suggest(**keypoint_metadata(reader.content["categories"])).derive(CLASS_KEYS, None)
    return labels


def read_classes(json_file: str | os.PathLike[str], dataset_name: str) -> None:
    """Put what the categories of a file tell into the metadata, without loading the data set."""
    content = {"images": [], "categories": read_json(json_file).get("categories")}
    set_class_metadata(CocoReader(json_file, content, "", Report(COCO_MISTAKES, strict=True)), dataset_name)


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
        one dict per pair with `file_name` and `sem_seg_file_name`, in the order of the paths. Nothing is read.

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
    """Yield `(path below root without extension, path)`."""
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

    What the file tells of the classes is known when it is asked for, also before the data set is loaded.

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
    known = MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **(metadata or {})
    )
    known.derive(CLASS_KEYS, functools.partial(read_classes, json_file, name))


# Writing


def convert_to_coco_dict(dataset_name: str, records: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Convert a registered data set to the COCO format: boxes, masks, keypoints, categories.

    Labels become the category ids that the metadata's `thing_dataset_id_to_contiguous_id` came from, if it has
    that; keypoints become indices of pixels again (0.5 less); boxes of any kind become `(x, y, width, height)`, and
    rotated ones `(x_center, y_center, width, height, angle)`, rounded to a thousandth of a pixel; masks become run
    lengths. Annotations are numbered from 1.

    Args:
        dataset_name: name in the catalogs; the metadata must have `thing_classes`.
        records: the data set, if it is loaded already.

    Returns:
        what the JSON file is to hold. There is no key "annotations" if no image has any: evaluation takes that as
        a test set whose ground truth is not public.

    Raises:
        ValueError: an image or annotation lacks something, has an unknown label, or an image id occurs twice.
        TypeError: a segmentation is of no kind that is known.
    """
    loaded: list[dict[str, Any]] = DatasetCatalog.get(dataset_name) if records is None else records
    category_of = _category_ids(dataset_name)
    classes = MetadataCatalog.get(dataset_name).thing_classes
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    logger.info("Converting dataset '%s' to the COCO format ...", dataset_name)
    with paused_gc():
        for index, record in enumerate(loaded):
            images.append(_coco_image(dataset_name, record, index))
            for number, annotation in enumerate(record.get("annotations", [])):
                try:
                    annotations.append(_coco_annotation(annotation, record, category_of))
                except (KeyError, ValueError, TypeError) as e:
                    what = f"there is no {e}" if isinstance(e, KeyError) else str(e)
                    kind = TypeError if isinstance(e, TypeError) else ValueError
                    raise kind(
                        f"Dataset '{dataset_name}': annotation {number} of image id {images[-1]['id']} "
                        f"('{record['file_name']}') cannot be written in the COCO format: {what}"
                    ) from e
                annotations[-1]["id"] = len(annotations)
                annotations[-1]["image_id"] = images[-1]["id"]
    if len({image["id"] for image in images}) != len(images):
        duplicates = find_duplicates(image["id"] for image in images)
        raise ValueError(
            f"Dataset '{dataset_name}': several images have the same 'image_id': {shorten(duplicates)}. Evaluation "
            "could not tell them apart; give each image its own id."
        )
    logger.info("Converted %d images with %d annotations.", len(images), len(annotations))
    result = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": f"Dataset '{dataset_name}', converted to the COCO format by detectron2.",
        },
        "images": images,
        "categories": [{"id": category_of[label], "name": name} for label, name in enumerate(classes)],
        "licenses": None,
    }
    if annotations:
        result["annotations"] = annotations
    return result


def _category_ids(dataset_name: str) -> dict[int, Any]:
    """Return the category id of each label."""
    metadata = MetadataCatalog.get(dataset_name)
    classes, ids = metadata.thing_classes, metadata.get("thing_dataset_id_to_contiguous_id")
    if ids is None:
        return {label: label for label in range(len(classes))}
    category_of = {label: category_id for category_id, label in ids.items()}
    without = [name for label, name in enumerate(classes) if label not in category_of]
    if without:
        raise ValueError(
            f"Dataset '{dataset_name}': in the metadata, thing_dataset_id_to_contiguous_id has no id for these of the "
            f"thing_classes: {shorten(without)}."
        )
    return category_of


def _coco_image(dataset_name: str, record: dict[str, Any], index: int) -> dict[str, Any]:
    missing = [key for key in ("file_name", "height", "width") if record.get(key) is None]
    if missing:
        raise ValueError(
            f"Dataset '{dataset_name}': image {index} has no {', '.join(map(repr, missing))}, which the COCO format "
            f"needs; it has: {shorten(record)}."
        )
    return {
        "id": _plain(record.get("image_id", index)),
        "width": int(record["width"]),
        "height": int(record["height"]),
        "file_name": str(record["file_name"]),
    }


def _plain(value: Any) -> Any:
    """Turn a number of NumPy or torch into one that JSON can hold."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (int, str)):
        return value
    raise TypeError(f"The 'image_id' of an image is a number or a string, not {value!r}.")


def _coco_annotation(annotation: dict[str, Any], record: dict[str, Any], category_of: dict[int, Any]) -> dict[str, Any]:
    """Convert one annotation of an image; `id` and `image_id` are still to be filled in."""
    box = _coco_box(annotation, record)
    segmentation = annotation.get("segmentation")
    result: dict[str, Any] = {}
    if segmentation is not None and len(segmentation):
        result["segmentation"], area = _coco_segmentation(segmentation, record)
    else:
        area = box[2] * box[3]
    keypoints = annotation.get("keypoints")
    if keypoints is not None:
        result["keypoints"], counted = _coco_keypoints(keypoints)
        result["num_keypoints"] = int(annotation.get("num_keypoints", counted))
    label = int(annotation["category_id"])
    if label not in category_of:
        raise ValueError(f"category_id {label} is not the label of a class; there are {len(category_of)} classes.")
    return {
        "id": 0,
        "image_id": 0,
        "bbox": [round(v, 3) for v in box],
        "area": float(area),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": category_of[label],
        **result,
    }


def _coco_box(annotation: dict[str, Any], record: dict[str, Any]) -> list[float]:
    """Return `(x, y, width, height)`, or `(x_center, y_center, width, height, angle)` of a rotated box."""
    box = [float(v) for v in annotation["bbox"]]
    mode = BoxMode(annotation["bbox_mode"])
    if len(box) not in (4, 5):
        raise ValueError(f"a box has 4 numbers, or 5 if it is rotated, not {len(box)}: {box}.")
    if (len(box) == 5) != (mode == BoxMode.XYWHA_ABS):
        raise ValueError(f"'bbox' has {len(box)} numbers, which does not go with its 'bbox_mode' {mode.name}: {box}.")
    if not all(map(math.isfinite, box)):
        raise ValueError(f"'bbox' has numbers that are not finite: {box}.")
    if mode in (BoxMode.XYXY_REL, BoxMode.XYWH_REL):
        height, width = int(record["height"]), int(record["width"])
        box = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        mode = BoxMode.XYXY_ABS if mode == BoxMode.XYXY_REL else BoxMode.XYWH_ABS
    if mode == BoxMode.XYXY_ABS:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box


def _coco_keypoints(keypoints: Any) -> tuple[list[float], int]:
    """Return keypoints as indices of pixels, and how many are labelled."""
    flat = np.asarray(keypoints, dtype=np.float64).reshape(-1)
    if flat.size % 3:
        raise ValueError(f"'keypoints' must be three numbers for each keypoint, not {flat.size} in all.")
    moved = (flat - 0.5).tolist()
    visible = [int(v) if v == int(v) else v for v in flat[2::3].tolist()]
    moved[2::3] = visible
    return moved, sum(v > 0 for v in visible)


def _coco_segmentation(segmentation: Any, record: dict[str, Any]) -> tuple[Any, float]:
    """Return polygons or run lengths that JSON can hold, and their area in square pixels."""
    if isinstance(segmentation, (list, tuple)):
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in segmentation]
        return [p.tolist() for p in polygons], mask_area(polygons)
    size_hw = (int(record["height"]), int(record["width"]))
    if hasattr(segmentation, "shape"):  # a mask of NumPy or torch
        mask = np.asarray(segmentation)
        if mask.shape != size_hw:
            raise ValueError(f"the mask has shape {mask.shape}, but the image has (height, width) {size_hw}.")
        segmentation = encode_mask(mask)
    if not isinstance(segmentation, dict):
        raise TypeError(
            "a segmentation is a list of polygons, a dict of run lengths, or a mask, not "
            f"{type(segmentation).__name__}."
        )
    size, counts = [int(v) for v in segmentation["size"]], segmentation["counts"]
    if isinstance(counts, (list, tuple)):
        counts = run_lengths({"size": size, "counts": list(counts)})["counts"]
    result = {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return result, mask_area(result)


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Convert a registered data set to a file in the COCO format.

    Args:
        dataset_name: name in the catalogs.
        output_file: path of the JSON file to write. It appears under this name when it is complete, and processes that
            share it wait for each other.
        allow_cached: keep the file if it exists already. One that this function wrote is written anew if the data set
            has changed since; any other is kept, with a warning.
    """
    folder = os.path.dirname(output_file)
    if folder:
        PathManager.mkdirs(folder)
    with file_lock(output_file):
        records = None
        if allow_cached and PathManager.exists(output_file):
            written_from = _fingerprint_in(output_file)
            if written_from is None:
                logger.warning(
                    "Using the existing annotation file '%s', which may be older than dataset '%s'. If the data set "
                    "has changed since, delete that file.",
                    *(output_file, dataset_name),
                )
                return
            records = DatasetCatalog.get(dataset_name)
            if written_from == _fingerprint(dataset_name, records):
                logger.info("Using the existing annotation file '%s', made from the same data.", output_file)
                return
            logger.warning(
                "Dataset '%s' has changed since '%s' was converted from it; converting it anew.",
                dataset_name,
                output_file,
            )
        records = DatasetCatalog.get(dataset_name) if records is None else records
        content = convert_to_coco_dict(dataset_name, records)
        content["info"]["fingerprint"] = _fingerprint(dataset_name, records)
        logger.info("Writing annotations in the COCO format to '%s' ...", output_file)
        write_content(content, output_file)


def _fingerprint(dataset_name: str, records: list[dict[str, Any]]) -> str:
    """Make a short text that differs where anything differs that the conversion reads."""
    metadata = MetadataCatalog.get(dataset_name)
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=4)
    pickler.fast = True  # equal values give equal bytes, whether or not they are the same object
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    pickler.dump((list(metadata.thing_classes), None if ids is None else list(ids.items())))
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        pickler.dump([record.get(key) for key in _IMAGE_KEYS])
        for annotation in record.get("annotations", ()):
            # As an integer: the way an enumeration is pickled is slow and differs between versions of Python.
            pickler.dump(int(annotation.get("bbox_mode", -1)))
            pickler.dump([annotation.get(key) for key in _ANNOTATION_KEYS])
        if stream.tell() > 1 << 20:
            digest.update(stream.getbuffer())
            stream.seek(0)
            stream.truncate()
    digest.update(stream.getbuffer())
    return digest.hexdigest()


def _fingerprint_in(file: str) -> str | None:
    """Return the fingerprint in a file of `convert_to_coco_json`; None in other files."""
    with PathManager.open(file, "rb") as f:
        found = re.match(rb'\{"info": \{[^{}]*"fingerprint": "([0-9a-f]{32})"\}', cast(bytes, f.read(4096)))
    return found.group(1).decode() if found else None
