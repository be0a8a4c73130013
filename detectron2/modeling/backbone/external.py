"""What backbones share whose network comes from another library: names of maps, padding, frozen parts, pyramids.

A map of stride `2 ** k` is called `res<k>`, as in our ResNet, so that every config on a ResNet takes such a backbone
after a change of `MODEL.BACKBONE.NAME`. A map of another stride `s` is called `stride<s>`.
"""

import importlib.util
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.utils.file_io import is_offline

from .backbone import Backbone, warn_of_freezing_all
from .fpn import FPN, LastLevelMaxPool, LastLevelP6P7, PyramidBase
from .vit import SimpleFeaturePyramid

__all__ = [
    "NORMS",
    "ExternalBackbone",
    "build_pyramid",
    "check_pixel_statistics",
    "hub_as_allowed",
    "map_name",
    "require_package",
    "set_pixel_statistics",
    "warn_of_frozen_random_weights",
]

logger = logging.getLogger(__name__)

NORMS = ("keep", "FrozenBN", "BN", "SyncBN")
"""What the argument `norm` of an `ExternalBackbone` may be."""

_FINEST, _COARSEST = 4, 32  # strides that detectors use


def require_package(package: str, wanted_for: str) -> None:
    """Raise an `ImportError` that names the extra, if a package is not installed whose name is that of its extra."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{wanted_for} needs the package {package}: pip install 'detectron2[{package}]'")


@contextmanager
def hub_as_allowed() -> Iterator[None]:
    """Keep the client of the Hugging Face hub to its cache, where `DETECTRON2_OFFLINE` forbids the network."""
    if not is_offline() or importlib.util.find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def map_name(stride: int) -> str:
    """Return the name of a map.

    >>> map_name(16), map_name(14)
    ('res4', 'stride14')
    """
    return f"res{stride.bit_length() - 1}" if stride & (stride - 1) == 0 else f"stride{stride}"


class ExternalBackbone(Backbone):
    """Base of backbones whose network comes from another library.

    Images of every size are accepted: zeros at the bottom and at the right complete them to multiples of
    `size_divisibility`, and a map of stride `s` has the size of the image divided by `s`, rounded up.

    A subclass calls `_choose_maps`, `_set_network` and `_check_maps`, in this order. It implements `_maps_of`, and
    `layer_groups` where layers have an order, and `_frozen_norm` where norms are not those of PyTorch.

    Attributes:
        network: the network of the other library, whose names of parameters follow `network.`.
        pixel_mean: mean of the images that its pretrained weights expect, RGB in grey levels; None if it is not known.
        pixel_std: the standard deviation that these images are divided by, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixel_mean: list[float] | None = None
        self.pixel_std: list[float] | None = None
        self._frozen_parts: tuple[str, ...] = ()

    @property
    def size_divisibility(self) -> int:
        """The largest stride. Other sizes work as well; they are completed with zeros."""
        return max(self._out_feature_strides.values())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images `Tensor[N, C, H, W]` to `Tensor[N, C_i, ceil(H / stride), ceil(W / stride)]` by name."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.size_divisibility, -width % self.size_divisibility
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        outputs = {}
        for name, value in zip(self._out_features, self._maps_of(x), strict=True):
            if bottom or right:
                stride = self._out_feature_strides[name]
                value = value[..., : -(-height // stride), : -(-width // stride)]
            outputs[name] = value
        return outputs

    def train(self, mode: bool = True) -> "ExternalBackbone":
        """Set the mode of training, except for frozen parts: these stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen_parts:
            self.get_submodule(name).eval()
        return self

    def layer_groups(self, coarse: bool) -> dict[str, int]:
        """Number the layers: name of a parameter in this module -> 0 for what comes before all blocks, then 1, 2, ...

        With `coarse` a stage of blocks is one group; of a plain transformer every block is one. `SOLVER.LAYER_DECAY`
        and `MODEL.BACKBONE.FREEZE_AT` count these groups.
        """
        raise NotImplementedError(f"The layers of {type(self).__name__} have no order")

    @abstractmethod
    def _maps_of(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Compute the chosen maps, the finest first, of images whose sides `size_divisibility` divides."""

    def _choose_maps(
        self, name: str, channels: Sequence[int], strides: Sequence[int], wanted: Sequence[str] | None
    ) -> list[int]:
        """Describe the outputs and return their places among all maps; of equal strides the last is taken."""
        place = {map_name(stride): i for i, stride in enumerate(strides)}
        usual = [map_name(s) for s in dict.fromkeys(strides) if _FINEST <= s <= _COARSEST]
        names = [n for n in place if n in (wanted or usual)]
        if unknown := [n for n in wanted or () if n not in place]:
            raise ValueError(f"{name} has no map {', '.join(unknown)}; out_features may be {', '.join(place)}")
        if not names:
            raise ValueError(f"{name} has maps of the strides {list(strides)} only; a detector needs one from 4 to 32")
        chosen = [place[n] for n in names]
        self._out_features = names
        self._out_feature_channels = {n: channels[i] for n, i in zip(names, chosen, strict=True)}
        self._out_feature_strides = {n: strides[i] for n, i in zip(names, chosen, strict=True)}
        return chosen

    def _set_network(self, network: nn.Module, norm: str, freeze_at: int) -> None:
        """Keep the network, with its norms and its first layers as the caller wants them."""
        self.network = network
        convert: Callable[[nn.Module], nn.Module]
        convert = {"FrozenBN": self._frozen_norm, "SyncBN": _synchronized_norm}.get(norm, lambda layer: layer)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
        if not _replace_batch_norms(self, convert) and norm != "keep":
            raise ValueError(f"norm {norm!r} is for networks with batch norms, and this one has none; use 'keep'")
        if freeze_at < 0:
            raise ValueError(f"freeze_at (MODEL.BACKBONE.FREEZE_AT) must be at least 0; got {freeze_at}")
        if freeze_at:
            groups = self.layer_groups(coarse=True)
            warn_of_freezing_all(freeze_at, 1 + max(groups.values()))
            self._freeze({name for name, group in groups.items() if group < freeze_at})

    def _check_maps(self, name: str, channels: int) -> None:
        """Raise unless an image that is not square gives maps of the sizes that the strides promise."""
        # Large enough for the deepest stages, which some networks compute even where nothing is taken from them.
        side = self.size_divisibility * math.ceil(32 / self.size_divisibility)
        height, width = 2 * side, 3 * side
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                maps = self._maps_of(torch.zeros(1, channels, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name} does not take images of {height} x {width} pixels, and a detector needs many sizes ({error}); "
                "choose another architecture, such as a resnet, convnext, swin or vit"
            ) from error
        self.train(was_training)
        found = [(x.shape[1], *x.shape[-2:]) for x in maps]
        specs = self.output_shape().values()
        expected = [(s.channels, height // s.stride, width // s.stride) for s in specs if s.stride]
        if found != expected:
            raise ValueError(
                f"{name} has maps of {found} (channels, H, W) for an image of {height} x {width} pixels, where a "
                f"detector needs {expected}; choose another architecture, or other out_features"
            )

    def _frozen_norm(self, norm: nn.Module) -> nn.Module:
        return FrozenBatchNorm2d.convert_frozen_batchnorm(norm)

    def _freeze(self, names: set[str]) -> None:
        """Keep these parameters, and what consists of nothing else, as they are."""
        parts = []
        for name, module in self.named_modules():
            own = [n for n, _ in module.named_parameters(prefix=name)]
            if name and own and set(own) <= names and not f"{name}.".startswith(tuple(f"{part}." for part in parts)):
                parts.append(name)
        for name, parameter in self.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
        for name in parts:
            parent, _, child = name.rpartition(".")
            part = self.get_submodule(name)
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                setattr(self.get_submodule(parent), child, self._frozen_norm(part))
            else:
                _replace_batch_norms(part, self._frozen_norm)
        self._frozen_parts = tuple(parts)
        self.train(self.training)


def _replace_batch_norms(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> int:
    """Replace the batch norms within a module, and return how many there are."""
    found = 0
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            found += 1
            setattr(module, name, convert(child))
        else:
            found += _replace_batch_norms(child, convert)
    return found


def _synchronized_norm(norm: Any) -> nn.Module:
    if type(norm).forward is not nn.BatchNorm2d.forward:
        raise ValueError(f"norm 'SyncBN' cannot replace a {type(norm).__name__}, which does more than a batch norm")
    new: Any = get_norm("SyncBN", norm.num_features)
    new.eps, new.momentum = norm.eps, norm.momentum
    new.load_state_dict(norm.state_dict())
    return new


# ------------------------------------------------------------------------------------------------------------ configs


def build_pyramid(cfg: Any, bottom_up: Backbone, for_retinanet: bool = False) -> PyramidBase:
    """Build the pyramid of `cfg.MODEL.FPN` on a backbone.

    A backbone with a map for each of `MODEL.FPN.IN_FEATURES` gets an `FPN`. One with a single map, a plain transformer,
    gets a `SimpleFeaturePyramid`, which makes a level for each of these names from that map, of a stride from 8 to 32;
    its norm is `"LN"` where `MODEL.FPN.NORM` is empty.

    Args:
        cfg: the config.
        bottom_up: the backbone.
        for_retinanet: whether the further levels are those of RetinaNet (`LastLevelP6P7`) or that of R-CNN
            (`LastLevelMaxPool`).

    Returns:
        The pyramid, with levels `p<k>` of stride `2 ** k`.

    Raises:
        ValueError: the backbone has no such maps.
    """
    wanted, width = list(cfg.MODEL.FPN.IN_FEATURES), cfg.MODEL.FPN.OUT_CHANNELS
    shapes: dict[str, Any] = bottom_up.output_shape()
    level = _level_of(wanted[-1] if wanted else "")
    if len(shapes) > 1 or wanted == list(shapes):
        if not wanted or (for_retinanet and wanted[-1] not in shapes):
            raise ValueError(f"MODEL.FPN.IN_FEATURES is {wanted}, but the backbone offers {list(shapes)}")
        top: nn.Module = LastLevelMaxPool(f"p{level}")
        if for_retinanet:
            top = LastLevelP6P7(shapes[wanted[-1]].channels, width, wanted[-1])
        return FPN(bottom_up, wanted, width, cfg.MODEL.FPN.NORM, top, cfg.MODEL.FPN.FUSE_TYPE)
    (name,) = shapes
    stride = shapes[name].stride
    if stride & (stride - 1):
        raise ValueError(
            f"The backbone has one map, of stride {stride}, and a pyramid needs a power of two. Set the size of its "
            "patches to 16 (MODEL.TIMM.PATCH_SIZE, argument patch_size), to which pretrained patches are resized."
        )
    scales = [stride / 2 ** _level_of(n) for n in wanted]
    top = LastLevelP6P7(width, width, f"p{level}") if for_retinanet else LastLevelMaxPool(f"p{level}")
    return SimpleFeaturePyramid(bottom_up, name, width, scales, top, norm=cfg.MODEL.FPN.NORM or "LN")


def _level_of(name: str) -> int:
    if not name.startswith("res") or not name[3:].isdigit():
        raise ValueError(f"MODEL.FPN.IN_FEATURES has names such as 'res4' for the map of stride 16; got {name!r}")
    return int(name[3:])


def set_pixel_statistics(cfg: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a config normalise images for weights that expect RGB with this mean and deviation, in grey levels.

    The keys are `MODEL.PIXEL_MEAN`, `MODEL.PIXEL_STD` and `INPUT.FORMAT`.
    """
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT = list(mean), list(std), "RGB"


def check_pixel_statistics(cfg: Any, backbone: ExternalBackbone, name: str) -> None:
    """Raise a `ValueError` if a config does not normalise images as pretrained weights expect it.

    A backbone that does not know what its weights expect, or takes other than three channels, passes.
    """
    mean, std = backbone.pixel_mean, backbone.pixel_std
    if mean is None or std is None or len(cfg.MODEL.PIXEL_MEAN) != len(mean):
        return
    got = (list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT)
    is_close = all(math.isclose(a, b, abs_tol=0.5) for a, b in zip((*got[0], *got[1]), (*mean, *std), strict=True))
    if is_close and got[2] == "RGB":
        return
    raise ValueError(
        f"The pretrained weights of {name} expect other images than this config makes (INPUT.FORMAT {got[2]}, "
        f"MODEL.PIXEL_MEAN {got[0]}, MODEL.PIXEL_STD {got[1]}). Set these three:\n"
        f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN {_no_spaces(mean)} MODEL.PIXEL_STD {_no_spaces(std)}"
    )


def _no_spaces(numbers: Sequence[float]) -> str:
    return f"[{','.join(f'{x:g}' for x in numbers)}]"


def warn_of_frozen_random_weights(cfg: Any, has_weights: bool) -> None:
    """Warn when `MODEL.BACKBONE.FREEZE_AT` freezes layers for which there are no weights."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not has_weights and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT is %d, but there are no weights: the frozen layers keep random numbers. Set it "
            "to 0, or give weights.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
