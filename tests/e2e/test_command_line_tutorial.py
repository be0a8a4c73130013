"""The page about the command line: its commands can be parsed, the quick ones run, and its tables are the library's."""

import pytest

from detectron2.cli import arguments
from detectron2.cli.arguments import parse
from tests.docs.pages import commands_of, run_command, run_page


@pytest.fixture
def path(repo_root):
    return repo_root / "docs" / "tutorials" / "command_line.md"


@pytest.fixture
def page(path):
    return path.read_text(encoding="utf-8")


def rows_of(page, title):
    """The cells of the table under a title."""
    part = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"][2:]


def test_tables(page):
    assert [row[0].strip("`") for row in rows_of(page, "Commands")] == list(arguments._COMMANDS)
    assert {int(status): text for status, text in rows_of(page, "Exit statuses")} == arguments.EXIT_STATUSES
    assert tuple(row[0] for row in rows_of(page, "Completion")) == arguments._SHELLS


def test_commands(path, capsys):
    """All but those that train or use the network run; of these the words are understood."""
    assert len(commands_of(path)) > 10 and {words[0] for words in commands_of(path)} >= {"train", "zoo", "config"}

    def command(words):
        assert parse(words).command == words[0]
        if words[0] != "train" and words[:2] != ["zoo", "download"]:
            run_command(words)
            assert capsys.readouterr().out, words

    run_page(path, command=command)
