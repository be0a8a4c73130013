"""The examples for Ray, each in a local Ray of its own with two workers, and no network."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2 import Predictor
from detectron2.cli import main
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.distributed.layout import find_free_port
from detectron2.inference import BulkRun, read_shards
from tests.inference.conftest import tiny_cfg

__all__ = ["tiny_cfg"]

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")]

JSON_AND_ARRAYS = """
import sys
import ray
from detectron2 import Predictor

weights, folder, output = sys.argv[1:]
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
found = ray.data.read_images(folder, include_paths=True).map_batches(
    Predictor.for_batches,
    fn_constructor_kwargs={"weights": weights, "device": "cpu", "score_threshold": 0.0, "batch_size": 1},
    compute=ray.data.ActorPoolStrategy(size=2),
    batch_size=2,
)
found.write_json(output, double_precision=15)
ray.shutdown()
"""


def processes_with(token: str) -> list[int]:
    """Processes that have the token of a Ray in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if token.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.fixture
def run(tmp_path):
    """Run a program in a folder of its own; what it started is gone afterwards."""
    token = secrets.token_hex(16)
    own = {"RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*command):
        environment = {**os.environ, "RAY_TMPDIR": short, **own}
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            if "timed out during startup" not in done.stderr:
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
                return done.stdout
        pytest.skip("Ray gives its own processes 15 seconds to start, which this machine is too busy for")

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:  # for sockets
        yield start
        until = time.monotonic() + 60
        while processes_with(token) and time.monotonic() < until:
            time.sleep(0.2)
        left = processes_with(token)
        for process in left:
            os.kill(process, signal.SIGKILL)
        assert left == []


def in_order(rows):
    """Rows in the order of their files."""
    return sorted(rows, key=lambda row: row["file"])


def assert_equal(rows, expected, tolerance):
    """Rows say the same, whichever engine wrote them; numbers are those of float32."""
    rows, expected = in_order(rows), in_order(expected)
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for name in ("file", "height", "width", "error"):
            assert row[name] == other[name]
        assert (row["objects"] is None) == (other["objects"] is None)
        for thing, same in zip(row["objects"] or [], other["objects"] or [], strict=True):
            assert thing["class"] == same["class"] and thing["mask"]["size"] == same["mask"]["size"]
            for name in ("box_xyxy", "score"):
                np.testing.assert_allclose(np.float32(thing[name]), np.float32(same[name]), atol=tolerance, rtol=0)


def test_predict_example(run, tmp_path, tiny_cfg):
    """Images of two sizes, a grey one and a damaged one give the rows of a run with shards."""
    folder = tmp_path / "photos"
    generate_shapes_dataset(folder, 3, size_hw=(64, 80))
    images = folder / "images"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70), np.uint8)).save(images / "grey.png")
    (images / "torn.png").write_bytes(b"damaged")
    out = run(ROOT / "examples/ray_predict.py", tiny_cfg.MODEL.WEIGHTS, images)
    assert out.count(" objects") == 5
    predictor = Predictor(tiny_cfg.MODEL.WEIGHTS, device="cpu", mask_format="rle")
    BulkRun(tmp_path / "run", [str(images)]).predict(predictor)
    rows = list(read_shards(tmp_path / "output/examples/ray_predict/results"))
    assert_equal(rows, read_shards(tmp_path / "run"), 1e-3)  # their batches have other images
    assert [row["error"] is None for row in in_order(rows)] == [True, True, True, True, False]


def test_json_of_arrays_is_evaluated(run, tmp_path, tiny_cfg, monkeypatch):
    """Arrays, which Ray has decoded, and files of JSON: `detectron2 eval --predictions` gives the numbers of a run."""
    annotations = generate_shapes_dataset(tmp_path / "shapes", 4, size_hw=(64, 80))
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(("ant", "bee", "cat"))]
    content["annotations"] = [{**a, "category_id": a["category_id"] % 3 + 1} for a in content["annotations"]]
    annotations.write_text(json.dumps(content))
    images = tmp_path / "shapes/images"
    (tmp_path / "predict.py").write_text(JSON_AND_ARRAYS)
    run(tmp_path / "predict.py", tiny_cfg.MODEL.WEIGHTS, images, tmp_path / "ray")
    options = {"mask_format": "rle", "score_threshold": 0.0, "batch_size": 1}
    predictor = Predictor(tiny_cfg.MODEL.WEIGHTS, device="cpu", **options)
    BulkRun(tmp_path / "run", [str(images)]).predict(predictor)
    rows = list(read_shards(tmp_path / "ray"))
    assert_equal(rows, read_shards(tmp_path / "run"), 0)
    assert sum(len(row["objects"]) for row in rows) > 0
    results = []
    for name in ("ray", "run"):
        data = ["--coco", f"ray_{name}", str(annotations), str(images), "--output", str(tmp_path / f"eval_{name}")]
        weights = ["--weights", tiny_cfg.MODEL.WEIGHTS, "--predictions", str(tmp_path / name)]
        assert main(["eval", *weights, *data, "DATASETS.TEST", f"('ray_{name}',)"]) == 0
        results.append(json.loads((tmp_path / f"eval_{name}" / "results.json").read_text()))
    assert results[0] == results[1] and "bbox" in results[0]


def test_train_example_gives_the_weights_of_torchrun(run, tmp_path):
    """Two workers of Ray, and two processes of torchrun, train to the same weights, bit for bit."""
    example, options = (
        ROOT / "examples/ray_train.py",
        {"data": f"{tmp_path}/ray/data", "output": f"{tmp_path}/torchrun"},
    )
    run(example, tmp_path / "ray")
    (tmp_path / "torchrun.py").write_text(
        "import runpy\n"
        "from detectron2.engine import launch\n"
        f"train = runpy.run_path({str(example)!r})['train']\n"
        f"launch(train, 1, args=({options!r},))\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(find_free_port())]
    run(*torchrun, tmp_path / "torchrun.py")
    ours, expected = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("ray", "torchrun")
    )
    assert ours.keys() == expected.keys() and len(ours) > 100
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
