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
print(json.dumps([middle - begin, time.process_time() - middle]))
"""


def seconds_of(module: str) -> tuple[float, float]:
    """Seconds of torch and torchvision, and of a module after them, in a process of their own."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _CODE.format(module=module)], stdout=subprocess.PIPE, env=env)
    done.check_returncode()
    of_torch, of_module = json.loads(done.stdout)
    return of_torch, of_module


def least_of(modules: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """For each module the least seconds of torch and torchvision in any process, and those beyond them."""
    for module in modules:
        seconds_of(module)  # compiles
    measured = {module: [seconds_of(module) for _ in range(rounds)] for module in modules}
    of_torch = min(seconds for pairs in measured.values() for seconds, _ in pairs)
    return {module: (of_torch, min(seconds for _, seconds in pairs)) for module, pairs in measured.items()}


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
