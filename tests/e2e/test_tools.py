"""The training scripts, from the first iteration to the evaluation."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from detectron2.engine import default_argument_parser
from tests.e2e.test_resume import assert_same
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def plain(repo_root, monkeypatch, restore_logging, cfg, tmp_path):
    """A function that runs the script with a tiny config and returns the names of the checkpoints it wrote."""
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
    (first / "model_final.pth").unlink()  # as if the process had been killed before it was there
    (first / "last_checkpoint").write_text("model_0000002.pth")
    shutil.rmtree(first / "inference")
    assert "model_final.pth" in plain(first, "--resume", *longer)
    assert (first / "inference" / "e2e_shapes" / "coco_instances_results.json").is_file()
    state = torch.load(first / "model_final.pth", weights_only=False)
    torch.save({**state, "iteration": 1.5}, first / "model_final.pth")
    with pytest.raises(
        ValueError, match=r"model_final\.pth says that it was saved after iteration 1\.5, which must be"
    ):
        plain(first, "--resume", *longer)


def test_plain_training_resumes_exactly(plain, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = ["SOLVER.MAX_ITER", 4, "SEED", 3, "INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)", "DATASETS.TEST", "()"]
    plain(whole, *options)
    part.mkdir()  # as a process leaves it that is killed while it saves
    shutil.copy(whole / "model_0000001.pth", part)
    (part / "last_checkpoint").write_text("model_0000001.pth")
    (part / "model_0000003.pth.99999923.tmp").write_text("half")
    assert plain(part, "--resume", *options) == [
        "model_0000001.pth",
        "model_0000002.pth",
        "model_0000003.pth",
        "model_final.pth",
    ]
    states = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, part)]
    assert_same(*states)
    assert "total_loss" in (part / "metrics.json").read_text()
    assert not list(part.glob("*.tmp"))


@pytest.fixture
def train_net(repo_root, monkeypatch, restore_logging, cfg, tmp_path):
    """A function that runs the main function of the script on a tiny config -> its result."""
    script = runpy.run_path(str(repo_root / "tools" / "train_net.py"), run_name="train_net")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())

    def call(*argv):
        argv = ["--config-file", tmp_path / "tiny.yaml", *argv]
        return script["main"](default_argument_parser().parse_args(list(map(str, argv))))

    return call


@pytest.mark.parametrize("options", [(), ("--eval-only",)])
def test_a_model_without_test_time_augmentation_is_refused_at_once(train_net, cfg, options):
    with pytest.raises(TypeError, match=r"got ProposalNetwork.*TEST\.AUG\.ENABLED to False"):
        train_net(*options, "TEST.AUG.ENABLED", "True", "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    assert not [p for name in ("*.pth", "inference") for p in Path(cfg.OUTPUT_DIR).glob(name)]


def test_results_with_test_time_augmentation_stand_beside_the_others(train_net, cfg):
    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "160"]
    results = train_net("--eval-only", *augmented)
    assert list(results) == ["bbox", "segm", "bbox_TTA", "segm_TTA"]
    assert set(results["bbox_TTA"]) == set(results["bbox"])
    output = Path(cfg.OUTPUT_DIR)
    for folder in ("inference", "inference_TTA"):
        assert len(list(output.glob(f"{folder}/**/coco_instances_results.json"))) == 1
    assert set(train_net("--eval-only")) == {"bbox", "segm"}

    results = train_net(*augmented, "SOLVER.MAX_ITER", 1, "TEST.EXPECTED_RESULTS", "[['bbox_TTA', 'AP', 50.0, 51.0]]")
    assert list(results) == ["bbox", "segm", "bbox_TTA", "segm_TTA"]
    (last,) = (line for line in (output / "metrics.json").read_text().splitlines() if "segm_TTA/AP" in line)
    assert "segm/AP" in last
