"""`detectron2 benchmark`: how fast the parts of training and inference are, for a model, its data and this machine.

detectron2 benchmark --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml
detectron2 benchmark --config-file cfg.yaml --weights output/model_final.pth --data birds --batch 4 --json out.json

Where the data of the config are not there, images are generated. One process measures, on one device.
"""

import argparse
import itertools
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from detectron2.cli.common import (
    load_chosen_config,
    register_datasets,
    require_registered,
    require_weights,
    write_json,
)
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetCatalog,
    MapDataset,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
)
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.data.images import opencv
from detectron2.engine.benchmark import (
    build_loader_benchmark,
    build_trainer,
    measure_inference,
    measure_training,
    set_norms_by_batch,
    take_batches,
)
from detectron2.engine.model_preparation import prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.evaluation import build_evaluator
from detectron2.inference.loading import dataset_names, find_config_file, is_lazy_file, load_model

_GENERATED = "generated_for_benchmark"
_GENERATED_IMAGES = 8
_GENERATED_HW = (480, 640)
_SECONDS = 15.0  # for each of the measurements of the model
_SECONDS_OF_LOADER = 6.0
_CLEARLY = 1.1  # faster by less may be chance


@dataclass
class Report:
    """What was measured, in images per second, and what the advice depends on."""

    model: str
    device: str
    threads: int
    torch: str
    batch: int
    workers: int
    data: str
    weights: str
    mixed_precision: bool
    compiled: bool
    has_fast_bf16: bool
    has_opencv: bool
    is_yaml: bool
    mapping: float = 0.0
    loading: dict[int, float] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)
    inference: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """Images per second of the whole training step."""
        return 1 / sum(1 / rate for rate in self.training.values())


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and what holds the rest back."""
    register_datasets(args)
    if args.data:
        require_registered([args.data])
    changes = _without_weights(args)
    cfg = load_chosen_config(args, [*changes, *args.opts])
    if args.weights:
        require_weights(cfg, args.weights)
    cfg = cfg.clone() if isinstance(cfg, CfgNode) else cfg
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder, _data_of(cfg, args, folder) as about_data:
        if isinstance(cfg, CfgNode):
            cfg.defrost()
            cfg.OUTPUT_DIR = folder  # of what evaluators write
        else:
            cfg.train.output_dir = folder
        report = measure(cfg, args, about_data)
    sys.stdout.write(as_text(report))
    if args.json:
        content = {**asdict(report), "step": report.step, "advice": advice(report)}
        write_json(Path(args.json), content)
        sys.stdout.write(f"Numbers: {args.json}\n")
    return 0


def _without_weights(args: argparse.Namespace) -> list[str]:
    """Return changes of the config for random weights, if no file is given: nothing is downloaded to measure speed."""
    if args.weights:
        return []
    if not args.config_file:
        raise ValueError("Give --config-file, or --weights of a training run, which bring their config along.")
    is_lazy = is_lazy_file(find_config_file(args.config_file))
    return ["train.init_checkpoint="] if is_lazy else ["MODEL.WEIGHTS", ""]


@contextmanager
def _data_of(cfg: Any, args: argparse.Namespace, folder: str) -> Iterator[str]:
    """Put data set and batch size of the command line, or generated data, into a config; yields which data it is."""
    if args.batch and isinstance(cfg, CfgNode):
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH = args.batch
    elif args.batch:
        cfg.dataloader.train.total_batch_size = args.batch
    if args.data:
        DatasetCatalog.get(args.data)  # a missing file is an error of its own
        _use_dataset(cfg, args.data)
        yield args.data
        return
    names = dataset_names(cfg, "train")
    if names and _are_there([*names, *dataset_names(cfg, "test")]):
        yield ", ".join(names)
        return
    try:
        register_generated(cfg, folder)
        _use_dataset(cfg, _GENERATED)
        missing = f"{', '.join(names)} is not there" if names else "the config names no data"
        height, width = _GENERATED_HW
        yield f"{_GENERATED_IMAGES} generated images of {height} x {width} ({missing}; --data NAME takes others)"
    finally:
        forget_generated()


def _are_there(names: Sequence[str]) -> bool:
    """Whether all data sets are registered, and their files are there."""
    try:
        return all(name in DatasetCatalog and len(DatasetCatalog.get(name)) > 0 for name in names)
    except OSError:
        return False


def _use_dataset(cfg: Any, name: str) -> None:
    if isinstance(cfg, CfgNode):
        cfg.defrost()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
        return
    for split in ("train", "test"):
        if OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") is None:
            raise ValueError(f"The config has no dataloader.{split}.dataset.names that could name a data set.")
        cfg.dataloader[split].dataset.names = name


def register_generated(cfg: Any, folder: str) -> None:
    """Draw images, as JPEG files, with all that the model of a config is trained with."""
    if isinstance(cfg, CfgNode) and cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator":
        raise ValueError("There are no generated images with rotated boxes: give a registered data set, --data NAME.")
    path = generate_shapes_dataset(folder, _GENERATED_IMAGES, size_hw=_GENERATED_HW)
    for image in sorted((path.parent / "images").glob("*.png")):  # photographs are JPEG files
        Image.open(image).save(image.with_suffix(".jpg"), quality=90)
    keypoints, classes = _labels_of(cfg)
    DatasetCatalog.register(_GENERATED, partial(_load_generated, str(path), keypoints, classes))
    metadata = MetadataCatalog.get(_GENERATED)
    names = [f"class {i}" for i in range(_num_classes(cfg))]
    metadata.set(thing_classes=names, evaluator_type=None)
    if keypoints:
        points = [str(i) for i in range(keypoints)]
        metadata.set(keypoint_names=points, keypoint_flip_map=[])
    if classes:
        metadata.set(stuff_classes=[f"stuff {i}" for i in range(classes)], ignore_label=255)


def forget_generated() -> None:
    """Take the generated data set out of the catalogs, if it is there."""
    DatasetCatalog.pop(_GENERATED, None)
    MetadataCatalog.pop(_GENERATED, None)


def _labels_of(cfg: Any) -> tuple[int, int]:
    """Return the number of keypoints and of classes of pixels that the model is trained on; 0 for neither."""
    if isinstance(cfg, CfgNode):
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
        is_semantic = cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor")
        return keypoints, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES if is_semantic else 0
    keypoints = OmegaConf.select(cfg, "model.roi_heads.keypoint_head.num_keypoints") or 0
    return keypoints, OmegaConf.select(cfg, "model.sem_seg_head.num_classes") or 0


def _num_classes(cfg: Any) -> int:
    if isinstance(cfg, CfgNode):
        is_dense = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
        return cfg.MODEL.RETINANET.NUM_CLASSES if is_dense else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    paths = ("model.roi_heads.num_classes", "model.num_classes")
    return next((n for path in paths if (n := OmegaConf.select(cfg, path))), 1)


def _load_generated(path: str, keypoints: int, classes: int) -> list[dict[str, Any]]:
    """Read the generated data set, whose objects get keypoints, and whose images get labels of pixels."""
    folder = Path(path).parent
    records = load_coco_json(path, str(folder / "images"))
    rng = np.random.default_rng(0)
    for index, record in enumerate(records):
        record["file_name"] = str(Path(record["file_name"]).with_suffix(".jpg"))
        for annotation in record["annotations"]:
            annotation["category_id"] = 0  # of whatever classes the model has
            if keypoints:
                x, y, width, height = annotation["bbox"]
                xy = rng.uniform((x, y), (x + width, y + height), (keypoints, 2))
                annotation["keypoints"] = np.column_stack([xy, np.full(keypoints, 2)]).ravel().tolist()
        if classes:
            labels = folder / f"{index}_labels.png"
            if not labels.exists():
                coarse = rng.integers(0, classes, (15, 20)).astype(np.uint8)
                size_wh = (record["width"], record["height"])
                Image.fromarray(coarse).resize(size_wh, Image.Resampling.NEAREST).save(labels)
            record["sem_seg_file_name"] = str(labels)
    return records


def measure(cfg: Any, args: argparse.Namespace, about_data: str) -> Report:
    """Measure all parts, and say in a terminal which one runs."""
    is_yaml = isinstance(cfg, CfgNode)
    options = TrainOptions.from_cfg(cfg) if is_yaml else TrainOptions.from_lazy(cfg.train)
    with _telling("building the model"):
        model, _ = load_model(cfg, args.weights, allow_random_weights=not args.weights)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loader = build_loader_benchmark(cfg, max_time_seconds=_SECONDS_OF_LOADER)
    report = Report(
        model=type(model).__name__,
        device=str(device) if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        batch=loader.total_batch_size,
        workers=loader.num_workers,
        data=about_data,
        weights=args.weights or "random; every image gets as many objects as the model gives at most",
        mixed_precision=bool(cfg.SOLVER.AMP.ENABLED if is_yaml else cfg.train.amp.enabled),
        compiled=options.compile,
        has_fast_bf16=device.type != "cpu" or has_fast_bf16(),
        has_opencv=opencv() is not None,
        is_yaml=is_yaml,
    )
    with _telling("reading and mapping images"):
        report.mapping = 1 / max(loader.benchmark_mapper(args.iters or 50, warmup=2), 1e-9)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({0, loader.num_workers, cores})
    with _telling(f"loading with {', '.join(map(str, counts))} workers"):
        seconds = loader.benchmark_workers(args.iters or 20, warmup=min(counts[-1], 8) + 1, workers=counts)
    report.loading = {workers: report.batch / max(s, 1e-9) for workers, s in seconds.items()}
    count = args.iters or 10
    with _telling("loading batches"):
        mapped = MapDataset(loader.dataset, loader.mapper)
        train = build_batch_data_loader(mapped, loader.sampler, report.batch, **loader.kwargs)
        if isinstance(cfg, CfgNode):
            cfg.DATALOADER.NUM_WORKERS = 0
            test = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
        else:
            cfg.dataloader.test.num_workers = 0
            test = instantiate(cfg.dataloader.test)
        batches = take_batches(train, min(count, 4))
        images = [image for batch in take_batches(test, count * (args.batch or 1)) for image in batch]
        size = min(args.batch or 1, len(images))
        inputs = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
    if not args.weights:
        set_norms_by_batch(model, inputs[0])
        _lower_thresholds(model)
    with _telling("inference"), _without_warnings_of_evaluation():
        evaluator = _evaluator(cfg)
        found = measure_inference(model, inputs, evaluator, args.iters, max_seconds=_SECONDS)
    report.inference = {part: size / max(s, 1e-9) for part, s in found.items()}
    with _telling("training"):
        trainer = build_trainer(cfg, prepare_model(model, options), itertools.cycle(batches))
        steps = measure_training(trainer, args.iters, max_seconds=_SECONDS)
    report.training = {part: report.batch / max(s, 1e-9) for part, s in steps.items()}
    return report


@contextmanager
def _without_warnings_of_evaluation() -> Iterator[None]:
    """Hide what evaluators say of poor results, which are expected of a few images."""
    log = logging.getLogger("detectron2.evaluation")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _lower_thresholds(model: nn.Module) -> None:
    """Let a model give as many objects as it can; with random weights it would find none, in no time."""
    for module in model.modules():
        for name in ("test_score_thresh", "score_threshold"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _evaluator(cfg: Any) -> Any:
    if isinstance(cfg, CfgNode):
        return build_evaluator(cfg.DATASETS.TEST[0], distributed=False, cfg=cfg)
    return build_evaluator(dataset_names(cfg, "test")[0], distributed=False)


def has_fast_bf16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine() == "arm64"  # of Apple
    return any(flag in flags for flag in ("amx_bf16", "avx512_bf16", " bf16"))


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Show in a terminal what is measured, until that is over."""
    shows = sys.stderr.isatty()
    if shows:
        sys.stderr.write(f"\r\x1b[K{what} ...")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shows:
            sys.stderr.write("\r\x1b[K")


