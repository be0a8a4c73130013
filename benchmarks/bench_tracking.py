"""How good and how fast the trackers are on a made-up video whose identities are known.

usage:  python benchmarks/bench_tracking.py [--frames 600] [--objects 30] [--shake 0] [--seed 0] [--threads 1]

People of various sizes walk through 1920 x 1080 pixels with velocities that change slowly, and turn back at the border.
Who is lower in the picture stands in front. Boxes come with noise of 3% of their size. The score of an object falls
with the share of it that others hide; a third hidden or more, it drops towards 0, and below 0.05 there is no detection.
Beside that, 3% of the detections are missing, and in each frame there are about two false ones, of low scores mostly.
With `--shake`, the camera jumps in each frame by that many pixels (standard deviation). Objects of which less than a
tenth is to be seen are not in the truth.

ByteTracker takes all detections. The other trackers do not look at scores: each is run with the detections of a score
of at least 0.5, which is what they are usually given, and with all, once forgetting what it lost at once (as their
defaults are), once waiting for 30 frames.
"""

import argparse
import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch

from detectron2.structures import Boxes, Instances
from detectron2.tracking import (
    BaseTracker,
    BBoxIOUTracker,
    ByteTracker,
    IOUWeightedHungarianBBoxIOUTracker,
    VanillaHungarianBBoxIOUTracker,
)
from detectron2.tracking.metrics import evaluate_tracks

SIZE_HW = (1080, 1920)
DT_SCORE = 0.05


@dataclass
class Video:
    truth: list[tuple[list[int], np.ndarray]]  # identities and boxes of each frame
    detections: list[Instances]


def make_video(frames: int, objects: int, shake: float, generator: np.random.Generator) -> Video:
    height, width = SIZE_HW
    size = generator.uniform(60, 200, objects)[:, None] * np.array([0.4, 1.0])
    center = generator.uniform(0, 1, (objects, 2)) * (width, height)
    velocity = generator.normal(0, 4, (objects, 2)) * (1, 0.4)
    luck = np.zeros(objects)
    truth, detections = [], []
    for _ in range(frames):
        velocity += generator.normal(0, 0.25, (objects, 2))
        velocity = np.where(
            (center < 0) & (velocity < 0) | (center > (width, height)) & (velocity > 0), -velocity, velocity
        )
        velocity *= np.minimum(1, 8 / np.maximum(np.linalg.norm(velocity, axis=1, keepdims=True), 1e-9))
        center += velocity
        seen = center + generator.normal(0, 1, 2) * shake
        boxes = np.concatenate([seen - size / 2, seen + size / 2], axis=1)
        share = visible_share(boxes)
        there = np.flatnonzero(share >= 0.1)
        truth.append((there.tolist(), np.clip(boxes[there], 0, (width, height, width, height))))

        luck = 0.9 * luck + generator.normal(0, 0.03, objects)  # a hard object stays hard for some frames
        scores = 0.9 - 1.1 * np.clip(0.95 - share, 0, None) + luck + generator.normal(0, 0.03, objects)
        found = there[(scores[there] >= DT_SCORE) & (generator.random(len(there)) > 0.03)]
        noisy = boxes[found] + generator.normal(0, 0.03, (len(found), 4)) * np.tile(size[found], 2)
        count = generator.poisson(2)
        corner = generator.uniform(0, 1, (count, 2)) * (width - 100, height - 200)
        false = np.concatenate([corner, corner + generator.uniform(40, 180, (count, 2))], axis=1)
        all_scores = np.concatenate([scores[found], generator.beta(1.5, 4, count)]).clip(DT_SCORE, 0.99)
        instances = Instances(SIZE_HW, pred_boxes=Boxes(torch.from_numpy(np.concatenate([noisy, false])).float()))
        instances.pred_boxes.clip(SIZE_HW)
        instances.scores = torch.from_numpy(all_scores).float()
        instances.pred_classes = torch.zeros(len(all_scores), dtype=torch.int64)
        detections.append(instances[instances.pred_boxes.nonempty(1.0)])
    return Video(truth, detections)


def visible_share(boxes: np.ndarray) -> np.ndarray:
    """The share of each box that is in the picture and not behind another one, on a grid of 16 x 16 points."""
    height, width = SIZE_HW
    steps = (np.arange(16) + 0.5) / 16
    x = boxes[:, 0, None, None] + steps[None, None] * (boxes[:, 2] - boxes[:, 0])[:, None, None]
    y = boxes[:, 1, None, None] + steps[None, :, None] * (boxes[:, 3] - boxes[:, 1])[:, None, None]
    visible = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    for other, (x1, y1, x2, y2) in enumerate(boxes):
        behind = (boxes[:, 3] < y2) & (np.arange(len(boxes)) != other)
        visible &= ~((x >= x1) & (x < x2) & (y >= y1) & (y < y2) & behind[:, None, None])
    return visible.mean(axis=(1, 2))


def run(tracker: BaseTracker, detections: list[Instances]) -> tuple[list[Instances], float]:
    """What the tracker returns, and its frames in a second."""
    begin = time.perf_counter()
    found = [tracker.update(instances) for instances in detections]
    return found, len(detections) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--shake", type=float, default=0, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    video = make_video(args.frames, args.objects, args.shake, np.random.default_rng(args.seed))
    confident = [instances[instances.scores >= 0.5] for instances in video.detections]
    counts = [sum(len(instances) for instances in part) for part in (video.detections, confident)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    print(
        f"{args.frames} frames, {args.objects} objects, {sum(len(i) for i, _ in video.truth)} boxes, {counts[0]} "
        f"detections, {counts[1]} of a score of at least 0.5; shake {args.shake:g} pixels, seed {args.seed}\n"
    )
    print("| tracker | detections | waits | HOTA | DetA | AssA | MOTA | IDF1 | switches | frames/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    sized = {"video_height": SIZE_HW[0], "video_width": SIZE_HW[1], "min_box_rel_dim": 0.0}
    cases: list[tuple[str, int, BaseTracker]] = [("all", 30, ByteTracker())]
    for kind in (BBoxIOUTracker, VanillaHungarianBBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker):
        for which in (">= 0.5", "all"):
            cases += [(which, wait, kind(**sized, max_lost_frame_count=wait)) for wait in (0, 30)]
    for which, wait, tracker in cases:
        found, speed = run(tracker, video.detections if which == "all" else confident)
        scores = evaluate_tracks(video.truth, found)
        shares = (scores.hota, scores.deta, scores.assa, scores.mota, scores.idf1)
        print(
            f"| {type(tracker).__name__} | {which} | {wait} | {' | '.join(f'{100 * s:.1f}' for s in shares)} | "
            f"{scores.id_switches} | {speed:.0f} |"
        )


if __name__ == "__main__":
    main()
