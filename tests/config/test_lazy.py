"""Lazy configs: describing calls, loading files, relative imports, overriding."""

import collections
import itertools

import pytest
from omegaconf import DictConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------------- LazyCall


def test_lazy_call_describes_a_call():
    cfg = L(collections.Counter)(a=1)
    assert isinstance(cfg, DictConfig)
    assert cfg == {"_target_": collections.Counter, "a": 1}
    cfg.a = 2
    cfg.b = 3
    assert instantiate(cfg) == {"a": 2, "b": 3}
    assert instantiate(L("collections.Counter")()) == {}


def test_lazy_call_takes_named_arguments_only():
    with pytest.raises(TypeError, match=r"LazyCall\(Counter\) takes only named arguments.* 1, 'x'"):
        L(collections.Counter)(1, "x")


@pytest.mark.parametrize("target", [3, None, [1]])
def test_lazy_call_needs_a_callable(target):
    with pytest.raises(TypeError, match="callable"):
        L(target)


# ----------------------------------------------------------------------------------------------------------------- load


def test_load_an_empty_file(write):
    for name in ("empty.py", "empty.yaml"):
        cfg = LazyConfig.load(write(name, ""))
        assert isinstance(cfg, DictConfig) and len(cfg) == 0


def test_load_takes_public_dictionaries_and_lists(write):
    path = write(
        "a.py",
        "from omegaconf import ListConfig\n"
        "import os\n"
        "a = dict(x=1, y=dict(z=[1, 2]), up='${.x}')\n"
        "_private = dict(x=1)\n"
        "number = 3\n"
        "items = ListConfig([1])\n"
        "def function(): pass\n",
    )
    cfg = LazyConfig.load(path)
    assert set(cfg) == {"a", "items"}
    assert cfg.a.y.z[1] == 2 and cfg.a.up == 1
    assert isinstance(LazyConfig.load(path, "a"), DictConfig)
    assert LazyConfig.load(path, "number") == 3
    a, private = LazyConfig.load(path, ("a", "_private"))
    assert (a.x, private.x) == (1, 1)
    with pytest.raises(KeyError, match=r"a\.py does not define 'b'; it defines a, items"):
        LazyConfig.load(path, "b")


def test_relative_imports_need_no_packages(write):
    write("common/optim.py", "SGD = dict(lr=1)\ndef rate(x):\n    return 2 * x\nnumber = 5\n")
    write("common/data/x.py", "from ..optim import SGD\nloader = dict(lr='${SGD.lr}', n=[SGD.lr])\n")
    path = write(
        "runs/deep/run.py",
        "from ...common.optim import SGD as optimizer, rate, number\n"
        "from ...common.data.x import (\n    loader,\n)\n"
        "optimizer.lr = rate(number)\n"
        "loader.n.append(number)\n",
    )
    cfg = LazyConfig.load(path)
    assert cfg.optimizer == {"lr": 10}
    assert cfg.loader.n == [1, 5]


def test_every_importer_gets_its_own_copy(write):
    write("base.py", "model = dict(a=1, items=[1])\nplain = [1]\n")
    write("first.py", "from .base import model, plain\nmodel.a = 2\nplain.append(2)\n")
    path = write(
        "second.py",
        "from .first import model as other, plain\nfrom .base import model\nout = dict(plain=list(plain))\n",
    )
    cfg = LazyConfig.load(path)
    assert (cfg.model.a, cfg.other.a) == (1, 2)
    assert cfg.out.plain == [1, 2]


def test_a_file_is_executed_once_per_load(write, tmp_path):
    write("base.py", f"open({str(tmp_path / 'log')!r}, 'a').write('x')\nclass A: pass\n")
    write("first.py", "from .base import A as B\n")
    LazyConfig.load(write("top.py", "from .base import A\nfrom .first import B\nassert A is B\n"))
    assert (tmp_path / "log").read_text() == "x"


def test_relative_imports_from_the_working_directory(write, tmp_path, monkeypatch):
    write("base.py", "x = dict(a=1)\n")
    write("sub/top.py", "from ..base import x\n")
    write("other.py", "from .base import x\n")
    monkeypatch.chdir(tmp_path / "sub")
    assert LazyConfig.load("top.py").x.a == 1
    monkeypatch.chdir(tmp_path)
    assert LazyConfig.load("other.py").x.a == LazyConfig.load("sub/top.py").x.a == 1


def test_relative_imports_of_yaml_and_inside_functions(write):
    write("values.yaml", "model: {a: 7}\n")
    path = write("top.py", "def _get():\n    from .values import model\n    return model\nmodel = _get()\n")
    assert LazyConfig.load(path).model.a == 7


def test_absolute_imports_are_pythons_own(write):
    import builtins

    before = builtins.__import__
    path = write("top.py", "import os.path\nfrom collections import Counter\nc = dict(n=Counter(a=2)['a'])\n")
    assert LazyConfig.load(path).c.n == 2
    assert builtins.__import__ is before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from .missing import x", r"config file .*missing\.py does not exist"),
        ("from . import x", "relative import.*write 'from .file import name'"),
        ("from .base import *", "write 'from .file import name'"),
        ("from .base import y", "Cannot import y from .*base.py"),
        ("from .circle import x", "import each other"),
    ],
)
def test_bad_relative_imports(write, text, message):
    write("base.py", "x = dict()\n")
    write("circle.py", "from .top import x\n")
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(write("top.py", text))


