"""Panoptic quality on data sets in the COCO panoptic format."""

import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_write

from ._coco_diagnosis import explain_class_overlap
from ._panoptic_quality import id_map_to_rgb, match_segments, quality, rgb_to_id_map, unmatched_truth
from .evaluator import DatasetEvaluator
from .sem_seg_evaluation import load_image_into_numpy_array

__all__ = ["COCOPanopticEvaluator"]

_NEEDED = (
    "panoptic_json",
    "panoptic_root",
    "thing_dataset_id_to_contiguous_id",
    "stuff_dataset_id_to_contiguous_id",
)


class COCOPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality in percent, of all categories, things and stuff (https://arxiv.org/abs/1801.00868).

    All processes must call it, because it gathers their counts. Images without a prediction count as missed.

    Args:
        dataset_name: a data set with ``panoptic_json`` and ``panoptic_root`` in its metadata.
        output_dir: folder for the predictions in COCO's format: ``predictions.json`` and the PNG files in
            ``predictions``; None to write nothing.
    """

    mask_formats = ()

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._logger = logging.getLogger(__name__)
        self._metadata = MetadataCatalog.get(dataset_name)
        if missing := [key for key in _NEEDED if self._metadata.get(key) is None]:
            raise ValueError(f"COCOPanopticEvaluator needs {missing} in the metadata of {dataset_name!r}.")
        self._thing_contiguous_id_to_dataset_id = _inverse(self._metadata.thing_dataset_id_to_contiguous_id)
        self._stuff_contiguous_id_to_dataset_id = _inverse(self._metadata.stuff_dataset_id_to_contiguous_id)
        self._output_dir = output_dir
        self._dataset = _read_panoptic_json(self._metadata.panoptic_json)
        # test splits come without annotations: predictions are written, not scored
        self._do_evaluation = "annotations" in self._dataset
        self._truth = {annotation["image_id"]: annotation for annotation in self._dataset.pop("annotations", [])}
        self._row_of_category = {category["id"]: row for row, category in enumerate(self._dataset["categories"])}
        self.reset()

    def reset(self):
        """Forget the predictions."""
        self._predictions: list[dict[str, Any]] = []
        self._counts: dict[Any, np.ndarray] = {}

    def process(self, inputs: Any, outputs: Any):
        """Compare one batch with the ground truth.

        Args:
            inputs: a list of dictionaries with ``image_id`` and ``file_name``.
            outputs: a list of dictionaries with ``panoptic_seg``: a map of segment ids (height, width) of the original
                image and a list of segments, or None in its place when ids are ``label * label_divisor + number``.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            if "panoptic_seg" not in output:
                raise ValueError(
                    f"COCOPanopticEvaluator needs 'panoptic_seg' in the model's outputs; there is {sorted(output)}."
                )
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            if segments is None:
                ids, segments = self._segments_of_labels(ids)
            segments = [self._convert_category_id(segment) for segment in segments]
            if self._do_evaluation:
                self._counts[input_["image_id"]] = self._compare(input_["image_id"], ids, segments)
            if self._output_dir:
                self._predictions.append(_as_prediction(input_, ids, segments))

    def _segments_of_labels(self, labels: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Ids and segments of a map of ``label * label_divisor + number``, with -1 for void."""
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
        """A segment with the category id of the data set in place of the model's; without ``isthing`` it has it."""
        segment = dict(segment_info)
        is_thing, category = segment.pop("isthing", None), segment["category_id"]
        if is_thing is None:
            converted = category
        elif is_thing:
            converted = self._thing_contiguous_id_to_dataset_id.get(category)
        else:
            converted = self._stuff_contiguous_id_to_dataset_id.get(category)
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
            ``{"panoptic_seg": {...}}`` in percent on the main process, with ``PQ``, ``SQ``, ``RQ``, and the same with
            ``_th`` for things and ``_st`` for stuff; empty on others and when there is nothing to score.
        """
        comm.synchronize()
        gathered = comm.gather((self._counts, self._predictions), dst=0)
        if not comm.is_main_process():
            return {}
        if self._output_dir:
            self._write([prediction for _, predictions in gathered for prediction in predictions])
        if not self._do_evaluation:
            self._logger.info("The ground truth has no annotations, so the predictions are not scored.")
            return {}
        by_image = {image_id: counts for part, _ in gathered for image_id, counts in part.items()}
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
        reason = explain_class_overlap(
            predicted, annotated, "the maps `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`"
        )
        return f"None of {int(fp.sum())} predicted segments matches one of the ground truth" + (
            f"; {reason}." if reason else ", though classes agree: untrained or wrong weights, or maps of another size."
        )

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
        self._logger.info("Panoptic quality of each category:\n" + self._category_table(counts))
        return results

    def _category_table(self, counts: np.ndarray, columns: int = 3) -> str:
        """PQ of the categories that occur, a few in a line."""
        names = [category.get("name", category["id"]) for category in self._dataset["categories"]]
        rows = zip(names, counts, strict=True)
        cells = [cell for name, row in rows if row[1:].any() for cell in (name, 100 * quality(row[None])["PQ"])]
        lines = [cells[start : start + 2 * columns] for start in range(0, len(cells), 2 * columns)]
        return tabulate(lines, headers=["category", "PQ"] * columns, tablefmt="pipe", floatfmt=".3f", numalign="left")

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


def _inverse(mapping: Mapping[int, int]) -> dict[int, int]:
    return {contiguous: original for original, contiguous in mapping.items()}


def _read_panoptic_json(json_file: str) -> dict[str, Any]:
    with PathManager.open(json_file) as f:
        content = json.load(f)
    if "categories" not in content or any("isthing" not in category for category in content["categories"]):
        raise ValueError(f"{json_file} is not in the COCO panoptic format: `categories` with `isthing` are missing.")
    return content


def _as_prediction(input_: Mapping[str, Any], ids: np.ndarray, segments: list[dict[str, Any]]) -> dict[str, Any]:
    """An annotation in the COCO panoptic format, with its PNG file as ``png_string``.

    The format knows no id in the PNG without a segment and no segment without a pixel.
    """
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
