"""The one table of training options."""

import re
from dataclasses import fields

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.engine.options import TrainOptions, get_key


def test_defaults_are_the_published_behaviour():
    assert TrainOptions.from_cfg(get_cfg()) == TrainOptions() == TrainOptions.from_lazy({})


@pytest.mark.parametrize("row", fields(TrainOptions), ids=lambda row: row.name)
def test_yaml_and_lazy_names_agree(row):
    key, value = row.metadata["key"], {"checkpoint_format": "pth", "on_nonfinite_loss": "skip", "best_mode": "min"}
    last = key.rpartition(".")[2]
    assert row.default == OPTIONAL_KEYS[key] and last.lower() == row.name
    cfg = get_cfg()
    wanted = value.get(row.name, row.default)
    cfg.merge_from_list([key, wanted])
    assert getattr(TrainOptions.from_cfg(cfg), row.name) == wanted
    assert TrainOptions.from_lazy({row.name: wanted}) == TrainOptions.from_cfg(cfg)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"accumulation_steps": 0}, "must be a whole number of at least 1"),
        ({"ema_decay": 1.0}, r"in \[0, 1\)"),
        ({"best_mode": "most"}, "one of max, min"),
        ({"checkpoint_format": "zip"}, "one of"),
        ({"on_nonfinite_loss": "hope"}, "one of stop, skip"),
        ({"max_skipped_in_a_row": 0}, "at least 1"),
        ({"step_epochs": (1.0,)}, "needs SOLVER.MAX_EPOCHS"),
        ({"early_stopping_patience": 1}, "TEST.BEST_METRIC"),
        ({"best_metric": "validation/total_loss"}, "is measured where TEST.VALIDATION_LOSS_PERIOD"),
        ({"cuda_graphs": True}, "set both"),
        ({"resize_on_device": True, "prefetch": False}, "needs TRAIN.PREFETCH"),
        ({"amp_dtype": "bf16"}, "empty, bfloat16 or float16"),
        ({"pad_to": ("800",)}, "a height and a width such as 800x1344"),
        ({"gradient_compression": "int8"}, "empty, bf16 or fp16"),
    ],
)
def test_checks(options, match):
    with pytest.raises(ValueError, match=match):
        TrainOptions(**options)


def test_a_type_of_mixed_precision_without_mixed_precision(caplog):
    assert TrainOptions().of_amp(False) == {} and TrainOptions().of_amp(True) == {"precision": None}
    options = TrainOptions(amp_dtype="bfloat16")
    assert options.of_amp(True) == {"precision": torch.bfloat16} and caplog.text == ""
    assert options.of_amp(False) == {}
    assert "SOLVER.AMP_DTYPE (train.amp_dtype) has no effect, because mixed precision is off" in caplog.text


def test_misspelt_key():
    with pytest.raises(ValueError, match=r"did you mean train\.ema_decay"):
        TrainOptions.from_lazy({"ema_decy": 0.5})


def test_get_key():
    cfg = get_cfg()
    assert get_key(cfg, "train.output_dir", "OUTPUT_DIR") == cfg.OUTPUT_DIR
    assert get_key({}, "a.b", default=3) == 3


def test_sizes_and_arguments_of_ddp():
    assert TrainOptions().padded_sizes_hw == () and TrainOptions().of_ddp == {} and TrainOptions().precision is None
    assert TrainOptions(amp_dtype="float16").precision == torch.float16
    options = TrainOptions.from_lazy({"pad_to": "64x96", "gradient_compression": "bf16", "static_graph": True})
    assert options.padded_sizes_hw == ((64, 96),)
    assert options.of_ddp == {"bf16_compression": True, "static_graph": True}
    cfg = get_cfg()
    cfg.merge_from_list(["TRAIN.PAD_TO", ("64x96", "96x64")])
    assert TrainOptions.from_cfg(cfg).padded_sizes_hw == ((64, 96), (96, 64))


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"max_iter": "x"}, "train.max_iter must be a whole number of at least 0, but is 'x'."),
        ({"max_iter": 2.5}, "train.max_iter must be a whole number of at least 0, but is 2.5."),
        ({"max_iter": None}, "train.max_iter must be"),
        ({"eval_period": 2.5}, "train.eval_period must be a whole number, but is 2.5."),
        ({"log_period": 0}, "train.log_period must be a whole number of at least 1, but is 0."),
        ({"checkpointer": {"period": 0}}, "train.checkpointer.period must be a whole number of at least 1, but is 0."),
        ({"checkpointer": {"max_to_keep": -1}}, "train.checkpointer.max_to_keep must be a whole number of at least 0"),
        ({"seed": "x"}, "train.seed must be a whole number, but is 'x'."),
        ({"amp": None, "ddp": 3}, "train.amp must be a group of keys, but is None; train.ddp must be a group of keys"),
        ({"checkpointer": 5}, "train.checkpointer must be a group of keys, but is 5."),
        ({"output_dir": 5}, "train.output_dir must be the path of a folder, but is 5."),
    ],
)
def test_impossible_values_of_a_lazy_config(train, problem):
    with pytest.raises(ValueError, match=re.escape(f"impossible value: {problem}")):
        TrainOptions.from_lazy(OmegaConf.create(train))


@pytest.mark.parametrize("folder", ["", None])
def test_a_training_without_a_folder(folder):
    with pytest.raises(ValueError, match=rf"^train\.output_dir must be the path of a folder, but is {folder!r}\.$"):
        TrainOptions.from_lazy(OmegaConf.create({"output_dir": folder}))


def test_possible_values_of_a_lazy_config(tmp_path):
    none = {"eval_period": -1, "seed": None, "checkpointer": {"period": 1, "max_to_keep": None}}
    for train in ({}, none, {"checkpointer": {"max_to_keep": 0}, "output_dir": tmp_path}):
        assert TrainOptions.from_lazy(OmegaConf.create(train)) == TrainOptions()
