import os
import random
import sys
import types

import numpy as np
import pytest
import torch

from detectron2.utils import env


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # the global generator is meant


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_seed_all_rng(seed, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    env.seed_all_rng(seed)
    first = draw()
    env.seed_all_rng(seed)
    assert draw() == first
    assert os.environ["PYTHONHASHSEED"] == str(seed % 2**32)


def test_without_a_seed_runs_differ(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    env.seed_all_rng()
    first = draw()
    env.seed_all_rng()
    assert draw() != first


def test_torch_version():
    assert torch.__version__.startswith("{}.{}".format(*env.TORCH_VERSION))


def test_import_file(tmp_path):
    path = tmp_path / "some_script.py"
    path.write_text("value = 3\n")
    assert env._import_file("d2_test_private", str(path)).value == 3
    assert "d2_test_private" not in sys.modules
    try:
        module = env._import_file("d2_test_public", path, make_importable=True)
        assert sys.modules["d2_test_public"] is module
    finally:
        sys.modules.pop("d2_test_public", None)


def test_import_of_a_broken_file_leaves_nothing(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        env._import_file("d2_test_broken", path, make_importable=True)
    assert "d2_test_broken" not in sys.modules
    with pytest.raises(ImportError, match=r"\.py"):
        env._import_file("d2_test_text", tmp_path / "notes.txt")


@pytest.fixture
def custom_environment(monkeypatch):
    monkeypatch.setattr(env, "_DONE", set())
    return lambda value: monkeypatch.setenv("DETECTRON2_ENV_MODULE", str(value))


def test_setup_environment_without_a_module(monkeypatch, custom_environment):
    monkeypatch.delenv("DETECTRON2_ENV_MODULE", raising=False)
    before = dict(os.environ), set(sys.modules)
    env.setup_environment()
    assert (dict(os.environ), set(sys.modules)) == before and not env._DONE


def test_setup_environment_runs_a_file_once(tmp_path, custom_environment):
    count = tmp_path / "count"
    script = tmp_path / "custom.py"
    script.write_text(
        f"def setup_environment():\n    with open({str(count)!r}, 'a') as file:\n        file.write('x')\n"
    )
    custom_environment(script)
    env.setup_environment()
    env.setup_environment()
    assert count.read_text() == "x"


def test_setup_environment_explains_a_module_without_the_function(custom_environment):
    custom_environment("json")
    with pytest.raises(AttributeError, match="setup_environment"):
        env.setup_environment()


def test_fixup_module_metadata():
    class Thing:
        def method(self):
            """A member that moves along."""

    Thing.__module__ = "package._impl"
    Thing.method.__module__ = "package._impl"
    foreign = types.FunctionType((lambda: None).__code__, {}, "foreign")
    foreign.__module__ = "packages_of_others"
    namespace = {"Renamed": Thing, "_private": Thing, "foreign": foreign, "number": 3, "sys": sys}
    env.fixup_module_metadata("package", namespace)
    assert (Thing.__module__, Thing.__name__, Thing.__qualname__) == ("package", "Renamed", "Renamed")
    assert Thing.method.__qualname__ == "Renamed.method"
    assert foreign.__module__ == "packages_of_others"
    assert sys.__name__ == "sys"


def test_fixup_of_chosen_names_only():
    def one():
        """Moved."""

    def two():
        """Left."""

    one.__module__ = two.__module__ = "package._impl"
    env.fixup_module_metadata("package", {"one": one, "two": two}, keys=["one"])
    assert (one.__module__, two.__module__) == ("package", "package._impl")
