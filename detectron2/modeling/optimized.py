"""Models prepared for fast inference: the same outputs, up to rounding, from fewer passes over memory.

`optimized_for_inference` makes such a form of a model once. In it, norms that only scale and shift are part of the
convolution before them, rectifiers overwrite what only they read, weights lie in memory as the fastest convolutions of
the CPU take them, layers are those of `detectron2.modeling.inference_layers`, anchors are kept for the next image of
the same size, and nothing records gradients.
"""

import copy
import itertools
import math
import operator
import types
from collections import Counter, OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from detectron2.layers import Conv2d, DeformConv, FrozenBatchNorm2d, ModulatedDeformConv, NaiveSyncBatchNorm
from detectron2.utils.tracing import when_compiled, when_traced

from .anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from .backbone import FPN, BottleneckBlock
from .inference_layers import InPlaceBottleneckBlock, InPlaceFPN, WinogradConv2d
from .roi_heads.box_head import FastRCNNConvFCHead

__all__ = ["OptimizedForm", "optimized_for_inference"]

_CONVOLUTIONS_WITH_NORM = (Conv2d, DeformConv, ModulatedDeformConv)
_DENSE_CONVOLUTIONS = (nn.Conv2d, Conv2d, nn.ConvTranspose2d)
_FOLDED_NORMS = (
    FrozenBatchNorm2d,
    nn.BatchNorm2d,
    NaiveSyncBatchNorm,
    nn.SyncBatchNorm,
    TorchvisionFrozenBatchNorm2d,
)
_FRESH_OUTPUTS = (*_DENSE_CONVOLUTIONS, DeformConv, ModulatedDeformConv, nn.Linear, *_FOLDED_NORMS, nn.GroupNorm)
_RECTIFIERS = (F.relu, torch.relu, torch.relu_, F.relu_)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules", *_HOOKS)
_KNOWN_PACKAGES = ("detectron2.", "torch.nn.modules.", "torchvision.ops.")
_SIZES_KEPT = 8  # of images whose anchors are kept, by each generator
_SAMPLES = 16  # numbers of each tensor that are looked at to see whether it has changed


