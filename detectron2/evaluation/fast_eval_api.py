"""A COCO evaluator with the interface of `pycocotools.cocoeval.COCOeval` that runs on hotcoco.

The numbers are those of pycocotools; matching and accumulation run in parallel compiled code. Data and settings that
the two take differently (fields that are missing, empty lists) are left to pycocotools itself. Letters of the shapes:
`T` IoU thresholds, `R` recall thresholds, `K` classes, `A` area ranges, `M` limits of detections per image.
"""

import contextlib
import copy
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOeval_opt"]

_GEOMETRY = {"bbox": {"bbox"}, "segm": {"segmentation"}, "keypoints": {"keypoints", "bbox"}}
_IMAGE_KEYS = ("id", "file_name", "height", "width", "neg_category_ids", "not_exhaustive_category_ids")
_CATEGORY_KEYS = ("id", "name", "frequency")
_ARRAYS = ("dtMatches", "gtMatches", "dtIgnore", "gtIgnore")  # of an entry of evalImgs
_PARAMETERS = ("imgIds", "catIds", "iouThrs", "recThrs", "maxDets", "areaRng", "areaRngLbl", "useCats")


def as_hotcoco(dataset: Any, numbers: "dict[Any, int] | None" = None) -> hotcoco.COCO:
    """A hotcoco data set with the content that a pycocotools one has now; `numbers` replace the image ids."""
    if isinstance(dataset, hotcoco.COCO):
        return dataset
    # Without what no evaluation reads, of which hotcoco would refuse some: a licence by name, a year as a number.
    content = {
        "images": [_only(image, _IMAGE_KEYS) for image in dataset.dataset["images"]],
        "categories": [_only(category, _CATEGORY_KEYS) for category in dataset.dataset.get("categories", [])],
        "annotations": dataset.dataset.get("annotations", []),
    }
    if numbers is not None:
        content["images"] = [{**image, "id": numbers[image["id"]]} for image in content["images"]]
        content["annotations"] = [{**a, "image_id": numbers[a["image_id"]]} for a in content["annotations"]]
    return hotcoco.COCO(content)


def _only(entry: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: entry[key] for key in keys if entry.get(key) is not None}


def takes_image_ids(dataset: Any) -> bool:
    """Whether hotcoco can read a pycocotools (or hotcoco) data set: its image ids must be integers from 0."""
    return all(isinstance(image_id, int) and 0 <= image_id < 2**63 for image_id in dataset.getImgIds())


def _are_common(annotations: Any, geometry: set[str], others: set[str]) -> bool:
    """Whether annotations have these fields, and values that mean the same to hotcoco and pycocotools."""
    for a in annotations:
        numbers = (a.get("area"), a.get("score", 0.0))
        if not (
            (geometry | others) <= a.keys()
            and isinstance(a["id"], Integral)
            and a["id"] > 0
            and all(isinstance(number, Real) and math.isfinite(number) for number in numbers)
            and a.get("iscrowd", 0) in (0, 1)
            and all(a[name] is not None and len(a[name]) for name in geometry)
            and (a.get("bbox") is None or len(a["bbox"]) == 4)
        ):
            return False
    return len({a["id"] for a in annotations}) == len(annotations)


