"""``detectron2 predict``: run a trained model on images, write pictures and a JSON file.

detectron2 predict --weights output/demo/model_final.pth --input a.jpg b.png folder/ --output predictions
"""

import argparse
import json
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
    load_config,
    load_metadata,
    load_model,
    register_datasets,
)
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
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
    cfg = load_config(_config_file(args), args.opts)
    model, mapper = load_model(cfg, args.weights)
    files = list(_image_files(args.input))
    metadata = load_metadata(cfg, args.weights)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    with torch.inference_mode():
        for path in tqdm(files, unit="image", disable=not sys.stderr.isatty()):
            instances = model([mapper({"file_name": path})])[0]["instances"].to("cpu")
            instances = instances[instances.scores >= args.confidence]
            image = convert_image_to_rgb(read_image(path, mapper.image_format), mapper.image_format)
            drawing = Visualizer(image, metadata).draw_instance_predictions(instances)
            drawing.save(str(output / f"{Path(path).stem}.png"))
            for record in instances_to_coco_json(instances, path):
                records.append({"file_name": path, **{k: v for k, v in record.items() if k != "image_id"}})
    temporary = output / "predictions.json.tmp"
    temporary.write_text(json.dumps(records))
    os.replace(temporary, output / "predictions.json")
    sys.stdout.write(f"{len(records)} objects in {len(files)} images; pictures and predictions.json are in {output}\n")
    return 0


def _config_file(args: argparse.Namespace) -> str:
    """-> the config given, or the one that training left beside the weights."""
    if args.config_file:
        return args.config_file
    beside = os.path.join(os.path.dirname(args.weights), "config.yaml")
    if args.weights and os.path.isfile(beside):
        return beside
    raise ValueError("Give --config-file, or --weights of a training run, which has its config.yaml beside it.")


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
