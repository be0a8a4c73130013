"""The examples in docstrings run, and every public name of these packages has one."""

import doctest
import importlib
import pkgutil
import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

PACKAGES = ("structures", "layers", "data.transforms", "visualization", "tracking")
# Examples that need an optional library run where it is installed.
OPTIONAL = {"detectron2.data.transforms.albumentations_adapter": "albumentations"}
# What every example may use without importing it, as in PyTorch's own documentation.
GLOBALS = {"np": np, "torch": torch, "nn": torch.nn}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        found = importlib.import_module(f"detectron2.{package}")
        names += [found.__name__, *(m.name for m in pkgutil.walk_packages(found.__path__, found.__name__ + "."))]
    return names


def defined_in(module: ModuleType) -> dict[str, Any]:
    """The functions and classes of `__all__` that the module defines itself."""
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: o for name, o in public.items() if callable(o) and getattr(o, "__module__", "") == module.__name__}


@pytest.mark.parametrize("name", modules())
def test_examples_give_what_they_show(name, tmp_path, monkeypatch):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    monkeypatch.chdir(tmp_path)  # examples may write files
    state = np.random.get_state(), random.getstate()
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for public, documented in defined_in(module).items():
        for test in doctest.DocTestFinder().find(documented, public, module, extraglobs=GLOBALS):
            with torch.random.fork_rng():
                runner.run(test, out=report.append)
    np.random.set_state(state[0]), random.setstate(state[1])
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", modules())
def test_every_public_name_has_an_example(name):
    missing = [n for n, o in defined_in(importlib.import_module(name)).items() if not _has_example(o)]
    assert missing == [], f"{name}: no example (>>>) in the docstring of {missing}"


def _has_example(public: Any) -> bool:
    return ">>>" in (public.__doc__ or "")
