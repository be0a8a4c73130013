"""Nodes as containers, files with their bases, and round trips through YAML."""

import copy
import logging
import math
import pickle
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detectron2.config import CfgNode, get_cfg
from detectron2.config.config import UnknownConfigKeyError
from detectron2.data.detection_utils import build_augmentation


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def small():
    return CfgNode({"A": 1, "F": 0.5, "S": "x", "L": [1], "T": (1, 2), "N": None, "G": {"B": True}})


# -------------------------------------------------------------------------------------------------- nodes as containers


class TestOneValueForATuple:
    """`("my_val")`, a comma forgotten, is a text."""

    @pytest.mark.parametrize("key", ["TRAIN", "TEST", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"])
    def test_a_name_is_one_name(self, key):
        cfg = get_cfg()
        cfg.DATASETS[key] = ("before", "that")
        setattr(cfg.DATASETS, key, "my_val")
        assert cfg.DATASETS[key] == ("my_val",) == cfg.clone().DATASETS[key]
        cfg.DATASETS[key] = "another"
        assert cfg.DATASETS[key] == ("another",)
        setattr(cfg.DATASETS, key, ["a", "b"])
        assert cfg.DATASETS[key] == ["a", "b"]

    def test_lists_and_numbers(self):
        cfg = get_cfg()
        cfg.SOLVER.STEPS = 3000
        cfg.MODEL.RPN.IN_FEATURES = "p2"
        cfg.MODEL.PIXEL_STD = None
        assert (cfg.SOLVER.STEPS, cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.PIXEL_STD) == ((3000,), ["p2"], None)
        cfg.SOLVER.STEPS = ()
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.MIN_SIZE_TRAIN = "range", 640
        assert build_augmentation(cfg, is_train=True)[0].short_edge_length == (640, 640)

    @pytest.mark.parametrize(("key", "value"), [("MIN_SIZE_TRAIN", "(640, 800)"), ("CROP", "x")])
    def test_text_for_numbers(self, key, value):
        node = CfgNode({"MIN_SIZE_TRAIN": (800, 900), "CROP": [0.5]})
        with pytest.raises(ValueError, match=rf"{key} must be a (tuple|list), e.g. [(\[][0-9.]+,?[)\]], not '"):
            setattr(node, key, value)

    def test_a_number_for_names(self):
        with pytest.raises(ValueError, match=r"IN_FEATURES must be a list, e.g. \['res4'\], not 2"):
            get_cfg().MODEL.RPN.IN_FEATURES = 2


def test_attributes():
    cfg = small()
    assert cfg.G.B is True and not hasattr(cfg, "MISSING") and getattr(cfg, "MISSING", 3) == 3
    cfg.NEW = 1
    setattr(cfg.G, "mixedCase", "x")  # noqa: B010 -- projects do it
    assert cfg.NEW == 1 and cfg.G.mixedCase == "x"
    with pytest.raises(AttributeError, match=r"no key 'AA' here; it has: A, F, S"):
        _ = cfg.AA


def test_freezing_and_computed_keys():
    cfg = small()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.G.B = False
    cfg.COMPUTED_X = 3
    with pytest.raises(KeyError):
        cfg.COMPUTED_X = 4
    cfg.defrost()
    cfg.G.B = False


@pytest.mark.parametrize("copied", [CfgNode.clone, copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_equal_and_keep_their_state(copied):
    cfg = small()
    cfg.set_new_allowed(True)
    cfg.freeze()
    other = copied(cfg)
    assert other == cfg and type(other) is CfgNode and type(other.G) is CfgNode
    assert other.is_frozen() and other.is_new_allowed() and other.G.is_frozen()


def test_deepcopy_keeps_shared_nodes_shared():
    node = CfgNode({"A": 1})
    first, second = copy.deepcopy([node, node])
    assert first is second is not node


# ---------------------------------------------------------------------------------------------------------------- files


def test_an_empty_file_changes_nothing(write):
    cfg = small()
    cfg.merge_from_file(write("empty.yaml", ""))
    assert cfg == small()


def test_bases_are_relative_to_the_file_and_the_file_wins(write):
    write("base.yaml", "A: 2\nS: base\nG: {B: false}\n")
    write("sub/middle.yaml", "_BASE_: ../base.yaml\nS: middle\n")
    cfg = small()
    cfg.merge_from_file(write("sub/deep/top.yaml", "_BASE_: ../middle.yaml\nF: 1\n"))
    assert (cfg.A, cfg.S, cfg.G.B, cfg.F) == (2, "middle", False, 1.0)


def test_several_bases_absolute_and_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("home.yaml", "A: 5\nS: home\n")
    absolute = write("other/absolute.yaml", "S: absolute\n")
    cfg = small()
    cfg.merge_from_file(write("sub/top.yaml", f"_BASE_: ['~/home.yaml', '{absolute}']\n"))
    assert (cfg.A, cfg.S) == (5, "absolute")


def test_a_base_may_be_a_config_of_the_model_zoo(write, tmp_path):
    zoo = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    path = write("mine.yaml", f"_BASE_: {zoo}\nSEED: 3\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert cfg.SEED == 3 and cfg.MODEL.RESNETS.DEPTH == 50 and cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    write(zoo, "SEED: 4\n")  # what lies beside the file goes first
    assert CfgNode.load_yaml_with_base(path) == {"SEED": 3}
    missing = write("other.yaml", "_BASE_: COCO-Detection/faster_rcnn.yaml\n")
    beside = re.escape(str(tmp_path / "COCO-Detection/faster_rcnn.yaml"))
    with pytest.raises(FileNotFoundError, match=rf"_BASE_ in .*other\.yaml means {beside}, and there is no such file"):
        CfgNode.load_yaml_with_base(missing)


def test_circles_of_bases_are_reported(write):
    write("a.yaml", "_BASE_: b.yaml\n")
    with pytest.raises(ValueError, match=r"circle: .*b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        small().merge_from_file(write("b.yaml", "_BASE_: a.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "holds a list"),
        ("A: [1\n", "not valid YAML"),
        ("_BASE_: 3\n", "_BASE_"),
        ("_BASE_: [3]\n", "_BASE_"),
        ("A: 2024-01-31\n", "quotes"),
        ("A: x\n", "A must be int"),
        ("_BASE_: base.yaml\nA: {X: 1}\n", "A is a group of keys here"),
    ],
)
def test_bad_files_name_the_file(write, text, message):
    write("base.yaml", "A: 1\n")
    with pytest.raises(ValueError, match=message) as error:
        small().merge_from_file(write("bad.yaml", text))
    assert "bad.yaml" in str(error.value)


def test_unknown_keys_name_the_file(write):
    with pytest.raises(UnknownConfigKeyError, match=r"bad\.yaml.*did you mean 'MODEL\.MASK_ON'"):
        get_cfg().merge_from_file(write("bad.yaml", "MODEL: {MASKON: true}\n"))


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match="missing"):
        small().merge_from_file("/nowhere/missing.yaml")


def test_keys_given_twice_are_logged(write, caplog):
    cfg = small()
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_file(write("twice.yaml", "A: 1\nA: 2\n"))
    assert cfg.A == 2
    assert "twice.yaml, line 2: 'A' is given twice" in caplog.text


def test_a_newer_version_is_refused(write):
    with pytest.raises(ValueError, match="VERSION 3"):
        get_cfg().merge_from_file(write("new.yaml", "VERSION: 3\n"))


def test_load_cfg_reads_text_and_files(write):
    assert CfgNode.load_cfg("A: !!python/tuple [1, 2]") == {"A": (1, 2)}
    with open(write("x.yaml", "A: 1\n")) as file:
        assert CfgNode.load_cfg(file) == {"A": 1}


def test_opening_can_be_overridden(write):
    class Mine(CfgNode):
        @classmethod
        def _open_cfg(cls, filename):
            return open(filename.removeprefix("mine://"))

    cfg = Mine({"A": 1})
    cfg.merge_from_file("mine://" + write("x.yaml", "A: 4\n"))
    assert cfg.A == 4


# ----------------------------------------------------------------------------------------------------------- round trip

_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3), st.lists(_SCALARS, max_size=3).map(tuple))
_KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_abc012", min_size=1, max_size=6).filter(
    lambda k: k not in ("_BASE_", "VERSION")
)
_TREES = st.recursive(
    st.dictionaries(_KEYS, _VALUES, max_size=4),
    lambda children: st.dictionaries(_KEYS, st.one_of(_VALUES, children), max_size=3),
    max_leaves=6,
)


