"""What test-time augmentation asks a model for.

`C` channels, `K` classes of stuff, `H` and `W` height and width in pixels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch

from detectron2.structures import Instances

from .meta_arch import GeneralizedRCNN, PanopticFPN
from .postprocessing import sem_seg_postprocess


def inference_on_known_boxes(model: Any) -> Callable[..., list[Instances]]:
    """A detector's `inference(inputs, detected_instances, do_postprocess)`.

    That of a `PanopticFPN` knows no detected instances; the one of its base class, which does, leaves the semantic head
    alone.
    """
    if isinstance(model, PanopticFPN) and type(model).inference is PanopticFPN.inference:
        return partial(GeneralizedRCNN.inference, model)
    if isinstance(model, GeneralizedRCNN) and "detected_instances" in signature(model.inference).parameters:
        return model.inference
    raise TypeError(
        "GeneralizedRCNNWithTTA works on a GeneralizedRCNN whose inference() takes detected_instances, got "
        f"{type(model).__name__}; for semantic segmentation use SemanticSegmentorWithTTA"
    )


def semantic_scores(
    model: PanopticFPN, batched_inputs: list[dict[str, Any]], output_hw: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """The semantic scores alone, for each input `Tensor[K, H, W]` at the size of the output."""
    images = model.preprocess_image(batched_inputs)
    scores, _ = model.sem_seg_head(model.backbone(images.tensor), None)
    for of_image, size_hw in zip(scores, images.image_sizes, strict=True):
        yield sem_seg_postprocess(of_image, size_hw, *output_hw)
