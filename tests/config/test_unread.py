"""A config knows which of its keys were changed and which were read."""

import copy
import pickle
import time

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.config.unread import warn_of_unread
from detectron2.modeling import build_model

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def warned(caplog, cfg, *groups, model=None):
    """Return the lines of the one warning, or none."""
    caplog.clear()
    warn_of_unread(cfg, model, *(groups or ("MODEL", "INPUT", "SOLVER", "TEST")))
    return [line.strip() for r in caplog.records for line in r.getMessage().splitlines()[1:]]


def test_key_of_another_model(caplog):
    cfg = model_zoo.get_config(RETINANET)
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "meta", 3
    cfg.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.7, "MODEL.RPN.NMS_THRESH", 0.3])
    with torch.device("meta"):
        model = build_model(cfg.clone())
    assert warned(caplog, cfg, "MODEL", model=model) == [
        "MODEL.RPN.NMS_THRESH = 0.3",
        "MODEL.ROI_HEADS.NUM_CLASSES = 3; this RetinaNet reads MODEL.RETINANET.NUM_CLASSES",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.7; this RetinaNet reads MODEL.RETINANET.SCORE_THRESH_TEST",
    ]
    assert warned(caplog, cfg, "MODEL", model=model) == []  # once


def test_values_set_for_every_kind_of_model(caplog):
    cfg = get_cfg()
    for group in (cfg.MODEL.RETINANET, cfg.MODEL.ROI_HEADS):
        group.SCORE_THRESH_TEST = 0.6
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.6
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.6
    assert warned(caplog, cfg) == []


@pytest.mark.parametrize("merge", ["attribute", "list", "config", "file", "base"])
def test_ways_to_change_a_key(caplog, tmp_path, merge):
    cfg = get_cfg()
    (tmp_path / "wish.yaml").write_text("INPUT: {RANDOM_FLIP: none}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: wish.yaml\nINPUT: {MIN_SIZE_TEST: 640}\n")
    if merge == "attribute":
        cfg.INPUT.RANDOM_FLIP = "none"
    elif merge == "list":
        cfg.merge_from_list(["INPUT.RANDOM_FLIP", "none"])
    elif merge == "config":
        cfg.merge_from_other_cfg(CfgNode({"INPUT": {"RANDOM_FLIP": "none"}}))
    else:
        cfg.merge_from_file(tmp_path / ("wish.yaml" if merge == "file" else "mine.yaml"))
    cfg.MODEL.MASK_ON = False  # the value that it has
    assert warned(caplog, cfg) == ([] if merge == "base" else ["INPUT.RANDOM_FLIP = 'none'"])


def test_what_is_not_reading(caplog, tmp_path):
    cfg = get_cfg()
    cfg.SOLVER.GAMMA = 0.5
    cfg.freeze()
    text = cfg.dump() + str(cfg) + repr(cfg)
    assert "GAMMA" in text
    others = [cfg.clone(), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), copy.copy(cfg)]
    assert all(other == cfg for other in others)
    get_cfg().merge_from_other_cfg(cfg)
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(tmp_path / "dump.yaml")  # a whole config does not tell wishes
    assert dict.get(again["SOLVER"], "GAMMA") == 0.5 and warned(caplog, again) == []
    cfg.defrost()
    cfg.merge_from_list(["SOLVER.GAMMA", 0.25])
    assert warned(caplog, cfg) == ["SOLVER.GAMMA = 0.25"]


@pytest.mark.parametrize("read", ["cfg.SOLVER.GAMMA", "cfg['SOLVER']['GAMMA']", "cfg.clone().SOLVER.get('GAMMA')"])
def test_reading(caplog, read):
    cfg = get_cfg()
    cfg.SOLVER.GAMMA = 0.5
    assert eval(read) == 0.5
    assert warned(caplog, cfg) == []


def test_own_and_optional_keys(caplog):
    cfg = get_cfg()
    cfg.MODEL.MINE = CfgNode({"DEPTH": 3})
    cfg.merge_from_list(["MODEL.MINE.DEPTH", 4, "SOLVER.BETAS", (0.8, 0.9)])
    assert warned(caplog, cfg) == ["SOLVER.BETAS = (0.8, 0.9)"]


def test_reading_costs_nothing():
    cfg, start = get_cfg(), time.perf_counter()
    for _ in range(10_000):
        cfg.MODEL.RPN.NMS_THRESH  # noqa: B018
    assert time.perf_counter() - start < 1  # measured: 0.02 s; a model reads 300 keys


def test_a_config_does_not_hear_of_others(caplog):
    cfg, other = get_cfg(), get_cfg()
    cfg.SOLVER.GAMMA = 0.5
    assert other.SOLVER.GAMMA == 0.1
    assert warned(caplog, cfg) == ["SOLVER.GAMMA = 0.5"]
