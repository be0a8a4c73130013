"""Models in the form that other programs run."""

from typing import TYPE_CHECKING, Any

from .flatten import TracingAdapter

if TYPE_CHECKING:
    from .api import export_model
    from .artifact import ExportedModel
    from .graphs import register_exportable

__all__ = ["ExportedModel", "TracingAdapter", "export_model", "register_exportable"]

# Imported when they are asked for: together they need most of the library.
_LAZY = {
    "ExportedModel": "artifact",
    "export_model": "api",
    "register_exportable": "graphs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