def optimized_for_inference(model: nn.Module) -> nn.Module:
    """Make a form of a model that does the same in less time, for inference only.

    The outputs equal those of `model.eval()` up to rounding (about 1e-5 of the largest value). `model` is not changed
    and can be trained on. What is done:

    - A `BatchNorm2d`, `FrozenBatchNorm2d` or synchronized batch norm becomes part of the convolution that it follows:
      as the `norm` of `detectron2.layers.Conv2d` and of deformable convolutions, and next to a convolution in
      `nn.Sequential`. Others stay.
    - Rectifiers overwrite the result of the layer before them.
    - On the CPU the weights of convolutions are stored with channels last, and features follow. The first fully
      connected layer of a box head takes regions in this order.
    - On the CPU 3x3 convolutions of 64 and more channels, but not the very widest, are done by Winograd's filtering,
      with a quarter of the multiplications, and rectify what they write. Bottlenecks and feature pyramids add in place.
    - Anchors are kept, for the last few sizes of images.
    - Parameters need no gradient.

    A layer with hooks, of a class that is not known, or used in more than one place stays as it is. Modules of classes
    that are not known are copied, and what they contain is optimized; if they take an `nn.Sequential` apart and read
    what is between its layers, they see the difference.

    The new form shares all attributes with the model, and all parameters and buffers but those of convolutions and of
    the first layer of box heads, of which it holds copies: it takes about as much memory again as these. The first
    image adds four times the memory of the 3x3 convolutions (270 MB for Mask R-CNN with ResNet-50 and FPN). Changes of
    the model come through in part, or not at all: make a new form after them, or use `OptimizedForm`. Its
    `state_dict()` has other keys and values, and is not for checkpoints.

    Args:
        model: any model, usually one that `build_model` made, with its weights loaded, on any device.

    Returns:
        The new form, in evaluation mode.

    Raises:
        TypeError: `model` is not an `nn.Module`, or one that cannot be taken apart: compiled, scripted, or wrapped for
            several processes.

    Example:
        >>> import torch
        >>> from detectron2.layers import Conv2d, get_norm
        >>> from detectron2.modeling import optimized_for_inference
        >>> model = Conv2d(3, 8, 3, bias=False, norm=get_norm("BN", 8)).eval()
        >>> fast, image = optimized_for_inference(model), torch.rand(1, 3, 10, 12)
        >>> fast.norm is None, model.norm is None
        (True, False)
        >>> torch.allclose(fast(image), model(image), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimized_for_inference takes a torch.nn.Module, got {type(model).__name__}.")
    if (kind := _what_cannot_be_copied(model)) is not None:
        raise TypeError(
            f"optimized_for_inference cannot take a {kind} apart. Optimize the model first, then compile or wrap it."
        )
    with torch.inference_mode(False), torch.no_grad():
        optimized, copies = _copy_structure(model)
        optimized.eval()
        uses = Counter(id(child) for module in copies for child in module._modules.values() if child is not None)
        for module in copies:
            _fold_norms(module, uses)
            _overwrite_in_rectifiers(module)
            _flatten_in_rows(module, uses)
            if type(module) in (DefaultAnchorGenerator, RotatedAnchorGenerator):
                module._keep = _KeptAnchors()
        for module in copies:
            if type(module) in _DENSE_CONVOLUTIONS and not _has_hooks(module):
                _put_channels_last(module)
        for module in copies:
            _convolve_by_winograd(module)
        for module in copies:
            _rectify_in_convolutions(module, uses)
            _add_in_place(module, uses)
    return optimized


class OptimizedForm:
    """The optimized form of a model that may change.

    `current()` looks whether the model is still what it was when the form was made: its modules, their attributes and
    hooks, and its tensors, by identity, version, and a sample of the values, for writes through `.data` are not
    counted. That takes about a millisecond. A new form takes a tenth of a second, for ResNet-50.

    Only models on the CPU, made of modules of this package and of PyTorch, have another form here. A class that is not
    known, or a method that one object was given, may keep something of each call, which would then be on the wrong
    object; hooks are to see all that happens; and a part in training mode, such as a dropout, is to stay so.
    `current()` gives the model itself where there are any of these.

    Args:
        model: what is called for predictions; often, but not always, an `nn.Module`.

    Example:
        >>> import torch
        >>> from detectron2.layers import Conv2d
        >>> from detectron2.modeling.optimized import OptimizedForm
        >>> model = Conv2d(3, 8, 3).eval()
        >>> form = OptimizedForm(model)
        >>> form.current() is form.current(), form.current() is model
        (True, False)
        >>> _ = model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})
        >>> torch.equal(form.current().weight, model.weight)
        True
    """

    def __init__(self, model: Any):
        self.model = model
        self._lock = Lock()
        self._made: tuple[_Snapshot, Any] | None = None

    def current(self) -> Any:
        """The optimized form of the model as it is now, or the model where that cannot be optimized safely."""
        if not isinstance(self.model, nn.Module):
            return self.model
        with self._lock:
            if self._made is None or not self._made[0].holds():
                self._made = None  # before memory is taken for the next one
                if not _is_known(self.model):
                    return self.model
                snapshot = _Snapshot(self.model)
                self._made = (snapshot, optimized_for_inference(self.model))
            return self._made[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptimizedForm":
        return type(self)(copy.deepcopy(self.model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)


# ------------------------------------------------------------------------------------------------------------- copying


def _what_cannot_be_copied(model: nn.Module) -> str | None:
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or _is_compiled(module):
            return type(module).__name__
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return type(module).__name__
        if any(type(p) not in (nn.Parameter, torch.Tensor) for p in _tensors_of(module)):
            return f"{type(module).__name__} with tensors of other types"  # sharded, quantized, not yet initialized
    return None


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers of a module itself."""
    for tensors in (module._parameters, module._buffers):
        yield from (t for t in tensors.values() if t is not None)


