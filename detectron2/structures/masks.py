"""Masks of the objects of one image: bitmaps, polygons, or small masks inside boxes.

Letters: `N` instances, `(H, W)` size of the image.  Coordinates are in pixels, continuous: pixel ``(i, j)`` of row `i`
and column `j` covers ``[j, j + 1] x [i, i + 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.roi_align import roi_align

from ._mask_helpers import as_indices, expect_all, expect_one_box_each, extent, select
from ._polygons import (
    as_polygons,
    polygon_area,
    polygons_to_bitmask,
    rasterize_all_within_boxes,
    rasterize_polygons_within_box,
)
from .boxes import Boxes

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "ROIMasks",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]

# Pixels of bitmaps that are turned into float32 at once, while they are resampled.
_PASS_PIXELS = 1 << 26


class BitMasks:
    """One bitmap of the whole image for each instance.

    Args:
        tensor: ``(N, H, W)``, anything that converts to bool.

    Attributes:
        tensor: bool ``(N, H, W)``.
        image_size: ``(H, W)``.

    Raises:
        ValueError: the shape is not ``(N, H, W)``.
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        values = torch.as_tensor(tensor)
        if values.dim() != 3:
            raise ValueError(f"BitMasks expects masks of shape (N, H, W), got {tuple(values.shape)}.")
        self.tensor = values.to(torch.bool)
        self.image_size = tuple(self.tensor.shape[1:])

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """The same masks after ``tensor.to(...)`` with these arguments.

        Args:
            *args: passed on.
            **kwargs: passed on.

        Returns:
            New masks.
        """
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are stored."""
        return self.tensor.device

    def __getitem__(self, item: Any) -> BitMasks:
        """Select instances.

        Args:
            item: an integer (the result holds one instance), a slice, a bool vector of length `N` or integers.

        Returns:
            The selected masks, sharing storage where PyTorch's indexing does.

        Raises:
            IndexError: ``item`` has more than one dimension.
        """
        return BitMasks(select(self.tensor, item))

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={tuple(self.image_size)})"

    def nonempty(self) -> torch.Tensor:
        """Which masks have any pixel: bool ``(N,)``."""
        return self.tensor.any(dim=2).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Draw polygons.

        Args:
            polygon_masks: the polygons of each instance.
            height: height of the image.
            width: width of the image.

        Returns:
            One bitmap for each instance.
        """
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        out = np.zeros((len(polygons), height, width), dtype=bool)
        for bitmap, parts in zip(out, polygons, strict=True):
            bitmap[:] = polygons_to_bitmask(parts, height, width)
        return BitMasks(torch.from_numpy(out))

    @staticmethod
    def from_roi_masks(
        roi_masks: ROIMasks, height: int, width: int, boxes: Boxes | torch.Tensor | None = None
    ) -> BitMasks:
        """Paste small masks into the image; the same as :meth:`ROIMasks.to_bitmasks`.

        Args:
            roi_masks: the small masks.
            height: height of the image.
            width: width of the image.
            boxes: the region of each mask.

        Returns:
            One bitmap for each mask.

        Raises:
            ValueError: there are no boxes: masks alone do not know where they belong.
        """
        if boxes is None:
            raise ValueError("BitMasks.from_roi_masks needs the region of each mask: pass boxes=....")
        return roi_masks.to_bitmasks(boxes, height, width)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut the region of each mask out of it and resample it, as a training target of Mask R-CNN.

        Args:
            boxes: ``(N, 4)``, ``(x1, y1, x2, y2)``, one for each mask.
            mask_size: cells along each side of the result.

        Returns:
            bool ``(N, mask_size, mask_size)``.

        Raises:
            ValueError: there are not as many boxes as masks.
        """
        expect_one_box_each(boxes, len(self))
        if len(self) == 0:
            return self.tensor.new_zeros(0, mask_size, mask_size)
        boxes = boxes.to(self.device, torch.float32)
        height, width = self.image_size
        step = max(1, _PASS_PIXELS // max(1, height * width))
        parts = [self._resample(boxes, i, min(i + step, len(self)), mask_size) for i in range(0, len(self), step)]
        return torch.cat(parts)

    def _resample(self, boxes: torch.Tensor, start: int, stop: int, mask_size: int) -> torch.Tensor:
        images = torch.arange(stop - start, dtype=torch.float32, device=self.device)[:, None]
        bitmaps = self.tensor[start:stop, None].to(torch.float32)
        rois = torch.cat([images, boxes[start:stop]], dim=1)
        return roi_align(bitmaps, rois, (mask_size, mask_size), 1.0, 0, True)[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around each mask; zeros for a mask without pixels."""
        x1, x2 = extent(self.tensor.any(dim=1))
        y1, y2 = extent(self.tensor.any(dim=2))
        return Boxes(torch.stack([x1, y1, x2, y2], dim=1))

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks | PolygonMasks]) -> BitMasks:
        """Concatenate masks of one image.

        Args:
            bitmasks_list: what to concatenate, at least one; polygons among them are drawn in the size of the bitmaps.

        Returns:
            All masks, in order.

        Raises:
            ValueError: the list is empty.
            TypeError: it holds something else than masks, or no bit masks at all.
        """
        first = expect_all(bitmasks_list, BitMasks, PolygonMasks)
        return BitMasks(torch.cat([_bitmaps_like(first, m) for m in bitmasks_list]))


