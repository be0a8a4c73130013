"""What the commands share: the config and the data sets of the command line, and files with results."""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.checkpoint import read_description
from detectron2.checkpoint.files import require_file
from detectron2.checkpoint.parts import is_parts_folder
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import UnknownDatasetError
from detectron2.data.datasets import load_voc_instances, register_coco_instances, register_sharded_dataset
from detectron2.data.formats.tar_shards import is_sharded, read_index
from detectron2.data.formats.voc import voc_classes
from detectron2.data.tar_members import is_remote
from detectron2.inference import Predictor
from detectron2.inference.loading import (
    available_device,
    dataset_names,
    find_config_file,
    load_config,
    load_config_of_weights,
)
from detectron2.utils import comm
from detectron2.utils.env import import_modules
from detectron2.utils.file_io import atomic_write

REGISTERING = (
    "Options that register one: --coco NAME JSON IMAGES, --voc NAME ROOT SPLIT, --tar-shards NAME DIR, or --import "
    "FILE.py with code that does."
)
_SAVED_METADATA = ("thing_classes", "thing_colors", "keypoint_names", "keypoint_connection_rules")


def register_datasets(args: argparse.Namespace) -> None:
    """Import the modules and register the data sets of the command line; every process of a training must do it."""
    if args.classes and not args.voc:
        raise ValueError("--classes names the classes of --voc data sets, and there is no --voc.")
    import_modules(args.imports)
    for name, json_file, image_root in args.coco:
        for path in (json_file, image_root):
            if not os.path.exists(path):
                raise FileNotFoundError(f"--coco {name}: no such file or folder: {path}")
        if os.path.isdir(json_file) or os.path.isfile(image_root):
            raise ValueError(
                f"--coco {name}: a JSON file and then a folder of images are needed, not {json_file} and {image_root}."
            )
        register_coco_instances(name, {}, json_file, image_root)
    for name, folder in args.tar_shards:
        if not is_remote(folder):
            read_index(folder)  # which says what is missing
        register_sharded_dataset(name, folder)
    for name, root, split in args.voc:
        splits = Path(root, "ImageSets", "Main")
        if not Path(splits, f"{split}.txt").is_file():
            there = ", ".join(sorted(p.stem for p in splits.glob("*.txt") if "_" not in p.stem))
            raise FileNotFoundError(f"--voc {name}: there is no {splits}/{split}.txt; splits: {there or 'none'}.")
        classes = [c.strip() for c in args.classes.split(",")] if args.classes else voc_classes(root)
        if not args.classes and getattr(args, "weights", ""):
            description = read_description(args.weights)
            of_weights: list[str] = (
                list(description.metadata.get("thing_classes") or ()) if description is not None else []
            )
            classes = of_weights if set(of_weights) >= set(classes) else classes  # others are an error with both lists
        _register_voc(name, root, split, classes)


def _register_voc(name: str, root: str, split: str, classes: Sequence[str]) -> None:
    DatasetCatalog.register(name, partial(load_voc_instances, root, split, list(classes)))
    MetadataCatalog.get(name).set(thing_classes=list(classes), dirname=root, split=split)


def require_registered(names: Iterable[str]) -> None:
    """Raise the error of the catalog for a name that is not registered, and say which options register data sets."""
    for name in names:
        if name not in DatasetCatalog:
            try:
                DatasetCatalog.get(name)
            except KeyError as e:
                raise UnknownDatasetError(f"{e.args[0]} {REGISTERING}") from None


def require_weights(cfg: Any, weights: str = "", *, is_needed: bool = True) -> None:
    """Raise where a local file of weights, or the one that the config names, is missing; URLs are not looked at."""
    path = weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.get("init_checkpoint", ""))
    if not path and is_needed:
        raise ValueError("No weights: give --weights FILE, or MODEL.WEIGHTS (train.init_checkpoint) in the config.")
    if path and "://" not in path and not is_parts_folder(path):
        require_file(path if os.path.isfile(path) else path.partition("?")[0])  # a question mark begins an option


def chosen_device(args: argparse.Namespace) -> str | None:
    """Return the device of `--device`, or the CPU where it is not there; None to leave that to the config."""
    return available_device(args.device, "--device") if args.device else None


