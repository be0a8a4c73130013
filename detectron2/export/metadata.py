"""`model.json`: all that a program without this library has to know of an exported model.

The same text lies inside the artifact, where its format has a place for it.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detectron2.checkpoint.description import installed_versions
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.export.runtime.predict import wrong_values

__all__ = ["LAYOUT", "describe", "preprocessing_of", "read_description"]

LAYOUT = 1
"""Number of the arrangement of `model.json`; a program refuses those with a higher one than it knows."""
_NEEDED = ("format", "artifact", "inputs", "outputs", "task", "preprocessing", "dynamic", "size", "stuff_classes")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")  # whose versions are told where they are there


def preprocessing_of(model: nn.Module, mapper: Any) -> dict[str, Any]:
    """Describe the way from the file of an image to the input of a model.

    Args:
        model: with `pixel_mean` and `pixel_std`, and a `backbone` that says how it wants images padded.
        mapper: a `DatasetMapper` for inference: colour order, EXIF, and a resize to a length of the shortest edge.

    Returns:
        Plain values: "channels", "short_edge" (0 to leave images as they are), "long_edge", "exif",
        "size_divisibility", "square", "pixel_mean", "pixel_std". Lengths are in pixels.

    Raises:
        ValueError: the mapper does something to images that has no place in this description.
    """
    steps = [step for step in _steps(mapper) if not isinstance(step, T.NoOpTransform)]
    short, long = 0, 0
    if steps:
        if len(steps) > 1 or not isinstance(steps[0], T.ResizeShortestEdge):
            raise ValueError(
                "An exported model knows one way to prepare an image, ResizeShortestEdge; the mapper of this config "
                f"does {', '.join(type(s).__name__ for s in steps)}. Export it with a mapper that has this resize, or "
                "none, and do the rest where the model is used."
            )
        lengths = list(dict.fromkeys(int(x) for x in steps[0].short_edge_length))
        if len(lengths) > 1:
            raise ValueError(f"The mapper draws the size of images from {lengths}; give it one length.")
        short, long = lengths[0], int(min(steps[0].max_size, 2**31 - 1))
    channels = getattr(mapper, "image_format", None) or getattr(model, "input_format", None) or "BGR"
    if channels not in ("BGR", "RGB"):
        raise ValueError(f"An exported model takes images of the channels BGR or RGB, not {channels}.")
    backbone: Any = getattr(model, "backbone", None)
    own = int(getattr(model, "size_divisibility", 0) or 0)  # Panoptic-DeepLab asks for its own
    constraints = getattr(backbone, "padding_constraints", None) or {}
    divisibility = own if own > 0 else int(getattr(backbone, "size_divisibility", 0) or 0)
    return {
        "channels": channels,
        "short_edge": short,
        "long_edge": long,
        "exif": getattr(mapper, "exif", "apply"),
        "size_divisibility": divisibility or int(constraints.get("size_divisibility", 0)),
        "square": int(getattr(model, "square_size", 0) if own > 0 else constraints.get("square_size", 0)),
        "pixel_mean": _plain(getattr(model, "pixel_mean", ())),
        "pixel_std": _plain(getattr(model, "pixel_std", ())),
    }


def _steps(mapper: Any) -> list[Any]:
    augmentations = getattr(mapper, "augmentations", None)
    return list(getattr(augmentations, "augs", augmentations) or [])


def describe(
    graph: Any,
    model: nn.Module,
    *,
    preprocessing: Mapping[str, Any],
    metadata: Any = None,
    cfg: Any = None,
    **facts: Any,
) -> dict[str, Any]:
    """Make the content of `model.json`.

    Args:
        graph: what `detectron2.export.graphs.build_graph` made of the model.
        model: whose thresholds and numbers of classes are told.
        preprocessing: of `preprocessing_of`.
        metadata: names and colours, as in `detectron2.data.Metadata`; classes without a name get their number.
        cfg: the config, of which a hash tells later whether it is the same.
        **facts: "format", "artifact", "dynamic", "size", "precision", "output_layout", "masks", "max_detections",
            "score_threshold".

    Returns:
        Plain values, in the order of the documentation.
    """
    known: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else getattr(metadata, "as_dict", dict)()
    task = graph.task
    rules = graph.rules() if task == "mask_classification" else None
    has_instances = task in ("instances", "keypoints", "panoptic") or bool(rules and rules["instances"])
    limit = facts.get("max_detections")
    if limit is None and has_instances:
        limit = _find(model, ("test_topk_per_image", "max_detections_per_image"))
    elif limit is None and task == "proposals":
        limit = _find(model, ("post_nms_topk",))[False]
    if rules:
        num_things, num_stuff = graph.class_counts()
    else:
        num_things, num_stuff = _find(model, ("num_classes",), _of_things) if has_instances else 0, _num_stuff(model)
    things = _names(known.get("thing_classes"), num_things)
    stuff = None
    if (rules and (rules["semantic"] or rules["panoptic"])) or task in ("semantic", "panoptic", "panoptic_deeplab"):
        stuff = _names(known.get("stuff_classes"), num_stuff)
    threshold = None
    if "score_threshold" in graph.input_names or (rules and has_instances):
        threshold = _find(model, ("test_score_thresh",))
        threshold = facts.get("score_threshold") or 0.0 if threshold is None else threshold
    return {
        "layout": LAYOUT,
        "format": facts["format"],
        "artifact": facts["artifact"],
        "architecture": type(model).__name__,
        "task": task,
        "inputs": list(graph.input_names),
        "outputs": list(graph.output_names),
        "output_layout": facts.get("output_layout", "padded"),
        "masks": facts.get("masks") if "masks" in graph.output_names else None,
        "dynamic": list(facts["dynamic"]),
        "size": None if facts["size"] is None else list(facts["size"]),
        "max_detections": limit,
        "score_threshold": threshold,
        "mask_threshold": 0.5,
        "classes": things,
        "class_colors": _plain(known.get("thing_colors")),
        "stuff_classes": stuff,
        "stuff_colors": _plain(known.get("stuff_colors")) if stuff is not None else None,
        "keypoints": _keypoints(known) if "keypoint_heatmaps" in graph.output_names else None,
        "preprocessing": dict(preprocessing),
        "panoptic": _panoptic(task, model, things),
        "mask_classification": rules,
        "versions": {**installed_versions(), **_versions(_PACKAGES)},
        "config_sha256": _hash(cfg),
        "precision": facts["precision"],
    }


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Read the description of an exported model.

    Args:
        path: the folder of an export, a file in it, or its `model.json`.

    Returns:
        What `describe` made.

    Raises:
        FileNotFoundError: there is no `model.json`.
        ValueError: the file is damaged, or of a later version of this library.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "model.json"
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: {path} is not what 'detectron2 export' writes.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    layout = content.get("layout") if isinstance(content, dict) else None
    if not isinstance(layout, int):
        raise ValueError(f"{file} is damaged: it has no number of its layout.")
    if layout > LAYOUT:
        raise ValueError(
            f"{file} has the layout {layout}, and this version of detectron2 reads those up to {LAYOUT}. Use the "
            "version that exported the model, or export it again."
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}. Copy it again, or export anew.")
    if wrong := wrong_values(content):
        raise ValueError(f"{file} is damaged: {'; '.join(wrong)}. Copy it again, or export anew.")
    return content


def _find(model: nn.Module, names: Sequence[str], is_wanted: Any = None) -> Any:
    """Return the first attribute of one of these names in a model's modules; None if there is none."""
    for path, module in model.named_modules():
        for name in names:
            value = getattr(module, name, None)
            if value is not None and (is_wanted is None or is_wanted(path)):
                return value
    return None


