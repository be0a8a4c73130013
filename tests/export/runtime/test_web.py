"""The page with onnxruntime-web detects what Python detects; run by Node, in which the same module is loaded."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.export.runtime.images import preprocess, resized_size
from detectron2.export.runtime.predict import Predictor
from tests.export.runtime.made_up import metadata, picture, write_model

WEB = Path(__file__).parents[3] / "examples/deployment/web"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(script, *arguments):
    command = [str(NODE), *script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=WEB, timeout=120)


PREPARE = """
import { preprocess, resizedSize } from "./detector.mjs";
import { readFileSync } from "node:fs";
const cases = JSON.parse(readFileSync(process.argv[1], "utf8"));
console.log(JSON.stringify(cases.map(({ rgba, height, width, meta }) => [
  resizedSize(height, width, meta), rgba ? [...preprocess({ data: rgba, height, width }, meta).data] : [],
])));
"""


@needs_node
def test_images_are_prepared_as_in_python(tmp_path):
    """Of the same pixels the model sees the same values, to the last bit."""
    sizes = [(1, 1), (2, 90), (37, 23), (64, 48), (48, 64)]
    changes = [{}, {"short_edge": 40}, {"short_edge": 7}, {"short_edge": 60, "long_edge": 70, "channels": "RGB"}]
    changes += [{"short_edge": 50, "size": [40, 60]}, {"short_edge": 90, "square": 64}]
    cases = [(picture(*size), metadata(**change)) for size in sizes for change in changes]
    written = []
    for rgb, meta in cases:
        rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
        written.append({"rgba": rgba.ravel().tolist(), "height": rgb.shape[0], "width": rgb.shape[1], "meta": meta})
    generator = np.random.default_rng(0)
    for height, width, short, long in generator.integers(1, 2000, (200, 4)).tolist():
        written.append({"height": height, "width": width, "meta": metadata(short_edge=short, long_edge=long)})
    (tmp_path / "cases.json").write_text(json.dumps(written))
    done = run(["--input-type=module", "-e", PREPARE], tmp_path / "cases.json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for case, (size, _) in zip(written, results, strict=True):
        assert tuple(size) == resized_size((case["height"], case["width"]), case["meta"])
    for (rgb, meta), (_, values) in zip(cases, results[: len(cases)], strict=True):
        assert np.array_equal(values, preprocess(rgb, meta)[0].ravel())


@pytest.fixture(scope="module")
def onnxruntime_web():
    if NODE is None:
        pytest.skip("node is not installed")
    if not (WEB / "node_modules/onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix examples/deployment/web")


@pytest.fixture(scope="module")
def model(tmp_path_factory, onnxruntime_web):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, short_edge=100)
    return folder


@pytest.mark.parametrize("threshold", [None, 0.5, 0.99])
@pytest.mark.parametrize("size", [(120, 200), (75, 50)], ids=str)
def test_boxes_are_those_of_python(model, tmp_path, size, threshold):
    Image.fromarray(picture(*size)).save(tmp_path / "photo.ppm")
    done = run(["predict.mjs"], model, tmp_path / "photo.ppm", *([] if threshold is None else [threshold]))
    assert done.returncode == 0, done.stderr
    got, want = json.loads(done.stdout), Predictor(model)(picture(*size), threshold)
    assert len(got) == len(want["boxes"]) == {None: 2, 0.5: 1, 0.99: 0}[threshold]
    assert [g["label"] for g in got] == want["classes"].tolist()
    assert [g["name"] for g in got] == ["cat", "bird"][: len(got)]
    assert np.allclose(np.reshape([g["box"] for g in got], (-1, 4)), want["boxes"], atol=1e-3)
    assert np.allclose([g["score"] for g in got], want["scores"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(96, 128), (144, 192), (90, 110)], ids=str)
def test_objects_are_those_of_the_exported_model(export_detector, onnxruntime_web, photo, tmp_path, size):
    folder, find = export_detector("onnx")
    Image.fromarray(photo(*size)).save(tmp_path / "photo.ppm")
    done = run(["predict.mjs"], folder, tmp_path / "photo.ppm")
    assert done.returncode == 0, done.stderr
    got, want = json.loads(done.stdout), find(photo(*size))
    assert got and [g["label"] for g in got] == want["classes"].tolist()
    assert np.allclose([g["box"] for g in got], want["boxes"], atol=1e-3)
    assert np.allclose([g["score"] for g in got], want["scores"], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": 2}, "has layout 2, this page reads layouts up to 1"),
        ({"task": "semantic"}, 'task "semantic" has none'),
    ],
)
def test_what_the_page_cannot_show_is_refused(model, tmp_path, change, message):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.json").write_text(json.dumps({**metadata(), **change}))
    Image.fromarray(picture(8, 8)).save(tmp_path / "photo.ppm")
    done = run(["predict.mjs"], tmp_path, tmp_path / "photo.ppm")
    assert done.returncode == 1 and message in done.stderr


def test_page_loads_nothing_from_elsewhere():
    texts = {path.name: path.read_text() for path in (*WEB.glob("*.mjs"), WEB / "index.html")}
    assert set(texts) == {"detector.mjs", "predict.mjs", "index.html"}
    addresses = [a for text in texts.values() for a in re.findall(r"https?://[^\s)\"']+", text)]
    assert addresses == ["http://localhost:8000"]
    assert json.loads((WEB / "package.json").read_text())["dependencies"] == {"onnxruntime-web": "1.30.0"}
