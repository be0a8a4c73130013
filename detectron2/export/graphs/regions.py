"""What is read from regions, and put into them, with fixed shapes.

Letters: `N` images, `R` regions of all images, `C` channels, `M` side of a mask in cells, `H` and `W` height and width
in pixels of the input.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes

from .graph import GraphOptions, GraphPart, NotExportableError, register_exportable

__all__ = ["PoolerGraph", "paste_masks"]


@register_exportable(ROIPooler)
class PoolerGraph(GraphPart):
    """Every level pools all regions, those of other levels as empty boxes, and each region takes its own level's.

    With an adaptive number of samples an empty box costs nothing.
    """

    def __init__(self, module: Any, options: GraphOptions):
        super().__init__(module, options)
        kind = type(module.level_poolers[0]).__name__
        if kind == "ROIAlignRotated":
            raise NotExportableError(
                "the pooler ROIAlignRotated reads rotated regions, for which neither ONNX nor torchvision has an "
                "operator; train with upright boxes (POOLER_TYPE ROIAlignV2)"
            )

    def __call__(self, maps: list[torch.Tensor], boxes: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
        """Pool regions.

        Args:
            maps: for each level `Tensor[N, C, H, W]`.
            boxes: `Tensor[R, 4]`.
            image_index: int64 `Tensor[R]`, the image of each region.

        Returns:
            `Tensor[R, C, height, width]`.
        """
        pooler = self.module
        index = image_index[:, None].to(boxes.dtype)
        if len(maps) == 1:
            return pooler.level_poolers[0](maps[0], torch.cat((index, boxes), dim=1))
        levels = assign_boxes_to_levels(
            [Boxes(boxes)], pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
        )
        pooled = None
        for i, (pool, feature) in enumerate(zip(pooler.level_poolers, maps, strict=True)):
            here = levels == i
            of_level = pool(feature, torch.cat((index, torch.where(here[:, None], boxes, 0.0)), dim=1))
            pooled = of_level if pooled is None else torch.where(here[:, None, None, None], of_level, pooled)
        assert pooled is not None, "a pooler has at least one level"
        return pooled


def paste_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size_hw: Sequence[Any], threshold: float = 0.5
) -> torch.Tensor:
    """Resample masks to their boxes in otherwise empty images, as `detectron2.layers.paste_masks_in_image`.

    Interpolation is separable, and so are the pixels that a mask reaches: a mask becomes `rows @ mask @ columns`, with
    weights that are zero outside.

    Args:
        masks: `Tensor[R, M, M]` of values in [0, 1].
        boxes: `Tensor[R, 4]`.
        size_hw: `(H, W)`.
        threshold: pixels of at least this value belong to the object.

    Returns:
        uint8 `Tensor[R, H, W]` of 0 and 1.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    rows = _weights(y1, y2, size_hw[0], masks.shape[1])
    columns = _weights(x1, x2, size_hw[1], masks.shape[2])
    return (rows @ masks @ columns.transpose(1, 2) >= threshold).to(torch.uint8)


def _weights(start: torch.Tensor, stop: torch.Tensor, size: Any, cells: int) -> torch.Tensor:
    """How much each cell of a mask counts at each pixel of an axis of the image, `Tensor[R, size, cells]`."""
    start, stop = start[:, None], stop[:, None]
    pixels = torch.arange(size, dtype=torch.float32, device=start.device)
    some = stop > start
    position = (pixels + 0.5 - start) / torch.where(some, stop - start, 1.0) * cells - 0.5
    near = some & (pixels >= (start - 1).floor()) & (pixels < (stop + 1).ceil())
    weights = (1 - (position[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
    return torch.where(near[..., None], weights, 0.0)
