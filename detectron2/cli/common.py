"""What the commands share: options, configs of both kinds, data sets of the command line, models ready to predict."""

import argparse
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fvcore.common.config import BASE_KEY
from omegaconf import OmegaConf
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.project_keys import adders_of
from detectron2.config.safe_yaml import load_yaml
from detectron2.config.trusted_calls import refuse_foreign_config
from detectron2.config.unread import warn_of_unread
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog
from detectron2.data.catalog import UnknownDatasetError
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from detectron2.data.formats.voc import voc_classes
from detectron2.engine.model_preparation import available_device, on_available_device
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import import_file
from detectron2.utils.file_io import PathManager, atomic_write

logger = logging.getLogger(__name__)

_SAVED_METADATA = ("thing_classes", "thing_colors", "keypoint_names", "keypoint_connection_rules")


def register_datasets(args: argparse.Namespace) -> None:
    """Import the modules and register the data sets of the command line; every process of a training must do it."""
    if args.classes and not args.voc:
        raise ValueError("--classes names the classes of --voc data sets, and there is no --voc.")
    for module in args.imports:
        if module.endswith(".py"):
            import_file(Path(module).stem, module, make_importable=True)
        else:
            importlib.import_module(module)
    for name, json_file, image_root in args.coco:
        for path in (json_file, image_root):
            if not os.path.exists(path):
                raise FileNotFoundError(f"--coco {name}: no such file or folder: {path}")
        register_coco_instances(name, {}, json_file, image_root)
    for name, root, split in args.voc:
        splits = Path(root, "ImageSets", "Main")
        if not Path(splits, f"{split}.txt").is_file():
            there = ", ".join(sorted(p.stem for p in splits.glob("*.txt") if "_" not in p.stem))
            raise FileNotFoundError(f"--voc {name}: there is no {splits}/{split}.txt; splits: {there or 'none'}.")
        classes = [c.strip() for c in args.classes.split(",")] if args.classes else voc_classes(root)
        if not args.classes and getattr(args, "weights", ""):
            description = read_description(args.weights)
            of_weights = list(description.metadata.get("thing_classes") or ()) if description is not None else []
            classes = of_weights if set(of_weights) >= set(classes) else classes  # others are an error with both lists
        DatasetCatalog.register(name, partial(load_voc_instances, root, split, classes))
        MetadataCatalog.get(name).set(thing_classes=classes, dirname=root, split=split)


def require_registered(names: Iterable[str]) -> None:
    """Raise the error of the catalog for a name that is not registered, and say which options register data sets."""
    for name in names:
        if name not in DatasetCatalog:
            try:
                DatasetCatalog.get(name)
            except KeyError as e:
                options = "--coco NAME JSON IMAGES, --voc NAME ROOT SPLIT, or --import FILE.py with code that does"
                raise UnknownDatasetError(f"{e.args[0]} Options that register one: {options}.") from None


def find_config_file(path: str) -> str:
    """Return the path of a config file, or of the one with this name in the model zoo; raise an error for others."""
    if os.path.isfile(path) or "://" in path:
        return path
    try:
        return model_zoo.get_config_file(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"There is no config file {path!r} (working directory: {os.getcwd()}). {e}") from None


def load_config(path: str, opts: list[str], output_dir: str | None = None, device: str | None = None) -> Any:
    """Read a config file of either kind and apply changes.

    Args:
        path: what `find_config_file` returned.
        opts: `KEY VALUE` pairs (YAML) or `path.key=value` (LazyConfig).
        output_dir: replaces the output folder of the config.
        device: replaces the device of the config.

    Returns:
        A frozen `CfgNode`, or an omegaconf `DictConfig`. Its device is the CPU if it names a GPU and there is none.
    """
    if _is_lazy(path):
        lazy = LazyConfig.load(path)
        lacking = [k for k in ("model", "dataloader", "train") if k not in lazy]
        if lacking:
            raise ValueError(
                f"{path} does not define {', '.join(lacking)}. A LazyConfig has the sections model, dataloader, train, "
                "and for training optimizer and lr_multiplier; for the keys of 'train' see configs/common/train.py."
            )
        return _finish(lazy, opts, output_dir, device)
    cfg = get_cfg()
    _add_project_keys(cfg, [*_paths(CfgNode.load_yaml_with_base(path)), *map(str, opts[::2])])
    cfg.merge_from_file(path)
    return _finish(cfg, opts, output_dir, device)


def load_chosen_config(args: argparse.Namespace, opts: list[str], output_dir: str | None = None) -> Any:
    """Load the config of `--config-file`, the one in the checkpoint, or the one that training left beside the weights.

    A `ValueError` says that there is none, or that the one in the checkpoint describes calls that weights may not make.
    """
    if args.config_file:
        return load_config(find_config_file(args.config_file), opts, output_dir, args.device)
    if not args.weights:
        raise ValueError("Give --weights of a training run, which bring their config along, or --config-file.")
    trusted = [Path(module).stem if module.endswith(".py") else module for module in args.imports]
    description = read_description(args.weights)
    if description is not None and description.config:
        cfg = description.load_config()
        if isinstance(cfg, CfgNode):
            _add_project_keys(get_cfg(), _paths(cfg))  # which also makes their models known
        else:
            refuse_foreign_config(cfg, args.weights, trusted)
        return _finish(cfg, opts, output_dir, args.device)
    beside = os.path.join(os.path.dirname(args.weights), "config.yaml")
    if not os.path.isfile(beside):
        raise ValueError(
            f"{args.weights} does not say which model it is of (it was not saved by a trainer of this version), and "
            f"there is no {beside}, in which training writes its config. Give the config that it was trained with: "
            "--config-file."
        )
    if _is_lazy(beside):
        lazy = LazyConfig.load(beside)
        refuse_foreign_config(lazy, beside, trusted)
        return _finish(lazy, opts, output_dir, args.device)
    with PathManager.open(beside, "r") as file:
        content = load_yaml(file, beside)
    if isinstance(content, Mapping) and BASE_KEY in content:
        raise ValueError(
            f"{beside} continues another file ({BASE_KEY}: {content[BASE_KEY]!r}); a config that comes with weights "
            f"may not. If you trust it, pass it yourself: --config-file {beside}."
        )
    return load_config(beside, opts, output_dir, args.device)


