"""`detectron2 completion`: a script that completes commands, options, files, config names and keys in a shell.

source <(detectron2 completion bash)                                              # in ~/.bashrc
detectron2 completion zsh > ~/.zfunc/_detectron2                                  # a folder of fpath
detectron2 completion fish > ~/.config/fish/completions/detectron2.fish
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.cli.arguments import EXPORT_FORMATS, build_parser

__all__ = ["completion_script"]

_FILES = ("FILE", "JSON", "PATH", "IMAGE", "PREDICTIONS", "FILE.png", "OUT.json", "RUN", "DATA", "SRC", "DST")
_FOLDERS = ("DIR", "IMAGES")
_CONFIGS = ("CONFIG", "A", "B")  # what each of them is completed with; config files and their names in the model zoo

# Functions that complete the names in a list together with files, in the language of each shell.
_PREAMBLES = {
    "bash": """
_detectron2_configs() {{
  compgen -W "{configs}" -- "$1"
  compgen -f -- "$1"
}}
_detectron2_models() {{
  compgen -W "{configs}" -- "$1"
}}
_detectron2_keys() {{
  compgen -W "{keys}" -- "$1"
}}
""",
    "zsh": """
_detectron2_configs() {{
  _alternative 'models:name in the model zoo:({configs})' 'files:file:_files'
}}
_detectron2_models() {{
  _alternative 'models:name in the model zoo:({configs})'
}}
_detectron2_keys() {{
  _alternative 'keys:config key:({keys})'
}}
""",
    "fish": """
function _detectron2_configs
  string split ' ' -- '{configs}'
  __fish_complete_path (commandline -ct)
end
function _detectron2_models
  string split ' ' -- '{configs}'
end
function _detectron2_keys
  string split ' ' -- '{keys}'
end
""",
}


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(completion_script(args.shell) + "\n")
    return 0


def completion_script(shell: str) -> str:
    """Return the script for `bash`, `zsh` or `fish`; it names the configs of the model zoo and the config keys."""
    import shtab

    parser = build_parser()
    for action in _all_actions(parser):
        if completer := _completer(action):
            action.complete = completer  # type: ignore[attr-defined]
        if "--format" in action.option_strings:  # whose choices are left to export_model
            action.choices = EXPORT_FORMATS
    preamble = _PREAMBLES[shell].format(configs=" ".join(_config_names()), keys=" ".join(_key_names()))
    return shtab.complete(parser, shell, preamble={shell: preamble})  # type: ignore[arg-type]


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of the commands in it, without those commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _all_actions(inner)
        else:
            yield action


def _completer(action: argparse.Action) -> Any:
    """Return what shtab takes as the way to complete an argument: a text for each shell, or nothing."""
    import shtab

    metavars = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    if action.choices or action.nargs == 0:
        return None
    if "--config-file" in action.option_strings or action.metavar in _CONFIGS:
        return _function("_detectron2_configs")
    if action.dest == "name" and not action.option_strings:
        return _function("_detectron2_models")
    if action.dest in ("opts", "key"):
        return _function("_detectron2_keys")
    if any(name in (*_FILES, "ROOT") for name in metavars):
        return shtab.FILE
    return shtab.DIRECTORY if any(name in _FOLDERS for name in metavars) else None


def _function(name: str) -> dict[str, str]:
    return {"bash": name, "zsh": name, "fish": f"({name})"}


def _config_names() -> list[str]:
    """Return the names of the configs of the model zoo, without importing what reads them."""
    spec = importlib.util.find_spec("detectron2.model_zoo")
    assert spec is not None and spec.origin is not None
    here = Path(spec.origin).parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parents[1] / "configs"
    names = [p.relative_to(folder).as_posix() for p in folder.glob("*/*.*") if p.suffix in (".yaml", ".py")]
    return sorted(n for n in names if not n.startswith(("common/", "quick_schedules/")) and "/Base-" not in n)


def _key_names() -> list[str]:
    """Return the full names of the keys of YAML configs, without importing what reads them."""
    import yaml

    spec = importlib.util.find_spec("detectron2.config")
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).with_name("key_meanings.yaml").read_text(encoding="utf-8")
    groups = yaml.safe_load(text)
    return [f"{group}.{key}".lstrip(".") for group, keys in groups.items() for key in keys]
