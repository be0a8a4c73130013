"""How the code is read for the API pages.

An `Example` section of a docstring is a console, as the library writes it. Private base classes, which have no place on
the pages, give way to their own public ones.
"""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read `Example:` as `Examples:`, and put consoles that stand in plain text into blocks of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object, once."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Change the bases of all classes of a package, when it is known whole."""
        modules = [pkg]
        for module in modules:
            modules += [m for m in module.modules.values() if not m.is_alias]
        for cls in [c for module in modules for c in module.classes.values() if not c.is_alias]:
            cls.bases = public_bases(cls, pkg)


def public_bases(cls: griffe.Class, pkg: griffe.Module) -> list[Any]:
    """Return the base classes of a class; in place of private ones of the package, theirs."""
    bases: list[Any] = []
    for base in cls.bases:
        package, _, path = str(getattr(base, "canonical_path", base)).partition(".")
        if package == pkg.name and path.rpartition(".")[2].startswith("_"):
            bases += public_bases(pkg[path], pkg) if pkg[path].is_class else []
        else:
            bases.append(base)
    return bases


def rewrite(text: str) -> str:
    """Return a docstring with what the reader of docstrings expects.

    >>> rewrite("Example:\\n    >>> 1\\n    1")
    'Examples:\\n    >>> 1\\n    1'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"(?:^|(?<=\n\n))(>>> .*(?:\n(?!\n).*)*)", r"```pycon\n\1\n```", text)
