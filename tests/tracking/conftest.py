"""Frames of detections, and small videos of boxes."""

import pytest
import torch

from detectron2.structures import Boxes, Instances

SIZE_HW = (100, 200)


def make_frame(*boxes, size_hw=SIZE_HW, **fields):
    """Detections at boxes (x1, y1, x2, y2)."""
    out = Instances(size_hw)
    out.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.scores = torch.ones(len(boxes))
    out.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    for name, value in fields.items():
        out.set(name, value)
    return out


@pytest.fixture(scope="session")
def frame():
    return make_frame


@pytest.fixture(scope="session")
def video_arguments():
    return {"video_height": SIZE_HW[0], "video_width": SIZE_HW[1]}
