import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    FrozenBatchNorm2d,
    Linear,
    cat,
    check_if_dynamo_compiling,
    cross_entropy,
    disable_torch_compiler,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)
from detectron2.layers.wrappers import _NewEmptyTensorOp, any_along


def test_unchanged_names_are_those_of_pytorch():
    assert (BatchNorm2d, ConvTranspose2d, Linear, interpolate) == (
        nn.BatchNorm2d,
        nn.ConvTranspose2d,
        nn.Linear,
        F.interpolate,
    )


def with_frozen_norm(bias=False):
    norm = FrozenBatchNorm2d(4)
    for buffer in (norm.weight, norm.bias, norm.running_mean):
        buffer.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return Conv2d(3, 4, 3, bias=bias, norm=norm, activation=F.relu).double()


class TestConv2d:
    @pytest.mark.parametrize("n", [0, 2])
    def test_norm_then_activation(self, n):
        norm = nn.BatchNorm2d(4).eval()
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=norm, activation=F.relu)
        x = torch.randn(n, 3, 5, 6)
        expected = F.relu(norm(F.conv2d(x, conv.weight, padding=1)))
        assert conv(x).shape == (n, 4, 5, 6)
        torch.testing.assert_close(conv(x), expected)

    def test_without_extras_it_is_a_convolution(self):
        conv = Conv2d(3, 4, 3, stride=2, padding_mode="reflect", padding=1)
        plain = nn.Conv2d(3, 4, 3, stride=2, padding_mode="reflect", padding=1)
        plain.load_state_dict(conv.state_dict())
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(conv(x), plain(x))

    def test_state_dict_keys(self):
        conv = Conv2d(3, 4, 1, norm=nn.GroupNorm(2, 4), activation=nn.PReLU())
        assert set(conv.state_dict()) == {"weight", "bias", "norm.weight", "norm.bias", "activation.weight"}

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("n", [0, 2])
    def test_frozen_norm_is_part_of_the_convolution(self, n, bias):
        conv = with_frozen_norm(bias=bias)
        x = torch.randn(n, 3, 6, 7, dtype=torch.float64, requires_grad=True)
        variables = [x, *conv.parameters()]
        grad = torch.randn(n, 4, 4, 5, dtype=torch.float64)
        out, expected = conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias)))
        torch.testing.assert_close(out, expected)
        found, wanted = (torch.autograd.grad(y, variables, grad, retain_graph=True) for y in (out, expected))
        torch.testing.assert_close(found, wanted)

    def test_nothing_follows_the_convolution_while_gradients_are_recorded(self):
        conv, x = with_frozen_norm(), torch.randn(1, 3, 6, 7, dtype=torch.float64)
        conv.activation = None
        assert conv(x).grad_fn.name() == "ConvolutionBackward0"

    def test_a_forward_that_a_program_has_replaced_is_called(self, monkeypatch):
        monkeypatch.setattr(FrozenBatchNorm2d, "forward", lambda self, x: x.new_zeros(0))
        assert with_frozen_norm()(torch.randn(1, 3, 6, 7, dtype=torch.float64)).shape == (0,)

    def test_scaled_weights_lie_as_weights_do(self):
        conv = with_frozen_norm().to(memory_format=torch.channels_last)
        x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
        assert conv(x).is_contiguous(memory_format=torch.channels_last)

    def test_state_stays_the_same(self):
        conv = with_frozen_norm()
        before = {name: value.clone() for name, value in conv.state_dict().items()}
        conv(torch.randn(1, 3, 6, 7, dtype=torch.float64)).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())

    def test_a_norm_with_a_hook_is_called(self):
        conv, seen = with_frozen_norm(), []
        conv.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        out = conv(torch.randn(1, 3, 6, 7, dtype=torch.float64))
        assert len(seen) == 1 and torch.equal(out, seen[0].relu())

    def test_a_hook_on_all_modules_sees_norms(self):
        conv, seen = with_frozen_norm(), []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
        try:
            conv(torch.randn(1, 3, 6, 7, dtype=torch.float64))
        finally:
            handle.remove()
        assert seen == [FrozenBatchNorm2d, Conv2d]

    def test_a_norm_of_a_subclass_is_called(self):
        class Doubled(FrozenBatchNorm2d):
            def forward(self, x):
                return 2 * super().forward(x)

        norm = Doubled(4)
        conv = Conv2d(3, 4, 1, bias=False, norm=norm)
        x = torch.randn(1, 3, 2, 2)
        torch.testing.assert_close(conv(x), 2 * F.conv2d(x, conv.weight))

    def test_a_convolution_of_a_subclass_keeps_its_weights(self):
        class Standardized(Conv2d):
            def _conv_forward(self, input, weight, bias):
                return super()._conv_forward(input, weight / weight.std(), bias)

        norm = FrozenBatchNorm2d(4)
        norm.weight.fill_(3.0)
        conv = Standardized(3, 4, 1, bias=False, norm=norm)
        x = torch.randn(1, 3, 2, 2)
        torch.testing.assert_close(conv(x), 3 * F.conv2d(x, conv.weight / conv.weight.std()))

    def test_a_traced_graph_has_the_norm(self):
        conv, x = with_frozen_norm(), torch.randn(1, 3, 6, 7, dtype=torch.float64)
        graph = torch.jit.trace(conv, x, check_trace=False)
        assert "addcmul" in str(graph.inlined_graph)
        torch.testing.assert_close(graph(x), conv(x))

    @pytest.mark.parametrize("activation", [F.relu, torch.relu, nn.ReLU()])
    def test_rectifiers_overwrite_their_input(self, activation, monkeypatch):
        overwritten = []
        monkeypatch.setattr(F, "relu_", lambda x: overwritten.append(x) or torch.relu_(x))
        Conv2d(3, 4, 1, activation=activation)(torch.randn(1, 3, 2, 2))
        Conv2d(3, 4, 1, norm=nn.GroupNorm(2, 4), activation=activation)(torch.randn(1, 3, 2, 2))
        assert len(overwritten) == 2

    @pytest.mark.parametrize("activation", [torch.sigmoid, nn.LeakyReLU()])
    def test_other_activations_are_called(self, activation):
        conv, x = Conv2d(3, 4, 1, activation=activation), torch.randn(1, 3, 2, 2)
        assert torch.equal(conv(x), activation(F.conv2d(x, conv.weight, conv.bias)))

    def test_a_norm_that_keeps_its_result_is_not_overwritten(self):
        class Kept(nn.Module):
            def forward(self, x):
                self.result = x.exp()
                return self.result

        conv = Conv2d(3, 4, 1, norm=Kept(), activation=F.relu)
        conv(torch.randn(1, 3, 2, 2)).sum().backward()  # the gradient of exp is its result

    def test_empty_batch_has_gradients(self):
        conv = Conv2d(3, 4, 3)
        conv(torch.zeros(0, 3, 5, 5)).sum().backward()
        assert conv.weight.grad is not None and not conv.weight.grad.any()


