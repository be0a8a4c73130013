"""Fixtures shared by all tests."""

import gc
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples each time, so that a test fails for what was changed; HYPOTHESIS_PROFILE=default looks for others.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of several processes; more would only wait for each other
    torch.set_num_threads(1)

# Exporters announce a device of theirs. Autograd that starts afterwards has a thread for it, and such a process cannot
# be forked into one that trains.
torch.ones(1, requires_grad=True).sum().backward()

# A child does not free what its parent left as garbage: the scaler of a video would wait for threads that it lacks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)

REPO_ROOT = Path(__file__).resolve().parent.parent


def pytest_configure():
    """Take Ctrl-C also in a run in the background, which a shell starts without."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without looking for garbage: of the million objects that modules and tests are, all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test starts from the same random state."""
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """A test leaves loggers as they were: a later one would see its own records twice, or none."""
    loggers = [logging.getLogger(name) for name in (None, "detectron2", "fvcore")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    logging.getLogger("detectron2").propagate = True  # caplog listens at the root
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in [h for h in logger.handlers if h not in handlers]:
            logger.removeHandler(handler)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data that lies beside the repository; tests that need it skip where it is absent."""
    path = Path(os.environ.get("DETECTRON2_TEST_SHARED", REPO_ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"reference data not found at {path} (set DETECTRON2_TEST_SHARED)")
    return path
