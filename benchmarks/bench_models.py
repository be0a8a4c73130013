"""Size and speed of models to choose from: parameters, bytes of the weights, seconds an image on one core of a CPU.

python benchmarks/bench_models.py                                      # all, 15 to 30 minutes on a busy machine
python benchmarks/bench_models.py --models mask rt_detr_18 --rounds 1
python benchmarks/bench_models.py --markdown benchmarks/results/models_cpu-1core_2026-11-30.md

Weights are random, so nothing is downloaded; as in `bench_inference.py` the norms have the statistics of an image, and
detectors find as many objects as they may. Each model runs in the form that the predictor uses
(`optimized_for_inference`), at the size that its published accuracy is of, with one thread; the time is that of the
processor, the least of the rounds, which other programs on the machine change less than the clock. It needs timm and
transformers.
"""

import argparse
import copy
import functools
import platform
import time
from pathlib import Path
from typing import Any

import torch
from bench_inference import MODELS as ZOO
from bench_inference import SIZE, least_of, model_of, scale_scores
from torch import nn

from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import build_model, optimized_for_inference

FASTER, RT_DETR = ZOO["faster"], "Modern/rt_detr_v2_R_18.yaml"
LAZY = "new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ.py"
RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]
SQUARE = (640, 640)
MODELS: dict[str, tuple[str, list[Any], tuple[int, int]]] = {  # config, changes, size of the image
    "faster": (FASTER, [], SIZE),
    "faster_x101": ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", [], SIZE),
    "retinanet": (ZOO["retinanet"], [], SIZE),
    "mask": (ZOO["mask"], [], SIZE),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml", [], SIZE),
    "mask_lsj": (LAZY, [], (1024, 1024)),
    "keypoint": (ZOO["keypoint"], [], SIZE),
    "panoptic": (ZOO["panoptic"], [], SIZE),
    "faster_mobilenet": (FASTER, ["MODEL.TIMM.NAME", "mobilenetv3_large_100"], SIZE),
    "faster_convnext": (FASTER, ["MODEL.TIMM.NAME", "convnext_tiny"], SIZE),
    "rt_detr_18": (RT_DETR, [], SQUARE),
    "rt_detr_50": (RT_DETR, ["MODEL.HF.CONFIG", '{"model_type": "rt_detr_v2"}'], SQUARE),
    "d_fine": ("Modern/d_fine.yaml", [], SQUARE),
    "detr": ("Modern/detr_R_50.yaml", [], SIZE),
    "mask2former": ("Modern/mask2former_swin_S.yaml", [], SIZE),
}


def built(name: str, image: torch.Tensor) -> nn.Module:
    """Build a model with random weights."""
    model: Any
    config, changes, _ = MODELS[name]
    if config.endswith(".yaml") and not changes and not config.startswith("Modern/"):
        return model_of(config, image)
    torch.manual_seed(0)
    cfg: Any = model_zoo.get_config(config)
    if config.endswith(".py"):
        cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
        model = instantiate(cfg.model)
    else:
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *changes])
        if "MODEL.TIMM.NAME" in changes:
            cfg.merge_from_list([*RGB, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0])
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        model = build_model(cfg)
    scale_scores(model)
    if hasattr(model, "backbone"):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.backbone(model.preprocess_image([{"image": image}]).tensor)
    return model.eval()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{platform.machine()}, 1 thread, PyTorch {torch.__version__}, least of {args.rounds} rounds, "
        f"{time.strftime('%Y-%m-%d')}",
        "",
        "| model | config | image | million parameters | MB of weights | s an image |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in args.models:
        config, _, (height, width) = MODELS[name]
        image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).float()
        model = built(name, image)
        count = sum(p.numel() for p in model.parameters())
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        form = optimized_for_inference(copy.deepcopy(model))
        del model
        with torch.no_grad():
            seconds = least_of({"": functools.partial(form, [{"image": image}])}, args.rounds)[""][1]
        lines.append(
            f"| {name} | `{config}` | {height} x {width} | {count / 1e6:.1f} | {size / 1e6:.0f} | {seconds:.2f} |"
        )
        print(lines[-1], flush=True)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
