"""The programs in C++ find what the model finds in Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from detectron2.export.graphs import GraphOptions, build_graph
from detectron2.export.runtime.images import preprocess
from detectron2.export.runtime.predict import Predictor
from tests.export.runtime import made_up
from tests.export.test_tracing import picture, tiny_model

CPP = Path(__file__).parents[3] / "examples/deployment/cpp"
SIZE = (96, 128)
PROGRAMS = [
    "openvino",
    pytest.param("torchscript", marks=pytest.mark.slow),
    pytest.param("aoti", marks=pytest.mark.slow),
]
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None or shutil.which("make") is None, reason="g++ or make is missing"),
    pytest.mark.filterwarnings("ignore"),
]


def write_for_pytorch(kind, folder):
    """A small Faster R-CNN in a folder as an export writes it; returns what finds its objects in Python."""
    model = tiny_model("faster", **{"TEST.DETECTIONS_PER_IMAGE": 20})
    is_script = kind == "torchscript"
    graph = build_graph(model, GraphOptions(nms="torchvision" if is_script else "aten"))
    inputs = (picture(*SIZE)[None], torch.tensor([SIZE]), torch.tensor(graph.score_threshold))
    artifact = "model.ts" if is_script else "model_aoti.pt2"
    if is_script:
        torch.jit.trace(graph, inputs, check_trace=False).save(folder / artifact)
    else:
        torch._inductor.aoti_compile_and_package(
            torch.export.export(graph, inputs), package_path=str(folder / artifact)
        )
    facts = {"outputs": graph.output_names, "inputs": graph.input_names, "artifact": artifact}
    size = None if is_script else list(SIZE)
    meta = made_up.metadata(**facts, score_threshold=graph.score_threshold, short_edge=96, size=size)
    (folder / "model.json").write_text(json.dumps(meta))

    def find(rgb):
        images, _ = preprocess(rgb, {**meta, "size": None})
        item = {"image": torch.from_numpy(images[0]), "height": rgb.shape[0], "width": rgb.shape[1]}
        with torch.no_grad():
            found = model([item])[0]["instances"]
        return {"boxes": found.pred_boxes.tensor.numpy(), "scores": found.scores, "classes": found.pred_classes}

    return find


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, tmp_path_factory):
    """The path of a program, the folder of its model, and a function that finds the objects in Python."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "openvino":
        for package in ("openvino", "onnx", "onnxruntime"):
            pytest.importorskip(package)
        made_up.write_model(folder, short_edge=96)
        find = Predictor(folder)
    else:
        find = write_for_pytorch(request.param, folder)
    shutil.copytree(CPP, folder / "cpp")
    command = ["make", request.param, f"PYTHON={sys.executable}", "CXXFLAGS=-O0 -Wall -Wextra"]
    built = subprocess.run(command, cwd=folder / "cpp", capture_output=True, text=True)
    assert built.returncode == 0 and "warning" not in built.stderr, built.stderr
    return folder / "cpp" / request.param, folder, find


def run(path, *arguments):
    operators = sorted(Path(torchvision.__path__[0]).glob("_C*.so"))[0]
    extra = [str(operators)] if path.name == "torchscript" else []
    return subprocess.run([str(path), *map(str, arguments), *extra], capture_output=True, text=True)


def photo(height, width, contrast=1.0):
    pixels = picture(*SIZE, contrast, seed=5).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))


@pytest.mark.parametrize("size", [SIZE, (144, 192), (90, 110)], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("contrast", [1.0, 0.0], ids=["noise", "grey"])
def test_objects_are_those_of_python(program, size, contrast, tmp_path):
    path, folder, find = program
    rgb = photo(*size, contrast)
    Image.fromarray(rgb).save(tmp_path / "photo.ppm")
    done = run(path, folder, tmp_path / "photo.ppm")
    assert done.returncode == 0, done.stderr
    rows, want = [line.split("\t") for line in done.stdout.splitlines()], find(rgb)
    assert rows and [row[0] for row in rows] == [made_up.NAMES[i] for i in want["classes"]]
    assert np.allclose([float(row[1]) for row in rows], want["scores"], atol=1e-4)
    assert np.allclose(np.array([row[2:] for row in rows], float), want["boxes"], atol=1e-3)


def test_threshold_above_all_scores_leaves_nothing(program, tmp_path):
    path, folder, _ = program
    meta = json.loads((folder / "model.json").read_text())
    (tmp_path / meta["artifact"]).symlink_to(folder / meta["artifact"])
    (tmp_path / "model.json").write_text(json.dumps({**meta, "score_threshold": 1}))
    Image.fromarray(photo(*SIZE)).save(tmp_path / "photo.ppm")
    done = run(path, tmp_path, tmp_path / "photo.ppm")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_errors_are_said(program, tmp_path):
    path, folder, _ = program
    done = subprocess.run([str(path)], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: " in done.stderr
    (tmp_path / "text.ppm").write_text("no picture")
    (tmp_path / "cut.ppm").write_bytes(b"P6\n20 20\n255\n" + bytes(100))
    for arguments, message in (
        ((folder, tmp_path / "text.ppm"), "not a binary PPM image"),
        ((folder, tmp_path / "cut.ppm"), "is cut off"),
        ((tmp_path, tmp_path / "cut.ppm"), "There is no file"),
    ):
        done = subprocess.run([str(path), *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
    (tmp_path / "model.json").write_text(json.dumps({**json.loads((folder / "model.json").read_text()), "layout": 2}))
    done = subprocess.run([str(path), str(tmp_path), str(tmp_path / "cut.ppm")], capture_output=True, text=True)
    assert done.returncode == 1 and "has a newer layout than this program knows" in done.stderr
