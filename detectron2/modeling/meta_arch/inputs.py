"""What the meta-architectures share: normalised batches, entries of the inputs, and what parts of a model return.

`C` channels, `H` and `W` height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.layers import move_device_like
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList, Instances

__all__ = ["DetectorBase", "normalized_batch", "required_entry", "results_and_losses"]


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

    Raises:
        TypeError: the inputs are not a list of dictionaries, or an image is not a tensor.
        ValueError: an image is missing, is empty, or has another number of channels.
    """
    device = pixel_mean.device
    images = []
    for image in _images_of(batched_inputs, pixel_mean.shape[0]):
        # Moved as it is: bytes are a quarter of float32. The CPU has to wait for a copy, or it would read what has not
        # arrived. In planes, because arithmetic with one number per channel is slow in channels-last memory.
        image = image.to(device, non_blocking=device.type != "cpu").contiguous() - pixel_mean
        images.append(image.type_as(pixel_mean).div_(pixel_std))
    return ImageList.from_tensors(images, **padding)


def _images_of(batched_inputs: Any, channels: int) -> list[torch.Tensor]:
    """The images of a batch, `Tensor[C, H, W]`, or an error that says which one is wrong."""
    if not isinstance(batched_inputs, (list, tuple)):
        cure = {dict: ": give [inputs]", torch.Tensor: ": give [{'image': image} for image in batch]"}
        kind = type(batched_inputs)
        raise TypeError(f"expected a list of dictionaries with 'image', got {kind.__name__}{cure.get(kind, '')}")
    for i, item in enumerate(batched_inputs):
        if not isinstance(item, Mapping):
            raise TypeError(f"input {i} of the batch is a {type(item).__name__}, expected a dictionary with 'image'")
    images = [item["image"] for item in batched_inputs if "image" in item]
    if len(images) < len(batched_inputs):
        missing = next(i for i, item in enumerate(batched_inputs) if "image" not in item)
        raise ValueError(f"input {missing} of the batch has no 'image', only {sorted(batched_inputs[missing])}")
    for i, image in enumerate(images):
        if not isinstance(image, torch.Tensor):
            cure = ", as torch.as_tensor(array.transpose(2, 0, 1).copy())" if type(image).__name__ == "ndarray" else ""
            raise TypeError(f"image {i} of the batch is a {type(image).__name__}, expected a tensor (C, H, W){cure}")
        if image.dim() != 3 or image.shape[0] != channels:
            raise ValueError(
                f"image {i} of the batch has shape {tuple(image.shape)}, expected ({channels}, height, width): the "
                f"model has {channels} values in MODEL.PIXEL_MEAN, and channels come first"
            )
        if 0 in image.shape:
            raise ValueError(f"image {i} of the batch has shape {tuple(image.shape)}: it is empty; leave it out")
    return images


def required_entry(
    batched_inputs: Sequence[dict[str, Any]], key: str, device: torch.device, why: str
) -> list[Instances]:
    """The entry `key` of every input, moved to `device`, or a ValueError that says `why` it is needed."""
    missing = [i for i, item in enumerate(batched_inputs) if key not in item]
    if missing:
        have = sorted(batched_inputs[missing[0]])
        raise ValueError(f"input {missing[0]} of the batch has no {key!r}, only {have}: {why}")
    return [item[key].to(device) for item in batched_inputs]


def results_and_losses(part: nn.Module, returned: Any, num_images: int | None = None) -> tuple[Any, Any]:
    """What a proposal generator or ROI heads returned, or an error that names the part.

    Args:
        part: the module.
        returned: by its `forward`.
        num_images: how many results there must be; None where another part takes them as they are.

    Returns:
        The results, `Instances` for each image, and in training the losses by name.

    Raises:
        TypeError: it is not such a pair.
        ValueError: there are more or fewer results than images.
    """
    is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not is_pair or (part.training and not isinstance(returned[1], Mapping)):
        kinds = [type(x).__name__ for x in returned] if isinstance(returned, (tuple, list)) else type(returned).__name__
        raise TypeError(
            f"{type(part).__name__} must return two things: a list with Instances for each image, and a dict of losses "
            f"(empty in inference). It returned {kinds}. Is a return missing at the end of its forward?"
        )
    results = returned[0]
    if num_images is not None and (not hasattr(results, "__len__") or len(results) != num_images):
        count = len(results) if hasattr(results, "__len__") else type(results).__name__
        raise ValueError(f"{type(part).__name__} returned {count} results for {num_images} images, expected one each.")
    return results, returned[1]


class DetectorBase(nn.Module):
    """Base of models that normalise their input: `pixel_mean` and `pixel_std` are `Tensor[C, 1, 1]`."""

    backbone: Backbone
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    pad_to: Sequence[Sequence[int]] = ()
    """Sizes `(height, width)` that batches are padded to in training; see `ImageList.from_tensors`."""

    def _set_normalization(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        mean, std = (torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (pixel_mean, pixel_std))
        if mean.shape != std.shape:
            raise ValueError(
                f"pixel_mean (MODEL.PIXEL_MEAN) has {len(mean)} values, but pixel_std (MODEL.PIXEL_STD) {len(std)}; "
                "give both one per channel"
            )
        # Not persistent: they belong to the config, and older checkpoints disagree on whether to hold them.
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that the model's inputs are moved to."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x: torch.Tensor) -> torch.Tensor:
        return move_device_like(x, self.pixel_mean)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Move images `Tensor[C, H, W]` to the model's device, normalise them, and pad them as the backbone asks."""
        return normalized_batch(
            batched_inputs,
            self.pixel_mean,
            self.pixel_std,
            size_divisibility=self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
            **({"pad_to": self.pad_to} if self.training and self.pad_to else {}),
        )

    def _targets(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """Ground truth of every image, on the model's device."""
        why = "training needs ground truth; for inference call model.eval()"
        return required_entry(batched_inputs, "instances", self.device, why)
