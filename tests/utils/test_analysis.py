import re

import pytest
import torch
from fvcore.nn import flop_count_table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2.layers import DeformConv
from detectron2.structures import Instances
from detectron2.utils import analysis


class Detector(nn.Module):
    """Takes list[dict], returns list[dict] of instances, like the detection models."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 2, bias=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, batched_inputs):
        features = self.backbone(torch.stack([item["image"] for item in batched_inputs]))
        scores = self.head(features.mean((2, 3)))
        if self.training:
            return {"loss": scores.sum()}
        return [
            {"instances": Instances((item.get("height") or 1, 1), scores=row[None])}
            for row, item in zip(scores, batched_inputs, strict=True)
        ]


INPUTS = [{"image": torch.zeros(3, 10, 12), "height": 20}]
CONV, LINEAR = 10 * 12 * 8 * 3 * 9, 8 * 2  # multiply-adds


@pytest.fixture
def model():
    return Detector().eval()


def test_flops_by_module(model):
    flops = analysis.FlopCountAnalysis(model, INPUTS)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert flops.by_module()["model.backbone"] == CONV
    assert flops.by_module()["model.head"] == LINEAR
    assert flops.by_operator() == {"conv": CONV, "linear": LINEAR}
    assert "aten::mul" not in flops.unsupported_ops()


def test_flops_of_a_model_with_several_arguments():
    class Adds(nn.Module):
        def forward(self, x, factors, mode):
            return torch.mm(x, factors["w"]) if mode == "mm" else x

    flops = analysis.FlopCountAnalysis(Adds(), (torch.zeros(2, 3), {"w": torch.zeros(3, 5)}, "mm"))
    assert flops.total() == 2 * 3 * 5


def test_operator_counts_and_the_mode_is_restored(model):
    model.train()
    assert analysis.flop_count_operators(model, INPUTS) == {"conv": CONV / 1e9, "linear": LINEAR / 1e9}
    assert analysis.activation_count_operators(model, INPUTS) == {"conv": 960 / 1e6, "linear": 2 / 1e6}
    assert model.training


def test_unknown_arguments_are_refused(model):
    with pytest.raises(TypeError, match="max_depth"):
        analysis.activation_count_operators(model, INPUTS, max_depth=3)


def test_parameter_count(model):
    counts = analysis.parameter_count(model)
    assert counts[""] == 8 * 27 + 8 + 16 + 6
    assert counts["backbone"] == 8 * 27 + 8
    assert counts["unused.bias"] == 2
    table = analysis.parameter_count_table(model, max_depth=1)
    assert "backbone" in table
    assert "(8, 3, 3, 3)" not in table


def test_unused_parameters(model):
    with pytest.raises(ValueError, match="train"):
        analysis.find_unused_parameters(model, INPUTS)
    model.train()
    assert analysis.find_unused_parameters(model, INPUTS) == ["unused.weight", "unused.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())
    model.unused.requires_grad_(False)
    assert analysis.find_unused_parameters(model, INPUTS) == []


class Attention(nn.Module):
    def forward(self, queries, keys, values):
        return nn.functional.scaled_dot_product_attention(queries, keys, values)


def test_fused_attention_counts_as_its_two_matrix_products():
    inputs = (torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 6))
    counts = analysis.FlopCountAnalysis(Attention(), inputs).by_operator()
    assert counts == {"scaled_dot_product_attention": 2 * 3 * 5 * 7 * 4 + 2 * 3 * 5 * 7 * 6}


class AttentionDetector(nn.Module):
    def forward(self, batched_inputs):
        image = batched_inputs[0]["image"][None]
        return [{"scores": nn.functional.scaled_dot_product_attention(image, image, image)}]


def test_activations_of_fused_attention():
    counts = analysis.activation_count_operators(AttentionDetector(), [{"image": torch.zeros(3, 5, 4)}])
    assert counts == {"scaled_dot_product_attention": (3 * 5 * 5 + 3 * 5 * 4) / 1e6}


def test_a_model_without_operators_counts_nothing():
    flops = analysis.FlopCountAnalysis(nn.Identity(), torch.zeros(2, 3))
    assert flops.total() == 0
    assert flops.by_module() == {"": 0, "model": 0}
    assert not flops.unsupported_ops()


def test_the_model_runs_once_and_is_not_traced(model, monkeypatch):
    def traced(*args, **kwargs):
        raise AssertionError("the model is traced")

    monkeypatch.setattr("fvcore.nn.jit_analysis._get_trace_graph", traced)
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(torch.jit.is_tracing()))
    flops = analysis.FlopCountAnalysis(model, INPUTS)
    assert flops.total() == flops.total("model") == CONV + LINEAR
    assert runs == [False]
    assert flops.uncalled_modules() == {"model.unused"}
    assert analysis.ActivationCountAnalysis(model, INPUTS).by_module()["model.backbone"] == 960
    assert len(model._forward_hooks) == 0


def test_a_model_that_fails_is_left_without_hooks(model):
    flops = analysis.FlopCountAnalysis(model, [{"image": torch.zeros(4, 10, 12)}])
    with pytest.raises(RuntimeError, match="channels"):
        flops.total()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.zeros(1, requires_grad=True).mul(2).requires_grad


def test_handles_and_copies(model):
    flops = analysis.FlopCountAnalysis(model, INPUTS)
    flops.set_op_handle("aten::linear", lambda *_: 5, "aten::mean", lambda inputs, _: 10 + len(inputs[1].toIValue()))
    assert flops.by_operator() == {"conv": CONV, "linear": 5, "mean": 12}
    larger = flops.copy(new_inputs=[{"image": torch.zeros(3, 20, 12)}])
    assert larger.by_operator() == {"conv": 2 * CONV, "linear": 5, "mean": 12}
    assert flops.copy().by_operator() == flops.by_operator()


class Shared(nn.Module):
    """Two modules with one child."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 3, bias=False))
        self.second = nn.Sequential(self.first[0])

    def forward(self, x):
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(("mode", "first", "second"), [("owner", 12, 0), ("caller", 6, 6)])
def test_operators_belong_to_owners_or_to_callers(mode, first, second):
    counts = analysis.FlopCountAnalysis(Shared(), torch.zeros(1, 2)).ancestor_mode(mode).by_module()
    assert (counts["model.first"], counts["model.second"]) == (first, second)
    assert counts["model.first.0"] == counts["model"] == 12


