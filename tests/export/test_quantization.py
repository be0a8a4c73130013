"""Which parts of an ONNX model get smaller numbers, and which images calibrate them."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.export.quantization import (
    QUANTIZED_OPERATORS,
    _Reader,
    calibration_images,
    quantize_onnx,
    to_half_precision,
)

META = {"size": None, "dynamic": ["batch", "size"], "inputs": ["images", "image_sizes", "score_threshold"]}
META["score_threshold"] = 0.25


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / str(i) / "x.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_images_for_calibration(folder, mapper):
    images = calibration_images(str(folder), mapper, count=3)
    assert [int(i[0, 0, 0]) for i in images] == [0, 2, 4]  # evenly spread
    assert images[0].shape == (3, 48, 64) and images[0].dtype == torch.float32
    assert len(calibration_images(str(folder), mapper)) == 5
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="there are none in"):
        calibration_images(str(folder / "empty"), mapper)
    with pytest.raises(ValueError, match="neither a folder nor a registered data set"):
        calibration_images("no_such_data", mapper)


def test_feeds_of_calibration():
    assert _Reader([], META).get_next() is None
    reader = _Reader([torch.ones(3, 20, 40)], META)
    feed = reader.get_next()
    assert {k: v.shape for k, v in feed.items()} == {
        "images": (1, 3, 20, 40),
        "image_sizes": (1, 2),
        "score_threshold": (),
    }
    assert feed["score_threshold"] == np.float32(0.25) and reader.get_next() is None
    # Where the size is fixed, larger images are made to fit.
    feed = _Reader([torch.ones(3, 200, 100)], {**META, "size": [50, 60], "dynamic": []}).get_next()
    assert feed["images"].shape == (1, 3, 50, 60) and feed["image_sizes"].tolist() == [[50, 25]]


def network(tmp_path):
    """Two convolutions with a sum between them, and boxes that are scores times anchors."""
    from onnx import TensorProto, helper, numpy_helper, save

    def weight(name, *shape):
        return numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "shift"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["d", "anchors"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("x", "y")]
    weights = [weight("w1", 4, 3, 3, 3), weight("shift", 4, 1, 1), weight("w2", 3, 4, 3, 3), weight("anchors", 3, 1, 1)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    path = tmp_path / "full.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_half_precision_is_between_layers_with_weights(tmp_path):
    import onnx
    import onnxruntime
    from onnx import TensorProto

    source, target = network(tmp_path), tmp_path / "half.onnx"
    to_half_precision(source, target, {"precision": "fp16"})
    graph = onnx.load(str(target)).graph
    types = {w.name: w.data_type for w in graph.initializer}
    assert types == {
        **dict.fromkeys(("w1_half", "shift_half", "w2_half"), TensorProto.FLOAT16),
        "anchors": TensorProto.FLOAT,  # nothing with weights comes after
    }
    assert [n.op_type for n in graph.node] == ["Cast", "Conv", "Relu", "Add", "Conv", "Cast", "Mul", "Add"]
    x = {"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    (full,), (half,) = (onnxruntime.InferenceSession(str(p)).run(None, x) for p in (source, target))
    assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.02 * np.abs(full).max()


def test_what_is_quantized_has_weights():
    assert set(QUANTIZED_OPERATORS) == {"Conv", "Gemm", "ConvTranspose"}


def test_results_are_not_rounded_to_8_bits(tmp_path):
    import onnx
    import onnxruntime

    source, target = network(tmp_path), tmp_path / "small.onnx"
    images = [torch.rand(3, 8, 8) for _ in range(8)]
    reader_meta = {"size": None, "dynamic": ["batch", "size"], "inputs": ["x"]}

    class Feeds:
        def __init__(self):
            self.rest = iter(images)

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {"x": image[None].numpy()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.export.quantization._Reader", lambda images, description: Feeds())
        quantize_onnx(source, target, images, reader_meta)
    graph = onnx.load(str(target)).graph
    last = [n for n in graph.node if n.op_type == "Conv"][-1]
    readers = [n.op_type for n in graph.node if last.output[0] in n.input]
    assert readers == ["Mul"]  # before, it was QuantizeLinear
    first = next(n for n in graph.node if n.op_type == "Conv")
    assert first.input[0].endswith("DequantizeLinear_Output")  # layers still read 8 bits
    assert not {x for n in graph.node for x in n.input if x} - {
        *(y for n in graph.node for y in n.output),
        *(w.name for w in graph.initializer),
        "x",
    }
    x = {"x": images[0][None].numpy()}
    (full,), (small,) = (onnxruntime.InferenceSession(str(p)).run(None, x) for p in (source, target))
    assert 0 < np.abs(full - small).max() < 0.05 * np.abs(full).max()
