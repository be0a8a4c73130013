"""Pool the features of regions without sorting them by level.

Letters: `N` images, `R` regions of all images, `C` channels.
"""

import torch

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes

from .graph import GraphPart, NotExportableError, register_exportable

__all__ = ["PoolerGraph"]


@register_exportable(ROIPooler)
class PoolerGraph(GraphPart):
    """Every level pools all regions, those of other levels as empty boxes, and each region takes its own level's.

    With an adaptive number of samples an empty box costs nothing.
    """

    def __init__(self, module, options):
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
