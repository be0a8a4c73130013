"""What trainers write into their checkpoints about them, see :class:`detectron2.checkpoint.CheckpointDescription`."""

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer
from detectron2.checkpoint.description import dataset_metadata, installed_versions
from detectron2.config import CfgNode
from detectron2.config.lazy_text import load_lazy_yaml, to_yaml
from detectron2.engine._trainer_base import HookBase, TrainerBase
from detectron2.utils.wrappers import unwrap_model

logger = logging.getLogger("detectron2.engine.defaults")

_SHOWN = 20  # differences between configs
_NO_PLACE = "./output"  # the default: where a training wrote is nobody else's concern, and exists on no other machine


class SelfDescription:
    """Describes the state of a training; called when a checkpoint is saved.

    Args:
        trainer: knows the iteration, the hooks and the newest numbers.
        model: the model in training.
        read_config: returns the config as text, and its kind; called once, when it is needed.
        dataset_names: of the training data.
        image_format: colour order of the images that the model expects.
        has_average: whether what is evaluated is the moving average of the weights.
    """

    def __init__(
        self,
        trainer: TrainerBase,
        model: nn.Module,
        read_config: Callable[[], tuple[str, str]],
        dataset_names: list[str],
        image_format: str | None,
        has_average: bool = False,
    ) -> None:
        # The trainer has the checkpointer, which has this: no cycle, which would hold the memory of the GPU.
        self._trainer = trainer if isinstance(trainer, weakref.ProxyTypes) else weakref.proxy(trainer)
        self._model = unwrap_model(model)
        self._read_config = read_config
        self._dataset_names = dataset_names
        self._image_format = image_format
        self._has_average = has_average
        self._config: tuple[str, str] | None = None
        self._former: CheckpointDescription | None = None

    def __call__(self) -> dict[str, Any]:
        """-> the description, as plain containers."""
        if self._config is None:
            self._config = self._read_config()
        text, kind = self._config
        metrics, at = self._metrics()
        return CheckpointDescription(
            config=text,
            config_kind=kind,
            metadata=dataset_metadata(self._dataset_names),
            image_format=self._image_format,
            pixel_mean=_channels(self._model, "pixel_mean"),
            pixel_std=_channels(self._model, "pixel_std"),
            versions=installed_versions(),
            # When training is over, the trainer stands behind its last iteration.
            iteration=min(self._trainer.iter, max(self._trainer.max_iter - 1, 0)),
            metrics=metrics,
            metrics_iteration=at,
            metrics_of_average=self._has_average and bool(metrics),
        ).to_plain()

    def go_on_from(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Take over what was measured before a resume, until something newer is; log how the config differs.

        Args:
            checkpoint: what loading returned.
            source: the file.
        """
        if "description" not in checkpoint:
            return
        self._former = CheckpointDescription.from_plain(checkpoint["description"], source)
        if self._config is None:
            self._config = self._read_config()
        if comm.is_main_process():
            differences = list(_differences(self._former.config, self._config[0]))
            if differences:
                more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
                logger.info(
                    "The config is not that of the training which is continued:\n  %s%s",
                    *("\n  ".join(differences[:_SHOWN]), more),
                )

    def _metrics(self) -> tuple[dict[str, float], int | None]:
        """-> the numbers of the last evaluation, and after which iteration it was."""
        metrics: dict[str, float] = {}
        last: int | None = None
        for hook in self._trainer._hooks:
            at = getattr(hook, "latest_iter", None)
            if at is not None and hook.latest_results:  # type: ignore[attr-defined]  # has the one who has the other
                metrics |= hook.latest_results  # type: ignore[attr-defined]
                last = max(at, last or 0)
        if self._trainer.storage is not None:
            for name, (value, at) in self._trainer.storage.latest().items():
                if name.startswith("validation/"):
                    metrics[name] = value
                    last = max(at, last or 0)
        if last is None and self._former is not None:
            return self._former.metrics, self._former.metrics_iteration
        return metrics, last


def _differences(former: str, current: str) -> Iterator[str]:
    """Yield a line for each value that differs between two configs, given as text."""
    try:
        before, after = (_leaves(load_lazy_yaml(text, "a config")) for text in (former, current))
    except ValueError:  # another version may have written what this one cannot read
        return
    for path in sorted(before.keys() | after.keys()):
        old, new = (repr(side[path]) if path in side else "not there" for side in (before, after))
        if old != new:
            yield f"{path}: {old} -> {new}"


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {p: v for k, part in value.items() for p, v in _leaves(part, f"{path}.{k}" if path else str(k)).items()}


def _channels(model: nn.Module, name: str) -> list[float] | None:
    """-> the value that a model has for each channel."""
    value = getattr(model, name, None)
    return None if value is None or not hasattr(value, "flatten") else value.detach().flatten().tolist()


def yaml_config(cfg: CfgNode) -> tuple[str, str]:
    """-> a config as text, and its kind."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = _NO_PLACE
    return cfg.dump(), "yaml"


def lazy_config(cfg: Any) -> tuple[str, str]:
    """-> a LazyConfig as text, and its kind; what no text can hold is a placeholder that says so."""
    cfg = cfg.copy()
    cfg.train = {**cfg.train, "output_dir": _NO_PLACE}
    return to_yaml(cfg)[0], "lazy"


class FinalDescription(HookBase):
    """Put the results of the evaluation after the last iteration into the last checkpoint, which was saved before it.

    Register it behind the evaluation.

    Args:
        checkpointer: saved it, and knows how to describe it.
        name: of that checkpoint.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, name: str = "model_final") -> None:
        self._checkpointer = checkpointer
        self._name = name

    def after_train(self) -> None:
        """Write the description again if training came to its end and was evaluated then."""
        trainer = self.trainer
        was_evaluated = any(getattr(hook, "latest_iter", None) == trainer.max_iter - 1 for hook in trainer._hooks)
        if trainer.iter < trainer.max_iter or not was_evaluated:
            return
        try:
            self._checkpointer.describe_again(self._name)
        except (OSError, ValueError):  # a full disk, for one: the training is done all the same
            logger.exception("%s lacks the results of the last evaluation, since writing them failed:", self._name)
