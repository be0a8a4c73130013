"""The table of formats, and what keeps a file with foreign operators from being written."""

import logging
import warnings

import pytest
import torch
from torch import nn

from detectron2.export.formats import (
    FORMATS,
    _name_sizes,
    _quiet,
    convert_to_openvino,
    load_artifact,
    need,
    other_ways,
    save_onnx,
    write_artifact,
)
from detectron2.layers import DeformConv
from detectron2.utils.env import TORCH_VERSION


def test_packages_that_are_there():
    need(extra="onnx")
    need("torch", "numpy", extra="onnx")
    with pytest.raises(ImportError, match=r'no_such_a and no_such_b are not installed: pip install "detectron2\[x\]"'):
        need("no_such_a", "torch", "no_such_b", extra="x")


def test_files_have_names_of_their_own():
    assert len({row.file_name for row in FORMATS.values()}) == len(FORMATS)
    assert all("fp32" in row.precisions for row in FORMATS.values())


def test_exporters_are_quiet_and_what_was_comes_back(capsys):
    loggers = logging.getLogger("torch.onnx")
    before = loggers.level
    with pytest.raises(KeyError), _quiet():
        warnings.warn("not shown", UserWarning)
        print("not shown")
        assert loggers.level == logging.ERROR
        raise KeyError
    assert loggers.level == before and capsys.readouterr().out == ""


def small_onnx(domain="", functions=()):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["s1", 3, "s2", "s3"]) for n in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pkg.onnxscript", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions)


def test_operators_that_no_runtime_knows_are_refused(tmp_path):
    import onnx

    with pytest.raises(ValueError, match=r"no runtime knows: my::Relu\..*register_exportable"):
        save_onnx(small_onnx("my"), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())
    save_onnx(small_onnx(), tmp_path / "x.onnx", {"layout": 1})
    model = onnx.load(str(tmp_path / "x.onnx"))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert [(p.key, p.value) for p in model.metadata_props] == [("detectron2", '{"layout": 1}')]


def test_openvino_refuses_deformable_convolution(tmp_path):
    """OpenVINO 2026.4 ends the process on a model that has it."""
    graph = nn.Sequential(DeformConv(3, 4, 3))
    with pytest.raises(ValueError, match=r"OpenVINO does not read the operator DeformConv .* such as pt2"):
        write_artifact("openvino", graph, (torch.zeros(1, 3, 8, 8),), (), tmp_path, {})
    assert not list(tmp_path.iterdir())
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    model = small_onnx()
    model.graph.node[0].op_type = "DeformConv"
    onnx.save(model, str(tmp_path / "x.onnx"))
    with pytest.raises(ValueError, match="DeformConv"):
        convert_to_openvino(tmp_path / "x.onnx", tmp_path / "x.xml", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_sizes_get_their_names():
    graph = small_onnx().graph
    graph.output[0].type.tensor_type.shape.dim[2].dim_param = "s2 + s22"
    _name_sizes(graph)
    names = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert names == [["batch", 3, "height", "width"], ["batch", 3, "height + s22", "width"]]


class ClampedThreeTimes(torch.nn.Module):
    """What `write_artifact` has to know of a graph, and one value that is clamped again and again."""

    input_names, output_names = ("images", "image_sizes"), ("a", "b", "c")

    def forward(self, images, sizes):
        return tuple(images * k + images.mean().clamp(0, 1) for k in (1, 2, 3))

    def dynamic_shapes(self, dynamic):
        return ({}, {})


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="ONNX files need PyTorch 2.7")
def test_constants_that_the_exporter_forgets(tmp_path):
    inputs = torch.rand(1, 3, 4, 5), torch.tensor([[4, 5]])
    graph = ClampedThreeTimes().eval()
    write_artifact("onnx", graph, inputs, (), tmp_path, {"layout": 1})
    meta = {"format": "onnx", "artifact": "model.onnx", "inputs": ["images", "image_sizes"], "outputs": ["a", "b", "c"]}
    found = load_artifact(tmp_path, meta)(inputs)
    for name, wanted in zip("abc", graph(*inputs), strict=True):
        assert torch.allclose(found[name], wanted)


