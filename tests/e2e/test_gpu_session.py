"""The script that measures a GPU: its report whatever happens, and all of it on the CPU."""

import argparse
import importlib.util
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def script(repo_root):
    spec = importlib.util.spec_from_file_location("gpu_session", repo_root / "benchmarks" / "gpu_session.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(**kwargs):
    return argparse.Namespace(
        **{"device": "cpu", "minutes": 8, "batch": 2, "output": "", "wheels": "", "tiny": True, "only": [], **kwargs}
    )


def test_without_rows_there_is_a_title(script):
    assert script.as_markdown("Session", {}) == "# Session\n"


def test_rows_of_different_columns_share_a_table(script):
    text = script.as_markdown(
        "Session", {"Training": [{"what": "a|b", "ms": "3"}, {"what": "c", "note": "too\nlarge"}]}
    )
    assert text.splitlines()[2:] == [
        "## Training", "", "| what | ms | note |", "| --- | --- | --- |", "| a\\|b | 3 |  |", "| c |  | too large |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "seconds", "last"),
    [
        ("pass", 60, None),
        ("raise ValueError('no memory')", 60, "failed: ValueError: no memory"),
        ("import os; os._exit(3)", 60, "failed: exit code 3"),
        ("import time; time.sleep(60)", 1, "stopped after 1 s"),
    ],
)
def test_what_goes_wrong_is_a_row_behind_those_before(script, code, seconds, last):
    rows = []
    program = f'print(\'ROW {{"what": "first"}}\', flush=True)\n{code}'
    script.run_part([sys.executable, "-S", "-c", program], seconds, {}, rows.append)
    assert rows[0] == {"what": "first"} and [row["note"] for row in rows[1:]] == ([] if last is None else [last])


def test_the_first_parts_tell_most_and_all_have_a_limit(script):
    parts = [part for _, part, _ in script.plan(arguments(tiny=False))]
    assert parts[:3] == [["environment"], ["losses"], ["training", "mask", "eager"]]
    assert len(parts) == len({tuple(part) for part in parts}) == 10
    assert all(0 < limit <= 150 for *_, limit in script.plan(arguments(tiny=False)))
    assert [part for _, part, _ in script.plan(arguments(only=["losses"]))] == [["losses"]]


def test_when_the_time_is_over_the_rest_is_named(script, tmp_path):
    output = script.session(arguments(minutes=0, output=str(tmp_path / "new" / "file.md")))
    assert output.read_text().count("not run: the time is over") == 6
    assert [path.name for path in output.parent.iterdir()] == ["file.md"]


def test_wheels_are_unpacked(script, tmp_path):
    with zipfile.ZipFile(tmp_path / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/__init__.py", "")
    (tmp_path / "into").mkdir()
    assert script._unpacked(str(tmp_path), str(tmp_path / "into")) == [str(tmp_path / "into")]
    assert (tmp_path / "into" / "thing" / "__init__.py").is_file()
    with pytest.raises(SystemExit, match=r"no wheels \(\*\.whl\)"):
        script._unpacked(str(tmp_path / "into"), str(tmp_path))


def test_a_part_tells_its_rows(script, capsys):
    script.main(["--device", "cpu", "--part", "environment"])
    assert '"what": "torch, torchvision"' in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_on_the_cpu(script, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    only = ["environment", "losses", "training", "inference"]
    text = script.session(arguments(output=str(tmp_path / "file.md"), only=only)).read_text()
    for section in ("Machine", "Losses", "Training", "Inference"):
        assert f"## {section}" in text
    assert "failed" not in text and "stopped" not in text
    for model in ("Mask R-CNN", "RetinaNet"):
        assert f"| {model} R50-FPN, eager, bf16 | 2 |" in text
