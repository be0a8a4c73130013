"""Count the operations of exported files. One multiply-add counts as one, as in `detectron2.utils.analysis`."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .formats import need

__all__ = ["count_exported_operations"]

Shape = Sequence[int]


def count_exported_operations(path: str | os.PathLike, size_hw: tuple[int, int]) -> "Counter[str]":
    """Count the products that an exported model computes for one image.

    The file is run once, on an image without content; padded outputs do not depend on it, and with flat ones mask heads
    work on the detections that there are.

    Args:
        path: a file `.onnx` or `.pt2` that `export_model` wrote, or `.onnx` of `Caffe2Tracer`.
        size_hw: height and width of the image in pixels.

    Returns:
        Operator to number of multiply-adds. In ONNX files convolutions and matrix products count; in `.pt2` files what
        `FlopCountAnalysis` counts.

    Raises:
        ValueError: the file is of another kind, has an unknown input, or is for another size.

    Example::

        count_exported_operations("exported/model.onnx", (800, 1216)).total()
    """
    kind = Path(path).suffix
    if kind == ".onnx":
        return _count_onnx(os.fspath(path), size_hw)
    if kind == ".pt2":
        return _count_pt2(os.fspath(path), size_hw)
    raise ValueError(
        f"Operations are counted in files .onnx and .pt2, not in {path}; export the model in one of these formats too, "
        "the operations are the same."
    )


def _input(name: str, size_hw: tuple[int, int]) -> torch.Tensor:
    """The input of this name for one image without content."""
    height, width = size_hw
    known = {
        "images": torch.zeros(1, 3, height, width),
        "data": torch.zeros(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
        "im_info": torch.tensor([[float(height), float(width), 1.0]]),
        "score_threshold": torch.tensor(0.05),
    }
    if name not in known:
        raise ValueError(f"The exported model has an input {name!r}; known are {', '.join(known)}.")
    return known[name]


def _count_pt2(path: str, size_hw: tuple[int, int]) -> "Counter[str]":
    import detectron2.export.graphs  # its operators may be in the file
    from detectron2.utils.analysis import FlopCountAnalysis

    assert detectron2.export.graphs
    program = torch.export.load(path)
    inputs = tuple(_input(name, size_hw) for name in program.graph_signature.user_inputs if isinstance(name, str))
    counts = FlopCountAnalysis(program.module(), inputs).unsupported_ops_warnings(False)
    return counts.uncalled_modules_warnings(False).by_operator()


def _convolution(inputs: Sequence[Shape], output: Shape, is_transposed: bool = False) -> int:
    return inputs[0][0] * math.prod(inputs[1]) * math.prod((inputs[0] if is_transposed else output)[2:])


def _matrix_product(inputs: Sequence[Shape], output: Shape) -> int:
    return inputs[0][-1] * math.prod(output)


_COUNTED: dict[str, Callable[[Any, Sequence[Shape], Shape], int]] = {
    "Conv": lambda node, inputs, output: _convolution(inputs, output),
    "ConvTranspose": lambda node, inputs, output: _convolution(inputs, output, is_transposed=True),
    "DeformConv": lambda node, inputs, output: _convolution(inputs, output),
    "MatMul": lambda node, inputs, output: _matrix_product(inputs, output),
    "Gemm": lambda node, inputs, output: math.prod(inputs[0]) * output[1],
}


def _count_onnx(path: str, size_hw: tuple[int, int]) -> "Counter[str]":
    need("onnx", "onnxruntime", extra="onnx")
    import onnx
    import onnxruntime

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        raise ValueError(f"{path} has control flow, whose operations depend on values; they are not counted.")
    _check_size(model, path, size_hw)
    # Only shapes leave the graph, not the maps themselves.
    wanted = dict.fromkeys(name for node in nodes for name in (*node.input[:2], node.output[0]))
    for i, name in enumerate(wanted):
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape_{i}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"shape_{i}", onnx.TensorProto.INT64, [None]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps these tensors
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: _input(value.name, size_hw).numpy() for value in session.get_inputs()}
    found = session.run([f"shape_{i}" for i in range(len(wanted))], feed)
    shapes = dict(zip(wanted, (np.asarray(shape).tolist() for shape in found), strict=True))
    counts: Counter[str] = Counter()
    for node in nodes:
        counts[node.op_type] += _COUNTED[node.op_type](
            node, [shapes[x] for x in node.input[:2]], shapes[node.output[0]]
        )
    return counts


def _check_size(model: Any, path: str, size_hw: tuple[int, int]) -> None:
    """Refuse a size that the file does not take."""
    images = next((value for value in model.graph.input if value.name in ("images", "data")), None)
    fixed = [] if images is None else [d.dim_value for d in images.type.tensor_type.shape.dim[2:]]
    if any(fixed_size not in (0, size) for fixed_size, size in zip(fixed, size_hw, strict=False)):
        raise ValueError(f"{path} is for images of {fixed[0]} x {fixed[1]} pixels (height x width), got {size_hw}.")
