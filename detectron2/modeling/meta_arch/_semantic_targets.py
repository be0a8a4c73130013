"""Label maps of a batch, checked and padded alike with its images.

`N` images, `K` classes, `H` and `W` height and width in pixels of the network's input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detectron2.structures import ImageList

__all__ = ["padded_label_maps"]


def padded_label_maps(
    batched_inputs: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    ignore_value: int,
    num_classes: int | None = None,
    size_divisibility: int = 0,
    padding_constraints: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """The "sem_seg" of every input as one tensor, padded with `ignore_value`.

    Args:
        batched_inputs: dictionaries with "sem_seg", integer `Tensor[H_i, W_i]`, of the size of "image".
        device: where the result goes.
        ignore_value: label of pixels that count nowhere.
        num_classes: K; labels outside of `0 ... K - 1` are refused. None to take any.
        size_divisibility: as for the images.
        padding_constraints: as for the images.

    Returns:
        int64 `Tensor[N, H, W]`.

    Raises:
        KeyError: an input has no "sem_seg".
        TypeError: a label map holds no integers.
        ValueError: a label map has another size than its image, or a label that is no class.
    """
    maps = []
    for i, item in enumerate(batched_inputs):
        if "sem_seg" not in item:
            raise KeyError(
                f"input {i} of the batch has no 'sem_seg', only {sorted(item)}: training needs label maps of "
                "(height, width), which DatasetMapper reads from `sem_seg_file_name`; for inference call model.eval()"
            )
        labels = item["sem_seg"]
        where = f"input {i} of the batch" + (f" ({item['file_name']})" if "file_name" in item else "")
        size_hw = tuple(item["image"].shape[-2:])
        if tuple(labels.shape) != size_hw:
            raise ValueError(
                f"the label map of {where} has shape {tuple(labels.shape)}, its image (height, width) {size_hw}"
            )
        if labels.is_floating_point():
            raise TypeError(f"the label map of {where} has type {labels.dtype}, expected integers")
        # Elsewhere than on the CPU the question would wait for the device.
        if num_classes is not None and labels.device.type == "cpu":
            _check_labels(labels, num_classes, ignore_value, where)
        maps.append(labels.to(device, non_blocking=device.type != "cpu").long())
    return ImageList.from_tensors(maps, size_divisibility, ignore_value, padding_constraints).tensor


def _check_labels(labels: torch.Tensor, num_classes: int, ignore_value: int, where: str) -> None:
    """Refuse labels that are no class, which on an accelerator would end in an assertion without words."""
    values = labels.numpy()
    # Negative labels are huge when read without sign: one comparison instead of two.
    unsigned = values.view(f"u{values.itemsize}")
    fine = np.count_nonzero(unsigned < num_classes)
    if not 0 <= ignore_value < num_classes:
        fine += np.count_nonzero(values == ignore_value)
    if fine == values.size:
        return
    wrong = values[(unsigned >= num_classes) & (values != ignore_value)]
    raise ValueError(
        f"the label map of {where} has the label {int(wrong[0])} ({wrong.size} pixels have a label that is no "
        f"class); expected 0 to {num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}), or "
        f"{ignore_value} for pixels without a label (MODEL.SEM_SEG_HEAD.IGNORE_VALUE)"
    )
