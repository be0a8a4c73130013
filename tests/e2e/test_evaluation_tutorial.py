"""The evaluation tutorial does what it says: its blocks, Python and commands, run in order."""

import json
import re
from pathlib import Path

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from tests.docs.pages import run_page
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def own_datasets():
    """Data sets that a test registers are gone when it is over."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.usefixtures("restore_logging", "own_datasets")
def test_evaluation(repo_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})  # take seconds; other tests draw them
    page = repo_root / "docs" / "tutorials" / "evaluation.md"
    text = page.read_text(encoding="utf-8")
    names = run_page(page)
    printed = capsys.readouterr().out
    assert "against the other run" in printed and "The whole report is comparison/report.html" in printed
    assert names["results"]["second"]["bbox"]["AP"] > names["results"]["first"]["bbox"]["AP"]
    for folder in ("runs/second/analysis", "analysis"):
        found = json.loads(Path(folder, "metrics.json").read_text())
        assert 100 * found["metrics"]["AP"] == pytest.approx(names["results"]["second"]["bbox"]["AP"])
    compared = json.loads(Path("comparison", "metrics.json").read_text())["comparison"]
    assert compared["metrics"]["AP"]["delta"] == pytest.approx(names["comparison"].metrics["AP"].delta)
    assert names["analysis"].errors["missed"].count > 0 and names["wrong"]
    files = {path.name for path in Path("analysis").iterdir() if path.suffix != ".png"}
    named = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    assert files == named


def test_all_options_exist(repo_root):
    text = (repo_root / "docs" / "tutorials" / "evaluation.md").read_text(encoding="utf-8")
    sources = [(repo_root / "detectron2" / "cli" / f"{name}.py").read_text() for name in ("arguments",)]
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert len(options) > 10
    assert not [option for option in options if f'"{option}"' not in "".join(sources)]
