"""The published names of export, on small models."""

from xml.etree import ElementTree

import pytest
import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.export import (
    Caffe2Model,
    Caffe2Tracer,
    add_export_config,
    dump_torchscript_IR,
    scripting_with_instances,
)
from detectron2.structures import Boxes
from tests.export.test_tracing import picture, tiny_model

SIZES = [(96, 128), (64, 64), (120, 75)]
FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": torch.Tensor,
    "pred_boxes": Boxes,
    "scores": torch.Tensor,
    "pred_classes": torch.Tensor,
    "pred_masks": torch.Tensor,
    "pred_keypoints": torch.Tensor,
    "pred_keypoint_heatmaps": torch.Tensor,
}


@pytest.fixture(scope="module")
def mask_model():
    return tiny_model("mask")


def config(**options):
    cfg = add_export_config(get_cfg())
    for name, value in options.items():
        cfg.EXPORT_CAFFE2[name] = value
    return cfg


def same_fields(got, want, names):
    for name in names:
        value = want.get(name)
        value = value.tensor if isinstance(value, Boxes) else value
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-3)


def check_scripted(model, scripted, names):
    batches = [
        [picture(*SIZES[0], contrast=0.0)],
        [picture(*SIZES[2], seed=3)],
        [picture(*size, seed=i + 4) for i, size in enumerate(SIZES)],
    ]
    counts = []
    for images in batches:
        inputs = [{"image": image} for image in images]
        with torch.no_grad():
            want = model.inference(inputs, do_postprocess=False)
            got = scripted.inference(inputs, do_postprocess=False)
        assert len(got) == len(images)
        for g, w, image in zip(got, want, images, strict=True):
            w = w["instances"] if isinstance(w, dict) else w
            same_fields(g, w, names)
            assert g["image_size"].tolist() == list(image.shape[1:])
            counts.append(len(w))
    assert 0 in counts and max(counts) > 1, counts


@pytest.mark.filterwarnings("ignore")
def test_scripted_mask_rcnn(mask_model, tmp_path):
    scripted = scripting_with_instances(mask_model, FIELDS)
    assert isinstance(scripted, torch.jit.ScriptModule)
    path = str(tmp_path / "model.ts")
    scripted.save(path)
    scripted = torch.jit.load(path)
    names = ["pred_boxes", "scores", "pred_classes", "pred_masks"]
    check_scripted(mask_model, scripted, names)
    inputs = [{"image": picture(64, 64)}]
    assert scripted(inputs)[0].keys() == {*names, "image_size"}
    with pytest.raises(torch.jit.Error, match="does not post-process"):
        scripted.inference(inputs, do_postprocess=True)
    with pytest.raises(torch.jit.Error, match="batch is empty"):
        scripted([])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scripted_keypoint_rcnn():
    model = tiny_model("keypoint")
    scripted = scripting_with_instances(model, FIELDS)
    check_scripted(model, scripted, ["pred_boxes", "scores", "pred_keypoints", "pred_keypoint_heatmaps"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "add it to fields: 'pred_boxes': Boxes"),
        ({"pred_boxes": torch.Tensor}, "'pred_boxes' .* is a Boxes"),
        ({**FIELDS, "scores": Boxes}, "'scores' .* is a Tensor"),
    ],
)
def test_fields_must_describe_the_results(mask_model, fields, message):
    with pytest.raises(ValueError, match=message):
        scripting_with_instances(mask_model, fields)


def test_only_detectors_in_evaluation_mode_are_scripted(mask_model):
    with pytest.raises(ValueError, match=r"format='torchscript'"):
        scripting_with_instances(tiny_model("semantic"), FIELDS)
    mask_model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            scripting_with_instances(mask_model, FIELDS)
    finally:
        mask_model.eval()


class Doubles(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) * 2


