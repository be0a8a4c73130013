"""A checkpoint in two files: weights that everybody can read, and beside them what only continuing a training needs.

`model_0000999.safetensors` has the name of its second file, `model_0000999.state.pt`, in its header, and both have
the same number. The second file is written first, under a name that no file of weights refers to, so that whenever
the process dies the weights on disk have their own state beside them, or none was promised.
"""

import glob
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from detectron2.checkpoint.files import read_header, read_torch_file, read_weights, write_weights
from detectron2.utils.file_io import atomic_write

__all__ = [
    "DESCRIPTION",
    "describe_again",
    "read_beside",
    "remove_orphans",
    "save_in_two_files",
    "save_tensors",
    "state_file",
]

DESCRIPTION = "description"
"""The key of a checkpoint under which it describes its model: config, class names, preprocessing."""
_EXTRA, _STATE, _NUMBER = "extra", "training_state", "save_number"
_STATE_NAME = re.compile(r".*\.state2?\.pt")


def save_in_two_files(folder: str, name: str, data: Mapping[str, Any], manager: Any) -> str:
    """Save what a `.pth` file would hold, and return the name of the file of weights.

    `model`, the description, numbers and texts go to the first file; everything else to the second, which is left out
    where there is nothing else.
    """
    rest = {key: value for key, value in data.items() if key not in ("model", DESCRIPTION)}
    extra = {key: value for key, value in rest.items() if _is_simple(value)}
    state = {key: value for key, value in rest.items() if key not in extra}
    texts = {_EXTRA: json.dumps(extra)}
    if data.get(DESCRIPTION) is not None:
        texts[DESCRIPTION] = json.dumps(data[DESCRIPTION])
    path = os.path.join(folder, f"{name}.safetensors")
    former = state_file(path) if os.path.isfile(path) else None
    used = None
    if state:
        # Never the one that the weights on disk refer to: until these are replaced they are the checkpoint.
        used = os.path.join(folder, f"{name}.state.pt")
        if used == former:
            used = os.path.join(folder, f"{name}.state2.pt")
        number = secrets.token_hex(8)
        save_tensors({**state, _NUMBER: number}, used, manager)
        texts |= {_STATE: os.path.basename(used), _NUMBER: number}
    write_weights(path, data["model"], texts, manager)
    if former is not None and former != used and os.path.isfile(former):
        os.remove(former)
    return os.path.basename(path)


def _is_simple(value: Any) -> bool:
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def state_file(path: str) -> str | None:
    """Return the file, which need not exist, that a local file of weights names as its second one, if it names one."""
    name = read_header(path).get(_STATE)
    if name is None:
        return None
    if not isinstance(name, str) or os.path.basename(name) != name or not _STATE_NAME.fullmatch(name):
        raise ValueError(
            f"{path} names {name!r} as the file with its training state, but this is not the name of such a file."
        )
    return os.path.join(os.path.dirname(path), name)


def read_beside(path: str, texts: Mapping[str, str], *, is_needed: bool) -> dict[str, Any]:
    """Return what a checkpoint holds apart from its weights: the texts in its header, and its second file.

    The second file may be missing unless it is needed, to go on with the training (`FileNotFoundError`). One that is
    damaged, or of another save, is a `ValueError`.
    """
    found: dict[str, Any] = {}
    try:
        if _EXTRA in texts:
            found |= json.loads(texts[_EXTRA])
        if DESCRIPTION in texts:
            found[DESCRIPTION] = json.loads(texts[DESCRIPTION])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: the header is damaged: {error}") from error
    beside = state_file(path)
    if beside is None or (not is_needed and not os.path.isfile(beside)):
        return found
    if not os.path.isfile(beside):
        raise FileNotFoundError(
            f"{path} has weights alone: {os.path.basename(beside)}, which has the state of optimizer and schedule, is "
            "not beside it. Put it there to continue that training, or start a new one from these weights "
            "(MODEL.WEIGHTS or train.init_checkpoint, another output folder, no --resume)."
        )
    # Where nothing of it is used, mapping it into memory spares reading it.
    state = read_torch_file(beside, mapped=not is_needed)
    if state.pop(_NUMBER, None) != texts.get(_NUMBER):
        raise ValueError(f"{beside} belongs to another save than {path}: files of two trainings got mixed.")
    return {**found, **state}


def save_tensors(data: Any, path: str, manager: Any) -> None:
    """Write a file of `torch.save`, which appears under its name only when it is complete."""
    needed = sum(value.nbytes for value in tree_leaves(data) if isinstance(value, torch.Tensor))
    with atomic_write(path, "wb", manager, needed) as file:
        torch.save(data, file)


def describe_again(path: str, description: Mapping[str, Any], manager: Any) -> None:
    """Replace the description in a local checkpoint of either format, and leave everything else."""
    if path.endswith(".safetensors"):
        weights, texts = read_weights(path)
        write_weights(path, weights, {**texts, DESCRIPTION: json.dumps(description)}, manager)
        return
    data = read_torch_file(path, mapped=True)
    data[DESCRIPTION] = dict(description)
    save_tensors(data, path, manager)


def remove_orphans(folder: str, names: Iterable[str] = ("*",)) -> None:
    """Remove files with training states, by patterns of names without endings, that no file of weights refers to."""
    for name in names:
        for path in glob.glob(os.path.join(glob.escape(folder), f"{name}.state*.pt")):
            if not _STATE_NAME.fullmatch(path):
                continue
            weights = re.sub(r"\.state2?\.pt$", ".safetensors", path)
            if not os.path.isfile(weights) or state_file(weights) != path:
                os.remove(path)
