"""What to say about checkpoints that are not where, or not what, they should be."""

import os
import re
from collections.abc import Iterable

__all__ = ["OtherModelError", "how_to_resume_otherwise", "unmarked_checkpoints", "what_is_beside"]

_NUMBERED = re.compile(r"model_\d{7,}\.(pth|safetensors)")


class OtherModelError(ValueError):
    """A training cannot be continued, since the model is another one."""


def _numbered(paths: Iterable[str]) -> list[str]:
    """Return the last three names of periodic checkpoints."""
    names = sorted(os.path.basename(path) for path in paths)
    return [name for name in names if _NUMBERED.fullmatch(name)][-3:]


def unmarked_checkpoints(folder: str, paths: Iterable[str]) -> str:
    """Warn of a folder with checkpoints none of which is marked as the last one.

    Args:
        folder: the folder.
        paths: the checkpoints in it.

    Returns:
        A text; empty where there is nothing to warn of.
    """
    names = _numbered(paths)
    if not names:
        return ""
    last = os.path.join(folder, "last_checkpoint")
    return (
        f"{folder} holds checkpoints ({', '.join(names)}), but no file last_checkpoint, which names the one to go on "
        f"from: this training starts from the beginning. To continue instead: echo {names[-1]} > {last}"
    )


def how_to_resume_otherwise(last: str, paths: Iterable[str]) -> str:
    """Say why a checkpoint was read, and which others there are.

    Args:
        last: the checkpoint that could not be continued from.
        paths: the checkpoints in its folder.

    Returns:
        A text.
    """
    names = _numbered(path for path in paths if path != last)
    text = f"It was to be resumed, since {os.path.join(os.path.dirname(last), 'last_checkpoint')} names it"
    return f"{text}; others, which could be named there instead, are {', '.join(names)}." if names else f"{text}."


def what_is_beside(path: str) -> str:
    """Return what the folder of a file that is missing holds."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist"
    others = sorted(name for name in os.listdir(folder) if name.endswith((".pth", ".pkl", ".safetensors")))
    return f"the folder {folder} holds {', '.join(others)}" if others else f"the folder {folder} holds no checkpoint"
