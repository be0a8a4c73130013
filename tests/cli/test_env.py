"""``detectron2 env``, and what does not belong to a single command."""

import subprocess
import sys

import pytest

import detectron2
from detectron2.cli import main
from detectron2.cli.arguments import EXIT_STATUSES


def test_env(command):
    status, out, _ = command("env")
    assert status == 0
    for text in ("Python", "PyTorch", "torchvision", f"detectron2              {detectron2.__version__}"):
        assert text in out


def test_version(command):
    assert command("--version") == (0, f"detectron2 {detectron2.__version__}\n", "")


def test_no_command(command):
    status, out, _ = command()
    assert status == 2
    for name in ("demo", "train", "eval", "predict", "data", "analyze", "plot", "config", "zoo", "env"):
        assert f"\n    {name} " in out


@pytest.mark.parametrize(
    "name", ["demo", "train", "eval", "predict", "data", "analyze", "plot", "config", "zoo", "env", "completion"]
)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert f"usage: detectron2 {name}" in capsys.readouterr().out


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tarin"])
    assert exit_.value.code == 2
    assert "invalid choice: 'tarin'" in capsys.readouterr().err


def test_interruption(command, monkeypatch):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("detectron2.cli.env.run", stop)
    assert command("env") == (130, "", "\nInterrupted.\n")


def test_what_is_no_error_of_the_user_shows_its_traceback(command, monkeypatch):
    def fail(args):
        raise AssertionError("an invariant does not hold")

    monkeypatch.setattr("detectron2.cli.env.run", fail)
    with pytest.raises(AssertionError, match="invariant"):
        command("env")


def test_as_a_module():
    """It is light, too: asking for the version does not import torch."""
    code = (
        "import runpy, sys; sys.argv = ['detectron2', '--version']\n"
        "try: runpy.run_module('detectron2', run_name='__main__')\n"
        "except SystemExit as e: sys.exit(e.code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"detectron2 {detectron2.__version__}\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "raised", "status"),
    [
        (["--version"], None, 0),
        (["zoo", "info", "none/such"], None, 1),
        (["config", "explain", "none_such"], None, 1),
        (["config", "show", "none/such.yaml"], None, 1),
        (["plot", "none_such"], None, 1),
        (["eval"], None, 1),
        ([], None, 2),
        (["env", "--none-such"], None, 2),
        (["env"], KeyboardInterrupt(), 130),
        (["env"], SystemExit(143), 143),  # as training raises it
    ],
)
def test_exit_statuses(capsys, monkeypatch, words, raised, status):
    def run(args):
        raise raised

    if raised is not None:
        monkeypatch.setattr("detectron2.cli.env.run", run)
    try:
        found = main(words)
    except SystemExit as e:
        found = e.code
    assert found == status and status in EXIT_STATUSES
    assert ("(--traceback shows where)" in capsys.readouterr().err) == (status == 1)
