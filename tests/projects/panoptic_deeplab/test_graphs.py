"""What is exported of Panoptic-DeepLab gives what the model gives."""

from detectron2.export.graphs import build_graph
from tests.export.graphs.models import batch, by_graph, difference, graph_of, in_pytorch, panoptic_deeplab


def test_scores_centres_and_offsets():
    graph = graph_of("Panoptic-DeepLab")
    images, sizes = batch([(96, 130), (60, 50)])
    got = by_graph(graph, images, sizes)
    assert [x["center"].shape for x in got] == [(1, 128, 192)] * 2  # multiples of the model's own 64
    assert set(difference(got, in_pytorch(graph.model, images, sizes)).values()) == {0.0}


def test_padding_of_the_backbone():
    model = panoptic_deeplab()
    model.size_divisibility = -1
    images, sizes = batch([(96, 130)])
    got = by_graph(build_graph(model), images, sizes)
    assert got[0]["offset"].shape == (2, 96, 160)
    assert set(difference(got, in_pytorch(model, images, sizes)).values()) == {0.0}
