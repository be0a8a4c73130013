import pytest
from omegaconf import OmegaConf

from detectron2.layers import ShapeSpec
from detectron2.layers.shape_spec import select_shapes


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
    shapes = {"p2": ShapeSpec(stride=4), "p3": ShapeSpec(stride=8)}
    with pytest.raises(ValueError, match="KEY names nothing"):
        select_shapes(shapes, [], "KEY")
    assert [x.stride for x in select_shapes(shapes, ("p3", "p2"), "KEY")] == [8, 4]
    with pytest.raises(ValueError, match=r"KEY names \['p4'\], but the backbone returns \['p2', 'p3'\]"):
        select_shapes(shapes, ["p2", "p4"], "KEY")
