import numpy as np
import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead, build_mask_head, mask_head
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage


def regions(boxes, classes, polygons, mask_format="polygon"):
    out = Instances((32, 32))
    out.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.gt_classes = torch.tensor(classes, dtype=torch.int64)
    polygons = [[np.array(p, dtype=np.float64)] for p in polygons]
    out.gt_masks = PolygonMasks(polygons) if mask_format == "polygon" else BitMasks.from_polygon_masks(polygons, 32, 32)
    return out


LEFT_HALF = [0, 0, 8, 0, 8, 16, 0, 16]  # of the box (0, 0, 16, 16)


def cross_entropy(p, target):
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_by_hand(mask_format, agnostic):
    instances = [
        regions([[0, 0, 16, 16]], [2], [LEFT_HALF], mask_format),
        regions([], [], [], mask_format),
        regions([[0, 0, 16, 16]], [0], [LEFT_HALF], mask_format),
    ]
    logits = torch.randn(2, 1 if agnostic else 3, 4, 4)
    target = np.zeros((4, 4))
    target[:, :2] = 1
    p = torch.sigmoid(logits.double()).numpy()
    own = p[:, 0] if agnostic else np.stack([p[0, 2], p[1, 0]])
    expected = np.mean([cross_entropy(m, target).mean() for m in own])
    assert mask_rcnn_loss(logits, instances).item() == pytest.approx(expected, rel=1e-5)


def test_images_of_one_batch_may_differ_in_the_kind_of_masks():
    logits = torch.randn(2, 3, 4, 4)
    losses = [
        mask_rcnn_loss(logits, [regions([[0, 0, 16, 16]], [c], [LEFT_HALF], f) for c, f in enumerate(formats)]).item()
        for formats in (("polygon", "polygon"), ("polygon", "bitmask"), ("bitmask", "polygon"))
    ]
    assert losses[1] == losses[2] == pytest.approx(losses[0])


@pytest.mark.parametrize("instances", [[], [Instances((32, 32))], [regions([], [], [])]])
def test_loss_without_regions_is_zero_and_differentiable(instances):
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    if instances and not instances[0].has("proposal_boxes"):
        instances[0].proposal_boxes = Boxes(torch.zeros(0, 4))  # an image without objects has no gt_masks
    loss = mask_rcnn_loss(logits, instances)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_objects_of_one_pixel():
    instances = [regions([[5, 5, 6, 6]], [0], [[5, 5, 6, 5, 6, 6, 5, 6]])]
    logits = torch.zeros(1, 1, 4, 4)
    assert mask_rcnn_loss(logits, instances).item() == pytest.approx(np.log(2), rel=1e-6)


def test_statistics_by_hand():
    instances = [regions([[0, 0, 16, 16]], [0], [LEFT_HALF])]
    logits = torch.full((1, 1, 4, 4), -1.0)
    logits[0, 0, :, 0] = 1  # half of the object is found
    logits[0, 0, 0, 3] = 1  # and one of eight cells of background taken for it
    with EventStorage() as storage:
        mask_rcnn_loss(logits, instances)
        values = {k: float(v[0]) for k, v in storage.latest().items()}
    assert values == pytest.approx(
        {"mask_rcnn/accuracy": 11 / 16, "mask_rcnn/false_positive": 1 / 8, "mask_rcnn/false_negative": 4 / 8}
    )


def test_pictures_appear_every_so_many_iterations():
    instances = [regions([[0, 0, 16, 16]] * 2, [0, 0], [LEFT_HALF] * 2)]
    with EventStorage(start_iter=6) as storage:
        mask_rcnn_loss(torch.zeros(2, 1, 4, 4), instances, vis_period=4)
        assert not storage.vis_data
        mask_rcnn_loss(torch.zeros(2, 1, 4, 4), instances, vis_period=3)
        assert [tuple(image.shape) for _, image, _ in storage.vis_data] == [(3, 4, 8)] * 2


