"""Labelled points in the frame of the regions that are trained.

`R` regions over the whole batch (`Ri` in image i), `P` points of each.
"""

import torch

from detectron2.layers import cat
from detectron2.structures import Instances

__all__ = ["get_point_coords_from_point_annotation"]


@torch.no_grad()
def get_point_coords_from_point_annotation(instances: list[Instances]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the labelled points of the matched objects lie in each region.

    Args:
        instances: regions of each image, `R` in all, with `proposal_boxes`, `gt_point_coords` `Tensor[Ri, Pi, 2]` in
            pixels and `gt_point_labels` `Tensor[Ri, Pi]`. The last two may be absent on images without regions.

    Returns:
        `Tensor[R, P, 2]`, `(x, y)` as shares of the region's box, and labels `Tensor[R, P]`: -1 for points outside of
        the box, of which the region's mask says nothing (section 3.2), and where an image has fewer points than others.
    """
    nonempty = [x for x in instances if len(x) > 0]
    if not nonempty:
        device = instances[0].proposal_boxes.device if instances else None
        return torch.zeros(0, 0, 2, device=device), torch.zeros(0, 0, dtype=torch.int64, device=device)
    most = max(x.gt_point_labels.shape[1] for x in nonempty)
    all_coords, all_labels = [], []
    for per_image in nonempty:
        boxes_xyxy = per_image.proposal_boxes.tensor.unsqueeze(1)
        corner = boxes_xyxy[..., :2]
        size_wh = (boxes_xyxy[..., 2:] - corner).clamp(min=torch.finfo(boxes_xyxy.dtype).eps)
        coords = (per_image.gt_point_coords.to(boxes_xyxy) - corner) / size_wh
        outside = ((coords < 0) | (coords > 1)).any(dim=2)
        labels = per_image.gt_point_labels.masked_fill(outside, -1)
        missing = most - labels.shape[1]
        all_coords.append(torch.nn.functional.pad(coords, (0, 0, 0, missing)))
        all_labels.append(torch.nn.functional.pad(labels, (0, missing), value=-1))
    return cat(all_coords), cat(all_labels)
