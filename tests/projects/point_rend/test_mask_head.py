import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.projects.point_rend import mask_head as mask_head_module
from detectron2.projects.point_rend.mask_head import calculate_uncertainty
from detectron2.projects.point_rend.point_features import subdivide
from detectron2.structures import BitMasks, Boxes, Instances

KINDS = ["standard", "implicit"]
SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}
LOSSES = {"standard": {"loss_mask", "loss_mask_point"}, "implicit": {"loss_mask_point", "loss_l2"}}


def detections(*counts):
    out = []
    for count in counts:
        xy = torch.rand(count, 2) * 40
        boxes = torch.cat([xy, xy + 5 + torch.rand(count, 2) * 20], dim=1)
        out.append(Instances((64, 96), pred_boxes=Boxes(boxes), pred_classes=torch.arange(count) % 3))
    return out


def features(images):
    return {"p2": torch.randn(images, 8, 16, 24), "p3": torch.randn(images, 8, 8, 12)}


def busy(head):
    """Make the predictions of a fresh head, which are nearly zero, differ from point to point."""
    for name, parameter in head.named_parameters():
        if "predict" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


def test_uncertainty():
    logits = torch.tensor([[[3.0, -1], [0, 2]], [[1, 1], [-4, 0.5]]])  # two regions, two classes, two points
    got = calculate_uncertainty(logits, torch.tensor([0, 1]))
    assert got.tolist() == [[[-3, -1]], [[-4, -0.5]]]
    assert calculate_uncertainty(logits[:, :1], torch.tensor([5, 5])).tolist() == [[[-3, -1]], [[-1, -1]]]
    assert calculate_uncertainty(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 4)


# --- subdivision ---


@pytest.mark.parametrize("maps", [0, 2])
def test_subdivision_predicts_the_uncertain_points_only(maps):
    coarse = torch.randn(maps, 1, 3, 3)
    asked = []

    def predict(coords):
        asked.append(coords)
        return torch.full((maps, 1, coords.shape[1]), 100.0)

    got = subdivide(coarse, 1, 5, lambda x: -x.abs(), predict)
    assert got.shape == (maps, 1, 6, 6)
    smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    for i in range(maps):
        flat = smooth[i].flatten().numpy()
        chosen = set(np.argsort(np.abs(flat))[:5].tolist())
        expected = [100.0 if j in chosen else flat[j] for j in range(36)]
        np.testing.assert_allclose(got[i].flatten().numpy(), expected, atol=1e-6)
        cells = {int(y * 6) * 6 + int(x * 6) for x, y in asked[0][i].tolist()}
        assert cells == chosen


def test_subdivision_leaves_out_what_the_next_step_would_replace():
    calls = []

    def predict(coords):
        calls.append(coords.shape[1])
        return (coords[..., 0] - coords[..., 1]).unsqueeze(1)

    got = subdivide(torch.randn(1, 1, 2, 2), 3, 64, lambda x: -x.abs(), predict)
    assert calls == [64, 64]  # 4 x 4 is left out, 8 x 8 predicted whole, of 16 x 16 a quarter
    assert got.shape == (1, 1, 16, 16)
    calls.clear()
    subdivide(torch.randn(1, 1, 2, 2), 1, 64, lambda x: -x.abs(), predict)
    assert calls == [16]  # the last step is never left out


def test_no_subdivision():
    coarse = torch.randn(2, 1, 3, 3)
    assert subdivide(coarse, 0, 5, torch.abs, lambda coords: coords) is coarse


# --- heads ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0), (2, 3)])
def test_inference_shapes(tiny_config, kind, counts):
    head = busy(build_mask_head(tiny_config(kind), SHAPES))
    found = detections(*counts)
    with torch.no_grad():
        assert head(features(len(counts)), found) is found
    side = {"standard": 16, "implicit": 24}[kind]  # from 4 and from 6
    assert [tuple(x.pred_masks.shape) for x in found] == [(count, 1, side, side) for count in counts]
    for x in found:
        assert x.pred_masks.dtype == torch.float32 and bool(((x.pred_masks >= 0) & (x.pred_masks <= 1)).all())


