"""What was loaded, and what was not: counted, judged and put into one table."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["LoadReport", "check_same_architecture", "forgivable_missing", "forgivable_unexpected"]

# Layers whose shape depends on the number of classes (or keypoints): replacing them is what fine-tuning does.
_CLASS_LAYER = re.compile(
    r"(^|\.)(box_predictor(\.\d+)?\.(cls_score|bbox_pred)|(mask|point|coarse)_head\.(predictor|prediction)"
    r"|keypoint_head\.score_lowres|head\.cls_score|sem_seg_head\.predictor|mask_coarse_head\.prediction)\.(weight|bias)$"
)
# Parts of a model and of a checkpoint, below which they have nothing to do with each other.
_LEAST_OVERLAP = 0.1


def forgivable_missing(key: str) -> bool:
    """Whether a model's tensor need not be in a checkpoint: constants that are set at construction, counters."""
    return key in ("pixel_mean", "pixel_std") or key.endswith("num_batches_tracked")


def forgivable_unexpected(key: str) -> bool:
    """Whether a tensor in a checkpoint is a constant that older versions stored, or a counter."""
    return (
        key in ("pixel_mean", "pixel_std")
        or key.endswith("num_batches_tracked")
        or re.search(r"(^|\.)anchor_generator\.cell_anchors(\.\d+)?$", key) is not None
    )


def check_same_architecture(model_state: Mapping[str, Any], weights: Mapping[str, Any], source: str) -> None:
    """Refuse weights that fit next to nothing in a model.

    Args:
        model_state: the model's state dict.
        weights: the checkpoint's state dict, under names that were matched already.
        source: the file, for the message.

    Raises:
        ValueError: less than a tenth of the model's elements and of the checkpoint's tensors agree in name and shape.
    """
    if not model_state or not weights:
        return
    fitting = [
        key for key, value in weights.items() if key in model_state and _shape(value) == _shape(model_state[key])
    ]
    total = sum(value.numel() for value in model_state.values() if not nn.parameter.is_lazy(value))
    filled = sum(model_state[key].numel() for key in fitting if not nn.parameter.is_lazy(model_state[key]))
    if filled >= _LEAST_OVERLAP * total or len(fitting) >= _LEAST_OVERLAP * len(weights):
        return
    raise ValueError(
        f"{source} belongs to another architecture: {len(fitting)} of its {len(weights)} tensors fit this model of "
        f"{len(model_state)} tensors. The file has {_some(weights)}; the model has {_some(model_state)}. "
        "Use the config that the weights were trained with, or give other weights (MODEL.WEIGHTS). For weights of a "
        "backbone alone under other names, append '?matching_heuristics=True' to the path."
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    return None if nn.parameter.is_lazy(value) else tuple(value.shape)


def _some(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


@dataclass
class LoadReport:
    """The outcome of loading a state dict.

    Args:
        total: elements of all tensors of the model.
        loaded: elements of those that were filled.
        missing: names that the checkpoint lacks.
        unexpected: names that the model lacks.
        resized: (name, shape in the checkpoint, shape in the model) of tensors that were skipped.
    """

    total: int
    loaded: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, incompatible: Any) -> "LoadReport":
        """Summarize what ``_load_model`` returned."""
        sizes = {key: 0 if nn.parameter.is_lazy(value) else value.numel() for key, value in model.state_dict().items()}
        missing = _without_aliases(model, list(incompatible.missing_keys))
        not_loaded = {*missing, *(key for key, _, _ in incompatible.incorrect_shapes)}
        return cls(
            total=sum(sizes.values()),
            loaded=sum(size for key, size in sizes.items() if key not in not_loaded),
            missing=[
                key
                for key in missing
                if not forgivable_missing(key) and key not in {k for k, _, _ in incompatible.incorrect_shapes}
            ],
            unexpected=[key for key in incompatible.unexpected_keys if not forgivable_unexpected(key)],
            resized=[(key, tuple(a), tuple(b)) for key, a, b in incompatible.incorrect_shapes],
        )

    @property
    def only_class_layers_resized(self) -> bool:
        """Whether every shape that differs belongs to a layer whose size follows from the number of classes."""
        return all(_CLASS_LAYER.search(key) for key, _, _ in self.resized)

    def log(self, logger: logging.Logger, source: str, is_partial: bool = False) -> None:
        """Write one table, as a warning when the user should look at it.

        Args:
            logger: where to.
            source: the file.
            is_partial: whether the file is known to hold a part of the model, such as a pre-trained backbone, so that
                missing weights are in order.
        """
        # Rounded down: 100% means all of it.
        share = (1000 * self.loaded // self.total if self.total else 1000) / 10
        head = f"{share:.1f}% of the model ({self.loaded:,} of {self.total:,} values) was loaded from {source}."
        rows = self._rows()
        if not rows:
            logger.info(head)
            return
        from tabulate import tabulate

        table = tabulate(rows, headers=["", "tensors", "remark"], tablefmt="pipe")
        if self.resized and not self.only_class_layers_resized:
            logger.warning(
                "%s\nShapes differ outside the class-dependent layers: those weights keep their random "
                "initialization, and results will suffer. Check that the config fits the checkpoint.\n%s",
                head,
                table,
            )
        elif self.missing and not is_partial:
            logger.warning("%s\n%s", head, table)
        else:
            logger.info("%s\n%s", head, table)

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [("shape differs, skipped", key, f"{a} in the file, {b} in the model") for key, a, b in self.resized]
        rows += [("not in the file", group, "keeps its initialization") for group in _grouped(self.missing)]
        rows += [("not in the model", group, "ignored") for group in _grouped(self.unexpected)]
        return rows


def _grouped(keys: Iterable[str]) -> list[str]:
    """``a.weight`` and ``a.bias`` become ``a.{bias, weight}``."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        head, _, tail = key.rpartition(".")
        groups[head].append(tail)
    lines = []
    for head, tails in groups.items():
        dot = "." if head else ""
        lines.append(head + dot + (tails[0] if len(tails) == 1 else "{" + ", ".join(sorted(tails)) + "}"))
    return sorted(lines)


def _without_aliases(model: nn.Module, missing: list[str]) -> list[str]:
    """Drop names of tensors that were loaded under another of their names."""
    absent = set(missing)
    names: defaultdict[int, set[str]] = defaultdict(set)
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            names[id(tensor)].add(f"{prefix}.{name}" if prefix else name)
    loaded_elsewhere = {name for group in names.values() if group - absent for name in group}
    return [key for key in missing if key not in loaded_elsewhere]
