"""Training targets of Panoptic-DeepLab from a panoptic map.

Letters: `H` and `W` height and width of the image in pixels, `S` annotated segments. Points are `(y, x)`; the centre of
the pixel in row i and column j has the coordinates (i, j).
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["PanopticDeepLabTargetGenerator"]


class PanopticDeepLabTargetGenerator:
    """Makes the targets of the three predictions: classes, centres and offsets (arXiv:1911.10194, section 3).

    Args:
        ignore_label: semantic label of pixels that have none.
        thing_ids: labels of things, as in the `category_id` of the segments.
        sigma: standard deviation in pixels of the Gaussian that marks a centre.
        ignore_stuff_in_offset: whether the offset loss leaves out stuff, whose offset is 0.
        small_instance_area: instances of fewer pixels are small.
        small_instance_weight: weight of their pixels in the semantic loss; all others weigh 1.
        ignore_crowd_in_semantic: whether the pixels of crowds have no semantic label.
    """

    def __init__(
        self,
        ignore_label: int,
        thing_ids: Collection[int],
        sigma: int = 8,
        ignore_stuff_in_offset: bool = False,
        small_instance_area: int = 0,
        small_instance_weight: int = 1,
        ignore_crowd_in_semantic: bool = False,
    ):
        self.ignore_label = ignore_label
        self.thing_ids = set(thing_ids)
        self.sigma = sigma
        self.ignore_stuff_in_offset = ignore_stuff_in_offset
        self.small_instance_area = small_instance_area
        self.small_instance_weight = small_instance_weight
        self.ignore_crowd_in_semantic = ignore_crowd_in_semantic
        self.g = _gaussian_patch(sigma)

    def __call__(self, panoptic: np.ndarray, segments_info: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the targets of one image.

        Args:
            panoptic: integer `(H, W)`, the id of the segment of every pixel. Ids that no segment has mean: no label.
            segments_info: for each segment a dictionary with "id", "category_id" and "iscrowd" (0 if it is missing).

        Returns:
            * "sem_seg": int64 `Tensor[H, W]`, the label of every pixel;
            * "center": float32 `Tensor[H, W]`, the heatmap of centres, from 0 to 1 at a centre;
            * "center_points": list of the centres `[y, x]` of all instances, in the order of the segments;
            * "offset": float32 `Tensor[2, H, W]`, from each pixel of a thing to its centre, (y, x) in pixels;
            * "sem_seg_weights" `Tensor[H, W]`, "center_weights" and "offset_weights" `Tensor[1, H, W]`, float32.

        Raises:
            ValueError: two segments have one id, or the map is not an `(H, W)` array.
        """
        if panoptic.ndim != 2:
            raise ValueError(f"the panoptic map must be of shape (height, width), got {panoptic.shape}")
        height, width = panoptic.shape
        table = _SegmentTable(segments_info, self.thing_ids)
        # From here on a segment is its row in the table; the last row is "no label".
        rows = table.rows_of(panoptic)
        areas, centers_yx = _areas_and_centers(rows, len(table) + 1)
        is_instance = table.is_thing & (areas[:-1] > 0)

        semantic = np.append(table.labels, self.ignore_label)
        if self.ignore_crowd_in_semantic:
            semantic[:-1][table.is_crowd] = self.ignore_label
        is_small = is_instance & (areas[:-1] < self.small_instance_area)
        semantic_weight = np.append(np.where(is_small, self.small_instance_weight, 1), 1)
        has_center = ~table.is_crowd
        has_offset = has_center & table.is_thing if self.ignore_stuff_in_offset else has_center

        points = centers_yx[:-1][is_instance].tolist()
        return {
            "sem_seg": _look_up(semantic, rows, np.int64),
            "center": torch.from_numpy(self._heatmap(points, (height, width))),
            "center_points": points,
            "offset": _offsets(rows, centers_yx, np.append(is_instance, False)),
            "sem_seg_weights": _look_up(semantic_weight, rows, np.float32),
            "center_weights": _look_up(np.append(has_center, False), rows, np.float32)[None],
            "offset_weights": _look_up(np.append(has_offset, False), rows, np.float32)[None],
        }

    def _heatmap(self, points: list[list[float]], size_hw: tuple[int, int]) -> np.ndarray:
        """Put a Gaussian on the pixel nearest to each centre; where several overlap, the highest value counts."""
        heatmap = np.zeros(size_hw, dtype=np.float32)
        reach = len(self.g) // 2
        for point in points:
            image_part, patch_part = [], []
            for coordinate, size in zip(point, size_hw, strict=True):
                start = round(coordinate) - reach
                image_part.append(slice(max(start, 0), min(start + len(self.g), size)))
                patch_part.append(slice(image_part[-1].start - start, image_part[-1].stop - start))
            region = heatmap[tuple(image_part)]
            np.maximum(region, self.g[tuple(patch_part)], out=region)
        return heatmap


