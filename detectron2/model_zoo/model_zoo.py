"""Look up configs and trained models of the model zoo by the name of the config file.

Names are relative to the folder of configs and end in `.yaml` or `.py`, e.g.
`"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"`.
"""

import difflib
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config.node import config_folder

from .checkpoints import CHECKPOINTS, URL_PREFIX

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NotInModelZooError", "get", "get_checkpoint_url", "get_config", "get_config_file"]


class NotInModelZooError(RuntimeError, FileNotFoundError):
    """The model zoo has no config, or no trained weights, of this name."""


def get_checkpoint_url(config_path: str) -> str:
    """Return the `https://` address of the weights that were trained with a config, or raise `NotInModelZooError`."""
    model = config_path.removesuffix(".yaml").removesuffix(".py")
    folder, _, name = model.rpartition("/")
    location = CHECKPOINTS.get(folder, {}).get(name)
    if location is None:
        known = [f"{f}/{n}" for f, names in CHECKPOINTS.items() for n in names]
        raise NotInModelZooError(f"There are no trained weights for {config_path!r}. {_nearest(model, known)}")
    return f"{URL_PREFIX}{model}/{location}"


def get_config_file(config_path: str) -> str:
    """Return the path on this machine of a config file of the model zoo, or raise `NotInModelZooError`."""
    root = config_folder()
    file = root / config_path
    if not file.is_file():
        known = [p.relative_to(root).as_posix() for p in root.rglob("*.*") if p.suffix in (".yaml", ".py")]
        raise NotInModelZooError(f"The model zoo has no config {config_path!r}. {_nearest(config_path, known)}")
    return str(file)


def get_config(config_path: str, trained: bool = False) -> Any:
    """Return a config of the model zoo.

    Args:
        config_path: the name of the config file.
        trained: let the config start from the weights that were trained with it, not from what its file says
            (mostly a backbone trained on ImageNet).

    Returns:
        A `CfgNode` for a YAML file, an omegaconf `DictConfig` for a Python file.

    Raises:
        NotInModelZooError: if there is no such config, or no trained weights for it.
        ValueError: if trained weights are asked for and the config has no place for them.
    """
    file = get_config_file(config_path)
    url = get_checkpoint_url(config_path) if trained else None
    if file.endswith(".yaml"):
        cfg = get_cfg()
        cfg.merge_from_file(file)
        if url:
            cfg.MODEL.WEIGHTS = url
        return cfg
    lazy = LazyConfig.load(file)
    if url:
        if "init_checkpoint" not in lazy.get("train", {}):
            raise ValueError(f"{config_path} has no train.init_checkpoint to put the trained weights into.")
        lazy.train.init_checkpoint = url
    return lazy


def get(config_path: str, trained: bool = False, device: str | None = None) -> "nn.Module":
    """Build a model of the model zoo and load its weights.

    Args:
        config_path: the name of the config file.
        trained: as for `get_config`.
        device: where to put the model. Without, the device of the config, or the CPU on machines without CUDA.

    Returns:
        The model, in training mode.

    Raises:
        NotInModelZooError: if there is no such config, or no trained weights for it.
        ValueError: if the config describes no model, or the trained weights do not fill it.
        DownloadError: if the weights cannot be downloaded.
    """
    # Configs and addresses are wanted by many that build no model: they do not pay for these imports.
    import torch

    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        if device is not None:
            cfg.MODEL.DEVICE = device
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        if "model" not in cfg:
            raise ValueError(f"{config_path} describes no model: it defines {', '.join(map(str, cfg))}.")
        model, weights = instantiate(cfg.model), cfg.get("train", {}).get("init_checkpoint", "")
        model = model.to(device or cfg.get("train", {}).get("device", "cuda"))
    checkpointer = DetectionCheckpointer(model)
    if trained:
        checkpointer.load_for_inference(weights)
    else:
        checkpointer.load(weights)
    return model


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"The nearest names are: {', '.join(close)}." if close else "'detectron2 zoo list' shows all names."
