"""From the file of a model to one that is ready to predict: config, device, weights, class names, and resizing.

A config is of one of two kinds: a `CfgNode` (YAML) or an omegaconf `DictConfig` (LazyConfig).
"""

import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import BASE_KEY
from omegaconf import OmegaConf
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer, read_description
from detectron2.checkpoint.files import file_format, read_torch_file
from detectron2.checkpoint.parts import is_parts_folder
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.project_keys import PROJECT_PARTS, adders_of
from detectron2.config.safe_yaml import load_yaml
from detectron2.config.trusted_calls import refuse_foreign_config
from detectron2.config.unread import warn_of_unread
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.export.artifact import ExportedModel
from detectron2.export.metadata import read_description as read_artifact
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from detectron2.utils.foreign_files import recognise
from detectron2.utils.hub_files import MODEL_FILE

__all__ = [
    "LoadedModel",
    "add_keys_of_file",
    "add_project_keys",
    "available_device",
    "dataset_names",
    "find_config_file",
    "is_lazy_file",
    "load",
    "load_config",
    "load_config_of_weights",
    "load_described_config",
    "load_metadata",
    "load_model",
    "on_available_device",
]

logger = logging.getLogger(__name__)


def available_device(device: str | torch.device, key: str = "device") -> str:
    """Return the name of a device to compute on; the CPU takes the place of an accelerator on a machine without one.

    Args:
        device: such as "cpu", "cuda" or "cuda:1"; "auto" is the first that is there of "cuda", "mps" and "cpu".
        key: the name of this setting, for messages. A change of the device is said in the log, in one line.

    Returns:
        A name for `torch.device`.

    Raises:
        ValueError: there is no such kind of device, or it has a number that is not there beside other GPUs.

    Example:
        >>> available_device("cpu")
        'cpu'
    """
    if device == "auto":
        return next((kind for kind in ("cuda", "mps") if _is_available(kind)), "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{key} is {device!r}, which is not a device; expected cpu, cuda or cuda:NUMBER.") from None
    if not _is_available(wanted.type):
        what = {"cuda": "GPU", "mps": "GPU of Apple", "xpu": "GPU of Intel"}[wanted.type]
        logger.warning("%s is %r but no %s is available; using the CPU.", key, str(device), what)
        return "cpu"
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"{key} is {str(device)!r}, but the GPUs of this machine have the numbers 0 to {last}.")
    return str(device)


def _is_available(kind: str) -> bool:
    """Whether a machine has a kind of device; those that are not listed are taken to be there."""
    parts = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": getattr(torch, "xpu", None)}
    return kind not in parts or (parts[kind] is not None and parts[kind].is_available())


def on_available_device(cfg: CfgNode) -> CfgNode:
    """Return a config, or a copy for the CPU if `MODEL.DEVICE` is a GPU and there is none.

    Args:
        cfg: a YAML config, which is not changed.

    Returns:
        The config, or the copy.

    Example:
        >>> cfg = get_cfg()
        >>> cfg.MODEL.DEVICE = "cpu"
        >>> on_available_device(cfg).MODEL.DEVICE
        'cpu'
    """
    device = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    if device != cfg.MODEL.DEVICE:
        cfg = cfg.clone()
        cfg.MODEL["DEVICE"] = device  # in a frozen config, too
    return cfg


_WEIGHTS = (".pth", ".pt", ".pkl", ".safetensors")


def find_config_file(path: str) -> str:
    """Return the path of a config file, or of the one with this name in the model zoo; raise an error for others.

    Args:
        path: of a file, an address, or a name in the model zoo.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no such file, and no such name in the model zoo.
        ValueError: the file is something else, such as one of weights or an image, or of another program.

    Example:
        >>> os.path.basename(find_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
        'retinanet_R_50_FPN_1x.yaml'
    """
    if "://" in path:
        return path
    if os.path.exists(path):
        what, advice = recognise(path) or ("", "")
        if not what and path.lower().endswith(_WEIGHTS):
            what, advice = "a file of weights", "Weights are given with --weights."
        elif not what and not _is_utf8(path):
            what, advice = "not text", "Where it should be, save it in UTF-8."
        if what:
            raise ValueError(f"{path} is not a config of this library (.yaml or .py): it is {what}. {advice}".strip())
        return path
    try:
        return model_zoo.get_config_file(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"There is no config file {path!r} (working directory: {os.getcwd()}). {e}") from None


