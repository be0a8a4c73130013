"""Cityscapes for panoptic segmentation, from the files that its createPanopticImgs.py writes."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from detectron2.data.datasets.cityscapes import check_label_image
from detectron2.data.datasets.coco_panoptic import read_segments
from detectron2.data.formats.reading import read_json
from detectron2.utils.file_io import PathManager

__all__ = ["load_cityscapes_panoptic"]

logger = logging.getLogger(__name__)


def load_cityscapes_panoptic(
    image_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    gt_json: str | os.PathLike[str],
    meta: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Load the panoptic annotations of Cityscapes. No image is read.

    Args:
        image_dir: folder of the images, e.g. "~/cityscapes/leftImg8bit/train".
        gt_dir: folder of the panoptic PNG files, e.g. "~/cityscapes/gtFine/cityscapes_panoptic_train".
        gt_json: the panoptic annotation file, e.g. "~/cityscapes/gtFine/cityscapes_panoptic_train.json".
        meta: has `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`.

    Returns:
        one dict per image with `file_name, image_id, sem_seg_file_name, pan_seg_file_name, segments_info`.

    Raises:
        FileNotFoundError: the annotation file or the images of the semantic labels have not been made yet.
        ValueError: the tables are missing, the file is not in this format, or a segment has an unknown category.
    """
    image_dir, gt_dir = os.fspath(image_dir), os.fspath(gt_dir)
    tables = [f"{kind}_dataset_id_to_contiguous_id" for kind in ("thing", "stuff")]
    if missing := [key for key in tables if meta.get(key) is None]:
        raise ValueError(
            f"meta needs {' and '.join(missing)}, from ids of {gt_json} to labels; Cityscapes' own are in "
            "MetadataCatalog.get('cityscapes_fine_panoptic_train')."
        )
    if not PathManager.isfile(os.fspath(gt_json)):
        raise FileNotFoundError(
            f"There is no file '{gt_json}'. Make it with cityscapesscripts/preparation/createPanopticImgs.py."
        )
    records = []
    for image_id, png, segments in read_segments(read_json(gt_json), meta, gt_json):
        city = str(image_id).split("_")[0]  # of <city>_<sequence>_<frame>
        image_file = os.path.join(image_dir, city, f"{image_id}_leftImg8bit.png")
        annotation_stem = image_file.replace("leftImg8bit", "gtFine").removesuffix(".png")
        records.append(
            {
                "file_name": image_file,
                "image_id": image_id,
                "sem_seg_file_name": annotation_stem + "_labelTrainIds.png",
                "pan_seg_file_name": os.path.join(gt_dir, png),
                "segments_info": segments,
            }
        )
    if not records:
        raise ValueError(f"{gt_json} has no annotations.")
    check_label_image(records[0])
    logger.info("Loaded %d images from %s", len(records), image_dir)
    return records
