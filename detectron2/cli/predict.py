"""`detectron2 predict`: run a trained model on images, write pictures and a JSON file.

detectron2 predict --weights output/demo/model_final.pth a.jpg b.png folder/ --output predictions

Checkpoints bring their config and class names along; --config-file is for those of other programs.
"""

import argparse
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

from detectron2.cli.common import (
    load_chosen_config,
    load_metadata,
    load_model,
    register_datasets,
    write_json,
)
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.data.images import viewable_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.test_time_augmentation import build_model_with_tta
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy", ".npz")


def run(args: argparse.Namespace) -> int:
    """Predict on every image."""
    register_datasets(args)
    images, opts = _split_words([*args.image, *args.input])
    if not images:
        raise ValueError("There is nothing to predict on: name images, or folders of images.")
    files = list(_image_files(images))
    output = Path(args.output)
    pictures = _picture_paths(files, output)
    cfg = load_chosen_config(args, opts)
    model, mapper = load_model(cfg, args.weights)
    if hasattr(model, "mask_format"):
        # Drawing and JSON take run lengths, which are a small part of whole masks.
        model.mask_format = "rle"  # pyright: ignore[reportArgumentType] (a plain attribute of models with masks)
    if isinstance(cfg, CfgNode) and cfg.TEST.AUG.ENABLED:
        model = build_model_with_tta(cfg, model)
    metadata = load_metadata(cfg, args.weights)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    left_out = 0
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
                instances = _instances(model([sample])[0])
                instances = instances[instances.scores >= args.confidence]
                Visualizer(image, metadata).draw_instance_predictions(instances).save(str(picture))
                for record in instances_to_coco_json(instances, path):
                    records.append({"file_name": path, **{k: v for k, v in record.items() if k != "image_id"}})
    finally:  # after Ctrl-C the pictures that were drawn have their records, too
        write_json(output / "predictions.json", records)
    done = f"{len(records)} objects in {len(files) - left_out} images"
    done += f" ({left_out} cannot be read)" if left_out else ""
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


def _instances(output: dict[str, Any]) -> Instances:
    """Return the objects in the output of a model, on the CPU."""
    if "instances" not in output:
        raise ValueError(f"This command is for models that find objects; this one returns {', '.join(output)}.")
    return output["instances"].to("cpu")


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


def _image_files(paths: list[str]) -> Iterator[str]:
    """Yield the images among files and folders."""
    for path in paths:
        if os.path.isdir(path):
            found = sorted(str(p) for p in Path(path).iterdir() if p.suffix.lower() in _SUFFIXES)
            if not found:
                raise FileNotFoundError(f"No images ({', '.join(_SUFFIXES)}) in the folder {path}")
            yield from found
        elif os.path.isfile(path):
            yield path
        else:
            raise FileNotFoundError(f"No such image or folder: {path}")
