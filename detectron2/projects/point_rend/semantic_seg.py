"""The semantic segmentation head of PointRend, for `MODEL.SEM_SEG_HEAD.NAME`.

`N` images, `K` classes, `P` points of an image, `C` channels, `H` and `W` height and width in pixels of the network's
padded input. Points are `(x, y)` as shares of that input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import build_part

from .point_features import get_uncertain_point_coords_with_randomness, point_sample, subdivide
from .point_head import build_point_head

__all__ = ["PointRendSemSegHead", "calculate_uncertainty"]


def calculate_uncertainty(sem_seg_logits: torch.Tensor) -> torch.Tensor:
    """How close the two best classes are: the second best logit minus the best (PointRend, section 4.2).

    From `Tensor[N, K, ...]` to `Tensor[N, 1, ...]`, at most 0. With a single class, minus the absolute logit.
    """
    first, *others = sem_seg_logits.unbind(dim=1)
    if not others:
        return -first.abs().unsqueeze(1)
    second = torch.full_like(first, -torch.inf)
    # A pass over the classes is several times faster than topk, which sorts each pixel on its own.
    for logits in others:
        second = torch.maximum(second, torch.minimum(first, logits))
        first = torch.maximum(first, logits)
    return (second - first).unsqueeze(1)


def _labels_at(targets: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Labels `[N, H, W]` of the pixels in which points `Tensor[N, P, 2]` lie: `[N, P]`."""
    height, width = targets.shape[-2:]
    column = (coords[..., 0] * width).long().clamp(0, width - 1)
    row = (coords[..., 1] * height).long().clamp(0, height - 1)
    return targets.flatten(1).gather(1, row * width + column)


@SEM_SEG_HEADS_REGISTRY.register()
class PointRendSemSegHead(nn.Module):
    """Predicts a coarse label map with another head, and then its uncertain points one by one.

    Args:
        coarse_sem_seg_head: with methods `layers(features)` to coarse logits and `losses(logits, targets)`, such as
            `SemSegFPNHead`.
        point_head: from fine-grained features and coarse logits at points to logits.
        in_features: feature maps that the point head reads.
        train_num_points: points of an image in training.
        oversample_ratio: how many candidates are drawn for each of them.
        importance_sample_ratio: share of them that are the least certain candidates.
        subdivision_steps: how often the resolution of the coarse map is doubled in inference. The result should have
            the resolution of the input.
        subdivision_num_points: points of an image that are predicted at each of these steps.
        ignore_value: label of pixels without a loss.
        num_classes: K, with which label maps are checked; None for no check.
    """

    coarse_sem_seg_head: Any  # of the interface of SemSegFPNHead

    @configurable
    def __init__(
        self,
        *,
        coarse_sem_seg_head: nn.Module,
        point_head: nn.Module,
        in_features: Sequence[str],
        train_num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        subdivision_steps: int,
        subdivision_num_points: int,
        ignore_value: int,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.ignore_value = ignore_value
        self.num_classes = num_classes
        self.coarse_sem_seg_head = coarse_sem_seg_head
        self.in_features = tuple(in_features)
        self.train_num_points = train_num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.subdivision_steps = subdivision_steps
        self.subdivision_num_points = subdivision_num_points
        self.point_head = point_head

    def forward(
        self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Classify pixels from feature maps by name, or in training compute the losses.

        In training, with int64 targets `Tensor[N, H, W]`, the result is None and the losses, those of the coarse head
        and `loss_sem_seg_point`; in inference scores `Tensor[N, K, H, W]` and an empty dictionary.
        """
        coarse = self.coarse_sem_seg_head.layers(features)
        if not self.training:
            scores = subdivide(
                coarse,
                self.subdivision_steps,
                self.subdivision_num_points,
                calculate_uncertainty,
                lambda coords: self._point_logits(features, coarse, coords),
            )
            return scores, {}
        if targets is None:
            raise KeyError(
                "PointRendSemSegHead got no targets in training: every input needs 'sem_seg', a label map of "
                "(height, width)"
            )
        losses = self.coarse_sem_seg_head.losses(coarse, targets)
        losses["loss_sem_seg_point"] = self._point_loss(features, coarse, targets)
        return None, losses

    def _point_logits(
        self, features: Mapping[str, torch.Tensor], coarse: torch.Tensor, coords: torch.Tensor
    ) -> torch.Tensor:
        """Logits `Tensor[N, K, P]` of the point head at points `Tensor[N, P, 2]`."""
        read = [point_sample(features[name], coords, align_corners=False) for name in self.in_features]
        return self.point_head(cat(read, dim=1), point_sample(coarse, coords, align_corners=False))

    def _point_loss(
        self, features: Mapping[str, torch.Tensor], coarse: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross entropy of points that have a label; 0 when none has."""
        coords = get_uncertain_point_coords_with_randomness(
            coarse, calculate_uncertainty, self.train_num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        logits = self._point_logits(features, coarse, coords).float()
        labels = _labels_at(targets, coords)
        total = F.cross_entropy(logits, labels, ignore_index=self.ignore_value, reduction="sum")
        return total / (labels != self.ignore_value).sum().clamp(min=1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.POINT_HEAD` and `cfg.MODEL.SEM_SEG_HEAD`."""
        head, classes = cfg.MODEL.POINT_HEAD, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes != head.NUM_CLASSES:
            raise ValueError(
                f"MODEL.POINT_HEAD.NUM_CLASSES is {head.NUM_CLASSES} and MODEL.SEM_SEG_HEAD.NUM_CLASSES {classes}; set "
                "both to the number of classes of the data set"
            )
        key = "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME"
        channels = sum(input_shape[name].channels or 0 for name in head.IN_FEATURES)
        return {
            "coarse_sem_seg_head": build_part(SEM_SEG_HEADS_REGISTRY, key, cfg, input_shape=input_shape),
            "point_head": build_point_head(cfg, ShapeSpec(channels=channels)),
            "in_features": head.IN_FEATURES,
            "train_num_points": head.TRAIN_NUM_POINTS,
            "oversample_ratio": head.OVERSAMPLE_RATIO,
            "importance_sample_ratio": head.IMPORTANCE_SAMPLE_RATIO,
            "subdivision_steps": head.SUBDIVISION_STEPS,
            "subdivision_num_points": head.SUBDIVISION_NUM_POINTS,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "num_classes": classes,
        }
