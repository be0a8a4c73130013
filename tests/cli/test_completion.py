"""`detectron2 completion`: the scripts complete commands, options, files, config names and keys in real shells."""

import os
import shutil
import subprocess

import pytest

from detectron2.cli import arguments
from detectron2.cli.arguments import build_parser
from detectron2.cli.completion import _config_names, _key_names, completion_script
from detectron2.config.key_meanings import read_meanings
from detectron2.model_zoo.published import list_models

KEYPOINT_CONFIGS = {
    "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
    "COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x.yaml",
}
CASES = [
    (["tr"], {"train"}),
    (["train", "--conf"], {"--config-file"}),
    (["train", "--config-file", "COCO-Key"], KEYPOINT_CONFIGS),
    (["train", "--config-file", "ow"], {"own.yaml"}),
    (["train", "--config-file", "x.yaml", "SOLVER.BASE_"], {"SOLVER.BASE_LR", "SOLVER.BASE_LR_END"}),
    (["config", "expl"], {"explain"}),
    (["config", "explain", "MODEL.RPN.NM"], {"MODEL.RPN.NMS_THRESH"}),
    (["zoo", "download", "COCO-Key"], KEYPOINT_CONFIGS),
    (["export", "--format", "on"], {"onnx"}),
    (["predict", "ph"], {"photo.png"}),
    (["completion", "z"], {"zsh"}),
]
# Calls the function that completes, as bash does, with the words given to the script.
BASH = """
source "$1"; shift
words=(detectron2 "$@")
COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMP_LINE="${words[*]}" COMP_POINT=${#COMP_LINE}
spec=$(complete -p detectron2); name=${spec##*-F }; name=${name%% *}
$name detectron2 "${words[COMP_CWORD]}" "${words[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with the script of each shell, and with two files."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / f"script.{shell}").write_text(completion_script(shell))
    (folder / "own.yaml").touch()
    (folder / "photo.png").touch()
    return folder


def run(folder, *words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]} here")
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash(scripts, words, expected):
    out = run(scripts, "bash", "--norc", "-c", BASH, "bash", str(scripts / "script.bash"), *words)
    assert set(out.split()) == expected


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_fish(scripts, words, expected):
    line = " ".join(["detectron2", *words])
    (scripts / "detectron2").write_text("#!/bin/sh\n")
    (scripts / "detectron2").chmod(0o755)
    code = f"set -x PATH {scripts} $PATH; source {scripts / 'script.fish'}; complete -C '{line}'"
    out = run(scripts, "fish", "--no-config", "-c", code)
    assert {row.partition("\t")[0] for row in out.splitlines()} == expected


def test_zsh_accepts_the_script(scripts):
    run(scripts, "zsh", "-f", "-n", str(scripts / "script.zsh"))
    out = run(
        scripts,
        "zsh",
        "-f",
        "-c",
        f'autoload -U compinit; compinit -u -D; eval "$(<{scripts / "script.zsh"})"; echo $_comps[detectron2]',
    )
    assert out.split() == ["_shtab_detectron2"]
    text = (scripts / "script.zsh").read_text()
    assert text.startswith("#compdef detectron2") and "SOLVER.BASE_LR_END" in text


def test_one_parser_has_all_commands():
    def commands(parser):
        return next(action.choices for action in parser._actions if action.dest in ("command", "action"))

    found = commands(build_parser())
    assert list(found) == list(arguments._COMMANDS)
    for name, (_, actions) in arguments._GROUPS.items():
        assert list(commands(found[name])) == list(actions)
    assert "--config-file" in found["train"].format_help()


def test_names_are_those_that_the_library_reads():
    assert _config_names() == sorted(m.name for m in list_models() if not m.name.startswith("quick_schedules/"))
    assert _key_names() == list(read_meanings())


def test_command(command):
    status, out, _ = command("completion", "bash")
    assert status == 0 and "-F _shtab_detectron2 detectron2" in out
