"""Fixtures of the tests of data."""

import logging

import pytest


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "detectron2.data.validation")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