def load_chosen_config(args: argparse.Namespace, opts: list[str], output_dir: str | None = None) -> Any:
    """Load the config of `--config-file`, the one in the checkpoint, or the one that training left beside the weights.

    A `ValueError` says that there is none, or that the one in the checkpoint describes calls that weights may not make.
    """
    device = chosen_device(args)
    if args.config_file:
        return load_config(find_config_file(args.config_file), opts, output_dir, device)
    if not args.weights:
        raise ValueError("Give --weights of a training run, which bring their config along, or --config-file.")
    return load_config_of_weights(args.weights, opts, output_dir, device, trusted=_trusted(args))


def load_predictor(args: argparse.Namespace, opts: list[str], **options: Any) -> Predictor:
    """Load the model of the command line for prediction; an exported one is known by its folder.

    `options` are those of `Predictor` that the command has beside `--precision`, `--backend` and `--device`.
    """
    if args.config_file and os.path.isfile(args.config_file):
        source: Any = load_chosen_config(args, opts)
        options["device"] = None
    elif args.config_file or args.weights:
        source = args.config_file or args.weights
        options |= {"overrides": opts, "device": chosen_device(args)}
    else:
        source = load_chosen_config(args, opts)  # says what to give
    return Predictor(
        source,
        weights=(args.weights or None) if args.config_file else None,
        precision=args.precision,
        backend=args.backend,
        trusted=_trusted(args),
        **options,
    )


def _trusted(args: argparse.Namespace) -> list[str]:
    """Return the modules that a config in a checkpoint may call, as the user has named them."""
    return [Path(module).stem if module.endswith(".py") else module for module in args.imports]


def save_metadata(cfg: Any) -> None:
    """Write beside the checkpoints the class names of the training data, and where the data sets lie.

    `detectron2 predict` looks for the former, `register_datasets_of_run` for the latter. A data set whose class names
    are not known yet is loaded for them.
    """
    output = Path(cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir)
    names = dataset_names(cfg, "train")
    if not comm.is_main_process() or not names:
        return
    if MetadataCatalog.get(names[0]).get("thing_classes") is None:
        DatasetCatalog.get(names[0])  # data sets in COCO format learn their class names by being loaded
    known = MetadataCatalog.get(names[0]).as_dict()
    write_json(output / "metadata.json", {k: known[k] for k in _SAVED_METADATA if k in known})
    every = dict.fromkeys([*names, *dataset_names(cfg, "test")])
    places = {name: place for name in every if (place := _place_of(name))}
    if places:
        write_json(output / _PLACES, places)


_PLACES = "datasets.json"


def _place_of(name: str) -> dict[str, list[str]] | None:
    """Return what registers a data set again: an option of the command line, and what follows the name there."""
    known = MetadataCatalog.get(name)
    if known.get("evaluator_type") == "coco" and known.get("json_file") and known.get("image_root"):
        return {"coco": [os.path.abspath(known.json_file), os.path.abspath(known.image_root)]}
    if known.get("dirname") and known.get("split"):
        return {"voc": [os.path.abspath(known.dirname), known.split]}
    if known.get("dirname") and (is_remote(known.dirname) or is_sharded(known.dirname)):
        return {"tar_shards": [known.dirname if is_remote(known.dirname) else os.path.abspath(known.dirname)]}
    return None


def register_datasets_of_run(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Register data sets that a training was given on its command line, so that they need not be given again.

    Nothing happens for those that are registered, that the folder of the run does not know, or that have moved.
    """
    path = Path(folder, _PLACES)
    missing = [name for name in names if name not in DatasetCatalog]
    if not missing or not path.is_file():
        return
    try:
        places = json.loads(path.read_text(encoding="utf-8"))
        for name in missing:
            for kind, place in (places.get(name) or {}).items():
                if kind == "coco" and all(os.path.exists(part) for part in place):
                    json_file, image_root = place
                    register_coco_instances(name, {}, json_file, image_root)
                elif kind == "voc" and Path(place[0], "ImageSets", "Main", f"{place[1]}.txt").is_file():
                    root, split = place
                    _register_voc(name, root, split, _classes_of_run(path.parent) or voc_classes(root))
                elif kind == "tar_shards" and (is_remote(place[0]) or is_sharded(place[0])):
                    register_sharded_dataset(name, place[0])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not what a training writes there ({error}). Remove it, and give the data sets with --coco."
        ) from None


def _classes_of_run(folder: Path) -> list[str]:
    path = folder / "metadata.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(content.get("thing_classes") or ())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, with its folder, completely or not at all; numbers of other libraries become floats."""
    with atomic_write(path, "w") as f:
        json.dump(content, f, indent=2, default=float)
