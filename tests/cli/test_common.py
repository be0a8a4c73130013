"""What the commands share: writing results, and what is printed."""

import json
from pathlib import Path

import numpy as np

from detectron2.cli import common


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
