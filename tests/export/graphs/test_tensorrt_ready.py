"""Padded graphs have nothing that TensorRT refuses, as far as a file can tell."""

import pytest

from tests.export.graphs.exported import ONE_SIZE, exported
from tests.export.graphs.test_coverage import PARAMETERS

# Operators with results of unknown length, and control flow.
REFUSED = {"NonZero", "If", "Loop", "Scan", "Unique", "Compress", "SequenceAt", "SequenceConstruct", "StringSplit"}
LARGEST_K = 3840
LARGEST_SET = 5000


def constants(proto):
    """All constant tensors of a graph as arrays, by name."""
    from onnx import numpy_helper

    found = {x.name: numpy_helper.to_array(x) for x in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def problems(proto):
    """What stands in the way, one line each."""
    from onnx import TensorProto

    known, found = constants(proto), []
    shapes = {
        x.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in x.type.tensor_type.shape.dim]
        for x in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    }
    if any(x.domain not in ("", "ai.onnx") for x in proto.opset_import) or proto.functions:
        found.append("operators outside of the standard")
    for node in proto.graph.node:
        if node.op_type in REFUSED:
            found.append(f"{node.op_type} {node.name}")
        if node.op_type == "TopK":
            k = known.get(node.input[1])
            if k is None or int(k.reshape(-1)[0]) > LARGEST_K:
                found.append(f"TopK {node.name} with k {k}")
        if node.op_type == "NonMaxSuppression":
            size = shapes[node.input[0]][1]
            if not isinstance(size, int) or not 0 < size <= LARGEST_SET:
                found.append(f"NonMaxSuppression {node.name} of {size} boxes")
    for x in proto.graph.value_info:
        if x.type.tensor_type.elem_type in (TensorProto.DOUBLE, TensorProto.STRING):
            found.append(f"{x.name} is of type {x.type.tensor_type.elem_type}")
    for name, x in known.items():
        # The ends of the range are ends of slices, which are cut to what there is.
        if x.dtype == "int64" and any(2**31 <= abs(v) < 2**63 - 1 for v in x.reshape(-1).tolist()):
            found.append(f"{name} does not fit into 32 bits")
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_nothing_that_tensorrt_refuses(onnx_installed, name):
    proto = exported(name).proto
    assert problems(proto) == []
    symbols = {d.dim_param for x in proto.graph.input for d in x.type.tensor_type.shape.dim if d.dim_param}
    assert symbols == ({"batch"} if name in ONE_SIZE else {"batch", "height", "width"})


def test_problems_are_found(onnx_installed):
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("NonZero", ["x"], ["i"], "a"),
        helper.make_node("TopK", ["x", "k"], ["v", "j"], "b"),
        helper.make_node("TopK", ["x", "large"], ["v2", "j2"], "c"),
        helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], "d"),
        helper.make_node("Mine", ["x"], ["y"], "e", domain="mine"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 5001, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 5001]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor("large", TensorProto.INT64, [1], [4000]),
            helper.make_tensor("far", TensorProto.INT64, [1], [2**40]),
        ],
        value_info=[helper.make_tensor_value_info("v", TensorProto.DOUBLE, ["n"])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    found = problems(helper.make_model(graph, opset_imports=opsets))
    assert len(found) == 7, found
