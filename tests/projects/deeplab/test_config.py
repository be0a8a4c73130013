"""The keys of DeepLab and the values of its configs."""

import json

import pytest
import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

FOLDER = "projects/DeepLab/configs/Cityscapes-SemanticSegmentation/"
CONFIGS = [
    FOLDER + "Base-DeepLabV3-OS16-Semantic.yaml",
    FOLDER + "deeplab_v3_R_103_os16_mg124_poly_90k_bs16.yaml",
    FOLDER + "deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml",
]


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _as_lists(value)


def _as_lists(value):
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _config(path=None):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


def test_added_keys_are_as_recorded(shared_dir):
    recorded = json.loads((shared_dir / "facts" / "project_configs.json").read_text())["DeepLab"]["added_defaults"]
    before, after = dict(_leaves(get_cfg())), dict(_leaves(_config()))
    added = {key: value for key, value in after.items() if key not in before}
    assert json.dumps(added, sort_keys=True) == json.dumps(recorded, sort_keys=True)
    assert all(after[key] == value for key, value in before.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_as_recorded(name, shared_dir, repo_root):
    recorded = json.loads((shared_dir / "facts" / "project_configs.json").read_text())["DeepLab"]["configs"]
    assert set(recorded) == set(CONFIGS)
    defaults, values = dict(_leaves(_config())), dict(_leaves(_config(repo_root / name)))
    for key, value in values.items():
        assert json.dumps(value) == json.dumps(recorded[name].get(key, defaults[key])), key


@pytest.mark.parametrize("name", CONFIGS[1:])
def test_configs_build(name, repo_root):
    cfg = _config(repo_root / name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.sem_seg_head.predictor.weight.shape == (19, 256, 1, 1)
    assert model.backbone.output_shape()["res5"].stride == 16


def test_configs_differ_from_their_base_only_where_they_say_so(repo_root):
    for path in sorted((repo_root / FOLDER).glob("*.yaml")):
        own = CfgNode.load_cfg(path.read_text())
        base = _config(path.parent / own.pop("_BASE_"))
        inherited = dict(_leaves(base))
        assert [key for key, value in _leaves(own) if inherited[key] == value] == []


def test_every_setup_gets_lists_of_its_own():
    first, second = _config(), _config()
    first.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS.append(99)
    assert second.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS == [6, 12, 18]
