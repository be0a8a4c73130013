"""Time and memory of matching anchors with ground truth, in parts and by the whole matrix of overlaps.

python benchmarks/bench_matching.py [--threads 1] [--rounds 7]

Anchors of an FPN at 800 x 1333 and some numbers of objects. Both ways are timed in turns; results are compared. Memory
is what the matrix takes, and what a part takes.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch

from detectron2.modeling import matcher as matching
from detectron2.structures import Boxes, pairwise_iou

NUM_ANCHORS = 267_069


def make_boxes(count: int, seed: int) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    xywh = torch.rand(count, 4, generator=generator) * torch.tensor([1333.0, 800, 300, 300])
    return Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    matcher = matching.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    anchors = make_boxes(NUM_ANCHORS, 0)
    print(f"{platform.machine()}, {args.threads} threads, {NUM_ANCHORS:,} anchors, {args.rounds} rounds; ms of cores\n")
    print("| objects | whole matrix | as it is | ratio | matrix, MB |\n| --- | --- | --- | --- | --- |")
    for count in (3, 7, 20, 50, 200):
        truth = make_boxes(count, count)

        def whole(truth: Boxes = truth) -> tuple[torch.Tensor, torch.Tensor]:
            return matcher(pairwise_iou(truth, anchors))

        def as_it_is(truth: Boxes = truth) -> tuple[torch.Tensor, torch.Tensor]:
            return matching.match_boxes(matcher, pairwise_iou, truth, anchors)

        if not all(map(torch.equal, whole(), as_it_is())):
            raise RuntimeError("the two ways give different results")
        pairs = [(seconds(whole), seconds(as_it_is)) for _ in range(args.rounds)]
        before, after = (min(times) for times in zip(*pairs, strict=True))
        megabytes = 4e-6 * count * NUM_ANCHORS
        print(
            f"| {count} | {1e3 * before:.0f} | {1e3 * after:.0f} | {after / before:.2f} | {megabytes:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
