"""``tools/benchmark.py``, ``tools/analyze_model.py`` and ``tools/lightning_train_net.py``, on a tiny model."""

import contextlib
import logging
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def tool(repo_root, monkeypatch, restore_logging, cfg, tmp_path):
    """A function that runs a script with a tiny config and returns the log."""
    (tmp_path / "tiny.yaml").write_text(cfg.dump())

    def call(name: str, *argv) -> str:
        path = str(repo_root / "tools" / f"{name}.py")
        monkeypatch.setattr("sys.argv", [path, *map(str, argv)])
        with contextlib.suppress(SystemExit):
            runpy.run_path(path, run_name="__main__")
        for handler in logging.getLogger("detectron2").handlers:
            handler.flush()
        log = Path(cfg.OUTPUT_DIR, "log.txt")
        return log.read_text().partition("The full config is in")[2] if log.exists() else ""

    call.config = ["--config-file", tmp_path / "tiny.yaml"]
    return call


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        ("data", ["seconds per batch", "images per second in this process"]),
        ("data_advanced", ["dataset: ", "mapper: ", "0 workers: ", "handing over: "]),
        ("train", ["total_loss: ", "images/s: ", "4 iterations after a warm-up"]),
        ("eval", ["seconds per batch", "images per second"]),
    ],
)
def test_benchmark(tool, task, texts):
    log = tool("benchmark", *tool.config, "--task", task, "--num-iter", 6)
    for text in texts:
        assert text in log


def test_benchmark_of_a_lazy_config(tool, repo_root, shapes, cfg):
    path = repo_root / "configs" / "COCO-InstanceSegmentation" / "mask_rcnn_R_50_FPN_1x.py"
    changes = [f"dataloader.train.dataset.names={shapes}", "dataloader.train.num_workers=0", "train.device=cpu"]
    changes += [f"train.output_dir={cfg.OUTPUT_DIR}", "dataloader.train.total_batch_size=2"]
    log = tool("benchmark", "--config-file", path, "--task", "data", "--num-iter", 2, *changes)
    assert "images per second in this process" in log


@pytest.mark.parametrize("argv", [[], ["--task", "data"], ["--task", "data", "--config-file", "x", "--eval-only"]])
def test_benchmark_says_what_is_missing(tool, capsys, argv):
    tool("benchmark", *argv)
    assert "--task" in capsys.readouterr().err


def test_analysis_of_random_input(tool, cfg):
    tasks = ["--tasks", "flop", "activation", "parameter", "structure"]
    log = tool("analyze_model", *tool.config, *tasks, "-n", 2, "--random-input", 64, 96)
    for text in ("billion operations (2 images)", "million activations (2 images)", "(backbone): FPN", "fpn_lateral2"):
        assert text in log
    assert "conv: " in log


@pytest.mark.parametrize("size", [[], ["--use-fixed-input-size"]])
def test_analysis_of_the_test_set(tool, size):
    log = tool("analyze_model", *tool.config, "--tasks", "flop", "-n", 1, *size)
    assert "billion operations (1 images)" in log


def test_analysis_of_an_exported_file(tool, tmp_path, capsys):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 100, 1)

        def forward(self, images):
            return self.conv(images)

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Layer(), (torch.zeros(1, 3, 500, 1000),)), str(path))
    tool("analyze_model", "--tasks", "flop", "--exported", path, "--random-input", 500, 1000)
    assert "Total: 0.1 billion operations for 500 x 1000 pixels" in capsys.readouterr().out  # 0.15
    tool("analyze_model", "--tasks", "flop", "--exported", path)
    assert "--random-input HEIGHT WIDTH" in capsys.readouterr().err


class StandIn:
    """As much of Lightning as the script uses: it runs the hooks of a module in their order."""

    class LightningModule(nn.Module):
        global_step = 0

        def optimizers(self):
            return self.optimizer

    class LightningDataModule:
        pass

    class callbacks:
        @staticmethod
        def ModelCheckpoint(**kwargs):
            return kwargs

    class Trainer:
        is_global_zero = True

        def __init__(self, *, max_steps, val_check_interval, callbacks, **kwargs):
            self.max_steps, self.period = max_steps, val_check_interval

        def fit(self, module, datamodule):
            module.trainer = self
            made = module.configure_optimizers()
            module.optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
            module.train()
            module.on_train_start()
            for index, batch in zip(range(self.max_steps), datamodule.train_dataloader(), strict=False):
                loss = module.training_step(batch, index)
                module.optimizer.zero_grad()
                loss.backward()
                module.optimizer.step()
                schedule.step()
                module.global_step += 1
                if (index + 1) % self.period == 0:
                    self.validate(module, datamodule)
            module.on_train_end()

        def validate(self, module, datamodule):
            module.eval()
            module.on_validation_epoch_start()
            with torch.no_grad():
                for place, loader in enumerate(datamodule.val_dataloader()):
                    for index, batch in enumerate(loader):
                        module.validation_step(batch, index, place)
            module.on_validation_epoch_end()
            module.train()


@pytest.fixture
def lightning(monkeypatch):
    package, module = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
    package.pytorch = module
    module.__dict__.update({k: v for k, v in vars(StandIn).items() if not k.startswith("__")})
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)


def test_lightning(tool, lightning, cfg):
    log = tool("lightning_train_net", *tool.config)
    output = Path(cfg.OUTPUT_DIR)
    assert (output / "model_final.pth").exists()
    assert '"total_loss"' in (output / "metrics.json").read_text()
    assert log.count("bbox") >= 1
    before = len(log)
    again = tool("lightning_train_net", *tool.config, "--eval-only", "MODEL.WEIGHTS", output / "model_final.pth")
    assert "bbox" in again[before:]


def test_without_lightning_the_script_says_how_to_install_it(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ImportError, match="pip install lightning"):
        tool("lightning_train_net", *tool.config)