def _is_utf8(path: str) -> bool:
    try:
        Path(path).read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def load_config(path: str, opts: Sequence[str], output_dir: str | None = None, device: str | None = None) -> Any:
    """Read a config file of either kind and apply changes.

    Args:
        path: what `find_config_file` returned.
        opts: `KEY VALUE` pairs (YAML) or `path.key=value` (LazyConfig).
        output_dir: replaces the output folder of the config.
        device: replaces the device of the config.

    Returns:
        A frozen `CfgNode`, or an omegaconf `DictConfig`. Its device is one of `available_device`.

    Raises:
        ValueError: a LazyConfig lacks a section, or a change or the device is impossible.

    Example:
        >>> path = find_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
        >>> load_config(path, ["SOLVER.MAX_ITER", "90"], device="cpu").SOLVER.MAX_ITER
        90
    """
    if is_lazy_file(path):
        lazy = LazyConfig.load(path)
        lacking = [k for k in ("model", "dataloader", "train") if k not in lazy]
        if lacking:
            raise ValueError(
                f"{path} does not define {', '.join(lacking)}. A LazyConfig has the sections model, dataloader, train, "
                "and for training optimizer and lr_multiplier; for the keys of 'train' see configs/common/train.py."
            )
        return _finish(lazy, opts, output_dir, device)
    cfg = get_cfg()
    add_keys_of_file(cfg, path, opts)
    cfg.merge_from_file(path)
    return _finish(cfg, opts, output_dir, device)


# How a training started. Who uses its weights needs none of it, and a file of weights must not fetch others.
_STARTS: dict[str, Any] = {
    "MODEL.HF.PRETRAINED": "",
    "MODEL.TIMM.CHECKPOINT": "",
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.TRANSFORMERS.PRETRAINED": False,
}


def _fetch_nothing(cfg: CfgNode) -> None:
    """Turn off, in a config that came with weights, the weights that their training started from."""
    known = set(_paths(cfg))
    for key, value in _STARTS.items():
        if key in known:
            cfg.merge_from_list([key, value])


def load_described_config(description: CheckpointDescription, source: str, trusted: Sequence[str] = ()) -> Any:
    """Read the config in a file from elsewhere, so that a model can be built from it.

    Args:
        description: what the file says about its model.
        source: the file, for messages.
        trusted: modules that a LazyConfig may call, beside this library and those that it is made of.

    Returns:
        A `CfgNode` that fetches no weights, and the models of its project are known; or an omegaconf `DictConfig`.

    Raises:
        ValueError: there is no config, or one that describes calls that weights may not make.

    Example:
        >>> load_described_config(read_description("model_final.pth"), "model_final.pth")  # doctest: +SKIP
    """
    cfg = description.load_config()
    if isinstance(cfg, CfgNode):
        add_project_keys(get_cfg(), _paths(cfg))  # which also makes their models known
        _fetch_nothing(cfg)
    else:
        refuse_foreign_config(cfg, source, trusted)
    return cfg


def load_config_of_weights(
    weights: str,
    opts: Sequence[str] = (),
    output_dir: str | None = None,
    device: str | None = None,
    *,
    trusted: Sequence[str] = (),
) -> Any:
    """Load the config in a checkpoint, or the one that training left beside it.

    Args:
        weights: the file, or an address that `PathManager` opens.
        opts: as for `load_config`.
        output_dir: replaces the output folder of the config.
        device: replaces the device of the config.
        trusted: modules that a LazyConfig may call, beside this library and those that it is made of.

    Returns:
        As `load_config`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no config, or one that describes calls that weights may not make.

    Example:
        >>> cfg = load_config_of_weights("output/model_final.pth", [])  # doctest: +SKIP
    """
    description = read_description(weights)
    if description is not None and description.config:
        return _finish(load_described_config(description, weights, trusted), opts, output_dir, device)
    beside = os.path.join(os.path.dirname(weights.rstrip(os.sep)), "config.yaml")
    if not os.path.isfile(beside):
        if program := _program_of(weights):
            raise ValueError(
                f"{weights} is a checkpoint of {program}, whose layers have other names and whose config this library "
                "does not read. Files of Deformable DETR, DINO and Mask2Former load with a config of ours "
                "(--config-file); of others docs/moving.md says how they run here, and which take their place."
            )
        raise ValueError(
            f"{weights} does not say which model it is of (it was not saved by a trainer of this version), and "
            f"there is no {beside}, in which training writes its config. Give the config that it was trained with: "
            "--config-file, or in Python Predictor(config, weights=...)."
        )
    if is_lazy_file(beside):
        lazy = LazyConfig.load(beside)
        refuse_foreign_config(lazy, beside, trusted)
        return _finish(lazy, opts, output_dir, device)
    with PathManager.open(beside, "r") as file:
        content = load_yaml(file, beside)
    if isinstance(content, Mapping) and BASE_KEY in content:
        raise ValueError(
            f"{beside} continues another file ({BASE_KEY}: {content[BASE_KEY]!r}); a config that comes with weights "
            f"may not. If you trust it, pass it yourself: --config-file {beside}."
        )
    return load_config(beside, opts, output_dir, device)