def _is_stable(value):
    """False for text that reads as a quoted text or None: yacs takes the quotes off."""
    if isinstance(value, dict):
        return all(map(_is_stable, value.values()))
    if not isinstance(value, str):
        return True
    decoded = CfgNode._decode_cfg_value(value)
    return decoded is not None and (not isinstance(decoded, str) or decoded == value)


def _types(value):
    return {k: _types(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


@settings(deadline=None)
@given(_TREES)
def test_dump_and_merge_give_the_same_config(tmp_path_factory, tree):
    assume(_is_stable(tree))
    cfg = CfgNode(tree)
    path = tmp_path_factory.mktemp("dump") / "cfg.yaml"
    path.write_text(cfg.dump(), encoding="utf-8")
    loaded = CfgNode(tree)
    loaded.merge_from_file(str(path))
    assert loaded == cfg and _types(loaded) == _types(cfg)


@settings(deadline=None)
@given(_TREES, _TREES)
def test_merge_is_idempotent_and_all_or_nothing(first, second):
    cfg, other = CfgNode(first), CfgNode(second)
    try:
        cfg.merge_from_other_cfg(other)
    except (KeyError, ValueError):
        assert cfg == CfgNode(first) and _types(cfg) == _types(first)
        return
    once = cfg.clone()
    cfg.merge_from_other_cfg(once)
    assert _types(cfg) == _types(first)


def test_default_config_survives_dump_and_merge(write):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 1e-5
    loaded = get_cfg()
    loaded.merge_from_file(write("dumped.yaml", cfg.dump()))
    assert math.isclose(loaded.SOLVER.BASE_LR, 1e-5)
    assert _types(loaded) == _types(cfg)
    # YAML has one kind of sequence, and only the outer one is converted back.
    assert loaded.MODEL.ROI_BOX_CASCADE_HEAD.pop("BBOX_REG_WEIGHTS")[2] == [30.0, 30.0, 15.0, 15.0]
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.pop("BBOX_REG_WEIGHTS")[2] == (30.0, 30.0, 15.0, 15.0)
    assert loaded == cfg


def test_dump_writes_no_anchors():
    cfg = get_cfg()
    shared = [1, 2]
    cfg.A = CfgNode({"x": shared, "y": shared, "z": (), "w": (), "deep": [shared, shared]})
    text = cfg.dump()
    assert "&" not in text and "*" not in text
    fresh = get_cfg()
    fresh.A = CfgNode({"x": [], "y": [], "z": (), "w": (), "deep": []})
    fresh.merge_from_other_cfg(CfgNode.load_cfg(text))
    assert fresh.dump() == text
    assert (cfg.A.x, cfg.A.z) == ([1, 2], ())  # the config itself is unchanged
