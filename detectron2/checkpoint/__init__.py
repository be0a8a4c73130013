"""Saving and loading of training states and of published weights, without running code from the files."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.checkpoint.description import CheckpointDescription, read_description
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer
from detectron2.checkpoint.timm_weights import TimmHandler
from detectron2.checkpoint.torchvision_weights import TorchvisionHandler, convert_torchvision_detector
from detectron2.utils.safe_pickle import UnsafePickleError as UnsafeCheckpointError

__all__ = [
    "CheckpointDescription",
    "Checkpointer",
    "DetectionCheckpointer",
    "ModelCatalog",
    "ModelCatalogHandler",
    "PeriodicCheckpointer",
    "TimmHandler",
    "TorchvisionHandler",
    "UnsafeCheckpointError",
    "convert_torchvision_detector",
    "read_description",
]
