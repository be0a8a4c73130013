"""The Dockerfile and the project agree: files, extras, and the command exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments; comments are left out, continued lines are joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


FILE = instructions((ROOT / "Dockerfile").read_text())


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in FILE if instruction == name]


def copied() -> set[str]:
    """What comes from the repository, not from an earlier stage."""
    return {p for rest in arguments("COPY") if "--from=" not in rest for p in shlex.split(rest)[:-1]}


def test_reading_a_file():
    assert instructions("") == []
    assert instructions("# x\nRUN a \\\n    && b\n\nUSER c") == [("RUN", "a && b"), ("USER", "c")]


def test_copied_files_exist_and_are_sent_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and sent == copied()
    assert [path for path in copied() if not (ROOT / path).exists()] == []


def test_what_the_wheel_is_made_of_is_copied():
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], *target["packages"]}
    assert needed | set(target["force-include"]) <= copied()


def test_extras_and_command_exist():
    options = dict(rest.split("=", 1) for rest in arguments("ARG"))
    extras = set(options["EXTRAS"].split(","))
    assert extras <= set(PROJECT["project"]["optional-dependencies"]) and "serve" in extras
    assert options["TORCH_BACKEND"] == "cpu"
    (command,) = map(json.loads, arguments("ENTRYPOINT"))
    assert len(command) == 1 and command[0] in PROJECT["project"]["scripts"]
    (install,) = (rest for rest in arguments("RUN") if "uv pip install" in rest)
    assert '--torch-backend="${TORCH_BACKEND}"' in install and '".[${EXTRAS}]"' in install
    assert "--constraint constraints.txt" in install


def test_python_is_supported_and_nobody_is_root():
    versions = {re.fullmatch(r"python:3\.(\d+)-slim(?: AS \w+)?", rest)[1] for rest in arguments("FROM")}
    lowest = int(PROJECT["project"]["requires-python"].rpartition(".")[2])
    assert len(versions) == 1 and int(versions.pop()) >= lowest
    assert arguments("USER")[-1] == "1000" and any("--uid 1000" in rest for rest in arguments("RUN"))
    assert "http" not in " ".join(rest for _, rest in FILE)  # packages come from where pip and uv look by themselves
