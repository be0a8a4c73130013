"""Every shipped config builds its model, on the meta device, where parameters take no memory."""

from pathlib import Path

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def _distinct_models():
    """Return one config file for each distinct model; many files differ only in the schedule."""
    seen = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if path.name.startswith("Base-RCNN"):
            continue
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
        seen.setdefault(cfg.MODEL.dump(), (path, cfg))
    return [pytest.param(cfg, id=path.relative_to(CONFIGS).as_posix()) for path, cfg in seen.values()]


@pytest.mark.parametrize("cfg", _distinct_models())
def test_config_builds(cfg):
    if cfg.MODEL.get("TIMM"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e6
