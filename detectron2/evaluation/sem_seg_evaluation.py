"""Intersection over union and accuracy of semantic segmentation, over whole images and along boundaries.

A label map is an integer array (height, width). `K` classes; index `K` stands for pixels without a label.
"""

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.checks.label_maps import MUCH_IGNORED
from detectron2.data.detection_utils import read_image
from detectron2.data.formats.reading import shorten
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator, paired, warn_of_repeated

__all__ = ["SemSegEvaluator", "load_image_into_numpy_array"]

# Share of the image's diagonal that counts as boundary (Cheng et al., Boundary IoU, arXiv:2103.16562, section 4).
_BOUNDARY_RATIO = 0.02


def load_image_into_numpy_array(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """Read an image file as it is, without converting colours, or an array that NumPy saved.

    Args:
        filename: path understood by the path manager.
        copy: return memory of its own.
        dtype: element type; None for that of the file.

    Returns:
        array (height, width), or (height, width, channels).

    Raises:
        ValueError: the numbers are not whole, and `dtype` is that of integers.
    """
    if str(filename).lower().endswith((".npy", ".npz")):
        stored = read_image(filename)
    else:
        with PathManager.open(filename, "rb") as f:
            stored = np.asarray(Image.open(cast("IO[bytes]", f)))
    image = np.asarray(stored, dtype=dtype)
    if stored.dtype.kind == "f" and image.dtype.kind != "f" and (image != stored).any():
        raise ValueError(
            f"{filename} has fractions, such as {stored[image != stored][0]}, where labels are whole numbers."
        )
    return image.copy() if copy else image


class SemSegEvaluator(DatasetEvaluator):
    """Metrics of semantic segmentation in percent, http://cocodataset.org/#stuff-eval, with those of each class.

    Args:
        dataset_name: a data set with `sem_seg_file_name` in its entries and `stuff_classes` in its metadata.
        distributed: collect the counts of all processes in the main one; otherwise each evaluates its own images.
        output_dir: folder for `sem_seg_predictions.json` (COCO's format) and `sem_seg_evaluation.pth`; None to
            write nothing.
        sem_seg_loading_fn: reads a label file into an integer array (height, width).
        num_classes: ignored; the metadata's `stuff_classes` say how many there are.
        ignore_label: ignored; the metadata's `ignore_label` counts.

    Example:
        >>> evaluator = SemSegEvaluator("one_cat", distributed=False)  # 400 pixels of a cat, 9600 of the floor
        >>> evaluator.process([{"file_name": "1.jpg"}], [{"sem_seg": torch.zeros(2, 100, 100)}])  # all of it floor
        >>> round(evaluator.evaluate()["sem_seg"]["pACC"])
        96
    """

    mask_formats = ()

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ):
        self._logger = logging.getLogger(__name__)
        meta = MetadataCatalog.get(dataset_name)
        meta.require(["stuff_classes"], "SemSegEvaluator")
        if num_classes is not None and num_classes != len(meta.stuff_classes):
            raise ValueError(
                f"num_classes={num_classes}, but {dataset_name!r} has {len(meta.stuff_classes)} stuff_classes. "
                "Leave the argument out."
            )
        if ignore_label is not None:
            self._logger.warning("SemSegEvaluator(ignore_label=) has no effect: the metadata's ignore_label is used.")
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self.input_file_to_gt_file = _label_files(dataset_name)
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = to_contiguous and {v: k for k, v in to_contiguous.items()}
        self._class_names = meta.stuff_classes
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self._num_classes = len(meta.stuff_classes)
        label = meta.get("ignore_label")
        self._ignore_label = 255 if label is None else label
        self._compute_boundary_iou = True
        self.reset()

    def reset(self):
        """Forget the counts."""
        size = self._num_classes + 1
        self._conf_matrix = np.zeros((size, size), dtype=np.int64)
        self._b_conf_matrix = np.zeros((size, size), dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []
        self._seen: list[str] = []

    def process(self, inputs: Any, outputs: Any):
        """Count a batch: inputs with `file_name`, outputs with `sem_seg`, scores of the classes (K, height, width)."""
        for input_, output in paired(self, inputs, outputs, "file_name", "sem_seg"):
            predicted = predicted_labels(output, self._num_classes, input_["file_name"], self._dataset_name)
            truth = self._load_truth(input_["file_name"], predicted.shape)
            self._seen.append(input_["file_name"])
            self._conf_matrix += _confusion(predicted, truth, self._num_classes + 1)
            if self._compute_boundary_iou:
                # small numbers are compared many at a time
                kind = np.uint8 if self._num_classes < 256 else np.int32
                edges, true_edges = (_label_boundary(labels.astype(kind)) for labels in (predicted, truth))
                self._b_conf_matrix += _confusion(edges, true_edges, self._num_classes + 1)
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(predicted, input_["file_name"]))

    def _load_truth(self, file_name: str, shape_hw: tuple[int, ...]) -> np.ndarray:
        """Label map of an image, with the ignored pixels set to K."""
        if file_name not in self.input_file_to_gt_file:
            raise KeyError(
                f"{file_name!r} is not an image of {self._dataset_name!r}, so it has no labels. The loader and the "
                "evaluator must be of the same data set."
            )
        path = self.input_file_to_gt_file[file_name]
        try:
            truth = np.array(self.sem_seg_loading_fn(path, dtype=int), dtype=np.int64)
        except FileNotFoundError as e:
            raise FileNotFoundError(
                f"The labels of {file_name} (sem_seg_file_name of {self._dataset_name!r}) are missing: {path}"
            ) from e
        if truth.ndim == 3:  # grey pictures are stored with three equal channels, too; the fourth is opacity
            planes = truth[..., : 1 if truth.shape[2] == 2 else 3]
            truth = planes[..., 0] if (planes == planes[..., :1]).all() else truth
        if truth.ndim != 2:
            raise ValueError(
                f"{path} has shape {truth.shape}: it is a coloured picture, where one channel with the index of the "
                "class at each pixel is needed. Convert it, or read it with sem_seg_loading_fn."
            )
        if truth.shape != shape_hw:
            raise ValueError(
                f"{path} has (height, width) {truth.shape}, the prediction {shape_hw}. Labels are compared in the "
                "size of the original image, to which the model brings its result by `height` and `width` of its input."
            )
        is_ignored = truth == self._ignore_label
        known = truth[~is_ignored]
        if known.size and not 0 <= known.min() <= known.max() < self._num_classes:
            raise ValueError(
                f"{path} has labels from {known.min()} to {known.max()}; expected 0 to {self._num_classes - 1}, or "
                f"{self._ignore_label} for ignored pixels (metadata: ignore_label)."
            )
        truth[is_ignored] = self._num_classes
        return truth

    def evaluate(self):
        """Compute the metrics.

        Returns:
            `{"sem_seg": {...}}` in percent on the main process: `mIoU`, `fwIoU` (classes weighted by their
            pixels), `mACC`, `pACC`, and for each class `IoU-<name>`, `ACC-<name>` and the boundary IoU.
        """
        conf, boundary, predictions, seen = self._conf_matrix, self._b_conf_matrix, self._predictions, self._seen
        if self._distributed:
            comm.synchronize()
            parts = comm.gather((conf, boundary, predictions, seen), dst=0)
            if not comm.is_main_process():
                return None
            conf, boundary = (np.sum([part[k] for part in parts], axis=0) for k in (0, 1))
            predictions = [prediction for part in parts for prediction in part[2]]
            seen = [name for part in parts for name in part[3]]
        # columns are the truth; unlabelled pixels count nowhere
        metrics = self._metrics(conf, boundary)
        if (reason := self._explain(conf)) is not None:
            self._logger.warning(reason)
        warn_of_repeated(self, seen, "file_name", "their pixels count each time")
        if seen and (missed := self.input_file_to_gt_file.keys() - set(seen)):
            self._logger.warning(
                f"{len(missed)} of {len(self.input_file_to_gt_file)} images of {self._dataset_name!r} have no "
                f"prediction, for example {min(missed)!r}; the metrics are about the others."
            )
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with atomic_write(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as f:
                f.write(json.dumps(predictions))
            with atomic_write(os.path.join(self._output_dir, "sem_seg_evaluation.pth")) as f:
                torch.save(metrics, f)
        main = {key: value for key, value in metrics.items() if "-" not in key}
        self._logger.info("Semantic segmentation results:\n" + create_small_table(main))
        return OrderedDict(sem_seg=metrics)

    def _explain(self, conf: np.ndarray) -> str | None:
        """What to say where the numbers mean little."""
        in_prediction, in_truth = conf.sum(axis=1), conf[:, :-1].sum(axis=0)
        if not conf.any():
            return "SemSegEvaluator received no pixels: the model or the data loader gave no output."
        if not in_truth.any():
            return (
                f"No pixel of {self._dataset_name!r} has a label: all are {self._ignore_label} (metadata: "
                "ignore_label), so every metric is NaN."
            )
        if (in_prediction > 0).sum() == 1 and (in_truth > 0).sum() > 1:
            return (
                f"Every pixel of every image is predicted as {self._class_names[in_prediction.argmax()]!r}. Usual "
                "reasons: no weights were loaded, training has only begun or has diverged, or the images come in "
                "another channel order than the weights expect (INPUT.FORMAT)."
            )
        absent = [name for name, count in zip(self._class_names, in_truth.tolist(), strict=True) if not count]
        ignored = 1 - in_truth.sum() / conf.sum()
        if not absent and ignored <= MUCH_IGNORED:
            return None
        return (
            f"In the truth of {self._dataset_name!r} {100 * ignored:.0f}% of the pixels are {self._ignore_label} "
            f"(metadata: ignore_label) and do not count, and {len(absent)} of {self._num_classes} classes never occur"
            f"{f' ({shorten(absent)})' if absent else ''}: the metrics are about the rest."
        )

    def _metrics(self, conf: np.ndarray, boundary: np.ndarray) -> dict[str, float]:
        """All numbers in percent from the confusion matrices (K + 1, K + 1): rows predicted, columns true."""
        # unlabelled pixels do not count: their row and column are left out
        conf, boundary = conf[:-1, :-1].astype(float), boundary[:-1, :-1].astype(float)
        in_truth, in_prediction, correct = conf.sum(axis=0), conf.sum(axis=1), conf.diagonal()
        present = in_truth > 0
        iou = _divide(correct, in_truth + in_prediction - correct, where=present)
        accuracy = _divide(correct, in_truth, where=present)
        b_correct = boundary.diagonal()
        b_union = boundary.sum(axis=0) + boundary.sum(axis=1) - b_correct
        b_iou = _divide(b_correct, b_union, where=b_union > 0)
        # a class that is predicted where there is none of it counts as 0 in the mean
        seen = int(((in_truth + in_prediction) > 0).sum())
        labelled = in_truth.sum()
        result = {
            "mIoU": np.nansum(iou) / seen if seen else np.nan,
            "fwIoU": np.nansum(iou * in_truth) / labelled if labelled else np.nan,
        }
        for index, name in enumerate(self._class_names):
            result[f"IoU-{name}"] = iou[index]
            if self._compute_boundary_iou:
                result[f"BoundaryIoU-{name}"] = b_iou[index]
                result[f"min(IoU, B-Iou)-{name}"] = min(iou[index], b_iou[index])
        result["mACC"] = np.nansum(accuracy) / present.sum() if present.any() else np.nan
        result["pACC"] = correct.sum() / labelled if labelled else np.nan
        result |= {f"ACC-{name}": accuracy[index] for index, name in enumerate(self._class_names)}
        return {key: 100 * float(value) for key, value in result.items()}

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Turn a label map into COCO stuff results, one RLE for each class in it (cocodataset.org/#format-results).

        Args:
            sem_seg: integer array (height, width) of contiguous class ids.
            input_file_name: written to `file_name` of every entry.

        Returns:
            dictionaries with `file_name`, `category_id` and `segmentation`.
        """
        entries = []
        for label in np.unique(sem_seg).tolist():
            category = label
            if self._contiguous_id_to_dataset_id is not None:
                category = self._contiguous_id_to_dataset_id.get(label)
            if category is None:
                raise ValueError(
                    f"Class {label} is predicted on {input_file_name}, and `stuff_dataset_id_to_contiguous_id` in the "
                    f"metadata of {self._dataset_name!r} has no category for it: it maps to "
                    f"{sorted(self._contiguous_id_to_dataset_id or ())}."
                )
            rle: Any = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode()
            entries.append({"file_name": input_file_name, "category_id": category, "segmentation": rle})
        return entries


def predicted_labels(output: Any, num_classes: int, file_name: str, dataset_name: Any) -> np.ndarray:
    """Label map (height, width) of an output, which holds scores or labels of that many classes."""
    output = output["sem_seg"] if isinstance(output, Mapping) else output
    labels = output.argmax(dim=0) if output.dim() == 3 else output
    predicted = labels.cpu().numpy().astype(np.int64)
    if predicted.size and not 0 <= predicted.min() <= predicted.max() < num_classes:
        raise ValueError(
            f"On {file_name} the model predicts labels from {predicted.min()} to {predicted.max()}, but "
            f"{dataset_name!r} has the {num_classes} stuff_classes 0 to {num_classes - 1}. The model's number of "
            "classes (MODEL.SEM_SEG_HEAD.NUM_CLASSES) must be that of the data set."
        )
    return predicted


def _divide(numerator: np.ndarray, denominator: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Quotient of float arrays, NaN where the condition does not hold."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=where)


def _label_files(dataset_name: str) -> dict[str, str]:
    """Label file of each image."""
    records = DatasetCatalog.get(dataset_name)
    without = [record["file_name"] for record in records if not record.get("sem_seg_file_name")]
    if without:
        raise ValueError(
            f"SemSegEvaluator needs `sem_seg_file_name`, the file with the labels, in every entry of {dataset_name!r}; "
            f"{len(without)} of {len(records)} lack it, such as that of {without[0]}."
        )
    return {record["file_name"]: record["sem_seg_file_name"] for record in records}


def _confusion(predicted: np.ndarray, truth: np.ndarray, size: int) -> np.ndarray:
    """Pixels (size, size) with each pair of a predicted label (row) and a true one (column)."""
    pairs = predicted.astype(np.int64).ravel() * size + truth.ravel()
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def _label_boundary(labels: np.ndarray) -> np.ndarray:
    """How far a label map exceeds its erosion by 2 % of the diagonal, as published; outside the image is label 0."""
    height, width = labels.shape
    reach = max(1, round(_BOUNDARY_RATIO * math.hypot(height, width)))
    eroded = np.pad(labels, 1)
    for _ in range(2):  # along one axis, then along the other
        eroded = _running_minimum(eroded, reach).T
    return labels - eroded[1:-1, 1:-1]


def _running_minimum(values: np.ndarray, reach: int) -> np.ndarray:
    """Minimum over `reach` neighbours to both sides along the rows, by doubling windows (logarithmic in reach)."""
    size, total = len(values), 2 * reach + 1
    margin = ((reach, reach), (0, 0))
    window, covered = np.pad(values, margin, constant_values=np.iinfo(values.dtype).max), 1
    while covered < total:
        step = min(covered, total - covered)
        window = np.minimum(window[:-step], window[step:])
        covered += step
    return window[:size]
