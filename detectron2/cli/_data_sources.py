"""What `detectron2 data` works on: files, folders and registered names, read with all their mistakes."""

import argparse
import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from detectron2.cli._common import register_datasets
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.checks.findings import Finding
from detectron2.data.datasets import convert_to_coco_dict, load_coco_json
from detectron2.data.datasets.builtin import is_builtin
from detectron2.data.formats.annotated_images import AnnotatedImages, guess_format
from detectron2.data.formats.coco import content_to_dicts, keypoint_metadata, read_coco
from detectron2.data.formats.voc import read_voc
from detectron2.data.formats.yolo import read_yolo

__all__ = ["Source", "open_data", "open_source", "register", "registered"]


@dataclass
class Source:
    """A data set to look at.

    Args:
        name: as the user calls it.
        dicts: in the standard format, as far as it could be read.
        class_names: in the order of the labels; None if they are not known.
        findings: mistakes found in reading.
        metadata: for drawing.
        data: what was read, if it was read from files.
        drops_degenerate: whether training leaves out degenerate boxes of it.
    """

    name: str
    dicts: list[dict[str, Any]]
    class_names: list[str] | None
    findings: list[Finding]
    metadata: Metadata
    data: AnnotatedImages | None = None
    drops_degenerate: bool = False

    @property
    def format(self) -> str:
        """Its format, for people."""
        return {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}[self.data.format] if self.data else "registered"


def register(args: argparse.Namespace) -> None:
    """Register the data sets of the command line; `--classes` may also be meant for a folder."""
    own = argparse.Namespace(**vars(args))
    own.classes = args.classes if args.voc else None
    register_datasets(own)


def open_source(name: str, args: argparse.Namespace) -> Source:
    """Read a data set with all its mistakes.

    Args:
        name: a path or a registered name.
        args: `image_root`, `split`, `classes`.

    Returns:
        the data set.
    """
    metadata = Metadata().set(name=name)
    known = MetadataCatalog.get(name) if name in DatasetCatalog else None
    drops = known is not None and (is_builtin(name) or known.get("degenerate_boxes") == "drop")
    if known is not None and not _reads_coco(name):
        dicts = DatasetCatalog.get(name)
        if not isinstance(dicts, list):
            raise ValueError(f"'{name}' is a {type(dicts).__name__}; only lists of dicts can be looked at.")
        classes = known.get("thing_classes")
        return Source(name, dicts, None if classes is None else list(classes), [], known, None, drops)
    data = open_data(name, args)
    dicts, class_names, findings = content_to_dicts(data)
    # To draw, a flip map is no matter of life and death; training asks for it.
    metadata.set(thing_classes=class_names).suggest(keypoint_flip_map=[]).suggest(
        **keypoint_metadata(data.content["categories"])
    )
    if known is not None and known.get("thing_colors") is not None:
        metadata.set(thing_colors=known.thing_colors)
    return Source(name, dicts, class_names, data.findings + findings, metadata, data, drops)


def open_data(name: str, args: argparse.Namespace, source_format: str | None = None) -> AnnotatedImages:
    """Read a data set as a whole.

    Args:
        name: a path or a registered name.
        args: `image_root`, `split`, `classes`.
        source_format: one of `FORMATS`; None to guess.

    Returns:
        what was read.
    """
    if name in DatasetCatalog:
        if _reads_coco(name):
            known = MetadataCatalog.get(name)
            data = read_coco(known.json_file, known.image_root, args.split)
            data.source = name
            return data
        content = convert_to_coco_dict(name)
        content.setdefault("annotations", [])
        split = args.split or "train"
        return AnnotatedImages(name, "coco", content, "", {split: [i["id"] for i in content["images"]]})
    if source_format is None:
        if not os.path.exists(name):
            raise FileNotFoundError(
                f"'{name}' is neither a file or folder (working directory: '{os.getcwd()}') nor a registered data set. "
                f"{_similar(name)}Data sets can be registered with --coco, --voc or --import."
            )
        source_format = guess_format(name)
    classes = [c.strip() for c in args.classes.split(",")] if args.classes and not args.voc else None
    if source_format == "coco":
        return read_coco(name, args.image_root, args.split)
    return (read_voc if source_format == "voc" else read_yolo)(name, args.split, classes)


def _similar(name: str) -> str:
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    return f"Is {' or '.join(map(repr, near))} meant? " if near else ""


def _reads_coco(name: str) -> bool:
    """Whether a registered data set is a file in COCO format, which is then read with its mistakes."""
    function = DatasetCatalog[name]
    return getattr(function, "func", None) is load_coco_json and os.path.isfile(str(function.args[0]))


@contextmanager
def registered(source: Source) -> Iterator[str]:
    """Register a data set for as long as a mapper needs its metadata.

    Args:
        source: the data set.

    Yields:
        its name in the catalogs.
    """
    if source.data is None:
        yield source.name
        return
    name = f"detectron2 data: {source.name}"
    DatasetCatalog.register(name, lambda: source.dicts)
    MetadataCatalog.get(name).set(**{k: v for k, v in source.metadata.as_dict().items() if k != "name"})
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
