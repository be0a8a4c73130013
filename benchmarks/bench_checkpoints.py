"""How long training waits while a checkpoint is saved, for each layout of a model that is split over processes.

usage:  python benchmarks/bench_checkpoints.py [--millions 60] [--steps 6] [--saves 3] [--processes 2]

The model is a stack of linear blocks with that many million parameters, trained with SGD and momentum, so that a
checkpoint has eight bytes for each. For SOLVER.CHECKPOINT_LAYOUT full, sharded and sharded_async the table has

* `save() waits`: how long the call keeps the training from going on;
* `until named`: from the call until the checkpoint has its name;
* `step meanwhile`: a step while the checkpoint is written, beside a step when nothing is.

All are medians, by the clock of rank 0. On a GPU the copy to CPU memory is part of `save() waits`.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import defaultdict

import torch
from torch import nn

from detectron2.engine import ShardedCheckpointer, launch, shard_model
from detectron2.utils import comm

WIDTH = 1024


class Model(nn.Module):
    """Blocks of one linear layer each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).tanh() / len(self.blocks)
        return x.square().mean()


def measure(folder: str, millions: float, steps: int, saves: int) -> None:
    """Measure in each process, and print the table in the first."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = shard_model(Model(max(1, round(millions * 1e6 / WIDTH**2))).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(64, WIDTH, device=device)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(3):
        step()
    for layout in ShardedCheckpointer.LAYOUTS:
        times = found[layout] = defaultdict(list)
        keeper = ShardedCheckpointer(model, f"{folder}/{layout}", optimizer=optimizer)
        keeper.layout = layout
        for i in range(saves):
            comm.synchronize()
            start = time.perf_counter()
            keeper.save(f"model_{i:07d}", iteration=i)
            times["waits"].append(time.perf_counter() - start)
            while any(comm.all_gather(keeper.is_saving)):
                times["meanwhile"].append(step())
            keeper.wait()
            times["named"].append(time.perf_counter() - start)
            times["alone"] += [step() for _ in range(steps)]
        comm.synchronize()
        if comm.is_main_process():
            shutil.rmtree(f"{folder}/{layout}")
    if comm.is_main_process():
        size = sum(p.numel() for p in model.parameters()) * 8 / 2**20
        print(f"{comm.get_world_size()} processes, {size:.0f} MiB a checkpoint, {platform.platform()}")
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}\n")
        print("| layout | save() waits | until named | step meanwhile | step alone |\n|---|---|---|---|---|")
        for layout, times in found.items():
            cells = [
                f"{statistics.median(times[k]):.2f} s" if times[k] else "-" for k in ("waits", "named", "meanwhile")
            ]
            print(f"| {layout} | {' | '.join(cells)} | {statistics.median(times['alone']):.2f} s |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=60, help="parameters, in millions")
    parser.add_argument("--steps", type=int, default=6, help="steps between two checkpoints")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of each layout")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where to write; default: that of temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        launch(measure, args.processes, args=(os.path.abspath(name), args.millions, args.steps, args.saves))
