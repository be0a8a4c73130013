#!/usr/bin/env python
"""Build the release, look into its files, and try it in fresh environments.

python tools/release.py                          # all of it: files in dist/, then each interpreter on this machine
python tools/release.py --write                  # the same, and write the result into docs/compatibility.md
python tools/release.py --build-only --tag v0.7.0    # the files alone; their version must be that of the tag
python tools/release.py --python 3.12 --versions newest --torch-backend cpu    # one environment

The wheel is installed with the lowest versions of what it requires, and with the newest ones, and each command that a
newcomer tries is run in an empty folder, without a compiler and without downloads. Interpreters that this machine does
not have are named in the table. Exit status 1: a file or an environment has a fault, or none could be tried. It needs
uv and a network, and about 6 GB for each environment, which is removed afterwards.
"""

import argparse
import datetime
import email
import email.message
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
MARKS = ("<!-- python tools/release.py --write: begin -->", "<!-- python tools/release.py --write: end -->")

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
EXTRAS = ("onnx",)
SOURCE_ONLY = {"fvcore", "iopath"}  # without wheels, and without anything to compile
# Files that are read at run time, besides modules; a wheel without one of them fails far from here.
NEEDED = (
    "detectron2/py.typed",
    "detectron2/config/key_meanings.yaml",
    "detectron2/model_zoo/published_results.json",
    "detectron2/model_zoo/configs/Base-RCNN-FPN.yaml",
    "detectron2/serving/page.html",
)
# No compiler, no downloads, and nothing of the environment that this script runs in.
CLEAN = {"CC": "/bin/false", "CXX": "/bin/false", "DETECTRON2_OFFLINE": "1"}
DROPPED = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CONDA_PREFIX")


@dataclass(frozen=True)
class Step:
    """A command of the smoke test, and a file that it must leave."""

    name: str
    command: tuple[str, ...]
    makes: str | None = None
    least_torch: tuple[int, int] = (0, 0)  # with an older PyTorch it is refused, and not tried


_TRAINED = ("--weights", "run/model_final.pth")
_VAL = ("demo_shapes_val", "run/data/val/annotations.json", "run/data/val/images")
_IMPORT = (
    "import detectron2 as d; from importlib.metadata import version; assert d.__version__ == version('detectron2')"
)
STEPS = (
    Step("import", ("python", "-c", _IMPORT)),
    Step("env", ("detectron2", "env")),
    Step("demo", ("detectron2", "demo", "--iters", "20", "--output", "run"), "run/report.html"),
    Step(
        "predict",
        ("detectron2", "predict", *_TRAINED, "run/data/val/images/00000.png", "--output", "drawn"),
        "drawn/predictions.json",
    ),
    Step("eval", ("detectron2", "eval", *_TRAINED, "--coco", *_VAL, "--output", "scores"), "scores/results.json"),
    Step("pt2", ("detectron2", "export", *_TRAINED, "--format", "pt2", "--output", "pt2"), "pt2/model.json"),
    Step(
        "onnx", ("detectron2", "export", *_TRAINED, "--format", "onnx", "--output", "onnx"), "onnx/model.onnx", (2, 7)
    ),
)


@dataclass
class Trial:
    """What came of one environment: seconds of each step that passed, the one that failed, and what was installed."""

    python: str
    versions: str
    interpreter: str | None = None  # full version; None: this machine has none
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    installed: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------------- files


def tracked_files(root: Path) -> list[str]:
    """Return the files under version control, relative to the root."""
    return subprocess.check_output(["git", "ls-files"], cwd=root, text=True).splitlines()


