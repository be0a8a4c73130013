"""`tools/release.py`: what it finds in the files of a release, and its table. Nothing is built or installed here."""

import io
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
METADATA = """Metadata-Version: 2.4
Name: detectron2
Version: 1.2.0
Requires-Dist: numpy>=1.24
Requires-Dist: Pillow>=9.4
Requires-Dist: onnx>=1.18; extra == 'onnx'
Requires-Dist: av>=12; extra == 'video'
"""
TRACKED = ["README.md", "LICENSE", "pyproject.toml", "tests/test_a.py", "detectron2/__init__.py", "configs/a.yaml"]


@pytest.fixture(scope="module")
def release() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "release.py")))


@pytest.fixture
def tracked(release) -> list[str]:
    """What is under version control, in small, with all that a wheel needs."""
    placed = "detectron2/model_zoo/configs/"
    needed = [n.replace(placed, "configs/") for n in release.NEEDED]
    return [*TRACKED, *needed]


def write_wheel(path: Path, names: list[str], metadata: str = METADATA) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
        wheel.writestr("detectron2-1.2.0.dist-info/METADATA", metadata)
    return path


def write_sdist(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"detectron2-1.2.0/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def packaged(tracked: list[str]) -> list[str]:
    """The files that a wheel has."""
    configs = [f"detectron2/model_zoo/{n}" for n in tracked if n.startswith("configs/")]
    return [n for n in tracked if n.startswith("detectron2/")] + configs


def test_empty_wheel(release, tmp_path: Path):
    wheel = write_wheel(tmp_path / "detectron2-1.2.0-py3-none-any.whl", [])
    faults = release.find_faults_of_wheel(wheel, [])
    assert faults == [f"{wheel.name}: {name} is missing" for name in sorted(release.NEEDED)]


def test_wheel_has_the_package_and_nothing_else(release, tracked, tmp_path: Path):
    names = packaged(tracked)
    good = write_wheel(tmp_path / "detectron2-1.2.0-py3-none-any.whl", names)
    assert release.find_faults_of_wheel(good, tracked) == []
    compiled = write_wheel(tmp_path / "detectron2-1.2.0-cp311-cp311-linux_x86_64.whl", names)
    assert "every platform" in release.find_faults_of_wheel(compiled, tracked)[0]
    other = write_wheel(good, [n for n in names if n != "detectron2/py.typed"] + ["tests/test_a.py"])
    assert release.find_faults_of_wheel(other, tracked) == [
        f"{other.name}: detectron2/py.typed is missing",
        f"{other.name}: tests/test_a.py does not belong there",
    ]


def test_source_archive(release, tracked, tmp_path: Path):
    empty = write_sdist(tmp_path / "detectron2-1.2.0.tar.gz", ["PKG-INFO"])
    assert release.find_faults_of_sdist(empty, []) == []
    good = write_sdist(empty, [*tracked, "PKG-INFO"])
    assert release.find_faults_of_sdist(good, tracked) == []
    other = write_sdist(good, [n for n in tracked if n != "tests/test_a.py"] + ["detectron2/mine.py"])
    assert release.find_faults_of_sdist(other, tracked) == [
        f"{other.name}: detectron2/mine.py is not under version control",
        f"{other.name}: tests/test_a.py is missing",
    ]


def test_differences_of_wheels(release, tmp_path: Path):
    one = write_wheel(tmp_path / "a.whl", ["a.py", "b.py"])
    assert release.find_differences(one, one) == []
    two = write_wheel(tmp_path / "b.whl", ["a.py"], METADATA.replace("1.2.0", "1.3.0"))
    names = [fault.split()[0] for fault in release.find_differences(one, two)]
    assert names == ["b.py", "detectron2-1.2.0.dist-info/METADATA"]


def test_requirements(release, tmp_path: Path):
    wheel = write_wheel(tmp_path / "a.whl", [])
    assert release.read_requirements(wheel, extras=[]) == ["numpy>=1.24", "Pillow>=9.4"]
    assert release.read_requirements(wheel) == ["numpy>=1.24", "Pillow>=9.4", "onnx>=1.18"]
    names = ["numpy>=1", "Pillow >= 9", "a-b[c]~=1", "x"]
    assert [release.name_of(r) for r in names] == ["numpy", "pillow", "a-b", "x"]
    conditional = write_wheel(tmp_path / "b.whl", [], METADATA + "Requires-Dist: tomli>=2; python_version < '3.11'\n")
    with pytest.raises(ValueError, match=r"condition.*tomli"):
        release.read_requirements(conditional)


def test_project_requires_nothing_with_a_condition(release, tmp_path: Path):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"Requires-Dist: {r}" for r in project["dependencies"]]
    lines += [f"Requires-Dist: {r}; extra == '{e}'" for e, rs in project["optional-dependencies"].items() for r in rs]
    wheel = write_wheel(tmp_path / "a.whl", [], "\n".join(["Name: detectron2", *lines, "", ""]))
    found = release.read_requirements(wheel)
    assert found == [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    assert set(map(release.name_of, found)) >= release.SOURCE_ONLY


def test_commands_run_without_compiler_and_without_this_environment(release, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("CC", "gcc")
    variables = release.clean_environment(tmp_path)
    assert "PYTHONPATH" not in variables
    assert variables["CC"] == variables["CXX"] == "/bin/false"
    assert variables["PATH"].startswith(str(tmp_path))
    code = "import os, sys; open('made', 'w').write(os.environ['CC']); sys.exit(int(sys.argv[1]))"
    assert release.run([sys.executable, "-c", code, "0"], tmp_path, variables)
    assert (tmp_path / "made").read_text() == "/bin/false"
    assert not release.run([sys.executable, "-c", code, "3"], tmp_path, variables)


def make_trial(release, python: str, failed: str | None = None):
    names = ["install", *(step.name for step in release.STEPS)]
    passed = names[: names.index(failed)] if failed else names
    seconds = dict.fromkeys(passed, 1.6)
    return release.Trial(python, "lowest", f"{python}.7", seconds, failed, {"numpy": "1.24.0"})


def test_table(release):
    assert "| 3." not in release.format_table([], "1.2.0", [], "2026-01-02", "Linux")
    trials = [make_trial(release, "3.10"), make_trial(release, "3.11", "eval"), release.Trial("3.12", "newest")]
    lines = release.format_table(trials, "1.2.0", ["numpy", "torch"], "2026-01-02", "Linux").splitlines()
    assert lines[0].startswith("Version 1.2.0, 2026-01-02, Linux.")
    assert "| 3.10.7 | lowest | 2 | 2 | 2 | 2 | 2 | 2 | 2 | 2 |" in lines
    assert "| 3.11.7 | lowest | 2 | 2 | 2 | 2 | 2 | **failed** | not run | not run |" in lines
    assert "Not tried, because that machine lacks the interpreter: Python 3.12." in lines
    old = make_trial(release, "3.11", "onnx")
    old.failed, old.refused = None, ["onnx"]
    last = release.format_table([old], "1", [], "2026-01-02", "Linux").splitlines()[4]
    assert last == "| 3.11.7 | lowest | 2 | 2 | 2 | 2 | 2 | 2 | 2 | refused |"
    assert lines[-4:] == [
        "| installed | Python 3.10, lowest | Python 3.11, lowest |",
        "| --- | --- | --- |",
        "| numpy | 1.24.0 | 1.24.0 |",
        "| torch | - | - |",
    ]


def test_table_in_the_page(release, tmp_path: Path):
    page = tmp_path / "page.md"
    for text in ("", release.MARKS[0], f"{release.MARKS[1]}{release.MARKS[0]}"):
        page.write_text(text)
        with pytest.raises(ValueError, match="each of these lines once"):
            release.write_table(page, "table")
        assert page.read_text() == text
    page.write_text(f"Before.\n\n{release.MARKS[0]}\nold\n{release.MARKS[1]}\n\nAfter.\n")
    release.write_table(page, "new")
    assert page.read_text() == f"Before.\n\n{release.MARKS[0]}\nnew\n{release.MARKS[1]}\n\nAfter.\n"
    assert list(tmp_path.iterdir()) == [page]
    published = release.PAGE.read_text()
    assert [published.count(mark) for mark in release.MARKS] == [1, 1]


@pytest.fixture
def stubbed(release, tmp_path: Path, monkeypatch):
    """A function that runs the script with made-up files and trials."""

    def run(*argv: str, faults: tuple[str, ...] = (), trials=()) -> int:
        wheel = write_wheel(tmp_path / "detectron2-1.2.0-py3-none-any.whl", [])
        waiting = iter(trials)
        module = release.main.__globals__
        monkeypatch.setitem(module, "build", lambda uv, folder: (wheel, wheel, list(faults)))
        monkeypatch.setitem(module, "find_uv", lambda: "uv")
        monkeypatch.setitem(module, "try_out", lambda *_: next(waiting))
        return release.main([*argv, "--output", str(tmp_path)])

    return run


def test_status(release, stubbed, capsys):
    one = ("--python", "3.11", "--versions", "lowest")
    assert stubbed(*one, trials=[make_trial(release, "3.11")]) == 0
    assert stubbed(*one, trials=[make_trial(release, "3.11", "demo")]) == 1
    assert stubbed(*one, trials=[release.Trial("3.11", "lowest")]) == 1  # nothing was tried
    assert stubbed("--build-only") == 0
    assert stubbed("--build-only", "--tag", "v1.2.0") == 0
    assert stubbed("--build-only", faults=("x is missing",)) == 1
    capsys.readouterr()
    assert stubbed("--build-only", "--tag", "v1.3") == 1
    assert "The tag is v1.3, the version 1.2.0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        stubbed("--build-only", "--write")


def test_fresh_environment_without_interpreter(release, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(release.try_out.__globals__, "find_interpreter", lambda uv, version: None)
    trial = release.try_out("uv", tmp_path / "a.whl", "3.99", "newest")
    assert (trial.interpreter, trial.failed, trial.seconds) == (None, None, {})


@pytest.mark.parametrize("torch_version", ["2.6.0", "2.15.0+cpu"])
@pytest.mark.parametrize("failing", [None, "install", "demo", "predict"])
def test_steps_up_to_one_that_fails(release, tmp_path: Path, monkeypatch, failing, torch_version):
    steps = {step.command[1:]: step for step in release.STEPS}

    def run(command, folder: Path, variables) -> bool:
        step = steps[tuple(command[1:])]
        if step.makes and (step.name, failing) != ("predict", "predict"):  # that one ends well and has written nothing
            (folder / step.makes).parent.mkdir(exist_ok=True)
            (folder / step.makes).write_text("x")
        return step.name != failing or failing == "predict"

    module = release.try_out.__globals__
    monkeypatch.setitem(module, "find_interpreter", lambda uv, version: sys.executable)
    monkeypatch.setitem(module, "install", lambda *_: failing != "install")
    monkeypatch.setitem(module, "list_installed", lambda uv, python: {"torch": torch_version})
    monkeypatch.setitem(module, "run", run)
    names = ["install", *(step.name for step in release.STEPS)]
    refused = ["onnx"] if torch_version.startswith("2.6") and failing is None else []
    trial = release.try_out("uv", tmp_path / "a.whl", "3.11", "newest")
    assert trial.failed == failing and trial.refused == refused
    passed = names[: names.index(failing)] if failing else names
    assert list(trial.seconds) == [name for name in passed if name not in refused]
    assert trial.interpreter == ".".join(map(str, sys.version_info[:3]))
