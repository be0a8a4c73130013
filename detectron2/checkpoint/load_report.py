"""What was loaded, and what was not: counted, judged and put into one table."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate
from torch import nn

__all__ = ["START_ANEW", "LoadReport", "OtherModelError", "check_same_architecture"]

# What to do where weights of another model are to be trained further.
START_ANEW = (
    "To train otherwise from those weights, start anew: MODEL.WEIGHTS (train.init_checkpoint) and another output "
    "folder, without --resume."
)
# Layers with a row (or a column) for each class or keypoint: replacing them is what fine-tuning does. The layers of a
# point head read the class scores that it refines.
_CLASS_LAYER = re.compile(
    r"(^|\.)(box_predictor(\.\d+)?\.(cls_score|bbox_pred)|head\.cls_score|keypoint_head\.score_lowres"
    r"|\w*(mask|point|sem_seg|coarse)_head(\.\w+_head)?\.(predictor|prediction)|linear)\.(weight|bias)$"
    # of transformers that predict sets, here and in Hugging Face transformers
    r"|(^|\.)(\w*class_embed(\.\d+)?|class_labels_classifier(\.layers\.2)?|class_predictor|enc_score_head)"
    r"\.(weight|bias)$|(^|\.)(label_enc\.weight|criterion\.empty_weight)$"
)
_POINT_LAYER = re.compile(r"(^|\.)\w*point_head\.fc\d+\.weight$")
# Zeros that a transformer adds to what it was pre-trained with.
_STARTS_AT_ZERO = re.compile(r"\.rel_pos_[hw]$")
# Constants that are set at construction, and counters, which need not be in a checkpoint; older versions stored more.
_CONSTANT = re.compile(
    r"^pixel_(mean|std)$|num_batches_tracked$|\.relative_position_index$|(^|\.)criterion\.empty_weight$"
)
_STORED_CONSTANT = re.compile(rf"{_CONSTANT.pattern}|(^|\.)anchor_generator\.cell_anchors(\.\d+)?$")
# Parts of a model and of a checkpoint, below which they have nothing to do with each other.
_LEAST_OVERLAP = 0.1


class OtherModelError(ValueError):
    """A training cannot be continued, since the model is another one."""


def check_same_architecture(
    model_state: Mapping[str, Any],
    weights: Mapping[str, Any],
    source: str,
    in_file: Mapping[str, Any],
    known_programs: Sequence[str] = (),
) -> None:
    """Refuse weights, under names that were matched already, that fit next to nothing in a model.

    It raises `ValueError` where less than a tenth of the model's elements and of the checkpoint's tensors agree in name
    and shape; the message tells of prefixes, for which it takes the weights under their names `in_file`, and of the
    programs whose names the model knows.
    """
    if not model_state or not weights:
        return
    fitting = [key for key, w in weights.items() if key in model_state and _shape(w) == _shape(model_state[key])]
    total = sum(value.numel() for value in model_state.values() if not nn.parameter.is_lazy(value))
    filled = sum(model_state[key].numel() for key in fitting if not nn.parameter.is_lazy(model_state[key]))
    if filled >= _LEAST_OVERLAP * total or len(fitting) >= _LEAST_OVERLAP * len(weights):
        return
    if cure := _prefix_cure(model_state, in_file, source):
        raise ValueError(cure)
    named = next((key for key in weights if key in model_state), None)
    if named is not None:
        count = sum(key in model_state for key in weights)
        raise ValueError(
            f"{source} belongs to a model of another size: {count} of its {len(weights)} tensors have names of this "
            f"model's, but other shapes, such as {named}: {_shape(weights[named])} in the file, "
            f"{_shape(model_state[named])} in the model. Use the config that the weights were trained with, or give "
            "other weights (MODEL.WEIGHTS)."
        )
    known = f"Beside its own names this model reads those of {', '.join(known_programs)}. " if known_programs else ""
    raise ValueError(
        f"{source} belongs to another architecture: {len(fitting)} of its {len(weights)} tensors fit this model of "
        f"{len(model_state)} tensors. The file has {_some(weights)}; the model has {_some(model_state)}. {known}"
        "Use the config that the weights were trained with, or give other weights (MODEL.WEIGHTS). For weights of a "
        "backbone alone under other names, append '?matching_heuristics=True' to the path."
    )


def _prefix_cure(model_state: Mapping[str, Any], weights: Mapping[str, Any], source: str) -> str:
    """Say how to load weights whose names differ from the model's by what is in front of them; empty for others."""
    total = len(weights)
    file = source.partition("?")[0]
    for prefix, count in _prefixes(model_state, weights)[:1]:
        text = (
            f"{count} of its {total} tensors fit with it. Load {file}?matching_heuristics=True, which looks for that."
        )
        return f"{source} has names without the prefix {prefix!r} of this model's: {text}"
    if not (found := _prefixes(weights, model_state)):
        return ""
    prefix = found[0][0]
    fits = " and ".join(f"{'all' if n == total else f'{n} of its'} {total} tensors fit without {p!r}" for p, n in found)
    new = f"{os.path.splitext(os.path.basename(file))[0]}_without_prefix.pth"
    return (
        f"{source} has prefixes in front of this model's names: {fits}. To take one off, run this in Python, and give "
        f"{new} as the weights: import torch; from detectron2.checkpoint import DetectionCheckpointer as C; "
        f"from detectron2.utils.file_io import PathManager as P; p = {prefix!r}; "
        f"w = C(torch.nn.Module())._load_file(P.get_local_path({file!r}))['model']; "
        f"torch.save({{'model': {{k[len(p):]: torch.as_tensor(v) for k, v in w.items() if k.startswith(p)}}}}, {new!r})"
    )