def _copy_structure(model: nn.Module) -> tuple[nn.Module, list[Any]]:
    """Copy all modules of a model; the copies share hooks, attributes, and the memory of tensors."""
    new: dict[int, nn.Module] = {id(module): _copy_of(module) for module in model.modules()}
    parameters: dict[int, nn.Parameter | None] = {}
    for module in new.values():
        values: dict[str, Any] = vars(module)
        for name, value in values.items():
            if name not in _TABLES:
                values[name] = _with_copies(value, new)
        own = module._parameters
        for p in own.values():
            if p is not None and id(p) not in parameters:
                parameters[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
        values["_parameters"] = {name: p if p is None else parameters[id(p)] for name, p in own.items()}
        values["_buffers"] = dict(module._buffers)
        values["_modules"] = {name: m if m is None else new[id(m)] for name, m in module._modules.items()}
    return new[id(model)], list(new.values())


def _copy_of(module: nn.Module) -> nn.Module:
    """A module with the same attributes. Those with parametrized weights refuse `copy.copy`."""
    if not is_parametrized(module):
        return copy.copy(module)
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    return twin


def _with_copies(value: Any, new: dict[int, nn.Module]) -> Any:
    """An attribute with copied modules in the place of theirs; the same object where it holds none."""
    if isinstance(value, nn.Module):
        return new.get(id(value), value)
    if isinstance(value, types.MethodType):
        owner = new.get(id(value.__self__))
        return value if owner is None else types.MethodType(value.__func__, owner)
    if type(value) in (list, tuple, set):
        items = [_with_copies(item, new) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    if type(value) in (dict, OrderedDict):
        items = {key: _with_copies(item, new) for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else type(value)(items)
    return value


# ------------------------------------------------------------------------------------------------------------- folding


def _has_hooks(module: nn.Module) -> bool:
    """Whether anyone listens; the check that our synchronized norms do does not count."""
    hooks = (hook for name in _HOOKS for hook in getattr(module, name).values())
    return any(getattr(hook, "__module__", None) != "detectron2.layers.batch_norm" for hook in hooks)


def _is_own_code(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether a module is one of these classes, not a subclass, and neither patched nor listened to."""
    return type(module) in kinds and "forward" not in vars(module) and not _has_hooks(module)


def _can_fold(norm: Any, uses: Counter[int]) -> bool:
    if not isinstance(norm, nn.Module) or not _is_own_code(norm, _FOLDED_NORMS) or uses[id(norm)] != 1:
        return False
    return norm.running_mean is not None and norm.running_var is not None


def _fold_norms(module: Any, uses: Counter[int]) -> None:
    """Fold the norm of a convolution that owns one, or the norms behind convolutions of a sequence."""
    if _is_own_code(module, _CONVOLUTIONS_WITH_NORM) and _can_fold(module.norm, uses):
        _fold(module, module.norm)
        module.norm = None
    if type(module) is not nn.Sequential:
        return
    names = list(module._modules)
    for name, following in itertools.pairwise(names):
        conv, norm = module._modules[name], module._modules[following]
        if not isinstance(conv, nn.Module) or uses[id(conv)] != 1 or not _can_fold(norm, uses):
            continue
        plain = _is_own_code(conv, (nn.Conv2d,))
        if plain or (_is_own_code(conv, _CONVOLUTIONS_WITH_NORM) and conv.norm is None and conv.activation is None):
            _fold(conv, norm)
            module._modules[following] = nn.Identity()


def _fold(conv: Any, norm: Any) -> None:
    """Give a convolution the weights that make the norm behind it superfluous."""
    scale, shift = _scale_and_shift(norm)
    weight, bias = conv.weight, conv.bias
    folded = weight.to(scale.dtype) * scale.view(-1, 1, 1, 1)
    if bias is not None:
        shift = shift + bias.to(scale.dtype) * scale
    conv.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def _scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm with fixed statistics as `x * scale + shift`, in float32 or better."""
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -norm.running_mean.to(dtype) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.to(dtype)


def _is_rectifier(function: Any) -> bool:
    if isinstance(function, nn.Module):
        return _is_own_code(function, (nn.ReLU,))
    return any(function is known for known in _RECTIFIERS)


def _overwrite_in_rectifiers(module: Any) -> None:
    """Let rectifiers write over the result of a layer that is theirs alone."""
    is_convolution = _is_own_code(module, _CONVOLUTIONS_WITH_NORM) and _is_rectifier(module.activation)
    if is_convolution and (module.norm is None or _is_own_code(module.norm, _FRESH_OUTPUTS)):
        module._modules.pop("activation", None)
        module.activation = F.relu_
    is_sequence = isinstance(module, nn.Sequential)
    if not is_sequence or not (type(module) is nn.Sequential or type(module).__module__.startswith("detectron2.")):
        return
    fresh = False
    children: list[Any] = list(module._modules.values())
    for child in children:
        if fresh and _is_own_code(child, (nn.ReLU,)):
            child.inplace = True
        elif not isinstance(child, nn.Identity):
            fresh = _is_own_code(child, _FRESH_OUTPUTS)


def _put_channels_last(conv: Any) -> None:
    weight = conv.weight
    if weight.device.type == "cpu":
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        conv.weight = nn.Parameter(weight, requires_grad=False)


# ------------------------------------------------------------------------------------------------------- faster layers


def _convolve_by_winograd(conv: Any) -> None:
    if not _is_own_code(conv, (nn.Conv2d, Conv2d)) or not WinogradConv2d.suits(conv):
        return
    if conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32:
        if not isinstance(conv, Conv2d):
            vars(conv).update(norm=None, activation=None)
        conv.__class__ = WinogradConv2d


def _rectify_in_convolutions(module: Any, uses: Counter[int]) -> None:
    """Let convolutions of a sequence rectify what they write."""
    if not isinstance(module, nn.Sequential):
        return
    if type(module) is not nn.Sequential and not type(module).__module__.startswith("detectron2."):
        return
    for name, following in itertools.pairwise(list(module._modules)):
        conv: Any = module._modules[name]
        if not _is_own_code(conv, (WinogradConv2d,)) or conv.norm is not None or conv.activation is not None:
            continue
        if _is_own_code(module._modules[following], (nn.ReLU,)) and uses[id(conv)] == 1:
            conv.activation = F.relu_
            module._modules[following] = nn.Identity()


def _add_in_place(module: Any, uses: Counter[int]) -> None:
    """Let pyramids and bottlenecks add to maps without other readers."""
    if _is_own_code(module, (FPN,)) and all(map(_is_plain_pointwise, module.lateral_convs)):
        module.__class__ = InPlaceFPN
    if type(module) is not nn.Sequential:
        return
    before: Any = None
    blocks: list[Any] = list(module._modules.values())
    for block in blocks:
        if _is_own_code(block, (BottleneckBlock,)) and _fits_in_place(block):
            for conv in (block.conv1, block.conv2):
                conv._modules.pop("activation", None)
                conv.activation = F.relu_
            block.__class__ = InPlaceBottleneckBlock
            # The first block of a stage reads what the stage before gave to others, too.
            block.owns_input = type(before) is InPlaceBottleneckBlock and uses[id(before)] == uses[id(block)] == 1
        before = block


def _fits_in_place(block: Any) -> bool:
    convs = (block.conv1, block.conv2, *([] if block.shortcut is None else [block.shortcut]))
    if not all(_is_own_code(conv, (Conv2d, WinogradConv2d)) for conv in convs) or not _is_plain_pointwise(block.conv3):
        return False
    return all(conv.activation is None for conv in convs) and (block.shortcut is None or block.shortcut.norm is None)


def _is_plain_pointwise(conv: Any) -> bool:
    if not _is_own_code(conv, (Conv2d,)) or conv.norm is not None or conv.activation is not None:
        return False
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


class _FlattenRows(nn.Module):
    """Flattens regions `(R, C, P, P)` cell by cell, without a copy where channels are last in memory."""

    def __init__(self, region_size: tuple[int, ...]):
        super().__init__()
        self.region_size = region_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, *self.region_size).permute(0, 2, 3, 1).flatten(1)


def _flatten_in_rows(head: Any, uses: Counter[int]) -> None:
    """Let the first fully connected layer of a box head read regions with channels last as they lie in memory."""
    if not _is_own_code(head, (FastRCNNConvFCHead,)) or "_region_size" not in vars(head):
        return
    flatten, linear = head._modules.get("flatten"), head._modules.get("fc1")
    if not _is_own_code(flatten, (nn.Flatten,)) or not _is_own_code(linear, (nn.Linear,)):
        return
    weight = linear.weight.detach()
    is_usual = (flatten.start_dim, flatten.end_dim, weight.shape[1]) == (1, -1, math.prod(head._region_size))
    if is_usual and uses[id(linear)] == 1 and weight.device.type == "cpu":
        rows = weight.unflatten(1, head._region_size).permute(0, 2, 3, 1).flatten(1)
        linear.weight = nn.Parameter(rows, requires_grad=False)
        head._modules["flatten"] = _FlattenRows(head._region_size)


# ------------------------------------------------------------------------------------------------------------- anchors


def _place_anew(kept: Any, generator: DefaultAnchorGenerator, grid_sizes: list[Any]) -> list[torch.Tensor]:
    """A graph computes anchors, of any size."""
    return generator._grid_anchors(grid_sizes)


class _KeptAnchors:
    """Anchors of the last few sizes of images; copies begin empty."""

    def __init__(self) -> None:
        self._by_size: OrderedDict[Any, list[torch.Tensor]] = OrderedDict()

    @when_compiled(_place_anew)
    @when_traced(_place_anew)
    def __call__(self, generator: DefaultAnchorGenerator, grid_sizes: list[Any]) -> list[torch.Tensor]:
        cells = tuple((id(cell), cell.device, cell.dtype) for cell in generator.cell_anchors)
        key = (tuple(map(tuple, grid_sizes)), cells, tuple(generator.strides), generator.offset)
        found = self._by_size.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = generator._grid_anchors(grid_sizes)
            self._by_size[key] = found
            while len(self._by_size) > _SIZES_KEPT:
                self._by_size.pop(next(iter(self._by_size)), None)  # another thread may have been faster
        return list(found)

    def __len__(self) -> int:
        return len(self._by_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


# ------------------------------------------------------------------------------------------------------------- changes


def _is_known(model: nn.Module) -> bool:
    """Whether a model is on the CPU, for inference, and of modules whose calls leave nothing behind or unseen."""
    for module in model.modules():
        if any(t.device.type != "cpu" or t.is_inference() for t in _tensors_of(module)):
            return False
        if not f"{type(module).__module__}.".startswith(_KNOWN_PACKAGES):
            return False
        if module.training or _has_hooks(module) or _has_own_methods(module):
            return False
    return _what_cannot_be_copied(model) is None


def _has_own_methods(module: nn.Module) -> bool:
    """Whether somebody gave this one object other methods than its class has; they may keep things on the object."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


class _Snapshot:
    """What a model was like at one moment."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._parts = _parts_of(model)
        self._modules = [(module, self._shape_of(module)) for module in model.modules()]
        tensors = [t for module, _ in self._modules for t in _tensors_of(module)]
        self._tensors = [(t, self._place_of(t)) for t in tensors]
        by_kind: dict[Any, list[torch.Tensor]] = {}
        for t in tensors:
            if t.numel() and _is_packed(t):
                flat = t.detach().as_strided((min(_SAMPLES, t.numel()),), (max(1, t.numel() // _SAMPLES),))
                by_kind.setdefault((t.device, t.dtype), []).append(flat)
        self._samples = [(views, torch.cat(views)) for views in by_kind.values()]

    @staticmethod
    def _shape_of(module: nn.Module) -> dict[str, Any]:
        """Attributes, with lists of children, tensors and hooks as they are at the moment."""
        shape = dict(vars(module))
        for name in _TABLES:
            shape[name] = list(shape[name].items())
        return {**shape, "__class__": type(module)}

    @staticmethod
    def _place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
        return tensor.data_ptr(), None if tensor.is_inference() else tensor._version, tensor.dtype, tensor.shape

    def holds(self) -> bool:
        """Whether the model is still the same."""
        parts = _parts_of(self._model)
        if len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
            if not self._has_same_modules():
                return False
            self._parts = parts  # numbers and texts are other, equal objects
        if any(self._place_of(t) != place for t, place in self._tensors):
            return False
        return all(_is_equal(torch.cat(views), before) for views, before in self._samples)

    def _has_same_modules(self) -> bool:
        now = list(self._model.modules())
        if len(now) != len(self._modules):
            return False
        modules = zip(now, self._modules, strict=True)
        return all(m is known and _is_same(self._shape_of(m), before) for m, (known, before) in modules)


def _parts_of(model: nn.Module) -> list[Any]:
    """All modules, their attributes, tensors and hooks, in one list, which is compared in a fifth of the time."""
    parts: list[Any] = []
    for module in model.modules():
        attributes = vars(module)
        parts += (module, type(module), *attributes.keys(), *attributes.values())
        for name in _TABLES:
            if table := attributes[name]:
                parts += (name, *table.keys(), *table.values())
    return parts


def _is_packed(t: torch.Tensor) -> bool:
    """Whether the numbers of a tensor follow one another in memory."""
    if t.layout != torch.strided:
        return False
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def _is_same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether attributes are the same objects; numbers and texts may be equal ones."""
    if now.keys() != before.keys():
        return False
    for name, value in now.items():
        other = before[name]
        if value is other:
            continue
        if name in _TABLES:
            pairs = zip(value, other, strict=False)
            if len(value) != len(other) or any(a[0] != b[0] or a[1] is not b[1] for a, b in pairs):
                return False
        elif type(value) is not type(other) or type(value) not in (int, float, str, bool) or value != other:
            return False
    return True


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that NaN is equal to itself."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
