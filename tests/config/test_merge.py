"""Merging lists and configs: every problem is reported, and then nothing is changed."""

import fvcore.common.config
import pytest

from detectron2.config import CfgNode, get_cfg
from detectron2.config.merge import ConfigError, ConfigTypeError, UnknownConfigKeyError, iter_leaves, nearest
from detectron2.projects.point_rend import add_pointrend_config


def small():
    return CfgNode({"A": 1, "F": 0.5, "S": "x", "L": [1], "T": (1, 2), "N": None, "G": {"B": True}})


@pytest.mark.parametrize(
    ("name", "known", "expected"), [("a", [], None), ("lr", ["LR"], "LR"), ("lr", ["steps"], None)]
)
def test_nearest(name, known, expected):
    assert nearest(name, known) == expected


def test_iter_leaves():
    assert list(iter_leaves({})) == []
    assert list(iter_leaves({"A": 1, "G": {"B": [2], "E": {}}})) == [("A", 1), ("G.B", [2])]


# -------------------------------------------------------------------------------------------------------- merging lists


def test_merge_from_an_empty_list_changes_nothing():
    cfg = small()
    cfg.merge_from_list([])
    assert cfg == small()


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("A", "3", 3),
        ("A", 3, 3),
        ("F", "1e-3", 0.001),
        ("F", "2", 2.0),
        ("F", 2, 2.0),
        ("S", "3", "3"),
        ("S", "(1, 2)", "(1, 2)"),
        ("S", "'quoted'", "quoted"),
        ("S", "path/to.pth", "path/to.pth"),
        ("S", "None", None),
        ("L", "(1, 2)", [1, 2]),
        ("L", "[]", []),
        ("T", "[3]", (3,)),
        ("T", (), ()),
        ("N", "7", 7),
        ("N", "text", "text"),
        ("A", None, None),
        ("G.B", "False", False),
    ],
)
def test_merge_from_list_converts(key, given, expected):
    cfg = small()
    cfg.merge_from_list([key, given])
    value = cfg.G.B if key == "G.B" else cfg[key]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("A", "1.5"),
        ("A", "True"),
        ("A", "x"),
        ("F", "x"),
        ("F", "True"),
        ("L", "3"),
        ("G.B", "1"),
        ("G", "3"),
        ("T", "a,b"),
    ],
)
def test_merge_from_list_refuses_other_types(key, given):
    cfg = small()
    with pytest.raises(ValueError, match=key):
        cfg.merge_from_list([key, given])
    assert cfg == small()


def test_all_problems_of_a_list_are_reported_at_once_and_nothing_is_changed():
    cfg = get_cfg()
    with pytest.raises(ConfigError) as error:
        cfg.merge_from_list(
            ["SOLVER.IMS_PER_BATCH", 2, "MODEL.RPN.NMS_TRESH", 0.5, "SOLVER.MAX_ITER", "many", "XYZ", 1]
        )
    text = str(error.value)
    assert "3 problems" in text
    assert "did you mean 'MODEL.RPN.NMS_THRESH'?" in text
    assert "SOLVER.MAX_ITER must be int (now 40000), but got str 'many'" in text
    assert "unknown key 'XYZ'" in text
    assert isinstance(error.value, KeyError) and isinstance(error.value, ValueError)
    assert cfg == get_cfg()


def test_unknown_key_of_a_list_is_a_key_error_and_an_assertion_error():
    with pytest.raises(KeyError):
        small().merge_from_list(["B", 1])
    with pytest.raises(AssertionError):  # what yacs raises here
        small().merge_from_list(["B", 1])


def test_the_nearest_key_may_have_the_same_name_elsewhere():
    with pytest.raises(UnknownConfigKeyError, match=r"did you mean 'SOLVER\.BASE_LR'"):
        get_cfg().merge_from_list(["BASE_LR", 0.1])


@pytest.mark.parametrize("pairs", [["A"], ["A=1"], ["A", "1", "F"]])
def test_a_list_of_odd_length_is_refused(pairs):
    with pytest.raises(ValueError, match="pairs of key and value"):
        small().merge_from_list(pairs)


