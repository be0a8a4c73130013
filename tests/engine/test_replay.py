"""Repeat a saved step."""

import sys

import pytest
import torch

from detectron2.engine import DefaultTrainer
from detectron2.engine.replay import main, replay


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


def refusal(path, capsys, *options):
    """Return what the command says about a file that it does not take."""
    with pytest.raises(SystemExit, match="2"):
        main([str(path), *options])
    return capsys.readouterr().err


def test_not_a_saved_step(tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="is not a step that was saved"):
        replay(str(tmp_path / "m.pth"))
    assert "is not a step that was saved" in refusal(tmp_path / "m.pth", capsys)
    assert "No such file" in refusal(tmp_path / "missing.pth", capsys)
    torch.save({"model": {}, "batches": [], "config": "", "config_kind": "yaml"}, tmp_path / "m.pth")
    assert "holds no config" in refusal(tmp_path / "m.pth", capsys)


MY_MODEL = """
import torch


class Doubling(torch.nn.Module):
    def forward(self, batch):
        return {"loss": torch.tensor(2.0 * len(batch))}
"""


def test_a_file_calls_nothing_but_models(tmp_path, capsys):
    step = {"model": {}, "batches": [[1, 2]], "autocast": "", "random_states": {}, "config_kind": "lazy"}
    call = f"{{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, _args_: ['{tmp_path / 'made'}']}}}}"
    torch.save({**step, "config": f"model: {call}"}, tmp_path / "m.pth")
    assert "wants to call pathlib.Path" in refusal(tmp_path / "m.pth", capsys)
    assert not (tmp_path / "made").exists()
    (tmp_path / "my_model_for_replay.py").write_text(MY_MODEL)
    torch.save({**step, "config": "model: {_target_: my_model_for_replay.Doubling}"}, tmp_path / "m.pth")
    assert "--import my_model_for_replay" in refusal(tmp_path / "m.pth", capsys)
    assert main([str(tmp_path / "m.pth"), "--import", str(tmp_path / "my_model_for_replay.py")]) == 0
    assert "loss: 4" in capsys.readouterr().out
    sys.modules.pop("my_model_for_replay")


def test_models_of_projects_are_known(tmp_path, capsys):
    config = "MODEL: {META_ARCHITECTURE: MaskFormer, MASK_FORMER: {HIDDEN_DIM: 6}}\nVERSION: 2"
    step = {"model": {}, "batches": [], "config_kind": "yaml", "config": config}
    torch.save(step, tmp_path / "m.pth")
    assert "MODEL.SEM_SEG_HEAD" in refusal(tmp_path / "m.pth", capsys)  # it is built; the values do not go together
