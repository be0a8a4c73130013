"""Models in the form that other programs run."""

from .flatten import TracingAdapter

__all__ = ["TracingAdapter"]
