"""How much memory data loading workers use, with annotations in one shared buffer and as a list of dicts.

usage:  python benchmarks/bench_loader_memory.py [--images 118000] [--workers 8] [--list] [--shards]

Makes annotations like those of COCO (7 objects of one polygon each, on average), lets every worker read all of them,
as it does in some epochs, and prints what the kernel counts for each process: USS (its own), PSS (its own and its part
of what is shared), RSS. Images are not read. --list compares with the plain list, which each worker comes to copy; this
takes about as much memory as the main process uses, once for every worker. --shards also writes the same annotations
into tar shards, with the same tiny image for all, and measures the data set that is loaded from there.
"""

import argparse
import gc
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from PIL import Image

from detectron2.data import DatasetFromList
from detectron2.data._loader import GuardedLoader, describe_workers, mib, process_memory, system_memory
from detectron2.data.datasets import load_sharded_dataset
from detectron2.data.formats.tar_shards import write_shards
from detectron2.structures import BoxMode


def make_records(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    objects = rng.poisson(7.3, count)
    records = []
    for image_id, number in enumerate(objects.tolist()):
        corners = rng.integers(5, 45, number)
        annotations = [
            {
                "iscrowd": 0,
                "bbox": rng.uniform(0, 400, 4).round(2).tolist(),
                "category_id": int(rng.integers(80)),
                "segmentation": [rng.uniform(0, 600, 2 * n).round(2).tolist()],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for n in corners.tolist()
        ]
        file_name = f"datasets/coco/train2017/{image_id:012d}.jpg"
        records.append(
            {"file_name": file_name, "height": 480, "width": 640, "image_id": image_id, "annotations": annotations}
        )
    return records


class _ReadAll(torchdata.IterableDataset):
    """In every worker, reads all elements (a list: copies them, as a mapper does), then waits to be looked at."""

    def __init__(self, dataset: DatasetFromList) -> None:
        self._dataset = dataset

    def __iter__(self) -> Any:
        for index in range(len(self._dataset)):
            self._dataset[index]
        gc.collect()  # as Python does now and then
        while True:
            yield 0


def measure(dataset: DatasetFromList, workers: int) -> str:
    # As the builders make it, but for the number of workers: those start no more than there are cores.
    loader = GuardedLoader(_ReadAll(dataset), batch_size=None, num_workers=workers, prefetch_factor=1)
    iterator: Any = iter(loader)
    begin = time.perf_counter()
    for _ in range(workers):
        next(iterator)  # one from each
    text = describe_workers(loader.worker_pids)
    return f"{text} ({time.perf_counter() - begin:.0f} s)"


def measure_shards(records: list[dict[str, Any]], workers: int, folder: Path) -> None:
    Image.new("RGB", (640, 480)).save(folder / "image.jpg")
    for record in records:
        record["file_name"] = str(folder / "image.jpg")
    begin = time.perf_counter()
    index = write_shards(records, {}, folder / "tars")
    print(f"{len(index.shards)} shards written in {time.perf_counter() - begin:.1f} s")
    records.clear()
    gc.collect()
    before, begin = process_memory()["RSS"], time.perf_counter()
    dataset = DatasetFromList(load_sharded_dataset(folder / "tars"))
    grown = mib(process_memory()["RSS"] - before)
    seconds, size = time.perf_counter() - begin, mib(dataset._lst._bytes.nbytes)
    print(f"loaded and serialized in {seconds:.1f} s: {size}; RSS grew by {grown}")
    gc.collect()
    print("shards:     ", measure(dataset, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--list", action="store_true", help="measure the plain list, too")
    parser.add_argument("--shards", action="store_true", help="measure the same from tar shards, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    system, start = system_memory(), process_memory()
    if system is None or not start:
        raise SystemExit("This reads /proc, which only Linux has.")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {mib(system[1])}; before: RSS {mib(start['RSS'])}")
    records = make_records(args.images)
    in_memory = process_memory()
    objects = sum(len(r["annotations"]) for r in records)
    print(f"{args.images} images, {objects} objects; as a list: {mib(in_memory['RSS'] - start['RSS'])}")
    if args.list:
        print("list:       ", measure(DatasetFromList(records, serialize=False), args.workers))
    begin = time.perf_counter()
    dataset = DatasetFromList(records)
    print(f"serialized in {time.perf_counter() - begin:.1f} s: {mib(dataset._lst._bytes.nbytes)}")
    if not args.shards:
        del records
    gc.collect()
    print("one buffer: ", measure(dataset, args.workers))
    if args.shards:
        del dataset
        with tempfile.TemporaryDirectory() as folder:
            measure_shards(records, args.workers, Path(folder))


if __name__ == "__main__":
    main()
