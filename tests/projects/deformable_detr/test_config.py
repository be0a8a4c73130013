"""The keys, and the configs of the project."""

from pathlib import Path

import pytest
import torch

from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.projects.deformable_detr import (
    DeformableDETR,
    DeformableTransformer,
    SetCriterion,
    add_deformable_detr_config,
)

CONFIGS = Path(__file__).resolve().parents[3] / "projects/DeformableDETR/configs"
YAML = sorted(path.name for path in CONFIGS.glob("*.yaml") if not path.name.startswith("Base"))


def build(name):
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        return build_model(cfg)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_files_are_found():
    assert len(YAML) >= 3


@pytest.mark.parametrize("name", YAML)
def test_models_build(name):
    assert count(build(name)) > 1e6


def test_number_of_parameters():
    """As published, but for the 11 outputs that belong to no class."""
    trained = [p.numel() for p in build("deformable_detr_R_50_50ep.yaml").parameters() if p.requires_grad]
    assert sum(trained) == 39_847_265 - 11 * (256 + 1)


def test_explicit_constructors():
    """What a LazyConfig writes out is what the YAML file builds."""
    lazy = L(DeformableDETR)(
        backbone=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features="${.backbone.out_features}",
        transformer=L(DeformableTransformer)(two_stage=True),
        num_classes=80,
        with_box_refine=True,
        criterion=L(SetCriterion)(),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    with torch.device("meta"):
        model = instantiate(lazy)
    other = build("deformable_detr_two_stage_R_50_50ep.yaml")
    shapes = [{name: value.shape for name, value in x.state_dict().items()} for x in (model, other)]
    assert shapes[0] == shapes[1]
    assert model.criterion == other.criterion and model.in_features == other.in_features