class PolygonMasks:
    """One or more polygons for each instance.

    Args:
        polygons: for each instance a list of polygons, each a vector ``(x0, y0, x1, y1, …)`` of three corners or more.

    Attributes:
        polygons: the same, every polygon a float64 array.

    Raises:
        TypeError: ``polygons`` is something else, for example bitmaps or RLE.
        ValueError: a polygon has fewer than three corners, or a number without a partner.
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray]]):
        self.polygons: list[list[np.ndarray]] = as_polygons(polygons)

    @classmethod
    def _of_checked(cls, polygons: list[list[np.ndarray]]) -> PolygonMasks:
        masks = cls.__new__(cls)
        masks.polygons = polygons
        return masks

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Return itself: polygons stay in the memory of the CPU.

        Args:
            *args: ignored.
            **kwargs: ignored.

        Returns:
            The same object.
        """
        return self

    @property
    def device(self) -> torch.device:
        """The CPU, always."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around the polygons of each instance; zeros for an instance without any."""
        out = np.zeros((len(self.polygons), 4), dtype=np.float32)
        for row, polygons in zip(out, self.polygons, strict=True):
            if polygons:
                corners = np.concatenate(polygons).reshape(-1, 2)
                row[:2], row[2:] = corners.min(axis=0), corners.max(axis=0)
        return Boxes(torch.from_numpy(out))

    def nonempty(self) -> torch.Tensor:
        """Which instances have any polygon: bool ``(N,)``."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: Any) -> PolygonMasks:
        """Select instances.

        Args:
            item: an integer (the result holds one instance), a slice, a list of integers, or a vector of bools or
                integers.

        Returns:
            The selected masks, sharing the arrays.

        Raises:
            IndexError: an index is out of range, or is no number.
        """
        if isinstance(item, (int, np.integer)):
            return PolygonMasks._of_checked([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks._of_checked(self.polygons[item])
        return PolygonMasks._of_checked([self.polygons[i] for i in as_indices(item, len(self.polygons))])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of each instance, as a list of float64 arrays."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Draw the part of each mask within a box into a small grid, as a training target of Mask R-CNN.

        Args:
            boxes: ``(N, 4)``, ``(x1, y1, x2, y2)``, one for each mask.
            mask_size: cells along each side of the grid.

        Returns:
            bool ``(N, mask_size, mask_size)``, on the device of ``boxes``.

        Raises:
            ValueError: there are not as many boxes as masks.
        """
        expect_one_box_each(boxes, len(self))
        cells = rasterize_all_within_boxes(self.polygons, boxes.detach().cpu().numpy(), mask_size)
        return cells.to(boxes.device)

    def area(self) -> torch.Tensor:
        """Sum of the areas of the polygons of each instance, ``(N,)``, in square pixels.

        Overlaps count twice, and holes are not subtracted.
        """
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas, dtype=torch.float32)

    @staticmethod
    def cat(polymasks_list: Sequence[Any]) -> Any:
        """Concatenate masks of one image.

        Args:
            polymasks_list: what to concatenate, at least one ``PolygonMasks``; others may be ``BitMasks``.

        Returns:
            All masks, in order: ``PolygonMasks``, or ``BitMasks`` if there is any among them, since bitmaps cannot
            become polygons again.

        Raises:
            ValueError: the list is empty.
            TypeError: it holds something else than masks, or no polygon masks at all.
        """
        expect_all(polymasks_list, PolygonMasks, BitMasks)
        if any(isinstance(masks, BitMasks) for masks in polymasks_list):
            return BitMasks.cat(polymasks_list)
        return PolygonMasks._of_checked([polygons for masks in polymasks_list for polygons in masks.polygons])


def _bitmaps_like(example: BitMasks, masks: BitMasks | PolygonMasks) -> torch.Tensor:
    """Bitmaps bool ``(N, H, W)``; polygons are drawn in the image size and on the device of the example."""
    if isinstance(masks, BitMasks):
        return masks.tensor
    return BitMasks.from_polygon_masks(masks, *example.image_size).tensor.to(example.device)


class ROIMasks:
    """One small mask for each instance, which covers a box that is stored elsewhere.

    Args:
        tensor: ``(N, h, w)``, values in [0, 1].

    Attributes:
        tensor: the same.

    Raises:
        ValueError: the shape is not ``(N, h, w)``.
    """

    def __init__(self, tensor: torch.Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROIMasks expects masks of shape (N, h, w), got {tuple(tensor.shape)}.")
        self.tensor = tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ROIMasks:
        """The same masks on another device."""
        return ROIMasks(self.tensor.to(device, non_blocking=non_blocking))

    @property
    def device(self) -> torch.device:
        """Where the masks are stored."""
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: Any) -> ROIMasks:
        """Select instances.

        Args:
            item: an integer (the result holds one instance), a slice, a bool vector of length `N` or integers.

        Returns:
            The selected masks, sharing storage where PyTorch's indexing does.

        Raises:
            IndexError: ``item`` has more than one dimension.
        """
        return ROIMasks(select(self.tensor, item))

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)}, size={tuple(self.tensor.shape[1:])})"

    def to_bitmasks(self, boxes: Boxes | torch.Tensor, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste every mask into the image.

        Args:
            boxes: the region of each mask: ``Boxes`` or ``(N, 4)``, ``(x1, y1, x2, y2)``.
            height: height of the image.
            width: width of the image.
            threshold: value from which on a pixel belongs to the object, in [0, 1].

        Returns:
            One bitmap for each mask.
        """
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))

    @staticmethod
    def cat(roi_masks_list: Sequence[ROIMasks]) -> ROIMasks:
        """Concatenate masks.

        Args:
            roi_masks_list: what to concatenate, at least one.

        Returns:
            All masks, in order.

        Raises:
            ValueError: the list is empty.
            TypeError: it holds something else than ROI masks.
        """
        expect_all(roi_masks_list, ROIMasks)
        return ROIMasks(torch.cat([m.tensor for m in roi_masks_list]))
