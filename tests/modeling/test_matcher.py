"""Tables of matches worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.modeling import matcher as matcher_module
from detectron2.modeling.matcher import Matcher, match_boxes
from detectron2.structures import Boxes, pairwise_iou

RPN = {"thresholds": [0.3, 0.7], "labels": [0, -1, 1]}


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
def test_nothing_to_match(shape, low_quality):
    matches, labels = Matcher(**RPN, allow_low_quality_matches=low_quality)(torch.zeros(shape))
    assert matches.dtype == torch.int64 and labels.dtype == torch.int8
    assert matches.tolist() == labels.tolist() == [0] * shape[1]


def test_lowest_label_without_ground_truth():
    _, labels = Matcher([0.5], [-1, 1])(torch.zeros(0, 3))
    assert labels.tolist() == [-1, -1, -1]


def test_intervals_are_closed_below():
    quality = torch.tensor([[0.0, 0.29, 0.3, 0.69, 0.7, 1.0]], dtype=torch.float64)
    matches, labels = Matcher(**RPN)(quality)
    assert matches.tolist() == [0] * 6
    assert labels.tolist() == [0, 0, -1, -1, 1, 1]


def test_best_ground_truth_wins():
    quality = torch.tensor([[0.1, 0.8, 0.5], [0.2, 0.1, 0.6], [0.9, 0.1, 0.0]])
    matches, labels = Matcher([0.5], [0, 1])(quality)
    assert matches.tolist() == [2, 0, 1]
    assert labels.tolist() == [1, 1, 1]


def test_low_quality_matches():
    quality = torch.tensor(
        [
            [0.10, 0.75, 0.20, 0.75],  # best twice, both above the threshold anyway
            [0.15, 0.10, 0.15, 0.05],  # best twice: columns 0 and 2
        ]
    )
    assert Matcher(**RPN)(quality)[1].tolist() == [0, 1, 0, 1]
    matches, labels = Matcher(**RPN, allow_low_quality_matches=True)(quality)
    assert labels.tolist() == [1, 1, 1, 1]
    # Column 2 is labelled for the sake of row 1, but matched to its own best, row 0.
    assert matches.tolist() == [1, 0, 0, 0]


def test_ground_truth_that_meets_nothing_makes_no_positives():
    quality = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.8, 0.1]])
    assert Matcher(**RPN, allow_low_quality_matches=True)(quality)[1].tolist() == [0, 1, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_laws(rows):
    quality = torch.tensor(rows)
    matches, labels = Matcher(**RPN)(quality)
    best = quality.max(dim=0).values
    assert torch.equal(quality[matches, torch.arange(4)], best)
    for value, label in zip(best.tolist(), labels.tolist(), strict=True):
        assert label == (0 if value < torch.tensor(0.3) else -1 if value < torch.tensor(0.7) else 1)
    more = Matcher(**RPN, allow_low_quality_matches=True)(quality)[1]
    assert torch.equal(more[labels == 1], labels[labels == 1])
    for row in quality:
        assert row.max() == 0 or (more[row == row.max()] == 1).all()


@pytest.mark.parametrize(
    ("thresholds", "labels", "message"),
    [
        ([0.7, 0.3], [0, -1, 1], "ascending"),
        ([0.0], [0, 1], "positive"),
        ([0.5], [0], "2 intervals"),
        ([0.5], [0, 2], "must be -1"),
    ],
)
def test_bad_arguments(thresholds, labels, message):
    with pytest.raises(ValueError, match=message):
        Matcher(thresholds, labels)


def test_shape_is_checked():
    with pytest.raises(ValueError, match="matrix"):
        Matcher(**RPN)(torch.zeros(3))


@pytest.mark.parametrize(("num_truth", "num_boxes"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_to_match(num_truth, num_boxes):
    truth, boxes = Boxes(torch.zeros(num_truth, 4)), Boxes(torch.zeros(num_boxes, 4))
    matches, labels = match_boxes(Matcher(**RPN, allow_low_quality_matches=True), pairwise_iou, truth, boxes)
    assert matches.tolist() == labels.tolist() == [0] * num_boxes


corners = st.lists(st.integers(0, 6), min_size=4, max_size=4)  # few values: many ties, some boxes without area


@settings(max_examples=60, deadline=None)
@given(st.lists(corners, min_size=1, max_size=4), st.lists(corners, min_size=1, max_size=9), st.booleans())
def test_parts_give_what_the_matrix_gives(truth, boxes, low_quality):
    truth, boxes = (Boxes(torch.tensor(b, dtype=torch.float32)) for b in (truth, boxes))
    matcher = Matcher(**RPN, allow_low_quality_matches=low_quality)
    expected = matcher(pairwise_iou(truth, boxes))
    widths = []

    def overlaps(gt_boxes, part):
        widths.append(len(part))
        return pairwise_iou(gt_boxes, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matcher_module, "_MANY_QUALITIES", 0)
        patch.setattr(matcher_module, "_QUALITIES_AT_ONCE", 2 * len(truth))
        matches, labels = match_boxes(matcher, overlaps, truth, boxes)
    assert max(widths) <= 2 and sum(widths) == len(boxes)
    assert labels.dtype == torch.int8 and labels.tolist() == expected[1].tolist()
    assert matches.tolist() == expected[0].tolist()


def test_matchers_of_other_classes_get_the_whole_matrix(monkeypatch):
    class Nothing(Matcher):
        def __call__(self, matrix):
            assert matrix.shape == (1, 5)
            return torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int8)

    monkeypatch.setattr(matcher_module, "_MANY_QUALITIES", 0)
    monkeypatch.setattr(matcher_module, "_QUALITIES_AT_ONCE", 1)
    same = Boxes(torch.ones(5, 4))
    assert match_boxes(Nothing(**RPN), pairwise_iou, same[:1], same)[1].tolist() == [0] * 5
