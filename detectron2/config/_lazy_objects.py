"""Describing objects that YAML cannot hold by calls that it can: classes and functions, and ``functools.partial``."""

import functools
from typing import Any

from detectron2.utils.registry import _convert_target_to_string, locate

__all__ = ["describe_object", "describe_partial", "make_partial", "missing_object"]


def describe_object(name: str) -> dict[str, Any]:
    """Describe the class or function with a dotted name; instantiating the description returns it."""
    return {"_target_": _convert_target_to_string(locate), "name": name}


def describe_partial(func: Any, args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Describe a ``functools.partial`` object whose parts are described already."""
    return {
        "_target_": f"{__name__}.make_partial",
        "func": func,
        "args": args,
        "keywords": {"_target_": "builtins.dict", **keywords},
    }


def make_partial(func: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Build what :func:`describe_partial` describes."""
    return functools.partial(func, *args, **keywords)


def missing_object(description: str) -> Any:
    """Stand for an object that could not be written to YAML: building it raises a ValueError that says so."""
    raise ValueError(
        f"This config was read from a YAML file that could not hold {description}. "
        "Set the value again, or load the config from the Python file that it came from."
    )
