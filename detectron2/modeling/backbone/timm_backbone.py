"""Backbones from timm, the PyTorch Image Models library (https://github.com/huggingface/pytorch-image-models).

Several hundred architectures, by name, with the weights of the Hugging Face hub or of a file. timm is an extra
(`pip install 'detectron2[timm]'`), imported when a backbone is built.
"""

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

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
    set_pixel_statistics,
    warn_of_frozen_random_weights,
)
from .fpn import PyramidBase

__all__ = [
    "TimmBackbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "timm_pixel_statistics",
    "use_timm_pixel_statistics",
]

logger = logging.getLogger(__name__)

# How architectures that were made for one size of images are asked to take others.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


class TimmBackbone(ExternalBackbone):
    """A network of timm, without its classifier.

    Its outputs are named by their strides, `res2` for 4 to `res5` for 32. A plain vision transformer has one output, of
    its last block, before the last norm: `res4` with patches of 16 pixels. It attends globally, and its positions are
    interpolated to the size of the images. Parameters have the names of timm, after `network.`.

    Args:
        name: of the architecture, and of its weights after a dot, such as `"resnet50"`, `"convnext_tiny.fb_in22k"`.
        out_features: names of the outputs; by default all of strides 4 to 32.
        pretrained: whether to load the weights of that name from the hub, once; then from its cache.
        checkpoint: path of a file with weights in timm's names, `.safetensors` or `.pth`, to load instead.
        norm: what becomes of batch norms: `"keep"`; `"FrozenBN"`, fixed statistics, scale and shift; `"BN"`, the same
            as `"keep"` where there are batch norms; `"SyncBN"`, statistics of all processes.
        freeze_at: how many groups of layers do not train, counted from the stem: 2 are the stem and the first stage, or
            the first block of a plain transformer. Their batch norms are frozen.
        drop_path_rate: probability of leaving out a residual branch of the last block, in training.
        in_chans: channels of the images; pretrained filters are adapted.
        patch_size: side of a patch of a plain transformer, in pixels; by default that of the architecture. Pretrained
            patches and positions are resized.
        **kwargs: further arguments of the architecture, as `timm.create_model` takes them.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such architecture, arguments do not fit it, or it takes images of one size only.
        FileNotFoundError: there is no file `checkpoint`.
        OSError: the weights cannot be had from the hub.

    Example:
        >>> from detectron2.modeling.backbone.timm_backbone import TimmBackbone
        >>> backbone = TimmBackbone("resnet10t", out_features=["res3", "res5"])
        >>> {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
        {'res3': (128, 8), 'res5': (512, 32)}
        >>> backbone(torch.zeros(1, 3, 64, 100))["res5"].shape
        torch.Size([1, 512, 2, 4])
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] | None = None,
        pretrained: bool = False,
        checkpoint: str = "",
        norm: str = "keep",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        patch_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        require_package("timm", "TimmBackbone")
        if in_chans < 1 or not 0 <= drop_path_rate < 1 or (patch_size is not None and patch_size < 0):
            raise ValueError(
                "a network of timm needs in_chans of 1 or more, drop_path_rate from 0 to below 1, and patch_size of 1 "
                f"or more, or none; got {in_chans}, {drop_path_rate} and {patch_size}"
            )
        if drop_path_rate:
            kwargs["drop_path_rate"] = drop_path_rate
        if in_chans != 3:
            kwargs["in_chans"] = in_chans
        if patch_size:
            kwargs["patch_size"] = patch_size
        network: Any = _create(name, pretrained, checkpoint, kwargs)
        if not hasattr(network, "forward_intermediates"):
            raise ValueError(f"timm's {name} offers no maps between its layers, and so cannot be a backbone")
        info = [(entry["num_chs"], entry["reduction"]) for entry in network.feature_info]
        chosen = self._choose_maps(f"timm's {name}", [c for c, _ in info], [s for _, s in info], out_features)
        if hasattr(network, "prune_intermediate_layers"):
            chosen = network.prune_intermediate_layers(chosen, prune_norm=True, prune_head=True)
        self._indices = list(chosen)
        if in_chans == 3:
            self.pixel_mean, self.pixel_std = _statistics(network.pretrained_cfg)
        self._set_network(network, norm, freeze_at)
        self._check_maps(f"timm's {name}", in_chans)

    def layer_groups(self, coarse: bool) -> dict[str, int]:
        """Number the layers as timm does; see `ExternalBackbone.layer_groups`."""
        from timm.models import group_parameters

        network: Any = self.network
        if not hasattr(network, "group_matcher"):
            raise ValueError(
                f"timm does not tell the order of the layers of a {type(network).__name__}: set freeze_at "
                "(MODEL.BACKBONE.FREEZE_AT) to 0 and SOLVER.LAYER_DECAY to 1.0"
            )
        groups: Any = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        return {f"network.{name}": int(group) for name, group in groups.items()}

    def _maps_of(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        network: Any = self.network
        return network.forward_intermediates(
            x, indices=self._indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )

    def _frozen_norm(self, norm: nn.Module) -> nn.Module:
        if type(norm).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward):
            return super()._frozen_norm(norm)
        from timm.layers import freeze_batch_norm_2d

        return freeze_batch_norm_2d(norm)  # with the activation that is part of it


# -------------------------------------------------------------------------------------------------------------- making


def _create(name: str, pretrained: bool, checkpoint: str, kwargs: dict[str, Any]) -> nn.Module:
    """Make a network that takes images of any size, without classifier."""
    import timm

    is_remote = ":" in name
    if not is_remote and not timm.is_model(name):
        wanted = name.partition(".")[0].lower()
        parts = timm.list_models(f"*{wanted}*") if wanted else []
        close = parts[:5] or difflib.get_close_matches(wanted, timm.list_models(), n=5)
        hint = f"similar are {', '.join(close)}" if close else "timm.list_models('*word*') lists those with a word"
        raise ValueError(f"timm {timm.__version__} has no architecture {name!r}; {hint}")
    weights: dict[str, Any] = {"pretrained": pretrained or bool(checkpoint)}
    if checkpoint:
        if not os.path.isfile(checkpoint):
            raise FileNotFoundError(f"There is no file {checkpoint} with weights for timm's {name}; check the path")
        weights["pretrained_cfg_overlay"] = {"file": checkpoint}
    published = None if is_remote else _published(name)
    if published is not None and not published.fixed_input_size:
        network = _call_timm(name, weights, kwargs, checkpoint)
    else:
        network = _of_any_size(name, weights, kwargs, checkpoint)
    if checkpoint:
        _require_loaded(network, checkpoint, name)
    return network


def _published(name: str) -> Any:
    """What timm knows of the weights of an architecture; a `ValueError` that lists them if it knows none of the tag."""
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        names = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(
            f"timm {timm.__version__} knows no weights {tag!r} of {architecture}; it has {names}"
        ) from error


def _of_any_size(name: str, weights: dict[str, Any], kwargs: dict[str, Any], checkpoint: str) -> nn.Module:
    for more in _ANY_SIZE:
        try:
            return _call_timm(name, weights, {**more, **kwargs}, checkpoint)
        except _UnknownArgument as error:
            if not any(key in str(error) for key in more):
                raise
    return _call_timm(name, weights, kwargs, checkpoint)


class _UnknownArgument(ValueError):
    """The architecture does not know one of the arguments."""


def _call_timm(name: str, weights: dict[str, Any], kwargs: dict[str, Any], checkpoint: str) -> nn.Module:
    import timm

    try:
        with hub_as_allowed():
            return timm.create_model(name, num_classes=0, **weights, **kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise _UnknownArgument(
            f"timm's {name} does not take all of these arguments: {sorted(kwargs)} ({error})"
        ) from error
    except Exception as error:  # of the clients of the hub, each with errors of its own
        why = str(error).strip().partition("\n")[0][:300].rstrip(".") or type(error).__name__
        if checkpoint:
            raise ValueError(f"{checkpoint} does not hold the weights of timm's {name}: {why}") from error
        if not weights["pretrained"]:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"timm's {name} cannot be built with the arguments {kwargs}: {why}") from error
        place = _place_of_weights(name)
        advice = advice_of_hub(error) or (
            f"Without network, give a file with them (MODEL.TIMM.CHECKPOINT, argument checkpoint), fetched elsewhere"
            f"{place}; or start from random numbers (MODEL.TIMM.PRETRAINED False, argument pretrained)."
        )
        raise OSError(f"The pretrained weights of timm's {name} could not be had: {why}. {advice}") from error


def _place_of_weights(name: str) -> str:
    published = None if ":" in name else _published(name)
    repository = published.hf_hub_id if published is not None else None
    if not repository:
        return ""
    full = repository if not repository.endswith("/") else f"{repository}{published.architecture}.{published.tag}"  # type: ignore[union-attr]
    return f" with 'hf download {full} model.safetensors --local-dir .'"


def _require_loaded(network: nn.Module, checkpoint: str, name: str) -> None:
    """Raise unless most matrices of the network are those of a file; timm does not ask for this without classifier."""
    from timm.models import load_state_dict

    in_file = {_digest(value) for value in load_state_dict(checkpoint).values() if isinstance(value, torch.Tensor)}
    matrices = {key: value for key, value in network.state_dict().items() if value.ndim > 1}
    missing = [key for key, value in matrices.items() if _digest(value) not in in_file]
    if 2 * len(missing) > len(matrices):
        raise ValueError(
            f"{checkpoint} does not hold the weights of timm's {name}: {len(missing)} of {len(matrices)} weights were "
            f"not found, such as {', '.join(missing[:3])}. The names must be those of timm."
        )
    if missing:
        logger.info("Converted, or not found in %s: %s", checkpoint, ", ".join(missing))


def _digest(value: torch.Tensor) -> tuple[Any, ...]:
    return (*value.shape, *value.flatten()[:8].float().tolist())


# ----------------------------------------------------------------------------------------------------- pixel statistics


def _statistics(published: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation in grey levels; timm has them for images from 0 to 1."""
    return [round(255 * x, 4) for x in published["mean"]], [round(255 * x, 4) for x in published["std"]]


