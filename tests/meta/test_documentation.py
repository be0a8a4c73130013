"""The documents and the code agree."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).parent / "documented_names.txt"
NAMES = [line for line in LIST.read_text().splitlines() if line and line[0] != "#"]
# A path in backticks, with or without ::function.
REFERENCE = r"`((?:detectron2|tools|configs|tests|docs|benchmarks)/[\w./*-]+?)(?:::([\w.]+))?`"


def find(dotted: str):
    """Import as much as is a module, then read attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as e:
            if not ".".join(parts[:cut]).startswith(e.name or "?"):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


def test_the_list_of_documented_names_is_there():
    assert len(NAMES) > 150


@pytest.mark.parametrize("name", NAMES)
def test_documented_name_exists(name: str):
    find(name)


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"])
def test_paths_and_functions_named_in_documents_exist(document: str):
    text = (ROOT / document).read_text()
    missing = []
    for path, member in re.findall(REFERENCE, text):
        if "*" in path:
            continue
        if not (ROOT / path).exists():
            missing.append(path)
        elif member:
            owner = find(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
            for part in member.split("."):
                if not hasattr(owner, part):
                    missing.append(f"{path}::{member}")
                    break
                owner = getattr(owner, part)
    assert missing == []
