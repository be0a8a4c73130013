"""``benchmarks/run.py`` and ``benchmarks/compare.py``: the table, its files, and what has become slower."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """Import scripts by name, as they import each other."""
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    yield lambda name: importlib.import_module(name)
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == FOLDER:
            del sys.modules[name]


ABOUT = {"version": "1.2", "date": "2026-11-29", "machine": "x86_64, 2 cores", "torch": "2.6", "threads": 1}


def test_least_of_the_rounds(scripts):
    run = scripts("run")
    ours, theirs = iter([99.0, 2.0, 4.0, 3.0]), iter([99.0, 8.0, 5.0, 4.0])
    work = run.Work(lambda: next(ours), lambda: next(theirs), "theirs", count=2, memory=lambda: 7.0)
    result = run.measure(work, 3, threads=1)
    assert (result.seconds, result.yardstick_seconds, result.ratio) == (1.0, 2.0, 0.5)
    assert result.spread == pytest.approx(0.5)  # 1, 2 and 1.5 seconds each
    assert (result.memory_mib, result.yardstick) == (7.0, "theirs")


def test_both_orders(scripts):
    run, calls = scripts("run"), []
    result = run.measure(run.Work(lambda: calls.append("o"), lambda: calls.append("t"), "theirs"), 2, threads=2)
    assert "".join(calls) == "ot" + "ot" + "to"
    assert result.seconds >= 0 and result.memory_mib > 1


def test_scripts_have_what_is_called(scripts):
    tree = ast.parse((FOLDER / "run.py").read_text())
    uses = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id.startswith("bench_")
    }
    there = {(name, attribute) for name, attribute in uses if (FOLDER / f"{name}.py").exists()}
    assert len({name for name, _ in there}) > 3
    assert [f"{n}.{a}" for n, a in sorted(there) if not hasattr(scripts(n), a)] == []


def result(run, ratio, spread=0.0, memory=100.0):
    return run.Result(ratio * 2.0, spread, "theirs", 2.0, memory)


def test_a_failing_work_is_a_row(scripts, monkeypatch):
    run = scripts("run")
    monkeypatch.setattr(run, "HERE", Path("no", "such", "folder"))
    found = run.run_in_process("import", 1, 1)
    assert "No such file" in found
    row = run.result_row("import", found)
    assert row.count("|") == len(run.HEAD) + 1 and "failed: " in row


def test_the_works_are_listed(scripts, capsys, monkeypatch):
    run = scripts("run")
    for argv, text in (
        (["--only", "x"], "invalid choice: 'x'"),
        (["--output", "a.txt"], "a.txt"),
        (["--rounds", "0"], "1"),
    ):
        monkeypatch.setattr("sys.argv", ["run.py", *argv])
        with pytest.raises(SystemExit):
            run.main()
        assert text in capsys.readouterr().err


def test_files(scripts, tmp_path):
    run = scripts("run")
    run.write(tmp_path / "a.json", ABOUT, {}, [])
    assert json.loads((tmp_path / "a.json").read_text())["works"] == {}
    results = {"mapper": result(run, 0.5), "loader": "OSError: no"}
    run.write(tmp_path / "a.json", ABOUT, results, [])
    works = json.loads((tmp_path / "a.json").read_text())["works"]
    assert works["mapper"]["ratio"] == 0.5 and works["loader"] == {"error": "OSError: no"}
    run.write(tmp_path / "a.md", ABOUT, results, ["| a |", "| b |"])
    assert (tmp_path / "a.md").read_text() == "| a |\n| b |\n"


def test_summary(scripts, tmp_path):
    run, path = scripts("run"), tmp_path / "summary.md"

    def rows():
        lines = [line.split("|")[1:-1] for line in path.read_text().splitlines() if line.startswith("|")]
        return [dict(zip(map(str.strip, lines[0]), map(str.strip, line), strict=True)) for line in lines[2:]]

    run.update_summary(path, ABOUT, {"mapper": result(run, 0.5), "loader": "OSError"})
    assert [(r["version"], r["mapper"], r["loader"]) for r in rows()] == [("1.2", "0.50", "")]
    run.update_summary(path, {**ABOUT, "version": "1.3"}, {"loader": result(run, 0.25)})
    run.update_summary(path, {**ABOUT, "date": "2026-12-01"}, {"pooler": result(run, 0.3)})
    first, second = rows()
    assert (first["version"], first["mapper"], first["pooler"], first["date"]) == ("1.2", "0.50", "0.30", "2026-12-01")
    assert (second["version"], second["loader"], second["mapper"]) == ("1.3", "0.25", "")


def content(**works):
    return {**ABOUT, "works": works}


def work(ratio, spread=0.0):
    return {"ratio": ratio, "spread": spread, "memory_mib": 100.0}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (work(1.0), work(1.02), "as before"),
        (work(1.0), work(1.04), "SLOWER"),
        (work(1.0, 0.1), work(1.04), "as before"),
        (work(1.0), work(1.04, 0.1), "as before"),
        (work(1.0, 0.1), work(1.2), "SLOWER"),
        (work(1.0), work(0.5), "faster"),
        (work(1.0), {"error": "x"}, "FAILS"),
        ({"error": "x"}, work(1.0), "failed before"),
        ({"error": "x"}, {"error": "y"}, "fails in both"),
    ],
)
def test_what_has_become_slower(scripts, before, after, expected):
    compare = scripts("compare")
    assert compare.verdict(before, after)[1] == expected
    lines, is_worse = compare.compare(content(a=before), content(a=after))
    assert lines[-1].endswith(f"| {expected} |") and is_worse is expected.isupper()


def test_works_of_one_file_only(scripts):
    compare = scripts("compare")
    lines, is_worse = compare.compare(content(a=work(1.0)), content(b=work(2.0)))
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| a", "| b"] and not is_worse
    assert all("only in one" in line for line in lines[-2:])
    assert compare.compare(content(), content())[1] is False


def test_comparing_files(scripts, tmp_path, monkeypatch, capsys):
    compare = scripts("compare")
    for name, ratio in (("a", 1.0), ("b", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content(mapper=work(ratio))))
    for names, status in (("a", "b"), 1), (("b", "a"), 0), (("a", "no"), 2):
        monkeypatch.setattr("sys.argv", ["compare.py", *(str(tmp_path / f"{n}.json") for n in names)])
        with pytest.raises(SystemExit) as stop:
            compare.main()
        assert stop.value.code == status
    assert "is not a file that benchmarks/run.py wrote" in capsys.readouterr().err
