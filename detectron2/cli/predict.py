"""`detectron2 predict`: run a trained model on images, write pictures and a JSON file.

detectron2 predict --weights output/demo/model_final.pth a.jpg b.png folder/ --output predictions

Checkpoints bring their config and class names along; --config-file is for those of other programs.
"""

import argparse
import glob
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detectron2.cli.common import load_chosen_config, register_datasets, write_json
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.data.images import viewable_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.inference.loading import load_metadata, load_model
from detectron2.modeling.test_time_augmentation import build_model_with_tta
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy", ".npz")
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def run(args: argparse.Namespace) -> int:
    """Predict on every image."""
    register_datasets(args)
    images, opts = _split_words([*args.image, *args.input])
    if not images:
        raise ValueError("There is nothing to predict on: name images, or folders of images.")
    files = list(dict.fromkeys(_image_files(images, Path(args.output))))
    output = Path(args.output)
    pictures = _picture_paths(files, output)
    cfg = load_chosen_config(args, opts)
    image_ids = _image_ids(files, args)
    model, mapper = load_model(cfg, args.weights)
    if hasattr(model, "mask_format"):
        # Drawing and JSON take run lengths, which are a small part of whole masks.
        model.mask_format = "rle"  # pyright: ignore[reportArgumentType] (a plain attribute of models with masks)
    if isinstance(cfg, CfgNode) and cfg.TEST.AUG.ENABLED:
        model = build_model_with_tta(cfg, model)
    metadata = load_metadata(cfg, args.weights)
    output.mkdir(parents=True, exist_ok=True)
    classes = metadata.get("thing_classes") or []
    ids = _category_ids(args, classes)
    records: list[dict[str, Any]] = []
    left_out, drawn = 0, ""
    try:
        with torch.inference_mode():
            for path, picture in zip(tqdm(files, unit="image", disable=not sys.stderr.isatty()), pictures, strict=True):
                try:
                    sample, image = mapper({"file_name": path}), _picture_of(path, mapper)
                except (OSError, ValueError) as e:
                    if len(files) == 1:
                        raise
                    sys.stderr.write(f"left out: {e}\n")  # the others are not to be lost for it
                    left_out += 1
                    continue
                outputs = model([sample])[0]
                instances = outputs["instances"].to("cpu") if "instances" in outputs else None
                instances = instances[instances.scores >= args.confidence] if instances else instances
                drawn = _draw(Visualizer(image, metadata), outputs, instances, picture)
                known = {"file_name": path, "height": image.shape[0], "width": image.shape[1]}
                for record in instances_to_coco_json(instances, image_ids[path]) if instances else []:
                    label = record["category_id"]
                    name = classes[label] if label < len(classes) else str(label)
                    records.append({**record, **known, "category_id": ids.get(name, label), "category_name": name})
    finally:  # after Ctrl-C the pictures that were drawn have their records, too
        write_json(output / "predictions.json", records)
    done = f"{len(records)} objects in {len(files) - left_out} images"
    done += f" ({left_out} cannot be read)" if left_out else ""
    done += f"; the pictures show {drawn}, and the JSON file has objects only" if drawn else ""
    sys.stdout.write(f"{done}; pictures and predictions.json are in {output}\n")
    return 1 if left_out else 0


def _picture_of(path: str, mapper: Any) -> np.ndarray:
    """Return the image, as 8-bit RGB, to draw on."""
    order = mapper.image_format
    image = read_image(path, order, getattr(mapper, "exif", "apply"))
    return viewable_rgb(image) if order is None else convert_image_to_rgb(image, order)


