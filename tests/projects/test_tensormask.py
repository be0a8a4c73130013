"""TensorMask: swap_align2nat against its definition, assignment, windows, and whole models in small."""

import copy
import importlib
import math
import pickle
import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

SIZES_HW = [(64, 96), (48, 80)]
CONFIGS = ["tensormask_R_50_FPN_1x", "tensormask_R_50_FPN_6x"]


@pytest.fixture(scope="module")
def project(repo_root):
    """The package of the project, which is not installed."""
    folder = str(repo_root / "projects" / "TensorMask")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("tensormask")
    finally:
        sys.path.remove(folder)


# ------------------------------------------------------------------------------------------------------ swap_align2nat


def _interpolated(x, n, v, u, y, x_, pad):
    """The value of `x[N, V, V, H, W]` at fractional places, neighbours outside counting as `pad`."""
    total = 0.0
    places = [[(math.floor(c), 1 - (c - math.floor(c))), (math.floor(c) + 1, c - math.floor(c))] for c in (v, u, y, x_)]
    for corner in product(*places):
        weight = math.prod(w for _, w in corner)
        index = tuple(i for i, _ in corner)
        inside = all(0 <= i < size for i, size in zip(index, x.shape[1:], strict=True))
        total += weight * (x[(n, *index)] if inside else pad)
    return total


def _slowly(x, scale, pad):
    """The definition, one cell of one window at a time."""
    n, channels, height, width = x.shape
    side = math.isqrt(channels)
    x = x.reshape(n, side, side, height, width)
    grid_h, grid_w, cells = math.ceil(height / scale), math.ceil(width / scale), scale * side
    out = np.zeros((n, cells, cells, grid_h, grid_w))
    for i, v, u, y, x_ in np.ndindex(out.shape):
        out[i, v, u, y, x_] = _interpolated(
            x,
            i,
            (v + 0.5) / scale - 0.5,
            (u + 0.5) / scale - 0.5,
            scale * y + v + 0.5 - cells / 2,
            scale * x_ + u + 0.5 - cells / 2,
            pad,
        )
    return out.reshape(n, cells * cells, grid_h, grid_w)


@pytest.mark.parametrize(
    ("side", "scale", "size_hw"),
    [(1, 1, (1, 1)), (3, 1, (4, 5)), (2, 1, (3, 4)), (3, 2, (5, 4)), (2, 2, (4, 4)), (3, 3, (4, 7)), (1, 4, (5, 9))],
)
@pytest.mark.parametrize("pad", [-6.0, 0.5])
def test_swap_align2nat(project, side, scale, size_hw, pad):
    x = torch.randn(2, side * side, *size_hw, dtype=torch.float64)
    expected = _slowly(x.numpy(), scale, pad)
    found = project.SwapAlign2Nat(scale, pad)(x)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    some = torch.stack(torch.meshgrid(*(torch.arange(s) for s in (2, *found.shape[2:])), indexing="ij"), -1)
    images, rows, columns = some.reshape(-1, 3).flip(0).unbind(1)
    at = importlib.import_module("tensormask.layers").swap_align2nat_at(x, scale, images, rows, columns, pad)
    assert at.shape[1:] == (scale * side, scale * side)
    torch.testing.assert_close(at.flatten(1), found[images, :, rows, columns])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_swap_align2nat_of_any_size(project, side, scale, height, width, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, side * side, height, width)))
    np.testing.assert_allclose(project.swap_align2nat(x, scale).numpy(), _slowly(x.numpy(), scale, -6.0), atol=1e-12)


def test_swap_align2nat_with_scale_one_is_a_shift(project):
    x = torch.randn(1, 9, 5, 6)
    out = project.swap_align2nat(x, 1)
    torch.testing.assert_close(out[0, 4], x[0, 4])  # the middle of the mask is the pixel itself
    torch.testing.assert_close(out[0, 0, 1:, 1:], x[0, 0, :-1, :-1])
    torch.testing.assert_close(out[0, 0, 0], torch.full((6,), -6.0))


