"""Evaluate predictions that were written before, such as those of `detectron2 predict --shards`."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util

from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances, RotatedBoxes

from .evaluator import DatasetEvaluator, inference_on_dataset

__all__ = ["evaluate_rows", "outputs_of"]


def outputs_of(row: Mapping[str, Any], metadata: Any) -> dict[str, Any]:
    """Turn a row of results back into what the model returned for the image.

    Args:
        row: what `Result.to_dict` returns, with masks as run lengths.
        metadata: of the data set: its classes are found by their names.

    Returns:
        `instances`, with masks as `pred_masks_rle`, `panoptic_seg`, `sem_seg`, as far as they are in the row.

    Raises:
        ValueError: the image could not be read, or the data set does not have a class.

    Example:
        >>> from detectron2.data import Metadata
        >>> from detectron2.evaluation.recorded import outputs_of
        >>> thing = {"class_id": 0, "class": "cat", "score": 0.5, "box_xyxy": [0.0, 0.0, 4.0, 2.0]}
        >>> row = {"file": "a.jpg", "height": 4, "width": 6, "objects": [thing]}
        >>> outputs_of(row, Metadata(thing_classes=["dog", "cat"]))["instances"].pred_classes
        tensor([1])
    """
    if row.get("error"):
        raise ValueError(f"{row['file']} was not predicted on: {row['error']}")
    height, width = int(row["height"]), int(row["width"])
    things = list(metadata.get("thing_classes") or [])
    stuff = list(metadata.get("stuff_classes") or [])
    outputs: dict[str, Any] = {}
    if (objects := row.get("objects")) is not None:
        outputs["instances"] = _instances(objects, (height, width), things)
    if (segments := row.get("segments")) is not None:
        ids, infos = np.zeros((height, width), np.int32), []
        for entry in segments:
            ids[_mask(entry)] = entry["id"]
            label = _label(entry, things if entry["is_thing"] else stuff)
            info = {"id": entry["id"], "category_id": label, "isthing": entry["is_thing"], "area": entry["area"]}
            infos.append({**info, "score": entry["score"]} if entry.get("score") is not None else info)
        outputs["panoptic_seg"] = torch.from_numpy(ids), infos
    if (pixels := row.get("pixel_classes")) is not None:
        labels = [_label(entry, stuff) for entry in pixels]
        scores = torch.zeros(max([len(stuff), *(label + 1 for label in labels)]), height, width)
        for label, entry in zip(labels, pixels, strict=True):
            scores[label][torch.from_numpy(_mask(entry))] = 1
        outputs["sem_seg"] = scores
    return outputs


def evaluate_rows(
    rows: Iterable[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator],
) -> dict[str, Any]:
    """Evaluate rows of results on a data set, with the numbers of an evaluation in which the model runs.

    Args:
        rows: what `detectron2.inference.read_shards` gives, with all that the model gave (`--confidence 0`). Rows of
            images that the data set does not have are left out.
        records: the data set.
        metadata: of the data set.
        evaluator: one or several.

    Returns:
        What `inference_on_dataset` returns.

    Raises:
        ValueError: the rows lack an image of the data set, or have one twice; or see `outputs_of`.
    """
    known = _by_file(records)
    seen: Counter[int] = Counter()

    def batches() -> Iterator[list[tuple[Mapping[str, Any], Mapping[str, Any]]]]:
        for row in rows:
            path = os.path.abspath(row["file"])
            index = known.get(path, known.get(os.path.basename(path)))
            if index is not None:
                seen[index] += 1
                yield [{**records[index], "row": row}]  # pyright: ignore
        lacking = [str(r["file_name"]) for i, r in enumerate(records) if not seen[i]]
        twice = [str(records[i]["file_name"]) for i, count in seen.items() if count > 1]
        for what, names in (("lack", lacking), ("have twice", twice)):
            if names:
                raise ValueError(f"The predictions {what} {len(names)} of {len(records)} images, such as {names[0]}.")

    class Rows:
        def __len__(self) -> int:
            return len(records)

        def __iter__(self) -> Any:
            return batches()

    return inference_on_dataset(lambda batch: [outputs_of(x["row"], metadata) for x in batch], Rows(), evaluator)


def _by_file(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Numbers of the records by path, and by the name of the file where only one has it."""
    paths = [os.path.abspath(record["file_name"]) for record in records]
    counts = Counter(map(os.path.basename, paths))
    names = {os.path.basename(path): i for i, path in enumerate(paths) if counts[os.path.basename(path)] == 1}
    return names | {path: i for i, path in enumerate(paths)}


def _instances(objects: Sequence[Mapping[str, Any]], size_hw: tuple[int, int], names: Sequence[str]) -> Instances:
    found = Instances(size_hw)
    is_rotated = any(entry.get("box_rotated") is not None for entry in objects)
    boxes = [_numbers(entry["box_rotated" if is_rotated else "box_xyxy"]) for entry in objects]
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5 if is_rotated else 4)
    found.pred_boxes = RotatedBoxes(tensor) if is_rotated else Boxes(tensor)
    found.scores = torch.tensor(_numbers([entry["score"] for entry in objects]), dtype=torch.float32)
    found.pred_classes = torch.tensor([_label(entry, names) for entry in objects], dtype=torch.int64)
    if any(entry.get("mask") is not None for entry in objects):
        found.pred_masks_rle = [dict(entry["mask"]) for entry in objects]
    if any(entry.get("keypoints") is not None for entry in objects):
        points = [[_numbers(point) for point in entry["keypoints"]] for entry in objects]
        found.pred_keypoints = torch.tensor(points, dtype=torch.float32)
    return found


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _label(entry: Mapping[str, Any], names: Sequence[str]) -> int:
    """The class of an entry in a data set."""
    name = entry["class"]
    if name in names:
        return names.index(name)
    if not names or name == str(entry["class_id"]):
        return int(entry["class_id"])
    raise ValueError(f"The predictions have the class {name!r}; the data set has {', '.join(names)}.")


def _mask(entry: Mapping[str, Any]) -> np.ndarray:
    if entry.get("mask") is None:
        raise ValueError("The predictions have no masks, which this evaluation needs.")
    rle: Any = dict(entry["mask"])
    return mask_util.decode(rle).astype(bool)
