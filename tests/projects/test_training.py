"""The command line that the scripts in projects/ share; the scripts themselves are run by the tests of each project."""

import sys

import pytest

from detectron2.engine import DefaultTrainer, default_argument_parser
from detectron2.projects import training


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"MODEL:\n  DEVICE: cpu\n  WEIGHTS: ''\n  OURS: 2\nOUTPUT_DIR: {tmp_path / 'output'}\n")
    return path


def add_ours(cfg):
    cfg.MODEL.OURS = 1


class Recorder(DefaultTrainer):
    calls: list = []

    def __init__(self, cfg):
        self.calls.append(("init", cfg.MODEL.OURS))

    def resume_or_load(self, resume=True):
        self.calls.append(("resume", resume))

    def train(self):
        return {"bbox": {}}

    @classmethod
    def build_model(cls, cfg):
        return cfg.MODEL.OURS

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"bbox": {"AP": float(model)}}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(training, "default_setup", lambda cfg, args: Recorder.calls.append(("setup", cfg.is_frozen())))


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_trains(config_file, flags):
    args = default_argument_parser().parse_args(["--config-file", str(config_file), *flags, "MODEL.OURS", "3"])
    assert training.train_or_evaluate(args, add_ours, trainer=Recorder) == {"bbox": {}}
    assert Recorder.calls == [("setup", True), ("init", 3), ("resume", bool(flags))]


def test_evaluates(config_file, monkeypatch):
    loaded = []

    class Checkpointer:
        def __init__(self, model, save_dir):
            loaded.append((model, save_dir))

        def load_for_inference(self, path, resume):
            loaded.append((path, resume))

    monkeypatch.setattr(training, "DetectionCheckpointer", Checkpointer)
    flags = ["--config-file", str(config_file), "--eval-only", "MODEL.WEIGHTS", "some.pth"]
    args = default_argument_parser().parse_args(flags)
    assert training.train_or_evaluate(args, add_ours, trainer=Recorder) == {"bbox": {"AP": 2.0}}
    assert loaded == [(2, str(config_file.parent / "output")), ("some.pth", False)]


def test_launch_passes_the_command_line(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(training, "launch", lambda main, count, **kwargs: started.append((main, count, kwargs)))
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "a.yaml", "--num-gpus", "2"])
    training.launch_script(print)
    ((main, count, kwargs),) = started
    assert main is print and count == 2 and kwargs["args"][0].config_file == "a.yaml"
    assert set(kwargs) == {"num_machines", "machine_rank", "dist_url", "args"}
    monkeypatch.setattr(sys, "argv", ["train_net.py"])
    with pytest.raises(SystemExit):
        training.launch_script(print)
    assert "--config-file" in capsys.readouterr().err
