import collections
import os.path
import re

import fvcore.common.registry
import pytest
import torch

from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import PartRegistry, Registry, build_part, convert_target_to_string, locate, lookup


def test_registry_is_that_of_fvcore():
    assert Registry is fvcore.common.registry.Registry


def test_an_empty_registry_has_nothing_and_says_so():
    registry = Registry("EMPTY")
    assert list(registry) == []
    with pytest.raises(KeyError, match="EMPTY"):
        registry.get("anything")


class Outer:
    class Inner:
        def method(self):
            """Something to find by its path."""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("collections", collections),
        ("collections.OrderedDict", collections.OrderedDict),
        ("os.path.join", os.path.join),
        ("collections.OrderedDict.fromkeys", collections.OrderedDict.fromkeys),
        ("detectron2.utils.registry.locate", locate),
    ],
)
def test_locate(path, expected):
    assert locate(path) == expected


@pytest.mark.parametrize(
    "path", ["", ".", "a..b", "no_such_module_anywhere.x", "collections.NoSuchThing", "os.path.x.y"]
)
def test_locate_names_what_is_missing(path):
    with pytest.raises(ImportError):
        locate(path)


def test_locate_reports_a_missing_dependency_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "needs_something.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"needs_something.*no_such_dependency"):
        locate("needs_something.Thing")


def test_target_to_string_is_short_and_leads_back():
    assert convert_target_to_string(collections.OrderedDict) == "collections.OrderedDict"
    assert convert_target_to_string(torch.optim.SGD) == "torch.optim.SGD"  # defined in torch.optim.sgd
    path = convert_target_to_string(Registry)
    assert path == "fvcore.common.registry.Registry"
    assert locate(path) is Registry


def test_target_to_string_keeps_the_qualified_name_of_inner_classes():
    assert convert_target_to_string(Outer.Inner).endswith("Outer.Inner")


def test_lookup():
    registry = Registry("THING")
    with pytest.raises(KeyError, match=r"MODEL\.THING is 'A', which is not registered\. Registered are: none\."):
        lookup(registry, "A", "MODEL.THING")
    registry.register(Outer)
    assert lookup(registry, "Outer", "MODEL.THING") is Outer
    with pytest.raises(KeyError, match=r"Did you mean 'Outer'.*\(commands: --import MODULE\)\."):
        lookup(registry, "Outter", "MODEL.THING")


class Own:
    def __init__(self, cfg, shape):
        self.built_from = cfg, shape


class OwnWithoutShape:
    def __init__(self, cfg):
        pass


class OwnFromConfig:
    @configurable
    def __init__(self, width):
        pass

    @classmethod
    def from_config(cls, cfg):
        return {"width": 1}


class OwnThatIsIncomplete(OwnFromConfig):
    @configurable
    def __init__(self, width, depth):
        pass

    @classmethod
    def from_config(cls, cfg, shape):
        return {"width": 1}


class OwnModule(torch.nn.Module):
    pass


class OwnWithAnError(Own):
    def __init__(self, cfg, shape):
        super().__init__()


def build(part):
    registry = Registry("THING")
    registry.register(part)
    cfg = CfgNode({"MODEL": {"THING": part.__name__}})
    return cfg, build_part(registry, "MODEL.THING", cfg, shape=3)


def test_a_part_is_built():
    cfg, part = build(Own)
    assert part.built_from == (cfg, 3)
    with pytest.raises(KeyError, match=r"MODEL\.THING is 'Own', which is not registered"):
        build_part(Registry("THING"), "MODEL.THING", cfg, shape=3)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (OwnWithoutShape, r"OwnWithoutShape\.__init__\(\) takes 2 positional arguments but 3 were given"),
        (OwnFromConfig, r"OwnFromConfig\.from_config\(\) takes 2 positional arguments but 3 were given"),
        (OwnThatIsIncomplete, r"OwnThatIsIncomplete\.__init__\(\) missing 1 required positional argument: 'depth'"),
        (OwnModule, r"OwnModule\.__init__\(\) takes 1 positional argument but 3 were given"),
        (lambda cfg: None, r"takes 1 positional argument but 2 were given"),
    ],
)
def test_a_part_that_takes_other_arguments(part, what):
    torch.compile(lambda x: x, backend="eager")(torch.ones(1))  # puts a function of its own before that of modules
    called = re.escape(
        f"MODEL.THING is '{part.__name__}', which is built by {__name__}.{part.__qualname__}(cfg, shape), "
    )
    with pytest.raises(TypeError, match=f"{called}and this failed: .*{what}"):
        build(part)


def test_an_error_in_a_part_is_left_as_it_is():
    with pytest.raises(TypeError, match=r"^Own\.__init__\(\) missing 2 required"):
        build(OwnWithAnError)


def test_parts_of_the_same_name():
    """The error names both, and what is there stays."""
    registry = PartRegistry("HEADS")
    mine, theirs = (type("Head", (), {"__module__": name}) for name in ("mine.heads", "theirs"))
    registry.register(mine)
    with pytest.raises(
        AssertionError, match=r"'Head' was already registered in 'HEADS' registry! It is mine\.heads\.Head"
    ):
        registry.register()(theirs)
    with pytest.raises(AssertionError, match=r"and now theirs\.Head comes\. .* import either package, not both"):
        registry.register(theirs)
    assert registry.get("Head") is mine


def test_additions_give_way_to_parts_of_projects():
    """Projects that were written before have parts of such names, whichever is imported first."""
    parts = [type("Head", (), {"__module__": name}) for name in ("detectron2.heads", "theirs", "others")]
    for order in ((0, 1), (1, 0)):
        registry = PartRegistry("HEADS")
        for i in order:
            (registry.register_addition if i == 0 else registry.register())(parts[i])
        assert registry.get("Head") is parts[1]
        with pytest.raises(AssertionError, match=r"It is theirs\.Head, and now others\.Head comes"):
            registry.register(parts[2])
    registry = PartRegistry("HEADS")
    assert registry.register_addition(parts[0]) is registry.get("Head") is parts[0]
