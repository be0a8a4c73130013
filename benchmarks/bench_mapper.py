"""How fast the default mapper is, and where its time goes.

usage:  python benchmarks/bench_mapper.py [--images 40] [--size 480 640] [--boxes 7]

Draws smooth random pictures, saves them as JPEG, and maps them on one thread as a data-loader worker would: read,
resize the shortest edge to 800, flip, transform boxes and polygons, make tensors.
"""

import argparse
import copy
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper
from detectron2.data import dataset_mapper as mapper_module
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode


def make_records(folder: Path, count: int, size_hw: tuple[int, int], boxes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    h, w = size_hw
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    records = []
    for i in range(count):
        coarse = rng.integers(0, 256, (h // 16 + 1, w // 16 + 1, 3)).astype(np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC).save(path, quality=90)
        annotations = []
        for _ in range(boxes):
            center, radius = rng.uniform(0, (w, h)), rng.uniform(5, min(h, w) / 4)
            polygon = center + radius * circle
            x1, y1 = polygon.min(axis=0).clip(0, (w, h)).tolist()
            x2, y2 = polygon.max(axis=0).clip(0, (w, h)).tolist()
            annotations.append(
                {
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": int(rng.integers(80)),
                    "segmentation": [polygon.reshape(-1).tolist()],
                }
            )
        records.append({"file_name": str(path), "height": h, "width": w, "image_id": i, "annotations": annotations})
    return records


def map_all(mapper: DatasetMapper, records: list[dict[str, Any]]) -> float:
    begin = time.perf_counter()
    for record in records:
        mapper(record)
    return (time.perf_counter() - begin) / len(records)


def measure_stages(mapper: DatasetMapper, records: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds per image of each stage, from a mapper whose steps are timed one by one."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any], *args: Any) -> Any:
        begin = time.perf_counter()
        out = function(*args)
        seconds[name] += (time.perf_counter() - begin) / len(records)
        return out

    for record in records:
        copied = timed("copy the record", copy.deepcopy, record)
        image = timed("read the image", utils.read_image, record["file_name"], mapper.image_format)
        aug_input = T.AugInput(image)
        transforms = timed("augment the image", mapper.augmentations, aug_input)
        timed("make a tensor", mapper_module._to_chw_tensor, aug_input.image)
        timed("annotations", mapper._transform_annotations, copied, transforms, aug_input.image.shape[:2])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=7, help="boxes (and polygons of 24 corners) per image")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores; Pillow {PIL.__version__}, numpy {np.__version__}")

    with tempfile.TemporaryDirectory() as folder:
        records = make_records(Path(folder), args.images, tuple(args.size), args.boxes)
        resize = T.ResizeShortestEdge(800, 1333)
        mappers = {
            "inference": DatasetMapper(False, augmentations=[resize], image_format="BGR"),
            "boxes": DatasetMapper(True, augmentations=[resize, T.RandomFlip()], image_format="BGR"),
        }
        for mask_format in ("polygon", "bitmask"):
            mappers[mask_format] = DatasetMapper(
                True,
                augmentations=[resize, T.RandomFlip()],
                image_format="BGR",
                use_instance_mask=True,
                instance_mask_format=mask_format,
            )
        for name, mapper in mappers.items():
            seconds = min(map_all(mapper, records) for _ in range(3))
            print(f"{name:12s} {1e3 * seconds:7.2f} ms per image {1 / seconds:8.1f} images/s")
        print("stages of 'polygon':")
        for name, seconds in measure_stages(mappers["polygon"], records).items():
            print(f"  {name:20s} {1e3 * seconds:7.2f} ms")


if __name__ == "__main__":
    main()
