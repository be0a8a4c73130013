import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import ASPP


def test_keys_without_norm():
    convs = ["convs.0", "convs.1", "convs.2", "convs.3", "convs.4.1", "project"]
    assert set(ASPP(3, 4, [1, 2, 3], norm="", activation=F.relu).state_dict()) == {
        f"{c}.{p}" for c in convs for p in ("weight", "bias")
    }


def test_keys_with_norm():
    keys = set(ASPP(3, 32, [1, 2, 3], norm="GN", activation=F.relu).state_dict())
    convs = ["convs.0", "convs.1", "convs.2", "convs.3", "project"]
    expected = {f"{c}.{p}" for c in convs for p in ("weight", "norm.weight", "norm.bias")}
    assert keys == expected | {"convs.4.1.weight", "convs.4.1.bias"}


@pytest.mark.parametrize("pool", [None, (6, 8)])
def test_output(pool):
    aspp = ASPP(3, 4, [1, 2, 3], norm="", activation=F.relu, pool_kernel_size=pool)
    x = torch.randn(2, 3, 6, 8)
    branches = [F.conv2d(x, aspp.convs[0].weight, aspp.convs[0].bias)]
    branches += [F.conv2d(x, aspp.convs[i].weight, aspp.convs[i].bias, padding=i, dilation=i) for i in (1, 2, 3)]
    mean = F.conv2d(x.mean(dim=(2, 3), keepdim=True), aspp.convs[4][1].weight, aspp.convs[4][1].bias)
    branches.append(mean.expand(2, 4, 6, 8))
    everything = torch.cat([F.relu(b) for b in branches], dim=1)
    expected = F.relu(F.conv2d(everything, aspp.project.weight, aspp.project.bias))
    torch.testing.assert_close(aspp(x), expected)


def test_empty_batch():
    aspp = ASPP(3, 4, [1, 2, 3], norm="", activation=F.relu, use_depthwise_separable_conv=True)
    assert aspp(torch.zeros(0, 3, 6, 8)).shape == (0, 4, 6, 8)


def test_dropout_only_in_training():
    aspp = ASPP(3, 4, [1, 2, 3], norm="", activation=torch.sigmoid, dropout=0.5)
    x = torch.randn(1, 3, 6, 8)
    assert (aspp.train()(x) == 0).any()
    assert (aspp.eval()(x) > 0).all()


def test_three_dilations():
    with pytest.raises(ValueError, match="3 dilations, got 2"):
        ASPP(3, 4, [1, 2], norm="", activation=F.relu)


def test_pool_size_must_divide():
    aspp = ASPP(3, 4, [1, 2, 3], norm="", activation=F.relu, pool_kernel_size=(4, 4))
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(6, 8\)"):
        aspp(torch.zeros(1, 3, 6, 8))
