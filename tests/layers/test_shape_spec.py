import pytest
import torch
from omegaconf import OmegaConf

from detectron2.layers import ShapeSpec
from detectron2.layers.shape_spec import check_strides, select_maps, select_shapes


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


@pytest.mark.parametrize(
    ("size_hw", "map_hw", "stride"),
    [
        ((800, 1344), (50, 84), 16),
        ((800, 1344), (7, 11), 128),  # rounded up
        ((799, 1333), (6, 10), 128),  # rounded down
        ((800, 1344), (46, 80), 16),  # without padding
        ((32, 32), (1, 1), 128),
        ((64, 64), (4, 4), 32),  # too small to tell
        ((0, 0), (0, 0), 32),
        ((800, 1344), (5, 5), (16, 16)),
    ],
)
def test_strides_that_fit(size_hw, map_hw, stride):
    maps, images = [torch.zeros(1, 2, *map_hw)], torch.zeros(1, 3, *size_hw)
    assert check_strides(maps, ["p2"], [stride], images) is None  # no error
    assert check_strides(maps, ["p2"], [], images) is None


@pytest.mark.parametrize(("map_hw", "stride"), [((50, 84), 8), ((50, 84), 32), ((50, 42), 16), ((84, 50), 16)])
def test_strides_that_do_not_fit(map_hw, stride):
    maps = [torch.zeros(1, 1, 100, 168), torch.zeros(1, 1, *map_hw)]
    with pytest.raises(
        ValueError, match=rf"returned 'p3' of {map_hw[0]} x .* says that this map has the stride {stride}: "
    ):
        check_strides(maps, ["p2", "p3"], [8, stride], torch.zeros(1, 3, 800, 1344))
    compiled = torch.compile(check_strides, backend="eager", fullgraph=True)
    compiled(maps, ["p2", "p3"], [8, stride], torch.zeros(1, 3, 800, 1344))