def test_errors_in_files_show_the_line(write):
    with pytest.raises(SyntaxError) as error:
        LazyConfig.load(write("bad.py", "a = dict(\n"))
    assert error.value.filename.endswith("bad.py")
    with pytest.raises(ZeroDivisionError) as error:
        LazyConfig.load(write("bad.py", "\n1 / 0\n"))
    assert error.traceback[-1].path.name == "bad.py" and error.traceback[-1].lineno == 1


def test_other_file_types_and_missing_files(write):
    with pytest.raises(ValueError, match=r"\.py, \.yaml or \.yml"):
        LazyConfig.load(write("a.json", "{}"))
    with pytest.raises(FileNotFoundError):
        LazyConfig.load("/nowhere/a.py")
    with pytest.raises(ValueError, match="holds a list"):
        LazyConfig.load(write("list.yaml", "- 1\n"))


def test_load_rel(write):
    write("sub/values.py", "a = dict(x=4)\n")
    path = write(
        "top.py",
        "from detectron2.config import LazyConfig\n"
        "a = LazyConfig.load_rel('sub/values.py', 'a')\n"
        "b = LazyConfig.load_rel('./sub/values.py')\n",
    )
    cfg = LazyConfig.load(path)
    assert cfg.a.x == cfg.b.a.x == 4
    with pytest.raises(FileNotFoundError):
        LazyConfig.load_rel("not_here.py")
    with pytest.raises(ValueError, match="not from a file"):
        eval("LazyConfig.load_rel('x.py')")


# ------------------------------------------------------------------------------------------------------------ overrides


def _config():
    cfg = OmegaConf.create(
        {
            "train": {"max_iter": 10, "amp": {"enabled": False}, "same": "${.max_iter}"},
            "items": [{"a": 1}, {"a": 2}],
            "empty": {},
        },
        flags={"allow_objects": True},
    )
    cfg.model = L(ShapeSpec)(channels=3)
    cfg.open = L(collections.Counter)(a=1)
    cfg.count = L(itertools.count)(start=1)
    return cfg


def test_no_overrides():
    cfg = _config()
    assert LazyConfig.apply_overrides(cfg, []) is cfg and cfg == _config()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.max_iter=20", "train.max_iter", 20),
        ("train.amp.enabled=True", "train.amp.enabled", True),
        ("train.max_iter=abc", "train.max_iter", "abc"),
        ('train.max_iter="123"', "train.max_iter", "123"),
        ("train.max_iter=null", "train.max_iter", None),
        ("train.max_iter=[1,[2,x]]", "train.max_iter", [1, [2, "x"]]),
        ("train.max_iter={a:1,b:[2]}", "train.max_iter", {"a": 1, "b": [2]}),
        ("train.amp={other:1}", "train.amp", {"enabled": False, "other": 1}),
        ("train.same=${..items[1].a}", "train.same", 2),
        ("items.1.a=5", "items.1.a", 5),
        ("+train.max_itr=1", "train.max_itr", 1),
        ("++train.max_itr=1", "train.max_itr", 1),
        ("+train.deep.new.key=1", "train.deep.new.key", 1),
        ("train.cudnn_benchmark=True", "train.cudnn_benchmark", True),
        ("brand_new.x=1", "brand_new.x", 1),
        ("model.stride=4", "model.stride", 4),
        ("open.anything=4", "open.anything", 4),
        ("count.step=4", "count.step", 4),
        ("empty.x=1", "empty.x", 1),
        ("train.max_iter=detectron2://a/b-c/1.pkl", "train.max_iter", "detectron2://a/b-c/1.pkl"),
        ("train.max_iter=./a/b.pth", "train.max_iter", "./a/b.pth"),
        ("train.max_iter=1e-3", "train.max_iter", 0.001),
        ("~train.max_iter", "train.max_iter", None),
        ("~train.amp", "train.amp", None),
        ("~train.max_iter=10", "train.max_iter", None),
        ("~items.0", "items", [{"a": 2}]),
    ],
)
def test_overrides(override, path, value):
    cfg = _config()
    LazyConfig.apply_overrides(cfg, [override])
    assert OmegaConf.select(cfg, path) == value
    if override.startswith("~") and path != "items":
        group, _, key = path.rpartition(".")
        assert key not in OmegaConf.select(cfg, group).keys()  # noqa: SIM118 -- "in" of a DictConfig hides None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=20", r"'train' has no 'max_itr'; did you mean 'max_iter'\?"),
        ("trian.max_iter=20", r": the config has no 'trian'; did you mean 'train'\?"),
        ("model.chanels=20", r"takes no argument 'chanels'; did you mean 'channels'\?"),
        ("model.zzz=20", "takes no argument 'zzz'"),
        ("train.max_iter.xxx=20", "'train.max_iter' is 10, which has no parts"),
        ("+train.max_iter.xxx=20", "which has no parts"),
        ("items.5.a=20", "'items' has 2 items"),
        ("~train.max_itr", r"to remove; did you mean 'max_iter'\?"),
        ("~nothing.at.all", "no 'nothing.at.all'"),
        ("~train.max_iter=11", "is 10, not 11"),
        ("train.max_iter=1,2", "one value"),
    ],
)
def test_bad_overrides_are_key_errors(override, message):
    cfg = _config()
    with pytest.raises(KeyError, match=message):
        LazyConfig.apply_overrides(cfg, [override])
    assert cfg == _config()


@pytest.mark.parametrize("override", ["", "train.max_iter", "=1", "a=[1"])
def test_unreadable_overrides(override):
    with pytest.raises(ValueError, match="Cannot read"):
        LazyConfig.apply_overrides(_config(), ["train.max_iter=1", override])
