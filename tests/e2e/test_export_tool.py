"""``tools/deploy/export_model.py`` on a tiny model."""

import runpy

import pytest
import torch
from PIL import Image

from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def export(repo_root, monkeypatch, restore_logging, cfg, tmp_path):
    """A function that runs the script with a tiny config; -> what its main function returns."""
    cfg.MODEL.DEVICE = "cpu"
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    Image.new("RGB", (90, 60), (200, 30, 60)).save(tmp_path / "photo.png")
    path = str(repo_root / "tools" / "deploy" / "export_model.py")
    main = runpy.run_path(path)["main"]

    def call(*argv):
        arguments = ["--config-file", tmp_path / "tiny.yaml", "--output", tmp_path / "exported", *argv]
        monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
        return main()

    call.output = tmp_path / "exported"
    call.photo = tmp_path / "photo.png"
    return call


@pytest.mark.parametrize("method", ["tracing", "scripting"])
def test_torchscript_is_written_and_evaluated(export, method):
    results = export("--export-method", method, "--sample-image", export.photo, "--run-eval")
    assert "AP" in results["bbox"]
    program = torch.jit.load(str(export.output / "model.ts"))
    assert "def forward" in program.code
    assert "graph" in (export.output / "model_ts_IR.txt").read_text()


def test_raw_outputs(export):
    assert export("--export-method", "caffe2_tracing") is None
    program = torch.jit.load(str(export.output / "model.ts"))
    outputs = program(torch.zeros(1, 3, 64, 64), torch.tensor([[64.0, 64.0, 1.0]]))
    assert outputs[0].shape[1:] == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tracing", "caffe2_tracing"])
def test_onnx_is_written_and_evaluated(export, method):
    pytest.importorskip("onnxruntime")
    results = export("--export-method", method, "--format", "onnx", "--run-eval")
    assert "AP" in results["bbox"]
    assert (export.output / "model.onnx").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config-file", ""], "--config-file is needed"),
        (["--format", "caffe2", "--export-method", "caffe2_tracing"], "removed Caffe2"),
        (["--format", "onnx", "--export-method", "scripting"], "use --export-method tracing"),
        (["--run-eval", "DATASETS.TEST", "()"], "set DATASETS.TEST"),
        (["--run-eval", "--export-method", "caffe2_tracing"], "needs --format onnx"),
    ],
)
def test_what_is_refused(export, capsys, argv, message):
    with pytest.raises(SystemExit):
        export(*argv)
    assert message in capsys.readouterr().err
