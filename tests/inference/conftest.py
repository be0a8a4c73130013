"""A tiny model with its weights, and images of several sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.e2e.conftest import _tiny_config

SIZES_HW = ((60, 80), (80, 60), (60, 80), (50, 100), (61, 80), (80, 60), (60, 80))


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory) -> CfgNode:
    """The config of a small Mask R-CNN, which names its weights, in whose folder lie the config and class names."""
    folder = tmp_path_factory.mktemp("tiny_model")
    cfg = _tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "metadata.json").write_text(json.dumps({"thing_classes": ["ant", "bee", "cat"]}))
    cfg.freeze()
    return cfg


@pytest.fixture(scope="session")
def tiny_images() -> list[np.ndarray]:
    """Arrays `(H, W, 3)` of noise."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES_HW]


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory, tiny_images) -> list[Path]:
    """The same images as files, `0.png`, `1.png` ..."""
    folder = tmp_path_factory.mktemp("tiny_images")
    for i, image in enumerate(tiny_images):
        Image.fromarray(image[:, :, ::-1]).save(folder / f"{i}.png")
    return sorted(folder.iterdir())