def test_swap_align2nat_without_images_or_windows(project):
    assert project.swap_align2nat(torch.zeros(0, 9, 4, 4), 2).shape == (0, 36, 2, 2)
    none = torch.zeros(0, dtype=torch.int64)
    at = importlib.import_module("tensormask.layers").swap_align2nat_at
    assert at(torch.zeros(1, 9, 4, 4), 2, none, none, none).shape == (0, 6, 6)


@pytest.mark.parametrize("scale", [1, 2])
def test_gradients_of_swap_align2nat(project, scale):
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(project.SwapAlign2Nat(scale), x)
    at = importlib.import_module("tensormask.layers").swap_align2nat_at
    place = (torch.tensor([0, 0]), torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert torch.autograd.gradcheck(lambda v: at(v, scale, *place), x)


def test_swap_align2nat_compiles(project):
    layer, x = project.SwapAlign2Nat(2), torch.randn(1, 9, 6, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_swap_align2nat_refuses(project):
    with pytest.raises(ValueError, match="V \\* V"):
        project.swap_align2nat(torch.zeros(1, 8, 4, 4), 1)
    with pytest.raises(ValueError, match="integer"):
        project.swap_align2nat(torch.zeros(1, 9, 4, 4), 1.5)
    with pytest.raises(ValueError, match="maps"):
        project.swap_align2nat(torch.zeros(9, 4, 4), 1)


# ------------------------------------------------------------------------------------------------ windows, assignment


def test_anchor_generator(project):
    generator = project.TensorMaskAnchorGenerator(
        sizes=[[8.0, 12.0], [16.0, 24.0]], aspect_ratios=[[1.0]], strides=[4, 8], offset=0.0
    )
    boxes, units, indexes = generator([torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 2, 1)])
    assert [len(b) for b in boxes] == [12, 4]
    assert [u.unique().tolist() for u in units] == [[4], [8]]
    for level, (b, i, stride, sizes) in enumerate(zip(boxes, indexes, (4, 8), ([8, 12], [16, 24]), strict=True)):
        for box, (of_level, row, column, anchor) in zip(b.tensor.tolist(), i.tolist(), strict=True):
            half = sizes[anchor] / 2
            x, y = column * stride, row * stride
            assert of_level == level and box == [x - half, y - half, x + half, y + half]
    with pytest.raises(ValueError, match="2 feature maps"):
        generator([torch.zeros(1, 1, 3, 2)])


@pytest.fixture
def assign(project):
    return importlib.import_module("tensormask.assignment").assign_windows


def _windows(*rows):
    """Windows from (x center, y center, side)."""
    t = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)
    return torch.stack([t[:, 0] - t[:, 2] / 2, t[:, 1] - t[:, 2] / 2, t[:, 0] + t[:, 2] / 2, t[:, 1] + t[:, 2] / 2], 1)


def test_assignment_without_objects_or_windows(assign):
    assert assign(torch.zeros(0, 4), _windows((0, 0, 8)), torch.ones(1), 8).tolist() == [-1]
    assert assign(torch.ones(1, 4), torch.zeros(0, 4), torch.zeros(0), 8).tolist() == []


def test_assignment_rules(assign):
    gt = torch.tensor([[40.0, 40.0, 80.0, 60.0]])  # 40 x 20 around (60, 50)
    windows = _windows(
        (60, 50, 44),  # fits
        (60, 50, 36),  # does not contain it
        (60, 50, 88),  # about twice as large, less than a unit beyond it
        (60, 50, 96),  # too large
        (64, 50, 60),  # a unit away
        (64, 52, 60),  # farther
    )
    assert assign(gt, windows, torch.full((6,), 4.0), 44).tolist() == [0, -1, -1, -1, 0, -1]
    assert assign(gt, windows, torch.full((6,), 8.0), 44).tolist() == [0, -1, 0, -1, 0, 0]
    # The smallest windows are there for all smaller objects.
    tiny = torch.tensor([[58.0, 48.0, 62.0, 52.0]])
    assert assign(tiny, windows, torch.full((6,), 4.0), 36).tolist() == [-1, 0, -1, -1, -1, -1]
    assert assign(tiny, windows, torch.full((6,), 4.0), 44).tolist() == [0, 0, -1, -1, -1, -1]


