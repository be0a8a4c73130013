"""Models in the form that other programs run."""

from typing import TYPE_CHECKING, Any

from .flatten import TracingAdapter

if TYPE_CHECKING:
    from .api import export_model
    from .artifact import ExportedModel
    from .graphs import register_exportable
    from .legacy import Caffe2Model, Caffe2Tracer, add_export_config, dump_torchscript_IR, scripting_with_instances

__all__ = [
    "STABLE_ONNX_OPSET_VERSION",
    "Caffe2Model",
    "Caffe2Tracer",
    "ExportedModel",
    "TracingAdapter",
    "add_export_config",
    "dump_torchscript_IR",
    "export_model",
    "register_exportable",
    "scripting_with_instances",
]

STABLE_ONNX_OPSET_VERSION = 18
"""The lowest version of ONNX's operators that exports have; copies of the published export script read it."""

# Imported when they are asked for: together they need most of the library.
_LAZY = {
    "Caffe2Model": "legacy",
    "Caffe2Tracer": "legacy",
    "ExportedModel": "artifact",
    "add_export_config": "legacy",
    "dump_torchscript_IR": "legacy",
    "export_model": "api",
    "register_exportable": "graphs",
    "scripting_with_instances": "legacy",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
