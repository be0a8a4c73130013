"""Prepare a model for training: freeze, compile and split it as the options say, and wrap it for several processes."""

import fnmatch
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import detectron2.utils.comm as comm
from detectron2.engine.options import TrainOptions
from detectron2.engine.sharding import is_sharded, shard_model
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.compilation import compile_parts

__all__ = [
    "create_ddp_model",
    "freeze_by_pattern",
    "parameter_table",
    "prepare_model",
]

logger = logging.getLogger("detectron2.engine.defaults")


def prepare_model(model: nn.Module, options: TrainOptions) -> nn.Module:
    """Freeze, change the memory format, compile and shard a model in place, before the optimizer is built.

    Without a choice (`options.channels_last` is None) models on the CPU get channels last, unless they are sharded,
    which PyTorch does to contiguous weights only.
    """
    if options.freeze:
        freeze_by_pattern(model, options.freeze)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("SOLVER.FREEZE (train.freeze) leaves nothing to train: all parameters are frozen.")
    channels_last = options.channels_last
    if channels_last is None and not (options.shard_model or is_sharded(model)):
        channels_last = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.pad_to:
        _pad_batches(model, options.padded_sizes_hw)
    if options.compile:
        compile_parts(model, few_shapes=bool(options.pad_to), cuda_graphs=options.cuda_graphs)
    if options.shard_model and not is_sharded(model):
        shard_model(model)
    return model


def _pad_batches(model: nn.Module, pad_to: tuple[tuple[int, int], ...]) -> None:
    if not hasattr(model, "pad_to"):
        logger.warning(
            "TRAIN.PAD_TO (train.pad_to) has no effect: %s does not pad its batches as models of this library do, "
            "which have an attribute pad_to.",
            type(model).__name__,
        )
        return
    model.pad_to = pad_to  # type: ignore[assignment]


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, bf16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model for data-parallel training, unless there is one process or the model is sharded.

    The model is on the device of this process. `fp16_compression` sends gradients as float16, which halves the traffic;
    very large ones become infinite. `bf16_compression` does so with bfloat16, which has the range of float32 but fewer
    digits; both together are a `ValueError`. The rest are arguments of `torch.nn.parallel.DistributedDataParallel`, of
    which `gradient_as_bucket_view` is on by default: gradients lie where they are exchanged, and are not copied.
    """
    if fp16_compression and bf16_compression:
        raise ValueError("Set fp16_compression or bf16_compression, not both.")
    if comm.get_world_size() == 1 or is_sharded(model):
        return model
    device = next(model.parameters()).device
    if "device_ids" not in kwargs and device.type == "cuda":
        kwargs["device_ids"] = [device]
    known = inspect.signature(DistributedDataParallel).parameters
    if "broadcast_buffers" in kwargs and "forward_sync_buffers" in known:
        kwargs["forward_sync_buffers"] = kwargs.pop("broadcast_buffers")  # its name since PyTorch 2.15
    ddp = DistributedDataParallel(model, **{"gradient_as_bucket_view": True, **kwargs})
    if fp16_compression or bf16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook if fp16_compression else bf16_compress_hook)
    return ddp


def freeze_by_pattern(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters with matching names; `FrozenBatchNorm2d` replaces batch norm whose parameters all match.

    Patterns are as for file names: `backbone.*`, `*.norm.*`, `roi_heads.box_head.fc?.weight`. A name without wildcards
    selects the parameter, or all parameters of the module, with that name. One that matches nothing is a `ValueError`.
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
    """Return a table of the numbers of frozen and trainable parameters, by the first `depth` parts of their names.

    Weights of `FrozenBatchNorm2d` count as frozen.
    """
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
