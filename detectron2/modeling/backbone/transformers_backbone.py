"""Backbones from transformers (https://github.com/huggingface/transformers), by config, folder or name of the hub.

DINOv2, DINOv3, Swin, ConvNeXt, ResNet and others: all that its `AutoBackbone` knows. transformers is an extra
(`pip install 'detectron2[transformers]'`), imported when a backbone is built.
"""

import copy
import difflib
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.layers import ShapeSpec
from detectron2.utils.hub_files import advice_of_hub

from .build import BACKBONE_REGISTRY
from .external import (
    ExternalBackbone,
    build_pyramid,
    check_pixel_statistics,
    hub_as_allowed,
    require_package,
    warn_of_frozen_random_weights,
)
from .fpn import PyramidBase

__all__ = [
    "TransformersBackbone",
    "build_retinanet_transformers_fpn_backbone",
    "build_transformers_backbone",
    "build_transformers_fpn_backbone",
]

logger = logging.getLogger(__name__)

_SIDE = 224  # of an image that shows the strides; the usual sizes of patches divide it
_LAYER = re.compile(r"\.(?:stages|layers|layer)\.(\d+)\.(?:(?:layers|blocks)\.(\d+)\.)?")


class TransformersBackbone(ExternalBackbone):
    """A network of transformers that its `AutoBackbone` makes.

    Its outputs are named by their strides, `res2` for 4 to `res5` for 32. A plain vision transformer has one output, of
    its last block: `res4` with patches of 16 pixels. Its positions are interpolated to the size of the images.
    Parameters have the names of transformers, after `network.`.

    Args:
        name: a folder with `config.json`, a name on the hub such as `"facebook/dinov2-small"`, or a config: an object
            of transformers, or a dictionary with the key `model_type`.
        out_features: names of the outputs; by default all of strides 4 to 32.
        pretrained: whether to load the weights of that folder, or of that name from the hub, once; then from its cache.
        norm: what becomes of batch norms: `"keep"`, `"FrozenBN"`, `"SyncBN"`; and `"BN"`, the same as `"keep"` where
            there are batch norms.
        freeze_at: how many groups of layers do not train, counted from the embedding: 2 are the embedding and the first
            stage, or the first block of a plain transformer.
        **kwargs: changes of the config, such as `drop_path_rate` or `patch_size`.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it has no backbone of that kind, or arguments do not fit it.
        OSError: the config or the weights cannot be had.

    Example:
        >>> from detectron2.modeling.backbone.transformers_backbone import TransformersBackbone
        >>> config = {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        >>> backbone = TransformersBackbone(config, out_features=["res3", "res5"])
        >>> {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
        {'res3': (16, 8), 'res5': (32, 32)}
    """

    def __init__(
        self,
        name: Any,
        out_features: Sequence[str] | None = None,
        pretrained: bool = False,
        norm: str = "keep",
        freeze_at: int = 0,
        **kwargs: Any,
    ):
        super().__init__()
        require_package("transformers", "TransformersBackbone")
        from transformers import AutoBackbone

        if pretrained and not isinstance(name, str):
            raise ValueError("A config has no pretrained weights; give a folder or a name of the hub instead")
        config = _config_of(name, kwargs)
        label = f"{name if isinstance(name, str) else config.model_type} of transformers"
        stages, channels, strides = _stages_of(config, label)
        chosen = self._choose_maps(label, channels, strides, out_features)
        config.out_features = [stages[i] for i in chosen]
        shell, unused = _unused_parameters(config)
        if pretrained:
            # Not by AutoBackbone, which asks the hub even where there is a folder.
            with hub_as_allowed():
                network = _from_hub(lambda: type(shell).from_pretrained(name, config=config), label)
            self.pixel_mean, self.pixel_std = _statistics(name)
        else:
            network = AutoBackbone.from_config(config)
        for key, parameter in network.named_parameters():
            if key in unused:
                parameter.requires_grad_(False)
        self._set_network(network.train(), norm, freeze_at)
        self._check_maps(label, getattr(config, "num_channels", 3))

    def layer_groups(self, coarse: bool) -> dict[str, int]:
        """Number the layers by their names; see `ExternalBackbone.layer_groups`."""
        names = [name for name, _ in self.named_parameters()]
        places: dict[str, tuple[int, int]] = {}
        for name in names:
            found = _LAYER.search(name)
            if found is not None:
                # What is not in one of the blocks of a stage comes before them (ConvNeXt) or after them (Swin).
                outside = -1 if "downsampling" in name or "downsample_layers" in name else 10**6
                inner = 0 if coarse or (found[2] is None and not _has_blocks(names, found[1])) else outside
                places[name] = (int(found[1]), int(found[2]) if found[2] is not None and not coarse else inner)
        blocks = sorted({place for place in places.values() if place[1] not in (-1, 10**6)})
        if not blocks:
            raise ValueError(
                f"The names of the parameters of a {type(self.network).__name__} do not tell the order of its layers: "
                "set freeze_at (MODEL.BACKBONE.FREEZE_AT) to 0 and SOLVER.LAYER_DECAY to 1.0"
            )
        groups = {}
        for name in names:
            if name in places:
                stage, inner = places[name]
                of_stage = [i for i, block in enumerate(blocks) if block[0] == stage]
                index = of_stage[0] if inner == -1 else of_stage[-1] if inner == 10**6 else blocks.index((stage, inner))
                groups[name] = index + 1
            else:
                groups[name] = 0 if "embed" in name else len(blocks)
        return groups

    def _maps_of(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        network: Any = self.network
        return network(x).feature_maps


def _has_blocks(names: Sequence[str], stage: str) -> bool:
    return any((found := _LAYER.search(name)) and found[1] == stage and found[2] is not None for name in names)


def _config_of(name: Any, changes: dict[str, Any]) -> Any:
    """Return a config of transformers, of the caller's alone."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    if isinstance(name, str):
        if name.startswith((".", os.sep)) and not os.path.isdir(name):
            raise FileNotFoundError(f"There is no folder {name} with the config.json of a network; check the path")
        with hub_as_allowed():
            return _from_hub(lambda: AutoConfig.from_pretrained(name, **changes), f"{name} of transformers")
    if isinstance(name, DictConfig):  # of a LazyConfig
        name = OmegaConf.to_container(name, resolve=True)
    if isinstance(name, dict):
        values = {**name, **changes}
        kind = values.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            close = difflib.get_close_matches(str(kind or ""), list(CONFIG_MAPPING), n=3)
            raise ValueError(
                f"A config of transformers needs the key model_type, such as {', '.join(close) or 'resnet'}; got "
                f"{kind!r} among {sorted(name)}"
            )
        try:
            config = AutoConfig.for_model(kind, **values)
        except Exception as error:  # values of a wrong type are errors of a class of its own
            raise ValueError(f"transformers takes no {kind} with {values}: {' '.join(str(error).split())}") from error
    elif isinstance(name, PretrainedConfig):
        config = copy.deepcopy(name)
        for key, value in changes.items():
            setattr(config, key, value)
    else:
        raise TypeError(f"Give a folder, a name of the hub or a config of transformers; got a {type(name).__name__}")
    for key in ("depths", "hidden_sizes"):  # ConvNeXt adds to the list that a file has, and its default is a tuple
        if isinstance(getattr(config, key, None), tuple):
            setattr(config, key, list(getattr(config, key)))
    return config


def _from_hub(load: Any, label: str) -> Any:
    try:
        return load()
    except OSError as error:
        why = " ".join(str(error).split())[:300].rstrip(".")
        advice = advice_of_hub(error) or (
            "Without network, give a folder with config.json and the weights, fetched elsewhere with 'hf download NAME "
            "--local-dir FOLDER'."
        )
        raise OSError(f"{label} could not be had: {why}. {advice}") from error


def _on_meta(config: Any) -> tuple[Any, Sequence[torch.Tensor]]:
    """Return the network of a config, without memory, and its maps of an image."""
    from transformers import AutoBackbone

    with torch.device("meta"):
        network: Any = AutoBackbone.from_config(config)
        image = torch.zeros(1, getattr(config, "num_channels", 3), _SIDE, _SIDE)
    return network, network(image).feature_maps


def _stages_of(config: Any, label: str) -> tuple[list[str], list[int], list[int]]:
    """Return names, channels and strides of all stages."""
    names: list[str] = list(getattr(config, "stage_names", ()) or ())
    whole = copy.deepcopy(config)
    try:
        whole.out_features = names
        _, maps = _on_meta(whole)
    except (ValueError, AttributeError, TypeError, LookupError, RuntimeError) as error:
        raise ValueError(f"{label} cannot be a backbone: AutoBackbone refuses it ({error})") from error
    return names, [x.shape[1] for x in maps], [round(_SIDE / x.shape[2]) for x in maps]


def _unused_parameters(config: Any) -> tuple[Any, set[str]]:
    """Return the network of a config, without memory, and the parameters that its outputs do not depend on."""
    with torch.enable_grad():
        network, maps = _on_meta(config)
        named = dict(network.named_parameters())
        total: Any = sum(x.sum() for x in maps)
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return network, {name for name, gradient in zip(named, gradients, strict=True) if gradient is None}


def _statistics(name: str) -> tuple[list[float] | None, list[float] | None]:
    """Mean and deviation in grey levels that belong to the weights of a folder or of the hub, if they are there."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with hub_as_allowed():
            said, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        logger.warning("%s does not say how images are normalised; check MODEL.PIXEL_MEAN and MODEL.PIXEL_STD.", name)
        return None, None
    mean, std = said.get("image_mean"), said.get("image_std")
    if mean is None or std is None:
        return None, None
    return [round(255 * x, 4) for x in mean], [round(255 * x, 4) for x in std]


# ------------------------------------------------------------------------------------------------------------- configs


def _for_pyramid(cfg: Any) -> Any:
    """Return the config with no more outputs than the pyramid takes: each has a norm that would never learn."""
    name = os.path.expanduser(_options(cfg).get("NAME"))
    if not name or _options(cfg).get("OUT_FEATURES"):
        return cfg
    strides = _stages_of(_config_of(name, {}), name)[2]
    if len(set(strides)) == 1:  # a plain transformer
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TRANSFORMERS.OUT_FEATURES = tuple(cfg.MODEL.FPN.IN_FEATURES)
    return cfg


def _options(cfg: Any) -> Any:
    """The keys of `cfg.MODEL.TRANSFORMERS`, with the defaults of those that are not set."""
    prefix = "MODEL.TRANSFORMERS."
    defaults = {key.removeprefix(prefix): value for key, value in OPTIONAL_KEYS.items() if key.startswith(prefix)}
    return {**defaults, **(cfg.MODEL.get("TRANSFORMERS") or {})}


@BACKBONE_REGISTRY.register_addition
def build_transformers_backbone(cfg: Any, input_shape: ShapeSpec) -> TransformersBackbone:
    """Build the `TransformersBackbone` that `cfg.MODEL.TRANSFORMERS` and `cfg.MODEL.BACKBONE.FREEZE_AT` describe.

    `MODEL.TRANSFORMERS.PRETRAINED` says how a training starts; where `MODEL.WEIGHTS` is set, the weights come from
    there. With pretrained weights, `MODEL.PIXEL_MEAN`, `MODEL.PIXEL_STD` and `INPUT.FORMAT` must be what they expect,
    where that is known: otherwise a `ValueError` gives the values.
    """
    name, pretrained = _options(cfg).get("NAME"), _options(cfg).get("PRETRAINED")
    if not name:
        raise ValueError(
            "MODEL.TRANSFORMERS.NAME is empty; set it to a folder with config.json or to a name of the hub, such as "
            "facebook/dinov2-small"
        )
    channels = input_shape.channels or 3
    backbone = TransformersBackbone(
        os.path.expanduser(name),
        out_features=list(_options(cfg).get("OUT_FEATURES")) or None,
        pretrained=pretrained and not cfg.MODEL.WEIGHTS,
        norm=_options(cfg).get("NORM"),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **({} if channels == 3 else {"num_channels": channels}),
    )
    check_pixel_statistics(cfg, backbone, name)
    warn_of_frozen_random_weights(cfg, pretrained)
    return backbone


@BACKBONE_REGISTRY.register_addition
def build_transformers_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> PyramidBase:
    """Build a network of transformers with the pyramid of R-CNN from `cfg.MODEL.{TRANSFORMERS,FPN}`."""
    return build_pyramid(cfg, build_transformers_backbone(_for_pyramid(cfg), input_shape))


@BACKBONE_REGISTRY.register_addition
def build_retinanet_transformers_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> PyramidBase:
    """Build a network of transformers with the pyramid of RetinaNet from `cfg.MODEL.{TRANSFORMERS,FPN}`."""
    return build_pyramid(cfg, build_transformers_backbone(_for_pyramid(cfg), input_shape), for_retinanet=True)
