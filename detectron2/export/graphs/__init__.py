"""Models as functions of tensors with fixed shapes, the form that is exported."""

from .dense import DenseDetectorGraph, FCOSGraph, RetinaNetGraph
from .graph import ExportGraph, GraphOptions, GraphPart, NotExportableError, build_graph, register_exportable
from .hf_models import HFDetectorGraph, HFSegmenterGraph
from .mask_classification import MaskClassificationGraph
from .operators import nms_keep, onnx_translations
from .proposals import Proposals
from .rcnn import GeneralizedRCNNGraph, PanopticFPNGraph, ProposalNetworkGraph
from .regions import PoolerGraph
from .roi_heads import CascadeROIHeadsGraph, Detections, Res5ROIHeadsGraph, ROIHeadsGraph, StandardROIHeadsGraph
from .segmentation import SemanticSegmentorGraph

__all__ = [
    "CascadeROIHeadsGraph",
    "DenseDetectorGraph",
    "Detections",
    "ExportGraph",
    "FCOSGraph",
    "GeneralizedRCNNGraph",
    "GraphOptions",
    "GraphPart",
    "HFDetectorGraph",
    "HFSegmenterGraph",
    "MaskClassificationGraph",
    "NotExportableError",
    "PanopticFPNGraph",
    "PoolerGraph",
    "ProposalNetworkGraph",
    "Proposals",
    "ROIHeadsGraph",
    "Res5ROIHeadsGraph",
    "RetinaNetGraph",
    "SemanticSegmentorGraph",
    "StandardROIHeadsGraph",
    "build_graph",
    "nms_keep",
    "onnx_translations",
    "register_exportable",
]
