"""Data sets in the Pascal VOC format.

Boxes in the XML files count pixels from 1 and include the last one; ours are continuous and start at 0. So
`(xmin, ymin)` become one less, and `(xmax, ymax)`, the end of the last pixel, stay.
"""

import functools
import logging
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.formats.reading import AnnotationFileError, checked_file_name, checked_size, timed
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]

logger = logging.getLogger(__name__)

# Far more pixels than any image has.
_LARGEST = 1e7

CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def load_voc_instances(dirname: str | os.PathLike[str], split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Load boxes in the Pascal VOC format. No image is read.

    Objects marked "difficult" are included.

    Args:
        dirname: folder that contains `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of the list of images in `ImageSets/Main`, such as "train", "val", "trainval", "test".
        class_names: the classes; the position in this list is the label.

    Returns:
        one dict per image in the standard format, in the order of the list; boxes are `(x1, y1, x2, y2)`.

    Raises:
        FileNotFoundError: a list or an annotation file is missing.
        ValueError: an annotation file is malformed, or an object's class is not among `class_names`.
    """
    dirname = os.fspath(dirname)
    list_file = os.path.join(dirname, "ImageSets", "Main", split + ".txt")
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations"))
    try:
        with open(PathManager.get_local_path(list_file), encoding="utf-8-sig") as f:
            # A line may carry a second column, as the lists of single classes do.
            image_ids = [line.split()[0] for line in f if line.strip()]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no list of images '{list_file}'. A data set in Pascal VOC format has the folders Annotations, "
            f"ImageSets/Main and JPEGImages below '{dirname}'."
        ) from None
    except UnicodeDecodeError as e:
        raise AnnotationFileError(list_file, "", f"this is not text in UTF-8: {e}") from e
    for line, image_id in enumerate(image_ids, start=1):
        checked_file_name(image_id, list_file, f"image {line}", "the name of the image")
    labels = {name: label for label, name in enumerate(class_names)}
    with timed(list_file):
        return [_load_image(dirname, annotation_dir, image_id, labels) for image_id in image_ids]


def _load_image(dirname: str, annotation_dir: str, image_id: str, labels: Mapping[str, int]) -> dict[str, Any]:
    annotation_file = os.path.join(annotation_dir, image_id + ".xml")
    try:
        root = ET.parse(annotation_file).getroot()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no annotation file '{annotation_file}' for image '{image_id}'.") from None
    except (ET.ParseError, ValueError, LookupError) as e:  # the last two: encodings that the parser does not know
        raise AnnotationFileError(annotation_file, "", f"this is not well-formed XML: {e}") from e

    # The file may name an image of another type; a name that has nothing to do with the id is not to be trusted.
    named = os.path.basename(root.findtext("filename") or "")
    extension = os.path.splitext(named)[1] if os.path.splitext(named)[0] == image_id else ""
    objects = root.iterfind("object")
    return {
        "file_name": os.path.join(dirname, "JPEGImages", image_id + (extension or ".jpg")),
        "image_id": image_id,
        "height": checked_size(_number(root, "size/height", annotation_file), annotation_file, "<size>", "height"),
        "width": checked_size(_number(root, "size/width", annotation_file), annotation_file, "<size>", "width"),
        "annotations": [_load_object(o, annotation_file, number, labels) for number, o in enumerate(objects, start=1)],
    }


def _load_object(element: ET.Element, annotation_file: str, number: int, labels: Mapping[str, int]) -> dict[str, Any]:
    where = f"object {number}"
    name = _text(element, "name", annotation_file, where)
    if name not in labels:
        raise AnnotationFileError(
            annotation_file,
            where,
            f"it is an object of class '{name}', which is not among the class names {list(labels)}. Add it to "
            "class_names, or take the object out.",
        )
    box = [_number(element, f"bndbox/{key}", annotation_file, where) for key in ("xmin", "ymin", "xmax", "ymax")]
    box[0] -= 1.0
    box[1] -= 1.0
    return {"category_id": labels[name], "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}


def _text(element: ET.Element, path: str, annotation_file: str, where: str = "") -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise AnnotationFileError(annotation_file, where, f"there is no <{path}> in <{element.tag}>, or it is empty.")
    return text


def _number(element: ET.Element, path: str, annotation_file: str, where: str = "") -> float:
    text = _text(element, path, annotation_file, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < _LARGEST:
        raise AnnotationFileError(
            annotation_file, where, f"<{path}> in <{element.tag}> must be a number of pixels, not '{text[:80]}'."
        )
    return number


def register_pascal_voc(
    name: str,
    dirname: str | os.PathLike[str],
    split: str,
    year: int,
    class_names: Sequence[str] = CLASS_NAMES,
) -> None:
    """Register a data set in the Pascal VOC format. Nothing is read yet.

    Args:
        name: the name to register.
        dirname: folder that contains `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of the list of images in `ImageSets/Main`.
        year: 2007 or 2012; tells the evaluation which definition of average precision to use.
        class_names: the classes; the position in this list is the label.
    """
    DatasetCatalog.register(name, functools.partial(load_voc_instances, dirname, split, tuple(class_names)))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
