"""Nothing of the published documentation is without a counterpart, and no block without a test that runs it."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import BLOCK, blocks_of, not_run
from tests.docs.test_pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# page of the published documentation: (page here, a heading on it)
PUBLISHED = {
    "install": ("tutorials/install.md", "Installation"),
    "getting_started": ("tutorials/getting_started.md", "Getting started"),
    "builtin_datasets": ("../datasets/README.md", "Built-in data sets"),
    "extend": ("tutorials/extend.md", "Extend the defaults"),
    "datasets": ("tutorials/custom_datasets.md", "Metadata"),
    "data_loading": ("tutorials/data_loading.md", "A mapper of your own"),
    "augmentation": ("tutorials/augmentation.md", "Undo"),
    "models": ("tutorials/models.md", "Run a part"),
    "write-models": ("tutorials/models.md", "Write a part"),
    "training": ("tutorials/training.md", "Hooks of your own"),
    "evaluation": ("tutorials/evaluation.md", "Evaluate"),
    "configs": ("tutorials/configs.md", "YAML configs"),
    "lazyconfigs": ("tutorials/configs.md", "LazyConfigs"),
    "deployment": ("tutorials/deployment.md", "Out of Python"),
    "benchmarks": ("tutorials/performance.md", "How to measure"),
    "compatibility": ("notes/compatibility.md", "Compatibility"),
    "contributing": ("../CONTRIBUTING.md", "Contributing"),
    "changelog": ("../CHANGELOG.md", "Changelog"),
}
ELSEWHERE = {  # page: the test that runs its blocks
    "cookbook": "test_cookbook.py",
    "tutorials/bulk": "test_inference_tutorials.py",
    "tutorials/command_line": "test_command_line_tutorial.py",
    "tutorials/data": "test_data_tour.py",
    "tutorials/deployment": "test_deployment_tutorial.py",
    "tutorials/distributed": "test_tutorials.py",
    "tutorials/evaluation": "test_evaluation_tutorial.py",
    "tutorials/getting_started": "test_data_tour.py",
    "tutorials/inference": "test_inference_tutorials.py",
    "tutorials/models_from_hubs": "test_models_from_hubs_tutorial.py",
    "tutorials/native_detr": "test_tutorials.py",
    "tutorials/performance": "test_performance_tutorial.py",
    "tutorials/serving": "test_serving_tutorial.py",
    "tutorials/training": "test_tutorials.py",
    "tutorials/transformers_models": "test_tutorials.py",
    "tutorials/video": "test_inference_tutorials.py",
}
OTHER_COMMANDS = {  # these tests run other programs as well, or the same command by another way
    "tutorials/serving": 6,
}


@pytest.mark.parametrize("page", PUBLISHED)
def test_published_pages_have_a_counterpart(page: str):
    path, heading = PUBLISHED[page]
    assert re.search(rf"^#+ {re.escape(heading)}$", (DOCS / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_blocks_are_found():
    assert list(BLOCK.finditer("")) == []
    text = "<!-- not run: a -->\n```sh\nx\n```\n```python\ny\n```\n<!-- not run: b -->\nz\n```sh\n```\n"
    found = [(b["reason"], b["kind"], b["text"]) for b in BLOCK.finditer(text)]
    assert found == [("a", "sh", "x\n"), (None, "python", "y\n"), (None, "sh", "")]


def test_every_block_is_run_or_says_why_not():
    pages = {str(p.relative_to(DOCS).with_suffix("")): p for p in DOCS.rglob("*.md")}
    with_blocks = {
        name
        for name, path in pages.items()
        if any(b["kind"] in ("python", "sh", "console", "bash") and not b["reason"] for b in blocks_of(path))
    }
    assert with_blocks == set(PAGES) | set(ELSEWHERE)
    for name, test in ELSEWHERE.items():
        text = (ROOT / "tests" / "e2e" / test).read_text(encoding="utf-8")
        assert Path(name).name in text, f"{test} does not run {name}"
    left = {name: lines for name, path in pages.items() if (lines := not_run(path))}
    assert {name: lines for name, lines in left.items() if len(lines) > OTHER_COMMANDS.get(name, 0)} == {}


def test_one_place_reads_blocks():
    """Others that look for fences: this file, and a test that builds the config of its page."""
    found = {p.name for p in (ROOT / "tests").rglob("*.py") if "^" + "```" in p.read_text(encoding="utf-8")}
    assert found == {"pages.py", "test_models_from_hubs_tutorial.py"}
