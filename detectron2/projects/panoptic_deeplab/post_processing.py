"""From Panoptic-DeepLab's predictions to a panoptic map (arXiv:1911.10194, section 3).

Letters: `H` and `W` height and width of the output in pixels, `K` centres. Points and offsets are `(y, x)` in pixels of
the output; the centre of the pixel in row i and column j has the coordinates (i, j). Nothing here loops over pixels,
instances or classes.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F

from detectron2.structures import Boxes, Instances
from detectron2.utils.tracing import whole_in_trace

__all__ = [
    "find_instance_center",
    "get_instance_segmentation",
    "get_panoptic_segmentation",
    "group_pixels",
    "instances_of_panoptic",
    "merge_semantic_and_instance",
]


# Distances between pixels and centres that are computed at a time: on a CPU 2 MiB of them, which a cache can hold (five
# times as fast as passing them through memory); elsewhere 128 MiB, to keep the device busy.
_DISTANCES_ON_CPU, _DISTANCES_ELSEWHERE = 1 << 18, 1 << 24


def find_instance_center(
    center_heatmap: torch.Tensor, threshold: float = 0.1, nms_kernel: int = 3, top_k: int | None = None
) -> torch.Tensor:
    """The peaks of a heatmap `Tensor[1, H, W]`: int64 `Tensor[K, 2]`, in the order of rows, then columns.

    A peak is above the threshold and the highest value of a square with a side of `nms_kernel` pixels, an odd number;
    of more than `top_k` peaks the highest are kept.
    """
    if nms_kernel < 1 or nms_kernel % 2 == 0:
        raise ValueError(f"nms_kernel (MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL) must be odd and positive, got {nms_kernel}")
    heatmap = _expect_map("center_heatmap", center_heatmap, 1)
    # A maximum over a square is one over rows, then over columns.
    half = nms_kernel // 2
    highest = F.max_pool2d(heatmap[None], (1, nms_kernel), stride=1, padding=(0, half))
    highest = F.max_pool2d(highest, (nms_kernel, 1), stride=1, padding=(half, 0))[0]
    peaks = torch.nonzero(((heatmap == highest) & (heatmap > max(threshold, 0.0)))[0])
    if top_k is not None and len(peaks) > top_k:
        best = heatmap[0, peaks[:, 0], peaks[:, 1]].topk(top_k).indices
        peaks = peaks[best.sort().values]
    return peaks


def group_pixels(center_points: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The number, 1, 2 … K, of the centre nearest to where the offset of each pixel points: int64 `Tensor[1, H, W]`.

    `center_points` are `Tensor[K, 2]`, at least one, and offsets `Tensor[2, H, W]`.
    """
    _expect_map("offsets", offsets, 2)
    if len(center_points) == 0:
        raise ValueError("group_pixels needs at least one centre")
    height, width = offsets.shape[1:]
    rows = torch.arange(height, device=offsets.device, dtype=offsets.dtype)
    columns = torch.arange(width, device=offsets.device, dtype=offsets.dtype)
    points = torch.stack([offsets[0] + rows[:, None], offsets[1] + columns], dim=-1).flatten(0, 1)
    return (_nearest(points, center_points) + 1).view(1, height, width)


