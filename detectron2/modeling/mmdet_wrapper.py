"""Adapters that put backbones and detectors of MMDetection 2 into models and training loops of this package.

MMDetection is not a dependency: it is imported when a model is built from a config of its own, and for the class of
ground truth masks. A module that is built already needs only the methods that are called here: `init_weights`
(optional); for detectors either `forward_train` and `simple_test`, or `forward` with `return_loss`, as in MMDetection
2.

`N` images, `C` channels, `H` and `W` height and width in pixels, `D` detections, `K` classes. Boxes are
`(x1, y1, x2, y2)` in pixels.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import put_scalar
from detectron2.utils.registry import locate

from .backbone import Backbone
from .meta_arch.inputs import DetectorBase, normalized_batch

__all__ = ["MMDetBackbone", "MMDetDetector"]


def _from_mmdet(path: str, why: str) -> Any:
    """An object of MMDetection 2 or of its foundation MMCV, or an error that says how to install them."""
    try:
        return locate(path)
    except ImportError as e:
        raise ImportError(
            f"{why} needs MMDetection 2 ({path}), which cannot be imported: {e}. Install it with: "
            "pip install 'mmcv-full<1.8' 'mmdet<3'; or pass a module that is built already"
        ) from e


def _built(part: nn.Module | Mapping[str, Any], builder: str) -> nn.Module:
    """`part` itself, or what MMDetection's function `builder` makes of its config."""
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, Mapping):
        raise TypeError(f"expected a module, or a config of MMDetection as a mapping, got {type(part).__name__}")
    # MMDetection reads its configs by attribute and checks for plain dicts and lists inside.
    plain: Any = OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else dict(part)
    why = f"building {plain.get('type', 'a model')!r} from a config"
    build = _from_mmdet(f"mmdet.models.{builder}", why)
    return build(_from_mmdet("mmcv.utils.ConfigDict", why)(plain))


def _init_weights(module: nn.Module, pretrained: str | None = None) -> None:
    """Let a module of MMDetection initialise itself, from `pretrained` weights if given."""
    init: Any = getattr(module, "init_weights", None)
    if init is None:
        if pretrained is not None:
            raise ValueError(f"{type(module).__name__} has no init_weights() that could load {pretrained!r}")
        if isinstance(module, nn.Sequential):  # a neck may be a row of necks
            for child in module:
                _init_weights(child)
    elif pretrained is None:
        init()
    elif "pretrained" in inspect.signature(init).parameters:  # MMDetection before 2.11
        init(pretrained=pretrained)
    else:
        module.init_cfg = {"type": "Pretrained", "checkpoint": pretrained}  # pyright: ignore  # what init_weights reads
        init()


class MMDetBackbone(Backbone):
    """A backbone of MMDetection, with or without a neck, in the place of one of ours.

    MMDetection's backbones return a sequence of feature maps; ours return a dictionary.

    Weights are initialised here (`init_weights`), also those of a module that is built already: load a checkpoint
    afterwards, not before.

    Args:
        backbone: a module, or the config of one, that takes `Tensor[N, C, H, W]` and returns a sequence of maps.
        neck: a module, or the config of one, that takes this sequence and returns another; None for no neck.
        pretrained_backbone: weights of the backbone, named as MMDetection names them: "torchvision://resnet50".
        output_shapes: channels and stride of each map that comes out.
        output_names: names of these maps; by default "out0", "out1" and so on.
    """

    def __init__(
        self,
        backbone: nn.Module | Mapping[str, Any],
        neck: nn.Module | Mapping[str, Any] | None = None,
        *,
        pretrained_backbone: str | None = None,
        output_shapes: list[ShapeSpec],
        output_names: list[str] | None = None,
    ):
        super().__init__()
        names = [f"out{i}" for i in range(len(output_shapes))] if output_names is None else list(output_names)
        if len(set(names)) != len(output_shapes):
            raise ValueError(f"each of the {len(output_shapes)} output_shapes needs a name of its own, got {names}")
        self.backbone = _built(backbone, "build_backbone")
        self.neck = None if neck is None else _built(neck, "build_neck")
        _init_weights(self.backbone, pretrained_backbone)
        if self.neck is not None:
            _init_weights(self.neck)
        self._output_shapes = list(output_shapes)
        self._output_names = names

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps by name from images `Tensor[N, C, H, W]`."""
        maps = self.backbone(x)
        if self.neck is not None:
            maps = self.neck(maps)
        if not isinstance(maps, (list, tuple)):
            raise TypeError(f"a backbone or neck of MMDetection returns a list or tuple, got {type(maps).__name__}")
        if len(maps) != len(self._output_names):
            raise ValueError(
                f"the backbone returned {len(maps)} feature maps, but output_shapes describes "
                f"{len(self._output_names)} ({', '.join(self._output_names)})"
            )
        return dict(zip(self._output_names, maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map, as given."""
        return dict(zip(self._output_names, self._output_shapes, strict=True))


