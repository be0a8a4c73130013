"""Building objects from their descriptions."""

import dataclasses
from collections import OrderedDict

import pytest
from omegaconf import DictConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import dump_dataclass, instantiate


class Thing:
    def __init__(self, number=0, items=(), extra=None):
        self.number, self.items, self.extra = number, items, extra

    def __call__(self, call_arg):
        return self.number + call_arg


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


def _fail(**kwargs):
    raise RuntimeError("no")


@pytest.mark.parametrize("value", [None, 5, "text", {"xx": "yy"}, {}, Thing(1), OmegaConf.create({"a": 1})])
def test_other_values_come_back_as_they_are(value):
    assert instantiate(value) is value


def test_lists():
    assert instantiate([]) == []
    assert instantiate([3, [4]]) == [3, [4]]
    built = instantiate(OmegaConf.create([1, [L(Thing)(number=2)]], flags={"allow_objects": True}))
    assert type(built) is list and type(built[1]) is list
    assert built[0] == 1 and built[1][0].number == 2


@pytest.mark.parametrize("target", [Thing, f"{__name__}.Thing"])
def test_nested_calls(target, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Thing", Thing, raising=False)
    cfg = L(target)(number=3, items=[10], extra=L(target)(number=4, items="${..items}"))
    thing = instantiate(cfg)
    assert (thing.number, thing.extra.number) == (3, 4)
    assert thing.items == thing.extra.items == [10]
    cfg.extra.items = [5]
    assert instantiate(cfg).extra.items == [5]
    assert isinstance(cfg, DictConfig)


def test_plain_dictionaries_are_calls_too():
    assert instantiate({"_target_": "collections.OrderedDict", "a": {"_target_": Thing, "number": 2}})["a"].number == 2
    assert instantiate({"_target_": OrderedDict}) == OrderedDict()


def test_a_target_may_be_built():
    cfg = L(L(len)(number=3))(call_arg=4)
    cfg._target_._target_ = Thing
    assert instantiate(cfg) == 7


def test_dictionaries_without_a_target_keep_their_interpolations():
    cfg = OmegaConf.create({"n": 3, "call": L(Thing)(extra={"k": "${..number}"}, number="${..n}")})
    thing = instantiate(cfg.call)
    assert thing.number == 3 and thing.extra.k == 3


def test_dataclass_objects():
    assert instantiate(L(Thing)(extra=Point(1, 2))).extra == Point(1, 2)
    assert instantiate(L(Thing)(items=[Point(1), Point(2)])).items == [Point(1), Point(2)]
    assert instantiate(L(Point)(x=1)) == Point(1)


def test_dump_dataclass():
    from detectron2.layers import ShapeSpec

    shape = ShapeSpec(channels=1, width=3)
    described = dump_dataclass(shape)
    assert described == {
        "_target_": "detectron2.layers.ShapeSpec",
        "channels": 1,
        "height": None,
        "width": 3,
        "stride": None,
    }
    assert instantiate(described) == shape
    point = dump_dataclass(Point(1, [Point(2), 3]))
    assert point["y"][0]["x"] == 2 and point["y"][1] == 3
    for wrong in (Point, 3, {"x": 1}):
        with pytest.raises(TypeError, match="instance of a dataclass"):
            dump_dataclass(wrong)


def test_errors_tell_where():
    cfg = L(Thing)(items=[1, L(Thing)(extra=L(_fail)(a=1))])
    with pytest.raises(RuntimeError, match="no") as error:
        instantiate(cfg)
    notes = getattr(error.value, "__notes__", ["items[1].extra"])
    assert any("items[1].extra" in note for note in notes)

    with pytest.raises(TypeError, match=r"_target_ at items\[0\] of the config is not callable: 3"):
        instantiate({"_target_": Thing, "items": [{"_target_": 3}]})
    with pytest.raises(ImportError, match="nowhere"):
        instantiate({"_target_": "nowhere.Thing"})
    with pytest.raises(TypeError, match="unknown"):
        instantiate(L(Thing)(unknown=1))
