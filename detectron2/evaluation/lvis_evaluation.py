"""Average precision by the LVIS protocol (Gupta et al., https://arxiv.org/abs/1908.03195, section 2).

An image is searched for some categories only: those with an annotation, and those known not to be there
(`neg_category_ids`); detections of others do not count. Where not every object of a category is annotated
(`not_exhaustive_category_ids`), a detection without an object does not count as wrong.
"""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import hotcoco
import numpy as np

from detectron2.data.datasets.lvis import LISTS, check_list
from detectron2.data.formats.reading import read_json
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ._coco_format import _check_dataset, _complete_dataset
from ._coco_scoring import check_image_ids, check_max_dets, load_results
from ._coco_table import values_of
from .coco_evaluation import COCOEvaluator
from .fast_eval_api import as_hotcoco

__all__ = ["LVISEvaluator"]

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm")
# of rare, common and frequent categories: APr, APc, APf
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_DEFAULT_LIMIT = 300
# What it means that entries of a file lack a key.
_DEFAULTS = {
    "neg_category_ids": ("images", "detections of categories that have no object there do not count as wrong"),
    "not_exhaustive_category_ids": ("images", "all objects count as annotated, and other detections as wrong"),
    "frequency": ("categories", "they are not part of APr, APc and APf"),
}


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

    Example:
        >>> evaluator = LVISEvaluator("one_cat", ["bbox"], distributed=False)  # one object, at (10, 10, 30, 30)
        >>> boxes = Boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]]))
        >>> found = Instances((100, 100), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.tensor([0]))
        >>> evaluator.process([{"image_id": 1}], [{"instances": found}])
        >>> round(evaluator.evaluate()["bbox"]["AP"])
        100
    """

    _known_tasks = _TASKS
    _results_file = "lvis_instances_results.json"
    _first_category = 1
    _has_no_negatives = False
    _warns_at_cap = False  # models for LVIS give as many as count

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._lvis_api = self._coco_api
        self._max_dets_per_image = max_dets_per_image

    def _load_ground_truth(self, dataset_name: str, allow_cached: bool) -> hotcoco.COCO:
        if self._metadata.get("json_file") is None:
            raise ValueError(
                f"LVISEvaluator needs `json_file` in the metadata of {dataset_name!r}: an annotation file in the LVIS "
                "format, as register_lvis_instances takes it."
            )
        path = PathManager.get_local_path(self._metadata.json_file)
        try:
            truth = hotcoco.COCO(path)
        except ValueError:  # slower, with errors that name the place
            truth = _read_carefully(path)
        with open(path, "rb") as f:
            text = f.read()
        totals = {"images": len(truth.getImgIds()), "categories": len(truth.getCatIds())}
        for key, (kind, meaning) in _DEFAULTS.items():
            # the lists are part of the large text, which is not worth parsing again
            lacking = totals[kind] - text.count(f'"{key}"'.encode())
            if key == "frequency":
                lacking = sum(c.get(key) not in ("r", "c", "f") for c in truth.load_cats(truth.getCatIds()))
            if lacking > 0:
                self._logger.warning(f"{path}: {lacking} of {totals[kind]} {kind} have no '{key}': {meaning}.")
                self._has_no_negatives |= key == "neg_category_ids" and lacking == totals[kind]
        return truth

    def _has_annotations(self) -> bool:
        return len(self._coco_api.getAnnIds()) > 0

    def _score(self, coco_results: Any, task: str, img_ids: Sequence[int] | None) -> dict[str, float]:
        limit = self._max_dets_per_image
        if self._has_no_negatives:
            objects = {(a["image_id"], a["category_id"]) for a in self._lvis_api.load_anns(self._lvis_api.getAnnIds())}
            pairs = zip(*(values_of(coco_results, key) for key in ("image_id", "category_id")), strict=True)
            uncounted = sum(pair not in objects for pair in pairs)
            self._logger.warning(
                f"{uncounted} of {len(coco_results)} detections do not count: no image has 'neg_category_ids', "
                "which say what is absent from it. If all images were searched for all categories, use COCOEvaluator."
            )
        return _evaluate_predictions_on_lvis(self._lvis_api, coco_results, task, limit, img_ids=img_ids)


def _read_carefully(path: str) -> hotcoco.COCO:
    """Read a file as it is read for training, and leave out what hotcoco does not take and no metric needs."""
    content = read_json(path)
    _check_dataset(content, path)
    for image in content["images"]:
        for key in LISTS:
            check_list(image.get(key), path, f"image id {image['id']}", key)
            image[key] = image.get(key) or []
    for category in content["categories"]:
        if not isinstance(category.get("frequency", ""), str):
            del category["frequency"]
    _complete_dataset(content, path)
    try:
        return as_hotcoco(SimpleNamespace(dataset=content))
    except ValueError as e:
        raise ValueError(f"{path} is not an annotation file in the LVIS format: {e}") from e


def _evaluate_predictions_on_lvis(
    lvis_gt: Any,
    lvis_results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets_per_image: int | None = None,
    class_names: Sequence[str] | None = None,
    img_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Metrics of LVIS results in percent; the truth is a `hotcoco.COCO`, or has the content of a file in `dataset`."""
    if iou_type not in _TASKS:
        raise ValueError(f"LVIS is evaluated for {list(_TASKS)}, not {iou_type!r}.")
    if not lvis_results:
        logger.warning("No results to evaluate: every metric is NaN.")
        return dict.fromkeys(_METRICS, float("nan"))
    limit = check_max_dets(max_dets_per_image or _DEFAULT_LIMIT)[-1]
    truth = as_hotcoco(lvis_gt)
    check_image_ids(truth, lvis_results)
    detections = load_results(truth, lvis_results, iou_type, True).cap_detections_per_image(limit)
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
    """AP in percent, over all categories and over those of each frequency, from the precisions (T, R, K, A, 1)."""
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
