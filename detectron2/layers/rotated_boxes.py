"""How much rotated boxes overlap: exact, vectorised, and only for pairs that can.

A box is `(x_center, y_center, width, height, angle)`: any one unit, continuous coordinates, y down, degrees,
counter-clockwise. Letters: `N`, `M` boxes, `P` pairs. A box with a side that is not positive, or with a number that is
not finite, covers nothing.

Boxes in float64 are taken as they are. Boxes in float32 have their corners, as seen from their own centre, in float32,
as in the published operators, so that the results are the same: a sliver of 0.001 x 6 at 45 degrees then overlaps
itself by 1.0001. For a box whose sides are as 1 to 100 this changes the IoU by about 1e-5, for others by less.
The overlap of these outlines is computed in float64.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

__all__ = ["pairwise_iou_rotated"]

# Work is cut into pieces of this many elements: enough to hide the cost of a call, and small enough that the
# intermediate results of a piece stay in the processor's cache, or take little of an accelerator's memory.
_PAIRS_AT_ONCE = {"cpu": 1 << 14}
_PAIRS_AT_ONCE_ELSEWHERE = 1 << 20
_TESTS_AT_ONCE = 1 << 22
# An overlap below this share of the smaller box is rounding: boxes that touch.
_TOUCHING = 1e-12
# An edge that runs by less than this, in sides of the other box, is upright.
_UPRIGHT = 1e-100


class BoxTable(NamedTuple):
    """`N` boxes in the form that overlaps are computed from."""

    # float64 (6, N): x and y of the centre, of the vector u from there to the middle of the right edge, and of the
    # vector v from there to the middle of the lower edge.
    shape: torch.Tensor
    area: torch.Tensor  # float64 (N,)
    bounds_xyxy: torch.Tensor  # float32 (4, N), rounded outwards; those of empty boxes meet nothing

    def rows(self, index: torch.Tensor | slice) -> "BoxTable":
        """The boxes at `index`."""
        return BoxTable(self.shape[:, index], self.area[index], self.bounds_xyxy[:, index])


def as_computable(boxes: torch.Tensor) -> torch.Tensor:
    """`boxes` without its history, on a device that has float64: Apple's has not, so from there they go to the CPU."""
    boxes = boxes.detach()
    return boxes.cpu() if boxes.device.type == "mps" else boxes


