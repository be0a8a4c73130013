"""The YAML config system: merging, files, errors, safe loading, ``configurable``."""

import copy
import inspect
import logging
import math
import pickle

import fvcore.common.config
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from detectron2.config.config import UnknownConfigKeyError


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


# ------------------------------------------------------------------------------------------------------------- defaults


def test_get_cfg_returns_independent_copies():
    first, second = get_cfg(), get_cfg()
    first.MODEL.RPN.NMS_THRESH = 0.1
    first.MODEL.ANCHOR_GENERATOR.SIZES.append([1])
    assert second.MODEL.RPN.NMS_THRESH == 0.7
    assert second.MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert isinstance(first, fvcore.common.config.CfgNode)
    assert not first.is_frozen()


def test_get_cfg_sees_what_projects_add_to_the_defaults(monkeypatch):
    from detectron2.config import defaults

    monkeypatch.setattr(defaults, "_C", defaults._C.clone())
    defaults._C.MODEL.MINE = CfgNode({"X": 3})
    assert get_cfg().MODEL.MINE.X == 3


def test_global_cfg_is_filled_in_place():
    assert len(global_cfg) == 0
    try:
        set_global_cfg(CfgNode({"A": 1, "B": {"C": 2}}))
        assert (global_cfg.A, global_cfg.B.C) == (1, 2)
        set_global_cfg(CfgNode({"D": 4}))
        assert dict(global_cfg) == {"D": 4}
    finally:
        global_cfg.clear()


# -------------------------------------------------------------------------------------------------- nodes as containers


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


# --------------------------------------------------------------------------------------------------------- configurable


class Head:
    """A head."""

    @configurable
    def __init__(self, a, *, b=2, c=3):
        """Docs."""
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.A * scale, "b": cfg.get("B", 20)}


class Child(Head):
    @configurable
    def __init__(self, extra, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

    @classmethod
    def from_config(cls, cfg):
        return {"extra": "e", **super().from_config(cfg)}


class ChildWithPlainInit(Head):
    def __init__(self, cfg, scale):
        super().__init__(cfg, scale, c=0)


@configurable(from_config=lambda cfg, a=None: {"a": cfg.A if a is None else a, "b": 5})
def function(a, b, c=3):
    return a, b, c


CFG = CfgNode({"A": 10})


@pytest.mark.parametrize("cfg", [CFG, fvcore.common.config.CfgNode({"A": 10}), OmegaConf.create({"A": 10})])
def test_configurable_classes(cfg):
    assert Head(1, b=0).values == (1, 0, 3)
    assert Head(a=1).values == (1, 2, 3)
    assert Head(cfg).values == (10, 20, 3)
    assert Head(cfg=cfg).values == (10, 20, 3)
    assert Head(cfg, c=7).values == (10, 20, 7)
    assert Head(cfg, b=6).values == (10, 6, 3)
    assert Head(cfg, 3).values == (30, 20, 3)
    assert Head(cfg, scale=3, a=0).values == (0, 20, 3)
    assert Child(cfg).values == (10, 20, 3) and Child(cfg, extra=1).extra == 1
    assert Child("x", a=1).values == (1, 2, 3)
    assert ChildWithPlainInit(cfg, 2).values == (20, 20, 0)


def test_configurable_functions():
    assert function(1, 2) == (1, 2, 3)
    assert function(CFG) == (10, 5, 3)
    assert function(cfg=CFG, c=0) == (10, 5, 0)
    assert function(CFG, a=1, b=2) == (1, 2, 3)
    assert function.from_config(CFG) == {"a": 10, "b": 5}


def test_configurable_keeps_names_docs_and_signatures():
    assert Head.__init__.__doc__ == "Docs." and Head.__init__.__name__ == "__init__"
    assert list(inspect.signature(Head).parameters) == ["a", "b", "c"]
    assert list(inspect.signature(function).parameters) == ["a", "b", "c"]


def test_from_config_with_open_arguments_gets_everything():
    class Open:
        @configurable
        def __init__(self, a, b):
            self.values = (a, b)

        @classmethod
        def from_config(cls, cfg, *args, **kwargs):
            return {"a": args, "b": kwargs}

    assert Open(CFG, 1, x=2).values == ((1,), {"x": 2})


def test_an_argument_named_cfg_of_another_kind_is_passed_on():
    class Mine:
        @configurable
        def __init__(self, cfg):
            self.cfg = cfg

        @classmethod
        def from_config(cls, cfg):
            return {"cfg": "translated"}

    assert Mine(cfg={"a": 1}).cfg == {"a": 1}
    assert Mine("text").cfg == "text"
    assert Mine(CFG).cfg == "translated"


def test_misuse_of_configurable_is_explained():
    with pytest.raises(TypeError, match="__init__"):

        @configurable
        def not_init(a): ...

    with pytest.raises(TypeError, match="must be a function"):
        configurable(from_config={"a": 1})
    with pytest.raises(TypeError, match="'cfg'"):
        configurable(from_config=lambda config: {})

    class NoFromConfig:
        @configurable
        def __init__(self, a): ...

    class NoClassmethod(NoFromConfig):
        def from_config(self, cfg): ...

    class WrongName(NoFromConfig):
        @classmethod
        def from_config(cls, config): ...

    class NoDict(NoFromConfig):
        @classmethod
        def from_config(cls, cfg):
            return [1]

    class TooMuch(NoFromConfig):
        @classmethod
        def from_config(cls, cfg):
            return {"a": 1, "d": 2}

    for owner, message in [
        (NoFromConfig, "needs a classmethod from_config"),
        (NoClassmethod, "must be a classmethod"),
        (WrongName, "'cfg'"),
        (NoDict, "must return a dictionary"),
        (TooMuch, "no argument 'd'; it takes a"),
    ]:
        with pytest.raises(TypeError, match=message):
            owner(CFG)
    with pytest.raises(TypeError, match="no argument 'zzz'"):
        Head(CFG, zzz=1)


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
