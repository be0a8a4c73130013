"""Cityscapes, for instance segmentation and for semantic segmentation.

Files come in a folder per city: `<image_dir>/<city>/<frame>_leftImg8bit.png` and
`<gt_dir>/<city>/<frame>_gtFine_{polygons.json, instanceIds.png, labelTrainIds.png}`.
"""

import functools
import logging
import multiprocessing
import os
from typing import Any

import numpy as np

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.formats.reading import (
    AnnotationFileError,
    checked_objects,
    checked_size,
    read_json,
    shorten,
    timed,
)
from detectron2.data.formats.run_lengths import encode_mask
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

__all__ = ["load_cityscapes_instances", "load_cityscapes_semantic"]

logger = logging.getLogger(__name__)

_IMAGE_SUFFIX = "_leftImg8bit.png"
_LARGEST = 1e7  # far more pixels than any image has
_LABEL_OF_NAME = {c["name"]: i for i, c in enumerate(c for c in CITYSCAPES_CATEGORIES if c["isthing"])}
_LABEL_OF_ID = {c["id"]: i for i, c in enumerate(c for c in CITYSCAPES_CATEGORIES if c["isthing"])}


def check_label_image(record: dict[str, Any]) -> None:
    """Say how to make the label images, if that of a record does not exist."""
    if not PathManager.isfile(record["sem_seg_file_name"]):
        raise FileNotFoundError(
            f"There is no file '{record['sem_seg_file_name']}'. Make the files *_labelTrainIds.png with "
            "cityscapesscripts/preparation/createTrainIdLabelImgs.py."
        )


