"""Backbones by name."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone, build_backbone


@BACKBONE_REGISTRY.register()
class BackboneOfTestBuild(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.in_channels = input_shape.channels

    def forward(self, image):
        return {"conv1": image}


@BACKBONE_REGISTRY.register()
def not_a_backbone_of_test_build(cfg, input_shape):
    return torch.nn.Identity()


def config(name):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    return cfg


def test_channels_of_the_image_come_from_pixel_mean():
    cfg = config("BackboneOfTestBuild")
    assert build_backbone(cfg).in_channels == 3
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0, 4.0]
    assert build_backbone(cfg).in_channels == 4
    assert build_backbone(cfg, ShapeSpec(channels=6)).in_channels == 6


def test_wrong_type_is_named():
    with pytest.raises(TypeError, match="'not_a_backbone_of_test_build' built a Identity"):
        build_backbone(config("not_a_backbone_of_test_build"))


def test_unknown_name():
    with pytest.raises(KeyError, match="no_such_backbone"):
        build_backbone(config("no_such_backbone"))


@pytest.mark.parametrize(
    "name", ["build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"]
)
def test_built_in_names(name):
    assert name in BACKBONE_REGISTRY
