"""Run a page of the documentation: its blocks of Python, and its commands of `detectron2`, in order.

`<!-- not run: REASON -->` on the line before a block leaves that block out. All pages are run by this; what takes the
place of a command that trains for minutes, or needs a network, is with the test of its page.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import is_builtin
from tests.cli.conftest import run_once

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>[\w+-]*)[^\n]*\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
RUN = ("python", "sh")


def blocks_of(path: Path) -> list[re.Match[str]]:
    """Return the blocks of a page, and see that no fence is left over."""
    text = path.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), f"{path.name} has a fence without its other"
    return found


def run_command(arguments: list[str]) -> None:
    """Run a command as another process would: without the data sets that the page has registered."""
    before = [(catalog.data, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for name in [name for name in DatasetCatalog.list() if not is_builtin(name)]:
        for content, _ in before:
            content.pop(name, None)
    try:
        assert run_once(arguments) == 0, arguments
    finally:
        for content, old in before:
            content.update(old)


def commands_of(path: Path) -> list[list[str]]:
    """Return the words of each command of `detectron2` outside of marked blocks, without that name."""
    return [words for block in blocks_of(path) if not block["reason"] for words in _commands_in(block, path)]


def _commands_in(block: re.Match[str], path: Path) -> list[list[str]]:
    if block["kind"] != "sh":
        return []
    lines = block["text"].replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert all(words[0] == "detectron2" for words in found), f"{path.name}: {found} are not run"
    return [words[1:] for words in found]


def run_page(
    path: Path, names: Mapping[str, Any] | None = None, command: Callable[[list[str]], object] = run_command
) -> dict[str, Any]:
    """Run the blocks in the working directory.

    Args:
        path: of the page.
        names: what Python has at the start, where the page leaves that to the reader.
        command: runs a command, from the words after `detectron2`.

    Returns:
        The names that Python has in the end.
    """
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "page", **(names or {})}
    for block in blocks_of(path):
        if block["reason"] or block["kind"] not in RUN:
            continue
        if block["kind"] == "python":
            lines_before = text.count("\n", 0, block.start("text"))
            exec(compile("\n" * lines_before + block["text"], str(path), "exec"), namespace)  # our own documentation
        for words in _commands_in(block, path):
            command(words)
    return namespace


def not_run(path: Path) -> list[str]:
    """Return the commands outside of marked blocks that no test runs, because they are not of `detectron2`."""
    lines = [
        line
        for block in blocks_of(path)
        if block["kind"] == "sh" and not block["reason"]
        for line in block["text"].replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if not line.startswith("detectron2 ") or " FILE" in line]