def timm_pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the images that the weights of a name expect: RGB, in grey levels.

    They are the values of `MODEL.PIXEL_MEAN` and `MODEL.PIXEL_STD`, or of `pixel_mean` and `pixel_std` of a model in a
    LazyConfig, with `INPUT.FORMAT` (`input_format`, `image_format` of the mapper) `"RGB"`.

    Args:
        name: of an architecture of timm.

    Returns:
        Mean and deviation, a number for each channel.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm knows no weights of that name.

    Example:
        >>> from detectron2.modeling.backbone.timm_backbone import timm_pixel_statistics
        >>> timm_pixel_statistics("resnet18")
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    """
    require_package("timm", "timm_pixel_statistics")
    import timm

    published = _published(name) if timm.is_model(name) else None
    if published is None:
        raise ValueError(f"timm {timm.__version__} knows no weights of the name {name!r}")
    return _statistics(published.to_dict())


def use_timm_pixel_statistics(cfg: Any) -> None:
    """Set `MODEL.PIXEL_MEAN`, `MODEL.PIXEL_STD` and `INPUT.FORMAT` for the weights of `MODEL.TIMM.NAME`.

    Args:
        cfg: the config, which is changed.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm knows no weights of that name.

    Example:
        >>> from detectron2.config import get_cfg
        >>> from detectron2.modeling.backbone.timm_backbone import use_timm_pixel_statistics
        >>> cfg = get_cfg()
        >>> cfg.merge_from_list(["MODEL.TIMM.NAME", "vit_tiny_patch16_224"])
        >>> use_timm_pixel_statistics(cfg)
        >>> cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN
        ('RGB', [127.5, 127.5, 127.5])
    """
    set_pixel_statistics(cfg, *timm_pixel_statistics(_options(cfg).get("NAME")))


# ------------------------------------------------------------------------------------------------------------- configs


def _options(cfg: Any) -> Any:
    """The keys of `cfg.MODEL.TIMM`, with the defaults of those that are not set."""
    prefix = "MODEL.TIMM."
    defaults = {key.removeprefix(prefix): value for key, value in OPTIONAL_KEYS.items() if key.startswith(prefix)}
    return {**defaults, **(cfg.MODEL.get("TIMM") or {})}


@BACKBONE_REGISTRY.register_addition
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the `TimmBackbone` that `cfg.MODEL.TIMM` and `cfg.MODEL.BACKBONE.FREEZE_AT` describe.

    `MODEL.TIMM.PRETRAINED` and `MODEL.TIMM.CHECKPOINT` say how a training starts; where `MODEL.WEIGHTS` is set, the
    weights come from there. With pretrained weights, also of `timm://`, `MODEL.PIXEL_MEAN`, `MODEL.PIXEL_STD` and
    `INPUT.FORMAT` must be what they expect: otherwise a `ValueError` gives the values, which
    `use_timm_pixel_statistics` sets. With a checkpoint, whose images are not known, that is a warning.
    """
    name, checkpoint = _options(cfg).get("NAME"), _options(cfg).get("CHECKPOINT")
    if not name:
        raise ValueError("MODEL.TIMM.NAME is empty; set it to an architecture of timm, such as resnet50")
    is_start = not cfg.MODEL.WEIGHTS
    backbone = TimmBackbone(
        name,
        out_features=list(_options(cfg).get("OUT_FEATURES")) or None,
        pretrained=is_start and _options(cfg).get("PRETRAINED"),
        checkpoint=checkpoint if is_start else "",
        norm=_options(cfg).get("NORM"),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        drop_path_rate=_options(cfg).get("DROP_PATH_RATE"),
        in_chans=input_shape.channels or 3,
        patch_size=_options(cfg).get("PATCH_SIZE") or None,
    )
    has_weights = bool(_options(cfg).get("PRETRAINED") or checkpoint)
    if cfg.MODEL.WEIGHTS.startswith("timm://"):
        check_pixel_statistics(cfg, backbone, f"timm's {name}")
    if is_start and has_weights:
        try:
            check_pixel_statistics(cfg, backbone, f"timm's {name}")
        except ValueError as error:
            if not checkpoint:
                raise
            logger.warning("If %s is from the hub: %s", checkpoint, error)
    warn_of_frozen_random_weights(cfg, has_weights)
    return backbone


@BACKBONE_REGISTRY.register_addition
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> PyramidBase:
    """Build a network of timm with the pyramid of R-CNN from `cfg.MODEL.{TIMM,FPN}`; see `build_pyramid`."""
    return build_pyramid(cfg, build_timm_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register_addition
def build_retinanet_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> PyramidBase:
    """Build a network of timm with the pyramid of RetinaNet from `cfg.MODEL.{TIMM,FPN}`; see `build_pyramid`."""
    return build_pyramid(cfg, build_timm_backbone(cfg, input_shape), for_retinanet=True)
