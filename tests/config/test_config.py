"""The default and the global config, and `configurable`."""

import inspect

import fvcore.common.config
import pytest
from omegaconf import OmegaConf

from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

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

    for arguments in (CFG, 1):
        with pytest.raises(AttributeError, match=r"NoFromConfig .*needs a classmethod from_config"):
            NoFromConfig(arguments)
    with pytest.raises(TypeError, match="must be a classmethod"):
        NoClassmethod(1)
    for owner, message in [
        (NoClassmethod, "must be a classmethod"),
        (WrongName, "'cfg'"),
        (NoDict, "must return a dictionary"),
        (TooMuch, "no argument 'd'; it takes a"),
    ]:
        with pytest.raises(TypeError, match=message):
            owner(CFG)
    with pytest.raises(TypeError, match="no argument 'zzz'"):
        Head(CFG, zzz=1)
