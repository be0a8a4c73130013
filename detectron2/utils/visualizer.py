"""Draw data and predictions on images. The classes live in `detectron2.visualization`."""

from detectron2.utils.colormap import random_color
from detectron2.visualization.canvas import VisImage
from detectron2.visualization.colors import _BLACK, _OFF_WHITE, _RED, ColorMode
from detectron2.visualization.labels import _create_text_labels
from detectron2.visualization.masks import GenericMask
from detectron2.visualization.panoptic import _PanopticPrediction
from detectron2.visualization.visualizer import (
    _KEYPOINT_THRESHOLD,
    _LARGE_MASK_AREA_THRESH,
    _SMALL_OBJECT_AREA_THRESH,
    Visualizer,
)

__all__ = [
    "_BLACK",
    "_KEYPOINT_THRESHOLD",
    "_LARGE_MASK_AREA_THRESH",
    "_OFF_WHITE",
    "_RED",
    "_SMALL_OBJECT_AREA_THRESH",
    "ColorMode",
    "GenericMask",
    "VisImage",
    "Visualizer",
    "_PanopticPrediction",
    "_create_text_labels",
    "random_color",
]
