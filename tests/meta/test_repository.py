"""What the repository brings besides code: workflows, forms, and files about it."""

import os
import re
from pathlib import Path

import pytest
import yaml

import detectron2

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: dict) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_workflows_are_there():
    assert {p.name for p in WORKFLOWS} >= {"test.yml", "release.yml"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_ask_for_little(path: Path):
    workflow = read(path)
    assert workflow["permissions"] in ({}, {"contents": "read"}) and "group" in workflow["concurrency"]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert [u for u in uses if not re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", u)] == []
    # A name that others choose, such as that of a branch, would be run as a part of the command.
    assert [c for c in commands(workflow) if re.search(r"\$\{\{(?!\s*matrix\.)", c)] == []


def test_workflows_run_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", readme, re.MULTILINE)
    tests = read(ROOT / ".github" / "workflows" / "test.yml")
    assert any(c.split()[:2] == ["make", "test"] for c in commands(tests)) and ".ci/run" in commands(tests)
    assert {"make check", "make test"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
    matrix = tests["jobs"]["tests"]["strategy"]["matrix"]
    assert {os.split("-")[0] for os in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert set(matrix["versions"]) == {"lowest", "newest"}
    required = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert required and required[1] in matrix["python"]


def test_only_publishing_may_identify_itself():
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    writing = {name: job["permissions"] for name, job in jobs.items() if "write" in job["permissions"].values()}
    assert writing == {"attach": {"contents": "write"}, "publish": {"id-token": "write"}}
    assert all(set(jobs[name]["needs"]) == {"build", "trials"} for name in writing)


def test_reports_of_faults_come_with_the_environment():
    fields = {f["id"]: f for f in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"] if "id" in f}
    assert "detectron2 env" in fields["env"]["attributes"]["label"] and fields["env"]["validations"]["required"]


def test_citation_has_the_version():
    assert read(ROOT / "CITATION.cff")["version"] == detectron2.__version__


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permission")
def test_scripts_run_by_their_path():
    """As in published commands: `./tools/train_net.py --help`."""
    folders = ("tools", "demo", "projects", "datasets", "examples")
    scripts = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.read_bytes()[:2] == b"#!"]
    assert len(scripts) > 20
    assert [str(path.relative_to(ROOT)) for path in scripts if not os.access(path, os.X_OK)] == []
