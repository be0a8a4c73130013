"""How long COCO evaluation takes, and how much memory.

usage:  python benchmarks/bench_evaluation.py {speed,memory,paste,draw,panoptic} [--images N] [--objects N]
            [--masks full|roi|rle] [--whole]

speed: COCOEvaluator (process and evaluate) against pycocotools' evaluate and accumulate alone, on the same boxes, and
    whether the numbers are the same.
memory: the growth of the resident memory, at its peak, of a process that evaluates many masks.
paste: the same for the masks of one large image (8000 x 4000 pixels, 300 objects) from the head to run lengths, of
    objects of 50 to 1000 pixels, or with --whole as large as the image.
draw: the same for the picture of its predictions.
panoptic: the same for the merge of its predictions into one map.

One measurement a process: the peak that the kernel counts cannot be set back.
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
from typing import Any

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.data._loader import process_memory
from detectron2.structures import Boxes, Instances, ROIMasks

_CLASSES = 80


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def now_mib() -> float:
    """Resident memory now; below the peak where making the data took more than it does, so growth is not hidden."""
    memory = process_memory()
    if not memory:
        raise SystemExit("This reads /proc, which only Linux has.")
    return memory["RSS"] / 2**20


def make_dataset(images: int, objects: int, height: int, width: int, masks: bool) -> dict[str, Any]:
    """Ground truth: boxes, and as masks octagons."""
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(rng.poisson(objects)):
            w, h = np.exp(rng.uniform(np.log(8), np.log(width / 2.5), 2))
            x, y = rng.uniform(0, max(width - w, 1)), rng.uniform(0, max(height - h, 1))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(rng.integers(_CLASSES)) + 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(rng.random() < 0.01),
            }
            if masks:
                outline = np.stack([x + w / 2 * (1 + np.cos(turn)), y + h / 2 * (1 + np.sin(turn))], 1)
                annotation["segmentation"] = [outline.ravel().tolist()]
            annotations.append(annotation)
    return {
        "info": {},
        "images": [{"id": i, "file_name": "", "height": height, "width": width} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": f"class{k}"} for k in range(_CLASSES)],
    }


def make_detections(dataset: dict[str, Any], per_image: int, rng: np.random.Generator):
    """Per image the boxes (x1, y1, x2, y2), scores and classes of a mediocre detector."""
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for image in dataset["images"]:
        mine = objects[image["id"]]
        size_wh = np.array([image["width"], image["height"]])
        corner = rng.uniform(0, size_wh * 0.8, (per_image, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 150, (per_image, 2))], 1)
        classes = rng.integers(0, _CLASSES, per_image)
        for k in range(min(per_image // 2, 2 * len(mine))):
            x, y, w, h = mine[k % len(mine)]["bbox"]
            boxes[k] = np.array([x, y, x + w, y + h]) + rng.normal(0, 3, 4)
            classes[k] = mine[k % len(mine)]["category_id"] - 1
        boxes = boxes.clip(0, np.tile(size_wh, 2))
        yield image, boxes.astype(np.float32), rng.uniform(0.05, 1, per_image).astype(np.float32), classes


def as_instances(image: dict[str, Any], boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Instances:
    return Instances(
        (image["height"], image["width"]),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.from_numpy(scores),
        pred_classes=torch.from_numpy(classes),
    )


def register(dataset: dict[str, Any], folder: str) -> str:
    path = os.path.join(folder, "annotations.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(dataset, f)
    MetadataCatalog.get("bench_evaluation").set(
        json_file=path,
        thing_classes=[c["name"] for c in dataset["categories"]],
        thing_dataset_id_to_contiguous_id={c["id"]: c["id"] - 1 for c in dataset["categories"]},
    )
    return "bench_evaluation"


def evaluate(name: str, pairs: list[Any]) -> tuple[float, dict[str, Any]]:
    """Evaluate boxes with COCOEvaluator; returns the seconds of all batches, and the results."""
    from detectron2.evaluation import COCOEvaluator

    evaluator = COCOEvaluator(name, ("bbox",), distributed=False)
    evaluator.reset()
    begin = time.perf_counter()
    for inputs, outputs in pairs:
        evaluator.process(inputs, outputs)
    processed = time.perf_counter() - begin
    return processed, evaluator.evaluate()


def as_rows(detections: list[Any]) -> list[dict[str, Any]]:
    """Detections in COCO's result format."""
    return [
        {
            "image_id": image["id"],
            "category_id": int(k) + 1,
            "bbox": [float(v) for v in (*b[:2], *(b[2:] - b[:2]))],
            "score": float(s),
        }
        for image, boxes, scores, classes in detections
        for b, s, k in zip(boxes, scores, classes, strict=True)
    ]


