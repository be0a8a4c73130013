import pytest

from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.tracking import (
    TRACKER_HEADS_REGISTRY,
    BaseTracker,
    BBoxIOUTracker,
    IOUWeightedHungarianBBoxIOUTracker,
    VanillaHungarianBBoxIOUTracker,
    build_tracker_head,
)

TRACKERS = [BBoxIOUTracker, VanillaHungarianBBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker]


def config(**heads):
    cfg = get_cfg()
    cfg.TRACKER_HEADS = CfgNode(heads)
    return cfg


@pytest.mark.parametrize("kind", TRACKERS)
def test_from_a_config(kind, frame):
    heads = {
        "TRACKER_NAME": kind.__name__,
        "VIDEO_HEIGHT": 10,
        "VIDEO_WIDTH": 20,
        "MAX_NUM_INSTANCES": 30,
        "MAX_LOST_FRAME_COUNT": 4,
        "MIN_BOX_REL_DIM": 0.5,
        "MIN_INSTANCE_PERIOD": 6,
        "TRACK_IOU_THRESHOLD": 0.7,
    }
    tracker = build_tracker_head(config(**heads))
    assert type(tracker) is kind is TRACKER_HEADS_REGISTRY.get(kind.__name__)
    assert {name.removeprefix("_").upper(): value for name, value in vars(tracker).items()} | heads == {
        **heads,
        "PREV_INSTANCES": None,
        "MATCHED_IDX": set(),
        "MATCHED_ID": set(),
        "UNTRACKED_PREV_IDX": set(),
        "ID_COUNT": 0,
    }
    assert tracker.update(frame([0, 0, 1, 1])).ID == [0]


@pytest.mark.parametrize("kind", TRACKERS)
def test_defaults(kind):
    from_config = build_tracker_head(config(TRACKER_NAME=kind.__name__, VIDEO_HEIGHT=10, VIDEO_WIDTH=20))
    explicit = kind(video_height=10, video_width=20)
    lazy = instantiate({"_target_": f"{kind.__module__}.{kind.__name__}", "video_height": 10, "video_width": 20})
    assert vars(from_config) == vars(explicit) == vars(lazy)
    assert explicit._max_num_instances == 200
    assert explicit._max_lost_frame_count == 0
    assert explicit._min_box_rel_dim == 0.02
    assert explicit._min_instance_period == 1
    assert explicit._track_iou_threshold == 0.5


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (get_cfg(), "TRACKER_NAME to one of.*'BBoxIOUTracker'"),
        (config(VIDEO_HEIGHT=1), "TRACKER_NAME"),
        (config(TRACKER_NAME="BBoxIOUTracker", VIDEO_HEIGHT=1), r"\['VIDEO_WIDTH'\] in cfg.TRACKER_HEADS"),
        (config(TRACKER_NAME="Nobody"), "Nobody"),
    ],
)
def test_configs_that_lack_something(cfg, message):
    with pytest.raises(KeyError, match=message):
        build_tracker_head(cfg)


def test_the_base_leaves_all_to_subclasses(frame):
    with pytest.raises(NotImplementedError, match="from_config"):
        BaseTracker(get_cfg())

    class Constant(BaseTracker):
        @classmethod
        def from_config(cls, cfg):
            return {}

        def update(self, predictions):
            self._id_count += 1
            return predictions

    tracker = Constant(get_cfg())
    assert tracker._prev_instances is None
    tracker.update(frame())
    tracker.reset()
    assert tracker._id_count == 0

    class Unfinished(Constant):
        update = BaseTracker.update

    with pytest.raises(NotImplementedError, match=r"Unfinished must define update"):
        Unfinished().update(frame())
