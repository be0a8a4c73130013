"""Latency of one image: eager, compiled, and exported to onnxruntime and OpenVINO in several precisions, on this CPU.

python benchmarks/bench_export.py                                  # Mask R-CNN and RetinaNet R-50, 480 x 640
python benchmarks/bench_export.py --size 800 1333 --threads 8 --markdown benchmarks/results/export_cpu_DATE.md

All run in one process and take turns in each round, so that what else the machine does falls on all of them. Weights
are random, with activations of the scale of a trained model; the number of detections is set by the score threshold.
Prints the median of the rounds, and the size of each file.
"""

import argparse
import functools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.export.api import export_model, megabytes_of
from detectron2.export.artifact import ExportedModel
from detectron2.export.formats import FORMATS
from detectron2.modeling import build_model

MODELS = {
    "Mask R-CNN R-50 FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "RetinaNet R-50 FPN": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
}


def model_of(config: str, images: list[torch.Tensor]) -> nn.Module:
    """Build a model with random weights; batch normalisation takes its statistics from some images."""
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.NORM = "cpu", "", "BN"
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in ("cls_score", "predictor", "objectness_logits") and isinstance(
            module, nn.Conv2d | nn.Linear
        ):
            nn.init.normal_(module.weight, std=0.1)
    with torch.no_grad():
        model.backbone(model.preprocess_image([{"image": image} for image in images]).tensor)
    return model.eval()


def openvino_in_bfloat16(folder: Path, exported: ExportedModel) -> Callable[[torch.Tensor], object]:
    """Run an OpenVINO model with activations of 16 bits, where the processor has them."""
    import openvino

    compiled = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    outputs = exported.description["outputs"]

    def run(inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        found = compiled({n: v.numpy() for n, v in zip(exported.description["inputs"], inputs, strict=True)})
        return {name: torch.from_numpy(found[compiled.output(name)].copy()) for name in outputs}

    exported.run = run
    return lambda image: exported.outputs([image])


def _outputs(exported: ExportedModel, image: torch.Tensor) -> object:
    return exported.outputs([image])


def runs_of(model: nn.Module, config: str, work: Path, images: Path, args: argparse.Namespace) -> dict[str, tuple]:
    """Return for each way of running the model a function of an image, and the size of its file in MB."""
    cfg = model_zoo.get_config(config)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min(args.size), max(args.size)
    runs: dict[str, tuple] = {"eager": (lambda image: model([{"image": image}]), None)}
    if not args.no_compile:
        compiled = torch.compile(model)
        runs["compiled"] = (lambda image: compiled([{"image": image}]), None)
    for name, format, precision in (
        ("onnxruntime fp32", "onnx", "fp32"),
        ("onnxruntime int8", "onnx", "int8"),
        ("OpenVINO fp32", "openvino", "fp32"),
        ("OpenVINO bf16", "openvino", "fp32"),
        ("OpenVINO int8", "openvino", "int8"),
    ):
        folder = work / f"{format}_{precision}"
        if not folder.exists():
            start = time.perf_counter()
            export_model(
                model,
                folder,
                format,
                cfg=cfg,
                size=tuple(args.size),
                dynamic=(),
                outputs="flat" if args.flat else "padded",
                precision=precision,
                calibration=str(images) if precision == "int8" else None,
                verify=False,
            )
            print(f"  {FORMATS[format].file_name} {precision}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        exported = ExportedModel(folder)
        if name == "OpenVINO bf16":
            run = openvino_in_bfloat16(folder, exported)
        else:
            run = functools.partial(_outputs, exported)
        runs[name] = (run, megabytes_of(folder))
    return runs


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; default: its own choice")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--flat", action="store_true", help="export flat outputs in place of padded ones")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{args.size[0]} x {args.size[1]}, {time.strftime('%Y-%m-%d')}",
        "",
        "| model | run | median ms | MB |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        work = Path(temporary)
        pictures = generate_shapes_dataset(work, 8, size_hw=tuple(args.size)).with_name("images")
        files = sorted(pictures.iterdir())
        images = [torch.from_numpy(read_image(str(p), "BGR").copy()).permute(2, 0, 1).float() for p in files]
        for name in args.models:
            print(name, file=sys.stderr)
            model = model_of(MODELS[name], images[:2])
            runs = runs_of(model, MODELS[name], work / name.replace(" ", "_"), pictures, args)
            seconds: dict[str, list[float]] = {run: [] for run in runs}
            for i in range(args.rounds + 2):
                for run, (function, _) in runs.items():
                    start = time.perf_counter()
                    function(images[0])
                    if i >= 2:
                        seconds[run].append(time.perf_counter() - start)
            for run, (_, megabytes) in runs.items():
                size = "" if megabytes is None else f"{megabytes:.0f}"
                lines.append(f"| {name} | {run} | {1000 * statistics.median(seconds[run]):.0f} | {size} |")
            if args.markdown:  # after each model, as all of them take a while
                Path(args.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