def _frames(image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return `(image file, first part of the names of its annotation files)` of all frames, in a fixed order."""
    image_dir, gt_dir = os.fspath(image_dir), os.fspath(gt_dir)
    if not PathManager.isdir(image_dir):
        raise FileNotFoundError(f"There is no folder '{image_dir}' with the cities of Cityscapes.")
    frames = []
    for city in sorted(PathManager.ls(image_dir)):
        city_dir = os.path.join(image_dir, city)
        if not PathManager.isdir(city_dir):
            continue
        for file in sorted(PathManager.ls(city_dir)):
            if file.endswith(_IMAGE_SUFFIX):
                frame = file[: -len(_IMAGE_SUFFIX)]
                frames.append((os.path.join(city_dir, file), os.path.join(gt_dir, city, frame + "_gtFine")))
    if not frames:
        raise ValueError(f"There are no images <city>/*{_IMAGE_SUFFIX} below '{image_dir}'.")
    return frames


def load_cityscapes_instances(
    image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str], from_json: bool = True, to_polygons: bool = True
) -> list[dict[str, Any]]:
    """Load the instances of Cityscapes' eight countable classes.

    Args:
        image_dir: folder of the images, e.g. "~/cityscapes/leftImg8bit/train".
        gt_dir: folder of the annotations, e.g. "~/cityscapes/gtFine/train".
        from_json: read the polygons (needs the package shapely) rather than the images of instance ids.
        to_polygons: give masks as polygons (from images of ids this needs OpenCV) rather than run lengths.

    Returns:
        one dict per image in the standard format; boxes are `(x1, y1, x2, y2)`.

    Raises:
        FileNotFoundError: a folder or an annotation file is missing.
        ValueError: the polygons are asked for as run lengths.
    """
    if from_json and not to_polygons:
        raise ValueError("Cityscapes' polygons can only be given as polygons; for run lengths use from_json=False.")
    frames = _frames(image_dir, gt_dir)
    load = functools.partial(_instances_of_polygons if from_json else _instances_of_ids, to_polygons)
    with timed(str(gt_dir)):
        processes = min(8, (os.cpu_count() or 1) // comm.get_world_size())
        if processes > 1 and len(frames) > 100:
            with multiprocessing.Pool(processes) as pool:
                records = pool.map(load, frames, chunksize=8)
        else:
            records = [load(frame) for frame in frames]
    logger.info("Loaded %d images from %s", len(records), image_dir)
    return records


def load_cityscapes_semantic(image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Pair the images of Cityscapes with their semantic segmentations.

    Args:
        image_dir: folder of the images, e.g. "~/cityscapes/leftImg8bit/train".
        gt_dir: folder of the annotations, e.g. "~/cityscapes/gtFine/train"; the label images have to be made before.

    Returns:
        one dict per image, with `sem_seg_file_name`.
    """
    records = []
    for image_file, annotation_stem in _frames(image_dir, gt_dir):
        height, width, _ = _read_polygons(annotation_stem)
        labels = annotation_stem + "_labelTrainIds.png"
        records.append({"file_name": image_file, "sem_seg_file_name": labels, "height": height, "width": width})
    check_label_image(records[0])
    logger.info("Loaded %d images from %s", len(records), image_dir)
    return records


def _read_polygons(annotation_stem: str) -> tuple[int, int, list[dict[str, Any]]]:
    """Return height and width of a frame in pixels, and its objects."""
    path = annotation_stem + "_polygons.json"
    content = read_json(path)
    missing = [key for key in ("imgHeight", "imgWidth", "objects") if key not in content]
    if missing:
        raise AnnotationFileError(path, "", f"Cityscapes' files have {missing[0]!r}; there is: {shorten(content)}.")
    height, width = (checked_size(content[key], path, "", key) for key in ("imgHeight", "imgWidth"))
    return height, width, checked_objects(content, "objects", path)


def _record(image_file: str, height: int, width: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "file_name": image_file,
        "image_id": os.path.basename(image_file),
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _annotation(is_group: bool, label: int, segmentation: Any, box: list[float]) -> dict[str, Any]:
    known = {"iscrowd": int(is_group), "category_id": label, "segmentation": segmentation}
    return {**known, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}


def _instances_of_polygons(to_polygons: bool, frame: tuple[str, str]) -> dict[str, Any]:
    try:
        import shapely.geometry as geometry
    except ImportError as e:
        raise ImportError("Loading Cityscapes' polygons needs shapely: pip install shapely") from e

    image_file, annotation_stem = frame
    height, width, objects = _read_polygons(annotation_stem)
    annotations = []
    covered: Any = geometry.Polygon()
    # Later objects lie in front of earlier ones, so from the last to the first each loses what is covered by then.
    for index, item in reversed(list(enumerate(objects))):
        name, corners = item.get("label"), item.get("polygon")
        points = _points(corners)
        if not isinstance(name, str) or points is None:
            raise AnnotationFileError(
                annotation_stem + "_polygons.json",
                f"objects[{index}]",
                f"'label' must be a name and 'polygon' a list of three points [x, y] or more; it is {item!r}."[:300],
            )
        if item.get("deleted") or name == "license plate":  # plates are drawn on top of cars that they belong to
            continue
        is_group = name.endswith("group")
        label = _LABEL_OF_NAME.get(name.removesuffix("group"))
        # Vertices are indices of pixels; half a pixel makes them continuous. buffer(0) mends self-intersections.
        shape: Any = geometry.Polygon(points + 0.5).buffer(0.0)
        visible: Any = shape.difference(covered)
        covered = covered.union(shape)
        if label is None or visible.is_empty:
            continue
        parts = [p for p in getattr(visible, "geoms", [visible]) if isinstance(p, geometry.Polygon) and p.area > 0]
        if not parts:
            continue
        bounds = np.array([p.bounds for p in parts])
        box = [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]
        # shapely repeats the first vertex at the end; the COCO format closes polygons by itself.
        polygons = [np.asarray(p.exterior.coords)[:-1].reshape(-1).tolist() for p in parts]
        annotations.append(_annotation(is_group, label, polygons, box))
    return _record(image_file, height, width, annotations)


def _points(corners: Any) -> np.ndarray | None:
    """Three points or more as `float64[P, 2]`, in pixels; None if it is something else."""
    try:
        points = np.asarray(corners, dtype=np.float64)
    except (TypeError, ValueError):  # texts, or points of different lengths
        return None
    is_polygon = isinstance(corners, list) and points.ndim == 2 and len(points) >= 3 and points.shape[1] == 2
    return points if is_polygon and (np.abs(points) < _LARGEST).all() else None


def _instances_of_ids(to_polygons: bool, frame: tuple[str, str]) -> dict[str, Any]:
    from PIL import Image

    image_file, annotation_stem = frame
    path = annotation_stem + "_instanceIds.png"
    try:
        with Image.open(PathManager.get_local_path(path)) as image:
            ids = np.asarray(image, order="F")
    except (OSError, SyntaxError) as e:  # what Pillow raises for damaged pictures
        if isinstance(e, FileNotFoundError):
            raise
        raise AnnotationFileError(path, "", f"the picture of the instances' ids cannot be read: {e}") from e
    if ids.ndim != 2:
        raise AnnotationFileError(path, "", f"expected one channel, the ids of instances, not shape {ids.shape}.")
    annotations = []
    for instance_id in np.unique(ids[ids >= 24]).tolist():
        # An id of 1000 or more is 1000 * class + number; a smaller one is the class of a group.
        label = _LABEL_OF_ID.get(instance_id // 1000 if instance_id >= 1000 else instance_id)
        if label is None:
            continue
        mask = np.asarray(ids == instance_id, dtype=np.uint8, order="F")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
        segmentation = _polygons_of_mask(mask) if to_polygons else encode_mask(mask)
        annotations.append(_annotation(instance_id < 1000, label, segmentation, box))
    annotations = [a for a in annotations if a["segmentation"]]
    return _record(image_file, ids.shape[0], ids.shape[1], annotations)


def _polygons_of_mask(mask: np.ndarray) -> list[list[float]]:
    try:
        import cv2
    except ImportError as e:
        raise ImportError("Turning masks into polygons needs OpenCV: pip install 'detectron2[opencv]'") from e
    contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(c.reshape(-1) + 0.5).tolist() for c in contours if len(c) >= 3]
