"""Polygons and run lengths that cannot be used are found, with place and cure."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from tests.data.checks.helpers import POLYGON, annotation, check, findings, inspect, kinds, record


class TestMasks:
    @pytest.mark.parametrize("mask", [[[0, 0, 1, 1]], [POLYGON, [0, 0, 1, 1, 2, 2, 3]], [[]]])
    def test_malformed(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="bitmask")
        assert "less than three points" in text and "annotation 0 of 'a.jpg'" in text

    @pytest.mark.parametrize(
        "polygon",
        [
            tuple(POLYGON),
            np.array(POLYGON),
            np.reshape(POLYGON, (3, 2)),
            [[0, 0], [4, 0], [4, 4]],
            [(0, 0), (4, 0), (4, 4)] * 2,
        ],
        ids=str,
    )
    def test_other_types(self, polygon):
        """What the mapper takes."""
        check(record(annotation(segmentation=[polygon])), mask_format="polygon")

    @pytest.mark.parametrize(
        "mask", [[["a"] * 6], [[None] * 6], [[float("nan")] * 6], [[0, 0, 4, 0, 4, float("inf")]]], ids=str
    )
    def test_no_numbers(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="polygon")
        assert text.startswith("1 annotation has a polygon of other than finite numbers")

    @pytest.mark.parametrize(
        "mask",
        [
            "mask.png",
            {},
            {"size": [20, 30]},
            {"size": 20, "counts": [600]},
            np.zeros(600),
            (POLYGON,),
            torch.zeros(20, 30),
        ],
        ids=lambda m: type(m).__name__,
    )
    def test_unknown_kind(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="bitmask")
        assert text.startswith("1 annotation has a 'segmentation' of unknown kind") and "list of polygons, run" in text

    @pytest.mark.parametrize(
        ("mask", "what"),
        [
            (np.zeros((30, 20), bool), "(height, width) (30, 20), where the image has (20, 30)"),
            ({"size": [10, 30], "counts": [300]}, "(height, width) (10, 30), where the image has (20, 30)"),
            ({"size": [20, 30], "counts": [300]}, "run lengths of 300 pixels, for 30 x 20 (width x height)"),
            ({"size": [20, 30], "counts": "x"}, "run lengths of no pixels, for 30 x 20"),
            ({"size": [20, 30], "counts": ["1"]}, "run lengths of no pixels, for 30 x 20"),
        ],
    )
    def test_other_size(self, mask, what):
        bad = record(annotation(segmentation=np.ones((20, 30))), annotation(segmentation=mask, bbox=[0, 0, 4, 4]))
        (text,) = findings(bad, mask_format="bitmask")
        assert text.startswith("1 annotation has a mask that does not fit its image") and what in text

    def test_encoded(self):
        encoded = mask_util.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
        for counts in (encoded["counts"], encoded["counts"].decode()):
            check(record(annotation(segmentation={"size": [20, 30], "counts": counts})), mask_format="bitmask")

    @pytest.mark.parametrize("mask", [None, []])
    def test_missing(self, mask):
        dicts = record(annotation(segmentation=[POLYGON]), annotation(segmentation=mask))
        (text,) = findings(dicts, mask_format="polygon")
        assert "1 annotation has no 'segmentation'" in text and "MODEL.MASK_ON" in text

    def test_masks_that_are_no_polygons_are_told_of_in_one_line(self, caplog):
        masks = ([POLYGON], {"size": [20, 30], "counts": [0, 600]}, np.zeros((20, 30), bool))
        dicts = record(*(annotation(segmentation=m, bbox=[i, 2, 3, 4]) for i, m in enumerate(masks)))
        check(dicts, mask_format="bitmask")
        assert not caplog.records
        check(dicts, mask_format="polygon")
        (line,) = caplog.messages
        assert "2 annotations have a mask that is not a polygon" in line and "run lengths in annotation 1 of" in line
        assert "All masks of this image are given as bitmaps" in line


def test_polygon_without_area(warnings):
    line, clockwise = [0, 0, 2, 2, 4, 4], [0, 0, 0, 4, 4, 4]
    check(
        record(annotation(segmentation=[POLYGON, line]), image_id=1),
        record(annotation(segmentation=[clockwise])),
        mask_format="polygon",
    )
    (text,) = warnings()
    assert "1 annotation has a polygon without area: [0, 0, 2, 2, 4, 4] in annotation 0 of 'a.jpg' (image_id 1)" in text


@pytest.mark.parametrize(
    ("polygon", "crosses"),
    [
        ([0, 0, 4, 0, 4, 4], False),
        ([0, 0, 4, 0, 4, 4, 0, 4], False),
        ([0, 0, 4, 4, 4, 0, 0, 3], True),
        ([0, 0, 9, 0, 9, 9, 5, 9, 5, 5, 4, 5, 4, 9, 0, 9], False),  # not convex
        ([0, 0, 0, 0, 4, 0, 4, 4, 0, 4, 0, 0], False),  # points twice
    ],
)
def test_outline_that_crosses_itself(polygon, crosses):
    report = inspect(record(annotation(segmentation=[polygon])))
    assert ("polygon-crossing" in kinds(report)) == crosses
