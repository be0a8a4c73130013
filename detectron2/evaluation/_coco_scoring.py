"""Scores of COCO results against COCO ground truth, for `coco_evaluation`.

Letters: `T` IoU thresholds, `R` recall thresholds, `K` classes, `A` area ranges, `M` detection limits.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.structures import Boxes, BoxMode, pairwise_iou

from ._coco_table import ResultTable, values_of
from .fast_eval_api import COCOeval_opt, as_hotcoco, takes_image_ids

logger = logging.getLogger(__name__)

_DEFAULT_AP_LIMIT = 100
_MISSING = -1.0
_EXACT_IN_FLOAT = 2**53

# Areas in square pixels of the COCO protocol and of the proposal-recall protocol.
AREA_RANGES = {
    "all": (0**2, 1e5**2),
    "small": (0**2, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}


class COCOevalMaxDets(COCOeval):
    """COCO evaluation with an AP of the largest limit in `params.maxDets`, where COCO's summary requires 100 per image.

    The recall numbers use each limit in turn. Keypoints are summarised as COCO does.
    """

    def summarize(self) -> None:
        """Fill `stats` with the twelve numbers of the box and mask protocol, and log them."""
        if self.params.iouType == "keypoints":
            super().summarize()
            return
        if not self.eval:
            raise RuntimeError("summarize() needs accumulate() to run first.")
        limits = list(self.params.maxDets)
        largest = limits[-1]
        rows: list[tuple[str, float | None, str, int]] = [("precision", None, "all", largest)]
        rows += [("precision", iou, "all", largest) for iou in (0.5, 0.75)]
        rows += [("precision", None, area, largest) for area in ("small", "medium", "large")]
        rows += [("recall", None, "all", limit) for limit in [*limits[:2], largest]]
        rows += [("recall", None, area, largest) for area in ("small", "medium", "large")]
        self.stats = np.array([self._mean(*row) for row in rows])
        for (what, iou, area, limit), value in zip(rows, self.stats, strict=True):
            span = "0.50:0.95" if iou is None else f"{iou:.2f}"
            logger.info(f"average {what:9s} | IoU={span:9s} | area={area:6s} | maxDets={limit:4d} | {value:.3f}")

    def _mean(self, what: str, iou: float | None, area: str, limit: int) -> float:
        """Mean over classes (and IoUs) of the defined entries of a table; -1 when there is none."""
        table = self.eval[what][..., self.params.areaRngLbl.index(area), list(self.params.maxDets).index(limit)]
        if iou is not None:
            table = table[np.isclose(self.params.iouThrs, iou)]
        defined = table[table > _MISSING]
        return float(defined.mean()) if defined.size else _MISSING


class _FastMaxDets(COCOevalMaxDets, COCOeval_opt):
    """The summary of `COCOevalMaxDets` with the engine of `COCOeval_opt`."""


def _choose_evaluator(iou_type: str, limits: Sequence[int], fast: bool) -> type[COCOeval]:
    if iou_type == "keypoints" or limits[-1] == _DEFAULT_AP_LIMIT:
        return COCOeval_opt if fast else COCOeval
    return _FastMaxDets if fast else COCOevalMaxDets


def check_max_dets(max_dets_per_image: int | Sequence[int] | None) -> list[int]:
    """Three or more increasing limits of detections per image, from None (`[1, 10, 100]`), a limit for AP, or all."""
    if max_dets_per_image is None:
        return [1, 10, _DEFAULT_AP_LIMIT]
    limits: list[Any]
    if isinstance(max_dets_per_image, (int, np.integer)):
        # a limit below COCO's smaller ones lowers these too: they must not decrease
        limits = [min(limit, int(max_dets_per_image)) for limit in (1, 10, int(max_dets_per_image))]
    elif isinstance(max_dets_per_image, (Sequence, np.ndarray)) and not isinstance(max_dets_per_image, str):
        limits = [int(limit) for limit in max_dets_per_image]
    else:
        limits = [max_dets_per_image]
    if len(limits) < 3 or limits != sorted(limits) or limits[0] < 1:
        raise ValueError(
            "max_dets_per_image needs three or more increasing limits from 1, such as [1, 10, 100], or one number; got "
            f"{limits}"
        )
    return limits


def check_image_ids(coco_gt: Any, coco_results: Sequence[dict[str, Any]]) -> None:
    """Refuse results on images that the ground truth does not have."""
    known = set(coco_gt.getImgIds())
    if unknown := set(values_of(coco_results, "image_id")) - known:
        raise ValueError(
            f"{len(unknown)} predicted image ids are not in the ground truth, for example "
            f"{sorted(unknown, key=str)[:3]!r}; the ground truth has {len(known)} images with ids such as "
            f"{sorted(known, key=str)[:3]!r}. Evaluate on the data set that was run, and keep its `image_id` (also its "
            "type) in the mapper."
        )


def _check_keypoint_count(annotations: Any, coco_results: Sequence[dict[str, Any]], sigmas: np.ndarray) -> None:
    predicted = len(coco_results[0]["keypoints"]) // 3
    if predicted != len(sigmas):
        raise ValueError(
            f"The predictions have {predicted} keypoints, but there are {len(sigmas)} OKS sigmas (COCO's persons have "
            "17). Give COCOEvaluator `kpt_oks_sigmas` (config: TEST.KEYPOINT_OKS_SIGMAS) one number per keypoint."
        )
    counts = [len(a.get("keypoints") or ()) // 3 for a in annotations]
    if others := sorted({*counts} - {0, predicted}):
        number = len(counts) - counts.count(0) - counts.count(predicted)
        raise ValueError(f"{number} object(s) have {others} keypoints, but there are {predicted} OKS sigmas.")


def run_protocol(evaluator: Any, max_dets: Sequence[int] | None, img_ids: Sequence[int] | None) -> Any:
    """Evaluate, accumulate and summarize, with what is printed sent to the log; returns the evaluator."""
    if max_dets is not None:
        evaluator.params.maxDets = list(max_dets)
    if img_ids is not None:
        evaluator.params.imgIds = list(img_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluator.summarize()
    if report := printed.getvalue().rstrip():
        logger.info("\n" + report)
    return evaluator


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: Sequence[dict[str, Any]],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] | None = None,
    use_fast_impl: bool = True,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | None = None,
) -> COCOeval:
    """An evaluator with `stats`, `eval["precision"]` (T, R, K, A, M) and `params` for one COCO result or more."""
    if not coco_results:
        raise ValueError("There are no results to evaluate.")
    check_image_ids(coco_gt, coco_results)
    annotations: Any = coco_gt.dataset.get("annotations", [])
    lacking = [a for a in annotations if "segmentation" not in a] if iou_type == "segm" else []
    if lacking:
        count = f"{len(lacking)} of {len(annotations)}"
        logger.warning(f"{count} annotations have no 'segmentation': their box is their mask.")
    for annotation in lacking:  # hotcoco takes the box by itself, pycocotools does not
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    use_fast_impl = use_fast_impl and all(isinstance(c, int) and c >= 0 for c in coco_gt.getCatIds())  # not text
    limits = check_max_dets(max_dets_per_image)
    kind: Any = _choose_evaluator(iou_type, limits, use_fast_impl)
    evaluator = kind(coco_gt, load_results(coco_gt, coco_results, iou_type, use_fast_impl), iou_type)
    if iou_type == "keypoints":
        if kpt_oks_sigmas is not None and len(kpt_oks_sigmas):
            evaluator.params.kpt_oks_sigmas = np.asarray(kpt_oks_sigmas)
        _check_keypoint_count(annotations, coco_results, evaluator.params.kpt_oks_sigmas)
    return run_protocol(evaluator, None if iou_type == "keypoints" else limits, img_ids)


def load_results(coco_gt: Any, coco_results: Sequence[dict[str, Any]], iou_type: str, fast: bool) -> Any:
    """Results as a data set of hotcoco where it can read the ground truth and is wanted, else of pycocotools."""
    if fast and takes_image_ids(coco_gt):
        coco_gt = as_hotcoco(coco_gt)
        if isinstance(coco_results, ResultTable) and iou_type != "keypoints" and _fits_array(coco_results):
            return _load_table(coco_gt, coco_results, iou_type)
    # without the box, the area that decides small, medium or large is that of the mask
    unwanted = "bbox" if iou_type == "segm" else None
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools writes ids and areas into the dictionaries it is given
        return coco_gt.loadRes([{k: v for k, v in result.items() if k != unwanted} for result in coco_results])


def _fits_array(table: ResultTable) -> bool:
    """Whether ids survive among the other numbers of a result, which are floats."""
    ids = [*table.image_ids, int(table.category_ids.max(initial=0))]
    return table.boxes.shape[1] == 4 and all(-_EXACT_IN_FLOAT <= i <= _EXACT_IN_FLOAT for i in ids)


def _load_table(ground_truth: Any, table: ResultTable, iou_type: str) -> Any:
    """Give results to hotcoco as columns, a dictionary for each of them being slow and large."""
    rows = np.empty((len(table), 7))
    rows[:, 0] = np.array(table.image_ids, dtype=np.float64)[table.image_index]
    rows[:, 1:5] = table.boxes
    rows[:, 5] = table.scores
    rows[:, 6] = table.category_ids
    if iou_type == "bbox":
        return ground_truth.load_res(rows)
    rles = table.rle_dicts()
    loaded = ground_truth.load_res(rows, segmentation=rles)
    # the area that decides small, medium or large is that of the mask
    loaded.update_anns(ids=np.arange(1, len(table) + 1), area=hotcoco.mask.area(rles).astype(np.float64))
    return loaded


def _greedy_overlaps(ious: np.ndarray) -> np.ndarray:
    """Overlaps of the matches when the best covered object takes its proposal first; `ious` (P, O) is overwritten."""
    matched = np.zeros(ious.shape[1])
    for step in range(min(ious.shape)):
        proposal, target = np.unravel_index(ious.argmax(), ious.shape)
        matched[step] = ious[proposal, target]
        ious[proposal, :] = -1
        ious[:, target] = -1
    return matched


def _evaluate_box_proposals(
    dataset_predictions: list[dict[str, Any]],
    coco_api: COCO,
    thresholds: Any = None,
    area: str = "all",
    limit: int | None = None,
) -> dict[str, Any]:
    """Recall of the best proposals for objects, no crowds, of an area of `AREA_RANGES`; `ar` is its mean over IoUs."""
    if area not in AREA_RANGES:
        raise ValueError(f"Unknown area range {area!r}; choose from {list(AREA_RANGES)}.")
    low, high = AREA_RANGES[area]
    overlaps, num_pos = [np.zeros(0)], 0
    for prediction in dataset_predictions:
        annotations = coco_api.loadAnns(coco_api.getAnnIds(imgIds=prediction["image_id"]))
        objects = [a for a in annotations if not a.get("iscrowd", 0) and low <= a["area"] <= high]
        num_pos += len(objects)
        proposals = prediction["proposals"]
        if not objects or len(proposals) == 0:
            continue
        gt_xyxy = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in objects]
        order = proposals.objectness_logits.sort(descending=True)[1][:limit]
        ious = pairwise_iou(proposals.proposal_boxes[order], Boxes(torch.tensor(gt_xyxy, dtype=torch.float32)))
        overlaps.append(_greedy_overlaps(ious.numpy().copy()))
    gt_overlaps = np.sort(np.concatenate(overlaps))
    thresholds = np.arange(0.5, 0.95 + 1e-5, 0.05) if thresholds is None else np.asarray(thresholds)
    found = (gt_overlaps[None, :] >= thresholds[:, None]).sum(1)
    recalls = found / num_pos if num_pos else np.full(len(thresholds), np.nan)
    return {
        "ar": float(recalls.mean()),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": gt_overlaps,
        "num_pos": num_pos,
    }
