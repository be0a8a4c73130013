"""COCO results kept as columns: a row takes about fifty bytes and its run lengths, a dictionary about a kilobyte.

Letters: `N` results, `K` keypoints. Boxes are `(x, y, width, height)` in absolute pixels, or rotated boxes as
predicted; an image is `image_id`, whatever its type.
"""

import json
import pickle
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from detectron2.structures import Instances

_ROWS_AT_ONCE = 4096
_COLUMNS = ("image_index", "category_ids", "boxes", "scores", "size_hw", "counts", "keypoints")


@dataclass(eq=False, repr=False)
class ResultTable(Sequence[dict[str, Any]]):
    """Behaves like a list of result dictionaries, each of which is made when it is asked for.

    A change to such a dictionary does not change the table; `list(table)` gives dictionaries to keep. Pickles and
    copies are lists.

    Args:
        image_ids: the images that the results are on.
        image_index: int64 `(N,)`, indices into `image_ids`.
        category_ids: int64 `(N,)`.
        boxes: `(N, 4)`, or `(N, 5)` for rotated boxes.
        scores: `(N,)`.
        size_hw: int32 `(N, 2)`, height and width of the masks; None without masks.
        counts: `(N,)`, the compressed run lengths of each mask, as bytes; None without masks.
        keypoints: `(N, 3K)`; None without keypoints.
    """

    image_ids: list[Any]
    image_index: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    size_hw: np.ndarray | None = None
    counts: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by the names of the arguments, without those that are None."""
        return {name: column for name in _COLUMNS if (column := getattr(self, name)) is not None}

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, item: Any) -> Any:
        """One result, or a list of those that a slice selects."""
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            return self._rows(start, stop) if step == 1 else [self[i] for i in range(start, stop, step)]
        index = range(len(self))[item]
        return self._rows(index, index + 1)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._rows(start, start + _ROWS_AT_ONCE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as for a list

    def __add__(self, other: Any) -> list[dict[str, Any]]:
        return [*self, *other]

    def __radd__(self, other: Any) -> list[dict[str, Any]]:
        return [*other, *self]

    def __repr__(self) -> str:
        return f"ResultTable({len(self)} results on {len(self.image_ids)} images)"

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def rle_dicts(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """The masks as `{"size": [height, width], "counts": text}`."""
        if self.size_hw is None or self.counts is None:
            raise ValueError("These results have no masks.")
        rows = zip(self.size_hw[start:stop].tolist(), self.counts[start:stop], strict=True)
        return [{"size": size, "counts": counts.decode("ascii")} for size, counts in rows]

    def _rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        columns: dict[str, list] = {
            "image_id": [self.image_ids[k] for k in self.image_index[start:stop].tolist()],
            "category_id": self.category_ids[start:stop].tolist(),
            "bbox": self.boxes[start:stop].tolist(),
            "score": self.scores[start:stop].tolist(),
        }
        if self.size_hw is not None:
            columns["segmentation"] = self.rle_dicts(start, stop)
        if self.keypoints is not None:
            columns["keypoints"] = self.keypoints[start:stop].tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def run_length_columns(rles: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of run lengths, for the arguments of `ResultTable`."""
    counts = np.empty(len(rles), dtype=object)
    counts[:] = [_as_bytes(rle) for rle in rles]
    return {"size_hw": np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2), "counts": counts}


