"""The pages about prediction, and about video and tracking: all of their blocks run in order, with a tiny model."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.cli import arguments, predict
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.inference.results import ROW_KEYS
from detectron2.modeling import build_model
from detectron2.tracking import ByteTracker
from tests.docs.pages import run_command, run_page
from tests.e2e.conftest import _tiny_config
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A working directory with an untrained, but sure model where the pages have that of `detectron2 demo`."""
    monkeypatch.chdir(tmp_path)
    cfg = _tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SHAPE_CLASSES)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[:1], 4)  # all is of class 0, score 0.9
    DetectionCheckpointer(model, "demo").save("model_final")
    Path("demo/config.yaml").write_text(cfg.dump())
    Path("demo/metadata.json").write_text(json.dumps({"thing_classes": list(SHAPE_CLASSES)}))
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def stand_in(words: list[str]) -> None:
    """Run a command; one that trains for minutes is what the fixture stands for, and ONNX is written by other tests."""
    if words[0] == "demo":
        assert words[-2:] == ["--output", "demo"]
    elif words[0] == "export":
        assert "onnx" in words
        run_command([*("torchscript" if word == "onnx" else word for word in words), "--size", "96", "96"])
    else:
        run_command(words)


def text_of(repo_root: Path, name: str) -> str:
    return (repo_root / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("restore_logging", "demo")
def test_inference(repo_root, monkeypatch, capsys):
    pytest.importorskip("pandas")
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})  # take seconds; other tests draw them
    names = run_page(repo_root / "docs" / "tutorials" / "inference.md", command=stand_in)
    printed = capsys.readouterr().out
    assert "is not an image" in printed and "give scale=255" in printed and "8 images, 40 objects" in printed
    assert len(names["table"]) == 40 and set(names["table"].file) == {str(path) for path in names["files"]}
    scores = [result.instances.scores for result in names["same"]]
    assert len(scores) == 6 and all(torch.equal(other, scores[0]) for other in scores)
    for picture in ("first.png", "second.png", "panoptic.png", "panoptic_ids.png", "drawings/00007.png"):
        assert Path(picture).stat().st_size > 0
    assert len(list(Path("predictions/crops").rglob("*.png"))) == 40
    assert len(Path("drawings/predictions.jsonl").read_text().splitlines()) == 9  # the second command added none
    measured = [json.loads(Path(name, "predictions.json").read_text()) for name in ("measured", "measured_too")]
    keys = ("image_id", "category_id", "score")
    one, other = (torch.tensor([[record[key] for key in keys] for record in records]) for records in measured)
    assert torch.allclose(one, other, atol=1e-5) and set(one[:, 0].tolist()) == set(range(1, 9))
    assert json.loads(Path("analysis/metrics.json").read_text())["metrics"]["AP"] >= 0


@pytest.mark.usefixtures("restore_logging", "demo")
def test_video(repo_root, capsys):
    for module in ("av", "pandas"):
        pytest.importorskip(module)
    names = run_page(repo_root / "docs" / "tutorials" / "video.md", command=stand_in)
    printed = capsys.readouterr().out
    assert "(160, 160) 10.0 12" in printed and "1.1 s: 5 objects" in printed and "0 switches" in printed
    assert names["scores"].misses == 2 and names["scores"].assa == pytest.approx(11 / 12)
    assert Path("tracked/clip.mp4").stat().st_size > 0 and Path("drawn_video/clip.mp4").stat().st_size > 0
    assert len(names["table"]) > 12 and names["table"].track_id.notna().all()


def test_tables_of_inference(repo_root):
    text = text_of(repo_root, "inference")
    columns = text.partition("| columns of `predictions.csv` |")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in columns.splitlines()[2:])) == list(ROW_KEYS)
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - {"--no-json"}  # of --json
    assert len(options) > 20
    assert not [name for name in options if f'"{name}"' not in inspect.getsource(arguments)]


def test_tables_of_video(repo_root):
    text = text_of(repo_root, "video")
    part = text.partition("## Choosing parameters")[2].partition("\n## ")[0]
    known = {*inspect.signature(ByteTracker).parameters, *inspect.signature(ByteTracker.__init__).parameters}
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?:=\w+)?`", part)) - {"score_threshold"}
    assert len(named) > 5 and named <= known
    measured = (repo_root / "benchmarks" / "results" / "tracking_cpu-2core_2026-11-29.md").read_text()
    shown = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \w+Tracker \| (all|>)", line)]
    full = [line.split(" | ") for line in measured.partition("The camera jumps")[0].splitlines()]
    without_parts_of_hota = [[*row[:4], *row[6:]] for row in full if len(row) == 10]
    assert len(shown) == 10 and all(row in without_parts_of_hota for row in shown)


@pytest.mark.usefixtures("restore_logging", "demo")
def test_bulk(repo_root, capsys):
    page = repo_root / "docs" / "tutorials" / "bulk.md"
    run_page(page, command=stand_in)
    printed = capsys.readouterr().out
    assert re.search(r"^4 of 10 images in ", printed, re.MULTILINE)
    assert "10 images" in printed and Path("evaluated/results.json").is_file()
    defaults = {name: value for name, _, value in predict._DEPENDENT}
    assert f"({defaults['shard_size']} by default)" in page.read_text(encoding="utf-8")
