"""Runs with shards: as fast as the bare model, whole after any kills, and flat in memory.

python benchmarks/bulk.py                                   # all three parts, some minutes
python benchmarks/bulk.py --parts speed --weights output/demo/model_final.pth
python benchmarks/bulk.py --parts memory --images 1000000

"speed": images a second of `BulkRun` and of the Predictor on the same images, in turn, and of two processes together.
"crash": two processes of `detectron2 predict --shards` over 2,000 images, killed 30 times and started again; then each
image has to have one row. A kill comes some moments after a random number of new shards, so that the run ends on a
machine of any speed; where that number is none, it may hit the start of a process. "memory": a list of a million
images, with a model that finds nothing.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from detectron2.data import DatasetMapper
from detectron2.inference import BulkRun, Predictor, read_shards
from detectron2.structures import Boxes, Instances

PROGRAM = [sys.executable, "-c", "from detectron2.cli import main; raise SystemExit(main())", "predict"]


class Nothing(nn.Module):
    """Finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))

    def forward(self, inputs: list) -> list:
        found = [Instances((x["height"], x["width"]), pred_boxes=Boxes(torch.zeros(0, 4))) for x in inputs]
        for instances in found:
            instances.scores, instances.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        return [{"instances": instances} for instances in found]


def write_images(folder: Path, count: int) -> Path:
    """Write images of noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (120, 160, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=80)
    return folder


def environment(rank: int, world_size: int) -> dict[str, str]:
    """What torchrun tells a process."""
    known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    known |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 29500, "OMP_NUM_THREADS": 1}
    return {**os.environ, **{key: str(value) for key, value in known.items()}}


def start(weights: str, images: Path, out: Path, world_size: int, *options: str) -> list[subprocess.Popen]:
    command = [*PROGRAM, "--weights", weights, str(images), "--shards", str(out), "--shard-size", "25", *options]
    kept = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen(command, env=environment(rank, world_size), **kept) for rank in range(world_size)]


def speed(weights: str, folder: Path) -> None:
    """Images a second, the best of three rounds, each in one process with one thread."""
    images, rates = write_images(folder / "speed", 200), {"Predictor": 0.0, "BulkRun": 0.0}
    torch.set_num_threads(1)
    predictor = Predictor(weights, device="cpu", batch_size=1, mask_format="rle")
    list(predictor([str(path) for path in sorted(images.iterdir())[:5]]))
    for i in range(3):
        for name in rates if i % 2 else reversed(rates):
            begin = time.perf_counter()
            if name == "Predictor":
                for _ in predictor(str(images)):
                    pass
            else:
                BulkRun(folder / f"speed_{i}", [str(images)], shard_size=25).predict(predictor)
            rates[name] = max(rates[name], 200 / (time.perf_counter() - begin))
    print(f"images/s: Predictor {rates['Predictor']:.1f}, BulkRun {rates['BulkRun']:.1f}")
    print(f"BulkRun / Predictor: {rates['BulkRun'] / rates['Predictor']:.2f}")
    seconds = {}
    for world_size in (1, 2):
        begin = time.perf_counter()
        for process in start(weights, images, folder / f"processes_{world_size}", world_size):
            process.wait()
        seconds[world_size] = time.perf_counter() - begin
    print(
        f"processes: one {seconds[1]:.1f} s, two {seconds[2]:.1f} s with their start, {seconds[1] / seconds[2]:.2f} x"
    )


def wait_for_shards(out: Path, wanted: int, processes: list[subprocess.Popen]) -> None:
    """Wait until there are that many shards, or no process is left."""
    while len(list(out.glob("part-*"))) < wanted and any(process.poll() is None for process in processes):
        time.sleep(0.05)


def kill(processes: list[subprocess.Popen]) -> int:
    """Kill those that run, and return how many those were."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGKILL)
    return len(running)


def crash(weights: str, folder: Path, images: int, kills: int) -> bool:
    """Kill one or both of two processes again and again, then let them end."""
    source, out = write_images(folder / "crash", images), folder / "crash_out"
    generator, killed, starts = np.random.default_rng(0), 0, 0
    while True:
        processes = start(weights, source, out, 2, "--resume")
        starts += 1
        if killed >= kills:
            break
        new_shards = int(generator.integers(0, 3))
        wait_for_shards(out, len(list(out.glob("part-*"))) + new_shards, processes)
        time.sleep(float(generator.uniform(0, 1 if new_shards else 8)))
        killed += kill(processes if generator.random() < 0.5 else processes[:1])
        if generator.random() < 0.5:  # torchrun ends the others
            for process in processes:
                process.terminate()
        else:
            wait_for_shards(out, len(list(out.glob("part-*"))) + 1, processes)  # they go on for a while
            killed += kill(processes)
        for process in processes:
            process.wait()
        indices = [row["index"] for row in read_shards(out)] if (out / "run.json").exists() else []
        once = len(indices) == len(set(indices))
        print(f"{killed} kills: {len(indices)} of {images} images, each once: {once}", flush=True)
        if not once or len(indices) == images:
            break
    statuses = [process.wait() for process in processes]
    rows = list(read_shards(out))
    names = {row["file"] for row in rows}
    is_right = [row["index"] for row in rows] == list(range(images)) and len(names) == images
    stray = [name for name in os.listdir(out) if not name.startswith(("part-", "run.json", "inputs.jsonl"))]
    print(
        f"{starts} starts, {killed} kills, the last statuses {statuses}: {len(rows)} rows, each image once: {is_right}"
    )
    print(f"other files: {stray or 'none'}")
    return is_right and not stray and killed >= kills


def memory(folder: Path, images: int) -> None:
    """The most memory of this process, before and after."""
    photo = folder / "photo.png"
    Image.new("RGB", (16, 16)).save(photo)
    listed = folder / "list.txt"
    with open(listed, "w") as file:
        for _ in range(images):
            file.write(f"{photo}\n")
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    predictor = Predictor(Nothing().eval(), mapper=mapper, optimize=False, batch_size=8)
    warm = folder / "warm.txt"
    warm.write_text(f"{photo}\n" * 2000)
    BulkRun(folder / "warm", [str(warm)]).predict(predictor)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    run = BulkRun(folder / "memory", [str(listed)], shard_size=5000)
    print(f"{images} inputs listed in {time.perf_counter() - begin:.0f} s", flush=True)
    begin = time.perf_counter()
    count = run.predict(predictor)
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} images in {seconds:.0f} s ({count / seconds:.0f} images/s); {before:.0f} -> {after:.0f} MB")
    print(json.dumps({"shards": run.num_shards, "missing": len(run.missing())}))


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["speed", "crash", "memory"], choices=["speed", "crash", "memory"]
    )
    parser.add_argument("--weights", help="a checkpoint; default: a small model with random weights")
    parser.add_argument("--images", type=int, default=1_000_000, help='of "memory"')
    parser.add_argument("--kills", type=int, default=30)
    args = parser.parse_args()
    is_right = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = args.weights
        if not weights and {"speed", "crash"} & set(args.parts):
            from load_service import small_weights

            weights = small_weights(folder)
        if "speed" in args.parts:
            speed(weights, folder)
        if "crash" in args.parts:
            is_right = crash(weights, folder, 2000, args.kills)
        if "memory" in args.parts:
            memory(folder, args.images)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
