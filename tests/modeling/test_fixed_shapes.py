"""Training as on a GPU: the same losses, samples of the same kind, and few waits."""

import importlib
import math
import warnings

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.engine import AMPTrainer, SimpleTrainer, step_losses
from detectron2.modeling import build_model, fixed_shapes
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear, _dense_box_regression_loss
from detectron2.modeling.fixed_shapes import PaddedProposals, draw_samples, label_drawn_, read_together
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.meta_arch.dense_detector import sum_of_focal_losses
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.waits import Waits

DRAW_ALL = (
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1_000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
)  # fmt: skip
CASCADE = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
KINDS = {
    "mask": (),
    "faster": ("MODEL.MASK_ON", False),
    "giou": ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
    "keypoint": ("MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", True),
    "agnostic": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
    "cascade": CASCADE,
}
BOXES = {
    "no object": [[], []],
    "one image without": [[[4, 4, 40, 36]], []],
    "several": [[[4, 4, 40, 36], [30, 10, 90, 60]], [[10, 8, 42, 40]]],
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Switch to the forms that are used on a GPU; the returned function takes them back."""
    monkeypatch.setattr(fixed_shapes, "runs_ahead", lambda device: True)
    roi_align = importlib.import_module("detectron2.layers.roi_align")  # the package has a function of this name
    monkeypatch.setattr(roi_align, "_is_on_host", lambda tensor: False)
    for module in (rpn, retinanet):  # a form of the heads that is used on the CPU
        monkeypatch.setattr(module, "chain_of", lambda modules, maps: [], raising=False)
    return lambda: monkeypatch.setattr(fixed_shapes, "runs_ahead", lambda device: False)


def retinanet_cfg():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "TinyRcnnBackbone"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    return cfg


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "num_samples", "fraction"),
    [
        (0, 0, 0, 4, 0.5),
        (0, 9, 2, 4, 0.5),
        (9, 0, 2, 4, 0.5),
        (1, 9, 0, 4, 0.5),
        (9, 1, 3, 6, 0.5),
        (5, 5, 5, 6, 0.0),
        (5, 5, 5, 6, 1.0),
        (3, 2, 1, 100, 0.25),
    ],
)
def test_as_many_are_drawn_as_on_the_cpu(positives, negatives, ignored, num_samples, fraction):
    labels = torch.tensor([1] * positives + [7] * negatives + [-1] * ignored)
    labels = labels[torch.randperm(len(labels))]
    index, num_positive, num_drawn = draw_samples(labels, num_samples, fraction, bg_label=7)
    expected_positive = min(positives, int(num_samples * fraction))
    expected_negative = min(negatives, num_samples - expected_positive)
    assert (num_positive, num_drawn) == (expected_positive, expected_positive + expected_negative)
    assert len(index) == min(num_samples, len(labels))
    drawn = index[:num_drawn]
    assert len(drawn.unique()) == len(drawn)
    assert labels[drawn].tolist() == [1] * expected_positive + [7] * expected_negative

    binary = torch.where(labels == 7, 0, labels).to(torch.int8)
    before = binary.clone()
    chosen = label_drawn_(binary, num_samples, fraction)
    assert chosen is binary and (chosen == 1).sum() == expected_positive and (chosen == 0).sum() == expected_negative
    assert torch.equal(chosen[chosen >= 0], before[chosen >= 0])


def test_every_element_is_drawn_equally_often():
    labels = torch.tensor([1] * 6 + [0] * 12 + [-1] * 2)
    times = torch.zeros(20)
    for _ in range(2000):
        index, _, num_drawn = draw_samples(labels, 8, 0.25, 0)
        times[index[:num_drawn]] += 1
    share = times / 2000
    # Binomial: five standard deviations.
    for part, expected in ((share[:6], 2 / 6), (share[6:18], 6 / 12), (share[18:], 0.0)):
        assert (part - expected).abs().max() <= 5 * math.sqrt(expected * (1 - expected) / 2000)


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize(("kind", "mask_format"), [*((kind, "polygon") for kind in KINDS), ("mask", "bitmask")])
def test_losses_and_gradients_are_those_of_the_cpu(kind, mask_format, boxes, tiny_rcnn_cfg, rcnn_batch, as_on_a_gpu):
    model = build_model(tiny_rcnn_cfg(*KINDS[kind], *DRAW_ALL))
    found = _losses_and_gradients(model, rcnn_batch(train=True, boxes=boxes, mask_format=mask_format))
    as_on_a_gpu()
    expected = _losses_and_gradients(model, rcnn_batch(train=True, boxes=boxes, mask_format=mask_format))
    _assert_close(found, expected)


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_losses_and_gradients_of_retinanet(boxes, rcnn_batch, as_on_a_gpu):
    model = build_model(retinanet_cfg())
    found = _losses_and_gradients(model, rcnn_batch(train=True, boxes=boxes))
    as_on_a_gpu()
    del model.loss_normalizer
    _assert_close(found, _losses_and_gradients(model, rcnn_batch(train=True, boxes=boxes)))


def _losses_and_gradients(model, batch):
    model.zero_grad()
    with EventStorage() as storage:
        losses = model(batch)
        sum(losses.values()).backward()
        counts = {k: v[0] for k, v in storage.latest().items() if "num_" in k}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients, counts


def _assert_close(found, expected):
    for some, others in zip(found[:2], expected[:2], strict=True):
        assert some.keys() == others.keys()
        for name, value in some.items():
            torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert found[2] == pytest.approx(expected[2])


def test_what_is_not_positive_cannot_make_a_loss_infinite(as_on_a_gpu):
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])  # the second one has no area
    deltas = torch.tensor([[[0.1, 0, 0, 0], [math.inf, 0, math.nan, 0]]], requires_grad=True)
    gt_boxes = [torch.tensor([[0.0, 0, 10, 12], [0, 0, 0, 0]])]
    for kind in ("smooth_l1", "giou", "diou", "ciou"):
        transform = Box2BoxTransform((1.0, 1, 1, 1))
        deltas.grad = None
        loss = _dense_box_regression_loss([anchors], transform, [deltas], gt_boxes, torch.tensor([[True, False]]), kind)
        loss.backward()
        assert loss > 0 and deltas.grad[0, 0].abs().sum() > 0 and deltas.grad[0, 1].tolist() == [0] * 4
    distances = _dense_box_regression_loss(
        [anchors], Box2BoxTransformLinear(), [deltas], gt_boxes, torch.tensor([[False, False]]), "smooth_l1"
    )
    assert distances == 0


def test_focal_loss_reads_only_labels_of_classes(as_on_a_gpu):
    logits = [torch.randn(2, 5, 3), torch.randn(2, 4, 3)]
    labels = torch.randint(-1, 4, (2, 9))
    positive = (labels >= 0) & (labels < 3)
    found = sum_of_focal_losses(logits, labels, positive, alpha=0.25, gamma=2.0)
    as_on_a_gpu()
    expected = sum_of_focal_losses(logits, labels, positive, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooled_regions_are_those_of_their_level(pooler_type, sampling_ratio, as_on_a_gpu):
    maps = [torch.randn(2, 3, 32 // 2**i, 48 // 2**i, requires_grad=True) for i in range(3)]
    pooler = ROIPooler(3, [1 / 4, 1 / 8, 1 / 16], sampling_ratio, pooler_type, canonical_box_size=32, canonical_level=3)
    corner = torch.rand(40, 2) * 90
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * torch.logspace(0, 2, 40)[:, None]], dim=1)
    lists = [Boxes(boxes[:25]), Boxes(boxes[25:])]
    found = pooler(maps, lists)
    gradients = torch.autograd.grad(found.square().sum(), maps)
    as_on_a_gpu()
    expected = pooler(maps, lists)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for some, others in zip(gradients, torch.autograd.grad(expected.square().sum(), maps), strict=True):
        torch.testing.assert_close(some, others)


def _predictions(num_images, sizes=(60, 30)):
    boxes = []
    for size in sizes:
        corner = torch.rand(num_images, size, 2) * 60
        boxes.append(torch.cat([corner, corner + torch.rand(num_images, size, 2) * 40 - 4], dim=2))
    return boxes, [torch.randn(num_images, size) for size in sizes]


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("limit", [5, 1000])
def test_proposals_are_those_of_the_cpu(num_images, limit, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(fixed_shapes, "_BOXES_AT_ONCE", 200)
    boxes, logits = _predictions(num_images)
    arguments = (boxes, logits, [(50, 70)] * num_images, 0.5, 40, limit, 2.0, True)
    found = find_top_rpn_proposals(*arguments)
    as_on_a_gpu()
    expected = find_top_rpn_proposals(*arguments)
    assert isinstance(found, PaddedProposals) and len(found) == num_images
    for some, others in zip(found, expected, strict=True):
        assert torch.equal(some.proposal_boxes.tensor, others.proposal_boxes.tensor)
        assert torch.equal(some.objectness_logits, others.objectness_logits)
        assert some.image_size == others.image_size
    assert len(found[0]) == len(expected[0]) and found[-1:][0] is found[num_images - 1]


def test_proposals_that_are_not_finite_are_an_error_at_the_first_access(as_on_a_gpu):
    boxes, logits = _predictions(2)
    logits[0][1, 3] = math.nan
    found = find_top_rpn_proposals(boxes, logits, [(50, 70)] * 2, 0.5, 40, 10, 0.0, True)
    with pytest.raises(FloatingPointError, match=r"NaN objectness logits, for 1 of 140 candidates, in images \[1\]"):
        found[0]


def test_a_step_that_is_not_finite_names_the_cause(tiny_rcnn_cfg, rcnn_batch, as_on_a_gpu):
    model = build_model(tiny_rcnn_cfg())
    nn.init.constant_(model.proposal_generator.rpn_head.objectness_logits.bias, math.nan)
    with pytest.raises(FloatingPointError, match="region proposal network predicted Inf or NaN"):
        model(rcnn_batch(train=True))


def test_numbers_come_together():
    assert read_together(torch.zeros(0))[0].tolist() == []
    numbers = torch.tensor([[3], [4]]), torch.tensor(True), torch.tensor([0.1])
    with Waits() as waits:
        ints, flag, floats = read_together(*numbers)
        assert ints.tolist() == [[3], [4]] and bool(flag) and floats.float().tolist() == torch.tensor([0.1]).tolist()
    assert waits.found == ["cpu"]


class OwnDraw:
    """A project that draws in its own way."""

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        self.was_asked = True
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


def test_projects_that_draw_themselves_are_asked(tiny_rcnn_cfg, rcnn_batch, as_on_a_gpu):
    model = build_model(tiny_rcnn_cfg())
    heads = model.roi_heads
    heads.__class__ = type("OwnHeads", (OwnDraw, type(heads)), {})
    assert torch.isfinite(sum(model(rcnn_batch(train=True)).values())) and heads.was_asked


def test_foreground_is_known_only_while_labels_are_the_same():
    regions = Instances((4, 4), gt_classes=torch.tensor([1, 3]))
    assert fixed_shapes.num_foreground(regions) is None
    fixed_shapes.mark_foreground(regions, 1)
    assert fixed_shapes.num_foreground(regions) == 1 and fixed_shapes.num_foreground(regions[:1]) is None
    regions.gt_classes = torch.tensor([3, 3])
    assert fixed_shapes.num_foreground(regions) is None


# What the host waits for in a training step: the suppression of proposals, whose operator returns as many as stay; the
# numbers of what was drawn (with polygons also what to draw); and the loss, while the GPU computes gradients. Some
# models wait more often: regions without a keypoint to learn from are left out, and in its second and third stage a
# cascade leaves out boxes without area.
EXPECTED = {
    "retinanet": ["tolist"],
    "mask": ["torchvision::nms", "cpu", "tolist"],
    "faster": ["torchvision::nms", "cpu", "tolist"],
    "keypoint": ["torchvision::nms", "cpu", "cpu", "tolist"],
    "cascade": ["torchvision::nms", "cpu", "cpu", "cpu", "tolist"],
}


@pytest.mark.parametrize(
    ("kind", "mask_format", "cls"),
    [*((kind, "polygon", SimpleTrainer) for kind in EXPECTED), ("mask", "bitmask", AMPTrainer)],
)
def test_waits_of_a_training_step(kind, mask_format, cls, tiny_rcnn_cfg, rcnn_batch, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(step_losses, "_is_at_hand", lambda values: False)
    model = build_model(retinanet_cfg() if kind == "retinanet" else tiny_rcnn_cfg(*KINDS[kind]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    batch = rcnn_batch(train=True, mask_format=mask_format)
    if kind not in ("mask", "cascade"):
        for item in batch:
            item["instances"].remove("gt_masks")
    trainer = cls(model, [batch] * 10, optimizer)
    trainer.gather_metric_period = 100  # what is recorded is read by writers
    with EventStorage() as trainer.storage:
        trainer.run_step()
        with Waits() as waits:
            trainer.run_step()
    assert waits.found == EXPECTED[kind]


# In inference, before masks are pasted, of one image: its proposals with an area, their suppression, detections above
# the threshold, and their suppression. RetinaNet finds what is above the threshold on each of two levels.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mask", ["nonzero", "torchvision::nms", "nonzero", "torchvision::nms"]),
        ("retinanet", ["nonzero", "nonzero", "torchvision::nms"]),
    ],
)
def test_waits_of_inference(kind, expected, tiny_rcnn_cfg, rcnn_batch, as_on_a_gpu):
    model = build_model(retinanet_cfg() if kind == "retinanet" else tiny_rcnn_cfg()).eval()
    batch = rcnn_batch()[:1]
    with torch.inference_mode(), Waits() as waits:
        if kind == "mask":
            model.inference(batch, do_postprocess=False)
        else:
            images = model.preprocess_image(batch)
            maps = [model.backbone(images.tensor)[name] for name in model.head_in_features]
            model.forward_inference(images, maps, model.head(maps))
    assert waits.found == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGpu:
    @pytest.mark.parametrize("kind", ["mask", "faster", "giou", "keypoint", "retinanet"])
    def test_losses_are_those_of_the_cpu(self, kind, tiny_rcnn_cfg, rcnn_batch):
        on_cpu = build_model(retinanet_cfg() if kind == "retinanet" else tiny_rcnn_cfg(*KINDS[kind], *DRAW_ALL))
        expected = _losses_and_gradients(on_cpu, rcnn_batch(train=True))
        if kind == "retinanet":
            del on_cpu.loss_normalizer
        found = _losses_and_gradients(on_cpu.cuda(), rcnn_batch(train=True))
        for name, value in expected[0].items():
            assert found[0][name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name

    @pytest.mark.parametrize(("kind", "limit"), [("mask", 2), ("faster", 2), ("retinanet", 0)])
    def test_pytorch_counts_as_many_waits(self, kind, limit, tiny_rcnn_cfg, rcnn_batch):
        cfg = retinanet_cfg() if kind == "retinanet" else tiny_rcnn_cfg(*KINDS[kind])
        cfg.MODEL.DEVICE = "cuda"
        model = build_model(cfg)
        trainer = SimpleTrainer(model, [rcnn_batch(train=True)] * 10, torch.optim.SGD(model.parameters(), lr=1e-4))
        trainer.prefetch, trainer.gather_metric_period = True, 100
        with EventStorage() as trainer.storage:
            trainer.run_step()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                trainer.run_step()
                torch.cuda.set_sync_debug_mode("default")
        # The loss is waited for by an event, which PyTorch does not count.
        found = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        assert len(found) <= limit, found
