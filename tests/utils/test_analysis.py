import pytest
import torch
from torch import nn

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
