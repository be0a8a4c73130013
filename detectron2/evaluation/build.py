"""Choose the evaluators for a data set."""

import os
import re
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators
from .lvis_evaluation import LVISEvaluator
from .panoptic_evaluation import COCOPanopticEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .rotated_coco_evaluation import RotatedCOCOEvaluator
from .sem_seg_evaluation import SemSegEvaluator

__all__ = ["build_evaluator"]


_BY_TYPE: dict[str, tuple[Callable[..., DatasetEvaluator], ...]] = {
    "coco": (COCOEvaluator,),
    "sem_seg": (SemSegEvaluator,),
    "pascal_voc": (PascalVOCDetectionEvaluator,),
    "lvis": (LVISEvaluator,),
    "coco_panoptic_seg": (SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator),
    "cityscapes_instance": (CityscapesInstanceEvaluator,),
    "cityscapes_sem_seg": (CityscapesSemSegEvaluator,),
    "cityscapes_panoptic_seg": (COCOPanopticEvaluator, CityscapesSemSegEvaluator, CityscapesInstanceEvaluator),
}
# COCO's panoptic data sets come with or without these kinds of ground truth; the key of the metadata tells.
_OPTIONAL: dict[Any, str] = {COCOEvaluator: "json_file", SemSegEvaluator: "sem_seg_root"}
# The arguments, besides the data set, that evaluators take.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    COCOEvaluator: ("distributed", "output_dir", "kpt_oks_sigmas"),
    RotatedCOCOEvaluator: ("distributed", "output_dir"),
    LVISEvaluator: ("distributed", "output_dir"),
    SemSegEvaluator: ("distributed", "output_dir"),
    COCOPanopticEvaluator: ("output_dir",),
}


def build_evaluator(
    dataset_name: str, output_dir: str | CfgNode | None = None, *, distributed: bool = True, cfg: CfgNode | None = None
) -> DatasetEvaluator:
    """Build the evaluator, or the evaluators, that fit a data set.

    The metadata's `evaluator_type` decides. Without one, the ground truth in the entries does:
    average precision for `annotations`, semantic segmentation for `sem_seg_file_name`. Rotated boxes, in the
    model or in the annotations, get the evaluator for them.

    Args:
        dataset_name: a registered data set.
        output_dir: folder for predictions; None to write nothing, or with `cfg` for `OUTPUT_DIR/inference` and, in
            it, a folder of each data set where `DATASETS.TEST` names several. A config in this place is taken as
            `cfg`.
        distributed: gather the predictions of all processes.
        cfg: supplies `OUTPUT_DIR`, `DATASETS.TEST` and `TEST.KEYPOINT_OKS_SIGMAS`, and tells whether boxes are
            rotated.

    Returns:
        one evaluator, or several behind one interface.

    Raises:
        ValueError: the type is unknown, or the entries have no ground truth.

    Example:
        >>> type(build_evaluator("one_cat", distributed=False)).__name__
        'COCOEvaluator'
    """
    if isinstance(output_dir, CfgNode):
        output_dir, cfg = None, output_dir
    arguments = {"distributed": distributed, "output_dir": output_dir, "kpt_oks_sigmas": ()}
    if cfg is not None:
        # Predictions on each data set have the same names, so several need a folder each.
        own = (dataset_name,) if len(cfg.DATASETS.TEST) > 1 else ()
        arguments["output_dir"] = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", *own)
        arguments["kpt_oks_sigmas"] = cfg.TEST.KEYPOINT_OKS_SIGMAS
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind is None:
        classes = _classes_by_fields(dataset_name, metadata)
    elif kind in _BY_TYPE:
        classes = _BY_TYPE[kind]
        if kind == "coco_panoptic_seg":
            classes = tuple(c for c in classes if c not in _OPTIONAL or metadata.get(_OPTIONAL[c]) is not None)
    else:
        raise ValueError(
            f"{dataset_name!r} has evaluator_type {kind!r}; known are {sorted(_BY_TYPE)}. Build its evaluator yourself."
        )
    evaluators = []
    for class_ in classes:
        is_rotated = cfg is not None and cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator"
        if class_ is COCOEvaluator and (is_rotated or _has_rotated_file(metadata)):
            class_ = RotatedCOCOEvaluator
        evaluators.append(class_(dataset_name, **{name: arguments[name] for name in _ARGUMENTS.get(class_, ())}))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _has_rotated_file(metadata: Metadata) -> bool:
    """Whether a box in the annotation file has five numbers."""
    path = metadata.get("json_file")
    if path is None or not PathManager.isfile(path):
        return False
    with PathManager.open(path, "r") as f:
        return re.search(r'"bbox"\s*:\s*\[[^][,]*(,[^][,]*){4}\]', str(f.read())) is not None


def _classes_by_fields(name: str, metadata: Metadata) -> tuple[Callable[..., DatasetEvaluator], ...]:
    """Evaluators for the ground truth that the entries of a data set have."""
    fields: set[str] = set()
    is_rotated = False
    for entry in DatasetCatalog.get(name):
        fields.update(entry)
        is_rotated |= any(a.get("bbox_mode") == BoxMode.XYWHA_ABS for a in entry.get("annotations", ()))
    classes: list[Callable[..., DatasetEvaluator]] = []
    if "annotations" in fields or metadata.get("json_file") is not None:
        classes.append(RotatedCOCOEvaluator if is_rotated else COCOEvaluator)
    if "sem_seg_file_name" in fields and metadata.get("stuff_classes") is not None:
        classes.append(SemSegEvaluator)
    if not classes:
        raise ValueError(
            f"Cannot choose an evaluator for {name!r}: its entries have the fields {sorted(fields)}, but "
            "neither `annotations` nor `sem_seg_file_name` (with `stuff_classes` in its metadata). Set "
            "`evaluator_type` in its metadata, or build an evaluator yourself."
        )
    return tuple(classes)
