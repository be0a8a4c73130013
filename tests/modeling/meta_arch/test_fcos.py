"""FCOS with few channels: matching and losses against plain loops, both ways through the model."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

K = 3
STRIDES = [8, 16, 32]
SIZES_HW = [(64, 96), (48, 80)]


class ThreeMaps(Backbone):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self._out_features = ["p3", "p4", "p5"]
        self._out_feature_channels = dict.fromkeys(self._out_features, 4)
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))

    @property
    def size_divisibility(self):
        return 32

    def forward(self, x):
        p3 = self.conv(x).relu()
        p4 = nn.functional.max_pool2d(p3, 2)
        return {"p3": p3, "p4": p4, "p5": nn.functional.max_pool2d(p4, 2)}


def head(**kwargs) -> FCOSHead:
    shapes = [ShapeSpec(channels=4)] * 3
    return FCOSHead(**{"input_shape": shapes, "num_classes": K, "conv_dims": [4, 6], **kwargs})


def make(**kwargs) -> FCOS:
    arguments = {
        "backbone": ThreeMaps(),
        "head": head(),
        "head_in_features": ["p3", "p4", "p5"],
        "num_classes": K,
        "pixel_mean": [0.0] * 3,
        "pixel_std": [255.0] * 3,
    }
    return FCOS(**{**arguments, **kwargs})


def ground_truth(boxes=(), classes=(), size_hw=SIZES_HW[0]):
    result = Instances(size_hw)
    result.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def batch(*targets):
    if not targets:
        targets = ground_truth([[10, 8, 40, 50], [30, 20, 90, 60]], [0, 2]), ground_truth([[4, 4, 20, 30]], [1])
    return [
        {"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8), "instances": target}
        for size_hw, target in zip(SIZES_HW, targets, strict=True)
    ]


def anchors_of(model, height, width):
    return model.anchor_generator([torch.zeros(1, 1, height // s, width // s) for s in STRIDES])


def slow_matches(boxes, height, width, radius=1.5):
    """For each location, levels one after the other, the index of its box or -1, by the words of the paper."""
    result = []
    for level, stride in enumerate(STRIDES):
        low = 0 if level == 0 else 4 * stride
        high = math.inf if level == len(STRIDES) - 1 else 8 * stride
        for row in range(height // stride):
            for column in range(width // stride):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                best, best_area = -1, math.inf
                for i, (x1, y1, x2, y2) in enumerate(boxes):
                    sides = [x - x1, y - y1, x2 - x, y2 - y]
                    central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * stride
                    area = (x2 - x1) * (y2 - y1)
                    if min(sides) > 0 and central and low < max(sides) < high and area < best_area:
                        best, best_area = i, area
                result.append(best)
    return result


def test_locations_are_the_centres_of_cells():
    anchors = anchors_of(make(), 64, 96)
    assert [len(level) for level in anchors] == [96, 24, 6]
    assert anchors[0].tensor[:2].tolist() == [[0, 0, 8, 8], [8, 0, 16, 8]]
    assert anchors[2].tensor[-1].tolist() == [64, 32, 96, 64]


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[0, 0, 0, 0]],
        [[4, 4, 4, 60]],
        [[10, 8, 40, 50]],
        [[0, 0, 96, 64], [10, 8, 40, 50], [12, 10, 38, 40]],
        [[12, 10, 38, 40], [10, 8, 40, 50], [0, 0, 96, 64]],
        [[8, 8, 24, 24], [8, 8, 24, 24]],
        [[-200, -300, 260, 310]],
    ],
)
def test_matching_against_a_loop(boxes):
    model = make()
    found = model.match_anchors(anchors_of(model, 64, 96), [ground_truth(boxes, [0] * len(boxes))])[0]
    assert found.dtype == torch.int64 and found.tolist() == slow_matches(boxes, 64, 96)


coordinate = st.integers(-40, 140)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate, st.integers(0, 200), st.integers(0, 200)), max_size=6))
def test_matching_of_any_boxes(values):
    boxes = [[x, y, x + w, y + h] for x, y, w, h in values]
    model = make(center_sampling_radius=2.5)
    found = model.match_anchors(anchors_of(model, 64, 96), [ground_truth(boxes, [0] * len(boxes))])[0].tolist()
    expected = slow_matches(boxes, 64, 96, radius=2.5)
    area = [w * h for _, _, w, h in values] + [-1]
    assert [area[i] for i in found] == [area[i] for i in expected]  # of boxes of one area any will do


def test_labels_by_hand():
    model = make()
    anchors = anchors_of(model, 32, 32)  # 16, 4 and 1 locations
    labels, boxes = model.label_anchors(anchors, [ground_truth([[0, 0, 24, 24]], [2]), ground_truth()])
    # Locations of stride 8 less than 12 from the centre (12, 12) along both axes: those at 4, 12 and 20.
    expected = torch.full((4, 4), K)
    expected[:3, :3] = 2
    assert labels[0][:16].tolist() == expected.flatten().tolist()
    assert labels[0][16:].tolist() == [K] * 5  # too small for the other levels
    assert boxes[0].shape == (21, 4) and boxes[0][0].tolist() == [0, 0, 24, 24]
    assert labels[1].tolist() == [K] * 21 and boxes[1].shape == (21, 4)


@pytest.mark.parametrize("label", [-1, K])
def test_labels_outside_the_classes_are_reported(label):
    with pytest.raises(ValueError, match=rf"label {label}.*{K} classes.*num_classes"):
        make()(batch(ground_truth([[4, 4, 20, 30]], [label]), ground_truth()))


def test_centerness_by_hand():
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]))]  # locations (4, 4) and (12, 4)
    boxes = [
        torch.tensor([[0.0, 0, 8, 8], [10, 0, 20, 8]]),  # the centre; 2 and 8 along x, the centre along y
        torch.tensor([[1.0, 2, 13, 14], [0, 0, 8, 8]]),  # 3 and 9, 2 and 10; outside
    ]
    found = make().compute_ctrness_targets(anchors, boxes)
    expected = torch.tensor([[1, math.sqrt(2 / 8)], [math.sqrt(3 / 9 * 2 / 10), 0]])
    torch.testing.assert_close(found, expected)
    degenerate = [torch.tensor([[4.0, 4, 4, 4], [0, 0, 0, 0]])]
    assert make().compute_ctrness_targets(anchors, degenerate).tolist() == [[0, 0]]


def slow_losses(logits, deltas, centerness, label, strides, center, gt):
    """Focal, GIoU and centre-ness loss of one image, summed; every location has the same box."""
    focal = sum(
        -0.25 * (1 - p) ** 2 * math.log(p) if k == t else -0.75 * p**2 * math.log(1 - p)
        for row, t in zip(logits.sigmoid().tolist(), label, strict=True)
        for k, p in enumerate(row)
    )
    giou = binary = 0.0
    rows = zip(deltas.tolist(), centerness.tolist(), label, strides, center, strict=True)
    for delta, c, t, size, (x, y) in rows:
        if t == K:
            continue
        left, top, right, bottom = (max(d, 0) * size for d in delta)
        box = (x - left, y - top, x + right, y + bottom)
        inner = max(0, min(box[2], gt[2]) - max(box[0], gt[0])) * max(0, min(box[3], gt[3]) - max(box[1], gt[1]))
        hull = (max(box[2], gt[2]) - min(box[0], gt[0])) * (max(box[3], gt[3]) - min(box[1], gt[1]))
        union = (left + right) * (top + bottom) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - inner
        giou += 1 - inner / union + (hull - union) / hull
        sides_x, sides_y = sorted([x - gt[0], gt[2] - x]), sorted([y - gt[1], gt[3] - y])
        target = math.sqrt(sides_x[0] / sides_x[1] * sides_y[0] / sides_y[1])
        p = 1 / (1 + math.exp(-c[0]))
        binary -= target * math.log(p) + (1 - target) * math.log(1 - p)
    return focal, giou, binary


def test_losses_against_a_loop():
    model = make()
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16]])), Boxes(torch.tensor([[0.0, 0, 16, 16]]))]
    gt = [1.0, 2.0, 19.0, 16.0]
    labels, gt_boxes = torch.tensor([1, K, 2]), torch.tensor([gt] * 3)
    logits, deltas, centerness = torch.randn(3, K), torch.randn(3, 4), torch.randn(3, 1)
    expected = slow_losses(logits, deltas, centerness, labels.tolist(), [8, 8, 16], [(4, 4), (12, 12), (8, 8)], gt)
    levels = [[x[None, :2], x[None, 2:]] for x in (logits, deltas, centerness)]
    with EventStorage() as storage:
        for normalizer in (0.9 * 300 + 0.1 * 2, 0.9 * (0.9 * 300 + 0.1 * 2) + 0.1 * 2):
            losses = model.losses(anchors, levels[0], [labels], levels[1], [gt_boxes], levels[2])
            assert list(losses) == ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]
            for loss, value in zip(losses.values(), expected, strict=True):
                assert loss.item() == pytest.approx(value / normalizer, rel=1e-4)
        assert storage.latest()["num_pos_anchors"][0] == 2


def test_training():
    model = make()
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.head.ctrness.weight.grad.any() and model.head.bbox_pred.weight.grad.any()


def test_training_without_any_object():
    model = make()
    losses = model(batch(ground_truth(), ground_truth()))
    assert losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0 and losses["loss_fcos_cls"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())  # nobody waits for a gradient
    assert not model.head.bbox_pred.weight.grad.any() and model.head.cls_score.bias.grad.any()


def test_training_with_one_empty_image():
    losses = make()(batch(ground_truth(), ground_truth([[4, 4, 20, 30]], [1])))
    assert all(torch.isfinite(x) and x > 0 for x in losses.values())


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
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert make(test_score_thresh=0.01).eval()(batch())[0]["instances"].scores.dtype == torch.float32


def test_inference_finds_nothing_at_first():
    for item in make().eval()(batch()):
        found = item["instances"]
        assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
        assert found.scores.shape == found.pred_classes.shape == (0,)


def test_inference():
    model = make(max_detections_per_image=7, test_nms_thresh=0.4).eval()
    nn.init.normal_(model.head.cls_score.weight)
    nn.init.zeros_(model.head.cls_score.bias)
    nn.init.ones_(model.head.bbox_pred.bias)
    outputs = model([{**x, "height": 80, "width": 90} for x in batch()])
    assert len(outputs) == 2
    for item in outputs:
        found = item["instances"]
        assert found.image_size == (80, 90) and 0 < len(found) <= 7
        assert (found.scores.diff() <= 0).all() and (found.scores > 0.2).all()
        assert ((found.pred_classes >= 0) & (found.pred_classes < K)).all()
        assert (found.pred_boxes.tensor >= 0).all()


def test_scores_are_geometric_means():
    model = make(test_score_thresh=0.4, backbone=ThreeMaps()).eval()
    model.head_in_features = ["p3"]
    model.anchor_generator = type(model.anchor_generator)(sizes=[[8]], aspect_ratios=[1.0], strides=[8])
    logits = torch.tensor([[2.0, -9, -9], [-9, 1.0, -9]]).T.reshape(1, K, 1, 2)
    centerness = torch.tensor([0.5, -1.0]).reshape(1, 1, 1, 2)
    deltas = torch.tensor([[0.5, 0.25, 1.0, 2.0], [-1.0, 0.5, 0.5, 0.5]]).T.reshape(1, 4, 1, 2)
    images = model.preprocess_image([{"image": torch.zeros(3, 8, 16)}])
    result = model.forward_inference(images, [torch.zeros(1, 4, 1, 2)], [[logits], [deltas], [centerness]])[0]
    expected = [math.sqrt(1 / (1 + math.exp(-a)) / (1 + math.exp(-b))) for a, b in ((2, 0.5), (1, -1))]
    torch.testing.assert_close(result.scores, torch.tensor(expected))
    assert result.pred_classes.tolist() == [0, 1]
    # In strides of 8 pixels from (4, 4) and (12, 4); what is negative counts as zero.
    assert result.pred_boxes.tensor.tolist() == [[0, 2, 12, 20], [12, 0, 16, 8]]


def test_single_image_by_hand():
    model = make(test_nms_thresh=0.5, max_detections_per_image=3)
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8]])), Boxes(torch.tensor([[32.0, 32, 48, 48]]))]
    # Class 0 in both overlapping boxes: one goes. Class 2 in the second of them stays: suppression is per class.
    scores = [torch.tensor([[0.8, 0.1, 0.0], [0.7, 0.0, 0.9]]), torch.tensor([[0.2, 0.3, 0.21]])]
    deltas = [torch.full((2, 4), 0.5), torch.full((1, 4), 1.0)]
    result = model.inference_single_image(anchors, scores, deltas, (64, 64))
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.3]) and result.pred_classes.tolist() == [2, 0, 1]
    assert result.pred_boxes.tensor.tolist() == [[1, 0, 9, 8], [0, 0, 8, 8], [24, 24, 56, 56]]


def test_features_default_to_all_of_the_backbone():
    assert make(head_in_features=None).head_in_features == ["p3", "p4", "p5"]


@pytest.mark.parametrize(("norm", "step"), [("", 2), ("FrozenBN", 3)])
def test_names_of_parameters(norm, step):
    keys = set(head(norm=norm).state_dict())
    assert {f"{tower}_subnet.{i * step}.weight" for tower in ("cls", "bbox") for i in range(2)} < keys
    assert {f"{name}.{x}" for name in ("cls_score", "bbox_pred", "ctrness") for x in ("weight", "bias")} < keys


def test_head():
    model = head(norm="BN", prior_prob=0.2)
    assert sum(isinstance(m, CycleBatchNormList) for m in model.modules()) == 4
    outputs = model([torch.zeros(2, 4, 6, 5), torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 2, 2)])
    assert [[x.shape[1] for x in levels] for levels in outputs] == [[K] * 3, [4] * 3, [1] * 3]
    assert torch.allclose(outputs[0][0].sigmoid(), torch.full((2, K, 6, 5), 0.2))
    assert not model.ctrness.bias.any() and model.ctrness.weight.std() < 0.02
    with pytest.raises(ValueError, match="made for 3 feature maps; got 1"):
        model([torch.zeros(1, 4, 3, 3)])


def test_head_without_towers():
    outputs = head(conv_dims=[])([torch.zeros(1, 4, 2, 2)] * 3)
    assert outputs[2][0].shape == (1, 1, 2, 2)


def test_head_compiles_without_a_break():
    model, maps = head(), [torch.randn(1, 4, s, s) for s in (6, 3, 2)]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(maps), model(maps), strict=True):
        torch.testing.assert_close(found, expected)


def test_copies():
    model, x = make(), batch()
    model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = model(x)
    for other in copies:
        other.load_state_dict(model.state_dict())
        for name, loss in other(x).items():  # the moving average was copied too
            assert torch.equal(loss, expected[name])
