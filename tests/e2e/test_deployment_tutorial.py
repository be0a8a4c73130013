"""The page about deployment: its blocks run, and its tables are those of the code."""

import re

import pytest

from detectron2.config import get_cfg
from detectron2.export.formats import FORMATS
from tests.docs.pages import run_page
from tests.export.test_tracing import tiny_model


@pytest.fixture
def page(repo_root):
    return repo_root / "docs" / "tutorials" / "deployment.md"


def test_its_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 64
    run_page(page, {"model": tiny_model("mask"), "cfg": cfg})
    out = capsys.readouterr().out
    assert "no detections" in out and "(240, 320)" in out


def test_its_table_has_all_formats(page):
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([^|]*) \|", text, re.MULTILINE)
    assert {name: tuple(x.strip() for x in numbers.split(",")) for name, numbers in rows if name in FORMATS} == {
        name: row.precisions for name, row in FORMATS.items()
    }
