"""A COCO evaluator with the interface of `pycocotools.cocoeval.COCOeval` that runs on hotcoco.

The numbers are those of pycocotools; matching and accumulation run in parallel compiled code. Data and settings that
the two take differently (fields that are missing, empty lists) are left to pycocotools itself. Letters of the shapes:
`T` IoU thresholds, `R` recall thresholds, `K` classes, `A` area ranges, `M` limits of detections per image.
"""

import math
from numbers import Integral, Real
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOeval_opt"]

_GEOMETRY = {"bbox": {"bbox"}, "segm": {"segmentation"}, "keypoints": {"keypoints", "bbox"}}
_ARRAYS = ("dtMatches", "gtMatches", "dtIgnore", "gtIgnore")  # of an entry of evalImgs
_PARAMETERS = ("imgIds", "catIds", "iouThrs", "recThrs", "maxDets", "areaRng", "areaRngLbl", "useCats")


def as_hotcoco(dataset: Any, numbers: "dict[Any, int] | None" = None) -> hotcoco.COCO:
    """A hotcoco data set with the content that a pycocotools one has now; `numbers` replace the image ids."""
    if isinstance(dataset, hotcoco.COCO):
        return dataset
    content = dataset.dataset
    if numbers is not None:
        content = {
            **content,
            "images": [{**image, "id": numbers[image["id"]]} for image in content["images"]],
            "annotations": [{**a, "image_id": numbers[a["image_id"]]} for a in content.get("annotations", [])],
        }
    return hotcoco.COCO(content)


def takes_image_ids(dataset: Any) -> bool:
    """Whether hotcoco can read a pycocotools (or hotcoco) data set: its image ids must be integers from 0."""
    return all(isinstance(image_id, int) and 0 <= image_id < 2**63 for image_id in dataset.getImgIds())


def _are_common(annotations: Any, needed: set[str]) -> bool:
    """Whether annotations have the fields `needed`, and values that mean the same to hotcoco and pycocotools."""
    for a in annotations:
        numbers = (a.get("area"), a.get("score", 0.0))
        if not (
            needed <= a.keys()
            and isinstance(a["id"], Integral)
            and a["id"] > 0
            and all(isinstance(number, Real) and math.isfinite(number) for number in numbers)
            and a.get("iscrowd", 0) in (0, 1)
            and len(a.get("bbox", "four")) == 4
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
        self._engine = None
        if self._is_for_pycocotools():
            super().evaluate()
            return
        self.params.imgIds = sorted(set(self.params.imgIds))
        if self.params.useCats:
            self.params.catIds = sorted(set(self.params.catIds))
        numbers = None
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
            setattr(engine.params, name, bool(value) if name == "useCats" else list(value))
        if self.params.iouType == "keypoints":
            engine.params.kpt_oks_sigmas = [float(sigma) for sigma in self.params.kpt_oks_sigmas]
        engine.evaluate()
        self._engine = engine
        self._paramsEval = self.params
        self.eval: Any = {}

    def _is_for_pycocotools(self) -> bool:
        """Whether pycocotools has to evaluate, because hotcoco would take data or settings in another way."""
        datasets, params = (self.cocoGt, self.cocoDt), self.params
        if not all(isinstance(dataset, COCO) for dataset in datasets) or not takes_image_ids(self.cocoGt):
            return False
        limits = list(params.maxDets)
        is_common = (
            min(len(params.imgIds), len(params.catIds), len(limits)) > 0
            and all(isinstance(limit, Integral) and limit >= 0 for limit in limits)
            and limits == sorted(limits)
            and len(params.areaRng) == len(params.areaRngLbl)
        )
        fields = {"id", "image_id", "category_id", "area"} | _GEOMETRY.get(params.iouType, set())
        own = {"iscrowd", *(["num_keypoints"] if params.iouType == "keypoints" else [])}, {"score"}
        return not is_common or not all(
            _are_common(dataset.dataset.get("annotations", []), fields | names)
            for dataset, names in zip(datasets, own, strict=True)
        )

    @property
    def evalImgs(self) -> list:
        """Matches per class, area range and image, with None where there is nothing to match.

        It is converted each time it is read, which takes long on a large data set.
        """
        if self._engine is None:
            return self._matches or []
        # hotcoco leaves the empty places out; COCO's users find an entry by its position
        by_class = bool(self.params.useCats)
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
        params = self.params
        return [
            found.get((category, tuple(map(float, area)), image))
            for category in (params.catIds if by_class else [-1])
            for area in params.areaRng
            for image in params.imgIds
        ]

    @evalImgs.setter
    def evalImgs(self, value):
        self._matches = value  # the base class assigns them; those of the engine come first

    def accumulate(self, p: Any = None) -> None:
        """Compute `eval["precision"]` (T, R, K, A, M), `eval["scores"]` and `eval["recall"]` (T, K, A, M)."""
        if not self._paramsEval:  # pycocotools fails with the same class of error
            raise AttributeError("COCOeval_opt.accumulate() needs evaluate() to run first.")
        if p is not None and p is not self.params:
            self.evalImgs, self._engine = self.evalImgs, None
        if self._engine is None:
            super().accumulate(p)
            return
        self._engine.accumulate()
        accumulated = self._engine.eval or {}
        self.eval = {**accumulated, "params": self.params}
