"""Count the operations, activations and parameters of a model.

The counters are those of fvcore, extended to models that take `list[dict]` and return `Instances`. fvcore takes the
operators out of a traced graph; here the model runs once, eagerly, and each operator is counted as it is called.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Number
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis as _FvcoreActivationCountAnalysis
from fvcore.nn import FlopCountAnalysis as _FvcoreFlopCountAnalysis
from fvcore.nn import parameter_count, parameter_count_table
from fvcore.nn.jit_analysis import JitModelAnalysis, Statistics
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "ActivationCountAnalysis",
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
    "aten::_local_scalar_dense",
    "aten::add",
    "aten::add_",
    "aten::argmax",
    "aten::argsort",
    "aten::batch_norm",
    "aten::constant_pad_nd",
    "aten::div",
    "aten::div_",
    "aten::exp",
    "aten::lift_fresh",
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
    "prim::device",
    "torchvision::nms",
)

# Operators that fvcore knows by the name and the number of arguments that they have in a traced graph.
_NAMES_IN_GRAPHS = {"aten::convolution": ("aten::_convolution", 12)}


class _Value:
    """An argument or a result of an operator; answers the questions that counters ask of a value in a traced graph."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def isCompleteTensor(self) -> bool:
        return isinstance(self._value, torch.Tensor)

    def type(self) -> "_Value":
        return self

    def sizes(self) -> list[int]:
        return list(self._value.shape)

    def toIValue(self) -> Any:
        return self._value

    def node(self) -> "_Value":
        return self

    def inputs(self) -> list["_Value"]:
        return [_Value(part) for part in self._value]


def _arguments(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any], count: int) -> list[_Value]:
    """All arguments of an operator, also those left out, filled up with None to the wanted number."""
    given = dict(zip((x.name for x in schema.arguments), args, strict=False)) | kwargs
    values = [given.get(x.name, x.default_value) for x in schema.arguments]
    return [_Value(value) for value in values + [None] * (count - len(values))]


class _Operators(TorchDispatchMode):
    """Tells `count` of each operator: its name, arguments and results. Those it does not know are taken apart."""

    supports_higher_order_operators = True

    def __init__(self, is_known: Callable[[str], bool], count: Callable[[str, list[_Value], list[_Value]], None]):
        super().__init__()
        self.is_known, self.count = is_known, count

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # a branch or a loop, which calls functions
            return func(*(self._watched(x) for x in args), **{name: self._watched(x) for name, x in kwargs.items()})
        name, least = _NAMES_IN_GRAPHS.get(func._schema.name, (func._schema.name, 0))
        if not self.is_known(name):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        inputs = _arguments(func._schema, args, kwargs, least)
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) and len(func._schema.returns) > 1 else [result]
        self.count(name, inputs, [_Value(x) for x in outputs])
        return result

    def _watched(self, value: Any) -> Any:
        """A function whose operators are counted too; anything else as it is."""
        if not callable(value) or isinstance(value, torch.Tensor):
            return value

        def function(*args: Any) -> Any:
            with self:
                return value(*args)

        return function


