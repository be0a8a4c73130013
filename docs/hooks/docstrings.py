"""How docstrings are read for the API pages: an `Example` section is a console, as the library writes it."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read `Example:` as `Examples:`, and put consoles that stand in plain text into blocks of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object, once."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """Return a docstring with what the reader of docstrings expects.

    >>> rewrite("Example:\\n    >>> 1\\n    1")
    'Examples:\\n    >>> 1\\n    1'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"(?:^|(?<=\n\n))(>>> .*(?:\n(?!\n).*)*)", r"```pycon\n\1\n```", text)
