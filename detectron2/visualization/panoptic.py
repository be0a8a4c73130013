"""A panoptic segmentation taken apart into the masks of its segments."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

__all__ = []


class _PanopticPrediction:
    """Segments of a panoptic map, the largest first; without `segments_info` categories are `id // label_divisor`."""

    def __init__(self, panoptic_seg: Any, segments_info: Sequence[dict] | None, metadata: Any = None):
        if isinstance(panoptic_seg, torch.Tensor):
            panoptic_seg = panoptic_seg.cpu().numpy()
        self._seg = np.asarray(panoptic_seg)
        ids, areas = np.unique(self._seg, return_counts=True)
        if segments_info is None:
            segments_info = _segments_by_divisor(ids.tolist(), metadata)
        self._sinfo: dict[int, dict] = {segment["id"]: segment for segment in segments_info}
        order = np.argsort(-areas, kind="stable")
        self._seg_ids: list[int] = ids[order].tolist()
        self._seg_areas: list[int] = areas[order].tolist()

    def non_empty_mask(self) -> np.ndarray:
        """Boolean array (height, width): the pixels that belong to a segment."""
        known = np.array([segment_id for segment_id in self._seg_ids if segment_id in self._sinfo])
        return np.isin(self._seg, known)

    def ids_except(self, ids: Sequence[int]) -> np.ndarray:
        """The map without some segments."""
        return np.where(np.isin(self._seg, np.array(ids)), 0, self._seg)

    def unknown(self) -> list[int]:
        """Ids in the map of which nothing is known; 0 is for pixels without a label."""
        return [segment_id for segment_id in self._seg_ids if segment_id > 0 and segment_id not in self._sinfo]

    def semantic_masks(self) -> Iterator[tuple[np.ndarray, dict]]:
        """The boolean mask and the description of each segment of stuff."""
        return self._masks(thing=False)

    def instance_masks(self) -> Iterator[tuple[np.ndarray, dict]]:
        """The boolean mask and the description of each thing."""
        return self._masks(thing=True)

    def _masks(self, thing: bool) -> Iterator[tuple[np.ndarray, dict]]:
        for segment_id in self._seg_ids:
            segment = self._sinfo.get(segment_id)
            if segment is not None and bool(segment.get("isthing", True)) == thing:
                yield self._seg == segment_id, segment


def _segments_by_divisor(ids: Sequence[int], metadata: Any) -> list[dict]:
    if metadata is None or (divisor := metadata.get("label_divisor")) is None:
        raise ValueError(
            "Without segments_info, the metadata must have `label_divisor`, so that category = id // label_divisor."
        )
    things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
    return [
        {"id": segment_id, "category_id": segment_id // divisor, "isthing": segment_id // divisor in things}
        for segment_id in ids
        if segment_id != -1
    ]
