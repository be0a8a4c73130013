#!/usr/bin/env python
"""Make annotations with labelled points from the masks of COCO, and leave the masks out.

python projects/PointSup/tools/prepare_coco_point_annotations_without_masks.py 10
python projects/PointSup/tools/prepare_coco_point_annotations_without_masks.py 10 --input in.json --output out.json

The points of each object are drawn evenly from its box; a point is labelled 1 if it lies on the object's mask and
0 if not, as an annotator would who sees the box and the point (Pointly-Supervised Instance Segmentation,
https://arxiv.org/abs/2104.06404, section 3.1). By default it reads coco/annotations/instances_train2017.json below
$DETECTRON2_DATASETS and writes instances_train2017_n<points>_v1_without_masks.json beside it.
"""

import argparse
import json
import os
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detectron2.data.datasets.builtin import dataset_root
from detectron2.data.formats.reading import read_json
from detectron2.utils.file_io import atomic_write


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The bitmap `(height, width)` of polygons or run lengths in COCO's format."""
    coco: Any = mask_util  # its type hints leave some forms out
    if isinstance(segmentation, list):
        segmentation = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):  # not compressed
        segmentation = coco.frPyObjects(segmentation, height, width)
    return coco.decode(segmentation)


def sample_points(
    box_xywh: list[float], mask: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[list[list[float]], list[int]]:
    """Draw points evenly from a box.

    Args:
        box_xywh: `(x, y, width, height)` in pixels.
        mask: bitmap of the object, `(H, W)`.
        count: how many points.
        generator: source of randomness.

    Returns:
        `[[x, y], ...]` in continuous pixel coordinates, and for each the value of the pixel that it lies in.
    """
    x, y, width, height = box_xywh
    points = np.round(generator.random((count, 2)) * (width, height) + (x, y), 4)
    column = points[:, 0].astype(int).clip(0, mask.shape[1] - 1)
    row = points[:, 1].astype(int).clip(0, mask.shape[0] - 1)
    return points.tolist(), mask[row, column].astype(int).tolist()


def replace_masks(content: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """The content of an annotation file with "point_coords" and "point_labels" in place of "segmentation".

    Crowd regions, which take no part in training, only lose their mask.
    """
    generator = np.random.default_rng(seed)
    size_hw = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = []
    for annotation in content["annotations"]:
        changed = {k: v for k, v in annotation.items() if k != "segmentation"}
        if not annotation.get("iscrowd", 0):
            mask = decode_mask(annotation["segmentation"], *size_hw[annotation["image_id"]])
            points = sample_points(annotation["bbox"], mask, count, generator)
            changed["point_coords"], changed["point_labels"] = points
        annotations.append(changed)
    return {**content, "annotations": annotations}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=int, help="points of each object")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--input", help="annotation file with masks")
    parser.add_argument("--output", help="file to write")
    args = parser.parse_args(argv)
    if args.points < 1:
        parser.error(f"at least one point is needed, got {args.points}")
    source = args.input or os.path.join(dataset_root(), "coco", "annotations", "instances_train2017.json")
    target = args.output or f"{os.path.splitext(source)[0]}_n{args.points}_v1_without_masks.json"
    with atomic_write(target, "w") as f:
        json.dump(replace_masks(read_json(source), args.points, args.seed), f)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
