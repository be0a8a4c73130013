"""Instances, with scores and boxes, from a panoptic map.

Letters: `K` classes, `D` instances, `H` and `W` height and width in pixels.
"""

from collections.abc import Collection

import torch

from detectron2.structures import Boxes, Instances

from .post_processing import wide

__all__ = ["instances_of_panoptic"]


def instances_of_panoptic(
    panoptic: torch.Tensor,
    scores: torch.Tensor,
    center_heatmap: torch.Tensor,
    thing_ids: Collection[int],
    label_divisor: int,
) -> Instances:
    """Take the things out of a panoptic map.

    The score of an instance is the mean probability of its class over its pixels, times the heatmap of centres at its
    centre of mass (https://arxiv.org/abs/1911.10194, section 3).

    Args:
        panoptic: int64 `Tensor[H, W]` of `label * label_divisor + number`, negative for none.
        scores: `Tensor[K, H, W]`, unnormalised.
        center_heatmap: `Tensor[H, W]`.
        thing_ids: labels of things.
        label_divisor: see `panoptic`.

    Returns:
        Instances in the order of their ids, with `pred_classes`, `pred_masks` (boolean `Tensor[D, H, W]`), `pred_boxes`
        and `scores`.
    """
    ids = torch.unique(panoptic)
    classes = ids.div(label_divisor, rounding_mode="floor")
    is_thing = torch.isin(classes, torch.tensor(sorted(thing_ids), dtype=ids.dtype, device=ids.device))
    ids, classes = ids[is_thing & (ids >= 0)], classes[is_thing & (ids >= 0)]

    y, x = torch.nonzero(torch.isin(panoptic, ids), as_tuple=True)
    row = torch.searchsorted(ids, panoptic[y, x])

    result = Instances((panoptic.shape[0], panoptic.shape[1]))
    result.pred_classes = classes
    # Things cover a small part of all masks together; comparing the map with every id would read and write all of it.
    result.pred_masks = torch.zeros(len(ids), *panoptic.shape, dtype=torch.bool, device=panoptic.device)
    result.pred_masks[row, y, x] = True
    result.pred_boxes = Boxes(_boxes(row, y, x, len(ids)))
    result.scores = _scores(row, y, x, scores[:, y, x].float(), center_heatmap, classes)
    return result


def _boxes(row: torch.Tensor, y: torch.Tensor, x: torch.Tensor, count: int) -> torch.Tensor:
    """The tightest boxes `Tensor[D, 4]`, (x1, y1, x2, y2), around the pixels of each row."""
    corners = torch.stack([-x, -y, x + 1, y + 1])
    extreme = corners.new_zeros(4, count).scatter_reduce(
        1, row.expand(4, -1), corners, reduce="amax", include_self=False
    )
    return torch.stack([-extreme[0], -extreme[1], extreme[2], extreme[3]], dim=1).float()


def _scores(
    row: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    at_pixels: torch.Tensor,
    center_heatmap: torch.Tensor,
    classes: torch.Tensor,
) -> torch.Tensor:
    probability = torch.exp(at_pixels.gather(0, classes[row][None])[0] - at_pixels.logsumexp(dim=0))
    # Sums of thousands of coordinates need double precision.
    values = wide(torch.stack([torch.ones_like(probability), y, x, probability]))
    count, sum_y, sum_x, sum_probability = values.new_zeros(4, len(classes)).index_add_(1, row, values)
    at_center = center_heatmap[(sum_y / count).long(), (sum_x / count).long()]
    return (sum_probability / count).float() * at_center.float()
