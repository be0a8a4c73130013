"""Every key of a config has a meaning, and every meaning belongs to a key."""

import importlib
import re
import runpy
from pathlib import Path

from detectron2.config import get_cfg, key_meanings
from detectron2.config.key_meanings import config_keys, read_meanings
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.project_keys import PROJECT_FOLDERS, PROJECT_KEYS

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = dict(iter_leaves(get_cfg()))


def adder(name):
    """The function of this name; of projects beside the library only the file with it, without their models."""
    module, _, function = name.rpartition(".")
    if module not in PROJECT_FOLDERS:
        return getattr(importlib.import_module(module), function)
    return runpy.run_path(str(ROOT / PROJECT_FOLDERS[module] / module / "config.py"))[function]


def test_all_keys_and_no_others():
    added = {}
    for name in PROJECT_KEYS:
        cfg = get_cfg()
        adder(name)(cfg)
        for path, value in iter_leaves(cfg):
            if path not in PUBLISHED and path not in OPTIONAL_KEYS:
                added.setdefault(path, (name, value))
    meanings = read_meanings()
    assert {*PUBLISHED, *OPTIONAL_KEYS, *added} - set(meanings) == set()  # keys without a meaning
    assert set(meanings) - {*PUBLISHED, *OPTIONAL_KEYS, *added} == set()  # meanings without a key
    keys = config_keys()
    assert list(keys)[: len(PUBLISHED)] == sorted(PUBLISHED, key=list(meanings).index)
    of_projects = {name: key for name, key in keys.items() if key.kind == "project"}
    assert {name: key.adders[0] for name, key in of_projects.items()} == {n: first for n, (first, _) in added.items()}
    for name, key in of_projects.items():
        is_installed = key.adders[0].startswith("detectron2.")
        assert key.is_default_known >= is_installed
        assert key.default == added[name][1] or not is_installed, name


def test_texts_are_sentences_with_units():
    units = set()
    for name, (unit, text) in read_meanings().items():
        assert re.match(r"[A-Z0-9(]", text) and text.endswith((".", '."')), (name, text)
        assert len(text) > 10 and "\n" not in text and "  " not in text, name
        units.add(unit)
    assert {"", "pixels", "iterations", "IoU", "score", "channels", "share"} <= units
    assert len(units) < 40  # the same unit has one name


def test_keys_that_a_text_names_exist():
    last_names = {name.rpartition(".")[2] for name in read_meanings()}
    for name, (_, text) in read_meanings().items():
        for full in re.findall(r"\b[A-Z_]+(?:\.[A-Z_0-9]+)+\b(?!\*)", text):
            assert full in read_meanings(), (name, full)
        for short in re.findall(r"(?<![.\w])[A-Z]+(?:_[A-Z0-9]+)+\b(?!\.)", text):
            assert short in last_names or short.endswith("_REGISTRY"), (name, short)


def test_a_key_of_each_kind():
    keys = config_keys(projects=False)
    depth, decay, points = keys["MODEL.RESNETS.DEPTH"], keys["SOLVER.EMA_DECAY"], keys["MODEL.POINT_HEAD.NUM_FC"]
    assert (depth.kind, depth.default, depth.unit, depth.adders) == ("default", 50, "layers", ())
    assert (decay.kind, decay.default, decay.requirement) == ("optional", 0.0, "a number in [0, 1)")
    assert points.kind == "project" and not points.is_default_known
    assert points.adders == ("detectron2.projects.point_rend.add_pointrend_config",)
    assert config_keys()["MODEL.POINT_HEAD.NUM_FC"].default == 3


def test_the_table_is_part_of_the_package():
    assert Path(key_meanings.__file__).with_suffix(".yaml").is_file()
