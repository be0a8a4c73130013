"""The formats of exported models: how each is written, and how it is run again.

`N` images; `H`, `W` height and width of the batch in pixels.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from detectron2.utils.env import TORCH_VERSION

__all__ = ["FORMATS", "Format", "load_artifact", "need", "other_ways", "write_artifact"]

logger = logging.getLogger(__name__)

Inputs = tuple[torch.Tensor, ...]
"""Images `Tensor[N, 3, H, W]`, their sizes `Tensor[N, 2]`, and the score threshold of models with one."""
Outputs = dict[str, torch.Tensor]
Run = Callable[[Inputs], Outputs]

_PADDED_ONLY = (
    "the compiler of AOTInductor gives wrong masks for outputs of unknown length; use --outputs padded, or --format pt2"
)
_NO_DEFORM_CONV = (
    "OpenVINO does not read the operator DeformConv of ONNX files, which deformable convolutions are written as; take "
    "another format, such as pt2 or torchscript."
)


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Args:
        file_name: of the artifact in the folder of an export.
        nms: the form of non-maximum suppression in the graph, see `GraphOptions`.
        dynamic: which sizes may differ from those at export: "batch", "size".
        precisions: which it can have.
        write: takes the graph, inputs, names of dynamic sizes, the path, and the content of `model.json`.
        load: takes the path and the names of inputs and outputs; returns a function that runs the artifact.
    """

    file_name: str
    nms: str
    dynamic: tuple[str, ...]
    precisions: tuple[str, ...]
    write: Callable[[Any, Inputs, Sequence[str], Path, Mapping[str, Any]], None]
    load: Callable[[Path, Sequence[str], Sequence[str]], Run]


def need(*packages: str, extra: str) -> None:
    """Raise an ImportError that names the extra if one of these packages is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(f'{" and ".join(missing)} {verb} not installed: pip install "detectron2[{extra}]"')


def write_artifact(
    format: str, graph: nn.Module, example: Inputs, dynamic: Sequence[str], folder: Path, description: Mapping[str, Any]
) -> Path:
    """Write a graph in a format.

    Args:
        format: a key of `FORMATS`.
        graph: what `detectron2.export.graphs.build_graph` made, with the form of NMS that the format wants.
        example: inputs to trace with, at least two images where the batch is dynamic.
        dynamic: "batch", "size", both or neither.
        folder: gets the file.
        description: content of `model.json`; formats with a place for it hold it too.

    Returns:
        The path of the artifact.

    Raises:
        ValueError: the graph cannot be written in this format, or not with these sizes left open.
        ImportError: a package is missing.
    """
    row = FORMATS[format]
    path = folder / row.file_name
    try:
        with torch.no_grad(), _quiet():
            row.write(graph, example, tuple(dynamic), path, description)
    except (ImportError, MemoryError, OSError, ValueError):
        raise
    except Exception as error:  # whatever an exporter raises
        cause: BaseException = error
        while cause.__cause__ is not None:  # that of ONNX only says which of its steps failed
            cause = cause.__cause__
        raise ValueError(
            f"PyTorch cannot write this model as {format} ({type(cause).__name__}: {_first_line(cause).rstrip('.')}). "
            f"{other_ways(format, graph, dynamic)}"
        ) from error
    return path


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def other_ways(format: str, graph: nn.Module, dynamic: Sequence[str]) -> str:
    """Say what an export that failed has left open, what asks less of the exporter, and which formats work.

    Args:
        format: which failed.
        graph: of the model.
        dynamic: what was left open.

    Returns:
        Sentences for the end of a message.
    """
    # As tests/export/coverage.json has it; a test compares.
    works = [name for name in ("pt2" if _has_deformable(graph) else "onnx", "torchscript") if name != format]
    known = f"models of its kind are known to work as {' and '.join(works)}."
    if not dynamic:
        return f"Nothing was left open. Try another format: {known}"
    less = "--dynamic none" if len(dynamic) == 1 else "--dynamic batch or --dynamic none"
    size = " with --size HEIGHT WIDTH" if "size" in dynamic else ""
    return f"Left open: {' and '.join(dynamic)}. Try {less}{size}, which asks less, or another format: {known}"


def load_artifact(path: str | os.PathLike, description: Mapping[str, Any]) -> Run:
    """Make a function that runs an artifact in its own runtime.

    Args:
        path: the folder with the artifact.
        description: content of `model.json`.

    Returns:
        A function that takes inputs and returns the outputs by name, as tensors on the CPU.

    Raises:
        FileNotFoundError: the artifact, or a part of it, is missing.
        ValueError: the artifact is damaged, or of a format that this version does not know.
        ImportError: the runtime is not installed.
    """
    row, artifact = FORMATS.get(description["format"]), Path(path) / description["artifact"]
    if row is None:
        raise ValueError(f"{artifact} has the format {description['format']!r}; those known are {', '.join(FORMATS)}.")
    for file in (artifact, *([artifact.with_suffix(".bin")] if artifact.suffix == ".xml" else [])):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, and model.json beside it needs it: copy it too, or export anew."
            )
    try:
        return row.load(artifact, description["inputs"], description["outputs"])
    except ImportError:
        raise
    except Exception as error:  # whatever a runtime raises
        raise ValueError(
            f"{artifact} is damaged, or its runtime is of another version: copy it again, or export anew. "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and progress messages of exporters, whose result is checked by running it."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(_Nowhere()):
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


class _Nowhere:
    """A text stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


