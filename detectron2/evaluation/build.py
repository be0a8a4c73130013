"""Choose the evaluators of a data set."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode

from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators
from .lvis_evaluation import LVISEvaluator
from .panoptic_evaluation import COCOPanopticEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .rotated_coco_evaluation import RotatedCOCOEvaluator
from .sem_seg_evaluation import SemSegEvaluator

__all__ = ["build_evaluator"]


def _build_coco(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return COCOEvaluator(name, distributed=distributed, output_dir=output_dir, kpt_oks_sigmas=sigmas)


def _build_rotated(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return RotatedCOCOEvaluator(name, distributed=distributed, output_dir=output_dir)


def _build_sem_seg(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=distributed, output_dir=output_dir)


def _build_voc(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


def _build_lvis(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return LVISEvaluator(name, distributed=distributed, output_dir=output_dir)


def _build_panoptic(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return COCOPanopticEvaluator(name, output_dir)


def _build_cityscapes_instance(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(name)


def _build_cityscapes_sem_seg(name, output_dir, distributed, sigmas) -> DatasetEvaluator:
    return CityscapesSemSegEvaluator(name)


# Panoptic data sets come with or without these kinds of ground truth; the key of the metadata tells.
_OPTIONAL: dict[Callable[..., DatasetEvaluator], str] = {_build_coco: "json_file", _build_sem_seg: "sem_seg_root"}

_BY_TYPE: dict[str, tuple[Callable[..., DatasetEvaluator], ...]] = {
    "coco": (_build_coco,),
    "sem_seg": (_build_sem_seg,),
    "pascal_voc": (_build_voc,),
    "lvis": (_build_lvis,),
    "coco_panoptic_seg": (_build_sem_seg, _build_coco, _build_panoptic),
    "cityscapes_instance": (_build_cityscapes_instance,),
    "cityscapes_sem_seg": (_build_cityscapes_sem_seg,),
    "cityscapes_panoptic_seg": (_build_panoptic, _build_cityscapes_sem_seg, _build_cityscapes_instance),
}


def build_evaluator(
    dataset_name: str, output_dir: str | CfgNode | None = None, *, distributed: bool = True, cfg: CfgNode | None = None
) -> DatasetEvaluator:
    """Build the evaluator, or the evaluators, that fit a data set.

    The metadata's `evaluator_type` decides; a data set without one gets what its entries have ground truth for:
    average precision for `annotations`, semantic segmentation for `sem_seg_file_name`. A model of rotated boxes, or
    annotations of them, get the evaluator of these.

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
    sigmas = ()
    if cfg is not None:
        # Predictions on each data set have the same names, so several need a folder each.
        own = (dataset_name,) if len(cfg.DATASETS.TEST) > 1 else ()
        output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", *own)
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind is None:
        builders = _builders_by_fields(dataset_name, metadata)
    elif kind in _BY_TYPE:
        builders = _BY_TYPE[kind]
        if kind == "coco_panoptic_seg":
            builders = tuple(b for b in builders if b not in _OPTIONAL or metadata.get(_OPTIONAL[b]) is not None)
    else:
        raise ValueError(
            f"{dataset_name!r} has evaluator_type {kind!r}; known are {sorted(_BY_TYPE)}. Build its evaluator yourself."
        )
    if cfg is not None and cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator":
        builders = tuple(_build_rotated if b is _build_coco else b for b in builders)
    evaluators = [build(dataset_name, output_dir, distributed, sigmas) for build in builders]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _builders_by_fields(name: str, metadata: Metadata) -> tuple[Callable[..., DatasetEvaluator], ...]:
    """Evaluators for the ground truth that the entries of a data set have."""
    fields: set[str] = set()
    is_rotated = False
    for entry in DatasetCatalog.get(name):
        fields.update(entry)
        is_rotated |= any(a.get("bbox_mode") == BoxMode.XYWHA_ABS for a in entry.get("annotations", ()))
    builders = []
    if "annotations" in fields or metadata.get("json_file") is not None:
        builders.append(_build_rotated if is_rotated else _build_coco)
    if "sem_seg_file_name" in fields and metadata.get("stuff_classes") is not None:
        builders.append(_build_sem_seg)
    if not builders:
        raise ValueError(
            f"Cannot choose an evaluator for {name!r}: its entries have the fields {sorted(fields)}, but "
            "neither `annotations` nor `sem_seg_file_name` (with `stuff_classes` in its metadata). Set "
            "`evaluator_type` in its metadata, or build an evaluator yourself."
        )
    return tuple(builders)
