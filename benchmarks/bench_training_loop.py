"""What the training loop adds to forward, backward and the optimizer's step, with a model that does almost nothing.

usage:  python benchmarks/bench_training_loop.py [--iterations 100] [--losses 5] [--layers 10] [--rounds 40]
                                                 [--device cpu]

The model is a stack of small linear layers with a few losses, which costs so little that the loop shows. Measured in
turn, on one thread, by the processor time of the process, of which the least over all rounds counts (other programs can
only add to it; on a GPU, by the clock, its work included):

* `bare`: forward, backward, step, and nothing else;
* `SimpleTrainer`: the same in the trainer without hooks, which records and checks the losses of every step;
* `with hooks`: also those of DefaultTrainer that act in every step: clock, schedule, signals, writers (period 20);
* `with EMA`: the same and a moving average of the weights.

What counts is the difference in microseconds: it does not grow with the model, except for EMA.
"""

import argparse
import itertools
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter


class Model(nn.Module):
    """Linear layers, and losses of about the number that a detector has."""

    def __init__(self, layers: int, losses: int):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        self.losses = losses

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layers(x).square().mean()
        return {f"loss_{i}": out * (i + 1) for i in range(self.losses)}


def make(args: argparse.Namespace) -> tuple[Model, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = Model(args.layers, args.losses).to(args.device)
    data = itertools.repeat(torch.ones(4, 8, device=args.device))
    return model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9), data


def bare(args: argparse.Namespace) -> None:
    model, optimizer, data = make(args)
    for _, batch in zip(range(args.iterations), data, strict=False):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]  # a model without losses cannot be asked for
        optimizer.step()


def trainer(args: argparse.Namespace) -> SimpleTrainer:
    model, optimizer, data = make(args)
    return SimpleTrainer(model, data, optimizer)


def plain_trainer(args: argparse.Namespace) -> None:
    trainer(args).train(0, args.iterations)


def with_hooks(args: argparse.Namespace, *more: Callable[[nn.Module], hooks.HookBase]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loop = trainer(args)
        writers = [CommonMetricPrinter(args.iterations), JSONWriter(os.path.join(folder, "metrics.json"))]
        loop.register_hooks(
            [
                hooks.StopOnSignal(DetectionCheckpointer(loop.model, folder)),
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=ConstantParamScheduler(1.0)),
                *(make_hook(loop.model) for make_hook in more),
                hooks.PeriodicWriter(writers, 20),
            ]
        )
        loop.train(0, args.iterations)


def with_average(args: argparse.Namespace) -> None:
    with_hooks(args, lambda model: hooks.WeightAverage(model, 0.99))


VARIANTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "bare": bare,
    "SimpleTrainer": plain_trainer,
    "with hooks": with_hooks,
    "with EMA": with_average,
}


def now(device: str) -> float:
    """Return seconds of processor time; for a GPU, wall-clock seconds until its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--losses", type=int, default=5)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40, help="all variants run once in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {args.losses} losses")
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, run in VARIANTS.items():
            begin = now(args.device)
            run(args)
            seconds[name].append((now(args.device) - begin) / args.iterations)
    of_bare = min(seconds["bare"])
    for name, values in seconds.items():
        step = min(values)
        print(f"{name:14s} {1e6 * step:7.0f} us a step, {1e6 * (step - of_bare):+6.0f} us, {step / of_bare:.2f} x")


if __name__ == "__main__":
    main()
