"""``detectron2 predict``: run a trained model on images, write pictures and a JSON file.

detectron2 predict --weights output/demo/model_final.pth --input a.jpg b.png folder/ --output predictions
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detectron2.cli._common import (
    add_config_arguments,
    add_dataset_arguments,
    find_config_file,
    load_config,
    load_metadata,
    load_model,
    register_datasets,
    write_json,
)
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 predict``."""
    add_config_arguments(parser, required=False)
    add_dataset_arguments(parser)
    parser.add_argument("--weights", default="", metavar="FILE", help="a checkpoint; default: that of the config")
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="images, or folders of images")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="where pictures and predictions.json go")
    parser.add_argument("--confidence", type=float, default=0.5, help="least score of what is drawn and written")


def run(args: argparse.Namespace) -> int:
    """Predict on every image."""
    register_datasets(args)
    files = list(_image_files(args.input))
    output = Path(args.output)
    pictures = _picture_paths(files, output)
    cfg = load_config(find_config_file(_config_file(args)), args.opts)
    model, mapper = load_model(cfg, args.weights)
    metadata = load_metadata(cfg, args.weights)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    order = mapper.image_format or "RGB"
    with torch.inference_mode():
        for path, picture in zip(tqdm(files, unit="image", disable=not sys.stderr.isatty()), pictures, strict=True):
            instances = _instances(model([mapper({"file_name": path})])[0])
            instances = instances[instances.scores >= args.confidence]
            image = convert_image_to_rgb(read_image(path, order), order)
            Visualizer(image, metadata).draw_instance_predictions(instances).save(str(picture))
            for record in instances_to_coco_json(instances, path):
                records.append({"file_name": path, **{k: v for k, v in record.items() if k != "image_id"}})
    write_json(output / "predictions.json", records)
    sys.stdout.write(f"{len(records)} objects in {len(files)} images; pictures and predictions.json are in {output}\n")
    return 0


def _config_file(args: argparse.Namespace) -> str:
    """-> the config given, or the one that training left beside the weights."""
    if args.config_file:
        return args.config_file
    if not args.weights:
        raise ValueError("Give --config-file, or --weights of a training run, which has its config.yaml beside it.")
    beside = os.path.join(os.path.dirname(args.weights), "config.yaml")
    if not os.path.isfile(beside):
        raise FileNotFoundError(
            f"There is no {beside}, in which training writes its config beside the weights; give --config-file."
        )
    return beside


def _instances(output: dict[str, Any]) -> Instances:
    """-> the objects in the output of a model, on the CPU."""
    if "instances" not in output:
        raise ValueError(f"This command is for models that find objects; this one returns {', '.join(output)}.")
    return output["instances"].to("cpu")


def _picture_paths(files: list[str], folder: Path) -> list[Path]:
    """-> one PNG for each image, all different, and none of them an image that is read."""
    taken = {Path(f).resolve() for f in files}
    paths = []
    for file in files:
        stem = Path(file).stem
        names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
        path = next(p for p in (folder / f"{name}.png" for name in names) if p.resolve() not in taken)
        taken.add(path.resolve())
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
