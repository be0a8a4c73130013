"""Training images that the mapper leaves in their size, and that the device resizes (`TRAIN.RESIZE_ON_DEVICE`).

For machines whose processor is the bottleneck. Annotations are transformed by the mapper as always.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from detectron2.data import transforms as T
from detectron2.data.dataset_mapper import DatasetMapper

__all__ = ["ResizeLater", "resize_later", "resize_stored"]

logger = logging.getLogger(__name__)

_RESIZES = (T.Resize, T.ResizeShortestEdge)


class ResizeLater(T.AugmentationList):
    """Augmentations that end with a resize, and perhaps flips, which leave 8-bit images in the size that they have.

    Afterwards `image` of the `AugInput` has the right shape and no content, and `stored_image` has the pixels, flipped.
    Images of other types are resized at once.

    Args:
        augs: augmentations or transforms.

    Raises:
        ValueError: none of them is `Resize` or `ResizeShortestEdge`, this is not bilinear, or others than `RandomFlip`
            come after it.

    Example:
        >>> from detectron2.data import transforms as T
        >>> from detectron2.data.resize_later import ResizeLater
        >>> aug_input = T.AugInput(np.ones((4, 6, 3), np.uint8))
        >>> transforms = ResizeLater([T.Resize((8, 12)), T.RandomFlip()])(aug_input)
        >>> aug_input.image.shape, aug_input.stored_image.shape
        ((8, 12, 3), (4, 6, 3))
    """

    def __init__(self, augs: Sequence[T.Augmentation | T.Transform]):
        super().__init__(augs)
        places = [i for i, aug in enumerate(self.augs) if type(aug) in _RESIZES]
        if not places:
            raise ValueError("none of the augmentations is Resize or ResizeShortestEdge")
        self._place = places[-1]
        if self.augs[self._place].interp != Image.Resampling.BILINEAR:  # type: ignore[attr-defined]
            raise ValueError(f"{type(self.augs[self._place]).__name__} is not bilinear")
        others = [type(aug).__name__ for aug in self.augs[self._place + 1 :] if type(aug) is not T.RandomFlip]
        if others:
            raise ValueError(f"{', '.join(others)} after the resize may need its result")

    def __call__(self, aug_input: Any) -> T.TransformList:
        """Transform the data in place and return all transforms, also those that the image has still to undergo."""
        done = [aug(aug_input) for aug in self.augs[: self._place]]
        stored = aug_input.image
        if stored.dtype != np.uint8 or stored.ndim != 3:
            return T.TransformList([*done, *(aug(aug_input) for aug in self.augs[self._place :])])
        for aug in self.augs[self._place :]:
            transform = aug.get_transform(aug_input.image)
            if isinstance(transform, T.ResizeTransform):
                shape = (transform.new_h, transform.new_w, stored.shape[2])
                aug_input.image = np.broadcast_to(np.uint8(0), shape)
            elif isinstance(transform, T.HFlipTransform):
                stored = T.HFlipTransform(stored.shape[1]).apply_image(stored)
            elif isinstance(transform, T.VFlipTransform):
                stored = T.VFlipTransform(stored.shape[0]).apply_image(stored)
            if aug_input.boxes is not None:
                aug_input.boxes = transform.apply_box(aug_input.boxes)
            if aug_input.sem_seg is not None:
                aug_input.sem_seg = transform.apply_segmentation(aug_input.sem_seg)
            done.append(transform)
        aug_input.stored_image = stored
        return T.TransformList(done)


def resize_later(loader: Any) -> None:
    """Have the mapper of a training loader leave images in their size; warn where it cannot.

    Args:
        loader: of `build_detection_train_loader`, not yet iterated over. Its samples have "stored_image" `(C, H, W)`
            and "image_size_hw" in place of "image" from now on; `resize_stored` makes "image" of them.
    """
    mapper = getattr(loader, "mapper", None)
    try:
        if type(mapper).__call__ is not DatasetMapper.__call__:
            raise ValueError("the images do not come from a DatasetMapper, through a loader without collate_fn")
        mapper.augmentations = ResizeLater(mapper.augmentations.augs)  # type: ignore[union-attr]
    except ValueError as e:
        logger.warning("TRAIN.RESIZE_ON_DEVICE (train.resize_on_device) has no effect: %s.", e)


def resize_stored(batch: Any) -> Any:
    """Resize the images that a mapper left in their size, on the device on which they are.

    Args:
        batch: samples for a model, changed in place; those without "stored_image" stay.

    Returns:
        `batch`. Images are within one level of those that Pillow resizes.

    Example:
        >>> import torch
        >>> from detectron2.data.resize_later import resize_stored
        >>> batch = [{"stored_image": torch.zeros(3, 4, 6, dtype=torch.uint8), "image_size_hw": (8, 12)}]
        >>> resize_stored(batch)[0]["image"].shape
        torch.Size([3, 8, 12])
    """
    for sample in batch if isinstance(batch, list) else ():
        if isinstance(sample, dict) and "stored_image" in sample:
            stored, size_hw = sample.pop("stored_image"), sample.pop("image_size_hw")
            # Without the type's own kernel on GPUs; half a level less than 0 or more than 255 cannot come out.
            resized = F.interpolate(stored[None].float(), size_hw, mode="bilinear", antialias=True, align_corners=False)
            sample["image"] = resized[0].round_().to(torch.uint8)
    return batch
