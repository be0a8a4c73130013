"""What all trackers by overlap do, and the greedy one alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.tracking import (
    BBoxIOUTracker,
    IOUWeightedHungarianBBoxIOUTracker,
    VanillaHungarianBBoxIOUTracker,
    create_prediction_pairs,
)

TRACKERS = [BBoxIOUTracker, VanillaHungarianBBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker]


@pytest.fixture(params=TRACKERS, ids=lambda kind: kind.__name__)
def make(request, video_arguments):
    return lambda **kwargs: request.param(**video_arguments, **kwargs)


def ids(tracker, *frames):
    return [tracker.update(x).ID for x in frames]


def test_video_without_any_object(make, frame):
    tracker = make(max_lost_frame_count=3)
    for _ in range(3):
        found = tracker.update(frame())
        assert (found.ID, found.ID_period, found.lost_frame_count, len(found)) == ([], [], [], 0)


def test_first_frame(make, frame):
    found = make().update(frame([0, 0, 10, 10], [50, 50, 60, 60]))
    assert found.ID == [0, 1]
    assert found.ID_period == [1, 1]
    assert found.lost_frame_count == [0, 0]
    assert found.scores.tolist() == [1, 1]


def test_objects_that_move_keep_their_numbers_in_any_order(make, frame):
    tracker = make()
    assert ids(tracker, frame([0, 0, 20, 20], [100, 50, 120, 70])) == [[0, 1]]
    found = tracker.update(frame([103, 51, 123, 71], [3, 1, 23, 21]))
    assert found.ID == [1, 0]
    assert found.ID_period == [2, 2]
    assert found.pred_boxes.tensor[0].tolist() == [103, 51, 123, 71]


def test_a_new_object_gets_a_new_number(make, frame):
    tracker = make()
    one, two = [0, 0, 20, 20], [100, 50, 120, 70]
    assert ids(tracker, frame(one), frame(two, one), frame(one), frame(one, two)) == [[0], [1, 0], [0], [0, 2]]


def test_an_object_that_jumps_is_another_one(make, frame):
    assert ids(make(), frame([0, 0, 20, 20]), frame([15, 0, 35, 20])) == [[0], [1]]  # IoU 1/7
    assert ids(make(track_iou_threshold=0.1), frame([0, 0, 20, 20]), frame([15, 0, 35, 20])) == [[0], [0]]


def test_the_threshold_itself_is_enough(make, frame):
    first, second = frame([0, 0, 20, 20]), frame([0, 0, 20, 10])  # IoU 0.5
    assert ids(make(track_iou_threshold=0.5), first, second) == [[0], [0]]
    assert ids(make(track_iou_threshold=0.51), first, second) == [[0], [1]]


def test_objects_that_cross(make, frame):
    tracker = make(track_iou_threshold=0.3)
    numbers = []
    for x in range(0, 100, 4):  # one goes right in the upper lane, one left in the lower lane; they overlap in passing
        numbers.append(tracker.update(frame([x, 0, x + 30, 30], [100 - x, 20, 130 - x, 50])).ID)
    assert numbers == [[0, 1]] * len(numbers)


def test_empty_frames_in_between(make, frame):
    box = [0, 0, 20, 20]
    assert ids(make(), frame(box), frame(), frame(box)) == [[0], [], [1]]


def test_a_lost_object_is_kept_and_found_again(make, frame):
    tracker = make(max_lost_frame_count=2, min_instance_period=0)
    one, two = [0, 0, 20, 20], [100, 50, 120, 70]
    tracker.update(frame(one, two))
    lost = tracker.update(frame(two))
    assert (lost.ID, lost.lost_frame_count, lost.ID_period) == ([1, 0], [0, 1], [2, 1])
    assert lost.pred_boxes.tensor[1].tolist() == one
    lost = tracker.update(frame())
    assert sorted(zip(lost.ID, lost.lost_frame_count, strict=True)) == [(0, 2), (1, 1)]
    found = tracker.update(frame(two, [1, 1, 21, 21]))
    assert (found.ID, found.lost_frame_count, found.ID_period) == ([1, 0], [0, 0], [3, 2])


def test_a_lost_object_is_given_up_in_the_end(make, frame):
    tracker = make(max_lost_frame_count=2, min_instance_period=0)
    box = [0, 0, 20, 20]
    assert ids(tracker, frame(box), frame(), frame(), frame(), frame(box)) == [[0], [0], [0], [], [1]]


def test_an_object_seen_too_briefly_is_not_waited_for(make, frame):
    box = [0, 0, 20, 20]
    tracker = make(max_lost_frame_count=5, min_instance_period=2)
    assert ids(tracker, frame(box), frame(box), frame()) == [[0], [0], []]
    assert ids(tracker, frame(box), frame(box), frame(box), frame()) == [[1], [1], [1], [1]]


@pytest.mark.parametrize(("box", "stays"), [([0, 0, 20, 10], True), ([0, 0, 19, 50], False), ([0, 0, 50, 9], False)])
def test_a_small_object_is_not_waited_for(make, frame, box, stays):
    # a tenth of 200 x 100 pixels
    tracker = make(max_lost_frame_count=5, min_instance_period=0, min_box_rel_dim=0.1)
    assert ids(tracker, frame(box), frame()) == [[0], [0] if stays else []]


def test_many_instances_displace_lost_ones(make, frame):
    tracker = make(max_lost_frame_count=5, min_instance_period=0, max_num_instances=2)
    boxes = [[30 * i, 0, 30 * i + 20, 20] for i in range(4)]
    tracker.update(frame(boxes[0]))
    assert tracker.update(frame(boxes[1])).ID == [1, 0]
    found = tracker.update(frame(boxes[2]))
    assert (found.ID, found.lost_frame_count) == ([2, 1], [0, 1])  # 0 was lost longer
    assert tracker.update(frame(boxes[0], boxes[2], boxes[3])).ID == [3, 2, 4]  # detections are never dropped


def test_other_fields_follow_their_objects(make, frame):
    tracker = make(max_lost_frame_count=1, min_instance_period=0)
    one, two = [0, 0, 20, 20], [100, 50, 120, 70]
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[1] = True
    tracker.update(frame(one, two, pred_masks=masks, names=["a", "b"], pred_keypoints=torch.ones(2, 3, 3)))
    only_one = {"pred_masks": masks[:1], "names": ["a"], "pred_keypoints": torch.zeros(1, 3, 3)}
    found = tracker.update(frame(one, **only_one))
    assert found.ID == [0, 1] and found.names == ["a", "b"]
    assert found.pred_masks.flatten(1).any(dim=1).tolist() == [False, True]
    assert found.pred_keypoints[:, 0, 0].tolist() == [0, 1]


def test_the_input_stays_as_it_is_and_the_tracker_does_not_see_later_changes(make, frame):
    tracker = make()
    first = frame([0, 0, 20, 20], [100, 50, 120, 70])
    found = tracker.update(first)
    assert set(first.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    found.pred_boxes.scale(3, 3)
    found.ID[0] = 99
    found.remove("ID_period")
    assert tracker.update(frame([0, 0, 20, 20])).ID == [0]


def test_instances_that_were_tracked_before_are_numbered_anew(make, frame):
    box = [0, 0, 20, 20]
    other = make()
    other.update(frame([50, 50, 60, 60]))
    tracked = other.update(frame(box))
    assert tracked.ID == [1]
    assert make().update(tracked).ID == [0]


def test_reset_begins_a_new_video(make, frame):
    tracker = make()
    box = [0, 0, 20, 20]
    tracker.update(frame([50, 50, 60, 60], box))
    tracker.reset()
    assert tracker.update(frame(box)).ID == [0]


def test_frames_of_another_size_and_without_boxes_are_refused(make, frame):
    tracker = make()
    tracker.update(frame([0, 0, 20, 20]))
    with pytest.raises(ValueError, match=r"\(50, 50\).*reset\(\)"):
        tracker.update(frame([0, 0, 20, 20], size_hw=(50, 50)))
    with pytest.raises(ValueError, match="with pred_boxes"):
        make().update(Instances((10, 10), scores=torch.ones(1)))
    with pytest.raises(ValueError, match=r"predictions\[.instances.\].*got dict"):
        make().update({"instances": frame([0, 0, 20, 20])})
    turned = Instances((100, 200), pred_boxes=RotatedBoxes([[50.0, 50, 60, 4, 30]]))
    with pytest.raises(ValueError, match=r"RotatedBoxes.*before.*Boxes"):
        tracker.update(turned)


def test_rotated_boxes(make):
    def turned(*boxes):
        return Instances((100, 200), pred_boxes=RotatedBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)))

    tracker = make(max_lost_frame_count=1, min_instance_period=0, min_box_rel_dim=0.1)
    thin, thick = [50, 50, 60, 4, 30], [50, 50, 40, 40, 0]
    assert tracker.update(turned(thin, thick)).ID == [0, 1]
    assert tracker.update(turned([51, 50, 40, 40, 2], [50, 50, 60, 4, 31])).ID == [1, 0]
    found = tracker.update(turned())
    assert found.ID == [1]  # the other one is 4 pixels high
    assert isinstance(found.pred_boxes, RotatedBoxes)


def test_copies_carry_the_state(make, frame):
    tracker = make()
    tracker.update(frame([50, 50, 60, 60], [0, 0, 20, 20]))
    for other in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker))):
        assert other.update(frame([0, 0, 20, 20])).ID == [1]


boxes = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)), min_size=0, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(boxes, min_size=1, max_size=6), kind=st.sampled_from(TRACKERS), lost=st.integers(0, 2))
def test_numbers_are_unique_in_a_frame_and_never_reused(frames, kind, lost):
    tracker = kind(video_height=100, video_width=100, max_lost_frame_count=lost, track_iou_threshold=0.3)
    gone, before = set(), set()
    for entries in frames:
        xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in entries], dtype=torch.float32).reshape(-1, 4)
        found = tracker.update(Instances((100, 100), pred_boxes=Boxes(xyxy)))
        now = set(found.ID)
        assert len(now) == len(found)
        assert not now & gone
        assert torch.equal(found.pred_boxes.tensor[: len(xyxy)], xyxy)
        assert all(0 <= count <= lost for count in found.lost_frame_count)
        gone |= before - now
        before = now


@settings(max_examples=20, deadline=None)
@given(entries=boxes, kind=st.sampled_from([BBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker]))
def test_a_still_picture_keeps_all_numbers(entries, kind):
    xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in set(entries)], dtype=torch.float32).reshape(-1, 4)
    tracker = kind(video_height=100, video_width=100)
    for _ in range(3):
        found = tracker.update(Instances((100, 100), pred_boxes=Boxes(xyxy)))
        assert list(range(len(xyxy))) == found.ID


def test_greedy_matching_takes_the_best_pair_first(video_arguments, frame):
    tracker = BBoxIOUTracker(**video_arguments, track_iou_threshold=0.1)
    tracker.update(frame([0, 0, 20, 20]))
    # both overlap it: by 1/3, and by 9/11
    assert tracker.update(frame([10, 0, 30, 20], [2, 0, 22, 20])).ID == [1, 0]


def test_arrays_are_as_good_as_tensors(make):
    tracker = make(max_lost_frame_count=2, min_instance_period=0)
    for boxes in ([[0, 0, 20, 20], [100, 50, 120, 70]], [[1, 0, 21, 20]]):
        given = Instances(
            np.array([100, 200]),
            pred_boxes=np.array(boxes, dtype=np.float32),
            scores=np.ones(len(boxes)),
            pred_classes=np.zeros(len(boxes), dtype=np.int64),
            names=np.array(["a", "b"][: len(boxes)]),
        )
        found = tracker.update(given)
    assert found.image_size == (100, 200)
    assert (found.ID, found.ID_period, found.lost_frame_count) == ([0, 1], [2, 1], [0, 1])
    assert (found.ID[0] == 0) is True
    assert found.names == ["a", "b"]


def test_steps_take_arrays_too(make):
    def given(*boxes):
        scores, masks = np.ones(len(boxes)), np.zeros((len(boxes), 100, 200), dtype=bool)
        return Instances(np.array([100, 200]), pred_boxes=Boxes(np.array(boxes)), scores=scores, pred_masks=masks)

    tracker = make(max_lost_frame_count=2, min_instance_period=0)
    before = tracker._initialize_extra_fields(given([0.0, 0, 20, 20], [100, 50, 120, 70]))
    tracker._prev_instances, tracker._untracked_prev_idx = before, {0}
    now = tracker._initialize_extra_fields(given([100.0, 50, 120, 70]))
    if isinstance(tracker, BBoxIOUTracker):
        found = tracker._merge_untracked_instances(tracker._assign_new_id(now))
    else:
        assert tracker.build_cost_matrix(now, before).argmin() == 1
        found = tracker._process_unmatched_prev_idx(tracker._process_unmatched_idx(now, np.array([])), np.array([1]))
    assert (found.ID, found.lost_frame_count, found.image_size) == ([2, 0], [0, 1], (100, 200))
    assert found.pred_masks.shape == (2, 100, 200) and isinstance(found.pred_masks, torch.Tensor)


def test_boxes_of_a_model_that_is_trained(make):
    given = Instances((100, 200), pred_boxes=Boxes(torch.tensor([[0.0, 0, 20, 20]], requires_grad=True)))
    assert ids(make(), given, given) == [[0], [0]]


def test_boxes_as_a_list(make):
    given = Instances((100, 200), pred_boxes=[[0.0, 0, 20, 20], [100, 50, 120, 70]])
    assert ids(make(), given, given) == [[0, 1], [0, 1]]


def test_steps_can_be_overridden_and_share_their_state(video_arguments, frame):
    calls = []

    class Recording(BBoxIOUTracker):
        pass

    for name in ("_initialize_extra_fields", "_create_prediction_pairs", "_reset_fields", "_assign_new_id"):

        def step(self, *args, _name=name):
            calls.append(_name)
            return getattr(BBoxIOUTracker, _name)(self, *args)

        setattr(Recording, name, step)

    tracker = Recording(**video_arguments)
    tracker.update(frame([0, 0, 20, 20], [100, 50, 120, 70]))
    assert calls == ["_initialize_extra_fields"]
    assert tracker.update(frame([100, 50, 120, 70], [50, 0, 70, 20])).ID == [1, 2]
    assert calls[1:] == ["_initialize_extra_fields", "_create_prediction_pairs", "_reset_fields", "_assign_new_id"]
    assert (tracker._matched_idx, tracker._matched_ID, tracker._untracked_prev_idx) == ({0}, {1}, {0})
    assert tracker._id_count == 3 and tracker._prev_instances.ID == [1, 2]


def test_a_subclass_that_pairs_everything_still_keeps_to_the_threshold(video_arguments, frame):
    class All(BBoxIOUTracker):
        def _create_prediction_pairs(self, instances, iou_all):
            return create_prediction_pairs(instances, self._prev_instances, iou_all, threshold=0.0)

    assert ids(All(**video_arguments), frame([0, 0, 20, 20]), frame([15, 0, 35, 20])) == [[0], [1]]


def test_merging_adds_the_rows_that_are_untracked(video_arguments, frame):
    tracker = BBoxIOUTracker(**video_arguments, max_lost_frame_count=3, min_instance_period=0)
    before = tracker._initialize_extra_fields(frame([0, 0, 20, 20], [100, 50, 120, 70]))
    now = tracker._initialize_extra_fields(frame([50, 50, 70, 70]))
    tracker._prev_instances, tracker._untracked_prev_idx = before, {1}
    merged = tracker._merge_untracked_instances(now)
    assert (merged.ID, merged.lost_frame_count) == ([0, 1], [0, 1])