def _program_of(weights: str) -> str | None:
    """Return the name of the program that saved a checkpoint, if it is one that notes itself."""
    if not os.path.isfile(weights) or file_format(weights) != "torch":
        return None
    content = read_torch_file(weights)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    notes = meta if isinstance(meta, Mapping) else {}
    return "MMDetection" if {"mmdet_version", "mmengine_version", "mmcv_version"} & notes.keys() else None


def _finish(cfg: Any, opts: Sequence[str], output_dir: str | None, device: str | None) -> Any:
    """Apply changes, and choose a device that is there."""
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(list(opts))
        if device:
            cfg.MODEL.DEVICE = available_device(device)
        cfg = on_available_device(cfg)
        if output_dir:
            cfg.OUTPUT_DIR = output_dir
        cfg.freeze()
        return cfg
    LazyConfig.apply_overrides(cfg, list(opts))
    chosen = device or cfg.train.get("device", "cuda")
    cfg.train.device = available_device(chosen, "device" if device else "train.device")
    if output_dir:
        cfg.train.output_dir = output_dir
    return cfg


def _paths(cfg: Mapping[str, Any]) -> list[str]:
    return [path for path, _ in iter_leaves(cfg)]


def add_keys_of_file(cfg: CfgNode, path: str, opts: Sequence[Any]) -> None:
    """Add the keys of the projects that a YAML file, or changes to it, use; see `add_project_keys`.

    Args:
        cfg: gets the keys.
        path: the file.
        opts: `KEY VALUE` pairs.

    Example:
        >>> add_keys_of_file(cfg := get_cfg(), find_config_file("COCO-Detection/rpn_R_50_C4_1x.yaml"), [])
    """
    leaves = [*iter_leaves(CfgNode.load_yaml_with_base(path)), *zip(opts[::2], opts[1::2], strict=False)]
    add_project_keys(cfg, [str(key) for key, _ in leaves], [value for _, value in leaves])


def add_project_keys(cfg: CfgNode, paths: list[str], values: Iterable[Any] = ()) -> None:
    """Add the keys of projects that come with the library, as far as they are used; importing them adds models.

    A package of the same name that is imported already, such as `mask2former` as its authors published it, stands in
    for the one of the library.

    Args:
        cfg: gets the keys.
        paths: the keys that a config has, such as "MODEL.POINT_HEAD.NAME".
        values: their values, among which may be a part of a project, such as "PointRendROIHeads".

    Example:
        >>> cfg = get_cfg()
        >>> add_project_keys(cfg, ["MODEL.POINT_HEAD.NUM_CLASSES"])
        >>> "POINT_HEAD" in cfg.MODEL
        True
    """
    known = set(_paths(cfg))
    names = {value for value in values if isinstance(value, str)}
    by_part = [adder for adder, parts in PROJECT_PARTS.items() if names.intersection(parts)]
    by_key = adders_of([path for path in paths if path not in known and path not in OPTIONAL_KEYS])
    for name in dict.fromkeys([*by_part, *by_key]):
        module, _, function = name.rpartition(".")
        published = module.rpartition(".")[2]
        module = published if hasattr(sys.modules.get(published), function) else module
        if importlib.util.find_spec(module.partition(".")[0]) is not None:  # others are reported as unknown keys
            getattr(importlib.import_module(module), function)(cfg)


