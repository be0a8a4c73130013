"""How fast the operators on rotated boxes are, beside a plain version of each.

usage:  python benchmarks/bench_rotated.py [--threads 1] [--boxes 1000] [--nms 2000]

The plain version of the overlap takes all pairs, and of each the 16 crossings of sides and the 8 corners, sorted by
angle; that of suppression fills the whole matrix of overlaps and then goes through it box by box. Rotated
pooling stands beside torchvision's compiled pooling of upright boxes. Results of both sides are compared.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from detectron2.layers import nms_rotated, roi_align, roi_align_rotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated


def milliseconds(function: Callable[[], Any], repeat: int = 5) -> float:
    function()
    best = float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def random_boxes(count: int, span: float, size: float, generator: torch.Generator) -> torch.Tensor:
    unit = torch.rand(count, 5, generator=generator)
    return unit * torch.tensor([span, span, size, size, 360]) + torch.tensor([0.0, 0, 8, 8, -180])


def corners_xy(boxes: torch.Tensor) -> torch.Tensor:
    """Corners `(N, 4, 2)` of boxes `(N, 5)`, in order."""
    x, y, width, height, angle = boxes.double().unbind(1)
    cos, sin = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()
    across = torch.stack((width * cos, -width * sin), dim=1) / 2
    down = torch.stack((height * sin, height * cos), dim=1) / 2
    center = torch.stack((x, y), dim=1)
    corners = (center - across - down, center + across - down, center + across + down, center - across + down)
    return torch.stack(corners, dim=1)


def plain_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Overlap of every pair: the area spanned by the crossings of sides and by the corners of one inside the other."""
    n, m = len(boxes1), len(boxes2)
    p, q = corners_xy(boxes1)[:, None], corners_xy(boxes2)[None]
    sides_p, sides_q = (p.roll(-1, 2) - p)[:, :, :, None], (q.roll(-1, 2) - q)[:, :, None]
    between = q[:, :, None] - p[:, :, :, None]  # (N, M, 4, 4, 2)
    determinant = _cross(sides_p, sides_q)
    t, u = _cross(between, sides_q) / determinant, _cross(between, sides_p) / determinant
    crossings = (p[:, :, :, None] + t[..., None] * sides_p).flatten(2, 3)
    crossing = ((t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)).flatten(2, 3)
    points = torch.cat((crossings, p.expand(n, m, 4, 2), q.expand(n, m, 4, 2)), dim=2)
    valid = torch.cat((crossing, _inside(p, boxes2[None, :, None]), _inside(q, boxes1[:, None, None])), dim=2)

    count = valid.sum(dim=2)
    points = torch.where(valid[..., None], points, 0.0)
    points = points - (points.sum(dim=2) / count.clamp(min=1)[..., None])[:, :, None]
    angle = torch.where(valid, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    order = angle.argsort(dim=2)
    points, valid = points.gather(2, order[..., None].expand_as(points)), valid.gather(2, order)
    points = torch.where(valid[..., None], points, points[:, :, :1])  # closes the polygon
    shared = _cross(points, points.roll(-1, 2)).sum(dim=2).abs() / 2 * (count > 2)
    area1, area2 = boxes1[:, 2].double() * boxes1[:, 3], boxes2[:, 2].double() * boxes2[:, 3]
    return (shared / (area1[:, None] + area2 - shared)).float()


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    offset_x, offset_y = (points - boxes[..., :2].double()).unbind(-1)
    cos, sin = torch.deg2rad(boxes[..., 4].double()).cos(), torch.deg2rad(boxes[..., 4].double()).sin()
    across, down = (cos * offset_x - sin * offset_y).abs(), (sin * offset_x + cos * offset_y).abs()
    return (across <= boxes[..., 2] / 2) & (down <= boxes[..., 3] / 2)


def plain_matrix(boxes1: torch.Tensor, boxes2: torch.Tensor, rows: int = 16) -> torch.Tensor:
    return torch.cat([plain_iou(part, boxes2) for part in boxes1.split(rows)])


def plain_nms(overlaps: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    order = scores.argsort(descending=True, stable=True)
    suppresses = (overlaps > threshold)[order][:, order]
    alive = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            alive &= ~suppresses[i]
    return order[kept].tolist()


def report(name: str, ours: float, other: float, other_name: str) -> None:
    print(f"{name:44s} {ours:9.1f} ms   {other_name} {other:9.1f} ms   x{other / ours:.1f}", flush=True)


def bench_overlap(count: int, generator: torch.Generator) -> None:
    for name, span in (("spread over 1000 pixels", 1000.0), ("all on one spot", 50.0)):
        a, b = random_boxes(count, span, 80.0, generator), random_boxes(count, span, 80.0, generator)
        begin = time.perf_counter()
        expected = plain_matrix(a, b)
        plain = 1e3 * (time.perf_counter() - begin)
        torch.testing.assert_close(pairwise_iou_rotated(a, b), expected, rtol=0, atol=1e-6)
        ours = milliseconds(lambda a=a, b=b: pairwise_iou_rotated(a, b))
        report(f"IoU {count} x {count}, {name}", ours, plain, "plain")


def bench_nms(count: int, generator: torch.Generator) -> None:
    scores = torch.rand(count, generator=generator)
    for name, span in (("spread over 1000 pixels", 1000.0), ("all on one spot", 50.0)):
        boxes = random_boxes(count, span, 80.0, generator)
        begin = time.perf_counter()
        overlaps = plain_matrix(boxes, boxes)
        matrix = time.perf_counter() - begin
        for threshold in (0.3, 0.7):
            begin = time.perf_counter()
            expected = plain_nms(overlaps, scores, threshold)
            plain = 1e3 * (matrix + time.perf_counter() - begin)
            assert nms_rotated(boxes, scores, threshold).tolist() == expected
            ours = milliseconds(lambda b=boxes, t=threshold: nms_rotated(b, scores, t))
            report(f"NMS {count}, {name}, IoU {threshold}", ours, plain, "plain")


def bench_pooling(generator: torch.Generator) -> None:
    features = torch.randn(1, 256, 200, 304, generator=generator, requires_grad=True)
    boxes = random_boxes(512, 800.0, 200.0, generator)
    image = torch.zeros(len(boxes), 1)
    rotated = torch.cat((image, boxes), dim=1)
    half = boxes[:, 2:4] / 2
    upright = torch.cat((image, boxes[:, :2] - half, boxes[:, :2] + half), dim=1)
    for ratio in (2, 0):

        def ours(ratio: int = ratio) -> torch.Tensor:
            return roi_align_rotated(features, rotated, 7, 0.25, ratio)

        def compiled(ratio: int = ratio) -> torch.Tensor:
            return roi_align(features, upright, 7, 0.25, ratio, True)

        with torch.no_grad():
            forward = [milliseconds(f, repeat=3) for f in (ours, compiled)]
        both = [milliseconds(lambda f=f: f().sum().backward(), repeat=2) for f in (ours, compiled)]
        report(f"pool 512 x 256 x 7 x 7, ratio {ratio}, forward", *forward, "upright, compiled")
        report(f"pool 512 x 256 x 7 x 7, ratio {ratio}, and backward", *both, "upright, compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--nms", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; PyTorch {torch.__version__}")
    generator = torch.Generator().manual_seed(0)
    bench_overlap(args.boxes, generator)
    bench_nms(args.nms, generator)
    bench_pooling(generator)


if __name__ == "__main__":
    main()
