"""The interface of trackers, what trackers by overlap share, and building one from a config.

A detection that is matched with one of the frame before carries its number on; any other gets a new one. A track that
finds no detection can stay for some frames at its last box, as lost, and be found again there.

Fields: `ID`, number of the object, from 0; `ID_period`, frames in which it was seen; `lost_frame_count`, frames since
it was seen last, 0 for one that is there. They are lists of int.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou, pairwise_iou_rotated
from detectron2.utils.registry import Registry

__all__ = ["TRACKER_HEADS_REGISTRY", "BaseTracker", "OverlapTracker", "build_tracker_head", "overlaps_of"]

# Entries are called as `tracker(cfg)`.
TRACKER_HEADS_REGISTRY = Registry("TRACKER_HEADS")
_TRACK_FIELDS = ("ID", "ID_period", "lost_frame_count")
# Arguments of OverlapTracker that cfg.TRACKER_HEADS may leave out; there their names are in capitals.
_OPTIONS = (
    "max_num_instances",
    "max_lost_frame_count",
    "min_box_rel_dim",
    "min_instance_period",
    "track_iou_threshold",
)


class BaseTracker:
    """Numbers objects through the frames of a video; a subclass says how in `update`.

    A tracker has a state, so every video needs one of its own, or a call of `reset` before it.

    Args:
        **kwargs: not used; subclasses have arguments.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import BaseTracker
        >>> class Counter(BaseTracker):
        ...     def update(self, predictions):
        ...         predictions.ID = list(range(self._id_count, self._id_count + len(predictions)))
        ...         self._id_count += len(predictions)
        ...         return predictions
        ...
        >>> Counter().update(Instances((480, 640), pred_boxes=Boxes([[0, 0, 9, 9], [5, 5, 20, 20]]))).ID
        [0, 1]
    """

    @configurable
    def __init__(self, **kwargs: Any):
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new video, and numbers begin with 0 again."""
        self._prev_instances: Instances | None = None
        self._matched_idx: set[int] = set()  # rows of this frame, and of the frame before
        self._matched_ID: set[int] = set()
        self._untracked_prev_idx: set[int] = set()
        self._id_count = 0

    def update(self, predictions: Instances) -> Instances:
        """Take the detections of the next frame, with `pred_boxes` in pixels, and return them with `ID`."""
        raise NotImplementedError(f"{type(self).__name__} must define update(predictions)")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.TRACKER_HEADS`."""
        raise NotImplementedError(f"{cls.__name__} must define from_config(cfg)")


class OverlapTracker(BaseTracker):
    """Common part of the trackers that compare each frame with the one before.

    Args:
        video_height: height of the frames in pixels.
        video_width: width of the frames in pixels.
        max_num_instances: with more instances than that in a frame, lost ones are given up, those lost longest first;
            detections are all kept.
        max_lost_frame_count: for how many frames a lost object stays in the result, at its last box; 0 for never.
        min_box_rel_dim: a lost object is given up when its box is narrower than this share of the video's width, or
            lower than this share of its height.
        min_instance_period: a lost object is given up unless it was seen in more frames than this.
        track_iou_threshold: boxes of two frames can be the same object when their IoU is at least this.
        **kwargs: passed on to `BaseTracker`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import BBoxIOUTracker
        >>> tracker = BBoxIOUTracker(video_height=480, video_width=640, max_lost_frame_count=2, min_instance_period=0)
        >>> frame = Instances((480, 640), pred_boxes=Boxes([[10, 10, 60, 60]]))
        >>> tracker.update(frame).ID
        [0]
        >>> empty = Instances((480, 640), pred_boxes=Boxes([]))
        >>> tracker.update(empty).lost_frame_count  # kept at its last box
        [1]
    """

    @configurable
    def __init__(
        self,
        *,
        video_height: int,
        video_width: int,
        max_num_instances: int = 200,
        max_lost_frame_count: int = 0,
        min_box_rel_dim: float = 0.02,
        min_instance_period: int = 1,
        track_iou_threshold: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._video_height = video_height
        self._video_width = video_width
        self._max_num_instances = max_num_instances
        self._max_lost_frame_count = max_lost_frame_count
        self._min_box_rel_dim = min_box_rel_dim
        self._min_instance_period = min_instance_period
        self._track_iou_threshold = track_iou_threshold

    @abstractmethod
    def _track(self, instances: Instances, prev_instances: Instances) -> Instances:
        """Number the detections of a frame after the first, in place, and append lost objects."""

    def _initialize_extra_fields(self, instances: Instances) -> Instances:
        """Make arrays tensors, add the fields of tracks, empty until known; in the first frame all objects are new."""
        for name, value in instances.get_fields().items():
            instances.set(name, _as_field(name, value))
        height, width = instances.image_size
        instances._image_size = (int(height), int(width))
        count = len(instances)
        for name in _TRACK_FIELDS:
            if not instances.has(name):
                instances.set(name, [None] * count)
        if self._prev_instances is None:
            instances.ID, instances.ID_period, instances.lost_frame_count = list(range(count)), [1] * count, [0] * count
            self._id_count += count
        return instances

    def _continue_track(self, instances: Instances, row: int, number: int, period: int) -> None:
        """Give a row the number of a track that was seen in `period` frames before."""
        instances.ID[row], instances.ID_period[row], instances.lost_frame_count[row] = number, period + 1, 0

    def _begin_tracks(self, instances: Instances, known: Iterable[int]) -> Instances:
        """Give new numbers to all rows but the `known` ones."""
        for row in sorted(set(range(len(instances))).difference(known)):
            self._continue_track(instances, row, self._id_count, 0)
            self._id_count += 1
        return instances

    def update(self, predictions: Instances) -> Instances:
        """Take the detections of the next frame and number them.

        Args:
            predictions: detections of the frame with `pred_boxes`, in pixels of the frame. They are not changed.

        Returns:
            The detections in their order with the fields `ID`, `ID_period` (frames in which the object was seen) and
            `lost_frame_count` (0), followed by lost objects, if `max_lost_frame_count` allows them: all their fields
            as they were seen last, and `lost_frame_count` > 0.

        Raises:
            ValueError: there are no boxes, or the frame or its kind of boxes is another than before.
        """
        previous = self._prev_instances
        instances = self._initialize_extra_fields(_without_track_fields(predictions))
        if previous is not None:
            kinds = [f"{type(i.pred_boxes).__name__} in {i.image_size}" for i in (instances, previous)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"the frame has {kinds[0]} pixels (height, width), the one before had {kinds[1]}; for another "
                    "video make a new tracker, or call reset() on this one"
                )
            instances = self._track(instances, previous)
        self._prev_instances = _snapshot(instances)
        return instances

    def _with_lost(self, instances: Instances, missing: Iterable[int]) -> Instances:
        """Append those of the rows `missing` of the frame before that are worth waiting for."""
        previous: Any = self._prev_instances
        if self._max_lost_frame_count <= 0:
            return instances
        sizes_wh = _sizes_wh(previous.pred_boxes)
        least_wh = sizes_wh.new_tensor([self._video_width, self._video_height]) * self._min_box_rel_dim
        is_large = (sizes_wh >= least_wh).all(dim=1).tolist()
        rows = [
            row
            for row in sorted(missing)
            if is_large[row]
            and previous.lost_frame_count[row] < self._max_lost_frame_count
            and previous.ID_period[row] > self._min_instance_period
        ]
        room = max(self._max_num_instances - len(instances), 0)
        if len(rows) > room:
            rows = sorted(sorted(rows, key=lambda row: previous.lost_frame_count[row])[:room])
        if not rows:
            return instances
        lost = previous[torch.tensor(rows, device=sizes_wh.device)]
        lost.lost_frame_count = [number + 1 for number in lost.lost_frame_count]
        # The frame before may have had fields that this one lacks.
        lost = Instances(lost.image_size, **{name: lost.get(name) for name in instances.get_fields() if lost.has(name)})
        return Instances.cat([instances, lost])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.TRACKER_HEADS`, of which only the size of the video is required."""
        heads = cfg.TRACKER_HEADS
        needed = [key for key in ("VIDEO_HEIGHT", "VIDEO_WIDTH") if key not in heads]
        if needed:
            raise KeyError(f"{cls.__name__} needs the size of the video: set {needed} in cfg.TRACKER_HEADS, in pixels")
        given = {name: heads[name.upper()] for name in _OPTIONS if name.upper() in heads}
        return {"video_height": heads.VIDEO_HEIGHT, "video_width": heads.VIDEO_WIDTH, **given}


def overlaps_of(instances: Instances, prev_instances: Instances) -> torch.Tensor:
    """IoU of every box of a frame with every box of the frame before.

    Args:
        instances: `N` instances of a frame.
        prev_instances: `M` instances of the frame before.

    Returns:
        `Tensor[N, M]`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking.base_tracker import overlaps_of
        >>> before = Instances((480, 640), pred_boxes=Boxes([[0, 0, 10, 10]]))
        >>> now = Instances((480, 640), pred_boxes=Boxes([[0, 0, 10, 5], [50, 50, 60, 60]]))
        >>> overlaps_of(now, before)
        tensor([[0.5000],
                [0.0000]])
    """
    is_rotated = isinstance(instances.pred_boxes, RotatedBoxes)
    iou = pairwise_iou_rotated if is_rotated else pairwise_iou
    return iou(instances.pred_boxes, prev_instances.pred_boxes)


def _sizes_wh(boxes: Boxes | RotatedBoxes) -> torch.Tensor:
    """Width and height of each box in pixels, `Tensor[N, 2]`."""
    sizes = boxes.tensor[:, 2:4]
    return sizes if isinstance(boxes, RotatedBoxes) else sizes - boxes.tensor[:, :2]


def _without_track_fields(instances: Instances) -> Instances:
    """Instances of the same fields, apart from numbers that some tracker gave them."""
    if not isinstance(instances, Instances) or not instances.has("pred_boxes"):
        got = sorted(instances.get_fields()) if isinstance(instances, Instances) else type(instances).__name__
        raise ValueError(f"a tracker needs Instances with pred_boxes, as predictions['instances'] are, got {got}")
    fields = {name: value for name, value in instances.get_fields().items() if name not in _TRACK_FIELDS}
    return Instances(instances.image_size, **fields)


def _as_field(name: str, value: Any) -> Any:
    """The value of a field in a form that can be joined and moved to a device."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value) if value.dtype.kind in "biuf" else value.tolist()
    if name == "pred_boxes" and isinstance(value, torch.Tensor | list):
        value = torch.as_tensor(value, dtype=torch.float32)
        return RotatedBoxes(value) if value.shape[-1] == 5 else Boxes(value)
    return value


