"""What a model does well and badly, from its saved predictions: detections, and labels of pixels."""

from ._scores import CalibrationBin, DetectionScores, ImageScores, KeypointScores, OperatingPoint, PartScores
from .comparison import Comparison, Difference, compare_detections
from .detections import DetectionAnalysis, analyze_detections
from .errors import ErrorType
from .pixels import SegmentAnalysis, SegmentScores, analyze_panoptic, analyze_sem_seg

__all__ = [
    "CalibrationBin",
    "Comparison",
    "DetectionAnalysis",
    "DetectionScores",
    "Difference",
    "ErrorType",
    "ImageScores",
    "KeypointScores",
    "OperatingPoint",
    "PartScores",
    "SegmentAnalysis",
    "SegmentScores",
    "analyze_detections",
    "analyze_panoptic",
    "analyze_sem_seg",
    "compare_detections",
]
