"""Parameters that are not trained, by patterns of their names, and a table of which are."""

import fnmatch
import logging
from collections.abc import Sequence

from torch import nn

from detectron2.layers import FrozenBatchNorm2d

logger = logging.getLogger("detectron2.engine.defaults")


def freeze_by_pattern(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop the training of parameters whose names match, and of the statistics of batch norm layers among them.

    Args:
        model: is changed: matching parameters need no gradient any more; a batch norm layer all of whose parameters
            match is replaced by :class:`~detectron2.layers.FrozenBatchNorm2d`.
        patterns: as in file names: ``backbone.*``, ``*.norm.*``, ``roi_heads.box_head.fc?.weight``.  A name without
            wildcards means the parameter, or all parameters of the module, of that name.

    Raises:
        ValueError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = {n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".")}
        if not found:
            groups = ", ".join(sorted({".".join(n.split(".")[:2]) for n in names}))
            raise ValueError(f"SOLVER.FREEZE: no parameter matches {pattern!r}. Their names begin with: {groups}.")
        frozen |= found
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not path:
            continue
        own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if own and all(name in frozen for name in own):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, FrozenBatchNorm2d.convert_frozen_batchnorm(module))
    logger.info("Frozen and trainable parameters:\n%s", parameter_table(model))


def parameter_table(model: nn.Module, depth: int = 2) -> str:
    """Count frozen and trainable parameters.

    Args:
        model: the model; what :class:`FrozenBatchNorm2d` holds counts as frozen.
        depth: parts of a name that make a row.

    Returns:
        A table.
    """
    from tabulate import tabulate

    counts: dict[str, list[int]] = {}

    def count(name: str, numel: int, is_trainable: bool) -> None:
        row = counts.setdefault(".".join(name.split(".")[:depth]), [0, 0])
        row[is_trainable] += numel

    for name, parameter in model.named_parameters():
        count(name, parameter.numel(), parameter.requires_grad)
    for path, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name in ("weight", "bias"):
                count(f"{path}.{name}", getattr(module, name).numel(), False)
    rows = [[name, frozen, trainable] for name, (frozen, trainable) in counts.items()]
    rows.append(["all", sum(r[1] for r in rows), sum(r[2] for r in rows)])
    return tabulate(rows, headers=["parameters", "frozen", "trainable"], tablefmt="pipe")
