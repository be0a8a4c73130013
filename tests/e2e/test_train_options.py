"""What a config may ask of training beside the published keys, on a tiny detector."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from detectron2.engine import DefaultTrainer, default_setup
from detectron2.engine.model_preparation import freeze_by_pattern
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.env import seed_all_rng
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]
pytestmark = pytest.mark.usefixtures("restore_logging")


def train(cfg, *options):
    cfg.merge_from_list(list(options))
    seed_all_rng(0)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    return trainer


def records(cfg):
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_validation_loss_does_not_change_training(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 0, "BN"
    cfg.TEST.EVAL_PERIOD = 0
    test_sets, cfg.DATASETS.TEST = cfg.DATASETS.TEST, ()
    cfg.OUTPUT_DIR, folder = cfg.OUTPUT_DIR + "_without", cfg.OUTPUT_DIR
    without = train(cfg).model.state_dict()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = folder, test_sets
    cfg.SOLVER.MAX_ITER = 2
    with_it = train(cfg, "TEST.VALIDATION_LOSS_PERIOD", 1, "TEST.BEST_METRIC", "validation/total_loss",
                    "TEST.BEST_MODE", "min")  # fmt: skip
    for name, value in with_it.model.state_dict().items():
        assert torch.equal(value, without[name]), name
    (record,) = [r for r in records(cfg) if "validation/total_loss" in r]
    parts = [v for k, v in record.items() if k.startswith("validation/loss")]
    assert len(parts) == 5 and record["validation/total_loss"] == pytest.approx(sum(parts))
    best = json.loads(Path(folder, "model_best_history.json").read_text())
    assert [at for at, _ in best["values"]] == [0, 1]
    assert Path(folder, "model_best.pth").is_file()


def test_validation_loss_without_data(cfg):
    cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        train(cfg, "TEST.VALIDATION_LOSS_PERIOD", 1)


def test_freezing(cfg, capsys):
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 0, "BN"
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 1
    torch.manual_seed(0)
    cfg.merge_from_list(["SOLVER.FREEZE", ("backbone.bottom_up", "*.box_head.fc?.weight")])
    trainer = DefaultTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert before.keys() == after.keys()
    frozen = [k for k in after if k.startswith("backbone.bottom_up") or ("box_head.fc" in k and k.endswith("weight"))]
    assert len(frozen) > 100  # statistics of the norm among them
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    assert not torch.equal(before["backbone.fpn_output2.weight"], after["backbone.fpn_output2.weight"])
    assert not torch.equal(before["roi_heads.box_head.fc1.bias"], after["roi_heads.box_head.fc1.bias"])
    log = capsys.readouterr().out
    head = sum(v.numel() for k, v in before.items() if k.startswith("roi_heads.box_head") and k.endswith("weight"))
    row = next(line for line in log.splitlines() if line.startswith("| roi_heads.box_head"))
    assert [x.strip() for x in row.split("|")[2:4]] == [str(head), "64"]  # two biases of 32


def test_freezing_a_part_of_a_norm_leaves_its_statistics():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2))
    freeze_by_pattern(model, ["0.weight", "1"])
    assert isinstance(model[0], torch.nn.BatchNorm2d) and isinstance(model[1], FrozenBatchNorm2d)
    assert [p.requires_grad for p in model.parameters()] == [False, True]


def test_freezing_nothing():
    with pytest.raises(ValueError, match=r"no parameter matches 'backbon\.\*'\. Their names begin with: 0\.bias"):
        freeze_by_pattern(torch.nn.Sequential(torch.nn.Linear(1, 1)), ["backbon.*"])


def test_epochs(cfg):
    """Six images, two per batch: three iterations an epoch."""
    cfg.DATASETS.TEST = ()
    cfg.merge_from_list(["SOLVER.MAX_EPOCHS", 1.5, "SOLVER.STEP_EPOCHS", (1.0,)])
    trainer = DefaultTrainer(cfg)
    assert (trainer.max_iter, trainer.cfg.SOLVER.MAX_ITER, trainer.cfg.SOLVER.STEPS) == (5, 5, (3,))
    cfg.merge_from_list(["SOLVER.STEP_EPOCHS", (), "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (80,)])
    cfg.merge_from_list(["SOLVER.ACCUMULATION_STEPS", 3, "SOLVER.MAX_EPOCHS", 10])
    assert DefaultTrainer(cfg).cfg.SOLVER.STEPS == (8,)


def test_epochs_of_data_of_unknown_size(cfg):
    class Endless(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iter(())

    cfg.merge_from_list(["SOLVER.MAX_EPOCHS", 1])
    with pytest.raises(ValueError, match=r"MAX_EPOCHS .* needs training data of a known size"):
        Endless(cfg)


def test_checkpoints_to_keep(cfg):
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 3, 1
    train(cfg, "SOLVER.CHECKPOINTS_TO_KEEP", 1)
    assert {p.name for p in Path(cfg.OUTPUT_DIR).glob("*.pth")} == {"model_0000002.pth", "model_final.pth"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["SOLVER.ACCUMULATION_STEPS", 0], "at least 1"),
        (["SOLVER.EMA_DECAY", 1.0], r"\[0, 1\)"),
        (["TEST.EARLY_STOPPING_PATIENCE", 3], r"set TEST\.BEST_METRIC"),
        (["TRAIN.ON_NONFINITE_LOSS", "ignore"], r"ON_NONFINITE_LOSS must be one of stop, skip"),
        (["SOLVER.CHECKPOINT_FORMAT", "npz"], "must be one of pth, safetensors, but is 'npz'"),
        (["TEST.BEST_MODE", "least"], r"BEST_MODE must be one of max, min, but is 'least'"),
        (["SOLVER.STEP_EPOCHS", (1,)], r"needs SOLVER\.MAX_EPOCHS"),
    ],
)
def test_options_are_checked(cfg, options, match):
    with pytest.raises(ValueError, match=match):
        train(cfg, *options)


def test_a_missing_package_is_found_before_training(cfg, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "safetensors" else found(name))
    with pytest.raises(ImportError, match=r"SOLVER\.CHECKPOINT_FORMAT .* needs the package safetensors: pip install"):
        train(cfg, "SOLVER.CHECKPOINT_FORMAT", "safetensors")
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_compile(cfg, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    trainer = train(cfg, "TRAIN.COMPILE", True, "TRAIN.CHANNELS_LAST", True, "DATASETS.TEST", ())
    assert compiled == ["FPN", "StandardRPNHead", "FastRCNNConvFCHead"]
    weight = trainer.model.backbone.fpn_output2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_deterministic(cfg):
    import argparse

    cfg.SEED = 1
    cfg.merge_from_list(["TRAIN.DETERMINISTIC", True])
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        default_setup(cfg, argparse.Namespace())
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def test_hooks_in_their_places(cfg):
    cfg.merge_from_list(
        ["SOLVER.EMA_DECAY", 0.9, "TEST.VALIDATION_LOSS_PERIOD", 5, "TEST.BEST_METRIC", "bbox/AP",
         "TEST.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 5]
    )  # fmt: skip
    kinds = [type(h).__name__ for h in DefaultTrainer(cfg).build_hooks() if h is not None]
    assert kinds == ["IterationTimer", "LRScheduler", "WeightAverage", "PeriodicCheckpointer", "ValidationLoss",
                     "EvalHook", "BestCheckpointer", "OwedEvaluation", "EarlyStopping", "AverageCheckpointer",
                     "PeriodicWriter"]  # fmt: skip
