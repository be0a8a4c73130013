"""Send closures and locally defined functions to other processes; turn values into what every format can hold."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["PicklableWrapper", "plain"]


class PicklableWrapper:
    """Wrap an object so that it can be pickled by value, lambdas and nested functions included.

    The wrapper calls through to the object and forwards its attributes. It is for passing objects between processes
    of one program (data-loading workers): the bytes must never come from an untrusted source.
    """

    def __init__(self, obj: Any):
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        return _rebuild, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Dunder look-ups and `_obj` itself must not recurse while the instance is still being built.
        if name == "_obj" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._obj, name)


def _rebuild(payload: bytes) -> PicklableWrapper:
    import cloudpickle

    return PicklableWrapper(cloudpickle.loads(payload))


def plain(value: Any) -> Any:
    """Return the same in dictionaries with text as keys, lists, numbers and text; other objects become text.

    >>> plain({1: (np.float32(0.5), None)})
    {'1': [0.5, None]}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
