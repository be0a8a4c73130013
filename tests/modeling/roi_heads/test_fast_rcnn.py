import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import fast_rcnn, numerics
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    FastRCNNOutputs,
    _log_classification_stats,
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
TRANSFORM = Box2BoxTransform(weights=WEIGHTS)


def predictor(num_classes=3, **kwargs):
    return FastRCNNOutputLayers(
        ShapeSpec(channels=6), box2box_transform=TRANSFORM, num_classes=num_classes, **kwargs
    ).eval()


def iou(a, b):
    wh = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return wh.prod() / (areas - wh.prod())


def slow_inference(boxes, scores, image_shape, score_thresh, nms_thresh, topk):
    """The rule in words: above the threshold, clipped, best first, one class at a time."""
    height, width = image_shape
    candidates = []
    for row in range(scores.shape[0]):
        for cls in range(scores.shape[1] - 1):
            if scores[row, cls] > score_thresh:
                box = boxes[row].reshape(-1, 4)
                box = box[cls if len(box) > 1 else 0]
                candidates.append((-scores[row, cls], row, cls, np.clip(box, 0, [width, height, width, height])))
    kept = []
    for score, row, cls, box in sorted(candidates, key=lambda c: c[:3]):
        if all(k[2] != cls or iou(k[3], box) <= nms_thresh for k in kept):
            kept.append((score, row, cls, box))
    return kept if topk < 0 else kept[:topk]


def random_case(rows, classes, agnostic, seed):
    r = np.random.default_rng(seed)
    columns = 1 if agnostic else classes
    corner = r.uniform(-5, 40, (rows, columns, 2))
    boxes = np.concatenate([corner, corner + r.uniform(5, 30, (rows, columns, 2))], 2).reshape(rows, 4 * columns)
    scores = r.dirichlet(np.ones(classes + 1), rows)
    return boxes, scores


@pytest.mark.parametrize("topk", [-1, 0, 5, 1000])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("small_set", [4096, 8])
def test_inference_follows_the_rule(monkeypatch, rows, agnostic, topk, small_set):
    monkeypatch.setattr(numerics, "_SMALL_SET", small_set)  # 8: the search through growing prefixes
    boxes, scores = random_case(rows, 4, agnostic, seed=rows)
    expected = slow_inference(boxes, scores, (45, 50), 0.15, 0.4, topk)
    result, index = fast_rcnn_inference_single_image(
        torch.from_numpy(boxes), torch.from_numpy(scores), (45, 50), 0.15, 0.4, topk
    )
    assert index.tolist() == [k[1] for k in expected]
    assert result.pred_classes.tolist() == [k[2] for k in expected]
    np.testing.assert_allclose(result.scores.numpy(), [-k[0] for k in expected], rtol=1e-12)
    np.testing.assert_allclose(result.pred_boxes.tensor.numpy(), np.reshape([k[3] for k in expected], (-1, 4)))
    assert result.image_size == (45, 50)
    assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_inference_of_no_image():
    assert fast_rcnn_inference([], [], [], 0.5, 0.5, 100) == ([], [])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_passed_over(poison):
    boxes = torch.tensor([[0.0, 0, 10, 10], [poison, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.8, 0.2]])
    result, index = fast_rcnn_inference_single_image(boxes, scores, (40, 40), 0.5, 0.5, 10)
    assert index.tolist() == [0, 2]  # rows of what was given, not of what was left
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]


def test_inference_leaves_its_inputs_alone():
    boxes, scores = torch.tensor([[-5.0, -5, 100, 100]]), torch.tensor([[0.9, 0.1]])
    fast_rcnn_inference_single_image(boxes, scores, (40, 50), 0.5, 0.5, 10)
    assert boxes.tolist() == [[-5, -5, 100, 100]]


def labelled(boxes, gt_boxes, gt_classes, size_hw=(100, 100)):
    out = Instances(size_hw)
    out.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.gt_classes = torch.tensor(gt_classes, dtype=torch.int64)
    if gt_boxes is not None:
        out.gt_boxes = Boxes(torch.tensor(gt_boxes, dtype=torch.float32).reshape(-1, 4))
    return out


PROPOSALS = [
    ([[10, 10, 30, 30], [0, 0, 20, 40]], [[12, 9, 32, 34], [0, 0, 1, 1]], [1, 3]),
    ([[50, 50, 90, 70]], [[48, 52, 90, 75]], [0]),
]


