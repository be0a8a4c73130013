"""An exported model in the place of the one that it was made of: for evaluation, and for programs that have both.

`N` images, `D` detections; boxes are `(x1, y1, x2, y2)` in continuous pixels.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.export.formats import Outputs, load_artifact
from detectron2.export.metadata import read_description
from detectron2.export.runtime.results import postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n

__all__ = ["ExportedModel", "batch_of", "shrunk"]

logger = logging.getLogger(__name__)


def batch_of(images: Sequence[torch.Tensor], size: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Put images of different sizes into one batch, each at the top left, with zeros around.

    Args:
        images: N times `Tensor[3, h, w]`.
        size: height and width of the batch; by default the largest of each.

    Returns:
        float32 `Tensor[N, 3, H, W]` and int64 `Tensor[N, 2]`, the height and width of each image.

    Raises:
        ValueError: an image is larger than `size`.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    height, width = sizes.amax(dim=0).tolist() if size is None else size
    too_large = [s for s in sizes.tolist() if s[0] > height or s[1] > width]
    if too_large:
        raise ValueError(
            f"The model was exported for images of {height} x {width} pixels (height x width), and one has "
            f"{too_large[0][0]} x {too_large[0][1]}: resize it to fit, or export with --dynamic batch,size."
        )
    batch = torch.zeros(len(images), images[0].shape[0], height, width)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def shrunk(image: torch.Tensor, size_hw: Sequence[int]) -> torch.Tensor:
    """Make an image `Tensor[C, h, w]` as small as the one size that a model takes, as `predict.py` does."""
    height, width = image.shape[-2:]
    scale = min(1.0, size_hw[0] / height, size_hw[1] / width)
    if scale == 1:
        return image
    target = (max(1, int(height * scale)), max(1, int(width * scale)))
    return F.interpolate(image[None], target, mode="bilinear", antialias=True, align_corners=False)[0]


class ExportedModel(nn.Module):
    """The artifact in a folder, with the inputs and outputs of the models of this library.

    What follows the network is done by the code of `predict.py`, which lies beside the artifact.

    Args:
        folder: what `detectron2 export` wrote.

    Attributes:
        description: the content of `model.json`.
        run: runs the artifact: from a tuple of tensors to tensors by name.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: the runtime of the format is not installed.

    Example::

        model = ExportedModel("output/exported")
        instances = model([{"image": torch.zeros(3, 480, 640), "height": 480, "width": 640}])[0]["instances"]
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        self.description = read_description(folder)
        self.run = load_artifact(folder, self.description)

    def outputs(self, images: Sequence[torch.Tensor], score_threshold: float | None = None) -> Outputs:
        """Run the artifact on N images `Tensor[3, h, w]`; a batch that it has no place for is taken one by one."""
        meta = self.description
        batch, sizes = batch_of(images, meta["size"] if "size" not in meta["dynamic"] else None)
        inputs: tuple[torch.Tensor, ...] = (batch, sizes)
        if "score_threshold" in meta["inputs"]:
            threshold = meta["score_threshold"] if score_threshold is None else score_threshold
            inputs = (*inputs, torch.tensor(float(threshold)))
        return self.run(inputs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict on a batch.

        Args:
            batched_inputs: for each image a dictionary with "image", `Tensor[3, h, w]`, resized as the model wants it,
                and optionally "height" and "width", the size of the results in pixels. Where the model was exported for
                one size, larger images are made to fit.

        Returns:
            For each image a dictionary as the model's own, with whole masks. "sem_seg" has the value 1 for the class of
            a pixel and 0 for the others.
        """
        groups = [batched_inputs] if "batch" in self.description["dynamic"] else [[item] for item in batched_inputs]
        return [result for group in groups for result in self._predict(group)]

    def _predict(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = [item["image"] for item in batched_inputs]
        if "size" not in self.description["dynamic"]:
            images = [self._fitted(image) for image in images]
        arrays = {name: value.numpy() for name, value in self.outputs(images).items()}
        results = []
        for i, item in enumerate(batched_inputs):
            given_h, given_w = item["image"].shape[-2:]
            size = (int(item.get("height", given_h)), int(item.get("width", given_w)))
            h, w = images[i].shape[-2:]
            found = postprocess(arrays, self.description, i, size, (h, w))
            results.append(_as_of_a_model(found, self.description, size))
        return results

    def _fitted(self, image: torch.Tensor) -> torch.Tensor:
        """Make an image fit into the one size that the model takes, and say so once."""
        size = self.description["size"]
        small = shrunk(image.float(), size)
        if small.shape != image.shape:
            text = "The model was exported for images of %d x %d pixels (height x width); larger ones are made to fit."
            log_first_n(logging.WARNING, text % tuple(size), name=__name__)
        return small


def _as_of_a_model(found: dict[str, Any], meta: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Turn the arrays of `postprocess` into what a model returns for an image."""
    result: dict[str, Any] = {}
    if "boxes" in found:
        names = {"scores": "scores", "classes": "pred_classes", "masks": "pred_masks", "keypoints": "pred_keypoints"}
        fields = {names[key]: torch.from_numpy(np.array(found[key])) for key in names if key in found}
        boxes = Boxes(torch.from_numpy(np.array(found["boxes"])))
        if meta["task"] == "proposals":
            proposals = Instances(size_hw, proposal_boxes=boxes, objectness_logits=fields["scores"])
            return {"proposals": proposals}
        result["instances"] = Instances(size_hw, pred_boxes=boxes, **fields)
    if "sem_seg" in found:
        labels = torch.from_numpy(np.array(found["sem_seg"])).long()
        count = max(len(meta["stuff_classes"] or ()), int(labels.max()) + 1)
        result["sem_seg"] = F.one_hot(labels, count).permute(2, 0, 1).float()
    if "panoptic" in found:
        segments = None if meta["task"] == "panoptic_deeplab" else found["segments"]
        result["panoptic_seg"] = (torch.from_numpy(np.array(found["panoptic"])), segments)
    return result
