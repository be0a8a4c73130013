"""Bitmaps of matched ground truth without the copies.

`G` ground truth objects of an image, `R` regions matched to them, `M` side of a target in cells.
"""

from typing import Any

import torch

from detectron2.layers.roi_align import roi_align
from detectron2.structures import BitMasks

__all__ = ["MatchedBitMasks", "take_matched"]

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
        return roi_align(bitmaps, regions, (mask_size, mask_size), 1.0, 0, True)[:, 0] >= 0.5


def take_matched(value: Any, index: torch.Tensor) -> Any:
    """`value[index]` of a ground truth field, where `index` may repeat objects many times."""
    return MatchedBitMasks(value, index) if type(value) is BitMasks else value[index]
