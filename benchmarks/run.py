"""One table of all that is said to be fast: seconds, ratio to a yardstick in the same run, and peak memory.

python benchmarks/run.py                                        # all works, some minutes
python benchmarks/run.py --only inference pooler --rounds 5 --output after.json
python benchmarks/run.py --output results.md --summary benchmarks/results/summary.md

Each work has a process of its own, in which it and its yardstick take turns; the least of the rounds counts. "spread"
is how far the median of the rounds lies above it. The memory is the peak of the process before the yardstick runs.
Details of each work are in the script whose functions it calls. With --threads 1 the time of the processor is taken,
which other programs on the machine change less.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_import import measure_import, peak_memory_mib

HERE = Path(__file__).resolve().parent


@dataclass
class Work:
    """What is measured; a call that returns a number has measured its seconds itself."""

    ours: Callable[[], Any]
    yardstick: Callable[[], Any]
    yardstick_name: str
    count: int = 1  # of images or other units in a call
    memory: Callable[[], float] | None = None  # MiB; by default those of the process
    starts_processes: bool = False


@dataclass
class Result:
    """Seconds of one unit, the ratio to the yardstick, and the peak of the memory."""

    seconds: float
    spread: float
    yardstick: str
    yardstick_seconds: float
    memory_mib: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.yardstick_seconds


@contextmanager
def importing() -> Iterator[Work]:
    last = [measure_import("detectron2.engine")]  # compiles

    def ours() -> float:
        last.append(measure_import("detectron2.engine"))
        return last[-1].of_torch + last[-1].of_module

    name = "import torch, torchvision, in the same process"
    yield Work(ours, lambda: last[-1].of_torch, name, memory=lambda: last[-1].memory_mib)


@contextmanager
def mapping() -> Iterator[Work]:
    import bench_data

    with tempfile.TemporaryDirectory() as folder:
        records = bench_data.make_records(Path(folder), 20, (480, 640), 8, 40)
        mapper = bench_data.make_mapper(use_instance_mask=True)
        yield Work(
            ours=lambda: [bench_data.map_with_seed(mapper, r, i) for i, r in enumerate(records)],
            yardstick=lambda: [bench_data.image_to_tensor(r["file_name"], (720, 960), False) for r in records],
            yardstick_name="Pillow, the image alone",
            count=len(records),
        )


@contextmanager
def loading() -> Iterator[Work]:
    import bench_data
    from torch.utils.data import DataLoader

    from detectron2.data import build_detection_train_loader

    with tempfile.TemporaryDirectory() as folder:
        records = bench_data.make_records(Path(folder), 40, (480, 640), 8, 40)
        mapper = bench_data.make_mapper(use_instance_mask=True)
        ours = build_detection_train_loader(records, mapper=mapper, total_batch_size=4, num_workers=2)
        paths = [r["file_name"] for r in records]
        plain: Any = DataLoader(paths, 4, num_workers=2, collate_fn=_read_with_pillow)

        def take(loader: Any) -> None:
            for _ in itertools.islice(loader, len(records) // 4):
                pass

        name = "DataLoader and Pillow, the image alone"
        yield Work(lambda: take(ours), lambda: take(plain), name, len(records), starts_processes=True)


def _read_with_pillow(paths: list[str]) -> list[Any]:
    import bench_data

    return [bench_data.image_to_tensor(path, (720, 960), False) for path in paths]


@contextmanager
def evaluating() -> Iterator[Work]:
    import bench_evaluation
    import numpy as np

    dataset = bench_evaluation.make_dataset(500, 7, 480, 640, masks=False)
    detections = list(bench_evaluation.make_detections(dataset, 49, np.random.default_rng(1)))
    pairs, rows = bench_evaluation.as_pairs(detections), bench_evaluation.as_rows(detections)
    with tempfile.TemporaryDirectory() as folder:
        name = bench_evaluation.register(dataset, folder)
        yield Work(
            ours=lambda: bench_evaluation.evaluate(name, pairs) and None,
            yardstick=lambda: bench_evaluation.evaluate_with_pycocotools(dataset, rows)[0],
            yardstick_name="pycocotools, evaluate and accumulate",
            count=len(pairs),
        )


def _boxes(count: int, size_hw: tuple[int, int]) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    height, width = size_hw
    center = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = torch.exp(torch.rand(count, 1, generator=generator) * 3.5 + 2.7)
    half = side * torch.exp(torch.randn(count, 2, generator=generator) * 0.3) / 2
    low, high = (center - half).clamp(min=0), torch.minimum(center + half, torch.tensor([width, height]))
    return torch.cat([low, high], dim=1)


@contextmanager
def pasting() -> Iterator[Work]:
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image as paste_in_torchvision

    from detectron2.layers import paste_masks_in_image

    masks, boxes = torch.rand(100, 28, 28, generator=torch.Generator().manual_seed(0)), _boxes(100, (800, 1067))
    yield Work(
        ours=lambda: paste_masks_in_image(masks, boxes, (800, 1067)) is None,
        yardstick=lambda: paste_in_torchvision(masks[:, None], boxes, (800, 1067)).gt(0.5) is None,
        yardstick_name="torchvision, and the threshold",
        count=100,
    )


@contextmanager
def rotated_nms() -> Iterator[Work]:
    import bench_rotated
    import torch

    from detectron2.layers import nms_rotated

    generator = torch.Generator().manual_seed(0)
    boxes, scores = bench_rotated.random_boxes(300, 700.0, 80.0, generator), torch.rand(300, generator=generator)

    def plain() -> None:
        bench_rotated.plain_nms(bench_rotated.plain_matrix(boxes, boxes), scores, 0.5)

    yield Work(lambda: nms_rotated(boxes, scores, 0.5) is None, plain, "written out in PyTorch, all pairs")


@contextmanager
def pooling() -> Iterator[Work]:
    import bench_inference
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    size_hw, generator = (800, 1067), torch.Generator().manual_seed(0)
    shapes = {str(s): (1, 256, -(-size_hw[0] // s), -(-size_hw[1] // s)) for s in (4, 8, 16, 32)}
    maps = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    boxes, theirs = _boxes(1000, size_hw), MultiScaleRoIAlign(list(maps), 7, 0)
    with torch.no_grad():
        ours = bench_inference.pooler_runs(*size_hw)["after"]
        yield Work(lambda: ours() is None, lambda: theirs(maps, [boxes], [size_hw]) is None, "torchvision")


@contextmanager
def inference() -> Iterator[Work]:
    import bench_inference
    import torch

    from detectron2.modeling import optimized_for_inference

    image = torch.randint(0, 256, (3, 800, 1067), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        model = optimized_for_inference(bench_inference.model_of(bench_inference.MODELS["mask"], image))
        theirs = bench_inference.torchvision_run(image)
        yield Work(lambda: model([{"image": image}]), theirs, "torchvision's maskrcnn_resnet50_fpn")


@contextmanager
def training() -> Iterator[Work]:
    import bench_training

    inputs = bench_training.batch_of(2, 480, 640)
    ours = bench_training.step_of("mask", 50, inputs, "fp32", True)
    theirs = bench_training.torchvision_step(inputs)
    yield Work(ours, theirs, "torchvision's Mask R-CNN", len(inputs))


@contextmanager
def drawing() -> Iterator[Work]:
    import bench_drawing
    import torch
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    from detectron2.data import Metadata

    image, found = bench_drawing.make_scene(1080, 1920, 20)
    metadata, planes = Metadata(thing_classes=bench_drawing.NAMES), torch.from_numpy(image).permute(2, 0, 1)
    labels = [bench_drawing.NAMES[i] for i in found.pred_classes]

    def theirs() -> None:
        canvas = draw_segmentation_masks(planes, found.pred_masks, alpha=0.5)
        draw_bounding_boxes(canvas, found.pred_boxes.tensor, labels=labels)

    yield Work(lambda: bench_drawing.draw(image, metadata, found), theirs, "torchvision, without outlines")


WORKS: dict[str, tuple[str, Callable[[], Any]]] = {
    "import": ("import detectron2.engine", importing),
    "mapper": ("training mapper, an image of 480 x 640 with 8 polygons", mapping),
    "loader": ("training loader with 2 workers, the same", loading),
    "evaluation": ("COCOEvaluator, an image with 49 boxes", evaluating),
    "pasting": ("a mask of 28 x 28 into 800 x 1067", pasting),
    "rotated_nms": ("NMS of 300 rotated boxes", rotated_nms),
    "pooler": ("ROIPooler, 1,000 boxes, 4 levels, 7 x 7", pooling),
    "inference": ("Mask R-CNN R50-FPN, an image of 800 x 1067", inference),
    "training": ("training step of the same, an image of 480 x 640", training),
    "drawing": ("picture of 1920 x 1080 with 20 masks", drawing),
}


def measure(work: Work, rounds: int, threads: int) -> Result:
    """Measure a work and its yardstick in turn, both orders, after one call of each that warms up."""
    # The processor's time, where that is the time taken: others on the machine count less.
    clock = time.process_time if threads == 1 and not work.starts_processes else time.perf_counter

    def seconds_of(function: Callable[[], Any]) -> float:
        begin = clock()
        returned = function()
        return returned if type(returned) is float else clock() - begin

    work.ours()
    memory = (work.memory or peak_memory_mib)()
    work.yardstick()
    ours, theirs = [], []
    for i in range(rounds):
        pair = [(ours, work.ours), (theirs, work.yardstick)]
        for seconds, function in pair if i % 2 == 0 else pair[::-1]:
            seconds.append(seconds_of(function) / work.count)
    spread = statistics.median(ours) / min(ours) - 1
    return Result(min(ours), spread, work.yardstick_name, min(theirs), memory)


def run_one(name: str, rounds: int, threads: int) -> None:
    """Measure one work in this process, and print the result as JSON, the last line of the output."""
    import torch

    torch.set_num_threads(threads)
    with WORKS[name][1]() as work:
        print(json.dumps(asdict(measure(work, rounds, threads))))


def run_in_process(name: str, rounds: int, threads: int) -> Result | str:
    """Measure one work in a process of its own; returns the last line of its error where it fails."""
    command = [sys.executable, str(HERE / "run.py"), "--in-this-process", name]
    command += ["--rounds", str(rounds), "--threads", str(threads)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}"
    return Result(**json.loads(done.stdout.splitlines()[-1]))


HEAD = ("work", "seconds", "spread", "ratio", "yardstick", "seconds of it", "peak memory")


def table_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def result_row(name: str, result: Result | str) -> str:
    what = f"{name}: {WORKS[name][0]}"
    if isinstance(result, str):
        return table_row((what, "", "", "", f"failed: {result}", "", ""))
    numbers = (_short(result.seconds), f"{result.spread:.0%}", f"{result.ratio:.2f}")
    memory = f"{result.memory_mib:.0f} MiB"
    return table_row((what, *numbers, result.yardstick, _short(result.yardstick_seconds), memory))


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch
    import torchvision

    from detectron2 import __version__

    return {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "rounds": args.rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def write(path: Path, about: dict[str, Any], results: dict[str, Result | str], lines: list[str]) -> None:
    """Write all as JSON, or the table as Markdown."""
    if path.suffix == ".json":
        works = {
            name: {"error": r} if isinstance(r, str) else {**asdict(r), "ratio": r.ratio} for name, r in results.items()
        }
        path.write_text(json.dumps({**about, "works": works}, indent=2) + "\n", encoding="utf-8")
    else:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


SUMMARY = """# Speed of the releases

