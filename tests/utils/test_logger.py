import io
import logging
import re

import pytest

from detectron2.utils import logger as L


@pytest.fixture
def name(request):
    """A logger's name that no other test uses; its handlers are taken off again."""
    name = f"root_{request.node.name.replace('[', '_').replace(']', '')}"
    yield name
    logging.getLogger(name).handlers.clear()


def test_terminal_and_file(tmp_path, capsys, name):
    logger = L.setup_logger(str(tmp_path), color=False, name=name, abbrev_name="short")
    assert logger is logging.getLogger(name)
    logging.getLogger(f"{name}.part").info("hello %d", 7)
    logging.getLogger(f"{name}.part").warning("careful")
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[\d\d/\d\d \d\d:\d\d:\d\d short\.part\]: hello 7", out[0])
    assert out[1].endswith("short.part]: WARNING careful")
    assert (tmp_path / "log.txt").read_text().splitlines() == out


def test_only_the_terminal_is_coloured(tmp_path, capsys, name, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    logger = L.setup_logger(str(tmp_path / "mine.log"), name=name)
    logger.info("plain")
    logger.error("bad")
    assert "\x1b[" in capsys.readouterr().out
    text = (tmp_path / "mine.log").read_text()
    assert "\x1b[" not in text
    assert "ERROR bad" in text


@pytest.mark.parametrize(
    ("variable", "is_terminal", "has_color"),
    [(None, False, False), (None, True, True), ("NO_COLOR", True, False), ("FORCE_COLOR", False, True)],
)
def test_pipes_are_plain(name, monkeypatch, variable, is_terminal, has_color):
    for known in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(known, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stdout", stream)
    L.setup_logger(name=name).error("bad")
    assert ("\x1b[" in stream.getvalue()) is has_color and "bad" in stream.getvalue()


def test_calling_it_again_adds_nothing(tmp_path, capsys, name):
    for color in (True, False):
        logger = L.setup_logger(str(tmp_path), color=color, name=name)
    logger.info("once")
    assert capsys.readouterr().out.count("once") == 1
    assert (tmp_path / "log.txt").read_text().count("once") == 1
    L.setup_logger(str(tmp_path / "second.txt"), name=name).info("twice")
    assert (tmp_path / "second.txt").read_text().count("twice") == 1


def test_other_ranks_write_only_to_their_own_file(tmp_path, capsys, name):
    L.setup_logger(str(tmp_path), 3, name=name).info("from three")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.txt").exists()
    assert "from three" in (tmp_path / "log.txt.rank3").read_text()


def test_several_loggers_share_a_file(tmp_path, name):
    L.setup_logger(str(tmp_path), 1, name=name).info("one")
    other = L.setup_logger(str(tmp_path), 1, name=name + "_other")
    other.info("two")
    other.handlers.clear()
    assert [line[-3:] for line in (tmp_path / "log.txt.rank1").read_text().splitlines()] == ["one", "two"]


@pytest.mark.parametrize(("abbreviation", "shown"), [(None, "{name}.a"), ("", "a"), ("d2", "d2.a")])
def test_abbreviation(capsys, name, abbreviation, shown):
    L.setup_logger(name=name, color=False, abbrev_name=abbreviation)
    logging.getLogger(name + ".a").info("x")
    assert f" {shown.format(name=name)}]: x" in capsys.readouterr().out


def test_detectron2_is_shortened(capsys, monkeypatch):
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    L.setup_logger(color=False)
    logging.getLogger("detectron2.engine").debug("x")
    assert "d2.engine]: x" in capsys.readouterr().out


@pytest.fixture
def messages(caplog, monkeypatch):
    monkeypatch.setattr(L, "_TIMES_SEEN", type(L._TIMES_SEEN)())
    monkeypatch.setattr(L, "_LAST_LOGGED", {})
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


def test_log_first_n_by_caller(messages):
    for i in range(3):
        L.log_first_n(logging.INFO, f"a{i}")
    for i in range(3):
        L.log_first_n(logging.INFO, f"b{i}", n=2)
    assert messages() == ["a0", "b0", "b1"]


def test_log_first_n_by_message_or_both(messages):
    for text in ("x", "y", "x"):
        L.log_first_n(logging.INFO, text, key="message")
    L.log_first_n(logging.INFO, "x", key="message")
    for text in ("p", "p", "q"):
        L.log_first_n(logging.INFO, text, key=("caller", "message"))
    L.log_first_n(logging.INFO, "p", key=("caller", "message"))
    assert messages() == ["x", "y", "p", "q", "p"]


@pytest.mark.parametrize("key", ["line", (), ("caller", "line")])
def test_log_first_n_refuses_other_keys(key):
    with pytest.raises(ValueError, match="caller"):
        L.log_first_n(logging.INFO, "x", key=key)


def test_log_every_n(messages):
    for i in range(7):
        L.log_every_n(logging.INFO, str(i), n=3)
    for i in range(2):
        L.log_every_n(logging.INFO, f"always {i}")
    assert messages() == ["0", "3", "6", "always 0", "always 1"]


def test_log_every_n_seconds(messages, monkeypatch):
    times = iter([100.0, 100.5, 101.5, 101.6])
    monkeypatch.setattr(L.time, "monotonic", lambda: next(times))
    for i in range(4):
        L.log_every_n_seconds(logging.INFO, str(i), n=1)
    assert messages() == ["0", "2"]


def test_helpers_log_under_the_name_of_the_caller(caplog, monkeypatch):
    monkeypatch.setattr(L, "_TIMES_SEEN", type(L._TIMES_SEEN)())
    caplog.set_level(logging.DEBUG)
    L.log_every_n(logging.INFO, "x")
    L.log_every_n(logging.INFO, "y", name="given")
    assert [record.name for record in caplog.records] == [__name__, "given"]


def test_small_table():
    lines = L.create_small_table({"AP": 12.34567, "AP50": float("nan"), "n": 3}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["AP", "AP50", "n"]
    assert cells[2] == ["12.346", "nan", "3"]
    assert L.create_small_table({}).strip() == ""


def test_api_usage_is_silent(capfd):
    L._log_api_usage("tests.logger")
    assert capfd.readouterr() == ("", "")


def test_the_terminal_can_be_left_to_the_caller(tmp_path, capsys, name):
    L.setup_logger(str(tmp_path), name=name, configure_stdout=False).info("only in the file")
    assert capsys.readouterr().out == ""
    assert "only in the file" in (tmp_path / "log.txt").read_text()
