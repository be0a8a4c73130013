"""The page about performance: its blocks run, its commands are understood, and its files and parts are there."""

import re

import pytest
import torch

from detectron2.cli.arguments import parse
from detectron2.data import DatasetCatalog, MetadataCatalog
from tests.docs.pages import commands_of, run_page
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def page(repo_root):
    return repo_root / "docs" / "tutorials" / "performance.md"


@pytest.mark.usefixtures("restore_logging")
def test_its_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    try:
        names = run_page(page, command=parse)  # the commands measure for minutes
    finally:
        DatasetCatalog.pop("measured", None)
        MetadataCatalog.pop("measured", None)
    out = capsys.readouterr().out
    for part in ("network", "postprocessing", "forward", "backward", "update"):
        assert part in out
    assert (
        set(names["seconds"]) == {0, 1} and "instances" in names["results"][0] and names["result"].size_hw == (96, 96)
    )


def test_its_commands_are_understood(page):
    found = commands_of(page)
    assert {words[0] for words in found} == {"benchmark"}
    assert [parse(words).command for words in found] == ["benchmark"] * len(found)


def test_files_of_results_are_there(page, repo_root):
    found = set(re.findall(r"`([\w-]+_cpu-2core_[\d-]+\.md)`", page.read_text(encoding="utf-8")))
    missing = {name for name in found if not (repo_root / "benchmarks" / "results" / name).is_file()}
    assert len(found) > 5 and missing == set()