def _of_things(path: str) -> bool:
    return "sem_seg" not in path and not path.startswith("backbone")


def _num_stuff(model: Any) -> int:
    head = getattr(model, "sem_seg_head", None)
    count = getattr(head, "num_classes", None)
    if count is None and hasattr(head, "predictor"):
        count = getattr(head.predictor, "out_channels", 0)  # pyright: ignore[reportOptionalMemberAccess]
    return count or 0


def _names(names: Any, count: Any) -> list[str]:
    """Return the names of classes, or numbers where there are none, or not as many as the model has."""
    names = list(names or ())
    return names if names and (not count or len(names) == count) else [str(i) for i in range(count or 0)]


def _keypoints(known: Mapping[str, Any]) -> dict[str, Any]:
    names = list(known.get("keypoint_names") or ())
    rules = known.get("keypoint_connection_rules") or ()
    return {
        "names": names,
        "connections": [[a, b, _plain(color)] for a, b, color in rules],
        "flip_map": _plain(known.get("keypoint_flip_map") or ()),
    }


def _panoptic(task: str, model: Any, things: list[str]) -> dict[str, Any] | None:
    """What the merge of things and stuff depends on."""
    if task == "panoptic":
        return {
            "overlap_threshold": model.combine_overlap_thresh,
            "stuff_area": model.combine_stuff_area_thresh,
            "instance_threshold": model.combine_instances_score_thresh,
            "thing_classes": things,
        }
    if task == "panoptic_deeplab":
        return {
            "thing_ids": sorted(model.meta.thing_dataset_id_to_contiguous_id.values()),
            "label_divisor": model.meta.label_divisor,
            "stuff_area": model.stuff_area,
            "center_threshold": model.threshold,
            "nms_kernel": model.nms_kernel,
            "top_k": model.top_k,
        }
    return None


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hash(cfg: Any) -> str | None:
    if isinstance(cfg, CfgNode):
        text = cfg.dump()
    elif isinstance(cfg, DictConfig):
        text = OmegaConf.to_yaml(cfg)
    else:
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return lists and numbers for tensors, arrays and tuples; tensors of one value for each channel become flat."""
    if hasattr(value, "flatten") and hasattr(value, "tolist"):
        return value.flatten().tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
