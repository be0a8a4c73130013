"""The heads of Panoptic-DeepLab, and whole models in small."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from detectron2.config import get_cfg
from detectron2.data import Metadata
from detectron2.layers import DepthwiseSeparableConv2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.projects.panoptic_deeplab import (
    INS_EMBED_BRANCHES_REGISTRY,
    PanopticDeepLab,
    PanopticDeepLabInsEmbedHead,
    PanopticDeepLabSemSegHead,
    add_panoptic_deeplab_config,
    build_ins_embed_branch,
)
from detectron2.projects.panoptic_deeplab.post_processing import instances_of_panoptic

SIZES_HW = [(64, 96), (48, 80)]
K = 4
SHAPES = {"res2": ShapeSpec(channels=3, stride=4), "res5": ShapeSpec(channels=6, stride=16)}
COMMON = {
    "project_channels": [2],
    "aspp_dilations": [1, 2, 3],
    "aspp_dropout": 0.0,
    "decoder_channels": [4, 5],
    "common_stride": 4,
    "norm": "BN",
    "train_size": None,
}


def _semantic_head(**changes):
    arguments = {
        "head_channels": 6,
        "loss_weight": 1.0,
        "loss_type": "hard_pixel_mining",
        "loss_top_k": 0.3,
        "ignore_value": 255,
        "num_classes": K,
    }
    return PanopticDeepLabSemSegHead(SHAPES, **{**COMMON, **arguments, **changes})


def _instance_head(**changes):
    arguments = {"head_channels": 6, "center_loss_weight": 200.0, "offset_loss_weight": 0.01}
    return PanopticDeepLabInsEmbedHead(SHAPES, **{**COMMON, **arguments, **changes})


def _features(n=2):
    return {"res2": torch.randn(n, 3, 16, 24), "res5": torch.randn(n, 6, 4, 6)}


def _upsampled(x):
    return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("separable", [False, True])
def test_semantic_head(separable):
    head = _semantic_head(use_depthwise_separable_conv=separable).eval()
    assert isinstance(head.head, DepthwiseSeparableConv2d if separable else torch.nn.Sequential)
    scores, losses = head(_features())
    assert scores.shape == (2, K, 64, 96) and losses == {}


@pytest.mark.parametrize("weighted", [False, True])
def test_semantic_loss(weighted):
    head, features, targets = _semantic_head(loss_weight=3.0), _features(), torch.randint(0, K, (2, 64, 96))
    weights = torch.rand(2, 64, 96) if weighted else None
    _, losses = head(features, targets, weights)
    per_pixel = F.cross_entropy(_upsampled(head.layers(features)), targets, reduction="none")
    per_pixel = per_pixel if weights is None else per_pixel * weights
    expected = 3 * per_pixel.flatten().sort().values[-int(0.3 * per_pixel.numel()) :].mean()
    assert losses["loss_sem_seg"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("separable", [False, True])
def test_instance_head(separable):
    head = _instance_head(use_depthwise_separable_conv=separable).eval()
    features = _features()
    center, offset, *losses = head(features)
    assert losses == [{}, {}]
    assert isinstance(head.center_head, torch.nn.Sequential)
    assert isinstance(head.offset_head, DepthwiseSeparableConv2d) is separable
    small_center, small_offset = head.layers(features)
    torch.testing.assert_close(center, _upsampled(small_center))
    torch.testing.assert_close(offset, _upsampled(small_offset) * 4)  # in pixels, not in cells


@pytest.mark.parametrize("channel", [False, True])
def test_instance_losses(channel):
    head, features = _instance_head(), _features()
    center, offset = torch.rand(2, 64, 96), torch.randn(2, 2, 64, 96)
    center_weights, offset_weights = (torch.randint(0, 2, (2, 64, 96)).float() for _ in range(2))
    maps = [center, center_weights, offset, offset_weights]
    if channel:
        maps = [m if m.dim() == 4 else m[:, None] for m in maps]
    *nothing, center_loss, offset_loss = head(features, *maps)
    assert nothing == [None, None]
    predicted_center, predicted_offset = head.layers(features)
    error = ((_upsampled(predicted_center)[:, 0] - center) ** 2)[center_weights > 0].mean()
    assert center_loss["loss_center"].item() == pytest.approx(200 * error.item(), rel=1e-4)
    error = (_upsampled(predicted_offset) * 4 - offset).abs().sum(dim=1)[offset_weights > 0].mean()
    assert offset_loss["loss_offset"].item() == pytest.approx(0.01 * error.item(), rel=1e-4)


def test_nothing_to_learn_costs_nothing():
    head, zeros = _instance_head(), torch.zeros(2, 64, 96)
    _, _, center_loss, offset_loss = head(_features(), zeros, zeros, zeros[:, None].expand(2, 2, 64, 96), zeros)
    total = center_loss["loss_center"] + offset_loss["loss_offset"]
    total.backward()
    assert total.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_targets_are_needed_in_training():
    with pytest.raises(ValueError, match="targets"):
        _instance_head()(_features())
    with pytest.raises(KeyError, match="sem_seg"):
        _semantic_head()(_features())


@pytest.mark.parametrize("make", [_semantic_head, _instance_head])
def test_heads_compile_without_a_break(make):
    head, features = make().eval(), _features()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features)[0], head(features)[0])


# ----------------------------------------------------------------------------------------------------------- instances


def test_instances_of_panoptic():
    panoptic = torch.full((6, 8), -1)
    panoptic[:2] = 2000  # stuff
    panoptic[3:5, 1:4], panoptic[3:6, 5:7] = 1002, 3001
    scores, heatmap = torch.randn(4, 6, 8), torch.rand(6, 8)
    found = instances_of_panoptic(panoptic, scores, heatmap, [1, 3], 1000)
    assert found.pred_classes.tolist() == [1, 3]
    assert torch.equal(found.pred_masks, torch.stack([panoptic == 1002, panoptic == 3001]))
    assert found.pred_boxes.tensor.tolist() == [[1, 3, 4, 5], [5, 3, 7, 6]]
    probability = scores.softmax(dim=0)
    expected = [
        probability[1, 3:5, 1:4].mean() * heatmap[3, 2],
        probability[3, 3:6, 5:7].mean() * heatmap[4, 5],
    ]
    torch.testing.assert_close(found.scores, torch.stack(expected))


def test_no_instances():
    found = instances_of_panoptic(torch.full((6, 8), -1), torch.randn(4, 6, 8), torch.rand(6, 8), [1, 3], 1000)
    assert len(found) == 0 and found.image_size == (6, 8)
    assert found.pred_masks.shape == (0, 6, 8) and found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.fixture
def config():
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    semantic, instances = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD
    semantic.NAME, semantic.NUM_CLASSES = "PanopticDeepLabSemSegHead", 133
    for head in (semantic, instances):
        head.IN_FEATURES, head.PROJECT_FEATURES, head.PROJECT_CHANNELS = ["res2", "res3"], ["res2"], [4]
        head.CONVS_DIM = head.ASPP_CHANNELS = head.HEAD_CHANNELS = 8
        head.NORM = "BN"
    cfg.MODEL.PANOPTIC_DEEPLAB.STUFF_AREA = 4
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic"]
    return cfg


def _batch(train=True):
    batch = []
    for h, w in SIZES_HW:
        item = {"image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8)}
        if train:
            item.update(
                sem_seg=torch.randint(0, 133, (h, w)),
                center=torch.rand(h, w),
                offset=torch.randn(2, h, w),
                sem_seg_weights=torch.ones(h, w),
                center_weights=torch.ones(1, h, w),
                offset_weights=torch.ones(1, h, w),
            )
        batch.append(item)
    return batch


def test_trains(config):
    model = build_model(config)
    batch = _batch()
    for name in ("center_weights", "offset_weights", "center", "offset"):  # an image without a thing
        batch[1][name] = torch.zeros_like(batch[1][name])
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_center", "loss_offset"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for item in batch:
        del item["sem_seg_weights"]
    assert set(model(batch)) == set(losses)
    del batch[1]["offset"]
    with pytest.raises(KeyError, match="'offset'"):
        model(batch)


def test_trains_in_bfloat16(config):
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(_batch())
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert len(model(_batch(train=False))) == 2


def test_an_image_in_which_nothing_is_found(config):
    """An untrained network finds no centre."""
    model = build_model(config).eval()
    batch = _batch(train=False)
    batch[0]["height"], batch[0]["width"] = 32, 50
    with torch.no_grad():
        results = model(batch)
    for result, size_hw in zip(results, [(32, 50), SIZES_HW[1]], strict=True):
        assert result["sem_seg"].shape == (133, *size_hw)
        segments, info = result["panoptic_seg"]
        assert segments.shape == size_hw and segments.dtype == torch.int64 and info is None
        assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, *size_hw)
    config.MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED = True
    assert build_model(config).eval()(_batch(train=False)) == []
    config.MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED = False
    config.MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES = False
    assert set(build_model(config).eval()(_batch(train=False))[0]) == {"sem_seg", "panoptic_seg"}


class _Given(torch.nn.Module):
    """A head with an answer of its own."""

    ignore_value = 255

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, features):
        return self.answer


@pytest.mark.parametrize("factor_yx", [(1, 1), (3, 5)])
def test_objects_are_found_at_any_output_size(config, factor_yx):
    """Two equal objects side by side, whose left and right halves offsets tell apart; offsets scale with the image."""
    backbone = build_model(config).backbone
    scores = torch.zeros(1, 2, 16, 32)
    scores[0, 1, 4:12, 4:28] = 9
    centers = torch.zeros(1, 1, 16, 32)
    centers[0, 0, 8, 12], centers[0, 0, 8, 20] = 1.0, 0.9
    offsets = torch.zeros(1, 2, 16, 32)
    offsets[0, 1, :, :16] = 12 - torch.arange(16.0)
    offsets[0, 1, :, 16:] = 20 - torch.arange(16.0, 32.0)
    meta = Metadata(name="two", thing_dataset_id_to_contiguous_id={7: 1}, label_divisor=1000)
    model = PanopticDeepLab(
        backbone=backbone,
        sem_seg_head=_Given((scores, {})),
        ins_embed_head=_Given((centers, offsets, {}, {})),
        metadata=meta,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        stuff_area=1,
        threshold=0.5,
    ).eval()
    fy, fx = factor_yx
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 16, 32), "height": 16 * fy, "width": 32 * fx}])
    segments, _ = result["panoptic_seg"]
    assert segments.unique().tolist() == [0, 1001, 1002]
    assert segments[8 * fy, 6 * fx] == 1001 and segments[8 * fy, 26 * fx] == 1002
    # Where offsets jump, resizing mixes them over a pixel of the input.
    assert (segments[5 * fy : 11 * fy, 5 * fx : 15 * fx] == 1001).all()
    assert (segments[5 * fy : 11 * fy, 17 * fx : 27 * fx] == 1002).all()
    found = result["instances"]
    assert found.pred_classes.tolist() == [1, 1] and found.pred_boxes.tensor.shape == (2, 4)


def test_size_divisibility(config):
    config.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = 40
    model = build_model(config)
    assert model.preprocess_image(_batch()).tensor.shape == (2, 3, 80, 120)
    assert set(model(_batch())) == {"loss_sem_seg", "loss_center", "loss_offset"}


def test_copies(config):
    model = build_model(config).eval()
    batch = _batch(train=False)
    loaded = build_model(config).eval()
    loaded.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(batch)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            for a, b in zip(other(batch), expected, strict=True):
                torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=0, atol=0)


def test_configs_that_contradict_themselves(config):
    config.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV = True
    with pytest.raises(ValueError, match="must be the same"):
        build_model(config)
    config.DATASETS.TRAIN = []
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_model(config)


def test_registry(config):
    assert "PanopticDeepLabInsEmbedHead" in INS_EMBED_BRANCHES_REGISTRY
    shapes = {"res2": ShapeSpec(channels=8, stride=4), "res3": ShapeSpec(channels=16, stride=8)}
    assert isinstance(build_ins_embed_branch(config, shapes), PanopticDeepLabInsEmbedHead)
