"""Addresses `timm://`: which file they are, under which licence, and where the weights go."""

import logging
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.provenance import weights_origin
from detectron2.checkpoint.timm_weights import is_resnet_of_ours, place_in_model, timm_licence, timm_url
from detectron2.config import get_cfg
from detectron2.modeling.backbone import TimmBackbone, build_backbone
from detectron2.utils.hub_files import HuggingFaceHandler

timm = pytest.importorskip("timm")


def test_no_weights():
    with pytest.raises(ValueError, match=r"timm:// *: timm .* has no weights of ''; timm\.list_pretrained\(\) lists"):
        timm_url("timm://")
    assert place_in_model({}, {"backbone.network.conv1.weight": 0}) is None
    assert place_in_model({"conv1.weight": 0}, {"conv1.weight": 0}) is None


@pytest.mark.parametrize(
    ("name", "url", "licence"),
    [
        ("resnet50.a1_in1k", "hf://timm/resnet50.a1_in1k/model.safetensors", "apache-2.0"),
        ("resnet50", "hf://timm/resnet50.a1_in1k/model.safetensors", "apache-2.0"),
        ("resnet50.tv_in1k", "hf://timm/resnet50.tv_in1k/model.safetensors", "bsd-3-clause"),
        ("convnextv2_tiny.fcmae", "hf://timm/convnextv2_tiny.fcmae/model.safetensors", "cc-by-nc-4.0"),
    ],
)
def test_files_and_licences(name, url, licence):
    assert timm_url(f"timm://{name}") == url
    assert timm_licence(f"timm://{name}") == licence
    assert weights_origin(f"timm://{name}") == f"The weights are published with timm; licence: {licence}."


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no such weights; choose one of .*resnet50\.a1_in1k"):
        timm_url("timm://resnet50.a1")
    with pytest.raises(ValueError, match=r"no weights of 'resnett50'; similar are .*resnet50"):
        timm_url("timm://resnett50")
    with pytest.raises(ValueError, match=r"no weights of 'esnet50'; similar are .*resnet50"):
        timm_url("timm://esnet50")


@pytest.mark.parametrize("name", ["resnet18", "resnet50.a1_in1k", "resnext50_32x4d.a1h_in1k", "wide_resnet50_2"])
def test_networks_that_ours_are(name):
    assert is_resnet_of_ours(f"timm://{name}")


@pytest.mark.parametrize("name", ["resnet50d.a1_in1k", "resnetaa50", "seresnet50", "resnet50_gn", "resnet10t", "vgg11"])
def test_networks_that_ours_are_not(name):
    assert not is_resnet_of_ours(f"timm://{name}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve the weights of the network that is returned for every address of the hub."""
    torch.manual_seed(1)
    network = timm.create_model("resnet18")
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []
    monkeypatch.setattr(
        HuggingFaceHandler,
        "_get_local_path",
        lambda self, path, **_: asked.append(path) or str(tmp_path / "model.safetensors"),
    )
    network.eval().asked = asked
    return network


def config(builder):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.FORMAT", "RGB", "MODEL.BACKBONE.NAME", builder, "MODEL.TIMM.NAME", "resnet18"])
    cfg.merge_from_list(["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]])
    cfg.MODEL.WEIGHTS = "timm://resnet18.a1_in1k"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 18, 64, False
    names = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = names
    return cfg


class Detector(nn.Module):
    """A model with a backbone, and a head with a name that a classifier of timm has."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone: Any
        self.backbone, self.fc = backbone, nn.Linear(512, 2)


@pytest.mark.parametrize("builder", ["build_timm_fpn_backbone", "build_resnet_fpn_backbone"])
def test_weights_go_into_the_backbone(hub, builder, caplog):
    caplog.set_level(logging.INFO)
    cfg = config(builder)
    model = Detector(build_backbone(cfg)).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert set(hub.asked) == {"hf://timm/resnet18.a1_in1k/model.safetensors"}
    assert "published with timm; licence: apache-2.0" in caplog.text
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = hub.forward_intermediates(image, indices=[1, 2, 3, 4], intermediates_only=True)
        found = model.backbone.bottom_up(image)
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_go_into_a_backbone_alone(hub):
    backbone: Any = TimmBackbone("resnet18")
    DetectionCheckpointer(backbone).load("timm://resnet18")
    assert torch.equal(backbone.network.layer4[1].bn2.running_var, hub.layer4[1].bn2.running_var)


def test_a_model_of_another_kind_is_refused(hub):
    model = Detector(build_backbone(config("build_resnet_fpn_backbone")))
    with pytest.raises(ValueError, match=r"timm://resnet18d is of a network of timm.*MODEL\.TIMM\.NAME"):
        DetectionCheckpointer(model).load("timm://resnet18d")


def test_images_must_be_those_of_the_weights():
    cfg = config("build_timm_fpn_backbone")
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT RGB"):
        build_backbone(cfg)
