"""Describe the machine and the installed software for a problem report.

usage:  python -m detectron2.utils.collect_env
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["collect_env_info", "collect_torch_env", "detect_compute_compatibility", "get_env_module", "test_nccl_ops"]

# distribution names: ours first, then what changes behaviour most often
_PACKAGES = (
    *("detectron2", "torchvision", "numpy", "Pillow", "fvcore", "iopath", "yacs", "omegaconf"),
    *("pycocotools", "hotcoco", "opencv-python", "opencv-python-headless", "onnx", "onnxruntime"),
)
_VARIABLES = (
    *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "DETECTRON2_DATASETS", "DETECTRON2_CACHE", "DETECTRON2_OFFLINE"),
    *("DETECTRON2_ENV_MODULE", "FVCORE_CACHE", "OMP_NUM_THREADS"),
)


def get_env_module() -> tuple[str, str]:
    """Return name and value of the variable that names a module to run at start-up."""
    name = "DETECTRON2_ENV_MODULE"
    return name, os.environ.get(name, "<not set>")


def collect_torch_env() -> str:
    """Return the report of PyTorch on itself, the compiler and the drivers."""
    try:
        from torch.utils.collect_env import get_pretty_env_info

        return get_pretty_env_info()
    except Exception as error:  # it runs a dozen programs, and any of them may fail
        return f"torch.utils.collect_env failed: {error!r}"


def detect_compute_compatibility(CUDA_HOME: str | None, so_file: str) -> str:
    """Return the GPU architectures in a compiled library, such as `"8.0, 9.0"`, or why they are not known.

    They are listed by the program `cuobjdump` of the CUDA toolkit in `CUDA_HOME`.
    """
    program = os.path.join(CUDA_HOME or "", "bin", "cuobjdump")
    if not os.path.isfile(program):
        return f"{so_file}; cannot find cuobjdump"
    try:
        listing = subprocess.run([program, "--list-elf", so_file], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{so_file}; cuobjdump failed: {error}"
    found = sorted({int(number) for number in re.findall(r"\.sm_(\d+)", listing)})
    return ", ".join(f"{number // 10}.{number % 10}" for number in found) or f"{so_file}; no device code"


def test_nccl_ops() -> str:
    """Report whether NCCL can reduce over the GPUs of this machine."""
    import torch.cuda.nccl as nccl
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_nccl_available():
        return "NCCL is not available"
    count = torch.cuda.device_count()
    if count < 2:
        return f"not tested: {count} GPU(s)"
    try:
        tensors = [torch.ones(1, device=f"cuda:{index}") for index in range(count)]
        nccl.all_reduce(tensors)
        right = all(int(tensor.item()) == count for tensor in tensors)
    except RuntimeError as error:
        return f"failed: {error}"
    return "works" if right else "gives wrong sums"


test_nccl_ops.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # not a test, whatever its name


def _software() -> list[tuple[str, str]]:
    rows = [
        ("sys.platform", f"{sys.platform} ({platform.platform()})"),
        ("Python", sys.version.replace("\n", " ")),
        ("PyTorch", f"{torch.__version__} @ {os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", str(torch.version.debug)),
    ]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            rows.append((name, importlib.metadata.version(name)))
    return rows


def _devices() -> list[tuple[str, str]]:
    rows = [("CUDA of PyTorch", str(torch.version.cuda)), ("cuDNN", str(torch.backends.cudnn.version()))]
    rows.append(("GPU available", str(torch.cuda.is_available())))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.1f} GiB"
        rows.append((f"GPU {index}", f"{properties.name} (arch {properties.major}.{properties.minor}, {memory})"))
    if torch.cuda.is_available():
        rows += [("GPU architectures built", ", ".join(torch.cuda.get_arch_list())), ("NCCL", test_nccl_ops())]
    rows.append(("MPS available", str(torch.backends.mps.is_available())))
    rows.append(("CPU", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"))
    rows.append(("torch threads", str(torch.get_num_threads())))
    return rows


def _variables() -> list[tuple[str, str]]:
    rows = [get_env_module()]
    rows += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ and name != rows[0][0]]
    return rows


def _carefully(section: Callable[[], list[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    try:
        return section()
    except Exception as error:  # a broken installation still gets a report
        return [(section.__name__.strip("_"), f"<not available: {error!r}>")]


def collect_env_info() -> str:
    """Return a table of versions, devices and variables, followed by the build settings of PyTorch. Never raises."""
    from tabulate import tabulate

    rows = [*_carefully(_software), *_carefully(_devices), *_carefully(_variables)]
    build = _carefully(lambda: [("", torch.__config__.show())])
    return tabulate(rows, tablefmt="plain") + "\n" + str(build[0][1])


if __name__ == "__main__":
    sys.stdout.write(collect_env_info() + "\n")