def _prefixes(longer: Mapping[str, Any], shorter: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return what has to be taken off names for the tensors to fit, with how many then do; most first."""
    found: Counter[str] = Counter()
    for key, value in longer.items():
        ends = [dot.end() for dot in re.finditer(r"\.", key)]
        found.update(key[:i] for i in ends[:1000] if key[i:] in shorter and _shape(value) == _shape(shorter[key[i:]]))
    return [(prefix, n) for prefix, n in found.most_common(3) if n >= 0.5 * min(len(shorter), len(longer))]


def _shape(value: Any) -> tuple[int, ...] | None:
    return None if nn.parameter.is_lazy(value) else tuple(value.shape)


def _some(keys: Iterable[str]) -> str:
    """Return the parts of a state dict, with the first name in each and how many more there are."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        parts[".".join(key.split(".")[:2])].append(key)
    named = [names[0] + (f" and {len(names) - 1} more" if names[1:] else "") for names in parts.values()]
    return ", ".join(named[:8]) + (f", and more in {len(named) - 8} other parts" if named[8:] else "")


@dataclass
class LoadReport:
    """The outcome of loading a state dict."""

    total: int  # elements of all tensors of the model
    loaded: int  # elements of those that were filled
    # For each top-level part of the model, the numbers of its tensors that were filled, and of all.
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # names that the checkpoint lacks
    elsewhere: list[str] = field(default_factory=list)  # the same, outside of the part of the model that it is of
    unexpected: list[str] = field(default_factory=list)  # names that the model lacks
    # Name, shape in the checkpoint and shape in the model of tensors that were skipped.
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    is_partial: bool = False  # the file is of a part of the model, such as a pre-trained backbone

    @classmethod
    def of(cls, model: nn.Module, incompatible: Any, covers: Callable[[str], bool] | None = None) -> "LoadReport":
        """Summarize what `_load_model` returned; in a file of a part of the model, `covers` names in that part."""
        sizes = {key: 0 if nn.parameter.is_lazy(value) else value.numel() for key, value in model.state_dict().items()}
        resized = {key for key, _, _ in incompatible.incorrect_shapes}
        missing = _without_aliases(model, [key for key in incompatible.missing_keys if key not in resized])
        not_loaded = {*missing, *resized}
        absent = [key for key in missing if not _CONSTANT.search(key)]
        within = [key for key in absent if covers is None or (covers(key) and not _STARTS_AT_ZERO.search(key))]
        return cls(
            total=sum(sizes.values()),
            loaded=sum(size for key, size in sizes.items() if key not in not_loaded),
            parts=_counts(sizes, not_loaded),
            missing=within,
            elsewhere=[key for key in absent if key not in set(within)],
            unexpected=[key for key in incompatible.unexpected_keys if not _STORED_CONSTANT.search(key)],
            resized=[(key, tuple(a), tuple(b)) for key, a, b in incompatible.incorrect_shapes],
            is_partial=covers is not None,
        )

    @property
    def other_resized(self) -> list[str]:
        """Names of tensors whose shape differs for another reason than the number of classes."""
        return [key for key, a, b in self.resized if not _differ_in_classes(key, a, b)]

    def log(self, logger: logging.Logger, source: str) -> None:
        """Write one table: information where it is as it should be, else a warning.

        Other classes are as they should be, and so is what lies outside the part of the model that the file is of.
        """
        level, advice = logging.INFO, ""
        if self.missing or self.other_resized:
            level = logging.WARNING
            advice = (
                "\nNOT ALL WAS LOADED: the rest keeps its random initialization, and results will suffer unless that "
                "is intended. Check that the config fits the checkpoint."
            )
        elif self.unexpected and not self.is_partial:
            level = logging.WARNING
            advice = "\nNOT ALL WAS USED: the file has weights that the model lacks. Check that the config fits it."
        table = self._table()
        logger.log(level, "%s%s%s", self._head(source), advice, table and f"\n{table}")

    def require_complete(self, source: str) -> None:
        """Raise `ValueError` if the model is in part random, because its predictions mean nothing."""
        if not (self.missing or self.elsewhere or self.resized):
            return
        cure = "Use the config that the weights were trained with, or weights of this config (MODEL.WEIGHTS)."
        if self.resized and not (self.missing or self.elsewhere or self.other_resized):
            cure = f"The file was trained for other classes: {_class_numbers(self.resized)}"
        elif self.is_partial:
            cure = f"The file holds a part of the model, to start training from. {cure}"
        raise ValueError(f"{self._head(source)} A model that is in part random predicts noise. {cure}\n{self._table()}")

    def require_same_shapes(self, source: str) -> None:
        """Raise `OtherModelError` if tensors had other shapes in the training, whose optimizer state is of those."""
        if not self.resized:
            return
        cure = "Continue with the config of that training."
        if not self.other_resized:
            cure = f"That training had other classes: {_class_numbers(self.resized)}"
        raise OtherModelError(
            f"The training in {source} cannot be continued with this model. {cure} {START_ANEW}\n{self._table()}"
        )

    def _head(self, source: str) -> str:
        # Rounded down: 100% means all of it.
        share = (1000 * self.loaded // self.total if self.total else 1000) / 10
        return f"{share:.1f}% of the model ({self.loaded:,} of {self.total:,} values) was loaded from {source}."

    def _table(self) -> str:
        """Return a table of what was loaded and what differs; empty when nothing differs."""
        rows = [("shape differs, skipped", key, f"{a} in the file, {b} in the model") for key, a, b in self.resized]
        rows += [("not in the file", group, "keeps its initialization") for group in _grouped(self.missing)]
        # Of a detector most is not in the file of its backbone: by parts, not by names.
        others = Counter(key.partition(".")[0] for key in self.elsewhere)
        rows += [("not in the file", part, f"{count} tensors, not expected") for part, count in others.items()]
        rows += [("not in the model", group, "ignored") for group in _grouped(self.unexpected)]
        if not rows:
            return ""
        loaded = [("loaded", part, f"{some} of {every} tensors") for part, (some, every) in self.parts.items() if some]
        return tabulate(loaded + rows, headers=["", "tensors", "remark"], tablefmt="pipe")


def _counts(sizes: Mapping[str, int], not_loaded: set[str]) -> dict[str, tuple[int, int]]:
    """Count for each top-level part its tensors that were loaded, and all; constants and counters do not count."""
    every = Counter(key.partition(".")[0] for key in sizes if not _CONSTANT.search(key))
    some = Counter(key.partition(".")[0] for key in sizes if not _CONSTANT.search(key) and key not in not_loaded)
    return {part: (some[part], every[part]) for part in every}


def _differ_in_classes(key: str, in_file: tuple[int, ...], in_model: tuple[int, ...]) -> bool:
    """Whether two shapes of a tensor differ along the axis of the classes and nowhere else."""
    if len(in_file) != len(in_model):
        return False
    axes = {axis for axis, (a, b) in enumerate(zip(in_file, in_model, strict=True)) if a != b}
    if _POINT_LAYER.search(key):
        return axes <= {1}
    # The keypoint head ends with a deconvolution, whose outputs lie along the second axis.
    outputs = 1 if key.endswith("score_lowres.weight") else 0
    return _CLASS_LAYER.search(key) is not None and axes <= {outputs}


def _class_numbers(resized: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    for key, in_file, in_model in resized:
        if re.search(r"box_predictor(\.\d+)?\.cls_score\.", key):
            return (
                f"{in_file[0] - 1}, not {in_model[0] - 1} as the model has (MODEL.ROI_HEADS.NUM_CLASSES, in lazy "
                "configs model.roi_heads.num_classes)."
            )
    return "set the numbers of classes of the config (MODEL.*.NUM_CLASSES) as in that training."


def _grouped(keys: Iterable[str]) -> list[str]:
    """`a.weight` and `a.bias` become `a.{bias, weight}`."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        head, _, tail = key.rpartition(".")
        groups[head].append(tail)
    return sorted(
        (f"{head}." if head else "") + (tails[0] if len(tails) == 1 else "{" + ", ".join(sorted(tails)) + "}")
        for head, tails in groups.items()
    )


def _without_aliases(model: nn.Module, missing: list[str]) -> list[str]:
    """Drop names of tensors that were loaded under another of their names."""
    absent = set(missing)
    names: defaultdict[int, set[str]] = defaultdict(set)
    for tensors in (model.named_parameters, model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            names[id(tensor)].add(name)
    loaded_elsewhere = {name for group in names.values() if group - absent for name in group}
    return [key for key in missing if key not in loaded_elsewhere]
