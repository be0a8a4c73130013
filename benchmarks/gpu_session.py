"""What a GPU makes of this library, in one go of under eight minutes, written to one file.

python benchmarks/gpu_session.py                                        # benchmarks/results/gpu_<device>_<date>.md
python benchmarks/gpu_session.py --minutes 20 --batch 8 --output FILE.md
python benchmarks/gpu_session.py --wheels wheels                        # on a machine without our dependencies
python benchmarks/gpu_session.py --device cpu --tiny                    # on any machine: does the script work?

Parts, each in a process of its own with a limit of time, in this order: the machine; losses on the GPU beside those of
the CPU; training and inference of Mask R-CNN and RetinaNet, R-50 FPN, on images of 800 x 1333 and less; the tests that
need a GPU. Training is eager, compiled, and compiled with CUDA graphs (batches padded to one size), in bf16, tf32 and
fp32 (compiled models in bf16 alone, unless there are 15 minutes), with the waits of the host for the GPU in a step.
What fails or takes too long is a row with the reason, and the file is written anew after each row. The parts that tell
most come first, and the last ones are left out when the time is over.

Only torch, torchvision and our dependencies are needed. Where there is no package index, carry wheels of these, which
`--wheels` unpacks and puts on the path. Make the folder on another machine, for the Python of the one with the GPU:

    pip wheel --no-deps -w wheels fvcore iopath antlr4-python3-runtime==4.9.3
    pip download --no-deps -d wheels --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 hotcoco omegaconf portalocker pycocotools pyyaml tabulate termcolor tqdm yacs \\
        cloudpickle pytest hypothesis iniconfig pluggy sortedcontainers packaging pygments
"""