def test_a_window_of_two_objects_has_none(assign):
    gt = torch.tensor([[40.0, 40.0, 80.0, 60.0], [40.0, 41.0, 80.0, 60.0], [200.0, 200.0, 240.0, 240.0]])
    windows = _windows((60, 50, 44), (220, 220, 44))
    assert assign(gt, windows, torch.full((2,), 4.0), 44).tolist() == [-1, 2]


# ---------------------------------------------------------------------------------------------------------------- head


def _head(project, **changes):
    arguments = {
        "input_shape": [ShapeSpec(channels=4, stride=4), ShapeSpec(channels=4, stride=8)],
        "num_classes": 3,
        "num_anchors": 2,
        "mask_sizes": [3, 5],
        "num_convs": 1,
        "cls_channels": 4,
        "bbox_channels": 4,
        "mask_channels": 4,
    }
    return project.TensorMaskHead(**{**arguments, **changes})


FEATURES = [(1, 4, 7, 9), (1, 4, 4, 5)]


@pytest.mark.parametrize(("aligned", "bipyramid"), [(False, False), (True, False), (True, True)])
def test_masks_of_the_head(project, aligned, bipyramid):
    head = _head(project, aligned_on=aligned, bipyramid_on=bipyramid)
    features = [torch.randn(*shape) for shape in FEATURES]
    logits, deltas, masks = head(features)
    assert [tuple(x.shape) for x in logits] == [(1, 6, 7, 9), (1, 6, 4, 5)]
    assert [tuple(x.shape) for x in deltas] == [(1, 8, 7, 9), (1, 8, 4, 5)]
    place = torch.tensor([0, 0]), torch.tensor([3, 0]), torch.tensor([2, 4])
    for level, anchor in product(range(2), range(2)):
        side = (3, 5)[anchor] * (2**level if bipyramid else 1)
        assert head.mask_side(level, anchor) == side
        found = head.masks_at(masks, level, anchor, *place)
        channels = getattr(head, f"mask_pred_0{anchor}")(masks[level])
        if aligned:
            channels = project.swap_align2nat(channels, 2**level if bipyramid else 1)
        expected = channels[place[0], :, place[1], place[2]].reshape(2, side, side)
        torch.testing.assert_close(found, expected)
        assert head.masks_at(masks, level, anchor, *(p[:0] for p in place)).shape == (0, side, side)


def test_head_without_masks(project):
    head = _head(project, mask_on=False)
    assert head([torch.zeros(*shape) for shape in FEATURES])[2] is None
    assert not any("mask" in name for name in head.state_dict())


def test_untrained_head_finds_every_class_unlikely(project):
    probabilities = _head(project)([torch.zeros(*shape) for shape in FEATURES])[0][0].sigmoid()
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.01), atol=1e-3, rtol=0)


def test_head_compiles(project):
    head, features = _head(project), [torch.randn(*shape) for shape in FEATURES]
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    for a, b in zip(compiled(features), head(features), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aligned_on": False}, "ALIGNED_ON"),
        ({"mask_sizes": [3]}, "mask sizes"),
        ({"input_shape": [ShapeSpec(channels=4, stride=4), ShapeSpec(channels=2, stride=8)]}, "channels"),
        ({"input_shape": [ShapeSpec(channels=4, stride=4), ShapeSpec(channels=4, stride=6)]}, "multiples"),
        ({"input_shape": []}, "channels"),
    ],
)
def test_heads_that_cannot_be_built(project, changes, message):
    with pytest.raises(ValueError, match=message):
        _head(project, **changes)


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.fixture
def tiny_config(project, repo_root):
    def make(*changes):
        cfg = get_cfg()
        project.add_tensormask_config(cfg)
        cfg.merge_from_file(str(repo_root / "projects/TensorMask/configs/tensormask_R_50_FPN_1x.yaml"))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.FPN.OUT_CHANNELS = 8
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s * 4 * 2**i for s in (3, 5)] for i in range(6)]
        options = cfg.MODEL.TENSOR_MASK
        options.NUM_CONVS, options.NUM_CLASSES = 1, 3
        options.CLS_CHANNELS = options.BBOX_CHANNELS = options.MASK_CHANNELS = 8
        options.SCORE_THRESH_TEST = 0.0
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        cfg.merge_from_list(list(changes))
        return cfg

    return make


