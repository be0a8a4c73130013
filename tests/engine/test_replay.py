"""Repeat a saved step."""

import pytest
import torch

from detectron2.engine import DefaultTrainer
from detectron2.engine.replay import main


def test_detector(cfg, capsys):
    """A huge rate: the file alone, with its config, repeats the step."""
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER = 1e6, 0, 20
    cfg.DATASETS.TEST = ()
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    with pytest.raises(FloatingPointError, match=r"engine\.replay (\S+)") as info:
        trainer.train()
    path = str(info.value).split("engine.replay ")[1].strip()
    assert any(key in str(info.value) for key in ("comes from", "a parameter, before this step"))
    assert ".png (image_id" in str(info.value)
    capsys.readouterr()
    assert main([path]) == 1
    first_line = next(x for x in str(info.value).splitlines() if x.startswith("The first tensor"))
    assert first_line in capsys.readouterr().out


def test_command_line(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "nonfinite_" in capsys.readouterr().out


def test_not_a_saved_step(tmp_path):
    torch.save({"model": {}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="is not a step that was saved"):
        main([str(tmp_path / "m.pth")])
