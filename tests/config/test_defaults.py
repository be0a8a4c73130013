"""The default config has exactly the documented keys, values and types."""

import json

import pytest

from detectron2.config import CfgNode, get_cfg
from detectron2.config.defaults import _C


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_tuples(value):
    return [_without_tuples(v) for v in value] if isinstance(value, list | tuple) else value


def test_same_as_recorded(shared_dir):
    recorded = json.loads((shared_dir / "facts" / "config_defaults.json").read_text())
    leaves = dict(_leaves(get_cfg()))
    assert set(leaves) == set(recorded)
    for name, value in leaves.items():
        assert type(value).__name__ == recorded[name]["type"], name
        # as text, so that 1 and 1.0 differ
        assert json.dumps(_without_tuples(value)) == json.dumps(recorded[name]["value"]), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VERSION", 2),
        ("DATASETS.TRAIN", ()),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 12000),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6, 0.7)),
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (512, 512, 512, 512, 512, 512, 512, 512)),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("TEST.AUG.MIN_SIZES", (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)),
        ("GLOBAL.HACK", 1.0),
    ],
)
def test_some_values(name, value):
    found = dict(_leaves(_C))[name]
    assert found == value and type(found) is type(value)


def test_stays_unfrozen():
    assert not _C.is_frozen() and not _C.is_new_allowed()