def test_inference_of_no_image(tiny_config):
    assert build_mask_head(tiny_config("standard"), SHAPES).eval()(features(1), []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_regions_change_nothing(tiny_config, kind, monkeypatch):
    head = busy(build_mask_head(tiny_config(kind), SHAPES))
    maps, found = features(3), detections(4, 0, 3)
    with torch.no_grad():
        whole = [x.pred_masks for x in head(maps, found)]
        calls = []
        predict = head._predict
        monkeypatch.setattr(head, "_predict", lambda *args: calls.append(len(args[2])) or predict(*args))
        monkeypatch.setattr(mask_head_module, "_GROUP_NUMBERS", 36 * 8 * 3)
        parts = [x.pred_masks for x in head(maps, found)]
    assert calls == [3, 3, 1]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_points_are_predicted_from_fine_and_coarse(tiny_config):
    """One step of a one-layer point head, computed by hand."""
    cfg = tiny_config("standard", "MODEL.POINT_HEAD.NUM_FC", 0, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 1)
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 64  # all of 8 x 8
    head = busy(build_mask_head(cfg, SHAPES))
    maps, found = features(1), detections(1)
    found[0].pred_classes[0] = 2
    with torch.no_grad():
        masks = head(maps, found)[0].pred_masks
        box = found[0].pred_boxes.tensor[0]

        def read(image_map, side):  # at the centres of the cells of a grid over the box
            share = (torch.arange(side) + 0.5) / side
            x = (box[0] + share * (box[2] - box[0])) / 96 * 2 - 1
            y = (box[1] + share * (box[3] - box[1])) / 64 * 2 - 1
            grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=2)[None]
            return F.grid_sample(image_map, grid, align_corners=False)

        coarse = head.coarse_head(read(maps["p2"], 6))
        at_points = F.interpolate(F.pad(coarse, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)[
            ..., 2:-2, 2:-2
        ]
        x = torch.cat([read(maps["p2"], 8), at_points], dim=1)
        weight, bias = head.point_head.predictor.weight[2, :, 0], head.point_head.predictor.bias[2]
        expected = ((x * weight[:, None, None]).sum(dim=1) + bias).sigmoid()
    torch.testing.assert_close(masks[0], expected, atol=1e-5, rtol=1e-4)


def test_without_point_head_the_coarse_mask_is_the_result(tiny_config):
    head = busy(build_mask_head(tiny_config("standard", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False), SHAPES))
    assert not any("point_head" in name for name in head.state_dict())
    maps, found = features(1), detections(2)
    with torch.no_grad():
        masks = head(maps, found)[0].pred_masks
        coarse = head.coarse_head(head._roi_pooler(maps, [found[0].pred_boxes]))
    torch.testing.assert_close(masks[1, 0], coarse[1, 1].sigmoid())


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("standard", ["MODEL.POINT_HEAD.NUM_CLASSES", 7], "MODEL.POINT_HEAD.NUM_CLASSES is 7"),
        ("implicit", ["MODEL.ROI_HEADS.NUM_CLASSES", 7], "MODEL.ROI_HEADS.NUM_CLASSES 7"),
        ("standard", ["MODEL.POINT_HEAD.IN_FEATURES", ["p9"]], "p9"),
        ("implicit", ["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 37], "square"),
    ],
)
def test_configs_that_cannot_work(tiny_config, kind, changes, text):
    with pytest.raises(ValueError, match=text):
        build_mask_head(tiny_config(kind, *changes), SHAPES)


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_features_are_refused(tiny_config, kind):
    with pytest.raises(ValueError, match="POOLER_TYPE"):
        build_model(tiny_config(kind, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"))


# --- whole models ---


def train_step(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [None, [[], []], [[], [[10, 8, 42, 40]]]])
def test_training(tiny_config, make_batch, kind, boxes):
    model = build_model(tiny_config(kind))
    losses = train_step(model, make_batch(True) if boxes is None else make_batch(True, boxes))
    assert LOSSES[kind] <= set(losses)
    assert all(torch.isfinite(x) for x in losses.values())
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # DistributedDataParallel would wait for them
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_learnt(tiny_config, kind):
    """The left half of a box, from features that say where left is."""
    cfg = tiny_config(kind, "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 64)
    head = build_mask_head(cfg, SHAPES)
    if kind == "implicit":
        torch.nn.init.normal_(head.parameter_head.prediction.bias, std=0.1)
    maps = {"p2": torch.linspace(-1, 1, 24).expand(1, 8, 16, 24).contiguous(), "p3": torch.zeros(1, 8, 8, 12)}
    bitmap = torch.zeros(1, 64, 96, dtype=torch.bool)
    bitmap[0, :, :48] = True
    box = Boxes(torch.tensor([[0.0, 0, 96, 64]]))
    target = Instances((64, 96), proposal_boxes=box, gt_classes=torch.tensor([1]), gt_masks=BitMasks(bitmap))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        sum(head(maps, [target]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = head.eval()(maps, [Instances((64, 96), pred_boxes=box, pred_classes=torch.tensor([1]))])
    mask = found[0].pred_masks[0, 0] > 0.5
    side = mask.shape[1]
    assert mask[:, : side // 2 - 1].float().mean() > 0.95
    assert mask[:, side // 2 + 1 :].float().mean() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(tiny_config, make_batch, kind):
    model = build_model(tiny_config(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(make_batch(True))
        sum(losses.values()).backward()
        optimizer.step()
        assert all(torch.isfinite(x) for x in losses.values())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval()(make_batch(False))
    assert len(found[0]["instances"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_inference_copies_and_files(tiny_config, make_batch, kind):
    model = build_model(tiny_config(kind))
    busy(model.roi_heads.mask_head)
    model.eval()
    other = build_model(tiny_config(kind)).eval()
    other.load_state_dict(model.state_dict())
    buffer = io.BytesIO(pickle.dumps(model))
    batch = make_batch(False)
    with torch.no_grad():
        expected = [x["instances"] for x in model(batch)]
        for same in (copy.deepcopy(model), pickle.load(buffer), other):
            for a, b in zip([x["instances"] for x in same(batch)], expected, strict=True):
                assert torch.equal(a.pred_masks, b.pred_masks)
    assert len(expected[0]) > 0 and expected[0].pred_masks.shape[1:] == (64, 96)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found(tiny_config, make_batch, kind):
    model = build_model(tiny_config(kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99)).eval()
    with torch.no_grad():
        for item, size_hw in zip(model(make_batch(False)), [(64, 96), (48, 80)], strict=True):
            instances = item["instances"]
            assert len(instances) == 0 and instances.pred_masks.shape == (0, *size_hw)
            assert {"pred_boxes", "scores", "pred_classes"} <= set(instances.get_fields())
