"""The checkpoints of trainers, and the description of the training that each contains.

See `detectron2.checkpoint.CheckpointDescription` for its content.
"""

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer
from detectron2.checkpoint.description import dataset_metadata, installed_versions
from detectron2.checkpoint.load_report import START_ANEW
from detectron2.config import CfgNode
from detectron2.config.lazy_text import load_lazy_yaml, to_yaml
from detectron2.engine.options import TrainOptions
from detectron2.engine.sharding import ShardedCheckpointer, is_sharded
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.wrappers import unwrap_model

__all__ = ["SelfDescription", "build_checkpointer", "iteration_after", "lazy_config", "load_or_resume", "yaml_config"]

logger = logging.getLogger("detectron2.engine.defaults")

_SHOWN_DIFFERENCES = 20  # between configs
_DEFAULT_FOLDER = "./output"  # written in place of the real folder, which exists on this machine only


def build_checkpointer(model: nn.Module, folder: str, options: TrainOptions, trainer: Any) -> DetectionCheckpointer:
    """Build the checkpointer for a model, sharded or not, which saves the state of the trainer as well."""
    if is_sharded(model) or options.checkpoint_layout != "full":
        checkpointer: DetectionCheckpointer = ShardedCheckpointer(model, folder, trainer=trainer)
        checkpointer.layout = options.checkpoint_layout
    else:
        checkpointer = DetectionCheckpointer(model, folder, trainer=trainer)
    checkpointer.file_format = options.checkpoint_format
    return checkpointer


def load_or_resume(
    trainer: TrainerBase, optimizer: Any, checkpointer: Any, weights: str, resume: bool
) -> tuple[Mapping[str, Any], int | None]:
    """Load the last checkpoint of a training into everything, or else weights alone.

    Args:
        trainer: the trainer, which `checkpointer` restores.
        optimizer: the optimizer of the training.
        checkpointer: of the folder of the training.
        weights: the weights to load where nothing is resumed.
        resume: whether to look for a last checkpoint.

    Returns:
        What else the file holds, and the iteration with which a resumed training goes on; None for a new one.

    Raises:
        ValueError: the checkpoint was saved after an iteration that cannot be.
    """
    wanted = _settings(optimizer)
    trainer.iter = -1  # unless the checkpoint has a state of the trainer
    checkpoint = checkpointer.resume_or_load(weights, resume=resume) or {}
    if not resume or not checkpointer.has_checkpoint():
        trainer.iter = 0
        return checkpoint, None
    # A subclass, or an older version, may save optimizer and schedule rather than the trainer. Then only the file
    # itself has the iteration after which it was written.
    source, last = checkpointer.get_checkpoint_file(), checkpoint.get("iteration", trainer.iter)
    start = iteration_after(last, source)
    if "iteration" not in checkpoint and last == -1:
        logger.warning(f"{source} does not say after which iteration it was saved: training begins with iteration 0.")
    if kept := [f"{key} {now!r}, not {asked!r}" for key, asked, now in _kept(wanted, _settings(optimizer))]:
        logger.warning(
            f"A resumed training keeps the settings of the optimizer that are in its checkpoint: {', '.join(kept)}. "
            f"Those of the config have no effect. {START_ANEW}"
        )
    return checkpoint, start


def iteration_after(last: Any, source: str) -> int:
    """Return the iteration with which a training goes on.

    Args:
        last: the iteration after which its checkpoint says that it was saved; -1 if before the first one.
        source: the path of the checkpoint, for the error.

    Returns:
        The next iteration.

    Raises:
        ValueError: it is none that can be.
    """
    if not isinstance(last, Integral) or last < -1:
        raise ValueError(
            f"{source} says that it was saved after iteration {last!r}, which must be a whole number from 0, so a "
            f"training cannot be continued from it. {START_ANEW}"
        )
    return int(last) + 1


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """Return the settings of each group of parameters that change the result; of the rate, where a schedule starts."""
    skipped = ("params", "lr", "foreach", "fused", "capturable", "differentiable")
    groups = [{"initial_lr": group.get("lr"), **group} for group in getattr(optimizer, "param_groups", ())]
    return [{key: value for key, value in group.items() if key not in skipped} for group in groups]


