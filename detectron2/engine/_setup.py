"""What a training or evaluation script does before anything else: arguments, logging, seeds, writers."""

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import detectron2.utils.comm as comm
from detectron2.config import CfgNode, LazyConfig
from detectron2.engine._sharding import is_sharded
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import setup_logger


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, bf16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model for data-parallel training when there is more than one process.

    Args:
        model: on the device of this process.
        fp16_compression: send gradients as float16, which halves the traffic; very large ones become infinite.
        bf16_compression: send gradients as bfloat16: as little traffic, the range of float32, fewer digits.
        **kwargs: for :class:`torch.nn.parallel.DistributedDataParallel`.

    Returns:
        The wrapped model, or ``model`` itself when there is one process or the model is sharded.

    Raises:
        ValueError: both compressions are asked for.
    """
    if fp16_compression and bf16_compression:
        raise ValueError("Gradients can be sent as float16 or as bfloat16, not as both.")
    if comm.get_world_size() == 1 or is_sharded(model):
        return model
    device = next(model.parameters()).device
    if "device_ids" not in kwargs and device.type == "cuda":
        kwargs["device_ids"] = [device]
    known = inspect.signature(DistributedDataParallel).parameters
    if "broadcast_buffers" in kwargs and "forward_sync_buffers" in known:
        kwargs["forward_sync_buffers"] = kwargs.pop("broadcast_buffers")  # its name since PyTorch 2.15
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression or bf16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        hook = default_hooks.fp16_compress_hook if fp16_compression else default_hooks.bf16_compress_hook
        ddp.register_comm_hook(state=None, hook=hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser that the training scripts share.

    Args:
        epilog: text after the options; default: some examples.

    Returns:
        A parser to which a script can add options.
    """
    script = os.path.basename(sys.argv[0])
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""examples:
  one GPU:               {script} --config-file cfg.yaml
  eight GPUs:            {script} --config-file cfg.yaml --num-gpus 8
  no GPU:                {script} --config-file cfg.yaml MODEL.DEVICE cpu
  change values:         {script} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weights.pth SOLVER.BASE_LR 0.001
  two machines:          {script} --machine-rank 0 --num-machines 2 --dist-url tcp://MACHINE0:PORT [...]
                         {script} --machine-rank 1 --num-machines 2 --dist-url tcp://MACHINE0:PORT [...]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML or LazyConfig file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint of the output directory, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate the weights and train nothing")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on *each* machine, one GPU each")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="which machine this is, from 0")
    parser.add_argument(
        "--dist-url", default="auto", help='where processes meet, "tcp://MACHINE0:PORT"; "auto": a free local port'
    )
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="changes to the config, after all options: pairs KEY VALUE for YAML, path.key=value for LazyConfig",
    )
    return parser


def _try_get_key(cfg: Any, *keys: str, default: Any = None) -> Any:
    """The value of the first dotted key that the config has; for configs of both kinds."""
    for key in keys:
        value = cfg
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            return value
    return default


def _highlight(code: str, filename: str) -> str:
    """Colour source text for a terminal, where pygments is installed; for projects that print configs themselves."""
    try:
        import pygments
    except ImportError:
        return code
    from pygments.formatters import Terminal256Formatter
    from pygments.lexers import Python3Lexer, YamlLexer

    lexer = Python3Lexer() if filename.endswith(".py") else YamlLexer()
    return pygments.highlight(code, lexer, Terminal256Formatter(style="monokai"))


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Prepare a run: output folder, loggers, a record of environment, arguments and config, and the random seed.

    The config is written to ``config.yaml`` in the output folder.

    Args:
        cfg: a ``CfgNode`` or an omegaconf config.
        args: the parsed command line; it is logged.
    """
    output_dir = _try_get_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir") or None
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    _log_config_file(logger, getattr(args, "config_file", ""))
    if comm.is_main_process() and output_dir:
        _save_config(cfg, os.path.join(output_dir, "config.yaml"), logger)
    seed = _try_get_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed is None or seed < 0 else seed + rank)
    is_deterministic = bool(_try_get_key(cfg, "TRAIN.DETERMINISTIC", "train.deterministic", default=False))
    if is_deterministic:
        _make_deterministic(seed, logger)
    # Trying all convolution algorithms pays only where sizes repeat for long, which they do not in evaluation.
    if not getattr(args, "eval_only", False) and not is_deterministic:
        torch.backends.cudnn.benchmark = bool(
            _try_get_key(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
        )


def _make_deterministic(seed: int | None, logger: logging.Logger) -> None:
    """Choose algorithms that give the same numbers each time; where there is none, PyTorch warns."""
    if seed is None or seed < 0:
        logger.warning("Deterministic algorithms alone do not repeat a run: set SEED (train.seed) as well.")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is used for the first time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def _log_config_file(logger: logging.Logger, path: str) -> None:
    if path:
        with PathManager.open(path, "r") as f:
            logger.info("Contents of %s:\n%s", path, str(f.read()))


def _save_config(cfg: Any, path: str, logger: logging.Logger) -> None:
    if isinstance(cfg, CfgNode):
        with atomic_write(path, "w") as f:
            f.write(cfg.dump())
    else:
        LazyConfig.save(cfg, path)
    logger.info("The full config is in %s", path)


def default_writers(
    output_dir: str, max_iter: int | None = None, images_per_iter: int | None = None
) -> list[EventWriter]:
    """The usual writers: terminal, ``metrics.json`` and TensorBoard.

    Args:
        output_dir: where the files go; it is made if necessary.
        max_iter: the last iteration, for the estimate of the remaining time.
        images_per_iter: images in one iteration over all processes, for the speed.

    Returns:
        The writers, terminal first.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter, images_per_iter=images_per_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
