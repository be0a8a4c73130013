"""Send closures and locally defined functions to other processes."""

from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wrap an object so that it can be pickled by value, lambdas and nested functions included.

    The wrapper calls through to the object and forwards its attributes. It is for passing objects between processes
    of one program (data-loading workers): the bytes must never come from an untrusted source.

    Args:
        obj: the object to wrap; a wrapper is unwrapped first.
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