# ONNX


def _write_onnx(
    graph: Any, example: Inputs, dynamic: Sequence[str], path: Path, description: Mapping[str, Any]
) -> None:
    need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    if TORCH_VERSION < (2, 7):
        raise ValueError(
            f"ONNX files need PyTorch 2.7 or later, and this is {torch.__version__}: update PyTorch and torchvision, "
            "or take another format, such as pt2 or torchscript."
        )
    from onnx.inliner import inline_local_functions

    from detectron2.export.graphs.operators import onnx_translations

    with sdpa_kernel(SDPBackend.MATH):  # of fused attention the exporter makes a view that it cannot translate
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=_opset(graph),
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            dynamic_shapes=graph.dynamic_shapes(dynamic),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    assert program is not None
    _register_constants(program.model.graph)
    model = inline_local_functions(program.model_proto)
    _name_sizes(model.graph)
    save_onnx(model, path, description)


def _register_constants(graph: Any) -> None:
    """Give a graph of onnxscript the constants that its optimiser has made and forgotten.

    It makes one operator of the two limits of a clamp; where a value is clamped several times, all but the last lose
    their limits.
    """
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or value.is_graph_input():
                continue
            if value.name not in graph.initializers:
                graph.register_initializer(value)


def _name_sizes(graph: Any) -> None:
    """Call the sizes that vary batch, height and width, where the exporter has numbered them."""
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width")) if dims[i].dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _opset(graph: nn.Module) -> int:
    """Return the lowest version of the operators that has all of a model's; deformable convolution came with 19."""
    return 19 if _has_deformable(graph) else 18


def _has_deformable(graph: nn.Module) -> bool:
    from detectron2.layers import DeformConv, ModulatedDeformConv

    return any(isinstance(m, DeformConv | ModulatedDeformConv) for m in graph.modules())