def as_text(report: Report) -> str:
    """Write the table, and the advice below it."""
    precision = "mixed precision" if report.mixed_precision else "fp32"
    lines = [
        f"{report.model} on {report.device}, {report.threads} threads, PyTorch {report.torch}, {precision} in training",
        f"Data: {report.data}",
        f"Weights: {report.weights}",
        "",
        f"{'part':44s} {'images/s':>10s} {'ms/image':>10s}",
    ]

    def add(name: str, rate: float) -> None:
        lines.append(f"{name:44s} {rate:10.2f} {1000 / rate:10.2f}")

    add("data: read and map, in one process", report.mapping)
    for workers, rate in report.loading.items():
        note = " (config)" if workers == report.workers else ""
        add(f"data: loader, {workers} worker{'s' * (workers != 1)}{note}", rate)
    for part, rate in report.training.items():
        add(f"training: {part}", rate)
    add(f"training: whole step, batch of {report.batch}", report.step)
    for part, rate in report.inference.items():
        add(f"inference: {part}", rate)
    return "\n".join([*lines, "", *advice(report)]) + "\n"


def advice(report: Report) -> list[str]:
    """Say what holds training and inference back, and what would help here, each in a sentence."""
    return [_training_advice(report), _inference_advice(report)]


def _training_advice(report: Report) -> str:
    loaded = report.loading[report.workers]
    if loaded < report.step:
        text = f"Training waits for data: {loaded:.1f} images/s arrive, the model would take {report.step:.1f}."
        best = max(report.loading, key=report.loading.__getitem__)
        if report.loading[best] > _CLEARLY * loaded:
            key = "DATALOADER.NUM_WORKERS " if report.is_yaml else "dataloader.train.num_workers="
            return f"{text} {best} workers bring {report.loading[best]:.1f} images/s: {key}{best}."
        if not report.has_opencv:
            return (
                f"{text} More workers do not help here; OpenCV reads images faster: pip install 'detectron2[opencv]'."
            )
        return f"{text} More workers do not help here; smaller image files, fewer augmentations or more cores would."
    slowest = min(report.training, key=report.training.__getitem__)
    share = report.step / report.training[slowest]
    text = f"The model holds training back, not the data: {slowest} takes {share:.0%} of a step."
    helps = []
    if not report.mixed_precision and report.has_fast_bf16:
        helps.append("mixed precision: " + ("SOLVER.AMP.ENABLED True" if report.is_yaml else "train.amp.enabled=True"))
    if not report.compiled and report.device.startswith("cuda"):
        helps.append("compilation: " + ("TRAIN.COMPILE True" if report.is_yaml else "train.compile=True"))
    if not helps:
        return f"{text} A smaller input, a smaller model or another device would help."
    return f"{text} To try: {'; '.join(helps)}."


def _inference_advice(report: Report) -> str:
    slowest = min(report.inference, key=report.inference.__getitem__)
    share = 1 / report.inference[slowest] / sum(1 / rate for rate in report.inference.values())
    text = f"In inference, {slowest} takes {share:.0%} of the time."
    if slowest == "network":
        if not report.has_fast_bf16:
            return f"{text} A smaller input (INPUT.MIN_SIZE_TEST) or export to OpenVINO or onnxruntime would help."
        return f"{text} To try: detectron2 predict --precision bf16, or --backend compiled."
    if slowest == "postprocessing":
        return f"{text} Fewer objects (TEST.DETECTIONS_PER_IMAGE, a score threshold) or smaller images would help."
    return f"{text} It is paid once for a data set, and counted here on few images."
