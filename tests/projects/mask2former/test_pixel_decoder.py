"""The pixel decoder: shapes for all sizes of maps, and what it refuses."""

import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.projects.mask2former import MSDeformAttnPixelDecoder
from detectron2.projects.mask2former.pixel_decoder import (
    MSDeformAttnTransformerEncoderOnly,
    _centres,
    build_pixel_decoder,
)
from tests.projects.mask2former.models import tiny_config

SHAPES = {f"res{i}": ShapeSpec(channels=2 * i, stride=2**i) for i in (2, 3, 4, 5)}


def decoder(**changes):
    arguments = {
        "transformer_dropout": 0.0,
        "transformer_nheads": 4,
        "transformer_dim_feedforward": 16,
        "transformer_enc_layers": 1,
        "conv_dim": 32,
        "mask_dim": 8,
        "norm": "GN",
        "transformer_in_features": ["res3", "res4", "res5"],
        "common_stride": 4,
    }
    return MSDeformAttnPixelDecoder(SHAPES, **{**arguments, **changes})


def features(images, height, width):
    return {k: torch.randn(images, x.channels, height // x.stride, width // x.stride) for k, x in SHAPES.items()}


@pytest.mark.parametrize("images", [0, 2])
def test_shapes(images):
    masks, coarsest, levels = decoder().forward_features(features(images, 64, 96))
    assert masks.shape == (images, 8, 16, 24)
    assert [x.shape for x in levels] == [(images, 32, 2, 3), (images, 32, 4, 6), (images, 32, 8, 12)]
    assert coarsest is levels[0]


def test_other_maps():
    """All four maps in the encoder leave none for the pyramid; a stride of 2 is one level more of it."""
    masks, _, levels = decoder(transformer_in_features=list(SHAPES)).forward_features(features(1, 64, 64))
    assert masks.shape == (1, 8, 16, 16) and [x.shape[2] for x in levels] == [2, 4, 8]
    with pytest.raises(ValueError, match="at least 3 of"):
        decoder(transformer_in_features=["res4", "res5"])
    with pytest.raises(ValueError, match=r"\['res2', 'res3', 'res4', 'res5'\]; got"):
        decoder(transformer_in_features=["res3", "res4", "res6"])


def test_full_precision_under_autocast():
    module, maps = decoder().eval(), features(1, 64, 64)
    want = module.forward_features(maps)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.forward_features(maps)[0], want)


def test_centres_of_cells():
    found = _centres([(1, 2), (2, 1)], torch.zeros(()))
    assert found.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_the_encoder_mixes_maps():
    torch.manual_seed(0)
    encoder = MSDeformAttnTransformerEncoderOnly(16, 2, 1, 16, 0.0, 2)
    maps = [torch.randn(1, 16, 2, 2), torch.randn(1, 16, 4, 4)]
    zero = [torch.zeros(1, 16, *x.shape[2:]) for x in maps]
    want = encoder(maps, zero)
    assert [x.shape for x in want] == [x.shape for x in maps]
    assert not torch.allclose(encoder([maps[0], maps[1] + 1], zero)[0], want[0])


def test_by_name():
    cfg = tiny_config()
    shapes = {name: ShapeSpec(channels=8, stride=x.stride) for name, x in SHAPES.items()}
    assert isinstance(build_pixel_decoder(cfg, shapes), MSDeformAttnPixelDecoder)
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecodr"
    with pytest.raises(KeyError, match="Did you mean 'MSDeformAttnPixelDecoder'"):
        build_pixel_decoder(cfg, shapes)
