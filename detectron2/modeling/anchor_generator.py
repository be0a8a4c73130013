"""Anchors: the reference boxes that dense heads classify and refine.

Letters: `L` feature levels, `A` anchors at each place of a feature map (a "cell"), `H`, `W` size of a feature map.
Boxes are `(x1, y1, x2, y2)` in pixels of the padded network input, continuous coordinates; rotated ones
`(x_center, y_center, width, height, angle)`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, RotatedBoxes
from detectron2.utils.registry import Registry, lookup

__all__ = ["ANCHOR_GENERATOR_REGISTRY", "DefaultAnchorGenerator", "RotatedAnchorGenerator", "build_anchor_generator"]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Anchor generators by name.

An entry is called as `entry(cfg, input_shape)`, where `input_shape` lists the `ShapeSpec` of every feature map,
and returns a module that maps a list of feature maps to a list of boxes.
"""


class BufferList(nn.Module):
    """A list of tensors that follow the module to its device but are not part of its state dict.

    Args:
        buffers: the tensors.
    """

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
    """Compute the places of all cells of a feature map in the input image.

    Args:
        size: `(H, W)` of the feature map.
        stride: pixels between neighbouring cells.
        offset: place of the first cell, in strides.
        target: the device, or a tensor on it.

    Returns:
        x and y in pixels, each `Tensor[H * W]`, row by row.
    """
    device = target.device if isinstance(target, torch.Tensor) else target
    grid_height, grid_width = size
    x = torch.arange(grid_width, dtype=torch.float32, device=device).add(offset).mul(stride)
    y = torch.arange(grid_height, dtype=torch.float32, device=device).add(offset).mul(stride)
    return x.repeat(grid_height), y.repeat_interleave(grid_width)


def _broadcast_params(params: Sequence, num_features: int, name: str) -> Sequence:
    """Give every feature map its list of values.

    `params` is a list of numbers for all maps, a list with one such list, or a list with one list for each map.
    """
    if not isinstance(params, Sequence) and not hasattr(params, "__len__"):
        raise TypeError(f"anchor generator: {name} must be a list; got {params!r}")
    if len(params) == 0:
        raise ValueError(f"anchor generator: {name} is empty")
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

    def _calculate_anchors(self, sizes: Sequence, aspect_ratios: Sequence) -> BufferList:
        return BufferList([self.generate_cell_anchors(s, a).float() for s, a in zip(sizes, aspect_ratios, strict=True)])

    @property
    def num_cell_anchors(self) -> list[int]:
        """Same as `num_anchors`."""
        return self.num_anchors

    @property
    def num_anchors(self) -> list[int]:
        """`A` of every feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    def _grid_anchors(self, grid_sizes: list[Sequence[int]]) -> list[torch.Tensor]:
        """Place the cell anchors on grids of `(H, W)` cells; one `Tensor[H * W * A, 4]` for each level."""
        anchors = []
        for size_hw, stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            x, y = _create_grid_offsets(size_hw, stride, self.offset, cell)
            shifts = torch.stack((x, y, x, y), dim=1)
            anchors.append((shifts[:, None] + cell).reshape(-1, 4))
        return anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
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
        return [Boxes(anchors) for anchors in self._grid_anchors([feature.shape[-2:] for feature in features])]

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
class RotatedAnchorGenerator(nn.Module):
    """Anchors of several sizes, shapes and angles at every cell of every feature map (Ma et al. 2018, section III-C).

    An anchor is `(x_center, y_center, width, height, angle)`, angle in degrees, counter-clockwise.

    Args:
        sizes: anchor sizes, i.e. square roots of their areas, in pixels. `sizes[i]` lists those of feature map `i`;
            a flat list, or a list of one list, is used for all maps.
        aspect_ratios: height over width, in the same forms.
        strides: stride of every feature map, in pixels.
        angles: in degrees, in the same forms.
        offset: where the centre of the first anchor lies, in strides, at least 0 and less than 1.
    """

    box_dim: torch.jit.Final[int] = 5
    """Numbers that describe one anchor."""

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
        super().__init__()
        self.strides = list(strides)
        self.num_features = len(self.strides)
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"anchor generator: offset is in strides, at least 0 and less than 1; got {offset}")
        self.offset = offset
        self.cell_anchors = self._calculate_anchors(
            _broadcast_params(sizes, self.num_features, "sizes"),
            _broadcast_params(aspect_ratios, self.num_features, "aspect_ratios"),
            _broadcast_params(angles, self.num_features, "angles"),
        )

    def _calculate_anchors(self, sizes: Sequence, aspect_ratios: Sequence, angles: Sequence) -> BufferList:
        per_map = zip(sizes, aspect_ratios, angles, strict=True)
        return BufferList([self.generate_cell_anchors(*values) for values in per_map])

    @property
    def num_cell_anchors(self) -> list[int]:
        """Same as `num_anchors`."""
        return self.num_anchors

    @property
    def num_anchors(self) -> list[int]:
        """`A` of every feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    def _grid_anchors(self, grid_sizes: list[Sequence[int]]) -> list[torch.Tensor]:
        """Place the cell anchors on grids of `(H, W)` cells; one `Tensor[H * W * A, 5]` for each level."""
        anchors = []
        for size_hw, stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            x, y = _create_grid_offsets(size_hw, stride, self.offset, cell)
            still = torch.zeros_like(x)
            shifts = torch.stack((x, y, still, still, still), dim=1)
            anchors.append((shifts[:, None] + cell).reshape(-1, 5))
        return anchors

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

    def forward(self, features: list[torch.Tensor]) -> list[RotatedBoxes]:
        """Place anchors on every cell of every feature map.

        Args:
            features: one `Tensor[N, C, H, W]` for each level; only their sizes matter.

        Returns:
            For each level `H * W * A` boxes, in the order row, column, anchor; the same for all images of the batch.
        """
        if len(features) != self.num_features:
            raise ValueError(f"anchor generator made for {self.num_features} feature maps; got {len(features)}")
        return [RotatedBoxes(anchors) for anchors in self._grid_anchors([feature.shape[-2:] for feature in features])]

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Read `cfg.MODEL.ANCHOR_GENERATOR`."""
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "angles": cfg.MODEL.ANCHOR_GENERATOR.ANGLES,
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the anchor generator that `cfg.MODEL.ANCHOR_GENERATOR.NAME` names, for feature maps of these shapes."""
    return lookup(ANCHOR_GENERATOR_REGISTRY, cfg.MODEL.ANCHOR_GENERATOR.NAME, "MODEL.ANCHOR_GENERATOR.NAME")(
        cfg, input_shape
    )
