import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from detectron2.tracking import BaseHungarianTracker
from detectron2.tracking.hungarian_tracker import LARGE_COST_VALUE, linear_sum_assignment


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (np.zeros((0, 0)), ([], [])),
        (np.zeros((0, 3)), ([], [])),
        (np.zeros((3, 0)), ([], [])),
        ([[5.0]], ([0], [0])),
        ([[4, 1, 3], [2, 0, 5], [3, 2, 2]], ([0, 1, 2], [1, 0, 2])),
        ([[1, 0, 9]], ([0], [1])),
        ([[1], [0], [9]], ([1], [0])),
        ([[-1, -9], [-9, -1]], ([0, 1], [1, 0])),
    ],
)
def test_assignment(cost, expected):
    rows, columns = linear_sum_assignment(np.asarray(cost))
    assert (rows.tolist(), columns.tolist()) == tuple(expected)
    assert rows.dtype == columns.dtype == np.int64


def least_sum(cost):
    """Least sum over all assignments, tried one by one."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    choices = itertools.permutations(range(cost.shape[1]), cost.shape[0])
    return min(sum(cost[i, j] for i, j in enumerate(choice)) for choice in choices)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_assignment_against_all_others(data, rows, columns):
    values = st.one_of(st.integers(-4, 4), st.just(LARGE_COST_VALUE), st.floats(-10, 10))  # with many ties
    cost = np.array(data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)), dtype=float)
    cost = cost.reshape(rows, columns)
    i, j = linear_sum_assignment(cost)
    assert len(set(i.tolist())) == len(set(j.tolist())) == len(i) == min(rows, columns)
    assert i.tolist() == sorted(i.tolist())
    assert cost[i, j].sum() == pytest.approx(least_sum(cost), abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 40), (30, 60), (60, 30)])
@pytest.mark.parametrize("kind", ["any", "few", "equal"])
def test_assignment_of_many(shape, kind):
    generator = np.random.default_rng(3)
    cost = generator.normal(size=shape)
    if kind == "few":
        cost[generator.random(shape) < 0.9] = LARGE_COST_VALUE
    elif kind == "equal":
        cost = np.where(generator.random(shape) < 0.2, -1.0, LARGE_COST_VALUE)
    i, j = linear_sum_assignment(cost)
    k, m = optimize.linear_sum_assignment(cost)
    assert cost[i, j].sum() == pytest.approx(cost[k, m].sum())


@pytest.mark.parametrize("cost", [np.zeros(3), np.full((2, 2), np.nan), [[np.inf, 1.0]]])
def test_assignment_of_what_is_no_cost(cost):
    with pytest.raises(ValueError, match="finite matrix"):
        linear_sum_assignment(np.asarray(cost))


class FixedCost(BaseHungarianTracker):
    cost = np.zeros((0, 0))

    def build_cost_matrix(self, instances, prev_instances):
        return np.array(self.cost, dtype=float)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ([[0, LARGE_COST_VALUE], [LARGE_COST_VALUE, 0]], [0, 1]),
        ([[1, 0], [0, 5]], [1, 0]),
        ([[LARGE_COST_VALUE] * 2] * 2, [2, 3]),
        ([[LARGE_COST_VALUE, 0], [LARGE_COST_VALUE, 1]], [1, 2]),  # never a forbidden pair, though one is left over
    ],
)
def test_costs_decide(video_arguments, frame, cost, expected):
    tracker = FixedCost(**video_arguments)
    boxes = [0, 0, 20, 20], [100, 50, 120, 70]
    tracker.update(frame(*boxes))
    tracker.cost = cost
    assert expected == tracker.update(frame(*boxes)).ID


def test_the_base_has_no_costs(video_arguments, frame):
    tracker = BaseHungarianTracker(**video_arguments)
    assert tracker.update(frame([0, 0, 1, 1])).ID == [0]
    with pytest.raises(NotImplementedError, match="build_cost_matrix"):
        tracker.update(frame([0, 0, 1, 1]))


def test_each_step_by_itself(video_arguments, frame):
    tracker = BaseHungarianTracker(**video_arguments, max_lost_frame_count=3)
    before = tracker._initialize_extra_fields(frame([0, 0, 20, 20], [100, 50, 120, 70]))
    assert (before.ID, before.ID_period, before.lost_frame_count, tracker._id_count) == ([0, 1], [1, 1], [0, 0], 2)
    before.ID_period = [3, 3]
    tracker._prev_instances = before
    now = tracker._initialize_extra_fields(frame([101, 50, 121, 70], [50, 0, 70, 20]))
    assert now.ID == [None, None]
    matched, matched_before = np.array([0]), np.array([1])
    now = tracker._process_matched_idx(now, matched, matched_before)
    assert (now.ID, now.ID_period[0], now.lost_frame_count[0]) == ([1, None], 4, 0)
    now = tracker._process_unmatched_idx(now, matched)
    assert (now.ID, now.ID_period, tracker._id_count) == ([1, 2], [4, 1], 3)
    now = tracker._process_unmatched_prev_idx(now, matched_before)
    assert (now.ID, now.lost_frame_count) == ([1, 2, 0], [0, 0, 1])
