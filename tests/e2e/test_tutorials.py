"""The tutorials do what they say: their blocks run in order, and their table is that of the keys."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.distributed import layout
from detectron2.engine import ShardedCheckpointer
from detectron2.engine.options import TrainOptions
from tests.docs.pages import commands_of, run_page
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

# A LazyConfig builds these itself, or reads them under another name than that of the option.
ELSEWHERE = {
    "SOLVER.STEP_EPOCHS": "-",
    "SOLVER.CHECKPOINTS_TO_KEEP": "`train.checkpointer.max_to_keep`",
    "SOLVER.OPTIMIZER": "-",
    "SOLVER.BETAS": "-",
    "SOLVER.FUSED": "-",
    "SOLVER.LAYER_DECAY": "-",
    "SOLVER.BACKBONE_LR_FACTOR": "-",
    **{key: "-" for key in OPTIONAL_KEYS if key.startswith("MODEL.")},  # arguments of a model
    "TRAIN.DETERMINISTIC": "`train.deterministic`",
    "TEST.MASK_FORMAT": "-",
    "WRITERS": "`train.writers`",
    "DATALOADER.ON_BAD_IMAGE": "`dataloader.train.on_bad_image`",
    "INPUT.EXIF": "`dataloader.train.mapper.exif`",
    "DATALOADER.DATASET_WEIGHTS": "-",
    "DATALOADER.RANDOM_SUBSET_RATIO": "-",
    "DATALOADER.SHARD_WINDOW": "-",
    "DATASETS.TRAIN_REPEAT_FACTOR": "-",
}


@pytest.fixture
def training(repo_root) -> Path:
    return repo_root / "docs" / "tutorials" / "training.md"


@pytest.fixture
def own_datasets():
    """Data sets that a test registers are gone when it is over."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def records(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


@pytest.mark.usefixtures("restore_logging", "own_datasets")
def test_training(training, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_page(training)
    assert re.search(r"^2$", capsys.readouterr().out, re.MULTILINE)  # where the second run began
    assert {p.name for p in Path("output/first").glob("*.pth")} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
    }
    second = {p.name for p in Path("output/second").iterdir()}
    assert {"model_best.pth", "model_final_ema.pth", "metrics.csv", "metrics.json"} <= second
    assert not [name for name in second if "tfevents" in name]
    assert any(record.get("gradient_norm", 0) > 0 for record in records("output/second"))
    assert not any(p.requires_grad for p in names["trainer"].model.backbone.bottom_up.parameters())
    lazy = records("output/lazy")
    assert any("validation/total_loss" in record for record in lazy)
    assert any("bbox/AP" in record for record in lazy)
    assert Path("output/lazy/model_final_ema.pth").is_file()

    assert [words[0] for words in commands_of(training)] == ["train", "plot"]
    assert {"config.yaml", "log.txt", "model_final.pth"} <= {p.name for p in Path("output/again").iterdir()}
    assert Path("curves/curves.png").is_file() and Path("curves/curves.html").is_file()


@pytest.mark.usefixtures("restore_logging", "own_datasets")
def test_models_of_transformers(repo_root, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    page = repo_root / "docs" / "tutorials" / "transformers_models.md"
    run_page(page)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.isdigit()]
    assert printed[0] == "6" and 0 < int(printed[1]) <= 10


def test_native_detr(repo_root, monkeypatch, capsys):
    monkeypatch.chdir(repo_root)
    page = repo_root / "docs" / "tutorials" / "native_detr.md"
    run_page(page)
    printed = capsys.readouterr().out.splitlines()
    assert "'loss_ce_interm'" in printed[-3] and "'loss_ce_dn'" in printed[-3]
    assert printed[-2] == "(320, 400) 50" and printed[-1] == "5 levels"


def test_table_of_keys(training):
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in training.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert all(len(row) == 4 and row[3] for row in rows)
    assert {row[0].strip("`"): ast.literal_eval(row[2].strip("`")) for row in rows} == OPTIONAL_KEYS
    lazy = {row.metadata["key"]: f"`train.{row.name}`" for row in fields(TrainOptions)} | ELSEWHERE
    assert {row[0].strip("`"): row[1] for row in rows} == lazy


def test_distributed(repo_root, tmp_path, monkeypatch, capsys):
    """The blocks run, and the table has the variables that are read."""
    monkeypatch.chdir(tmp_path)
    page = repo_root / "docs" / "tutorials" / "distributed.md"
    run_page(page, names={"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "Hello from process 0 of 1" in printed
    assert "32 processes, of which this machine starts 8 from rank 24" in printed
    assert sorted(p.name for p in (tmp_path / "output").iterdir()) == ["last_checkpoint", "model_0004999.pth"]
    text = page.read_text(encoding="utf-8")
    table = text.partition("| started by |")[2].partition("\n\n")[0]
    named = {key for starter in layout._STARTERS for key in (*starter.rank, *starter.keys)}
    assert set(re.findall(r"`([A-Z_]{4,})`", table)) == named | {"MASTER_ADDR", "MASTER_PORT"}
    layouts = text.partition("| | |\n| --- | --- |\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", layouts, re.MULTILINE)) == ShardedCheckpointer.LAYOUTS
