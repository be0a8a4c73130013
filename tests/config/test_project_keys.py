"""Keys of projects: the table is theirs, and whoever merges one without adding it first is told how."""

import importlib
import runpy
from pathlib import Path

import pytest

from detectron2.config import CfgNode, ConfigError, UnknownConfigKeyError, get_cfg
from detectron2.config.merge import iter_leaves
from detectron2.config.project_keys import PROJECT_FOLDERS, PROJECT_KEYS, adders_of

ROOT = Path(__file__).resolve().parents[2]


def _adder(name):
    """The function of this name; of projects beside the library only the file with it, without their models."""
    module, _, function = name.rpartition(".")
    if module not in PROJECT_FOLDERS:
        return getattr(importlib.import_module(module), function)
    return runpy.run_path(str(ROOT / PROJECT_FOLDERS[module] / module / "config.py"))[function]


@pytest.mark.parametrize("name", PROJECT_KEYS)
def test_the_table_is_what_the_function_adds(name):
    cfg = get_cfg()
    before = {path for path, _ in iter_leaves(cfg)}
    _adder(name)(cfg)
    # An optional key that a project sets has been known before.
    added = {path for path, _ in iter_leaves(cfg)} - before - {"SOLVER.OPTIMIZER"}
    listed = PROJECT_KEYS[name]
    assert added
    assert {path for path in added if not any(path == k or path.startswith(k + ".") for k in listed)} == set()
    assert [k for k in listed if not any(path == k or path.startswith(k + ".") for path in added)] == []


def test_functions_for_keys():
    assert adders_of([]) == {}
    assert adders_of(["MODEL.NONE_OF_THESE", "MODEL.POINT_HEADS"]) == {}
    deeplab, panoptic, pointrend = list(PROJECT_KEYS)[:3]
    shared = "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"
    assert adders_of([shared]) == {deeplab: [shared]}
    assert adders_of([shared, "MODEL.POINT_HEAD"]) == {pointrend: [shared, "MODEL.POINT_HEAD"]}
    assert list(adders_of(["SOLVER.POLY_LR_POWER", "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA"])) == [panoptic]
    both = adders_of(["MODEL.TRIDENT.NUM_BRANCH", "MODEL.POINT_HEAD.NAME", "MODEL.POINT_HEAD.NUM_FC"])
    assert list(both) == [pointrend, "tridentnet.add_tridentnet_config"]


def test_a_file_of_a_project(tmp_path):
    path = ROOT / "projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    cfg = get_cfg()
    with pytest.raises(UnknownConfigKeyError) as error:
        cfg.merge_from_file(str(path))
    text = str(error.value)
    assert "8 more: call detectron2.projects.point_rend.add_pointrend_config(cfg) first." in text
    assert "'MODEL.POINT_HEAD.NAME'" in text and "did you mean" not in text and "cfg.NAME" not in text
    assert cfg == get_cfg()


def test_one_key_of_a_project_among_other_problems():
    with pytest.raises(ConfigError) as error:
        get_cfg().merge_from_list(["MODEL.TRIDENT.NUM_BRANCH", 2, "MODEL.DEVIC", "cpu", "SEED", "x"])
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  unknown key 'MODEL.TRIDENT.NUM_BRANCH'",
        "  unknown key 'MODEL.DEVIC': did you mean 'MODEL.DEVICE'?",
        "  SEED must be int (now -1), but got str 'x'",
        "MODEL.TRIDENT.NUM_BRANCH: call tridentnet.add_tridentnet_config(cfg) first; it is in projects/TridentNet "
        "(commands find it with PYTHONPATH=projects/TridentNet).",
        "'detectron2 config explain' lists the keys of this library; a program adds keys of its own before the merge "
        "(cfg.NAME = value).",
    ]


def test_a_config_that_has_the_keys():
    cfg = get_cfg()
    cfg.MODEL.TRIDENT = CfgNode({"NUM_BRANCH": 3})
    cfg.merge_from_list(["MODEL.TRIDENT.NUM_BRANCH", 2])
    assert cfg.MODEL.TRIDENT.NUM_BRANCH == 2
