"""Smaller numbers: ONNX models with 8 bit weights and activations, or with 16 bit ones.

Only what the network computes with its weights gets smaller numbers. Anchors, boxes, non-maximum suppression and the
pooling of regions stay in 32 bits: a coordinate of 1333 pixels has steps of a whole pixel in half precision.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectron2.data import DatasetCatalog
from detectron2.export.artifact import batch_of, shrunk
from detectron2.export.formats import need, save_onnx

__all__ = ["QUANTIZED_OPERATORS", "calibration_images", "quantize_onnx", "to_half_precision"]

QUANTIZED_OPERATORS = ("Conv", "Gemm", "ConvTranspose")
"""ONNX operators that get 8 bits."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What stands between layers with weights, and is as good in half precision. Sums over many values are not among them.
_BETWEEN = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Neg", "Identity"),
        *("Add", "Sub", "Mul", "Div", "MatMul", "MaxPool", "AveragePool", "Resize", "Concat", "Pad"),
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand"),
    }
)
_LARGEST_HALF = 65504.0


def calibration_images(source: str, mapper: Any, count: int = 64) -> list[torch.Tensor]:
    """Read images as a model gets them.

    Args:
        source: the name of a registered data set, or a folder, which is searched with those in it.
        mapper: turns `{"file_name": path}` into the input of the model.
        count: how many, evenly spread.

    Returns:
        `Tensor[3, h, w]` each.

    Raises:
        ValueError: there is no such data set or folder, or it has no images.
    """
    if os.path.isdir(source):
        records = [{"file_name": str(p)} for p in sorted(Path(source).rglob("*")) if p.suffix.lower() in _SUFFIXES]
    elif source in DatasetCatalog:
        records = [{"file_name": r["file_name"]} for r in DatasetCatalog.get(source)]
    else:
        known = ", ".join(sorted(DatasetCatalog)[:8])
        raise ValueError(
            f"Calibration needs images: {source!r} is neither a folder nor a registered data set ({known}, ...). "
            "Register yours with --coco NAME JSON IMAGES."
        )
    if not records:
        raise ValueError(f"Calibration needs images, and there are none in {source}.")
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    return [mapper(records[i])["image"].float() for i in chosen]


