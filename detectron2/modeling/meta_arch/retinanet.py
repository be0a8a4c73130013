"""RetinaNet: a one-stage detector trained with the focal loss (Lin et al. 2017b, arXiv:1708.02002).

Letters: `N` images, `L` levels, `A` anchors per cell, `K` classes, `R_i = H_i * W_i * A` anchors of level i, `R` their
sum. Boxes are `(x1, y1, x2, y2)` in pixels of the network input, continuous coordinates.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from detectron2.layers.conv_chain import chain_of, conv_chain
from detectron2.layers.shape_spec import select_shapes
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou

from ..anchor_generator import build_anchor_generator
from ..backbone import Backbone, build_backbone
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher, match_boxes
from ..sampling import check_labels
from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector, permute_to_N_HWA_K, sum_of_focal_losses

__all__ = ["RetinaNet", "RetinaNetHead", "permute_to_N_HWA_K"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """Classifies and refines anchors on every level of a feature pyramid.

    Args:
        backbone: extracts features.
        head: predicts logits and box deltas of each level, see `RetinaNetHead`.
        head_in_features: names of the feature maps for the head.
        anchor_generator: makes the anchors of each level.
        box2box_transform: turns deltas and anchors into boxes and back.
        anchor_matcher: labels anchors by their IoU with ground truth.
        num_classes: `K`, without background.
        focal_loss_alpha: weight of positives in the focal loss; of negatives it is one minus this.
        focal_loss_gamma: how strongly the focal loss plays down what is classified well already.
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is plain L1.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        test_score_thresh: in inference only scores above this are considered.
        test_topk_candidates: candidates that each level keeps before suppression.
        test_nms_thresh: IoU above which the lower of two boxes of a class goes.
        max_detections_per_image: detections that an image keeps.
        pixel_mean: mean of each channel, in the order of the image's channels.
        pixel_std: standard deviation of each channel.
        vis_period: iterations between pictures of training; 0 for none.
        input_format: meaning of the image's channels, for these pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format

    def forward_training(self, images: ImageList, features, predictions, gt_instances: list[Instances]):
        """Compute the dictionary of losses, see `losses`."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, both divided by a moving average of the number of positive anchors in a batch.

        Args:
            anchors: the anchors of each level.
            pred_logits: for each level `Tensor[N, R_i, K]`.
            gt_labels: as `label_anchors` returns them.
            pred_anchor_deltas: for each level `Tensor[N, R_i, 4]`.
            gt_boxes: as `label_anchors` returns them.

        Returns:
            The scalars `loss_cls` and `loss_box_reg`.
        """
        labels, positive, normalizer = self._count_positives(gt_labels, 100)

        loss_cls = sum_of_focal_losses(
            pred_logits, labels, positive, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Match the anchors of each image with its ground truth.

        Args:
            anchors: the anchors of each level.
            gt_instances: for each image its ground truth, with the fields `gt_boxes` and `gt_classes`.

        Returns:
            For each image a label for every anchor, `Tensor[R]` int64: the class, `K` for background or -1 for neither;
            and the ground-truth box matched to it, `Tensor[R, 4]`, meaningful for positive anchors.
        """
        check_labels(gt_instances, self.num_classes, "set MODEL.RETINANET.NUM_CLASSES")
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_boxes = [], []
        for gt in gt_instances:
            matched, quality = match_boxes(self.anchor_matcher, pairwise_iou, gt.gt_boxes, all_anchors)
            if len(gt) > 0:
                labels = gt.gt_classes[matched].to(torch.int64)
                labels.masked_fill_(quality == 0, self.num_classes).masked_fill_(quality == -1, -1)
                boxes = gt.gt_boxes.tensor[matched]
            else:
                labels = torch.full_like(matched, self.num_classes)
                boxes = torch.zeros_like(all_anchors.tensor)
            gt_labels.append(labels)
            matched_boxes.append(boxes)
        return gt_labels, matched_boxes

    def forward_inference(self, images: ImageList, features, predictions) -> list[Instances]:
        """Turn predictions into detections, in the frame of the network input."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return self.inference(self.anchor_generator(features), logits, deltas, images.image_sizes)

    def inference(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Detect objects in each image of a batch; see `losses` for the shapes of the predictions."""
        return [
            self.inference_single_image(
                anchors, [x[i] for x in pred_logits], [x[i] for x in pred_anchor_deltas], image_size
            )
            for i, image_size in enumerate(image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[torch.Tensor],
        box_delta: list[torch.Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detect objects in one image: threshold, decode, suppress per class, and keep the best.

        Args:
            anchors: the anchors of each level.
            box_cls: for each level the logits `Tensor[R_i, K]`.
            box_delta: for each level `Tensor[R_i, 4]`.
            image_size: `(height, width)`.

        Returns:
            Detections, best first, with the fields `pred_boxes`, `scores` and `pred_classes`.
        """
        # The sigmoid is monotonic, so the threshold moves to the logits, and only what passes is put through it: a few
        # thousand of several million numbers.
        threshold = _logit(self.test_score_thresh)
        return self._detect_in_image(
            anchors, box_cls, box_delta, threshold, self.test_topk_candidates, image_size, activation=torch.sigmoid
        )

    @classmethod
    def from_config(cls, cfg):
        """Read `cfg.MODEL.RETINANET` and what belongs to it."""
        retinanet = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature_shapes = select_shapes(shapes, retinanet.IN_FEATURES, "MODEL.RETINANET.IN_FEATURES")
        return {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, feature_shapes),
            "head_in_features": retinanet.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, allow_low_quality_matches=True),
            "num_classes": retinanet.NUM_CLASSES,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": retinanet.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }


def _logit(probability: float) -> float:
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, one for classes and one for boxes; the same weights for all levels.

    Args:
        input_shape: the shape of each feature map.
        num_classes: `K`.
        num_anchors: `A`, the same for every level.
        conv_dims: channels of the convolutions of a tower.
        norm: norm of these convolutions, as `detectron2.layers.get_norm` takes it. With "BN" or "SyncBN" each
            level has statistics of its own.
        prior_prob: probability that an untrained head gives to every class; keeps the many negatives from swamping the
            first iterations.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str | Callable[[int], nn.Module] | None = "",
        prior_prob: float = 0.01,
    ):
        super().__init__()
        self._num_features = len(input_shape)
        in_channels: Any = input_shape[0].channels
        if any(shape.channels != in_channels for shape in input_shape):
            channels = [shape.channels for shape in input_shape]
            raise ValueError(f"the RetinaNet head shares its weights between levels, which have channels {channels}")
        norm = _norm_per_level(norm, self._num_features)
        self.cls_subnet = _tower(in_channels, conv_dims, norm)
        self.bbox_subnet = _tower(in_channels, conv_dims, norm)
        tower_channels = conv_dims[-1] if conv_dims else in_channels
        self.cls_score = nn.Conv2d(tower_channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(tower_channels, num_anchors * 4, kernel_size=3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # all of them have a bias
        nn.init.constant_(self.cls_score.bias, _logit(prior_prob))  # pyright: ignore[reportArgumentType]

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict on every level.

        Args:
            features: for each level `Tensor[N, C, H_i, W_i]`.

        Returns:
            For each level the logits `Tensor[N, A * K, H_i, W_i]` and the deltas `Tensor[N, A * 4, H_i, W_i]`.
        """
        if len(features) != self._num_features:
            raise ValueError(f"RetinaNet head made for {self._num_features} feature maps; got {len(features)}")
        logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        # The loss of boxes reads the cells of positive anchors.
        if self.training and (layers := chain_of([self.bbox_subnet, self.bbox_pred], features)):
            return logits, conv_chain(features, [x.weight for x in layers], [x.bias for x in layers])
        return logits, [self.bbox_pred(self.bbox_subnet(feature)) for feature in features]

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Read `cfg.MODEL.RETINANET` and ask the configured anchor generator for its anchors per cell."""
        generator: Any = build_anchor_generator(cfg, input_shape)
        num_anchors = set(generator.num_cell_anchors)
        if len(num_anchors) != 1:
            keys = "MODEL.ANCHOR_GENERATOR.SIZES, ASPECT_RATIOS"
            raise ValueError(f"all levels need equally many anchors per cell ({keys}); got {sorted(num_anchors)}")
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors.pop(),
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }


def _norm_per_level(norm: Any, num_levels: int):
    """Replace a batch norm, whose statistics no two levels share, by one that cycles through one copy per level."""
    classes = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    if not isinstance(norm, str) or norm not in classes:
        return norm
    logger.info("RetinaNet head: %s keeps statistics of its own for each of the %d levels", norm, num_levels)
    return lambda channels: CycleBatchNormList(num_levels, bn_class=classes[norm], num_features=channels)


def _tower(in_channels: int, conv_dims: Sequence[int], norm: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in conv_dims:
        layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
        if norm:
            layers.append(get_norm(norm, out_channels))  # pyright: ignore[reportArgumentType]  # not None: norm is set
        layers.append(nn.ReLU())
        in_channels = out_channels
    return nn.Sequential(*layers)
