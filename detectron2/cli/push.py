"""`detectron2 push`: write a trained model as a folder that others can use, and send it to the Hugging Face hub.

detectron2 push --weights output/model_final.pth --licence apache-2.0 --folder my_model
detectron2 push --weights output/model_final.pth --licence apache-2.0 --to OWNER/NAME --private

The folder holds `model.safetensors`, with config and class names but without training state, and `README.md`, the model
card. `Predictor(FOLDER)` and, from the hub, `Predictor("hf://OWNER/NAME")` read it. Nothing is sent without `--to`.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer, read_description
from detectron2.checkpoint.description import dataset_metadata, installed_versions
from detectron2.cli.common import load_chosen_config, register_datasets
from detectron2.config import CfgNode
from detectron2.inference.loading import dataset_names, load_model
from detectron2.utils.file_io import is_offline
from detectron2.utils.hub_files import MODEL_FILE

__all__ = ["model_card", "without_local_weights"]

_MOST_CLASSES = 100  # that a card lists
# What the hub calls a task; the first key of the metadata that is there decides.
_TASKS = (
    ("keypoint_names", "keypoint-detection"),
    ("stuff_classes", "image-segmentation"),
    ("thing_classes", "object-detection"),
)


def run(args: argparse.Namespace) -> int:
    """Write the folder, and send it if `--to` is given."""
    _check(args)
    register_datasets(args)
    args.device = "cpu"
    cfg = load_chosen_config(args, args.opts)
    weights = args.weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.get("init_checkpoint", ""))
    description = _description(cfg, args, weights)
    metrics = _metrics(weights, description)
    model, _ = load_model(cfg, weights)  # an error if they do not fill the model
    target = Path(args.folder) if args.folder else None
    with tempfile.TemporaryDirectory(dir=_parent(target)) as scratch:
        folder = Path(scratch, "model")
        checkpointer = DetectionCheckpointer(model, str(folder), save_to_disk=True)
        checkpointer.file_format = "safetensors"
        checkpointer.describe = description.to_plain
        checkpointer.save_aside(Path(MODEL_FILE).stem)
        name = args.to or (target.resolve().name if target else "")
        card = model_card(name, args.licence, description, metrics, source=f"hf://{args.to}" if args.to else name)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if target is not None:  # whole before anything is sent, which may fail
            if target.is_dir():
                target.rmdir()  # it is empty
            os.replace(folder, target)
            sys.stdout.write(f"Folder: {target}\n")
        if args.to:
            url = _upload(target or folder, args.to, args.private, is_kept=target is not None)
            sys.stdout.write(f"Sent:   {url}\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot end well before anything is loaded."""
    if not args.folder and not args.to:
        raise ValueError("Nowhere to put the model: give --folder DIR, or --to OWNER/NAME, or both.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", args.licence):
        raise ValueError(
            "--licence is an identifier of SPDX, such as apache-2.0, cc-by-4.0 or mit, or 'other'; "
            f"got {args.licence!r}."
        )
    if args.folder and os.path.exists(args.folder) and (not os.path.isdir(args.folder) or os.listdir(args.folder)):
        raise ValueError(f"--folder {args.folder} exists already and is not an empty folder; give another.")
    if not args.to:
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.to):
        raise ValueError(f"--to is OWNER/NAME on the Hugging Face hub; got {args.to!r}.")
    if is_offline():
        raise ValueError("--to needs the network, which DETECTRON2_OFFLINE or HF_HUB_OFFLINE forbids; give --folder.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError("--to needs the package huggingface_hub: pip install 'detectron2[hub]'")


def _parent(target: Path | None) -> str | None:
    """The folder in which the new one is made, so that it moves to its name at once."""
    if target is None:
        return None
    parent = target.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    return str(parent)


def _description(cfg: Any, args: argparse.Namespace, weights: str) -> CheckpointDescription:
    """What the weights say about themselves; of others what the config says."""
    found = read_description(weights) if weights else None
    if found is not None and found.config and not args.config_file and not args.opts:
        return replace(found, config=without_local_weights(found.config, found.config_kind))
    if not isinstance(cfg, CfgNode):
        raise ValueError(
            f"{weights or 'The config'}: a model with a LazyConfig is pushed as its training saved it, with the config "
            "in the checkpoint; leave out --config-file and changes."
        )
    own = cfg.clone()
    own.defrost()
    own.MODEL.WEIGHTS, own.OUTPUT_DIR = "", "./output"  # places of this machine
    metadata = found.metadata if found is not None else {}
    return CheckpointDescription(
        config=own.dump(),
        metadata=metadata or dataset_metadata([*dataset_names(cfg, "test"), *dataset_names(cfg, "train")]),
        image_format=cfg.INPUT.FORMAT,
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        pixel_std=list(cfg.MODEL.PIXEL_STD),
        versions=installed_versions(),
    )


def without_local_weights(config: str, kind: str) -> str:
    """Remove from a config the path of the weights that training started from, which is one of somebody's machine.

    Args:
        config: YAML text.
        kind: `"yaml"` or `"lazy"`, as in `CheckpointDescription`.

    Returns:
        The text; unchanged where there is no such path, or where it is an address.

    Example:
        >>> without_local_weights("MODEL: {DEVICE: cpu, WEIGHTS: /home/me/a.pth}", "yaml")
        "MODEL:\\n  DEVICE: cpu\\n  WEIGHTS: ''\\n"
    """
    section, key = ("MODEL", "WEIGHTS") if kind == "yaml" else ("train", "init_checkpoint")
    content = yaml.safe_load(config)
    place = content.get(section) if isinstance(content, dict) else None
    if not isinstance(place, dict) or not place.get(key) or "://" in str(place[key]):
        return config
    place[key] = ""
    return yaml.safe_dump(content, sort_keys=False)


def _metrics(weights: str, description: CheckpointDescription) -> dict[str, float]:
    """The results that `detectron2 eval` left near the weights, else those in the weights; flat names."""
    beside = Path(os.path.dirname(weights))
    places = [] if "://" in weights else [beside / "eval" / "results.json", beside / "results.json"]
    for path in places:
        if path.is_file():
            try:
                return dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}); run 'detectron2 eval' again, or move it.") from error
    return dict(_flat(description.metrics))


