"""Proposal generators by name."""

import pytest

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN, build_proposal_generator

SHAPES = {"res4": ShapeSpec(channels=4, stride=16)}


def config(name):
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    return cfg


def test_precomputed_proposals_need_no_generator():
    assert build_proposal_generator(config("PrecomputedProposals"), SHAPES) is None


def test_rpn():
    assert "RPN" in PROPOSAL_GENERATOR_REGISTRY
    assert isinstance(build_proposal_generator(config("RPN"), SHAPES), RPN)


def test_unknown_name():
    with pytest.raises(KeyError, match="no_such_generator"):
        build_proposal_generator(config("no_such_generator"), SHAPES)
