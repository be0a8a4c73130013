"""How many images a second `Predictor` does, beside the loop over `DefaultPredictor` and the model alone.

usage:  python benchmarks/bench_predictor.py [--images 200] [--config small] [--batch-sizes 1 4 8] [--threads 1]
        python benchmarks/bench_predictor.py --config COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --device cuda

Makes JPEG files of 640 x 480 pixels and predicts on them, in parts of `--part` images that all contenders take in turn,
so that what else the machine does hits all of them alike:

* `before`: read a file, resize, call the model as it is, as a loop over `DefaultPredictor` did before it ran the
  optimized form;
* `DefaultPredictor`: that loop with the class itself;
* `bare model, batches of N`: only the model, on batches of tensors that are ready in memory, as it is and optimized;
* `Predictor, batches of N`: from the files to results on the CPU; also without `optimize`.

The table has the clock, and the time that the cores worked: on a machine that does other things, too, compare the
latter, with `--threads 1`, since threads that wait for one another count as working.

Weights are random, so that hardly any object is found; `--score-threshold 0` finds as many as the model may return.
"small" is a Faster R-CNN with ResNet-18 and FPN on images of 320 pixels (short edge).
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2 import Predictor, model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model, optimized_for_inference

FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


def make_files(folder: Path, count: int) -> list[str]:
    """Write pictures of about the bytes that photographs of COCO have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (61, 81, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    return [str(folder / f"{i}.jpg") for i in range(count)]


def make_config(name: str, device: str, threshold: float, folder: Path) -> CfgNode:
    """Return the config, with the file of random weights."""
    cfg = model_zoo.get_config(FASTER_RCNN if name == "small" else name)
    if name == "small":
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 320, 533
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return cfg


class OneByOne:
    """Reads, resizes and predicts on one image after the other, with the model as it is: `DefaultPredictor` before."""

    def __init__(self, cfg: CfgNode, model: torch.nn.Module):
        self.cfg, self.model = cfg, model
        size = cfg.INPUT.MIN_SIZE_TEST
        self.resize = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, files: list[str]) -> None:
        for file in files:
            image = read_image(file, self.cfg.INPUT.FORMAT)
            resized = self.resize.get_transform(image).apply_image(image)
            tensor = torch.as_tensor(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
            inputs = {"image": tensor.to(self.cfg.MODEL.DEVICE), "height": image.shape[0], "width": image.shape[1]}
            with torch.no_grad():
                self.model([inputs])[0]["instances"].to("cpu")


def run_default_predictor(predictor: DefaultPredictor, files: list[str]) -> None:
    for file in files:
        predictor(read_image(file, "BGR"))["instances"].to("cpu")


def run_bare(model: torch.nn.Module, batch_size: int, ready: dict[str, dict], files: list[str]) -> None:
    inputs = [ready[file] for file in files]
    with torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            for output in model(inputs[start : start + batch_size]):
                output["instances"].to("cpu")


def run_predictor(predictor: Predictor, files: list[str]) -> None:
    for result in predictor(files):
        assert result.error is None


def make_contenders(cfg: CfgNode, files: list[str], batch_sizes: list[int]) -> dict[str, Callable[[list[str]], None]]:
    default = DefaultPredictor(cfg)
    model = Predictor(cfg, device=None, optimize=False).model
    optimized = optimized_for_inference(model)
    mapper = DatasetMapper(cfg, is_train=False)
    ready = {file: mapper({"file_name": file, "height": 480, "width": 640}) for file in files}
    for entry in ready.values():
        entry["image"] = entry["image"].to(cfg.MODEL.DEVICE)
    contenders: dict[str, Callable[[list[str]], None]] = {
        "before": OneByOne(cfg, model),
        "DefaultPredictor": partial(run_default_predictor, default),
    }
    for size in batch_sizes:
        contenders[f"bare model, batches of {size}"] = partial(run_bare, model, size, ready)
        contenders[f"bare optimized model, batches of {size}"] = partial(run_bare, optimized, size, ready)
        for optimize in (True, False):
            predictor = Predictor(cfg, device=None, batch_size=size, optimize=optimize)
            name = f"Predictor{'' if optimize else ', not optimized'}, batches of {size}"
            contenders[name] = partial(run_predictor, predictor)
    return contenders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--config", default="small", help='"small", or the name of a YAML config of the model zoo')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--part", type=int, default=40, help="images that a contender takes at a time")
    parser.add_argument("--score-threshold", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        files = make_files(Path(name), args.images)
        cfg = make_config(args.config, args.device, args.score_threshold, Path(name))
        contenders = make_contenders(cfg, files, args.batch_sizes)
        times: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
        for run in contenders.values():  # warms up
            run(files[: max(args.batch_sizes)])
        for start in range(0, len(files), args.part):
            part = files[start : start + args.part]
            for contender, run in contenders.items():
                clock, cores = time.perf_counter(), time.process_time()
                run(part)
                took = time.perf_counter() - clock, time.process_time() - cores
                times[contender].append((took[0] / len(part), took[1] / len(part)))
    print(f"{args.config} on {args.device}, {args.images} images of 640 x 480; torch {torch.__version__},")
    print(f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    middle = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    print(f"{'':40s} {'clock':^26s}   {'cores':^26s}")
    print(f"{'':40s} {'ms/image':>9s} {'images/s':>9s} {'ratio':>6s}   {'ms/image':>9s} {'images/s':>9s} {'ratio':>6s}")
    for name, seconds in middle.items():
        cells = (f"{1000 * s:9.1f} {1 / s:9.2f} {s / b:6.2f}" for s, b in zip(seconds, middle["before"], strict=True))
        print(f"{name:40s} {'   '.join(cells)}")
    print("ratio: to `before`. Other ratios, of the clock and of the cores:")
    for size in args.batch_sizes:
        ours = middle[f"Predictor, batches of {size}"]
        for other in (f"bare model, batches of {size}", f"bare optimized model, batches of {size}", "DefaultPredictor"):
            ratios = (f"{a / b:.2f}" for a, b in zip(ours, middle[other], strict=True))
            print(f"Predictor, batches of {size} : {other} = {', '.join(ratios)}")


if __name__ == "__main__":
    main()
