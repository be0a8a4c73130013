"""Metrics over data sets, and the loop that feeds models to them."""

import importlib
from typing import TYPE_CHECKING, Any

from .build import build_evaluator
from .cityscapes_evaluation import CityscapesEvaluator, CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .lvis_evaluation import LVISEvaluator
from .panoptic_evaluation import COCOPanopticEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .rotated_coco_evaluation import RotatedCOCOEvaluator
from .sem_seg_evaluation import SemSegEvaluator
from .testing import flatten_results_dict, print_csv_format, verify_results

if TYPE_CHECKING:
    from .analysis import analyze_detections, analyze_panoptic, analyze_sem_seg, compare_detections

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "RotatedCOCOEvaluator",
    "SemSegEvaluator",
    "analyze_detections",
    "analyze_panoptic",
    "analyze_sem_seg",
    "build_evaluator",
    "compare_detections",
    "flatten_results_dict",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]

_ANALYSIS = ("analyze_detections", "analyze_panoptic", "analyze_sem_seg", "compare_detections")


def __getattr__(name: str) -> Any:
    """Import the analysis, which training and evaluation do without, when a name of it is first read."""
    if name == "analysis":
        return importlib.import_module(".analysis", __name__)
    if name in _ANALYSIS:
        return getattr(importlib.import_module(".analysis", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
