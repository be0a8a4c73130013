"""Average precision of rotated boxes by the COCO protocol.

A rotated box is `(x_center, y_center, width, height, angle)` in absolute pixels, the angle in degrees,
counter-clockwise. Only the overlap counts: a box turned by 180 degrees is as good. `D` detections, `G` objects.
"""

import contextlib
import io
import math
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from detectron2.config import CfgNode
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.structures import BoxMode
from detectron2.utils.file_io import atomic_write

from ._coco_scoring import COCOevalMaxDets, _check_image_ids, check_max_dets
from ._coco_table import ResultTable, join_results, write_results
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
        """Overlaps of detections with objects.

        Args:
            dt: boxes of four or five numbers.
            gt: boxes of four or five numbers.
            is_crowd: for each object whether it is a crowd, where the overlap is the share of the detection in it.

        Returns:
            array (D, G).
        """
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
    """The same by hotcoco; detections may also come as a `ResultTable`."""

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: str = "bbox"):
        found = _oriented_results(cocoGt, cocoDt) if isinstance(cocoDt, ResultTable) else _oriented(cocoDt)
        super().__init__(_oriented(cocoGt), found, iouType)

    def evaluate(self) -> None:
        """Match the detections of each image to its ground truth."""
        params: Any = self.params
        params.iouType = "obb"  # hotcoco's name for it, which COCO's summary does not know
        try:
            super().evaluate()
        finally:
            params.iouType = "bbox"


def _oriented(coco: COCO) -> Any:
    """A data set with its boxes in hotcoco's form: angles clockwise in radians."""
    content: Any = coco.dataset
    annotations = []
    for a in content.get("annotations", []):
        x, y, w, h, angle = _as_rotated(a["bbox"])
        box = {"bbox": [x - w / 2, y - h / 2, w, h], "obb": [x, y, w, h, -math.radians(angle)]}
        kept = {key: a[key] for key in ("id", "image_id", "category_id", "area", "iscrowd", "score") if key in a}
        annotations.append({**kept, **box})
    dataset = {"images": content["images"], "categories": content["categories"], "annotations": annotations}
    return SimpleNamespace(dataset=dataset, getImgIds=coco.getImgIds, getCatIds=coco.getCatIds)


def _oriented_results(coco: COCO, table: ResultTable) -> Any:
    """Results on the images of a data set, as a data set of the form of `_oriented`."""
    x, y, w, h = table.boxes[:, :4].T.astype(np.float64)
    angle = np.zeros(len(table))
    if table.boxes.shape[1] == 5:
        angle = -np.radians(table.boxes[:, 4].astype(np.float64))
    else:
        x, y = x + w / 2, y + h / 2
    columns = {
        "id": range(1, len(table) + 1),
        "image_id": [table.image_ids[k] for k in table.image_index.tolist()],
        "category_id": table.category_ids.tolist(),
        "area": (w * h).tolist(),
        "iscrowd": [0] * len(table),
        "score": table.scores.tolist(),
        "bbox": np.stack([x - w / 2, y - h / 2, w, h], 1).tolist(),
        "obb": np.stack([x, y, w, h, angle], 1).tolist(),
    }
    annotations = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    content: Any = coco.dataset
    dataset = {"images": content["images"], "categories": content["categories"], "annotations": annotations}
    return SimpleNamespace(dataset=dataset, getImgIds=coco.getImgIds, getCatIds=coco.getCatIds)


class RotatedCOCOEvaluator(COCOEvaluator):
    """COCO's AP of boxes, rotated or not, in percent (NaN where undefined); arguments as of `COCOEvaluator`.

    Args:
        dataset_name: a registered data set.
        tasks: `("bbox",)` or None.
        distributed: collect the predictions of all processes in the main one, which evaluates.
        output_dir: folder for the predictions; None to write nothing.
        max_dets_per_image: how many detections of an image count for AP.
        use_fast_impl: compute with hotcoco; False for pycocotools, much slower.
        kpt_oks_sigmas: not used, because rotated boxes have no keypoints.
        allow_cached_coco: reuse a converted data set that is already in `output_dir`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=use_fast_impl,
            kpt_oks_sigmas=kpt_oks_sigmas,
            allow_cached_coco=allow_cached_coco,
        )
        if self._tasks not in (None, ("bbox",)):
            raise ValueError(f"RotatedCOCOEvaluator knows the task 'bbox' only, not {self._tasks}.")

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Score instances into `self._results["bbox"]`."""
        # copies: categories are replaced, and the predictions may be evaluated again
        coco_results = join_results(predictions)
        self._to_dataset_categories(coco_results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with atomic_write(path, "w") as f:
                write_results(f, coco_results)
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the results are not scored.")
            return
        coco_eval = None
        if coco_results:
            coco_eval = self._evaluate_predictions_on_coco(self._coco_api, coco_results, img_ids)
        else:
            self._explain_no_results(predictions)
        self._results["bbox"] = self._derive_coco_results(
            coco_eval, "bbox", class_names=self._metadata.get("thing_classes")
        )

    def _evaluate_predictions_on_coco(
        self, coco_gt: Any, coco_results: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> COCOevalMaxDets:
        """A finished evaluation of results with boxes of four or five numbers."""
        _check_image_ids(coco_gt, coco_results)
        with contextlib.redirect_stdout(io.StringIO()):
            if self._use_fast_impl and isinstance(coco_results, ResultTable):
                evaluator: Any = _FastRotatedCOCOeval(coco_gt, coco_results, "bbox")
            else:
                kind = _FastRotatedCOCOeval if self._use_fast_impl else RotatedCOCOeval
                # pycocotools writes ids and areas into the dictionaries it is given
                boxes = ("image_id", "category_id", "bbox", "score")
                evaluator = kind(coco_gt, coco_gt.loadRes([{k: r[k] for k in boxes} for r in coco_results]), "bbox")
            evaluator.params.maxDets = check_max_dets(self._max_dets_per_image)
            if img_ids is not None:
                evaluator.params.imgIds = list(img_ids)
            evaluator.evaluate()
            evaluator.accumulate()
        evaluator.summarize()
        return evaluator

    def _eval_box_proposals(self, predictions: list[dict[str, Any]]) -> None:
        raise ValueError("RotatedCOCOEvaluator scores 'instances'; it has no measure for 'proposals'.")
