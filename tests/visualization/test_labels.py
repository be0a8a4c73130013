import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.visualization.labels import LabelPlacer, _create_text_labels


@pytest.mark.parametrize(
    ("classes", "scores", "names", "crowd", "labels"),
    [
        (None, None, None, None, None),
        ([], [], ["a"], None, []),
        ([1, 0], None, ["a", "b"], None, ["b", "a"]),
        ([1, 0], None, None, None, ["1", "0"]),
        ([1, 0], None, [], None, ["1", "0"]),
        ([1], [0.956], ["a", "b"], None, ["b 96%"]),
        (None, [0.5, 1.0], ["a"], None, ["50%", "100%"]),
        ([0, 0], None, ["a"], [0, 1], ["a", "a|crowd"]),
        ([0, 7], None, ["a"], None, ["a", "7"]),
    ],
)
def test_text(classes, scores, names, crowd, labels):
    assert _create_text_labels(classes, scores, names, crowd) == labels


def test_scores_may_be_a_tensor():
    assert _create_text_labels([0], torch.tensor([0.25]), ["x"]) == ["x 25%"]


def test_the_first_free_place_is_taken():
    placer = LabelPlacer((100, 100))
    assert placer.place((20, 10), [(5, 5)]) == (5, 5)
    assert placer.place((20, 10), [(10, 10), (40, 40)]) == (40, 40)
    # all covered: the least covered
    assert placer.place((20, 10), [(5, 5), (20, 5)]) == (20, 5)


places = st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(places, min_size=1, max_size=6))
def test_labels_stay_inside(candidates):
    placer = LabelPlacer((100, 80))
    for corners in candidates:
        x, y = placer.place((30, 12), corners)
        assert 0 <= x <= 70
        assert 0 <= y <= 68


def test_a_label_larger_than_the_image_begins_at_the_origin():
    assert LabelPlacer((10, 10)).place((30, 12), [(5, 5)]) == (0, 0)
