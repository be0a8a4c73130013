"""Pages that are written from the code while the site is built: API, config keys, commands, models and data sets.

`mkdocs.yml` names this file as a hook. Nothing of what it makes is stored, so that it cannot become outdated.
`pages()` works without MkDocs.
"""

import argparse
import ast
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# page below `modules/`: (title, packages and modules on it). A module belongs to the longest name that fits.
API_PAGES = {
    "detectron2": ("detectron2", ("detectron2",)),
    "checkpoint": ("checkpoint", ("detectron2.checkpoint",)),
    "config": ("config", ("detectron2.config",)),
    "data": ("data", ("detectron2.data",)),
    "data_transforms": ("data.transforms", ("detectron2.data.transforms",)),
    "data_datasets": (
        "data.datasets",
        ("detectron2.data.datasets", "detectron2.data.formats", "detectron2.data.checks"),
    ),
    "distributed": ("distributed", ("detectron2.distributed",)),
    "engine": ("engine", ("detectron2.engine",)),
    "evaluation": ("evaluation", ("detectron2.evaluation",)),
    "export": ("export", ("detectron2.export",)),
    "inference": ("inference", ("detectron2.inference",)),
    "layers": ("layers", ("detectron2.layers",)),
    "model_zoo": ("model_zoo", ("detectron2.model_zoo",)),
    "modeling": ("modeling", ("detectron2.modeling",)),
    "projects": ("projects", ("detectron2.projects",)),
    "serving": ("serving", ("detectron2.serving",)),
    "solver": ("solver", ("detectron2.solver",)),
    "structures": ("structures", ("detectron2.structures",)),
    "tracking": ("tracking", ("detectron2.tracking",)),
    "utils": ("utils", ("detectron2.utils", "detectron2.visualization")),
}
_NOT_API = ("detectron2.cli", "detectron2.__main__")  # the command line has a page of its own

# Configs whose models were compared with those of the published system: outputs, losses and gradients.
COMPARED = frozenset({
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
    "COCO-Detection/fcos_R_50_FPN_1x.py",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_C4_1x.yaml",
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Cityscapes/mask_rcnn_R_50_FPN.yaml",
    "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml",
    "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml",
    "Misc/semantic_R_50_FPN_1x.yaml",
    "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
    "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml",
    "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py",
})  # fmt: skip

_FILES = {  # pages that are files of the repository
    "notes/architecture.md": "ARCHITECTURE.md",
    "notes/contributing.md": "CONTRIBUTING.md",
    "notes/changelog.md": "CHANGELOG.md",
}


# ---------------------------------------------------------------------------------------------------------------------
# API
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def public_names() -> dict[str, tuple[str, ...]]:
    """Return the public modules that have an `__all__`, and the names in it that are no modules."""
    import detectron2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of other packages
        found = {"detectron2": tuple(detectron2.__all__)}
        for info in pkgutil.walk_packages(detectron2.__path__, "detectron2."):
            is_private = any(part.startswith("_") for part in info.name.split("."))
            if not is_private and not info.name.startswith(_NOT_API):
                module = importlib.import_module(info.name)
                names = [n for n in getattr(module, "__all__", ()) if n[0] != "_"]
                found[info.name] = tuple(n for n in names if not inspect.ismodule(getattr(module, n)))
    return found


@functools.cache
def find_definition(module: str, name: str) -> str | None:
    """Follow the imports of a name to the module of this library that defines it; None if that is another library.

    >>> find_definition("detectron2.structures", "pairwise_iou_rotated")
    'detectron2.structures.rotated_boxes.pairwise_iou'
    """
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value)):
        value = inspect.unwrap(value)
        return f"{value.__module__}.{value.__qualname__}" if f"{value.__module__}.".startswith("detectron2.") else None
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(_file(module))):
        if isinstance(node, ast.ImportFrom):
            parent = (
                ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], ""]) if node.level else ""
            )
            source = f"{parent}{node.module or ''}".rstrip(".")
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find_definition(source, alias.name) if source.startswith("detectron2") else None
    if not _is_assigned(module, name):  # given by a module's `__getattr__`
        for other, names in public_names().items():
            if name in names and _is_assigned(other, name):
                return f"{other}.{name}"
    return f"{module}.{name}"