def is_lazy_file(path: str) -> bool:
    """Whether a file is a LazyConfig: Python, or the YAML that a run with one leaves as `config.yaml`.

    Args:
        path: of a config file.

    Returns:
        True for a LazyConfig, False for a YAML config.

    Example:
        >>> is_lazy_file("fcos_R_50_FPN_1x.py")
        True
    """
    if path.endswith(".py"):
        return True
    # The keys of the other kind are in capitals. A binary file is an error of the reader of YAML.
    with PathManager.open(path, "r") as f, contextlib.suppress(UnicodeDecodeError):
        return any(str(line).startswith(("model:", "dataloader:", "train:")) for line in f)
    return False


def load_model(cfg: Any, weights: str = "", *, allow_random_weights: bool = False) -> tuple[nn.Module, DatasetMapper]:
    """Build a model in evaluation mode from a config of either kind, and load its weights.

    Args:
        cfg: a complete config, whose device is there.
        weights: the file; by default the one that the config names.
        allow_random_weights: whether the file may be missing in the config, or fill a part of the model.

    Returns:
        The model, and the mapper of test images, which turns `{"file_name": path}` into its input.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no weights, or they do not fill the model; or the config does not describe a model.

    Example:
        >>> model, mapper = load_model(cfg, "output/model_final.pth")  # doctest: +SKIP
    """
    weights = weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.get("init_checkpoint", ""))
    if not weights and not allow_random_weights:
        raise ValueError(
            "No weights: give --weights FILE, or MODEL.WEIGHTS (train.init_checkpoint) in the config; in Python also "
            "Predictor(config, weights=...)."
        )
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
    checkpointer = DetectionCheckpointer(model)
    if not allow_random_weights:
        checkpointer.load_for_inference(weights)
    elif weights:
        checkpointer.load(weights, checkpointables=[])
    return model.eval(), mapper


def dataset_names(cfg: Any, split: str) -> list[str]:
    """Return the names of the data sets in a config of either kind.

    Args:
        cfg: the config.
        split: "train" or "test".

    Returns:
        The names.

    Example:
        >>> cfg = get_cfg()
        >>> cfg.DATASETS.TEST = ("photos_val",)
        >>> dataset_names(cfg, "test")
        ['photos_val']
    """
    if isinstance(cfg, CfgNode):
        return list(cfg.DATASETS[split.upper()])
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []  # absent where the data set is the user's
    return [names] if isinstance(names, str) else list(names)


def load_metadata(cfg: Any, weights: str) -> Metadata:
    """Return class names and colours for drawing: of the weights, else saved beside them, else of the test data set.

    Args:
        cfg: the config of the model.
        weights: its checkpoint; "" for none.

    Returns:
        The metadata, without names where nothing has any.

    Example:
        >>> load_metadata(get_cfg(), "").get("thing_classes") is None
        True
    """
    description = read_description(weights) if weights else None
    if description is not None and description.metadata:
        return description.load_metadata()
    beside = Path(os.path.dirname(weights.rstrip(os.sep)), "metadata.json")
    if weights and beside.is_file():
        return Metadata().set(name=str(beside), **json.loads(beside.read_text(encoding="utf-8")))
    names = dataset_names(cfg, "test")
    if names and names[0] in DatasetCatalog:
        return MetadataCatalog.get(names[0])
    return Metadata().set(name="unknown")


@dataclass
class LoadedModel:
    """A model and what its user has to know.

    Args:
        model: the model, in evaluation mode; an `ExportedModel` for an artifact.
        mapper: makes images ready for it: `augmentations`, `image_format` and `exif`, as in a `DatasetMapper`.
        metadata: names and colours of classes.
        cfg: the config; None for an artifact.

    Example:
        >>> loaded = load("output/model_final.pth")  # doctest: +SKIP
        >>> loaded.metadata.thing_classes  # doctest: +SKIP
        ['cat', 'dog']
    """

    model: nn.Module
    mapper: Any
    metadata: Metadata
    cfg: Any = None