def _as_bytes(rle: dict[str, Any]) -> bytes:
    counts = rle["counts"]
    if isinstance(counts, (list, tuple)):  # not compressed
        import pycocotools.mask

        mask_util: Any = pycocotools.mask  # its type hints leave this form out
        counts = mask_util.frPyObjects(rle, *rle["size"])["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def values_of(results: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The `"image_id"`, `"category_id"` or `"score"` of each result in a table or in a list."""
    if not isinstance(results, ResultTable):
        return [result[key] for result in results]
    if key == "image_id":
        return [results.image_ids[k] for k in results.image_index.tolist()]
    return {"category_id": results.category_ids, "score": results.scores}[key].tolist()


def replace_category_ids(results: Sequence[dict[str, Any]], category_ids: list[int]) -> None:
    """Give each result in a table or in a list another category, in place."""
    if isinstance(results, ResultTable):
        results.category_ids = np.array(category_ids, dtype=None if isinstance(category_ids[0], str) else np.int64)
        return
    for result, category_id in zip(results, category_ids, strict=True):
        result["category_id"] = category_id


def join_results(predictions: Sequence[dict[str, Any]]) -> "ResultTable | list[dict[str, Any]]":
    """Join the results of all images; their categories may be replaced, the predictions stay as they are.

    Args:
        predictions: for each image a dictionary with its results in `"instances"`.

    Returns:
        A table where all results come in tables of the same columns, otherwise a list of dictionaries.
    """
    filled = [p["instances"] for p in predictions if len(p["instances"])]
    kinds = {isinstance(t, ResultTable) and tuple((k, c.shape[1:]) for k, c in t.columns().items()) for t in filled}
    if len(kinds) != 1 or False in kinds:
        return [dict(result) for results in filled for result in results]
    columns = {name: np.concatenate([getattr(table, name) for table in filled]) for name in filled[0].columns()}
    sizes = [len(table.image_ids) for table in filled]
    columns["image_index"] += np.repeat(np.cumsum(sizes) - sizes, [len(table) for table in filled])
    return ResultTable([image_id for table in filled for image_id in table.image_ids], **columns)


def pack_predictions(predictions: list[dict[str, Any]]) -> Any:
    """What to send of predictions to another process: a few arrays for tables and proposals, else the predictions."""
    if predictions and all(set(p) == {"image_id", "proposals"} for p in predictions):
        return _pack_proposals(predictions)
    if any(set(p) != {"image_id", "instances"} for p in predictions):
        return predictions
    joined = join_results(predictions)
    if not isinstance(joined, ResultTable):
        return predictions
    return [p["image_id"] for p in predictions], [len(p["instances"]) for p in predictions], joined.columns()


def unpack_predictions(packed: Any) -> list[dict[str, Any]]:
    """The predictions of `pack_predictions`; the tables of the images are parts of the arrays, not copies."""
    if isinstance(packed, list):
        return packed
    if isinstance(packed, dict):
        return _unpack_proposals(packed)
    image_ids, lengths, columns = packed
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    predictions = []
    for image_id, length, end in zip(image_ids, lengths, ends, strict=True):
        part = {name: column[end - length : end] for name, column in columns.items()}
        part["image_index"] = np.zeros(length, dtype=np.int64)
        predictions.append({"image_id": image_id, "instances": ResultTable([image_id], **part)})
    return predictions


def _pack_proposals(predictions: list[dict[str, Any]]) -> Any:
    """The proposals of all images as a few tensors, if they are the documented two fields, else the predictions."""
    proposals = [p["proposals"] for p in predictions]
    if any(set(x.get_fields()) != {"proposal_boxes", "objectness_logits"} for x in proposals):
        return predictions
    return {
        "image_ids": [p["image_id"] for p in predictions],
        "sizes_hw": [x.image_size for x in proposals],
        "lengths": [len(x) for x in proposals],
        "boxes": torch.cat([x.proposal_boxes.tensor for x in proposals]),
        "logits": torch.cat([x.objectness_logits for x in proposals]),
        "kind": type(proposals[0].proposal_boxes),
    }


def _unpack_proposals(packed: dict[str, Any]) -> list[dict[str, Any]]:
    boxes, logits = (packed[name].split(packed["lengths"]) for name in ("boxes", "logits"))
    rows = zip(packed["image_ids"], packed["sizes_hw"], boxes, logits, strict=True)
    return [
        {"image_id": i, "proposals": Instances(size, proposal_boxes=packed["kind"](b), objectness_logits=score)}
        for i, size, b, score in rows
    ]


def write_results(file: Any, coco_results: "ResultTable | list[dict[str, Any]]") -> None:
    """Write COCO's result file, a JSON list, to a file opened for text; only a part of its text is in memory."""
    file.write("[")
    for start in range(0, len(coco_results), _ROWS_AT_ONCE):
        file.write(", " if start else "")
        file.write(json.dumps(coco_results[start : start + _ROWS_AT_ONCE])[1:-1])
    file.write("]")


def write_predictions(file: Any, predictions: list[dict[str, Any]]) -> None:
    """Write a file for `torch.load`: the list of predictions, their results as lists of dictionaries.

    `torch.save` would need all dictionaries and their text, twice, at once. Here the elements of the list are pickled
    one after the other, each of which reuses the places of the memo; readers notice nothing.

    Args:
        file: opened for writing bytes; it can seek.
        predictions: of each image.
    """
    if any(set(p) != {"image_id", "instances"} for p in predictions):  # perhaps tensors, which have a form of their own
        torch.save([_as_plain(p) for p in predictions], file)
        return
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", sys.byteorder)
        with archive.open("archive/data.pkl", "w", force_zip64=True) as stream:
            stream.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
            for prediction in predictions:
                stream.write(pickle.dumps(_as_plain(prediction), protocol=2)[2:-1] + pickle.APPEND)
            stream.write(pickle.STOP)


def _as_plain(prediction: dict[str, Any]) -> dict[str, Any]:
    results = prediction.get("instances")
    return {**prediction, "instances": list(results)} if isinstance(results, ResultTable) else prediction
