"""The page about performance: its blocks run, its commands are understood, and its files and parts are there."""

import re

import numpy as np
import pytest
import torch

from detectron2.cli.arguments import parse
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.modeling import build_model
from tests.e2e.test_tutorials import commands, python_blocks


@pytest.fixture
def page(repo_root):
    return repo_root / "docs" / "tutorials" / "performance.md"


def test_its_blocks_run(page, cfg, tmp_path, capsys):
    torch.manual_seed(0)
    model, mapper = build_model(cfg), DatasetMapper(cfg, is_train=True)
    weights = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, weights)
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    names = {"cfg": cfg, "model": model, "mapper": mapper, "records": records, "weights": str(weights)}
    names |= {"batches": [[mapper(records[0])]], "image": np.zeros((64, 96, 3), np.uint8)}
    model.eval()
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), names)
    out = capsys.readouterr().out
    for part in ("network", "postprocessing", "forward", "backward", "update"):
        assert part in out
    assert set(names["seconds"]) == {0, 1} and "instances" in names["results"][0]


def test_its_commands_are_understood(page):
    found = commands(page)
    assert {words[0] for words in found} == {"benchmark"}
    assert [parse(words).command for words in found] == ["benchmark"] * len(found)


def test_files_of_results_are_there(page, repo_root):
    found = set(re.findall(r"`([\w-]+_cpu-2core_[\d-]+\.md)`", page.read_text(encoding="utf-8")))
    missing = {name for name in found if not (repo_root / "benchmarks" / "results" / name).is_file()}
    assert len(found) > 5 and missing == set()