import argparse
import contextlib
import datetime
import gc
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "mask": ("Mask R-CNN R50-FPN", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"),
    "retinanet": ("RetinaNet R50-FPN", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
}
MODES = ("eager", "compiled", "graphs")
PRECISIONS = ("bf16", "tf32", "fp32")
_ROW = "ROW "  # begins a line of a part with a row
Row = dict[str, str]

# ------------------------------------------------------------------------------------------ the session, without torch


def plan(args: argparse.Namespace) -> list[tuple[str, list[str], float]]:
    """Title, arguments and seconds of each part, those that tell most first."""
    parts: list[tuple[str, list[str], float]] = [("Machine", ["environment"], 60), ("Losses", ["losses"], 120)]
    modes = ("eager",) if args.tiny else MODES
    for mode, model in itertools.product(modes, MODELS):
        parts.append(("Training", ["training", model, mode], 75 if mode == "eager" else 120 * _patience(args)))
    parts.insert(4, ("Inference", ["inference"], 60))
    parts.append(("Tests that need a GPU", ["tests"], 120))
    return [part for part in parts if not args.only or part[1][0] in args.only]


def _patience(args: argparse.Namespace) -> int:
    """How many precisions there is time for in compiled models."""
    return len(PRECISIONS) if args.minutes >= 15 else 1


def run_part(command: list[str], seconds: float, environment: dict[str, str], add: Callable[[Row], None]) -> None:
    """Run a part, and hand on its rows as they come; what goes wrong is a row, too."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT, start_new_session=True
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            os.killpg(process.pid, signal.SIGKILL)  # compilers run in processes of their own

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith(_ROW):
                    add(json.loads(line[len(_ROW) :]))
            code = process.wait()
        finally:
            timer.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if stopped.is_set():
            add({"what": " ".join(command[-2:]), "note": f"stopped after {seconds:.0f} s"})
        elif code:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit code {code}"]
            add({"what": " ".join(command[-2:]), "note": f"failed: {lines[-1]}"[:300]})


def as_markdown(title: str, sections: dict[str, list[Row]]) -> str:
    """All rows as tables, one for each section, with the columns that its rows have."""
    text = [f"# {title}", ""]
    for name, rows in sections.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text += [f"## {name}", ""]
        if rows:
            text += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for row in rows:
            cells = (str(row.get(column, "")).replace("|", "\\|").replace("\n", " ") for column in columns)
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that it is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def session(args: argparse.Namespace) -> Path:
    """Run all parts; return the file."""
    begin = time.monotonic()
    today = datetime.date.today().isoformat()
    output = Path(args.output or ROOT / "benchmarks" / "results" / f"gpu_{args.device}_{today}.md")
    sections: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = [str(ROOT), *_unpacked(args.wheels, folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), "PYTHONUNBUFFERED": "1"}
        for title, part, limit in plan(args):
            rows = sections.setdefault(title, [])

            def add(row: Row, rows: list[Row] = rows) -> None:
                rows.append(row)
                minutes = (time.monotonic() - begin) / 60
                write(output, as_markdown(f"Session on {args.device}, {today}, {minutes:.1f} minutes", sections))
                print("  ".join(str(value) for value in row.values()), flush=True)

            left = 60 * args.minutes - (time.monotonic() - begin)
            if left < 10:
                add({"what": " ".join(part), "note": "not run: the time is over"})
                continue
            command = [sys.executable, str(Path(__file__).resolve()), "--device", args.device]
            command += [
                "--batch",
                str(args.batch),
                "--minutes",
                str(args.minutes),
                *(["--tiny"] if args.tiny else []),
                "--part",
                *part,
            ]
            run_part(command, min(limit, left), environment, add)
    return output


def _unpacked(folder: str, into: str) -> list[str]:
    """Unpack the wheels of a folder, because compiled modules cannot be imported from them; return what to import."""
    if not folder:
        return []
    wheels = sorted(Path(folder).glob("*.whl"))
    if not wheels:
        raise SystemExit(f"There are no wheels (*.whl) in {folder}; how to make the folder is in the text of --help.")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return [into]


# ------------------------------------------------------------------------------------------------ the parts, with torch


def say(**row: Any) -> None:
    """Hand a row on to the session."""
    print(_ROW + json.dumps({key: str(value) for key, value in row.items()}), flush=True)


@contextlib.contextmanager
def failing_rows(what: str) -> Iterator[None]:
    """Turn an error within the block into a row."""
    try:
        yield
    except Exception as e:
        traceback.print_exc()
        say(what=what, note=f"failed: {type(e).__name__}: {e}"[:300])


def environment(args: argparse.Namespace) -> None:
    """Versions and devices."""
    import torch
    import torchvision

    import detectron2

    say(what="Python, system", value=f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    say(what="torch, torchvision", value=f"{torch.__version__}, {torchvision.__version__}")
    say(what="detectron2", value=getattr(detectron2, "__version__", "unknown"))
    if args.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        capability = f"compute capability {properties.major}.{properties.minor}"
        say(what="GPU", value=f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}")
        say(what="CUDA, cuDNN", value=f"{torch.version.cuda}, {torch.backends.cudnn.version()}")


def config(args: argparse.Namespace, model: str, *changes: Any) -> Any:
    """The config of a model; tiny ones have a small backbone, and compute in no time."""
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(MODELS[model][1])
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 1e-5])
    if args.tiny:
        cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
        cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1])
        cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16])
    cfg.merge_from_list(list(changes))
    return cfg


def batches(args: argparse.Namespace, count: int, size: int) -> list[list[dict[str, Any]]]:
    """Batches of random images of several sizes, each with eight objects that have polygons, in memory of the host."""
    import numpy as np
    import torch

    from detectron2.structures import Boxes, Instances, PolygonMasks

    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (60, 80)] if args.tiny else [(800, 1333), (800, 1066), (736, 1226), (672, 1120)]
    made = []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        batch = []
        for _ in range(size):
            corner = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.6
            side = (0.1 + 0.3 * torch.rand(8, 2, generator=generator)) * min(height, width)
            boxes = torch.cat([corner, corner + side], dim=1)
            target = Instances((height, width), gt_boxes=Boxes(boxes))
            target.gt_classes = torch.randint(0, 80, (8,), generator=generator)
            target.gt_masks = PolygonMasks([[np.asarray(box)[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes.double()])
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
            batch.append({"image": image, "instances": target, "height": height, "width": width})
        made.append(batch)
    return made


def losses(args: argparse.Namespace) -> None:
    """Losses on the device beside those on the CPU, of one model and batch, with nothing left to chance."""
    import torch

    from detectron2.modeling import build_model

    draw_all = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1_000_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0]
    draw_all += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10_000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]
    draw_all += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 100]
    batch = batches(argparse.Namespace(tiny=True), 1, 2)[0]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for model, (title, _) in MODELS.items():
        with failing_rows(title):
            torch.manual_seed(0)
            on_device = build_model(config(args, model, *draw_all))
            on_cpu = build_model(config(args, model, *draw_all, "MODEL.DEVICE", "cpu"))
            on_cpu.load_state_dict(on_device.state_dict())
            found, expected = on_device(batch), on_cpu(batch)
            for name, value in expected.items():
                difference = abs(float(found[name]) - float(value)) / max(abs(float(value)), 1e-12)
                say(model=title, loss=name, CPU=f"{float(value):.6f}", difference=f"{difference:.1e}")


def training(args: argparse.Namespace) -> None:
    """Images per second, memory and waits of training steps of one model in one mode, in each precision."""
    import torch

    model, mode = args.part[1:]
    torch.manual_seed(0)
    precisions = (PRECISIONS[0], PRECISIONS[-1]) if args.tiny else PRECISIONS
    for precision in precisions if mode == "eager" else precisions[: _patience(args)]:
        what = f"{MODELS[model][0]}, {mode}, {precision}"
        batch, is_done = 2 if args.tiny else args.batch, False
        while batch >= 1 and not is_done:
            is_done = True
            with failing_rows(what):
                try:
                    say(**_train(args, model, mode, precision, batch))
                except torch.OutOfMemoryError:
                    say(what=what, batch=batch, note="too large for the memory of the GPU")
                    batch, is_done = batch // 2, False
            gc.collect()  # the frames of an error hold tensors
            torch.cuda.empty_cache()


def _train(args: argparse.Namespace, model: str, mode: str, precision: str, batch: int) -> Row:
    import torch

    from detectron2.engine import AMPTrainer, SimpleTrainer
    from detectron2.engine.model_preparation import prepare_model
    from detectron2.engine.options import TrainOptions
    from detectron2.modeling import build_model
    from detectron2.solver import build_optimizer

    _set_precision(precision)
    options = TrainOptions(
        compile=mode != "eager",
        cuda_graphs=mode == "graphs",
        pad_to=() if mode == "eager" else ("64x96",) if args.tiny else ("800x1344",),
        channels_last=True,
    )
    on_gpu = args.device.startswith("cuda")
    cfg = config(args, model, "SOLVER.FUSED", on_gpu)
    network = prepare_model(build_model(cfg), options)
    loader = itertools.cycle(batches(args, 2 if args.tiny else 4, batch))
    kind: Any = AMPTrainer if precision == "bf16" else SimpleTrainer
    trainer = kind(network, loader, build_optimizer(cfg, network))
    trainer.prefetch = True
    if precision == "bf16":
        trainer.precision = torch.bfloat16
        trainer.grad_scaler = torch.amp.GradScaler(trainer.device_type, enabled=False)
    trainer.gather_metric_period = 20
    steps_before, least_seconds = (1, 0.0) if args.tiny else (9, 8.0)
    begin = time.perf_counter()
    trainer.train(0, steps_before)
    first = time.perf_counter() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    count, begin = 0, _now(on_gpu)
    while count == 0 or time.perf_counter() - begin < least_seconds:
        trainer.train(0, 1 if args.tiny else 20)
        count += trainer.max_iter
    seconds = (_now(on_gpu) - begin) / count
    row: Row = {"what": f"{MODELS[model][0]}, {mode}, {precision}", "batch": str(batch)}
    row |= {"images/s": f"{batch / seconds:.1f}", "ms/step": f"{1000 * seconds:.0f}"}
    row |= {f"seconds of the first {steps_before} steps": f"{first:.0f}"}
    if on_gpu:
        row["peak memory, GiB"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
        row["waits/step"] = _waits(trainer)
    return row


def _set_precision(precision: str) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _now(on_gpu: bool) -> float:
    import torch

    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _waits(trainer: Any) -> str:
    """How often the host waits for the GPU in a step, as PyTorch counts it, and where."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train(0, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in found})
    return f"{len(found)} ({', '.join(places)}), and that for the loss"


def inference(args: argparse.Namespace) -> None:
    """Milliseconds of one image, the median."""
    import torch

    from detectron2.modeling import build_model

    on_gpu = args.device.startswith("cuda")
    image = batches(args, 1, 1)[0][0]
    inputs = [{key: image[key] for key in ("image", "height", "width")}]
    for model, (title, _) in MODELS.items():
        torch.manual_seed(0)
        thresholds = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
        network = build_model(config(args, model, *thresholds)).eval()
        for precision in (PRECISIONS[0], PRECISIONS[-1]) if args.tiny else PRECISIONS:
            with failing_rows(f"{title}, {precision}"):
                _set_precision(precision)
                times = []
                for _ in range(2 if args.tiny else 40):
                    begin = _now(on_gpu)
                    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=precision == "bf16")
                    with torch.inference_mode(), autocast:
                        network(inputs)
                    times.append(_now(on_gpu) - begin)
                milliseconds = 1000 * sorted(times[len(times) // 4 :])[len(times) // 3]
                height, width = image["image"].shape[1:]
                say(what=f"{title}, {precision}", image=f"{height} x {width}", ms=f"{milliseconds:.1f}")


def tests(args: argparse.Namespace) -> None:
    """Run the tests that are marked with `gpu`."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text(encoding="utf-8")]
    if not files:
        say(what="0 files", note="no test is marked with gpu")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or ["nothing was printed"]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            say(what="failed", note=line[:300])
    say(what=f"{len(files)} files", note=lines[-1])


def main(argv: list[str] | None = None) -> None:
    """Run the session, or in one of its processes a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step; halved where memory lacks")
    parser.add_argument(
        "--output", default="", help="Markdown file; default: benchmarks/results/gpu_<device>_<date>.md"
    )
    parser.add_argument("--wheels", default="", metavar="DIR", help="folder of wheels of our dependencies")
    parser.add_argument("--tiny", action="store_true", help="small models and images, and one step of each")
    names = ("environment", "losses", "training", "inference", "tests")
    parser.add_argument("--only", nargs="+", default=[], choices=names, help="parts to run; default: all")
    parser.add_argument("--part", nargs="+", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.part:
        print(f"written: {session(args)}")
        return
    parts = {"environment": environment, "losses": losses, "training": training, "inference": inference, "tests": tests}
    parts[args.part[0]](args)


if __name__ == "__main__":
    main()
