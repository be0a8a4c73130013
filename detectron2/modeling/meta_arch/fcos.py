"""FCOS: a one-stage detector without anchor boxes (Tian et al. 2019, arXiv:1904.01355), with centre-ness.

Every location of every feature map predicts one box, by its distances to the four sides. A location is written as a
square "anchor": its centre is the location, its side the stride of its level.

Letters: `N` images, `K` classes, `M` ground-truth boxes of an image, `R_i = H_i * W_i` locations of level i, `R` their
sum. Boxes are `(x1, y1, x2, y2)` in pixels of the network input, continuous coordinates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances

from ..anchor_generator import DefaultAnchorGenerator
from ..backbone import Backbone
from ..box_regression import Box2BoxTransformLinear, _dense_box_regression_loss
from ..sampling import check_labels
from .dense_detector import DenseDetector, sum_of_focal_losses
from .retinanet import RetinaNetHead

__all__ = ["FCOS", "FCOSHead"]

# A level takes the objects whose farthest side is this many strides away (64 to 128 pixels at stride 16, and so on).
_RANGE_IN_STRIDES = (4.0, 8.0)


class FCOS(DenseDetector):
    """Classifies the locations of a feature pyramid and predicts their distances to the sides of the object.

    Args:
        backbone: extracts features.
        head: predicts logits, distances and centre-ness of each level, see `FCOSHead`.
        head_in_features: names of the feature maps for the head, finest first; by default all of the backbone's.
        box2box_transform: turns distances and locations into boxes and back; by default distances are in strides.
        num_classes: `K`, without background.
        center_sampling_radius: locations within this many strides of an object's centre are its positives.
        focal_loss_alpha: weight of positives in the focal loss; of negatives it is one minus this.
        focal_loss_gamma: how strongly the focal loss plays down what is classified well already.
        test_score_thresh: in inference only scores above this are considered. A score is the geometric mean of the
            class probability and centre-ness, so it is higher than their product, which the paper ranks by.
        test_topk_candidates: candidates that each level keeps before suppression.
        test_nms_thresh: IoU above which the lower of two boxes of a class goes.
        max_detections_per_image: detections that an image keeps.
        pixel_mean: mean of each channel, in the order of the image's channels.
        pixel_std: standard deviation of each channel.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        box2box_transform: Box2BoxTransformLinear | None = None,
        num_classes: int,
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.2,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        shapes = backbone.output_shape()
        strides: list[Any] = [shapes[name].stride for name in self.head_in_features]
        # Locations are the centres of cells: the default offset of half a stride.
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides], aspect_ratios=[1.0], strides=strides
        )
        self.box2box_transform = box2box_transform or Box2BoxTransformLinear(normalize_by_size=True)
        self.center_sampling_radius = float(center_sampling_radius)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def forward_training(self, images: ImageList, features, predictions, gt_instances: list[Instances]):
        """Compute the dictionary of losses, see `losses`."""
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes, centerness)

    def _match_anchors(self, gt_boxes: Boxes, anchors: list[Boxes]) -> torch.Tensor:
        """How well locations suit the objects of an image, `Tensor[M, R]` (sections 3.1, 3.2): 0 where they do not."""
        centers = cat([level.get_centers() for level in anchors])
        strides = cat([level.tensor[:, 2] - level.tensor[:, 0] for level in anchors])
        nearest_allowed, farthest_allowed = strides * _RANGE_IN_STRIDES[0], strides * _RANGE_IN_STRIDES[1]
        # The finest level takes everything smaller too, and the coarsest everything larger.
        nearest_allowed[: len(anchors[0])] = 0
        farthest_allowed[len(strides) - len(anchors[-1]) :] = float("inf")

        x, y = centers.unbind(dim=1)
        x1, y1, x2, y2 = gt_boxes.tensor[:, :, None].unbind(dim=1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
        to_nearest_side = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
        to_farthest_side = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        to_center = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
        matches = (
            (to_nearest_side > 0)
            & (to_center < self.center_sampling_radius * strides)
            & (to_farthest_side > nearest_allowed)
            & (to_farthest_side < farthest_allowed)
        )
        # A box that contains a location has an area above zero.
        return torch.where(matches, 1 / gt_boxes.area()[:, None], 0)

    @torch.no_grad()
    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[torch.Tensor]:
        """Find the object that each location learns: for each image `Tensor[R]` int64, its row, or -1 for none."""
        num_locations = sum(len(level) for level in anchors)
        matched = []
        for gt in gt_instances:
            if len(gt) == 0:
                nothing = torch.full((num_locations,), -1, device=anchors[0].tensor.device)
                matched.append(nothing)
                continue
            quality, index = self._match_anchors(gt.gt_boxes, anchors).max(dim=0)
            matched.append(index.masked_fill_(quality <= 0, -1))
        return matched

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Say what each location should predict: for each image labels `Tensor[R]` int64 and boxes `Tensor[R, 4]`.

        A label is a class, or `K` for background; the box of the object is meaningful for positive locations.
        """
        check_labels(gt_instances, self.num_classes, "set num_classes (model.num_classes in a LazyConfig)")
        gt_labels, matched_boxes = [], []
        for gt, matched in zip(gt_instances, self.match_anchors(anchors, gt_instances), strict=True):
            if len(gt) == 0:
                gt_labels.append(torch.full_like(matched, self.num_classes))
                matched_boxes.append(cat([level.tensor for level in anchors]).new_zeros(len(matched), 4))
                continue
            row = matched.clamp(min=0)
            gt_labels.append(gt.gt_classes[row].to(torch.int64).masked_fill_(matched < 0, self.num_classes))
            matched_boxes.append(gt.gt_boxes.tensor[row])
        return gt_labels, matched_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
        pred_centerness: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, all divided by a moving average of the number of positive locations in a batch.

        Args:
            anchors: the locations of each level.
            pred_logits: for each level `Tensor[N, R_i, K]`.
            gt_labels: as `label_anchors` returns them.
            pred_anchor_deltas: for each level `Tensor[N, R_i, 4]`, distances to the sides.
            gt_boxes: as `label_anchors` returns them.
            pred_centerness: for each level the logits `Tensor[N, R_i, 1]`.

        Returns:
            The scalars `loss_fcos_cls`, `loss_fcos_loc` and `loss_fcos_ctr`.
        """
        labels, positive, normalizer = self._count_positives(gt_labels, 300)

        losses = {
            "loss_fcos_cls": sum_of_focal_losses(
                pred_logits, labels, positive, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
            ),
            "loss_fcos_loc": _dense_box_regression_loss(
                anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, positive, box_reg_loss_type="giou"
            ),
            "loss_fcos_ctr": F.binary_cross_entropy_with_logits(
                cat(pred_centerness, dim=1).squeeze(dim=2)[positive].float(),
                self.compute_ctrness_targets(anchors, gt_boxes)[positive].float(),
                reduction="sum",
            ),
        }
        return {name: loss / normalizer for name, loss in losses.items()}

    def compute_ctrness_targets(self, anchors: list[Boxes], gt_boxes: list[torch.Tensor]) -> torch.Tensor:
        """Compute centre-ness `Tensor[N, R]` (equation 3): 1 at the centre of a box, falling to 0 at its sides.

        `gt_boxes` are for each image the box of every location, `Tensor[R, 4]`. Outside of it centre-ness is 0.
        """
        x, y = cat([level.get_centers() for level in anchors]).unbind(dim=1)
        x1, y1, x2, y2 = torch.stack(gt_boxes).unbind(dim=2)
        along_x, along_y = _share_of_nearer_side(x - x1, x2 - x), _share_of_nearer_side(y - y1, y2 - y)
        return (along_x * along_y).sqrt()

    def forward_inference(self, images: ImageList, features, predictions) -> list[Instances]:
        """Turn predictions into detections, in the frame of the network input."""
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            scores = [
                # In float32 also under autocast: half precision would make many scores equal.
                x[i].float().sigmoid().mul_(y[i].float().sigmoid()).sqrt_()
                for x, y in zip(logits, centerness, strict=True)
            ]
            results.append(self.inference_single_image(anchors, scores, [x[i] for x in deltas], image_size))
        return results

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[torch.Tensor],
        box_delta: list[torch.Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detect objects in one image, as `RetinaNet.inference_single_image`.

        Of each level `box_cls` are scores `Tensor[R_i, K]` in [0, 1], with centre-ness, and `box_delta` is
        `Tensor[R_i, 4]`.
        """
        return self._detect_in_image(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )


def _share_of_nearer_side(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`min / max` of the distances to two opposite sides, 0 outside; a box without extent has no division by 0."""
    nearer, farther = torch.minimum(before, after), torch.maximum(before, after)
    return nearer.clamp(min=0) / farther.clamp(min=torch.finfo(farther.dtype).eps)


class FCOSHead(RetinaNetHead):
    """The towers of `RetinaNetHead` with one prediction per location, and centre-ness beside the box.

    Args:
        input_shape: the shape of each feature map.
        conv_dims: channels of the convolutions of a tower.
        **kwargs: further arguments of `RetinaNetHead`: `num_classes`, `norm`, `prior_prob`.
    """

    def __init__(self, *, input_shape: list[ShapeSpec], conv_dims: list[int], **kwargs: Any):
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **kwargs)
        self.ctrness = nn.Conv2d(self.bbox_pred.in_channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.ctrness.weight, std=0.01)
        nn.init.zeros_(self.ctrness.bias)  # pyright: ignore[reportArgumentType]  # it has a bias

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Predict on every level.

        Args:
            features: for each level `Tensor[N, C, H_i, W_i]`.

        Returns:
            For each level the logits `Tensor[N, K, H_i, W_i]`, the distances `Tensor[N, 4, H_i, W_i]` (negative ones
            count as zero) and the logits of centre-ness `Tensor[N, 1, H_i, W_i]`.
        """
        if len(features) != self._num_features:
            raise ValueError(f"FCOS head made for {self._num_features} feature maps; got {len(features)}")
        logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        hidden = [self.bbox_subnet(feature) for feature in features]
        return logits, [self.bbox_pred(h) for h in hidden], [self.ctrness(h) for h in hidden]
