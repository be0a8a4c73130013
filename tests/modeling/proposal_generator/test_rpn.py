"""The region proposal network with few channels: labels and losses by hand, and the way through it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN, RPN_HEAD_REGISTRY, StandardRPNHead, build_rpn_head
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage


def make(**kwargs) -> RPN:
    arguments = {
        "in_features": ["p2", "p3"],
        "head": StandardRPNHead(in_channels=4, num_anchors=2),
        "anchor_generator": DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[[0.5, 2.0]], strides=[4, 8]),
        "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 16,
        "positive_fraction": 0.5,
        "pre_nms_topk": (50, 20),
        "post_nms_topk": (30, 10),
    }
    return RPN(**{**arguments, **kwargs})


def batch(num_images=2):
    images = ImageList(torch.zeros(num_images, 3, 32, 40), [(32, 40), (28, 36)][:num_images])
    features = {"p2": torch.randn(num_images, 4, 8, 10), "p3": torch.randn(num_images, 4, 4, 5), "p4": None}
    return images, features


def ground_truth(*boxes, size_hw=(32, 40)):
    return Instances(size_hw, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)))


@pytest.mark.parametrize(
    ("conv_dims", "keys"),
    [((-1,), {"conv"}), ((6,), {"conv"}), ((-1, 6, -1), {"conv.conv0", "conv.conv1", "conv.conv2"})],
)
def test_head(conv_dims, keys):
    head = StandardRPNHead(in_channels=4, num_anchors=3, box_dim=5, conv_dims=conv_dims)
    logits, deltas = head([torch.randn(2, 4, 6, 7), torch.randn(2, 4, 3, 4)])
    assert [tuple(x.shape) for x in logits] == [(2, 3, 6, 7), (2, 3, 3, 4)]
    assert [tuple(x.shape) for x in deltas] == [(2, 15, 6, 7), (2, 15, 3, 4)]
    expected = {f"{m}.{p}" for m in keys | {"objectness_logits", "anchor_deltas"} for p in ("weight", "bias")}
    assert set(head.state_dict()) == expected
    assert head([]) == ([], [])


def test_head_is_rectified():
    head = StandardRPNHead(in_channels=4, num_anchors=3)
    x = torch.randn(1, 4, 5, 5)
    hidden = F.relu(F.conv2d(x, head.conv.weight, head.conv.bias, padding=1))
    assert torch.allclose(head([x])[0][0], head.objectness_logits(hidden))


def without_chains(monkeypatch):
    monkeypatch.setattr("detectron2.modeling.proposal_generator.rpn.chain_of", lambda modules, maps: [])


@pytest.mark.parametrize("conv_dims", [(-1,), (-1, 6)])
def test_gradients_of_few_anchors_are_those_of_the_whole_map(conv_dims, monkeypatch):
    head = StandardRPNHead(in_channels=4, num_anchors=2, conv_dims=conv_dims)
    model, (images, features) = make(head=head, batch_size_per_image=2), batch()
    found = []
    for change in (lambda: None, lambda: without_chains(monkeypatch)):
        change()
        torch.manual_seed(0)
        x = {name: f if f is None else f.clone().requires_grad_() for name, f in features.items()}
        _, losses = model(images, x, [ground_truth([4, 4, 12, 20]), ground_truth()])
        variables = [x["p2"], x["p3"], *model.parameters()]
        found.append((*losses.values(), *torch.autograd.grad(sum(losses.values()), variables)))
    torch.testing.assert_close(*found)


def test_layers_of_other_kinds_take_the_whole_map():
    head = StandardRPNHead(in_channels=4, num_anchors=3)
    assert head._chain([torch.zeros(1, 4, 5, 5)]) == [head.conv, head.objectness_logits, head.anchor_deltas]
    head.anchor_deltas = torch.nn.Conv2d(4, 12, 3, padding=1)
    assert head._chain([torch.zeros(1, 4, 5, 5)]) == []
    head.anchor_deltas = torch.nn.Identity()
    assert head._chain([torch.zeros(1, 4, 5, 5)]) == []
    logits, deltas = head([torch.zeros(1, 4, 5, 5)])
    assert logits[0].shape == (1, 3, 5, 5) and deltas[0].shape == (1, 4, 5, 5)


def test_hooks_of_layers_are_called_in_training():
    head, seen = StandardRPNHead(in_channels=4, num_anchors=3), []
    head.objectness_logits.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits, _ = head([torch.zeros(1, 4, 5, 5)])
    assert len(seen) == 1 and seen[0] is logits[0]


@pytest.mark.parametrize(("conv_dims", "message"), [((), "empty"), ((0,), "positive"), ((4, -2), "positive")])
def test_bad_head(conv_dims, message):
    with pytest.raises(ValueError, match=message):
        StandardRPNHead(in_channels=4, num_anchors=3, conv_dims=conv_dims)


def test_no_images():
    model = make().eval()
    features = {"p2": torch.zeros(0, 4, 8, 10), "p3": torch.zeros(0, 4, 4, 5)}
    assert model(ImageList(torch.zeros(0, 3, 32, 40), []), features) == ([], {})


def test_inference():
    model = make().eval()
    images, features = batch()
    proposals, losses = model(images, features)
    assert losses == {} and [p.image_size for p in proposals] == images.image_sizes
    for p in proposals:
        assert 0 < len(p) <= 10
        assert (p.objectness_logits.diff() <= 0).all()
        assert not p.objectness_logits.requires_grad and not p.proposal_boxes.tensor.requires_grad


def test_only_the_best_anchors_are_decoded_but_with_the_same_result():
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images, features = batch()
    anchors = model.anchor_generator([features["p2"], features["p3"]])
    logits, deltas = model.rpn_head([features["p2"], features["p3"]])
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    deltas = [x.view(2, 2, 4, *x.shape[-2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 4) for x in deltas]
    with torch.no_grad():
        decoded = model._decode_proposals(anchors, deltas)
        assert [tuple(x.shape) for x in decoded] == [(2, 160, 4), (2, 40, 4)]
        expected = find_top_rpn_proposals(decoded, logits, images.image_sizes, 0.7, 20, 10, 0.0, False)
    for got, want in zip(model(images, features)[0], expected, strict=True):
        assert torch.allclose(got.proposal_boxes.tensor, want.proposal_boxes.tensor, atol=1e-5)
        assert torch.equal(got.objectness_logits, want.objectness_logits)


def test_training():
    model = make()
    images, features = batch()
    gt = [ground_truth([4, 4, 12, 16], [20, 8, 36, 30]), ground_truth(size_hw=(28, 36))]
    with EventStorage() as storage:
        proposals, losses = model(images, features, gt)
        assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
        positives = storage.history("rpn/num_pos_anchors").latest()
        assert positives + storage.history("rpn/num_neg_anchors").latest() == 16
        assert positives >= 1
    assert all(0 < len(p) <= 30 for p in proposals)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_training_without_any_object_still_trains_objectness():
    model = make()
    images, features = batch()
    _, losses = model(images, features, [ground_truth(), ground_truth()])
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"] > 0
    sum(losses.values()).backward()
    assert not model.rpn_head.anchor_deltas.weight.grad.any()


def test_training_needs_ground_truth():
    with pytest.raises(ValueError, match="needs gt_instances"):
        make()(*batch())


def test_labels_by_hand():
    model = make(batch_size_per_image=100, positive_fraction=1.0)
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])), Boxes(torch.tensor([[30.0, 30, 40, 40]]))]
    labels, boxes = model.label_and_sample_anchors(anchors, [ground_truth([0, 0, 10, 9]), ground_truth()])
    assert labels[0].tolist() == [1, -1, 0]  # IoU 0.9, 5/9 and 0
    assert boxes[0].tolist() == [[0, 0, 10, 9]] * 3
    assert labels[1].tolist() == [0, 0, 0] and boxes[1].shape == (3, 4)


@pytest.mark.parametrize(("threshold", "expected"), [(-1, [1, 0, 0]), (0, [1, -1, -1]), (4, [1, 0, -1])])
def test_anchors_beyond_the_boundary(threshold, expected):
    model = make(batch_size_per_image=100, positive_fraction=1.0, anchor_boundary_thresh=threshold)
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [-3, 20, 10, 30], [30, 30, 46, 40]]))]
    labels, _ = model.label_and_sample_anchors(anchors, [ground_truth([0, 0, 10, 9])])
    assert labels[0].tolist() == expected


def test_subsampling():
    label = torch.tensor([1] * 20 + [0] * 20 + [-1] * 5, dtype=torch.int8)
    drawn = make()._subsample_labels(label.clone())
    assert (drawn == 1).sum() == 8 and (drawn == 0).sum() == 8
    assert torch.equal(drawn[drawn >= 0], label[drawn >= 0])


@pytest.mark.parametrize("weight", [1.0, {"loss_rpn_cls": 2.0}, {"loss_rpn_cls": 2.0, "loss_rpn_loc": 3.0}])
def test_losses_by_hand(weight):
    model = make(loss_weight=weight)
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10]])), Boxes(torch.tensor([[5.0, 5, 15, 15]]))]
    logits, deltas = [torch.randn(2, 2), torch.randn(2, 1)], [torch.randn(2, 2, 4), torch.randn(2, 1, 4)]
    labels = [torch.tensor([1, 0, -1], dtype=torch.int8), torch.tensor([-1, 0, 0], dtype=torch.int8)]
    gt = [torch.tensor([[0.0, 0, 20, 10]] * 3), torch.zeros(3, 4)]
    losses = model.losses(anchors, logits, labels, deltas, gt)
    x = torch.cat(logits, 1)
    log_sigmoid = F.logsigmoid
    entropy = -(log_sigmoid(x[0, 0]) + log_sigmoid(-x[0, 1]) + log_sigmoid(-x[1, 1]) + log_sigmoid(-x[1, 2]))
    # The target of the one positive anchor: moved right by half its width and doubled in width.
    target = torch.tensor([0.5, 0.0, torch.tensor(2.0).log(), 0.0])
    distance = (deltas[0][0, 0] - target).abs().sum()
    factor = weight if isinstance(weight, dict) else dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), weight)
    assert losses["loss_rpn_cls"].item() == pytest.approx((entropy / 32 * factor["loss_rpn_cls"]).item(), rel=1e-5)
    expected = distance / 32 * factor.get("loss_rpn_loc", 1.0)
    assert losses["loss_rpn_loc"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_kinds_of_box_loss(kind):
    images, features = batch()
    model = make(box_reg_loss_type=kind, smooth_l1_beta=0.1)
    _, losses = model(images, features, [ground_truth([4, 4, 12, 16])] * 2)
    assert torch.isfinite(losses["loss_rpn_loc"]) and losses["loss_rpn_loc"] > 0


def test_divergence_is_reported():
    model = make()
    model.rpn_head.anchor_deltas.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="box deltas"):
        model(*batch(), [ground_truth([4, 4, 12, 16])] * 2)


def test_attributes():
    model = make(min_box_size=3, nms_thresh=0.6)
    assert model.pre_nms_topk == {True: 50, False: 20} and model.post_nms_topk == {True: 30, False: 10}
    assert model.min_box_size == 3.0 and model.nms_thresh == 0.6
    assert not any("anchor_generator" in key for key in model.state_dict())
    assert copy.deepcopy(model).rpn_head is not model.rpn_head


def test_config():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["a", "b"]
    cfg.MODEL.RPN.CONV_DIMS = [6, 5]
    cfg.MODEL.RPN.LOSS_WEIGHT = 2.0
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 3.0
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "giou"
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 4
    shapes = {"a": ShapeSpec(channels=4, stride=4), "b": ShapeSpec(channels=4, stride=8)}
    model = RPN(cfg, shapes)
    assert model.in_features == ["a", "b"] and model.anchor_generator.strides == [4, 8]
    assert model.loss_weight == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 6.0} and model.box_reg_loss_type == "giou"
    assert model.min_box_size == 4.0 and model.anchor_matcher.allow_low_quality_matches
    assert model.pre_nms_topk == {True: 12000, False: 6000} and model.post_nms_topk == {True: 2000, False: 1000}
    assert model.rpn_head.objectness_logits.weight.shape == (15, 5, 1, 1)
    assert "StandardRPNHead" in RPN_HEAD_REGISTRY
    assert RPN(cfg, shapes, nms_thresh=0.1).nms_thresh == 0.1


def test_config_errors():
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"channels \[4, 8\]"):
        build_rpn_head(cfg, [ShapeSpec(channels=4, stride=4), ShapeSpec(channels=8, stride=8)])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [8, 16]]
    with pytest.raises(ValueError, match=r"equally many anchors per cell .*SIZES.*; got \[3, 6\]"):
        build_rpn_head(cfg, [ShapeSpec(channels=4, stride=4), ShapeSpec(channels=4, stride=8)])


def test_low_precision():
    model = make()
    images, features = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        proposals, losses = model(images, features, [ground_truth([4, 4, 12, 16])] * 2)
    assert proposals[0].proposal_boxes.tensor.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_seed_gives_the_published_losses():
    torch.manual_seed(121)
    cfg = get_cfg()
    backbone = build_backbone(cfg)
    rpn = build_proposal_generator(cfg, backbone.output_shape())
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    target = Instances((15, 15), gt_boxes=Boxes([[1, 1, 3, 3], [2, 2, 6, 6]]))
    with EventStorage():
        _, losses = rpn(images, features, [target[0], target[1]])
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.0801170319, abs=1e-6)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.1014702693, abs=1e-6)
