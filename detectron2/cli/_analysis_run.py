"""Finding what `detectron2 analyze` is to look at: predictions in a file or in a run's folder, and their data."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detectron2.cli.common import REGISTERING, register_datasets_of_run
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_dict
from detectron2.evaluation.analysis.inputs import FIELDS, TASKS, read_json

__all__ = ["Source", "find_sources", "open_data", "tasks_of"]

# What evaluators write, and what it holds.
_FILES = {
    "coco_instances_results.json": "instances",
    "lvis_instances_results.json": "instances",
    "sem_seg_predictions.json": "sem_seg",
    "predictions.json": "panoptic_seg",
}


@dataclass(frozen=True)
class Source:
    """Predictions.

    Args:
        file: where they are.
        kind: `"instances"`, `"sem_seg"` or `"panoptic_seg"`.
        content: of the file; None for labels of pixels, which are read image by image.
        data: name or file of the ground truth.
        sigmas: of keypoints, as the run's config says; empty for those of COCO's persons.
        exif: how the run reads images (`INPUT.EXIF`).
    """

    file: str
    kind: str
    content: Any
    data: str
    sigmas: tuple[float, ...] = ()
    exif: str = "apply"


def find_sources(path: str, data: str | None) -> list[Source]:
    """Find predictions and their data set.

    Args:
        path: a file with predictions; or the output folder of a run, or the folder in it with its predictions.
        data: name or file of the ground truth; None: the test data set of the run's config.

    Returns:
        At least one source; of a run one for each kind of predictions.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not known what the predictions belong to, or the file holds no predictions.
    """
    if os.path.isdir(path):
        folders = [Path(path), Path(path, "inference")]
        files = {folder / name: kind for folder in folders for name, kind in _FILES.items()}
        kinds = [(file, kind) for file, kind in files.items() if file.is_file()]
        # What `predict` writes has the name of the panoptic evaluator's file.
        kinds = [(f, _kind_of(read_json(str(f)), str(f)) if k == "panoptic_seg" else k) for f, k in kinds]
        found = [(file, kind, read_json(str(file)) if kind == "instances" else None) for file, kind in kinds]
    else:
        content = read_json(path)
        kind = _kind_of(content, path)
        found = [(Path(path), kind, content if kind == "instances" else None)]
    if not found:
        parts = sorted(str(p.parent) for p in Path(path).glob("*/*/*_results.json"))
        advice = f" There are some in {', '.join(parts)}." if parts else " 'detectron2 eval' writes them."
        raise FileNotFoundError(
            f"{path} has no predictions ({', '.join(_FILES)}), neither in itself nor in 'inference'.{advice}"
        )
    folder = found[0][0].parent
    config = _config_of(folder)
    name = data or _data_of(config, folder, path)
    sigmas = tuple(_value(config, "TEST", "KEYPOINT_OKS_SIGMAS") or ())
    exif = _value(config, "INPUT", "EXIF") or _value(config, "dataloader", "test", "mapper", "exif") or "apply"
    return [Source(str(file), kind, content, name, sigmas, exif) for file, kind, content in found]


def _kind_of(content: Any, path: str) -> str:
    if isinstance(content, dict) and any("segments_info" in a for a in content.get("annotations") or ()):
        return "panoptic_seg"
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and "score" not in first and {"file_name", "segmentation"} <= first.keys():
        return "sem_seg"
    if isinstance(content, dict) and "images" in content:
        raise ValueError(
            f"{path} is ground truth in COCO format; predictions are a list of dictionaries, as COCOEvaluator writes "
            "them to coco_instances_results.json."
        )
    return "instances"


def _config_of(folder: Path) -> dict[str, Any]:
    """Return the config of the run that a folder of predictions belongs to as a dictionary; empty if there is none."""
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "config.yaml").is_file():
            try:
                content = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
            except yaml.YAMLError:  # of another program
                return {}
            return content if isinstance(content, dict) else {}
    return {}


def _data_of(config: dict[str, Any], folder: Path, path: str) -> str:
    """Return the run's test data set: a registered name, or the file that the evaluator wrote by the predictions."""
    names = _test_names(config)
    if not names:
        raise ValueError(f"No config next to the predictions in {path} says what data set they belong to; give --data.")
    if len(names) > 1 and folder.name in names:  # evaluations of several data sets have a folder each
        names = [folder.name]
    if len(names) > 1:
        raise ValueError(f"The run was evaluated on {', '.join(names)}; say with --data to which {path} belongs.")
    for place in (folder, folder.parent, folder.parent.parent):
        register_datasets_of_run(place, names)
    converted = folder / f"{names[0].replace('/', '_')}_coco_format.json"
    if names[0] not in DatasetCatalog and converted.is_file():
        return str(converted)
    return names[0]


def _test_names(config: dict[str, Any]) -> list[str]:
    keys = ("DATASETS", "TEST") if "DATASETS" in config else ("dataloader", "test", "dataset", "names")
    names = _value(config, *keys)
    return [names] if isinstance(names, str) else [str(name) for name in names or ()]


def _value(config: dict[str, Any], *keys: str) -> Any:
    """Return what a config says at this place; None if it does not."""
    part: Any = config
    for key in keys:
        part = part.get(key) if isinstance(part, dict) else None
    return part


def open_data(name: str, images: str | None) -> tuple[Any, list[str]]:
    """Find ground truth by name or file: a file or a dictionary in COCO format, and folders of the images."""
    given = [images] if images else []
    if images and not os.path.isdir(images):
        raise FileNotFoundError(f"--images: there is no folder {images}.")
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        roots = [*given, metadata.get("image_root") or "", ""]
        json_file = metadata.get("json_file")
        return (json_file if json_file else convert_to_coco_dict(name)), roots
    if not os.path.isfile(name):
        raise FileNotFoundError(
            f"--data: '{name}' is neither a file (working directory: '{os.getcwd()}') nor a registered data set. "
            f"{REGISTERING}"
        )
    beside = os.path.dirname(name)
    return name, [*given, beside, os.path.join(beside, "images"), ""]


def tasks_of(results: Sequence[Any], objects: Sequence[dict[str, Any]], chosen: Sequence[str]) -> list[str]:
    """Return the chosen tasks, or all that predictions and annotations have; at least one, in the order of COCO's."""
    if chosen:
        return [task for task in TASKS if task in chosen]
    first = results[0] if isinstance(results, Sequence) and results and isinstance(results[0], dict) else {}
    fields = {task for task, field in FIELDS.items() if field in first}
    annotated = {task for task, field in FIELDS.items() if any(a.get(field) for a in objects)}
    both = [task for task in TASKS if task in fields & (annotated | {"bbox"})]
    return both or ["bbox"]
