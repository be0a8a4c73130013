"""A region proposal network for a batch that holds every image once for each branch."""

import torch

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances

from .trident_conv import active_branches

__all__ = ["TridentRPN"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class TridentRPN(RPN):
    """An RPN that all branches share; it proposes regions for each image and branch, branch after branch.

    Args:
        num_branch: number of branches.
        test_branch_idx: the branch that runs in inference; -1 for all.
        **kwargs: arguments of `detectron2.modeling.proposal_generator.RPN`.
    """

    @configurable
    def __init__(self, *, num_branch: int, test_branch_idx: int, **kwargs):
        super().__init__(**kwargs)
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx

    def _copies(self) -> int:
        return len(active_branches(self.num_branch, self.test_branch_idx, self.training))

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Label the anchors of each image once for each branch, see `RPN.label_and_sample_anchors`."""
        return super().label_and_sample_anchors(anchors, gt_instances * self._copies())

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Propose regions for each image once for each branch, see `RPN.predict_proposals`."""
        sizes = list(image_sizes) * self._copies()
        return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, sizes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Read `cfg.MODEL.RPN` and `cfg.MODEL.TRIDENT`."""
        return {
            **super().from_config(cfg, input_shape),
            "num_branch": cfg.MODEL.TRIDENT.NUM_BRANCH,
            "test_branch_idx": cfg.MODEL.TRIDENT.TEST_BRANCH_IDX,
        }
