"""The tiny model and data set of the tests of whole runs, and loggers that are put back."""

import logging
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import cfg, shapes, shapes_dir, tiny_config

__all__ = ["cfg", "restore_logging", "shapes", "shapes_dir", "tiny_config"]


@contextmanager
def loggers_restored():
    """Begin with loggers that nobody has set up, and put them back as they were.

    Otherwise one test would write to the captured terminal of another, and ``caplog`` would see nothing.
    """
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(x, x.level, x.propagate, list(x.handlers)) for x in loggers]
    _set([(x, logging.NOTSET, True, []) for x in loggers])
    try:
        yield
    finally:
        _set(before)


def _set(states):
    for x, level, propagate, handlers in states:
        x.setLevel(level)
        x.propagate, x.handlers = propagate, handlers


@pytest.fixture
def restore_logging():
    """Loggers are as before when the test is over."""
    with loggers_restored():
        yield
