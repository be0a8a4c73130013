#!/usr/bin/env python
"""Measure the parts of training and inference, to find out which one is slow.

python tools/benchmark.py --config-file cfg.yaml --task data             # the data loader
python tools/benchmark.py --config-file cfg.yaml --task data_advanced    # its stages, and various numbers of workers
python tools/benchmark.py --config-file cfg.yaml --task train --num-gpus 8
python tools/benchmark.py --config-file cfg.yaml --task eval

"train" and "eval" use a few real batches again and again, so that data loading does not count. For all parts in one
table, and what holds the rest back: detectron2 benchmark --config-file cfg.yaml
"""

import argparse
import itertools
import logging
import time
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.benchmark import iter_benchmark
from detectron2.engine import create_ddp_model, default_argument_parser, default_setup, hooks, launch
from detectron2.engine.benchmark import build_loader_benchmark, build_trainer, take_batches, wait_for_device
from detectron2.inference.loading import find_config_file, load_config
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter

logger = logging.getLogger("detectron2")

NUM_ITER = {"data": 1000, "data_advanced": 200, "train": 400, "eval": 300}
CACHED_BATCHES = 100


def batch_size(cfg: Any) -> int:
    """Number of images in a training batch over all processes."""
    return cfg.SOLVER.IMS_PER_BATCH if isinstance(cfg, CfgNode) else cfg.dataloader.train.total_batch_size


def train_loader(cfg: Any) -> Any:
    return build_detection_train_loader(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.dataloader.train)


def build(cfg: Any) -> nn.Module:
    return build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model).to(cfg.train.device)


def benchmark_data(cfg: Any, num_iter: int) -> float:
    """Measure the seconds per batch of the whole loader."""
    average, _ = iter_benchmark(iter(train_loader(cfg)), num_iter, warmup=10, max_time_seconds=300)
    images = batch_size(cfg) / comm.get_world_size()
    logger.info("%.4f seconds per batch, %.1f images per second in this process", average, images / max(average, 1e-9))
    return average


def benchmark_data_advanced(cfg: Any, num_iter: int) -> None:
    """Measure reading, mapping, workers and handing over, each by itself."""
    bench = build_loader_benchmark(cfg)
    if comm.get_world_size() == 1:
        bench.benchmark_dataset(num_iter)
        bench.benchmark_mapper(num_iter)
        bench.benchmark_workers(num_iter)
        bench.benchmark_IPC(num_iter)
    else:
        bench.benchmark_distributed(num_iter)


def benchmark_train(cfg: Any, num_iter: int) -> None:
    """Train on cached batches; the speed is in the log."""
    data = itertools.cycle(take_batches(train_loader(cfg), min(num_iter, CACHED_BATCHES)))
    model = create_ddp_model(build(cfg).train(), broadcast_buffers=False)
    trainer = build_trainer(cfg, model, data)
    printer = CommonMetricPrinter(num_iter, images_per_iter=batch_size(cfg))
    is_main = comm.is_main_process()
    trainer.register_hooks([hooks.IterationTimer(), hooks.PeriodicWriter([printer]) if is_main else None])
    trainer.train(0, num_iter)


@torch.no_grad()
def benchmark_eval(cfg: Any, num_iter: int) -> float:
    """Measure the seconds per batch of inference on cached batches, after the first ones."""
    if isinstance(cfg, CfgNode):
        loader, weights = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0]), cfg.MODEL.WEIGHTS
    else:
        loader, weights = instantiate(cfg.dataloader.test), cfg.train.init_checkpoint
    model = build(cfg).eval()
    if weights:
        DetectionCheckpointer(model).load(weights)
    data = itertools.cycle(take_batches(loader, min(num_iter, CACHED_BATCHES)))
    for _ in range(min(num_iter, 5)):
        model(next(data))
    wait_for_device()
    begin, images = time.perf_counter(), 0
    for _ in range(num_iter):
        batch = next(data)
        model(batch)
        images += len(batch)
    wait_for_device()
    seconds = time.perf_counter() - begin
    logger.info("%.4f seconds per batch, %.1f images per second", seconds / num_iter, images / seconds)
    return seconds / num_iter


TASKS = {
    "data": benchmark_data,
    "data_advanced": benchmark_data_advanced,
    "train": benchmark_train,
    "eval": benchmark_eval,
}


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    return TASKS[args.task](cfg, args.num_iter or NUM_ITER[args.task])


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    parser = default_argument_parser()
    parser.add_argument("--task", choices=list(TASKS), required=True, help="what to measure")
    parser.add_argument("--num-iter", type=int, default=0, metavar="N", help=f"iterations; default: {NUM_ITER}")
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed")
    if args.eval_only or args.resume:
        parser.error("--eval-only and --resume have no meaning here; use --task eval")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    invoke_main()
