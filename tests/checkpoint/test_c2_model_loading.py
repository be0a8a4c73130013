import json
import logging

import pytest
import torch

from detectron2.checkpoint.c2_model_loading import (
    _longest_common_prefix_str,
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)


def test_nothing_becomes_nothing():
    assert convert_basic_c2_names([]) == []
    assert convert_c2_detectron_names({}) == ({}, {})
    assert align_and_update_state_dicts({}, {}) == {}


MODELS = ("imagenet_R50", "mask_rcnn_R50_FPN", "keypoint_rcnn_R50_FPN", "faster_rcnn_R50_C4", "retinanet_R50_FPN")


@pytest.mark.parametrize("model", MODELS)
def test_recorded_names(shared_dir, model):
    record = json.loads((shared_dir / "facts" / "legacy_checkpoint_names.json").read_text())[model]
    weights = {name: torch.zeros(400, 1) for name in record["names"]}
    new, origin = convert_c2_detectron_names(weights)
    assert {old: name for name, old in origin.items()} == record["names"]
    assert set(new) == set(origin)


@pytest.mark.parametrize("model", MODELS)
def test_recorded_class_order(shared_dir, model):
    record = json.loads((shared_dir / "facts" / "legacy_checkpoint_names.json").read_text())[model]
    rows = {"bbox_pred": 324, "cls_score": 81, "mask_head.predictor": 81}
    weights = {old: torch.arange(float(rows.get(new.rpartition(".")[0], 9))) for old, new in record["names"].items()}
    new, _ = convert_c2_detectron_names(weights)
    changed = {name: [*value[:6].tolist(), len(value)] for name, value in new.items() if value[0] != 0}
    assert changed == record["first_rows"]
    for name in ("cls_score.weight", "cls_score.bias"):
        if name in new:
            assert new[name][-1] == 0  # the background comes last


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pred_w", "linear.weight"),
        ("res_conv1_bn_rm", "stem.conv1.norm.running_mean"),
        ("res2_0_branch2a_bn_riv", "res2.0.conv1.norm.running_var"),
        ("conv1_gn_s", "stem.conv1.norm.weight"),
        ("res3_1_branch2b_gn_b", "res3.1.conv2.norm.bias"),
    ],
)
def test_other_normalizations(old, new):
    assert convert_basic_c2_names([old]) == [new]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fpn_inner_res4_5_sum_lateral_gn_s", "fpn_lateral4.norm.weight"),
        ("fpn_res4_22_sum_w", "fpn_output4.weight"),
        ("head_conv2_gn_b", "box_head.conv2.norm.bias"),
        ("_[mask]_fcn3_gn_s", "mask_head.mask_fcn3.norm.weight"),
        ("fc7_w", "box_head.fc2.weight"),
    ],
)
def test_detectors_with_group_normalization(old, new):
    assert list(convert_c2_detectron_names({old: torch.zeros(8)})[0]) == [new]


def test_two_weights_for_one_name_are_refused():
    with pytest.raises(ValueError, match=r"conv_rpn_fpn2_w.*conv_rpn_w"):
        convert_c2_detectron_names({"conv_rpn_w": torch.zeros(1), "conv_rpn_fpn2_w": torch.zeros(1)})


def test_the_longest_ending_wins_and_only_whole_parts_count():
    model = {name: torch.zeros(2) for name in ("net.a.weight", "net.b.a.weight", "net.ba.weight")}
    weights = {"a.weight": torch.ones(2), "b.a.weight": torch.full((2,), 2.0)}
    result = align_and_update_state_dicts(model, weights, c2_conversion=False)
    assert {name: float(value[0]) for name, value in result.items()} == {"net.a.weight": 1.0, "net.b.a.weight": 2.0}
    assert all(float(value[0]) == 0 for value in model.values())  # the model's own dictionary is left alone


def test_unmatched_weights_keep_their_names():
    result = align_and_update_state_dicts({"net.a": torch.zeros(1)}, {"a": torch.ones(1), "c": torch.ones(3)}, False)
    assert set(result) == {"net.a", "c"}


def test_other_shapes_are_skipped_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    model = {"net.a": torch.zeros(1)}
    assert set(align_and_update_state_dicts(model, {"a": torch.ones(3)}, False)) == {"a"}
    assert "net.a" in caplog.text
    assert "(3,)" in caplog.text


def test_one_weight_for_two_places_is_refused():
    model = {"student.a": torch.zeros(1), "teacher.a": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"student\.a.*teacher\.a"):
        align_and_update_state_dicts(model, {"a": torch.ones(1)}, False)


def test_caffe2_names_find_their_place_in_a_detector():
    model = {"backbone.bottom_up.res2.0.conv1.weight": torch.zeros(2, 2)}
    result = align_and_update_state_dicts(model, {"res2_0_branch2a_w": torch.ones(2, 2)})
    assert list(result) == list(model)
    assert result["backbone.bottom_up.res2.0.conv1.weight"].sum() == 4


def test_longest_common_prefix():
    assert _longest_common_prefix_str(["a.bc.x", "a.bd", "a.b"]) == "a.b"
    assert _longest_common_prefix_str(["x", "y"]) == _longest_common_prefix_str([]) == ""
