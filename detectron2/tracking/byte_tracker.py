"""Tracking of nearly every detection box: confident ones first, then the doubtful ones with the tracks that are left.

Letters: `T` tracks, `N` detections. Boxes are in pixels of the frame.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torchvision.ops import box_iou

from detectron2.config import CfgNode, configurable
from detectron2.structures import BoxMode, Instances, RotatedBoxes

from .base_tracker import _TRACK_FIELDS, TRACKER_HEADS_REGISTRY, BaseTracker, _as_field, _without_track_fields
from .hungarian_tracker import linear_sum_assignment

__all__ = ["BoxKalmanFilter", "ByteTracker", "track"]

# Standard deviations, as shares of the size of the object (the root of its area).
_MEASUREMENT = 0.05  # of a detected box
_MOTION = 0.01  # of the change of velocity in one frame
_FIRST_VELOCITY = 0.2  # of the velocity, in pixels a frame, of an object that was seen once
# Arguments of ByteTracker that cfg.TRACKER_HEADS may have; there their names are in capitals.
_OPTIONS = (
    "high_score",
    "low_score",
    "new_track_score",
    "match_iou",
    "low_match_iou",
    "max_lost_frame_count",
    "min_instance_period",
    "class_aware",
    "frame_rate",
)

Item = TypeVar("Item")


class BoxKalmanFilter:
    """Centers and sizes of boxes with their velocities, estimated from detected boxes, for all tracks at once.

    Each of the four numbers of a box (centre x and y, width, height) moves at a constant velocity that white noise
    changes (Bar-Shalom et al., "Estimation with Applications to Tracking and Navigation", 2001, section 6.2; Kalman,
    1960). They do not depend on each other, so each has a filter of two states whose covariance is three numbers, and
    no matrix is inverted. Noise is in proportion to the size of the object.

    Attributes:
        mean: `(T, 4)`, centre x, centre y, width, height.
        velocity: `(T, 4)`, their change in one frame.
        covariance: `(3, T, 4)`, variance of the mean, covariance with the velocity, variance of the velocity.

    Example:
        >>> from detectron2.tracking.byte_tracker import BoxKalmanFilter
        >>> filter = BoxKalmanFilter()
        >>> filter.add(np.array([[0.0, 0, 10, 10]]))
        >>> for x in (4.0, 8.0, 12.0):
        ...     filter.predict()
        ...     filter.update(np.array([0]), np.array([[x, 0, x + 10, 10]]))
        ...
        >>> filter.predict()
        >>> filter.boxes().round(1)
        array([[15.9,  0. , 25.9, 10. ]])
    """

    def __init__(self) -> None:
        self.mean = np.zeros((0, 4))
        self.velocity = np.zeros((0, 4))
        self.covariance = np.zeros((3, 0, 4))

    def __len__(self) -> int:
        return len(self.mean)

    def add(self, boxes: np.ndarray) -> None:
        """Begin with boxes `(N, 4)`, `(x1, y1, x2, y2)`, that move in unknown directions."""
        mean = _center_and_size(boxes)
        scale = _scale(mean)
        covariance = np.zeros((3, len(mean), 4))
        covariance[0], covariance[2] = (_MEASUREMENT * scale) ** 2, (_FIRST_VELOCITY * scale) ** 2
        self.mean = np.concatenate([self.mean, mean])
        self.velocity = np.concatenate([self.velocity, np.zeros_like(mean)])
        self.covariance = np.concatenate([self.covariance, covariance], axis=1)

    def keep(self, rows: np.ndarray) -> None:
        """Forget all tracks but those of these rows."""
        self.mean, self.velocity, self.covariance = self.mean[rows], self.velocity[rows], self.covariance[:, rows]

    def predict(self, frames: float = 1.0) -> None:
        """Go on to a moment `frames` frames later, a fraction too; two steps are as good as one of their sum."""
        position, shared, velocity = self.covariance
        noise = (_MOTION * _scale(self.mean)) ** 2
        self.mean = self.mean + frames * self.velocity
        self.covariance = np.stack(
            [
                position + frames * (2 * shared + frames * velocity) + noise * frames**3 / 3,
                shared + frames * velocity + noise * frames**2 / 2,
                velocity + noise * frames,
            ]
        )

    def update(self, rows: np.ndarray, boxes: np.ndarray) -> None:
        """Take the boxes `(N, 4)` that were detected of the tracks `rows` `(N,)`, each of another one."""
        position, shared, velocity = self.covariance[:, rows]
        surprise = _center_and_size(boxes) - self.mean[rows]
        total = position + (_MEASUREMENT * _scale(self.mean[rows])) ** 2
        gain, velocity_gain = position / total, shared / total
        self.mean[rows] += gain * surprise
        self.velocity[rows] += velocity_gain * surprise
        self.covariance[:, rows] = np.stack(
            [position * (1 - gain), shared * (1 - gain), velocity - velocity_gain * shared]
        )

    def boxes(self) -> np.ndarray:
        """The boxes at this moment, `(T, 4)`, `(x1, y1, x2, y2)`."""
        half = np.maximum(self.mean[:, 2:], 0) / 2
        return np.concatenate([self.mean[:, :2] - half, self.mean[:, :2] + half], axis=1)


def _center_and_size(boxes: np.ndarray) -> np.ndarray:
    """Centre x, centre y, width and height of boxes (x1, y1, x2, y2)."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _scale(mean: np.ndarray) -> np.ndarray:
    """Size of objects in pixels, at least 1, `(T, 1)`."""
    return np.sqrt(np.maximum(mean[:, 2:3], 1) * np.maximum(mean[:, 3:4], 1))


