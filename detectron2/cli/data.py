"""`detectron2 data`: check a data set before training, look at it, convert it, write it into tar shards.

detectron2 data check annotations.json --num-classes 3 --fix cleaned.json
detectron2 data show annotations.json --sheet samples.png
detectron2 data convert path/to/voc path/to/yolo --to yolo
detectron2 data shard annotations.json --image-root images --output shards
"""

import argparse
import difflib
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from tqdm import tqdm

from detectron2.cli.common import REGISTERING, register_datasets
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog, MultiImageMapper
from detectron2.data.build import expected_by_model, num_label_map_classes
from detectron2.data.checks.annotations import box_findings, classify_boxes, form_findings, structure_findings
from detectron2.data.checks.files import file_findings
from detectron2.data.checks.findings import MAX_EXAMPLES, AnnotationTable, Finding, quantity
from detectron2.data.checks.fixing import UNREAD, fix
from detectron2.data.checks.report import FULL_CHECK_LIMIT
from detectron2.data.datasets import (
    convert_to_coco_dict,
    load_coco_json,
    register_coco_panoptic,
    register_sharded_dataset,
)
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.data.formats.annotated_images import (
    AnnotatedImages,
    flat_names,
    guess_format,
    place_images,
    within_image,
    write_folder_atomically,
)
from detectron2.data.formats.coco import (
    PanopticFileError,
    guess_image_root,
    keypoint_metadata,
    read_coco,
    read_content,
    renamed_images,
    write_coco,
    write_content,
)
from detectron2.data.formats.reading import current_exif, exif_policy, is_polygon, read_json
from detectron2.data.formats.tar_shards import is_sharded, write_shards
from detectron2.data.formats.voc import read_voc, write_voc
from detectron2.data.formats.yolo import read_yolo, write_yolo
from detectron2.data.images import viewable_rgb
from detectron2.data.validation import (
    DatasetError,
    DatasetReport,
    compare_classes,
    drops_degenerate,
    inspect_dataset_dicts,
    label_names_of,
)
from detectron2.inference.loading import dataset_names, find_config_file, load_config
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import atomic_write
from detectron2.visualization.visualizer import Visualizer


@dataclass
class Source:
    """A data set to look at.

    Args:
        name: as the user calls it.
        dicts: in the standard format, as far as it could be read.
        class_names: in the order of the labels; None if they are not known.
        findings: mistakes found in reading; None if it was not read from files.
        metadata: for drawing.
        data: what was read, if it was read from files.
        drops_degenerate: whether training leaves out degenerate boxes of it.
    """

    name: str
    dicts: list[dict[str, Any]]
    class_names: list[str] | None
    findings: list[Finding] | None
    metadata: Metadata
    data: AnnotatedImages | None = None
    drops_degenerate: bool = False

    @property
    def format(self) -> str:
        """Its format, for people."""
        if self.data is None:
            return "tar shards" if is_sharded(str(self.metadata.get("dirname"))) else "registered"
        return {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}[self.data.format]


def open_source(name: str, args: argparse.Namespace) -> Source:
    """Read a data set, a path or a registered name, with all its mistakes."""
    data = None
    if name not in DatasetCatalog:
        try:
            data = open_data(name, args)
        except PanopticFileError:
            _register_panoptic(name, args.image_root)
    known = MetadataCatalog.get(name) if name in DatasetCatalog else None
    drops = drops_degenerate(name)
    if known is not None and not _reads_coco(name):
        dicts = DatasetCatalog.get(name)
        if not isinstance(dicts, list):
            raise ValueError(f"'{name}' is a {type(dicts).__name__}; only lists of dicts can be looked at.")
        classes = known.get("thing_classes")
        return Source(name, dicts, None if classes is None else list(classes), None, known, None, drops)
    source = _as_source(name, data or open_data(name, args), drops)
    if known is not None and known.get("thing_colors") is not None:
        source.metadata.set(thing_colors=known.thing_colors)
    return source