def test_key_equals_value_gets_advice():
    with pytest.raises(ValueError, match="with a space"):
        small().merge_from_list(["A=1"])
    with pytest.raises(KeyError, match="with a space"):
        small().merge_from_list(["A=1", "F=2"])


def test_base_is_refused_outside_files():
    with pytest.raises(ValueError, match="_BASE_"):
        small().merge_from_list(["_BASE_", "x.yaml"])
    with pytest.raises(ValueError, match="_BASE_"):
        small().merge_from_other_cfg(CfgNode({"_BASE_": "x.yaml"}))


# ----------------------------------------------------------------------------------------------------- merging configs


def test_merge_from_an_empty_config_changes_nothing():
    cfg = small()
    cfg.merge_from_other_cfg(CfgNode())
    assert cfg == small()


def test_merge_copies_values():
    other = CfgNode({"L": [[1]], "G": {"B": False}})
    cfg = small()
    node = cfg.G
    cfg.merge_from_other_cfg(other)
    cfg.L[0].append(2)
    assert other.L == [[1]]
    assert cfg.G is node and node.B is False


def test_merge_reports_every_unknown_leaf():
    with pytest.raises(UnknownConfigKeyError) as error:
        small().merge_from_other_cfg(CfgNode({"H": {"X": 1, "Y": 2}, "Z": {}, "A": 2}))
    assert all(f"unknown key {name!r}" in str(error.value) for name in ("H.X", "H.Y", "Z"))


def test_a_group_cannot_replace_a_value_nor_a_value_a_group():
    with pytest.raises(ConfigTypeError, match=r"A must be int \(now 1\), but got a group of keys"):
        small().merge_from_other_cfg(CfgNode({"A": {"X": 1}}))
    with pytest.raises(ConfigTypeError, match="G must be a group of keys, but got int 3"):
        small().merge_from_other_cfg(CfgNode({"G": 3}))


def test_merge_needs_a_config():
    with pytest.raises(TypeError, match="CfgNode"):
        small().merge_from_other_cfg({"A": 1})


def test_new_keys_where_they_are_allowed():
    cfg = small()
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(CfgNode({"Q": {"R": 1}, "G": {"C": "0.5"}}))
    assert cfg.Q.R == 1 and cfg.G.C == 0.5

    cfg = small()
    cfg.G = CfgNode({"B": True}, new_allowed=True)
    cfg.merge_from_other_cfg(CfgNode({"G": {"D": 1}}))
    assert cfg.G.D == 1
    with pytest.raises(KeyError):
        cfg.merge_from_other_cfg(CfgNode({"D": 1}))
    with pytest.raises(KeyError):
        cfg.merge_from_list(["G.E", 1])  # a command line never adds keys


def test_deprecated_and_renamed_keys(caplog):
    cfg = small()
    cfg.register_deprecated_key("OLD")
    cfg.register_renamed_key("FORMER", "A", message="it is an int now")
    cfg.merge_from_other_cfg(CfgNode({"OLD": 1, "A": 5}))
    cfg.merge_from_list(["OLD", 1])
    assert cfg.A == 5 and "OLD" not in cfg
    with pytest.raises(KeyError, match="it is an int now"):
        cfg.merge_from_list(["A", 7, "FORMER", 1])
    assert cfg.A == 5


def test_fvcore_and_yacs_nodes_can_be_merged():
    cfg = small()
    cfg.merge_from_other_cfg(fvcore.common.config.CfgNode({"G": {"B": False}}))
    assert cfg.G.B is False


def test_a_typo_in_the_keys_of_a_project_gets_the_nearest_key_once_they_are_there():
    cfg = get_cfg()
    with pytest.raises(KeyError, match=r"call detectron2\.projects\.point_rend\.add_pointrend_config"):
        cfg.merge_from_list(["MODEL.POINT_HEAD.NUM_FCC", 3])
    add_pointrend_config(cfg)
    with pytest.raises(KeyError, match=r"did you mean 'MODEL\.POINT_HEAD\.NUM_FC'") as info:
        cfg.merge_from_list(["MODEL.POINT_HEAD.NUM_FCC", 3])
    assert "add_pointrend_config" not in str(info.value)
