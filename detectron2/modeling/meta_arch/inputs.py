"""What the meta-architectures share on the way in: normalised batches and entries of the inputs.

`C` channels, `H` and `W` height and width in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.structures import ImageList, Instances

__all__ = ["normalized_batch", "required_entry"]


def normalized_batch(
    batched_inputs: Sequence[dict[str, Any]], pixel_mean: torch.Tensor, pixel_std: torch.Tensor, **padding: Any
) -> ImageList:
    """The images of a batch, on the device of `pixel_mean`, normalised and padded to one size.

    Args:
        batched_inputs: dictionaries with "image", `Tensor[C, H, W]`.
        pixel_mean: `Tensor[C, 1, 1]`, subtracted.
        pixel_std: `Tensor[C, 1, 1]`, divided by.
        **padding: further arguments of `ImageList.from_tensors`.

    Returns:
        The batch. Padding is zero, which is the mean colour.
    """
    channels, device = pixel_mean.shape[0], pixel_mean.device
    images = []
    for i, item in enumerate(batched_inputs):
        image = item["image"]
        if image.dim() != 3 or image.shape[0] != channels:
            raise ValueError(
                f"image {i} of the batch has shape {tuple(image.shape)}, expected ({channels}, height, width): the "
                f"model has {channels} values in MODEL.PIXEL_MEAN, and channels come first"
            )
        # Moved as it is: an image of bytes is a quarter of the same in float32. A copy towards the CPU has to be waited
        # for: the CPU would read what has not arrived.
        # In planes, because arithmetic with one number per channel is slow in channels-last memory.
        image = image.to(device, non_blocking=device.type != "cpu").contiguous() - pixel_mean
        images.append(image.div_(pixel_std))
    return ImageList.from_tensors(images, **padding)


def required_entry(
    batched_inputs: Sequence[dict[str, Any]], key: str, device: torch.device, why: str
) -> list[Instances]:
    """The entry `key` of every input, moved to `device`, or a ValueError that says `why` it is needed."""
    missing = [i for i, item in enumerate(batched_inputs) if key not in item]
    if missing:
        have = sorted(batched_inputs[missing[0]])
        raise ValueError(f"input {missing[0]} of the batch has no {key!r}, only {have}: {why}")
    return [item[key].to(device) for item in batched_inputs]
