"""What the base class promises."""

import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone


class Toy(Backbone):
    def __init__(self):
        super().__init__()
        self._out_features = ["b", "a"]
        self._out_feature_channels = {"a": 3, "b": 5}
        self._out_feature_strides = {"a": 2, "b": 4}

    def forward(self, x):
        return {"b": x[:, :, ::4, ::4], "a": x[:, :, ::2, ::2]}


def test_no_output():
    toy = Toy()
    toy._out_features = []
    assert toy.output_shape() == {}


def test_output_shape_keeps_the_order():
    shapes = Toy().output_shape()
    assert list(shapes) == ["b", "a"]
    assert shapes["b"] == ShapeSpec(channels=5, stride=4) and shapes["a"] == ShapeSpec(channels=3, stride=2)


def test_any_input_size_will_do_by_default():
    toy = Toy()
    assert toy.size_divisibility == 0 and toy.padding_constraints == {}
    assert set(toy(torch.zeros(1, 3, 5, 7))) == {"a", "b"}


def test_forward_must_be_implemented():
    with pytest.raises(TypeError, match="abstract"):
        Backbone()
