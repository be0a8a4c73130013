"""The programs in C++ find what the model finds in Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.export.runtime.predict import Predictor
from tests.export.runtime import made_up

CPP = Path(__file__).parents[3] / "examples/deployment/cpp"
PROGRAMS = {"openvino": "made up", "openvino, onnx": "onnx", "torchscript": "torchscript", "aoti": "aoti"}
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None or shutil.which("make") is None, reason="g++ or make is missing"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(
    scope="module", params=[pytest.param(p, marks=() if p == "openvino" else pytest.mark.slow) for p in PROGRAMS]
)
def program(request, tmp_path_factory, export_detector):
    """The path of a program, the folder of its model, and a function that finds the objects in Python."""
    name = request.param.partition(",")[0]
    if name == "openvino":
        for package in ("openvino", "onnx", "onnxruntime"):
            pytest.importorskip(package)
    if name == "openvino" and not _has_todays_strings():
        pytest.skip("this OpenVINO is built with std::string of before C++11")
    folder = tmp_path_factory.mktemp(name)
    shutil.copytree(CPP, folder / "cpp")
    command = ["make", name, f"PYTHON={sys.executable}", "CXXFLAGS=-O0 -Wall -Wextra"]
    built = subprocess.run(command, cwd=folder / "cpp", capture_output=True, text=True)
    assert built.returncode == 0 and "warning" not in built.stderr, built.stderr
    if PROGRAMS[request.param] == "made up":
        made_up.write_model(folder, short_edge=96)
        return folder / "cpp" / name, folder, Predictor(folder)
    return folder / "cpp" / name, *export_detector(PROGRAMS[request.param])


def _has_todays_strings():
    import openvino

    return any(b"7__cxx11" in p.read_bytes() for p in Path(openvino.__file__).parent.glob("libs/libopenvino.so*"))


def run(path, *arguments):
    command = [str(path), *map(str, arguments)]
    if path.name != "openvino":
        make = ["make", "-s", "-C", str(path.parent), "operators", f"PYTHON={sys.executable}"]
        command.append(subprocess.run(make, capture_output=True, text=True).stdout.strip())
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("size", [(96, 128), (144, 192), (90, 110)], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("contrast", [1.0, 0.0], ids=["noise", "grey"])
def test_objects_are_those_of_python(program, photo, size, contrast, tmp_path):
    path, folder, find = program
    rgb = photo(*size, contrast)
    Image.fromarray(rgb).save(tmp_path / "photo.ppm")
    done = run(path, folder, tmp_path / "photo.ppm")
    assert done.returncode == 0, done.stderr
    rows, want = [line.split("\t") for line in done.stdout.splitlines()], find(rgb)
    assert rows and [row[0] for row in rows] == [made_up.NAMES[i] for i in want["classes"]]
    assert np.allclose([float(row[1]) for row in rows], want["scores"], atol=1e-4)
    assert np.allclose(np.array([row[2:] for row in rows], float), want["boxes"], atol=1e-3)


def test_threshold_above_all_scores_leaves_nothing(program, photo, tmp_path):
    path, folder, _ = program
    meta = json.loads((folder / "model.json").read_text())
    (tmp_path / meta["artifact"]).symlink_to(folder / meta["artifact"])
    (tmp_path / "model.json").write_text(json.dumps({**meta, "score_threshold": 1}))
    Image.fromarray(photo(96, 128)).save(tmp_path / "photo.ppm")
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
