"""The windows of TensorMask: square anchors that know their unit of length.

Letters: `H`, `W` size of a feature map, `A` windows at each of its cells, `R_i = H * W * A` windows of level i.
"""

import torch

from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

__all__ = ["TensorMaskAnchorGenerator"]


@ANCHOR_GENERATOR_REGISTRY.register()
class TensorMaskAnchorGenerator(DefaultAnchorGenerator):
    """Anchors, together with the length of their unit and their place in the pyramid.

    The unit of a window is the stride of its level. A window of 44 pixels at stride 4 is 11 units long.
    """

    def grid_anchors_with_unit_lengths_and_indexes(
        self, grid_sizes: list
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Place windows on grids.

        Args:
            grid_sizes: `(H, W)` of every level.

        Returns:
            For each level the windows `Tensor[R_i, 4]`, their unit lengths in pixels `Tensor[R_i]`, and int64
            `Tensor[R_i, 4]` of level, row, column and number of the anchor in its cell.
        """
        anchors = self._grid_anchors(grid_sizes)
        units, indexes = [], []
        for level, (boxes, (height, width), stride, cell) in enumerate(
            zip(anchors, grid_sizes, self.strides, self.cell_anchors, strict=True)
        ):
            units.append(boxes.new_full((len(boxes),), stride))
            ranges = [torch.arange(size, device=boxes.device) for size in (height, width, len(cell))]
            place = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).reshape(-1, 3)
            indexes.append(torch.cat([torch.full_like(place[:, :1], level), place], dim=1))
        return anchors, units, indexes

    def forward(self, features: list[torch.Tensor]) -> tuple[list[Boxes], list[torch.Tensor], list[torch.Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]  # more than the base returns
        """Place windows on every cell of every feature map.

        Args:
            features: one `Tensor[N, C, H, W]` for each level; only their sizes matter.

        Returns:
            As `grid_anchors_with_unit_lengths_and_indexes`, the windows as boxes.
        """
        if len(features) != self.num_features:
            raise ValueError(f"anchor generator made for {self.num_features} feature maps; got {len(features)}")
        sizes = [feature.shape[-2:] for feature in features]
        anchors, units, indexes = self.grid_anchors_with_unit_lengths_and_indexes(sizes)
        return [Boxes(boxes) for boxes in anchors], units, indexes
