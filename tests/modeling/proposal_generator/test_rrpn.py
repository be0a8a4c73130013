"""The rotated region proposal network with few channels: labels by hand, proposals against a loop."""

import math

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RRPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.proposal_generator.rrpn import find_top_rrpn_proposals
from detectron2.structures import ImageList, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage

SIZES_HW = [(32, 40), (28, 36)]


def make(**kwargs) -> RRPN:
    arguments = {
        "in_features": ["p2", "p3"],
        "head": StandardRPNHead(in_channels=4, num_anchors=3, box_dim=5),
        "anchor_generator": RotatedAnchorGenerator(
            sizes=[[8], [16]], aspect_ratios=[[0.5]], strides=[4, 8], angles=[[-60, 0, 60]]
        ),
        "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": Box2BoxTransformRotated((1.0, 1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 16,
        "positive_fraction": 0.5,
        "pre_nms_topk": (50, 20),
        "post_nms_topk": (30, 10),
    }
    return RRPN(**{**arguments, **kwargs})


def batch(num_images=2):
    images = ImageList(torch.zeros(num_images, 3, 32, 40), SIZES_HW[:num_images])
    features = {"p2": torch.randn(num_images, 4, 8, 10), "p3": torch.randn(num_images, 4, 4, 5), "p4": None}
    return images, features


def ground_truth(*boxes):
    return Instances((32, 40), gt_boxes=RotatedBoxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 5)))


class TestLabels:
    anchors = (
        RotatedBoxes([[10.0, 10, 12, 6, 30], [10, 10, 12, 6, 120]]),
        RotatedBoxes([[10.0, 10, 12, 6, 210], [30, 30, 6, 6, 0], [10, 10, 12, 5, 30]]),
    )

    def labels(self, *gt, **kwargs):
        return make(**kwargs).label_and_sample_anchors(list(self.anchors), list(gt))

    def test_no_images(self):
        assert self.labels() == ([], [])

    def test_by_hand(self):
        gt = ground_truth((10, 10, 12, 6, 30), (0, 0, 1, 1, 0))
        (label,), (matched,) = self.labels(gt)
        # the same; across (36 of 108 shared: ignored); the same, upside down; elsewhere; 5/6 of it
        assert label.tolist() == [1, -1, 1, 0, 1]
        assert matched[[0, 2, 4]].tolist() == [[10, 10, 12, 6, 30]] * 3

    def test_no_ground_truth(self):
        (label,), (matched,) = self.labels(ground_truth())
        assert label.tolist() == [0] * 5
        assert matched.shape == (5, 5)

    def test_anchors_outside_are_ignored(self):
        gt = Instances((31, 31), gt_boxes=RotatedBoxes([[10, 10, 12, 6, 30]]))
        (label,), _ = self.labels(gt, anchor_boundary_thresh=-1.0)
        assert label[3] == 0
        (label,), _ = self.labels(gt, anchor_boundary_thresh=0)
        assert label.tolist() == [1, -1, 1, -1, 1]


