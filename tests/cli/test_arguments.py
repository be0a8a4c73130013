"""The arguments of all commands: any order, mistakes under the right usage, no slow import before they are known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.cli import arguments, main
from detectron2.cli.arguments import parse

ROOT = Path(arguments.__file__).resolve().parents[2]
COMMANDS = [
    "demo",
    "train",
    "eval",
    "predict",
    "benchmark",
    "export",
    "push",
    "serve",
    "data",
    "analyze",
    "plot",
    "config",
    "zoo",
    "env",
    "completion",
]
ACTIONS = {
    "data": ["check", "show", "convert", "shard"],
    "config": ["show", "diff", "explain"],
    "zoo": ["list", "info", "download"],
}


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


@pytest.mark.parametrize("number", ["-5", "-0.5", "-.5", "-1e-3", "-1E+3", "-2.e5", "-inf", "-.inf", "-1_000"])
def test_negative_numbers_and_lists_are_values(number, capsys):
    words = ["SOLVER.BASE_LR", number, "--config-file", "x", "SOLVER.STEPS", "[-1, 2]", "INPUT.CROP.SIZE", "(-1,)"]
    args = parse(["train", *words])
    assert args.opts == ["SOLVER.BASE_LR", number, "SOLVER.STEPS", "[-1, 2]", "INPUT.CROP.SIZE", "(-1,)"]
    assert parse(["config", "show", "a.py", "x.y=-1", "--changed", "KEY", number]).opts == ["x.y=-1", "KEY", number]
    assert parse(["data", "check", "a", "--opts", "KEY", number, "--json"]).opts == ["KEY", number]
    if number[1] != "." or number[2] != "i":  # which YAML writes for infinity
        with pytest.raises(SystemExit):
            parse(["export", "--format", "onnx", "--output", "o", "--allow-loss", number])
        assert f"argument --allow-loss: expected a number of at least 0, not {number!r}" in capsys.readouterr().err


def test_words_of_groups():
    args = parse(["config", "diff", "a", "b"])
    assert (args.command, args.action, args.first, args.second) == ("config", "diff", "a", "b")
    assert parse(["config", "explain"]).key == []
    args = parse(["zoo", "list", "mask", "--json", "R_50"])
    assert (args.command, args.action, args.filter, args.json) == ("zoo", "list", ["mask", "R_50"], True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "a.png", "--confidense", "0.3"], "--confidense 0.3 (did you mean --confidence?)"),
        (["predict", "a.png", "--confidense=0.3"], "--confidense=0.3 (did you mean --confidence?)"),
        (["train", "--config-file", "x", "--outptu", "y", "--resum_"], "(did you mean --output, --resume?)"),
        (["predict", "a.png", "--threshold", "0.3"], "--threshold 0.3 (did you mean --confidence?)"),
        (["predict", "a.png", "--score", "0.3"], "--score 0.3 (did you mean --confidence?)"),
        (["analyze", "a.json", "--threshold", "0.3"], "--threshold 0.3 (did you mean --score?)"),
        (["trian"], "(did you mean train?)"),
        (["data", "chek"], "(did you mean check?)"),
        (["completion", "bsh"], "(did you mean bash?)"),
    ],
)
def test_the_nearest_word(capsys, words, message):
    with pytest.raises(SystemExit):
        parse(words)
    assert capsys.readouterr().err.rstrip().endswith(message)


def test_no_nearest_word(capsys):
    with pytest.raises(SystemExit):
        parse(["env", "--zzzzzz"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        (["train"], "detectron2 train", "--config-file"),
        (["train", "--config-file", "x", "--no-such", "3"], "detectron2 train", "unrecognized arguments: --no-such"),
        (["predict", "a", "--confidence", "high"], "detectron2 predict", "expected a number from 0 to 1, not 'high'"),
        (
            ["predict", "a", "--overlap", "-0.5"],
            "detectron2 predict",
            "--overlap: expected a number from 0 to 1, not '-0.5'",
        ),
        (["benchmark", "--batch", "0"], "detectron2 benchmark", "expected a whole number of at least 1, not '0'"),
        (["analyze", "a", "--iou", "50"], "detectron2 analyze", "--iou: expected a number from 0 to 1, not '50'"),
        (["analyze", "a", "--score", "nan"], "detectron2 analyze", "--score: expected a number from 0 to 1, not 'nan'"),
        (["export", "--output", "x"], "detectron2 export", "--format"),
        (["export", "--precision", "fp4", "--output", "x"], "detectron2 export", "invalid choice: 'fp4'"),
        (["export", "--dynamic", "x"], "detectron2 export", "expected batch, size, both with a comma, or none"),
        (["serve", "--port", "70000"], "detectron2 serve", "--port: expected a number from 0 to 65535, not '70000'"),
        (["serve", "--window", "-1"], "detectron2 serve", "--window: expected a number of at least 0, not '-1'"),
        (["serve", "--timeout", "0"], "detectron2 serve", "--timeout: expected a number above 0, not '0'"),
        (["serve", "--max-requests", "0"], "detectron2 serve", "--max-requests: expected a whole number of at least 1"),
        (["data"], "detectron2 data", "ACTION"),
        (["data", "chek"], "detectron2 data", "invalid choice: 'chek'"),
        (["data", "check", "x", "--files", "some"], "detectron2 data check", "expected all, none or a number"),
        (["data", "show"], "detectron2 data show", "DATA"),
        (["analyze"], "detectron2 analyze", "PREDICTIONS"),
        (["plot"], "detectron2 plot", "RUN"),
        (["env", "x"], "detectron2 env", "unrecognized arguments: x"),
        (["trian"], "detectron2", "invalid choice: 'trian'"),
        (["config", "shw", "x"], "detectron2 config", "invalid choice: 'shw'"),
        (["config", "diff", "x"], "detectron2 config diff", "B"),
        (["zoo", "info"], "detectron2 zoo info", "NAME"),
        (["completion", "csh"], "detectron2 completion", "invalid choice: 'csh'"),
    ],
)
def test_a_mistake_shows_the_usage_of_its_command(capsys, words, usage, message):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith(f"usage: {usage} [-h]") and message in err


def _all_commands() -> list[list[str]]:
    groups = {name: actions for name, (_, actions) in arguments._GROUPS.items()}
    return [[name, *rest] for name in arguments._COMMANDS for rest in ([[a] for a in groups.get(name, ())] or [[]])]


@pytest.mark.parametrize("words", _all_commands(), ids=" ".join)
def test_an_unknown_option_of_any_command_is_status_2(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--no-such-option"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(f"usage: detectron2 {' '.join(words)} [-h]")
    assert "--no-such-option" in err or "are required" in err


def test_help_and_mistakes_import_nothing_slow():
    code = """
