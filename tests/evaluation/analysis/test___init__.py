"""The public names of the analysis."""

import detectron2.evaluation.analysis as analysis


def test_names_that_programs_import():
    for name in (
        "DetectionAnalysis",
        "Comparison",
        "Difference",
        "SegmentAnalysis",
        "OperatingPoint",
        "CalibrationBin",
    ):
        assert isinstance(getattr(analysis, name), type)
    for name in ("analyze_detections", "analyze_panoptic", "analyze_sem_seg", "compare_detections"):
        assert getattr(analysis, name) is getattr(__import__("detectron2.evaluation").evaluation, name)