class _Reader:
    """Gives onnxruntime one image after another."""

    def __init__(self, images: Iterable[torch.Tensor], description: Mapping[str, Any]):
        self._feeds = self._feeds_of(images, description)

    def _feeds_of(self, images: Iterable[torch.Tensor], meta: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        size = meta["size"] if "size" not in meta["dynamic"] else None
        for image in images:
            batch, sizes = batch_of([image if size is None else shrunk(image, size)], size)
            feed = {"images": batch.numpy(), "image_sizes": sizes.numpy()}
            if "score_threshold" in meta["inputs"]:
                feed["score_threshold"] = np.array(meta["score_threshold"], np.float32)
            yield feed

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the inputs of the next image, None after the last."""
        return next(self._feeds, None)


def quantize_onnx(source: Path, target: Path, images: Sequence[torch.Tensor], description: Mapping[str, Any]) -> None:
    """Quantise an ONNX model to 8 bits, with ranges of activations as they are on some images.

    Weights get a scale for each output channel. The file has pairs of QuantizeLinear and DequantizeLinear, which
    onnxruntime, OpenVINO and TensorRT turn into integer arithmetic.

    Args:
        source: an ONNX file in 32 bits.
        target: the file to write.
        images: N times `Tensor[3, h, w]`, see `calibration_images`.
        description: content of `model.json` of the new file.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    need("onnx", "onnxruntime", extra="onnx")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    previous = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises a preparation that brings operators no other runtime knows
    try:
        quantize_static(
            str(source),
            str(target),
            _Reader(images, description),  # pyright: ignore[reportArgumentType]  # it has the method that is called
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
        )
    finally:
        logging.root.setLevel(previous)
    model = onnx.load(str(target))
    _keep_results_exact(model.graph)
    save_onnx(model, target, description)


def _keep_results_exact(graph: Any) -> None:
    """Take the rounding to 8 bits from scores and box deltas, which no layer with weights reads.

    They would have 256 different values; and OpenVINO cannot pad such scores with minus infinity.
    """
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    feeds_layer: set[str] = set()  # values that reach a layer through nothing but what may stand between layers
    for node in reversed(graph.node):
        if node.op_type in _WITH_WEIGHTS or (
            node.op_type in _BETWEEN | {"QuantizeLinear", "DequantizeLinear"}
            and any(name in feeds_layer for name in node.output)
        ):
            feeds_layer.update(node.input)
    producer = {name: node for node in graph.node for name in node.output}
    outputs = {v.name for v in graph.output}
    gone: set[int] = set()
    for node in graph.node:
        rounding = producer.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounding is None or rounding.op_type != "QuantizeLinear" or node.output[0] in feeds_layer | outputs:
            continue
        for reader in consumers[node.output[0]]:
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = rounding.input[0]
        gone.add(id(node))
        if consumers[rounding.output[0]] == [node]:
            gone.add(id(rounding))
    kept = [node for node in graph.node if id(node) not in gone]
    del graph.node[:]
    graph.node.extend(kept)


def to_half_precision(source: Path, target: Path, description: Mapping[str, Any]) -> None:
    """Give an ONNX model weights and activations of 16 bits where it computes with weights.

    In half precision are convolutions and matrix products, and what lies between two of them. Inputs and outputs, sums
    for normalisation and softmax, and all arithmetic of boxes stay in 32 bits.

    Args:
        source: an ONNX file in 32 bits.
        target: the file to write.
        description: content of `model.json` of the new file.

    Raises:
        ImportError: onnx is not installed.
    """
    need("onnx", extra="onnx")
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    _HalfPrecision(model.graph).rewrite()
    del model.graph.value_info[:]  # the types there are of before
    onnx.checker.check_model(model)
    save_onnx(model, target, description)


class _HalfPrecision:
    """Rewrites an ONNX graph in place."""

    def __init__(self, graph: Any):
        import onnx

        self._onnx = onnx
        self._graph = graph
        self._weights = {w.name: w for w in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        float32 = onnx.TensorProto.FLOAT
        typed = [*graph.value_info, *graph.input, *graph.output]
        self._floats = {v.name for v in typed if v.type.tensor_type.elem_type == float32}
        self._floats |= {name for name, w in self._weights.items() if w.data_type == float32}
        for node in graph.node:  # constants have no type of their own
            if node.op_type == "Constant" and any(
                a.t.data_type == float32 for a in node.attribute if a.name == "value"
            ):
                self._floats.update(node.output)

    def rewrite(self) -> None:
        """Do it."""
        chosen = self._choose()
        outputs = {v.name for v in self._graph.output}
        nodes, made = [], {}
        for node in self._graph.node:
            if id(node) not in chosen:
                nodes.append(node)
                continue
            for i, name in enumerate(node.input):
                if name not in self._floats or (node.op_type == "Resize" and i > 0):
                    continue
                if name not in made:
                    made[name] = self._half_of(name, nodes)
                node.input[i] = made[name]
            nodes.append(node)
            for i, name in enumerate(node.output):
                made[name] = node.output[i] = f"{name}_half"
                is_needed = name in outputs or any(id(c) not in chosen for c in self._consumers.get(name, ()))
                if is_needed:
                    cast = self._onnx.helper.make_node("Cast", [made[name]], [name], f"{name}_float", to=1)
                    nodes.append(cast)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in self._graph.node for name in node.input} | outputs
        kept = [w for w in self._graph.initializer if w.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _choose(self) -> set[int]:
        """Return the nodes in half precision: layers with weights, and what is fed by and feeds nothing else."""
        after: set[int] = set()  # fed by layers with weights and by constants only
        for node in self._graph.node:
            if self._has_weights(node) or (node.op_type in _BETWEEN and self._is_fed_by(node, after)):
                after.add(id(node))
        chosen: set[int] = set()
        for node in reversed(self._graph.node):
            readers = [c for name in node.output for c in self._consumers.get(name, ())]
            if self._has_weights(node) or (id(node) in after and any(id(c) in chosen for c in readers)):
                chosen.add(id(node))
        return chosen

    def _has_weights(self, node: Any) -> bool:
        return node.op_type in _WITH_WEIGHTS and len(node.input) > 1 and self._is_constant(node.input[1])

    def _is_fed_by(self, node: Any, nodes: set[int]) -> bool:
        values = [name for name in node.input if name in self._floats and not self._is_constant(name)]
        if node.op_type == "Resize":
            values = values[:1]
        return bool(values) and all(name in self._producer and id(self._producer[name]) in nodes for name in values)

    def _is_constant(self, name: str) -> bool:
        return name in self._weights or (name in self._producer and self._producer[name].op_type == "Constant")

    def _half_of(self, name: str, nodes: list[Any]) -> str:
        """Return the name of a value in half precision; a weight is converted, for anything else a node is added."""
        new = f"{name}_half"
        if name in self._weights:
            values = self._onnx.numpy_helper.to_array(self._weights[name])
            half = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
            self._graph.initializer.append(self._onnx.numpy_helper.from_array(half, new))
        else:
            nodes.append(self._onnx.helper.make_node("Cast", [name], [new], f"{name}_to_half", to=10))
        return new
