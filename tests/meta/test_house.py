"""The shape of the source tree: its size, its private modules, and what they are imported by.

`python tests/meta/test_house.py` prints the numbers; `make check` runs it.
"""

import ast
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "detectron2"
MAX_LINES = 88_500
MAX_PRIVATE_MODULES = 100
MAX_LINES_OF_A_FILE = 750  # one idea a file; most are under 400 lines
# A private module with one client is worth its file only from this size on.
MIN_LINES_FOR_ONE_CLIENT = 250


# Private names that the published system has, and that projects import from these modules.
PUBLISHED_NAMES = {
    "detectron2.data.datasets.builtin_meta": {"_get_builtin_metadata"},
    "detectron2.modeling.box_regression": {"_dense_box_regression_loss"},
    "detectron2.solver.lr_scheduler": {"_get_warmup_factor_at_iter"},
}
# Published places of names that are defined elsewhere.
PUBLISHED_PLACES = {"detectron2/utils/visualizer.py", "detectron2/utils/video_visualizer.py"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def package_of_private(module: str) -> str | None:
    """Return the package that the first private part of a module's name belongs to; `None` for public modules."""
    parts = module.split(".")
    return next((".".join(parts[:i]) for i, part in enumerate(parts) if is_private(part)), None)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def find_private_modules(graph: grimp.ImportGraph) -> list[str]:
    return sorted(m for m in graph.modules if package_of_private(m))


def find_foreign_private_imports(graph: grimp.ImportGraph) -> list[str]:
    """Return the imports of a private module from outside the package it belongs to."""
    found = []
    for module in find_private_modules(graph):
        package = package_of_private(module)
        for client in graph.find_modules_that_directly_import(module):
            if client != package and not client.startswith(f"{package}."):
                found.append(f"{client} imports {module}")
    return sorted(found)


def find_foreign_private_names(root: Path) -> list[str]:
    """Return the imports of a private name of a public module, or of a private module, from outside its package."""
    found = []
    for folder in ("detectron2", "tools", "projects", "datasets", "demo", "examples"):
        for path in sorted((root / folder).rglob("*.py")):
            place = path.relative_to(root)
            if place.as_posix() in PUBLISHED_PLACES:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
                if (
                    module is None
                    or module.split(".")[0] != "detectron2"
                    or module.split(".")[:2] == [*place.parts[:2]]
                ):
                    continue
                names = {a.name for a in node.names if is_private(a.name)} - PUBLISHED_NAMES.get(module, set())
                if names or package_of_private(module):
                    found.append(f"{place}:{node.lineno} imports {', '.join(sorted(names)) or 'from'} {module}")
    return found


def find_small_private_modules(graph: grimp.ImportGraph) -> list[str]:
    """Return the private modules that have one client and too few lines to be a file of their own."""
    found = []
    for module in find_private_modules(graph):
        clients, lines = graph.find_modules_that_directly_import(module), lines_of(path_of(module))
        if len(clients) < 2 and lines < MIN_LINES_FOR_ONE_CLIENT and not path_of(module).name.startswith("__"):
            found.append(f"{module}: {lines} lines, imported by {', '.join(clients) or 'nothing'}")
    return found


def find_circle(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules of one circle of imports, those inside functions included; empty if there is none."""
    try:
        TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("detectron2", exclude_type_checking_imports=True, cache_dir=None)


def test_rules_find_what_they_look_for():
    graph = grimp.ImportGraph()
    for client, imported in (("p.a._x", "p.b"), ("p.c", "p.a._x"), ("p.a", "p.a._x"), ("p.b", "p.a")):
        graph.add_import(importer=client, imported=imported)
    assert find_private_modules(graph) == ["p.a._x"]
    assert find_foreign_private_imports(graph) == ["p.c imports p.a._x"]
    assert set(find_circle(graph)) == {"p.a", "p.a._x", "p.b"}
    graph.remove_import(importer="p.b", imported="p.a")
    assert find_circle(graph) == []
    assert package_of_private("p.__main__") is None


def test_the_package_stays_small(graph: grimp.ImportGraph):
    assert sum(map(lines_of, PACKAGE.rglob("*.py"))) <= MAX_LINES
    assert len(find_private_modules(graph)) <= MAX_PRIVATE_MODULES


def test_a_file_holds_one_idea():
    long = {p.relative_to(ROOT).as_posix(): lines_of(p) for p in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in long.items() if lines > MAX_LINES_OF_A_FILE} == {}


def test_private_modules_are_imported_in_their_package_only(graph: grimp.ImportGraph):
    assert find_foreign_private_imports(graph) == []


def test_private_names_are_found(tmp_path: Path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text(
        "from detectron2.data.build import _x, y\nfrom detectron2.data._z import z\nfrom detectron2.data import y\n"
    )
    assert find_foreign_private_names(tmp_path) == [
        "tools/a.py:1 imports _x detectron2.data.build",
        "tools/a.py:2 imports from detectron2.data._z",
    ]


def test_private_names_are_imported_in_their_package_only():
    assert find_foreign_private_names(ROOT) == []


def test_private_modules_have_two_clients_or_are_large(graph: grimp.ImportGraph):
    assert find_small_private_modules(graph) == []


def test_no_circle_of_imports(graph: grimp.ImportGraph):
    assert find_circle(graph) == []


def main() -> int:
    """Print the numbers of the tree and what breaks a rule; return 1 if something does."""
    graph = grimp.build_graph("detectron2", exclude_type_checking_imports=True, cache_dir=None)
    files, lines = Counter(), Counter()
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        files[part] += 1
        lines[part] += lines_of(path)
    private = Counter(m.split(".")[1] for m in find_private_modules(graph))
    print(f"{'package':<16}{'files':>7}{'lines':>8}{'private':>9}")
    for part in sorted(files):
        print(f"{part:<16}{files[part]:>7}{lines[part]:>8}{private[part]:>9}")
    print(f"{'sum':<16}{files.total():>7}{lines.total():>8}{private.total():>9}")
    circle = find_circle(graph)
    broken = [
        *find_foreign_private_imports(graph),
        *find_foreign_private_names(ROOT),
        *find_small_private_modules(graph),
        *([f"circle of imports: {' -> '.join(circle)}"] if circle else []),
    ]
    if lines.total() > MAX_LINES:
        broken.append(f"{lines.total()} lines are more than {MAX_LINES}")
    if private.total() > MAX_PRIVATE_MODULES:
        broken.append(f"{private.total()} private modules are more than {MAX_PRIVATE_MODULES}")
    print("\n".join(broken) if broken else "No private import across packages, no circle of imports.")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
