"""ROI heads for a batch that holds every image once for each branch.

Letters: `N` images, `B` running branches.
"""

from typing import Any

import torch

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import ImageList, Instances

from .trident_conv import active_branches

__all__ = ["TridentRes5ROIHeads", "TridentStandardROIHeads", "merge_branch_instances"]


def merge_branch_instances(
    instances: list[Instances], num_branch: int, nms_thresh: float, topk_per_image: int
) -> list[Instances]:
    """Join what the branches found in the same image, and suppress what they found twice.

    Args:
        instances: `B * N` results with `pred_boxes`, `scores` and `pred_classes`: those of the first branch for all
            images, then those of the second, and so on.
        num_branch: `B`; 1 returns the results as they are.
        nms_thresh: IoU above which the worse of two detections of one class goes.
        topk_per_image: the largest number of detections of an image, the best ones; negative for all.

    Returns:
        `N` results, best first.
    """
    if num_branch == 1:
        return instances
    if len(instances) % num_branch != 0:
        raise ValueError(f"results of {len(instances)} images cannot come from {num_branch} branches")
    num_images = len(instances) // num_branch
    merged = []
    for i in range(num_images):
        found = Instances.cat(instances[i::num_images])
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, nms_thresh)
        merged.append(found[keep if topk_per_image < 0 else keep[:topk_per_image]])
    return merged


class _BranchHeads(ROIHeads):
    """Runs the heads it is mixed into on all branches, and merges the results."""

    box_predictor: Any

    @configurable
    def __init__(self, *, num_branch: int, test_branch_idx: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx

    def _copies(self) -> int:
        return len(active_branches(self.num_branch, self.test_branch_idx, self.training))

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Predict for every proposal of every branch.

        Args:
            images: the `N` images that entered the backbone.
            features: feature maps by name, each `Tensor[B * N, C, H, W]`.
            proposals: `B * N` sets of proposals.
            targets: in training, the ground truth of the `N` images.

        Returns:
            In inference the merged detections of each image and `{}`; in training the sampled proposals and the losses.
        """
        copies = self._copies()
        results, losses = super().forward(images, features, proposals, None if targets is None else targets * copies)
        if not self.training:
            predictor = self.box_predictor
            results = merge_branch_instances(results, copies, predictor.test_nms_thresh, predictor.test_topk_per_image)
        return results, losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add masks and the like to detections whose boxes are known.

        Args:
            features: feature maps by name, each `Tensor[B * N, C, H, W]`.
            instances: detections of each image and branch, or of each image: these are looked at by the middle branch.

        Returns:
            The same instances with further fields.
        """
        if instances and any(len(x) > len(instances) for x in features.values()):
            start = self._copies() // 2 * len(instances)
            features = {name: x[start : start + len(instances)] for name, x in features.items()}
        parent: Any = super()  # the heads that this is mixed into
        return parent.forward_with_given_boxes(features, instances)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the heads, and `cfg.MODEL.TRIDENT`."""
        parent: Any = super()
        return {
            **parent.from_config(cfg, input_shape),
            "num_branch": cfg.MODEL.TRIDENT.NUM_BRANCH,
            "test_branch_idx": cfg.MODEL.TRIDENT.TEST_BRANCH_IDX,
        }


@ROI_HEADS_REGISTRY.register()
class TridentRes5ROIHeads(_BranchHeads, Res5ROIHeads):
    """`Res5ROIHeads` on branches.

    Its arguments are those of `Res5ROIHeads`, and `num_branch` and `test_branch_idx` as in `TridentRPN`.
    """


@ROI_HEADS_REGISTRY.register()
class TridentStandardROIHeads(_BranchHeads, StandardROIHeads):
    """`StandardROIHeads` on branches.

    Its arguments are those of `StandardROIHeads`, and `num_branch` and `test_branch_idx` as in `TridentRPN`.
    """
