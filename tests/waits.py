"""Count where the host would wait for a GPU, on a machine that has none.

Within `with Waits() as waits:` every tensor counts as one in the memory of a GPU, except those that were copied to the
host there, made there without a `device`, or computed from such tensors alone. `waits.found` has the name of each
operation that needs a number from the GPU, or a copy that is not asynchronous.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Waits"]

_METHODS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive",
    "bincount", "equal", "allclose", "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__",
}  # fmt: skip
_OPERATORS = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::bincount", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "torchvision::nms",
}  # fmt: skip
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_FACTORIES = {
    "tensor",
    "as_tensor",
    "zeros",
    "ones",
    "full",
    "empty",
    "arange",
    "from_numpy",
    "rand",
    "randn",
    "linspace",
}
_GIVEN_MEMORY = {"new_tensor"}


def _tensors(*values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _is_on_host(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_on_host", False)


def _on_host(value: Any) -> Any:
    """The same tensors, in objects of their own, marked as those of the host."""

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.view(tensor.shape)
        copy._is_on_host = True  # pyright: ignore[reportAttributeAccessIssue]
        return copy

    return tree_map(lambda v: mark(v) if isinstance(v, torch.Tensor) else v, value)


class Waits(TorchDispatchMode):
    """Counts waits in Python and below it; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._python = _WaitsInPython(self.found)

    def __enter__(self):
        self._python.__enter__()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self._python.__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._python.is_inside:
            name = func._schema.name
            if name in _OPERATORS or (name in _INDEXING and _has_mask(args[1])) or _repeats_unknown(func, kwargs or {}):
                self.found.append(name)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _repeats_unknown(func: Any, kwargs: Any) -> bool:
    is_by_tensor = func._schema.name == "aten::repeat_interleave" and "Tensor" in func._overloadname
    return is_by_tensor and kwargs.get("output_size") is None


class _WaitsInPython(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found
        self.is_inside = False  # of an operation that is counted already, or one of the host

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.is_inside:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = _tensors(args, kwargs)
        of_host = len(given) > 0 and all(_is_on_host(t) for t in given)
        to_host = name == "cpu" or (name == "_start_copy")
        if of_host and name in ("to", "cuda"):
            return self._copied_to_device(name, func, args, kwargs)
        if not of_host and (name in _METHODS or _copies_in(name, args, kwargs)):
            self.found.append(name)
        elif not of_host and not (name in _FACTORIES and kwargs.get("device") is None and not given):
            return func(*args, **kwargs)
        self.is_inside = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.is_inside = False
        made_here = name in _FACTORIES and kwargs.get("device") is None and not given
        return _on_host(result) if of_host or to_host or made_here else result

    def _copied_to_device(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy by `to`, if it names a device, asynchronous only if that was asked for."""
        result = func(*args, **kwargs)
        names_device = "device" in kwargs or any(isinstance(a, torch.device | str) for a in args[1:])
        if not names_device:
            return _on_host(result)
        if not kwargs.get("non_blocking", False):
            self.found.append(name)
        return result.view(result.shape)


def _copies_in(name: str, args: Any, kwargs: Any) -> bool:
    """Whether numbers of Python go to the GPU, in memory from which no copy is asynchronous."""
    return name in _GIVEN_MEMORY or (name in ("tensor", "as_tensor") and kwargs.get("device") is not None)
