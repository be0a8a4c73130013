"""`detectron2 analyze`: what a model does well and badly, from saved predictions.

detectron2 analyze output
detectron2 analyze output/inference/coco_instances_results.json --data coco_2017_val
detectron2 analyze new.json --compare old.json --data instances_val.json --images val2017 --output analysis
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectron2.cli._analysis_charts import Names, draw_charts, draw_pixel_charts
from detectron2.cli._analysis_page import (
    KINDS,
    class_table,
    error_table,
    segment_table,
    write_csv,
    write_detection_page,
    write_metrics,
    write_segment_page,
)
from detectron2.cli._analysis_run import Source, find_sources, open_data, tasks_of
from detectron2.cli._html import write_pair
from detectron2.cli.common import register_datasets
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.formats.reading import current_exif, exif_policy, image_size_hw
from detectron2.data.tar_members import SCHEME
from detectron2.evaluation.analysis import (
    Comparison,
    DetectionAnalysis,
    SegmentAnalysis,
    analyze_detections,
    analyze_panoptic,
    analyze_sem_seg,
    compare_detections,
)
from detectron2.evaluation.analysis.inputs import Truth, read_found, read_truth
from detectron2.evaluation.analysis.pixels import read_label_maps, read_panoptic
from detectron2.evaluation.panoptic_evaluation import rgb_to_id_map
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.visualization.visualizer import Visualizer


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
    """Analyze predictions, as `find_sources` returns them, each kind in a folder of its own where there are several."""
    for source in sources:
        own = folder if len(sources) == 1 else folder / source.kind
        if source.kind != "instances" and (args.compare or args.task):
            raise ValueError(f"--compare and --task are for detections; {source.file} has labels of pixels.")
        with exif_policy(args.exif or source.exif):
            if source.kind == "instances":
                _analyze_instances(source, args, own)
            else:
                _analyze_pixels(source, args, own)


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
    for image in api.dataset.get("images", []):
        path = None if image.get("height") and image.get("width") else _find_picture(_file_name(image), roots)
        if path is not None:
            image["height"], image["width"] = image_size_hw(path)
    tasks = tasks_of(source.content, api.dataset.get("annotations", []), args.task)
    truths = {task: read_truth(api, task, source.sigmas) for task in tasks}
    # All are read before anything is written, with messages that name the file.
    found = {task: read_found(source.content, truth, source.file).results for task, truth in truths.items()}
    for task, truth in truths.items():
        own = folder if len(tasks) == 1 else folder / task
        _analyze_task(truth, found[task], source, earlier, roots, args, own)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sigmas are numbers with commas between them, not {text!r}.") from None


def _analyze_task(
    truth: Truth,
    results: Sequence[dict[str, Any]],
    source: Source,
    earlier: Source | None,
    roots: Sequence[str],
    args: argparse.Namespace,
    folder: Path,
) -> None:
    api, task = truth.api, truth.iou_type
    options = {"num_resamples": args.resamples, "seed": args.seed, "kpt_oks_sigmas": source.sigmas}
    analysis = analyze_detections(api, results, task, args.iou, args.score, **options)
    comparison, notes = None, []
    content: dict[str, Any] = {"predictions": source.file, "data": source.data, **analysis.to_dict()}
    if earlier is not None:
        read_found(earlier.content, truth, earlier.file)
        comparison = compare_detections(api, earlier.content, results, task, **options)
        content["comparison"] = {"first": earlier.file, "seed": args.seed, **comparison.to_dict()}
        notes = [f"First: {earlier.file}; second: {source.file}."]
    folder.mkdir(parents=True, exist_ok=True)
    _remove_old_pictures(folder)
    worst, unread = _draw_worst(analysis, api, results, roots, args.worst, folder)
    if unread:
        note = f"{len(unread)} of {len(unread) + len(worst)} images could not be read, for example {unread[0]}; "
        notes.append(note + "name their folder with --images.")
        sys.stderr.write(notes[-1] + "\n")
    write_metrics(folder / "metrics.json", content)
    write_csv(folder / "per_class.csv", *class_table(analysis))
    write_csv(folder / "errors.csv", *error_table(analysis))
    write_csv(folder / "confusion.csv", ["true", "predicted", "count"], analysis.confused())
    charts = draw_charts(analysis, comparison, folder, args.charts)
    page = folder / "report.html"
    write_detection_page(page, (source.file, source.data), analysis, comparison, charts, worst, notes)
    sys.stderr.write("".join(f"{note}\n" for note in analysis.notes))
    sys.stdout.write(f"{_summary(analysis, comparison)}The whole report is {page}\n")


def _summary(analysis: DetectionAnalysis, comparison: Comparison | None) -> str:
    """Return the main numbers, for the terminal."""
    overall, best = analysis.overall, analysis.overall.best
    low, high = overall.ap_interval
    interval = f" ({low:.3f} to {high:.3f})" if low <= high else ""
    averages = f"AP50 {overall.ap50:.3f}  AP75 {overall.ap75:.3f}  AR {overall.ar:.3f}"
    lines = [f"{KINDS[analysis.iou_type]}: AP {overall.ap:.3f}{interval}  {averages}"]
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


def _analyze_pixels(source: Source, args: argparse.Namespace, folder: Path) -> None:
    """Analyze predictions of labels, and write the files."""
    if source.data not in DatasetCatalog:
        raise ValueError(
            f"{source.file} has labels of pixels; the ground truth of those is a registered data set, and "
            f"{source.data!r} is none. Register it in a module of yours, and name that with --import."
        )
    analysis = (analyze_sem_seg if source.kind == "sem_seg" else analyze_panoptic)(source.data, source.file)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_old_pictures(folder)
    pictures = _draw_worst_pixels(analysis, source, args.images, args.worst, folder)
    write_metrics(folder / "metrics.json", {"predictions": source.file, "data": source.data, **analysis.to_dict()})
    write_csv(folder / "per_class.csv", *segment_table(analysis))
    if analysis.confusion is not None:
        write_csv(folder / "confusion.csv", ["true", "predicted", "pixels"], analysis.confused())
    page = folder / "report.html"
    charts = draw_pixel_charts(analysis, folder, args.charts)
    write_segment_page(page, (source.file, source.data), analysis, charts, pictures)
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in list(analysis.metrics.items())[:3])
    notes = "".join(f"{note}\n" for note in analysis.notes)
    sys.stdout.write(f"{numbers}\n{notes}The whole report is {page}\n")


def _draw_worst_pixels(
    analysis: SegmentAnalysis, source: Source, images: str | None, count: int, folder: Path
) -> dict[str, str]:
    """Draw truth and prediction as HTML, by caption; images that cannot be read are left out."""
    bad = [s for s in analysis.per_image if sum(v for k, v in s.values.items() if k != "share")][:count]
    is_sem_seg, metadata = analysis.task == "sem_seg", MetadataCatalog.get(source.data)
    key = "file_name" if is_sem_seg else "image_id"
    records = {str(record[key]): record for record in DatasetCatalog.get(source.data)}
    wanted = {s.name for s in bad}
    if is_sem_seg:
        predicted: dict[str, Any] = dict(read_label_maps(source.data, source.file, wanted))
    else:
        predicted = {str(i): rest for i, *rest in read_panoptic(source.file) if str(i) in wanted}
    drawn: dict[str, str] = {}
    for scores in bad:
        record = records[scores.name]
        roots = [os.path.join(images, os.path.dirname(record["file_name"])), images] if images else []
        name = os.path.basename(record["file_name"])
        pixels = _read_picture(record["file_name"], [""])
        pixels = _read_picture(name, roots) if pixels is None else pixels
        if pixels is None or scores.name not in predicted:
            continue
        draw = _draw_sem_seg if is_sem_seg else _draw_panoptic
        sides = draw(pixels, record, predicted[scores.name], metadata)
        said = (f"{v:.0%} of the labelled ones" if k == "share" else f"{v} {k}" for k, v in scores.values.items())
        drawn[f"{name}: {', '.join(said)}"] = write_pair(folder / f"worst_{len(drawn) + 1:02d}.png", *sides)
    return drawn


def _draw_sem_seg(pixels: np.ndarray, record: dict[str, Any], labels: np.ndarray, metadata: Any) -> list[np.ndarray]:
    true = np.array(load_image_into_numpy_array(record["sem_seg_file_name"], dtype=int))
    sides = (torch.from_numpy(np.where(side < len(metadata.stuff_classes), side, -1)) for side in (true, labels))
    return [_visualizer(pixels, metadata).draw_sem_seg(side, area_threshold=100).get_image() for side in sides]


def _draw_panoptic(
    pixels: np.ndarray, record: dict[str, Any], predicted: tuple[np.ndarray, list[dict[str, Any]]], metadata: Any
) -> list[np.ndarray]:
    true_ids = rgb_to_id_map(load_image_into_numpy_array(record["pan_seg_file_name"])).astype(np.int64)
    things = metadata.thing_dataset_id_to_contiguous_id
    true = [{"isthing": True, **s} for s in record["segments_info"]]
    found = []
    for segment in predicted[1]:
        is_thing = segment["category_id"] in things
        ids = things if is_thing else metadata.stuff_dataset_id_to_contiguous_id
        found.append({**segment, "category_id": ids[segment["category_id"]], "isthing": is_thing})
    sides = ((torch.from_numpy(true_ids), true), (torch.from_numpy(predicted[0]), found))
    return [_visualizer(pixels, metadata).draw_panoptic_seg(*s, area_threshold=100).get_image() for s in sides]


_GREEN, _RED, _GREY = (0.1, 0.7, 0.2), (0.9, 0.1, 0.1), (0.6, 0.6, 0.6)
_LEAST_SIDE, _MOST_SIDE = 480, 900
_SKELETON_COLOR = (255, 165, 0)


def _draw_worst(
    analysis: DetectionAnalysis,
    api: Any,
    results: Sequence[dict[str, Any]],
    roots: Sequence[str],
    count: int,
    folder: Path,
) -> tuple[dict[str, str], list[str]]:
    """Draw the images with the most errors: by caption both pictures as HTML; and name those that cannot be read."""
    worst = analysis.worst_images(count)
    wanted = {s.image_id for s in worst}
    objects = _by_image(api.dataset.get("annotations", []), wanted)
    found = _by_image(results, wanted)
    labels = Names([s.name for s in analysis.per_class])
    ids = sorted((c["id"] for c in api.dataset["categories"]), key=lambda i: (isinstance(i, str), i))
    names = {i: labels.plain(scores.name) for i, scores in zip(ids, analysis.per_class, strict=True)}
    metadata = _skeleton(api.dataset["categories"])
    drawn, unread = {}, []
    for scores in worst:
        file_name = _file_name(api.imgs[scores.image_id])
        pixels = _read_picture(file_name, roots)
        if pixels is None:
            unread.append(file_name)
            continue
        classes = [names[i] for i in ids]
        true = [
            (_true_style(n, names[a["category_id"]], analysis, classes), a) for n, a in objects.get(scores.image_id, [])
        ]
        predicted = [
            (_found_style(n, f"{names[r['category_id']]} {r['score']:.0%}", analysis), r)
            for n, r in found.get(scores.image_id, [])
            if r["score"] >= analysis.score_threshold
        ]
        sides = [_draw(pixels, entries, analysis.iou_type, metadata) for entries in (true, predicted)]
        name = os.path.basename(file_name) if os.path.isabs(file_name) else file_name
        caption = f"{name}: {scores.num_right} right, {scores.num_wrong} wrong, {scores.num_missed} missed"
        drawn[caption] = write_pair(folder / f"worst_{len(drawn) + 1:02d}.png", *sides)
    return drawn, unread


def _file_name(image: dict[str, Any]) -> str:
    """Return the file name; LVIS has it only as the end of the address, folder and file."""
    if "file_name" not in image and "coco_url" in image:
        return "/".join(str(image["coco_url"]).split("/")[-2:])
    return str(image.get("file_name", image["id"]))


def _by_image(entries: Iterable[dict[str, Any]], wanted: set[Any]) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group the entries of the wanted images, with their places."""
    grouped: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for place, entry in enumerate(entries):
        if entry["image_id"] in wanted:
            grouped.setdefault(entry["image_id"], []).append((place, entry))
    return grouped