def _finish(cfg: Any, opts: list[str], output_dir: str | None, device: str | None) -> Any:
    """Apply changes, and choose a device that is there."""
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(opts)
        if device:
            cfg.MODEL.DEVICE = available_device(device, "--device")
        cfg = on_available_device(cfg)
        if output_dir:
            cfg.OUTPUT_DIR = output_dir
        cfg.freeze()
        return cfg
    LazyConfig.apply_overrides(cfg, opts)
    chosen = device or cfg.train.get("device", "cuda")
    cfg.train.device = available_device(chosen, "--device" if device else "train.device")
    if output_dir:
        cfg.train.output_dir = output_dir
    return cfg


def _paths(cfg: Mapping[str, Any]) -> list[str]:
    return [path for path, _ in iter_leaves(cfg)]


def _add_project_keys(cfg: CfgNode, paths: list[str]) -> None:
    """Add the keys of projects that come with the library, as far as they are used; importing them adds models."""
    known = set(_paths(cfg))
    for name in adders_of([path for path in paths if path not in known and path not in OPTIONAL_KEYS]):
        module, _, function = name.rpartition(".")
        if importlib.util.find_spec(module.partition(".")[0]) is not None:  # others are reported as unknown keys
            getattr(importlib.import_module(module), function)(cfg)


def _is_lazy(path: str) -> bool:
    """Whether a file is a LazyConfig: Python, or the YAML that a run with one leaves as `config.yaml`."""
    if path.endswith(".py"):
        return True
    with PathManager.open(path, "r") as f:  # the keys of the other kind are in capitals
        return any(str(line).startswith(("model:", "dataloader:", "train:")) for line in f)


def load_model(cfg: Any, weights: str) -> tuple[nn.Module, DatasetMapper]:
    """Build a model in evaluation mode from a config of either kind, and load `weights`, or those that it names.

    The mapper that is returned with the model turns `{"file_name": path}` into its input.
    """
    weights = weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.get("init_checkpoint", ""))
    if not weights:
        raise ValueError("No weights: give --weights FILE, or MODEL.WEIGHTS (train.init_checkpoint) in the config.")
    if isinstance(cfg, CfgNode):
        model = build_model(cfg)
        warn_of_unread(cfg, model, "MODEL")
        mapper = DatasetMapper(cfg, is_train=False)
    else:
        test_mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
        if test_mapper is None:
            raise ValueError(
                "The config has no dataloader.test.mapper, which says how images are made ready for the model; give "
                "--config-file with one like that in configs/common/data/coco.py."
            )
        model, mapper = instantiate(cfg.model), instantiate(test_mapper)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"The config describes a {type(model).__name__} where a model should be: a torch.nn.Module."
            )
        model = model.to(cfg.train.device)
    DetectionCheckpointer(model).load_for_inference(weights)
    return model.eval(), mapper


def dataset_names(cfg: Any, split: str) -> list[str]:
    """Return the names of the data sets in a config of either kind; `split` is `"train"` or `"test"`."""
    if isinstance(cfg, CfgNode):
        return list(cfg.DATASETS[split.upper()])
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []  # absent where the data set is the user's
    return [names] if isinstance(names, str) else list(names)


def save_metadata(cfg: Any) -> None:
    """Write the class names of the training data beside the checkpoints, where `detectron2 predict` looks for them.

    A data set whose class names are not known yet is loaded for them.
    """
    output = Path(cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir)
    names = dataset_names(cfg, "train")
    if not comm.is_main_process() or not names:
        return
    if MetadataCatalog.get(names[0]).get("thing_classes") is None:
        DatasetCatalog.get(names[0])  # data sets in COCO format learn their class names by being loaded
    known = MetadataCatalog.get(names[0]).as_dict()
    write_json(output / "metadata.json", {k: known[k] for k in _SAVED_METADATA if k in known})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, with its folder, completely or not at all; numbers of other libraries become floats."""
    with atomic_write(path, "w") as f:
        json.dump(content, f, indent=2, default=float)


def load_metadata(cfg: Any, weights: str) -> Metadata:
    """Return class names and colours for drawing: of the weights, else saved beside them, else of the test data set."""
    description = read_description(weights) if weights else None
    if description is not None and description.metadata:
        return description.load_metadata()
    beside = Path(os.path.dirname(weights), "metadata.json")
    if weights and beside.is_file():
        return Metadata().set(name=str(beside), **json.loads(beside.read_text()))
    names = dataset_names(cfg, "test")
    if names and names[0] in DatasetCatalog:
        return MetadataCatalog.get(names[0])
    return Metadata().set(name="unknown")
