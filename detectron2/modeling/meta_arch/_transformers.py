"""What detectors and segmenters of Hugging Face transformers share: reading their configs and building them.

transformers is imported when a model is built, not before. `L` labels of the network, `K` classes of the data.
"""

import contextlib
import difflib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.hub_files import advice_of_hub
from detectron2.utils.registry import locate

from .inputs import DetectorBase, normalized_batch

__all__ = [
    "TransformersModel",
    "arguments_from",
    "built_network",
    "class_names",
    "pixel_mask",
    "read_config",
    "require_kind",
    "token_ids",
]

logger = logging.getLogger(__name__)

_PREFIX = "MODEL.HF"


def _import_transformers() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import transformers
    except ImportError as e:
        raise ImportError(
            f"This model needs Hugging Face transformers, which cannot be imported: {e}. Install it with: "
            "pip install 'detectron2[transformers]'"
        ) from e
    return transformers


def read_config(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """The whole config of a model of transformers as plain values; pretrained weights of a backbone are turned off.

    `source` is such a config, its JSON text, a JSON file, a folder with `config.json`, or a name on the hub.
    """
    transformers = _import_transformers()
    if isinstance(source, Mapping):
        config = _config_of(transformers, dict(source))
    elif source.lstrip().startswith("{"):
        config = _config_of(transformers, _parsed(source, "MODEL.HF.CONFIG"))
    elif os.path.isfile(source):
        with open(source, encoding="utf-8") as file:
            config = _config_of(transformers, _parsed(file.read(), source))
    else:
        with _clear_errors(source):
            config = transformers.AutoConfig.from_pretrained(source)
    content = json.loads(config.to_json_string(use_diff=False))
    _turn_off_downloads(content)
    return content


def _parsed(text: str, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{origin} is not valid JSON: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"{origin} should hold keys and values, but holds a {type(content).__name__}.")
    return content


def _config_of(transformers: Any, content: dict[str, Any]) -> Any:
    kind = content.get("model_type")
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        close = difflib.get_close_matches(str(kind or ""), list(known), n=3)
        raise ValueError(
            f"the config of transformers has model_type {kind!r}, which transformers {transformers.__version__} does "
            f"not know; it must be a name such as {', '.join(map(repr, close or ['detr', 'rt_detr_v2']))}"
        )
    with _config_errors(str(kind)):
        return known[kind].from_dict(content)


@contextlib.contextmanager
def _config_errors(kind: str) -> Iterator[None]:
    """Turn what transformers raises at values that it cannot use, each kind its own, into a `ValueError`."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise ValueError(f"transformers cannot build a {kind!r} with this config (MODEL.HF.CONFIG): {why}") from error


def _turn_off_downloads(content: Any) -> None:
    """The weights of the whole model follow; a backbone's own, from the hub, would be overwritten."""
    if isinstance(content, dict):
        if "use_pretrained_backbone" in content:
            content["use_pretrained_backbone"] = False
        for key in ("dtype", "_name_or_path"):  # of the file that it was read from
            content.pop(key, None)
        for value in content.values():
            _turn_off_downloads(value)


class _clear_errors:
    """Turn what transformers raises where it finds no model into an error that names the cures."""

    def __init__(self, name: str, part: str = "model"):
        self.name = name
        self.part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if kind is not None and issubclass(kind, (OSError, ValueError)):
            reason = next(iter(str(error).splitlines()), kind.__name__).rstrip(".")
            advice = advice_of_hub(error) or (
                "Without a network, download the model elsewhere and give the folder: MODEL.HF.PRETRAINED "
                "/path/to/folder"
            )
            raise FileNotFoundError(
                f"transformers finds no {self.part} {self.name!r}: it is not a folder with its files, and could not be "
                f"read from the hub ({reason}). {advice}"
            ) from error


def require_kind(config: Mapping[str, Any], supported: Sequence[str], task: str) -> None:
    """Raise a ValueError unless the architecture of a config is among those that a class can wrap."""
    if config["model_type"] not in supported:
        raise ValueError(
            f"the config of transformers describes a {config['model_type']!r} model, but {task} wraps: "
            f"{', '.join(sorted(supported))}"
        )


def built_network(config: Mapping[str, Any], pretrained: str, auto_class: str) -> nn.Module:
    """The network of a config in float32, with weights of the folder or hub name `pretrained`, or random ones."""
    transformers = _import_transformers()
    auto = getattr(transformers, auto_class)
    described = _config_of(transformers, dict(config))
    if not pretrained:
        with _config_errors(described.model_type):
            return auto.from_config(described, dtype=torch.float32).float()  # some make a parameter of float64
    with _clear_errors(pretrained):
        network, info = auto.from_pretrained(
            pretrained, config=described, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if new:
        logger.info("These weights are not in %s and begin with random values:\n  %s", pretrained, "\n  ".join(new))
    return network.float().train()


def token_ids(texts: Sequence[str], source: str | Mapping[str, Any], max_length: int) -> dict[str, list[int]]:
    """Numbers of the words of each text, by the tokenizer in a folder or of a name on the hub."""
    if not isinstance(source, str) or source.lstrip().startswith("{") or os.path.isfile(source):
        raise ValueError(
            f"this network reads text, such as {texts[0]!r}, but its config comes without a tokenizer. Set "
            f"{_PREFIX}.PRETRAINED or {_PREFIX}.CONFIG to a folder that has the files of the tokenizer beside "
            "config.json, or to a name on the hub"
        )
    with _clear_errors(source, "tokenizer"):
        tokenizer = _import_transformers().AutoTokenizer.from_pretrained(source)
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    if all(
        {*tokenizer.all_special_ids}.issuperset(row) for row in ids
    ):  # what transformers makes of a folder without a vocabulary
        raise FileNotFoundError(
            f"the tokenizer of {source} knows no word of {texts[0]!r}: its files, such as vocab.json and merges.txt, "
            "are missing or belong to another network"
        )
    return dict(zip(texts, ids, strict=True))


def arguments_from(cfg: CfgNode, kinds: Sequence[str] = ("thing",)) -> dict[str, Any]:
    """Arguments that all these models take, from a config; classes are the things of its data, or also "stuff"."""
    options = cfg.MODEL.get("HF", CfgNode())
    source, pretrained = options.get("CONFIG", ""), options.get("PRETRAINED", "")
    if not source and not pretrained:
        raise ValueError(
            f"{_PREFIX}.CONFIG and {_PREFIX}.PRETRAINED are empty, so no architecture is known. Set "
            f"{_PREFIX}.PRETRAINED to a folder or a name on the hub, such as facebook/detr-resnet-50, or "
            f"{_PREFIX}.CONFIG to a JSON file"
        )
    config = read_config(source or pretrained)
    names, count = class_names(cfg, kinds), options.get("NUM_CLASSES")
    if count and len(names) != count:
        names = [str(i) for i in range(count)]
    config, label_ids = _with_classes(config, names, options.get("LABEL_IDS", ()))
    if pretrained:
        _warn_of_normalization(pretrained, cfg)
    return {
        "config": config,
        "pretrained": pretrained,
        "label_ids": label_ids,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "input_format": cfg.INPUT.FORMAT,
        "size_divisibility": options.get("SIZE_DIVISIBILITY", 0),
    }


def class_names(cfg: CfgNode, kinds: Sequence[str]) -> list[str]:
    """Class names of the first training set, without the one for all things; none where it is not registered."""
    catalog = locate("detectron2.data.MetadataCatalog")  # by name: `data` is not a layer below `modeling`
    name = next(iter(cfg.DATASETS.TRAIN), "")
    if name not in catalog:
        return []
    names = {kind: list(catalog.get(name).get(f"{kind}_classes") or ()) for kind in kinds}
    if len(kinds) > 1 and names["stuff"][:1] == ["things"]:
        del names["stuff"][0]
    return [str(c) for kind in kinds for c in names[kind]]


def _with_classes(
    config: dict[str, Any], names: Sequence[str], label_ids: Sequence[int]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """A config with as many labels as there are classes, or the labels of it that stand for the classes.

    Labels stay where their number is that of the classes, or where all classes are among them by name; weights of the
    classifier can be used then.
    """
    labels = {int(i): str(name) for i, name in config["id2label"].items()}
    if label_ids or not names:
        return config, tuple(label_ids)
    by_name = {name.casefold(): i for i, name in labels.items()}
    if len(names) == len(labels):
        return config, ()
    if len(names) < len(labels) and all(str(name).casefold() in by_name for name in names):
        return config, tuple(by_name[str(name).casefold()] for name in names)
    ids = {str(i): str(name) for i, name in enumerate(names)}
    # Two classes may have one name, but a label has one number.
    config = {**config, "id2label": ids, "label2id": {name: int(i) for i, name in ids.items()}}
    config.pop("num_labels", None)
    return config, ()


def _warn_of_normalization(pretrained: str, cfg: CfgNode) -> None:
    """Tell when the config normalises images otherwise than the weights were trained with."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(pretrained)
    except (OSError, ValueError):
        return
    mean, std = [0.0] * 3, [1.0] * 3
    if content.get("do_normalize", True):
        mean, std = content.get("image_mean", mean), content.get("image_std", std)
    order = -1 if cfg.INPUT.FORMAT == "BGR" else 1
    wanted = {
        "MODEL.PIXEL_MEAN": [round(255 * x, 3) for x in mean][::order],
        "MODEL.PIXEL_STD": [round(255 * x, 3) for x in std][::order],
    }
    given = {"MODEL.PIXEL_MEAN": cfg.MODEL.PIXEL_MEAN, "MODEL.PIXEL_STD": cfg.MODEL.PIXEL_STD}
    wrong = [
        key
        for key, value in wanted.items()
        if len(value) != len(given[key]) or any(abs(a - b) > 0.05 for a, b in zip(value, given[key], strict=True))
    ]
    if wrong:
        logger.warning(
            "%s was trained with another normalization than the config has; with INPUT.FORMAT %s set: %s",
            pretrained,
            cfg.INPUT.FORMAT,
            ", ".join(f"{key} {wanted[key]}" for key in wrong),
        )


class TransformersModel(DetectorBase):
    """Base of models around a network of transformers: images, labels, and a config that travels with checkpoints.

    Args:
        network: the model of transformers, as it is.
        config: its whole config.
        label_ids: for each class the label of the network; empty if class k is label k.
        pixel_mean: one value for each channel, in the order of the image's channels.
        pixel_std: one value for each channel.
        input_format: "BGR" or "RGB", the order of the image's channels; the network gets RGB.
        size_divisibility: images are padded to a multiple of this.
    """

    label_index: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        *,
        label_ids: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        size_divisibility: int,
    ):
        super().__init__()
        if input_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is BGR or RGB for models of transformers, got {input_format!r}")
        self.network: Any = network
        self.transformers_config = dict(config)
        count = len(self.transformers_config["id2label"])
        if any(not 0 <= i < count for i in label_ids):
            raise ValueError(
                f"MODEL.HF.LABEL_IDS has {list(label_ids)}, but labels of the network are 0 to {count - 1}"
            )
        self.label_ids = tuple(label_ids)
        self.num_classes = len(self.label_ids) or count
        self.input_format = input_format
        self.size_divisibility = size_divisibility
        self._set_normalization(pixel_mean, pixel_std)
        ids = torch.tensor(self.label_ids or range(count), dtype=torch.int64)
        self.register_buffer("label_index", ids, persistent=False)

    @property
    def portable_keys(self) -> dict[str, Any]:
        """Keys of a config that rebuild this model without files of transformers; checkpoints carry them."""
        return {
            f"{_PREFIX}.CONFIG": json.dumps(self.transformers_config, sort_keys=True),
            f"{_PREFIX}.PRETRAINED": "",
            f"{_PREFIX}.NUM_CLASSES": self.num_classes,
            f"{_PREFIX}.LABEL_IDS": self.label_ids,
        }

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Move images `Tensor[C, H, W]` to the model's device, normalise them, and pad them to one size, as RGB."""
        images = normalized_batch(
            batched_inputs,
            self.pixel_mean,
            self.pixel_std,
            size_divisibility=self.size_divisibility,
            **({"pad_to": self.pad_to} if self.training and self.pad_to else {}),
        )
        images.tensor = self._to_rgb(images.tensor)
        return images

    def _to_rgb(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1) if self.input_format == "BGR" else images

    def _labels_of(self, classes: torch.Tensor) -> torch.Tensor:
        """Labels of the network for classes of the data, after a look whether there are such classes."""
        if (
            classes.device.type == "cpu"
            and len(classes)
            and not 0 <= int(classes.min()) <= int(classes.max()) < (self.num_classes)
        ):
            raise ValueError(
                f"gt_classes go from {int(classes.min())} to {int(classes.max())}, but the model has "
                f"{self.num_classes} classes; set MODEL.HF.NUM_CLASSES to the number of the data set"
            )
        return self.label_index[classes]


def pixel_mask(image_sizes: Sequence[tuple[int, int]], padded: torch.Tensor) -> torch.Tensor:
    """Which pixels of a padded batch `Tensor[N, C, H, W]` are of an image: int64 `Tensor[N, H, W]` of 0 and 1."""
    mask = torch.zeros(len(padded), *padded.shape[2:], dtype=torch.int64, device=padded.device)
    for row, (height, width) in zip(mask, image_sizes, strict=True):
        row[:height, :width] = 1
    return mask
