"""A segmenter that is exported in a second, and a small Mask R-CNN."""

import pytest
import torch
from torch import nn

from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SemanticSegmentor
from detectron2.modeling.backbone import Backbone
from tests.export.test_tracing import tiny_model

MEAN, STD = [100.0, 110.0, 120.0], [57.0, 58.0, 59.0]


class OneConvolution(Backbone):
    def __init__(self):
        super().__init__()
        self.first = Conv2d(3, 8, 3, padding=1, activation=torch.relu)
        self.second = Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x):
        return {"out": self.second(self.first(x))}

    def output_shape(self):
        return {"out": ShapeSpec(channels=8, stride=2)}

    @property
    def size_divisibility(self):
        return 8


class OneLayerHead(nn.Module):
    num_classes, ignore_value = 4, 255

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 4, 1)

    def forward(self, features, targets=None):
        scores = self.layer(features["out"])
        return nn.functional.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False), {}


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    model = SemanticSegmentor(backbone=OneConvolution(), sem_seg_head=OneLayerHead(), pixel_mean=MEAN, pixel_std=STD)
    return model.eval()


@pytest.fixture
def mapper():
    resize = T.ResizeShortestEdge(48, 96, "choice")
    return DatasetMapper(False, augmentations=[resize], image_format="RGB")


@pytest.fixture(scope="module")
def mask_rcnn():
    return tiny_model("mask")
