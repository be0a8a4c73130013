"""What the commands share: finding and reading configs, and writing results."""

import json
from pathlib import Path

import numpy as np
import pytest

from detectron2.cli import common
from detectron2.config import CfgNode


def test_without_a_name():
    with pytest.raises(FileNotFoundError, match="There is no config file ''"):
        common.find_config_file("")


def test_find_config_file(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("VERSION: 2\n")
    assert common.find_config_file(str(own)) == str(own)
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    assert common.find_config_file(name).endswith(name)


def test_load_config_of_each_kind(tmp_path: Path):
    yaml = tmp_path / "own.yaml"
    yaml.write_text("MODEL: {DEVICE: cpu}\n")
    cfg = common.load_config(str(yaml), ["SEED", "7"], output_dir="out")
    assert isinstance(cfg, CfgNode) and cfg.is_frozen() and (cfg.SEED, cfg.OUTPUT_DIR) == (7, "out")
    lazy = tmp_path / "own.py"
    lazy.write_text("model = {}\ndataloader = {}\n")
    with pytest.raises(ValueError, match="does not define train"):
        common.load_config(str(lazy), [])


def test_write_json_makes_its_folder(tmp_path: Path):
    common.write_json(tmp_path / "a" / "b.json", {"x": np.float32(0.5)})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 0.5}


def test_names_cannot_control_the_terminal(command, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "\x1b[31ma.png", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "\x1b]0;title\x07\x1b[2J"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, out, err = command("data", "check", tmp_path / "a.json", "--num-classes", "3")
    assert "\\x1b]0;title\\x07\\x1b[2J" in out
    assert (out + err).replace("\n", "").isprintable()