import sys
from detectron2.cli import main
for words in LINES:
    try:
        main(words)
    except SystemExit:
        pass
slow = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "omegaconf", "fvcore", "iopath", "yaml", "yacs", "shtab"}
slow |= {"hydra", "pycocotools", "hotcoco", "tqdm", "tabulate", "termcolor", "tensorboard", "importlib.metadata"}
assert not slow & set(sys.modules), slow & set(sys.modules)
ours = {name for name in sys.modules if name.startswith("detectron2")}
assert ours == {f"detectron2{name}" for name in ("", *USED)}
"""
    parts = [*COMMANDS, *(f"{group} {action}" for group, actions in ACTIONS.items() for action in actions)]
    lines = [[], ["--help"], ["--version"], ["x"], *([*p.split(), w] for p in parts for w in ("--help", "--no-such"))]
    used = (".cli", ".cli.arguments", ".utils", ".utils.collector", ".utils.terminal")
    done = fresh(code.replace("LINES", repr(lines)).replace("USED", repr(used)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: detectron2") == 2 + len(parts)
    assert done.stderr.count(": error: ") == 1 + len(parts)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(("words", "status"), [([], 2), (["--version"], 0), (["--help"], 0), (["no"], 2)])
def test_the_caller_has_closed_the_output(words, status):
    program = [sys.executable, "-m", "detectron2", *words]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr


def test_ctrl_c_during_the_imports(tmp_path):
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n"
    )
    code = "import sys; from detectron2.cli import main; sys.exit(main())"
    done = fresh(code, "train", "--config-file", "x.yaml", path=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")


def test_only_a_program_of_its_own_exempts_its_imports_from_collection():
    code = """
import gc, sys
from detectron2.cli import main
assert main(["completion", "bash"]) == 0
assert gc.isenabled() and gc.get_freeze_count() == 0
sys.argv = ["detectron2", "completion", "bash"]
assert main() == 0
assert gc.isenabled() and gc.get_freeze_count() > 1000
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr


def test_choices_are_those_of_the_library():
    from detectron2.data.formats.annotated_images import FORMATS
    from detectron2.evaluation.analysis.inputs import TASKS

    assert tuple(FORMATS) == arguments._FORMATS
    assert tuple(TASKS) == arguments._TASKS


def test_every_command_has_a_module():
    assert list(arguments._COMMANDS) == COMMANDS
    assert {name: list(actions) for name, (_, actions) in arguments._GROUPS.items()} == ACTIONS
    folder = Path(arguments.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in COMMANDS)


def test_exit_statuses_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert list(arguments.EXIT_STATUSES) == [0, 1, 2, 130, 141, 143]
    for status, meaning in arguments.EXIT_STATUSES.items():
        assert f"{status}: {meaning}" in text