class TestProposals:
    @staticmethod
    def candidates(count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(2, count, 5, generator=generator)
        boxes = unit * torch.tensor([40.0, 32, 20, 20, 360]) + torch.tensor([0.0, 0, 0, 0, -180])
        return boxes, torch.randn(2, count, generator=generator)

    def test_no_anchors(self):
        proposals = find_top_rrpn_proposals(
            [torch.zeros(2, 0, 5)], [torch.zeros(2, 0)], SIZES_HW, 0.7, 5, 5, 0, training=False
        )
        assert [len(p) for p in proposals] == [0, 0]
        assert proposals[0].proposal_boxes.tensor.shape == (0, 5)

    @pytest.mark.parametrize("post", [5, 100])
    def test_against_a_loop(self, post):
        levels = [self.candidates(30), self.candidates(12, seed=1)]
        results = find_top_rrpn_proposals(
            [x[0] for x in levels], [x[1] for x in levels], SIZES_HW, 0.3, 20, post, 4.0, training=True
        )
        for i, (size_hw, result) in enumerate(zip(SIZES_HW, results, strict=True)):
            rows = []
            for level, (boxes, logits) in enumerate(levels):
                for j in logits[i].argsort(descending=True)[:20].tolist():
                    box = RotatedBoxes(boxes[i, j : j + 1])
                    box.clip(size_hw)
                    if box.nonempty(4.0).item():
                        rows.append((logits[i, j].item(), level, box.tensor))
            kept = []
            for score, level, box in sorted(rows, key=lambda row: -row[0]):
                if all(level != k[1] or pairwise_iou_rotated(box, k[2]).item() <= 0.3 for k in kept):
                    kept.append((score, level, box))
            kept = kept[:post]
            assert result.image_size == size_hw
            assert isinstance(result.proposal_boxes, RotatedBoxes)
            torch.testing.assert_close(result.proposal_boxes.tensor, torch.cat([k[2] for k in kept]))
            torch.testing.assert_close(result.objectness_logits, torch.tensor([k[0] for k in kept]))

    def test_numbers_that_are_not_finite(self):
        boxes, logits = self.candidates(6)
        boxes[1, 2, 4] = math.nan
        arguments = [boxes], [logits], SIZES_HW, 1.0, 10, 10, 0
        with pytest.raises(FloatingPointError, match="training has diverged"):
            find_top_rrpn_proposals(*arguments, training=True)
        assert [len(p) for p in find_top_rrpn_proposals(*arguments, training=False)] == [6, 5]


def test_training_and_inference():
    model = make()
    images, features = batch()
    gt = [ground_truth((12, 12, 14, 7, 40), (30, 20, 10, 9, -100)), ground_truth()]
    with EventStorage() as storage:
        proposals, losses = model(images, features, gt)
        assert storage.latest()["rpn/num_neg_anchors"][0] > 0
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert losses["loss_rpn_loc"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [len(p) <= 30 for p in proposals] == [True, True]

    model.eval()
    proposals, losses = model(images, features)
    assert losses == {}
    assert all(isinstance(p.proposal_boxes, RotatedBoxes) and len(p) <= 10 for p in proposals)
    assert not proposals[0].proposal_boxes.tensor.requires_grad


def test_proposals_are_those_of_all_decoded_anchors():
    model = make().eval()
    images, features = batch()
    torch.nn.init.normal_(model.rpn_head.anchor_deltas.weight, std=0.3)
    with torch.no_grad():
        proposals, _ = model(images, features)
        maps = [features["p2"], features["p3"]]
        anchors = model.anchor_generator(maps)
        logits, deltas = model.rpn_head(maps)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.view(2, 3, 5, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 5) for x in deltas]
        boxes = model._decode_proposals(anchors, deltas)
        expected = find_top_rrpn_proposals(boxes, logits, SIZES_HW, 0.7, 20, 10, 0.0, training=False)
    for a, b in zip(proposals, expected, strict=True):
        torch.testing.assert_close(a.proposal_boxes.tensor, b.proposal_boxes.tensor)


def test_upright_anchors_are_refused():
    upright = DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[[0.5]], strides=[4, 8])
    with pytest.raises(ValueError, match="RotatedAnchorGenerator"):
        make(anchor_generator=upright)


def test_from_config():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    shapes = {"res4": ShapeSpec(channels=4, stride=16)}
    with pytest.raises(ValueError, match=r"MODEL\.RPN\.BBOX_REG_WEIGHTS"):
        build_proposal_generator(cfg, shapes)
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 2.0)
    model = build_proposal_generator(cfg, shapes)
    assert isinstance(model, RRPN)
    assert model.box2box_transform.weights == (1.0, 1.0, 1.0, 1.0, 2.0)
    assert model.rpn_head.anchor_deltas.out_channels == 5 * 3 * 3 * 5


def test_one_seed_gives_the_published_losses():
    torch.manual_seed(121)
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ANCHOR_GENERATOR.NAME = "RRPN", "RotatedAnchorGenerator"
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1, 1, 1, 1, 1)
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    boxes = [[2, 2, 2, 2, 30], [4, 4, 4, 4, 0]], [[1.5, 5.5, 1, 3, 0], [8.5, 4, 3, 2, -50]]
    rpn = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=1024, stride=16)})
    with EventStorage():
        _, losses = rpn(images, features, [Instances((15, 15), gt_boxes=RotatedBoxes(b)) for b in boxes])
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.24298352, abs=1e-6)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.40453276, abs=1e-6)
