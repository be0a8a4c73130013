"""Semantic scores of heads with a form of their own, and of all others."""

import torch
from torch import nn

from detectron2.export.graphs import GraphOptions, GraphPart, register_exportable
from detectron2.export.graphs.segmentation import semantic_scores


class Head(nn.Module):
    def forward(self, features, targets=None):
        return 2 * features["p2"], {}


def test_a_head_without_a_form_is_called():
    assert semantic_scores(Head(), GraphOptions())({"p2": torch.ones(1)}).item() == 2


def test_a_registered_form_is_called_instead():
    class Other(Head):
        pass

    @register_exportable(Other)
    class OtherGraph(GraphPart):
        def __call__(self, features):
            return 3 * features["p2"]

    assert isinstance(semantic_scores(Other(), GraphOptions()), OtherGraph)
    assert semantic_scores(Other(), GraphOptions())({"p2": torch.ones(1)}).item() == 3
