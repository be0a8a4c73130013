"""COCO results kept as columns: numbers in arrays, masks as the bytes of their run lengths.

A result as a dictionary takes about a kilobyte, as a row of these columns about fifty bytes and its run lengths.
Letters: `N` results, `K` keypoints. Boxes are `(x, y, width, height)` in absolute pixels, or rotated boxes as
predicted; an image is `image_id`, whatever its type.
"""

import json
import pickle
import sys
import zipfile
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from detectron2.structures import Instances

__all__ = [
    "ResultTable",
    "compact",
    "join_results",
    "pack_predictions",
    "run_length_columns",
    "unpack_predictions",
    "write_predictions",
    "write_results",
]

_ROWS_AT_ONCE = 4096


class ResultTable(Sequence[dict[str, Any]]):
    """Behaves like the list of the result dictionaries, each of which is made when it is asked for.

    To change a dictionary changes nothing here; `list(table)` gives dictionaries to keep. Pickles and copies are such
    lists.

    Args:
        image_ids: the images that the results are on.
        image_index: int64 `(N,)`, indices into `image_ids`.
        category_ids: int64 `(N,)`.
        boxes: `(N, 4)`, or `(N, 5)` for rotated boxes.
        scores: `(N,)`.
        size_hw: int32 `(N, 2)`, height and width of the masks; None without masks.
        counts: uint8, the compressed run lengths of all masks one after the other.
        counts_ends: int64 `(N,)`, where those of each mask end in `counts`; they begin where the one before ends.
        keypoints: `(N, 3K)`; None without keypoints.
    """

    def __init__(
        self,
        image_ids: Sequence[Any],
        image_index: np.ndarray,
        category_ids: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        size_hw: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        counts_ends: np.ndarray | None = None,
        keypoints: np.ndarray | None = None,
    ):
        self.image_ids = list(image_ids)
        self.image_index = image_index
        self.category_ids = category_ids
        self.boxes = boxes
        self.scores = scores
        self.size_hw = size_hw
        self.counts = counts
        self.counts_ends = counts_ends
        self.keypoints = keypoints
        self.part_of: ResultTable | None = None  # the table of which the arrays are parts

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, item: Any) -> Any:
        """One result, or a list of those that a slice selects."""
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step == 1:
                return self._rows(start, stop)
            return [self[i] for i in range(start, stop, step)]
        index = range(len(self))[item]
        return self._rows(index, index + 1)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._rows(start, min(start + _ROWS_AT_ONCE, len(self)))

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
        if self.size_hw is None or self.counts is None or self.counts_ends is None:
            raise ValueError("These results have no masks.")
        stop = len(self) if stop is None else stop
        if stop <= start:
            return []
        origin = int(self.counts_ends[start - 1]) if start else 0
        ends = (self.counts_ends[start:stop] - origin).tolist()
        text = self.counts[origin : origin + ends[-1]].tobytes().decode("ascii")
        begins = [0, *ends[:-1]]
        # rows of one table hold their own lists, so that a caller may change them
        return [
            {"size": size, "counts": text[begin:end]}
            for size, begin, end in zip(self.size_hw[start:stop].tolist(), begins, ends, strict=True)
        ]

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
        names = list(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def run_length_columns(rles: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of compressed run lengths, for the arguments of `ResultTable`."""
    counts = [_as_bytes(rle) for rle in rles]
    return {
        "size_hw": np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2),
        "counts": np.frombuffer(b"".join(counts), dtype=np.uint8),
        "counts_ends": np.cumsum([len(c) for c in counts], dtype=np.int64),
    }


def _as_bytes(rle: dict[str, Any]) -> bytes:
    counts = rle["counts"]
    if isinstance(counts, (list, tuple)):  # not compressed
        import pycocotools.mask

        mask_util: Any = pycocotools.mask  # its type hints leave this form out
        counts = mask_util.frPyObjects(rle, *rle["size"])["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def _columns_of(table: ResultTable) -> tuple[bool, bool, int, int]:
    """What tables must agree on to be joined: masks, keypoints and their number, numbers of a box."""
    keypoints = 0 if table.keypoints is None else table.keypoints.shape[1]
    return table.size_hw is not None, table.keypoints is not None, keypoints, table.boxes.shape[1]


def _concatenate(tables: Sequence[ResultTable]) -> ResultTable:
    """One table of the results of several, at least one, which have the same columns."""

    def joined(name: str, shifts: np.ndarray | None = None) -> Any:
        parts = [getattr(table, name) for table in tables]
        if shifts is not None:
            parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
        return np.concatenate(parts)

    def shifts(sizes: list[int]) -> np.ndarray:
        return np.cumsum([0, *sizes[:-1]])

    optional: dict[str, Any] = {}
    if tables[0].size_hw is not None:
        bytes_before = shifts([len(table.counts) for table in tables if table.counts is not None])
        optional = {
            "size_hw": joined("size_hw"),
            "counts": joined("counts"),
            "counts_ends": joined("counts_ends", bytes_before),
        }
    if tables[0].keypoints is not None:
        optional["keypoints"] = joined("keypoints")
    return ResultTable(
        list(chain.from_iterable(table.image_ids for table in tables)),
        joined("image_index", shifts([len(table.image_ids) for table in tables])),
        joined("category_ids"),
        joined("boxes"),
        joined("scores"),
        **optional,
    )


def join_results(predictions: Sequence[dict[str, Any]]) -> "ResultTable | list[dict[str, Any]]":
    """Join the results of all images; their categories may be replaced, the predictions stay as they are.

    Args:
        predictions: for each image a dictionary with its results in `"instances"`.

    Returns:
        A table where all results come in tables of the same columns, otherwise a list of dictionaries.
    """
    filled = [p["instances"] for p in predictions if len(p["instances"])]
    if not filled or any(not isinstance(table, ResultTable) for table in filled):
        return [dict(result) for results in filled for result in results]
    if len({*map(_columns_of, filled)}) > 1:
        return [dict(result) for results in filled for result in results]
    whole = filled[0].part_of
    if whole is not None and all(t.part_of is whole for t in filled) and sum(map(len, filled)) == len(whole):
        return ResultTable(**_columns(whole))  # compact() has joined them
    return _concatenate(filled)


def _columns(table: ResultTable) -> dict[str, Any]:
    return {name: value for name, value in vars(table).items() if name != "part_of"}


def pack_predictions(predictions: list[dict[str, Any]]) -> Any:
    """What to send of predictions to another process: a few arrays for tables and proposals, else the predictions."""
    if predictions and all(set(p) == {"image_id", "proposals"} for p in predictions):
        return _pack_proposals(predictions)
    tables = [p.get("instances") for p in predictions]
    if any(len(p) != 2 or not isinstance(t, ResultTable) for p, t in zip(predictions, tables, strict=True)):
        return predictions
    joined = join_results(predictions)
    if not isinstance(joined, ResultTable):
        return predictions
    return [p["image_id"] for p in predictions], [len(p["instances"]) for p in predictions], _columns(joined)


def unpack_predictions(packed: Any) -> list[dict[str, Any]]:
    """The predictions of `pack_predictions`; the tables of the images are parts of the arrays, not copies."""
    if isinstance(packed, list):
        return packed
    if isinstance(packed, dict):
        return _unpack_proposals(packed)
    image_ids, lengths, columns = packed
    whole = ResultTable(**columns)
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [
        {"image_id": image_id, "instances": _part(whole, image_id, end - length, end)}
        for image_id, length, end in zip(image_ids, lengths, ends, strict=True)
    ]


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


def compact(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same predictions, with the numbers of all images in common arrays where their tables allow it.

    `join_results` then copies nothing more. Give the argument up, or it keeps what was joined alive.
    """
    return unpack_predictions(pack_predictions(predictions))


def _part(whole: ResultTable, image_id: Any, start: int, stop: int) -> ResultTable:
    rows = slice(start, stop)
    optional: dict[str, Any] = {}
    if whole.size_hw is not None and whole.counts is not None and whole.counts_ends is not None:
        begin = int(whole.counts_ends[start - 1]) if start else 0
        end = int(whole.counts_ends[stop - 1]) if stop else 0
        optional = {
            "size_hw": whole.size_hw[rows],
            "counts": whole.counts[begin:end],
            "counts_ends": whole.counts_ends[rows] - begin,
        }
    if whole.keypoints is not None:
        optional["keypoints"] = whole.keypoints[rows]
    part = ResultTable(
        [image_id],
        np.zeros(stop - start, dtype=np.int64),
        whole.category_ids[rows],
        whole.boxes[rows],
        whole.scores[rows],
        **optional,
    )
    part.part_of = whole
    return part


def write_results(file: Any, coco_results: "ResultTable | list[dict[str, Any]]") -> None:
    """Write COCO's result file, a JSON list; the text of a part of it is in memory at a time.

    Args:
        file: opened for text.
        coco_results: what to write.
    """
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
