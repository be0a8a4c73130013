"""Structured inputs and outputs as tuples of tensors: all that a traced function can take and return.

An object is taken apart into its leaves, from left to right, and a `Schema`, which puts others of the same kind
together again. A leaf is a tensor, or anything that has no parts. Mappings and `Instances` are taken apart by sorted
names; the image size of `Instances` is the last of their parts. The segments of a panoptic result are one table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints, ROIMasks, RotatedBoxes
from detectron2.structures.segments import segments_of_table, table_of_segments
from detectron2.utils.registry import convert_target_to_string, locate
from detectron2.utils.tracing import is_tracing

__all__ = ["Schema", "TracingAdapter", "flatten_to_tuple"]

# Structures around one tensor, from which they can be made.
_AROUND_A_TENSOR = (Boxes, RotatedBoxes, ROIMasks, BitMasks, Keypoints)


@dataclass(frozen=True)
class Schema:
    """How an object is made of its leaves, in plain values: `dump_dataclass` makes JSON of it, `instantiate` reads it.

    Args:
        kind: the dotted name of the object's class, or one without such a name; None for a leaf.
        parts: the schemas of its parts, in order.
        fixed: what the leaves do not hold: the keys of a mapping, the names of fields.
    """

    kind: Any = None
    parts: tuple["Schema", ...] = ()
    fixed: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for name in ("parts", "fixed"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def num_leaves(self) -> int:
        """The number of leaves."""
        return 1 if self.kind is None else sum(part.num_leaves for part in self.parts)

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Make an object of this structure from leaves, as `flatten_to_tuple` returns them."""
        if len(leaves) != self.num_leaves:
            raise ValueError(f"This structure has {self.num_leaves} leaves, got {len(leaves)}.")
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind is None:
            return next(leaves)
        kind = locate(self.kind) if isinstance(self.kind, str) else self.kind
        return _join(kind, [part._build(leaves) for part in self.parts], self.fixed)


def flatten_to_tuple(value: Any) -> tuple[tuple[Any, ...], Schema]:
    """Take an object apart into its leaves and the schema that puts them together.

    Lists, tuples, mappings, and the structures of `detectron2.structures` have parts; everything else is a leaf.
    """
    kind, parts, fixed = _split(value)
    if kind is None:
        return (value,), Schema()
    found = [flatten_to_tuple(part) for part in parts]
    leaves = tuple(leaf for of_part, _ in found for leaf in of_part)
    name = convert_target_to_string(kind)
    return leaves, Schema(kind if "<locals>" in name else name, tuple(schema for _, schema in found), fixed)


@dataclass(frozen=True)
class _PanopticResult:
    """The value of "panoptic_seg" in a model's results: a map, and the segments in it as a table, or None."""

    map: torch.Tensor
    table: torch.Tensor | None

    def as_result(self) -> tuple[torch.Tensor, Any]:
        """The value itself; while it is traced, segments stay a table, as the number of them is not known."""
        if self.table is None or is_tracing():
            return self.map, self.table
        return self.map, segments_of_table(self.table)


def _with_table(name: Any, value: Any) -> Any:
    """The value of a mapping, as a `_PanopticResult` if it is one."""
    if name != "panoptic_seg" or not isinstance(value, tuple) or len(value) != 2:
        return value
    panoptic_map, segments = value
    if not isinstance(panoptic_map, torch.Tensor) or not isinstance(segments, torch.Tensor | list | None):
        return value
    if isinstance(segments, list):
        # Of numbers that were read while a graph is traced it would give the same for every image.
        segments = None if is_tracing() else table_of_segments(segments)
        return value if segments is None else _PanopticResult(panoptic_map, segments)
    return _PanopticResult(panoptic_map, segments)


def _split(value: Any) -> tuple[type | None, Sequence[Any], tuple[Any, ...]]:
    """Return the class of an object, its parts, and what belongs to its structure; no class for a leaf."""
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value), value, ()
    if isinstance(value, Mapping):
        names = sorted(value, key=str)
        return dict, [_with_table(name, value[name]) for name in names], tuple(names)
    if isinstance(value, _PanopticResult):
        return _PanopticResult, [value.map] if value.table is None else [value.map, value.table], ()
    if isinstance(value, Instances):
        names = sorted(value.get_fields())
        return Instances, [*map(value.get, names), _as_tensor(value.image_size)], tuple(names)
    if isinstance(value, ImageList):
        return ImageList, [value.tensor, *map(_as_tensor, value.image_sizes)], ()
    if isinstance(value, _AROUND_A_TENSOR):
        return type(value), [value.tensor], ()
    return None, (), ()


