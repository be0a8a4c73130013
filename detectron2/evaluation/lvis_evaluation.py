"""Average precision by the LVIS protocol (Gupta et al., https://arxiv.org/abs/1908.03195, section 2).

An image is searched for some categories only: those with an annotation, and those known not to be there
(`neg_category_ids`); detections of others do not count. Where not every object of a category is annotated
(`not_exhaustive_category_ids`), a detection without an object does not count as wrong.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import create_small_table

from ._coco_scoring import _check_image_ids, _load_results, check_max_dets
from ._coco_table import ResultTable, join_results, write_results
from .coco_evaluation import COCOEvaluator

__all__ = ["LVISEvaluator"]

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm")
# of rare, common and frequent categories: APr, APc, APf
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_DEFAULT_LIMIT = 300


class LVISEvaluator(COCOEvaluator):
    """LVIS's AP for boxes and masks, and AR for proposals, in percent (NaN where undefined).

    Args:
        dataset_name: a data set with `json_file`, an annotation file in the LVIS format, in its metadata.
        tasks: `"bbox"` or `"segm"` or both; None to take those that the predictions contain.
        distributed: collect the predictions of all processes in the main one, which evaluates; otherwise each
            process evaluates its own.
        output_dir: folder for `instances_predictions.pth` (the predictions, for `torch.load`) and
            `lvis_instances_results.json` (LVIS's result format); None to write nothing.
        max_dets_per_image: how many detections of an image count, over all categories; None for LVIS's 300.
    """

    # What is shared with COCOEvaluator is how predictions are kept and gathered; its constructor reads COCO files.
    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        self._logger = logging.getLogger(__name__)
        if unknown := sorted(set(tasks or ()) - set(_TASKS)):
            raise ValueError(f"LVISEvaluator knows the tasks {list(_TASKS)}, not {unknown}.")
        self._metadata = MetadataCatalog.get(dataset_name)
        if self._metadata.get("json_file") is None:
            raise ValueError(
                f"LVISEvaluator needs `json_file` in the metadata of {dataset_name!r}: an annotation file in the LVIS "
                "format, as register_lvis_instances takes it."
            )
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image: Any = max_dets_per_image
        self._cpu_device = torch.device("cpu")
        self._lvis_api = hotcoco.COCO(PathManager.get_local_path(self._metadata.json_file))
        self._coco_api: Any = self._lvis_api
        # test splits come without annotations: results are written, not scored
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0
        self._predictions: list[dict[str, Any]] = []
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Score instances task by task into `self._results`."""
        # copies: categories are replaced, and the predictions may be evaluated again
        results = join_results(predictions)
        # all rows of a table have the same fields
        some = results[:1] if isinstance(results, ResultTable) else results
        tasks = self._tasks or self._tasks_from_predictions(some)
        self._to_dataset_categories(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with atomic_write(path, "w") as f:
                write_results(f, results)
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the results are not scored.")
            return
        if not results:
            self._explain_no_results(predictions)
        for task in sorted(tasks):
            self._results[task] = _evaluate_predictions_on_lvis(
                self._lvis_api, results, task, self._max_dets_per_image, img_ids=img_ids
            )

    def _to_dataset_categories(self, coco_results: Any) -> None:
        """Replace the model's class ids by those of the data set, in place; LVIS itself counts from 1."""
        if self._metadata.get("thing_dataset_id_to_contiguous_id") is not None:
            super()._to_dataset_categories(coco_results)
            return
        known = self._lvis_api.get_cat_ids()
        if isinstance(coco_results, ResultTable):
            unknown = np.flatnonzero(~np.isin(coco_results.category_ids + 1, known))
            if unknown.size:
                self._refuse_lvis_class(coco_results[int(unknown[0])], len(known))
            coco_results.category_ids = coco_results.category_ids + 1
            return
        known = set(known)
        for result in coco_results:
            if result["category_id"] + 1 not in known:
                self._refuse_lvis_class(result, len(known))
            result["category_id"] += 1

    def _refuse_lvis_class(self, result: dict[str, Any], classes: int) -> None:
        raise ValueError(
            f"A prediction on image {result['image_id']!r} has class {result['category_id']}, but the data set "
            f"{self._metadata.get('name')!r} has {classes} classes. The model's number of classes "
            "(MODEL.ROI_HEADS.NUM_CLASSES) must be that of the data set."
        )


def _evaluate_predictions_on_lvis(
    lvis_gt: Any,
    lvis_results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets_per_image: int | None = None,
    class_names: Sequence[str] | None = None,
    img_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Score results in LVIS's format.

    Args:
        lvis_gt: ground truth: a `hotcoco.COCO`, or an object with the content of an LVIS file in `dataset`.
        lvis_results: result dictionaries with the category ids of the data set.
        iou_type: `"bbox"` or `"segm"`.
        max_dets_per_image: detections of an image that count, over all categories; None for 300.
        class_names: not used; AP of each class is not part of the protocol.
        img_ids: evaluate on these images; None for all.

    Returns:
        `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, and of rare, common and frequent categories `APr`,
        `APc`, `APf`, in percent; NaN where undefined.
    """
    if iou_type not in _TASKS:
        raise ValueError(f"LVIS is evaluated for {list(_TASKS)}, not {iou_type!r}.")
    if not lvis_results:
        logger.warning("No results to evaluate: every metric is NaN.")
        return dict.fromkeys(_METRICS, float("nan"))
    limit = check_max_dets(max_dets_per_image or _DEFAULT_LIMIT)[-1]
    truth = lvis_gt if isinstance(lvis_gt, hotcoco.COCO) else hotcoco.COCO(lvis_gt.dataset)
    _check_image_ids(truth, lvis_results)
    detections = _load_results(truth, lvis_results, iou_type, True).cap_detections_per_image(limit)
    evaluator = hotcoco.COCOeval(truth, detections, iou_type, lvis_style=True)
    evaluator.params.max_dets = [limit]
    if img_ids is not None:
        evaluator.params.img_ids = list(img_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    results = _summary(evaluator, truth)
    logger.info(f"Evaluation results for {iou_type}:\n" + create_small_table(results))
    return results


def _summary(evaluator: hotcoco.COCOeval, truth: hotcoco.COCO) -> dict[str, float]:
    """AP of a finished evaluation in percent, over all categories and over those of each frequency.

    The means are over the defined entries of the table of precisions (T, R, K, A, 1): `T` IoU thresholds, `R`
    recalls, `K` categories, `A` area ranges.
    """
    params: Any = evaluator.params
    precision: Any = (evaluator.eval or {})["precision"]
    iou_of = {"AP50": 0.5, "AP75": 0.75}
    area_of = {"APs": "small", "APm": "medium", "APl": "large"}
    frequency_of = {"APr": "r", "APc": "c", "APf": "f"}
    frequencies = np.array([category.get("frequency") for category in truth.load_cats(params.cat_ids)])
    results = {}
    for name in _METRICS:
        table = precision[:, :, :, params.area_rng_lbl.index(area_of.get(name, "all")), 0]
        if name in iou_of:
            table = table[np.isclose(params.iou_thrs, iou_of[name])]
        if name in frequency_of:
            table = table[:, :, frequencies == frequency_of[name]]
        defined = table[table > -1]
        results[name] = 100 * float(defined.mean()) if defined.size else float("nan")
    return results
