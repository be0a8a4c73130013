"""Impossible values in a config: what is said, and that every config of the library passes."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detectron2.config import CfgNode, get_cfg
from detectron2.config.defaults import _C
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.unread import warn_of_unread
from detectron2.config.values import _RULES, _is_in, changed_keys_in, check_values, requirement, value_problem
from detectron2.modeling import build_model

DEFAULTS = {**dict(iter_leaves(_C)), **OPTIONAL_KEYS}


def problem(path, value):
    return value_problem(path, DEFAULTS[path], value)


def config(*pairs, architecture="GeneralizedRCNN"):
    """Return a config with these values, which no merge has looked at."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    for path, value in zip(pairs[::2], pairs[1::2], strict=True):
        *groups, key = path.split(".")
        node = cfg
        for group in groups:
            node = node[group]
        dict.__setitem__(node, key, value)
    return cfg


def test_no_keys():
    assert check_values(CfgNode()) is None
    assert check_values(OmegaConf.create({"SEED": "not ours"})) is None


def test_every_config_of_the_library():
    root = Path(__file__).resolve().parents[2]
    files = [*root.glob("configs/**/*.yaml"), *root.glob("projects/*/configs/**/*.yaml")]
    assert len(files) > 80
    for file in files:
        cfg = get_cfg()
        cfg.set_new_allowed(True)
        cfg.merge_from_file(str(file))
        check_values(cfg)


def test_defaults_and_all_rules_are_of_known_keys():
    check_values(get_cfg())
    assert not [path for path, value in OPTIONAL_KEYS.items() if problem(path, value)]
    for _, patterns in _RULES:
        for pattern in patterns.split():
            assert any(_is_in(path, pattern) for path in DEFAULTS), pattern


@pytest.mark.parametrize(
    ("path", "values", "must_be"),
    [
        (
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
            [(), (5,), "[1,2]", None, (1.0, 1.0, 1.0, 0)],
            "a list of 4 or 5 items",
        ),
        ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [(), ((1, 1, 1, 1), (1,))], "a list of 4 or 5 items"),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[], [[]], [[32], []], [[-1]], [[math.nan]], [["x"]], 32],
            "one or more items",
        ),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[], [[0]]], "one or more items, each a number above 0"),
        ("MODEL.FPN.OUT_CHANNELS", [-1, 0, 2.5, None, 10**30, (5,)], "a whole number from 1 to 1000000"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", [0, -3, "3", math.nan], "a whole number from 1"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", [-1, 10**9], "a whole number from 0 to 1000"),
        ("MODEL.RPN.CONV_DIMS", [[0], [], [[32]]], "-1 or a whole number above 0"),
        ("MODEL.RPN.IN_FEATURES", [[], "p2", None, [5]], "each a name"),
        ("DATASETS.TRAIN", [None, [5], [[]], "x"], "a list of items, each a name"),
        ("MODEL.DEVICE", ["x", "gpu", None, ""], "a device such as cpu, cuda or cuda:1"),
        ("MODEL.RPN.HEAD_NAME", [None, 3], "a name"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [None, [True], [[]]], "a list of 4 items, each true or false"),
        ("MODEL.BACKBONE.FREEZE_AT", [2.5, None, "2"], "a whole number"),
        ("INPUT.MIN_SIZE_TRAIN", [(), (-1,), None], "one or more items, each a number of at least 0"),
        ("SOLVER.IMS_PER_BATCH", [0, -2, 10**30], "a whole number from 1 to 1000000"),
        ("SOLVER.MOMENTUM", [None, -0.1, "0.9", 1.0, 1.5], r"a number in \[0, 1\)"),
        ("SOLVER.WEIGHT_DECAY_BIAS", ["", -1, math.inf], "a number of at least 0"),
        ("SOLVER.BASE_LR", [math.nan, math.inf, -1, [0.1], True], "a number of at least 0"),
        ("SOLVER.GAMMA", [math.nan, None, "x", -0.1], "a number of at least 0"),
        ("SOLVER.BASE_LR_END", [math.nan, None, -1], "a number of at least 0"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", [0, -2, math.nan], "a number above 0"),
        ("SOLVER.STEPS", [None, (-1,), ("x",)], "each a number of at least 0"),
        ("SOLVER.CHECKPOINT_FORMAT", ["zip", None], "one of pth, safetensors"),
        ("SOLVER.EMA_DECAY", [1.0, -0.5], r"a number in \[0, 1\)"),
    ],
)
def test_impossible(path, values, must_be):
    for value in values:
        with pytest.raises(ValueError, match=must_be) as error:
            check_values(config(path, value))
        assert f"{path} must be" in str(error.value)
        assert str(error.value).endswith(f"but is {value!r}.")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64]),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [10, 10, 5, 5, 1]),
        ("MODEL.RPN.CONV_DIMS", [-1, 64]),
        ("MODEL.FPN.NORM", None),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("SOLVER.STEPS", ()),
        ("SOLVER.BASE_LR", 1e30),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf),
        ("SOLVER.MAX_EPOCHS", None),
        ("SEED", None),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]]),
        ("GLOBAL.HACK", "anything"),
    ],
)
def test_possible(path, value):
    assert problem(path, value) == ""


