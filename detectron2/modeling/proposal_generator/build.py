"""Choose a proposal generator by its name in the config."""

from typing import Any

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry, build_part

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "build_proposal_generator"]

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Proposal generators by name.

An entry is called as `entry(cfg, input_shape)`, where `input_shape` is the dictionary of the backbone's outputs, and
returns a module that maps images, features and (in training) ground truth to proposals and losses.
"""


def build_proposal_generator(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build the proposal generator that `cfg.MODEL.PROPOSAL_GENERATOR.NAME` names, for the backbone's output shapes.

    It is None for the name "PrecomputedProposals", with which proposals come with the input.
    """
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        return None
    return build_part(PROPOSAL_GENERATOR_REGISTRY, "MODEL.PROPOSAL_GENERATOR.NAME", cfg, input_shape=input_shape)
