"""Object detection, segmentation and keypoints on PyTorch.

Sub-packages are imported on first use (`detectron2.config`, `detectron2.layers` …), so `import detectron2` alone
costs nothing and touches neither the disk nor a device.
"""

import importlib

__all__ = ["Predictor", "__version__"]  # pyright: ignore[reportUnsupportedDunderAll] (see __getattr__)

__version__ = "0.7.0"

_NAMES = {"Predictor": "inference"}  # of what is used most, and the sub-package that has it

_SUBPACKAGES = (
    "checkpoint",
    "config",
    "data",
    "engine",
    "evaluation",
    "export",
    "inference",
    "layers",
    "model_zoo",
    "modeling",
    "projects",
    "serving",
    "solver",
    "structures",
    "tracking",
    "utils",
    "visualization",
)


def __getattr__(name: str):
    """Import a sub-package when it, or a name of it, is first read as an attribute (PEP 562)."""
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES, *_NAMES])
