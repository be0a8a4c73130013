"""The index of errors quotes messages that the library has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ANY = "…"


@cache
def texts_of_the_library(root: Path) -> list[str]:
    """All strings of the source but docstrings; what is filled in is one character."""
    found = []
    for path in sorted((root / "detectron2").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
        parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else ANY for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                found.append(re.sub(r"%[srdg]|%\.\d+f", ANY, node.value))
    return found


def rows(root: Path) -> list[list[str]]:
    text = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def is_quoted_from(message: str, text: str) -> bool:
    """Whether the parts of a message between what differs are in a text, in this order."""
    place = 0
    for part in message.split(ANY):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_quotations():
    assert is_quoted_from("There is no file … here", "Sorry. There is no file … (…) here.")
    assert not is_quoted_from("There is no file … here", "here There is no file")


def test_form(repo_root):
    found = rows(repo_root)
    assert len(found) >= 40 and all(len(row) == 3 and all(row) for row in found)
    assert len({row[0] for row in found}) == len(found)


def test_messages_exist(repo_root):
    texts = texts_of_the_library(repo_root)
    messages = [row[0].strip("`") for row in rows(repo_root)]
    assert not [m for m in messages if len(m.replace(ANY, "")) < 12]  # too little to be recognised
    assert not [m for m in messages if not any(is_quoted_from(m, text) for text in texts)]


@pytest.mark.parametrize("page", ["errors.md", "cookbook.md"])
def test_options_exist(repo_root, page):
    text = (repo_root / "docs" / page).read_text(encoding="utf-8")
    source = (repo_root / "detectron2" / "cli" / "arguments.py").read_text(encoding="utf-8")
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - {
        "--shm-size",
        "--onnx",
        "--fp16",
    }  # of other programs
    assert len(options) > 5
    assert not [name for name in options if f'"{name}"' not in source]
