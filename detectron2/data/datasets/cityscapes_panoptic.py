"""Cityscapes for panoptic segmentation, from the files that its createPanopticImgs.py writes."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from detectron2.data.datasets.cityscapes import check_label_image
from detectron2.data.formats.reading import read_json, shorten
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
        ValueError: a segment has an unknown category.
    """
    image_dir, gt_dir = os.fspath(image_dir), os.fspath(gt_dir)
    things, stuff = meta["thing_dataset_id_to_contiguous_id"], meta["stuff_dataset_id_to_contiguous_id"]
    labels = {**stuff, **things}
    if not PathManager.isfile(os.fspath(gt_json)):
        raise FileNotFoundError(
            f"There is no file '{gt_json}'. Make it with cityscapesscripts/preparation/createPanopticImgs.py."
        )
    records = []
    for annotation in read_json(gt_json)["annotations"]:
        image_id = annotation["image_id"]  # <city>_<sequence>_<frame>
        city = image_id.split("_")[0]
        unknown = [s["category_id"] for s in annotation["segments_info"] if s["category_id"] not in labels]
        if unknown:
            raise ValueError(f"{gt_json}: image id {image_id} has segments of unknown categories: {shorten(unknown)}.")
        image_file = os.path.join(image_dir, city, image_id + "_leftImg8bit.png")
        annotation_stem = image_file.replace("leftImg8bit", "gtFine").removesuffix(".png")
        records.append(
            {
                "file_name": image_file,
                "image_id": image_id,
                "sem_seg_file_name": annotation_stem + "_labelTrainIds.png",
                "pan_seg_file_name": os.path.join(gt_dir, annotation["file_name"]),
                "segments_info": [
                    {**s, "category_id": labels[s["category_id"]], "isthing": s["category_id"] in things}
                    for s in annotation["segments_info"]
                ],
            }
        )
    if not records:
        raise ValueError(f"{gt_json} has no annotations.")
    check_label_image(records[0])
    logger.info("Loaded %d images from %s", len(records), image_dir)
    return records