def _snapshot(instances: Instances) -> Instances:
    """A copy for the next frame that does not see what the caller does to boxes, numbers and the choice of fields."""
    copy = Instances(instances.image_size, **instances.get_fields())
    copy.pred_boxes = instances.pred_boxes.clone()
    for name in _TRACK_FIELDS:
        copy.set(name, list(instances.get(name)))
    return copy


def build_tracker_head(cfg: CfgNode) -> BaseTracker:
    """The tracker that `cfg.TRACKER_HEADS.TRACKER_NAME` names.

    Args:
        cfg: a config with a node `TRACKER_HEADS`, which is not among the defaults: add it with
            `cfg.TRACKER_HEADS = CfgNode({"TRACKER_NAME": "BBoxIOUTracker", "VIDEO_HEIGHT": 480, "VIDEO_WIDTH": 640})`.

    Returns:
        A new tracker.

    Raises:
        KeyError: the node or the tracker does not exist, or the node lacks the size of the video.

    Example:
        >>> from detectron2.config import CfgNode, get_cfg
        >>> from detectron2.tracking import build_tracker_head
        >>> cfg = get_cfg()
        >>> cfg.TRACKER_HEADS = CfgNode({"TRACKER_NAME": "BBoxIOUTracker", "VIDEO_HEIGHT": 480, "VIDEO_WIDTH": 640})
        >>> type(build_tracker_head(cfg)).__name__
        'BBoxIOUTracker'
    """
    if "TRACKER_HEADS" not in cfg or "TRACKER_NAME" not in cfg.TRACKER_HEADS:
        known = sorted(name for name, _ in TRACKER_HEADS_REGISTRY)
        raise KeyError(f"the config names no tracker: set cfg.TRACKER_HEADS.TRACKER_NAME to one of {known}")
    return TRACKER_HEADS_REGISTRY.get(cfg.TRACKER_HEADS.TRACKER_NAME)(cfg)
