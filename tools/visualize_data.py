#!/usr/bin/env python
"""Draw the training data of a config: as annotated, or as the loader hands it to the model.

python tools/visualize_data.py --source annotation --config-file configs/... --output-dir pictures
python tools/visualize_data.py --source dataloader --config-file configs/... --output-dir pictures --num 50

`detectron2 data show` does the same for data sets without a config, and on one sheet.
"""

import argparse
import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog, build_detection_train_loader
from detectron2.data.build import filter_images_with_few_keypoints
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.structures import Instances
from detectron2.utils.file_io import atomic_write
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

logger = logging.getLogger("detectron2.tools.visualize_data")


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    if not cfg.DATASETS.TRAIN:
        raise ValueError("There is nothing to draw: DATASETS.TRAIN is empty. Give --config-file, or name a data set.")
    return cfg


def draw_mapped(data: dict[str, Any], metadata: Metadata, image_format: str) -> np.ndarray:
    """Draw what a mapper made -> RGB picture (height, width, 3)."""
    image = convert_image_to_rgb(data["image"].permute(1, 2, 0).numpy(), image_format)
    visualizer = Visualizer(image, metadata)
    if "sem_seg" in data:
        visualizer.draw_sem_seg(data["sem_seg"], area_threshold=0, alpha=0.5)
    objects = data.get("instances", Instances(image.shape[:2]))
    if objects.has("gt_classes"):
        names, classes = metadata.get("thing_classes"), objects.gt_classes.tolist()
        visualizer.overlay_instances(
            labels=[names[c] if names else str(c) for c in classes],
            boxes=objects.gt_boxes if objects.has("gt_boxes") else None,
            masks=objects.gt_masks if objects.has("gt_masks") else None,
            keypoints=objects.gt_keypoints if objects.has("gt_keypoints") else None,
        )
    return visualizer.get_output().get_image()


def pictures_of_annotations(cfg: CfgNode, metadata: Metadata) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each image and its picture."""
    records = list(itertools.chain.from_iterable(DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN))
    if cfg.MODEL.KEYPOINT_ON:
        records = filter_images_with_few_keypoints(records, 1)
    for record in records:
        image = read_image(record["file_name"], "RGB", cfg.INPUT.get("EXIF", "apply"))
        yield record["file_name"], Visualizer(image, metadata).draw_dataset_dict(record).get_image()


def pictures_of_loader(cfg: CfgNode, metadata: Metadata) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the same of what the loader gives; augmentation makes another picture of an image each time."""
    for batch in build_detection_train_loader(cfg):
        for data in batch:
            yield data["file_name"], draw_mapped(data, metadata, cfg.INPUT.FORMAT)


def show(name: str, picture: np.ndarray) -> None:
    """Show a picture in a window until it is closed."""
    import matplotlib.pyplot as plt

    plt.figure(name, figsize=(12, 9))
    plt.imshow(picture)
    plt.axis("off")
    plt.show()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["annotation", "dataloader"], required=True, help="what to draw")
    parser.add_argument("--config-file", metavar="FILE", help="path to a config file")
    parser.add_argument("--output-dir", default="./", help="folder for the pictures; default: the current one")
    parser.add_argument("--show", action="store_true", help="show the pictures in a window instead of saving them")
    parser.add_argument("--num", type=int, help="how many; default: all annotated images, 100 of the loader")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="changes to the config: KEY VALUE ...")
    args = parser.parse_args(argv)
    setup_logger(name="detectron2")

    cfg = setup(args)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    if args.source == "annotation":
        pictures, count = pictures_of_annotations(cfg, metadata), args.num
    else:  # which never ends
        pictures, count = pictures_of_loader(cfg, metadata), 100 if args.num is None else args.num
    times: dict[str, int] = {}
    for name, picture in itertools.islice(pictures, count):
        if args.show:
            show(name, picture)
            continue
        if os.path.realpath(os.path.dirname(name)) == os.path.realpath(args.output_dir):
            raise ValueError(f"--output-dir {args.output_dir} has the images themselves, such as {name}: give another.")
        base = os.path.splitext(os.path.basename(name))[0]
        times[base] = times.get(base, 0) + 1
        suffix = f"_{times[base]}" if times[base] > 1 else ""
        with atomic_write(os.path.join(args.output_dir, f"{base}{suffix}.jpg"), "wb") as f:
            Image.fromarray(picture).save(f, format="JPEG", quality=90)
    if not args.show:
        logger.info("%d pictures are in %s", sum(times.values()), args.output_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