def _is_assigned(module: str, name: str) -> bool:
    return any(
        isinstance(leaf, ast.Name) and leaf.id == name and isinstance(leaf.ctx, ast.Store)
        for node in _tree(_file(module)).body
        for leaf in ast.walk(node)
    )


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def homes() -> dict[str, str]:
    """Return, for each definition that is public, the shortest path under which it is public."""
    found: dict[str, str] = {}
    for module, names in sorted(public_names().items(), key=lambda item: (item[0].count("."), item[0])):
        for name in names:
            found.setdefault(find_definition(module, name) or f"{module}.{name}", f"{module}.{name}")
    return found


def page_of(module: str) -> str:
    """Return the page of a module."""
    fitting = [
        (len(prefix), page)
        for page, (_, prefixes) in API_PAGES.items()
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(fitting)[1]


def api_page(page: str) -> str:
    """Write a page of the API: its modules, each with the names whose home it is."""
    title = API_PAGES[page][0]
    lines = [f"# {title if page == 'detectron2' else f'detectron2.{title}'}", ""]
    by_home = {home: definition for definition, home in homes().items()}
    for module, names in public_names().items():
        own = [name for name in names if f"{module}.{name}" in by_home]
        if page_of(module) != page or not own:
            continue
        doc = inspect.getdoc(importlib.import_module(module)) or ""
        lines += [f"## {module}", "", _without_examples(doc), ""]
        for name in own:
            lines += [*_entry(f"{module}.{name}", by_home[f"{module}.{name}"]), ""]
    return "\n".join(lines)


def _entry(home: str, definition: str) -> list[str]:
    module, _, name = home.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    heading = f"### {name} {{ #{home} }}"
    if find_definition(module, name) is None:
        place = f"{getattr(value, '__module__', type(value).__module__)}.{getattr(value, '__qualname__', name)}"
        return [heading, "", f"`{home}` is `{place}`."]
    if _is_definition(definition):
        path = definition
        return [f"::: {path}", "    options:", f"      heading: {name}", f"      toc_label: {name}"]
    about = about_value(value, definition)
    shown = f" `{value!r}`." if isinstance(value, (bool, int, float, str)) else ""
    return [heading, "", f"A `{type(value).__name__}`.{shown} {about}".rstrip()]


def _is_definition(definition: str) -> bool:
    """Whether a name is that of a class or function of the module, and no assignment."""
    module, _, name = definition.rpartition(".")
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name == name for node in ast.walk(_tree(_file(module))))


def _file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def about_value(value: Any, definition: str) -> str:
    """Return what stands below, behind or above the assignment of a value, else what its class of ours says."""
    module, _, name = definition.rpartition(".")
    if name == "__version__":
        return "The version of the library."
    if own := getattr(value, "__dict__", {}).get("__doc__"):  # of a registry
        return inspect.cleandoc(own)
    file = _file(module)
    body, lines = _tree(file).body, file.read_text(encoding="utf-8").splitlines()
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(leaf, ast.Name) and leaf.id == name for t in targets if t for leaf in ast.walk(t)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return inspect.cleandoc(str(following.value.value))
        comment = lines[node.lineno - 1].partition("  # ")[2]
        above = node.lineno - 2
        while not comment or lines[above + 1].startswith("#"):
            if not lines[above].startswith("# "):
                break
            comment = f"{lines[above][2:]} {comment}".strip()
            above -= 1
        if comment and not re.match(r"(type|pyright|noqa|-)", comment):
            return comment[0].upper() + comment[1:] + ("" if comment.endswith(".") else ".")
    is_ours = type(value).__module__.startswith("detectron2") and type(value).__name__.startswith("_")
    return (inspect.getdoc(type(value)) or "").partition("\n\n")[0] if is_ours else ""


def values() -> dict[str, tuple[Any, str]]:
    """Return the public names that are neither classes, functions nor of another library: value and definition."""
    found = {}
    for definition, home in homes().items():
        module, _, name = home.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        if find_definition(module, name) and not _is_definition(definition):
            found[home] = value, definition
    return found


