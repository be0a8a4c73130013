"""Reading the YAML that lazy configs are saved as, without importing or calling anything.

Files of the published system hold dataclass objects, classes and ``functools.partial`` objects as Python tags. Each is
read as the description of a call, which happens only if the config is instantiated.
"""

from typing import Any

import yaml

from ._lazy_objects import describe_object, describe_partial
from ._yaml import SafeConfigLoader, UnsafeYamlError, load_yaml

__all__ = ["load_lazy_yaml"]

_PYTHON = "tag:yaml.org,2002:python/"


class _LazyYamlLoader(SafeConfigLoader):
    """The safe loader, with tags for objects that become descriptions."""


def _construct_name(loader: _LazyYamlLoader, suffix: str, node: yaml.Node) -> Any:
    return describe_object(suffix)


def _construct_fields(loader: _LazyYamlLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    fields = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    return {"_target_": suffix, **{str(k): v for k, v in fields.items()}}


def _construct_partial(loader: _LazyYamlLoader, node: yaml.Node) -> Any:
    content = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    state = content.get("state")
    if not isinstance(state, tuple | list) or len(state) != 4:
        raise UnsafeYamlError(None, None, "expected the four-part state of functools.partial", node.start_mark)
    func, args, keywords, _ = state
    return describe_partial(func, list(args), dict(keywords or {}))


# The first prefix that fits counts, and the inherited one refuses every Python tag.
_LazyYamlLoader.yaml_multi_constructors = {
    f"{_PYTHON}name:": _construct_name,
    f"{_PYTHON}object:": _construct_fields,
    **SafeConfigLoader.yaml_multi_constructors,
}
_LazyYamlLoader.add_constructor(f"{_PYTHON}object/apply:functools.partial", _construct_partial)


def load_lazy_yaml(text: str, filename: str) -> dict[str, Any]:
    """Read a saved lazy config.

    Args:
        text: the content of the file.
        filename: its name, for messages.

    Returns:
        Plain dictionaries, lists, numbers and text.

    Raises:
        ValueError: if it is not valid, or asks to run code.
    """
    content = load_yaml(text, filename, loader=_LazyYamlLoader)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{filename} should hold keys and values, but holds a {type(content).__name__}.")
    return content