def test_all_are_named_at_once_before_anything_is_built():
    cfg = config("SOLVER.MOMENTUM", None, "MODEL.RPN.IOU_LABELS", [2], "MODEL.FPN.OUT_CHANNELS", -1)
    with pytest.raises(ValueError, match=r"IOU_LABELS must be .*SOLVER\.MOMENTUM must be ") as error:
        check_values(cfg)
    assert "OUT_CHANNELS" in str(error.value)
    with pytest.raises(ValueError, match=r"MODEL\.FPN\.OUT_CHANNELS must be .*IOU_LABELS"):
        build_model(cfg)
    check_values(cfg, "INPUT.* DATALOADER.*")


@pytest.mark.parametrize(
    "entry", ["bbox", ["bbox", "AP", 38.5], ["bbox", "AP", "38.5", 0.2], ["bbox", 1, 38.5, 0.2], []]
)
def test_expected_results(entry):
    check_values(config("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38, 0.2]]))
    with pytest.raises(
        ValueError, match=r"EXPECTED_RESULTS must be a list of \[task, metric, expected value, tolerance\]"
    ):
        check_values(config("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2], entry]))


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"SOLVER\.NESTEROV must be False where SOLVER\.MOMENTUM is 0, but is True"):
        check_values(config("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0))
    check_values(config("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.5))
    check_values(config("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0, "SOLVER.OPTIMIZER", "AdamW"))


def test_groups_of_channels():
    cfg = config("MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 48)
    with pytest.raises(
        ValueError, match=r"FPN\.OUT_CHANNELS must be a multiple of 32, because MODEL\.FPN\.NORM is 'GN'"
    ):
        check_values(cfg)
    check_values(config("MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 64))


def test_what_is_not_used_and_keys_of_projects():
    check_values(config("MODEL.RETINANET.NUM_CLASSES", 0, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 0))
    with pytest.raises(ValueError, match=r"RETINANET\.NUM_CLASSES"):
        check_values(config("MODEL.RETINANET.NUM_CLASSES", 0, architecture="RetinaNet"))
    with pytest.raises(ValueError, match=r"RETINANET\.NUM_CLASSES"):  # who knows what it reads
        check_values(config("MODEL.RETINANET.NUM_CLASSES", 0, architecture="OfAProject"))
    cfg = get_cfg()
    cfg.MODEL.NEW = CfgNode({"NUM_CLASSES": -1})
    check_values(cfg)


def test_checking_is_no_reading(caplog):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RPN.NMS_THRESH", 0.3])
    check_values(cfg)
    warn_of_unread(cfg, object(), "MODEL")
    assert "MODEL.RPN.NMS_THRESH" in caplog.text


def test_upright_boxes_have_four_weights():
    five = ("MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 1, 1), "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5, 1))
    with pytest.raises(ValueError, match=r"RPN.BBOX_REG_WEIGHTS.*NAME is 'RPN'.*BOX_HEAD.BBOX.*Res5ROIHeads"):
        check_values(config(*five))
    rotated = ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "MODEL.ROI_HEADS.NAME", "RROIHeads")
    check_values(config(*five, *rotated))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("num_channels (48) must be divisible by num_groups (32)", ["MODEL.FPN.OUT_CHANNELS 48"]),
        ("tensor of size 48x3, 1.48 and 480", []),
        ("Unknown norm 'XX'; choose GN", ["MODEL.FPN.NORM 'XX'"]),
        ("labels are [0, 1]", ["MODEL.RPN.IOU_LABELS [0, 1]"]),
        ("labels are (0, 1)", ["MODEL.RPN.IOU_LABELS [0, 1]"]),
        ("'XX' is refused by MODEL.RPN.NMS_THRESH", []),  # the message knows it already
        ("256 anchors", []),  # a default
        ("'other' of 77", ["MODEL.OF_PROJECT.NORM 'other'"]),  # whose defaults are not known
        ("'unread'", []),
    ],
)
def test_keys_that_an_error_may_be_about(text, expected):
    cfg = config("MODEL.FPN.OUT_CHANNELS", 48, "MODEL.FPN.NORM", "XX", "MODEL.RPN.IOU_LABELS", [0, 1])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NORM", "unread", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 256])
    cfg.MODEL.OF_PROJECT = CfgNode({"NORM": "other", "WIDTH": 77})
    assert changed_keys_in(cfg, text) == expected


def test_requirements_in_words():
    assert requirement("GLOBAL.HACK", 1.0) == requirement("INPUT.RANDOM_FLIP", "horizontal") == ""
    assert requirement("SOLVER.MAX_ITER", 1) == "a whole number of at least 0"
    assert requirement("VIS_PERIOD", 0) == "a whole number"
    assert requirement("SOLVER.STEPS", (1,)) == "a list of items, each a number of at least 0"
    assert requirement("SOLVER.BETAS", (0.9, 0.999)) == "a list of 2 items, each a number in [0, 1)"
