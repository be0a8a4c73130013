"""Freezing and wrapping of models; `tests/e2e/test_train_options.py` has detectors, and compilation."""

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.engine import model_preparation
from detectron2.engine.model_preparation import create_ddp_model, freeze_by_pattern, parameter_table, prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_without_options_models_stay_the_same():
    m = model()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    assert prepare_model(m, TrainOptions()) is m and all(p.requires_grad for p in m.parameters())
    assert all(torch.equal(value, before[name]) for name, value in m.state_dict().items())
    assert create_ddp_model(m) is m


def test_frozen_norm_is_replaced():
    m = prepare_model(model(), TrainOptions(freeze=("1",)))
    assert isinstance(m[1], FrozenBatchNorm2d) and m[0].weight.requires_grad
    last = [cell.strip() for cell in parameter_table(m).splitlines()[-1].split("|")]
    assert last[1:4] == ["all", "4", "4"]


@pytest.mark.parametrize(
    ("device", "choice", "expected"),
    [("cpu", None, True), ("cpu", True, True), ("cpu", False, False), ("meta", None, False), ("meta", True, True)],
)
def test_channels_last(device, choice, expected):
    m = prepare_model(nn.Sequential(nn.Conv2d(3, 2, 3, device=device)), TrainOptions(channels_last=choice))
    assert m[0].weight.is_contiguous(memory_format=torch.channels_last) == expected


def test_channels_last_is_not_chosen_for_models_that_are_sharded(monkeypatch):
    monkeypatch.setattr("detectron2.engine.model_preparation.shard_model", lambda model: model)
    m = prepare_model(nn.Sequential(nn.Conv2d(3, 2, 3)), TrainOptions(shard_model=True))
    assert m[0].weight.is_contiguous()


def test_channels_last_that_is_neither():
    with pytest.raises(ValueError, match=r"TRAIN\.CHANNELS_LAST .* must be true, false or null, but is 'yes'"):
        TrainOptions(channels_last="yes")


def test_pattern_without_a_match():
    with pytest.raises(ValueError, match="no parameter matches 'head'"):
        freeze_by_pattern(model(), ["head"])
    with pytest.raises(ValueError, match=r"SOLVER\.FREEZE \(train\.freeze\) leaves nothing to train"):
        prepare_model(model(), TrainOptions(freeze=("*",)))


def test_models_that_do_not_pad_are_named(caplog):
    prepare_model(model(), TrainOptions(pad_to=("64x96",)))
    assert "TRAIN.PAD_TO (train.pad_to) has no effect: Sequential" in caplog.text


def test_batches_are_padded_in_training_only():
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "RetinaNet"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEPTH = "build_retinanet_resnet_fpn_backbone", 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.OUT_FEATURES = 64, ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    detector = prepare_model(build_model(cfg), TrainOptions(pad_to=("128x192",)))
    batch = [{"image": torch.full((3, 60, 70), 255, dtype=torch.uint8)}]
    trained, other = detector.preprocess_image(batch), detector.eval().preprocess_image(batch)
    assert trained.tensor.shape == (1, 3, 128, 192) and other.tensor.shape == (1, 3, 64, 96)
    assert trained.image_sizes == other.image_sizes == [(60, 70)]
    assert torch.equal(trained[0], other[0]) and trained.tensor[:, :, 60:].abs().sum() == 0


def test_gradients_lie_where_they_are_exchanged_unless_told_otherwise(monkeypatch):
    asked = []
    monkeypatch.setattr(model_preparation.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(model_preparation, "DistributedDataParallel", lambda m, **kwargs: asked.append(kwargs) or m)
    for options in ({}, {"gradient_as_bucket_view": False, "static_graph": True}):
        create_ddp_model(model(), **options)
    assert asked == [{"gradient_as_bucket_view": True}, {"gradient_as_bucket_view": False, "static_graph": True}]
