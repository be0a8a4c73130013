"""The box branch, what comes after it, and the layout of detections."""

import pytest
import torch

from detectron2.export.graphs import GraphOptions
from detectron2.export.graphs.roi_heads import (
    BoxPredictorGraph,
    ROIHeadsGraph,
    as_detections,
    detection_names,
    in_layout,
    of_own_class,
    region_index,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.numerics import select_class
from detectron2.structures import Boxes, Instances

SIZES = [(60, 80), (50, 40)]
FORMS = ["operator", "torchvision", "aten"]


def predictor(**options):
    torch.manual_seed(0)
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=6),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=3,
        test_score_thresh=0.2,
        test_nms_thresh=0.3,
        test_topk_per_image=9,
        **options,
    )
    for p in layers.parameters():
        torch.nn.init.normal_(p)
    return layers


def regions(count=12):
    generator = torch.Generator().manual_seed(1)
    corners = 40 * torch.rand(2, count, 2, generator=generator)
    boxes = torch.cat((corners, corners + 5 + 30 * torch.rand(2, count, 2, generator=generator)), dim=2)
    return boxes, torch.randn(2 * count, 6, generator=generator)


@pytest.mark.parametrize("nms", FORMS)
@pytest.mark.parametrize("options", [{}, {"cls_agnostic_bbox_reg": True}, {"use_sigmoid_ce": True}])
@pytest.mark.parametrize("broken", [False, True])
def test_detections_are_those_of_the_predictor(nms, options, broken):
    layers = predictor(**options)
    boxes, x = regions()
    if broken:
        x[3] = torch.nan
    found = torch.ones(2, 12, dtype=torch.bool)
    found[1, 7:] = False  # the second image has fewer proposals
    graph = BoxPredictorGraph(layers, GraphOptions(nms=nms))
    with torch.no_grad():
        got = graph.detections(*graph(x, boxes), found, torch.tensor(SIZES), torch.tensor(0.2)).outputs
        rows = found.flatten()
        proposals = [
            Instances(size, proposal_boxes=Boxes(b[f])) for size, b, f in zip(SIZES, boxes, found, strict=True)
        ]
        want, _ = layers.inference(layers(x[rows]), proposals)
    for i, expected in enumerate(want):
        n = len(expected)
        assert 0 < n == int(got["count"][i])
        torch.testing.assert_close(got["boxes"][i, :n], expected.pred_boxes.tensor, rtol=0, atol=1e-5)
        torch.testing.assert_close(got["scores"][i, :n], expected.scores, rtol=0, atol=1e-6)
        assert torch.equal(got["classes"][i, :n], expected.pred_classes)


def some():
    boxes = torch.rand(2, 3, 4)
    found = torch.tensor([[True, True, False], [False, False, False]])
    return boxes, torch.rand(2, 3), torch.tensor([[2, 1, 1], [1, 1, 1]]), found


def test_padded_layout():
    boxes, scores, classes, found = some()
    d = as_detections(boxes, scores, classes, found, GraphOptions())
    assert tuple(d.outputs) == detection_names(GraphOptions())
    assert d.outputs["count"].tolist() == [2, 0] and d.outputs["classes"].tolist() == [[2, 1, -1], [-1, -1, -1]]
    assert torch.equal(d.outputs["boxes"][0, :2], boxes[0, :2]) and not d.outputs["boxes"][1].any()
    assert d.boxes.shape == (6, 4) and d.classes.tolist() == [2, 1, 0, 0, 0, 0]
    assert d.image_index.tolist() == [0, 0, 0, 1, 1, 1] and d.rows is None
    per_row = in_layout(torch.ones(6, 5, 5), d)
    assert per_row.shape == (2, 3, 5, 5) and per_row[0, :2].all() and per_row.sum() == 50


@pytest.mark.parametrize("none", [False, True])
def test_flat_layout(none):
    boxes, scores, classes, found = some()
    d = as_detections(boxes, scores, classes, found & (not none), GraphOptions(outputs="flat"))
    assert tuple(d.outputs) == detection_names(GraphOptions(outputs="flat"))
    n = 0 if none else 2
    assert d.boxes.shape == (n, 4) and d.classes.tolist() == [2, 1][:n] and d.image_index.tolist() == [0, 0][:n]
    assert d.rows is not None and d.rows.tolist() == [0, 1][:n] and d.found is None
    assert in_layout(torch.ones(n, 5, 5), d).shape == (n, 5, 5)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6), (0, 3, 5), (4, 1, 5)])
def test_the_slice_of_the_own_class(shape):
    values, classes = torch.rand(shape), torch.tensor([2, 0, 1, 2])[: shape[0]]
    assert torch.equal(of_own_class(values, classes)[:, 0], select_class(values, classes))


def test_the_image_of_each_region():
    assert region_index(torch.zeros(3, 2, 4)).tolist() == [0, 0, 1, 1, 2, 2]
    assert region_index(torch.zeros(2, 0, 4)).shape == (0,)


def test_a_form_of_roi_heads_defines_the_box_branch():
    with pytest.raises(NotImplementedError, match=r"must define detect\(\)"):
        ROIHeadsGraph(None, GraphOptions()).detect({}, None, None, None)  # pyright: ignore[reportArgumentType]
