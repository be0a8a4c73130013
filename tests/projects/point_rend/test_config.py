import json
from pathlib import Path

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config

CONFIGS = Path(__file__).resolve().parents[3] / "projects/PointRend/configs"
NAMES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def flat(node, prefix=""):
    """Every leaf of a config by its full name, as JSON would have it."""
    out = {}
    for key, value in node.items():
        out.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.loads(json.dumps(value))}
        )
    return out


def pointrend_config():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def recorded(shared_dir):
    with open(shared_dir / "facts" / "project_configs.json") as f:
        return json.load(f)["PointRend"]


def test_added_keys(recorded):
    before = flat(get_cfg())
    added = {key: value for key, value in flat(pointrend_config()).items() if key not in before}
    assert added == recorded["added_defaults"]
    assert not {key for key, value in flat(pointrend_config()).items() if key in before and before[key] != value}


def test_every_recorded_config_is_there(recorded):
    assert [f"projects/PointRend/configs/{name}" for name in NAMES] == sorted(recorded["configs"])


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_recorded_ones(recorded, name):
    cfg = pointrend_config()
    defaults = flat(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    changed = {key: value for key, value in flat(cfg).items() if value != defaults[key]}
    assert changed == recorded["configs"][f"projects/PointRend/configs/{name}"]


@pytest.mark.parametrize("name", [name for name in NAMES if "_3x_" not in name and "Base" not in name])
def test_models_build(name):
    cfg = pointrend_config()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e7