def _join(kind: type, parts: list[Any], fixed: tuple[Any, ...]) -> Any:
    if kind is _PanopticResult:
        return _PanopticResult(parts[0], parts[1] if len(parts) > 1 else None).as_result()
    if kind is dict:
        return dict(zip(fixed, parts, strict=True))
    if kind is Instances:
        return Instances(_as_size(parts[-1]), **dict(zip(fixed, parts[:-1], strict=True)))
    if kind is ImageList:
        return ImageList(parts[0], [_as_size(size) for size in parts[1:]])
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return kind(*parts)
    return kind(parts) if issubclass(kind, (list, tuple)) else kind(parts[0])


def _as_tensor(size_hw: Any) -> torch.Tensor:
    """Make height and width a leaf, so that a traced function may return others for another image."""
    if isinstance(size_hw, torch.Tensor):
        return size_hw
    if any(isinstance(x, torch.Tensor) for x in size_hw):
        return torch.stack([torch.as_tensor(x) for x in size_hw])
    return torch.as_tensor(size_hw)


def _as_size(size_hw: torch.Tensor) -> Any:
    # A number that is read from a tensor while it is traced would become a constant.
    return tuple(size_hw.unbind()) if is_tracing() else tuple(size_hw.tolist())


class TracingAdapter(nn.Module):
    """A model as a function from tensors to a tuple of tensors, as `torch.jit.trace` needs it.

    Example::

        adapter = TracingAdapter(model, inputs)
        traced = torch.jit.trace(adapter, adapter.flattened_inputs)
        outputs = adapter.outputs_schema(traced(*adapter.flattened_inputs))  # as of model(inputs)

    Args:
        model: any module; a wrapper for several processes is removed.
        inputs: the only argument of the model, or a tuple of its arguments, made of tensors.
        inference_func: called with the model and the arguments in place of the model.
        allow_non_tensor: leave out leaves of inputs and outputs that are not tensors. Then there are no schemas, and
            the adapter takes only these inputs, which is enough to count operations.

    Attributes:
        flattened_inputs: the tensors of `inputs`.
        inputs_schema: how arguments are made of such tensors; None with `allow_non_tensor`.
        outputs_schema: the same for outputs; None before the first call, and with `allow_non_tensor`.

    Raises:
        ValueError: a leaf of the inputs is not a tensor.
    """

    flattened_inputs: tuple[torch.Tensor, ...]
    inputs_schema: Schema | None
    outputs_schema: Schema | None

    def __init__(
        self, model: nn.Module, inputs: Any, inference_func: Callable | None = None, allow_non_tensor: bool = False
    ) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.inference_func = _call if inference_func is None else inference_func
        self.allow_non_tensor = allow_non_tensor
        leaves, schema = flatten_to_tuple(self.inputs)
        self.flattened_inputs = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        self.inputs_schema = None if allow_non_tensor else schema
        self.outputs_schema = None
        if not allow_non_tensor:
            _check_leaves(leaves, "inputs", self.inputs)

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the model.

        Args:
            *args: tensors in the places of `flattened_inputs`.

        Returns:
            The tensors in its outputs.

        Raises:
            ValueError: there is no schema and the tensors are not `flattened_inputs`; an output is not a tensor; or the
                outputs have another structure than those of an earlier call.
        """
        with torch.no_grad():
            outputs = self.inference_func(self.model, *self._arguments(args))
            leaves, schema = flatten_to_tuple(outputs)
            if self.allow_non_tensor:
                return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
            _check_leaves(leaves, "outputs", outputs)
        if self.outputs_schema is None:
            self.outputs_schema = schema
        elif self.outputs_schema != schema:
            raise ValueError(
                "The outputs have another structure than those of the call before, so that one graph cannot give both: "
                f"{schema}, before {self.outputs_schema}."
            )
        return leaves

    def _arguments(self, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        if self.inputs_schema is not None:
            return self.inputs_schema(args)
        known = self.flattened_inputs
        if len(args) != len(known) or any(a is not b for a, b in zip(args, known, strict=True)):
            raise ValueError(
                "With allow_non_tensor=True the adapter does not know how inputs are made of tensors; call or trace it "
                "with adapter.flattened_inputs."
            )
        return self.inputs


def _call(model: nn.Module, *inputs: Any) -> Any:
    return model(*inputs)


def _check_leaves(leaves: Sequence[Any], name: str, value: Any) -> None:
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            raise ValueError(
                f"The {name} of a traced model must only contain tensors; {_path_to(value, leaf)} is a "
                f"{type(leaf).__name__}. Leave it out, or pass allow_non_tensor=True for these very inputs."
            )


def _path_to(value: Any, wanted: Any) -> str:
    """Say where a leaf is in an object, such as `[0]['height']`."""
    kind, parts, fixed = _split(value)
    if kind is None:
        return "" if value is wanted else "?"
    for i, part in enumerate(parts):
        rest = _path_to(part, wanted)
        if not rest.endswith("?"):
            label = f"[{fixed[i]!r}]" if kind is dict else f".{fixed[i]}" if kind is Instances else f"[{i}]"
            return label + rest
    return "?"
