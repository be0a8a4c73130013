"""What is known about the objects of one image, field by field.

Letters: `N` instances.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ._rows import cat_rows, rows_of

__all__ = ["Instances"]


class Instances:
    """Objects of one image as columns of one length: boxes, classes, scores, masks and so on.

    A field is set and read as an attribute (`instances.gt_boxes = Boxes(...)`), or with `set` and `get`;
    it is a tensor, a list, or a structure such as `Boxes`, with one entry per instance. `len(instances)` is the
    number of instances, `"gt_masks" in instances` asks for a field, and `instances[instances.scores > 0.9]` selects
    instances in all fields at once. Attributes that begin with an underscore are not fields.

    Args:
        image_size: `(height, width)` of the image that the fields refer to, in pixels.
        **kwargs: fields.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> instances = Instances((480, 640))
        >>> instances.pred_boxes = Boxes([[10, 20, 50, 60], [0, 0, 200, 20]])
        >>> instances.scores = torch.tensor([0.97, 0.42])
        >>> len(instances), "pred_masks" in instances
        (2, False)
        >>> confident = instances[instances.scores > 0.5]
        >>> len(confident), confident.pred_boxes
        (1, Boxes(tensor([[10., 20., 50., 60.]])))
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the image, in pixels."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not an ordinary attribute. While unpickling there are no fields yet.
        fields = self.__dict__.get("_fields")
        if fields is not None and name in fields:
            return fields[name]
        if fields is None or name.startswith("_"):
            raise AttributeError(f"Instances has no attribute {name!r}.")
        raise AttributeError(f"These Instances have no field {name!r}; they have {_enumerate(fields)}.")

    def set(self, name: str, value: Any) -> None:
        """Set a field to a value with one entry per instance, as many as in the other fields."""
        if name == "image_size":
            raise AttributeError("The image_size of Instances cannot be changed; make new ones: Instances(image_size).")
        count = _count(name, value)
        for other, present in self._fields.items():
            _expect_count(name, count, other, _count(other, present))
            break
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return name in self._fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove the field of that name, which must exist."""
        self.get(name)
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of that name; a `KeyError` says which there are."""
        if name not in self._fields:
            raise KeyError(f"These Instances have no field {name!r}; they have {_enumerate(self._fields)}.")
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name. This is the dictionary itself: changes to it change the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Call `to(...)` with these arguments on all fields that have it, and return new instances."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved._fields[name] = value.to(*args, **kwargs) if hasattr(value, "to") else value
        return moved

    def __getitem__(self, item: Any) -> Any:
        """Select instances by an integer (the result holds one), a slice, or a vector of bools or integers.

        The name of a field gives the field.
        """
        if isinstance(item, str):
            return self.get(item)
        picked = Instances(self._image_size)
        if not self._fields and not isinstance(item, (int, np.integer)):
            return picked
        rows = rows_of(item, _count(*next(iter(self._fields.items()))) if self._fields else len(self), "instances")
        if isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]  # once: every field by itself would have to wait for the device
        for name, value in self._fields.items():
            picked.set(name, _select(value, rows))
        return picked

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without any field have no length.")

    def num_rows(self) -> Any:
        """`len(self)` for arithmetic; symbolic while a graph is exported, which then serves other images too."""
        for name, value in self._fields.items():
            return _count(name, value)
        return len(self)

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances cannot be iterated over; index them, or iterate over a field.")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """Concatenate instances of one image that have the same fields.

        Args:
            instance_lists: what to concatenate; a single one is returned as it is.

        Returns:
            Instances with the fields of the first. What only later ones have is left out.

        Raises:
            ValueError: there is nothing to concatenate, image sizes differ, or a field of the first is not in all or
                cannot be concatenated.
            TypeError: the list has something other than instances in it.

        Example:
            >>> from detectron2.structures import Instances
            >>> first = Instances((480, 640), scores=torch.tensor([0.9]))
            >>> second = Instances((480, 640), scores=torch.tensor([0.6, 0.5]))
            >>> Instances.cat([first, second]).scores
            tensor([0.9000, 0.6000, 0.5000])
        """
        for entry in instance_lists:
            if not isinstance(entry, Instances):
                raise TypeError(f"Instances.cat expects a list of Instances, found {type(entry).__name__} in it.")
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat needs at least one Instances: without any the image size is not known.")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            if not isinstance(first._image_size, torch.Tensor) and other._image_size != first._image_size:
                raise ValueError(
                    "Instances.cat expects instances of one image, got image sizes (height, width) "
                    f"{first._image_size} and {other._image_size}."
                )
            if missing := first._fields.keys() - other._fields.keys():
                raise ValueError(f"Instances.cat: field {min(missing)!r} is not in all of the instances.")
        result = Instances(first._image_size)
        for name, value in first._fields.items():
            result.set(name, _concatenate(name, value, [i._fields[name] for i in instance_lists]))
        return result

    def __str__(self) -> str:
        height, width = self._image_size
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _count(name: str, value: Any) -> int:
    # Not getattr: some structures gather their tensor when they are asked for it, at great cost.
    tensor = value if isinstance(value, torch.Tensor) else getattr(value, "__dict__", {}).get("tensor")
    # While a graph is made, a length is a symbol or a tensor, which len() would turn into a fixed number.
    if isinstance(tensor, torch.Tensor) and tensor.dim():
        return tensor.shape[0]
    try:
        return len(value)
    except TypeError:
        raise TypeError(
            f"Field {name!r} of Instances needs one entry per instance, but {type(value).__name__} has no length; "
            "use a tensor with a first dimension, a list, or a structure such as Boxes."
        ) from None


def _expect_count(name: str, count: int, other: str, expected: int) -> None:
    if isinstance(count, torch.SymInt) or isinstance(expected, torch.SymInt):
        torch._check(count == expected)  # becomes an assertion of the exported program
    elif not isinstance(count, torch.Tensor) and not isinstance(expected, torch.Tensor) and count != expected:
        raise ValueError(
            f"Field {name!r} has {count} entries, but field {other!r} of the same Instances has {expected}; "
            "every field needs one entry per instance."
        )


def _select(values: Any, rows: slice | torch.Tensor) -> Any:
    """Index a field, keeping its type."""
    if isinstance(rows, slice) or not isinstance(values, (list, tuple, np.ndarray)):
        return values[rows]
    if isinstance(values, np.ndarray):
        return values[rows.cpu().numpy()]
    picked = [values[i] for i in rows.tolist()]
    return tuple(picked) if isinstance(values, tuple) else picked


def _concatenate(name: str, first: Any, values: list[Any]) -> Any:
    if isinstance(first, torch.Tensor):
        return cat_rows(values, f"field {name!r} of instances")
    if isinstance(first, list):
        if any(isinstance(v, torch.Tensor) for v in values):
            raise ValueError(
                f"Cannot concatenate field {name!r} of instances: it is a list in some of them, a tensor in others."
            )
        return list(itertools.chain.from_iterable(values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(
        f"Field {name!r} holds {type(first).__name__}, which cannot be concatenated: "
        "use a tensor, a list, or a class that has a method `cat`."
    )


def _enumerate(fields: dict[str, Any]) -> str:
    return ", ".join(fields) if fields else "none"