_Style = tuple[str, tuple[float, float, float]]


def _true_style(place: int, label: str, analysis: DetectionAnalysis, classes: Sequence[str]) -> _Style:
    """Return label and colour of an annotation; the label repeats in words what the colour says."""
    if analysis.is_ignored[place]:
        return f"{label} (not counted)", _GREY
    if analysis.is_found[place]:
        return label, _GREEN
    other = int(analysis.taken_for[place])
    return (f"{label}, missed" if other < 0 else f"{label}, found as {classes[other]}"), _RED


def _found_style(place: int, label: str, analysis: DetectionAnalysis) -> _Style:
    """Return label and colour of a detection."""
    if analysis.is_right[place]:
        return label, _GREEN
    if not analysis.is_counted[place]:
        return f"{label} (not counted)", _GREY
    return f"{label}, {list(analysis.errors)[analysis.error[place]]}", _RED


def _skeleton(categories: Sequence[dict[str, Any]]) -> Metadata:
    """Return metadata with the keypoint connections of the ground truth, if it has any."""
    metadata = Metadata().set(name="analysis")
    for category in categories:
        if category.get("keypoints"):
            names = [str(n) for n in category["keypoints"]]
            ends = [(names[a - 1 : a], names[b - 1 : b]) for a, b in category.get("skeleton") or []]  # from 1 on
            rules = [(a[0], b[0], _SKELETON_COLOR) for a, b in ends if a and b]
            return metadata.set(keypoint_names=names, keypoint_connection_rules=rules)
    return metadata