def _as_source(name: str, data: AnnotatedImages, drops_degenerate: bool = False) -> Source:
    reader = read_content(data)
    dicts, class_names = list(reader.records.values()), list(reader.categories.values())
    # Drawing works without a flip map; training asks for it.
    metadata = Metadata().set(name=name, thing_classes=class_names).suggest(keypoint_flip_map=[])
    metadata.suggest(**keypoint_metadata(data.content["categories"]))
    findings = data.findings + reader.report.findings
    return Source(name, dicts, class_names, findings, metadata, data, drops_degenerate)


def open_data(name: str, args: argparse.Namespace, source_format: str | None = None) -> AnnotatedImages:
    """Read a data set, a path or a registered name, as a whole; its format is guessed if it is not given."""
    if name in DatasetCatalog:
        if _reads_coco(name):
            known = MetadataCatalog.get(name)
            data = read_coco(known.json_file, known.image_root, args.split)
            data.source = name
            return data
        return _of_records(name, args.split or "train")
    if source_format is None:
        if not os.path.exists(name):
            raise FileNotFoundError(
                f"'{name}' is neither a file or folder (working directory: '{os.getcwd()}') nor a registered data set. "
                f"{_similar(name)}{REGISTERING}"
            )
        source_format = guess_format(name)
    classes = [c.strip() for c in args.classes.split(",")] if args.classes and not args.voc else None
    if source_format == "coco":
        return read_coco(name, args.image_root, args.split)
    return (read_voc if source_format == "voc" else read_yolo)(name, args.split, classes)


def _of_records(name: str, split: str) -> AnnotatedImages:
    """Return a registered data set of objects as the content of a COCO file."""
    records = DatasetCatalog.get(name)
    kind = {"segments_info": "panoptic", "sem_seg_file_name": "semantic"}
    labelled = {key: sum(key in r for r in records if isinstance(r, dict)) for key in kind}
    if records and max(labelled.values()) == len(records) and not any("annotations" in r for r in records):
        of = " and ".join(kind[key] for key, count in labelled.items() if count)
        raise ValueError(
            f"'{name}' is a data set of {of} segmentation, whose labels are in image files. It can be checked and "
            "shown, but neither fixed nor converted, since the other formats have objects with boxes and masks."
        )
    content = convert_to_coco_dict(name, records)
    content.setdefault("annotations", [])
    data = AnnotatedImages(name, "coco", content, "", {split: [i["id"] for i in content["images"]]})
    for key, count in labelled.items():
        what = f"{quantity(count, 'image')} '{key}', which files of objects do not have"
        data.findings += [Finding("label-map-left-out", "warning", what, "Only the objects are used.")] if count else []
    return data


def _register_panoptic(file: str, image_root: str | None) -> None:
    """Register a file in the panoptic format of COCO under its own name, if its PNG files are near it."""
    content, folder = read_json(file), Path(file).parent
    folders = sorted((p.name for p in folder.iterdir() if p.is_dir()), key=lambda name: ("pan" not in name, name))
    first = content["annotations"][0].get("file_name")
    png_root = guess_image_root(file, content["annotations"], folders)
    if not isinstance(first, str) or not os.path.isfile(os.path.join(png_root, first)):
        raise FileNotFoundError(
            f"'{file}' is in the panoptic format of COCO, and its first PNG file, {first!r}, is in no folder beside "
            "it. Register it in a .py file: detectron2.data.datasets.register_coco_panoptic(name, {}, image_root, "
            "panoptic_root, panoptic_json), and give the name and --import FILE.py."
        )
    images = content.get("images")
    image_root = image_root or guess_image_root(file, images if isinstance(images, list) else [], folders)
    register_coco_panoptic(file, {}, image_root, png_root, file)


def _similar(name: str) -> str:
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    return f"Is {' or '.join(map(repr, near))} meant? " if near else ""


def _reads_coco(name: str) -> bool:
    """Whether a registered data set is a file in COCO format, which is then read with its mistakes."""
    function = DatasetCatalog[name]
    return getattr(function, "func", None) is load_coco_json and os.path.isfile(str(function.args[0]))


