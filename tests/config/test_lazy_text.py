"""Lazy configs as text: saving, reading and printing."""

import collections
import enum
import fractions
import functools
import itertools
import logging
import os
import threading

import numpy as np
import pytest
import yaml
from omegaconf import ListConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.config.lazy_text import load_lazy_yaml
from detectron2.layers import ShapeSpec
from detectron2.structures import BoxMode


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


# ----------------------------------------------------------------------------------------------------------------- save


def _reload(cfg, path):
    LazyConfig.save(cfg, str(path))
    return LazyConfig.load(str(path))


def test_save_an_empty_config(tmp_path):
    assert _reload(OmegaConf.create({}), tmp_path / "c.yaml") == {}


def test_save_and_load_give_the_same_objects(tmp_path):
    cfg = OmegaConf.create(
        {
            "a": {"x": 1, "y": "${.x}", "none": None, "f": 1e-06, "text": "ü: [x]", "yes": "yes"},
            "items": [1, [2.5, "x"], []],
            "shape": ShapeSpec(channels=3, stride=4),
            "counter": L(collections.Counter)(a=2, b="${..a.x}"),
            "method": L(fractions.Fraction.from_float)(f=0.5),
            "nested": L(L(functools.partial)(func=None))(x=1),
        },
        flags={"allow_objects": True},
    )
    cfg.holder = L(dict)(
        cls=collections.deque,
        func=os.path.join,
        norm=functools.partial(collections.Counter, b=functools.partial(int, "11", base=2)),
        shapes=[ShapeSpec(channels=1)],
        pair=(1, 2),
    )
    loaded = _reload(cfg, tmp_path / "sub" / "c.yaml")
    assert os.listdir(tmp_path / "sub") == ["c.yaml"]
    assert loaded.a == cfg.a and loaded.a.y == 1 and loaded["items"] == cfg["items"]
    loaded.a.x = 5
    assert instantiate(loaded.counter) == {"a": 2, "b": 5}
    assert loaded.counter._target_ == "collections.Counter"
    assert instantiate(loaded.shape) == ShapeSpec(channels=3, stride=4)
    assert instantiate(loaded.method) == fractions.Fraction(1, 2)
    assert instantiate(loaded.nested._target_._target_) == "functools.partial"
    holder = instantiate(loaded.holder)
    assert holder["cls"] is collections.deque and holder["func"] is os.path.join
    assert holder["norm"](c=1)["c"] == 1 and holder["norm"].keywords["b"]() == 3
    assert holder["shapes"] == [ShapeSpec(channels=1)] and holder["pair"] == [1, 2]
    again = _reload(loaded, tmp_path / "again.yaml")
    assert again == loaded


class _Colour(str, enum.Enum):
    RED = "red"


def test_values_of_classes_derived_from_plain_ones_are_saved_as_plain_ones(tmp_path):
    cfg = OmegaConf.create({"mode": BoxMode.XYWH_ABS, "colour": _Colour.RED}, flags={"allow_objects": True})
    cfg.numpy = L(dict)(text=np.str_("x"), number=np.float64(0.5))
    loaded = _reload(cfg, tmp_path / "c.yaml")
    assert loaded == {"mode": 1, "colour": "red", "numpy": {"_target_": "builtins.dict", "text": "x", "number": 0.5}}
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_what_cannot_be_saved_is_told(tmp_path, caplog):
    import cloudpickle

    cfg = OmegaConf.create({"a": 1}, flags={"allow_objects": True})
    cfg.call = L(dict)(f=lambda x: x + 1, ok=2)
    with caplog.at_level(logging.WARNING):
        loaded = _reload(cfg, tmp_path / "c.yaml")
    assert "cannot hold call.f, a function" in caplog.text and "c.yaml.pkl" in caplog.text
    assert loaded.a == 1 and loaded.call.ok == 2
    with pytest.raises(ValueError, match=r"could not hold call\.f, a function"):
        instantiate(loaded.call)
    assert cloudpickle.loads((tmp_path / "c.yaml.pkl").read_bytes()).call.f(1) == 2


def test_what_cannot_even_be_pickled(tmp_path, caplog):
    cfg = OmegaConf.create({"a": 1}, flags={"allow_objects": True})
    cfg.lock = threading.Lock()
    assert _reload(cfg, tmp_path / "c.yaml").a == 1
    assert "cannot be pickled" in caplog.text and not (tmp_path / "c.yaml.pkl").exists()


