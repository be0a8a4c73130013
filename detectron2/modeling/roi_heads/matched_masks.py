"""Masks of matched ground truth without copies that take long: of bitmaps, or of boxes that the host knows.

`G` ground truth objects of an image, `R` regions matched to them, `M` side of a target in cells.
"""

from typing import Any

import torch
from torchvision.ops import roi_align

from detectron2.layers.roi_align import check_regions
from detectron2.modeling.fixed_shapes import to_device
from detectron2.structures import BitMasks, PolygonMasks

__all__ = ["MatchedBitMasks", "MatchedPolygonMasks", "take_matched"]

# Pixels of ground truth that are turned into float32 at once.
_PASS_PIXELS = 1 << 26


class MatchedBitMasks(BitMasks):
    """`masks[index]`, gathered only if somebody asks for the tensor.

    Sampling gives each of 512 regions the bitmap of its object: at 800 x 1333 pixels that is half a gigabyte for an
    image with ten objects, of which the mask head then reads only small cut-outs of the foreground. Those are cut
    from the objects' own bitmaps here.

    Args:
        masks: one bitmap for each object, `bool[G, H, W]`.
        index: `Tensor[R]` int64, for each region its object.
    """

    def __init__(self, masks: BitMasks, index: torch.Tensor):
        self._masks = masks
        self._index = index
        self.image_size = masks.image_size

    @property
    def tensor(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The bitmaps one by one, `bool[R, H, W]`: a copy."""
        return self._masks.tensor[self._index]

    @property
    def device(self) -> torch.device:
        """Where the masks are stored."""
        return self._masks.device

    def __len__(self) -> int:
        return self._index.shape[0]

    def __getitem__(self, item: Any) -> BitMasks:
        """Select regions: an integer, a slice, a bool vector of length `R`, or integers."""
        index = self._index[item]
        if index.dim() > 1:
            raise IndexError(f"masks are indexed along one dimension; {item!r} selects shape {tuple(index.shape)}")
        return MatchedBitMasks(self._masks, index.reshape(-1))

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """The same masks on another device; arguments as of `torch.Tensor.to`."""
        masks = self._masks.to(*args, **kwargs)
        return MatchedBitMasks(masks, self._index.to(masks.device))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut the region `Tensor[R, 4]` of each mask out of it, `bool[R, M, M]`; see `BitMasks.crop_and_resize`."""
        height, width = self.image_size
        few = min(len(self), max(1, _PASS_PIXELS // max(1, height * width)))
        if len(boxes) != len(self) or len(self._masks) > few:
            return BitMasks(self.tensor).crop_and_resize(boxes, mask_size)
        regions = torch.cat([self._index[:, None].float(), boxes.to(self.device, torch.float32)], dim=1)
        bitmaps = self._masks.tensor[:, None].to(torch.float32)
        check_regions("crop_and_resize", bitmaps, regions)
        return roi_align(bitmaps, regions, (mask_size, mask_size), 1.0, 0, True)[:, 0] >= 0.5


class MatchedPolygonMasks(PolygonMasks):
    """Polygons of regions, with the boxes of these regions on the GPU and on the host.

    Polygons are drawn on the host, which would have to wait for the boxes.

    Args:
        polygons: for each region the polygons of its object.
        boxes: the boxes of the regions on the GPU, `Tensor[R, 4]`.
        boxes_on_host: the same boxes.
    """

    def __init__(self, polygons: list[Any], boxes: torch.Tensor, boxes_on_host: torch.Tensor):
        self.polygons = polygons  # checked when they were put into PolygonMasks
        self._boxes, self._version, self._boxes_on_host = boxes, _version_of(boxes), boxes_on_host

    def __getitem__(self, item: Any) -> PolygonMasks:
        """Select regions; a slice from the first one on keeps the boxes."""
        if isinstance(item, slice) and item.start is None and item.step is None:
            return MatchedPolygonMasks(self.polygons[item], self._boxes[item], self._boxes_on_host[item])
        return super().__getitem__(item)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """See `PolygonMasks.crop_and_resize`; for the known boxes nothing is waited for."""
        known = self._boxes
        is_same = boxes.data_ptr() == known.data_ptr() and (boxes.shape, boxes.stride()) == (
            known.shape,
            known.stride(),
        )
        if not is_same or _version_of(boxes) != self._version:
            return super().crop_and_resize(boxes, mask_size)
        return to_device(super().crop_and_resize(self._boxes_on_host, mask_size), boxes.device)


def _version_of(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def take_matched(value: Any, index: torch.Tensor, boxes: tuple[torch.Tensor, torch.Tensor] | None = None) -> Any:
    """`value[index]` of a ground truth field, where `index` may repeat objects many times.

    `boxes` are those of the regions, where they are and on the host, if the host knows them.
    """
    if type(value) is BitMasks:
        return MatchedBitMasks(value, index)
    if type(value) is PolygonMasks and boxes is not None:
        return MatchedPolygonMasks(value[index].polygons, *boxes)
    return value[index]
