"""What a checkpoint says about itself, so that its weights can be used without anything else.

The description lies under the key `description` of a `.pth` file, beside `model`, or in the header of a
`.safetensors` file; it is made of plain containers, numbers and texts.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from detectron2.checkpoint.files import file_format, read_header, read_torch_file, refuse_other_files, require_file
from detectron2.checkpoint.parts import REST, is_parts_folder
from detectron2.checkpoint.training_state import DESCRIPTION
from detectron2.config import CfgNode, get_cfg
from detectron2.config.lazy_text import load_lazy_yaml
from detectron2.utils.file_io import PathManager
from detectron2.utils.serialize import plain as plain_containers

if TYPE_CHECKING:
    from detectron2.data import Metadata

__all__ = ["CheckpointDescription", "dataset_metadata", "installed_versions", "read_description"]

logger = logging.getLogger(__name__)

# What drawing and naming of results needs.
_METADATA = (
    *("thing_classes", "thing_colors", "stuff_classes", "stuff_colors", "ignore_label", "label_divisor"),
    *("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules"),
)


@dataclass(frozen=True)
class CheckpointDescription:
    """How weights came about, and how they want to be used.

    Args:
        config: the config of the training as YAML text, without the place of its output.
        config_kind: `"yaml"` for a `CfgNode`, `"lazy"` for a LazyConfig.
        metadata: names and colours of classes and keypoints, as in `detectron2.data.Metadata`.
        image_format: colour order of the images that the model expects, such as `"BGR"`.
        pixel_mean: subtracted from each channel.
        pixel_std: each channel is divided by it.
        versions: name of a package -> its version in the training.
        iteration: the last iteration that was done, from 0.
        metrics: flat names, such as `"bbox/AP"` -> results of the last evaluation, as far as they are numbers.
        metrics_iteration: after which iteration that was.
        is_average: whether the weights are the moving average of the weights in training.
        metrics_of_average: whether that average was evaluated, and not the weights.
    """

    config: str = ""
    config_kind: str = "yaml"
    metadata: dict[str, Any] = field(default_factory=dict)
    image_format: str | None = None
    pixel_mean: list[float] | None = None
    pixel_std: list[float] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    iteration: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_iteration: int | None = None
    is_average: bool = False
    metrics_of_average: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Return nested containers, numbers and texts, as a checkpoint holds them."""
        plain = dataclasses.asdict(self)
        plain["metrics"] = {name: float(value) for name, value in self.metrics.items() if math.isfinite(value)}
        return plain

    @classmethod
    def from_plain(cls, plain: Any, source: str) -> "CheckpointDescription":
        """Read what `to_plain` returned, from the file `source`; entries of later versions are left out.

        Something else is a `ValueError`.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"The description in {source} is a {type(plain).__name__}, not a dictionary.")
        defaults = vars(cls())
        found = {name: value for name, value in plain.items() if name in defaults}
        for name, value in found.items():
            is_kind = name != "config_kind" or value in ("yaml", "lazy")
            if not is_kind or (defaults[name] is not None and not isinstance(value, type(defaults[name]))):
                raise ValueError(f"The description in {source} is damaged: {name} is {value!r}.")
        return cls(**found)

    def load_config(self) -> Any:
        """Read the config: a `CfgNode` with the keys of projects that the training had, or an omegaconf `DictConfig`.

        The latter describes calls, and the author of the file chose which: check them with
        `detectron2.config.trusted_calls.refuse_foreign_config` before instantiating it. A config that is missing or
        cannot be read is a `ValueError`.
        """
        if not self.config:
            raise ValueError("The description has no config.")
        if self.config_kind == "lazy":
            content = load_lazy_yaml(self.config, "the config in the checkpoint")
            return OmegaConf.create(content, flags={"allow_objects": True})
        cfg = get_cfg()
        cfg.set_new_allowed(True)
        cfg.merge_from_other_cfg(CfgNode.load_cfg(self.config))
        cfg.set_new_allowed(False)
        return cfg

    def load_metadata(self) -> "Metadata":
        """Return names and colours for drawing; they belong to no registered data set."""
        from detectron2.data import Metadata

        return Metadata().set(name="checkpoint", **self.metadata)


def read_description(path: str) -> CheckpointDescription | None:
    """Read what a checkpoint, at a path or URL, says about itself; of its weights nothing is loaded.

    A file of another program has no description: `None`. A missing file is a `FileNotFoundError`, a damaged one a
    `ValueError`.
    """
    local = os.path.join(path, REST) if is_parts_folder(path) else PathManager.get_local_path(path)
    if not os.path.isfile(local):
        require_file(path)
    kind = file_format(local)
    if kind != "torch":
        refuse_other_files(local)
    plain = None
    if kind == "safetensors":
        text = read_header(local).get(DESCRIPTION)
        try:
            plain = None if text is None else json.loads(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"The description in {path} is damaged: {error}") from error
    elif kind == "torch":
        with open(local, "rb") as file:
            is_archive = file.read(2) == b"PK"  # the older format cannot be mapped, and had no descriptions
        content = read_torch_file(local, mapped=True) if is_archive else None
        plain = content.get(DESCRIPTION) if isinstance(content, Mapping) else None
    return None if plain is None else CheckpointDescription.from_plain(plain, path)


def dataset_metadata(names: Sequence[str]) -> dict[str, Any]:
    """Collect the metadata about classes and keypoints of the first data set that has any, in plain containers."""
    from detectron2.data import MetadataCatalog

    for name in names:
        if name not in MetadataCatalog:  # asking for it would make it
            continue
        known = MetadataCatalog.get(name).as_dict()
        found = {key: plain_containers(known[key]) for key in _METADATA if known.get(key) is not None}
        if found.keys() & {"thing_classes", "stuff_classes", "keypoint_names"}:
            return found
    return {}


def installed_versions() -> dict[str, str]:
    """Return versions of this library and of those that its numbers depend on most."""
    import torch
    import torchvision

    from detectron2 import __version__

    return {"detectron2": __version__, "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