def _read_picture(file_name: str, roots: Sequence[str]) -> np.ndarray | None:
    """Read an image from one of the folders in which it may lie, RGB, or return None if none can be read."""
    path = _find_picture(file_name, roots)
    try:
        return None if path is None else read_image(path, "RGB", current_exif())
    except OSError:
        return None  # damaged; reported by the caller with those that are missing


def _find_picture(file_name: str, roots: Sequence[str]) -> str | None:
    if file_name.startswith(SCHEME):
        return file_name
    return next((p for root in roots if os.path.isfile(p := os.path.join(root, file_name))), None)


def _visualizer(pixels: np.ndarray, metadata: Any) -> Visualizer:
    """Make a visualizer that enlarges small images, so that labels do not cover the objects."""
    longest = max(pixels.shape[:2])
    return Visualizer(pixels, metadata, scale=min(max(_LEAST_SIDE, longest), _MOST_SIDE) / longest)


def _draw(
    pixels: np.ndarray, entries: Sequence[tuple[_Style, dict[str, Any]]], iou_type: str, metadata: Metadata
) -> np.ndarray:
    """Return the image with annotations or detections on it."""
    visualizer = _visualizer(pixels, metadata)
    if not entries:
        return visualizer.get_output().get_image()
    labels, colors = [style[0] for style, _ in entries], [style[1] for style, _ in entries]
    if iou_type == "segm":
        masks = [e["segmentation"] for _, e in entries]
        visualizer.overlay_instances(masks=masks, labels=labels, assigned_colors=colors, alpha=0.35)
    else:
        boxes = np.array([_box_xywh(e) for _, e in entries], float)
        boxes[:, 2:] += boxes[:, :2]
        if iou_type == "keypoints":
            for _, entry in entries:
                if entry.get("keypoints"):
                    points = np.array(entry["keypoints"], float).reshape(-1, 3)
                    visualizer.draw_and_connect_keypoints(points + np.array([0.5, 0.5, 0.0]))  # files name the pixel
        visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()


def _box_xywh(entry: dict[str, Any]) -> list[float]:
    """Return the box; for a detection without one, the box around its keypoints."""
    if "bbox" in entry:
        return entry["bbox"][:4]
    xy = np.array(entry["keypoints"], float).reshape(-1, 3)[:, :2]
    return [*xy.min(0).tolist(), *np.ptp(xy, axis=0).tolist()]


def _remove_old_pictures(folder: Path) -> None:
    """Remove what an earlier analysis has drawn into the same folder and this one might not draw again."""
    for path in folder.glob("worst_*.png"):
        if path.stem.removeprefix("worst_").isdigit():
            path.unlink()
    for kind in ("png", "svg", "pdf"):
        (folder / f"comparison.{kind}").unlink(missing_ok=True)
