"""Tiny PointRend models and batches for them."""

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import BitMasks, Boxes, Instances

SIZES_HW = [(64, 96), (48, 80)]


class TinyPointRendBackbone(Backbone):
    """Feature maps of strides 4 and 8 with eight channels each."""

    def __init__(self, cfg=None, input_shape=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self._out_features = ["p2", "p3"]
        self._out_feature_channels = {"p2": 8, "p3": 8}
        self._out_feature_strides = {"p2": 4, "p3": 8}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        p2 = self.conv(x)
        return {"p2": p2, "p3": self.down(p2.relu())}


BACKBONE_REGISTRY.register(TinyPointRendBackbone)


@pytest.fixture(scope="session")
def tiny_config(repo_root):
    """`tiny_config(kind, "KEY", value, ...)`: tiny sizes; kind is "standard", "implicit" or "semantic"."""
    files = {
        "standard": "InstanceSegmentation/Base-PointRend-RCNN-FPN.yaml",
        "implicit": "InstanceSegmentation/Base-Implicit-PointRend.yaml",
        "semantic": "SemanticSegmentation/Base-PointRend-Semantic-FPN.yaml",
    }

    def make(kind, *changes):
        cfg = get_cfg()
        add_pointrend_config(cfg)
        cfg.merge_from_file(str(repo_root / "projects/PointRend/configs" / files[kind]))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.MODEL.BACKBONE.NAME = "TinyPointRendBackbone"
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 60
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 3
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
        cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 6
        cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION = 4
        cfg.MODEL.POINT_HEAD.FC_DIM = 8
        cfg.MODEL.POINT_HEAD.NUM_FC = 2
        cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS = 20
        cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
        cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 36
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 4
        cfg.MODEL.SEM_SEG_HEAD.NORM = ""
        cfg.TEST.DETECTIONS_PER_IMAGE = 10
        cfg.merge_from_list(list(changes))
        return cfg

    return make


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(train, boxes=...)`: two images of different size; `boxes` is a list of boxes for each image."""

    def make(train, boxes=(((4, 4, 40, 36), (30, 10, 90, 60)), ((10, 8, 42, 40),))):
        generator = torch.Generator().manual_seed(1)
        batch = []
        for (height, width), of_image in zip(SIZES_HW, boxes, strict=True):
            item = {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)}
            if train:
                masks = np.zeros((len(of_image), height, width), dtype=bool)
                for mask, (x1, y1, x2, y2) in zip(masks, of_image, strict=True):
                    mask[y1:y2, x1 : (x1 + x2) // 2] = True  # the left half of the box
                instances = Instances((height, width))
                instances.gt_boxes = Boxes(torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4))
                instances.gt_classes = torch.arange(len(of_image)) % 3
                instances.gt_masks = BitMasks(masks)
                item["instances"] = instances
                item["sem_seg"] = torch.randint(0, 3, (height, width), generator=generator)
            batch.append(item)
        return batch

    return make
