"""The heads of DeepLab: shapes, losses, and whole models in small."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from detectron2.config import get_cfg
from detectron2.layers import DepthwiseSeparableConv2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.projects.deeplab import DeepLabCE, DeepLabV3Head, DeepLabV3PlusHead, add_deeplab_config

SIZES_HW = [(64, 96), (48, 80)]
K = 5


def _v3(**changes):
    arguments = {
        "input_shape": {"res5": ShapeSpec(channels=6, stride=16)},
        "num_classes": K,
        "conv_dims": 4,
        "common_stride": 16,
        "aspp_channels": 4,
        "aspp_dilations": [1, 2, 3],
        "aspp_dropout": 0.0,
        "norm": "BN",
    }
    return DeepLabV3Head(**{**arguments, **changes})


def _plus(**changes):
    arguments = {
        "input_shape": {"res5": ShapeSpec(channels=6, stride=16), "res2": ShapeSpec(channels=3, stride=4)},
        "project_channels": [2],
        "aspp_dilations": [1, 2, 3],
        "aspp_dropout": 0.0,
        "decoder_channels": [4, 5],
        "common_stride": 4,
        "norm": "BN",
        "train_size": None,
        "num_classes": K,
    }
    return DeepLabV3PlusHead(**{**arguments, **changes})


def _features(n=2, h=64, w=96):
    return {"res2": torch.randn(n, 3, h // 4, w // 4), "res5": torch.randn(n, 6, h // 16, w // 16)}


@pytest.mark.parametrize("make", [_v3, _plus])
def test_scores_at_the_size_of_the_input(make):
    head = make().eval()
    features = _features()
    scores, losses = head(features)
    assert scores.shape == (2, K, 64, 96) and losses == {}
    small = head.layers(features)
    expected = F.interpolate(small, scale_factor=head.common_stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, expected)


def test_v3_plus_joins_maps_from_coarse_to_fine():
    shapes = {
        "res5": ShapeSpec(channels=6, stride=16),
        "res2": ShapeSpec(channels=3, stride=4),
        "res3": ShapeSpec(channels=4, stride=8),
    }
    head = _plus(input_shape=shapes, project_channels=[2, 3], decoder_channels=[4, 5, 7]).eval()
    assert head.in_features == ["res2", "res3", "res5"]
    assert head.decoder["res3"]["fuse_conv"][0].weight.shape == (5, 3 + 7, 3, 3)
    assert head.decoder["res2"]["fuse_conv"][0].weight.shape == (4, 2 + 5, 3, 3)
    assert head.decoder["res2"]["fuse_conv"][1].weight.shape == (4, 4, 3, 3)
    features = {**_features(), "res3": torch.randn(2, 4, 8, 12)}
    x = head.decoder["res5"]["project_conv"](features["res5"])
    for name in ("res3", "res2"):
        fine = head.decoder[name]["project_conv"](features[name])
        x = F.interpolate(x, size=fine.shape[2:], mode="bilinear", align_corners=False)
        x = head.decoder[name]["fuse_conv"](torch.cat([fine, x], dim=1))
    torch.testing.assert_close(head.layers(features), head.predictor(x))


def test_v3_plus_as_a_decoder():
    head = _plus(num_classes=None).eval()
    assert not any(name.startswith("predictor") for name in head.state_dict())
    assert head.layers(_features()).shape == (2, 4, 16, 24)


def test_depthwise_separable():
    head = _plus(use_depthwise_separable_conv=True).eval()
    fuse = head.decoder["res2"]["fuse_conv"]
    assert isinstance(fuse, DepthwiseSeparableConv2d) and fuse.depthwise.kernel_size == (5, 5)
    assert head(_features())[0].shape == (2, K, 64, 96)
    assert isinstance(_v3(use_depthwise_separable_conv=True).aspp.convs[1], DepthwiseSeparableConv2d)


@pytest.mark.parametrize("make", [_v3, _plus])
@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_losses(make, loss_type):
    head = make(loss_type=loss_type, loss_weight=2.0, ignore_value=255)
    features, targets = _features(), torch.randint(0, K, (2, 64, 96))
    targets[:, :8] = 255
    scores, losses = head(features, targets)
    assert scores is None and list(losses) == ["loss_sem_seg"]
    upsampled = F.interpolate(
        head.layers(features), scale_factor=head.common_stride, mode="bilinear", align_corners=False
    )
    if loss_type == "cross_entropy":
        expected = F.cross_entropy(upsampled, targets, ignore_index=255)
    else:
        expected = F.cross_entropy(upsampled, targets, ignore_index=255, reduction="none").flatten()
        expected = expected.sort().values[-int(0.2 * expected.numel()) :].mean()
        assert isinstance(head.loss, DeepLabCE)
    # Batch norm of the same batch gives the same scores again.
    assert losses["loss_sem_seg"].item() == pytest.approx(2 * expected.item(), rel=1e-4)
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in head.parameters())


def test_pixel_weights():
    head = _v3(loss_type="cross_entropy", ignore_value=255)
    scores, targets = torch.randn(1, K, 2, 2), torch.randint(0, K, (1, 32, 32))
    targets[0, 0] = 255
    weights = torch.rand(1, 32, 32)
    upsampled = F.interpolate(scores, scale_factor=16, mode="bilinear", align_corners=False)
    per_pixel = F.cross_entropy(upsampled, targets, ignore_index=255, reduction="none")
    expected = (per_pixel * weights).sum() / (32 * 31)
    assert head.losses(scores, targets, weights)["loss_sem_seg"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_images_without_a_label_cost_nothing(loss_type):
    head = _v3(loss_type=loss_type, ignore_value=255)
    _, losses = head(_features(), torch.full((2, 64, 96), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_input_size_that_is_no_multiple_of_the_stride():
    features = {"res5": torch.randn(1, 6, 3, 3)}  # of an image of 40 x 44 pixels
    _, losses = _v3()(features, torch.zeros(1, 40, 44, dtype=torch.int64))
    assert losses["loss_sem_seg"].isfinite()


def test_aspp_averages_over_windows_of_the_training_size():
    head = _v3(train_size=(32, 48)).eval()
    assert head.aspp.pool_kernel_size == (2, 3)
    assert head({"res5": torch.randn(1, 6, 4, 6)})[0].shape == (1, K, 64, 96)
    with pytest.raises(ValueError, match="must divide"):
        head({"res5": torch.randn(1, 6, 3, 6)})
    # One image of just that size leaves a single average, which no norm follows.
    head.train()
    _, losses = head({"res5": torch.randn(1, 6, 2, 3)}, torch.zeros(1, 32, 48, dtype=torch.int64))
    assert losses["loss_sem_seg"].isfinite()
    with pytest.raises(ValueError, match="multiple of the feature map's stride"):
        _v3(train_size=(40, 48))


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (_v3, {"input_shape": {}}, "one feature map"),
        (_v3, {"common_stride": 8}, "common stride"),
        (_v3, {"conv_dims": 8}, "aspp_channels"),
        (_v3, {"loss_type": "dice"}, "loss_type"),
        (_plus, {"input_shape": {}}, "at least one"),
        (_plus, {"project_channels": [1, 2]}, "PROJECT_CHANNELS"),
        (_plus, {"decoder_channels": [1]}, "decoder_channels"),
        (_plus, {"common_stride": 8}, "common stride"),
    ],
)
def test_what_cannot_be_built(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_targets_are_needed_in_training():
    with pytest.raises(KeyError, match="sem_seg"):
        _v3()(_features())


@pytest.mark.parametrize("make", [_v3, _plus])
def test_heads_compile_without_a_break(make):
    head = make().eval()
    features = _features()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features)[0], head(features)[0])


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.fixture(params=["DeepLabV3Head", "DeepLabV3PlusHead"])
def config(request):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    plus = request.param == "DeepLabV3PlusHead"
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"] if plus else ["res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES5_DILATION = 2, 2
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.IN_FEATURES, head.NUM_CLASSES = request.param, list(cfg.MODEL.RESNETS.OUT_FEATURES), K
    head.CONVS_DIM = head.ASPP_CHANNELS = 8
    head.PROJECT_CHANNELS, head.COMMON_STRIDE, head.NORM = [4], 4 if plus else 16, "BN"
    return cfg


def _batch(train=True):
    batch = []
    for size_hw in SIZES_HW:
        item = {"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)}
        if train:
            item["sem_seg"] = torch.randint(0, K, size_hw)
        else:
            item["height"], item["width"] = 50, 70
        batch.append(item)
    return batch


def test_trains_and_infers(config):
    model = build_model(config)
    batch = _batch()
    batch[1]["sem_seg"][:] = 255
    losses = model(batch)
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        results = model(_batch(train=False))
    assert [tuple(r["sem_seg"].shape) for r in results] == [(K, 50, 70)] * 2


def test_trains_in_bfloat16(config):
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(_batch())["loss_sem_seg"]
        assert loss.dtype == torch.float32 and loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


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


def test_relative_crops_have_no_one_size(config):
    config.INPUT.CROP.ENABLED = True
    with pytest.raises(ValueError, match="absolute"):
        build_model(config)
    config.INPUT.CROP.TYPE, config.INPUT.CROP.SIZE = "absolute", [64, 96]
    head = build_model(config).sem_seg_head
    aspp = head.aspp if isinstance(head, DeepLabV3Head) else head.decoder["res5"]["project_conv"]
    assert aspp.pool_kernel_size == (4, 6)
