"""Rules that hold for every source file."""

import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "detectron2").rglob("*.py"))
PUBLIC = [p for p in SOURCES if not any(part.startswith("_") for part in p.relative_to(ROOT).with_suffix("").parts)]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_sources_are_found():
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", PUBLIC, ids=str)
def test_source_has_its_test_file(path: Path):
    relative = path.relative_to(ROOT / "detectron2")
    test = ROOT / "tests" / relative.parent / f"test_{relative.name}"
    assert test.is_file(), f"{path.relative_to(ROOT)} has no {test.relative_to(ROOT)}"


@pytest.mark.parametrize("path", PUBLIC, ids=str)
def test_public_names_are_listed_and_exist(path: Path):
    if path.relative_to(ROOT).parts[1] == "cli":
        return  # commands are called by name, not imported
    tree = ast.parse(path.read_text())
    assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assigned |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert "__all__" in assigned, f"{path.relative_to(ROOT)} has no __all__"
    module = importlib.import_module(module_name(path))
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_module_says_what_it_is_for(path: Path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_models_do_not_ask_how_they_are_run():
    question = re.compile(r"is_scripting|is_tracing|is_in_onnx_export|is_fx_tracing|is_compiling")
    asking = [
        f"{p.relative_to(ROOT)}:{i}"
        for folder in ("modeling", "layers", "structures")
        for p in (ROOT / "detectron2" / folder).rglob("*.py")
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if question.search(line) and " import " not in line
    ]
    assert asking == []


def test_nothing_unsafe_is_called():
    unsafe = re.compile(
        r"weights_only=False|pickle\.loads?\(|yaml\.(unsafe_)?load\(|(?<![_.\w])(eval|exec)\(|warnings\.catch_warnings"
    )
    # What these read was written by the same program, in this process or in one beside it.
    allowed = {
        "detectron2/data/common.py",
        "detectron2/utils/serialize.py",
        "detectron2/config/lazy.py",  # a LazyConfig file is a program
        "detectron2/export/formats.py",  # hides warnings of exporters, whose result is run
    }
    calls = [
        f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
        for p in SOURCES
        if p.relative_to(ROOT).as_posix() not in allowed
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if unsafe.search(line.split("#")[0]) and "`" not in line
    ]
    assert calls == []


def find_tests_without_assertion(trees: Iterable[ast.Module]) -> list[str]:
    """Return the tests that neither assert nor expect an error, themselves or by what they use."""
    expecting = re.compile("raises|warns|fail|assert_.*")
    asserting, others = set(), {}
    for function in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        nodes = list(ast.walk(function))
        used = {n.id for n in nodes if isinstance(n, ast.Name)} | {
            n.attr for n in nodes if isinstance(n, ast.Attribute)
        }
        if any(isinstance(n, ast.Assert) for n in nodes) or any(map(expecting.fullmatch, used)):
            asserting.add(function.name)
        else:
            others[function] = used | {argument.arg for argument in function.args.args}
    while more := [f for f, used in others.items() if used & asserting]:
        asserting |= {f.name for f in more}
        others = {f: used for f, used in others.items() if f not in more}
    return [f.name for f in others if f.name.startswith("test_")]


def test_every_test_asserts():
    made_up = ast.parse(
        "def test_a(): f()\ndef test_b(): assert f()\ndef test_c(): g()\ndef g(): h()\ndef h(): assert 1\n"
        "def test_d():\n    with pytest.raises(E): f()\n"
    )
    assert find_tests_without_assertion([made_up]) == ["test_a"]
    assert find_tests_without_assertion(ast.parse(p.read_text()) for p in (ROOT / "tests").rglob("*.py")) == []
