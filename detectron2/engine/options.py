"""The options of the training loop beside the published config keys: one table for configs of both kinds.

A trainer reads the table once, from its config, and hands the options on.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from detectron2.checkpoint.files import require_safetensors
from detectron2.config import CfgNode
from detectron2.config.merge import nearest
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.values import value_problem

__all__ = ["TrainOptions", "check_train_values", "get_key"]

logger = logging.getLogger("detectron2.engine.lazy")


def _option(key: str) -> Any:
    """Make a row of the table; defaults are in `detectron2.config.optional_keys`, meanings in its `key_meanings`."""
    return field(default=OPTIONAL_KEYS[key], metadata={"key": key})


@dataclass(frozen=True)
class TrainOptions:
    """Options of the training loop; with the defaults, training is as published.

    Each row has the name of the option, which is its key in the section `train` of a LazyConfig, its type, and its key
    in a YAML config; what a value must fulfil is in `detectron2.config.values`.

    Raises:
        ValueError: an option has an invalid value, or lacks another one.
        ImportError: an option needs a package that is not installed.
    """

    accumulation_steps: int = _option("SOLVER.ACCUMULATION_STEPS")
    ema_decay: float = _option("SOLVER.EMA_DECAY")
    max_epochs: float = _option("SOLVER.MAX_EPOCHS")
    step_epochs: tuple[float, ...] = _option("SOLVER.STEP_EPOCHS")
    freeze: tuple[str, ...] = _option("SOLVER.FREEZE")
    amp_dtype: str = _option("SOLVER.AMP_DTYPE")
    checkpoints_to_keep: int = _option("SOLVER.CHECKPOINTS_TO_KEEP")
    checkpoint_format: str = _option("SOLVER.CHECKPOINT_FORMAT")
    checkpoint_layout: str = _option("SOLVER.CHECKPOINT_LAYOUT")
    on_nonfinite_loss: str = _option("TRAIN.ON_NONFINITE_LOSS")
    max_skipped_in_a_row: int = _option("TRAIN.MAX_SKIPPED_IN_A_ROW")
    compile: bool = _option("TRAIN.COMPILE")
    channels_last: bool | None = _option("TRAIN.CHANNELS_LAST")
    shard_model: bool = _option("TRAIN.SHARD_MODEL")
    prefetch: bool = _option("TRAIN.PREFETCH")
    resize_on_device: bool = _option("TRAIN.RESIZE_ON_DEVICE")
    pad_to: tuple[str, ...] = _option("TRAIN.PAD_TO")
    cuda_graphs: bool = _option("TRAIN.CUDA_GRAPHS")
    gradient_compression: str = _option("TRAIN.GRADIENT_COMPRESSION")
    static_graph: bool = _option("TRAIN.STATIC_GRAPH")
    validation_loss_period: int = _option("TEST.VALIDATION_LOSS_PERIOD")
    best_metric: str = _option("TEST.BEST_METRIC")
    best_mode: str = _option("TEST.BEST_MODE")
    early_stopping_patience: int = _option("TEST.EARLY_STOPPING_PATIENCE")
    try_evaluator: bool = _option("TEST.TRY_EVALUATOR")

    def __post_init__(self) -> None:
        """Check the values."""
        for row in fields(self):
            if problem := value_problem(row.metadata["key"], row.default, getattr(self, row.name)):
                raise ValueError(f"{row.metadata['key']} (train.{row.name}) {problem}.")
        if self.checkpoint_format == "safetensors":
            require_safetensors("SOLVER.CHECKPOINT_FORMAT (train.checkpoint_format) 'safetensors'")
        if self.step_epochs and not self.max_epochs:
            raise ValueError(
                "SOLVER.STEP_EPOCHS (train.step_epochs) needs SOLVER.MAX_EPOCHS (train.max_epochs): give the whole "
                "schedule in epochs, or all of it in iterations."
            )
        if self.resize_on_device and not self.prefetch:
            raise ValueError(
                "TRAIN.RESIZE_ON_DEVICE (train.resize_on_device) needs TRAIN.PREFETCH (train.prefetch), which brings "
                "the images to the GPU: set both."
            )
        if self.cuda_graphs and not self.compile:
            raise ValueError(
                "TRAIN.CUDA_GRAPHS (train.cuda_graphs) records what TRAIN.COMPILE (train.compile) compiles: set both."
            )
        if self.early_stopping_patience and not self.best_metric:
            raise ValueError(
                "TEST.EARLY_STOPPING_PATIENCE (train.early_stopping_patience) needs the metric that should improve: "
                "set TEST.BEST_METRIC (train.best_metric), for example to 'bbox/AP'."
            )

        if self.best_metric.startswith("validation/") and not self.validation_loss_period:
            raise ValueError(
                f"TEST.BEST_METRIC (train.best_metric) {self.best_metric!r} is measured where "
                "TEST.VALIDATION_LOSS_PERIOD (train.validation_loss_period) is set: set its number of iterations."
            )

    @property
    def precision(self) -> torch.dtype | None:
        """The type of mixed precision, None for that which suits the device."""
        return getattr(torch, self.amp_dtype) if self.amp_dtype else None

    def of_amp(self, enabled: bool) -> dict[str, Any]:
        """Return the arguments of `AMPTrainer`, none for other trainers; warn of a type that has no effect there."""
        if self.amp_dtype and not enabled:
            logger.warning(
                "SOLVER.AMP_DTYPE (train.amp_dtype) has no effect, because mixed precision is off: "
                "set SOLVER.AMP.ENABLED (train.amp.enabled) too."
            )
        return {"precision": self.precision} if enabled else {}

    @property
    def padded_sizes_hw(self) -> tuple[tuple[int, int], ...]:
        """`pad_to` as numbers, `(height, width)` in pixels."""
        sizes = (size.split("x") for size in self.pad_to)
        return tuple((int(height), int(width)) for height, width in sizes)

    @property
    def of_ddp(self) -> dict[str, bool]:
        """The arguments of `create_ddp_model` that are not as by default."""
        compression = {f"{self.gradient_compression}_compression": True} if self.gradient_compression else {}
        return {**compression, **({"static_graph": True} if self.static_graph else {})}

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "TrainOptions":
        """Read the options from a YAML config; a key that is not set has its default."""
        return cls(**{row.name: get_key(cfg, row.metadata["key"], default=row.default) for row in fields(cls)})

    @classmethod
    def from_lazy(cls, train: Any) -> "TrainOptions":
        """Read the options from the section `train` of a LazyConfig.

        Keys that training does not read cause a warning; one that is probably misspelt is a `ValueError`, and so is an
        impossible value of another key.
        """
        _check_train_keys(train, [row.name for row in fields(cls)])
        check_train_values(train)
        if not train.get("output_dir", True):
            raise ValueError(f"train.output_dir must be the path of a folder, but is {train['output_dir']!r}.")
        found: dict[str, Any] = {row.name: train[row.name] for row in fields(cls) if row.name in train}
        for name in found.keys() & {"freeze", "step_epochs", "pad_to"}:
            found[name] = (found[name],) if isinstance(found[name], str | float | int) else tuple(found[name])
        return cls(**found)


def get_key(cfg: Any, *keys: str, default: Any = None) -> Any:
    """Return the value of the first dotted key, such as `"train.output_dir"`, that a config of either kind has."""
    for key in keys:
        value = cfg
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            return value
    return default


# Further keys of `train`, which lazy_train and default_setup read.
_OTHER_TRAIN_KEYS = (
    *("output_dir", "init_checkpoint", "max_iter", "amp", "ddp", "checkpointer", "eval_period", "log_period"),
    *("device", "seed", "deterministic", "cudnn_benchmark", "writers", "clip_grad"),
)
_GROUPS = {
    "amp": ("enabled",),
    "clip_grad": ("enabled", "params"),
    "checkpointer": ("period", "max_to_keep", "file_prefix"),
}


# Keys of `train` beside the options whose numbers must be as those of a key in YAML configs, by default this one.
_ALIKE = {
    "max_iter": ("SOLVER.MAX_ITER", 1),
    "eval_period": ("TEST.EVAL_PERIOD", 0),
    "log_period": ("SOLVER.CHECKPOINT_PERIOD", 1),
    "checkpointer.period": ("SOLVER.CHECKPOINT_PERIOD", 1),
    "checkpointer.max_to_keep": ("SOLVER.CHECKPOINTS_TO_KEEP", 0),
    "seed": ("SEED", -1),
}


def check_train_values(train: Any) -> None:
    """Raise a `ValueError` that names every key of a LazyConfig's `train` with an impossible value.

    Those of the table of options are checked when that is made.
    """
    lines = [
        f"train.{key} must be a group of keys, but is {train[key]!r}"
        for key in ("amp", "ddp", "checkpointer")
        if key in train and not isinstance(train[key], Mapping)
    ]
    if not isinstance(train.get("output_dir") or "", str | os.PathLike):
        lines.append(f"train.output_dir must be the path of a folder, but is {train['output_dir']!r}")
    if not isinstance(weights := train.get("init_checkpoint") or "", str | os.PathLike):
        lines.append(f"train.init_checkpoint must be the path or address of a checkpoint, or empty, but is {weights!r}")
    for key, (alike, default) in _ALIKE.items():
        if problem := value_problem(alike, default, get_key(train, key, default=default)):
            lines.append(f"train.{key} {problem}")
    if lines:
        raise ValueError(f"The config has an impossible value: {'; '.join(lines)}.")


def _check_train_keys(train: Any, options: list[str]) -> None:
    """Reject a key that resembles a known one; warn of other unknown keys, which the config may use itself."""
    known = [*options, *_OTHER_TRAIN_KEYS]
    unknown = [(f"train.{key}", key, known) for key in train if key not in known]
    for group, keys in _GROUPS.items():
        inner = train.get(group)
        if isinstance(inner, Mapping):
            unknown += [(f"train.{group}.{key}", key, list(keys)) for key in inner if key not in keys]
    near = {path: guess for path, key, names in unknown if (guess := nearest(str(key), names))}
    if near:
        lines = [f"{path}: did you mean {path.rpartition('.')[0]}.{guess}?" for path, guess in near.items()]
        raise ValueError(f"lazy_train does not know {'; '.join(lines)}")
    if unknown:
        logger.warning("lazy_train does not read %s.", ", ".join(path for path, *_ in unknown))