def _without_examples(doc: str) -> str:
    """Return the text of a module as Markdown; consoles become blocks."""
    return re.sub(r"^(>>> .*(?:\n(?!\n).*)*)", r"```pycon\n\1\n```", doc, flags=re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [_row(*head), _row(*["---"] * len(head)), *(_row(*row) for row in rows), ""]


def config_page() -> str:
    """Write the page of all keys of YAML configs."""
    from detectron2.cli.config import find_readers
    from detectron2.config.key_meanings import config_keys

    def meaning(key: Any) -> str:
        parts = [_prose(key.meaning)]
        if key.requirement:
            parts.append(f"It must be {_prose(key.requirement)}.")
        files = dict.fromkeys(place.partition(":")[0].removeprefix("detectron2/") for place in find_readers(key.name))
        if files:
            shown = [f"`{file}`" for file in list(files)[:3]] + (["and others"] if len(files) > 3 else [])
            parts.append(f"<small>Read by {', '.join(shown)}.</small>")
        return " ".join(parts)

    texts = {
        "default": "Keys of `get_cfg()`: every config has them.",
        "optional": "Keys that a config may have beside these. A file, a command line or `merge_from_list` adds them.",
        "project": "Keys that the function named here adds to a config.",
    }
    lines = [
        "# Config keys",
        "",
        "Every key that a YAML config may have: its type and default, what it does, and the files of the library that"
        " read it. `detectron2 config explain KEY` says the same in a terminal. How configs are used is told in"
        " [YAML configs](../tutorials/configs.md).",
        "",
    ]
    keys = config_keys().values()
    for kind, text in texts.items():
        lines += [f"## {kind.title()} keys", "", text, ""]
        groups: dict[str, list[Any]] = {}
        for key in (k for k in keys if k.kind == kind):
            groups.setdefault(key.name.rpartition(".")[0] or "Top level", []).append(key)
        for group, members in groups.items():
            suffix = "" if kind == "default" else f" ({kind})"
            lines += [f"### {group}{suffix}", ""]
            adders = list(dict.fromkeys(key.adders[0] for key in members if key.adders))
            if adders:
                lines += ["Added by " + ", ".join(f"`{adder}`" for adder in adders) + ".", ""]
            rows = (
                (
                    f'<a id="{key.name}"></a>`{key.name.rpartition(".")[2]}`',
                    (f"`{key.default!r}`<br>" if key.is_default_known else "")
                    + (type(key.default).__name__ if key.default is not None else "any")
                    + (f", {key.unit}" if key.unit else ""),
                    meaning(key),
                )
                for key in members
            )
            lines += _table(("key", "default, type", "meaning"), rows)
    return "\n".join(lines)


def _prose(text: str) -> str:
    """Escape what Markdown would read, and set names of keys in the type of code."""
    text = text.replace("*", r"\*").replace("<", "&lt;")
    return re.sub(r"(?<![`\w])([A-Z][A-Z0-9_]{2,}(?:\.[A-Z0-9_\\*]+)+|detectron2(?:\.\w+)+)", r"`\1`", text).replace(
        r"\*`", "*`"
    )


def command_page() -> str:
    """Write the page of all commands and their options."""
    from detectron2.cli.arguments import EXIT_STATUSES, build_parser
    from detectron2.engine import default_argument_parser

    lines = [
        "# Commands and options",
        "",
        "Every command of `detectron2`, as `--help` shows it. [Command line](../tutorials/command_line.md) explains how"
        " they are used.",
        "",
    ]
    for name, parser in _subparsers(build_parser()).items():
        inner = _subparsers(parser)
        lines += [f"## {name}", "", parser.description or "", ""]
        if not inner:
            lines += _parser_text(f"detectron2 {name}", parser)
        for action, sub in inner.items():
            lines += [
                f"### {name} {action}",
                "",
                sub.description or "",
                "",
                *_parser_text(f"detectron2 {name} {action}", sub),
            ]
    lines += [
        "## Published scripts",
        "",
        "`tools/train_net.py`, `tools/lazyconfig_train_net.py`, `tools/plain_train_net.py` and the scripts of"
        " `projects/` take the arguments of `detectron2.engine.default_argument_parser`:",
        "",
        *_parser_text("train_net.py", default_argument_parser(epilog="")),
        "## Exit statuses",
        "",
        *_table(("status", "meaning"), ((str(status), text) for status, text in EXIT_STATUSES.items())),
    ]
    return "\n".join(lines)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def _parser_text(prog: str, parser: argparse.ArgumentParser) -> list[str]:
    parser.prog = prog
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=100)  # pyright: ignore
    usage = parser.format_usage().removeprefix("usage: ").replace("\n" + " " * len("usage: "), "\n")
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        metavar = action.metavar if action.metavar is not None else action.dest.upper()
        value = "" if action.nargs == 0 else " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
        if action.choices and action.metavar is None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        names = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{value}`"
        if action.option_strings and value:
            names += f" `{value}`"
        default = "" if action.default in (None, False, [], (), "", argparse.SUPPRESS) else f"`{action.default}`"
        text = (action.help or "") % {**vars(action), "prog": prog} if action.help else ""
        rows.append((names, _prose(text), default))
    return ["```text", usage.rstrip(), "```", "", *(_table(("option", "meaning", "default"), rows) if rows else [])]


def zoo_page() -> str:
    """Write the page of the models of the zoo."""
    from detectron2.model_zoo.published import list_models

    lines = [
        "# Model zoo",
        "",
        "The configs of the model zoo, and what is published about their weights: AP and PQ in percent on the"
        " validation split, seconds an image on one V100. `detectron2 zoo info NAME` says more about one,"
        " `detectron2 zoo download NAME` fetches its weights. Every name works in"
        " `model_zoo.get_config`, in `Predictor` and behind `--config-file`. [Which model](../tutorials/which_model.md)"
        " says what to take; how to go on from these weights is told in [training](../tutorials/training.md).",
        "",
        "The licence is that of the weights, as far as it is recorded; the configs have that of this library."
        " *Compared* models were run beside those of the published system: with the same weights, from a formula, both"
        " give the same outputs, losses and gradients. Where a line has no AP, none is published.",
        "",
    ]
    folders: dict[str, list[Any]] = {}
    for model in list_models():
        folders.setdefault(model.name.rpartition("/")[0], []).append(model)
    for folder, models in sorted(folders.items()):
        columns = [
            c
            for c in ("box AP", "mask AP", "keypoint AP", "PQ", "seconds per image")
            if any(c in m.results for m in models)
        ]
        rows = (
            (
                f"`{model.name.rpartition('/')[2]}`",
                model.task,
                *(str(model.results.get(column, "")) for column in columns),
                f"[weights]({model.url})" if model.url.startswith("https:") else f"`{model.url}`" * bool(model.url),
                (model.license_of_weights or "not recorded") if model.url else "",
                "yes" if model.name in COMPARED else "",
            )
            for model in models
        )
        head = ("config", "task", *columns, "weights", "licence", "compared")
        lines += [f"## {folder or 'Others'}", "", *_table(head, rows)]
    return "\n".join(lines)


def datasets_page() -> str:
    """Write the page of the built-in data sets: how their files are arranged, and what is known of each."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets.builtin import is_builtin

    before = os.environ.pop("DETECTRON2_DATASETS", None)
    try:
        rows = []
        for name in sorted(filter(is_builtin, DatasetCatalog.list())):
            meta = MetadataCatalog.get(name).as_dict()
            counts = [
                f"{len(meta[k])} {k.partition('_')[0].replace('thing', 'things')}"
                for k in ("thing_classes", "stuff_classes")
                if meta.get(k)
            ]
            places = [
                v
                for k, v in meta.items()
                if k.endswith(("_root", "_dir", "_json", "_file", "dirname")) and isinstance(v, str)
            ]
            files = "<br>".join(f"`{place.removeprefix('datasets/')}`" for place in places)
            rows.append((f"`{name}`", ", ".join(counts), f"`{meta.get('evaluator_type', '')}`", files))
    finally:
        if before is not None:
            os.environ["DETECTRON2_DATASETS"] = before
    text = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    table = _table(("name", "classes", "evaluator", "files below `$DETECTRON2_DATASETS`"), rows)
    return "\n".join([text.rstrip(), "", "## All names", "", *table])


def repository_page(name: str) -> str:
    """Return a Markdown file of the repository as a page: links to files that are no pages become plain text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\[([^\]]+)\]\(docs/([^)]+)\)", r"[\1](../\2)", text)
    for page, file in _FILES.items():
        text = text.replace(f"({file})", f"({Path(page).name})")
    return text


def pages() -> dict[str, Callable[[], str]]:
    """Return the pages that are made, by their path below `docs/`, each with the function that writes it."""
    return {
        **{f"modules/{page}.md": functools.partial(api_page, page) for page in API_PAGES},
        "modules/config_keys.md": config_page,
        "modules/commands.md": command_page,
        "modules/zoo.md": zoo_page,
        "tutorials/builtin_datasets.md": datasets_page,
        **{page: functools.partial(repository_page, name) for page, name in _FILES.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# MkDocs calls these
# ---------------------------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Link the repository that this checkout comes from, and show the version."""
    import detectron2

    config["extra"]["version_text"] = detectron2.__version__
    config["copyright"] = f"Version {detectron2.__version__}, Apache-2.0"
    if not config["repo_url"]:
        found = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
        if found.stdout.startswith("https://"):
            config["repo_url"] = found.stdout.strip().removesuffix(".git")
            config["repo_name"] = "Source"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for path, write in pages().items():
        files.append(File.generated(config, path, content=write()))
    return files
