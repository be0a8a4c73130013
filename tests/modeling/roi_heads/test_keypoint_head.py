import numpy as np
import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead, build_keypoint_head, keypoint_head
from detectron2.modeling.roi_heads.keypoint_head import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    BaseKeypointRCNNHead,
    keypoint_rcnn_inference,
    keypoint_rcnn_loss,
)
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage


def regions(boxes, keypoints):
    out = Instances((64, 64))
    out.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    if keypoints:
        out.gt_keypoints = Keypoints(torch.tensor(keypoints, dtype=torch.float32))
    return out


# A box of 8 x 8 pixels and heat maps of 4 x 4: a cell is two pixels wide.
BOX = [16, 24, 24, 32]
POINTS = [
    [17, 25, 2],  # cell (0, 0)
    [21, 30.5, 1],  # column 2, row 3
    [20, 28, 0],  # not labelled
    [40, 28, 2],  # outside the box
]


def by_hand(logits, cells):
    flat = logits.double().reshape(-1, 16).numpy()
    log_p = flat - np.log(np.exp(flat).sum(1, keepdims=True))
    return -sum(log_p[row, cell] for row, cell in cells)


@pytest.mark.parametrize("normalizer", [None, 7.0])
def test_loss_by_hand(normalizer):
    logits = torch.randn(2, 4, 4, 4)
    instances = [regions([BOX], [POINTS]), regions([], []), regions([BOX], [POINTS[::-1]])]
    expected = by_hand(logits, [(0, 0), (1, 3 * 4 + 2), (6, 3 * 4 + 2), (7, 0)])
    loss = keypoint_rcnn_loss(logits, instances, normalizer)
    assert loss.item() == pytest.approx(expected / (normalizer or 4), rel=1e-5)


def test_keypoints_that_do_not_count_get_no_gradient():
    logits = torch.randn(1, 4, 4, 4, requires_grad=True)
    keypoint_rcnn_loss(logits, [regions([BOX], [POINTS])]).backward()
    assert (logits.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("instances", [[], [regions([], [])]])
def test_loss_without_regions_is_zero_differentiable_and_counted(instances):
    with EventStorage() as storage:
        for skipped in (1, 2):
            logits = torch.zeros(0, 4, 4, 4, requires_grad=True)
            loss = keypoint_rcnn_loss(logits, instances)
            loss.backward()
            assert loss.item() == 0 and logits.grad is not None
            assert storage.latest()["kpts_num_skipped_batches"][0] == skipped


def test_loss_without_visible_keypoints_is_zero():
    logits = torch.randn(1, 4, 4, 4, requires_grad=True)
    loss = keypoint_rcnn_loss(logits, [regions([BOX], [[[20, 28, 0]] * 4])])
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_inference_finds_the_peak():
    logits = torch.zeros(2, 3, 8, 8)
    logits[0, 1, 2, 5] = 50  # row 2, column 5
    logits[1, 0, 7, 0] = 50
    detections = [
        Instances((64, 64), pred_boxes=Boxes(torch.tensor([[16.0, 24, 24, 32]]))),
        Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4))),
        Instances((64, 64), pred_boxes=Boxes(torch.tensor([[0.0, 0, 64, 64]]))),
    ]
    keypoint_rcnn_inference(logits, detections)
    assert [tuple(x.pred_keypoints.shape) for x in detections] == [(1, 3, 3), (0, 3, 3), (1, 3, 3)]
    x, y, score = detections[0].pred_keypoints[0, 1].tolist()
    assert (x, y) == (pytest.approx(21.5, abs=0.5), pytest.approx(26.5, abs=0.5)) and score > 0.1
    x, y, _ = detections[2].pred_keypoints[0, 0].tolist()
    assert x == pytest.approx(4, abs=4) and y == pytest.approx(60, abs=4)
    assert detections[0].pred_keypoints[..., 2].min() > 0
    assert torch.equal(detections[2].pred_keypoint_heatmaps, logits[1:])


def test_inference_of_nothing():
    keypoint_rcnn_inference(torch.zeros(0, 3, 8, 8), [])
    detections = [Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)))]
    keypoint_rcnn_inference(torch.zeros(0, 3, 8, 8), detections)
    assert detections[0].pred_keypoints.shape == (0, 3, 3)


@pytest.mark.parametrize("count", [0, 2])
def test_head_shapes_and_names(count):
    head = KRCNNConvDeconvUpsampleHead(ShapeSpec(channels=3, height=4, width=4), num_keypoints=5, conv_dims=[6, 7])
    assert head.layers(torch.randn(count, 3, 4, 4)).shape == (count, 5, 16, 16)
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if k.endswith("weight")}
    assert shapes == {
        "conv_fcn1.weight": (6, 3, 3, 3),
        "conv_fcn2.weight": (7, 6, 3, 3),
        "score_lowres.weight": (7, 5, 4, 4),
    }
    assert not any(v.any() for k, v in head.state_dict().items() if k.endswith("bias"))


@pytest.mark.parametrize(("normalizer", "given"), [("visible", None), (3.0, 6.0)])
def test_head_uses_the_functions_of_the_module(monkeypatch, normalizer, given):
    head = KRCNNConvDeconvUpsampleHead(
        ShapeSpec(channels=3), num_keypoints=2, conv_dims=[4], loss_weight=0.5, loss_normalizer=normalizer
    )
    x, seen = torch.randn(1, 3, 4, 4), []

    def loss(logits, instances, normalizer):
        seen.append(normalizer)
        return torch.tensor(4.0)

    monkeypatch.setattr(keypoint_head, "keypoint_rcnn_loss", loss)
    assert head(x, ["one image", "another"]) == {"loss_keypoint": 2.0} and seen == [given]
    monkeypatch.setattr(keypoint_head, "keypoint_rcnn_inference", lambda logits, instances: seen.append(instances))
    assert head.eval()(x, ["one"]) == ["one"] and seen[-1] == ["one"]


def test_from_config(tiny_rcnn_cfg):
    shape = ShapeSpec(channels=8, height=4, width=4)
    head = build_keypoint_head(tiny_rcnn_cfg(), shape)
    assert (head.num_keypoints, head.loss_normalizer) == (4, "visible")
    cfg = tiny_rcnn_cfg("MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", False)
    assert build_keypoint_head(cfg, shape).loss_normalizer == 4 * 32 * 0.25
    assert "KRCNNConvDeconvUpsampleHead" in ROI_KEYPOINT_HEAD_REGISTRY


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="visible"):
        BaseKeypointRCNNHead(num_keypoints=3, loss_normalizer="invisible")
    with pytest.raises(NotImplementedError, match="layers"):
        BaseKeypointRCNNHead(num_keypoints=3).layers(None)
