import numpy as np

from detectron2.tracking import BBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker
from detectron2.tracking.hungarian_tracker import LARGE_COST_VALUE


def test_costs(video_arguments, frame):
    tracker = IOUWeightedHungarianBBoxIOUTracker(**video_arguments, track_iou_threshold=0.3)
    previous = tracker.update(frame([0, 0, 20, 20], [100, 50, 120, 70]))
    cost = tracker.build_cost_matrix(frame([10, 0, 30, 20], [100, 50, 120, 70]), previous)
    np.testing.assert_allclose(cost, [[-1 / 3, LARGE_COST_VALUE], [LARGE_COST_VALUE, -1]], rtol=1e-6)
    assert tracker.build_cost_matrix(frame(), previous).shape == (0, 2)


def test_costs_are_set_in_place(video_arguments):
    tracker = IOUWeightedHungarianBBoxIOUTracker(**video_arguments)
    cost = np.full((2, 2), 7.0)
    assert tracker.assign_cost_matrix_values(cost, [{"idx": 0, "prev_idx": 1, "IoU": 0.6}]) is cost
    assert cost.tolist() == [[7, -0.6], [7, 7]]


def test_the_sum_of_overlaps_decides(video_arguments, frame):
    # IoU of the first with those before: 18/22 and 12/28; of the second: 12/28 and 2/38, which is too little.
    before, now = frame([20, 0, 40, 20], [30, 0, 50, 20]), frame([22, 0, 42, 20], [12, 0, 32, 20])
    assert 12 / 28 + 12 / 28 > 18 / 22
    for kind, expected in ((IOUWeightedHungarianBBoxIOUTracker, [1, 0]), (BBoxIOUTracker, [0, 2])):
        tracker = kind(**video_arguments, track_iou_threshold=0.3)
        tracker.update(before)
        assert expected == tracker.update(now).ID
