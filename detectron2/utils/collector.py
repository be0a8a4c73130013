"""Python's garbage collector, and where it would only cost time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["paused_gc"]


@contextmanager
def paused_gc() -> Iterator[None]:
    """Let the garbage collector rest while many objects are made of which none is garbage.

    The collector looks at all objects again and again while their number grows: at those of a large annotation file,
    and at those of the modules that a program imports.

    Example:
        >>> from detectron2.utils.collector import paused_gc
        >>> with paused_gc():
        ...     records = [{"image_id": i} for i in range(100_000)]
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
