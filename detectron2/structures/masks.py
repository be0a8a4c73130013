"""Masks of the objects of one image: bitmaps, polygons, or small masks inside boxes.

Letters: `N` instances, `(H, W)` size of the image. Coordinates are in pixels, continuous: pixel `(i, j)` of row `i`
and column `j` covers `[j, j + 1] x [i, i + 1]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torchvision.ops import roi_align

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.roi_align import check_regions
from detectron2.layers.run_lengths import decode_part
from detectron2.layers.wrappers import any_along

from ._rows import cat_rows, indices_of, rows_of
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
# Pixels of the longest outline of a polygon that pycocotools can walk along.
_LONGEST_OUTLINE = 5e6


MasksType = TypeVar("MasksType", bound="_TensorOfMasks")


class _TensorOfMasks:
    """What `BitMasks` and `ROIMasks` share: a tensor with one mask for each instance."""

    tensor: torch.Tensor

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def to(self: MasksType, *args: Any, **kwargs: Any) -> MasksType:
        """Apply `Tensor.to` with these arguments, and return new masks."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are stored."""
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self: MasksType, item: Any) -> MasksType:
        """Select instances by an integer (the result holds one), a slice, or a vector of bools or integers.

        The result shares storage where PyTorch's indexing does.
        """
        return type(self)(self.tensor[rows_of(item, self.tensor.shape[0], "masks")])


class BitMasks(_TensorOfMasks):
    """One bitmap of the whole image for each instance.

    Args:
        tensor: `(N, H, W)`, anything that converts to bool.

    Attributes:
        tensor: bool `(N, H, W)`.
        image_size: `(H, W)`.

    Raises:
        ValueError: the shape is not `(N, H, W)`.

    Example:
        >>> from detectron2.structures import BitMasks
        >>> bitmaps = torch.zeros(2, 100, 120)
        >>> bitmaps[0, 20:40, 30:60] = 1
        >>> masks = BitMasks(bitmaps)
        >>> masks
        BitMasks(num_instances=2, image_size=(100, 120))
        >>> masks.nonempty()
        tensor([ True, False])
        >>> masks.get_bounding_boxes()
        Boxes(tensor([[30., 20., 60., 40.],
                [ 0.,  0.,  0.,  0.]]))
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        values = torch.as_tensor(tensor)
        if values.dim() != 3:
            raise ValueError(f"BitMasks expects masks of shape (N, H, W), got {tuple(values.shape)}.")
        super().__init__(values.to(torch.bool))
        self.image_size = tuple(self.tensor.shape[1:])

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={tuple(self.image_size)})"

    def nonempty(self) -> torch.Tensor:
        """Tell which masks have any pixel: bool `(N,)`."""
        return any_along(self.tensor, 2).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Draw polygons.

        Args:
            polygon_masks: the polygons of each instance.
            height: height of the image.
            width: width of the image.

        Returns:
            One bitmap for each instance.

        Example:
            >>> from detectron2.structures import BitMasks
            >>> polygons = [[np.array([10.0, 10, 30, 10, 30, 20])]]
            >>> BitMasks.from_polygon_masks(polygons, 100, 120).tensor.sum()
            tensor(100)
        """
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        out = np.zeros((len(polygons), height, width), dtype=bool)
        for bitmap, parts in zip(out, polygons, strict=True):
            if len(parts):
                drawn, (x, y) = decode_part(_encode(parts, height, width))
                bitmap[y : y + drawn.shape[0], x : x + drawn.shape[1]] = drawn
        return BitMasks(torch.from_numpy(out))

    @staticmethod
    def from_roi_masks(
        roi_masks: ROIMasks, height: int, width: int, boxes: Boxes | torch.Tensor | None = None
    ) -> BitMasks:
        """Paste small masks into their `boxes` (required) in the image; the same as `ROIMasks.to_bitmasks`."""
        if boxes is None:
            raise ValueError("BitMasks.from_roi_masks needs the region of each mask: pass boxes=....")
        return roi_masks.to_bitmasks(boxes, height, width)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut the region of each mask out of it and resample it, as a training target of Mask R-CNN.

        Args:
            boxes: `(N, 4)`, `(x1, y1, x2, y2)`, one for each mask.
            mask_size: cells along each side of the result.

        Returns:
            bool `(N, mask_size, mask_size)`.

        Raises:
            ValueError: there are not as many boxes as masks, the masks have no pixels, or a coordinate is not finite.

        Example:
            >>> from detectron2.structures import BitMasks
            >>> bitmaps = torch.zeros(1, 8, 8)
            >>> bitmaps[0, :4] = 1
            >>> BitMasks(bitmaps).crop_and_resize(torch.tensor([[0.0, 2, 8, 6]]), mask_size=2)
            tensor([[[ True,  True],
                     [False, False]]])
        """
        _expect_one_box_each(boxes, len(self))
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
        check_regions("crop_and_resize", bitmaps, rois)
        return roi_align(bitmaps, rois, (mask_size, mask_size), 1.0, 0, True)[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around each mask; zeros for a mask without pixels."""
        x1, x2 = _extent(any_along(self.tensor, 1))
        y1, y2 = _extent(any_along(self.tensor, 2))
        return Boxes(torch.stack([x1, y1, x2, y2], dim=1))

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks | PolygonMasks]) -> BitMasks:
        """Concatenate masks of one image, in order; polygons among them are drawn in the size of the bitmaps."""
        first = _expect_all(bitmasks_list, BitMasks, PolygonMasks)
        size_hw, device = first.image_size, first.device
        bitmaps = [
            m.tensor if isinstance(m, BitMasks) else BitMasks.from_polygon_masks(m, *size_hw).tensor.to(device)
            for m in bitmasks_list
        ]
        return BitMasks(cat_rows(bitmaps, "bitmaps of one image"))


