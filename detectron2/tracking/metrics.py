"""How good tracks are: MOTA, MOTP and identity switches, IDF1, HOTA with DetA and AssA.

Letters: `G` identities in the truth, `P` predicted ones, `n` boxes in a frame, `A` thresholds of localization.
Boxes are `(x1, y1, x2, y2)` in pixels; the similarity of two is their IoU. Measures are shares, from 0 to 1 (MOTA can
be negative), and nan where nothing is to be measured.

- K. Bernardin, R. Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", EURASIP JIVP,
  2008: MOTA, MOTP.
- E. Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", ECCV workshops,
  2016: IDF1.
- J. Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking", IJCV, 2021.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from detectron2.structures import Instances

from .hungarian_tracker import LARGE_COST_VALUE, _least_cost_pairs, linear_sum_assignment

__all__ = ["HOTA_THRESHOLDS", "TrackingScores", "evaluate_tracks"]

HOTA_THRESHOLDS = np.arange(1, 20) / 20
"""0.05, 0.1 … 0.95: the least IoU of a match."""

_ROUNDING = 1e-12  # an IoU that is a threshold is enough


@dataclass(frozen=True)
class TrackingScores:
    """What `evaluate_tracks` found.

    Example:
        >>> from detectron2.tracking.metrics import evaluate_tracks
        >>> missed = evaluate_tracks([(["a"], [[0, 0, 9, 9]])] * 2, [(["a"], [[0, 0, 9, 9]]), ([], [])])
        >>> missed.misses, missed.true_count, missed.mota
        (1, 2, 0.5)
    """

    hota: float
    """Mean of the root of DetA times AssA over `HOTA_THRESHOLDS`: detection and association count alike."""
    deta: float
    """Mean of TP / (TP + FN + FP)."""
    assa: float
    """Mean over all matches of the share of matches in the two tracks of each, averaged over the thresholds."""
    loca: float
    """Mean IoU of the matches, 1 where there are none, averaged over the thresholds."""
    mota: float
    """1 - (misses + false positives + identity switches) / boxes of the truth."""
    motp: float
    """Mean IoU of the matches for MOTA."""
    idf1: float
    """F1 of detections of the right identity, when each predicted identity is one of the truth or none."""
    idp: float
    idr: float
    id_switches: int
    """How often an object of the truth is matched with another identity than the last time."""
    misses: int
    false_positives: int
    true_count: int
    """Boxes of the truth."""
    predicted_count: int
    hota_by_threshold: np.ndarray
    """`(A,)`"""


@dataclass
class _Frame:
    """Identities of a frame as rows of `0 .. G - 1` and `0 .. P - 1`, and the IoU of all pairs of boxes."""

    true: np.ndarray
    predicted: np.ndarray
    iou: np.ndarray


def evaluate_tracks(true: Iterable[Any], predicted: Iterable[Any], iou_threshold: float = 0.5) -> TrackingScores:
    """Compare predicted tracks with the true ones.

    Args:
        true: for each frame the pair `(identities, boxes)`, any hashable values and an array `(n, 4)`, or `Instances`
            with `ID` and `pred_boxes` or `gt_boxes`. Several videos can be evaluated as one: put their frames behind
            each other, with identities such as `(video, number)`. Evaluate each class by itself.
        predicted: the same for the predictions, frame by frame. Lost instances (`lost_frame_count` > 0) do not count.
        iou_threshold: the least IoU of a match for MOTA, MOTP, identity switches and IDF1.

    Returns:
        The scores. For HOTA the boxes of a frame are matched once for all thresholds, so that the sum of IoU times
        the similarity of the two tracks is greatest, as its authors' evaluation does. For MOTA a match is kept from
        the last frame with both objects as long as it is possible; then as many others as possible are matched, with
        the greatest sum of IoU.

    Raises:
        ValueError: the numbers of frames or of identities and boxes differ, an identity is twice in a frame, or the
            threshold is not above 0 and at most 1.

    Example:
        >>> from detectron2.tracking.metrics import evaluate_tracks
        >>> true = [(["a"], [[0, 0, 10, 10]])] * 4
        >>> scores = evaluate_tracks(true, [([number], [[0, 0, 10, 10]]) for number in (1, 1, 1, 2)])
        >>> scores.mota, scores.id_switches, scores.idf1, scores.deta, scores.assa
        (0.75, 1, 0.75, 1.0, 0.625)
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be above 0 and at most 1, got {iou_threshold}")
    frames, true_lengths, predicted_lengths = _read(list(true), list(predicted))
    matches, iou_sum, id_switches = _clear_mot(frames, iou_threshold, len(true_lengths))
    true_count, predicted_count = int(true_lengths.sum()), int(predicted_lengths.sum())
    identity_matches = _identity_matches(frames, iou_threshold, len(true_lengths), len(predicted_lengths))
    deta, assa, loca = _hota(frames, true_lengths, predicted_lengths)
    by_threshold = np.sqrt(deta * assa)
    misses, false_positives = true_count - matches, predicted_count - matches
    return TrackingScores(
        hota=float(by_threshold.mean()),
        deta=float(deta.mean()),
        assa=float(assa.mean()),
        loca=float(loca.mean()),
        mota=1 - _share(misses + false_positives + id_switches, true_count),
        motp=_share(iou_sum, matches),
        idf1=_share(2 * identity_matches, true_count + predicted_count),
        idp=_share(identity_matches, predicted_count),
        idr=_share(identity_matches, true_count),
        id_switches=id_switches,
        misses=misses,
        false_positives=false_positives,
        true_count=true_count,
        predicted_count=predicted_count,
        hota_by_threshold=by_threshold,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _read(true: list[Any], predicted: list[Any]) -> tuple[list[_Frame], np.ndarray, np.ndarray]:
    """Frames, and in how many of them each true and each predicted identity is."""
    if len(true) != len(predicted):
        raise ValueError(
            f"there are {len(true)} true frames and {len(predicted)} predicted ones; give one entry for each frame, "
            "an empty one too"
        )
    rows: tuple[dict[Hashable, int], dict[Hashable, int]] = ({}, {})
    frames = []
    for place, pair in enumerate(zip(true, predicted, strict=True)):
        found = []
        for known, entry in zip(rows, pair, strict=True):
            identities, boxes = _identities_and_boxes(entry)
            if len(identities) != len(boxes) or len(set(identities)) != len(identities):
                raise ValueError(
                    f"frame {place} has {len(identities)} identities, {len(set(identities))} different ones, and "
                    f"{len(boxes)} boxes; each box needs an identity of its own"
                )
            found.append((np.array([known.setdefault(i, len(known)) for i in identities], np.int64), boxes))
        (true_rows, true_boxes), (predicted_rows, predicted_boxes) = found
        iou = box_iou(true_boxes, predicted_boxes).nan_to_num(nan=0.0).numpy()  # boxes without area
        frames.append(_Frame(true_rows, predicted_rows, iou))
    counts = (
        np.bincount(np.concatenate([np.zeros(0, np.int64), *(getattr(f, side) for f in frames)]), minlength=len(known))
        for side, known in zip(("true", "predicted"), rows, strict=True)
    )
    true_lengths, predicted_lengths = counts
    return frames, true_lengths, predicted_lengths


def _identities_and_boxes(entry: Any) -> tuple[list[Hashable], torch.Tensor]:
    """Identities, and boxes in double precision, of a frame."""
    if isinstance(entry, Instances):
        boxes = entry.get("gt_boxes" if entry.has("gt_boxes") else "pred_boxes").tensor
        lost = entry.lost_frame_count if entry.has("lost_frame_count") else [0] * len(entry)
        rows = [row for row, count in enumerate(lost) if count == 0]
        entry = ([int(entry.ID[row]) for row in rows], boxes[rows].detach().cpu())
    identities, boxes = entry
    boxes = torch.as_tensor(np.asarray(boxes), dtype=torch.float64).reshape(-1, 4)
    return np.asarray(identities).tolist() if isinstance(identities, np.ndarray | torch.Tensor) else list(
        identities
    ), boxes


def _clear_mot(frames: Sequence[_Frame], threshold: float, count: int) -> tuple[int, float, int]:
    """Number of matches, their sum of IoU, and identity switches."""
    last = np.full(count, -1, np.int64)  # of each true identity the predicted one that it was matched with last
    owner: dict[int, int] = {}  # the other way round
    matches, iou_sum, switches = 0, 0.0, 0
    for frame in frames:
        possible = frame.iou >= threshold - _ROUNDING
        owners = np.array([owner.get(number, -1) for number in frame.predicted.tolist()], np.int64)
        kept = (last[frame.true, None] == frame.predicted) & (frame.true[:, None] == owners) & possible
        is_open = ~(kept.any(axis=1)[:, None] | kept.any(axis=0)[None])
        rows, columns = _least_cost_pairs(np.where(possible & is_open, -frame.iou, LARGE_COST_VALUE))
        kept_rows, kept_columns = kept.nonzero()
        rows, columns = np.concatenate([kept_rows, rows]), np.concatenate([kept_columns, columns])
        of, to = frame.true[rows], frame.predicted[columns]
        switches += int(((last[of] >= 0) & (last[of] != to)).sum())
        matches, iou_sum = matches + len(rows), iou_sum + float(frame.iou[rows, columns].sum())
        last[of] = to
        owner.update(zip(to.tolist(), of.tolist(), strict=True))
    return matches, iou_sum, switches


def _identity_matches(frames: Sequence[_Frame], threshold: float, true: int, predicted: int) -> int:
    """The most boxes that overlap one of their identity, over all assignments of identities to each other."""
    together = np.zeros((true, predicted), np.int64)
    for frame in frames:
        together[np.ix_(frame.true, frame.predicted)] += frame.iou >= threshold - _ROUNDING
    rows, columns = linear_sum_assignment(-together)
    return int(together[rows, columns].sum())


def _hota(
    frames: Sequence[_Frame], true_lengths: np.ndarray, predicted_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DetA, AssA and LocA at each threshold, `(A,)` each."""
    shape = (len(true_lengths), len(predicted_lengths))
    lengths = true_lengths[:, None] + predicted_lengths[None]
    together = np.zeros(shape)
    for frame in frames:
        # IoU of the pair as a share of all that the two boxes have with others.
        total = frame.iou.sum(axis=1, keepdims=True) + frame.iou.sum(axis=0, keepdims=True) - frame.iou
        together[np.ix_(frame.true, frame.predicted)] += np.divide(
            frame.iou, total, out=np.zeros_like(frame.iou), where=total > 0
        )
    similarity = together / np.maximum(lengths - together, 1e-300)

    matched = np.zeros((len(HOTA_THRESHOLDS), *shape))
    iou_sums = np.zeros(len(HOTA_THRESHOLDS))
    for frame in frames:
        rows, columns = linear_sum_assignment(-similarity[np.ix_(frame.true, frame.predicted)] * frame.iou)
        iou = frame.iou[rows, columns]
        passes = iou >= HOTA_THRESHOLDS[:, None] - _ROUNDING
        matched[:, frame.true[rows], frame.predicted[columns]] += passes
        iou_sums += (iou * passes).sum(axis=1)
    found = matched.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        deta = found / (true_lengths.sum() + predicted_lengths.sum() - found)
        association = np.where(matched > 0, matched * matched / np.maximum(lengths - matched, 1), 0).sum(axis=(1, 2))
        assa = np.where(found > 0, association / np.maximum(found, 1), deta)  # 0 without matches, nan without boxes
        loca = np.where(found > 0, iou_sums / found, 1 + 0 * deta)
    return deta, assa, loca
