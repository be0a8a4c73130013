"""Average precision of boxes, masks and keypoints by the COCO protocol, on any data set."""

import copy
import logging
import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from tabulate import tabulate

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, ROIMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import create_small_table

from ._coco_diagnosis import check_category_ids, explain_cap, explain_zero_ap
from ._coco_format import box_mistakes, instances_to_coco_json, instances_to_table, load_coco_api
from ._coco_scoring import COCOevalMaxDets, _evaluate_box_proposals, _evaluate_predictions_on_coco, check_max_dets
from ._coco_table import (
    ResultTable,
    join_results,
    pack_predictions,
    replace_category_ids,
    unpack_predictions,
    values_of,
    write_predictions,
    write_results,
)
from .evaluator import DatasetEvaluator, paired, warn_of_repeated, without_infinite

__all__ = ["COCOEvaluator", "COCOevalMaxDets", "instances_to_coco_json"]

_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
_PROPOSAL_AREA_SUFFIXES = {"all": "", "small": "s", "medium": "m", "large": "l"}


class COCOEvaluator(DatasetEvaluator):
    """COCO's AP for boxes, masks and keypoints, and AR for proposals, in percent (NaN where undefined).

    The data set needs no COCO file: without `json_file` in its metadata it is converted to one.

    Masks may come in each format of `detectron2.modeling.postprocessing.detector_postprocess`. What is kept of
    them are run lengths, a few hundred bytes each.

    Args:
        dataset_name: a registered data set.
        tasks: any of `"bbox"`, `"segm"`, `"keypoints"`; None to take those that the predictions contain.
        distributed: collect the predictions of all processes in the main one, which evaluates; otherwise each
            process evaluates its own.
        output_dir: folder for `instances_predictions.pth` (the predictions, for `torch.load`),
            `coco_instances_results.json` (COCO's result format) and the converted data set; None to write nothing.
        max_dets_per_image: how many detections of an image count for AP: a number, or the list of the limits of COCO's
            summary, `[1, 10, 100]` by default. Keypoints keep COCO's 20.
        use_fast_impl: compute with hotcoco; False for pycocotools, much slower and with the same numbers.
        kpt_oks_sigmas: falloff of each keypoint in OKS, http://cocodataset.org/#keypoints-eval; empty for COCO's 17.
        allow_cached_coco: reuse a converted data set that is already in `output_dir`.

    Example:
        >>> evaluator = COCOEvaluator("one_cat", ["bbox"], distributed=False)  # one object, at (10, 10, 30, 30)
        >>> evaluator.reset()
        >>> boxes = Boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]]))
        >>> found = Instances((100, 100), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.zeros(1).long())
        >>> evaluator.process([{"image_id": 1}], [{"instances": found}])
        >>> round(evaluator.evaluate()["bbox"]["AP"])
        100
    """

    mask_formats = ("rle", "roi", "full")

    # What other protocols replace.
    _known_tasks: Sequence[str] = tuple(_METRICS)
    _results_file = "coco_instances_results.json"
    _first_category = 0  # category id of the model's class 0, where the metadata has no map
    _takes_rotated = False
    _warns_at_cap = True

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
        if isinstance(tasks, CfgNode):
            # scripts of the published system's early releases give the config in this place
            kpt_oks_sigmas = kpt_oks_sigmas if len(kpt_oks_sigmas) else tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        tasks = (tasks,) if isinstance(tasks, str) else tasks
        if unknown := sorted(set(tasks or ()) - set(self._known_tasks)):
            raise ValueError(f"{type(self).__name__} knows the tasks {list(self._known_tasks)}, not {unknown}.")
        self._logger = logging.getLogger(__name__)
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._max_dets_per_image: Any = check_max_dets(max_dets_per_image)
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._coco_api: Any = self._load_ground_truth(dataset_name, allow_cached_coco)
        check_category_ids(self._metadata, self._coco_api.getCatIds())
        self._do_evaluation = self._has_annotations()
        if isinstance(self._coco_api, COCO) and not self._takes_rotated:
            for annotation in self._coco_api.dataset.get("annotations", ()):
                if len(annotation["bbox"]) == 5:
                    raise ValueError(
                        f"{dataset_name!r} has rotated boxes such as {annotation['bbox']}, which "
                        f"{type(self).__name__} cannot compare; use RotatedCOCOEvaluator, as build_evaluator does."
                    )
        self._predictions: list[dict[str, Any]] = []
        self._leaves_out = False  # detections that are not finite
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()

    def _load_ground_truth(self, dataset_name: str, allow_cached: bool) -> Any:
        if self._metadata.get("json_file") is not None:
            return load_coco_api(self._metadata.json_file)
        self._logger.info(f"{dataset_name!r} has no `json_file` in its metadata; converting it to COCO format.")
        if self._output_dir is None:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "coco_format.json")
                convert_to_coco_json(dataset_name, path, allow_cached=False)
                return load_coco_api(path)
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, f"{dataset_name.replace('/', '_')}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        self._metadata.json_file = path
        return load_coco_api(path)

    def _has_annotations(self) -> bool:
        """False for test splits, whose results are written, not scored."""
        return "annotations" in self._coco_api.dataset

    def reset(self):
        """Forget the predictions."""
        self._predictions = []
        self._leaves_out = False

    def process(self, inputs: Any, outputs: Any):
        """Keep a batch: inputs with `image_id`, outputs with `instances` on the original image, or `proposals`."""
        # `instances` in `_predictions` reads like the list of `instances_to_coco_json`.
        for input_, output in paired(self, inputs, outputs, "image_id"):
            prediction: dict[str, Any] = {"image_id": input_["image_id"]}
            if "instances" in output:
                instances = self._usable(output["instances"].to(self._cpu_device), input_["image_id"])
                self._check_masks(instances, input_["image_id"])
                prediction["instances"] = instances_to_table(instances, input_["image_id"])
                self._check_classes(prediction["instances"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None):
        """Score the predictions.

        Args:
            img_ids: evaluate on these images; None for all of the data set.

        Returns:
            `{task: {metric: percent}}` with a task `box_proposals` for proposals; empty on all processes but the
            main one.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            if comm.get_world_size() > 1:
                parts = comm.gather(pack_predictions(predictions), dst=0)
                predictions = [p for part in parts for p in unpack_predictions(part)]
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning("COCOEvaluator received no predictions: the model or the data loader gave no output.")
            return {}
        effect = "all their detections count, and those found again are wrong ones"
        warn_of_repeated(self, (p["image_id"] for p in predictions), "image_id", effect)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with atomic_write(path) as f:
                write_predictions(f, predictions)
        self._results = OrderedDict()
        if "proposals" in predictions[0]:
            self._eval_box_proposals(predictions)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids=img_ids)
        # the caller may edit what it gets
        return copy.deepcopy(self._results)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Tasks for which the COCO results have the fields."""
        found = {task for task, field in _FIELDS.items() if any(field in prediction for prediction in predictions)}
        return sorted(({"bbox"} | found) & set(self._known_tasks))

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Score instances task by task into `self._results`."""
        # Copies, since their categories change below: evaluating a second time starts from the same predictions.
        coco_results = join_results(predictions)
        # all rows of a table have the same fields
        some = coco_results[:1] if isinstance(coco_results, ResultTable) else coco_results
        tasks = sorted(self._tasks or self._tasks_from_predictions(some))
        self._to_dataset_categories(coco_results)
        if self._output_dir:
            path = os.path.join(self._output_dir, self._results_file)
            self._logger.info(f"Saving results to {path}")
            with atomic_write(path, "w") as f:
                write_results(f, coco_results)
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the results are not scored.")
            return
        if not coco_results:
            self._explain_no_results(predictions)
        elif lacking := [t for t in tasks if t in _FIELDS and not any(_FIELDS[t] in result for result in some)]:
            raise ValueError(f"The predictions have nothing for the tasks {lacking}; they have {sorted(some[0])}.")
        counts = [len(prediction["instances"]) for prediction in predictions]
        if self._warns_at_cap and (cap := explain_cap(counts, self._max_dets_per_image[-1])) is not None:
            self._logger.warning(cap)
        for task in tasks:
            self._results[task] = self._score(coco_results, task, img_ids)
        if coco_results and not any(self._results[task].get("AP50", 1.0) > 0 for task in tasks):
            self._explain_no_matches(coco_results)

    def _score(self, coco_results: Any, task: str, img_ids: Sequence[int] | None) -> dict[str, float]:
        """The metrics of a task, NaN where nothing was found."""
        coco_eval = self._evaluate_task(coco_results, task, img_ids) if coco_results else None
        names, labels = self._metadata.get("thing_classes"), self._metadata.get("thing_dataset_id_to_contiguous_id")
        if names and labels and len(names) == len(labels):  # in the order of the category ids, as the table of results
            names = [names[labels[category]] for category in sorted(labels)]
        return self._derive_coco_results(coco_eval, task, class_names=names)

    def _evaluate_task(self, coco_results: Any, task: str, img_ids: Sequence[int] | None) -> Any:
        return _evaluate_predictions_on_coco(
            self._coco_api,
            coco_results,
            task,
            self._kpt_oks_sigmas,
            self._use_fast_impl,
            img_ids=img_ids,
            max_dets_per_image=self._max_dets_per_image,
        )

    def _to_dataset_categories(self, coco_results: Any) -> None:
        """Replace the model's contiguous class ids by the category ids of the data set, in place."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            to_dataset_id = {category - self._first_category: category for category in self._coco_api.getCatIds()}
        else:
            to_dataset_id = {contiguous: original for original, contiguous in mapping.items()}
            if sorted(to_dataset_id) != list(range(len(to_dataset_id))):
                raise ValueError(
                    "thing_dataset_id_to_contiguous_id must map to 0, 1, 2 …; it maps to "
                    f"{sorted(to_dataset_id)[:10]} in the metadata of {self._metadata.get('name')!r}."
                )
        predicted = values_of(coco_results, "category_id")
        for row, category in enumerate(predicted):
            if category not in to_dataset_id:
                self._refuse_class(coco_results[row], to_dataset_id)
        replace_category_ids(coco_results, [to_dataset_id[category] for category in predicted])

    def _usable(self, instances: Any, image_id: Any) -> Any:
        """The detections without those that are not finite, which pycocotools takes to overlap with everything."""
        boxes = instances.pred_boxes.tensor
        if boxes.shape[1] == 5 and not self._takes_rotated:
            raise ValueError(f"{type(self).__name__} has no measure for rotated boxes; use RotatedCOCOEvaluator.")
        usable = without_infinite(instances, image_id, not self._leaves_out)
        self._leaves_out |= len(usable) < len(instances)
        return usable

    def _check_masks(self, instances: Any, image_id: Any) -> None:
        """Refuse masks of another size than the image, which overlap with nothing."""
        if not len(instances):
            return
        image = getattr(self._coco_api, "imgs", {}).get(image_id, {})
        expected_hw = image.get("height"), image.get("width")
        found_hw = expected_hw
        if instances.has("pred_masks_rle"):
            found_hw = tuple(instances.pred_masks_rle[0]["size"])
        elif instances.has("pred_masks") and not isinstance(instances.pred_masks, ROIMasks):
            masks = instances.pred_masks
            found_hw = tuple((masks if isinstance(masks, torch.Tensor) else masks.tensor).shape[-2:])
        if None not in expected_hw and found_hw != expected_hw:
            raise ValueError(
                f"Masks predicted on image {image_id!r} are {found_hw[0]} pixels high and {found_hw[1]} wide, the "
                f"image is {expected_hw[0]} high and {expected_hw[1]} wide. The model brings them to the original "
                "size by `height` and `width` of its input; else use detector_postprocess()."
            )

    def _check_classes(self, table: ResultTable) -> None:
        """Refuse an unknown class at the first image with one, and not after all of them."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping and len(table) and table.category_ids.max() > max(mapping.values()):
            self._refuse_class(table[int(table.category_ids.argmax())], {k: c for c, k in mapping.items()})

    def _refuse_class(self, result: dict[str, Any], to_dataset_id: dict[int, int]) -> None:
        raise ValueError(
            f"A prediction on image {result['image_id']!r} has class {result['category_id']}, but the data set "
            f"{self._metadata.get('name')!r} has the {len(to_dataset_id)} classes {sorted(to_dataset_id)[:10]}"
            f"{' …' if len(to_dataset_id) > 10 else ''}. The model's number of classes "
            "(MODEL.ROI_HEADS.NUM_CLASSES or MODEL.RETINANET.NUM_CLASSES) must be that of the data set."
        )

    def _explain_no_matches(self, coco_results: Sequence[dict[str, Any]]) -> None:
        annotated = {a["category_id"] for a in self._coco_api.dataset["annotations"] if not a.get("iscrowd", 0)}
        if annotated:
            mistakes = box_mistakes(self._coco_api.dataset, doubtful=True)
            self._logger.warning(explain_zero_ap(coco_results, annotated, mistakes))
        else:
            self._logger.warning("The ground truth has no objects, so every metric is NaN.")

    def _explain_no_results(self, predictions: list[dict[str, Any]]) -> None:
        self._logger.warning(
            f"The model found nothing on any of {len(predictions)} images, so every metric is NaN. Usual reasons: no "
            "weights were loaded (look for the checkpoint's report in the log), the score threshold "
            "(MODEL.ROI_HEADS.SCORE_THRESH_TEST) is too high, training has only begun or has diverged, or the images "
            "come in another channel order than the weights expect (INPUT.FORMAT)."
        )

    def _eval_box_proposals(self, predictions: list[dict[str, Any]]) -> None:
        """Score proposals into `self._results["box_proposals"]` as AR with 100 and 1000 proposals an image."""
        if self._output_dir:
            proposals = {
                "boxes": [p["proposals"].proposal_boxes.tensor.numpy() for p in predictions],
                "objectness_logits": [p["proposals"].objectness_logits.numpy() for p in predictions],
                "ids": [p["image_id"] for p in predictions],
                "bbox_mode": BoxMode.XYXY_ABS.value,
            }
            # the format that load_proposals_into_dataset() reads
            path = os.path.join(self._output_dir, "box_proposals.pkl")
            with atomic_write(path) as f:
                pickle.dump(proposals, f)
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the proposals are not scored.")
            return
        recalls = {}
        for limit in (100, 1000):
            for area, suffix in _PROPOSAL_AREA_SUFFIXES.items():
                stats = _evaluate_box_proposals(predictions, self._coco_api, area=area, limit=limit)
                recalls[f"AR{suffix}@{limit:d}"] = float(stats["ar"] * 100)
        self._logger.info("Proposal metrics:\n" + create_small_table(recalls))
        self._results["box_proposals"] = recalls

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The summary of an evaluation, or of None, in percent, and `AP-<name>` where there are two or more classes."""
        metrics = _METRICS[iou_type]
        if coco_eval is None:
            return dict.fromkeys(metrics, float("nan"))
        # recalls follow the precisions in `stats`; only the latter are reported
        stats = zip(metrics, coco_eval.stats, strict=False)
        results = {name: float(value * 100) if value >= 0 else float("nan") for name, value in stats}
        self._logger.info(f"Evaluation results for {iou_type}:\n" + create_small_table(results))
        if not all(np.isfinite(value) for value in results.values()):
            self._logger.info("NaN marks a metric without ground truth, such as no small objects.")
        if class_names is None or len(class_names) <= 1:
            return results
        categories = coco_eval.eval["precision"].shape[2]
        if len(class_names) != categories:
            self._logger.error(
                f"No AP of each class: the metadata has {len(class_names)} thing_classes, the annotations {categories} "
                "categories. Make `thing_classes` name exactly the categories of `json_file`."
            )
            return results
        per_class = _per_class_ap(coco_eval, class_names)
        self._logger.info(f"AP of each class for {iou_type}:\n" + class_table(per_class, "AP"))
        results.update({f"AP-{name}": ap for name, ap in per_class.items()})
        return results


def _per_class_ap(coco_eval: Any, class_names: Sequence[str]) -> dict[str, float]:
    """AP in percent for each class, over all areas and with the largest detection limit; NaN without ground truth."""
    per_class = {}
    for index, name in enumerate(class_names):
        precision = coco_eval.eval["precision"][:, :, index, 0, -1]
        precision = precision[precision > -1]
        per_class[str(name)] = float(precision.mean() * 100) if precision.size else float("nan")
    return per_class


def class_table(numbers: Mapping[str, float], metric: str) -> str:
    """Names of classes and their numbers side by side, three classes in a line."""
    cells = [cell for item in numbers.items() for cell in item]
    rows = [cells[start : start + 6] for start in range(0, len(cells), 6)]
    headers = ["class", metric] * min(3, len(numbers))
    return tabulate(rows, tablefmt="pipe", floatfmt=".3f", headers=headers, numalign="left")
