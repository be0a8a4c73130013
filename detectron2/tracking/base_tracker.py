"""The interface of trackers, and building one from a config."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.registry import Registry

__all__ = ["TRACKER_HEADS_REGISTRY", "BaseTracker", "build_tracker_head"]

# Entries are called as `tracker(cfg)`.
TRACKER_HEADS_REGISTRY = Registry("TRACKER_HEADS")


class BaseTracker:
    """Numbers objects through the frames of a video; a subclass says how in `update`.

    A tracker has a state, so every video needs one of its own, or a call of `reset` before it.

    Args:
        **kwargs: not used; subclasses have arguments.
    """

    @configurable
    def __init__(self, **kwargs: Any):
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new video, and numbers begin with 0 again."""
        self._prev_instances: Instances | None = None
        self._id_count = 0

    def update(self, predictions: Instances) -> Instances:
        """Take the detections of the next frame and number them.

        Args:
            predictions: detections of the frame with `pred_boxes`, in pixels of the frame.

        Returns:
            Instances with at least the fields `pred_boxes` and `ID`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(predictions)")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.TRACKER_HEADS`."""
        raise NotImplementedError(f"{cls.__name__} must define from_config(cfg)")


def build_tracker_head(cfg: CfgNode) -> BaseTracker:
    """The tracker that `cfg.TRACKER_HEADS.TRACKER_NAME` names.

    Args:
        cfg: a config with a node `TRACKER_HEADS`, which is not among the defaults: add it with
            `cfg.TRACKER_HEADS = CfgNode({"TRACKER_NAME": "BBoxIOUTracker", "VIDEO_HEIGHT": 480, "VIDEO_WIDTH": 640})`.

    Returns:
        A new tracker.

    Raises:
        KeyError: there is no such node or no such tracker, or it lacks the size of the video.
    """
    if "TRACKER_HEADS" not in cfg or "TRACKER_NAME" not in cfg.TRACKER_HEADS:
        known = sorted(name for name, _ in TRACKER_HEADS_REGISTRY)
        raise KeyError(f"the config names no tracker: set cfg.TRACKER_HEADS.TRACKER_NAME to one of {known}")
    return TRACKER_HEADS_REGISTRY.get(cfg.TRACKER_HEADS.TRACKER_NAME)(cfg)