def load(
    source: str | os.PathLike | CfgNode | Mapping[str, Any],
    weights: str = "",
    *,
    device: str | None = None,
    overrides: Sequence[str] = (),
    allow_random_weights: bool = False,
    trusted: Sequence[str] = (),
) -> LoadedModel:
    """Load a model from whatever describes it.

    Args:
        source: a checkpoint that describes itself, or has `config.yaml` beside it; a config, its file (`.yaml`, `.py`)
            or its name in the model zoo; a folder of `detectron2 push`; or one of `detectron2 export`, or the artifact
            in it.
        weights: the weights for a config. By default those it names; for a name in the model zoo the published ones.
        device: see `available_device`; None for the device of the config.
        overrides: changes to the config, as for `load_config`.
        allow_random_weights: as for `load_model`.
        trusted: as for `load_config_of_weights`.

    Returns:
        The model, its mapper, its metadata and its config.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `source` is of another type.
        ValueError: the file does not describe a model, or weights do not fill it.

    Example:
        >>> changes = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
        >>> name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
        >>> loaded = load(name, device="cpu", overrides=changes, allow_random_weights=True)
        >>> loaded.mapper.image_format, loaded.model.training
        ('BGR', False)
    """
    if isinstance(source, str | os.PathLike):
        source = os.fspath(source)
        if (folder := _artifact_folder(source)) is not None:
            return _load_artifact(folder, weights, overrides)
        if os.path.isfile(os.path.join(source, MODEL_FILE)):
            source = os.path.join(source, MODEL_FILE)
        if source.endswith((".yaml", ".yml", ".py")):
            cfg = load_config(find_config_file(source), overrides, None, device)
            if not weights and not os.path.isfile(source) and not _changes_weights(overrides):
                weights = _published_weights(source)
        elif os.path.isdir(source) and not is_parts_folder(source):
            raise ValueError(
                f"{source} is a folder without model.json or model.safetensors: neither 'detectron2 export' nor 'push' "
                "wrote it. Give the file of a checkpoint, such as model_final.pth, or a config."
            )
        else:
            if weights:
                raise ValueError(f"{source} is taken for weights, and weights={weights!r} are given too: give one.")
            cfg, weights = load_config_of_weights(source, overrides, None, device, trusted=trusted), source
    elif isinstance(source, Mapping) or OmegaConf.is_dict(source):
        own: Any = source.clone() if isinstance(source, CfgNode) else copy.deepcopy(source)
        if isinstance(own, CfgNode):
            own.defrost()
        cfg = _finish(own, overrides, None, device)
    else:
        raise TypeError(
            f"Expected a checkpoint, a config, an exported model or a torch.nn.Module, got {type(source).__name__}."
        )
    model, mapper = load_model(cfg, weights, allow_random_weights=allow_random_weights)
    named = weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.get("init_checkpoint", ""))
    return LoadedModel(model, mapper, load_metadata(cfg, named), cfg)


def _changes_weights(overrides: Sequence[str]) -> bool:
    return any(str(word).startswith(("MODEL.WEIGHTS", "train.init_checkpoint")) for word in overrides)


def _published_weights(name: str) -> str:
    """Return the address of the trained weights of a config of the model zoo, or "" where there are none."""
    try:
        return model_zoo.get_checkpoint_url(name)
    except RuntimeError:
        return ""


def _artifact_folder(path: str) -> Path | None:
    """Return the folder of an exported model, if `path` is one, or its main file."""
    if os.path.isdir(path):
        return Path(path) if Path(path, "model.json").is_file() else None
    folder = Path(path).parent
    if "://" in path or not os.path.isfile(path) or not (folder / "model.json").is_file():
        return None
    return folder if Path(path).name in ("model.json", read_artifact(folder)["artifact"]) else None


@dataclass
class _Preparation:
    """What an exported model says of its images, in the form of a mapper."""

    augmentations: T.AugmentationList
    image_format: str
    exif: str


def _load_artifact(folder: Path, weights: str, overrides: Sequence[str]) -> LoadedModel:
    """Load what `detectron2 export` wrote."""
    if weights or overrides:
        raise ValueError(
            f"{folder} is an exported model, which has its weights and its config built in: leave them out."
        )
    model = ExportedModel(folder)
    known = model.description
    how = known["preprocessing"]
    steps: list[Any] = []
    if how["short_edge"] > 0:
        steps = [T.ResizeShortestEdge([how["short_edge"]] * 2, how["long_edge"])]
    names = {"thing_classes": "classes", "thing_colors": "class_colors"}
    names |= {"stuff_classes": "stuff_classes", "stuff_colors": "stuff_colors"}
    metadata = Metadata().set(name=str(folder), **{key: known[k] for key, k in names.items() if known.get(k)})
    if points := known.get("keypoints"):
        metadata.set(keypoint_names=points["names"], keypoint_connection_rules=points["connections"])
    preparation = _Preparation(T.AugmentationList(steps), how["channels"], how["exif"])
    return LoadedModel(model.eval(), preparation, metadata)
