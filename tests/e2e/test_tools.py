"""The training scripts, from the first iteration to the evaluation."""

import json
import runpy
from pathlib import Path

import pytest

from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def plain(repo_root, monkeypatch, restore_logging, cfg, tmp_path):
    """A function that runs the script with a tiny config; -> the names of the checkpoints it wrote."""
    path = str(repo_root / "tools" / "plain_train_net.py")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())

    def call(output: Path, *argv) -> list[str]:
        argv = ["--config-file", tmp_path / "tiny.yaml", *argv, "OUTPUT_DIR", output, "SOLVER.CHECKPOINT_PERIOD", 1]
        monkeypatch.setattr("sys.argv", [path, *map(str, argv)])
        runpy.run_path(path, run_name="__main__")
        return sorted(p.name for p in output.glob("*.pth"))

    return call


def test_plain_training_resume_and_fine_tuning(plain, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert plain(first) == ["model_0000000.pth", "model_0000001.pth", "model_final.pth"]
    assert json.loads((first / "inference" / "e2e_shapes" / "coco_instances_results.json").read_text()) is not None
    longer = ["SOLVER.MAX_ITER", 3]
    # a new run from the weights of a finished one begins with iteration 0
    assert plain(second, "MODEL.WEIGHTS", first / "model_final.pth")[:2] == ["model_0000000.pth", "model_0000001.pth"]
    assert "model_0000002.pth" in plain(first, "--resume", *longer)