@pytest.mark.filterwarnings("ignore")
def test_dumped_programs(tmp_path):
    dump_torchscript_IR(torch.jit.trace(Doubles(), torch.zeros(1, 2)), str(tmp_path / "module"))
    texts = {path.name: path.read_text() for path in (tmp_path / "module").iterdir()}
    assert texts.keys() == {"model_ts_code.txt", "model_ts_IR.txt", "model_ts_IR_inlined.txt", "model.txt"}
    assert "torch.mul" in texts["model_ts_code.txt"] and "torch.linear" in texts["model_ts_code.txt"]
    assert "layer: Linear" in texts["model_ts_code.txt"]
    assert "prim::CallMethod" in texts["model_ts_IR.txt"]
    assert "aten::linear" in texts["model_ts_IR_inlined.txt"]
    assert "prim::CallMethod" not in texts["model_ts_IR_inlined.txt"]
    assert "(layer): Linear" in texts["model.txt"]

    dump_torchscript_IR(torch.jit.trace(lambda x: x * 3, torch.zeros(1)), tmp_path / "function")
    assert "aten::mul" in (tmp_path / "function" / "model_ts_IR_inlined.txt").read_text()
    with pytest.raises(TypeError, match=r"torch\.jit\.trace"):
        dump_torchscript_IR(Doubles(), tmp_path / "eager")
    assert not (tmp_path / "eager").exists()


def test_export_config():
    cfg = get_cfg()
    cfg.freeze()
    assert add_export_config(cfg) is cfg
    assert cfg.is_frozen()
    assert isinstance(cfg.EXPORT_CAFFE2, CfgNode)
    assert cfg.EXPORT_CAFFE2.USE_HEATMAP_MAX_KEYPOINT is False


def test_what_the_tracer_refuses(mask_model):
    image = {"image": picture(64, 64)}
    with pytest.raises(ValueError, match="add_export_config"):
        Caffe2Tracer(get_cfg(), mask_model, [image])
    with pytest.raises(ValueError, match="one image; got 2"):
        Caffe2Tracer(config(), mask_model, [image, image])
    with pytest.raises(ValueError, match="heatmaps_to_keypoints"):
        Caffe2Tracer(config(USE_HEATMAP_MAX_KEYPOINT=True), mask_model, [image])
    with pytest.raises(NotImplementedError, match=r"export_onnx\(\)"):
        Caffe2Tracer(config(), mask_model, [image]).export_caffe2()


