"""A two-stage detector small enough to train in a test, and batches for it."""

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

CHANNELS = 8
SIZES_HW = [(64, 96), (48, 80)]


class TinyRcnnBackbone(Backbone):
    """Feature maps of strides 4 and 8 with eight channels each."""

    def __init__(self, cfg=None, input_shape=None):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)
        self._out_features = ["p2", "p3"]
        self._out_feature_channels = {"p2": CHANNELS, "p3": CHANNELS}
        self._out_feature_strides = {"p2": 4, "p3": 8}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        p2 = self.conv(x)
        return {"p2": p2, "p3": self.down(p2.relu())}


BACKBONE_REGISTRY.register(TinyRcnnBackbone)


@pytest.fixture(scope="session")
def tiny_rcnn_cfg():
    """`tiny_rcnn_cfg("KEY", value, ...)` gives the config of a tiny Mask R-CNN with three classes, with changes."""

    def make(*changes):
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.BACKBONE.NAME = "TinyRcnnBackbone"
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
        cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 100
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 60
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
        cfg.MODEL.MASK_ON = True
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = CHANNELS
        cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [CHANNELS]
        cfg.MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION = 4
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 4
        cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 1
        cfg.TEST.DETECTIONS_PER_IMAGE = 10
        cfg.merge_from_list(list(changes))
        return cfg

    return make


def ground_truth(size_hw, boxes, classes, mask_format="polygon", num_keypoints=4):
    """Instances with rectangular masks and keypoints in a row across each box."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    out = Instances(size_hw)
    out.gt_boxes = Boxes(boxes)
    out.gt_classes = torch.tensor(classes, dtype=torch.int64)
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float64)] for x1, y1, x2, y2 in boxes.tolist()]
    if mask_format == "polygon":
        out.gt_masks = PolygonMasks(polygons)
    else:
        out.gt_masks = BitMasks.from_polygon_masks(polygons, *size_hw)
    share = (torch.arange(num_keypoints) + 1) / (num_keypoints + 1)
    x = boxes[:, :1] + share * (boxes[:, 2:3] - boxes[:, :1])
    y = ((boxes[:, 1:2] + boxes[:, 3:4]) / 2).expand_as(x)
    out.gt_keypoints = Keypoints(torch.stack([x, y, torch.full_like(x, 2.0)], dim=2))
    return out


@pytest.fixture
def rcnn_batch():
    """`rcnn_batch(train, boxes=...)`: two images of different size; `boxes` is a list of boxes for each image."""

    def make(train=False, boxes=None, mask_format="polygon"):
        if boxes is None:
            boxes = [[[4, 4, 40, 36], [30, 10, 90, 60]], [[10, 8, 42, 40]]]
        generator = torch.Generator().manual_seed(1)
        batch = []
        for size_hw, of_image in zip(SIZES_HW, boxes, strict=True):
            item = {"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator)}
            if train:
                classes = [i % 3 for i in range(len(of_image))]
                item["instances"] = ground_truth(size_hw, of_image, classes, mask_format)
            batch.append(item)
        return batch

    return make


@pytest.fixture(scope="session")
def tiny_shapes():
    return {"p2": ShapeSpec(channels=CHANNELS, stride=4), "p3": ShapeSpec(channels=CHANNELS, stride=8)}


@pytest.fixture
def tiny_features():
    """Feature maps of a batch of two 64x96 images."""
    generator = torch.Generator().manual_seed(2)
    return {
        "p2": torch.randn(2, CHANNELS, 16, 24, generator=generator),
        "p3": torch.randn(2, CHANNELS, 8, 12, generator=generator),
    }


@pytest.fixture(scope="session")
def make_ground_truth():
    return ground_truth


def proposals_of(size_hw, boxes, **fields):
    out = Instances(size_hw)
    out.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.objectness_logits = torch.zeros(len(out.proposal_boxes))
    for name, value in fields.items():
        out.set(name, value)
    return out


@pytest.fixture(scope="session")
def make_proposals():
    return proposals_of
