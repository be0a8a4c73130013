"""The last layers of Fast R-CNN (https://arxiv.org/abs/1504.08083): class scores and box deltas of every region.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` foreground classes, `B` numbers per box
(4: `(x1, y1, x2, y2)`; 5: rotated). Boxes are in pixels of the network's input image. Class index `K` is background.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy, nonzero_tuple
from detectron2.modeling import fixed_shapes
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import has_event_storage, put_scalar
from detectron2.utils.registry import locate

from .numerics import best_after_nms, full_precision, split_by_image

__all__ = ["FastRCNNOutputLayers", "FastRCNNOutputs", "fast_rcnn_inference", "fast_rcnn_inference_single_image"]


def gather_targets(
    proposals: Sequence[Instances], scores: torch.Tensor, box_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels `Tensor[R]`, proposal boxes `Tensor[R, B]` and matched boxes `Tensor[R, B]` of all images.

    An image without ground truth has no `gt_boxes`; its own proposals stand in, and no loss reads them.
    """
    if not proposals:
        no_boxes = scores.new_zeros(0, box_dim)
        return torch.zeros(0, dtype=torch.int64, device=scores.device), no_boxes, no_boxes
    boxes = cat([x.proposal_boxes.tensor for x in proposals])
    assert not boxes.requires_grad, "proposal boxes must be detached before the second stage"
    matched = cat([(x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes).tensor for x in proposals])
    return cat([x.gt_classes for x in proposals]), boxes, matched


