"""``detectron2 data convert``: from one format to another."""

import argparse
import sys
from pathlib import Path

from detectron2.cli._data_sources import open_data, register
from detectron2.data.checks.annotations import structure_findings
from detectron2.data.checks.findings import AnnotationTable
from detectron2.data.formats.annotated_images import AnnotatedImages, folder_written_whole, place_images
from detectron2.data.formats.coco import content_to_dicts, renamed_images, write_coco, write_content
from detectron2.data.formats.voc import write_voc
from detectron2.data.formats.yolo import write_yolo
from detectron2.data.validation import DatasetError

__all__ = ["run"]

_WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def run(args: argparse.Namespace) -> int:
    """Convert and say what there is now, and what the new format could not hold."""
    register(args)
    target = Path(args.target)
    is_file = target.suffix.lower() == ".json"
    target_format = args.target_format or ("coco" if is_file else None)
    if target_format is None:
        raise ValueError("Name the format to convert to: --to coco, voc or yolo.")
    if is_file and target_format != "coco":
        raise ValueError(f"{args.target} is a file, but the {target_format} format is a folder.")
    data = open_data(args.source, args, args.source_format)
    _stop_at_errors(data)
    if is_file:
        lost = {}
        _write_file(data, target, args.images or "none")
    else:
        with folder_written_whole(target) as folder:
            lost = _WRITERS[target_format](data, folder, args.images or "link")
    _report(data, args, target, lost)
    return 0


def _stop_at_errors(data: AnnotatedImages) -> None:
    """Raise if some of what was read could not be understood; it would be missing in the result."""
    dicts, _, findings = content_to_dicts(data)
    crowd_too = [{**d, "annotations": [{**a, "iscrowd": 0} for a in d["annotations"]]} for d in dicts]
    findings = [*data.findings, *findings, *structure_findings(AnnotationTable.gather(crowd_too))]
    errors = [f.text for f in findings if f.level == "error"]
    if errors:
        raise DatasetError(data.source, errors)
    for finding in findings:
        if finding.level == "warning":
            sys.stderr.write(f"Warning: {finding.text}\n")
    images = {i["id"] for i in data.content["images"]}
    # The loader leaves out annotations of images that are not there; so does this.
    data.content["annotations"] = [a for a in data.content["annotations"] if a.get("image_id") in images]


def _write_file(data: AnnotatedImages, target: Path, images: str) -> None:
    if target.exists():
        raise FileExistsError(f"'{target}' exists already; name another place, or remove it.")
    content = renamed_images(data, images)
    folder = target.parent / "images"
    pairs = zip(data.content["images"], content["images"], strict=True)
    place_images(((data.path(a), folder / b["file_name"]) for a, b in pairs), images)
    write_content(content, target)


def _report(data: AnnotatedImages, args: argparse.Namespace, target: Path, lost: dict[str, int]) -> None:
    content = data.content
    out = sys.stdout.write
    splits = ", ".join(f"{name} ({len(ids)})" for name, ids in data.splits.items())
    out(
        f"{target}: {len(content['images'])} images, {len(content['annotations'])} annotations, "
        f"{len(content['categories'])} classes; splits: {splits}\n"
    )
    for what, count in lost.items():
        out(f"  {count} {what} could not be written in this format\n")
    if target.suffix.lower() == ".json" and (args.images or "none") == "none":
        out(
            f"  the images stay in {data.image_root or 'their places'}: --coco NAME {target} {data.image_root or '/'}\n"
        )