def deltas_by_hand(box, target):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, target
    w, h, tw, th = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    return [
        10 * ((u1 + u2) / 2 - (x1 + x2) / 2) / w,
        10 * ((v1 + v2) / 2 - (y1 + y2) / 2) / h,
        5 * np.log(tw / w),
        5 * np.log(th / h),
    ]


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_by_hand(agnostic, beta):
    layer = predictor(cls_agnostic_bbox_reg=agnostic, smooth_l1_beta=beta)
    scores = torch.tensor([[0.1, 1.0, -1.0, 0.5], [0.0, 0.3, 0.2, 2.0], [1.5, -0.5, 0.0, 0.25]])
    deltas = torch.linspace(-1, 1, 3 * (4 if agnostic else 12)).reshape(3, -1)
    losses = layer.losses((scores, deltas), [labelled(*p) for p in PROPOSALS])

    s = scores.double().numpy()
    log_p = s - np.log(np.exp(s).sum(1, keepdims=True))
    assert losses["loss_cls"].item() == pytest.approx(-(log_p[0, 1] + log_p[1, 3] + log_p[2, 0]) / 3, rel=1e-5)

    d = deltas.double().numpy().reshape(3, -1, 4)
    total = 0.0
    for row, cls, box, target in [
        (0, 1, [10, 10, 30, 30], [12, 9, 32, 34]),
        (2, 0, [50, 50, 90, 70], [48, 52, 90, 75]),
    ]:
        error = np.abs(d[row, 0 if agnostic else cls] - deltas_by_hand(box, target))
        total += np.where(error < beta, 0.5 * error**2 / (beta or 1), error - 0.5 * beta).sum()
    assert losses["loss_box_reg"].item() == pytest.approx(total / 3, rel=1e-5)  # divided by all regions


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_vanish_at_the_truth_and_nowhere_else(kind):
    layer = predictor(box_reg_loss_type=kind)
    proposals = [labelled(*PROPOSALS[1])]
    exact = torch.zeros(1, 12)
    exact[0, :4] = torch.tensor(deltas_by_hand([50, 50, 90, 70], [48, 52, 90, 75]))
    scores = torch.zeros(1, 4)
    assert layer.losses((scores, exact), proposals)["loss_box_reg"].item() == pytest.approx(0, abs=1e-5)
    assert layer.losses((scores, torch.zeros(1, 12)), proposals)["loss_box_reg"].item() > 0.1


def test_giou_loss_by_hand():
    layer = predictor(box_reg_loss_type="giou", num_classes=1)
    proposals = [labelled([[0, 0, 10, 10]], [[5, 0, 15, 10]], [0])]
    loss = layer.losses((torch.zeros(1, 2), torch.zeros(1, 4)), proposals)["loss_box_reg"]
    assert loss.item() == pytest.approx(1 - 50 / 150, rel=1e-5)  # the hull adds nothing here: 150 = union


def test_unknown_box_loss_is_named():
    with pytest.raises(ValueError, match="l3"):
        predictor(box_reg_loss_type="l3").losses((torch.zeros(1, 4), torch.zeros(1, 12)), [labelled(*PROPOSALS[1])])