def _flat(results: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(results, Mapping):
        for key, value in results.items():
            yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(results, int | float) and not isinstance(results, bool) and math.isfinite(results):
        yield prefix, float(results)


def model_card(
    name: str, licence: str, description: CheckpointDescription, metrics: Mapping[str, float], source: str
) -> str:
    """Return the text of a model card: licence, use, results and classes.

    Args:
        name: title of the card, such as `OWNER/NAME`.
        licence: an identifier of SPDX, or `other`.
        description: of the weights.
        metrics: flat names, such as `bbox/AP` -> results.
        source: what `Predictor` takes in the example.

    Returns:
        Markdown, with the facts that the hub reads before it, between lines of dashes.

    Example:
        >>> from detectron2.checkpoint import CheckpointDescription
        >>> card = model_card("me/shapes", "mit", CheckpointDescription(), {}, "hf://me/shapes")
        >>> card.splitlines()[:2]
        ['---', 'license: mit']
    """
    metadata = description.metadata
    task = next((task for key, task in _TASKS if metadata.get(key)), "object-detection")
    facts = {"license": licence.lower(), "library_name": "detectron2", "pipeline_tag": task, "tags": ["detectron2"]}
    lines = ["---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", f"# {name}", ""]
    lines += [f"Licence: {licence}.", "", "## Use", "```python", "from detectron2 import Predictor", ""]
    lines += [f'result = Predictor({json.dumps(source)})("photo.jpg")', 'result.save("drawn.png")', "```", ""]
    if description.image_format:
        lines += [f"The model takes images in {description.image_format}; the predictor reads them that way.", ""]
    if metrics:
        lines += ["## Results", "| metric | value |", "| --- | --- |"]
        lines += [f"| {_cell(key)} | {value:.2f} |" for key, value in metrics.items()] + [""]
    for key, title in (
        ("thing_classes", "Classes"),
        ("stuff_classes", "Classes of regions"),
        ("keypoint_names", "Keypoints"),
    ):
        names = [str(entry) for entry in metadata.get(key) or []]
        if names:
            more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
            lines += [f"## {title}", f"{', '.join(map(_cell, names[:_MOST_CLASSES]))}{more}.", ""]
    if description.versions:
        lines += ["Made with " + ", ".join(f"{key} {value}" for key, value in description.versions.items()) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """A name as it may stand in a line of Markdown."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _upload(folder: Path, repo: str, private: bool, *, is_kept: bool) -> str:
    """Send a folder to the hub, in one commit, and return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a detectron2 model")
    except Exception as error:  # a lost connection is one of the HTTP library's own, which differs between versions
        why = " ".join(str(error).split())[:300].rstrip(".")
        cure = "Check the network, HF_ENDPOINT and HTTPS_PROXY."
        if isinstance(error, HfHubHTTPError):
            cure = "Log in with 'hf auth login' or set HF_TOKEN, with a token that may write there."
        later = f"hf upload {repo} {folder} . sends the folder" if is_kept else "--folder DIR writes it without sending"
        raise ValueError(f"{repo} was not written: {type(error).__name__}: {why}. {cure} {later}.") from error
    return f"{api.endpoint}/{repo}"
