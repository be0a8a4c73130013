"""Whole models, from a batch of images to losses or results."""

from .build import META_ARCH_REGISTRY, build_model
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .retinanet import RetinaNet

__all__ = ["META_ARCH_REGISTRY", "GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "build_model"]
