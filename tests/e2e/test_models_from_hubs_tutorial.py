"""The page about models from other libraries: its Python runs in order, its config builds, its keys exist."""

import re

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.modeling.backbone import TimmBackbone, build_backbone
from detectron2.modeling.backbone.timm_backbone import use_timm_pixel_statistics
from tests.docs.pages import run_page


@pytest.fixture
def text(repo_root):
    return (repo_root / "docs" / "tutorials" / "models_from_hubs.md").read_text(encoding="utf-8")


def test_python_runs(repo_root, capsys):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    run_page(repo_root / "docs" / "tutorials" / "models_from_hubs.md")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "res2 8 4" and "torch.Size([1, 384, 5, 7])" in lines
    assert lines[-1] == "{'res3': 16, 'res4': 24, 'res5': 32}"


def test_config_builds(text):
    pytest.importorskip("timm")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    own = CfgNode.load_cfg(block)
    cfg = model_zoo.get_config(own.pop("_BASE_"))
    cfg.merge_from_other_cfg(own)
    assert cfg.MODEL.TIMM.PRETRAINED
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.NAME = False, "test_convnext"  # smaller, and without the hub
    use_timm_pixel_statistics(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    backbone = build_backbone(cfg)
    assert isinstance(backbone.bottom_up, TimmBackbone)
    assert list(backbone(torch.zeros(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5", "p6"]


def test_keys_exist(text):
    known = {*OPTIONAL_KEYS, "MODEL.BACKBONE.FREEZE_AT", "MODEL.FPN.IN_FEATURES", "MODEL.WEIGHTS"}
    named = set(re.findall(r"`((?:MODEL|SOLVER)\.[A-Z_.]+)`", text))
    assert len(named) > 8 and named <= known
    assert get_cfg().MODEL.BACKBONE.FREEZE_AT == 2
