"""Exports from end to end: what is written, that it is checked, and that nothing is left of a wrong one."""

import copy
import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.export import ExportedModel, export_model
from detectron2.export import formats as formats_module
from detectron2.export.api import Measurement, _check_loss
from detectron2.export.formats import FORMATS
from detectron2.export.graphs import operators, selection
from detectron2.export.verify import VerificationError
from detectron2.utils.env import TORCH_VERSION
from tests.export.graphs.models import MODELS, model_of
from tests.export.test_tracing import tiny_model

needs_onnx = pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="ONNX files need PyTorch 2.7")

SIZE = (48, 64)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "format",
    [
        pytest.param("onnx", marks=needs_onnx),
        "pt2",
        "torchscript",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("openvino", "aoti")),
    ],
)
def test_every_format(segmenter, mapper, picture, tmp_path, format):
    folder = tmp_path / "exported"
    report = export_model(segmenter, folder, format, mapper=mapper, size=SIZE)
    files = {"onnx": ["model.onnx"], "openvino": ["model.bin", "model.xml"]}.get(format, [FORMATS[format].file_name])
    assert sorted(p.name for p in folder.iterdir()) == sorted([*files, "model.json", "predict.py"])
    assert not [c.faults for c in report.comparisons if c.faults]
    cases = {c.case for c in report.comparisons}
    assert {"sample", "another size", "blank image"} <= cases
    assert ("three images" in cases) == (format != "aoti") and ("predict.py" in cases) == (
        format in ("onnx", "openvino")
    )
    description = json.loads((folder / "model.json").read_text())
    assert description == report.description and description["format"] == format
    # In the place of the model, of images of any size.
    sample = {**mapper({"file_name": str(picture)}), "height": 72, "width": 96}
    exported = ExportedModel(folder)([sample])[0]["sem_seg"]
    assert exported.shape == (4, 72, 96) and (exported.sum(dim=0) == 1).all()
    with torch.no_grad():
        wanted = segmenter([sample])[0]["sem_seg"].argmax(dim=0)
    assert (exported.argmax(dim=0) != wanted).float().mean() < 1e-3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "picture.png"]
    if format == "onnx":
        check_onnx(folder, report.description, picture)


def check_onnx(folder, description, picture):
    """The file describes itself, names what varies, and `predict.py` runs it."""
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    assert json.loads({p.key: p.value for p in model.metadata_props}["detectron2"]) == description
    assert [o.domain for o in model.opset_import] == [""]
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    drawn = picture.with_name("drawn.png")
    command = [sys.executable, str(folder / "predict.py"), str(picture), "--output", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=picture.parent)
    assert done.returncode == 0, done.stderr
    assert Image.open(drawn).size == (96, 72)


