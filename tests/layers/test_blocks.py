import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, DepthwiseSeparableConv2d, FrozenBatchNorm2d
from detectron2.layers.blocks import conv_norm


class Block(CNNBlockBase):
    def __init__(self):
        super().__init__(3, 4, stride=2)
        self.conv = Conv2d(3, 4, 3, stride=2, padding=1, norm=nn.BatchNorm2d(4))

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(("norm", "dilation"), [("", 1), ("BN", 2), (None, 1)])
def test_conv_norm_keeps_the_size_and_has_a_bias_or_a_norm(norm, dilation):
    layer = conv_norm(3, 4, 3, norm, dilation=dilation, activation=F.relu)
    assert (layer.bias is None) == bool(norm) == isinstance(layer.norm, nn.BatchNorm2d)
    out = layer(torch.randn(2, 3, 7, 9))
    assert out.shape == (2, 4, 7, 9) and out.min() == 0
    assert conv_norm(3, 4, 3, norm, stride=2, padding=0, bias=False)(torch.ones(2, 3, 7, 9)).shape == (2, 4, 3, 4)


class TestCNNBlockBase:
    def test_attributes(self):
        block = Block()
        assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)

    def test_freeze(self):
        block = Block()
        before = block.eval()(torch.ones(1, 3, 8, 8))
        block.train()
        assert block.freeze() is block
        assert not any(p.requires_grad for p in block.parameters())
        assert type(block.conv.norm) is FrozenBatchNorm2d
        torch.testing.assert_close(block(torch.ones(1, 3, 8, 8)), before)


class TestDepthwiseSeparableConv2d:
    def test_keys_without_norm(self):
        keys = set(DepthwiseSeparableConv2d(4, 6).state_dict())
        assert keys == {f"{part}.{name}" for part in ("depthwise", "pointwise") for name in ("weight", "bias")}

    def test_keys_with_norm(self):
        keys = set(DepthwiseSeparableConv2d(32, 64, norm1="GN", norm2="GN").state_dict())
        parts = ("weight", "norm.weight", "norm.bias")
        assert keys == {f"{conv}.{part}" for conv in ("depthwise", "pointwise") for part in parts}

    @pytest.mark.parametrize("n", [0, 2])
    def test_is_two_convolutions(self, n):
        conv = DepthwiseSeparableConv2d(4, 6, 5, padding=4, dilation=2, activation1=F.relu, activation2=torch.tanh)
        x = torch.randn(n, 4, 7, 8)
        inner = F.relu(F.conv2d(x, conv.depthwise.weight, conv.depthwise.bias, padding=4, dilation=2, groups=4))
        expected = torch.tanh(F.conv2d(inner, conv.pointwise.weight, conv.pointwise.bias))
        assert conv(x).shape == (n, 6, 7, 8)
        torch.testing.assert_close(conv(x), expected)
