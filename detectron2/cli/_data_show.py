"""``detectron2 data show``: pictures of samples, as they are or as a model gets them."""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detectron2.cli._common import find_config_file, load_config
from detectron2.cli._data_sources import Source, open_source, register, registered
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper, Metadata, MultiImageMapper
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.data.formats.annotated_images import flat_names
from detectron2.data.images import viewable_rgb
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import atomic_write
from detectron2.visualization.visualizer import Visualizer

__all__ = ["run"]

_TILE = 480
_CAPTION = 16
_MOST_ENLARGED = 4
_NEEDED = {"bbox", "bbox_mode", "category_id"}


def run(args: argparse.Namespace) -> int:
    """Draw samples and say where the pictures are."""
    if args.augmented and not args.config_file:
        raise ValueError("--augmented needs --config-file, which says how images are augmented.")
    if args.num < 1:
        raise ValueError(f"--num is a number of samples from 1 on, not {args.num}.")
    register(args)
    source = open_source(args.source, args)
    if not source.dicts:
        raise ValueError(f"'{source.name}' has no images.")
    chosen = np.random.default_rng(args.seed).permutation(len(source.dicts))[: args.num]
    records = [_drawable(source.dicts[i]) for i in sorted(chosen.tolist())]
    seed_all_rng(args.seed)
    with registered(source) as name:
        mapper = _mapper(args, source, name) if args.augmented else None
        pictures = [
            (record["file_name"], p) for record in records for p in _pictures(record, source, mapper, not args.output)
        ]
    if not pictures:
        raise ValueError("None of the chosen images can be drawn; the reasons are above.")
    if args.output:
        names = flat_names(file for file, _ in pictures)
        for name, (_, picture) in zip(names, pictures, strict=True):
            _save(picture, Path(args.output, os.path.splitext(name)[0] + ".png"))
        sys.stdout.write(f"{len(pictures)} pictures are in {args.output}\n")
    else:
        sheet = args.sheet or "samples.png"
        _save(_contact_sheet(pictures), Path(sheet))
        sys.stdout.write(f"{len(pictures)} samples are in {sheet}\n")
    return 0


def _drawable(record: dict[str, Any]) -> dict[str, Any]:
    """-> a dataset dict with those annotations that can be drawn."""
    annotations = record.get("annotations")
    if annotations is None:
        return record
    good = [a for a in annotations if a.keys() >= _NEEDED and len(a["bbox"]) in (4, 5)]
    return {**record, "annotations": good}


def _mapper(args: argparse.Namespace, source: Source, name: str) -> Any:
    """-> what a config of either kind does with a record in training."""
    cfg = load_config(find_config_file(args.config_file), args.opts)
    if not isinstance(cfg, CfgNode):
        mapper = instantiate(cfg.dataloader.train.mapper)
        return mapper.drawing_from(source.dicts) if isinstance(mapper, MultiImageMapper) else mapper
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)  # where the names of keypoints come from
    return DatasetMapper(cfg, is_train=True)


def _pictures(record: dict[str, Any], source: Source, mapper: Any, as_tile: bool) -> Iterator[Image.Image]:
    """Yield the picture of a record; nothing if its image cannot be read."""
    try:
        if mapper is None:
            drawn = _draw_raw(record, source.metadata, as_tile)
        else:
            drawn = _draw_mapped(mapper, record, source.metadata, as_tile)
    except (OSError, ValueError, TypeError) as e:
        sys.stderr.write(f"left out: {record.get('file_name')}: {e}\n")
        return
    yield Image.fromarray(drawn)


def _scale(image: np.ndarray, as_tile: bool) -> float:
    """-> the scale to draw at: words are as large in each tile of a sheet, and do not cover small images."""
    return min(_TILE / max(image.shape[:2]), _MOST_ENLARGED) if as_tile else 1.0


def _draw_raw(record: dict[str, Any], metadata: Metadata, as_tile: bool) -> np.ndarray:
    try:
        image = read_image(record["file_name"], "RGB")
    except ValueError:  # values or channels that RGB does not have
        image = viewable_rgb(read_image(record["file_name"]))
    return Visualizer(image, metadata, scale=_scale(image, as_tile)).draw_dataset_dict(record).get_image()


def _draw_mapped(mapper: Any, record: dict[str, Any], metadata: Metadata, as_tile: bool) -> np.ndarray:
    """Draw the input of the model: the image tensor back as a picture, and the annotations that go with it."""
    mapped = mapper(record)
    inner = mapper.mapper if isinstance(mapper, MultiImageMapper) else mapper
    image, order = mapped["image"].permute(1, 2, 0).numpy(), getattr(inner, "image_format", "RGB")
    image = viewable_rgb(image) if order is None else convert_image_to_rgb(image, order)
    visualizer = Visualizer(image, metadata, scale=_scale(image, as_tile))
    if "sem_seg" in mapped:
        visualizer.draw_sem_seg(mapped["sem_seg"], area_threshold=0, alpha=0.5)
    instances = mapped.get("instances")
    if instances is not None and len(instances):
        names = metadata.get("thing_classes") or ()
        labels = instances.gt_classes.tolist()
        visualizer.overlay_instances(
            boxes=instances.gt_boxes,
            labels=[str(names[i]) if 0 <= i < len(names) else str(i) for i in labels],
            masks=instances.gt_masks if instances.has("gt_masks") else None,
            keypoints=instances.gt_keypoints if instances.has("gt_keypoints") else None,
            assigned_colors=visualizer._colors_of(labels, True),
        )
    return visualizer.get_output().get_image()


def _contact_sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """-> all pictures side by side, each with the name of its file."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    for _, picture in pictures:
        picture.thumbnail((_TILE, _TILE))
    width = max(p.width for _, p in pictures)
    height = max(p.height for _, p in pictures) + _CAPTION
    gap = 4
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    for n, (file, picture) in enumerate(pictures):
        x, y = gap + n % columns * (width + gap), gap + n // columns * (height + gap)
        name = os.path.basename(file)
        draw.text((x + 2, y + 2), name[: max(width // 7, 1)], fill=(230, 230, 230))
        sheet.paste(picture, (x, y + _CAPTION))
    return sheet


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_write(path, "wb") as f:
        picture.save(f, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