class COCOeval_opt(COCOeval):
    """Drop-in for `COCOeval`: `evaluate()`, `accumulate()`, `summarize()`, then `stats` and `eval`.

    Args:
        cocoGt: ground truth, a pycocotools or hotcoco `COCO`.
        cocoDt: detections, of either kind.
        iouType: `"bbox"`, `"segm"` or `"keypoints"`.
    """

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: Any = "segm"):
        self._engine: hotcoco.COCOeval | None = None
        # the base class would use the data sets only to fill in the ids, which works for both kinds
        super().__init__(None, None, iouType)
        self.cocoGt, self.cocoDt = cocoGt, cocoDt
        if cocoGt is not None:
            self.params.imgIds = sorted(cocoGt.getImgIds())
            self.params.catIds = sorted(cocoGt.getCatIds())
        self._id_of: list[Any] | None = None  # image ids by hotcoco's, where these are our numbers

    def evaluate(self) -> None:
        """Match the detections of each image to its ground truth."""
        engine = None
        if self._is_common():
            # of ids that no image has, and of ids and numbers that hotcoco does not take
            refusals = (KeyError, TypeError, ValueError, OverflowError) if isinstance(self.cocoDt, COCO) else ()
            with contextlib.suppress(*refusals):
                engine = self._matched()
        if engine is None:
            super().evaluate()
            return
        self.params.imgIds = sorted(set(self.params.imgIds))
        if self.params.useCats:
            self.params.catIds = sorted(set(self.params.catIds))
        self._engine, self._overlaps = engine, None
        self._paramsEval = copy.deepcopy(self.params)
        self.eval: Any = {}

    def _matched(self) -> hotcoco.COCOeval:
        """The evaluation by hotcoco, with all detections matched."""
        self._id_of = numbers = None
        if not takes_image_ids(self.cocoGt):
            self._id_of = sorted(self.cocoGt.getImgIds())  # in the order that decides between equal scores
            numbers = {image_id: number for number, image_id in enumerate(self._id_of)}
        engine = hotcoco.COCOeval(
            as_hotcoco(self.cocoGt, numbers), as_hotcoco(self.cocoDt, numbers), self.params.iouType
        )
        for name in _PARAMETERS:
            value = getattr(self.params, name)
            value = value.tolist() if hasattr(value, "tolist") else value
            if name == "imgIds" and numbers is not None:
                value = [numbers[image_id] for image_id in value]
            if name in ("imgIds", "catIds"):
                value = sorted(set(value))
            setattr(engine.params, name, bool(value) if name == "useCats" else list(value))
        if self.params.iouType == "keypoints":
            engine.params.kpt_oks_sigmas = [float(sigma) for sigma in self.params.kpt_oks_sigmas]
        engine.evaluate()
        return engine

    def _is_common(self) -> bool:
        """Whether hotcoco takes the data and settings as pycocotools does."""
        datasets, params = (self.cocoGt, self.cocoDt), self.params
        if not all(isinstance(dataset, COCO) for dataset in datasets):
            return True  # pycocotools takes no other kind
        limits, recalls = list(params.maxDets), list(params.recThrs)
        if not (
            params.useSegm is None
            and params.useCats in (0, 1)
            and (params.useCats or params.iouType != "keypoints")  # of which pycocotools then finds none
            and min(len(params.imgIds), len(params.catIds), len(limits)) > 0
            and all(isinstance(limit, Integral) and limit >= 0 for limit in limits)
            and limits == sorted(limits)
            and recalls == sorted(recalls)
            and len(params.areaRng) == len(params.areaRngLbl)
        ):
            return False
        fields = {"id", "image_id", "category_id", "area"}
        own = {"iscrowd", *(["num_keypoints"] if params.iouType == "keypoints" else [])}, {"score"}
        return all(
            _are_common(dataset.dataset.get("annotations", []), _GEOMETRY.get(params.iouType, set()), fields | names)
            for dataset, names in zip(datasets, own, strict=True)
        )

    @property
    def evalImgs(self) -> list:
        """Matches per class, area range and image, with None where there is nothing to match.

        It is converted each time it is read, which takes long on a large data set.
        """
        if self._engine is None:
            return self._matches
        # hotcoco leaves the empty places out; COCO's users find an entry by its position
        params: Any = self._paramsEval
        by_class = bool(params.useCats)
        entries: list[dict] = [
            {**entry, **{name: np.asarray(entry[name]) for name in _ARRAYS}}
            for entry in self._engine.evalImgs
            if entry is not None
        ]
        if self._id_of is not None:
            entries = [{**entry, "image_id": self._id_of[entry["image_id"]]} for entry in entries]
        found = {
            (entry["category_id"] if by_class else -1, tuple(entry["aRng"]), entry["image_id"]): entry
            for entry in entries
        }
        return [
            found.get((category, tuple(map(float, area)), image))
            for category in (params.catIds if by_class else [-1])
            for area in params.areaRng
            for image in params.imgIds
        ]

    @evalImgs.setter
    def evalImgs(self, value: Any) -> None:
        self._engine, self._matches = None, value or []

    @property
    def ious(self) -> dict:
        """Overlaps of each image and class, by pycocotools; computed when it is first read, and slow."""
        if self._overlaps is None:
            params: Any = self._paramsEval
            base: Any = COCOeval(None, None, params.iouType)
            base.cocoGt, base.cocoDt, base.params = self.cocoGt, self.cocoDt, params
            base._prepare()
            overlaps_of = base.computeOks if params.iouType == "keypoints" else base.computeIoU
            categories = params.catIds if params.useCats else [-1]
            self._overlaps = {(i, category): overlaps_of(i, category) for i in params.imgIds for category in categories}
        return self._overlaps

    @ious.setter
    def ious(self, value: Any) -> None:
        self._overlaps = value

    def accumulate(self, p: Any = None) -> None:
        """Compute `eval["precision"]` (T, R, K, A, M), `eval["scores"]` and `eval["recall"]` (T, K, A, M)."""
        if not self._paramsEval:  # pycocotools fails with the same class of error
            raise AttributeError("COCOeval_opt.accumulate() needs evaluate() to run first.")
        params = p or self.params
        if not all(np.array_equal(getattr(params, name), getattr(self._paramsEval, name)) for name in _PARAMETERS):
            self.evalImgs = self.evalImgs  # from here on pycocotools has them
        if self._engine is None:
            super().accumulate(p)
            return
        self._engine.accumulate()
        self.eval = {**(self._engine.eval or {}), "params": params}