def evaluate_with_pycocotools(dataset: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[float, Any]:
    """Evaluate the same boxes with pycocotools; returns the seconds of evaluate and accumulate, and its numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = dataset
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(rows), "bbox")
        start = time.perf_counter()
        reference.evaluate()
        reference.accumulate()
        seconds = time.perf_counter() - start
        reference.summarize()
    return seconds, reference.stats


def as_pairs(detections: list[Any]) -> list[Any]:
    """Batches of one image: inputs and outputs, as an evaluator gets them."""
    return [([{"image_id": d[0]["id"]}], [{"instances": as_instances(*d)}]) for d in detections]


def measure_speed(arguments: argparse.Namespace, folder: str) -> None:
    dataset = make_dataset(arguments.images, 7, 480, 640, masks=False)
    detections = list(make_detections(dataset, arguments.objects, np.random.default_rng(1)))
    name, pairs = register(dataset, folder), as_pairs(detections)
    begin = time.perf_counter()
    processed, results = evaluate(name, pairs)
    both = time.perf_counter() - begin
    rows = as_rows(detections)
    seconds, stats = evaluate_with_pycocotools(dataset, rows)
    worst = max(abs(results["bbox"][n] - 100 * stats[k]) for k, n in enumerate(("AP", "AP50", "AP75")))
    print(f"{arguments.images} images, {len(rows)} detections, {len(dataset['annotations'])} objects")
    print(f"ours: process {processed:.2f} s, all, the file of annotations read, {both:.2f} s")
    print(f"pycocotools: evaluate and accumulate {seconds:.2f} s, that is {seconds / both:.1f} times as long")
    print(f"AP {results['bbox']['AP']:.3f}, largest difference of the numbers {worst:.1e} points")


def masked(instances: Instances, kind: Any, probabilities: torch.Tensor) -> Instances:
    """Add masks to the detections, as the chosen format of `detector_postprocess` gives them."""
    from detectron2.modeling.postprocessing import detector_postprocess

    instances.pred_masks = ROIMasks(probabilities)
    return detector_postprocess(instances, *instances.image_size, mask_format=kind)


def make_masks(count: int, generator: torch.Generator) -> torch.Tensor:
    """What a mask head might say, `Tensor[N, 28, 28]`: a blob with a wavy outline."""
    axis = torch.linspace(-1, 1, 28)
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    waves = torch.randn(count, 1, 7, 7, generator=generator)
    waves = torch.nn.functional.interpolate(waves, size=(28, 28), mode="bilinear")[:, 0]
    return (1.35 - distance + 0.2 * waves).clamp(0, 1)


def measure_memory(arguments: argparse.Namespace, folder: str) -> None:
    from detectron2.evaluation import COCOEvaluator

    dataset = make_dataset(arguments.images, 7, 480, 640, masks=True)
    generator = torch.Generator().manual_seed(0)
    output = os.path.join(folder, "out") if arguments.output else None
    evaluator = COCOEvaluator(register(dataset, folder), distributed=False, output_dir=output)
    evaluator.reset()
    begin, before = time.perf_counter(), now_mib()
    for d in make_detections(dataset, arguments.objects, np.random.default_rng(1)):
        instances = masked(as_instances(*d), arguments.masks, make_masks(arguments.objects, generator))
        evaluator.process([{"image_id": d[0]["id"]}], [{"instances": instances}])
    processed, between = time.perf_counter(), peak_mib()
    results = evaluator.evaluate()
    done = time.perf_counter()
    print(
        f"{arguments.images} images of {arguments.objects} masks ({arguments.masks}), output_dir: {output is not None}"
    )
    tables = [p["instances"] for p in evaluator._predictions]
    print(f"{sum(len(t.counts) for t in tables) / sum(map(len, tables)):.0f} bytes of run lengths a mask")
    print(f"making and processing predictions {processed - begin:.0f} s, evaluate {done - processed:.1f} s")
    print(
        f"peak beyond {before:.0f} MiB: {between - before:.0f} MiB after the last batch, {peak_mib() - before:.0f} MiB "
        f"at the end; segm AP {results['segm']['AP']:.2f}"
    )


def large_image(arguments: argparse.Namespace) -> tuple[Instances, torch.Tensor]:
    """Detections in an image of 8000 x 4000, and the masks of the head."""
    image = {"id": 1, "height": 4000, "width": 8000}
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, [6000, 3000], (arguments.objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(50, 1000, (arguments.objects, 2))], 1).astype(np.float32)
    if arguments.whole:
        boxes[:] = [0, 0, 8000, 4000]
    scores, classes = np.linspace(1, 0.6, len(boxes), dtype=np.float32), np.zeros(len(boxes), np.int64)
    return as_instances(image, boxes, scores, classes), make_masks(len(boxes), torch.Generator().manual_seed(0))


def measure_large_image(arguments: argparse.Namespace, folder: str) -> None:
    from detectron2.data import Metadata
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
    from detectron2.visualization import Visualizer

    instances, probabilities = large_image(arguments)
    picture = np.zeros((4000, 8000, 3) if arguments.what == "draw" else (0, 0, 3), np.uint8)
    begin, before = time.perf_counter(), now_mib()
    instances = masked(instances, arguments.masks, probabilities)
    if arguments.what == "paste":
        instances_to_coco_json(instances, 1)
    elif arguments.what == "draw":
        Visualizer(picture, Metadata()).draw_instance_predictions(instances).get_image()
    else:
        combine_semantic_and_instance_outputs(instances, torch.zeros(4000, 8000, dtype=torch.int64), 0.5, 4096, 0.5)
    objects = "as large as the image" if arguments.whole else "of 50 to 1000 pixels"
    print(
        f"{arguments.what}: {len(instances)} objects {objects} in 8000 x 4000 ({arguments.masks}): "
        f"{time.perf_counter() - begin:.1f} s, peak {peak_mib() - before:.0f} MiB beyond {before:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "paste", "draw", "panoptic"])
    parser.add_argument("--images", type=int, help="default: 2000 for speed, 5000 for memory")
    parser.add_argument("--objects", type=int, help="detections an image; default: 49, 100 for memory, else 300")
    parser.add_argument("--masks", choices=["full", "roi", "rle"], default="full", help="what the model gives")
    parser.add_argument("--output", action="store_true", help="memory: write the files of the evaluator too")
    parser.add_argument("--whole", action="store_true", help="one large image: objects as large as it")
    arguments = parser.parse_args()
    defaults = {"speed": (2000, 49), "memory": (5000, 100)}.get(arguments.what, (1, 300))
    arguments.images = arguments.images or defaults[0]
    arguments.objects = arguments.objects or defaults[1]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads of torch, torch {torch.__version__}")
    measure = {"speed": measure_speed, "memory": measure_memory}.get(arguments.what, measure_large_image)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, folder)


if __name__ == "__main__":
    main()
