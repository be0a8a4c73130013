"""How long the analysis of saved predictions takes, by parts, and how much memory.

usage:  python benchmarks/bench_analysis.py [--images N] [--classes K] [--resamples N] [--compare] [--lvis]

Ground truth and predictions are made up: 7 objects and 49 detections an image, three fifths of them near an object. By
default 2,000 images with 80 classes, 14,500 objects and 98,000 detections. Times are of one process with one thread,
without imports. pycocotools' evaluation of the same boxes is timed for comparison, and its AP compared.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_SIZE_WH = np.array([640.0, 480.0])


def make_case(num_images: int, num_classes: int, is_lvis: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and predictions of a mediocre detector, in COCO's or LVIS's format."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(num_classes, 0.4))
    images, annotations, rows = [], [], []
    for image in range(1, num_images + 1):
        count = rng.poisson(7.3)
        wh = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
        xy = rng.uniform(0, 1, (count, 2)) * np.maximum(_SIZE_WH - wh, 1)
        labels = rng.choice(num_classes, count, p=shares) + 1
        for label, box in zip(labels.tolist(), np.concatenate([xy, wh], 1).tolist(), strict=True):
            area, crowd = box[2] * box[3], 0 if is_lvis else int(rng.random() < 0.01)
            entry = {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, **entry})
        rows += _detections(image, xy, wh, labels, shares, rng)
        images.append({"id": image, "file_name": f"{image}.jpg", "height": 480, "width": 640})
        if is_lvis:
            absent = np.setdiff1d(rng.choice(num_classes, 30) + 1, labels)
            images[-1] |= {"neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": labels[:1].tolist()}
    categories = [{"id": k + 1, "name": f"class {k}", "frequency": "rcf"[k % 3]} for k in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def _detections(
    image: int, xy: np.ndarray, wh: np.ndarray, labels: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    count, near = rng.poisson(49), len(xy) > 0
    is_near = (rng.random(count) < 0.6) & near
    target = rng.integers(max(len(xy), 1), size=count)
    size = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
    place = rng.uniform(0, 1, (count, 2)) * np.maximum(_SIZE_WH - size, 1)
    guess = rng.choice(len(shares), count, p=shares) + 1
    score = rng.beta(1, 6, count)
    if near:
        size = np.where(is_near[:, None], wh[target] * np.exp(rng.normal(0, 0.12, (count, 2))), size)
        place = np.where(is_near[:, None], xy[target] + rng.normal(0, 0.08, (count, 2)) * size, place)
        guess = np.where(is_near & (rng.random(count) < 0.8), labels[target], guess)
        score = np.where(is_near, rng.beta(2, 2, count), score)
    columns = (guess.tolist(), np.concatenate([place, size], 1).round(2).tolist(), score.round(5).tolist())
    return [{"image_id": image, "category_id": k, "bbox": b, "score": s} for k, b, s in zip(*columns, strict=True)]


@contextlib.contextmanager
def timed(name: str):
    begin = time.process_time()
    yield
    print(f"  {name:46s} {time.process_time() - begin:6.1f} s")


def reference_ap(truth: str, found: str) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO(truth)
        engine: Any = COCOeval(api, api.loadRes(found), "bbox")
        for step in (engine.evaluate, engine.accumulate, engine.summarize):
            step()
    return float(engine.stats[0])


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    from detectron2.cli import main
    from detectron2.cli._analysis_charts import draw_charts
    from detectron2.evaluation import analyze_detections, compare_detections

    truth, found = str(folder / "truth.json"), str(folder / "found.json")
    content, rows = make_case(arguments.images, arguments.classes, arguments.lvis)
    for path, part in ((truth, content), (found, rows)):
        Path(path).write_text(json.dumps(part))
    print(f"{arguments.images} images, {arguments.classes} classes, {len(content['annotations'])} objects,", end=" ")
    print(f"{len(rows)} detections; {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    with timed("analysis without intervals"):
        analysis = analyze_detections(truth, found)
    with timed(f"analysis with intervals, {arguments.resamples} resamples"):
        analyze_detections(truth, found, num_resamples=arguments.resamples)
    if arguments.compare:
        with timed("comparison with itself"):
            compare_detections(truth, found, found, num_resamples=arguments.resamples)
    with timed("charts"):
        draw_charts(analysis, None, folder)
    argv = ["analyze", found, "--data", truth, "--resamples", str(arguments.resamples), "--worst", "0"]
    with timed("detectron2 analyze, all of it"), contextlib.redirect_stdout(io.StringIO()):
        main([*argv, "--output", str(folder / "analysis")])
    size = (folder / "analysis" / "report.html").stat().st_size
    print(f"  report.html {size / 2**20:.1f} MiB, AP {analysis.overall.ap:.4f}")
    print(f"  peak of the memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if not arguments.lvis:
        with timed("pycocotools, AP alone"):
            expected = reference_ap(truth, found)
        print(f"  AP by pycocotools {expected:.4f}, difference {abs(expected - analysis.overall.ap):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--lvis", action="store_true")
    with tempfile.TemporaryDirectory() as temporary:
        measure(parser.parse_args(), Path(temporary))