class PolygonMasks:
    """One or more polygons for each instance.

    Args:
        polygons: for each instance a list of polygons, each a vector `(x0, y0, x1, y1, …)` of three corners or more.

    Attributes:
        polygons: the same, every polygon a float64 array.

    Raises:
        TypeError: `polygons` is something else, for example bitmaps or RLE.
        ValueError: a polygon has fewer than three corners, or an odd number of coordinates.

    Example:
        >>> from detectron2.structures import PolygonMasks
        >>> square, triangle = [10.0, 10, 30, 10, 30, 30, 10, 30], [50.0, 10, 60, 10, 60, 20]
        >>> masks = PolygonMasks([[square], [triangle]])
        >>> masks.area()
        tensor([400.,  50.])
        >>> masks.get_bounding_boxes()
        Boxes(tensor([[10., 10., 30., 30.],
                [50., 10., 60., 20.]]))
        >>> masks.crop_and_resize(torch.tensor([[10.0, 10, 50, 30], [50, 10, 60, 20]]), mask_size=28).shape
        torch.Size([2, 28, 28])
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray]]):
        self.polygons: list[list[np.ndarray]] = _as_polygons(polygons)

    @classmethod
    def _of_checked(cls, polygons: list[list[np.ndarray]]) -> PolygonMasks:
        masks = cls.__new__(cls)
        masks.polygons = polygons
        return masks

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Return itself: polygons stay in the memory of the CPU."""
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
        """Tell which instances have any polygon: bool `(N,)`."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: Any) -> PolygonMasks:
        """Select instances, as in `BitMasks`; the arrays are shared."""
        return PolygonMasks._of_checked([self.polygons[i] for i in indices_of(item, len(self.polygons), "masks")])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of each instance, as a list of float64 arrays."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Draw the part of each mask within its box into a small grid: bool `(N, mask_size, mask_size)`.

        The arguments are those of `BitMasks.crop_and_resize`; the result is on the device of the boxes.
        """
        import pycocotools.mask as mask_util

        _expect_one_box_each(boxes, len(self))
        out = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        drawn = [i for i, polygons in enumerate(self.polygons) if polygons]
        if drawn:  # decoded in one call
            xyxy = boxes.detach().cpu().numpy()
            parts = (_relative_to_box(self.polygons[i], xyxy[i], mask_size) for i in drawn)
            codes: Any = [_encode(polygons, mask_size, mask_size) for polygons in parts]
            out[drawn] = torch.from_numpy(mask_util.decode(codes)).permute(2, 0, 1).bool()
        return out if out.device == boxes.device else out.to(boxes.device)

    def area(self) -> torch.Tensor:
        """Sum of the areas of the polygons of each instance, `(N,)`, in square pixels.

        Overlaps count twice, and holes are not subtracted, as in the published system. In files in the COCO format,
        "area" is that of the union.
        """
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas, dtype=torch.float32)

    @staticmethod
    def cat(polymasks_list: Sequence[Any]) -> Any:
        """Concatenate masks of one image, at least one `PolygonMasks`, in order.

        With `BitMasks` among them the result is `BitMasks`, since bitmaps cannot become polygons again.
        """
        _expect_all(polymasks_list, PolygonMasks, BitMasks)
        if any(isinstance(masks, BitMasks) for masks in polymasks_list):
            return BitMasks.cat(polymasks_list)
        return PolygonMasks._of_checked([polygons for masks in polymasks_list for polygons in masks.polygons])


