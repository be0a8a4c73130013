from omegaconf import OmegaConf

from detectron2.layers import ShapeSpec


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
