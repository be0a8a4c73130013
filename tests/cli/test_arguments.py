"""The arguments of all commands: any order, mistakes under the right usage, no slow import before they are known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.cli import arguments
from detectron2.cli.arguments import parse

ROOT = Path(arguments.__file__).resolve().parents[2]
COMMANDS = ["demo", "train", "eval", "predict", "export", "data", "analyze", "plot", "env"]


def fresh(code, *argv, path=ROOT):
    """The result of a new process that runs code with arguments."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True, timeout=120)


def test_options_and_changes_in_any_order():
    words = ["A.B", "3", "--output", "oo", "C", "0.1", "--resume", "D", "-5", "--config-file", "x.yaml", "E", "()"]
    for command in ("train", "eval"):
        args = parse([command, *(w for w in words if w != "--resume" or command == "train")])
        assert args.opts == ["A.B", "3", "C", "0.1", "D", "-5", "E", "()"]
        assert (args.command, args.output, args.config_file) == (command, "oo", "x.yaml")
    args = parse(["demo", "A.B", "3", "--iters", "7", "C", "4"])
    assert (args.iters, args.opts) == (7, ["A.B", "3", "C", "4"])
    args = parse(["predict", "a.png", "--output", "D", "A.B", "3", "--confidence", "0.2", "b.png"])
    assert (args.output, args.confidence, args.image) == ("D", 0.2, ["a.png", "A.B", "3", "b.png"])
    args = parse(["data", "check", "a", "--num-classes", "3", "b", "--json", "c"])
    assert (args.command, args.action, args.source, args.num_classes) == ("data", "check", ["a", "b", "c"], 3)
    args = parse(["data", "convert", "src", "--to", "voc", "dst"])
    assert (args.source, args.target, args.target_format) == ("src", "dst", "voc")
    args = parse(
        ["export", "A.B", "--format", "onnx", "3", "--output", "o", "--dynamic", "size,batch", "--size", "8", "9"]
    )
    assert (args.opts, args.dynamic, args.size, args.outputs) == (["A.B", "3"], ("size", "batch"), [8, 9], "padded")
    assert parse(["export", "--format", "pt2", "--output", "o", "--dynamic", "none"]).dynamic == ()
    args = parse(["plot", "a", "--smooth", "3", "b"])
    assert (args.runs, args.smooth) == (["a", "b"], 3)


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        (["train"], "detectron2 train", "--config-file"),
        (["train", "--config-file", "x", "--no-such", "3"], "detectron2 train", "unrecognized arguments: --no-such"),
        (["predict", "a.png", "--confidence", "high"], "detectron2 predict", "invalid float value: 'high'"),
        (["export", "--output", "x"], "detectron2 export", "--format"),
        (["export", "--precision", "fp4", "--output", "x"], "detectron2 export", "invalid choice: 'fp4'"),
        (["export", "--dynamic", "x"], "detectron2 export", "expected batch, size, both with a comma, or none"),
        (["data"], "detectron2 data", "ACTION"),
        (["data", "chek"], "detectron2 data", "invalid choice: 'chek'"),
        (["data", "check", "x", "--files", "some"], "detectron2 data check", "expected all, none or a number"),
        (["data", "show"], "detectron2 data show", "DATA"),
        (["analyze"], "detectron2 analyze", "PREDICTIONS"),
        (["plot"], "detectron2 plot", "RUN"),
        (["env", "x"], "detectron2 env", "unrecognized arguments: x"),
        (["trian"], "detectron2", "invalid choice: 'trian'"),
    ],
)
def test_a_mistake_shows_the_usage_of_its_command(capsys, words, usage, message):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith(f"usage: {usage} [-h]") and message in err


def test_help_and_mistakes_import_nothing_slow():
    code = """
import sys
from detectron2.cli import main
for words in LINES:
    try:
        main(words)
    except SystemExit:
        pass
slow = {"torch", "numpy", "PIL", "matplotlib", "omegaconf", "fvcore"} & set(sys.modules)
assert not slow, slow
"""
    parts = [*COMMANDS, *(f"data {action}" for action in ("check", "show", "convert"))]
    lines = [[], ["--help"], ["--version"], ["x"], *([*p.split(), w] for p in parts for w in ("--help", "--no-such"))]
    done = fresh(code.replace("LINES", repr(lines)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: detectron2") == 2 + len(parts)
    assert done.stderr.count(": error: ") == 1 + len(parts)


def test_ctrl_c_during_the_imports(tmp_path):
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n"
    )
    code = "import sys; from detectron2.cli import main; sys.exit(main())"
    done = fresh(code, "train", "--config-file", "x.yaml", path=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")


def test_choices_are_those_of_the_library():
    from detectron2.data.formats.annotated_images import FORMATS
    from detectron2.evaluation.analysis.inputs import TASKS

    assert tuple(FORMATS) == arguments._FORMATS
    assert tuple(TASKS) == arguments._TASKS
