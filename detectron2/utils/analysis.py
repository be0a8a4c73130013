"""Count the operations, activations and parameters of a model.

The counters are those of fvcore, extended to models that take `list[dict]` and return `Instances`.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count, parameter_count_table
from fvcore.nn import FlopCountAnalysis as _FvcoreFlopCountAnalysis
from torch import nn

__all__ = [
    "FlopCountAnalysis",
    "activation_count_operators",
    "find_unused_parameters",
    "flop_count_operators",
    "parameter_count",
    "parameter_count_table",
]


def __getattr__(name: str) -> Any:
    if name == "TracingAdapter":  # a published name of this module, imported only on use
        from detectron2.export.flatten import TracingAdapter

        return TracingAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Element-wise or data-moving operators, without multiplications worth counting.
_IGNORED_OPS = (
    "aten::add",
    "aten::add_",
    "aten::argmax",
    "aten::argsort",
    "aten::batch_norm",
    "aten::constant_pad_nd",
    "aten::div",
    "aten::div_",
    "aten::exp",
    "aten::log2",
    "aten::max_pool2d",
    "aten::meshgrid",
    "aten::mul",
    "aten::mul_",
    "aten::neg",
    "aten::nonzero_numpy",
    "aten::reciprocal",
    "aten::repeat_interleave",
    "aten::rsub",
    "aten::sigmoid",
    "aten::sigmoid_",
    "aten::softmax",
    "aten::sort",
    "aten::sqrt",
    "aten::sub",
    "torchvision::nms",
)


def _shape(value: Any) -> list[int]:
    """Return the shape of a value of a traced graph."""
    return value.type().sizes()


def _attention_scores(inputs: list[Any]) -> int:
    """Count the pairs of a query and a key in all heads, for queries (..., L, D) and keys (..., S, D)."""
    return math.prod(_shape(inputs[0])[:-1]) * _shape(inputs[1])[-2]


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the operations of the two matrix products in fused attention: the scores and the weighted values."""
    return _attention_scores(inputs) * (_shape(inputs[0])[-1] + _shape(inputs[2])[-1])


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    return _attention_scores(inputs) + math.prod(_shape(outputs[0]))


_ATTENTION = "aten::scaled_dot_product_attention"


def _adapter(model: nn.Module, inputs: Any) -> Any:
    """Present a model as a function of tensors, as tracing requires."""
    from detectron2.export.flatten import TracingAdapter

    return TracingAdapter(model, inputs, allow_non_tensor=True)


class FlopCountAnalysis(_FvcoreFlopCountAnalysis):
    """fvcore's `FlopCountAnalysis` for models that take and return anything. One multiply-add counts as one.

    The numbers depend on the inputs, through image sizes and the number of proposals and detections: average over
    several. Modules are named below `model`.

    Args:
        model: the model; put it into evaluation mode to count inference.
        inputs: its argument, such as `list[dict]`, or a tuple of its arguments.
    """

    def __init__(self, model: nn.Module, inputs: Any):
        adapter = _adapter(model, inputs)
        super().__init__(adapter, adapter.flattened_inputs)
        handles: dict[str, Any] = {**dict.fromkeys(_IGNORED_OPS), _ATTENTION: _attention_flops}
        self.set_op_handle(**handles)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _images_only(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"image": item["image"]} for item in inputs]


def flop_count_operators(model: nn.Module, inputs: list[dict[str, Any]]) -> defaultdict[str, float]:
    """Count the multiply-adds of one inference by operator; see `FlopCountAnalysis` for more.

    Args:
        model: a model that takes `list[dict]`.
        inputs: its input; only `"image"` is used. Average over several, since the counts depend on the content.

    Returns:
        Operator to billions of operations.
    """
    with _inference(model):
        counts = FlopCountAnalysis(model, _images_only(inputs)).by_operator()
    return defaultdict(float, {name: count / 1e9 for name, count in counts.items()})


def activation_count_operators(
    model: nn.Module, inputs: list[dict[str, Any]], **kwargs: Any
) -> defaultdict[str, float]:
    """Count the output elements of convolutions and matrix products in one inference by operator.

    Args:
        model: a model that takes `list[dict]`.
        inputs: its input; only `"image"` is used. Average over several, since the counts depend on the content.
        **kwargs: `supported_ops`, handles that replace or extend fvcore's.

    Returns:
        Operator to millions of elements.
    """
    with _inference(model):
        adapter = _adapter(model, _images_only(inputs))
        analysis = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
        analysis.set_op_handle(_ATTENTION, _attention_activations)
        analysis.set_op_handle(**kwargs.pop("supported_ops", None) or {})
        if kwargs:
            raise TypeError(f"activation_count_operators() got unknown arguments {sorted(kwargs)}.")
        counts = analysis.unsupported_ops_warnings(False).by_operator()
    return defaultdict(float, {name: count / 1e6 for name, count in counts.items()})


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Find the trainable parameters that receive no gradient; distributed training would wait for them forever.

    The gradients that the model holds are cleared.

    Args:
        model: a model in training mode, which returns a loss or a dictionary of losses.
        inputs: its input.

    Returns:
        The names, in the order of the model.
    """
    if not model.training:
        raise ValueError("find_unused_parameters needs the losses: call model.train() first.")
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad(set_to_none=True)
    losses = model(inputs)
    total = sum(losses.values()) if isinstance(losses, dict) else losses
    assert isinstance(total, torch.Tensor), "the model returned no losses"
    total.backward()
    unused = [name for name, parameter in trainable.items() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