class AsksForAValue(ClampedThreeTimes):
    def forward(self, images, sizes):
        return (images if images.sum() > 0 else -images,) * 3


def test_what_an_exporter_cannot_do_is_said_with_a_cure(tmp_path):
    inputs = torch.rand(1, 3, 4, 5), torch.tensor([[4, 5]])
    cures = {
        (): "Nothing was left open. Try another format: models of its kind are known to work as onnx and torchscript.",
        ("batch",): "Left open: batch. Try --dynamic none, which asks less, or another format: ",
        ("size",): "Left open: size. Try --dynamic none with --size HEIGHT WIDTH, which asks less, or another format: ",
        ("batch", "size"): "batch and size. Try --dynamic batch or --dynamic none with --size HEIGHT WIDTH, which asks",
    }
    for dynamic, cure in cures.items():
        with pytest.raises(ValueError, match=rf"(?s)PyTorch cannot write this model as pt2 \(.*\)\. .*{cure}"):
            write_artifact("pt2", AsksForAValue().eval(), inputs, dynamic, tmp_path, {"output_layout": "padded"})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="ONNX files need PyTorch 2.7")
def test_the_cause_is_said_and_not_the_step(tmp_path):
    inputs = torch.rand(1, 3, 4, 5), torch.tensor([[4, 5]])
    with pytest.raises(ValueError, match=r"as onnx \(GuardOnDataDependent[^\x1b]*\)\. ") as found:
        write_artifact("onnx", AsksForAValue().eval(), inputs, (), tmp_path, {"layout": 1})
    assert "step 1" not in str(found.value)


def test_artifacts_that_are_missing_or_damaged(tmp_path):
    meta = {"format": "torchscript", "artifact": "model.ts", "inputs": [], "outputs": []}
    with pytest.raises(FileNotFoundError, match=r"model\.ts is missing, and model.json beside it needs it"):
        load_artifact(tmp_path, meta)
    (tmp_path / "model.ts").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model\.ts is damaged, or its runtime is of another version: copy it again"):
        load_artifact(tmp_path, meta)
    with pytest.raises(ValueError, match="has the format 'caffe2'; those known are onnx, openvino"):
        load_artifact(tmp_path, {**meta, "format": "caffe2"})
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(FileNotFoundError, match=r"model\.bin is missing"):
        load_artifact(tmp_path, {**meta, "format": "openvino", "artifact": "model.xml"})


def test_other_ways_do_not_name_what_failed():
    plain, deformable = nn.Identity(), nn.Sequential(DeformConv(3, 4, 3))
    assert other_ways("torchscript", plain, ()).endswith("work as onnx.")
    assert other_ways("onnx", plain, ()).endswith("work as torchscript.")
    assert other_ways("onnx", deformable, ()).endswith("work as pt2 and torchscript.")


def test_questions_about_types_are_not_written(tmp_path):
    class Graph(torch.nn.Module):
        def forward(self, x):
            return x.to(torch.promote_types(x.dtype, torch.float32)) + 1

        def dynamic_shapes(self, dynamic):
            return ({},)

    path = tmp_path / "model.pt2"
    FORMATS["pt2"].write(Graph(), (torch.zeros(2),), (), path, {})
    program = torch.export.load(str(path))
    assert not [node for node in program.graph.nodes if "promote" in str(node.target)]
    assert program.module()(torch.ones(2)).tolist() == [2, 2]


def test_a_pytorch_that_cannot_write_onnx_is_named(monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("detectron2.export.formats.TORCH_VERSION", (2, 6))
    with pytest.raises(ValueError, match=r"ONNX files need PyTorch 2\.7.*pt2"):
        write_artifact("onnx", torch.nn.Identity(), (), (), tmp_path, {})