def _batch(boxes=(((4, 4, 40, 36), (50, 10, 62, 22)), ((10, 8, 42, 40),)), polygons=False):
    result = []
    for size_hw, of_image in zip(SIZES_HW, boxes, strict=True):
        target = Instances(size_hw)
        target.gt_boxes = Boxes(torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4))
        target.gt_classes = torch.arange(len(of_image)) % 3
        if polygons:
            outlines = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=float)] for x0, y0, x1, y1 in of_image]
            target.gt_masks = PolygonMasks(outlines)
        else:
            masks = torch.zeros(len(of_image), *size_hw, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, of_image, strict=True):
                mask[y0:y1, x0:x1] = True
            target.gt_masks = BitMasks(masks)
        result.append({"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8), "instances": target})
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(name, project, repo_root):
    cfg = get_cfg()
    project.add_tensormask_config(cfg)
    cfg.merge_from_file(str(repo_root / f"projects/TensorMask/configs/{name}.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.head.mask_sizes == [11, 15] and model.head.lambdas == [1, 2, 4, 8, 16, 32]
    assert model.min_window_size == 44
    assert model.head.mask_pred_01.weight.shape == (225, 128, 1, 1)


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize(("aligned", "bipyramid"), [(False, False), (True, True)])
def test_trains(tiny_config, polygons, aligned, bipyramid):
    model = build_model(
        tiny_config("MODEL.TENSOR_MASK.ALIGNED_ON", aligned, "MODEL.TENSOR_MASK.BIPYRAMID_ON", bipyramid)
    )
    losses = model(_batch(polygons=polygons))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert all(loss > 0 for loss in losses.values())
    # Logits near 0 cost log 2, the pixels inside weigh 1.5, the loss weighs 2; cells outside of the image cost nothing.
    assert math.log(2) < losses["loss_mask"] < 2 * 1.5 * math.log(2)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_images_without_objects(tiny_config):
    model = build_model(tiny_config())
    losses = model(_batch(boxes=((), ())))
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(loss.isfinite() for loss in model(_batch(boxes=((), ((10, 8, 42, 40),)))).values())
    with pytest.raises(ValueError, match="'instances'"):
        model([{"image": item["image"]} for item in _batch()])


def test_losses_by_hand(tiny_config):
    """Classes and boxes, summed over all windows, against the formulas."""
    model = build_model(tiny_config())
    batch = _batch()
    losses = model(batch)
    images = model.preprocess_image(batch)
    features = [model.backbone(images.tensor)[name] for name in model.in_features]
    logits, deltas, _ = model.head(features)
    windows, units, _ = model.anchor_generator(features)
    logits = torch.cat([x.unflatten(1, (2, 3)).permute(0, 3, 4, 1, 2).reshape(2, -1, 3) for x in logits], 1)
    deltas = torch.cat([x.unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2).reshape(2, -1, 4) for x in deltas], 1)
    windows, units = Boxes.cat(windows), torch.cat(units)
    cls = box = count = 0
    for i, item in enumerate(batch):
        assigned = model.assign(windows, units, item["instances"])
        positive = assigned >= 0
        truth = torch.zeros_like(logits[i])
        truth[positive, item["instances"].gt_classes[assigned[positive]]] = 1
        p = logits[i].sigmoid()
        p_t, alpha_t = truth * p + (1 - truth) * (1 - p), truth * 0.3 + (1 - truth) * 0.7
        cls += (-alpha_t * (1 - p_t) ** 3 * p_t.log()).sum()
        targets = model.box2box_transform.get_deltas(
            windows.tensor[positive], item["instances"].gt_boxes.tensor[assigned[positive]]
        )
        box += (deltas[i][positive] - targets).abs().sum()
        count += positive.sum()
    assert count > 2
    torch.testing.assert_close(losses["loss_cls"], cls / count, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["loss_box_reg"], box / count, rtol=1e-4, atol=0)


def test_trains_in_bfloat16(tiny_config):
    model = build_model(tiny_config())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(_batch())
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def test_inference(tiny_config):
    model = build_model(tiny_config()).eval()
    batch = _batch()
    batch[0]["height"], batch[0]["width"] = 100, 90
    with torch.no_grad():
        results = [r["instances"] for r in model(batch)]
    for result, size_hw in zip(results, [(100, 90), SIZES_HW[1]], strict=True):
        assert 0 < len(result) <= 5 and result.image_size == size_hw
        assert result.pred_masks.shape == (len(result), *size_hw) and result.pred_masks.dtype == torch.bool
        assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
        assert (result.scores.diff() <= 0).all() and result.pred_classes.max() < 3


def test_nothing_is_found(tiny_config):
    model = build_model(tiny_config("MODEL.TENSOR_MASK.SCORE_THRESH_TEST", 0.99)).eval()
    with torch.no_grad():
        results = [r["instances"] for r in model(_batch())]
    for result, size_hw in zip(results, SIZES_HW, strict=True):
        assert len(result) == 0 and result.pred_masks.shape == (0, *size_hw)
        assert result.pred_boxes.tensor.shape == (0, 4) and result.scores.shape == (0,)


def test_without_masks(tiny_config):
    model = build_model(tiny_config("MODEL.MASK_ON", False))
    assert set(model(_batch())) == {"loss_cls", "loss_box_reg"}
    with torch.no_grad():
        assert not model.eval()(_batch())[0]["instances"].has("pred_masks")


def test_learns_one_image(tiny_config):
    """Boxes and masks of the objects it was trained on come out again."""
    sizes = [[s * 4 * 2**i for s in (3, 5)] for i in range(3)]
    changes = ["MODEL.TENSOR_MASK.IN_FEATURES", ["p2", "p3", "p4"], "MODEL.ANCHOR_GENERATOR.SIZES", sizes]
    changes += ["MODEL.RESNETS.NORM", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
    torch.manual_seed(1)
    model = build_model(tiny_config("MODEL.TENSOR_MASK.SCORE_THRESH_TEST", 0.3, *changes))
    batch = _batch()[:1]
    batch[0]["image"] = (batch[0]["instances"].gt_masks.tensor.any(0) * 200).to(torch.uint8).expand(3, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    for truth, label in zip(batch[0]["instances"].gt_masks.tensor, (0, 1), strict=True):
        masks = found.pred_masks[found.pred_classes == label]
        assert len(masks) > 0
        assert (masks[0] & truth).sum() / (masks[0] | truth).sum() > 0.8


def test_copies(tiny_config, project, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "projects" / "TensorMask"))  # where pickle looks for the classes
    model, loaded = (build_model(tiny_config()).eval() for _ in range(2))
    loaded.load_state_dict(model.state_dict())
    batch = _batch()
    with torch.no_grad():
        expected = model(batch)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            for a, b in zip(other(batch), expected, strict=True):
                assert torch.equal(a["instances"].scores, b["instances"].scores)
                assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ANCHOR_GENERATOR.SIZES", [[12, 20]], "one each"),
        ("ANCHOR_GENERATOR.SIZES", [[12], [24], [48], [96], [192], [400]], "same multiples"),
        ("ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]], "squares"),
    ],
)
def test_windows_that_cannot_be_built(tiny_config, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_config(f"MODEL.{key}", value))
