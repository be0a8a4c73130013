"""Measures of tracks against values worked out by hand, and against all assignments of small cases."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import Boxes, Instances
from detectron2.tracking.metrics import HOTA_THRESHOLDS, evaluate_tracks

A, B = [0, 0, 10, 10], [50, 50, 60, 60]
NONE = ([], [])


def frames(*rows):
    """Frames of dictionaries of identity and box."""
    return [(list(row), [row[i] for i in row]) for row in rows]


def test_nothing_to_be_measured():
    for scores in (evaluate_tracks([], []), evaluate_tracks([NONE], [NONE])):
        assert (scores.true_count, scores.predicted_count, scores.misses, scores.id_switches) == (0, 0, 0, 0)
        for value in (scores.hota, scores.deta, scores.assa, scores.mota, scores.motp, scores.idf1):
            assert math.isnan(value)


def test_nothing_found_and_nothing_there():
    missed = evaluate_tracks(frames({1: A}, {1: A}), [NONE, NONE])
    assert (missed.hota, missed.deta, missed.mota, missed.idf1, missed.misses) == (0, 0, 0, 0, 2)
    assert math.isnan(missed.motp)
    extra = evaluate_tracks([NONE], frames({1: A}))
    assert (extra.hota, extra.idf1, extra.false_positives) == (0, 0, 1)
    assert math.isnan(extra.mota)


def test_perfect_tracks_under_other_names():
    scores = evaluate_tracks(frames({1: A, 2: B}, {1: B}, {2: A}), frames({"b": B, "a": A}, {"a": B}, {"b": A}))
    for name in ("hota", "deta", "assa", "loca", "mota", "motp", "idf1", "idp", "idr"):
        assert getattr(scores, name) == pytest.approx(1), name
    assert (scores.id_switches, scores.misses, scores.false_positives) == (0, 0, 0)


def test_a_track_that_breaks():
    scores = evaluate_tracks(frames(*[{1: A}] * 4), frames({7: A}, {7: A}, {7: A}, {8: A}))
    assert (scores.id_switches, scores.mota) == (1, 0.75)
    assert scores.idf1 == pytest.approx(2 * 3 / 8)
    # three matches with 3 of 4 boxes in common, one with 1 of 4
    assert (scores.deta, scores.assa) == pytest.approx((1, (3 * 3 / 4 + 1 / 4) / 4))
    assert scores.hota == pytest.approx(math.sqrt(0.625))


def test_two_that_swap_their_names():
    scores = evaluate_tracks(frames(*[{1: A, 2: B}] * 2), frames({1: A, 2: B}, {1: B, 2: A}))
    assert (scores.id_switches, scores.mota, scores.idf1) == (2, 0.5, 0.5)
    assert scores.assa == pytest.approx(1 / 3)


def test_misses_and_false_positives():
    scores = evaluate_tracks(frames({1: A, 2: B}, {1: A, 2: B}), frames({1: A, 5: [90, 0, 99, 9]}, {1: A}))
    assert (scores.misses, scores.false_positives, scores.id_switches) == (2, 1, 0)
    assert scores.mota == pytest.approx(1 - 3 / 4)
    assert scores.idf1 == pytest.approx(2 * 2 / (4 + 3))
    assert (scores.idp, scores.idr) == pytest.approx((2 / 3, 2 / 4))
    assert (scores.deta, scores.assa) == pytest.approx((2 / (2 + 2 + 1), 1))


def test_boxes_that_are_not_exact():
    scores = evaluate_tracks(frames({1: A}), frames({1: [0, 0, 10, 7.5]}))  # IoU 0.75
    assert (scores.motp, scores.mota) == pytest.approx((0.75, 1))
    passes = HOTA_THRESHOLDS <= 0.75
    assert passes.sum() == 15
    assert scores.hota_by_threshold == pytest.approx(passes.astype(float))
    assert scores.hota == pytest.approx(15 / 19)
    strict = evaluate_tracks(frames({1: A}), frames({1: [0, 0, 10, 7.5]}), iou_threshold=0.8)
    assert (strict.mota, strict.misses, strict.false_positives) == (-1, 1, 1)
    assert evaluate_tracks(frames({1: A}), frames({1: [0, 0, 10, 5]})).mota == 1  # the threshold itself is enough


def test_a_match_is_kept_as_long_as_it_is_possible():
    near, nearer = [0, 0, 10, 8], [0, 0, 10, 9]
    scores = evaluate_tracks(frames({1: A}, {1: A}), frames({1: near}, {1: near, 2: nearer}))
    assert (scores.id_switches, scores.motp) == (0, pytest.approx(0.8))
    # it is remembered while the object is not seen
    scores = evaluate_tracks(frames({1: A}, {1: A}, {1: A}), frames({1: near}, {}, {1: near, 2: nearer}))
    assert scores.id_switches == 0
    scores = evaluate_tracks(frames({1: A}, {1: A}, {1: A}), frames({1: near}, {}, {2: near}))
    assert scores.id_switches == 1


def test_videos_behind_each_other():
    one = (frames({1: A, 2: B}, {1: A}), frames({1: A}, {3: A}))
    renamed = [[([("v", i) for i in ids], boxes) for ids, boxes in side] for side in one]
    both = evaluate_tracks(one[0] + renamed[0], one[1] + renamed[1])
    alone = evaluate_tracks(*one)
    for name in ("hota", "assa", "mota", "idf1"):
        assert getattr(both, name) == pytest.approx(getattr(alone, name))
    assert both.id_switches == 2 * alone.id_switches == 2


def test_instances():
    found = Instances((99, 99), pred_boxes=Boxes([A, B]), ID=[3, 4], lost_frame_count=[0, 2])
    true = Instances((99, 99), gt_boxes=Boxes([A]), ID=torch.tensor([9]))
    scores = evaluate_tracks([true], [found])
    assert (scores.mota, scores.predicted_count) == (1, 1)  # the lost one does not count
    assert evaluate_tracks([(np.array([1]), np.array([A]))], [found]).mota == 1


def test_input_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 true frames and 1 predicted"):
        evaluate_tracks([NONE, NONE], [NONE])
    with pytest.raises(ValueError, match="frame 1 has 2 identities, 1 different"):
        evaluate_tracks([NONE, NONE], [NONE, ([1, 1], [A, B])])
    with pytest.raises(ValueError, match=r"frame 0 has 1 identities.*2 boxes"):
        evaluate_tracks([([1], [A, B])], [NONE])
    with pytest.raises(ValueError, match="above 0"):
        evaluate_tracks([], [], iou_threshold=0)


def test_boxes_without_area_match_nothing():
    scores = evaluate_tracks(frames({1: [5, 5, 5, 5]}), frames({1: [5, 5, 5, 5]}))
    assert (scores.misses, scores.hota) == (1, 0)


def noisy_video(seed):
    """Four objects in 30 frames under names that change now and then, with misses and false positives."""
    generator = np.random.default_rng(seed)
    corner, velocity = generator.uniform(0, 60, (4, 2)), generator.normal(0, 2, (4, 2))
    names, true, predicted = np.arange(4), [], []
    for _ in range(30):
        corner = corner + velocity
        boxes = np.concatenate([corner, corner + np.array([20, 30])], axis=1)
        here, found = (np.flatnonzero(generator.random(4) < share) for share in (0.9, 0.85))
        names = generator.permutation(4) if generator.random() < 0.15 else names
        true.append((here, boxes[here]))
        noisy = boxes[found] + generator.normal(0, 2, (len(found), 4))
        false = np.concatenate([generator.uniform(0, 40, (1, 2)), generator.uniform(41, 80, (1, 2))], axis=1)
        predicted.append(([*names[found].tolist(), "false"], np.concatenate([noisy, false])))
    return true, predicted


# Recorded from TrackEval (HOTA, DetA, AssA, LocA) and py-motmetrics (the others), which took no part in this code.
REFERENCES = {
    0: [
        0.3918816166,
        0.4806922640,
        0.3213515611,
        0.8001821194,
        0.3738317757,
        0.7752743326,
        0.5857740586,
        0.5303030303,
        0.6542056075,
        12,
    ],
    1: [
        0.3355146507,
        0.5144945947,
        0.2203937386,
        0.7996035336,
        0.4444444444,
        0.7755941854,
        0.4545454545,
        0.4104477612,
        0.5092592593,
        8,
    ],
    2: [
        0.3197750765,
        0.4952725945,
        0.2068179879,
        0.7953487876,
        0.3644859813,
        0.7565212616,
        0.4571428571,
        0.4057971014,
        0.5233644860,
        15,
    ],
}


@pytest.mark.parametrize("seed", REFERENCES)
def test_two_other_implementations_agree(seed):
    scores = evaluate_tracks(*noisy_video(seed))
    names = ("hota", "deta", "assa", "loca", "mota", "motp", "idf1", "idp", "idr", "id_switches")
    found = [getattr(scores, name) for name in names]
    assert found == pytest.approx(REFERENCES[seed], abs=1e-9)


sides = st.lists(
    st.dictionaries(st.integers(0, 2), st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3),
    min_size=3,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(true=sides, predicted=sides)
def test_identities_are_assigned_as_well_as_can_be(true, predicted):
    pairs = [
        [{i: [3 * x, 3 * y, 3 * x + 10, 3 * y + 10] for i, (x, y) in row.items()} for row in s]
        for s in (true, predicted)
    ]
    scores = evaluate_tracks(frames(*pairs[0]), frames(*pairs[1]))

    def is_match(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        return shared / (200 - shared) >= 0.5

    best = max(
        sum(
            i in f and order[i] in g and is_match(f[i], g[order[i]])
            for f, g in zip(*pairs, strict=True)
            for i in range(3)
        )
        for order in itertools.permutations(range(3))
    )
    count = sum(map(len, true)) + sum(map(len, predicted))
    assert scores.idf1 == pytest.approx(2 * best / count) if count else math.isnan(scores.idf1)
    if scores.true_count and scores.predicted_count:
        assert 0 <= scores.hota <= 1 and 0 <= scores.assa <= 1
        # with both sides exchanged, detection and association are the same
        other = evaluate_tracks(frames(*pairs[1]), frames(*pairs[0]))
        assert other.idf1 == pytest.approx(scores.idf1) and other.deta == pytest.approx(scores.deta)
