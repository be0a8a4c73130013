"""Stand-ins for classes and functions that need a missing optional dependency."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

__all__ = ["create_dummy_class", "create_dummy_func"]


def _explain(name: str, dependency: str | Iterable[str], message: str) -> str:
    packages = [dependency] if isinstance(dependency, str) else list(dependency)
    text = f"{name} needs {' and '.join(repr(p) for p in packages)}, which cannot be imported here."
    return f"{text} {message}" if message else text


def create_dummy_class(klass: str, dependency: str | Iterable[str], message: str = "") -> type:
    """Create a class that raises `ImportError` on any use, in place of one that needs a missing dependency.

    `message` is added to the error, for instance how to install it.
    """
    explanation = _explain(klass, dependency, message)

    class _RaisesOnUse(type):
        def __getattr__(cls, name: str) -> NoReturn:
            raise ImportError(explanation)

        def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise ImportError(explanation)

    return _RaisesOnUse(klass, (), {"__doc__": explanation})


def create_dummy_func(func: str, dependency: str | Iterable[str], message: str = "") -> Callable[..., NoReturn]:
    """Create a function named `func` that raises `ImportError` when called; the rest as in `create_dummy_class`."""
    explanation = _explain(func, dependency, message)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(explanation)

    missing.__name__ = missing.__qualname__ = func
    return missing
