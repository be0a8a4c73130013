"""Backbones of other libraries in general, on a toy network: names, padding, frozen parts, pyramids, images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN, SimpleFeaturePyramid
from detectron2.modeling.backbone.external import (
    ExternalBackbone,
    build_pyramid,
    check_pixel_statistics,
    map_name,
    require_package,
    set_pixel_statistics,
)


class Toy(ExternalBackbone):
    """Convolutions of stride 2 with batch norms; every other library is like this, in principle."""

    def __init__(self, strides=(2, 4, 8, 16), out_features=None, norm="keep", freeze_at=0, norms=True):
        super().__init__()
        self._choose = self._choose_maps("toy", [4 + i for i in range(len(strides))], strides, out_features)
        layers, before, channels = [], 1, 3
        for i, stride in enumerate(strides):
            step = stride // before
            conv = nn.Conv2d(channels, 4 + i, step, stride=step)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(4 + i) if norms else nn.Identity(), nn.Dropout(0.5)))
            before, channels = stride, 4 + i
        self._set_network(nn.Sequential(*layers), norm, freeze_at)
        self._check_maps("toy", 3)

    def layer_groups(self, coarse):
        return {name: int(name.split(".")[1]) for name, _ in self.named_parameters()}

    def _maps_of(self, x):
        maps = []
        for layer in self.network:
            x = layer(x)
            maps.append(x)
        return [maps[i] for i in self._choose]


def test_names_of_maps():
    assert [map_name(s) for s in (1, 2, 4, 32, 14, 12)] == ["res0", "res1", "res2", "res5", "stride14", "stride12"]


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 32), (37, 50)])
def test_output_shape_is_that_of_the_output(n, height, width):
    model = Toy()
    assert list(model.output_shape()) == ["res2", "res3", "res4"] and model.size_divisibility == 16
    x = torch.rand(n, 3, height, width)
    outputs = model.eval()(x)
    padded = model(F.pad(x, (0, -width % 16, 0, -height % 16)))
    for name, spec in model.output_shape().items():
        rows, columns = -(-height // spec.stride), -(-width // spec.stride)
        assert outputs[name].shape == (n, spec.channels, rows, columns)
        assert torch.equal(outputs[name], padded[name][..., :rows, :columns])


def test_of_equal_strides_the_last_is_taken():
    model = Toy(strides=(16, 16, 16))
    assert {k: (s.channels, s.stride) for k, s in model.output_shape().items()} == {"res4": (6, 16)}


def test_chosen_maps():
    assert list(Toy(out_features=["res4", "res1"]).output_shape()) == ["res1", "res4"]
    with pytest.raises(ValueError, match="toy has no map p5; out_features may be res1, res2, res3, res4"):
        Toy(out_features=["p5"])
    with pytest.raises(ValueError, match=r"strides \[2\] only"):
        Toy(strides=(2,))


def test_maps_of_other_sizes_are_refused():
    class Valid(Toy):
        def _maps_of(self, x):
            return [m[..., 1:] for m in super()._maps_of(x)]

    with pytest.raises(ValueError, match=r"toy has maps of \[\(5, 16, 23\), .* needs \[\(5, 16, 24\)"):
        Valid()

    class OneSize(Toy):
        def _maps_of(self, x):
            assert x.shape[-1] == 224, "width is not 224"
            return super()._maps_of(x)

    with pytest.raises(ValueError, match=r"does not take images of 64 x 96 pixels.*width is not 224"):
        OneSize()


def test_norms():
    assert isinstance(Toy().network[0][1], nn.BatchNorm2d)
    assert type(Toy(norm="BN").network[0][1]) is nn.BatchNorm2d
    frozen = Toy(norm="FrozenBN")
    assert all(isinstance(layer[1], FrozenBatchNorm2d) for layer in frozen.network)
    synchronized = Toy(norm="SyncBN").network[0][1]
    assert type(synchronized) is nn.SyncBatchNorm and synchronized.num_features == 4
    for norm in ("BN", "FrozenBN", "SyncBN"):
        with pytest.raises(ValueError, match="has none; use 'keep'"):
            Toy(norm=norm, norms=False)
    with pytest.raises(ValueError, match="one of keep, FrozenBN, BN, SyncBN; got 'GN'"):
        Toy(norm="GN")


@pytest.mark.parametrize("freeze_at", [0, 1, 3])
def test_first_groups_are_frozen(freeze_at):
    model = Toy(freeze_at=freeze_at).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (int(name.split(".")[1]) >= freeze_at), name
    for i, layer in enumerate(model.network):
        assert isinstance(layer[1], FrozenBatchNorm2d) == (i < freeze_at)
        assert layer.training == layer[2].training == (i >= freeze_at)
    assert model.training and not model.eval().network[3].training
    again = Toy()
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    for name, value in model(x).items():
        torch.testing.assert_close(again.eval()(x)[name], value)


def test_all_can_be_frozen_and_fewer_than_none_not():
    assert not any(p.requires_grad for p in Toy(freeze_at=9).parameters())
    with pytest.raises(ValueError, match="at least 0; got -1"):
        Toy(freeze_at=-1)


def test_copies():
    model = Toy(freeze_at=2).eval()
    x = torch.rand(1, 3, 40, 30)
    for name, value in copy.deepcopy(model)(x).items():
        assert torch.equal(value, model(x)[name])


# ------------------------------------------------------------------------------------------------------------ pyramids


def pyramid_cfg(*in_features, norm=""):
    cfg = get_cfg()
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM = list(in_features), 8, norm
    return cfg


@pytest.mark.parametrize(
    ("strides", "in_features", "for_retinanet", "kind", "levels"),
    [
        ((4, 8, 16), ("res2", "res3", "res4"), False, FPN, [2, 3, 4, 5]),
        ((4, 8, 16), ("res3", "res4"), True, FPN, [3, 4, 5, 6]),
        ((16,), ("res2", "res3", "res4", "res5"), False, SimpleFeaturePyramid, [2, 3, 4, 5, 6]),
        ((16, 16), ("res3", "res4", "res5"), True, SimpleFeaturePyramid, [3, 4, 5, 6, 7]),
        ((8,), ("res2", "res3", "res4"), False, SimpleFeaturePyramid, [2, 3, 4, 5]),
    ],
)
def test_pyramids(strides, in_features, for_retinanet, kind, levels):
    pyramid = build_pyramid(pyramid_cfg(*in_features), Toy(strides), for_retinanet)
    assert type(pyramid) is kind
    assert {k: (s.channels, s.stride) for k, s in pyramid.output_shape().items()} == {
        f"p{k}": (8, 2**k) for k in levels
    }
    for name, value in pyramid.eval()(torch.rand(1, 3, 64, 128)).items():
        stride = pyramid.output_shape()[name].stride
        assert value.shape == (1, 8, max(64 // stride, 1), max(128 // stride, 1))


def test_norms_of_pyramids():
    simple = build_pyramid(pyramid_cfg("res4", "res5"), Toy((16,)))
    assert any(type(m).__name__ == "LayerNorm" for m in simple.simfp_4.modules())
    fpn = build_pyramid(pyramid_cfg("res3", "res4", norm="BN"), Toy())
    assert isinstance(fpn.fpn_output4.norm, nn.BatchNorm2d)


def test_pyramids_that_cannot_be():
    with pytest.raises(ValueError, match="offers"):
        build_pyramid(pyramid_cfg("res3", "res5"), Toy())
    with pytest.raises(ValueError, match="offers"):
        build_pyramid(pyramid_cfg("res3", "res5"), Toy(), for_retinanet=True)
    with pytest.raises(ValueError, match="names such as 'res4'"):
        build_pyramid(pyramid_cfg(), Toy())
    with pytest.raises(ValueError, match=r"stride 14.*PATCH_SIZE"):
        build_pyramid(pyramid_cfg("res3", "res4"), Toy((14,)))


# ----------------------------------------------------------------------------------------------------- pixel statistics


def test_pixel_statistics():
    model, cfg = Toy(), get_cfg()
    check_pixel_statistics(cfg, model, "toy")  # nothing is known
    model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    with pytest.raises(ValueError, match="weights of toy expect other images") as error:
        check_pixel_statistics(cfg, model, "toy")
    cure = str(error.value).splitlines()[-1].split(" ")
    fixed = get_cfg()
    fixed.merge_from_list(cure)
    check_pixel_statistics(fixed, model, "toy")
    set_pixel_statistics(cfg, model.pixel_mean, model.pixel_std)
    assert ("RGB", model.pixel_mean, model.pixel_std) == (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    check_pixel_statistics(cfg, model, "toy")
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT BGR"):
        check_pixel_statistics(cfg, model, "toy")


def test_missing_package():
    with pytest.raises(ImportError, match=r"Toy needs the package no_such_thing: pip install 'detectron2\[no_such_"):
        require_package("no_such_thing", "Toy")
