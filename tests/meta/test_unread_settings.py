"""No shipped config sets a key that its own model, data or solver does not read, so no warning is a false alarm."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.config.unread import warn_of_unread
from detectron2.data import build
from detectron2.engine import DefaultTrainer
from detectron2.engine.options import TrainOptions
from detectron2.projects import deeplab, deformable_detr, mask2former, panoptic_deeplab, point_rend

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "configs": [],
    "projects/DeepLab": [deeplab.add_deeplab_config],
    "projects/DeformableDETR": [deformable_detr.add_deformable_detr_config],
    "projects/Mask2Former": [deeplab.add_deeplab_config, mask2former.add_maskformer2_config],
    "projects/Panoptic-DeepLab": [panoptic_deeplab.add_panoptic_deeplab_config],
    "projects/PointRend": [point_rend.add_pointrend_config],
    "projects/PointSup": [point_rend.add_pointrend_config, "point_sup.add_point_sup_config"],
    "projects/TensorMask": ["tensormask.add_tensormask_config"],
    "projects/TridentNet": ["tridentnet.add_tridentnet_config"],
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_no_false_alarm(folder):
    """In a process of its own, because the models of a project can be registered once."""
    path = os.pathsep.join([str(ROOT / folder), str(ROOT)])
    code = f"from tests.meta.test_unread_settings import check; print(check({folder!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "no effect" not in done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 1


def check(folder):
    """Build each distinct model once, data and solver of every config; return how many models."""
    record = {"file_name": "a.jpg", "height": 8, "width": 8, "annotations": [{"category_id": 0}]}
    build.load_dataset_dicts = lambda *_, **__: ([record] * 4, [(8, 8)] * 4)
    build._sampler_from_config = _reads_sampler_keys
    trainer, seen = _trainer(folder), set()
    for path in sorted((ROOT / folder).rglob("*.yaml")):
        cfg = get_cfg()
        for add in FOLDERS[folder]:
            module, _, name = add.rpartition(".") if isinstance(add, str) else ("", "", "")
            (getattr(importlib.import_module(module), name) if module else add)(cfg)
        cfg.merge_from_file(str(path))
        cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "meta", 0
        groups = ["INPUT", "DATASETS", "DATALOADER", "SOLVER"]
        TrainOptions.from_cfg(cfg)
        assert cfg.SOLVER.CHECKPOINT_PERIOD > 0 and cfg.SOLVER.AMP.ENABLED in (True, False)  # what a trainer reads
        trainer.build_train_loader(cfg)
        trainer.build_lr_scheduler(cfg, trainer.build_optimizer(cfg, nn.ModuleDict({"backbone": nn.Linear(1, 1)})))
        if (text := cfg.MODEL.dump()) not in seen:
            seen.add(text)
            groups.append("MODEL")
            with torch.device("meta"):
                trainer.build_model(cfg)
        warn_of_unread(cfg, None, *groups)
    return len(seen)


def _trainer(folder):
    """Return the trainer of the project's own script, or the default one."""
    script = ROOT / folder / "train_net.py"
    if not script.is_file():
        return DefaultTrainer
    spec = importlib.util.spec_from_file_location("script_" + folder.replace("-", "_").replace("/", "_"), script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = [x for name, x in vars(module).items() if name.endswith("Trainer") and x is not DefaultTrainer]
    return own[0] if own else DefaultTrainer


def _reads_sampler_keys(cfg, *_):
    """Samplers need whole data sets."""
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        assert cfg.DATALOADER.REPEAT_THRESHOLD >= 0