def test_one_size(segmenter, mapper, tmp_path):
    report = export_model(segmenter, tmp_path / "a", "torchscript", mapper=mapper, size=SIZE, dynamic=())
    assert report.description["size"] == list(SIZE) and report.description["dynamic"] == []
    exported = ExportedModel(tmp_path / "a")
    found = exported([{"image": torch.zeros(3, 30, 40)}, {"image": torch.zeros(3, 48, 64)}])
    assert [r["sem_seg"].shape for r in found] == [(4, 30, 40), (4, 48, 64)]
    with pytest.raises(ValueError, match=r"48 x 64 pixels .* one has 49 x 20"):
        exported.outputs([torch.zeros(3, 49, 20)])
    # Larger images are made to fit, and have results of their own size.
    image = torch.zeros(3, 96, 100)
    image[:, 48:] = 255
    with torch.no_grad():
        wanted = segmenter([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    found = exported([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    assert found.shape == (96, 100) and (found[:, :90] == wanted[:, :90]).float().mean() > 0.9


@needs_onnx
@pytest.mark.parametrize("size", [(48, 64), (32, 40)])  # as the mapper makes them, and smaller
def test_one_size_in_the_program(segmenter, mapper, tmp_path, size):
    report = export_model(segmenter, tmp_path / "a", "onnx", mapper=mapper, size=size, dynamic=())
    assert [c.faults for c in report.comparisons if c.case == "predict.py"] == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, "onnx, openvino, pt2, aoti, torchscript, not 'coreml'. Core ML has no converter"),
        ({"format": "x"}, "not 'x'."),
        ({"precision": "int4"}, "fp32, fp16, int8, not 'int4'"),
        ({"format": "pt2", "precision": "fp16"}, "pt2 has fp32 only"),
        ({"precision": "int8"}, "give --calibration DATA"),
        ({"precision": "int8", "calibration": "x"}, "give --evaluate DATASET"),
        ({"calibration": "x"}, "--calibration is for --precision int8"),
        ({"evaluate_on": "no_such_data"}, "no_such_data"),
        ({"format": "aoti", "dynamic": ("size",)}, "aoti leaves nothing open, not size"),
        ({"dynamic": ("width",)}, "batch and size, not width"),
        ({"dynamic": ()}, "give --size HEIGHT WIDTH"),
        ({"size": (16, 64)}, "32 to 16384 each"),
        ({"size": (1_000_000, 1_000_000)}, "32 to 16384 each"),
        ({"allow_loss": float("nan")}, "points of average precision, at least 0; got nan"),
        ({"allow_loss": -1.0}, "at least 0; got -1"),
        ({"masks": "pasted"}, "gives no masks: leave out --masks pasted"),
        ({"outputs": "flat"}, "gives no detections: leave out --outputs flat"),
        ({"max_detections": 3}, "gives no detections: leave out --max-detections"),
        ({"score_threshold": 0.5}, "has no score threshold: leave out --score-threshold"),
        ({"precision": "int8", "calibration": "no_such_data", "verify": False}, "neither a folder nor a registered"),
    ],
)
def test_options_that_do_not_go_together(segmenter, mapper, tmp_path, options, message):
    with pytest.raises((ValueError, KeyError), match=message.replace("(", r"\(")):
        export_model(
            segmenter, tmp_path / "a", mapper=mapper, **{"size": None if "dynamic" in options else SIZE, **options}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [3, 40])
def test_more_or_fewer_detections_than_in_the_config(tmp_path, limit):
    model = tiny_model("retinanet", **{"TEST.DETECTIONS_PER_IMAGE": 10})
    report = export_model(
        model, tmp_path / "a", "torchscript", size=(64, 96), dynamic=(), max_detections=limit, score_threshold=0.0
    )
    assert report.description["max_detections"] == limit == report.comparisons[0].expected
    assert model.max_detections_per_image == 10


def test_what_is_no_model(tmp_path):
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, or a config of one; got a str"):
        export_model("model.pth", tmp_path / "a")


def test_a_model_without_an_exportable_form_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"the model, torch\.nn\.modules\.linear\.Identity, has no exportable form"):
        export_model(torch.nn.Identity().eval(), tmp_path / "a")


def test_other_files_are_left_alone(segmenter, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files than an export"):
        export_model(segmenter, tmp_path, "torchscript")
    with pytest.raises(FileExistsError, match="is a file"):
        export_model(segmenter, tmp_path / "notes.txt", "torchscript")


def test_a_folder_with_other_files_beside_an_export_is_left_alone(segmenter, tmp_path):
    folder = tmp_path / "a"
    for name, text in (("model.json", "{}"), ("model.json", '{"layout": 1}')):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)  # of another program
        with pytest.raises(FileExistsError, match=r"other files than an export \(model.json\), which would be lost"):
            export_model(segmenter, folder, "torchscript", size=SIZE)
    (folder / "model.json").unlink()
    export_model(segmenter, folder, "torchscript", size=SIZE, verify=False)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other files than an export \(notes.txt\)"):
        export_model(segmenter, folder, "torchscript", size=SIZE)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "model.ts").exists()
    with pytest.raises(FileExistsError, match=r"notes.txt is a file; give a folder"):
        export_model(segmenter, folder / "notes.txt" / "a", "torchscript", size=SIZE)


