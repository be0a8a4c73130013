"""How many images a second the default training mapper makes on one thread, next to Pillow, and where its time goes.

usage:  python benchmarks/bench_data.py [--images 40] [--size 480 640] [--polygons 8] [--points 40] [--rounds 5]

Draws pictures with noise, saves them as JPEG, and maps them as a data-loader worker would: read, resize the shortest
edge to 640 to 800, flip one half of them, transform boxes and polygons, make tensors. Beside it, image by image and to
the same sizes, run

* `without OpenCV`: the mapper where OpenCV, which is optional, is not installed, so that Pillow decodes;
* `decode, resize`: what Pillow alone needs to decode and resize the picture, without annotations or tensors;
* `image to tensor`: the same with the steps that lie between, as a mapper written with Pillow has them: an array with
  the channels in the order BGR, back to Pillow, resize, an array, flip, a tensor.

Each image is timed by the processor time of its thread, which other programs disturb less than the clock on the wall.
"""

import argparse
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import PIL
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper, dataset_mapper, images
from detectron2.data import detection_utils as utils
from detectron2.data.resize_later import ResizeLater
from detectron2.structures import BoxMode

SHORT_EDGES = (640, 672, 704, 736, 768, 800)
BILINEAR = Image.Resampling.BILINEAR


def make_records(folder: Path, count: int, size_hw: tuple[int, int], polygons: int, points: int) -> list[dict]:
    """Pictures of about the bytes that photographs of COCO have, each with polygons of one instance each."""
    rng = np.random.default_rng(0)
    h, w = size_hw
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    records = []
    for i in range(count):
        coarse = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        annotations = []
        for _ in range(polygons):
            outline = rng.uniform(0, (w, h)) + rng.uniform(5, min(h, w) / 4) * circle
            x1, y1 = outline.min(axis=0).clip(0, (w, h)).tolist()
            x2, y2 = outline.max(axis=0).clip(0, (w, h)).tolist()
            annotations.append(
                {
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": int(rng.integers(80)),
                    "iscrowd": 0,
                    "segmentation": [outline.reshape(-1).tolist()],
                }
            )
        records.append({"file_name": str(path), "height": h, "width": w, "image_id": i, "annotations": annotations})
    return records


def decode_and_resize(path: str, new_hw: tuple[int, int]) -> np.ndarray:
    with open(path, "rb") as f:
        return np.asarray(Image.open(f).convert("RGB").resize(new_hw[::-1], BILINEAR))


def image_to_tensor(path: str, new_hw: tuple[int, int], flips: bool) -> torch.Tensor:
    with open(path, "rb") as f:
        bgr = np.asarray(Image.open(f).convert("RGB"))[:, :, ::-1]
    bgr = np.asarray(Image.fromarray(bgr).resize(new_hw[::-1], BILINEAR))
    if flips:
        bgr = bgr[:, ::-1]
    return torch.from_numpy(np.array(bgr.transpose(2, 0, 1), order="C"))


def seconds_of(function: Callable[..., Any], *args: Any) -> float:
    begin = time.thread_time()
    function(*args)
    return time.thread_time() - begin


def map_with_seed(mapper: DatasetMapper, record: dict[str, Any], seed: int) -> dict[str, Any]:
    np.random.seed(seed)  # noqa: NPY002 (augmentations use the global generator)
    return mapper(record)


def compare(mapper: DatasetMapper, records: list[dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each image and each round, for the mapper and for Pillow, one after the other for each image."""
    choose_size = T.ResizeShortestEdge(SHORT_EDGES, 1333, "choice")
    later = make_mapper(use_instance_mask=True)
    later.augmentations = ResizeLater(later.augmentations.augs)
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed, record in list(enumerate(records)) * (rounds + 1):
        path = record["file_name"]
        np.random.seed(seed)  # noqa: NPY002
        resize = choose_size.get_transform(np.empty((record["height"], record["width"], 3), np.uint8))
        new_hw = (resize.new_h, resize.new_w)
        seconds["mapper"].append(seconds_of(map_with_seed, mapper, record, seed))
        seconds["resized later"].append(seconds_of(map_with_seed, later, record, seed))
        with mock.patch.object(images, "opencv", return_value=None):
            seconds["without OpenCV"].append(seconds_of(map_with_seed, mapper, record, seed))
        seconds["decode, resize"].append(seconds_of(decode_and_resize, path, new_hw))
        seconds["image to tensor"].append(seconds_of(image_to_tensor, path, new_hw, seed % 2 == 0))
    return {name: values[len(records) :] for name, values in seconds.items()}  # the first round warms up


def measure_stages(mapper: DatasetMapper, records: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each stage, from a mapper whose steps are timed one by one."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any], *args: Any) -> Any:
        begin = time.thread_time()
        out = function(*args)
        seconds[name].append(time.thread_time() - begin)
        return out

    for record in records:
        copied = timed("copy the record", dataset_mapper._copied, record)
        image = timed("read the image", utils.read_image, record["file_name"], mapper.image_format)
        aug_input = T.AugInput(image)
        transforms = timed("augment the image", mapper.augmentations, aug_input)
        timed("make a tensor", images.to_chw_tensor, aug_input.image)
        timed("annotations", mapper._transform_annotations, copied, transforms, aug_input.image.shape[:2])
    return {name: median(values) for name, values in seconds.items()}


def make_mapper(**options: Any) -> DatasetMapper:
    augmentations = [T.ResizeShortestEdge(SHORT_EDGES, 1333, "choice"), T.RandomFlip()]
    return DatasetMapper(True, augmentations=augmentations, image_format="BGR", **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--polygons", type=int, default=8, help="instances per image, of one polygon each")
    parser.add_argument("--points", type=int, default=40, help="corners of each polygon")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()} {capability}, {os.cpu_count()} cores")
    print(f"Pillow {PIL.__version__}, torch {torch.__version__}, numpy {np.__version__}")
    cv2 = images.opencv()
    print("OpenCV is not installed" if cv2 is None else f"OpenCV {cv2.__version__}")

    with tempfile.TemporaryDirectory() as folder:
        records = make_records(Path(folder), args.images, tuple(args.size), args.polygons, args.points)
        kilobytes = median(Path(r["file_name"]).stat().st_size / 1000 for r in records)
        print(f"{args.images} files of {args.size[1]} x {args.size[0]} pixels, {kilobytes:.0f} kB each (median)")
        mapper = make_mapper(use_instance_mask=True)
        seconds = compare(mapper, records, args.rounds)
        for name, values in seconds.items():
            ratio = median(other / own for other, own in zip(values, seconds["mapper"], strict=True))
            print(
                f"{name:18s} {1e3 * median(values):6.2f} ms per image {1 / median(values):7.1f} images/s; "
                f"the mapper is {ratio:.2f} times as fast (median of pairs)"
            )
        for name, others in (("boxes only", {}), ("bitmasks", {"instance_mask_format": "bitmask"})):
            other = make_mapper(use_instance_mask=bool(others), **others)
            values = [seconds_of(map_with_seed, other, record, seed) for seed, record in enumerate(records)]
            print(f"{name:18s} {1e3 * median(values):6.2f} ms per image {1 / median(values):7.1f} images/s")
        print("stages of the mapper:")
        for name, value in measure_stages(mapper, records).items():
            print(f"  {name:18s} {1e3 * value:6.2f} ms")


if __name__ == "__main__":
    main()