def _kept(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Return name, value that was asked for and value that is there of settings, once for each name."""
    different: dict[str, tuple[str, Any, Any]] = {}
    for asked, there in zip(wanted, found, strict=False):
        for key in asked.keys() & there.keys():
            if asked[key] != there[key]:
                different.setdefault(key, (key.replace("initial_lr", "learning rate"), asked[key], there[key]))
    return [different[key] for key in sorted(different)]


@dataclass(eq=False)
class SelfDescription:
    """Describe the state of a training; called when a checkpoint is saved.

    `read_config` returns the config as text, and its kind; it is called once, when needed. `has_average` tells whether
    the moving average of the weights is evaluated.
    """

    trainer: TrainerBase
    model: nn.Module
    read_config: Callable[[], tuple[str, str]]
    dataset_names: list[str]
    image_format: str | None
    has_average: bool = False
    _former: CheckpointDescription | None = None

    def __post_init__(self) -> None:
        # A proxy avoids the cycle trainer -> checkpointer -> this, which would hold GPU memory.
        self.trainer = self.trainer if isinstance(self.trainer, weakref.ProxyTypes) else weakref.proxy(self.trainer)
        self.model = unwrap_model(self.model)

    @functools.cached_property
    def _config(self) -> tuple[str, str]:
        return self.read_config()

    def __call__(self) -> dict[str, Any]:
        """Return the description, as plain containers."""
        text, kind = self._config
        metrics, at = self._metrics()
        return CheckpointDescription(
            config=text,
            config_kind=kind,
            metadata=dataset_metadata(self.dataset_names),
            image_format=self.image_format,
            pixel_mean=_channels(self.model, "pixel_mean"),
            pixel_std=_channels(self.model, "pixel_std"),
            versions=installed_versions(),
            # After training, the iteration of the trainer is one more than the last.
            iteration=min(self.trainer.iter, max(self.trainer.max_iter - 1, 0)),
            metrics=metrics,
            metrics_iteration=at,
            metrics_of_average=self.has_average and bool(metrics),
        ).to_plain()

    def go_on_from(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Keep the metrics of a checkpoint until there are newer ones, and log how its config differs."""
        if "description" not in checkpoint:
            return
        self._former = CheckpointDescription.from_plain(checkpoint["description"], source)
        lines = list(_differences(self._former.config, self._config[0])) if comm.is_main_process() else []
        if len(lines) > _SHOWN_DIFFERENCES:
            lines[_SHOWN_DIFFERENCES:] = [f"and {len(lines) - _SHOWN_DIFFERENCES} more"]
        if lines:
            logger.info("The config differs from that of the resumed training:\n  %s", "\n  ".join(lines))

    def _metrics(self) -> tuple[dict[str, float], int | None]:
        """Return the metrics of the last evaluation, and its iteration."""
        metrics: dict[str, float] = {}
        last: int | None = None
        for hook in self.trainer._hooks:
            at = getattr(hook, "latest_iter", None)
            if at is not None and hook.latest_results:  # type: ignore[attr-defined]
                metrics |= hook.latest_results  # type: ignore[attr-defined]
                last = max(at, last or 0)
        if self.trainer.storage is not None:
            for name, (value, at) in self.trainer.storage.latest().items():
                if name.startswith("validation/"):
                    metrics[name] = value
                    last = max(at, last or 0)
        if last is None and self._former is not None:
            return self._former.metrics, self._former.metrics_iteration
        return metrics, last


def _differences(former: str, current: str) -> Iterator[str]:
    """Yield a line for each value that differs between two configs in text form."""
    try:
        before, after = (_leaves(load_lazy_yaml(text, "a config")) for text in (former, current))
    except ValueError:  # another version may have written an unreadable config
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
    value = getattr(model, name, None)
    return None if value is None or not hasattr(value, "flatten") else value.detach().flatten().tolist()


def yaml_config(cfg: CfgNode, model: Any = None) -> tuple[str, str]:
    """Return a config as text, and its kind; the keys that rebuild a model take the place of those it was made of."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = _DEFAULT_FOLDER
    for key, value in getattr(unwrap_model(model), "portable_keys", {}).items():
        cfg.merge_from_list([key, value])
    return cfg.dump(), "yaml"


def lazy_config(cfg: Any) -> tuple[str, str]:
    """Return a LazyConfig as text, and its kind; a placeholder stands for what has no text form."""
    cfg = cfg.copy()
    cfg.train = {**cfg.train, "output_dir": _DEFAULT_FOLDER}
    return to_yaml(cfg)[0], "lazy"
