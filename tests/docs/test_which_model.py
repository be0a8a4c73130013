"""The table of models to choose from: its numbers are those published and those measured."""

import re
from pathlib import Path

import pytest

from detectron2.model_zoo.published import WEIGHTS_LICENSE, find_model

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "results" / "models_cpu-1core_2026-11-30.md"


def rows_of(path: Path) -> list[list[str]]:
    """Cells of the lines of a table that begin with something other than a heading."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("model", "---")]


def test_no_table(tmp_path):
    (tmp_path / "page.md").write_text("# Title\n\n| model | a |\n| --- | --- |\n")
    assert rows_of(tmp_path / "page.md") == []


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    return [row for row in rows_of(ROOT / "docs" / "tutorials" / "which_model.md") if len(row) == 10]


def test_models_of_the_zoo_have_their_published_numbers(rows):
    in_zoo = [row for row in rows if row[3] == "zoo"]
    assert len(in_zoo) > 5
    for row in in_zoo:
        model = find_model(row[8].strip("`"))
        published = [model.results[key] for key in ("box AP", "mask AP", "keypoint AP", "PQ") if key in model.results]
        assert [float(x) for x in re.findall(r"\d+\.\d", row[2])] == published, row[0]
        assert row[9] == WEIGHTS_LICENSE == model.license_of_weights


def test_sizes_and_times_are_those_measured(rows):
    measured = {(row[3], row[4], row[2], row[5]) for row in rows_of(MEASURED)}
    assert {(row[4], row[5], row[6], row[7]) for row in rows} == measured and len(measured) == len(rows) > 10


def test_licences_of_timm_are_those_it_records(rows):
    pytest.importorskip("timm")
    from detectron2.checkpoint.timm_weights import timm_licence

    found = [(match[0], row[9]) for row in rows if (match := re.search(r"timm://[\w.]+", row[8]))]
    assert len(found) == 2
    assert all(str(timm_licence(address)).lower() == licence.lower() for address, licence in found)
