"""``detectron2 analyze``: what a model does well and badly, from saved predictions.

detectron2 analyze output
detectron2 analyze output/inference/coco_instances_results.json --data coco_2017_val
detectron2 analyze new.json --compare old.json --data instances_val.json --images val2017 --output analysis
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.cli._analysis_charts import draw_charts
from detectron2.cli._analysis_files import class_columns, class_row, error_columns, error_row, write_csv, write_metrics
from detectron2.cli._analysis_page import write_analysis_page
from detectron2.cli._analysis_pictures import draw_worst, remove_old_pictures
from detectron2.cli._analysis_pixels import analyze_pixels
from detectron2.cli._analysis_run import Source, find_sources, open_data, tasks_of
from detectron2.cli._common import add_dataset_arguments, register_datasets
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, analyze_detections, compare_detections
from detectron2.evaluation.analysis.inputs import TASKS, read_found, read_truth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 analyze``."""
    parser.add_argument(
        "predictions",
        metavar="PREDICTIONS",
        help="output folder of a run; or a file with predictions, such as coco_instances_results.json",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="ground truth: a registered data set, or a file in COCO format; default: the run's test data set",
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images, for pictures; default: as registered")
    parser.add_argument(
        "--task",
        nargs="+",
        choices=TASKS,
        default=[],
        metavar="TASK",
        help="bbox, segm or keypoints, or several; default: all that predictions and ground truth have",
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, metavar="IOU", help="least IoU (of keypoints OKS) of a match; default: 0.5"
    )
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="SCORE", help="least score of what is counted; default: 0.5"
    )
    parser.add_argument("--worst", type=int, default=8, metavar="N", help="number of pictures; default: 8")
    parser.add_argument("--compare", metavar="PREDICTIONS", help="those of an earlier run, to be compared with")
    parser.add_argument(
        "--resamples",
        type=int,
        default=500,
        metavar="N",
        help="of the bootstrap for confidence intervals, 0 for none; default: 500",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap; default: 0")
    parser.add_argument(
        "--sigmas",
        metavar="A,B,C",
        help="OKS sigma of each keypoint; default: those of the run's config, else of COCO's persons",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where files go; default: 'analysis' in the run's folder, else here"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Analyze, write the files, and say where they are."""
    if args.worst < 0:
        raise ValueError(f"--worst is a number of pictures, not {args.worst}.")
    register_datasets(args)
    sources = find_sources(args.predictions, args.data)
    default = os.path.join(args.predictions if os.path.isdir(args.predictions) else "", "analysis")
    run_sources(sources, args, Path(args.output or default))
    return 0


def run_sources(sources: Sequence[Source], args: argparse.Namespace, folder: Path) -> None:
    """Analyze predictions, each kind in a folder of its own where there are several.

    Args:
        sources: what :func:`find_sources` returned.
        args: the options of the command.
        folder: gets the files.
    """
    for source in sources:
        own = folder if len(sources) == 1 else folder / source.kind
        if source.kind == "instances":
            _analyze_instances(source, args, own)
        elif args.compare or args.task:
            raise ValueError(f"--compare and --task are for detections; {source.file} has labels of pixels.")
        else:
            sys.stdout.write(analyze_pixels(source, args.images, args.worst, own))


def _analyze_instances(source: Source, args: argparse.Namespace, folder: Path) -> None:
    if args.sigmas:
        source = replace(source, sigmas=tuple(_numbers(args.sigmas)))
    ground_truth, roots = open_data(source.data, args.images)
    earlier = None
    if args.compare:
        (earlier,) = [s for s in find_sources(args.compare, source.data) if s.kind == "instances"][:1] or [None]
        if earlier is None:
            raise ValueError(f"--compare: {args.compare} has no detections.")
    api = read_truth(ground_truth, "bbox").api  # is read once for everything
    tasks = tasks_of(source.content, api.dataset.get("annotations", []), args.task)
    for task in tasks:
        _analyze_task(task, source, earlier, api, roots, args, folder if len(tasks) == 1 else folder / task)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sigmas are numbers with commas between them, not {text!r}.") from None


def _analyze_task(
    task: str,
    source: Source,
    earlier: Source | None,
    api: Any,
    roots: Sequence[str],
    args: argparse.Namespace,
    folder: Path,
) -> None:
    truth = read_truth(api, task, source.sigmas)
    results = read_found(source.content, truth, source.file).results  # with messages that name the file
    analysis = analyze_detections(
        api,
        results,
        task,
        args.iou,
        args.score,
        num_resamples=args.resamples,
        seed=args.seed,
        kpt_oks_sigmas=source.sigmas,
    )
    comparison = None
    if earlier is not None:
        read_found(earlier.content, truth, earlier.file)
        comparison = compare_detections(
            api,
            earlier.content,
            results,
            task,
            args.resamples,
            seed=args.seed,
            kpt_oks_sigmas=source.sigmas,
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_old_pictures(folder)
    worst, unread = draw_worst(analysis, api, results, roots, args.worst, folder)
    notes = [f"First: {earlier.file}; second: {source.file}."] if earlier else []
    if unread:
        note = f"{len(unread)} of {len(unread) + len(worst)} images could not be read, for example {unread[0]}; "
        notes.append(note + "name their folder with --images.")
        sys.stderr.write(notes[-1] + "\n")
    _write_files(source, earlier, analysis, comparison, args.seed, folder)
    charts = draw_charts(analysis, comparison, folder)
    files = (source.file, source.data)
    write_analysis_page(folder / "report.html", files, analysis, comparison, charts, worst, notes)
    for note in analysis.notes:
        sys.stderr.write(f"{note}\n")
    sys.stdout.write(_summary(analysis, comparison) + f"The whole report is {folder / 'report.html'}\n")


def _write_files(
    source: Source,
    earlier: Source | None,
    analysis: DetectionAnalysis,
    comparison: Comparison | None,
    seed: int,
    folder: Path,
) -> None:
    content: dict[str, Any] = {"predictions": source.file, "data": source.data, **analysis.to_dict()}
    if comparison is not None and earlier is not None:
        content["comparison"] = {"first": earlier.file, "seed": seed, **comparison.to_dict()}
    write_metrics(folder / "metrics.json", content)
    rows = [class_row(scores, analysis) for scores in [*analysis.per_class, analysis.overall]]
    write_csv(folder / "per_class.csv", class_columns(analysis), rows)
    names = [*(s.name for s in analysis.per_class), "all"]
    kinds = [*analysis.class_errors, analysis.errors]
    rows = [error_row(name, errors) for name, errors in zip(names, kinds, strict=True)]
    write_csv(folder / "errors.csv", error_columns(analysis), rows)
    write_csv(folder / "confusion.csv", ["true", "predicted", "count"], analysis.confused())


def _summary(analysis: DetectionAnalysis, comparison: Comparison | None) -> str:
    """-> the main numbers, for the terminal."""
    overall, best = analysis.overall, analysis.overall.best
    low, high = overall.ap_interval
    interval = f" ({low:.3f} to {high:.3f})" if low <= high else ""
    kind = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}[analysis.iou_type]
    lines = [
        f"{kind}: AP {overall.ap:.3f}{interval}  AP50 {overall.ap50:.3f}  AP75 {overall.ap75:.3f}  AR {overall.ar:.3f}",
    ]
    if best.threshold == best.threshold:  # it is NaN where there are no detections
        lines.append(
            f"best F1 {best.f1:.3f} at a score of {best.threshold:.2f} "
            f"(precision {best.precision:.3f}, recall {best.recall:.3f})"
        )
    known = {name: e for name, e in analysis.errors.items() if e.delta_ap > 0}
    if known:
        name = max(known, key=lambda n: known[n].delta_ap)
        lines.append(f"costliest errors: {name}, {known[name].delta_ap:.3f} of AP at {analysis.iou_threshold:g}")
    if comparison is not None:
        ap = comparison.metrics["AP"]
        lines.append(f"AP {ap.delta:+.3f} against the other run ({ap.low:+.3f} to {ap.high:+.3f})")
    return "".join(line + "\n" for line in lines)
