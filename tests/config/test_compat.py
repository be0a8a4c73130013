"""Old config files merge into a new config."""

import pytest

from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version


def test_up_and_down_again_is_the_same():
    cfg = get_cfg()
    for version in (0, 1, 2):
        old = downgrade_config(cfg, version)
        assert version == old.VERSION
        assert upgrade_config(old) == cfg
    assert cfg == get_cfg()


def test_names_of_each_version():
    one = downgrade_config(get_cfg(), 1)
    assert one.MODEL.WEIGHT == "" and "WEIGHTS" not in one.MODEL
    assert one.MODEL.RETINANET.ANCHOR_SIZES == one.MODEL.RPN.ANCHOR_SIZES == [[32, 64, 128, 256, 512]]
    assert one.TEST.AUG_ON is False and "AUG" not in one.TEST
    assert one.MODEL.RPN.HEAD_NAME == "StandardRPNHead"
    zero = downgrade_config(get_cfg(), 0)
    assert zero.MODEL.RPN_HEAD.NAME == "StandardRPNHead" and "HEAD_NAME" not in zero.MODEL.RPN
    assert upgrade_config(zero, 1) == one


def test_retinanet_takes_its_own_anchors():
    old = downgrade_config(get_cfg(), 1)
    old.MODEL.RETINANET.ANCHOR_SIZES = [[1]]
    old.MODEL.RPN.ANCHOR_SIZES = [[2]]
    assert upgrade_config(old).MODEL.ANCHOR_GENERATOR.SIZES == [[2]]
    old.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert upgrade_config(old).MODEL.ANCHOR_GENERATOR.SIZES == [[1]]


def test_partial_configs():
    assert upgrade_config(CfgNode({"VERSION": 1})) == {"VERSION": 2}
    assert upgrade_config(CfgNode({"VERSION": 1, "TEST": {"AUG_FLIP": False}})) == {
        "VERSION": 2,
        "TEST": {"AUG": {"FLIP": False}},
    }


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("MODEL: {WEIGHT: x.pkl}", "MODEL.WEIGHTS", "x.pkl"),
        ("VERSION: 1\nMODEL: {ROI_HEADS: {NMS: 0.3}}", "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3),
        ("TEST: {AUG_ON: true, DETECTIONS_PER_IMG: 7}", "TEST.DETECTIONS_PER_IMAGE", 7),
        ("MODEL: {RPN: {ANCHOR_SIZES: [[8]]}}", "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]),
        ("VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Mine}}", "MODEL.RPN.HEAD_NAME", "Mine"),
        ("MODEL: {RPN_HEAD: {NAME: Mine}, WEIGHT: x.pkl}", "MODEL.WEIGHTS", "x.pkl"),
    ],
)
def test_old_files_are_translated(tmp_path, caplog, text, key, value):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    cfg = get_cfg()
    cfg.MODEL.MINE = CfgNode({"X": 1})
    cfg.merge_from_file(str(path))
    expected = get_cfg()
    expected.MODEL.MINE = CfgNode({"X": 1})
    expected.merge_from_list([key, value])
    if "AUG_ON" in text:
        expected.TEST.AUG.ENABLED = True
    if "RPN_HEAD" in text:
        expected.MODEL.RPN.HEAD_NAME = "Mine"
    assert cfg == expected
    assert "old.yaml is of config version" in caplog.text


def test_guess_version():
    assert guess_version(CfgNode(), "f") == 2
    assert guess_version(CfgNode({"MODEL": {"RPN_HEAD": {"NAME": "x"}}}), "f") == 0
    assert guess_version(CfgNode({"MODEL": {"WEIGHT": "x"}}), "f") == 1
    with pytest.raises(ValueError, match=r"f has keys of config version 1 \(MODEL.WEIGHT\)"):
        guess_version(CfgNode({"MODEL": {"WEIGHT": "x", "WEIGHTS": "x"}}), "f")


def test_a_key_that_a_project_named_like_an_old_one_is_no_sign_of_age(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("MODEL: {ROI_HEADS: {NMS: 3, SCORE_THRESH_TEST: 0.5}}")
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NMS = 1
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.ROI_HEADS.NMS == 3 and cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.5


def test_impossible_versions():
    with pytest.raises(ValueError, match="VERSION"):
        upgrade_config(CfgNode())
    with pytest.raises(ValueError, match="from version 2 to 3"):
        upgrade_config(get_cfg(), 3)
    with pytest.raises(ValueError, match="from version 1 to 2"):
        downgrade_config(CfgNode({"VERSION": 1}), 2)
    with pytest.raises(ValueError, match="to -1"):
        downgrade_config(get_cfg(), -1)
