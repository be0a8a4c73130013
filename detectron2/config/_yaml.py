"""Reading YAML without running code.

The safe loader of PyYAML, with two tags that published config files use: ``!!python/tuple``, and
``!!python/object/apply:eval``, whose text is computed by :mod:`._expressions`.
"""

import io
import logging
from collections.abc import Callable, Hashable
from typing import IO, Any

import yaml

from ._expressions import ExpressionError, evaluate

__all__ = ["SafeConfigLoader", "UnsafeYamlError", "load_yaml"]

logger = logging.getLogger(__name__)

_PYTHON = "tag:yaml.org,2002:python/"
_FastSafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnsafeYamlError(yaml.constructor.ConstructorError, ValueError):
    """The file asks for something that would run code."""


class SafeConfigLoader(_FastSafeLoader):
    """Builds plain values only: numbers, text, lists, tuples and dictionaries."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Build a dictionary, and log keys that are given twice, of which the last one counts."""
        seen: set[Any] = set()
        for key_node, _ in getattr(node, "value", ()):
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    mark = key_node.start_mark
                    logger.warning("%s, line %d: %r is given twice.", mark.name, mark.line + 1, key_node.value)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _refuse(node: yaml.Node, why: str) -> UnsafeYamlError:
    return UnsafeYamlError(None, None, why, node.start_mark)


def _construct_eval(loader: SafeConfigLoader, node: yaml.Node) -> Any:
    # [text]: the positional arguments of the call. Locals or keywords have no place here.
    arguments = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None
    if arguments is None or len(arguments) != 1:
        raise _refuse(node, "expected !!python/object/apply:eval with one expression in a list")
    try:
        return evaluate(arguments[0])
    except ExpressionError as e:
        raise _refuse(node, str(e)) from None


def _construct_tuple(loader: SafeConfigLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_refused(loader: SafeConfigLoader, suffix: str, node: yaml.Node) -> Any:
    shown = _shorten(yaml.serialize(node).strip())
    raise _refuse(
        node,
        f"the tag !!python/{suffix} would run code and is not supported: {shown}\n"
        "Only !!python/tuple and !!python/object/apply:eval with a list expression are. Write the value itself.",
    )


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


SafeConfigLoader.add_constructor(f"{_PYTHON}object/apply:eval", _construct_eval)
SafeConfigLoader.add_constructor(f"{_PYTHON}tuple", _construct_tuple)
SafeConfigLoader.add_multi_constructor(_PYTHON, _construct_refused)


class _NamedText(io.StringIO):
    """Text with the name that error messages and logs show."""

    name = ""


def load_yaml(stream: str | IO[Any], source: str = "the text", loader: Callable[[Any], Any] = SafeConfigLoader) -> Any:
    """Read one YAML document.

    Args:
        stream: the text, or an open file.
        source: the file name, for messages.
        loader: the class of the YAML loader.

    Returns:
        The value of the document, None if it is empty.

    Raises:
        UnsafeYamlError: if it contains a tag that would run code, or an expression that is not supported.
        ValueError: if it is not valid YAML.
    """
    text = _NamedText(stream if isinstance(stream, str) else stream.read())
    text.name = source
    reader = loader(text)
    try:
        return reader.get_single_data()
    except UnsafeYamlError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UnsafeYamlError(None, None, f"{source}{line}: {e.problem}", None) from None
    except yaml.YAMLError as e:
        raise ValueError(f"{source} is not valid YAML: {e}") from e
    finally:
        reader.dispose()
