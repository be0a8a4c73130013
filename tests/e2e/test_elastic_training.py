"""Two processes under torchrun: one of them is killed, both are restarted, and the weights are as if nothing was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import _tiny_config

pytestmark = pytest.mark.slow  # each process imports for seconds


def _run(kind, config_file, shapes_dir, output):
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "SLURM", "OMPI"))}
    environ["DETECTRON2_MEETING_TIMEOUT"] = "300"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    body = str(Path(__file__).with_name("elastic_training.py"))
    data = ["--coco", "shapes", str(shapes_dir / "annotations.json"), str(shapes_dir / "images")]
    command = [*torchrun, "--max-restarts", "3", body, kind, "train", "--config-file", str(config_file), *data]
    done = subprocess.run([*command, "--output", str(output)], env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    cfg = _tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.INPUT.CROP.ENABLED = 6, True
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SEED = 8, 2, 5
    path = tmp_path_factory.mktemp("elastic") / "tiny.yaml"
    path.write_text(cfg.dump())
    return path


def test_killed_processes_cost_no_bit_of_the_weights(config_file, shapes_dir, tmp_path):
    _run("live", config_file, shapes_dir, tmp_path / "whole")
    text = _run("die", config_file, shapes_dir, tmp_path / "killed")
    for count in (1, 2):
        assert f"torchrun has restarted this training (restart {count}): it goes on from its last checkpoint." in text
    assert "restart 3" not in text
    assert not list((tmp_path / "killed").glob("*.tmp"))
    whole, killed = (torch.load(tmp_path / x / "model_final.pth", weights_only=True) for x in ("whole", "killed"))
    assert whole["iteration"] == killed["iteration"] == 7
    assert whole["model"].keys() == killed["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(killed["model"][name], value), name