@contextmanager
def registered(source: Source) -> Iterator[str]:
    """Register a data set for as long as a mapper needs its metadata; yields its name in the catalogs."""
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


def run(args: argparse.Namespace) -> int:
    """Do one of the four."""
    if args.action == "show" and args.augmented and not args.config_file:
        raise ValueError("--augmented needs --config-file, which says how images are augmented.")
    # --classes may also be meant for a folder.
    register_datasets(argparse.Namespace(**{**vars(args), "classes": args.classes if args.voc else None}))
    for name in [args.source] if isinstance(args.source, str) else args.source:
        if name not in DatasetCatalog and is_sharded(name):
            register_sharded_dataset(name, name)
    cfg = load_config(find_config_file(args.config_file), args.opts) if args.config_file else None
    args.exif = args.exif or _expectations(cfg).get("exif", "apply")
    with exif_policy(args.exif):
        actions = {"check": _run_check, "show": _run_show, "convert": _run_convert, "shard": _run_shard}
        return actions[args.action](args, cfg)


_MOST_CLASSES = 60
_TITLES = {"error": "ERROR", "warning": "Warning", "note": "Note"}


def _run_check(args: argparse.Namespace, cfg: Any) -> int:
    """Check and report; return 1 if there are errors."""
    names = args.source or _names(cfg)
    if not names:
        raise ValueError("Name a data set, or a config that does with --config-file.")
    if args.fix and len(names) != 1:
        raise ValueError("--fix cleans one data set; name only one.")
    expected = {**_expectations(cfg), "exif": args.exif}
    if args.num_classes is not None:
        expected.update(num_classes=args.num_classes, num_classes_key="--num-classes")
    sources = [open_source(name, args) for name in names]
    reports = [_inspect(source, expected, args) for source in sources]
    between = compare_classes({s.name: s.class_names for s in sources})
    between += compare_classes({s.name: label_names_of(s.name) for s in sources if s.name in DatasetCatalog})
    passes = all(r.passes for r in reports) and all(f.level != "error" for f in between)
    changes, left, why_not = _fix(names[0], args, expected, reports[0].findings) if args.fix else ({}, [], "")
    passes_now = not why_not if args.fix else passes
    if args.json:
        result = {
            "passes": passes,
            "data_sets": [r.to_dict() for r in reports],
            "between": [f.to_dict() for f in between],
        }
        if args.fix:
            result["fix"] = {"file": args.fix, "changes": changes, "passes": passes_now}
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    else:
        for source, report in zip(sources, reports, strict=True):
            sys.stdout.write(_text(source, report, args) + "\n")
        if between:
            sys.stdout.write("Between the data sets\n" + "".join(_finding_text(f) for f in between) + "\n")
        sys.stdout.write(_verdict([*(f for r in reports for f in r.findings), *between]) + "\n")
        if args.fix:
            sys.stdout.write("\n" + _fix_text(args.fix, changes, left, why_not))
    return 0 if passes_now else 1


def _names(cfg: Any) -> list[str]:
    return [] if cfg is None else list(dict.fromkeys(dataset_names(cfg, "train") + dataset_names(cfg, "test")))


def _expectations(cfg: Any) -> dict[str, Any]:
    """Return what the model of a config of either kind expects of its data."""
    if cfg is None:
        return {}
    if isinstance(cfg, CfgNode):
        expected = {
            **expected_by_model(cfg),
            "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            "num_labels": num_label_map_classes(cfg),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "exif": cfg.INPUT.get("EXIF", "apply"),
        }
        return expected
    mapper = "dataloader.train.mapper"
    masks = OmegaConf.select(cfg, f"{mapper}.use_instance_mask")
    expected = {
        "mask_format": OmegaConf.select(cfg, f"{mapper}.instance_mask_format", default="polygon") if masks else None,
        "filter_empty": OmegaConf.select(cfg, "dataloader.train.dataset.filter_empty", default=True),
        "exif": OmegaConf.select(cfg, f"{mapper}.exif", default="apply"),
        "num_keypoints": OmegaConf.select(cfg, "model.roi_heads.keypoint_head.num_keypoints"),
    }
    for key in ("model.roi_heads.num_classes", "model.num_classes", "model.head.num_classes"):
        number = OmegaConf.select(cfg, key)
        if isinstance(number, int):
            return {**expected, "num_classes": number, "num_classes_key": key}
    return expected


