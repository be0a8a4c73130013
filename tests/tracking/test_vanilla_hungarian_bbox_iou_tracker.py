import numpy as np

from detectron2.tracking import VanillaHungarianBBoxIOUTracker
from detectron2.tracking.hungarian_tracker import LARGE_COST_VALUE


def test_costs(video_arguments, frame):
    tracker = VanillaHungarianBBoxIOUTracker(**video_arguments)
    previous = tracker.update(frame([0, 0, 20, 20], [100, 50, 120, 70]))
    cost = tracker.build_cost_matrix(frame([101, 50, 121, 70], [60, 0, 70, 10], [0, 0, 20, 20]), previous)
    none = LARGE_COST_VALUE
    assert cost.tolist() == [[none, -1], [none, none], [-1, none]]
    assert tracker.build_cost_matrix(frame(), previous).shape == (0, 2)


def test_costs_are_set_in_place(video_arguments):
    tracker = VanillaHungarianBBoxIOUTracker(**video_arguments)
    cost = np.full((2, 2), 7.0)
    assert tracker.assign_cost_matrix_values(cost, [{"idx": 0, "prev_idx": 1, "IoU": 0.6}]) is cost
    assert cost.tolist() == [[7, -1], [7, 7]]
    assert tracker.assign_cost_matrix_values(cost.copy(), []).tolist() == cost.tolist()


def test_as_many_as_possible_are_matched(video_arguments, frame):
    """The best single pair would leave the second object without a partner."""
    tracker = VanillaHungarianBBoxIOUTracker(**video_arguments, track_iou_threshold=0.3)
    tracker.update(frame([0, 0, 20, 20], [8, 0, 28, 20]))
    # the first overlaps both of the frame before (9/11 with the second), the second only the second (1/3)
    assert tracker.update(frame([6, 0, 26, 20], [18, 0, 38, 20])).ID == [0, 1]
