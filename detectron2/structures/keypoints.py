"""Keypoints of objects, and the heatmaps that a network learns and predicts them as.

Letters: `N` instances or regions, `K` keypoints of an instance, `S` side of a heatmap in cells. Coordinates are in
pixels, continuous: a cell `d` of a heatmap covers `[d, d + 1]` and its centre is `d + 0.5` (Heckbert 1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._rows import cat_rows, rows_of

__all__ = ["Keypoints", "heatmaps_to_keypoints"]

# Numbers of all enlarged heatmaps that one pass on an accelerator may hold.
_PASS_ELEMENTS = 1 << 27


class Keypoints:
    """Keypoints of `N` instances.

    The third number of a keypoint is its visibility as in COCO: 0 not labeled (then `x = y = 0`), 1 labeled but
    hidden, 2 visible.

    Args:
        keypoints: `(N, K, 3)` of `(x, y, visibility)`: a tensor, an array or nested lists.

    Attributes:
        tensor: the keypoints, float32 `(N, K, 3)`.

    Raises:
        ValueError: the shape is not `(N, K, 3)`.

    Example:
        >>> from detectron2.structures import Keypoints
        >>> keypoints = Keypoints([[[12.0, 30.0, 2], [0.0, 0.0, 0]]])
        >>> keypoints
        Keypoints(num_instances=1, num_keypoints=2)
        >>> cells, valid = keypoints.to_heatmap(torch.tensor([[10.0, 20.0, 20.0, 40.0]]), heatmap_size=10)
        >>> cells, valid
        (tensor([[52,  0]]), tensor([[1, 0]]))
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]):
        values = torch.as_tensor(keypoints, dtype=torch.float32)
        if values.dim() != 3 or values.shape[2] != 3:
            raise ValueError(
                "Keypoints expects (N, K, 3): for every instance and keypoint x, y and visibility; "
                f"got shape {tuple(values.shape)}."
            )
        self.tensor = values

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        """Apply `Tensor.to` with these arguments, and return new keypoints."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the keypoints are stored."""
        return self.tensor.device

    def to_heatmap(self, boxes: torch.Tensor, heatmap_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the heatmap cell of every keypoint, as a training target (Mask R-CNN, section 5).

        Args:
            boxes: `(N, 4)`, `(x1, y1, x2, y2)`: the region that the heatmap of each instance covers.
            heatmap_size: cells along each side, `S`.

        Returns:
            The cell of each keypoint, `y * S + x`, int64 `(N, K)`; and whether there is one, int64 `(N, K)`:
            1 for a labeled keypoint inside its box. The cell is 0 where there is none.

        Raises:
            ValueError: there are not as many boxes as instances.
        """
        if boxes.shape[0] != len(self):
            raise ValueError(f"to_heatmap needs one box for each instance, got {boxes.shape[0]} for {len(self)}.")
        top_left, bottom_right = boxes[:, None, :2], boxes[:, None, 2:]
        xy = self.tensor[..., :2]
        cell_xy = ((xy - top_left) * (heatmap_size / (bottom_right - top_left))).floor().long()
        # A point on the right or lower edge of the box belongs to the last cell.
        cell_xy = torch.where(xy == bottom_right, heatmap_size - 1, cell_xy)
        inside = ((cell_xy >= 0) & (cell_xy < heatmap_size)).all(dim=-1)
        valid = (inside & (self.tensor[..., 2] > 0)).long()
        return (cell_xy[..., 1] * heatmap_size + cell_xy[..., 0]) * valid, valid

    def __getitem__(self, item: Any) -> Keypoints:
        """Select instances by an integer (the result holds one), a slice, or a vector of bools or integers."""
        return Keypoints(self.tensor[rows_of(item, self.tensor.shape[0], "instances")])

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)}, num_keypoints={self.tensor.shape[1]})"

    @staticmethod
    def cat(keypoints_list: Sequence[Keypoints]) -> Keypoints:
        """Concatenate one or more `Keypoints`, in order."""
        if len(keypoints_list) == 0:
            raise ValueError("Keypoints.cat needs at least one Keypoints: without any their number is not known.")
        for entry in keypoints_list:
            if not isinstance(entry, Keypoints):
                raise TypeError(f"Keypoints.cat expects a list of Keypoints, found {type(entry).__name__} in it.")
        return Keypoints(cat_rows([k.tensor for k in keypoints_list], "keypoints of instances"))


@torch.no_grad()
def heatmaps_to_keypoints(maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """Find the peak of every heatmap after enlarging it bicubically to the size of its region.

    Args:
        maps: logits `(N, K, S, S)`.
        rois: `(N, 4)`, `(x1, y1, x2, y2)`.

    Returns:
        `(N, K, 4)` of `(x, y, logit, score)`. The position is the centre of a cell of the enlarged map; the score
        is the probability of the peak under a softmax over the `S x S` logits, so that it does not depend on the
        size of the region.

    Example:
        >>> from detectron2.structures import heatmaps_to_keypoints
        >>> maps = torch.zeros(1, 1, 5, 5)
        >>> maps[0, 0, 1, 3] = 10.0
        >>> heatmaps_to_keypoints(maps, torch.tensor([[100.0, 200.0, 105.0, 205.0]]))[0, 0, :2]
        tensor([103.5000, 201.5000])
    """
    maps = maps.detach().float()
    with torch.autocast(maps.device.type, enabled=False):  # half precision would move the peak
        return _peaks(maps, rois, _PASS_ELEMENTS)


@torch.jit.script_if_tracing  # as many passes as the regions of each image need
def _peaks(maps: torch.Tensor, rois: torch.Tensor, pass_elements: int) -> torch.Tensor:
    n, k = maps.shape[0], maps.shape[1]
    if n == 0:
        return maps.new_zeros((0, k, 4))
    size_wh = (rois[:, 2:] - rois[:, :2]).float().clamp(min=1)
    cells_wh = size_wh.ceil()
    if maps.device.type == "cpu":
        per_pass, max_w, max_h = 32, 0, 0  # regions whose weights are computed together
    else:  # as many regions at once as memory allows
        largest: list[float] = cells_wh.amax(0).tolist()
        max_w, max_h = int(largest[0]), int(largest[1])
        per_pass = max(1, pass_elements // (k * max_h * max_w))
    cell_xy, logit = torch.empty((n, k, 2), device=maps.device), torch.empty((n, k), device=maps.device)
    for start in range(0, n, per_pass):
        part, part_wh = maps[start : start + per_pass], cells_wh[start : start + per_pass]
        if maps.device.type == "cpu":
            found = _find_peaks_one_by_one(part, part_wh)
        else:
            found = _find_peaks_together(part, part_wh, max_w, max_h)
        cell_xy[start : start + per_pass], logit[start : start + per_pass] = found[0], found[1]
    xy = (cell_xy + 0.5) * (size_wh / cells_wh)[:, None, :] + rois[:, None, :2]
    score = 1 / (maps - logit[:, :, None, None]).exp_().sum(dim=(2, 3))
    return torch.cat([xy, logit[..., None], score[..., None]], dim=2)


def _find_peaks_one_by_one(maps: torch.Tensor, cells_wh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cell `(x, y)` and value of the highest point of each map, enlarged to `cells_wh`; no region pays for others."""
    k, s, t = maps.shape[1], maps.shape[2], maps.shape[3]
    widths: list[int] = cells_wh[:, 0].long().tolist()
    heights: list[int] = cells_wh[:, 1].long().tolist()
    columns = _cubic_weights(t, _positions(t, cells_wh[:, 0])).split(widths)
    rows = _cubic_weights(s, _positions(s, cells_wh[:, 1])).split(heights)
    xs: list[torch.Tensor] = []
    ys: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    for i in range(len(widths)):
        tall = rows[i] @ maps[i].transpose(0, 1).reshape(s, k * t)
        large = (tall.view(-1, t) @ columns[i].t()).view(heights[i], k, widths[i])
        # The highest of each row, the first row that has it, and where: half the time of the place in the whole.
        logit, y = large.amax(dim=2).max(dim=0)
        xs.append(large[y, torch.arange(k)].max(dim=1)[1])
        ys.append(y)
        logits.append(logit)
    return torch.stack([torch.stack(xs), torch.stack(ys)], dim=2).to(maps.dtype), torch.stack(logits)


def _positions(size: int, new_size: torch.Tensor) -> torch.Tensor:
    """Where the centres of the new cells of all regions, one region after the other, lie among the old cells."""
    counts = new_size.long()
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    number = torch.arange(first.shape[0], device=new_size.device) - first
    return (number + 0.5) * (size / new_size).repeat_interleave(counts) - 0.5


def _find_peaks_together(
    maps: torch.Tensor, cells_wh: torch.Tensor, max_w: int, max_h: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with all maps enlarged to one size, of which a part counts."""
    n, _, s, t = maps.shape
    y, x = torch.arange(max_h, device=maps.device), torch.arange(max_w, device=maps.device)
    rows = _cubic_weights(s, ((y + 0.5) * (s / cells_wh[:, 1:]) - 0.5).flatten()).view(n, max_h, s)
    columns = _cubic_weights(t, ((x + 0.5) * (t / cells_wh[:, :1]) - 0.5).flatten()).view(n, max_w, t)
    large = torch.einsum("nhs,nkst,nwt->nkhw", rows, maps, columns)
    inside = (y[:, None] < cells_wh[:, 1, None, None]) & (x < cells_wh[:, 0, None, None])
    large = large.masked_fill(~inside[:, None], -torch.inf)
    logit, index = large.flatten(2).max(dim=2)
    return torch.stack([index % max_w, index // max_w], dim=2).to(maps.dtype), logit


def _cubic_weights(size: int, position: torch.Tensor) -> torch.Tensor:
    """Weights `(M, size)` of bicubic interpolation (Keys 1981, a = -0.75) at `M` places, with the edges repeated."""
    first = position.floor()
    taps = torch.arange(-1, 3, device=position.device)
    distance = (position[:, None] - (first[:, None] + taps)).abs()
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = torch.where(distance <= 1, near, far)
    index = (first[:, None].long() + taps).clamp(0, size - 1)
    return weights.new_zeros((index.shape[0], size)).scatter_add_(1, index, weights)
