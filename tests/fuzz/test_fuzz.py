"""A small slice of the cases that `make fuzz` runs, of every kind."""

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import Case, WrongAcceptError, run_cases


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files(tmp_path, kind):
    counts, bad = run_cases(KINDS[kind][0](tmp_path), tmp_path, list(range(25)))
    assert bad == []
    assert sum(counts.values()) == 25 and counts["clear"] > 2


def _exit(number):
    raise SystemExit(number)


def _wrong():
    raise WrongAcceptError("x")


def _raw():
    raise ZeroDivisionError("division by zero")


def _hang():
    while True:
        pass


def test_the_runner_tells_outcomes_apart(tmp_path, monkeypatch):
    from detectron2.data.detection_utils import read_image

    runs = [lambda: None, lambda: read_image("/nothing.png"), lambda: int("x"), _raw, _wrong, _hang, lambda: _exit(3)]
    monkeypatch.setattr("tests.fuzz.runner.SECONDS", 3)
    counts, bad = run_cases(lambda i, _: Case(str(i), runs[i], ("nothing.png",)), tmp_path, list(range(7)))
    assert counts == {"accepted": 1, "clear": 1, "raw": 3, "hang": 1, "wrong": 1}
    assert [line.split(" ")[:2] for line in bad] == [
        ["raw:", "2"],
        ["raw:", "3"],
        ["wrong:", "4"],
        ["hang:", "5"],
        ["raw:", "6"],
    ]