class Composite(nn.Module):
    """Operators that are made of others: those are counted."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.conv = nn.Conv1d(5, 2, 3, padding="same")

    def forward(self, x):
        x = self.attention(x, x, x)[0]
        return torch.tensordot(self.conv(x), x, dims=([2], [2]))


def test_composite_operators_are_taken_apart():
    flops = analysis.FlopCountAnalysis(Composite().eval(), torch.zeros(1, 5, 4))
    counts = flops.by_operator()
    assert counts["conv"] == 2 * 5 * 3 * 4
    assert counts["linear"] == 5 * 4 * 4 * 4  # queries, keys, values, output
    assert counts["bmm"] == 2 * 2 * (5 * 5 * 2)  # two heads, scores and values
    assert counts["mm"] == 2 * 4 * 5


class Branches(nn.Module):
    def forward(self, x):
        x = torch.cond(x.sum() > 0, lambda x: x @ x, lambda x: x + 1, (x,))
        start = (torch.zeros(()), x)
        return torch.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x @ x), start)[1]


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "supports_higher_order_operators"),
    reason="this version of torch does not show branches and loops to a counter of operators",
)
@pytest.mark.parametrize(("value", "products"), [(1.0, 4), (-1.0, 3)])
def test_branches_and_loops_count_as_they_run(value, products):
    counts = analysis.FlopCountAnalysis(Branches(), torch.full((3, 3), value)).by_operator()
    assert counts == {"matmul": products * 27}


def test_deformable_convolution_counts_as_a_convolution():
    layer = DeformConv(4, 6, 3, padding=1)
    counts = analysis.FlopCountAnalysis(layer, (torch.zeros(2, 4, 5, 7), torch.zeros(2, 18, 5, 7))).by_operator()
    assert counts["deform_conv2d"] == 2 * 5 * 7 * (4 * 6 * 9)
    counts = analysis.ActivationCountAnalysis(layer, (torch.zeros(2, 4, 5, 7), torch.zeros(2, 18, 5, 7))).by_operator()
    assert counts == {"deform_conv2d": 2 * 5 * 7 * 6}


def test_tables_of_fvcore(model):
    flops, activations = analysis.FlopCountAnalysis(model, INPUTS), analysis.ActivationCountAnalysis(model, INPUTS)
    table = flop_count_table(flops, activations=activations)
    assert re.search(r"\| +backbone +\| +0.224K +\| +25.92K +\| +0.96K", table)
