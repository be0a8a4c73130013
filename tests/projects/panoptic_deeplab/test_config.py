"""The keys of Panoptic-DeepLab and the values of its configs."""

import json

import pytest
import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

FOLDER = "projects/Panoptic-DeepLab/configs/"
CONFIGS = [
    FOLDER + "Cityscapes-PanopticSegmentation/Base-PanopticDeepLab-OS16.yaml",
    FOLDER + "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024.yaml",
    FOLDER + "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv.yaml",
    FOLDER + "COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv.yaml",
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
    add_panoptic_deeplab_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


def test_added_keys_are_as_recorded(shared_dir):
    content = json.loads((shared_dir / "facts" / "project_configs.json").read_text())
    before, after = dict(_leaves(get_cfg())), dict(_leaves(_config()))
    added = {key: value for key, value in after.items() if key not in before}
    recorded = content["Panoptic-DeepLab"]["added_defaults"]
    assert json.dumps(added, sort_keys=True) == json.dumps(recorded, sort_keys=True)
    assert all(after[key] == value for key, value in before.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_as_recorded(name, shared_dir, repo_root):
    recorded = json.loads((shared_dir / "facts" / "project_configs.json").read_text())["Panoptic-DeepLab"]["configs"]
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
    assert model.sem_seg_head.predictor.weight.shape[0] == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert model.ins_embed_head.offset_predictor.weight.shape == (2, 32, 1, 1)


def test_configs_differ_from_their_base_only_where_they_say_so(repo_root):
    for path in sorted((repo_root / FOLDER).rglob("*.yaml")):
        own = CfgNode.load_cfg(path.read_text())
        base = own.pop("_BASE_", None)
        inherited = dict(_leaves(_config(base and path.parent / base)))
        assert [key for key, value in _leaves(own) if inherited[key] == value and key != "VERSION"] == []