class ROIMasks(_TensorOfMasks):
    """One small mask for each instance, which covers a box that is stored elsewhere.

    Args:
        tensor: `(N, h, w)`, values in [0, 1].

    Attributes:
        tensor: the same.

    Raises:
        ValueError: the shape is not `(N, h, w)`.

    Example:
        >>> from detectron2.structures import Boxes, ROIMasks
        >>> masks = ROIMasks(torch.ones(1, 28, 28))
        >>> masks.to_bitmasks(Boxes([[10, 20, 50, 60]]), 100, 120).tensor.sum()
        tensor(1600)
    """

    def __init__(self, tensor: torch.Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROIMasks expects masks of shape (N, h, w), got {tuple(tensor.shape)}.")
        super().__init__(tensor)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)}, size={tuple(self.tensor.shape[1:])})"

    def to_bitmasks(self, boxes: Boxes | torch.Tensor, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste every mask into its box, `Boxes` or `(N, 4)` of `(x1, y1, x2, y2)`, of the image.

        Pixels of at least the threshold, in [0, 1], belong to the object.
        """
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))

    @staticmethod
    def cat(roi_masks_list: Sequence[ROIMasks]) -> ROIMasks:
        """Concatenate one or more `ROIMasks`, in order."""
        _expect_all(roi_masks_list, ROIMasks)
        return ROIMasks(cat_rows([m.tensor for m in roi_masks_list], "masks of regions"))


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area within a polygon by the shoelace formula, in square pixels.

    Args:
        x: x of the corners, `(n,)`.
        y: y of the corners, `(n,)`.

    Returns:
        The area.

    Example:
        >>> from detectron2.structures.masks import polygon_area
        >>> polygon_area(np.array([0.0, 4, 4, 0]), np.array([0.0, 0, 3, 3]))
        12.0
    """
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Find the pixels inside any of several polygons.

    Args:
        polygons: the polygons.
        height: height of the image.
        width: width of the image.

    Returns:
        bool `(height, width)`.

    Example:
        >>> from detectron2.structures import polygons_to_bitmask
        >>> polygons_to_bitmask([np.array([1.0, 1, 4, 1, 4, 3, 1, 3])], 4, 5).astype(int)
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    return BitMasks.from_polygon_masks([list(polygons)], height, width).tensor[0].numpy()


def _encode(polygons: Sequence[np.ndarray], height: int, width: int) -> Any:
    import pycocotools.mask as mask_util

    shapes: Any = [_drawable(polygon) for polygon in polygons]  # the stubs know one kind of argument of several
    return mask_util.merge(mask_util.frPyObjects(shapes, height, width))


def _drawable(polygon: Any) -> Any:
    # pycocotools walks along the outline, five steps a pixel, in memory that it counts with 32 bits: it takes minutes
    # for outlines far longer than any image's, and crashes the process with still longer ones and with NaN.
    corners = np.asarray(polygon, dtype=np.float64)
    reach = np.abs(corners).max(initial=0.0)
    if reach * corners.size < _LONGEST_OUTLINE:
        return polygon
    if not np.isfinite(reach):
        raise ValueError("A polygon has corners that are not finite numbers; correct it, or leave it out.")
    xy = corners.reshape(-1, 2)
    if np.abs(xy - np.roll(xy, 1, axis=0)).max(axis=1).sum() < _LONGEST_OUTLINE:
        return polygon
    limit = _LONGEST_OUTLINE / corners.size
    return corners.clip(-limit, limit)


def rasterize_polygons_within_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """Find the cells of a grid over a box that lie inside any of several polygons.

    Args:
        polygons: the polygons.
        box: `(x1, y1, x2, y2)`.
        mask_size: cells along each side of the grid.

    Returns:
        bool `(mask_size, mask_size)`.

    Example:
        >>> from detectron2.structures.masks import rasterize_polygons_within_box
        >>> left_half = np.array([10.0, 10, 20, 10, 20, 30, 10, 30])
        >>> rasterize_polygons_within_box([left_half], np.array([10.0, 10, 30, 30]), mask_size=4).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    return torch.from_numpy(polygons_to_bitmask(_relative_to_box(polygons, box, mask_size), mask_size, mask_size))


def _relative_to_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> list[np.ndarray]:
    x1, y1, x2, y2 = (float(v) for v in box)
    # A box thinner than a tenth of a pixel would blow the polygon up beyond all numbers.
    scale_xy = np.array([mask_size / max(x2 - x1, 0.1), mask_size / max(y2 - y1, 0.1)])
    shifted = (np.asarray(p, dtype=np.float64).reshape(-1, 2) - (x1, y1) for p in polygons)
    return [(corners * scale_xy).reshape(-1) for corners in shifted]


def _as_polygons(instances: Any) -> list[list[np.ndarray]]:
    """Check the polygons of instances, and turn each into a float64 vector."""
    _expect_list(instances, "PolygonMasks expects a list with the polygons of each instance")
    for i, polygons in enumerate(instances):
        _expect_list(polygons, f"Instance {i}: expected a list of polygons [[x0, y0, x1, y1, …], …]")
    return [[_polygon(i, polygon) for polygon in polygons] for i, polygons in enumerate(instances)]


def _expect_list(value: Any, expectation: str) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{expectation}, got {_describe(value)}. Masks that are bitmaps or RLE belong into BitMasks "
            "(INPUT.MASK_FORMAT 'bitmask')."
        )


def _polygon(index: int, polygon: Any) -> np.ndarray:
    if isinstance(polygon, torch.Tensor):
        polygon = polygon.detach().cpu().numpy()
    if isinstance(polygon, (str, bytes, dict)) or np.isscalar(polygon):
        raise TypeError(
            f"Instance {index}: expected a polygon [x0, y0, x1, y1, …], got {_describe(polygon)}. "
            "The polygons of one instance are a list of lists, also where there is only one."
        )
    values = np.asarray(polygon, dtype=np.float64)
    if values.ndim != 1 or values.size % 2 or values.size < 6:
        raise ValueError(
            f"Instance {index}: a polygon is a vector [x0, y0, x1, y1, …] with three corners or more, "
            f"got shape {values.shape}: {values.tolist()}."
        )
    return values


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"dict with keys {sorted(map(str, value))}"
    return f"{type(value).__name__} {value!r}"[:120]


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First occupied position of each row of `(N, L)`, and the one after the last; zeros where there is none."""
    length = occupied.shape[1]
    if length == 0:
        none = occupied.new_zeros(occupied.shape[0], dtype=torch.int64)
        return none, none
    flags = occupied.to(torch.uint8)
    first, behind = flags.argmax(dim=1), length - flags.flip(1).argmax(dim=1)
    return first, torch.where(occupied.any(dim=1), behind, 0)


def _expect_one_box_each(boxes: torch.Tensor, n: int) -> None:
    """Raise an error unless there is one box for each mask."""
    if len(boxes) != n:
        raise ValueError(f"crop_and_resize needs one box for each mask, got {len(boxes)} boxes and {n} masks.")


def _expect_all(masks: Sequence[Any], kind: type, *others: type) -> Any:
    """Return the first `kind` in a list; refuse a list that is empty, holds other things, or has no `kind`."""
    if len(masks) == 0:
        raise ValueError(f"{kind.__name__}.cat needs at least one {kind.__name__}.")
    for entry in masks:
        if not isinstance(entry, (kind, *others)):
            raise TypeError(
                f"{kind.__name__}.cat expects a list of {kind.__name__}, found {type(entry).__name__} in it."
            )
    first = next((entry for entry in masks if isinstance(entry, kind)), None)
    if first is None:
        raise TypeError(f"{kind.__name__}.cat found no {kind.__name__} at all, only {type(masks[0]).__name__}.")
    return first
