"""How many images a second reach a model through `read_frames`, by the number of threads that decode, and of a video.

usage:  python benchmarks/bench_sources.py [--images 200] [--size 480 640] [--model-ms 10] [--rounds 3]

Draws pictures with noise, saves them as JPEG, and takes them out of `read_frames` with 0, 1 and 2 threads, while the
consumer waits for each image as long as for a model on another device. `no model` is the same without the wait, and
`best` is what the wait alone allows. Then a video of the same pictures is decoded, with PyAV and with OpenCV, alone and
in a thread beside the same wait. The kinds take turns, and the median of the rounds is printed.
"""

import argparse
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
from PIL import Image

from detectron2.inference import video
from detectron2.inference.sources import read_frames
from detectron2.inference.video import VideoReader, VideoWriter


def make_pictures(folder: Path, count: int, size_hw: tuple[int, int]) -> list[Path]:
    """Pictures of about the bytes that photographs have."""
    rng = np.random.default_rng(0)
    h, w = size_hw
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def make_video(path: Path, pictures: list[Path]) -> None:
    with VideoWriter(path, fps=25) as writer:
        for picture in pictures:
            writer.write(np.asarray(Image.open(picture))[:, :, ::-1])


def rate(frames: Iterable[object], seconds: float) -> float:
    """Frames per second, when a model takes `seconds` for each."""
    begin, count = time.perf_counter(), 0
    for _ in frames:
        time.sleep(seconds)
        count += 1
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--model-ms", type=float, default=10, help="milliseconds of the model for each image")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    wait = args.model_ms / 1000
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder), args.images, tuple(args.size))
        clip = Path(folder, "clip.mp4")
        make_video(clip, pictures)
        backends = {"PyAV": mock.patch.object(video, "_pyav", video._pyav)}
        backends["OpenCV"] = mock.patch.object(video, "_pyav", lambda: None)
        for _ in range(args.rounds + 1):
            rates["best"].append(rate(range(args.images), wait))
            for workers in (0, 1, 2):
                rates[f"{workers} threads"].append(rate(read_frames(pictures, workers=workers), wait))
                rates[f"{workers} threads, no model"].append(rate(read_frames(pictures, workers=workers), 0))
            for name, backend in backends.items():
                with backend:
                    rates[f"video, {name}, no model"].append(rate(VideoReader(clip), 0))
                    rates[f"video, {name}, in turn"].append(rate(read_frames(clip, workers=0), wait))
                    rates[f"video, {name}, in a thread"].append(rate(read_frames(clip), wait))
    print(f"{platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    size = f"{args.size[1]} x {args.size[0]}"
    print(f"{args.images} JPEG files of {size}, model of {args.model_ms} ms, {args.rounds} rounds")
    print(f"{'':32}images/s")
    for name, values in sorted(rates.items(), key=lambda item: item[0].startswith("video")):
        print(f"{name:30}{median(values[1:]):10.1f}")  # the first round warms up
    middle = {name: median(values[1:]) for name, values in rates.items()}
    for workers in (1, 2):
        print(f"{workers} threads / 0 threads: {middle[f'{workers} threads'] / middle['0 threads']:.2f}")
    for name in backends:
        share = middle[f"video, {name}, in a thread"] / middle[f"video, {name}, in turn"]
        print(f"video, {name}: in a thread / in turn: {share:.2f}")


if __name__ == "__main__":
    main()
