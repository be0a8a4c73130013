import pytest
import torch
from omegaconf import OmegaConf

from detectron2.layers import ShapeSpec
from detectron2.layers.shape_spec import select_maps, select_shapes


def test_everything_is_optional():
    assert ShapeSpec() == ShapeSpec(channels=None, height=None, width=None, stride=None)


def test_order_of_arguments():
    spec = ShapeSpec(3, 4, 5, 6)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (3, 4, 5, 6)


def test_survives_omegaconf():
    # LazyConfig files hold ShapeSpecs; OmegaConf takes them because they are dataclasses.
    cfg = OmegaConf.create({"input_shape": ShapeSpec(channels=256, stride=4)}, flags={"allow_objects": True})
    cfg.input_shape.channels = 128
    assert OmegaConf.to_object(cfg.input_shape) == ShapeSpec(channels=128, stride=4)


def test_select_shapes():
    shapes = {"p2": ShapeSpec(8, stride=4), "p3": ShapeSpec(8, stride=8)}
    with pytest.raises(ValueError, match="KEY names nothing"):
        select_shapes(shapes, [], "KEY")
    assert [x.stride for x in select_shapes(shapes, ("p3", "p2"), "KEY")] == [8, 4]
    with pytest.raises(ValueError, match=r"KEY names \['p4'\], but the backbone returns \['p2', 'p3'\]"):
        select_shapes(shapes, ["p2", "p4"], "KEY")


@pytest.mark.parametrize("shape", [None, (8, 4), ShapeSpec(stride=4), ShapeSpec(channels=8)], ids=str)
def test_shapes_that_say_too_little(shape):
    with pytest.raises(ValueError, match="for 'p2'; expected a ShapeSpec with channels and stride"):
        select_shapes({"p2": shape}, ["p2"], "KEY")


def test_shapes_that_are_not_a_dict():
    with pytest.raises(ValueError, match=r"output_shape\(\) of the backbone gives NoneType; expected a dict"):
        select_shapes(None, ["p2"], "KEY")


def test_select_maps():
    maps = {"p2": torch.zeros(1), "p3": torch.ones(1)}
    assert select_maps(maps, []) == []
    assert select_maps(maps, ("p3", "p2")) == [maps["p3"], maps["p2"]]


@pytest.mark.parametrize(
    ("features", "found"),
    [({}, "an empty one"), ({"q": 0}, "q"), (None, "NoneType"), ([0], "list"), (torch.zeros(1, 2), "Tensor")],
)
def test_maps_that_are_not_there(features, found):
    with pytest.raises(ValueError, match=rf"must return a dict with the feature maps p2, .*; it returned {found}\.$"):
        select_maps(features, ["p2"])
