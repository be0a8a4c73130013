"""The examples in the docstrings of the config package run and print what they say."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import detectron2.config
from detectron2.config import CfgNode, LazyCall, LazyConfig, configurable, get_cfg, instantiate

MODULES = [f"detectron2.config.{module.name}" for module in pkgutil.iter_modules(detectron2.config.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = [CfgNode, LazyCall, LazyConfig, configurable, get_cfg, instantiate]
    known = {**{x.__name__: x for x in names}, "torch": torch, "Path": Path, "OmegaConf": OmegaConf, **vars(module)}
    assert doctest.testmod(module, globs=known, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed == 0
