"""Run a page of the documentation: its blocks of Python, and its commands of `detectron2`, in order.

`<!-- not run: REASON -->` on the line before a block leaves that block out.
"""

import re
import shlex
from pathlib import Path

from detectron2.cli import main

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


def run_page(path: Path) -> dict:
    """Run the blocks in the working directory, and return the names that Python has in the end."""
    text = path.read_text(encoding="utf-8")
    names: dict = {"__name__": "page"}
    for block in blocks_of(path):
        if block["reason"] or block["kind"] not in RUN:
            continue
        if block["kind"] == "python":
            lines_before = text.count("\n", 0, block.start("text"))
            exec(compile("\n" * lines_before + block["text"], str(path), "exec"), names)  # our own documentation
        else:
            for line in block["text"].replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "detectron2", f"{path.name}: {line} is not run"
                assert main(arguments) == 0, line
    return names


def not_run(path: Path) -> list[str]:
    """Return the commands outside of marked blocks that no test runs, because they are not of `detectron2`."""
    lines = [
        line
        for block in blocks_of(path)
        if block["kind"] == "sh" and not block["reason"]
        for line in block["text"].replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if not line.startswith("detectron2 ") or " FILE" in line]
