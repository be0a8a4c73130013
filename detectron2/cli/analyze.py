"""``detectron2 analyze``: what a detector does well and badly, from saved predictions.

detectron2 analyze output/inference/coco_instances_results.json --data coco_2017_val
detectron2 analyze new.json --compare old.json --data instances_val.json --images val2017 --output analysis
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.cli._analysis_charts import draw_charts
from detectron2.cli._analysis_page import write_analysis_page, write_class_table
from detectron2.cli._analysis_pictures import draw_worst
from detectron2.cli._common import add_dataset_arguments, register_datasets, write_json
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_dict
from detectron2.evaluation._analysis_inputs import read_found, read_truth
from detectron2.evaluation._analysis_scores import without_nan
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, analyze_detections, compare_detections


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 analyze``."""
    parser.add_argument(
        "predictions", metavar="JSON", help="predictions in COCO format, such as coco_instances_results.json"
    )
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="ground truth: a registered data set, or a file in COCO format"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images, for pictures; default: as registered")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="boxes or masks; default: bbox")
    parser.add_argument("--iou", type=float, default=0.5, metavar="IOU", help="least IoU of a match; default: 0.5")
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="SCORE", help="least score of what is counted; default: 0.5"
    )
    parser.add_argument("--worst", type=int, default=8, metavar="N", help="number of pictures; default: 8")
    parser.add_argument("--compare", metavar="JSON", help="predictions of an earlier run, to be compared with")
    parser.add_argument(
        "--resamples", type=int, default=500, metavar="N", help="of the bootstrap in --compare; default: 500"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap; default: 0")
    parser.add_argument("--output", default="analysis", metavar="DIR", help="where files go; default: ./analysis")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Analyze, write the files, and say where they are."""
    if args.worst < 0:
        raise ValueError(f"--worst is a number of pictures, not {args.worst}.")
    register_datasets(args)
    source, roots = _open_data(args.data, args.images)
    truth = read_truth(source, args.task)  # both are read once for everything
    api, results = truth.api, read_found(args.predictions, truth).results
    analysis = analyze_detections(api, results, args.task, args.iou, args.score)
    comparison = None
    if args.compare:
        comparison = compare_detections(api, args.compare, results, args.task, args.resamples, seed=args.seed)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    worst, unread = draw_worst(analysis, api, results, roots, args.worst, folder)
    notes = [f"First: {args.compare}; second: {args.predictions}."] if args.compare else []
    if unread:
        note = f"{len(unread)} of {len(unread) + len(worst)} images could not be read, for example {unread[0]}; "
        notes.append(note + "name their folder with --images.")
        sys.stderr.write(notes[-1] + "\n")
    content: dict[str, Any] = {"predictions": args.predictions, "data": args.data, **analysis.to_dict()}
    if comparison is not None:
        content["comparison"] = {"first": args.compare, "seed": args.seed, **without_nan(asdict(comparison))}
    write_json(folder / "metrics.json", content)
    write_class_table(folder / "per_class.csv", analysis)
    charts = draw_charts(analysis, comparison, folder)
    title = f"{args.predictions} on {args.data}"
    write_analysis_page(folder / "report.html", title, analysis, comparison, charts, worst, notes)
    sys.stdout.write(_summary(analysis, comparison) + f"The whole report is {folder / 'report.html'}\n")
    return 0


def _open_data(name: str, images: str | None) -> tuple[Any, list[str]]:
    """-> ground truth (a file or a dictionary), and folders in which its images may lie."""
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
            f"--data: '{name}' is neither a file (working directory: '{os.getcwd()}') nor a registered data set. Data "
            "sets can be registered with --coco, --voc or --import."
        )
    beside = os.path.dirname(name)
    return name, [*given, beside, os.path.join(beside, "images"), ""]


def _summary(analysis: DetectionAnalysis, comparison: Comparison | None) -> str:
    """-> the main numbers, for the terminal."""
    overall, best = analysis.overall, analysis.overall.best
    lines = [
        f"AP {overall.ap:.3f}  AP50 {overall.ap50:.3f}  AP75 {overall.ap75:.3f}  AR {overall.ar:.3f}",
        f"best F1 {best.f1:.3f} at a score of {best.threshold:.2f} "
        f"(precision {best.precision:.3f}, recall {best.recall:.3f})",
    ]
    costly = max(analysis.errors.items(), key=lambda item: item[1].delta_ap)
    if costly[1].delta_ap > 0:
        lines.append(f"costliest errors: {costly[0]}, {costly[1].delta_ap:.3f} of AP at IoU {analysis.iou_threshold:g}")
    if comparison is not None:
        ap = comparison.metrics["AP"]
        lines.append(f"AP {ap.delta:+.3f} against the other run ({ap.low:+.3f} to {ap.high:+.3f})")
    return "".join(line + "\n" for line in lines)