def test_masks_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        mask_rcnn_loss(torch.zeros(0, 3, 4, 5), [])


@pytest.mark.parametrize("agnostic", [False, True])
def test_inference_takes_the_mask_of_the_predicted_class(agnostic):
    logits = torch.randn(3, 1 if agnostic else 4, 2, 2)
    detections = [Instances((9, 9), pred_classes=torch.tensor(c, dtype=torch.int64)) for c in ([3, 0], [], [1])]
    mask_rcnn_inference(logits, detections)
    assert [tuple(x.pred_masks.shape) for x in detections] == [(2, 1, 2, 2), (0, 1, 2, 2), (1, 1, 2, 2)]
    for i, (got, cls) in enumerate(
        [(detections[0].pred_masks[0], 3), (detections[0].pred_masks[1], 0), (detections[2].pred_masks[0], 1)]
    ):
        torch.testing.assert_close(got[0], logits[i, 0 if agnostic else cls].sigmoid())


@pytest.mark.parametrize("classes", [1, 4])
def test_inference_of_nothing(classes):
    mask_rcnn_inference(torch.zeros(0, classes, 2, 2), [])
    detections = [Instances((9, 9), pred_classes=torch.zeros(0, dtype=torch.int64)) for _ in range(2)]
    mask_rcnn_inference(torch.zeros(0, classes, 2, 2), detections)
    assert [tuple(x.pred_masks.shape) for x in detections] == [(0, 1, 2, 2)] * 2


@pytest.mark.parametrize("count", [0, 2])
def test_head_shapes_and_names(count):
    head = MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=3, height=4, width=4), num_classes=5, conv_dims=[6, 7, 8], loss_weight=0.5
    )
    assert head.layers(torch.randn(count, 3, 4, 4)).shape == (count, 5, 8, 8)
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if k.endswith("weight")}
    assert shapes == {
        "mask_fcn1.weight": (6, 3, 3, 3),
        "mask_fcn2.weight": (7, 6, 3, 3),
        "deconv.weight": (7, 8, 2, 2),
        "predictor.weight": (5, 8, 1, 1),
    }
    assert head.predictor.weight.abs().max() < 0.01 and not head.predictor.bias.any()


def test_head_uses_the_functions_of_the_module(monkeypatch):
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=3), num_classes=1, conv_dims=[4], loss_weight=0.5, vis_period=9)
    x = torch.randn(1, 3, 4, 4)
    monkeypatch.setattr(mask_head, "mask_rcnn_loss", lambda logits, instances, period: torch.tensor(4.0) + period)
    assert head(x, "regions") == {"loss_mask": 6.5}
    touched = []
    monkeypatch.setattr(mask_head, "mask_rcnn_inference", lambda logits, instances: touched.append(instances))
    assert head.eval()(x, "detections") == "detections" and touched == ["detections"]


def test_from_config(tiny_rcnn_cfg):
    shape = ShapeSpec(channels=8, height=4, width=4)
    head = build_mask_head(tiny_rcnn_cfg("VIS_PERIOD", 20), shape)
    assert (head.predictor.out_channels, head.vis_period, len(head.conv_norm_relus)) == (3, 20, 1)
    assert (
        build_mask_head(tiny_rcnn_cfg("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True), shape).predictor.out_channels == 1
    )
    normed = build_mask_head(tiny_rcnn_cfg("MODEL.ROI_MASK_HEAD.NORM", "BN"), shape)
    assert normed.mask_fcn1.bias is None and "mask_fcn1.norm.weight" in normed.state_dict()
    assert "MaskRCNNConvUpsampleHead" in ROI_MASK_HEAD_REGISTRY


def test_layers_must_be_written():
    with pytest.raises(NotImplementedError, match="layers"):
        BaseMaskRCNNHead().layers(None)
    with pytest.raises(ValueError, match="conv_dims"):
        MaskRCNNConvUpsampleHead(ShapeSpec(channels=3), num_classes=1, conv_dims=[])
