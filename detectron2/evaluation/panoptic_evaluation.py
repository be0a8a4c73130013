"""Panoptic quality on data sets in the COCO panoptic format."""

import io
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco_panoptic import image_number, read_segments
from detectron2.data.formats.reading import checked_objects, read_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_write

from ._coco_diagnosis import explain_class_overlap
from .coco_evaluation import class_table
from .evaluator import DatasetEvaluator, paired, warn_of_repeated
from .sem_seg_evaluation import load_image_into_numpy_array

__all__ = ["COCOPanopticEvaluator", "id_map_to_rgb", "match_segments", "quality", "rgb_to_id_map", "unmatched_truth"]

_NEEDED = ("panoptic_json", "panoptic_root", "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
# Columns of a table of counts. An IoU sum is over the matched pairs of segments.
COUNTS = ("iou_sum", "tp", "fp", "fn")
_IOU, _TP, _FP, _FN = range(4)
_MATCH_IOU = 0.5  # a pair of segments with a higher IoU matches; no segment can then be in two pairs
_MAX_ID = 256**3


class COCOPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality in percent: of all categories, of things and of stuff (https://arxiv.org/abs/1801.00868).

    All processes must call it, because it gathers their counts. Images without a prediction count as missed.

    Args:
        dataset_name: a data set with `panoptic_json` and `panoptic_root` in its metadata.
        output_dir: folder for the predictions in COCO's format: `predictions.json` and the PNG files in
            `predictions`; None to write nothing.

    Example:
        >>> evaluator = COCOPanopticEvaluator("one_cat")  # 400 pixels of a cat, 9600 of the floor
        >>> segments = [{"id": 1, "isthing": False, "category_id": 0}]  # all of it floor
        >>> evaluator.process([{"image_id": 1}], [{"panoptic_seg": (torch.ones(100, 100).long(), segments)}])
        >>> round(evaluator.evaluate()["panoptic_seg"]["PQ_st"])
        96
    """

    mask_formats = ()

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._logger = logging.getLogger(__name__)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._metadata.require(_NEEDED, "COCOPanopticEvaluator")
        things = self._metadata.thing_dataset_id_to_contiguous_id
        stuff = self._metadata.stuff_dataset_id_to_contiguous_id
        self._thing_contiguous_id_to_dataset_id = {contiguous: original for original, contiguous in things.items()}
        self._stuff_contiguous_id_to_dataset_id = {contiguous: original for original, contiguous in stuff.items()}
        self._output_dir = output_dir
        self._dataset = read_json(self._metadata.panoptic_json)
        if any("isthing" not in c for c in checked_objects(self._dataset, "categories", self._metadata.panoptic_json)):
            raise ValueError(
                f"{self._metadata.panoptic_json} is not in the COCO panoptic format: `categories` without `isthing`."
            )
        # test splits come without annotations: predictions are written, not scored
        self._do_evaluation = "annotations" in self._dataset
        self._check_segments()
        self._truth = {image_number(truth["image_id"]): truth for truth in self._dataset.pop("annotations", [])}
        self._row_of_category = {category["id"]: row for row, category in enumerate(self._dataset["categories"])}
        self.reset()

    def _check_segments(self) -> None:
        """Refuse a file that loading would not take, or whose segments have other categories than it lists."""
        file, known = self._metadata.panoptic_json, {c.get("id") for c in self._dataset["categories"]}
        for _ in read_segments(self._dataset, self._metadata.as_dict(), file) if self._do_evaluation else ():
            pass
        for annotation in self._dataset.get("annotations", ()):
            for segment in annotation["segments_info"]:
                if segment["category_id"] not in known:
                    raise ValueError(
                        f"{file}: segment {segment['id']} of image id {annotation['image_id']} has category_id "
                        f"{segment['category_id']!r}, which is not among the file's 'categories'. Add it to these."
                    )

    def reset(self):
        """Forget the predictions."""
        self._predictions: list[dict[str, Any]] = []
        self._counts: dict[Any, np.ndarray] = {}
        self._seen: list[Any] = []

    def process(self, inputs: Any, outputs: Any):
        """Compare one batch with the ground truth.

        Args:
            inputs: a list of dictionaries with `image_id` and `file_name`.
            outputs: a list of dictionaries with `panoptic_seg`: a map of segment ids (height, width) of the original
                image and a list of segments, or None in its place when ids are `label * label_divisor + number`.
        """
        for input_, output in paired(self, inputs, outputs, "image_id", "panoptic_seg"):
            self._seen.append(input_["image_id"])
            ids, segments = output["panoptic_seg"]
            ids = np.asarray(torch.as_tensor(ids).cpu())
            if segments is None:
                ids, segments = self._segments_of_labels(ids)
            segments = [self._convert_category_id(segment) for segment in segments]
            if self._do_evaluation:
                image_id = image_number(input_["image_id"])
                self._counts[image_id] = self._compare(image_id, ids, segments)
            if self._output_dir:
                self._predictions.append(_as_prediction(input_, ids, segments))

    def _segments_of_labels(self, labels: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Ids and segments of a map of `label * label_divisor + number`, with -1 for void."""
        divisor = self._metadata.get("label_divisor")
        if divisor is None:
            raise ValueError(
                "The model gives no segments_info with its panoptic_seg, which then needs `label_divisor` in the "
                f"metadata of {self._metadata.get('name')!r}."
            )
        things = set(self._metadata.thing_dataset_id_to_contiguous_id.values())
        segments = [
            {"id": label + 1, "category_id": label // divisor, "isthing": label // divisor in things}
            for label in np.unique(labels).tolist()
            if label != -1
        ]
        return labels + 1, segments  # 0 is void in the files

    def _convert_category_id(self, segment_info: Mapping[str, Any]) -> dict[str, Any]:
        """A segment with the category id of the data set; without `isthing` it has it already."""
        if lacking := [key for key in ("id", "category_id") if key not in segment_info]:
            raise ValueError(f"A predicted segment has no {' and no '.join(lacking)}; it has {sorted(segment_info)}.")
        segment = {**segment_info, "id": int(segment_info["id"])}  # a tensor is equal to no number in a dictionary
        is_thing, category = segment.pop("isthing", None), segment["category_id"]
        category = category.item() if isinstance(category, (torch.Tensor, np.generic)) else category
        converted = category
        if is_thing is not None:
            maps = self._stuff_contiguous_id_to_dataset_id, self._thing_contiguous_id_to_dataset_id
            converted = maps[bool(is_thing)].get(category)
        if converted not in self._row_of_category:
            kind = {None: "", True: "thing "}.get(is_thing, "stuff ")
            raise ValueError(
                f"A predicted segment has the {kind}category {category}, which {self._metadata.get('name')!r} (in its "
                f"metadata or {self._metadata.panoptic_json}) does not have."
            )
        return {**segment, "category_id": converted}

    def _compare(self, image_id: Any, ids: np.ndarray, segments: list[dict[str, Any]]) -> np.ndarray:
        if image_id not in self._truth:
            raise ValueError(
                f"Image id {image_id!r} is not in {self._metadata.panoptic_json}, which has ids such as "
                f"{list(self._truth)[:3]}."
            )
        truth = self._truth[image_id]
        path = os.path.join(self._metadata.panoptic_root, truth["file_name"])
        try:
            truth_ids = rgb_to_id_map(load_image_into_numpy_array(path))
        except FileNotFoundError as e:
            raise FileNotFoundError(
                f"The panoptic picture of image {image_id!r} is missing: {path}. {self._metadata.panoptic_json} lists "
                f"it; `panoptic_root` in the metadata of {self._metadata.get('name')!r} must be the folder of these."
            ) from e
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e
        if truth_ids.shape != ids.shape:
            raise ValueError(
                f"{path} has (height, width) {truth_ids.shape}, the prediction {ids.shape}. They are compared in the "
                "size of the original image, to which the model brings its result by `height` and `width` of its input."
            )
        return match_segments(truth_ids, truth["segments_info"], ids, segments, self._row_of_category)

    def evaluate(self):
        """Compute the metrics.

        Returns:
            `{"panoptic_seg": {...}}` in percent on the main process, with `PQ`, `SQ`, `RQ`, and the same with
            `_th` for things and `_st` for stuff; empty on others and when there is nothing to score.
        """
        comm.synchronize()
        gathered = comm.gather((self._counts, self._predictions, self._seen), dst=0)
        if not comm.is_main_process():
            return {}
        seen = (image_id for part in gathered for image_id in part[2])
        warn_of_repeated(self, seen, "image_id", "the last prediction counts")
        if self._output_dir:  # each image once, too
            last = {p["image_id"]: p for _, predictions, _ in gathered for p in predictions}
            self._write(list(last.values()))
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the predictions are not scored.")
            return {}
        by_image = {image_id: counts for part, *_ in gathered for image_id, counts in part.items()}
        if not by_image:
            self._logger.warning("COCOPanopticEvaluator received no predictions, so there is nothing to score.")
            return {}
        total = self._total(by_image)
        if (reason := self._explain(total)) is not None:
            self._logger.warning(reason)
        return OrderedDict(panoptic_seg=self._summary(total))

    def _total(self, by_image: dict[Any, np.ndarray]) -> np.ndarray:
        """Counts of all images; those without a prediction have nothing found."""
        missed = [annotation for image_id, annotation in self._truth.items() if image_id not in by_image]
        total = np.sum(list(by_image.values()), axis=0)
        if missed:
            self._logger.warning(
                f"{len(missed)} of {len(self._truth)} images of {self._metadata.panoptic_json} have no prediction, for "
                f"example {missed[0]['image_id']!r}; all their segments count as missed."
            )
            total += sum(unmatched_truth(a["segments_info"], self._row_of_category) for a in missed)
        return total

    def _explain(self, counts: np.ndarray) -> str | None:
        """What to say where nothing that was predicted counts."""
        _, tp, fp, fn = counts.T
        ids = np.array([category["id"] for category in self._dataset["categories"]])
        predicted, annotated = ids[fp > 0].tolist(), ids[fn > 0].tolist()
        if tp.any() or not annotated:
            return None
        if not predicted:
            return "No predicted segment counts: the predictions are void, or lie where the ground truth is void."
        maps = "the maps `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`"
        reason = explain_class_overlap(predicted, annotated, maps)
        reason = reason or "the classes agree: untrained or wrong weights, or maps of another size"
        return f"None of {int(fp.sum())} predicted segments matches one of the ground truth; {reason}."

    def _summary(self, counts: np.ndarray) -> dict[str, float]:
        is_thing = np.array([bool(category["isthing"]) for category in self._dataset["categories"]])
        groups = {"": ("all", counts), "_th": ("things", counts[is_thing]), "_st": ("stuff", counts[~is_thing])}
        results, rows = {}, []
        for suffix, (name, part) in groups.items():
            metrics = quality(part)
            percent = {f"{key}{suffix}": 100 * metrics[key] for key in ("PQ", "SQ", "RQ")}
            results |= percent
            rows.append([name, *percent.values(), metrics["categories"]])
        table = tabulate(rows, headers=["", "PQ", "SQ", "RQ", "#categories"], tablefmt="pipe", floatfmt=".3f")
        self._logger.info("Panoptic evaluation results:\n" + table)
        names = [str(category.get("name", category["id"])) for category in self._dataset["categories"]]
        per_class = {n: 100 * quality(row[None])["PQ"] for n, row in zip(names, counts, strict=True) if row[1:].any()}
        self._logger.info("Panoptic quality of each category:\n" + class_table(per_class, "PQ"))
        return results

    def _write(self, predictions: list[dict[str, Any]]) -> None:
        """Write predictions as COCO asks for: a JSON file, and a folder of its name with the PNG files."""
        folder = os.path.join(str(self._output_dir), "predictions")
        PathManager.mkdirs(folder)
        entries = []
        for prediction in predictions:
            with atomic_write(os.path.join(folder, prediction["file_name"])) as f:
                f.write(prediction["png_string"])
            entries.append({key: value for key, value in prediction.items() if key != "png_string"})
        path = folder + ".json"
        self._logger.info(f"Saving panoptic predictions to {path}")
        with atomic_write(path, "w") as f:
            f.write(json.dumps({**self._dataset, "annotations": entries}))


def _as_prediction(input_: Mapping[str, Any], ids: np.ndarray, segments: list[dict[str, Any]]) -> dict[str, Any]:
    """An annotation in the COCO format, every id with a segment and every segment with a pixel; and its PNG file."""
    present = set(np.unique(ids).tolist())
    segments = [segment for segment in segments if segment["id"] in present]
    if void := present - {0} - {segment["id"] for segment in segments}:
        ids = np.where(np.isin(ids, list(void)), 0, ids)
    stream = io.BytesIO()
    Image.fromarray(id_map_to_rgb(ids)).save(stream, format="PNG")
    return {
        "image_id": input_["image_id"],
        "file_name": os.path.splitext(os.path.basename(input_["file_name"]))[0] + ".png",
        "png_string": stream.getvalue(),
        "segments_info": segments,
    }


def rgb_to_id_map(colors: np.ndarray) -> np.ndarray:
    """Read the segment ids `R + 256 G + 256**2 B` off a picture.

    Args:
        colors: uint8 array (height, width, 3).

    Returns:
        Uint32 array (height, width).

    Example:
        >>> rgb_to_id_map(np.array([[[5, 1, 0]]], np.uint8)).tolist()
        [[261]]
    """
    if colors.ndim != 3 or colors.shape[2] < 3:
        raise ValueError(
            f"a panoptic PNG has three channels that encode segment ids; this one has shape {colors.shape}"
        )
    wide = colors.astype(np.uint32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def id_map_to_rgb(ids: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_id_map`.

    Args:
        ids: int array (height, width).

    Returns:
        Uint8 array (height, width, 3).

    Example:
        >>> id_map_to_rgb(np.array([[261]])).tolist()
        [[[5, 1, 0]]]
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < _MAX_ID:
        raise ValueError(
            f"segment ids from {ids.min()} to {ids.max()} do not fit a PNG, which takes 0 to {_MAX_ID - 1}"
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def _overlaps(truth_ids: np.ndarray, predicted_ids: np.ndarray) -> list[tuple[int, int, int]]:
    """The pairs of a true and a predicted id that share pixels, and how many; runs are sorted and not pixels."""
    pairs = (truth_ids.astype(np.int64) << 32 | predicted_ids.astype(np.int64) & 0xFFFFFFFF).ravel()
    if pairs.size == 0:
        return []
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    distinct, inverse = np.unique(pairs[starts], return_inverse=True)
    pixels = np.bincount(inverse, weights=lengths).astype(np.int64)
    truth, predicted = distinct >> 32, distinct & 0xFFFFFFFF
    return list(zip(truth.tolist(), predicted.tolist(), pixels.tolist(), strict=True))


def match_segments(
    truth_ids: np.ndarray,
    truth_segments: Sequence[Mapping[str, Any]],
    predicted_ids: np.ndarray,
    predicted_segments: Sequence[Mapping[str, Any]],
    row_of_category: Mapping[int, int],
) -> np.ndarray:
    """Count the matches of one image.

    A predicted segment that lies mostly in void or in a crowd of its category is not counted as wrong. Ids of the
    prediction without a segment are void, and so are segments without a pixel.

    Args:
        truth_ids: panoptic map of the ground truth.
        truth_segments: its segments.
        predicted_ids: panoptic map of the prediction.
        predicted_segments: its segments.
        row_of_category: row of the result for each category.

    Returns:
        array (K, 4), the columns as in `COUNTS`.

    Example:
        >>> ids = np.array([[1, 1], [2, 2]])
        >>> segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
        >>> match_segments(ids, segments, ids, segments[:1], {7: 0, 8: 1}).tolist()
        [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    truth = {segment["id"]: segment for segment in truth_segments}
    predicted = {segment["id"]: segment for segment in predicted_segments if segment["id"] != 0}
    overlaps = _overlaps(truth_ids, predicted_ids)
    truth_area, predicted_area, in_void = Counter(), Counter(), Counter()
    in_crowd = Counter()  # of the prediction's category
    for true_id, predicted_id, pixels in overlaps:
        truth_area[true_id] += pixels
        if predicted_id not in predicted:
            continue
        predicted_area[predicted_id] += pixels
        if true_id == 0:
            in_void[predicted_id] = pixels
        elif true_id in truth and truth[true_id].get("iscrowd", 0):
            same = truth[true_id]["category_id"] == predicted[predicted_id]["category_id"]
            in_crowd[predicted_id] += pixels * same

    counts = np.zeros((len(row_of_category), len(COUNTS)))
    matched_truth, matched_predicted = set(), set()
    for true_id, predicted_id, pixels in overlaps:
        if true_id not in truth or predicted_id not in predicted:
            continue
        segment = truth[true_id]
        if segment.get("iscrowd", 0) or segment["category_id"] != predicted[predicted_id]["category_id"]:
            continue
        union = truth_area[true_id] + predicted_area[predicted_id] - pixels - in_void[predicted_id]
        if pixels / union > _MATCH_IOU:
            row = row_of_category[segment["category_id"]]
            counts[row, _TP] += 1
            counts[row, _IOU] += pixels / union
            matched_truth.add(true_id)
            matched_predicted.add(predicted_id)
    counts += unmatched_truth([s for s in truth_segments if s["id"] not in matched_truth], row_of_category)
    for predicted_id, area in predicted_area.items():
        excused = in_void[predicted_id] + in_crowd[predicted_id]
        if predicted_id not in matched_predicted and excused / area <= _MATCH_IOU:
            counts[row_of_category[predicted[predicted_id]["category_id"]], _FP] += 1
    return counts


def unmatched_truth(segments: Sequence[Mapping[str, Any]], row_of_category: Mapping[int, int]) -> np.ndarray:
    """Counts (K, 4) for segments that nothing was predicted for; crowds may be missed.

    Args:
        segments: segments of the ground truth.
        row_of_category: row of the result for each category.

    Returns:
        Array (K, 4), the columns as in `COUNTS`.

    Example:
        >>> unmatched_truth([{"id": 1, "category_id": 7}], {7: 0}).tolist()
        [[0.0, 0.0, 0.0, 1.0]]
    """
    counts = np.zeros((len(row_of_category), len(COUNTS)))
    for segment in segments:
        if not segment.get("iscrowd", 0):
            counts[row_of_category[segment["category_id"]], _FN] += 1
    return counts


def quality(counts: np.ndarray) -> dict[str, float]:
    """Averages over the categories that occur, in the ground truth or in predictions.

    Args:
        counts: array (categories, 4).

    Returns:
        `PQ`, `SQ` (mean IoU of matches), `RQ` (F1 of finding segments), 0 to 1, NaN where no category occurs; and
        `categories`, how many do.

    Example:
        >>> quality(np.array([[1.6, 2, 0, 0], [0, 0, 0, 0]]))
        {'PQ': 0.8, 'SQ': 0.8, 'RQ': 1.0, 'categories': 1}
    """
    iou_sum, tp, fp, fn = counts.T
    occurs = tp + fp + fn > 0
    if not occurs.any():
        return {"PQ": np.nan, "SQ": np.nan, "RQ": np.nan, "categories": 0}
    iou_sum, tp, found = iou_sum[occurs], tp[occurs], (tp + 0.5 * fp + 0.5 * fn)[occurs]
    return {
        "PQ": float((iou_sum / found).mean()),
        "SQ": float(np.divide(iou_sum, tp, out=np.zeros_like(tp), where=tp > 0).mean()),
        "RQ": float((tp / found).mean()),
        "categories": int(occurs.sum()),
    }