def box_regression_loss(
    layers: "FastRCNNOutputLayers | FastRCNNOutputs",
    proposal_boxes: torch.Tensor,
    gt_boxes: torch.Tensor,
    pred_deltas: torch.Tensor,
    gt_classes: torch.Tensor,
) -> torch.Tensor:
    """Box loss of layers, summed over the foreground and divided by the number of all regions."""
    box_dim, num_classes = proposal_boxes.shape[1], layers.num_classes
    is_foreground = (gt_classes >= 0) & (gt_classes < num_classes)
    if fixed_shapes.runs_ahead(gt_classes.device):
        foreground: Any = slice(None)
        classes = gt_classes.clamp(0, num_classes - 1)
        rows: Any = torch.arange(len(classes), device=classes.device)
        counted = is_foreground[None]
    else:
        rows = foreground = nonzero_tuple(is_foreground)[0]
        classes = gt_classes[foreground]
        counted = torch.ones(1, foreground.shape[0], dtype=torch.bool, device=foreground.device)
    if pred_deltas.shape[1] == box_dim:
        deltas = pred_deltas[foreground]
    else:
        deltas = pred_deltas.view(-1, num_classes, box_dim)[rows, classes]
    loss = _dense_box_regression_loss(
        [proposal_boxes[foreground]],
        layers.box2box_transform,
        [deltas.unsqueeze(0)],
        [gt_boxes[foreground]],
        counted,
        box_reg_loss_type=layers.box_reg_loss_type,
        smooth_l1_beta=layers.smooth_l1_beta,
    )
    return loss / max(gt_classes.numel(), 1)


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Turn the scored boxes of every image into detections.

    Args:
        boxes: for each image `Tensor[Ri, K * 4]`, or `Tensor[Ri, 4]` when boxes do not depend on the class.
        scores: for each image `Tensor[Ri, K + 1]`; the last column, background, is not used.
        image_shapes: `(height, width)` of each image in pixels, to which the boxes are clipped.
        score_thresh: only scores above this are kept.
        nms_thresh: of two boxes of one class that overlap by more than this IoU, only the better is kept.
        topk_per_image: the largest number of detections, the best ones; negative for all.

    Returns:
        For each image its detections with `pred_boxes`, `scores` and `pred_classes`, best first; and for each image
        the row of `boxes` that each detection came from.
    """
    results = [
        fast_rcnn_inference_single_image(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [r[0] for r in results], [r[1] for r in results]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """`fast_rcnn_inference` of one image: boxes `Tensor[R, K * 4]` or `Tensor[R, 4]`, scores `Tensor[R, K + 1]`.

    A row with a value that is not finite is passed over. Returns the detections, best first, and the row of `boxes`
    that each came from, `Tensor[D]`.
    """
    return detections_of_image(Boxes, boxes, scores, image_shape, score_thresh, nms_thresh, topk_per_image)


def detections_of_image(
    box_type: type[Boxes] | type[RotatedBoxes],
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """`fast_rcnn_inference_single_image` of boxes of either type: `Tensor[R, K * B]` or `Tensor[R, B]`."""
    usable = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    scores = scores[:, :-1]
    rows, classes = nonzero_tuple((scores > score_thresh) & usable[:, None])
    # Pick first and clip after: with K classes about one box in K is a candidate.
    per_class = boxes.unflatten(1, (-1, 5 if box_type is RotatedBoxes else 4))
    picked = box_type(per_class[rows, classes] if per_class.shape[1] > 1 else per_class[rows, 0])
    picked.clip(image_shape)
    picked_scores = scores[rows, classes]

    keep = best_after_nms(picked.tensor, picked_scores, classes, nms_thresh, topk_per_image)
    kept = box_type(picked.tensor[keep])
    return Instances(image_shape, pred_boxes=kept, scores=picked_scores[keep], pred_classes=classes[keep]), rows[keep]


def _log_classification_stats(pred_logits: torch.Tensor, gt_classes: torch.Tensor, prefix: str = "fast_rcnn") -> None:
    """Put the accuracy of logits `Tensor[R, K + 1]`, over all and over foreground regions, into the open storage."""
    if gt_classes.numel() == 0 or not has_event_storage():
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.detach().argmax(dim=1)
    correct = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    num_foreground = foreground.sum().clamp(min=1)
    put_scalar(f"{prefix}/cls_accuracy", correct.sum() / gt_classes.numel())
    put_scalar(f"{prefix}/fg_cls_accuracy", (correct & foreground).sum() / num_foreground)
    put_scalar(f"{prefix}/false_negative", ((predicted == background) & foreground).sum() / num_foreground)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers that score each region's class and refine its box, with their losses and inference.

    Args:
        input_shape: shape of a region's feature, which is flattened; or just its number of channels.
        box2box_transform: how deltas move a box; the number of its weights is `B`.
        num_classes: number of foreground classes `K`.
        test_score_thresh: in inference only scores above this are kept.
        test_nms_thresh: IoU above which the worse of two detections of one class is dropped.
        test_topk_per_image: the largest number of detections per image.
        cls_agnostic_bbox_reg: one box per region instead of one for each class.
        smooth_l1_beta: where the smooth L1 loss turns from quadratic to linear; 0 is the L1 loss.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        loss_weight: factor of all losses, or of each: `{"loss_cls": ..., "loss_box_reg": ...}`.
        use_fed_loss: count only a sample of the classes in each step, for data sets where images are not labelled
            exhaustively (federated loss, https://arxiv.org/abs/2103.07461, section 5); needs `use_sigmoid_ce`.
        use_sigmoid_ce: one binary classifier for each class instead of a softmax over all of them.
        get_fed_loss_cls_weights: returns `Tensor[K]`, how often a class is sampled relative to the others; called
            once, and only when `use_fed_loss` is on.
        fed_loss_num_classes: number of classes counted in a step, those present included.

    Raises:
        ValueError: for options that contradict each other.
    """

    fed_loss_cls_weights: torch.Tensor

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Any,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], torch.Tensor] | None = None,
        fed_loss_num_classes: int = 50,
    ):
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        in_width = (input_shape.channels or 1) * (input_shape.width or 1) * (input_shape.height or 1)
        boxes_per_region = 1 if cls_agnostic_bbox_reg else num_classes
        self.num_classes = num_classes
        self.cls_score = nn.Linear(in_width, num_classes + 1)
        self.bbox_pred = nn.Linear(in_width, boxes_per_region * len(box2box_transform.weights))
        # Standard deviations of Fast R-CNN, section 4.1.
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if isinstance(loss_weight, (int, float)):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight

        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            self._init_fed_loss(get_fed_loss_cls_weights)

    def _init_fed_loss(self, get_weights: Callable[[], torch.Tensor] | None) -> None:
        if not self.use_sigmoid_ce or get_weights is None:
            raise ValueError(
                "the federated loss needs use_sigmoid_ce=True and get_fed_loss_cls_weights; set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to True, or USE_FED_LOSS to False"
            )
        weights = get_weights()
        if len(weights) != self.num_classes:
            raise ValueError(
                f"get_fed_loss_cls_weights() returned {len(weights)} weights for {self.num_classes} classes; "
                "MODEL.ROI_HEADS.NUM_CLASSES must be the number of classes of the training data set"
            )
        self.register_buffer("fed_loss_cls_weights", weights)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `Tensor[R, K + 1]` and deltas `Tensor[R, K * B]` (or `[R, B]`) from features `Tensor[R, ...]`."""
        x = x.flatten(start_dim=1) if x.dim() > 2 else x
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Classification and box losses.

        Args:
            predictions: what `forward` returned for all regions of the batch.
            proposals: for each image its regions with `proposal_boxes`, `gt_boxes` and `gt_classes`. An image without
                ground truth may lack `gt_boxes`: all its regions are background.

        Returns:
            `{"loss_cls": scalar, "loss_box_reg": scalar}`, multiplied by their weights.
        """
        scores, deltas = (full_precision(x) for x in predictions)
        gt_classes, proposal_boxes, gt_boxes = gather_targets(proposals, scores, len(self.box2box_transform.weights))
        _log_classification_stats(scores, gt_classes)
        if self.use_sigmoid_ce:
            loss_cls = self.sigmoid_cross_entropy_loss(scores, gt_classes)
        else:
            loss_cls = cross_entropy(scores, gt_classes, reduction="mean")
        loss_box_reg = self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)
        losses = {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def get_fed_loss_classes(
        self, gt_classes: torch.Tensor, num_fed_loss_classes: int, num_classes: int, weight: torch.Tensor
    ) -> torch.Tensor:
        """Draw the classes that the federated loss counts in this step.

        Args:
            gt_classes: labels of the regions, `Tensor[R]`; background is `num_classes`.
            num_fed_loss_classes: how many classes to return; more when more are present.
            num_classes: number of foreground classes.
            weight: `Tensor[num_classes]`, relative frequency with which an absent class is drawn.

        Returns:
            Indices of the present labels (background too, if present) and of the drawn classes, without repetition.
        """
        present = gt_classes.unique()
        missing = num_fed_loss_classes - present.numel()
        if missing <= 0:
            return present
        chance = torch.zeros(num_classes + 1, dtype=torch.float32, device=gt_classes.device)
        chance[:num_classes] = weight
        chance[present] = 0
        drawable = int(torch.count_nonzero(chance))
        if drawable == 0:
            return present
        return torch.cat([present, torch.multinomial(chance, min(missing, drawable), replacement=False)])

    def sigmoid_cross_entropy_loss(self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """Sum over classes, mean over regions, of the binary cross entropy of every foreground class.

        `pred_class_logits` is `Tensor[R, K + 1]`, of which the background column takes no part; `gt_classes` is
        `Tensor[R]` in `[0, K]`.
        """
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum() * 0
        logits = pred_class_logits[:, :-1]
        num_classes = logits.shape[1]
        target = F.one_hot(gt_classes, num_classes + 1)[:, :-1].to(logits.dtype)
        if not self.use_fed_loss:
            return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / logits.shape[0]
        counted = self.get_fed_loss_classes(
            gt_classes, self.fed_loss_num_classes, num_classes, self.fed_loss_cls_weights
        )
        weight = logits.new_zeros(num_classes + 1)
        weight[counted] = 1
        loss = F.binary_cross_entropy_with_logits(logits, target, weight=weight[:-1], reduction="sum")
        return loss / logits.shape[0]

    def box_reg_loss(
        self, proposal_boxes: torch.Tensor, gt_boxes: torch.Tensor, pred_deltas: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Box loss, summed over foreground regions and divided by the number of all regions.

        Dividing by the foreground alone would let a region in an image with few objects weigh more than others;
        divided by `R`, background included, every sampled region weighs the same (Fast R-CNN, equation 1).

        Args:
            proposal_boxes: `Tensor[R, B]`.
            gt_boxes: `Tensor[R, B]`; only rows of foreground regions are read.
            pred_deltas: `Tensor[R, K * B]` or `Tensor[R, B]`.
            gt_classes: `Tensor[R]`, labels in `[0, K]`.

        Returns:
            A scalar.
        """
        return box_regression_loss(self, proposal_boxes, gt_boxes, pred_deltas, gt_classes)

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections from what `forward` returned for regions with `proposal_boxes`; see `fast_rcnn_inference`."""
        return self._detections(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [x.image_size for x in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _detections(self, *arguments: Any) -> tuple[list[Instances], list[torch.Tensor]]:
        """Call the function that turns scored boxes into detections; rotated boxes have their own."""
        return fast_rcnn_inference(*arguments)

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Refined boxes for the labelled class (`gt_classes`) of each region: for each image `Tensor[Ri, B]`.

        For background regions it is the box of some class.
        """
        boxes = self.predict_boxes(predictions, proposals)
        if not boxes:
            return []
        box_dim = len(self.box2box_transform.weights)
        chosen = cat(boxes)
        if chosen.shape[1] > box_dim:
            classes = cat([x.gt_classes for x in proposals]).clamp(0, self.num_classes - 1)
            rows = torch.arange(chosen.shape[0], device=chosen.device)
            chosen = chosen.view(-1, self.num_classes, box_dim)[rows, classes]
        return split_by_image(chosen, proposals)

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Refined boxes: for each image `Tensor[Ri, K * B]`, or `Tensor[Ri, B]` when they do not depend on the class.

        They are not clipped to the image. `predictions` is what `forward` returned for all regions of the batch.
        """
        if not proposals:
            return []
        boxes = cat([x.proposal_boxes.tensor for x in proposals])
        refined = self.box2box_transform.apply_deltas(predictions[1], boxes)
        return split_by_image(refined, proposals)

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Class probabilities from what `forward` returned: for each image `Tensor[Ri, K + 1]`."""
        scores = full_precision(predictions[0])
        probabilities = scores.sigmoid() if self.use_sigmoid_ce else scores.softmax(dim=-1)
        return split_by_image(probabilities, proposals)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_HEADS` and `cfg.MODEL.ROI_BOX_HEAD`."""
        roi, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=box.BBOX_REG_WEIGHTS),
            "num_classes": roi.NUM_CLASSES,
            "cls_agnostic_bbox_reg": box.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": box.SMOOTH_L1_BETA,
            "test_score_thresh": roi.SCORE_THRESH_TEST,
            "test_nms_thresh": roi.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": box.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": box.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": box.USE_FED_LOSS,
            "use_sigmoid_ce": box.USE_SIGMOID_CE,
            # Read from the data sets' metadata, and only if the loss is on; found by name because `data` is not a
            # layer below `modeling`.
            "get_fed_loss_cls_weights": lambda: locate("detectron2.data.detection_utils.get_fed_loss_cls_weights")(
                dataset_names=cfg.DATASETS.TRAIN, freq_weight_power=box.FED_LOSS_FREQ_WEIGHT_POWER
            ),
            "fed_loss_num_classes": box.FED_LOSS_NUM_CLASSES,
        }


class FastRCNNOutputs:
    """What a box predictor answered, together with the proposals that it was asked about.

    Kept for code written against it; new code overrides methods of `FastRCNNOutputLayers`.

    Args:
        box2box_transform: how deltas move a box.
        pred_class_logits: `Tensor[R, K + 1]`.
        pred_proposal_deltas: `Tensor[R, K * B]` or `Tensor[R, B]`.
        proposals: regions of each image with `proposal_boxes`; for the losses also `gt_classes` and `gt_boxes`.
        smooth_l1_beta: where the smooth L1 loss turns from quadratic to linear.
        box_reg_loss_type: as in `FastRCNNOutputLayers`.
    """

    def __init__(
        self,
        box2box_transform: Any,
        pred_class_logits: torch.Tensor,
        pred_proposal_deltas: torch.Tensor,
        proposals: list[Instances],
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
    ):
        self.box2box_transform = box2box_transform
        self.pred_class_logits = pred_class_logits
        self.num_classes = pred_class_logits.shape[1] - 1
        self.pred_proposal_deltas = pred_proposal_deltas
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.num_preds_per_image = [x.num_rows() for x in proposals]
        self.image_shapes = [x.image_size for x in proposals]

        box_type = type(proposals[0].proposal_boxes) if proposals else Boxes
        box_dim = len(box2box_transform.weights)
        if proposals and proposals[0].has("gt_classes"):
            self.gt_classes, boxes, matched = gather_targets(proposals, pred_class_logits, box_dim)
            self.gt_boxes = box_type(matched)
        else:
            boxes = torch.cat([pred_class_logits.new_zeros(0, box_dim), *(x.proposal_boxes.tensor for x in proposals)])
        self.proposals = box_type(boxes)
        self._no_instances = len(boxes) == 0  # losses of projects read it

    def softmax_cross_entropy_loss(self) -> torch.Tensor:
        """Mean cross entropy of the class logits; statistics go to the open event storage."""
        _log_classification_stats(self.pred_class_logits, self.gt_classes)
        return cross_entropy(self.pred_class_logits, self.gt_classes, reduction="mean")

    def box_reg_loss(self) -> torch.Tensor:
        """Box loss; see `FastRCNNOutputLayers.box_reg_loss`."""
        boxes = self.proposals.tensor, self.gt_boxes.tensor
        return box_regression_loss(self, *boxes, self.pred_proposal_deltas, self.gt_classes)

    def losses(self) -> dict[str, torch.Tensor]:
        """`{"loss_cls": scalar, "loss_box_reg": scalar}`."""
        return {"loss_cls": self.softmax_cross_entropy_loss(), "loss_box_reg": self.box_reg_loss()}

    def predict_boxes(self) -> tuple[torch.Tensor, ...]:
        """Refined boxes, for each image `Tensor[Ri, K * B]` or `Tensor[Ri, B]`."""
        boxes = self.box2box_transform.apply_deltas(self.pred_proposal_deltas, self.proposals.tensor)
        return boxes.split(self.num_preds_per_image)

    def predict_probs(self) -> tuple[torch.Tensor, ...]:
        """Class probabilities, for each image `Tensor[Ri, K + 1]`."""
        return F.softmax(self.pred_class_logits, dim=-1).split(self.num_preds_per_image)

    def inference(
        self, score_thresh: float, nms_thresh: float, topk_per_image: int
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections; see `fast_rcnn_inference` for the arguments and the result."""
        boxes, scores = list(self.predict_boxes()), list(self.predict_probs())
        return fast_rcnn_inference(boxes, scores, self.image_shapes, score_thresh, nms_thresh, topk_per_image)
