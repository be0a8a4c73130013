"""How many images a second are read from tar shards, against single files, in both orders of training.

usage:  python benchmarks/bench_shards.py [--images 2000] [--shard-size 200] [--window 4] [--rounds 3]

Draws pictures with noise, saves them as JPEG files and writes these into shards. Each round goes through one epoch of
`TrainingSampler`, in which all shards are in use, and one of `ShardedTrainingSampler`, from both, with `read_image` and
with the bytes alone. Before each of these the system is asked to forget the files (posix_fadvise), so that they come
from the disk. The kinds take turns, and the median of the rounds is printed.
"""

import argparse
import itertools
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from detectron2.data.datasets import load_sharded_dataset
from detectron2.data.formats.tar_shards import write_shards
from detectron2.data.images import read_image
from detectron2.data.samplers import ShardedTrainingSampler, TrainingSampler
from detectron2.utils.file_io import PathManager


def make_pictures(folder: Path, count: int, size_hw: tuple[int, int]) -> list[str]:
    """Pictures of about the bytes that photographs have; 50 different ones."""
    rng = np.random.default_rng(0)
    h, w = size_hw
    contents = []
    for i in range(min(count, 50)):
        coarse = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        contents.append((folder / f"{i}.jpg").read_bytes())
    for i in range(len(contents), count):
        (folder / f"{i}.jpg").write_bytes(contents[i % len(contents)])
    return [str(folder / f"{i}.jpg") for i in range(count)]


def forget(paths: Sequence[str]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes(name: str) -> None:
    with PathManager.open(name, "rb") as file:
        file.read()


def rate(names: Sequence[str], order: Sequence[int], read: Callable[[str], object]) -> float:
    begin = time.perf_counter()
    for index in order:
        read(names[index])
    return len(order) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--shard-size", type=int, default=200)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write; default: the one for temporary files")
    args = parser.parse_args()
    rates: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = make_pictures(Path(folder), args.images, tuple(args.size))
        size_hw = {"height": args.size[0], "width": args.size[1]}
        records = [{"file_name": file, "image_id": i, **size_hw} for i, file in enumerate(files)]
        write_shards(records, {}, Path(folder, "tars"), shard_size=args.shard_size)
        loaded = load_sharded_dataset(Path(folder, "tars"))
        names = {"files": [files[r["image_id"]] for r in loaded], "shards": [r["file_name"] for r in loaded]}
        os.sync()  # what is not written yet cannot be forgotten
        on_disk = {"files": files, "shards": [str(path) for path in Path(folder, "tars").glob("*.tar")]}
        sizes = ShardedTrainingSampler.shard_sizes_of(loaded)
        samplers = (TrainingSampler(len(loaded), seed=0), ShardedTrainingSampler(sizes, window=args.window, seed=0))
        orders = {type(sampler).__name__: list(itertools.islice(sampler, len(loaded))) for sampler in samplers}
        megabytes = sum(map(os.path.getsize, files)) / 2**20
        for _, (what, read), (order, indices), where in itertools.product(
            range(args.rounds), (("bytes", read_bytes), ("image", read_image)), orders.items(), names
        ):
            forget(on_disk[where])
            rates[what, order, where].append(rate(names[where], indices, read))
    print(f"{platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    print(f"{args.images} images, {megabytes:.0f} MiB, {len(sizes)} shards, window {args.window}, {args.rounds} rounds")
    print(f"{'images/s':34}{'files':>9}{'shards':>9}   shards / files")
    for what, order in itertools.product(("bytes", "image"), orders):
        single, sharded = (median(rates[what, order, where]) for where in ("files", "shards"))
        print(f"{what + ', ' + order:34}{single:9.0f}{sharded:9.0f}{sharded / single:12.2f}")


if __name__ == "__main__":
    main()
