"""Average precision by the Pascal VOC protocol (https://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf).

Boxes are `(xmin, ymin, xmax, ymax)` in VOC's convention: one-based indices of pixels, both ends included.
"""

import logging
import os
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.data.formats.reading import Report
from detectron2.data.formats.voc import VOC_MISTAKES, listed_names, read_voc_objects
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from .evaluator import DatasetEvaluator, paired, warn_of_repeated, without_infinite

__all__ = ["PascalVOCDetectionEvaluator", "parse_rec", "voc_ap"]

_THRESHOLDS_PERCENT = range(50, 100, 5)


# For each object of a class the index of its image, its box (G, 4), and whether it is difficult.
_Objects = tuple[np.ndarray, np.ndarray, np.ndarray]


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """VOC's AP of boxes, averaged over the classes, at IoU 0.50, 0.75 and on average over 0.50:0.05:0.95.

    It differs in details from the official Matlab code, so numbers agree closely, not exactly. All processes must
    call it, because it gathers their predictions.

    Args:
        dataset_name: a data set with `dirname` in its metadata (the folder with `Annotations` and `ImageSets`),
            `split`, `year` (2007: AP by eleven points; 2012: area under the curve) and `thing_classes`.

    Example:
        >>> evaluator = PascalVOCDetectionEvaluator("one_cat")  # one object, at (10, 10, 30, 30)
        >>> boxes = Boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]]))
        >>> found = Instances((100, 100), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.tensor([0]))
        >>> evaluator.process([{"image_id": "1"}], [{"instances": found}])
        >>> evaluator.evaluate()["bbox"]["AP"]
        100.0
    """

    mask_formats = ()

    def __init__(self, dataset_name: str):
        self._dataset_name = dataset_name
        meta = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("dirname", "split", "year", "thing_classes") if meta.get(key) is None]
        if missing:
            raise ValueError(
                f"PascalVOCDetectionEvaluator needs {missing} in the metadata of {dataset_name!r}. Register it with "
                "`register_pascal_voc`, or evaluate it with COCOEvaluator."
            )
        if meta.year not in (2007, 2012):
            raise ValueError(f"The metadata of {dataset_name!r} has year {meta.year!r}; VOC's rules are 2007 and 2012.")
        self._root, self._split = PathManager.get_local_path(meta.dirname), meta.split
        self._anno_file_template = os.path.join(self._root, "Annotations", "{}.xml")
        self._class_names = meta.thing_classes
        self._is_2007 = meta.year == 2007
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self):
        """Forget the predictions."""
        self._predictions: list[tuple[str, np.ndarray]] = []  # of each image, with rows (class, score, box)
        self._leaves_out = False  # detections that are not finite

    def process(self, inputs: Any, outputs: Any):
        """Keep a batch: inputs with `image_id`, outputs with `instances` on the original image.

        An `image_id` is the name of the annotation file without its suffix.
        """
        for input_, output in paired(self, inputs, outputs, "image_id", "instances"):
            found = output["instances"].to(self._cpu_device)
            instances = without_infinite(found, input_["image_id"], not self._leaves_out)
            self._leaves_out |= len(instances) < len(found)
            # VOC's result files hold this many decimals, and ties among rounded scores are part of the numbers
            scores = instances.scores.numpy().astype(np.float64).reshape(-1, 1).round(3)
            boxes = instances.pred_boxes.tensor.numpy().astype(np.float64).reshape(-1, 4)
            boxes[:, :2] += 1  # from continuous coordinates to one-based inclusive pixels
            classes = instances.pred_classes.numpy().astype(np.float64).reshape(-1, 1)
            rows = np.concatenate([classes, scores, boxes.round(1)], axis=1)
            self._predictions.append((str(input_["image_id"]), rows))

    def evaluate(self):
        """Return `{"bbox": {"AP", "AP50", "AP75"}}` on the main process, as means over classes, else None."""
        # a few arrays in place of one for each image
        names, lengths = [name for name, _ in self._predictions], [len(rows) for _, rows in self._predictions]
        rows = np.concatenate([np.zeros((0, 6)), *[rows for _, rows in self._predictions]])
        gathered = comm.gather((np.array(names), lengths, rows), dst=0)
        if not comm.is_main_process():
            return None
        effect = "all their detections count, and those found again are wrong ones"
        warn_of_repeated(self, (name for part in gathered for name in part[0].tolist()), "image_id", effect)
        names = [name for part in gathered for name in np.repeat(part[0], part[1]).tolist()]
        rows = np.concatenate([part[2] for part in gathered])
        if unknown := sorted(set(rows[:, 0].tolist()) - set(range(len(self._class_names)))):
            raise ValueError(
                f"The model predicts class {unknown[-1]:g}, but {self._dataset_name!r} has {len(self._class_names)} "
                "classes; MODEL.ROI_HEADS.NUM_CLASSES must be that number."
            )
        image_names = listed_names(self._root, self._split, Report(VOC_MISTAKES))
        index_of = {name: index for index, name in enumerate(image_names)}
        if unknown := sorted(set(names) - set(index_of)):
            raise ValueError(
                f"Predictions for image {unknown[0]!r} (and {len(unknown) - 1} others), which the list "
                f"{self._split!r} of {self._root} does not have. `image_id` must be the name of the "
                "annotation file without .xml."
            )
        image = np.array([index_of[name] for name in names], dtype=np.int64)
        objects = _read_objects([self._anno_file_template.format(name) for name in image_names])
        self._logger.info(
            f"Evaluating {self._dataset_name} on {len(image_names)} images by the rules of "
            f"{2007 if self._is_2007 else 2012}"
        )
        table = np.full((len(self._class_names), len(_THRESHOLDS_PERCENT)), np.nan)
        for class_id, name in enumerate(self._class_names):
            if name not in objects:
                self._logger.warning(f"No object of class {name!r} in this split; it is left out of the averages.")
                continue
            mine = np.flatnonzero(rows[:, 0] == class_id)
            # The rounding above makes ties. The published evaluation leaves their order to numpy's default sort, and
            # the AP of a small split moves by up to 0.01 with it, so the same sort is used here.
            order = mine[np.argsort(-rows[mine, 1])]
            table[class_id] = _ap_of_class(image[order], rows[order, 2:], objects[name], self._is_2007)
        return OrderedDict(bbox=_summary(table))