def test_a_link_to_an_export_stays_one(segmenter, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export_model(segmenter, tmp_path / "link", "torchscript", size=SIZE, verify=False)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model.ts").is_file()


def test_weights_that_no_file_can_be_made_of(segmenter, tmp_path):
    def not_finite(model):
        next(model.sem_seg_head.parameters()).data[..., 0] = float("nan")
        return model

    cases = {
        r"is torch.float16, .* call model.float\(\)": lambda model: model.half(),
        "has values that are not finite": not_finite,
        "on the device meta; load a checkpoint": lambda model: model.to("meta"),
        "the model is in training mode": lambda model: model.train(),
        "a part of the model, backbone, is in training mode": lambda m: (m.backbone.train(), m)[1],
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            export_model(change(copy.deepcopy(segmenter)), tmp_path / "a", "torchscript", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_model_in_a_wrapper(segmenter, tmp_path):
    report = export_model(
        torch.nn.DataParallel(segmenter), tmp_path / "a", "torchscript", size=SIZE, dynamic="none", verify=False
    )
    assert report.description["architecture"] == "SemanticSegmentor" and report.description["dynamic"] == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_is_broken_off_leaves_nothing(segmenter, tmp_path, monkeypatch, error, message):
    def write(graph, example, dynamic, path, description):
        path.write_bytes(b"half")
        raise error

    broken = dataclasses.replace(FORMATS["torchscript"], write=write)
    monkeypatch.setattr(formats_module, "FORMATS", {**FORMATS, "torchscript": broken})
    with pytest.raises((OSError, KeyboardInterrupt), match=message):
        export_model(segmenter, tmp_path / "a", "torchscript", size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_a_full_disk_does_not_end_the_process(segmenter, tmp_path, format):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_model(segmenter, tmp_path / "a", format, size=SIZE, dynamic=())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(segmenter, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    for package, format, extra in (("onnxscript", "onnx", "onnx"), ("openvino", "openvino", "openvino")):
        monkeypatch.setattr(
            formats_module.importlib.util, "find_spec", lambda n, gone=package: None if n == gone else find(n)
        )
        with pytest.raises(ImportError, match=rf'{package} is not installed: pip install "detectron2\[{extra}\]"'):
            export_model(segmenter, tmp_path / "a", format, size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_wrong_one_is_not_left_and_an_earlier_one_stays(segmenter, mapper, tmp_path, monkeypatch):
    folder = tmp_path / "exported"
    export_model(segmenter, folder, "torchscript", mapper=mapper, size=SIZE)
    before = (folder / "model.ts").read_bytes()
    right = FORMATS["torchscript"]

    def write_wrongly(graph, *rest):
        bias = graph.model.sem_seg_head.layer.bias
        with torch.no_grad():
            bias += 0.01
            right.write(graph, *rest)
            bias -= 0.01

    wrong = dataclasses.replace(right, write=write_wrongly)
    monkeypatch.setattr(formats_module, "FORMATS", {**FORMATS, "torchscript": wrong})
    with pytest.raises(VerificationError, match=r"(?s)sem_seg differ by 0.01.*is right in PyTorch: its translation"):
        export_model(segmenter, folder, "torchscript", mapper=mapper, size=SIZE)
    assert (folder / "model.ts").read_bytes() == before
    with pytest.raises(VerificationError):
        export_model(segmenter, tmp_path / "new", "torchscript", mapper=mapper, size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["exported"]
    # Unless one insists.
    export_model(segmenter, tmp_path / "new", "torchscript", mapper=mapper, size=SIZE, verify=False)


def test_what_the_runtime_does_not_load(segmenter, mapper, tmp_path, monkeypatch):
    def write_half(graph, example, dynamic, path, description):
        path.write_bytes(b"PK")

    half = dataclasses.replace(FORMATS["torchscript"], write=write_half)
    monkeypatch.setattr(formats_module, "FORMATS", {**FORMATS, "torchscript": half})
    with pytest.raises(VerificationError, match="The runtime of torchscript does not load what was written"):
        export_model(segmenter, tmp_path / "a", "torchscript", mapper=mapper, size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_detector_and_one_whose_suppression_is_wrong(mask_rcnn, tmp_path, monkeypatch):
    report = export_model(mask_rcnn, tmp_path / "right", "torchscript", size=(64, 96), score_threshold=0.5)
    assert report.description["score_threshold"] == 0.5 and sum(c.expected for c in report.comparisons) > 20
    assert mask_rcnn.roi_heads.box_predictor.test_score_thresh == pytest.approx(0.6)
    right = operators.nms_keep_torchvision
    monkeypatch.setattr(selection, "nms_keep_torchvision", lambda boxes, scores, iou: right(boxes, scores, iou / 3))
    with pytest.raises(
        VerificationError, match=r"(?s)detection of class .*The graph that was exported is off in PyTorch"
    ):
        export_model(mask_rcnn, tmp_path / "wrong", "torchscript", size=(64, 96))
    assert [p.name for p in tmp_path.iterdir()] == ["right"]


@pytest.mark.slow
def test_a_wrong_onnx_translation_is_caught(mask_rcnn, tmp_path, monkeypatch):
    translations = operators.onnx_translations

    def wrong():
        (name, right), *others = translations().items()
        return {name: lambda boxes, scores, iou_threshold: right(boxes, scores, iou_threshold / 3), **dict(others)}

    monkeypatch.setattr(operators, "onnx_translations", wrong)
    with pytest.raises(VerificationError, match=r"(?s)is right in PyTorch: its translation, or the runtime, is off"):
        export_model(mask_rcnn, tmp_path / "wrong", "onnx", size=(64, 96), dynamic=())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name, tmp_path):
    report = export_model(model_of(name), tmp_path / "a", "torchscript", size=(64, 96))
    assert not [c.faults for c in report.comparisons if c.faults]
    assert "sem_seg" in report.description["outputs"] or sum(c.expected for c in report.comparisons) > 20
    found = ExportedModel(tmp_path / "a")([{"image": torch.rand(3, 50, 70) * 255, "height": 100, "width": 140}])[0]
    sizes = [x.image_size for x in found.values() if hasattr(x, "image_size")]
    assert all(size == (100, 140) for size in sizes) and (sizes or found["sem_seg"].shape[1:] == (100, 140))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export_shapes")
    generate_shapes_dataset(folder, 4, size_hw=(64, 96))
    register_coco_instances("export_shapes", {}, str(folder / "annotations.json"), str(folder / "images"))
    return folder


@needs_onnx
def test_int8(segmenter, mapper, shapes, tmp_path):
    import onnx

    options = {"mapper": mapper, "size": SIZE, "verify": False}
    export_model(segmenter, tmp_path / "a", "onnx", precision="int8", calibration=str(shapes), **options)
    model = onnx.load(str(tmp_path / "a" / "model.onnx"))
    assert {w.data_type for w in model.graph.initializer if len(w.dims) == 4} == {onnx.TensorProto.INT8}
    assert "QuantizeLinear" in {n.op_type for n in model.graph.node}
    image = torch.rand(3, 48, 64) * 255
    with torch.no_grad():
        wanted = segmenter([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    found = ExportedModel(tmp_path / "a")([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    assert (found == wanted).float().mean() > 0.9


@pytest.mark.slow
def test_int8_in_openvino(segmenter, mapper, shapes, tmp_path):
    options = {"mapper": mapper, "size": SIZE, "verify": False}
    export_model(segmenter, tmp_path / "b", "openvino", precision="int8", calibration="export_shapes", **options)
    image = torch.rand(3, 48, 64) * 255
    with torch.no_grad():
        wanted = segmenter([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    found = ExportedModel(tmp_path / "b")([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    assert (found == wanted).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_of_a_detector(mask_rcnn, shapes, tmp_path, format):
    options = {"size": (64, 96), "dynamic": (), "verify": False}  # smaller maps than there are proposals
    export_model(mask_rcnn, tmp_path / "c", format, precision="int8", calibration=str(shapes), **options)
    image = torch.rand(3, 64, 96) * 255
    with torch.no_grad():
        wanted = mask_rcnn([{"image": image}])[0]["instances"].scores
    found = ExportedModel(tmp_path / "c")([{"image": image}])[0]["instances"].scores
    assert found[0] == pytest.approx(wanted[0].item(), abs=0.05)


@needs_onnx
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_fp16(segmenter, mapper, tmp_path, format):
    report = export_model(segmenter, tmp_path / "a", format, mapper=mapper, size=SIZE, precision="fp16")
    assert not [c.faults for c in report.comparisons if c.faults] and report.description["precision"] == "fp16"
    assert max(c.differences.get("maps", 0.0) for c in report.comparisons) > 0


@pytest.mark.slow
def test_the_loss_is_measured(mask_rcnn, shapes, tmp_path):
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    mapper = DatasetMapper(False, augmentations=[T.ResizeShortestEdge(64, 96)], image_format="BGR")
    report = export_model(
        mask_rcnn, tmp_path / "a", "torchscript", mapper=mapper, size=(64, 96), evaluate_on="export_shapes"
    )
    model, exported = report.measurements
    assert model.metrics == pytest.approx(exported.metrics, abs=0.05) and set(model.metrics) == {"box AP", "mask AP"}
    assert exported.megabytes > 0 and "box AP" in report.table() and "torchscript fp32" in report.table()


def measurement(name, **metrics):
    return Measurement(name, metrics, None, 1.0)


def test_a_loss_over_the_bound():
    model = measurement("model", box=50.0, mask=float("nan"))
    _check_loss([model, measurement("onnx int8", box=49.1, mask=float("nan"))], 1.0)
    _check_loss([model, measurement("onnx int8", box=55.0)], 1.0)
    with pytest.raises(
        VerificationError, match=r"(?s)onnx int8 loses 1\.24 points of box, .* --allow-loss 1\.3 would.*ms"
    ):
        _check_loss([model, measurement("onnx fp32", box=50.0), measurement("onnx int8", box=48.76)], 1.0)
    with pytest.raises(
        VerificationError, match=r"onnx fp32 loses 0\.06 points of box, more than 0\.05, and was removed\.\n"
    ):
        _check_loss([model, measurement("onnx fp32", box=49.94)], 0.05)
    with pytest.raises(VerificationError, match="loses nan points of box"):
        _check_loss([model, measurement("onnx fp32", box=float("nan"))], 0.05)
