"""``detectron2 data check``: find mistakes, print a report, write a cleaned copy."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detectron2.cli._common import dataset_names, find_config_file, load_config
from detectron2.cli._data_sources import Source, open_data, open_source, register
from detectron2.config import CfgNode
from detectron2.data.build import _num_classes, _num_labels
from detectron2.data.checks.findings import MAX_EXAMPLES, Finding
from detectron2.data.checks.fixing import fix
from detectron2.data.formats.coco import content_to_dicts, write_content
from detectron2.data.validation import DatasetReport, compare_classes, inspect_dataset_dicts

__all__ = ["run"]

_MOST_CLASSES = 60
_TITLES = {"error": "ERROR", "warning": "Warning", "note": "Note"}


def run(args: argparse.Namespace) -> int:
    """Check and report; -> 1 if there are errors."""
    register(args)
    cfg = load_config(find_config_file(args.config_file), args.opts) if args.config_file else None
    names = args.source or _names(cfg)
    if not names:
        raise ValueError("Name a data set, or a config that does with --config-file.")
    if args.fix and len(names) != 1:
        raise ValueError("--fix cleans one data set; name only one.")
    expected = _expectations(cfg)
    if args.num_classes is not None:
        expected.update(num_classes=args.num_classes, num_classes_key="--num-classes")
    sources = [open_source(name, args) for name in names]
    reports = [_inspect(source, expected, args) for source in sources]
    between = compare_classes({s.name: s.class_names for s in sources})
    passes = all(r.passes for r in reports) and all(f.level != "error" for f in between)
    changes, passes_now = _fix(names[0], args, expected) if args.fix else ({}, passes)
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
            sys.stdout.write("\n" + _fix_text(args.fix, changes, passes_now))
    return 0 if passes_now else 1


def _names(cfg: Any) -> list[str]:
    return [] if cfg is None else list(dict.fromkeys(dataset_names(cfg, "train") + dataset_names(cfg, "test")))


def _expectations(cfg: Any) -> dict[str, Any]:
    """-> what the model of a config of either kind expects of its data."""
    if cfg is None:
        return {}
    if isinstance(cfg, CfgNode):
        num_classes, key = _num_classes(cfg)
        expected = {
            "num_keypoints": cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None,
            "mask_format": cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            "num_labels": _num_labels(cfg),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }
        return {**expected, "num_classes": num_classes, "num_classes_key": key} if num_classes is not None else expected
    mapper = "dataloader.train.mapper"
    masks = OmegaConf.select(cfg, f"{mapper}.use_instance_mask")
    expected = {
        "mask_format": OmegaConf.select(cfg, f"{mapper}.instance_mask_format", default="polygon") if masks else None,
        "filter_empty": OmegaConf.select(cfg, "dataloader.train.dataset.filter_empty", default=True),
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


def _fix(name: str, args: argparse.Namespace, expected: dict[str, Any]) -> tuple[dict[str, int], bool]:
    """Write a cleaned copy; -> what was changed, and whether it passes."""
    data = open_data(name, args)
    changes = fix(data, check_files=args.files != 0, max_files=args.files)
    write_content(data.content, Path(args.fix))
    dicts, class_names, findings = content_to_dicts(data)
    report = inspect_dataset_dicts(
        dicts,
        name=args.fix,
        class_names=class_names,
        findings=findings,
        check_files=args.files != 0,
        max_files=args.files,
        **expected,
    )
    return changes, report.passes


# ---------------------------------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------------------------------


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


def _fix_text(file: str, changes: dict[str, int], passes: bool) -> str:
    text = (
        f"Wrote {file}, in COCO format, with these changes:\n"
        if changes
        else f"Wrote {file}: there was nothing to fix.\n"
    )
    text += "".join(f"  {count:>8}  {what}\n" for what, count in changes.items())
    return text + ("It passes the check.\n" if passes else "It still has errors: check it again to see which.\n")


def _verdict(findings: list[Finding]) -> str:
    errors = sum(f.level == "error" for f in findings)
    warnings = sum(f.level == "warning" for f in findings)
    text = f"Kinds of errors, which training would stumble over: {errors}; kinds of warnings: {warnings}."
    return text if errors or warnings else "No errors, no warnings."