def read_archive(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a wheel, or of a source archive without its outermost folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {i.filename: hashlib.sha256(wheel.read(i)).hexdigest() for i in wheel.infolist() if not i.is_dir()}
    with tarfile.open(path) as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                found[member.name.partition("/")[2]] = hashlib.sha256(content.read()).hexdigest()
        return found


def find_faults_of_wheel(path: Path, tracked: Iterable[str]) -> list[str]:
    """Compare a wheel with the files under version control: all of the package and its configs, and nothing else."""
    faults = []
    if not path.name.endswith("-py3-none-any.whl"):
        faults.append(f"{path.name}: a wheel for every platform ends in -py3-none-any.whl")
    files = {name for name in read_archive(path) if ".dist-info/" not in name}
    expected = {name for name in tracked if name.startswith("detectron2/")}
    expected |= {f"detectron2/model_zoo/{name}" for name in tracked if name.startswith("configs/")}
    faults += [f"{path.name}: {name} is missing" for name in sorted((expected | set(NEEDED)) - files)]
    faults += [f"{path.name}: {name} does not belong there" for name in sorted(files - expected)]
    return faults


def find_faults_of_sdist(path: Path, tracked: Iterable[str]) -> list[str]:
    """Compare a source archive with the files under version control: all of them, and nothing else.

    The tests lie in it, and they read the documentation, the examples and the benchmarks.
    """
    files, tracked = set(read_archive(path)) - {"PKG-INFO"}, set(tracked)
    faults = [f"{path.name}: {name} is not under version control" for name in sorted(files - tracked)]
    return faults + [f"{path.name}: {name} is missing" for name in sorted(tracked - files)]


def find_differences(one: Path, other: Path) -> list[str]:
    """Return the files in which two wheels differ."""
    first, second = read_archive(one), read_archive(other)
    return [
        f"{name} differs between the wheel of the source tree and the one of the source archive"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def read_metadata(wheel: Path) -> email.message.Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def read_requirements(wheel: Path, extras: Iterable[str] = EXTRAS) -> list[str]:
    """Return what a wheel requires, with these extras: `name>=version`.

    For an installer that is to take the lowest versions: what a wheel requires counts as required indirectly, and of
    that uv takes the newest versions.
    """
    found = []
    for requirement in read_metadata(wheel).get_all("Requires-Dist", []):
        specifier, _, marker = (part.strip() for part in requirement.partition(";"))
        extra = re.fullmatch(r"extra == ['\"]([\w.-]+)['\"]", marker)
        if extra is None and marker:
            raise ValueError(f"A requirement with a condition, which this script does not know: {requirement!r}.")
        if extra is None or extra[1] in extras:
            found.append(specifier)
    return found


def name_of(requirement: str) -> str:
    """Return the name of `name>=version`."""
    return re.split(r"[\s<>=!~\[(]", requirement, maxsplit=1)[0].lower()


def build(uv: str, folder: Path) -> tuple[Path, Path, list[str]]:
    """Build both files into a folder; return source archive, wheel and faults. Older ones there are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("detectron2-*.tar.gz"), *folder.glob("detectron2-*.whl")]:
        old.unlink()
    for kind in ("--sdist", "--wheel"):
        subprocess.run([uv, "build", "--quiet", kind, "--out-dir", str(folder), str(ROOT)], check=True)
    (sdist,), (wheel,) = folder.glob("detectron2-*.tar.gz"), folder.glob("detectron2-*.whl")
    tracked = tracked_files(ROOT)
    faults = find_faults_of_wheel(wheel, tracked) + find_faults_of_sdist(sdist, tracked)
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", temporary, str(sdist)], check=True)
        faults += find_differences(wheel, next(Path(temporary).glob("*.whl")))
    checked = subprocess.run(
        [uv, "tool", "run", "twine", "check", "--strict", str(sdist), str(wheel)], capture_output=True, text=True
    )
    if checked.returncode:
        faults.append(f"twine check: {(checked.stdout + checked.stderr).strip()}")
    return sdist, wheel, faults


# ---------------------------------------------------------------------------------------------- environments


def find_interpreter(uv: str, version: str) -> str | None:
    """Return the path of an interpreter of this version that lies on this machine."""
    command = [uv, "python", "find", "--no-python-downloads", "--no-project", "--system", version]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def clean_environment(scripts: Path) -> dict[str, str]:
    """Return the variables for a command of the environment whose scripts lie in this folder."""
    variables = {k: v for k, v in os.environ.items() if k not in DROPPED}
    return {**variables, **CLEAN, "PATH": f"{scripts}{os.pathsep}{variables.get('PATH', '')}"}


def run(command: list[str], folder: Path, variables: dict[str, str]) -> bool:
    """Run a command; print the end of what it said if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        print(f"    exit status {done.returncode}: {' '.join(command)}", *done.stdout.splitlines()[-40:], sep="\n    ")
    return done.returncode == 0


def install(uv: str, wheel: Path, trial: Trial, environment: Path, interpreter: str, backend: str | None) -> bool:
    """Make the environment and install the wheel, with the versions that the trial is for."""
    python, variables = environment_python(environment), {**os.environ, **CLEAN}
    requirements, specifiers = environment.parent / "requirements.txt", read_requirements(wheel)
    requirements.write_text("\n".join([*specifiers, f"detectron2 @ {wheel.resolve().as_uri()}", ""]), encoding="utf-8")
    # The lowest version that this interpreter has a wheel for: older ones would have to be compiled.
    binary = [f"--only-binary={n}" for n in map(name_of, specifiers) if n not in SOURCE_ONLY]
    options = [*binary, *([f"--torch-backend={backend}"] if backend else [])]
    made = run([uv, "venv", "--quiet", "--python", interpreter, str(environment)], environment.parent, variables)
    command = [uv, "pip", "install", "--quiet", "--python", str(python), "--resolution", RESOLUTIONS[trial.versions]]
    return made and run([*command, *options, "-r", str(requirements)], environment.parent, variables)


def environment_python(environment: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def list_installed(uv: str, python: Path) -> dict[str, str]:
    """Return the versions of all that an environment has."""
    listed = subprocess.check_output([uv, "pip", "list", "--quiet", "--format", "json", "--python", str(python)])
    return {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}


def try_out(uv: str, wheel: Path, python: str, versions: str, backend: str | None = None) -> Trial:
    """Install the wheel in a fresh environment and run all steps in an empty folder, up to one that fails."""
    trial = Trial(python, versions)
    interpreter = find_interpreter(uv, python)
    if interpreter is None:
        print(f"Python {python}, {versions} versions: this machine has no such interpreter.", flush=True)
        return trial
    code = "import platform; print(platform.python_version())"
    trial.interpreter = subprocess.check_output([interpreter, "-c", code], text=True).strip()
    print(f"Python {trial.interpreter}, {versions} versions:", flush=True)
    with tempfile.TemporaryDirectory(prefix="release_", ignore_cleanup_errors=True) as temporary:
        environment, folder = Path(temporary) / "environment", Path(temporary) / "empty"
        folder.mkdir()
        start = time.perf_counter()
        if not install(uv, wheel, trial, environment, interpreter, backend):
            trial.failed = "install"
            return trial
        trial.seconds["install"] = time.perf_counter() - start
        interpreter_path = environment_python(environment)
        trial.installed = list_installed(uv, interpreter_path)
        variables = clean_environment(interpreter_path.parent)
        torch_version = tuple(int(part) for part in trial.installed["torch"].split(".")[:2])
        for step in STEPS:
            if torch_version < step.least_torch:
                trial.refused.append(step.name)
                continue
            start = time.perf_counter()
            program = str(shutil.which(step.command[0], path=str(interpreter_path.parent)) or step.command[0])
            passed = run([program, *step.command[1:]], folder, variables)
            if passed and step.makes and not (folder / step.makes).is_file():
                print(f"    {step.makes} was not written")
                passed = False
            if not passed:
                trial.failed = step.name
                break
            trial.seconds[step.name] = time.perf_counter() - start
            print(f"  {step.name}: {trial.seconds[step.name]:.0f} s", flush=True)
    return trial


# ---------------------------------------------------------------------------------------------------- table


def format_table(trials: list[Trial], version: str, direct: Iterable[str], date: str, machine: str) -> str:
    """Return Markdown: what each environment did, and the versions of what the wheel requires directly."""
    names = ["install", *(step.name for step in STEPS)]
    lines = [
        f"Version {version}, {date}, {machine}. Seconds of each step; what was installed stands below.",
        "",
        f"| Python | versions | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    tried = [trial for trial in trials if trial.interpreter]
    for trial in tried:
        said = {
            **{name: f"{seconds:.0f}" for name, seconds in trial.seconds.items()},
            **dict.fromkeys(trial.refused, "refused"),
            **({trial.failed: "**failed**"} if trial.failed else {}),
        }
        cells = [said.get(name, "not run") for name in names]
        lines.append(f"| {trial.interpreter} | {trial.versions} | {' | '.join(cells)} |")
    missing = list(dict.fromkeys(trial.python for trial in trials if not trial.interpreter))
    if missing:
        lines += ["", f"Not tried, because that machine lacks the interpreter: Python {', '.join(missing)}."]
    tried = [trial for trial in tried if trial.installed]
    if tried:
        heads = [f"Python {trial.python}, {trial.versions}" for trial in tried]
        lines += ["", f"| installed | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
        lines += [f"| {name} | {' | '.join(t.installed.get(name, '-') for t in tried)} |" for name in direct]
    return "\n".join(lines)


def write_table(page: Path, table: str) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    if [text.count(mark) for mark in MARKS] != [1, 1] or text.index(MARKS[0]) > text.index(MARKS[1]):
        raise ValueError(f"{page} must have each of these lines once, in this order: {' ... '.join(MARKS)}.")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    temporary = page.with_suffix(".tmp")
    temporary.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")
    temporary.replace(page)


def find_uv() -> str:
    """Return the path of uv: the one beside this interpreter, else the one on the path."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        raise FileNotFoundError("uv is neither beside this Python nor on the path. Install it: pip install uv.")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the files; default: dist")
    parser.add_argument("--build-only", action="store_true", help="build and check the files alone")
    parser.add_argument("--tag", help="tag of the release; must be v and the version")
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="VERSION", help="interpreters to try")
    parser.add_argument("--versions", nargs="+", default=list(RESOLUTIONS), choices=RESOLUTIONS)
    parser.add_argument("--torch-backend", help="cpu, cu128 ...: the build of PyTorch; default: that of the index")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    if args.write and args.build_only:
        parser.error("--write needs the environments, which --build-only leaves out.")

    uv = find_uv()
    sdist, wheel, faults = build(uv, args.output)
    version = str(read_metadata(wheel)["Version"])
    if args.tag and args.tag != f"v{version}":
        faults.append(f"The tag is {args.tag}, the version {version}: tag it v{version}, or change pyproject.toml.")
    print("\n".join(faults) if faults else f"{sdist.name} and {wheel.name} have all that belongs there.", flush=True)
    if faults or args.build_only:
        return int(bool(faults))

    trials = [try_out(uv, wheel, p, v, args.torch_backend) for p in args.python for v in args.versions]
    direct = sorted(map(name_of, read_requirements(wheel)))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    table = format_table(trials, version, direct, datetime.date.today().isoformat(), machine)
    print(f"\n{table}")
    if args.write:
        write_table(PAGE, table)
    return int(any(t.failed for t in trials) or not any(t.interpreter for t in trials))


if __name__ == "__main__":
    sys.exit(main())