def test_files_saved_by_the_published_system_are_read_without_running_code(write, tmp_path):
    path = write(
        "old.yaml",
        "model:\n"
        "  _target_: builtins.dict\n"
        "  shape: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 256, height: 7, width: 7}\n"
        "  cls: !!python/name:collections.Counter ''\n"
        "  norm: !!python/object/apply:functools.partial\n"
        "    args: [&id !!python/name:collections.Counter '']\n"
        "    state: !!python/tuple\n"
        "    - *id\n"
        "    - !!python/tuple []\n"
        "    - {a: 1}\n"
        "    - {}\n"
        "  pair: !!python/tuple [1, 2]\n",
    )
    built = instantiate(LazyConfig.load(path).model)
    assert built["shape"] == ShapeSpec(channels=256, height=7, width=7)
    assert built["cls"] is collections.Counter and built["norm"](b=2) == {"a": 1, "b": 2}
    assert built["pair"] == [1, 2]

    marker = tmp_path / "marker"
    for text in (
        f'!!python/object/apply:os.system ["touch {marker}"]',
        f'!!python/object/new:os.system ["touch {marker}"]',
        f"!!python/object:subprocess.Popen {{args: [touch, {marker}]}}",
        "!!python/name:nowhere.at_all ''",
        "!!python/object/apply:functools.partial [1]",
    ):
        try:
            LazyConfig.load(write("bad.yaml", f"a: {text}\n"))
        except ValueError as error:
            assert "bad.yaml" in str(error)
    assert not marker.exists()


def test_saved_text_is_safe_yaml(tmp_path):
    cfg = OmegaConf.create({"a": L(collections.Counter)(b=ShapeSpec(channels=1))})
    LazyConfig.save(cfg, str(tmp_path / "c.yaml"))
    text = (tmp_path / "c.yaml").read_text()
    assert "!!" not in text
    assert yaml.safe_load(text)["a"]["b"]["_target_"] == "detectron2.layers.ShapeSpec"


def test_files_that_name_functions_of_a_former_module_are_read():
    text = "a: {_target_: detectron2.config._lazy_objects.make_partial, func: x, args: [], keywords: {}}"
    assert load_lazy_yaml(text, "a.yaml")["a"]["_target_"] == "detectron2.config.lazy_text.make_partial"


# ---------------------------------------------------------------------------------------------------------------- to_py


def test_to_py():
    assert LazyConfig.to_py(OmegaConf.create({})) == ""
    cfg = OmegaConf.create(
        {"a": {"x": 1, "y": 'te"xt', "z": {}}, "b": [1, {"k": None}], "odd key": True, "c": "${a.x}"},
        flags={"allow_objects": True},
    )
    cfg.call = L(itertools.count)(start=1, step=L("collections.Counter")(), f=len)
    cfg.shape = ShapeSpec(channels=1)
    assert LazyConfig.to_py(cfg).splitlines() == [
        "cfg.a.x = 1",
        'cfg.a.y = "te\\"xt"',
        "cfg.a.z = {}",
        'cfg.b = [1, {"k": None}]',
        'cfg["odd key"] = True',
        'cfg.c = "${a.x}"',
        "cfg.call = itertools.count(start=1, step=collections.Counter(), f=builtins.len)",
        "cfg.shape = detectron2.layers.ShapeSpec(channels=1, height=None, width=None, stride=None)",
    ]
    assert LazyConfig.to_py(cfg.a, prefix="model.").splitlines()[0] == "model.x = 1"
    assert LazyConfig.to_py(cfg.call) == "cfg = itertools.count(start=1, step=collections.Counter(), f=builtins.len)\n"


def test_to_py_breaks_long_calls():
    cfg = OmegaConf.create({"call": L(dict)(**{f"argument_{i}": "x" * 12 for i in range(6)}, inner=L(dict)(a=1))})
    text = LazyConfig.to_py(cfg)
    assert text.startswith('cfg.call = builtins.dict(\n    argument_0="xxxxxxxxxxxx",\n')
    assert text.endswith("    inner=builtins.dict(a=1),\n)\n")


def test_list_configs_are_printed():
    assert LazyConfig.to_py(ListConfig([1, "a"])) == 'cfg = [1, "a"]\n'


def test_python_text_breaks_long_dictionaries():
    call = {"_target_": "itertools.count", "x": {"r": "a", "s": 2.4, "s2": [1, 2, 3, "z"]}, "y": "base"}
    assert LazyConfig.to_py({"lazyobj": call, "list": ["a", 1, {"b": 3.2}]}) == (
        'cfg.lazyobj = itertools.count(\n    x={\n        "r": "a",\n        "s": 2.4,\n        "s2": [1, 2, 3, "z"],\n'
        '    },\n    y="base",\n)\ncfg.list = ["a", 1, {"b": 3.2}]\n'
    )
