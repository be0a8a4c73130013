"""Anchors and proposals with fixed shapes.

Letters: `N` images, `A` anchors per cell, `R_i` anchors of level i, `R` proposals that an image may have.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, TorchvisionAnchorGenerator
from detectron2.modeling.proposal_generator import RPN, RRPN

from .graph import GraphPart, NotExportableError, graph_part, register_exportable
from .selection import best_of_levels, clip_boxes, top_k

__all__ = ["AnchorsGraph", "Proposals", "RPNGraph", "RotatedGraph", "TorchvisionAnchorsGraph"]


class Proposals(NamedTuple):
    """Proposals of each image, best first."""

    boxes: torch.Tensor
    """`Tensor[N, R, 4]`; zeros where there is none."""
    logits: torch.Tensor
    """`Tensor[N, R]`, of objectness."""
    found: torch.Tensor
    """bool `Tensor[N, R]`: where there is a proposal."""


@register_exportable(DefaultAnchorGenerator)
class AnchorsGraph(GraphPart):
    """Anchors of upright boxes."""

    replaces = ("forward", "_grid_anchors", "_shift")

    def __call__(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """For each level the anchors `Tensor[R_i, 4]`, in the order row, column, anchor."""
        generator = self.module
        return [
            _anchors(x, (stride, stride), generator.offset, cell)
            for x, stride, cell in zip(features, generator.strides, generator.cell_anchors, strict=True)
        ]


@register_exportable(TorchvisionAnchorGenerator)
class TorchvisionAnchorsGraph(AnchorsGraph):
    """Anchors of torchvision's detectors, whose distance depends on the size of the map."""

    def __call__(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """See `AnchorsGraph.__call__`."""
        generator = self.module
        image_hw = [side * generator.strides[0] for side in features[0].shape[-2:]]
        return [
            _anchors(x, [whole // side for whole, side in zip(image_hw, x.shape[-2:], strict=True)], 0.0, cell)
            for x, cell in zip(features, generator.cell_anchors, strict=True)
        ]


def _anchors(feature: torch.Tensor, steps_hw: Sequence[Any], offset: float, cell: torch.Tensor) -> torch.Tensor:
    """Place the anchors of a cell on all cells of a feature map, by broadcasting alone."""
    height, width = feature.shape[-2:]
    y, x = (
        torch.arange(size, dtype=torch.float32, device=cell.device).add(offset).mul(step)
        for size, step in zip((height, width), steps_hw, strict=True)
    )
    left, top, right, bottom = cell.unbind(dim=1)
    shape = (height, width, cell.shape[0])
    columns = [(x[:, None] + side).expand(shape) for side in (left, right)]
    rows = [(y[:, None] + side)[:, None].expand(shape) for side in (top, bottom)]
    return torch.stack((columns[0], rows[0], columns[1], rows[1]), dim=-1).reshape(-1, 4)


@register_exportable(RPN)
class RPNGraph(GraphPart):
    """The region proposal network."""

    replaces = ("forward", "predict_proposals")

    def __init__(self, module: Any, options: Any):
        super().__init__(module, options)
        self.anchors = graph_part(module.anchor_generator, options, "the anchor generator")

    def __call__(self, features: dict[str, torch.Tensor], image_sizes: torch.Tensor) -> Proposals:
        """Propose regions in the images, whose sizes are int64 `Tensor[N, 2]`."""
        rpn = self.module
        maps = [features[name] for name in rpn.in_features]
        logits_maps, deltas_maps = rpn.rpn_head(maps)
        levels = [self._candidates(*level) for level in zip(self.anchors(maps), logits_maps, deltas_maps, strict=True)]
        boxes = torch.stack([level[0] for level in levels], dim=1)
        logits = torch.stack([level[1] for level in levels], dim=1).to(boxes.dtype)
        finite = torch.isfinite(boxes).all(dim=-1) & torch.isfinite(logits)
        boxes = clip_boxes(boxes, image_sizes)
        usable = finite & (boxes[..., 2:] - boxes[..., :2] > rpn.min_box_size).all(dim=-1)
        boxes = torch.where(usable[..., None], boxes, 0.0)
        logits = torch.where(usable, logits, float("-inf"))
        limit = min(rpn.post_nms_topk[False], boxes.shape[1] * boxes.shape[2])
        chosen = best_of_levels(boxes, logits, rpn.nms_thresh, limit, self.options.nms)
        boxes = boxes.flatten(1, 2).gather(1, chosen.index[..., None].expand(-1, -1, 4))
        return Proposals(torch.where(chosen.found[..., None], boxes, 0.0), chosen.scores, chosen.found)

    def _candidates(
        self, anchors: torch.Tensor, logits: torch.Tensor, deltas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best boxes of a level, `Tensor[N, k, 4]`, and their logits, `Tensor[N, k]`."""
        k = self.module.pre_nms_topk[False]
        best = top_k(logits.permute(0, 2, 3, 1).flatten(1), k)
        deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        picked = deltas.gather(1, best.index[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = self.module.box2box_transform.apply_deltas(picked, anchors[best.index.flatten()])
        return boxes.unflatten(0, (-1, k)), best.scores


@register_exportable(RRPN)
class RotatedGraph(GraphPart):
    """Rotated boxes are refused."""

    replaces = ()

    def __init__(self, module: Any, options: Any):
        raise NotExportableError(
            f"{type(module).__name__} makes rotated boxes, and neither ONNX nor torchvision has an operator that "
            "suppresses or pools them; export a model with upright boxes (MODEL.PROPOSAL_GENERATOR.NAME RPN), or run "
            "this one in PyTorch"
        )
