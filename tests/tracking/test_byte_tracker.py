"""The Kalman filter against its matrix form, and tracking of confident and doubtful detections."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.tracking import BBoxIOUTracker, ByteTracker, build_tracker_head, track
from detectron2.tracking.byte_tracker import BoxKalmanFilter


@pytest.fixture
def seen(frame):
    """A frame of boxes with scores."""

    def make(*boxes_and_scores, **fields):
        boxes, scores = [b for b, _ in boxes_and_scores], [s for _, s in boxes_and_scores]
        return frame(*boxes, scores=torch.tensor(scores, dtype=torch.float32), **fields)

    return make


def box(x, y=20, side=20):
    return [x, y, x + side, y + side]


# The filter


def test_no_tracks():
    filter = BoxKalmanFilter()
    filter.predict()
    filter.update(np.zeros(0, np.int64), np.zeros((0, 4)))
    assert filter.boxes().shape == (0, 4) and len(filter) == 0


def test_it_is_the_filter_in_matrix_form():
    generator = np.random.default_rng(0)
    filter = BoxKalmanFilter()
    filter.add(np.array([[0.0, 0, 40, 10], [5.0, 5, 9, 9]]))
    state = np.concatenate([filter.mean[0], np.zeros(4)])
    size = np.sqrt(400)
    covariance = np.diag([(0.05 * size) ** 2] * 4 + [(0.2 * size) ** 2] * 4)
    eye, zero = np.eye(4), np.zeros((4, 4))
    observe = np.concatenate([eye, zero], axis=1)
    for step in (1.0, 1.0, 0.4, 2.5):
        size = np.sqrt(state[2] * state[3])
        move = np.block([[eye, step * eye], [zero, eye]])
        noise = np.block([[eye * step**3 / 3, eye * step**2 / 2], [eye * step**2 / 2, eye * step]]) * (0.01 * size) ** 2
        state, covariance = move @ state, move @ covariance @ move.T + noise
        filter.predict(step)
        assert filter.mean[0] == pytest.approx(state[:4]) and filter.velocity[0] == pytest.approx(state[4:])
        x, y = generator.uniform(0, 9, 2)
        found = np.array([x, y, x + 41, y + 11])
        size = np.sqrt(state[2] * state[3])
        surprise = np.array([x + 20.5, y + 5.5, 41, 11]) - observe @ state
        gain = covariance @ observe.T @ np.linalg.inv(observe @ covariance @ observe.T + eye * (0.05 * size) ** 2)
        state, covariance = state + gain @ surprise, covariance - gain @ observe @ covariance
        filter.update(np.array([0]), found[None])
        assert filter.mean[0] == pytest.approx(state[:4]) and filter.velocity[0] == pytest.approx(state[4:])
        assert filter.covariance[0, 0] == pytest.approx(np.diag(covariance)[:4])
        assert filter.covariance[1, 0] == pytest.approx(np.diag(covariance[:4, 4:]))
        assert filter.covariance[2, 0] == pytest.approx(np.diag(covariance)[4:])
    assert filter.boxes()[1].tolist() == [5, 5, 9, 9]  # the other track was never updated


def test_two_steps_are_as_good_as_one():
    one, two = BoxKalmanFilter(), BoxKalmanFilter()
    for filter, steps in ((one, [3.0]), (two, [1.0, 2.0])):
        filter.add(np.array([[0.0, 0, 30, 30]]))
        filter.predict()
        filter.update(np.array([0]), np.array([[6.0, 1, 36, 31]]))
        filter.velocity[:, 2:] = 0
        for step in steps:
            filter.predict(step)
    assert one.boxes() == pytest.approx(two.boxes())
    assert one.covariance == pytest.approx(two.covariance)


# The tracker


def test_video_without_any_object(frame):
    tracker = ByteTracker()
    for _ in range(3):
        found = tracker.update(frame())
        assert (found.ID, found.ID_period, found.lost_frame_count, len(found)) == ([], [], [], 0)


def test_objects_that_move_keep_their_numbers_in_any_order(seen):
    tracker = ByteTracker()
    assert tracker.update(seen((box(0), 0.9), (box(100), 0.8))).ID == [0, 1]
    found = tracker.update(seen((box(96), 0.8), (box(4), 0.9)))
    assert (found.ID, found.ID_period, found.lost_frame_count) == ([1, 0], [2, 2], [0, 0])
    assert found.pred_boxes.tensor[0].tolist() == box(96)  # as it was detected, not as the filter has it


def test_a_low_score_continues_a_track_and_begins_none(seen):
    tracker = ByteTracker(high_score=0.6, low_score=0.1, new_track_score=0.7)
    assert tracker.update(seen((box(0), 0.9), (box(60), 0.3), (box(120), 0.65))).ID == [0]
    found = tracker.update(seen((box(150), 0.3), (box(2), 0.2)))
    assert found.ID == [0] and found.scores.tolist() == pytest.approx([0.2])
    assert tracker.update(seen((box(4), 0.09))).ID == []


def test_confident_detections_choose_first(seen):
    tracker = ByteTracker()
    tracker.update(seen((box(0), 0.9)))
    found = tracker.update(seen((box(1), 0.5), (box(5), 0.9)))  # the doubtful one overlaps more
    assert found.ID == [0] and found.scores.tolist() == pytest.approx([0.9])


def test_a_doubtful_detection_brings_back_a_lost_track_if_it_overlaps_enough(seen):
    for x, expected in ((4, [0]), (10, [])):  # IoU 2/3 and 1/3
        tracker = ByteTracker(low_match_iou=0.5)
        for _ in range(3):
            tracker.update(seen((box(0), 0.9)))
        tracker.update(seen())
        assert expected == tracker.update(seen((box(x), 0.3))).ID
        assert tracker.update(seen((box(x), 0.9))).ID == [0]


def test_it_waits_where_the_object_should_have_gone(seen):
    tracker, still = ByteTracker(), BBoxIOUTracker(video_height=100, video_width=200, max_lost_frame_count=30)
    for x in (0, 5, 10, 15):
        frame = seen((box(x), 0.9))
        assert tracker.update(frame).ID == still.update(frame).ID == [0]
    for _ in range(4):
        assert tracker.update(seen()).ID == []
        still.update(seen())
    again = seen((box(15 + 5 * 5), 0.9))
    found = tracker.update(again)
    assert (found.ID, found.ID_period, found.lost_frame_count) == ([0], [5], [0])
    assert still.update(again).ID[0] == 1


def test_objects_that_cross_behind_each_other(seen):
    tracker = ByteTracker()
    numbers = []
    for step in range(30):
        one, two = box(5 * step), box(150 - 5 * step, y=24)
        hidden = abs(5 * step - (150 - 5 * step)) < 14
        numbers.append(tracker.update(seen((one, 0.9), *([] if hidden else [(two, 0.9)]))).ID)
    assert all(row == [0, 1] or row == [0] for row in numbers)
    assert numbers[-1] == [0, 1] and [0] in numbers


def test_lost_tracks_are_given_up_in_the_end(seen):
    for wait, expected in ((3, 0), (4, 1)):
        tracker = ByteTracker(max_lost_frame_count=3)
        for _ in range(2):
            tracker.update(seen((box(0), 0.9)))
        for _ in range(wait):
            tracker.update(seen())
        assert [expected] == tracker.update(seen((box(0), 0.9))).ID
    brief = ByteTracker()
    brief.update(seen((box(0), 0.9)))
    brief.update(seen())
    assert brief.update(seen((box(0), 0.9))).ID == [1]  # it was seen once


def test_classes(seen):
    first = seen((box(0), 0.9), pred_classes=torch.tensor([3]))
    second = seen((box(0), 0.9), pred_classes=torch.tensor([5]))
    aware, blind = ByteTracker(), ByteTracker(class_aware=False)
    assert [t.update(f).ID for t in (aware, blind) for f in (first, second)] == [[0], [1], [0], [0]]


def test_one_good_pair_is_better_than_two_bad_ones(seen):
    tracker = ByteTracker(match_iou=0.1)
    tracker.update(seen((box(0), 0.9), (box(15), 0.9)))
    # the second object has gone, and something new is at the other side of the first one
    assert tracker.update(seen((box(0), 0.9), (box(-15), 0.9))).ID == [0, 2]


def test_times_of_frames(seen):
    tracker = ByteTracker(frame_rate=10)
    times = (0.0, 0.1, 0.2, 0.3, 0.8)
    assert [tracker.update(seen((box(80 * t), 0.9)), time=t).ID for t in times] == [[0]] * 5
    for t in (0.8, 0.7):
        with pytest.raises(ValueError, match=r"the one before was at 0.8 s"):
            tracker.update(seen(), time=t)
    assert tracker.update(seen((box(80), 0.9)), time=1.0).ID == [0]
    tracker.reset()
    assert tracker.update(seen((box(0), 0.9)), time=0.0).ID == [0]
    late = ByteTracker(frame_rate=10, max_lost_frame_count=5)
    for t in (0.0, 0.1):
        late.update(seen((box(0), 0.9)), time=t)
    late.update(seen(), time=0.7)
    assert late.update(seen((box(0), 0.9)), time=0.8).ID == [1]  # lost for more than half a second


def test_other_fields_follow_and_the_input_stays(seen):
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[1] = True
    first = seen((box(0), 0.2), (box(100), 0.9), pred_masks=masks, names=["a", "b"], pred_keypoints=torch.ones(2, 3, 3))
    before = set(first.get_fields())
    found = ByteTracker().update(first)
    assert found.names == ["b"] and bool(found.pred_masks.all()) and found.pred_keypoints.shape == (1, 3, 3)
    assert set(first.get_fields()) == before and len(first) == 2


def test_arrays_and_rotated_boxes():
    tracker = ByteTracker()
    for _ in range(2):
        given = Instances(np.array([100, 200]), pred_boxes=np.array([[50.0, 50, 60, 30, 20]]), scores=np.array([0.9]))
        found = tracker.update(given)
    assert found.ID == [0] and isinstance(found.pred_boxes, RotatedBoxes) and found.image_size == (100, 200)


def test_copies_carry_the_state_and_reset_begins_anew(seen):
    tracker = ByteTracker()
    tracker.update(seen((box(50), 0.9), (box(0), 0.9)))
    other = copy.deepcopy(tracker)
    tracker.reset()
    assert other.update(seen((box(0), 0.9))).ID == [1]
    assert tracker.update(seen((box(0), 0.9))).ID == [0]


def test_input_that_does_not_fit_is_refused(seen):
    tracker = ByteTracker()
    tracker.update(seen((box(0), 0.9)))
    with pytest.raises(ValueError, match=r"\(50, 60\).*\(100, 200\).*reset"):
        tracker.update(Instances((50, 60), pred_boxes=Boxes([box(0)]), scores=torch.ones(1)))
    with pytest.raises(ValueError, match="needs scores"):
        tracker.update(Instances((100, 200), pred_boxes=Boxes([box(0)])))
    with pytest.raises(ValueError, match="with pred_boxes"):
        tracker.update(Instances((100, 200), scores=torch.ones(1)))
    for arguments, message in (
        ({"high_score": 0.05}, "in order.*0.1, 0.05"),
        ({"new_track_score": 0.3}, "in order"),
        ({"match_iou": 0}, "IoU"),
        ({"max_lost_frame_count": -1}, "at least 0"),
        ({"frame_rate": 0}, "frame_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            ByteTracker(**arguments)


def test_from_a_config(seen):
    cfg = get_cfg()
    cfg.TRACKER_HEADS = CfgNode({"TRACKER_NAME": "ByteTracker"})
    assert build_tracker_head(cfg)._high_score == 0.6
    cfg.TRACKER_HEADS.HIGH_SCORE = 0.4
    cfg.TRACKER_HEADS.MAX_LOST_FRAME_COUNT = 7
    tracker = build_tracker_head(cfg)
    assert (tracker._high_score, tracker._new_track_score, tracker._max_lost_frame_count) == (0.4, 0.5, 7)
    assert tracker.update(seen((box(0), 0.55))).ID == [0]


# Streams of results


def test_results_are_numbered_one_by_one(seen):
    assert list(track([])) == []
    asked = []

    def results():
        for x in (0, 4, 8):
            asked.append(x)
            yield SimpleNamespace(instances=seen((box(x), 0.9)), time=x / 100)
        yield SimpleNamespace(instances=None, time=None)  # could not be read
        yield SimpleNamespace(instances=seen((box(12), 0.9)), time=0.12)

    stream = track(results())
    assert next(stream).instances.ID == [0] and asked == [0]
    rest = list(stream)
    assert [r.instances and r.instances.ID for r in rest] == [[0], [0], None, [0]]


def test_results_and_a_tracker_of_the_user(seen):
    tracker = BBoxIOUTracker(video_height=100, video_width=200)
    results = [SimpleNamespace(instances=seen((box(0), 0.9)), time=t) for t in (0.0, 0.1)]
    assert [r.instances.ID for r in track(results, tracker)] == [[0], [0]]
