"""The table of the tutorial is what the exporter was seen to do."""

import json

import pytest

from tests.export.coverage import EVERY, RECORD, TUTORIAL, WORDS, export, table
from tests.export.graphs.models import MODELS

FORMATS = ("pt2", "torchscript")


def test_the_record_has_every_model_in_every_format():
    record = json.loads(RECORD.read_text())
    assert record.keys() == EVERY.keys()
    for name, cells in record.items():
        assert name not in MODELS or set(FORMATS) <= cells.keys(), name
        for format, cell in cells.items():
            assert cell["dynamic"] is None or tuple(cell["dynamic"]) in WORDS
            assert cell["dynamic"] is None or cell["cases"] >= 3, (name, format)


def test_the_formats_that_messages_name_work():
    """`other_ways` names them."""
    for name, cells in json.loads(RECORD.read_text()).items():
        tried = [cell["dynamic"] is not None for cell in cells.values()]
        works = "pt2" if "deformable convolution" in name else "onnx"
        assert not any(tried) or all(cells[format]["dynamic"] is not None for format in (works, "torchscript")), name


def test_the_tutorial_shows_the_record():
    assert table(json.loads(RECORD.read_text())) in TUTORIAL.read_text(encoding="utf-8")


def test_the_table_of_a_record():
    assert table({}).splitlines()[-1].endswith("| not tried | not tried | not tried | not tried | not tried |")
    record = {name: {"onnx": {"dynamic": ["batch"]}, "pt2": {"dynamic": None}} for name in EVERY}
    assert table(record).splitlines()[2] == "| Faster R-CNN, FPN | one size | not tried | no | not tried | not tried |"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semantic FPN", "Faster R-CNN, Swin", "RetinaNet"])
def test_a_cell_is_still_true(name):
    record = json.loads(RECORD.read_text())
    assert export(name, "onnx")["dynamic"] == record[name]["onnx"]["dynamic"]
