"""RetinaNet with few channels: labels and losses by hand, both ways through the model."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import sum_of_focal_losses
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

K = 3


class TwoMaps(Backbone):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self._out_features = ["p3", "p4"]
        self._out_feature_channels = {"p3": 4, "p4": 4}
        self._out_feature_strides = {"p3": 8, "p4": 16}

    @property
    def size_divisibility(self):
        return 16

    def forward(self, x):
        x = self.conv(x).relu()
        return {"p3": x, "p4": nn.functional.max_pool2d(x, 2)}


def head(**kwargs) -> RetinaNetHead:
    shapes = [ShapeSpec(channels=4)] * 2
    return RetinaNetHead(**{"input_shape": shapes, "num_classes": K, "num_anchors": 2, "conv_dims": [4, 6], **kwargs})


def make(**kwargs) -> RetinaNet:
    arguments = {
        "backbone": TwoMaps(),
        "head": head(),
        "head_in_features": ["p3", "p4"],
        "anchor_generator": DefaultAnchorGenerator(sizes=[[16], [32]], aspect_ratios=[0.5, 2.0], strides=[8, 16]),
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        "num_classes": K,
        "pixel_mean": [0.0] * 3,
        "pixel_std": [255.0] * 3,
    }
    return RetinaNet(**{**arguments, **kwargs})


def ground_truth(boxes=(), classes=(), size_hw=(40, 60)):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Instances(size_hw, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))


def batch(*gt):
    gt = gt or (ground_truth([[4, 4, 20, 30], [30, 10, 58, 38]], [0, 2]), ground_truth())
    return [{"image": torch.rand(3, 40, 60) * 255, "instances": g} for g in gt]


def test_no_images():
    assert make().eval().inference([], [], [], []) == []


def test_training():
    model = make()
    with EventStorage() as storage:
        losses = model(batch())
        assert storage.history("num_pos_anchors").latest() >= 1
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_gradients_of_few_anchors_are_those_of_the_whole_map(monkeypatch):
    model, inputs, found = make(), batch(), []
    for _ in range(2):
        model._buffers.pop("loss_normalizer", None)
        losses = model(inputs)
        found.append((*losses.values(), *torch.autograd.grad(sum(losses.values()), list(model.parameters()))))
        monkeypatch.setattr("detectron2.modeling.meta_arch.retinanet.chain_of", lambda modules, maps: [])
    torch.testing.assert_close(*found)


def test_losses_in_low_precision_are_near_those_in_float32():
    model, inputs = make(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    state, found = copy.deepcopy(model.state_dict()), []
    for is_low in (False, True):
        model.load_state_dict(state)
        model._buffers.pop("loss_normalizer", None)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low):
                losses = model(inputs)
            assert all(loss.dtype == torch.float32 for loss in losses.values())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        found.append(losses)
    torch.testing.assert_close(*found, rtol=0.02, atol=1e-3)


def test_training_without_any_object():
    model = make()
    losses = model(batch(ground_truth(), ground_truth()))
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert not model.head.bbox_pred.weight.grad.any() and model.head.cls_score.bias.grad.any()


def test_low_precision_trains():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_labels_by_hand():
    anchors = [
        Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 2]])),
        Boxes(torch.tensor([[30.0, 30, 40, 40]])),
    ]
    labels, boxes = make().label_anchors(anchors, [ground_truth([[0, 0, 10, 9.5]], [2]), ground_truth()])
    assert labels[0].tolist() == [2, -1, K, K]  # IoU 0.95, 9/19, 4/19 and 0
    assert boxes[0].tolist() == [[0, 0, 10, 9.5]] * 4
    assert labels[1].tolist() == [K] * 4 and boxes[1].shape == (4, 4)


@pytest.mark.parametrize("label", [-1, K])
def test_labels_outside_the_classes_are_reported(label):
    with pytest.raises(ValueError, match=rf"label {label}.*{K} classes.*NUM_CLASSES"):
        make()(batch(ground_truth([[4, 4, 20, 30]], [label])))


def slow_focal_loss(logits, labels, alpha, gamma):
    total = 0.0
    for row, label in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        for k, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if label == k:
                total -= (alpha if alpha >= 0 else 1) * (1 - p) ** gamma * math.log(p)
            elif label != -1:
                total -= ((1 - alpha) if alpha >= 0 else 1) * p**gamma * math.log(1 - p)
    return total


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (-1, 1.5)])
def test_focal_loss_against_a_loop(alpha, gamma):
    logits = torch.randn(2, 5, K, requires_grad=True)
    labels = torch.tensor([[0, K, -1, 2, K], [K, -1, 1, K, K]])
    positive = (labels >= 0) & (labels < K)
    loss = sum_of_focal_losses([logits[:, :3], logits[:, 3:]], labels, positive, alpha=alpha, gamma=gamma)
    assert loss.item() == pytest.approx(slow_focal_loss(logits, labels, alpha, gamma), rel=1e-5)
    loss.backward()
    assert not logits.grad[labels == -1].any() and logits.grad[labels != -1].all()


def test_losses_are_divided_by_a_moving_average():
    model = make()
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10]]))]
    logits, deltas = [torch.randn(1, 2, K)], [torch.randn(1, 2, 4)]
    labels, gt = [torch.tensor([1, K])], [torch.tensor([[0.0, 0, 20, 10]] * 2)]
    focal = slow_focal_loss(logits[0], labels[0], 0.25, 2.0)
    distance = (deltas[0][0, 0] - torch.tensor([0.5, 0.0, math.log(2), 0.0])).abs().sum().item()
    for normalizer in (0.9 * 100 + 0.1, 0.9 * (0.9 * 100 + 0.1) + 0.1):
        losses = model.losses(anchors, logits, labels, deltas, gt)
        assert losses["loss_cls"].item() == pytest.approx(focal / normalizer, rel=1e-5)
        assert losses["loss_box_reg"].item() == pytest.approx(distance / normalizer, rel=1e-5)


def test_inference_finds_nothing_at_first():
    outputs = make().eval()(batch())
    assert [len(x["instances"]) for x in outputs] == [0, 0]


def test_inference():
    model = make(max_detections_per_image=7, test_nms_thresh=0.4).eval()
    nn.init.normal_(model.head.cls_score.weight)
    nn.init.zeros_(model.head.cls_score.bias)
    for item in (outputs := model([{**x, "height": 80, "width": 90} for x in batch()])):
        found = item["instances"]
        assert found.image_size == (80, 90) and 0 < len(found) <= 7
        assert (found.scores.diff() <= 0).all() and (found.scores > 0.05).all()
        assert ((found.pred_classes >= 0) & (found.pred_classes < K)).all()
        assert (found.pred_boxes.tensor >= 0).all()
    assert len(outputs) == 2


def test_detections_by_hand():
    model = make(test_score_thresh=0.5, test_nms_thresh=0.5)
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])), Boxes(torch.tensor([[20.0, 20, 30, 30]]))]
    # Class 0 in both overlapping anchors: one goes. Class 2 in the second of them stays: suppression is per class.
    logits = [torch.tensor([[2.0, -9, -9], [1.0, -9, 3.0]]), torch.tensor([[-0.1, 0.5, -9]])]
    result = model.inference_single_image(anchors, logits, [torch.zeros(2, 4), torch.zeros(1, 4)], (40, 40))
    assert torch.allclose(result.scores, torch.tensor([3.0, 2.0, 0.5]).sigmoid())
    assert result.pred_classes.tolist() == [2, 0, 1]
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_extreme_thresholds(threshold):
    model = make(test_score_thresh=threshold, test_topk_candidates=4).eval()
    outputs = model(batch())
    assert all((len(x["instances"]) > 0) == (threshold == 0) for x in outputs)


@pytest.mark.parametrize(("norm", "step"), [("", 2), ("GN", 3), ("FrozenBN", 3)])
def test_names_of_parameters(norm, step):
    keys = set(head(conv_dims=[32, 32], norm=norm).state_dict())
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in range(2):
            assert {f"{tower}.{i * step}.weight", f"{tower}.{i * step}.bias"} <= keys
            assert (f"{tower}.{i * step + 1}.weight" in keys) == bool(norm)
    assert {"cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"} <= keys


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_levels_have_their_own_batch_norm(norm):
    model = head(norm=norm)
    norms = [m for m in model.modules() if isinstance(m, CycleBatchNormList)]
    assert len(norms) == 4 and all(len(m) == 2 for m in norms)


def test_head_without_towers():
    logits, deltas = head(conv_dims=[])([torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 2, 2)])
    assert logits[0].shape == (1, 2 * K, 3, 3) and deltas[1].shape == (1, 8, 2, 2)


def test_untrained_head_gives_the_prior_probability():
    logits, _ = head(prior_prob=0.2)([torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 2, 2)])
    assert torch.allclose(logits[0].sigmoid(), torch.full((1, 2 * K, 3, 3), 0.2))


def test_head_errors():
    with pytest.raises(ValueError, match=r"channels \[4, 5\]"):
        head(input_shape=[ShapeSpec(channels=4), ShapeSpec(channels=5)])
    with pytest.raises(ValueError, match="made for 2 feature maps; got 1"):
        head()([torch.zeros(1, 4, 3, 3)])


def config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.FPN.OUT_CHANNELS = 4
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s, s * 1.5] for s in (32, 64, 128, 256, 512)]
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    return cfg


def test_config():
    assert "RetinaNet" in META_ARCH_REGISTRY
    model = build_model(config())
    assert isinstance(model, RetinaNet) and model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert model.head.cls_score.weight.shape == (6 * K, 4, 3, 3) and len(model.head.cls_subnet) == 2
    assert model.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert model.smooth_l1_beta == 0.1 and model.test_score_thresh == 0.3 and model.max_detections_per_image == 9
    assert model.anchor_matcher.thresholds[1:-1] == [0.4, 0.5] and model.input_format == "BGR"
    assert set(model(batch())) == {"loss_cls", "loss_box_reg"}
    assert len(model.eval()(batch())) == 2


def test_config_errors():
    cfg = config()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512, 600]]
    with pytest.raises(ValueError, match="equally many anchors"):
        build_model(cfg)


def test_copies():
    model = make()
    model(batch())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict())
        assert other.loss_normalizer == model.loss_normalizer