class TestCat:
    def test_a_single_tensor_is_not_copied(self):
        t = torch.zeros(3)
        assert cat([t]) is t

    def test_several(self):
        assert cat((torch.zeros(2, 1), torch.ones(2, 2)), dim=1).tolist() == [[0, 1, 1]] * 2

    def test_not_a_list(self):
        with pytest.raises(TypeError, match="Tensor"):
            cat(torch.zeros(3))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (2, 5, 7), (4, 3, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_any_along(shape, share):
    flags = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    for dim in range(-1, len(shape)):
        expected = flags.numpy().any(axis=dim)
        found = any_along(flags, dim)
        assert found.dtype == torch.bool and found.shape == expected.shape and (found.numpy() == expected).all()
    turned = flags.transpose(0, 1)
    assert torch.equal(any_along(turned, 0), any_along(flags, 1))


@pytest.mark.parametrize(
    ("x", "expected"),
    [([], [[]]), (0, [[]]), (5, [[0]]), ([0, 3, 0, 1], [[1, 3]]), ([[0, 1], [1, 0]], [[0, 1], [1, 0]])],
)
def test_nonzero_tuple(x, expected):
    assert [i.tolist() for i in nonzero_tuple(torch.tensor(x))] == expected


class TestEmptyLosses:
    def test_empty_mean_is_zero_and_has_a_gradient(self):
        logits = torch.zeros(0, 5, requires_grad=True)
        loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None and logits.grad.shape == (0, 5)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_otherwise_the_loss_itself(self, reduction):
        logits, target = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, -1])
        got = cross_entropy(logits, target, reduction=reduction, ignore_index=-1)
        torch.testing.assert_close(got, F.cross_entropy(logits, target, reduction=reduction, ignore_index=-1))

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_empty_without_a_mean(self, reduction):
        got = cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), reduction=reduction)
        assert got.sum() == 0 and got.shape == (() if reduction == "sum" else (0,))

    def test_any_loss(self):
        loss = empty_input_loss_func_wrapper(F.l1_loss)
        assert loss(torch.zeros(0), torch.zeros(0)) == 0
        assert loss(torch.ones(2), torch.zeros(2)) == 1
        assert loss.__name__ == "l1_loss"
        assert list(inspect.signature(loss).parameters) == ["input", "target", "reduction", "kwargs"]


class TestShapesToTensor:
    @pytest.mark.parametrize("shape", [[], [3], [3, 4]])
    def test_numbers(self, shape):
        got = shapes_to_tensor(shape)
        assert got.dtype == torch.int64 and got.tolist() == shape

    def test_tensors_and_numbers(self):
        got = shapes_to_tensor([torch.tensor(3), 4], device=torch.device("cpu"))
        assert got.dtype == torch.int64 and got.tolist() == [3, 4]


def test_move_device_like():
    src = torch.zeros(2)
    assert move_device_like(src, torch.zeros(1)) is src
    assert move_device_like(src, torch.zeros(1, device="meta")).device.type == "meta"


def test_compiler_helpers():
    assert check_if_dynamo_compiling() is False
    assert disable_torch_compiler(lambda x: x + 1)(1) == 2


def test_new_empty_tensor_op():
    x = torch.zeros(0, 3, requires_grad=True)
    y = _NewEmptyTensorOp.apply(x, (0, 7))
    y.sum().backward()
    assert y.shape == (0, 7) and x.grad is not None and x.grad.shape == (0, 3)