def _inspect(source: Source, expected: dict[str, Any], args: argparse.Namespace) -> DatasetReport:
    stuff = source.metadata.get("stuff_classes") or []
    expected = {"ignore_label": source.metadata.get("ignore_label", 255), **expected}
    if expected.get("num_labels") is None and stuff:
        expected.update(num_labels=len(stuff), num_labels_key="the number of stuff_classes of the data set")
    return inspect_dataset_dicts(
        source.dicts,
        name=source.name,
        class_names=source.class_names,
        category_names=max((source.class_names or [], stuff), key=len) or None,
        findings=source.findings,
        check_files=args.files != 0,
        max_files=args.files,
        drop_degenerate=source.drops_degenerate,
        **expected,
    )


# Mistakes in the meaning of all numbers: whatever is taken out or clipped, the rest stays wrong.
_ONLY_YOU = ("box-centres", "box-corners", "box-shares", "category-shifted", "yolo-corners", "yolo-from-one")


def _fix(
    name: str, args: argparse.Namespace, expected: dict[str, Any], found: list[Finding]
) -> tuple[dict[str, int], list[Finding], str]:
    """Write a cleaned copy; return what was changed, what is warned of still, why that is not a repair, or ""."""
    for finding in found:
        if finding.kind in _ONLY_YOU:
            return {}, [], f"Wrote nothing, since this can only be corrected by hand: {finding.what}. {finding.cure}"
    data = open_data(name, args)
    before = _distinct(data.content["annotations"])
    parts = {key: sum(bool(a.get(key)) for a in data.content["annotations"]) for key in ("segmentation", "keypoints")}
    changes = fix(data, check_files=args.files != 0, max_files=args.files, exif=args.exif)
    write_content(data.content, Path(args.fix))
    after = _distinct(data.content["annotations"])
    report = _inspect(_as_source(args.fix, data), expected, args)
    left = report.of_level("warning")
    if not report.passes:
        return changes, left, "It still has errors: check it again to see."
    total = len(before) + changes.get(UNREAD, 0)
    if 2 * len(after) < total:
        return changes, left, f"This is not a repair: {len(after)} of {total} annotations are left."
    for key, count in parts.items():
        if after and count and not any(a.get(key) for a in data.content["annotations"]):
            return changes, left, f"This is not a repair: none of {count} '{key}' is left."
    if not after:
        return changes, left, "This is not a data set to train with: it has no annotation."
    gone = {c for _, c, _ in before} - {c for _, c, _ in after}
    gone_names = [repr(c["name"]) for c in data.content["categories"] if str(c["id"]) in gone]
    why_not = f"This is not a repair: no annotation of {', '.join(gone_names)} is left." if gone_names else ""
    return changes, left, why_not


