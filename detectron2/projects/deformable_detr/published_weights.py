"""Weights of the published Deformable DETR and DINO: names of their backbones, and classes by the ids of COCO.

The names of the transformers and heads are those of this package.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.checkpoint.c2_model_loading import resnet_name_from_torchvision

__all__ = ["convert_published_weights"]

_PREFIX = "backbone.0."
_CLASSIFIER = re.compile(r"(^|\.)class_embed\.(\d+)\.|\.enc_out_class_embed\.")


def convert_published_weights(
    weights: Mapping[str, Any], coco_ids: Sequence[int] = (), last_is_objectness: bool = False
) -> dict[str, Any]:
    """Rename weights, and keep the outputs of classes that the data have.

    Published models have an output for each of the numbers 0 to 90, of which 80 are ids of classes of COCO.

    Args:
        weights: a state dict; one that is not of a published model is returned as it is.
        coco_ids: the id of each class; empty to keep all outputs.
        last_is_objectness: whether the last classifier is the encoder's in two stages, in which output 0 means any
            object.

    Returns:
        The state dict.
    """
    if not any(key.startswith(_PREFIX) for key in weights):
        return dict(weights)
    last = max((int(found[2]) for key in weights if (found := _CLASSIFIER.search(key)) and found[2]), default=-1)
    converted = {}
    for key, value in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        found, rows = _CLASSIFIER.search(key), list(coco_ids)
        if found and coco_ids and len(value) == 91:
            if last_is_objectness and found[2] and int(found[2]) == last:
                rows[0] = 0
            value = value[rows]
        elif key == "label_enc.weight" and coco_ids and len(value) == 92:
            value = value[[*rows, 91]]
        converted[_own_name(key)] = value
    return converted


def _own_name(name: str) -> str:
    if name.startswith(f"{_PREFIX}body."):
        return f"backbone.{resnet_name_from_torchvision(name.removeprefix(f'{_PREFIX}body.'))}"
    return f"backbone.{name.removeprefix(_PREFIX)}" if name.startswith(_PREFIX) else name