def _split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Return (images, changes to the config), which may be mixed: `KEY VALUE` or `path.key=value` is a change."""
    images, opts = [], []
    rest = iter(words)
    for word in rest:
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.\w+)*", word) and not (os.path.exists(word) or _is_image(word)):
            opts += [word, *itertools.islice(rest, 1)]
        else:
            is_change = not os.path.exists(word) and (word[0:1] in ("~", "+") or re.match(r"[\w.@]+=", word))
            (opts if is_change else images).append(word)
    return images, opts


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _draw(visualizer: Visualizer, outputs: dict[str, Any], instances: Instances | None, picture: Path) -> str:
    """Draw what a model found; return what that is where it is more than objects."""
    drawn = ""
    if "panoptic_seg" in outputs:
        drawn, (labels, segments) = "panoptic segments", outputs["panoptic_seg"]
        visualizer.draw_panoptic_seg(labels.to("cpu"), segments)
    elif instances is not None:
        visualizer.draw_instance_predictions(instances)
    elif "sem_seg" in outputs:
        drawn, scores = "classes of pixels", outputs["sem_seg"]
        if visualizer.metadata.get("stuff_classes") is None:  # nothing without a name would be drawn
            names = [str(label) for label in range(len(scores))]
            visualizer.metadata = Metadata().set(**{**visualizer.metadata.as_dict(), "stuff_classes": names})
        visualizer.draw_sem_seg(scores.argmax(dim=0).to("cpu"))
    else:
        found = ", ".join(outputs)
        raise ValueError(f"This command is for models that find objects or label pixels; this one returns {found}.")
    visualizer.output.save(str(picture))
    return drawn


def _image_ids(files: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return ids of images: those in the --coco data sets, else the numbers that are all names, else from 1 on."""
    known = {os.path.realpath(r["file_name"]): r["image_id"] for n, *_ in args.coco for r in DatasetCatalog.get(n)}
    if all(os.path.realpath(file) in known for file in files):
        return {file: known[os.path.realpath(file)] for file in files}
    stems = {Path(file).stem for file in files}
    are_numbers = len(stems) == len(files) and all(re.fullmatch(r"[0-9]{1,15}", stem) for stem in stems)
    return {file: int(Path(file).stem) if are_numbers else i for i, file in enumerate(files, 1)}


def _category_ids(args: argparse.Namespace, classes: list[str]) -> dict[str, int]:
    """Return the ids of the classes in the first --coco data set; empty if it lacks any: labels count from 0."""
    data = MetadataCatalog.get(args.coco[0][0]) if args.coco else Metadata()
    ids = {label: own for own, label in (data.get("thing_dataset_id_to_contiguous_id") or {}).items()}
    found = {name: ids[label] for label, name in enumerate(data.get("thing_classes") or []) if label in ids}
    return found if found.keys() >= set(classes) else {}


def _picture_paths(files: list[str], folder: Path) -> list[Path]:
    """Return one PNG for each image, all different, and none of them an image that is read."""
    taken = {os.path.realpath(f) for f in files}
    paths = []
    for file in files:
        stem = Path(file).stem
        names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
        path = next(p for p in (folder / f"{name}.png" for name in names) if os.path.realpath(p) not in taken)
        taken.add(os.path.realpath(path))
        paths.append(path)
    return paths


def _image_files(paths: list[str], output: Path) -> Iterator[str]:
    """Yield the images among files, patterns and folders with their sub-folders, but for those in an `output` below."""
    for path in paths:
        if os.path.isdir(path):
            own = os.path.join(os.path.realpath(output), "")
            inside = os.path.join(os.path.realpath(path), "")
            own = own if own != inside and own.startswith(inside) else ""
            found = sorted(str(p) for p in Path(path).rglob("*") if _is_image(p.name) and not p.is_dir())
            found = [p for p in found if not own or not os.path.realpath(p).startswith(own)]
            if not found:
                raise FileNotFoundError(f"No images ({', '.join(_SUFFIXES)}) in the folder {path} and those in it")
            yield from found
        elif os.path.isfile(path):
            if path.lower().endswith(_VIDEOS):
                raise ValueError(f"{path} is a video; python demo/demo.py --video-input {path} draws those.")
            yield path
        elif found := sorted(glob.glob(os.path.expanduser(path), recursive=True)):
            yield from _image_files(found, output)
        else:
            raise FileNotFoundError(f"No such image or folder: {path}")
