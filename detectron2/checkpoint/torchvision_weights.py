"""Weights of torchvision: addresses `torchvision://NAME`, and detectors in our names and order of classes.

`NAME` is a model of `torchvision.models.list_models()`; `NAME/WEIGHTS` takes others than its default weights. Detectors
convert where the architectures are the same: Faster, Mask and Keypoint R-CNN and RetinaNet, first version, on a ResNet
with a feature pyramid. The configs `Modern/*_torchvision_*` build models that compute what torchvision's compute.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint.c2_model_loading import resnet_name_from_torchvision
from detectron2.utils.file_io import Detectron2Handler, PathManager

__all__ = ["TorchvisionHandler", "convert_torchvision_detector", "torchvision_differences", "torchvision_url"]

CONFIGS = {
    "fasterrcnn_resnet50_fpn": "Modern/faster_rcnn_torchvision_R_50_FPN.yaml",
    "maskrcnn_resnet50_fpn": "Modern/mask_rcnn_torchvision_R_50_FPN.yaml",
    "keypointrcnn_resnet50_fpn": "Modern/keypoint_rcnn_torchvision_R_50_FPN.yaml",
    "retinanet_resnet50_fpn": "Modern/retinanet_torchvision_R_50_FPN.py",
}
"""The detectors of torchvision that convert, and the configs of the same architecture."""

_PREFIX = "torchvision://"
# The ids of COCO end with 90; these belong to no class.
_UNUSED_COCO_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
_COCO_IDS = [i for i in range(1, 91) if i not in _UNUSED_COCO_IDS]


def torchvision_url(name: str) -> str:
    """Return the address of weights of torchvision.

    Args:
        name: of a model, such as `resnet50`, or with one of its weights, such as `resnet50/IMAGENET1K_V1`.

    Returns:
        The address.

    Raises:
        ValueError: torchvision has no such model, or no such weights of it.

    Example:
        >>> from detectron2.checkpoint.torchvision_weights import torchvision_url
        >>> torchvision_url("fasterrcnn_resnet50_fpn").rsplit("/", 1)[1]
        'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth'
    """
    from torchvision.models import get_model_weights, list_models

    model, _, wanted = name.partition("/")
    if model not in list_models():
        close = difflib.get_close_matches(model, list_models(), n=3, cutoff=0.5)
        near = f"The nearest are {', '.join(close)}." if close else "torchvision.models.list_models() lists its models."
        raise ValueError(f"{_PREFIX}{name}: torchvision has no model {model!r}. {near}")
    known = get_model_weights(model).__members__
    if (wanted or "DEFAULT") not in known:
        choice = f"choose one of {', '.join(known)}" if known else "none are published"
        raise ValueError(f"{_PREFIX}{name}: torchvision has no such weights of {model}; {choice}.")
    return known[wanted or "DEFAULT"].url


class TorchvisionHandler(Detectron2Handler):
    """Resolves `torchvision://NAME` to the weights that torchvision publishes."""

    PREFIX = _PREFIX

    def _url(self, path: str) -> str:
        return torchvision_url(path[len(self.PREFIX) :])


PathManager.register_handler(TorchvisionHandler())


def has_published_eps(source: str) -> bool:
    """Whether weights are those that torchvision runs with an epsilon of 0 in its frozen batch norms."""
    found = re.search(r"(fasterrcnn|maskrcnn|keypointrcnn|retinanet)_resnet50_fpn(?!_v2)", source)
    if found is None or "legacy" in source.lower() or "9f466800" in source:  # the first weights of Keypoint R-CNN
        return False
    return source.startswith(_PREFIX) or re.search(r"_coco-[0-9a-f]{8}\b", source) is not None


_RULES: tuple[tuple[str, str], ...] = (
    # Names of files before torchvision 0.13 lack what is in brackets with a question mark.
    (r"backbone\.fpn\.extra_blocks\.(p[67])\.", r"backbone.top_block.\1."),
    (r"rpn\.head\.conv\.(0\.0\.)?(?=weight|bias)", "proposal_generator.rpn_head.conv."),
    (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"roi_heads.box_predictor.\1."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", r"roi_heads.mask_head.mask_fcn\1."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.", "roi_heads.keypoint_head.score_lowres."),
    (r"head\.classification_head\.cls_logits\.", "head.cls_score."),
    (r"head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
)
_TOWERS = {"classification": "cls_subnet", "regression": "bbox_subnet"}


def _our_name(name: str, finest: int) -> str | None:
    """Our name of a weight; None where we have no such layer. `finest` is the finest level of the pyramid."""
    if name.startswith("backbone.body."):
        inner = resnet_name_from_torchvision(name.removeprefix("backbone.body."))
        return f"backbone.bottom_up.{inner}" if re.match(r"(stem|res\d)\.", inner) else None
    if found := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(0\.)?(weight|bias)", name):
        kind = {"inner": "lateral", "layer": "output"}[found[1]]
        return f"backbone.fpn_{kind}{int(found[2]) + finest}.{found[4]}"
    if found := re.fullmatch(r"roi_heads\.mask_head\.(\d)\.0\.(weight|bias)", name):
        return f"roi_heads.mask_head.mask_fcn{int(found[1]) + 1}.{found[2]}"
    if found := re.fullmatch(r"roi_heads\.keypoint_head\.(\d+)\.(weight|bias)", name):
        return f"roi_heads.keypoint_head.conv_fcn{int(found[1]) // 2 + 1}.{found[2]}"
    if found := re.fullmatch(r"head\.(classification|regression)_head\.conv\.(\d)\.(0\.)?(weight|bias)", name):
        place = int(found[2]) * (2 if found[3] else 1)  # rectifiers lie between
        return f"head.{_TOWERS[found[1]]}.{place}.{found[4]}"
    for pattern, ours in _RULES:
        new, count = re.subn(f"^{pattern}(?=(weight|bias)$)", ours, name)
        if count:
            return new
    return None


def is_torchvision_detector(weights: Mapping[str, Any]) -> bool:
    """Whether the names of weights are those of a detector of torchvision."""
    heads = ("rpn.head.", "head.classification_head.")
    return any(k.startswith("backbone.") for k in weights) and any(k.startswith(heads) for k in weights)


def convert_torchvision_detector(
    weights: Mapping[str, Any], num_classes: int = 80, frozen_bn_eps: float = 1e-5
) -> dict[str, torch.Tensor]:
    """Convert the weights of a torchvision detector to our names and order of classes.

    torchvision counts the background as class 0; here it comes last in the softmax of the box head, and RetinaNet has
    no output for it. COCO models there have an output for each of the ids 1 to 90; the 80 that are classes remain.

    Args:
        weights: state dict of Faster, Mask or Keypoint R-CNN or of RetinaNet, also with the names of older versions.
        num_classes: `K`, without background, of the model that the weights are for.
        frozen_bn_eps: epsilon that torchvision's model has in its batch norms: 0 in the published detectors (COCO_V1)
            and what was trained from them, else 1e-5. Ours has 1e-5; the variances make up for the difference.

    Returns:
        The state dict.

    Raises:
        ValueError: they are of a detector that has no counterpart here.

    Example:
        >>> from torchvision.models.detection import fasterrcnn_resnet50_fpn
        >>> from detectron2.checkpoint.torchvision_weights import convert_torchvision_detector
        >>> model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        >>> weights = convert_torchvision_detector(model.state_dict(), num_classes=2)
        >>> weights["roi_heads.box_predictor.bbox_pred.weight"].shape
        torch.Size([8, 1024])
    """
    finest = 3 if any(key.startswith("head.") for key in weights) else 2
    converted: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        if key.endswith("num_batches_tracked") or ".anchor_generator." in key:
            continue
        name = _our_name(key, finest)
        if name is None:
            raise ValueError(
                f"the weight {key!r} of this torchvision detector has no counterpart here. What converts are "
                f"{', '.join(CONFIGS)}, which have no norm in pyramid and heads (the *_v2 have); "
                "other detectors run in torchvision itself."
            )
        tensor = torch.as_tensor(value)
        if name.endswith(".running_var") and frozen_bn_eps != 1e-5:
            tensor = tensor + (frozen_bn_eps - 1e-5)
        converted[name] = _own_classes(name, tensor, weights, num_classes)
    return converted


def _own_classes(name: str, tensor: torch.Tensor, weights: Mapping[str, Any], num_classes: int) -> torch.Tensor:
    """Bring outputs for classes into our order."""
    layer = name.rpartition(".")[0]
    if layer == "roi_heads.box_predictor.cls_score":
        return tensor[[*_foreground(len(tensor), num_classes), 0]]
    if layer == "roi_heads.mask_head.predictor":
        return tensor[_foreground(len(tensor), num_classes)]
    if layer == "roi_heads.box_predictor.bbox_pred":
        by_class = tensor.unflatten(0, (-1, 4))
        return by_class[_foreground(len(by_class), num_classes)].flatten(0, 1)
    if layer == "head.cls_score":
        num_anchors = len(weights["head.regression_head.bbox_reg.bias"]) // 4
        by_anchor = tensor.unflatten(0, (num_anchors, -1))
        return by_anchor[:, _foreground(by_anchor.shape[1], num_classes)].flatten(0, 1)
    return tensor


def _foreground(outputs: int, num_classes: int) -> list[int]:
    return _COCO_IDS if outputs == 91 and num_classes == 80 else list(range(1, outputs))


def torchvision_differences(model: nn.Module) -> list[str]:
    """List the settings of a model that differ from those that the weights of torchvision's detectors need.

    Args:
        model: a detector of ours.

    Returns:
        Sentences with the keys of the config; empty when all is as in torchvision.
    """
    from detectron2.modeling.anchor_generator import TorchvisionAnchorGenerator

    m: Any = model
    found = []
    if getattr(m, "input_format", None) != "RGB":
        found.append('INPUT.FORMAT must be "RGB"')
    for key, wanted in (("pixel_mean", [123.675, 116.28, 103.53]), ("pixel_std", [58.395, 57.12, 57.375])):
        values = getattr(m, key).flatten().cpu()
        if values.shape != (3,) or not torch.allclose(values.double(), torch.tensor(wanted).double(), atol=1e-2):
            found.append(f"MODEL.{key.upper()} must be {wanted}")
    generator = getattr(getattr(m, "proposal_generator", m), "anchor_generator", None)
    if not isinstance(generator, TorchvisionAnchorGenerator):
        found.append('MODEL.ANCHOR_GENERATOR.NAME must be "TorchvisionAnchorGenerator"')
    stages = [stage for name, stage in m.backbone.bottom_up.named_children() if name == "res3"]
    if any(getattr(stage[0].conv1, "stride", (1, 1)) != (1, 1) and hasattr(stage[0], "conv3") for stage in stages):
        found.append("MODEL.RESNETS.STRIDE_IN_1X1 must be False")
    for part in ("box", "mask", "keypoint"):
        pooler = getattr(getattr(m, "roi_heads", None), f"{part}_pooler", None)
        for align in getattr(pooler, "level_poolers", [])[:1]:
            if getattr(align, "aligned", None) is not False or getattr(align, "sampling_ratio", None) != 2:
                key = f"MODEL.ROI_{part.upper()}_HEAD"
                found.append(f'{key}.POOLER_TYPE must be "ROIAlign" and {key}.POOLER_SAMPLING_RATIO 2')
    top: Any = getattr(m.backbone, "top_block", None)
    if hasattr(top, "p7") and top.in_feature != "p5":
        found.append('the top block of the pyramid must start from "p5" (model.backbone.top_block.in_feature)')
    return found