@pytest.mark.parametrize("proposals", [[], [labelled([], [], [])], [labelled([], None, [])]])
def test_losses_without_regions_are_zero_and_differentiable(proposals):
    layer = predictor().train()
    predictions = layer(torch.zeros(0, 6))
    losses = layer.losses(predictions, proposals)
    sum(losses.values()).backward()
    assert {k: v.item() for k, v in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
    assert layer.cls_score.weight.grad.abs().sum() == 0


def test_background_alone_has_no_box_loss():
    layer = predictor().train()
    proposals = [labelled([[0, 0, 10, 10], [5, 5, 9, 9]], None, [3, 3])]
    losses = layer.losses(layer(torch.randn(2, 6)), proposals)
    assert losses["loss_box_reg"].item() == 0 and losses["loss_cls"].item() > 0


@pytest.mark.parametrize(
    ("weight", "factors"), [(2.0, (2, 2)), ({"loss_box_reg": 3.0}, (1, 3)), ({"loss_cls": 0.5}, (0.5, 1))]
)
def test_loss_weights(weight, factors):
    predictions = (torch.randn(3, 4), torch.randn(3, 12))
    proposals = [labelled(*p) for p in PROPOSALS]
    plain = predictor().losses(predictions, proposals)
    weighted = predictor(loss_weight=weight).losses(predictions, proposals)
    for name, factor in zip(("loss_cls", "loss_box_reg"), factors, strict=True):
        assert weighted[name].item() == pytest.approx(factor * plain[name].item())


def test_sigmoid_loss_by_hand():
    layer = predictor(use_sigmoid_ce=True)
    logits = torch.tensor([[0.5, -1.0, 2.0, 9.0], [0.0, 0.25, -0.5, -9.0]])
    p = 1 / (1 + np.exp(-logits[:, :3].double().numpy()))
    target = np.array([[0, 0, 1], [0, 0, 0]])  # the second is background
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum() / 2
    loss = layer.sigmoid_cross_entropy_loss(logits, torch.tensor([2, 3]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert layer.sigmoid_cross_entropy_loss(logits[:0], torch.tensor([], dtype=torch.int64)).item() == 0
    probabilities = layer.predict_probs((logits, None), [labelled(PROPOSALS[0][0], None, [0, 0])])[0]
    np.testing.assert_allclose(probabilities[:, :3].numpy(), p, rtol=1e-6)


def federated(weights, counted, num_classes=6):
    return predictor(
        num_classes,
        use_sigmoid_ce=True,
        use_fed_loss=True,
        fed_loss_num_classes=counted,
        get_fed_loss_cls_weights=lambda: torch.tensor(weights),
    )


def test_federated_loss_counts_present_and_drawn_classes_only():
    layer = federated([1.0, 1, 0, 0, 0, 1], counted=3)
    labels = torch.tensor([2, 6, 2])  # class 2 and background are present, so one more is drawn
    drawn = set()
    for _ in range(60):
        classes = layer.get_fed_loss_classes(labels, 3, 6, layer.fed_loss_cls_weights).tolist()
        assert len(classes) == 3 and classes[:2] == [2, 6]
        drawn.add(classes[2])
    assert drawn == {0, 1, 5}  # those of weight zero never are
    logits = torch.randn(3, 7)
    loss = layer.sigmoid_cross_entropy_loss(logits, torch.tensor([0, 1, 5]))  # all three are present
    target = F.one_hot(torch.tensor([0, 1, 5]), 7).float()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, [0, 1, 5]]
    assert loss.item() == pytest.approx(each.sum().item() / 3, rel=1e-6)
    assert "fed_loss_cls_weights" in layer.state_dict()


def test_federated_loss_returns_all_present_classes_even_if_too_many():
    layer = federated([1.0] * 6, counted=2)
    assert layer.get_fed_loss_classes(torch.tensor([5, 0, 3, 3]), 2, 6, layer.fed_loss_cls_weights).tolist() == [
        0,
        3,
        5,
    ]
    assert layer.get_fed_loss_classes(torch.tensor([1]), 4, 6, torch.zeros(6)).tolist() == [1]  # nothing to draw


@pytest.mark.parametrize(
    "options",
    [
        {"use_fed_loss": True},
        {"use_fed_loss": True, "use_sigmoid_ce": True},
        {"use_fed_loss": True, "use_sigmoid_ce": True, "get_fed_loss_cls_weights": lambda: torch.ones(2)},
    ],
)
def test_incomplete_federated_loss_is_refused(options):
    with pytest.raises(ValueError, match=r"USE_SIGMOID_CE|NUM_CLASSES"):
        predictor(**options)


def test_statistics_by_hand():
    logits = torch.eye(4)[[0, 3, 3, 1, 2]]  # predicted classes; 3 is background
    labels = torch.tensor([0, 1, 3, 3, 1])
    with EventStorage() as storage:
        _log_classification_stats(logits, labels, prefix="x")
        values = {k: float(v[0]) for k, v in storage.latest().items()}
    assert values == pytest.approx({"x/cls_accuracy": 2 / 5, "x/fg_cls_accuracy": 1 / 3, "x/false_negative": 1 / 3})
    _log_classification_stats(logits, labels)  # nobody listens: nothing happens
    with EventStorage() as storage:
        _log_classification_stats(logits[:0], labels[:0])
        assert storage.latest() == {}


def test_predicted_boxes_for_labels():
    proposals = [labelled(*p) for p in PROPOSALS]
    deltas = torch.randn(3, 12)
    per_class = [b.reshape(-1, 3, 4) for b in predictor().predict_boxes((None, deltas), proposals)]
    chosen = predictor().predict_boxes_for_gt_classes((None, deltas), proposals)
    assert [c.shape for c in chosen] == [(2, 4), (1, 4)]
    torch.testing.assert_close(chosen[0][0], per_class[0][0, 1])
    torch.testing.assert_close(chosen[1][0], per_class[1][0, 0])
    agnostic = predictor(cls_agnostic_bbox_reg=True)
    torch.testing.assert_close(
        agnostic.predict_boxes_for_gt_classes((None, deltas[:, :4]), proposals)[1],
        agnostic.predict_boxes((None, deltas[:, :4]), proposals)[1],
    )
    assert predictor().predict_boxes_for_gt_classes((None, deltas[:0]), []) == []
    assert predictor().predict_boxes((None, deltas[:0]), []) == []


def test_inference_uses_the_function_of_the_module(monkeypatch):
    seen = []
    monkeypatch.setattr(fast_rcnn, "fast_rcnn_inference", lambda *args: seen.append(args) or ("a", "b"))
    layer = predictor(test_score_thresh=0.3, test_nms_thresh=0.6, test_topk_per_image=7)
    proposals = [labelled(*p) for p in PROPOSALS]
    assert layer.inference(layer(torch.randn(3, 6)), proposals) == ("a", "b")
    boxes, scores, shapes, *limits = seen[0]
    assert [b.shape for b in boxes] == [(2, 12), (1, 12)] and shapes == [(100, 100)] * 2 and limits == [0.3, 0.6, 7]
    assert all(torch.allclose(s.sum(1), torch.ones(len(s))) for s in scores)


def test_state_and_initial_weights():
    layer = FastRCNNOutputLayers(100, box2box_transform=TRANSFORM, num_classes=40)
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    assert shapes == {
        "cls_score.weight": (41, 100),
        "cls_score.bias": (41,),
        "bbox_pred.weight": (160, 100),
        "bbox_pred.bias": (160,),
    }
    assert layer.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert layer.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not layer.cls_score.bias.any() and not layer.bbox_pred.bias.any()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x)[0], layer(x.flatten(1))[0])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), layer(x))


