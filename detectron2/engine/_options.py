"""What a config may ask of training beside the published keys, read from configs of both kinds."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.files import require_safetensors
from detectron2.config import CfgNode
from detectron2.config.merge import nearest
from detectron2.config.optional_keys import OPTIONAL_KEYS

logger = logging.getLogger("detectron2.engine.lazy")

_KEYS = {
    "accumulation_steps": "SOLVER.ACCUMULATION_STEPS",
    "ema_decay": "SOLVER.EMA_DECAY",
    "max_epochs": "SOLVER.MAX_EPOCHS",
    "step_epochs": "SOLVER.STEP_EPOCHS",
    "freeze": "SOLVER.FREEZE",
    "checkpoints_to_keep": "SOLVER.CHECKPOINTS_TO_KEEP",
    "checkpoint_format": "SOLVER.CHECKPOINT_FORMAT",
    "on_nonfinite_loss": "TRAIN.ON_NONFINITE_LOSS",
    "max_skipped_in_a_row": "TRAIN.MAX_SKIPPED_IN_A_ROW",
    "compile": "TRAIN.COMPILE",
    "channels_last": "TRAIN.CHANNELS_LAST",
    "shard_model": "TRAIN.SHARD_MODEL",
    "validation_loss_period": "TEST.VALIDATION_LOSS_PERIOD",
    "best_metric": "TEST.BEST_METRIC",
    "best_mode": "TEST.BEST_MODE",
    "early_stopping_patience": "TEST.EARLY_STOPPING_PATIENCE",
    "try_evaluator": "TEST.TRY_EVALUATOR",
}


@dataclass(frozen=True)
class TrainOptions:
    """The options; the defaults leave training as it was published.

    Args:
        accumulation_steps: batches for one step of the optimizer.
        ema_decay: of the moving average of the weights; 0 keeps none.
        max_epochs: length of the training in passes over the data; 0: as the number of iterations says.
        step_epochs: when the learning rate falls, in epochs, together with ``max_epochs``.
        freeze: patterns of names of parameters that are not trained.
        checkpoints_to_keep: the number of periodic checkpoints that are kept; 0 keeps all.
        checkpoint_format: ``"pth"`` or ``"safetensors"``.
        on_nonfinite_loss: ``"stop"`` or ``"skip"``.
        max_skipped_in_a_row: with ``"skip"``, how often.
        compile: whether to compile the model.
        channels_last: whether convolutions keep channels last in memory.
        shard_model: whether each process has a part of the model instead of all of it.
        validation_loss_period: iterations between two measurements of the loss on the test sets; 0 for none.
        best_metric: the metric of the best checkpoint, such as ``"bbox/AP"``; "" keeps none.
        best_mode: ``"max"`` or ``"min"``.
        early_stopping_patience: evaluations without a new best after which training ends; 0 for never.
        try_evaluator: whether the evaluator is tried on two images before the first iteration.
    """

    accumulation_steps: int = 1
    ema_decay: float = 0.0
    max_epochs: float = 0.0
    step_epochs: tuple[float, ...] = ()
    freeze: tuple[str, ...] = ()
    checkpoints_to_keep: int = 0
    checkpoint_format: str = "pth"
    on_nonfinite_loss: str = "stop"
    max_skipped_in_a_row: int = 10
    compile: bool = False
    channels_last: bool = False
    shard_model: bool = False
    validation_loss_period: int = 0
    best_metric: str = ""
    best_mode: str = "max"
    early_stopping_patience: int = 0
    try_evaluator: bool = True

    def __post_init__(self) -> None:
        """Check that they make sense.

        Raises:
            ValueError: they do not.
            ImportError: a package is missing that is going to be needed.
        """
        if self.accumulation_steps < 1:
            raise ValueError(f"SOLVER.ACCUMULATION_STEPS must be at least 1, but is {self.accumulation_steps}.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"SOLVER.EMA_DECAY must lie in [0, 1), e.g. 0.9998, but is {self.ema_decay}.")
        if self.step_epochs and not self.max_epochs:
            raise ValueError(
                "SOLVER.STEP_EPOCHS (train.step_epochs) needs SOLVER.MAX_EPOCHS (train.max_epochs): all of a schedule "
                "is given in epochs, or in iterations."
            )
        if self.best_mode not in ("max", "min"):
            raise ValueError(f'TEST.BEST_MODE (train.best_mode) must be "max" or "min", but is {self.best_mode!r}.')
        if self.checkpoint_format not in DetectionCheckpointer.FILE_FORMATS:
            raise ValueError(
                f"SOLVER.CHECKPOINT_FORMAT (train.checkpoint_format) must be one of "
                f"{', '.join(DetectionCheckpointer.FILE_FORMATS)}, but is {self.checkpoint_format!r}."
            )
        if self.checkpoint_format == "safetensors":
            require_safetensors("SOLVER.CHECKPOINT_FORMAT (train.checkpoint_format) 'safetensors'")
        if self.early_stopping_patience and not self.best_metric:
            raise ValueError(
                "TEST.EARLY_STOPPING_PATIENCE needs to know what shall improve: set TEST.BEST_METRIC, e.g. 'bbox/AP'."
            )

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "TrainOptions":
        """Read them from a config; its optional keys are those of ``detectron2/config/optional_keys.py``."""
        return cls(**{name: read_optional(cfg, key) for name, key in _KEYS.items()})

    @classmethod
    def from_lazy(cls, train: Any) -> "TrainOptions":
        """Read them from the section ``train`` of a LazyConfig, where they have the names of the attributes."""
        _check_train_keys(train)
        found: dict[str, Any] = {name: train[name] for name in _KEYS if name in train}
        for name in found.keys() & {"freeze", "step_epochs"}:
            found[name] = (found[name],) if isinstance(found[name], str | float | int) else tuple(found[name])
        return cls(**found)


# What else lazy_train and default_setup read.
_OTHER_TRAIN_KEYS = (
    "output_dir",
    "init_checkpoint",
    "max_iter",
    "amp",
    "ddp",
    "checkpointer",
    "eval_period",
    "log_period",
    "device",
    "seed",
    "deterministic",
    "cudnn_benchmark",
    "writers",
)
_GROUPS = {"amp": ("enabled",), "checkpointer": ("period", "max_to_keep", "file_prefix")}


def _check_train_keys(train: Any) -> None:
    """Refuse a key that resembles one that is read, and warn of others: they are a config's own business.

    Args:
        train: the section ``train`` of a LazyConfig.

    Raises:
        ValueError: there is a key that is probably misspelt.
    """
    known = [*_KEYS, *_OTHER_TRAIN_KEYS]
    found = [(f"train.{key}", key, known) for key in train if key not in known]
    for group, keys in _GROUPS.items():
        inner = train.get(group)
        if isinstance(inner, Mapping):
            found += [(f"train.{group}.{key}", key, list(keys)) for key in inner if key not in keys]
    near = {path: guess for path, key, names in found if (guess := nearest(str(key), names))}
    if near:
        lines = [f"{path}: did you mean {path.rpartition('.')[0]}.{guess}?" for path, guess in near.items()]
        raise ValueError(f"lazy_train knows no {'; '.join(lines)}")
    if found:
        logger.warning("lazy_train does not read %s.", ", ".join(path for path, *_ in found))


def read_optional(cfg: Any, path: str) -> Any:
    """-> the value of an optional key, or its default."""
    value = cfg
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return OPTIONAL_KEYS[path]
        value = value[part]
    return value
