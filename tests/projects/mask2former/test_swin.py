"""Swin under the names of Mask2Former."""

import pytest
import torch

from detectron2.modeling import SwinTransformer, build_backbone
from detectron2.projects.mask2former import D2SwinTransformer
from tests.projects.mask2former.models import tiny_config


def test_maps_have_the_names_of_stages():
    torch.manual_seed(0)
    backbone = build_backbone(tiny_config()).eval()
    assert isinstance(backbone, D2SwinTransformer)
    shapes = {name: (x.channels, x.stride) for name, x in backbone.output_shape().items()}
    assert shapes == {"res2": (12, 4), "res3": (24, 8), "res4": (48, 16), "res5": (96, 32)}
    plain = SwinTransformer(embed_dim=12, depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 4], window_size=4).eval()
    plain.load_state_dict(backbone.state_dict())
    image = torch.rand(1, 3, 40, 50)
    want = plain(image)
    for i, (name, found) in enumerate(backbone(image).items()):
        assert name == f"res{i + 2}" and torch.equal(found, want[f"p{i}"])


def test_some_maps():
    backbone = build_backbone(tiny_config({"MODEL.SWIN.OUT_FEATURES": ["res3", "res5"]}))
    assert list(backbone(torch.rand(1, 3, 32, 32))) == list(backbone.output_shape()) == ["res3", "res5"]
    with pytest.raises(ValueError, match=r"\['res6'\]; this Swin has the stages \['res2'"):
        build_backbone(tiny_config({"MODEL.SWIN.OUT_FEATURES": ["res6"]}))
