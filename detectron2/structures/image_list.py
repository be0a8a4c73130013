"""Images of different sizes as one tensor.

Letters: `N` images; sizes are `(height, width)` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["ImageList"]


class ImageList:
    """A batch of images, padded at the right and at the bottom to one size.

    Args:
        tensor: the padded images, `(N, H, W)` or `(N, C, ..., H, W)`.
        image_sizes: `(height, width)` of each image before padding.

    Example:
        >>> from detectron2.structures import ImageList
        >>> images = ImageList.from_tensors([torch.zeros(3, 480, 640), torch.zeros(3, 500, 333)], size_divisibility=32)
        >>> images.tensor.shape
        torch.Size([2, 3, 512, 640])
        >>> images.image_sizes
        [(480, 640), (500, 333)]
        >>> images[1].shape
        torch.Size([3, 500, 333])
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int | slice) -> torch.Tensor:
        """A view of image `idx` in its original size, `(C, ..., height, width)`.

        A slice gives several images, cut to the largest size among them.
        """
        sizes_hw = self.image_sizes[idx] if isinstance(idx, slice) else [self.image_sizes[idx]]
        height, width = max((h for h, _ in sizes_hw), default=0), max((w for _, w in sizes_hw), default=0)
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """Apply `Tensor.to` with these arguments, and return a new `ImageList`."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the images are stored."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
        pad_to: Sequence[Sequence[int]] = (),
    ) -> ImageList:
        """Pad images to one size and stack them.

        Args:
            tensors: images `(H_i, W_i)` or `(C, ..., H_i, W_i)`, alike but for the last two dimensions.
            size_divisibility: the common height and width are rounded up to a multiple of this; 0 and 1 do nothing.
            pad_value: what to pad with.
            padding_constraints: what a backbone asks for: `size_divisibility` takes the place of the argument, and
                `square_size`, when greater than 0, is the common height and width.
            pad_to: sizes `(height, width)`, rounded up as the common one; the smallest that is large enough takes the
                place of the common size, so that batches have few shapes. If none is, the common size stays.

        Returns:
            The batch.

        Raises:
            ValueError: there are no images, they differ in other dimensions, or one is larger than `square_size`.
            TypeError: `tensors` is not a list or tuple of tensors.

        Example:
            >>> from detectron2.structures import ImageList
            >>> image = torch.zeros(3, 480, 640)
            >>> ImageList.from_tensors([image], padding_constraints={"square_size": 1024}).tensor.shape
            torch.Size([1, 3, 1024, 1024])
        """
        _check_images(tensors)
        # Read from shape, not size(): exporters record shapes.
        image_sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = _common_size_hw(image_sizes, size_divisibility, padding_constraints)
        if pad_to:
            sizes_hw = [_common_size_hw([(h, w)], size_divisibility, padding_constraints) for h, w in pad_to]
            enough = [(h, w) for h, w in sizes_hw if h >= height and w >= width]
            height, width = min(enough, key=math.prod, default=(height, width))
        if len(tensors) == 1:
            image_h, image_w = image_sizes[0]
            batch = F.pad(tensors[0], [0, width - image_w, 0, height - image_h], value=pad_value)[None]
        else:
            shape = (len(tensors), *tensors[0].shape[:-2], height, width)
            batch = tensors[0].new_full(shape, pad_value)
            for i, image in enumerate(tensors):
                batch[i, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch.contiguous(), image_sizes)


def _check_images(tensors: Sequence[torch.Tensor]) -> None:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"ImageList.from_tensors expects a list of tensors, got {type(tensors).__name__}.")
    if len(tensors) == 0:
        raise ValueError("ImageList.from_tensors needs at least one image: without any the shape is not known.")
    for image in tensors:
        if not isinstance(image, torch.Tensor):
            raise TypeError(f"ImageList.from_tensors expects tensors, found {type(image).__name__}.")
        if image.dim() < 2 or image.shape[:-2] != tensors[0].shape[:-2]:
            raise ValueError(
                "ImageList.from_tensors expects images of shape (C, ..., H, W) that differ in H and W only, got "
                f"{tuple(tensors[0].shape)} and {tuple(image.shape)}."
            )


def _common_size_hw(
    sizes_hw: list[tuple[int, int]], divisibility: int, constraints: Mapping[str, int] | None
) -> tuple[int, int]:
    sides: Any = zip(*sizes_hw, strict=True)
    # Sizes that are tensors belong to a traced graph, which would not record which of them `max` finds the largest.
    largest: Any = (torch.stack(s).amax() if isinstance(s[0], torch.Tensor) else max(s) for s in sides)
    height, width = largest
    constraints = constraints or {}
    square = constraints.get("square_size", 0)
    if square > 0:
        if height > square or width > square:
            raise ValueError(
                f"An image of height {height} and width {width} does not fit the square of {square} pixels that the "
                "backbone asks for (square_size); resize images to at most that size, or build the backbone for more."
            )
        height = width = square
    divisibility = constraints.get("size_divisibility", divisibility)
    if divisibility > 1:
        height = (height + divisibility - 1) // divisibility * divisibility
        width = (width + divisibility - 1) // divisibility * divisibility
    return height, width