def test_from_config(tiny_rcnn_cfg):
    cfg = tiny_rcnn_cfg("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.5, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou")
    layer = FastRCNNOutputLayers(cfg, ShapeSpec(channels=6), smooth_l1_beta=0.7)
    assert layer.loss_weight == {"loss_box_reg": 2.5} and layer.box_reg_loss_type == "giou"
    assert (layer.num_classes, layer.test_topk_per_image, layer.smooth_l1_beta) == (3, 10, 0.7)
    assert tuple(layer.box2box_transform.weights) == WEIGHTS
    assert not layer.use_fed_loss


def test_former_interface_agrees_with_the_present_one():
    layer, proposals = predictor(), [labelled(*p) for p in PROPOSALS]
    predictions = layer(torch.randn(3, 6))
    former = FastRCNNOutputs(TRANSFORM, *predictions, proposals, 0.0)
    for name, loss in layer.losses(predictions, proposals).items():
        torch.testing.assert_close(former.losses()[name], loss)
    for ours, theirs in zip(layer.predict_boxes(predictions, proposals), former.predict_boxes(), strict=True):
        torch.testing.assert_close(ours, theirs)
    result, _ = former.inference(0.0, 0.5, 10)
    expected, _ = layer.inference(predictions, proposals)
    assert [len(x) for x in result] == [min(10, len(x)) for x in expected]
    assert not former._no_instances  # read by losses of projects
    empty = FastRCNNOutputs(TRANSFORM, torch.zeros(0, 4), torch.zeros(0, 12), [])
    assert empty.predict_boxes() == () and empty._no_instances


def test_federated_loss_from_config(monkeypatch, tiny_rcnn_cfg):
    from detectron2.data import detection_utils

    asked = []

    def frequencies(dataset_names, freq_weight_power):
        asked.append((dataset_names, freq_weight_power))
        return torch.tensor([3.0, 2.0, 1.0])

    monkeypatch.setattr(detection_utils, "get_fed_loss_cls_weights", frequencies)
    cfg = tiny_rcnn_cfg("DATASETS.TRAIN", ("some_train",), "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 2)
    FastRCNNOutputLayers(cfg, ShapeSpec(channels=6))
    assert asked == []  # the data set is not looked at in vain
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    layer = FastRCNNOutputLayers(cfg, ShapeSpec(channels=6))
    assert asked == [(("some_train",), 0.5)]
    assert layer.fed_loss_cls_weights.tolist() == [3, 2, 1] and layer.fed_loss_num_classes == 2