def _summary(table: np.ndarray) -> dict[str, float]:
    """Mean over classes of a table (classes, thresholds) with NaN rows for classes without ground truth."""
    scored = table[~np.isnan(table).all(axis=1)]
    mean = scored.mean(axis=0) * 100 if len(scored) else np.full(table.shape[1], np.nan)
    at = dict(zip(_THRESHOLDS_PERCENT, mean.tolist(), strict=True))
    return {"AP": float(mean.mean()), "AP50": at[50], "AP75": at[75]}


def parse_rec(filename: str) -> list[dict[str, Any]]:
    """Read the objects of a VOC annotation file.

    Args:
        filename: path of the XML file.

    Returns:
        dictionaries with `name`, `pose`, `truncated`, `difficult` and `bbox` (xmin, ymin, xmax, ymax), of integers
        where the file has no fractions.

    Raises:
        ValueError: loading would not take the file; the message names the object.
    """
    records = []
    for found in read_voc_objects(PathManager.get_local_path(filename)):
        if "difficult" not in found:
            text = f"{filename}: an object {found['name']!r} has no <difficult>; such objects have to be found."
            log_first_n(logging.WARNING, text, name=__name__)
        x1, y1, x2, y2 = found.pop("bbox")
        box = [int(v) if v.is_integer() else v for v in (x1 + 1, y1 + 1, x2, y2)]
        records.append({"pose": "Unspecified", "truncated": 0, "difficult": 0, **found, "bbox": box})
    return records