@pytest.mark.filterwarnings("ignore")
def test_raw_outputs_as_torchscript(mask_model):
    traced = Caffe2Tracer(config(), mask_model, [{"image": picture(64, 96)}]).export_torchscript()
    counts = []
    for size, contrast in ((SIZES[0], 1.0), (SIZES[1], 0.5), (SIZES[2], 0.0)):
        image = picture(*size, contrast=contrast, seed=7)
        height, width = (-(-side // 32) * 32 for side in size)
        padded = torch.full((1, 3, height, width), 200.0)  # what is outside of the image does not matter
        padded[0, :, : size[0], : size[1]] = image
        boxes, scores, classes, masks = traced(padded, torch.tensor([[*map(float, size), 1.0]]))
        with torch.no_grad():
            want = mask_model.inference([{"image": image}], do_postprocess=False)[0]
        got = {"pred_boxes": boxes, "scores": scores, "pred_classes": classes, "pred_masks": masks[:, None]}
        same_fields(got, want, got)
        counts.append(len(want))
    assert 0 in counts and max(counts) > 1


def test_missing_packages_are_named(mask_model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracer = Caffe2Tracer(config(), mask_model, [{"image": picture(64, 64)}])
    with pytest.raises(ImportError, match=r'pip install "detectron2\[onnx\]"'):
        tracer.export_onnx()
    with pytest.raises(ImportError, match=r'pip install "detectron2\[onnx\]"'):
        Caffe2Model(None)


@pytest.fixture(scope="module")
def onnx_model(mask_model):
    pytest.importorskip("onnxruntime")
    return Caffe2Tracer(config(), mask_model, [{"image": picture(64, 96)}]).export_onnx()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_and_its_wrapper(mask_model, onnx_model, tmp_path):
    assert [value.name for value in onnx_model.graph.input] == ["data", "im_info"]
    assert [value.name for value in onnx_model.graph.output] == ["boxes", "scores", "classes", "masks"]
    Caffe2Model(onnx_model).save_protobuf(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pb", "model_init.pb", "model.pbtxt"}
    assert "NonMaxSuppression" in (tmp_path / "model.pbtxt").read_text()
    Caffe2Model(onnx_model).save_protobuf(tmp_path)  # a second time
    loaded = Caffe2Model.load_protobuf(str(tmp_path))
    assert sum(1 for _ in loaded.init_net) == len(onnx_model.graph.initializer)
    sizes = {"height": 50, "width": 70}
    inputs = [{"image": picture(*size, seed=i), **sizes} for i, size in enumerate(SIZES)]
    inputs.append({"image": picture(64, 64, contrast=0.0)})
    assert loaded([]) == []
    got = loaded(inputs)
    for g, item in zip(got, inputs, strict=True):
        with torch.no_grad():
            want = mask_model([item])[0]["instances"]
        found = g["instances"]
        assert found.image_size == want.image_size
        torch.testing.assert_close(found.pred_boxes.tensor, want.pred_boxes.tensor, rtol=0, atol=1e-2)
        assert found.pred_classes.equal(want.pred_classes)
        assert (found.pred_masks != want.pred_masks).sum() <= 1e-4 * want.pred_masks.numel()
    assert len(got[0]["instances"]) > 1 and len(got[-1]["instances"]) == 0


@pytest.mark.slow
def test_drawn_graph(onnx_model, tmp_path):
    model = Caffe2Model(onnx_model)
    model.save_graph(tmp_path / "graph.svg")
    model.save_graph(tmp_path / "shapes.svg", [{"image": torch.zeros(3, 64, 96)}])
    plain, shapes = ((tmp_path / name).read_text() for name in ("graph.svg", "shapes.svg"))
    rows = ElementTree.fromstring(plain)
    assert len(rows) == len(onnx_model.graph.node) + len(onnx_model.graph.input) + len(onnx_model.graph.output)
    assert "[1, 3, 64, 96]" in shapes and "[1, 3, 64, 96]" not in plain


def test_other_files_are_not_loaded(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(FileNotFoundError, match="save_protobuf"):
        Caffe2Model.load_protobuf(str(tmp_path))
    for content in (b"", b"\n\x05model\x1a\x03abc"):
        (tmp_path / "model.pb").write_bytes(content)
        with pytest.raises(ValueError, match="export the checkpoint again"):
            Caffe2Model.load_protobuf(str(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_panoptic_model_in_onnx():
    pytest.importorskip("onnxruntime")
    model = tiny_model("panoptic")
    exported = Caffe2Model(Caffe2Tracer(config(), model, [{"image": picture(64, 96)}]).export_onnx())
    counts = []
    for size, contrast in ((SIZES[0], 1.0), (SIZES[2], 0.5), (SIZES[1], 0.0)):
        item = {"image": picture(*size, contrast=contrast, seed=2), "height": size[0], "width": size[1]}
        with torch.no_grad():
            want = model([item])[0]
        got = exported([item])[0]
        assert got.keys() == want.keys()
        torch.testing.assert_close(got["sem_seg"], want["sem_seg"], rtol=0, atol=1e-3)
        assert (got["panoptic_seg"][0] != want["panoptic_seg"][0]).sum() <= 2  # a pixel between two classes
        keys = ("id", "isthing", "category_id", "instance_id")
        for g, w in zip(got["panoptic_seg"][1], want["panoptic_seg"][1], strict=True):
            assert [g.get(key) for key in keys] == [w.get(key) for key in keys]
        counts.append(len(got["panoptic_seg"][1]))
    assert max(counts) > 1, counts
