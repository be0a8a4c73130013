"""The cookbook: its blocks run in order, its other commands are understood, and its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

from detectron2.cli.arguments import parse
from detectron2.data import DatasetCatalog, MetadataCatalog
from tests.docs.pages import run_page
from tests.e2e.test_inference_tutorials import stand_in
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def page(repo_root) -> Path:
    return repo_root / "docs" / "cookbook.md"


@pytest.fixture
def _own_datasets():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def records(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


@pytest.mark.usefixtures("restore_logging", "_own_datasets")
def test_its_blocks_run(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})  # take seconds; other tests draw them
    names = run_page(page, command=stand_in)
    printed = capsys.readouterr().out
    assert "tensor([0, 2])" in printed  # what is left of the rotated boxes
    first, second = records("output/first"), records("output/second")
    assert [r["iteration"] for r in first if "validation/total_loss" in r] == [
        1,
        3,
    ]  # the second after it was continued
    assert names["description"].iteration == 3
    assert len(names["description"].metadata["thing_classes"]) == 6
    assert any("bbox/AP" in r for r in second) and Path("output/second/model_best.pth").is_file()
    assert Path("output/second/metrics.csv").is_file() and not list(Path("output/second").glob("*tfevents*"))
    assert "Learning rate: 1e+30" in printed and list(Path("output/wild").glob("nonfinite_*.pth"))
    assert names["batch"][0]["instances"].gt_boxes.tensor.shape == (1, 5)
    assert {"precision", "recall", "f1"} <= {c.lower() for c in re.findall(r"\w+", printed)}
    assert len(Path("predictions/predictions.csv").read_text().splitlines()) == 1 + 3 * 5
    assert Path("video/clip.mp4").stat().st_size > 0 and Path("drawn.png").stat().st_size > 0
    assert len(names["described"]["inputs"]) >= 2


def test_other_commands_are_understood(page):
    """Those that are not run, in indented blocks."""
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^    (\w.*)$", page.read_text(), re.MULTILINE)]
    for words in lines:
        if words and words[0] == "detectron2":
            assert parse(words[1:]).command == words[1]


def test_links(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^### .*[?.]$", text, re.MULTILINE)) == 25
    for target, anchor in re.findall(r"\]\(([\w/]+\.md)(?:#([\w-]+))?\)", text):
        other = page.parent / target
        titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, (target, anchor)