def _read_objects(filenames: list[str]) -> dict[str, _Objects]:
    """Read every annotation file once and return the objects of each class name."""
    rows: dict[str, list[tuple]] = defaultdict(list)
    for image, filename in enumerate(filenames):
        for record in parse_rec(filename):
            rows[record["name"]].append((image, record["difficult"], *record["bbox"]))
    table = {name: np.array(entries, dtype=np.float64) for name, entries in rows.items()}
    return {name: (t[:, 0].astype(np.int64), t[:, 2:], t[:, 1] > 0) for name, t in table.items()}


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision of a curve.

    Args:
        rec: recall after each detection, not decreasing.
        prec: precision after each detection.
        use_07_metric: average the best precision at the recalls 0, 0.1, … 1 (VOC 2007); otherwise the area under the
            curve, with the precision at each recall raised to the best at any higher one.

    Returns:
        a number from 0 to 1.

    Example:
        >>> voc_ap(np.array([0.5, 1.0]), np.array([1.0, 0.8]))
        0.9
    """
    rec, prec = np.asarray(rec, dtype=np.float64), np.asarray(prec, dtype=np.float64)
    # best precision at this or any later detection; 0 past the end
    best_from = np.append(np.maximum.accumulate(prec[::-1])[::-1], 0.0)
    if use_07_metric:
        first_reaching = np.searchsorted(rec, np.arange(0.0, 1.1, 0.1), side="left")
        return float(best_from[first_reaching].mean())
    gained = np.diff(rec, prepend=0.0)
    return float((gained * best_from[:-1]).sum())


def _best_objects(image: np.ndarray, box_xyxy: np.ndarray, objects: _Objects) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the best IoU with an object of its image, -inf without one, and the index of the object."""
    by_image = np.argsort(objects[0], kind="stable")
    sorted_images = objects[0][by_image]
    first = np.searchsorted(sorted_images, image, side="left")
    count = np.searchsorted(sorted_images, image, side="right") - first
    # one row for each pair of a detection and an object of its image
    detection_of_pair = np.repeat(np.arange(len(count)), count)
    start_of_pair = np.cumsum(count) - count
    offset = np.arange(len(detection_of_pair)) - start_of_pair[detection_of_pair]
    object_of_pair = by_image[first[detection_of_pair] + offset]
    iou = _inclusive_iou(box_xyxy[detection_of_pair], objects[1][object_of_pair])
    best_iou = np.full(len(count), -np.inf)
    np.maximum.at(best_iou, detection_of_pair, iou)
    # of equally good objects the first in the file, so write in reverse
    winners = np.flatnonzero(iou == best_iou[detection_of_pair])[::-1]
    best_object = np.full(len(count), -1)
    best_object[detection_of_pair[winners]] = object_of_pair[winners]
    return best_iou, best_object


def _inclusive_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of corresponding boxes (P, 4) that include their last pixel."""
    inter_wh = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1, 0, None)
    inter = inter_wh.prod(axis=1)
    return inter / ((a[:, 2:] - a[:, :2] + 1).prod(axis=1) + (b[:, 2:] - b[:, :2] + 1).prod(axis=1) - inter)


def _ap_of_class(image: np.ndarray, box_xyxy: np.ndarray, objects: _Objects, use_07_metric: bool) -> list[float]:
    """AP of one class at each threshold, best score first; an object found twice is the second time an error."""
    best_iou, best_object = _best_objects(image, box_xyxy, objects)
    difficult = objects[2]
    positives = int((~difficult).sum())
    curve = []
    for percent in _THRESHOLDS_PERCENT:
        overlaps = best_iou > percent / 100
        hits = np.flatnonzero(overlaps)
        is_difficult = np.zeros(len(overlaps), dtype=bool)
        is_difficult[hits] = difficult[best_object[hits]]
        easy = np.flatnonzero(overlaps & ~is_difficult)
        true = np.zeros(len(overlaps), dtype=bool)
        true[easy[np.unique(best_object[easy], return_index=True)[1]]] = True
        # finding a difficult object is neither right nor wrong
        true_count, counted = np.cumsum(true), np.cumsum(~is_difficult)
        recall = true_count / max(positives, 1)
        precision = true_count / np.maximum(counted, 1)
        curve.append(voc_ap(recall, precision, use_07_metric))
    return curve