def _distinct(annotations: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Return what tells annotations apart: image, category and box as text."""
    return {tuple(str(a.get(key)) for key in ("image_id", "category_id", "bbox")) for a in annotations}


# For people


def _text(source: Source, report: DatasetReport, args: argparse.Namespace) -> str:
    lines = [f"{report.name} ({source.format})"]
    if any("annotations" in d for d in source.dicts if isinstance(d, dict)):
        lines.append(f"  images       {report.num_images:>8}   {report.num_empty} without objects")
        lines.append(f"  annotations  {report.num_annotations:>8}   and {report.num_crowd} crowd regions")
    else:
        lines.append(f"  images       {report.num_images:>8}")
        segments = sum(n for _, n, _ in report.classes)
        lines += [f"  segments     {segments:>8}"] if segments else []
    if sum(report.sizes.values()):
        sizes = ", ".join(f"{n} {size}" for size, n in report.sizes.items())
        lines.append(f"               {'':>8}   {sizes} (boxes; bounds 32 x 32 and 96 x 96 pixels)")
    files = report.num_images if args.files is None else min(args.files, report.num_images)
    lines.append(f"  image files  {files:>8}   looked at")
    text = "\n".join(lines) + "\n\n"
    text += "".join(_finding_text(f) for f in report.findings)
    if report.worst and len(report.worst) > 1:
        text += "\n  Images with the most errors and warnings\n"
        text += "".join(f"    {n:>5}  {file}\n" for file, n in report.worst)
    return text + _class_table(report)


def _finding_text(finding: Finding) -> str:
    text = f"  {_TITLES[finding.level]}: {finding.what}. {finding.cure}".rstrip() + f"  [{finding.kind}]\n"
    shown = MAX_EXAMPLES if finding.level == "note" else 5
    text += "".join(f"      {case}\n" for case in finding.cases[:shown])
    more = finding.count - min(shown, len(finding.cases))
    return text + (f"      ... and {more} more\n" if finding.cases and more > 0 else "")


def _class_table(report: DatasetReport) -> str:
    from tabulate import tabulate

    if not report.classes:
        return ""
    rows = [(label, *entry) for label, entry in enumerate(report.classes)]
    note = ""
    if len(rows) > _MOST_CLASSES:
        rows = [r for r in sorted(rows, key=lambda r: -r[2])[:_MOST_CLASSES] if r[2]]
        rare = sum(n < 10 for _, n, _ in report.classes)
        note = f"  The most frequent of {len(report.classes)} classes; {rare} have less than 10.\n"
    counted = "objects" if report.num_annotations or not any(n for _, n, _ in report.classes) else "segments"
    table = tabulate(rows, headers=["label", "class", counted, "images"], tablefmt="simple")
    return "\n" + "".join(f"  {line}\n" for line in table.splitlines()) + note


def _fix_text(file: str, changes: dict[str, int], left: list[Finding], why_not: str) -> str:
    if why_not.startswith("Wrote nothing"):
        return why_not + "\n"
    nothing = "there was nothing that could be fixed without guessing" if left else "there was nothing to fix"
    done = ", in COCO format, with these changes:" if changes else f": {nothing}."
    text = f"Wrote {file}{done}\n" + "".join(f"  {count:>8}  {what}\n" for what, count in changes.items())
    if left:
        text += "Left as it is, since only you can tell whether it is meant:\n"
        text += "".join(f"            {finding.what}\n" for finding in left)
    return text + (why_not or "It passes the check.") + "\n"


def _verdict(findings: list[Finding]) -> str:
    errors = sum(f.level == "error" for f in findings)
    warnings = sum(f.level == "warning" for f in findings)
    text = f"Kinds of errors, which training would stumble over: {errors}; kinds of warnings: {warnings}."
    return text if errors or warnings else "No errors, no warnings."


_WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def _run_convert(args: argparse.Namespace, cfg: Any) -> int:
    """Convert and say what there is now, and what the new format could not hold."""
    target = Path(args.target)
    is_file = target.suffix.lower() == ".json"
    target_format = args.target_format or ("coco" if is_file else None)
    if target_format is None:
        raise ValueError("Name the format to convert to: --to coco, voc or yolo.")
    if is_file and target_format != "coco":
        raise ValueError(f"{args.target} is a file, but the {target_format} format is a folder.")
    data = open_data(args.source, args, args.source_format)
    changed = _stop_at_errors(data, args.exif, drops_degenerate(args.source))
    lost = {}
    if is_file:
        _write_file(data, target, args.images or "none")
    else:
        with write_folder_atomically(target) as folder:
            lost = _WRITERS[target_format](data, folder, args.images or "link")
    changed.update({f"{what} could not be written in this format": count for what, count in lost.items()})
    _report(data, args, target, changed)
    return 0


def _stop_at_errors(data: AnnotatedImages, exif: str, drops: bool) -> dict[str, int]:
    """Raise where `data check` finds that training would stumble over it, and clip boxes to their images.

    Returns what was changed, and how often.
    """
    reader = read_content(data)
    records = list(reader.records.values())
    crowd_too = [{**d, "annotations": [{**a, "iscrowd": 0} for a in d["annotations"]]} for d in records]
    table = AnnotationTable.gather(crowd_too)
    findings = [*data.findings, *reader.report.findings, *structure_findings(table)]
    if not any(f.level == "error" for f in findings):
        cure = f"Correct them or take them out (detectron2 data check {data.source} --fix cleaned.json)."
        boxes_xyxy, bad = classify_boxes(table)
        findings += form_findings(table, boxes_xyxy, bad) + ([] if drops else box_findings(table, bad, cure))
    # Files that are not there are of no concern where images stay where they are.
    findings += [f for f in file_findings(records, FULL_CHECK_LIMIT, exif=exif) if f.kind in ("file-size", "file-exif")]
    errors = [f.text for f in findings if f.level == "error" or f.kind in _ONLY_YOU]
    if errors:
        raise DatasetError(data.source, errors)
    for finding in findings:
        if finding.level == "warning":
            sys.stderr.write(f"Warning: {finding.text}\n")
    # The loader leaves out annotations of images that are not there, and polygons that are none; so does this.
    annotations = [a for a in data.content["annotations"] if a.get("image_id") in reader.records]
    of_points = [_with_polygons(a) for a in annotations]
    kept = [a for a in of_points if a is not None]
    sizes_wh = {i: (record["width"], record["height"]) for i, record in reader.records.items()}
    within = [within_image(a, sizes_wh[a["image_id"]]) for a in kept]
    changes = {
        "annotations of images that are not there were left out": len(data.content["annotations"]) - len(annotations),
        "annotations without a usable polygon were left out": of_points.count(None),
        "annotations lost polygons that cannot be used": sum(
            a is not None and a is not b for a, b in zip(of_points, annotations, strict=True)
        ),
        "annotations without area in their image were left out": within.count(None),
        "boxes were clipped to their image": sum(
            a is not None and a is not b for a, b in zip(within, kept, strict=True)
        ),
    }
    data.content["annotations"] = [a for a in within if a is not None]
    return {what: count for what, count in changes.items() if count}


def _with_polygons(annotation: dict[str, Any]) -> dict[str, Any] | None:
    """Return an annotation with those of its polygons that are some; None if it has polygons, but none of these."""
    mask = annotation.get("segmentation")
    good = [p for p in mask if is_polygon(p)] if isinstance(mask, list) else mask
    if good == mask:
        return annotation
    return {**annotation, "segmentation": good} if good else None


def _write_file(data: AnnotatedImages, target: Path, images: str) -> None:
    if target.exists():
        raise FileExistsError(f"'{target}' exists already; name another place, or remove it.")
    content = renamed_images(data, images)
    folder = target.parent / "images"
    pairs = zip(data.content["images"], content["images"], strict=True)
    place_images(((data.path(a), folder / b["file_name"]) for a, b in pairs), images)
    write_content(content, target)


def _report(data: AnnotatedImages, args: argparse.Namespace, target: Path, changed: dict[str, int]) -> None:
    content = data.content
    out = sys.stdout.write
    splits = ", ".join(f"{name} ({len(ids)})" for name, ids in data.splits.items())
    out(
        f"{target}: {len(content['images'])} images, {len(content['annotations'])} annotations, "
        f"{len(content['categories'])} classes; splits: {splits}\n"
    )
    out("".join(f"  {count} {what}\n" for what, count in changed.items()))
    if target.suffix.lower() == ".json" and (args.images or "none") == "none":
        out(
            f"  the images stay in {data.image_root or 'their places'}: --coco NAME {target} {data.image_root or '/'}\n"
        )


def _run_shard(args: argparse.Namespace, cfg: Any) -> int:
    """Write tar shards and say what there is now."""
    source = open_source(args.source, args)
    errors = [f.text for f in source.findings or () if f.level == "error"]
    if errors:
        raise DatasetError(source.name, errors)
    metadata = source.metadata.as_dict()
    if source.data is not None:
        ids = sorted((c["id"] for c in source.data.content["categories"]), key=lambda i: (isinstance(i, str), i))
        metadata |= {"thing_dataset_id_to_contiguous_id": {id: label for label, id in enumerate(ids)}}
        metadata |= {"evaluator_type": "coco", **keypoint_metadata(source.data.content["categories"])}
        if "keypoint_names" not in metadata:
            del metadata["keypoint_flip_map"]  # which is for drawing only
        for annotation in itertools.chain.from_iterable(record["annotations"] for record in source.dicts):
            annotation.pop("id", None)
    if source.drops_degenerate:
        metadata["degenerate_boxes"] = "drop"
    index = write_shards(
        source.dicts,
        metadata,
        args.output,
        shard_size=args.shard_size,
        shard_bytes=args.shard_bytes,
        seed=None if args.keep_order else 0,
        progress=functools.partial(tqdm, unit="image", leave=False, disable=None),
    )
    megabytes = sum(shard.bytes for shard in index.shards) / 2**20
    sys.stdout.write(
        f"{args.output}: {quantity(index.num_images, 'image', '')} in {quantity(len(index.shards), 'shard', '')}, "
        f"{megabytes:.1f} MiB: --tar-shards NAME {args.output}\n"
    )
    return 0


_TILE = 480
_CAPTION = 16
_MOST_ENLARGED = 4
_NEEDED = {"bbox", "bbox_mode", "category_id"}


def _run_show(args: argparse.Namespace, cfg: Any) -> int:
    """Draw samples and say where the pictures are."""
    if args.num < 1:
        raise ValueError(f"--num is a number of samples from 1 on, not {args.num}.")
    sheet = Path(args.sheet or "samples.png")
    if not args.output and (sheet.is_dir() or sheet.suffix.lower() not in (".png", ".jpg", ".jpeg")):
        raise ValueError(
            f"--sheet is {str(sheet)!r}: name a .png or .jpg file. --output FOLDER has a file for each image."
        )
    source = open_source(args.source, args)
    if not source.dicts:
        raise ValueError(f"'{source.name}' has no images.")
    chosen = np.random.default_rng(args.seed).permutation(len(source.dicts))[: args.num]
    records = [_drawable(source.dicts[i]) for i in sorted(chosen.tolist())]
    seed_all_rng(args.seed)
    with registered(source) as name:
        mapper = _mapper(cfg, source, name) if args.augmented else None
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
        _save(_contact_sheet(pictures), sheet)
        sys.stdout.write(f"{len(pictures)} samples are in {sheet}\n")
    return 0


def _drawable(record: dict[str, Any]) -> dict[str, Any]:
    """Return a dataset dict with those annotations that can be drawn."""
    annotations = record.get("annotations")
    if annotations is None:
        return record
    good = [a for a in annotations if a.keys() >= _NEEDED and len(a["bbox"]) in (4, 5)]
    return {**record, "annotations": good}


def _mapper(cfg: Any, source: Source, name: str) -> Any:
    """Return what a config of either kind does with a record in training."""
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
            drawn = _draw_raw(record, source, as_tile)
        else:
            drawn = _draw_mapped(mapper, record, source.metadata, as_tile)
    except (OSError, ValueError, TypeError) as e:
        sys.stderr.write(f"left out: {record.get('file_name')}: {e}\n")
        return
    yield Image.fromarray(drawn)


def _scale(image: np.ndarray, as_tile: bool) -> float:
    """Return the scale to draw at: words are as large in each tile of a sheet, and do not cover small images."""
    return min(_TILE / max(image.shape[:2]), _MOST_ENLARGED) if as_tile else 1.0


def _draw_raw(record: dict[str, Any], source: Source, as_tile: bool) -> np.ndarray:
    try:
        image = read_image(record["file_name"], "RGB", current_exif())
    except ValueError:  # values or channels that RGB does not have
        image = viewable_rgb(read_image(record["file_name"], None, current_exif()))
    return Visualizer(image, source.metadata, scale=_scale(image, as_tile)).draw_dataset_dict(record).get_image()


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
    """Return all pictures side by side, each with the name of its file."""
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
