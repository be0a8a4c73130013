"""What is exported of PointRend gives what its heads give."""

import pytest
import torch

from detectron2.export.graphs import GraphOptions, NotExportableError, build_graph
from tests.export.graphs.models import batch, by_graph, difference, graph_of, in_pytorch, point_rend


@pytest.mark.parametrize("name", ["PointRend", "implicit PointRend"])
@pytest.mark.parametrize("outputs", ["padded", "flat"])
def test_masks(name, outputs):
    graph = graph_of(name, GraphOptions(outputs=outputs))
    images, sizes = batch([(160, 224), (96, 128)])
    want = in_pytorch(graph.model, images, sizes)
    assert difference(by_graph(graph, images, sizes), want)["pred_masks"] <= 1e-5
    assert all(len(x["instances"]) for x in want)
    none = graph(images, sizes, torch.tensor(1.0))
    assert sum(len(x["instances"]) for x in by_graph(graph, images, sizes, lambda *_: none)) == 0


def test_coarse_masks_alone(monkeypatch):
    model = point_rend()
    monkeypatch.setattr(model.roi_heads.mask_head, "mask_point_on", False)
    images, sizes = batch([(96, 128)])
    graph = build_graph(model)
    assert difference(by_graph(graph, images, sizes), in_pytorch(model, images, sizes))["pred_masks"] <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_semantic_scores_of_small_and_large_maps(size):
    """A map of fewer points than are asked for is predicted whole."""
    graph = graph_of("semantic PointRend")
    images, sizes = batch([size, (60, 50)])
    assert difference(by_graph(graph, images, sizes), in_pytorch(graph.model, images, sizes)) == {"sem_seg": 0.0}


def test_a_head_with_its_own_points_is_refused():
    model = point_rend()
    head = model.roi_heads.mask_head
    head.__class__ = type("Mine", (type(head),), {"_point_logits": lambda self, *args: None})
    with pytest.raises(NotExportableError, match=r"Mine, has its own _point_logits\(\)"):
        build_graph(model)
