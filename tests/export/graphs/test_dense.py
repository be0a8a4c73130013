"""Thresholds of one-stage detectors."""

import pytest
import torch

from detectron2.export.graphs import DenseDetectorGraph, GraphOptions
from tests.export.graphs.models import batch, difference, graph_of, in_pytorch, model_of

TWO = [(160, 224), (96, 128)]


@pytest.mark.parametrize(("name", "some"), [("RetinaNet", 0.0101), ("FCOS", 0.2)])
def test_thresholds(name, some):
    graph = graph_of(name)
    images, sizes = batch(TWO)
    for threshold, found in ((0.0, True), (some, True), (1.0, False)):
        outputs = dict(zip(graph.output_names, graph(images, sizes, torch.tensor(threshold)), strict=True))
        want = in_pytorch(graph.model, images, sizes, threshold)
        assert max(difference(graph.to_results(outputs, sizes), want).values()) <= 1e-6
        assert any(len(x["instances"]) for x in want) == found


def test_a_detector_says_how_it_scores():
    graph = DenseDetectorGraph(model_of("RetinaNet"), GraphOptions())
    with pytest.raises(NotImplementedError, match=r"must define probabilities\(\)"):
        graph.probabilities(torch.tensor(0.5))