def save_onnx(model: Any, path: Path, description: Mapping[str, Any]) -> None:
    """Write an ONNX model with its description inside; it must consist of standard operators."""
    import onnx

    foreign = sorted({f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise ValueError(
            f"The ONNX graph has operators that no runtime knows: {', '.join(foreign) or 'functions of its own'}. "
            "A part of the model has no translation; give it one with register_exportable."
        )
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", _version_of(model)))
    onnx.helper.set_model_props(model, {"detectron2": json.dumps(description)})
    onnx.save(model, str(path))


def _version_of(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=18)


def _load_onnx(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    need("onnxruntime", extra="onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _numpy_run(lambda feed: session.run(list(outputs), feed), inputs, outputs)


def _numpy_run(run: Callable[[dict[str, Any]], Any], inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    """Wrap a function of arrays by name as one of tensors."""

    def run_tensors(values: Inputs) -> Outputs:
        found = run({name: value.numpy() for name, value in zip(inputs, values, strict=True)})
        return {name: torch.from_numpy(np.array(v)) for name, v in zip(outputs, found, strict=True)}

    return run_tensors


# OpenVINO


def _write_openvino(
    graph: Any, example: Inputs, dynamic: Sequence[str], path: Path, description: Mapping[str, Any]
) -> None:
    if _has_deformable(graph):
        raise ValueError(_NO_DEFORM_CONV)
    need("openvino", extra="openvino")  # before an export that takes minutes
    source = path.with_suffix(".onnx")
    _write_onnx(graph, example, dynamic, source, description)
    try:
        convert_to_openvino(source, path, description)
    finally:
        source.unlink(missing_ok=True)


def convert_to_openvino(source: Path, path: Path, description: Mapping[str, Any], half: bool = False) -> None:
    """Convert an ONNX file; with `half` the weights are stored in 16 bits."""
    need("onnx", "openvino", extra="openvino")
    import onnx
    import openvino

    if any(node.op_type == "DeformConv" for node in onnx.load(str(source)).graph.node):
        raise ValueError(_NO_DEFORM_CONV)
    model = openvino.convert_model(str(source))
    model.set_rt_info(json.dumps(description), "detectron2")
    openvino.save_model(model, str(path), compress_to_fp16=half)


def _load_openvino(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    need("openvino", extra="openvino")
    import openvino

    # On CPUs with bfloat16 the default would round all activations.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feed: dict[str, Any]) -> list[Any]:
        results = compiled(feed)
        return [results[compiled.output(name)] for name in outputs]

    return _numpy_run(run, inputs, outputs)


# PyTorch


def _export(graph: Any, example: Inputs, dynamic: Sequence[str]) -> Any:
    # Not strict, which is the default from PyTorch 2.7 on: strict tracing does not follow all that graphs call.
    program = torch.export.export(graph, example, dynamic_shapes=graph.dynamic_shapes(dynamic), strict=False)
    # PyTorch 2.6 records questions about types, whose answers are in the graph already, and cannot load them.
    promote = torch.ops.aten.promote_types.default
    if unused := [node for node in program.graph.nodes if node.target is promote and not node.users]:
        for node in unused:
            program.graph.erase_node(node)
        program.graph_module.recompile()
    return program


def _write_pt2(graph: Any, example: Inputs, dynamic: Sequence[str], path: Path, description: Mapping[str, Any]) -> None:
    program = _export(graph, example, dynamic)
    file = io.BytesIO()  # PyTorch ends the process when it cannot write to a full disk
    torch.export.save(program, file, extra_files={"detectron2": json.dumps(description)})
    path.write_bytes(file.getbuffer())


def _load_pt2(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    module = torch.export.load(str(path)).module()
    return _torch_run(module, outputs)


def _torch_run(module: Any, outputs: Sequence[str]) -> Run:
    """Wrap a module that returns a tuple or list of tensors."""

    def run(values: Inputs) -> Outputs:
        with torch.no_grad():
            found = module(*values)
        found = [found] if isinstance(found, torch.Tensor) else found
        return dict(zip(outputs, found, strict=True))

    return run


def _write_aoti(
    graph: Any, example: Inputs, dynamic: Sequence[str], path: Path, description: Mapping[str, Any]
) -> None:
    if description["output_layout"] == "flat":
        raise ValueError(f"--format aoti has no flat outputs: {_PADDED_ONLY}.")
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(_export(graph, example, dynamic), package_path=str(path))


def _load_aoti(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    from torch._inductor import aoti_load_package

    return _torch_run(aoti_load_package(str(path)), outputs)


def _write_torchscript(
    graph: Any, example: Inputs, dynamic: Sequence[str], path: Path, description: Mapping[str, Any]
) -> None:
    traced = torch.jit.trace(graph, example, check_trace=False)
    file = io.BytesIO()  # as in _write_pt2
    torch.jit.save(traced, file, _extra_files={"detectron2": json.dumps(description)})
    path.write_bytes(file.getbuffer())


def _load_torchscript(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    import torchvision.ops  # registers the operators that the file calls

    assert torchvision.ops
    with _quiet():  # about the deprecation of scripts
        module = torch.jit.load(str(path))
    return _torch_run(module, outputs)


_BOTH = ("batch", "size")
FORMATS: Mapping[str, Format] = {
    "onnx": Format("model.onnx", "operator", _BOTH, ("fp32", "fp16", "int8"), _write_onnx, _load_onnx),
    "openvino": Format("model.xml", "operator", _BOTH, ("fp32", "fp16", "int8"), _write_openvino, _load_openvino),
    "pt2": Format("model.pt2", "torchvision", _BOTH, ("fp32",), _write_pt2, _load_pt2),
    "aoti": Format("model_aoti.pt2", "aten", (), ("fp32",), _write_aoti, _load_aoti),
    "torchscript": Format("model.ts", "torchvision", _BOTH, ("fp32",), _write_torchscript, _load_torchscript),
}
"""Formats by their name on the command line."""
