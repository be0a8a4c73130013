"""Time of one training step on the CPU: as it is, without what makes it fast, and torchvision's Mask R-CNN.

python benchmarks/bench_training.py                                     # Mask R-CNN, 2 images of 480 x 640, 2 threads
python benchmarks/bench_training.py --models mask retinanet keypoint panoptic --rounds 3 --markdown FILE.md
python benchmarks/bench_training.py --size 96 128 --depth 18 --rounds 1 # a small one, to see that it runs

A step is forward, backward and the update of the weights, by the trainers of the library. In "before", norms are not
part of convolutions, weights and features are not in the order of channels last, regions are pooled by torchvision,
the backward pass of dense heads goes through whole maps, rectifiers write to new memory, and the optimizer is not
fused. All runs take turns in each round, in both orders, so that what else the machine does falls on all of them; the
table has the least of the rounds, of the clock and of the time that the cores worked. Weights are random, with
activations of the scale of a trained model.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.model_preparation import prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

MODELS = {
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
}
WAYS = {
    "detectron2.layers.wrappers": ("_can_fold", "_can_overwrite"),
    "detectron2.layers.roi_align": ("_are_rows",),
    "detectron2.modeling.proposal_generator.rpn": ("chain_of",),
    "detectron2.modeling.meta_arch.retinanet": ("chain_of",),
}  # functions that say whether a fast way can be taken


def batch_of(count: int, height: int, width: int) -> list[dict]:
    """Random images with eight square objects each."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(count):
        corner = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.7, height * 0.7])
        boxes = torch.cat([corner, corner + 0.25 * min(height, width)], dim=1)
        polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in boxes]
        places = boxes[:, None, :2] + torch.rand(8, 17, 2, generator=generator) * 0.25 * min(height, width)
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_masks=PolygonMasks(polygons))
        instances.gt_classes = torch.zeros(8, dtype=torch.int64)
        instances.gt_keypoints = Keypoints(torch.cat([places, torch.full((8, 17, 1), 2.0)], dim=2))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 54, (height // 16, width // 16), generator=generator)
        sem_seg = labels.repeat_interleave(16, 0).repeat_interleave(16, 1)
        inputs.append({"image": image, "instances": instances, "sem_seg": sem_seg})
    return inputs


def config_of(name: str, depth: int) -> model_zoo.model_zoo.CfgNode:
    """Read the config of a model, for the CPU and with random weights."""
    cfg = model_zoo.get_config(MODELS[name])
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 1e-6])
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0])
    if depth < 50:
        cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.MODEL.RESNETS.DEPTH = depth
    return cfg


def model_of(cfg: model_zoo.model_zoo.CfgNode, inputs: list[dict]) -> nn.Module:
    """Build a model with random weights and frozen norms, which have the statistics of the images."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.backbone(model.preprocess_image(inputs).tensor)
    FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    model.backbone.bottom_up.freeze(2)
    return model


@contextlib.contextmanager
def slow_ways() -> Iterator[None]:
    """Say of all fast ways that they cannot be taken, within a `with` block."""
    with contextlib.ExitStack() as stack:
        for module, names in WAYS.items():
            for name in names:
                stack.enter_context(mock.patch.object(importlib.import_module(module), name, lambda *args: False))
        yield


def step_of(name: str, depth: int, inputs: list[dict], dtype: str, is_fast: bool) -> Callable[[], None]:
    """Make a model, its optimizer and its trainer, and return a function that runs one step."""
    cfg = config_of(name, depth)
    if not is_fast:
        cfg.merge_from_list(["TRAIN.CHANNELS_LAST", False, "SOLVER.FUSED", False])
    model = prepare_model(model_of(cfg, inputs), TrainOptions.from_cfg(cfg))
    trainer_type = AMPTrainer if dtype == "bf16" else SimpleTrainer
    trainer = trainer_type(model, itertools.repeat(inputs), build_optimizer(cfg, model))

    def step() -> None:
        torch.manual_seed(0)  # so that all draw the same samples
        with contextlib.nullcontext() if is_fast else slow_ways(), EventStorage():
            trainer.run_step()

    return step


def torchvision_step(inputs: list[dict]) -> Callable[[], None]:
    """Torchvision's Mask R-CNN on the same batch, which it is kept from resizing, with the same optimizer."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d as Norm

    torch.manual_seed(0)
    height, width = inputs[0]["image"].shape[1:]
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=Norm, trainable_layers=3)
    for module in backbone.modules():
        if isinstance(module, Norm):
            module.weight.fill_(0.5)  # or activations would grow from block to block
    model = MaskRCNN(backbone, 81, min_size=min(height, width), max_size=max(height, width)).train()
    images = [x["image"].float() / 255 for x in inputs]
    targets = []
    for x in inputs:
        boxes = x["instances"].gt_boxes.tensor
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "masks": masks})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6, 0.9, weight_decay=1e-4)

    def step() -> None:
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def steps_of(name: str, depth: int, inputs: list[dict], dtypes: list[str]) -> dict[str, Callable[[], None]]:
    """All runs of one model, by name."""
    make = functools.partial(step_of, name, depth, inputs)
    steps = {f"before, {dtype}": make(dtype, False) for dtype in dtypes}
    steps |= {f"after, {dtype}": make(dtype, True) for dtype in dtypes}
    if name == "mask" and depth == 50:
        steps["torchvision, fp32"] = torchvision_step(inputs)
    return steps


def least_of(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
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
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["mask"], choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = batch_of(args.batch, *args.size)
    lines = [
        f"{platform.machine()}, {args.threads} threads, PyTorch {torch.__version__}, {args.batch} images of "
        f"{args.size[0]} x {args.size[1]}, least of {args.rounds} rounds, {time.strftime('%Y-%m-%d')}",
        "",
        "| model | run | ms | ratio | ms of all cores | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in args.models:
        best = least_of(steps_of(name, args.depth, inputs, args.dtypes), args.rounds)
        first = best[f"before, {args.dtypes[0]}"]
        for key, seconds in best.items():
            cells = [f"{1000 * s:.0f} | {s / base:.2f}" for s, base in zip(seconds, first, strict=True)]
            lines.append(f"| {name} | {key} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
