"""Findings say what is wrong and where; the table has every annotation but crowd regions."""

import numpy as np
import pytest

from detectron2.data.checks.findings import (
    MAX_CASES,
    AnnotationTable,
    Case,
    Finding,
    evenly_spaced,
    image_findings,
    quantity,
)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "0 annotations have"),
        ((1,), "1 annotation has"),
        ((3, "box", "is"), "3 boxes are"),
        ((2, "category", ""), "2 categories"),
    ],
)
def test_quantity(arguments, text):
    assert quantity(*arguments) == text


def test_text_shows_three_cases():
    cases = [Case(f"box {i}", "a.jpg", 7, i) for i in range(5)]
    text = Finding("box-empty", "error", "5 annotations have no area", "Correct them.", 5, cases).text
    assert text.startswith("5 annotations have no area: box 0 in annotation 0 of 'a.jpg' (image_id 7); box 1")
    assert text.endswith("; and 2 more. Correct them.") and "box 3" not in text


def test_to_dict_leaves_out_what_is_not_known():
    found = Finding("kind", "note", "what", cases=[Case("value", image_id=0)]).to_dict()
    assert found["cases"] == [{"value": "value", "image_id": 0}]


class TestTable:
    def test_empty(self):
        table = AnnotationTable.gather([])
        assert len(table) == 0 and table.sizes_hw().shape == (0, 2)

    def test_positions_and_sizes(self):
        dicts = [
            {"annotations": [{"id": 1, "iscrowd": 1}, {"id": 2}], "height": 4, "width": 5},
            {},
            {"annotations": [{"id": 3}], "file_name": "c.jpg"},
        ]
        table = AnnotationTable.gather(dicts)
        assert [a["id"] for a in table.annotations] == [2, 3]
        assert table.image_of.tolist() == [0, 2] and table.position.tolist() == [1, 0]
        np.testing.assert_array_equal(table.sizes_hw(), [[4, 5], [np.nan, np.nan]])
        assert table.case(1, "x") == Case("x", "c.jpg", None, 0, 3)
        (finding,) = table.findings("k", "error", np.zeros(2 * MAX_CASES, dtype=np.int64), "what", str)
        assert finding.count == 2 * MAX_CASES == 2 * len(finding.cases)


def test_evenly_spaced():
    assert evenly_spaced(0, 5) == [] and evenly_spaced(3, None) == evenly_spaced(3, 3) == [0, 1, 2]
    assert evenly_spaced(101, 3) == [0, 50, 100]


def test_image_findings():
    dicts = [{"file_name": "a.jpg", "image_id": 1}, {}]
    assert image_findings(dicts, "k", "note", [], "no hue") == []
    (finding,) = image_findings(dicts, "k", "note", {0: "grey"}, "no hue", "Look.")
    assert finding.text == "1 image has no hue: 'a.jpg' (image_id 1) grey. Look." and finding.images.tolist() == [0]
