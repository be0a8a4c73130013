"""The region proposal network of Faster R-CNN (Ren et al. 2015).

Letters: `N` images, `L` levels, `A` anchors per cell, `B` numbers per box (4; 5 for rotated boxes),
`R_i = H_i * W_i * A` anchors of level i, `R` their sum, `M` ground-truth boxes of an image. Boxes are
`(x1, y1, x2, y2)` in pixels of the network input, continuous coordinates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.layers.conv_chain import chain_of, conv_chain
from detectron2.layers.shape_spec import check_strides, select_maps, select_shapes
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import put_scalar
from detectron2.utils.registry import Registry, build_part

from .. import fixed_shapes
from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher, match_boxes
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import _proposals_from_candidates, _top_candidates

__all__ = ["RPN", "RPN_HEAD_REGISTRY", "StandardRPNHead", "build_rpn_head"]

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
Heads of region proposal networks by name.

An entry is called as `entry(cfg, input_shape)`, where `input_shape` lists the `ShapeSpec` of every feature map,
and returns a module that maps feature maps to objectness logits and anchor deltas.
"""


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the head that `cfg.MODEL.RPN.HEAD_NAME` names, for feature maps of these shapes."""
    return build_part(RPN_HEAD_REGISTRY, "MODEL.RPN.HEAD_NAME", cfg, input_shape=input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then two 1x1 convolutions for objectness and box deltas; the same weights for all levels.

    Args:
        in_channels: channels of every feature map.
        num_anchors: `A`, the same for every level.
        box_dim: `B`.
        conv_dims: channels of each 3x3 convolution; -1 stands for its input's.
    """

    @configurable
    def __init__(self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)):
        super().__init__()
        layers, channels = [], in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(f"RPN head: conv_dims holds positive numbers or -1; got {list(conv_dims)}")
            layers.append(self._get_rpn_conv(channels, out_channels))
            channels = out_channels
        if not layers:
            raise ValueError("RPN head: conv_dims (MODEL.RPN.CONV_DIMS) is empty; it needs one convolution at least")
        if len(layers) == 1:
            self.conv = layers[0]
        else:
            self.conv = nn.Sequential()
            for i, layer in enumerate(layers):
                self.conv.add_module(f"conv{i}", layer)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # all of them have a bias

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return Conv2d(in_channels, out_channels, kernel_size=3, stride=1, padding=1, activation=nn.ReLU())

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict on every level.

        Args:
            features: for each level `Tensor[N, C, H_i, W_i]`.

        Returns:
            For each level the logits `Tensor[N, A, H_i, W_i]` and the deltas `Tensor[N, A * B, H_i, W_i]`.
        """
        if layers := self._chain(features):
            *hidden, of_logits, of_deltas = layers
            weight = torch.cat([of_logits.weight, of_deltas.weight])
            bias = torch.cat([of_logits.bias, of_deltas.bias])
            both = conv_chain(features, [*(x.weight for x in hidden), weight], [*(x.bias for x in hidden), bias])
            split = [of_logits.out_channels, of_deltas.out_channels]
            logits, deltas = zip(*(x.split(split, dim=1) for x in both), strict=True)
            return list(logits), list(deltas)
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(h) for h in hidden], [self.anchor_deltas(h) for h in hidden]

    def _chain(self, features: list[torch.Tensor]) -> list[Any]:
        """The layers in order, in training, where the loss reads few cells; none if one is not as it is made here."""
        if not self.training or len(features) == 0:
            return []
        chains = [chain_of([self.conv, last], features) for last in (self.objectness_logits, self.anchor_deltas)]
        is_one = all(chains) and chains[0][-1].kernel_size == chains[1][-1].kernel_size
        return [*chains[0], chains[1][-1]] if is_one else []

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Read `cfg.MODEL.RPN.CONV_DIMS` and ask the configured anchor generator for its anchors per cell."""
        channels: set[Any] = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"the RPN head shares its weights between levels, which have channels {sorted(channels)}")
        generator: Any = build_anchor_generator(cfg, input_shape)
        num_anchors = set(generator.num_anchors)
        if len(num_anchors) != 1:
            keys = "MODEL.ANCHOR_GENERATOR.SIZES, ASPECT_RATIOS"
            raise ValueError(
                f"all levels need equally many anchors per cell ({keys}); got {list(generator.num_anchors)}"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Region proposal network: scores anchors, refines them, and keeps the best as proposals.

    Args:
        in_features: names of the feature maps to use.
        head: predicts logits and deltas, see `StandardRPNHead`.
        anchor_generator: makes the anchors of each level.
        anchor_matcher: labels anchors by their IoU with ground truth.
        box2box_transform: turns deltas and anchors into boxes and back.
        batch_size_per_image: anchors drawn from each image for the loss.
        positive_fraction: the largest share of positives among them.
        pre_nms_topk: boxes that each level of an image keeps before suppression, in training and in inference.
        post_nms_topk: proposals that an image keeps, in training and in inference.
        nms_thresh: IoU above which the lower of two boxes goes.
        min_box_size: proposals with a side of this many pixels or fewer are dropped.
        anchor_boundary_thresh: ignore, in training, anchors that reach further than this many pixels out of the image;
            negative: ignore none.
        loss_weight: factor of both losses, or a dictionary with keys of "loss_rpn_cls" and "loss_rpn_loc".
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is plain L1.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ):
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # Keyed by `self.training`.
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh: Any = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Propose regions.

        Args:
            images: the batch; only the sizes of its images matter here.
            features: the backbone's outputs.
            gt_instances: in training, for each image its ground truth with the field `gt_boxes`.

        Returns:
            For each image its proposals (fields `proposal_boxes`, `objectness_logits`, best first), and in training the
            losses.
        """
        maps = select_maps(features, self.in_features)
        check_strides(maps, self.in_features, getattr(self.anchor_generator, "strides", ()), images.tensor)
        anchors = self.anchor_generator(maps)
        logits_maps, deltas_maps = self.rpn_head(maps)
        box_dim = self.anchor_generator.box_dim
        # (N, A, H, W) -> (N, H*W*A) and (N, A*B, H, W) -> (N, H*W*A, B): the order of the anchors.
        pred_logits = [logits.permute(0, 2, 3, 1).flatten(1) for logits in logits_maps]
        pred_deltas = [
            deltas.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for deltas in deltas_maps
        ]

        losses: dict[str, torch.Tensor] = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("RPN needs gt_instances in training; the input has no key 'instances'")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, pred_logits, gt_labels, pred_deltas, gt_boxes)
        return self.predict_proposals(anchors, pred_logits, pred_deltas, images.image_sizes), losses

    def _overlaps(self, gt_boxes: Any, anchors: Any) -> torch.Tensor:
        """IoU of every ground-truth box with every anchor, `Tensor[M, R]`, which decides what matches."""
        return pairwise_iou(gt_boxes, anchors)

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decide which anchors of each image enter the loss, and what they should predict.

        Args:
            anchors: the anchors of each level.
            gt_instances: for each image its ground truth.

        Returns:
            For each image a label for every anchor, `Tensor[R]` int8: 1 positive, 0 negative, -1 not in the loss; and
            the ground-truth box matched to it, `Tensor[R, B]`, meaningful for positive anchors.
        """
        all_anchors = type(anchors[0]).cat(anchors)
        gt_labels, matched_boxes = [], []
        for gt in gt_instances:
            matched, labels = match_boxes(self.anchor_matcher, self._overlaps, gt.gt_boxes, all_anchors)
            # The anchors may have waited on the CPU for memory.
            labels, matched = labels.to(all_anchors.device), matched.to(all_anchors.device)
            if self.anchor_boundary_thresh >= 0:
                inside = all_anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)
                labels = labels.masked_fill(~inside, -1)
            gt_labels.append(self._subsample_labels(labels))
            boxes = gt.gt_boxes.tensor
            matched_boxes.append(boxes[matched] if len(boxes) else torch.zeros_like(all_anchors.tensor))
        return gt_labels, matched_boxes

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        """Draw anchors for the loss: set every label that is not drawn to -1, in place."""
        if fixed_shapes.runs_ahead(label.device):
            return fixed_shapes.label_drawn_(label, self.batch_size_per_image, self.positive_fraction)
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of the predictions, both divided by the number of anchors drawn from the batch.

        Args:
            anchors: the anchors of each level.
            pred_objectness_logits: for each level `Tensor[N, R_i]`.
            gt_labels: as `label_and_sample_anchors` returns them.
            pred_anchor_deltas: for each level `Tensor[N, R_i, B]`.
            gt_boxes: as `label_and_sample_anchors` returns them.

        Returns:
            The scalars `loss_rpn_cls` and `loss_rpn_loc`.
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        positive = labels == 1
        put_scalar("rpn/num_pos_anchors", positive.sum() / num_images)
        put_scalar("rpn/num_neg_anchors", (labels == 0).sum() / num_images)

        localization = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        logits = cat(pred_objectness_logits, dim=1)
        if fixed_shapes.runs_ahead(labels.device):
            objectness = fixed_shapes.classification_loss_of_drawn(logits, labels)
        else:
            drawn = (labels >= 0).nonzero(as_tuple=True)
            objectness = F.binary_cross_entropy_with_logits(logits[drawn], labels[drawn].float(), reduction="sum")
        # Also where fewer anchors exist than were asked for, so that images weigh the same.
        normalizer = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the most promising anchors and keep the best as proposals; no gradient flows through them.

        Args:
            anchors: the anchors of each level.
            pred_objectness_logits: for each level `Tensor[N, R_i]`.
            pred_anchor_deltas: for each level `Tensor[N, R_i, 4]`.
            image_sizes: `(height, width)` of each image.

        Returns:
            What `find_top_rpn_proposals` returns.
        """
        with torch.no_grad():
            logits, indices = _top_candidates(pred_objectness_logits, self.pre_nms_topk[self.training])
            boxes = []
            for level_anchors, deltas, index in zip(anchors, pred_anchor_deltas, indices, strict=True):
                picked = deltas.gather(1, index[..., None].expand(-1, -1, deltas.shape[-1]))
                references = level_anchors.tensor[index.flatten()]
                decoded = self.box2box_transform.apply_deltas(picked.flatten(0, 1), references)
                boxes.append(decoded.view(*index.shape, deltas.shape[-1]))
            return _proposals_from_candidates(
                boxes,
                logits,
                image_sizes,
                self.nms_thresh,
                self.post_nms_topk[self.training],
                self.min_box_size,
                self.training,
            )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[torch.Tensor]) -> list[torch.Tensor]:
        """Decode every anchor, for subclasses that choose proposals in their own way: `Tensor[N, R_i, B]` per level."""
        decoded = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            references = level_anchors.tensor.expand(deltas.shape[0], -1, -1).flatten(0, 1)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), references)
            decoded.append(boxes.view(*deltas.shape))
        return decoded

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read `cfg.MODEL.RPN` and what belongs to it."""
        rpn = cfg.MODEL.RPN
        shapes = select_shapes(input_shape, rpn.IN_FEATURES, "MODEL.RPN.IN_FEATURES")
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }
