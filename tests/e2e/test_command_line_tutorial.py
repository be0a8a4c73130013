"""The page about the command line: its commands can be parsed, the quick ones run, and its tables are the library's."""

import re
import shlex

import pytest

from detectron2 import cli
from detectron2.cli import arguments
from detectron2.cli.arguments import parse


@pytest.fixture(scope="module")
def page():
    from pathlib import Path

    return (Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "command_line.md").read_text(encoding="utf-8")


def commands_of(page):
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def rows_of(page, title):
    """The cells of the table under a title."""
    part = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"][2:]


def test_tables(page):
    assert [row[0].strip("`") for row in rows_of(page, "Commands")] == list(arguments._COMMANDS)
    assert {int(status): text for status, text in rows_of(page, "Exit statuses")} == arguments.EXIT_STATUSES
    assert tuple(row[0] for row in rows_of(page, "Completion")) == arguments._SHELLS


def test_commands(page, capsys):
    """All but those that train or use the network run; of these the words are understood."""
    commands = commands_of(page)
    assert len(commands) > 10 and {words[0] for words in commands} >= {"train", "zoo", "config"}
    for words in commands:
        assert parse(words).command == words[0]
        if words[0] != "train" and words[:2] != ["zoo", "download"]:
            assert cli.main(words) == 0, words
            assert capsys.readouterr().out, words