class MMDetDetector(DetectorBase):
    """A detector of MMDetection, for boxes and masks, with inputs and outputs of a model of this package.

    Weights are initialised here (`init_weights`), also those of a module that is built already: load a checkpoint
    afterwards, not before.

    Args:
        detector: a detector, or the config of one.
        size_divisibility: images are padded to a multiple of this.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
    """

    def __init__(
        self,
        detector: nn.Module | Mapping[str, Any],
        *,
        size_divisibility: int = 32,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__()
        self.detector: Any = _built(detector, "build_detector")
        _init_weights(self.detector)
        self.size_divisibility = size_divisibility
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H, W]`; in training "instances", the
                ground truth; in inference optionally "height" and "width", the size of the results in pixels.

        Returns:
            In training the losses by name; in inference for each image `{"instances": Instances}` with `pred_boxes`,
            `scores`, `pred_classes` and, from a detector of masks, `pred_masks`, `Tensor[D, height, width]` of bool.
        """
        images = normalized_batch(
            batched_inputs, self.pixel_mean, self.pixel_std, size_divisibility=self.size_divisibility
        ).tensor
        padded_hw = (images.shape[2], images.shape[3])
        metas = [_image_meta(item, padded_hw, use_original_size=not self.training) for item in batched_inputs]
        if not self.training:
            return [
                {"instances": _to_instances(result, meta["ori_shape"][:2], self.device)}
                for result, meta in zip(self._detect(images, metas), metas, strict=True)
            ]
        return _named_losses(self._losses(images, metas, self._targets(batched_inputs), padded_hw))

    def _losses(
        self, images: torch.Tensor, metas: list[dict], targets: list[Instances], padded_hw: tuple[int, int]
    ) -> dict[str, Any]:
        ground_truth: dict[str, Any] = {
            "gt_bboxes": [x.gt_boxes.tensor for x in targets],
            "gt_labels": [x.gt_classes for x in targets],
        }
        if any(x.has("gt_masks") for x in targets):
            ground_truth["gt_masks"] = [_to_mmdet_masks(x, padded_hw) for x in targets]
        if hasattr(self.detector, "forward_train"):
            return self.detector.forward_train(images, metas, **ground_truth)
        return self.detector(images, metas, return_loss=True, **ground_truth)

    def _detect(self, images: torch.Tensor, metas: list[dict]) -> Sequence[Any]:
        # rescale: boxes and masks at the size of the original image, "ori_shape".
        if hasattr(self.detector, "simple_test"):
            return self.detector.simple_test(images, metas, rescale=True)
        # MMDetection's forward takes lists of augmented batches; there is one here.
        return self.detector([images], [metas], return_loss=False, rescale=True)


def _image_meta(item: dict[str, Any], padded_hw: tuple[int, int], use_original_size: bool) -> dict[str, Any]:
    """What MMDetection wants to know about an image; shapes are `(height, width, channels)`."""
    channels, height, width = item["image"].shape
    original_hw = (height, width)
    if use_original_size:
        original_hw = (item.get("height", height), item.get("width", width))
    scale_wh = (width / original_hw[1], height / original_hw[0])
    file_name = item.get("file_name")
    return {
        "filename": file_name,
        "ori_filename": file_name,
        "ori_shape": (*original_hw, channels),
        "img_shape": (height, width, channels),
        "pad_shape": (*padded_hw, channels),
        "batch_input_shape": padded_hw,
        "scale_factor": np.array(scale_wh * 2, dtype=np.float32),
        "flip": False,
        "flip_direction": None,
    }


def _to_mmdet_masks(target: Instances, padded_hw: tuple[int, int]) -> Any:
    """The ground truth masks of an image in MMDetection's classes, which are NumPy arrays inside."""
    why = "training a detector with masks"
    if not target.has("gt_masks"):  # no objects in this image
        return _from_mmdet("mmdet.core.BitmapMasks", why)(np.zeros((0, *padded_hw), np.uint8), *padded_hw)
    masks = target.gt_masks
    if not isinstance(masks, BitMasks):
        return _from_mmdet("mmdet.core.PolygonMasks", why)(masks.polygons, *padded_hw)
    height, width = masks.image_size
    padded = np.zeros((len(masks), *padded_hw), np.uint8)
    padded[:, :height, :width] = masks.tensor.cpu().numpy()
    return _from_mmdet("mmdet.core.BitmapMasks", why)(padded, *padded_hw)


def _to_instances(result: Any, size_hw: tuple[int, int], device: torch.device) -> Instances:
    """Results of one image: arrays `(D_k, 5)` of boxes and scores for each class k, perhaps with masks beside them."""
    boxes_of_classes, masks_of_classes = result if isinstance(result, tuple) else (result, None)
    if isinstance(masks_of_classes, tuple):  # Mask Scoring R-CNN adds scores of the masks
        masks_of_classes = masks_of_classes[0]
    counts = [len(x) for x in boxes_of_classes]
    rows = [torch.as_tensor(x, dtype=torch.float32, device=device).reshape(-1, 5) for x in boxes_of_classes]
    found = torch.cat([torch.zeros(0, 5, device=device), *rows])
    instances = Instances(size_hw)
    instances.pred_boxes = Boxes(found[:, :4])
    instances.scores = found[:, 4]
    instances.pred_classes = torch.arange(len(counts), device=device).repeat_interleave(
        torch.tensor(counts, dtype=torch.int64, device=device)
    )
    if masks_of_classes is not None:
        masks = [torch.as_tensor(mask, device=device) for of_class in masks_of_classes for mask in of_class]
        empty = torch.zeros(0, *size_hw, dtype=torch.bool, device=device)
        instances.pred_masks = torch.stack(masks).bool() if masks else empty
    return instances


def _named_losses(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The losses among what a detector of MMDetection returns; what else it returns becomes training statistics."""
    losses = {}
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            value = value.mean()
        elif isinstance(value, (list, tuple)):  # one for each level of the pyramid
            value = torch.stack([x.mean() for x in value]).sum()
        else:
            raise TypeError(f"{name} must be a tensor or a list of tensors, got {type(value).__name__}")
        if "loss" in name:
            losses[name] = value
        else:
            put_scalar(name, value.detach())
    return losses