Ratios to the yardsticks of `benchmarks/run.py`, smaller is faster; `python benchmarks/run.py --summary FILE` writes the
row of the version that it measures.

"""


def update_summary(path: Path, about: dict[str, Any], results: dict[str, Result | str]) -> None:
    """Put the row of this version into the table; in one that is there, works that were not run keep their numbers."""
    head = ("version", "date", "machine", "PyTorch", *WORKS)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    table = [
        [c.strip() for c in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    rows = [dict(zip(table[0], cells, strict=False)) for cells in table[2:]]
    own = {"version": about["version"], "date": about["date"], "machine": about["machine"], "PyTorch": about["torch"]}
    own |= {name: f"{r.ratio:.2f}" for name, r in results.items() if isinstance(r, Result)}
    old = next((row for row in rows if row.get("version") == own["version"]), None)
    if old is None:
        rows.append(own)
    else:
        old.update(own)
    lines = [table_row(head), table_row(("---",) * len(head))]
    lines += [table_row(tuple(row.get(column, "") for column in head)) for row in rows]
    path.write_text(SUMMARY + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=list(WORKS), choices=list(WORKS), metavar="WORK", help=str([*WORKS])
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, action="append", default=[], metavar="FILE.json|.md")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="a table with a row for each version, to update")
    parser.add_argument("--in-this-process", choices=list(WORKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    for path in args.output:
        if path.suffix not in (".json", ".md"):
            parser.error(f"--output is a .json or an .md file, not {path}")
    if args.in_this_process:
        run_one(args.in_this_process, args.rounds, args.threads)
        return
    about = facts(args)
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), "", table_row(HEAD)]
    lines.append(table_row(("---",) * len(HEAD)))
    print("\n".join(lines), flush=True)
    results: dict[str, Result | str] = {}
    for name in args.only:
        results[name] = run_in_process(name, args.rounds, args.threads)
        lines.append(result_row(name, results[name]))
        print(lines[-1], flush=True)
    for path in args.output:
        write(path, about, results, lines)
    if args.summary:
        update_summary(args.summary, about, results)
    if any(isinstance(result, str) for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
