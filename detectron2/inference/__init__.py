"""Predict with a trained model: on images, folders and videos, in batches, with results in the usual forms."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bulk import BulkRun, list_images, read_shards
    from .predictor import Predictor
    from .results import Result
    from .sources import Frame, read_frames
    from .writers import ResultWriter

__all__ = ["BulkRun", "Frame", "Predictor", "Result", "ResultWriter", "list_images", "read_frames", "read_shards"]

# Imported when they are asked for: training needs other modules of this package, and not these.
_LAZY = {
    "BulkRun": "bulk",
    "Frame": "sources",
    "Predictor": "predictor",
    "Result": "results",
    "ResultWriter": "writers",
    "list_images": "bulk",
    "read_frames": "sources",
    "read_shards": "bulk",
}


def __getattr__(name: str) -> Any:
    """Import a module of this package when it, or a name of it, is first read (PEP 562)."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _LAZY.values():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