class _SegmentTable:
    """The annotated segments of one image as arrays `[S]`."""

    def __init__(self, segments_info: Sequence[dict[str, Any]], thing_ids: set[int]):
        self.ids = np.array([segment["id"] for segment in segments_info], dtype=np.int64)
        self.labels = np.array([segment["category_id"] for segment in segments_info], dtype=np.int64)
        self.is_crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in segments_info], dtype=bool)
        self.is_thing = np.isin(self.labels, sorted(thing_ids))
        self._order = np.argsort(self.ids, kind="stable")
        twice = self.ids[self._order][1:][np.diff(self.ids[self._order]) == 0]
        if len(twice):
            raise ValueError(f"segments_info has several segments of the id {twice[0]}")

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The row of each id, `S` for an id that is not in the table; an int64 array like `ids`."""
        if len(self) == 0 or ids.size == 0:
            return np.full(ids.shape, len(self), dtype=np.int64)
        # Segments are long runs of pixels, so it is enough to look for the first of each run.
        flat = ids.ravel()
        starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
        wanted = flat[starts]
        ascending = self.ids[self._order]
        place = np.searchsorted(ascending, wanted).clip(max=len(self) - 1)
        rows = np.where(ascending[place] == wanted, self._order[place], len(self))
        return np.repeat(rows, np.diff(np.append(starts, flat.size))).reshape(ids.shape)


def _gaussian_patch(sigma: float) -> np.ndarray:
    """A square of side `6 sigma + 3` with a Gaussian of height 1 in its middle, float32."""
    distance = np.arange(-(3 * sigma + 1), 3 * sigma + 2)
    bell = np.exp(-(distance**2) / (2 * sigma**2))
    # Multiplied before it is rounded to single precision.
    return np.outer(bell, bell).astype(np.float32)


def _areas_and_centers(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[count]` and centre of mass `[count, 2]`, (y, x), of each row's segment; (0, 0) for those without any."""
    height, width = rows.shape
    # Pixels of a segment in each line, and in each column: sums over them are those over all its pixels.
    flat = rows.ravel()
    in_lines = np.bincount(flat + np.repeat(np.arange(height) * count, width), minlength=height * count)
    in_columns = np.bincount(flat + np.tile(np.arange(width) * count, height), minlength=width * count)
    in_lines, in_columns = in_lines.reshape(height, count), in_columns.reshape(width, count)
    areas = in_lines.sum(axis=0)
    sums = np.stack([np.arange(height) @ in_lines, np.arange(width) @ in_columns], axis=1)
    return areas, sums / np.maximum(areas, 1)[:, None]


def _look_up(table: np.ndarray, rows: np.ndarray, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(table.astype(dtype)[rows])


def _offsets(rows: np.ndarray, centers_yx: np.ndarray, is_instance: np.ndarray) -> torch.Tensor:
    """From every pixel of an instance to its centre, `Tensor[2, H, W]`, (y, x); 0 elsewhere."""
    height, width = rows.shape
    out = np.empty((2, height, width), dtype=np.float32)
    np.subtract(centers_yx[:, 0][rows], np.arange(height)[:, None], out=out[0], casting="same_kind")
    np.subtract(centers_yx[:, 1][rows], np.arange(width), out=out[1], casting="same_kind")
    out *= is_instance[rows]
    return torch.from_numpy(out)
