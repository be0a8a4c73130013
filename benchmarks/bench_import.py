"""How long importing takes, beyond PyTorch and torchvision.

usage:  python benchmarks/bench_import.py [--rounds 3] [--modules detectron2.engine ...]

In each round, every module is imported in a fresh process, after torch and torchvision, both timed there by the
processor time of the process: what else the machine does falls on both. "ratio" is what both take together, in terms of
torch and torchvision alone; the least of the rounds counts, for each of the two. Bytecode is compiled before.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

MODULES = (
    "detectron2",
    "detectron2.modeling",
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.engine",
    "detectron2.inference",
)

_CODE = """
import importlib, json, sys, time
begin = time.process_time()
import torch, torchvision
middle = time.process_time()
importlib.import_module({module!r})
end = time.process_time()
sys.path.insert(0, {folder!r})
from bench_import import peak_memory_mib
print(json.dumps([middle - begin, end - middle, peak_memory_mib()]))
"""


class Import(NamedTuple):
    """Seconds of torch and torchvision, of a module after them, and the peak of the memory."""

    of_torch: float
    of_module: float
    memory_mib: float


def measure_import(module: str) -> Import:
    """Import a module in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    code = _CODE.format(module=module, folder=str(Path(__file__).resolve().parent))
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, check=True)
    return Import(*json.loads(done.stdout))


def peak_memory_mib() -> float:
    """Peak of the resident memory of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # What getrusage says includes the memory of the process that started this one.
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 2**10


def least_of(modules: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """For each module the least seconds of torch and torchvision in any process, and those beyond them."""
    for module in modules:
        measure_import(module)  # compiles
    measured = {module: [measure_import(module) for _ in range(rounds)] for module in modules}
    of_torch = min(found.of_torch for every in measured.values() for found in every)
    return {module: (of_torch, min(found.of_module for found in every)) for module, every in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modules", nargs="+", default=list(MODULES))
    args = parser.parse_args()
    print("| import | seconds beyond torch and torchvision | ratio |\n| --- | --- | --- |")
    for module, (of_torch, seconds) in least_of(args.modules, args.rounds).items():
        print(f"| {module} | {seconds:.3f} | {1 + seconds / of_torch:.3f} |", flush=True)
    print(f"\ntorch and torchvision: {of_torch:.2f} s of processor time")


if __name__ == "__main__":
    main()
