"""How docstrings, comments and messages are written.

`python tests/meta/test_words.py` prints each line that breaks a rule; `make check` runs it.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("detectron2", "tools", "datasets", "demo", "projects", "examples", "benchmarks")

# In docstrings, comments and messages.
MESSAGES = {
    r"\bshall\b": "'must' or 'does'",
    r"\bso many\b": "say how many, or 'too many'",
    r"(?<!there )(?<!There )\b(is|are|was|were) no (?!longer\b|more than\b)": "'is not a', 'has no'",
    r"\b[Nn]obody\b": "say what does not happen",
    r"\bof whose\b|\bthe one who\b": "a sentence of its own",
}
# In docstrings and comments only.
DOCUMENTATION = {
    **MESSAGES,
    r"^\s*->": "a docstring opens with the words, not with an arrow",
    r"``": "one backtick around code",
    r":(class|func|meth|mod|attr|data|obj|ref):`": "the name alone in backticks, without a role",
}


def find_text(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line number, text, and whether it is a docstring or comment, for all text of a module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield getattr(node, "lineno", 1), text, True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value, False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, True


def find_faults(source: str) -> list[str]:
    """Return `line: what to write instead` for everything that breaks a rule."""
    found = set()
    for line, text, is_documentation in find_text(source):
        for pattern, cure in (DOCUMENTATION if is_documentation else MESSAGES).items():
            match = re.search(pattern, text)
            if match:
                found.add((line, f"{match.group().strip()!r}: {cure}"))
    return [f"{line}: {cure}" for line, cure in sorted(found)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", 0),
        ('"""The area."""', 0),
        ('"""-> the area."""', 1),
        ('x = f"-> {x}"', 0),
        ('"""See ``x``."""', 1),
        ('"""See :class:`X`."""', 1),
        ("# It shall be.", 1),
        ('raise ValueError("3 are no dict")', 1),
        ('raise ValueError("There is no file, and x is no longer read")', 0),
        ('raise ValueError(f"{n} files are no images")', 1),
    ],
)
def test_rules(source: str, expected: int):
    assert len(find_faults(source)) == expected


SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if "configs" not in p.parts)


def find_all() -> list[str]:
    return [f"{p.relative_to(ROOT)}:{fault}" for p in SOURCES for fault in find_faults(p.read_text(encoding="utf-8"))]


def test_sources_are_written_by_the_rules():
    assert len(SOURCES) > 100
    assert find_all() == []


def main() -> int:
    """Print each fault with its file and line; return 1 if there is one."""
    faults = find_all()
    print("\n".join(faults) if faults else f"{len(SOURCES)} files are written by the rules.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