@TRACKER_HEADS_REGISTRY.register()
class ByteTracker(BaseTracker):
    """ByteTrack (Zhang et al., "Multi-Object Tracking by Associating Every Detection Box", ECCV 2022).

    Each track predicts where its object is by a Kalman filter at constant velocity (as SORT; Bewley et al., "Simple
    Online and Realtime Tracking", ICIP 2016). Detections with a high score are matched first, with all tracks; those
    with a low score, which are often of objects that others hide, are matched with the tracks that are still without
    one. Only a high score begins a track. A track that finds nothing is lost, and waits where its
    object should have gone.

    Matching is by the IoU of upright boxes; rotated boxes are compared by their upright hulls. The least score that
    the model lets through (`MODEL.ROI_HEADS.SCORE_THRESH_TEST`) should be at most `low_score`.

    Args:
        high_score: detections with at least this score are matched first.
        low_score: detections with less than that are ignored.
        new_track_score: the least score that begins a track; None for 0.1 more than `high_score`.
        match_iou: the least IoU of a detection and the predicted box of its track.
        low_match_iou: the same for detections with a low score.
        max_lost_frame_count: for how many frames a lost track waits.
        min_instance_period: a track is given up at once when it is lost, unless its object was seen in more frames
            than this.
        class_aware: whether a track keeps to one class, where there are `pred_classes`.
        frame_rate: frames per second for which all this is meant; used only if frames come with their times.
        **kwargs: passed on to `BaseTracker`.

    Raises:
        ValueError: the scores are not in order, or a number is out of its range.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import ByteTracker
        >>> tracker = ByteTracker(high_score=0.6)
        >>> for x, score in ((10, 0.9), (14, 0.9), (18, 0.2), (22, 0.8)):  # hardly to be seen in the third frame
        ...     found = Instances((480, 640), pred_boxes=Boxes([[x, 10, x + 30, 60]]), scores=torch.tensor([score]))
        ...     print(tracker.update(found).ID)
        ...
        [0]
        [0]
        [0]
        [0]
    """

    @configurable
    def __init__(
        self,
        *,
        high_score: float = 0.6,
        low_score: float = 0.1,
        new_track_score: float | None = None,
        match_iou: float = 0.2,
        low_match_iou: float = 0.5,
        max_lost_frame_count: int = 30,
        min_instance_period: int = 1,
        class_aware: bool = True,
        frame_rate: float = 30.0,
        **kwargs: Any,
    ):
        new_score = min(high_score + 0.1, 1.0) if new_track_score is None else new_track_score
        if not 0 <= low_score <= high_score <= new_score <= 1:
            raise ValueError(
                "scores must be in order, 0 <= low_score <= high_score <= new_track_score <= 1; got "
                f"{low_score}, {high_score} and {new_score}"
            )
        if not (0 < match_iou <= 1 and 0 < low_match_iou <= 1):
            raise ValueError(f"an IoU must be above 0 and at most 1; got {match_iou} and {low_match_iou}")
        if max_lost_frame_count < 0 or not frame_rate > 0:
            raise ValueError(
                f"max_lost_frame_count must be at least 0 and frame_rate above 0; got {max_lost_frame_count} and "
                f"{frame_rate}"
            )
        self._high_score, self._low_score, self._new_track_score = high_score, low_score, new_score
        self._match_iou, self._low_match_iou = match_iou, low_match_iou
        self._max_lost_frame_count, self._min_instance_period = max_lost_frame_count, min_instance_period
        self._class_aware, self._frame_rate = class_aware, frame_rate
        super().__init__(**kwargs)

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new video, and numbers begin with 0 again."""
        super().reset()
        self._filter = BoxKalmanFilter()
        # Of each track: its number, the frames it was seen in, the frames since then, and its class.
        self._numbers = np.zeros(0, np.int64)
        self._periods = np.zeros(0, np.int64)
        self._lost = np.zeros(0)
        self._classes = np.zeros(0, np.int64)
        self._image_size: tuple[int, int] | None = None
        self._time: float | None = None

    def update(self, predictions: Instances, time: float | None = None) -> Instances:
        """Take the detections of the next frame and number those that belong to a track.

        Args:
            predictions: detections of the frame with `pred_boxes` (upright or rotated), in pixels of the frame, and
                `scores`. They are not changed.
            time: of the frame in seconds, for frames that do not come at one rate; else every frame is one step.

        Returns:
            Of the detections, in their order, those of a track, with the fields `ID`, `ID_period` (frames in which the
            object was seen) and `lost_frame_count` (0). Detections that match no track and have too low a score to
            begin one are left out. Lost tracks wait in the tracker, and are not in the result.

        Raises:
            ValueError: there are no boxes or scores, or the frame has another size than before, or is not later.

        Example:
            >>> from detectron2.structures import Boxes, Instances
            >>> from detectron2.tracking import ByteTracker
            >>> boxes, scores = Boxes([[0, 0, 9, 9], [50, 50, 70, 70]]), torch.tensor([0.3, 0.9])
            >>> found = ByteTracker().update(Instances((480, 640), pred_boxes=boxes, scores=scores), time=0.04)
            >>> found.ID, found.scores
            ([0], tensor([0.9000]))
        """
        instances = _without_track_fields(predictions)
        instances = Instances(
            (int(instances.image_size[0]), int(instances.image_size[1])),
            **{name: _as_field(name, value) for name, value in instances.get_fields().items()},
        )
        if not instances.has("scores"):
            raise ValueError(f"ByteTracker needs scores beside pred_boxes, got {sorted(instances.get_fields())}")
        if self._image_size not in (None, instances.image_size):
            raise ValueError(
                f"the frame has {instances.image_size} pixels (height, width), the one before had {self._image_size}; "
                "for another video make a new tracker, or call reset() on this one"
            )
        step = self._step_to(time)
        self._image_size = instances.image_size

        boxes, scores, classes = self._columns(instances)
        self._filter.velocity[self._lost > 0, 2:] = 0  # a size that changes is not known well enough to go on so
        self._filter.predict(step)
        track_of = self._match(boxes, scores, classes)
        rows = np.flatnonzero(track_of >= 0)
        tracks = track_of[rows]
        self._filter.update(tracks, boxes[rows])
        self._lost += step
        self._lost[tracks] = 0
        self._periods[tracks] += 1
        new = np.flatnonzero((track_of < 0) & (scores >= self._new_track_score))
        track_of[new] = len(self._filter) + np.arange(len(new))
        self._begin(boxes[new], classes[new])
        result = self._numbered(instances, track_of)
        self._give_up()
        return result

    def _step_to(self, time: float | None) -> float:
        """Frames since the one before."""
        before, self._time = self._time, time if time is not None else self._time
        if time is None or before is None:
            return 1.0
        if not time > before:
            self._time = before
            raise ValueError(
                f"the frame is at {time} s, the one before was at {before} s; give frames in the order of their times, "
                "and call reset() before another video"
            )
        return (time - before) * self._frame_rate

    def _columns(self, instances: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Upright boxes `(N, 4)`, scores and classes of detections."""
        tensor = instances.pred_boxes.tensor.detach().cpu().double()
        if isinstance(instances.pred_boxes, RotatedBoxes):
            tensor = BoxMode.convert(tensor, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        scores = torch.as_tensor(instances.scores).detach().cpu().double().numpy()
        if self._class_aware and instances.has("pred_classes"):
            return tensor.numpy(), scores, torch.as_tensor(instances.pred_classes).cpu().numpy()
        return tensor.numpy(), scores, np.zeros(len(scores), np.int64)

    def _match(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The track of each detection, -1 for none."""
        predicted = self._filter.boxes()
        track_of = np.full(len(boxes), -1, np.int64)
        is_high = scores >= self._high_score
        stages = ((is_high, self._match_iou), (~is_high & (scores >= self._low_score), self._low_match_iou))
        for is_eligible, least in stages:
            rows = np.flatnonzero(is_eligible)
            tracks = np.setdiff1d(np.arange(len(predicted)), track_of)
            overlaps = box_iou(torch.from_numpy(boxes[rows]), torch.from_numpy(predicted[tracks])).numpy()
            overlaps[classes[rows, None] != self._classes[None, tracks]] = 0
            chosen, partners = _best_pairs(overlaps, least)
            track_of[rows[chosen]] = tracks[partners]
        return track_of

    def _begin(self, boxes: np.ndarray, classes: np.ndarray) -> None:
        """Begin tracks with new numbers."""
        count = len(boxes)
        self._filter.add(boxes)
        self._numbers = np.concatenate([self._numbers, self._id_count + np.arange(count)])
        self._periods = np.concatenate([self._periods, np.ones(count, np.int64)])
        self._lost = np.concatenate([self._lost, np.zeros(count)])
        self._classes = np.concatenate([self._classes, classes])
        self._id_count += count

    def _numbered(self, instances: Instances, track_of: np.ndarray) -> Instances:
        """The detections that have a track, with its fields."""
        rows = np.flatnonzero(track_of >= 0)
        result = instances[torch.from_numpy(rows).to(instances.pred_boxes.device)]
        tracks = track_of[rows]
        columns = (self._numbers[tracks], self._periods[tracks], np.zeros(len(rows), np.int64))
        for name, values in zip(_TRACK_FIELDS, columns, strict=True):
            result.set(name, values.tolist())
        return result

    def _give_up(self) -> None:
        """Forget tracks that were lost too long, or seen too briefly."""
        # Sums of fractions of frames are not exact.
        is_kept = (self._lost == 0) | (
            (self._lost <= self._max_lost_frame_count + 1e-6) & (self._periods > self._min_instance_period)
        )
        rows = np.flatnonzero(is_kept)
        self._filter.keep(rows)
        self._numbers, self._periods = self._numbers[rows], self._periods[rows]
        self._lost, self._classes = self._lost[rows], self._classes[rows]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.TRACKER_HEADS`, each of which may be left out."""
        heads = cfg.TRACKER_HEADS
        return {name: heads[name.upper()] for name in _OPTIONS if name.upper() in heads}


def _best_pairs(overlaps: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs of at least this IoU, whose sum of what the IoU is above it is largest."""
    possible = overlaps >= least
    rows, columns = possible.any(axis=1).nonzero()[0], possible.any(axis=0).nonzero()[0]
    # To leave a box alone costs nothing. Were it dear, two bad pairs would be made of a good one and two left over.
    cost = np.where(possible, least - overlaps - 1e-9, 0.0)[np.ix_(rows, columns)]
    i, j = linear_sum_assignment(cost)
    kept = possible[rows[i], columns[j]]
    return rows[i][kept], columns[j][kept]


def track(results: Iterable[Item], tracker: Any = None) -> Iterator[Item]:
    """Number the objects in a stream of results through the frames of one video.

    Args:
        results: in the order of the frames, objects with an attribute `instances`: `Instances`, or None for a frame
            that could not be read; and possibly an attribute `time`, seconds from the start.
        tracker: any tracker of this package; None for a new `ByteTracker`.

    Yields:
        The results, one by one, with `instances` replaced by those that the tracker returns.

    Raises:
        ValueError: the frames are of several sizes, or there is something that the tracker does not take.

    Example:
        >>> from types import SimpleNamespace
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import track
        >>> found = Instances((480, 640), pred_boxes=Boxes([[10, 10, 40, 60]]), scores=torch.tensor([0.9]))
        >>> [result.instances.ID for result in track(SimpleNamespace(instances=found) for _ in range(3))]
        [[0], [0], [0]]
    """
    tracker = ByteTracker() if tracker is None else tracker
    for result in results:
        item: Any = result
        if item.instances is not None:
            time = getattr(item, "time", None)
            timed = isinstance(tracker, ByteTracker) and time is not None
            item.instances = tracker.update(item.instances, time=time) if timed else tracker.update(item.instances)
        yield result
