"""Time of one image on the CPU: a model as it is, its optimized form, and torchvision's Mask R-CNN as a yardstick.

python benchmarks/bench_inference.py                      # all models, 800 x 1067 (C4: 480 x 640), 2 threads, 4 minutes
python benchmarks/bench_inference.py --bf16 --models mask faster --markdown benchmarks/results/FILE.md
python benchmarks/bench_inference.py --compiled --models mask     # compiling takes some minutes

All runs take turns in each round, in both orders, so that what else the machine does falls on all of them; the table
has the least of the rounds, of the clock and of the time that the cores worked. Weights are random, with activations of
the scale of a trained model, and 100 objects are found. "swin" is Mask R-CNN with Swin-T and a feature pyramid;
"pooler" is `ROIPooler` alone, 1,000 boxes on four levels, with features as a model has them before and after. Rows with
"bf16" ran under `torch.autocast`; their ratio is to the model as it is in float32.
"""

import argparse
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import FPN, SwinTransformer, build_model, optimized_for_inference
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.compilation import compile_parts
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

MODELS = {
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml",
    "swin": "common/models/mask_rcnn_fpn.py",
}
SIZE, SIZE_OF_C4 = (800, 1067), (480, 640)
HEADS = ("cls_score", "predictor", "objectness_logits", "score_lowres")


def model_of(config: str, image: torch.Tensor) -> nn.Module:
    """Build a model with random weights, whose norms have the statistics of an image."""
    if config.endswith(".py"):
        model = with_swin(model_zoo.get_config(config).model)
        scale_scores(model)
        return model.eval()
    cfg: Any = model_zoo.get_config(config)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.NORM = "cpu", "", "BN"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model: Any = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    scale_scores(model)
    with torch.no_grad():
        model.backbone(model.preprocess_image([{"image": image}]).tensor)
    return model.eval()


def scale_scores(model: nn.Module) -> None:
    """Let the last layers tell regions apart."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in HEADS and isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.1)


def with_swin(config: Any) -> nn.Module:
    """Build a model of a LazyConfig with Swin-T as its backbone."""
    names = ("p0", "p1", "p2", "p3")
    config.backbone = L(FPN)(
        bottom_up=L(SwinTransformer)(), in_features=names, out_channels=256, top_block=L(LastLevelMaxPool)()
    )
    config.roi_heads.box_predictor.test_score_thresh = 0.0
    torch.manual_seed(0)
    return instantiate(config)


def torchvision_run(image: torch.Tensor) -> Callable[[], object]:
    """Torchvision's Mask R-CNN on the same image, which it is kept from resizing."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    height, width = image.shape[1:]
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.0, **sizes).eval()
    return lambda: model([image / 255])


def pooler_runs(height: int, width: int) -> dict[str, Callable[[], object]]:
    """Run `ROIPooler` on features in planes, and on features with channels last."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 256, -(-height // s), -(-width // s), generator=generator) for s in (4, 8, 16, 32)]
    center = torch.rand(1000, 2, generator=generator) * torch.tensor([width, height])
    side = torch.exp(torch.rand(1000, 1, generator=generator) * 3.5 + 2.7)
    side = side * torch.exp(torch.randn(1000, 2, generator=generator) * 0.3)
    boxes = Boxes(torch.cat([center - side / 2, center + side / 2], dim=1))
    boxes.clip((height, width))
    pooler = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")
    last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    return {"before": lambda: pooler(maps, [boxes]), "after": lambda: pooler(last, [boxes])}


def model_runs(name: str, image: torch.Tensor, bf16: bool, compiled: bool) -> dict[str, Callable[[], object]]:
    """Run a model as it is, and its optimized form; on request both in half precision, and the form compiled."""
    model = model_of(MODELS[name], image)
    inputs = [{"image": image}]
    forms = {"before": model, "after": optimized_for_inference(model)}
    if compiled:
        forms["compiled"] = optimized_for_inference(model)
        compile_parts(forms["compiled"])
    runs: dict[str, Callable[[], object]] = {key: functools.partial(form, inputs) for key, form in forms.items()}
    for key in ("before", "after") if bf16 else ():
        runs[f"{key}, bf16"] = torch.autocast("cpu", dtype=torch.bfloat16)(runs[key])
    if name == "mask":
        runs["torchvision"] = torchvision_run(image)
    return runs


def least_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of each run, by the clock and of all cores; each the least of the rounds, after one that warms up."""
    best = dict.fromkeys(runs, (float("inf"), float("inf")))
    for i in range(rounds + 1):
        for key in runs if i % 2 else reversed(runs):
            clock, cores = time.perf_counter(), time.process_time()
            runs[key]()
            took = time.perf_counter() - clock, time.process_time() - cores
            if i:
                best[key] = min(best[key][0], took[0]), min(best[key][1], took[1])
    return best


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="also in half precision")
    parser.add_argument(
        "--compiled", action="store_true", help="also with compiled parts; the first image takes minutes"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=[*MODELS, "pooler"], choices=[*MODELS, "pooler"])
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        f"{platform.machine()}, {args.threads} threads, PyTorch {torch.__version__}, least of {args.rounds} rounds, "
        f"{time.strftime('%Y-%m-%d')}",
        "",
        "| what | size | run | ms | ratio | ms of all cores | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with torch.no_grad():
        for name in args.models:
            height, width = args.size or (SIZE_OF_C4 if name == "c4" else SIZE)
            image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).float()
            is_pooler = name == "pooler"
            runs = pooler_runs(height, width) if is_pooler else model_runs(name, image, args.bf16, args.compiled)
            best = least_of(runs, args.rounds)
            for key, seconds in best.items():
                cells = [f"{1000 * s:.0f} | {s / base:.2f}" for s, base in zip(seconds, best["before"], strict=True)]
                lines.append(f"| {name} | {height} x {width} | {key} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