def box_table(boxes: torch.Tensor) -> BoxTable:
    """Prepare boxes `(N, 5)`."""
    single = boxes.dtype != torch.float64
    boxes = boxes.double()
    usable = torch.isfinite(boxes).all(dim=1) & (boxes[:, 2:4] > 0).all(dim=1)
    x, y, width, height, degrees = torch.where(usable[:, None], boxes, 0.0).unbind(1)
    # Whole turns first: the cosine of 1e9 degrees in radians would have lost seven digits.
    theta = torch.deg2rad(torch.fmod(degrees, 360.0))
    cos, sin = theta.cos(), theta.sin()
    u = torch.stack((cos, -sin)) * (width / 2)
    v = torch.stack((sin, cos)) * (height / 2)
    if single:
        lower_right, upper_right = (v + u).float().double(), (u - v).float().double()
        u, v = (lower_right + upper_right) / 2, (lower_right - upper_right) / 2
        usable &= _cross(u, v) > 0  # else thinner than the distance between two numbers
    reach = u.abs() + v.abs()
    center = torch.stack((x, y))
    low, high = (center - reach).float(), (center + reach).float()
    bounds = torch.cat(
        (
            torch.nextafter(low, low.new_full((), -math.inf)).masked_fill_(~usable, math.inf),
            torch.nextafter(high, high.new_full((), math.inf)).masked_fill_(~usable, -math.inf),
        )
    )
    return BoxTable(torch.cat((center, u, v)), width * height, bounds)


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The third component of the cross product of vectors `(2, ...)`."""
    return a[0] * b[1] - a[1] * b[0]


def candidate_pairs(
    first: BoxTable,
    second: BoxTable,
    groups: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    only_later: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield indices `(P,)` of the pairs whose axis-aligned bounds overlap, some rows of `first` at a time.

    With groups, `(N,)` and `(M,)`, only boxes of one group make a pair; with `only_later`, only those in which the
    second index is greater than the first.
    """
    num_rows, num_columns = first.area.shape[0], second.area.shape[0]
    if num_rows == 0 or num_columns == 0:
        return
    rows_at_once = max(1, _TESTS_AT_ONCE // num_columns)
    x1, y1, x2, y2 = second.bounds_xyxy.unbind(0)
    for start in range(0, num_rows, rows_at_once):
        left, top, right, bottom = first.bounds_xyxy[:, start : start + rows_at_once, None].unbind(0)
        near = (left < x2) & (x1 < right)
        near &= top < y2
        near &= y1 < bottom
        if groups is not None:
            near &= groups[0][start : start + rows_at_once, None] == groups[1]
        if only_later:
            near = near.triu_(diagonal=start + 1)
        flat = near.view(-1).nonzero().squeeze(1)
        row = flat.div(num_columns, rounding_mode="floor")
        yield row + start, flat - row * num_columns


def _intersection_area(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Areas `(P,)` of the intersections of boxes `first` and `second`, columns of `BoxTable.shape`, float64 `(6, P)`.

    In coordinates in which the first box is the square `[0, 2] x [0, 2]` (its u and v are the units), the area is the
    integral over x in `[0, 2]` of `clamp(upper(x), 0, 2) - clamp(lower(x), 0, 2)`, where `upper` and `lower` bound the
    second box: clamping is monotonic, so the difference is the length of what a vertical line has in both. Along the
    outline of the second box this is the sum over its four edges of the signed integral of `clamp(y, 0, 2) dx`.
    Nothing is sorted and no case is told apart, so the result depends continuously on the boxes: identical, touching
    and nested ones are as exact as others.
    """
    u1, v1 = first[2:4], first[4:6]
    unit = _cross(u1, v1)
    middle = second[0:2] - first[0:2]
    u2, v2 = second[2:4], second[4:6]
    dx, ux, vx = (_cross(vector, v1).div_(unit) for vector in (middle, u2, v2))
    dy, uy, vy = (_cross(u1, vector).div_(unit) for vector in (middle, u2, v2))
    dx, dy = dx.add_(1), dy.add_(1)

    # Corners v+u, v-u, -v-u, -v+u. Edge i, from corner i to the next, has its middle at v, -u, -v, u.
    half_x = torch.stack((vx + ux, vx - ux))
    corner_x = torch.cat((half_x, -half_x)).add_(dx).clamp_(0, 2)
    middle_x, middle_y = torch.stack((vx, -ux)), torch.stack((vy, -uy))
    middle_x = torch.cat((middle_x, -middle_x)).add_(dx)
    middle_y = torch.cat((middle_y, -middle_y)).add_(dy)
    # An upright edge has no slope, but no extent in x either: any finite number will do.
    slope = torch.stack(
        (uy / torch.where(ux.abs() < _UPRIGHT, 1.0, ux), vy / torch.where(vx.abs() < _UPRIGHT, 1.0, vx))
    )
    slope = slope.repeat(2, 1)

    run = corner_x.roll(-1, 0).sub_(corner_x)
    rise = slope * run
    start_y = corner_x.sub_(middle_x).mul_(slope).add_(middle_y)
    end_y = start_y + rise
    clamped_start = start_y.clamp(0, 2)
    clamped_end = end_y.clamp_(0, 2)
    # With sums s of the two ends and rises r, all of y and of clamped y, the mean of clamp(y) over an edge is
    # (s_clamped + (s_y - s_clamped) * r_clamped / r_y) / 2.
    share = (clamped_end - clamped_start).div_(rise).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # level: 0 / 0
    both = clamped_start.add_(clamped_end)
    mean2 = start_y.mul_(2).add_(rise).sub_(both).mul_(share).add_(both)
    return mean2.mul_(run).sum(0).abs_().div_(2).mul_(unit)


def _iou_of(first: BoxTable, second: BoxTable, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    area1, area2 = first.area[row], second.area[column]
    overlap = _intersection_area(first.shape.index_select(1, row), second.shape.index_select(1, column))
    overlap.masked_fill_(overlap <= _TOUCHING * torch.minimum(area1, area2), 0.0)
    return overlap / area1.add_(area2).sub_(overlap)


def paired_iou(first: BoxTable, second: BoxTable, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """IoU of box `row[p]` of `first` and box `column[p]` of `second`, float64 `(P,)`; none of them empty."""
    at_once = _PAIRS_AT_ONCE.get(row.device.type, _PAIRS_AT_ONCE_ELSEWHERE)
    if row.shape[0] <= at_once:
        return _iou_of(first, second, row, column)
    pieces = zip(row.split(at_once), column.split(at_once), strict=True)
    return torch.cat([_iou_of(first, second, r, c) for r, c in pieces])


def pairwise_iou_rotated(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of rotated boxes.

    The areas are exact (computed in float64), for any angle and for boxes that touch, coincide or contain each other.
    Angles matter only by the region they make a box cover: turned by 180 degrees, a box has an IoU of 1 with itself.
    No gradient flows.

    Args:
        boxes1: `(N, 5)`, rows of `(x_center, y_center, width, height, angle)`; angle in degrees,
            counter-clockwise; the rest in any one unit.
        boxes2: `(M, 5)`.

    Returns:
        `(N, M)`, float32, or float64 if both inputs are; 0 for boxes without area or with numbers that are not
        finite.

    Raises:
        ValueError: the boxes are not of five columns.

    Example:
        >>> from detectron2.layers.rotated_boxes import pairwise_iou_rotated
        >>> boxes = torch.tensor([[5.0, 5, 4, 2, 0], [5, 5, 4, 2, 180], [5, 5, 4, 2, 90]])
        >>> pairwise_iou_rotated(boxes[:1], boxes)
        tensor([[1.0000, 1.0000, 0.3333]])
    """
    for boxes in (boxes1, boxes2):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(
                "pairwise_iou_rotated expects boxes of shape (N, 5), rows of (x_center, y_center, width, height, "
                f"angle); got {tuple(boxes.shape)}."
            )
    dtype = torch.float64 if boxes1.dtype == torch.float64 and boxes2.dtype == torch.float64 else torch.float32
    device = boxes1.device
    boxes1, boxes2 = as_computable(boxes1), as_computable(boxes2)
    first, second = box_table(boxes1), box_table(boxes2)
    iou = torch.zeros((boxes1.shape[0], boxes2.shape[0]), dtype=dtype, device=boxes1.device)
    for row, column in candidate_pairs(first, second):
        iou[row, column] = paired_iou(first, second, row, column).to(dtype)
    if dtype == torch.float64:
        iou.clamp_(max=1)
    return iou.to(device)
