"""What a model of pixel labels does well and badly: semantic and panoptic segmentation, from saved predictions.

Letters: `K` classes. All scores lie between 0 and 1; what is not defined, such as the IoU of a class that does not
occur, is NaN.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.panoptic_evaluation import COCOPanopticEvaluator, rgb_to_id_map
from detectron2.evaluation.sem_seg_evaluation import SemSegEvaluator, _confusion, load_image_into_numpy_array

from ._scores import as_json, most_frequent
from .inputs import read_json

__all__ = [
    "SegmentAnalysis",
    "SegmentScores",
    "analyze_panoptic",
    "analyze_sem_seg",
    "read_label_maps",
    "read_panoptic",
]

_QUALITIES = ("PQ", "SQ", "RQ")


@dataclass(frozen=True)
class SegmentScores:
    """Scores of one class or of one image.

    Args:
        name: of the class, or the file name or id of the image.
        values: by the name of the score or count.

    Example:
        >>> SegmentScores("road", {"IoU": 0.91}).values["IoU"]
        0.91
    """

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class SegmentAnalysis:
    """All that is known about the predictions of one model.

    Args:
        task: `"sem_seg"` or `"panoptic_seg"`.
        metrics: over all classes, those of the evaluator.
        per_class: K scores.
        per_image: of each image with a prediction, worst first.
        confusion: int array (K, K) of pixels, rows are true classes, columns predicted ones; None for panoptic
            segmentation, which has no such pairs.
        class_names: K names, of the confusion.
        notes: sentences about what does not apply, or makes numbers mean something else than they seem to.

    Example:
        >>> analysis = SegmentAnalysis("sem_seg", {"mIoU": 0.5}, [], [], np.array([[3, 1], [0, 2]]), ["sky", "sea"], [])
        >>> analysis.confused()
        [('sky', 'sky', 3), ('sea', 'sea', 2), ('sky', 'sea', 1)]
    """

    task: str
    metrics: dict[str, float]
    per_class: list[SegmentScores]
    per_image: list[SegmentScores]
    confusion: np.ndarray | None
    class_names: list[str]
    notes: list[str]

    def confused(self) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, pixels) of every pair that occurs, most frequent first."""
        return [] if self.confusion is None else most_frequent(self.confusion, self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON takes them; NaN is None."""
        content = {key: value for key, value in vars(self).items() if key != "class_names"}
        content["per_class"] = [{"name": s.name, **s.values} for s in self.per_class]
        content["confusion"] = [{"true": t, "predicted": p, "pixels": n} for t, p, n in self.confused()]
        return as_json(content)


def analyze_sem_seg(dataset_name: str, predictions: str) -> SegmentAnalysis:
    """Analyze labels of pixels.

    Args:
        dataset_name: a registered data set, as for `SemSegEvaluator`.
        predictions: `sem_seg_predictions.json`, which that evaluator writes.

    Returns:
        The analysis.

    Raises:
        ValueError: the file holds something else, or images that the data set does not have.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluator = SemSegEvaluator("one_cat", distributed=False, output_dir=folder)
        ...     evaluator.process([{"file_name": "1.jpg"}], [{"sem_seg": torch.zeros(2, 100, 100)}])  # all of it floor
        ...     _ = evaluator.evaluate()
        ...     analyze_sem_seg("one_cat", folder + "/sem_seg_predictions.json").confused()
        [('floor', 'floor', 9600), ('cat', 'floor', 400)]
    """
    evaluator = SemSegEvaluator(dataset_name, distributed=False)
    names = list(MetadataCatalog.get(dataset_name).stuff_classes)
    size = len(names) + 1
    total, images = np.zeros((size, size), np.int64), []
    for file_name, labels in read_label_maps(dataset_name, predictions):
        counts = _confusion(labels, evaluator._load_truth(file_name, labels.shape), size)
        total += counts
        labelled = counts[:-1, :-1].sum()
        wrong = int(labelled - counts[:-1, :-1].trace())
        images.append(SegmentScores(file_name, {"wrong pixels": wrong, "share": _ratio(wrong, labelled)}))
    count = len(evaluator.input_file_to_gt_file)
    missing = count - len(images)
    notes = [f"{missing} of {count} images have no predictions and do not count."] if missing else []
    metrics = evaluator._metrics(total, np.zeros_like(total))
    counts = total[:-1, :-1]  # pixels without a label do not count
    return SegmentAnalysis(
        task="sem_seg",
        metrics={key: metrics[key] / 100 for key in ("mIoU", "fwIoU", "mACC", "pACC")},
        per_class=[SegmentScores(name, _pixel_scores(counts, k)) for k, name in enumerate(names)],
        per_image=sorted(images, key=lambda s: -s.values["wrong pixels"]),
        confusion=counts.T,
        class_names=names,
        notes=[
            *notes,
            "Labels have no scores, so there are no curves, thresholds and calibration, and no types of errors.",
        ],
    )


def _pixel_scores(counts: np.ndarray, k: int) -> dict[str, float]:
    """Score a class from counts with predicted rows and true columns."""
    right, true, predicted = int(counts[k, k]), int(counts[:, k].sum()), int(counts[k].sum())
    union = true + predicted - right
    return {
        "pixels": true,
        "IoU": _ratio(right, union) if true else np.nan,
        "accuracy": _ratio(right, true),
        "precision": _ratio(right, predicted),
        "F1": _ratio(2 * right, true + predicted) if true else np.nan,
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan


def read_label_maps(
    dataset_name: str, predictions: str, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Read label maps from COCO's format of stuff results, one image after the other.

    Args:
        dataset_name: a registered data set.
        predictions: the file.
        wanted: file names of the images; None for all.

    Yields:
        File name, as the data set has it, and an int array (height, width) of labels from 0 on; K where there is none.

    Raises:
        ValueError: the file holds something else, or images that the data set does not have.
    """
    entries = read_json(predictions)
    needed = {"file_name", "category_id", "segmentation"}
    if not isinstance(entries, list) or not all(isinstance(e, dict) and needed <= e.keys() for e in entries):
        raise ValueError(f"{predictions} is not a list with {sorted(needed)}, as SemSegEvaluator writes it.")
    metadata = MetadataCatalog.get(dataset_name)
    to_label = metadata.get("stuff_dataset_id_to_contiguous_id")
    known = [record["file_name"] for record in DatasetCatalog.get(dataset_name)]
    exact, times = set(known), Counter(os.path.basename(f) for f in known)
    by_name = {os.path.basename(f): f for f in known if times[os.path.basename(f)] == 1}  # the images may have moved
    by_image: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        name = entry["file_name"]
        file_name = name if name in exact else by_name.get(os.path.basename(name))
        if file_name is None:
            raise ValueError(
                f"{predictions} has labels of {name}, which is not an image of {dataset_name!r}; that has {len(known)} "
                f"images such as {known[0] if known else 'none'}."
            )
        by_image.setdefault(file_name, []).append(entry)
    for file_name in by_image if wanted is None else wanted:
        labels: Any = None
        for entry in by_image.get(file_name, []):
            mask = mask_util.decode(entry["segmentation"]).astype(bool)
            labels = np.full(mask.shape, len(metadata.stuff_classes)) if labels is None else labels
            label = entry["category_id"] if to_label is None else to_label.get(entry["category_id"], -1)
            if not 0 <= label < len(metadata.stuff_classes):
                raise ValueError(
                    f"{predictions} has category {entry['category_id']}, which {dataset_name!r} does not have."
                )
            labels[mask] = label
        if labels is not None:
            yield file_name, labels


def analyze_panoptic(dataset_name: str, predictions: str) -> SegmentAnalysis:
    """Analyze panoptic segmentation.

    Args:
        dataset_name: a registered data set, as for `COCOPanopticEvaluator`.
        predictions: `predictions.json`, which that evaluator writes, beside the folder with its PNG files.

    Returns:
        The analysis.

    Raises:
        ValueError: the file holds something else, or images that the data set does not have.

    Example:
        >>> segments = [{"id": 1, "isthing": False, "category_id": 0}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluator = COCOPanopticEvaluator("one_cat", folder)
        ...     output = {"panoptic_seg": (torch.ones(100, 100).long(), segments)}  # all of it floor
        ...     evaluator.process([{"image_id": 1, "file_name": "1.jpg"}], [output])
        ...     _ = evaluator.evaluate()
        ...     analyze_panoptic("one_cat", folder + "/predictions.json").per_image[0].values
        {'wrong': 0, 'missed': 1}
    """
    evaluator = COCOPanopticEvaluator(dataset_name)
    if not evaluator._do_evaluation:
        raise ValueError(f"The ground truth of {dataset_name!r} has no annotations.")
    categories = evaluator._dataset["categories"]
    by_image = {}
    for image_id, ids, segments in read_panoptic(predictions):
        unknown = [s["category_id"] for s in segments if s["category_id"] not in evaluator._row_of_category]
        if unknown:
            raise ValueError(f"{predictions} has category {unknown[0]}, which {dataset_name!r} does not have.")
        by_image[image_id] = evaluator._compare(image_id, ids, segments)
    if not by_image:
        raise ValueError(f"{predictions} has no predictions.")
    total = evaluator._total(by_image)
    missing, count = len(evaluator._truth) - len(by_image), len(evaluator._truth)
    notes = [f"{missing} of {count} images have no prediction; their segments count as missed."] if missing else []
    images = [
        SegmentScores(str(i), {"wrong": int(c[:, 2].sum()), "missed": int(c[:, 3].sum())}) for i, c in by_image.items()
    ]
    return SegmentAnalysis(
        task="panoptic_seg",
        metrics={key: value / 100 for key, value in evaluator._summary(total).items()},
        per_class=[
            SegmentScores(str(c.get("name", c["id"])), _quality_of_class(row, bool(c["isthing"])))
            for c, row in zip(categories, total, strict=True)
        ],
        per_image=sorted(images, key=lambda s: -s.values["wrong"] - s.values["missed"]),
        confusion=None,
        class_names=[],
        notes=[
            *notes,
            "Segments have no scores and are matched within their class, so there are no curves, thresholds, "
            "calibration and confusion.",
        ],
    )


def _quality_of_class(counts: np.ndarray, is_thing: bool) -> dict[str, float]:
    iou_sum, right, wrong, missed = counts.tolist()
    found = right + 0.5 * wrong + 0.5 * missed
    quality = (_ratio(iou_sum, found), _ratio(iou_sum, right), _ratio(right, found))
    counted = {"right": int(right), "wrong": int(wrong), "missed": int(missed)}
    return {"is thing": is_thing, **dict(zip(_QUALITIES, quality, strict=True)), **counted}


def read_panoptic(
    predictions: str, wanted: Collection[Any] | None = None
) -> Iterator[tuple[Any, np.ndarray, list[dict[str, Any]]]]:
    """Read panoptic segmentation in COCO's format, one image after the other.

    Args:
        predictions: the JSON file; the PNG files are in the folder of its name.
        wanted: image ids; None for all.

    Yields:
        Image id, a map of segment ids, int array (height, width), and the segments.

    Raises:
        ValueError: the file holds something else.
        FileNotFoundError: a PNG file is missing.
    """
    content = read_json(predictions)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f"{predictions} has no 'annotations', as COCOPanopticEvaluator writes them.")
    for annotation in content["annotations"]:
        if not {"segments_info", "file_name", "image_id"} <= annotation.keys():
            raise ValueError(f"{predictions} is not in the COCO panoptic format: an annotation has no 'segments_info'.")
        if wanted is None or annotation["image_id"] in wanted:
            path = os.path.join(os.path.splitext(predictions)[0], annotation["file_name"])
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{predictions} names {path}, which does not exist.")
            ids = rgb_to_id_map(load_image_into_numpy_array(path)).astype(np.int64)
            yield annotation["image_id"], ids, annotation["segments_info"]
