"""Call everything that weights may build, with hostile arguments, and print what the interpreter's audit hook saw.

Prints the number of classes and functions, the number of calls that succeeded, and one line for each event: a process,
a socket, a file opened for writing or changed, code executed.
"""

import importlib
import inspect
import pkgutil
import sys
import warnings
from typing import Any

import torch
import torchvision  # noqa: F401

from detectron2.config import trusted_calls
from detectron2.config.instantiate import instantiate
from detectron2.config.trusted_calls import ForeignCallError, refuse_foreign_calls
from detectron2.utils.registry import locate

LOCATE = "detectron2.utils.registry.locate"
ARGUMENTS = [
    "/tmp/detectron2-attack",
    "data:application/octet-stream;base64,AAAA",
    1,
    [1],
    {"a": "x"},
    {"_target_": LOCATE, "name": "torch.nn.Identity"},
    {"_target_": "torch.nn.Identity"},
    {"_target_": "detectron2.config.lazy_text.make_partial", "func": {"_target_": LOCATE, "name": "torch.nn.ReLU"}},
]
MODULES = ("subprocess", "socket", "urllib", "shutil", "ftplib", "smtplib", "webbrowser", "ctypes")
EVENTS = {"exec", "os.exec", "os.fork", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.system"}


def allowed_names() -> list[str]:
    """Names of all that may be called, found by walking the packages of the table."""
    names = {*trusted_calls._OBJECTS}
    for root in trusted_calls._MODULES_OF_CLASSES:
        package = importlib.import_module(root)
        modules = [root, *(m.name for m in pkgutil.walk_packages(getattr(package, "__path__", []), f"{root}."))]
        for module in modules:
            if any(part.startswith("_") for part in module.split(".")) or module.startswith("torch.nn.utils"):
                continue
            for name, value in vars(importlib.import_module(module)).items():
                if inspect.isclass(value) and value.__module__ == module:
                    try:
                        refuse_foreign_calls({"_target_": f"{module}.{name}"}, "x")
                    except ForeignCallError:
                        continue
                    names.add(f"{module}.{name}")
    return sorted(names)


def parameters(name: str) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        return [p.name for p in inspect.signature(locate(name)).parameters.values() if p.kind in kinds]
    except ValueError:  # a function of PyTorch written in C++
        return ["input"]


def main() -> None:
    warnings.simplefilter("ignore")
    names = allowed_names()
    for name in names:  # what is imported at the first use of an object is none of its doing
        parameters(name)
    seen = []

    def watch(event: str, args: Any) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in EVENTS or event.partition(".")[0] in MODULES:
            seen.append(f"{event} {args}"[:300])

    sys.addaudithook(watch)
    built = 0
    for name in names:
        for value in ARGUMENTS:
            call = {"_target_": name, **dict.fromkeys(parameters(name), value)}
            refuse_foreign_calls(call, "x")
            try:
                with torch.device("meta"):  # large models at no cost
                    instantiate(call)
                built += 1
            except Exception:  # most calls make no sense
                continue
    print(len(names), built, *seen, sep="\n")


if __name__ == "__main__":
    main()
