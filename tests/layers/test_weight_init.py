"""Statistics of freshly initialised convolutions."""

import math

import pytest
import torch
from torch import nn

from detectron2.layers.weight_init import c2_msra_fill, c2_xavier_fill

CONV = (64, 128, 3)  # fan in 576, fan out 1152


def test_without_bias():
    for fill in (c2_msra_fill, c2_xavier_fill):
        conv = nn.Conv2d(1, 1, 1, bias=False)
        before = conv.weight.item()
        fill(conv)
        assert conv.weight.item() != before and conv.bias is None


def test_xavier_is_uniform_with_variance_of_one_over_fan_in():
    conv = nn.Conv2d(*CONV)
    c2_xavier_fill(conv)
    assert conv.weight.var().item() == pytest.approx(1 / 576, rel=0.02)
    assert conv.weight.abs().max().item() <= math.sqrt(3 / 576)
    assert not conv.bias.any()


def test_msra_is_normal_with_variance_of_two_over_fan_out():
    conv = nn.Conv2d(*CONV)
    c2_msra_fill(conv)
    assert conv.weight.var().item() == pytest.approx(2 / 1152, rel=0.02)
    kurtosis = (conv.weight / conv.weight.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, rel=0.05)
    assert not conv.bias.any()


def test_same_random_numbers_give_the_weights_of_fvcore():
    from fvcore.nn import weight_init

    for name in ("c2_msra_fill", "c2_xavier_fill"):
        ours, theirs = nn.Conv2d(*CONV), nn.Conv2d(*CONV)
        torch.manual_seed(1)
        globals()[name](ours)
        torch.manual_seed(1)
        getattr(weight_init, name)(theirs)
        assert torch.equal(ours.weight, theirs.weight)
