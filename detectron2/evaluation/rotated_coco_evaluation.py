"""Average precision of rotated boxes by the COCO protocol.

A rotated box is `(x_center, y_center, width, height, angle)` in absolute pixels, the angle in degrees,
counter-clockwise. Only the overlap counts: a box turned by 180 degrees is as good. `D` detections, `G` objects.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.structures import BoxMode

from ._coco_scoring import COCOevalMaxDets, check_image_ids, run_protocol
from .coco_evaluation import COCOEvaluator
from .fast_eval_api import COCOeval_opt

__all__ = ["RotatedCOCOEvaluator", "RotatedCOCOeval"]


def _as_rotated(box: Sequence[float]) -> Sequence[float]:
    """A box of a COCO file, `(x, y, width, height)` or rotated, as a rotated one."""
    return box if len(box) == 5 else BoxMode.convert(list(box), BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)


class RotatedCOCOeval(COCOevalMaxDets):
    """COCO's evaluation with the overlap of rotated boxes; axis-aligned ones may be among them."""

    _gts: Any  # by image and category, filled in by the base class
    _dts: Any

    @staticmethod
    def compute_iou_dt_gt(dt: Sequence[Any], gt: Sequence[Any], is_crowd: Sequence[int]) -> np.ndarray:
        """Overlaps (D, G) of boxes of four or five numbers; of a crowd, the share of the detection that is in it."""
        if len(dt) == 0 or len(gt) == 0:
            return np.zeros((len(dt), len(gt)))
        found = torch.tensor([_as_rotated(box) for box in dt], dtype=torch.float64)
        truth = torch.tensor([_as_rotated(box) for box in gt], dtype=torch.float64)
        iou = pairwise_iou_rotated(found, truth).numpy()
        crowd = np.asarray(is_crowd, dtype=bool)
        if not crowd.any():
            return iou
        area_found = (found[:, 2] * found[:, 3]).numpy()[:, None]
        area_truth = (truth[:, 2] * truth[:, 3]).numpy()
        shared = iou * (area_found + area_truth) / (1 + iou)
        share = np.divide(shared, area_found, out=np.zeros_like(iou), where=area_found > 0)
        return np.where(crowd, share, iou)

    def computeIoU(self, imgId: Any, catId: Any) -> Any:
        """Overlaps of the best detections of an image with its objects, of one category."""
        categories = [catId] if self.params.useCats else self.params.catIds
        gt: list[dict[str, Any]] = [a for c in categories for a in self._gts[imgId, c]]
        dt: list[dict[str, Any]] = [a for c in categories for a in self._dts[imgId, c]]
        if not gt and not dt:
            return []
        order = np.argsort([-a["score"] for a in dt], kind="mergesort")[: self.params.maxDets[-1]]
        return self.compute_iou_dt_gt(
            [dt[i]["bbox"] for i in order], [a["bbox"] for a in gt], [int(a.get("iscrowd", 0)) for a in gt]
        )


class _FastRotatedCOCOeval(COCOevalMaxDets, COCOeval_opt):
    """The same by hotcoco, for a list or a table of results."""

    def __init__(self, cocoGt: COCO, results: Sequence[dict[str, Any]]):
        found = ({**r, "id": k, "area": r["bbox"][2] * r["bbox"][3]} for k, r in enumerate(results, start=1))
        super().__init__(_oriented(cocoGt, cocoGt.dataset.get("annotations", [])), _oriented(cocoGt, found), "bbox")

    def evaluate(self) -> None:
        """Match the detections of each image to its ground truth."""
        params: Any = self.params
        params.iouType = "obb"  # hotcoco's name for it, which COCO's summary does not know
        try:
            super().evaluate()
        finally:
            params.iouType = "bbox"


def _oriented(coco: COCO, annotations: Iterable[Any]) -> Any:
    """A data set of annotations on the images of another, with boxes as in hotcoco: angles clockwise in radians."""
    converted = []
    for a in annotations:
        x, y, w, h, angle = _as_rotated(a["bbox"])
        kept = {key: a[key] for key in ("id", "image_id", "category_id", "area", "iscrowd", "score") if key in a}
        converted.append({**kept, "bbox": [x - w / 2, y - h / 2, w, h], "obb": [x, y, w, h, -math.radians(angle)]})
    content: Any = coco.dataset
    dataset = {"images": content["images"], "categories": content["categories"], "annotations": converted}
    return SimpleNamespace(dataset=dataset, getImgIds=coco.getImgIds, getCatIds=coco.getCatIds)


class RotatedCOCOEvaluator(COCOEvaluator):
    """COCO's AP of boxes, rotated or not, in percent (NaN where undefined); arguments as of `COCOEvaluator`.

    The task is `"bbox"`, and `kpt_oks_sigmas` is not used, because rotated boxes have neither masks nor keypoints.

    Example:
        >>> evaluator = RotatedCOCOEvaluator("one_cat", distributed=False)  # one object, at (10, 10, 30, 30)
        >>> boxes = RotatedBoxes(torch.tensor([[20.0, 20.0, 20.0, 20.0, 180.0]]))
        >>> found = Instances((100, 100), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.tensor([0]))
        >>> evaluator.process([{"image_id": 1}], [{"instances": found}])
        >>> round(evaluator.evaluate()["bbox"]["AP"])
        100
    """

    _known_tasks = ("bbox",)
    _takes_rotated = True

    def _evaluate_task(self, coco_results: Any, task: str, img_ids: Sequence[int] | None) -> COCOevalMaxDets:
        return self._evaluate_predictions_on_coco(self._coco_api, coco_results, img_ids)

    def _evaluate_predictions_on_coco(
        self, coco_gt: Any, coco_results: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> COCOevalMaxDets:
        """A finished evaluation of results with boxes of four or five numbers."""
        check_image_ids(coco_gt, coco_results)
        if self._use_fast_impl:
            evaluator: Any = _FastRotatedCOCOeval(coco_gt, coco_results)
        else:
            # pycocotools writes ids and areas into the dictionaries it is given
            results = [{k: r[k] for k in ("image_id", "category_id", "bbox", "score")} for r in coco_results]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator = RotatedCOCOeval(coco_gt, coco_gt.loadRes(results), "bbox")
        return run_protocol(evaluator, self._max_dets_per_image, img_ids)

    def _eval_box_proposals(self, predictions: list[dict[str, Any]]) -> None:
        raise ValueError("RotatedCOCOEvaluator scores 'instances'; it has no measure for 'proposals'.")
