#!/usr/bin/env python
"""Follow objects through a video, draw them with their numbers, and measure how well that went.

python examples/06_track_a_video.py

The video is drawn, so the truth is known, and a function that looks for its colours takes the place of a model. With a
trained one it is `track(Predictor("model_final.pth")("clip.mp4"))`. It needs `pip install 'detectron2[video]'`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from detectron2.data import Metadata
from detectron2.inference import Result, ResultWriter, read_frames
from detectron2.inference.video import VideoWriter
from detectron2.structures import Boxes, Instances
from detectron2.tracking import track
from detectron2.tracking.metrics import evaluate_tracks

OUTPUT, FRAMES = Path("output/examples/tracking"), 30
COLORS = np.array([[220, 60, 60], [60, 180, 60], [60, 60, 220]], np.uint8)


def true_boxes(frame: int) -> np.ndarray:
    """Three balls, the second faster than the first; the third goes the other way."""
    left, top = np.array([10 + 3 * frame, 5 + 6 * frame, 200 - 5 * frame]), np.array([20, 70, 120])
    return np.stack([left, top, left + 30, top + 30], axis=1)


def detect(frames: Iterator) -> Iterator[Result]:
    """Stands for a model. It misses the first ball for three frames."""
    for frame in frames:
        seen = [k for k in range(3) if not (k == 0 and 10 <= frame.index < 13)]
        boxes = [box_of(frame.image.astype(int), COLORS[k]) for k in seen]
        found = Instances(frame.image.shape[:2], pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
        found.scores, found.pred_classes = torch.full((len(seen),), 0.9), torch.zeros(len(seen), dtype=torch.int64)
        yield Result({"instances": found}, frame=frame, image_format="RGB", metadata=Metadata(thing_classes=["ball"]))


def box_of(image: np.ndarray, color: np.ndarray) -> list[int]:
    y, x = np.nonzero(np.abs(image - color).max(axis=2) < 60)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with VideoWriter(OUTPUT / "clip.mp4", fps=10, image_format="RGB") as video:
        for number in range(FRAMES):
            image = np.full((180, 240, 3), 255, np.uint8)
            for (x1, y1, x2, y2), color in zip(true_boxes(number), COLORS, strict=True):
                image[y1:y2, x1:x2] = color
            video.write(image)
    tracks = []
    with ResultWriter(OUTPUT / "tracked", csv=True) as writer:
        for result in track(detect(read_frames(OUTPUT / "clip.mp4", image_format="RGB"))):
            writer.write(result)
            tracks.append(result.instances)
    scores = evaluate_tracks([(["a", "b", "c"], true_boxes(k)) for k in range(FRAMES)], tracks)
    print(f"HOTA {scores.hota:.3f}, MOTA {scores.mota:.3f}, {scores.misses} missed, {scores.id_switches} new numbers")
    print(f"{OUTPUT}/tracked/clip.mp4, and a row for each ball in each frame in predictions.csv")