def _nearest(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Index of the centre `Tensor[K, 2]` nearest to each point `Tensor[P, 2]`; int64 `Tensor[P]`."""
    # |p - c|^2 = |p|^2 - 2pc + |c|^2, of which the first does not depend on the centre. In single precision the digits
    # that tell neighbours apart would be lost in a large image.
    points, centers = wide(points), wide(centers)
    factors, constants = -2 * centers.t(), centers.square().sum(dim=1)
    limit = _DISTANCES_ON_CPU if points.device.type == "cpu" else _DISTANCES_ELSEWHERE
    parts = points.split(max(1, limit // len(centers)))
    return torch.cat([torch.addmm(constants, part, factors).argmin(dim=1) for part in parts])


def wide(x: torch.Tensor) -> torch.Tensor:
    """In double precision, where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def get_instance_segmentation(
    sem_seg: torch.Tensor,
    center_heatmap: torch.Tensor,
    offsets: torch.Tensor,
    thing_seg: torch.Tensor,
    thing_ids: Collection[int],
    threshold: float = 0.1,
    nms_kernel: int = 3,
    top_k: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Group the pixels of things into instances, whatever their class.

    The arguments are those of `get_panoptic_segmentation`; `thing_seg` is its `foreground_mask`. The result is int64
    `Tensor[1, H, W]` of 1, 2 … K, 0 for pixels of stuff; and the centres, `Tensor[1, K, 2]`.
    """
    centers = find_instance_center(center_heatmap, threshold, nms_kernel, top_k)
    instances = torch.zeros_like(sem_seg, dtype=torch.int64)
    if len(centers):
        if thing_seg is None:
            thing_seg = _is_any_of(sem_seg, thing_ids)
        # Mostly far fewer than all pixels, and distances are what costs here.
        y, x = torch.nonzero(thing_seg[0], as_tuple=True)
        points = offsets[:, y, x].t() + torch.stack([y, x], dim=1)
        instances[0, y, x] = _nearest(points, centers) + 1
    return instances, centers[None]


def merge_semantic_and_instance(
    sem_seg: torch.Tensor,
    ins_seg: torch.Tensor,
    semantic_thing_seg: torch.Tensor,
    label_divisor: int,
    thing_ids: Collection[int],
    stuff_area: int,
    void_label: int,
) -> torch.Tensor:
    """Merge labels and instances: an instance takes the most frequent label of its pixels, stuff the rest.

    All maps are `Tensor[1, H, W]`: `ins_seg` is the instance of every pixel, 0 for none, and `semantic_thing_seg` is
    nonzero where pixels can belong to one. Other arguments are those of `get_panoptic_segmentation`. The result, of the
    type of `sem_seg`, is `label * label_divisor`, for the i-th instance of a label plus i (from 1 on, in their order).
    """
    num_labels = int(sem_seg.max()) + 1 if sem_seg.numel() else 1
    is_thing_pixel = (ins_seg > 0) & (semantic_thing_seg > 0)
    instances = torch.where(is_thing_pixel, ins_seg, 0).long()
    # Rows: instances, the first of them "none"; columns: labels.
    num_rows = int(instances.max()) + 1 if instances.numel() else 1
    pair = (instances * num_labels + sem_seg).flatten()
    counts = torch.bincount(pair, minlength=num_rows * num_labels).view(num_rows, num_labels)
    most, label_of = counts.max(dim=1)

    exists = most > 0
    exists[0] = False
    one_hot = F.one_hot(label_of, num_labels) * exists[:, None]
    number = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1)  # 1, 2 … among the instances of a label
    id_of_instance = torch.where(exists, label_of * label_divisor + number, void_label)

    free_labels = sem_seg[ins_seg == 0]
    left = torch.bincount(free_labels, minlength=num_labels)
    labels = torch.arange(num_labels, device=sem_seg.device)
    stays = (left >= stuff_area) & (left > 0) & ~_is_any_of(labels, thing_ids)
    id_of_label = torch.where(stays, labels * label_divisor, void_label)
    panoptic = torch.where(is_thing_pixel, id_of_instance[instances], void_label)
    return torch.where(ins_seg == 0, id_of_label[sem_seg.long()], panoptic).to(sem_seg.dtype)


@whole_in_trace(
    "panoptic_deeplab_map(Tensor sem_seg, Tensor center_heatmap, Tensor offsets, int[] thing_ids, int label_divisor, "
    "int stuff_area, int void_label, float threshold=0.1, int nms_kernel=7, int top_k=200, "
    "Tensor? foreground_mask=None) -> (Tensor, Tensor)"
)
def get_panoptic_segmentation(
    sem_seg: torch.Tensor,
    center_heatmap: torch.Tensor,
    offsets: torch.Tensor,
    thing_ids: Collection[int],
    label_divisor: int,
    stuff_area: int,
    void_label: int,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int = 200,
    foreground_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the predictions for one image into a panoptic map.

    Args:
        sem_seg: integer `Tensor[1, H, W]`, the label of every pixel.
        center_heatmap: `Tensor[1, H, W]`.
        offsets: `Tensor[2, H, W]`, from every pixel to the centre of its instance.
        thing_ids: labels of things.
        label_divisor: more than the instances of one class can be.
        stuff_area: stuff of fewer pixels is dropped.
        void_label: for pixels that belong to nothing.
        threshold: centres have a higher value in the heatmap.
        nms_kernel: side in pixels, odd, of the square in which a centre is the highest value.
        top_k: number of centres to use at most.
        foreground_mask: `Tensor[1, H, W]`, nonzero for pixels of things; by default those with a thing's label.

    Returns:
        int64 `Tensor[1, H, W]`, see `merge_semantic_and_instance`; and the centres, `Tensor[1, K, 2]`.

    Raises:
        ValueError: a map has another shape.
    """
    _expect_map("sem_seg", sem_seg, 1)
    _expect_map("center_heatmap", center_heatmap, 1)
    _expect_map("offsets", offsets, 2)
    if foreground_mask is not None:
        things = _expect_map("foreground_mask", foreground_mask, 1)
    else:
        things = _is_any_of(sem_seg, thing_ids)
    instances, centers = get_instance_segmentation(
        sem_seg, center_heatmap, offsets, things, thing_ids, threshold, nms_kernel, top_k
    )
    panoptic = merge_semantic_and_instance(sem_seg, instances, things, label_divisor, thing_ids, stuff_area, void_label)
    return panoptic, centers


def _is_any_of(labels: torch.Tensor, ids: Collection[int]) -> torch.Tensor:
    return torch.isin(labels, torch.tensor(sorted(ids), dtype=labels.dtype, device=labels.device))


def _expect_map(name: str, value: torch.Tensor, channels: int) -> torch.Tensor:
    if value.dim() != 3 or value.shape[0] != channels:
        raise ValueError(
            f"{name} must be the map of one image, of shape ({channels}, height, width); got {tuple(value.shape)}"
        )
    return value


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
    result = Instances((panoptic.shape[0], panoptic.shape[1]))
    fields = _things(panoptic, scores, center_heatmap, list(thing_ids), label_divisor)
    result.pred_classes, result.pred_masks, boxes, result.scores = fields
    result.pred_boxes = Boxes(boxes)
    return result


@whole_in_trace(
    "panoptic_deeplab_things(Tensor panoptic, Tensor scores, Tensor center_heatmap, int[] thing_ids, "
    "int label_divisor) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _things(
    panoptic: torch.Tensor,
    scores: torch.Tensor,
    center_heatmap: torch.Tensor,
    thing_ids: list[int],
    label_divisor: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Classes, masks, boxes and scores of things; see `instances_of_panoptic`."""
    ids = torch.unique(panoptic)
    classes = ids.div(label_divisor, rounding_mode="floor")
    is_thing = torch.isin(classes, torch.tensor(sorted(thing_ids), dtype=ids.dtype, device=ids.device))
    ids, classes = ids[is_thing & (ids >= 0)], classes[is_thing & (ids >= 0)]

    y, x = torch.nonzero(torch.isin(panoptic, ids), as_tuple=True)
    row = torch.searchsorted(ids, panoptic[y, x])

    # Things cover a small part of all masks together; comparing the map with every id would read and write all of it.
    masks = torch.zeros(len(ids), *panoptic.shape, dtype=torch.bool, device=panoptic.device)
    masks[row, y, x] = True
    boxes = _boxes(row, y, x, len(ids))
    return classes, masks, boxes, _scores(row, y, x, scores[:, y, x].float(), center_heatmap, classes)


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
