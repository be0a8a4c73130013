"""Repeat a training step whose loss was not finite, from the file that was saved then.

python -m detectron2.engine.replay output/nonfinite_0000123.pth
python -m detectron2.engine.replay output/nonfinite_0000123.pth --device cuda
python -m detectron2.engine.replay output/nonfinite_0000123.pth --import my_models.py   # of a model of your own
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint import CheckpointDescription
from detectron2.checkpoint.files import read_torch_file
from detectron2.config import CfgNode, instantiate
from detectron2.engine.divergence import first_nonfinite, from_plain
from detectron2.engine.random_states import random_states_kept, set_random_states
from detectron2.inference.loading import available_device, load_described_config
from detectron2.modeling import build_model
from detectron2.utils.env import import_modules
from detectron2.utils.events import EventStorage

__all__ = ["main", "replay"]


def replay(path: str, model: nn.Module | None = None, device: str = "cpu") -> tuple[dict[str, float], str | None]:
    """Compute the losses of a saved step again, with its weights and random numbers.

    Args:
        path: a file `nonfinite_*.pth`.
        model: the model; default: the one that the config in the file describes.
        device: where to compute.

    Returns:
        The losses (of the last batch, where the step had several), and a sentence about the first tensor that is not
        finite; `None` if there is none.

    Raises:
        ValueError: the file is of another kind; or no model is given, and it holds no config, or one that describes
            calls that a file may not make.
    """
    content = _read(path)
    return _repeat(content, _model_of(content, path) if model is None else model, device)


def _read(path: str) -> dict[str, Any]:
    content = read_torch_file(path)
    if not isinstance(content, dict) or not {"batches", "model", "config"} <= content.keys():
        raise ValueError(f"{path} is not a step that was saved by the trainer (nonfinite_*.pth).")
    return content


def _repeat(content: dict[str, Any], model: nn.Module, device: str) -> tuple[dict[str, float], str | None]:
    if any(map(_has_channels_last, content["model"].values())):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # for the same rounding
    model.load_state_dict(content["model"], strict=False)
    model.to(device).train()
    batches = from_plain(content["batches"])
    kind = getattr(torch, content["autocast"]) if content["autocast"] else None
    losses: Any = {}
    found = None
    with random_states_kept(), torch.autocast(device, dtype=kind, enabled=kind is not None):
        if content["random_states"]:
            set_random_states(content["random_states"])
        for batch in batches:
            found = found or first_nonfinite(model, batch)
        if content["random_states"]:
            set_random_states(content["random_states"])
        for batch in batches:
            losses = {}
            with EventStorage(), torch.no_grad(), contextlib.suppress(FloatingPointError):  # the model may notice
                losses = model(batch)
    losses = {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses
    return {name: float(value) for name, value in losses.items()}, found


def _has_channels_last(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or value.is_contiguous():
        return False
    return value.is_contiguous(memory_format=torch.channels_last)


def _model_of(content: dict[str, Any], path: str, trusted: Sequence[str] = ()) -> nn.Module:
    if not content["config"]:
        raise ValueError(f"{path} holds no config: build the model yourself, and call detectron2.engine.replay.replay.")
    described = {"config": content["config"], "config_kind": content.get("config_kind")}
    cfg = load_described_config(CheckpointDescription.from_plain(described, path), path, trusted)
    if not isinstance(cfg, CfgNode):
        return instantiate(cfg.model)
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return 0 if all losses are finite now, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="nonfinite_*.pth, from the output folder of the run")
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument(
        "--import", dest="imports", metavar="MODULE", action="append", default=[], help="a module or .py file to import"
    )
    args = parser.parse_args(argv)
    try:
        trusted, device = import_modules(args.imports), available_device(args.device, "--device")
        content = _read(args.file)
        model = _model_of(content, args.file, trusted)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    losses, found = _repeat(content, model, device)
    for name, value in losses.items():
        sys.stdout.write(f"{name}: {value:g}\n")
    sys.stdout.write(f"{found or 'All layers give finite values.'}\n")
    return 0 if found is None and all(torch.isfinite(torch.tensor(v)) for v in losses.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
