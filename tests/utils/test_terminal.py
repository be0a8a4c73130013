"""Control characters of names are shown, not carried out."""

import io
import logging

import pytest

from detectron2.utils.logger import setup_logger
from detectron2.utils.terminal import PrintableStream, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a\tb\n", "a\tb\n"),
        ("Grüße 猫", "Grüße 猫"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("a\rb\x00\x7f\x9b", "a\\x0db\\x00\\x7f\\x9b"),
        ("exe\u202egnp", "exe\\u202egnp"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_a_stream_lets_a_progress_line_begin_anew():
    inner = io.StringIO()
    stream = PrintableStream(inner)
    assert stream.write("\r\x1b[K50 %\x1b[2J") == 12
    stream.writelines(["\r60 %", "name\x07"])
    assert inner.getvalue() == "\r\x1b[K50 %\\x1b[2J\r60 %name\\x07"
    assert stream.isatty() is False


def test_logs_escape_names(tmp_path):
    logger = setup_logger(str(tmp_path / "log.txt"), name="terminal_test", configure_stdout=False)
    logger.warning("category %s", "\x1b[2J")
    for handler in logger.handlers:
        handler.flush()
        logging.Logger.removeHandler(logger, handler)
    assert "category \\x1b[2J" in (tmp_path / "log.txt").read_text()