@contextmanager
def _scopes(modules: dict[str, nn.Module]) -> Iterator[list[str]]:
    """Keep the names of the modules that are being called, the outermost first, while the context is open."""
    called = [""]
    with ExitStack() as hooks:
        for name, module in modules.items():
            before = module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
            after = module.register_forward_hook(lambda *_: _drop_last(called), always_call=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield called


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Let `nn.MultiheadAttention` call one operator for each of its steps."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _drop_last(names: list[str]) -> None:
    names.pop()


class _EagerAnalysis(JitModelAnalysis):
    """fvcore's analysis of a model that takes and returns anything, without its tracer."""

    def __init__(self, model: nn.Module, inputs: Any):
        self._arguments_of_copies = (model, inputs)
        adapter = _adapter(model, inputs)
        super().__init__(adapter, adapter.flattened_inputs)

    def copy(self, new_model: nn.Module | None = None, new_inputs: Any = None) -> "_EagerAnalysis":
        """Analyse another model, or other inputs, with the same settings."""
        model, inputs = self._arguments_of_copies
        other = type(self)(model if new_model is None else new_model, inputs if new_inputs is None else new_inputs)
        for name in ("_op_handles", "_ignored_ops"):
            setattr(other, name, getattr(self, name).copy())
        for name in ("_enable_warn_unsupported_ops", "_enable_warn_uncalled_mods", "_warn_trace", "_ancestor_mode"):
            setattr(other, name, getattr(self, name))
        return other

    def _analyze(self) -> Statistics:
        if self._stats is not None:
            return self._stats
        names = set(self._aliases.values())
        counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        unsupported: dict[str, Counter[str]] = {name: Counter() for name in names}
        seen = set()

        def is_known(name: str) -> bool:
            return name in self._op_handles or name in self._ignored_ops

        def count(name: str, inputs: list[_Value], outputs: list[_Value]) -> None:
            scopes = set(called) if self._ancestor_mode == "caller" else self._get_all_ancestors(called[-1])
            seen.update(called, scopes)
            if name in self._op_handles:
                found: Any = self._op_handles[name](inputs, outputs)
                found = Counter({self._simplify_op_name(name): found}) if isinstance(found, Number) else found
                for scope in scopes:
                    counts[scope] += found
            elif name not in self._ignored_ops:
                for scope in scopes:
                    unsupported[scope][name] += 1

        modules = {self._aliases[name]: module for name, module in self._named_modules.items()}
        with ExitStack() as stack:
            for context in (torch.no_grad(), _no_fused_attention(), torch._C._AutoDispatchBelowAutograd()):
                stack.enter_context(context)  # below autograd, operators such as `linear` arrive in one piece
            called = stack.enter_context(_scopes(modules))
            stack.enter_context(_Operators(is_known, count))
            self._model(*self._inputs)
        self._stats = Statistics(counts=counts, unsupported_ops=unsupported, uncalled_mods=names - seen)
        self._warn_unsupported_ops(unsupported[""])
        self._warn_uncalled_mods(self._stats.uncalled_mods)
        return self._stats


def _shape(value: Any) -> list[int]:
    """Return the shape of an argument or a result."""
    return value.type().sizes()


def _attention_scores(inputs: list[Any]) -> int:
    """Count the pairs of a query and a key in all heads, for queries (..., L, D) and keys (..., S, D)."""
    return math.prod(_shape(inputs[0])[:-1]) * _shape(inputs[1])[-2]


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the operations of the two matrix products in fused attention: the scores and the weighted values."""
    return _attention_scores(inputs) * (_shape(inputs[0])[-1] + _shape(inputs[2])[-1])


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    return _attention_scores(inputs) + math.prod(_shape(outputs[0]))


def _deformable_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the products with the weights, as of a convolution; not the interpolation."""
    batch, _, height, width = _shape(outputs[0])
    return batch * height * width * math.prod(_shape(inputs[1]))


def _deformable_activations(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0]))


_ATTENTION = "aten::scaled_dot_product_attention"
_DEFORMABLE = "torchvision::deform_conv2d"


def _adapter(model: nn.Module, inputs: Any) -> Any:
    """Present a model as a function of tensors, as fvcore requires."""
    from detectron2.export.flatten import TracingAdapter

    return TracingAdapter(model, inputs, allow_non_tensor=True)


class FlopCountAnalysis(_EagerAnalysis, _FvcoreFlopCountAnalysis):
    """fvcore's `FlopCountAnalysis` for models that take and return anything. One multiply-add counts as one.

    The numbers depend on the inputs, through image sizes and the number of proposals and detections: average over
    several. Modules are named below `model`.

    Args:
        model: the model; put it into evaluation mode to count inference.
        inputs: its argument, such as `list[dict]`, or a tuple of its arguments.

    Example:
        >>> from detectron2.utils.analysis import FlopCountAnalysis
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 1), torch.nn.Flatten(), torch.nn.Linear(1000, 10))
        >>> flops = FlopCountAnalysis(model, torch.zeros(1, 3, 10, 10))
        >>> flops.total(), flops.by_operator()["conv"]
        (13000, 3000)
    """

    def __init__(self, model: nn.Module, inputs: Any):
        super().__init__(model, inputs)
        handles: dict[str, Any] = dict.fromkeys(_IGNORED_OPS)
        self.set_op_handle(_ATTENTION, _attention_flops, _DEFORMABLE, _deformable_flops, **handles)


class ActivationCountAnalysis(_EagerAnalysis, _FvcoreActivationCountAnalysis):
    """fvcore's `ActivationCountAnalysis` for models that take and return anything; see `FlopCountAnalysis`.

    Activations are the elements that convolutions and matrix products put out.

    Args:
        model: the model; put it into evaluation mode to count inference.
        inputs: its argument, such as `list[dict]`, or a tuple of its arguments.

    Example:
        >>> from detectron2.utils.analysis import ActivationCountAnalysis
        >>> ActivationCountAnalysis(torch.nn.Conv2d(3, 10, 1), torch.zeros(1, 3, 4, 4)).total()
        160
    """

    def __init__(self, model: nn.Module, inputs: Any):
        super().__init__(model, inputs)
        self.set_op_handle(_ATTENTION, _attention_activations, _DEFORMABLE, _deformable_activations)


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
        analysis = ActivationCountAnalysis(model, _images_only(inputs))
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
