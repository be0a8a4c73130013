"""Anchors: the reference boxes that dense heads classify and refine.

Letters: `L` feature levels, `A` anchors at each place of a feature map (a "cell"), `H`, `W` size of a feature map.
Boxes are `(x1, y1, x2, y2)` in pixels of the padded network input, continuous coordinates; rotated ones
`(x_center, y_center, width, height, angle)`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, RotatedBoxes
from detectron2.utils.registry import Registry, build_part

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "DefaultAnchorGenerator",
    "RotatedAnchorGenerator",
    "TorchvisionAnchorGenerator",
    "build_anchor_generator",
]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Anchor generators by name.

An entry is called as `entry(cfg, input_shape)`, where `input_shape` lists the `ShapeSpec` of every feature map,
and returns a module that maps a list of feature maps to a list of boxes.
"""


class BufferList(nn.Module):
    """A list of tensors that follow the module to its device but are not part of its state dict."""

    def __init__(self, buffers: Sequence[torch.Tensor]):
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (buffer for buffer in self._buffers.values() if buffer is not None)

    def __getitem__(self, index: int) -> torch.Tensor:
        return list(self)[index]


def _create_grid_offsets(
    size: Sequence[int], stride: int, offset: float, target: torch.Tensor | torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """X and y of all cells of a map of `size` `(H, W)`, each `Tensor[H * W]`; the first lies at `offset` strides."""
    device = target.device if isinstance(target, torch.Tensor) else target
    grid_height, grid_width = size
    x = torch.arange(grid_width, dtype=torch.float32, device=device).add(offset).mul(stride)
    y = torch.arange(grid_height, dtype=torch.float32, device=device).add(offset).mul(stride)
    return x.repeat(grid_height), y.repeat_interleave(grid_width)


def _broadcast_params(params: Sequence, num_features: int, name: str) -> Sequence:
    """Give every map its list of values, from one list for all maps, a list of one list, or one list for each map."""
    if not isinstance(params, Sequence) and not hasattr(params, "__len__"):
        raise TypeError(f"anchor generator: {name} must be a list; got {params!r}")
    if len(params) == 0 or any(hasattr(x, "__len__") and len(x) == 0 for x in params):
        raise ValueError(f"anchor generator: {name} is empty, or holds an empty list: {params}")
    if not hasattr(params[0], "__len__"):
        return [params] * num_features
    if len(params) == 1:
        return list(params) * num_features
    if len(params) != num_features:
        raise ValueError(
            f"anchor generator: {name} has {len(params)} entries for {num_features} feature maps: {params}"
        )
    return params


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of several sizes and shapes at every cell of every feature map (Ren et al. 2015, section 3.1.1).

    Args:
        sizes: anchor sizes, i.e. square roots of their areas, in pixels. `sizes[i]` lists those of feature map `i`;
            a flat list, or a list of one list, is used for all maps.
        aspect_ratios: height over width, in the same forms.
        strides: stride of every feature map, in pixels.
        offset: where the centre of the first anchor lies, in strides, at least 0 and less than 1. 0.5 is the centre of
            the first cell; published models use 0.
    """

    box_dim: torch.jit.Final[int] = 4
    """Numbers that describe one anchor."""
    _box_type: type[Boxes] = Boxes
    # Called in the place of `_grid_anchors`, with this generator, where anchors are kept; see optimized.py.
    _keep: Callable[[Any, list[Sequence[int]]], list[torch.Tensor]] | None = None

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        offset: float = 0.5,
    ):
        super().__init__()
        self.strides = list(strides)
        self.num_features = len(self.strides)
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"anchor generator: offset is in strides, at least 0 and less than 1; got {offset}")
        self.offset = offset
        self.cell_anchors = self._calculate_anchors(
            _broadcast_params(sizes, self.num_features, "sizes"),
            _broadcast_params(aspect_ratios, self.num_features, "aspect_ratios"),
        )

    def _calculate_anchors(self, *params: Sequence) -> BufferList:
        return BufferList([self.generate_cell_anchors(*values).float() for values in zip(*params, strict=True)])

    @property
    def num_cell_anchors(self) -> list[int]:
        """Same as `num_anchors`."""
        return self.num_anchors

    @property
    def num_anchors(self) -> list[int]:
        """`A` of every feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    def _grid_anchors(self, grid_sizes: list[Sequence[int]]) -> list[torch.Tensor]:
        """Place the cell anchors on grids of `(H, W)` cells; one `Tensor[H * W * A, box_dim]` for each level."""
        anchors = []
        for size_hw, stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            x, y = _create_grid_offsets(size_hw, stride, self.offset, cell)
            shifts = torch.stack(self._shift(x, y), dim=1)
            anchors.append((shifts[:, None] + cell).reshape(-1, self.box_dim))
        return anchors

    def _shift(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What to add to the numbers of an anchor to move it by `(x, y)`."""
        return x, y, x, y

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> torch.Tensor:
        """Compute the anchors of one cell, centred at the origin.

        Args:
            sizes: square roots of the areas, in pixels.
            aspect_ratios: height over width.

        Returns:
            `Tensor[A, 4]` with `A = len(sizes) * len(aspect_ratios)`, all shapes of the first size first. They are not
            rounded to whole pixels.
        """
        size = torch.tensor(list(sizes), dtype=torch.float64)[:, None]
        ratio = torch.tensor(list(aspect_ratios), dtype=torch.float64)[None]
        width, height = size / ratio.sqrt(), size * ratio.sqrt()
        return torch.stack((-width, -height, width, height), dim=-1).reshape(-1, 4).div(2).float()

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """Place anchors on every cell of every feature map.

        Args:
            features: one `Tensor[N, C, H, W]` for each level; only their sizes matter.

        Returns:
            For each level `H * W * A` boxes, in the order row, column, anchor; the same for all images of the batch.
        """
        if len(features) != self.num_features:
            raise ValueError(f"anchor generator made for {self.num_features} feature maps; got {len(features)}")
        sizes_hw: list[Sequence[int]] = [x.shape[-2:] for x in features]
        placed = self._grid_anchors(sizes_hw) if self._keep is None else self._keep(self, sizes_hw)
        return [self._box_type(anchors) for anchors in placed]

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Read `cfg.MODEL.ANCHOR_GENERATOR`."""
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """The anchors of torchvision's detectors, which their weights expect.

    They differ from those of `DefaultAnchorGenerator` in three ways: corners are rounded to whole pixels; all sizes of
    the first shape come first; and cells lie `side of the image // side of the map` apart, which is less than the
    stride where the stride does not divide the side. The image is as large as the first map times its stride.

    Args:
        sizes: see `DefaultAnchorGenerator`.
        aspect_ratios: see `DefaultAnchorGenerator`.
        strides: see `DefaultAnchorGenerator`; only the first is read.
        offset: must be 0.

    Example:
        >>> from detectron2.modeling.anchor_generator import TorchvisionAnchorGenerator
        >>> generator = TorchvisionAnchorGenerator(sizes=[32], aspect_ratios=[0.5, 2.0], strides=[16])
        >>> generator.generate_cell_anchors([32], [0.5, 2.0]).tolist()
        [[-23.0, -11.0, 23.0, 11.0], [-11.0, -23.0, 11.0, 23.0]]
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        offset: float = 0.0,
    ):
        if offset != 0:
            raise ValueError(
                f"TorchvisionAnchorGenerator: offset (MODEL.ANCHOR_GENERATOR.OFFSET) must be 0; got {offset}"
            )
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> torch.Tensor:
        """As of `DefaultAnchorGenerator`, rounded, all sizes of the first shape first."""
        # In single precision and in this order: what lies half way between two pixels is rounded as there.
        ratio_h = torch.tensor(list(aspect_ratios), dtype=torch.float32).sqrt()[:, None]
        size = torch.tensor(list(sizes), dtype=torch.float32)[None]
        width, height = (1 / ratio_h * size).flatten(), (ratio_h * size).flatten()
        return (torch.stack((-width, -height, width, height), dim=1) / 2).round()

    def _grid_anchors(self, grid_sizes: list[Sequence[int]]) -> list[torch.Tensor]:
        image_hw = [side * self.strides[0] for side in grid_sizes[0]]
        anchors = []
        for (height, width), cell in zip(grid_sizes, self.cell_anchors, strict=True):
            step_y, step_x = image_hw[0] // max(height, 1), image_hw[1] // max(width, 1)
            x = (torch.arange(width, device=cell.device) * step_x).to(cell.dtype).repeat(height)
            y = (torch.arange(height, device=cell.device) * step_y).to(cell.dtype).repeat_interleave(width)
            shifts = torch.stack(self._shift(x, y), dim=1)
            anchors.append((shifts[:, None] + cell).reshape(-1, self.box_dim))
        return anchors


@ANCHOR_GENERATOR_REGISTRY.register()
class RotatedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of several sizes, shapes and angles at every cell of every feature map (Ma et al. 2018, section III-C).

    An anchor is `(x_center, y_center, width, height, angle)`, angle in degrees, counter-clockwise.

    Args:
        sizes: see `DefaultAnchorGenerator`.
        aspect_ratios: see `DefaultAnchorGenerator`.
        strides: see `DefaultAnchorGenerator`.
        angles: in degrees, in the same forms as `sizes`.
        offset: see `DefaultAnchorGenerator`.
    """

    box_dim: torch.jit.Final[int] = 5
    _box_type = RotatedBoxes

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        angles: Sequence[Sequence[float]] | Sequence[float],
        offset: float = 0.5,
    ):
        self._angles = _broadcast_params(angles, len(strides), "angles")
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)

    def _calculate_anchors(self, *params: Sequence) -> BufferList:
        return super()._calculate_anchors(*params, self._angles)

    def _shift(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        still = torch.zeros_like(x)
        return x, y, still, still, still

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
        angles: Sequence[float] = (-90, -60, -30, 0, 30, 60, 90),
    ) -> torch.Tensor:
        """Compute the anchors of one cell, centred at the origin.

        Args:
            sizes: square roots of the areas, in pixels.
            aspect_ratios: height over width.
            angles: in degrees.

        Returns:
            `Tensor[A, 5]` with `A = len(sizes) * len(aspect_ratios) * len(angles)`: sizes vary slowest, angles
            fastest.
        """
        size = torch.tensor(list(sizes), dtype=torch.float64)[:, None, None]
        ratio = torch.tensor(list(aspect_ratios), dtype=torch.float64)[None, :, None]
        angle = torch.tensor(list(angles), dtype=torch.float64)[None, None]
        zero = torch.zeros_like(size)
        columns = torch.broadcast_tensors(zero, zero, size / ratio.sqrt(), size * ratio.sqrt(), angle)
        return torch.stack(columns, dim=-1).reshape(-1, 5).float()

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Read `cfg.MODEL.ANCHOR_GENERATOR`."""
        return {**super().from_config(cfg, input_shape), "angles": cfg.MODEL.ANCHOR_GENERATOR.ANGLES}


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the anchor generator that `cfg.MODEL.ANCHOR_GENERATOR.NAME` names, for feature maps of these shapes."""
    return build_part(ANCHOR_GENERATOR_REGISTRY, "MODEL.ANCHOR_GENERATOR.NAME", cfg, input_shape=input_shape)
