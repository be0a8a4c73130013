"""Anchors and proposals against those of the models."""

import pytest
import torch

from detectron2.export.graphs import GraphOptions, NotExportableError
from detectron2.export.graphs.graph import graph_part
from detectron2.export.graphs.proposals import AnchorsGraph, RotatedGraph, RPNGraph
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, TorchvisionAnchorGenerator
from tests.export.graphs.models import batch, model_of


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors(offset):
    generator = DefaultAnchorGenerator(
        sizes=[[16, 24], [40]], aspect_ratios=[[0.5, 1, 2]], strides=[4, 8], offset=offset
    )
    maps = [torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 1, 1)]
    got = AnchorsGraph(generator, GraphOptions())(maps)
    for x, want in zip(got, generator(maps), strict=True):
        assert torch.equal(x, want.tensor)


def test_anchors_of_torchvision():
    """The distance of the anchors is no stride where a stride does not divide the side of the image."""
    generator = TorchvisionAnchorGenerator(sizes=[[16], [40], [60]], aspect_ratios=[[0.5, 1, 2]], strides=[4, 8, 16])
    maps = [torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 2, 1)]
    got = graph_part(generator, GraphOptions(), "the anchor generator")(maps)
    assert got[1][-1].tolist() == [7.0, -16.0, 35.0, 40.0]  # 28 // 4 and 20 // 3 pixels apart
    for x, want in zip(got, generator(maps), strict=True):
        assert torch.equal(x, want.tensor)


@pytest.mark.parametrize("nms", ["operator", "torchvision", "aten"])
@pytest.mark.parametrize("min_box_size", [0.0, 20.0])
def test_proposals(monkeypatch, nms, min_box_size):
    model = model_of("Faster R-CNN, FPN")
    rpn = model.proposal_generator
    monkeypatch.setattr(rpn, "min_box_size", min_box_size)
    images, sizes = batch([(160, 224), (96, 128)])
    padded = model.preprocess_image([{"image": x[:, :h, :w]} for x, (h, w) in zip(images, sizes.tolist(), strict=True)])
    with torch.no_grad():
        features = model.backbone(padded.tensor)
        features["p2"][1, :, :8, :8] = torch.inf  # boxes that are not finite are dropped
        want, _ = rpn(padded, features)
        got = RPNGraph(rpn, GraphOptions(nms=nms))(features, sizes)
    assert got.boxes.shape == (2, 30, 4) and got.found.dtype == torch.bool
    for i, x in enumerate(want):
        assert int(got.found[i].sum()) == len(x) > 0
        assert torch.equal(got.boxes[i][got.found[i]], x.proposal_boxes.tensor)
        assert torch.equal(got.logits[i][got.found[i]], x.objectness_logits)
        assert not got.boxes[i][~got.found[i]].any()


def test_rotated_boxes_are_refused():
    with pytest.raises(NotExportableError, match="makes rotated boxes"):
        RotatedGraph(None, GraphOptions())
