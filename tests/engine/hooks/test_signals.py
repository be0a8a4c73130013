"""Signals that end training."""

import pytest

from detectron2.engine.hooks.signals import command_to_continue


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["t.py"], ["python", "t.py"], "python t.py --resume"),
        (["t.py", "--config-file", "a b.yaml", "SEED", "1"], ["python", "-u", "t.py", "--config-file", "a b.yaml",
         "SEED", "1"], "python -u t.py --resume --config-file 'a b.yaml' SEED 1"),
        (["t.py", "--resume"], ["python", "t.py", "--resume"], "python t.py --resume"),
        (["/bin/detectron2", "train", "a.yaml"], ["python", "/bin/detectron2", "train", "a.yaml"],
         "python /bin/detectron2 train --resume a.yaml"),
        (["/x/mod.py", "-a"], ["python", "-m", "pkg.mod", "-a"], "python -m pkg.mod --resume -a"),
        (["t.py", "-a"], ["python", "-c", "from multiprocessing.spawn import spawn_main"], "python t.py --resume -a"),
    ],
)  # fmt: skip
def test_command_to_continue(argv, original, expected):
    assert command_to_continue(argv, original) == expected
