"""Export a model: write it, run what was written beside the model, and only then give it its name."""

import contextlib
import copy
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import build_evaluator, inference_on_dataset
from detectron2.export.artifact import ExportedModel, batch_of
from detectron2.export.formats import FORMATS, convert_to_openvino, load_artifact, other_ways, write_artifact
from detectron2.export.graphs import GraphOptions, build_graph
from detectron2.export.metadata import describe, preprocessing_of, read_description
from detectron2.export.quantization import calibration_images, quantize_onnx, to_half_precision
from detectron2.export.runtime import standalone_source
from detectron2.export.verify import (
    BOUNDS,
    Case,
    Comparison,
    Reference,
    VerificationError,
    bounds_of,
    compare_with_predictor,
    eager_results,
    make_cases,
    otherwise_rounded,
    score_threshold,
    split_outputs,
    table_of,
    verify,
)
from detectron2.modeling import build_model
from detectron2.utils.wrappers import unwrap_model

__all__ = ["ExportReport", "Measurement", "export_model", "megabytes_of"]

logger = logging.getLogger(__name__)

_SIDE = 320  # of the batch that a model of dynamic sizes is traced with; large images take long, and prove no more
_PRECISIONS = ("fp32", "fp16", "int8")
_METRICS = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP", "sem_seg": "mIoU", "panoptic_seg": "PQ"}


@dataclass(frozen=True)
class Measurement:
    """What one form of a model is worth.

    Args:
        name: such as "onnx int8".
        metrics: the main result of each task, in percent.
        megabytes: of the file; None for the model itself.
        milliseconds: median time for one image.
    """

    name: str
    metrics: dict[str, float]
    megabytes: float | None
    milliseconds: float


@dataclass
class ExportReport:
    """What an export wrote, and how it was checked.

    Args:
        folder: with the artifact, `model.json` and `predict.py`.
        description: content of `model.json`.
        comparisons: of `compared` with the model; empty where that was not wanted.
        compared: the artifact; for int8 the file in 32 bits that it was made of.
        measurements: of the model and its exported forms, where there was a data set to evaluate them on.
    """

    folder: Path
    description: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    compared: str = ""
    measurements: list[Measurement] = field(default_factory=list)

    def table(self) -> str:
        """Format the checks for people."""
        parts = []
        if self.comparisons:
            parts.append(f"{self.compared} beside the model:\n{table_of(self.comparisons)}")
        if self.measurements:
            parts.append(_table_of_measurements(self.measurements))
        return "\n\n".join(parts)


def _table_of_measurements(measurements: Sequence[Measurement]) -> str:
    metrics = list(dict.fromkeys(name for m in measurements for name in m.metrics))
    headers = ["", *metrics, "MB", "ms / image"]
    rows = []
    for m in measurements:
        numbers = [f"{m.metrics[name]:.2f}" if name in m.metrics else "-" for name in metrics]
        megabytes = f"{m.megabytes:.1f}" if m.megabytes is not None else "-"
        rows.append([m.name, *numbers, megabytes, f"{m.milliseconds:.0f}"])
    return tabulate(rows, headers, disable_numparse=True)


def export_model(
    model_or_cfg: Any,
    path: str | os.PathLike,
    format: str = "onnx",
    *,
    mapper: Any = None,
    metadata: Any = None,
    cfg: Any = None,
    dynamic: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    outputs: str = "padded",
    masks: str = "raw",
    max_detections: int | None = None,
    score_threshold: float | None = None,
    precision: str = "fp32",
    calibration: str | None = None,
    evaluate_on: str | None = None,
    allow_loss: float = 1.0,
    verify: bool = True,
) -> ExportReport:
    """Export a model, and check what was written against it.

    The artifact, `model.json` and `predict.py` are written into a folder beside `path`, which gets its name when all
    checks are passed. An export that is there already is replaced then, and not before.

    Args:
        model_or_cfg: a model in evaluation mode; or a config of either kind, whose model is built, with its weights.
        path: the folder to make.
        format: "onnx", "openvino", "pt2", "aoti" or "torchscript".
        mapper: the `DatasetMapper` that prepares images for the model; by default that of the config, and for a model
            without one, images are taken as they are.
        metadata: names and colours of classes, as in `detectron2.data.Metadata`; by default those of the data sets of
            the config.
        cfg: of a model that is given itself; a hash of it goes into `model.json`.
        dynamic: what may differ from image to image afterwards: "batch", "size", both or nothing; also as one string
            like the command's. By default all that the format can.
        size: `(height, width)` in pixels of the batch that the model is traced with, the only one unless "size" is
            dynamic.
        outputs: "padded" gives every image the same number of rows, and a count; "flat" one list of all detections.
        masks: "raw" gives probabilities in the box, "pasted" pixels of the input.
        max_detections: rows of an image; by default as the model has it.
        score_threshold: default of the artifact, which takes it as an input; by default as the model has it.
        precision: "fp32", "fp16" or "int8".
        calibration: for int8 a registered data set or a folder of images.
        evaluate_on: a registered data set, on which average precision and time are measured; needed for int8.
        allow_loss: how many points of average precision fp16 and int8 may lose.
        verify: whether to run the artifact, and to measure the loss of int8.

    Returns:
        What was written and measured.

    Raises:
        ValueError: options do not go together, a part of the model has no exportable form, or a weight is not float32
            or not finite.
        VerificationError: the artifact differs from the model; nothing is left of it.
        ImportError: a package is missing; the message names the extra to install.
        FileExistsError: `path` holds something else than an export.

    Example::

        model = model_zoo.get("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", trained=True).eval()
        print(export_model(model, "output/exported", "onnx").table())
    """
    _check_options(format, precision, calibration, evaluate_on, verify, allow_loss)
    if isinstance(dynamic, str):
        dynamic = [name for name in dynamic.split(",") if name != "none"]
    dynamic = FORMATS[format].dynamic if dynamic is None else tuple(dynamic)
    if refused := sorted(set(dynamic) - set(FORMATS[format].dynamic)):
        allowed = ", ".join(FORMATS[format].dynamic) or "nothing"
        raise ValueError(
            f"The format {format} leaves {allowed} open, not {', '.join(refused)}: its compiler is only trusted with "
            "fixed sizes. Use --dynamic none, or another format."
            if set(refused) <= {"batch", "size"}
            else f"What can be dynamic is batch and size, not {', '.join(refused)}."
        )
    model, mapper, metadata, cfg = _parts(model_or_cfg, mapper, metadata, cfg)
    target = _check_target(Path(path))
    job = _Export(
        model=model,
        mapper=mapper,
        format=format,
        precision=precision,
        dynamic=dynamic,
        size=size,
        options=GraphOptions(outputs, masks, max_detections, FORMATS[format].nms),
        threshold=score_threshold,
        metadata=metadata,
        cfg=cfg,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        work = Path(temporary)
        report = job.run(work, calibration, evaluate_on, allow_loss, verify)
        _move(work / "export", target, work / "replaced")
    report.folder = target
    return report


def _check_options(
    format: str, precision: str, calibration: str | None, evaluate_on: str | None, verify: bool, allow_loss: float
) -> None:
    """Raise on options that do not go together."""
    if format not in FORMATS:
        raise ValueError(f"The formats are {', '.join(FORMATS)}, not {format!r}. {_ELSEWHERE.get(format, '')}".rstrip())
    if precision not in _PRECISIONS:
        raise ValueError(f"The precisions are {', '.join(_PRECISIONS)}, not {precision!r}.")
    if precision not in FORMATS[format].precisions:
        raise ValueError(f"--precision {precision} is for --format onnx and openvino; {format} has fp32 only.")
    if precision == "int8" and not calibration:
        raise ValueError("int8 needs images to find the ranges of activations: give --calibration DATA.")
    if precision != "int8" and calibration:
        raise ValueError(f"--calibration is for --precision int8; {precision} has no ranges to find.")
    if precision == "int8" and not evaluate_on and verify:
        raise ValueError(
            "int8 loses precision; how much is measured on a data set with annotations: give --evaluate DATASET, or "
            "--no-verify to go without."
        )
    if not 0 <= allow_loss < float("inf"):
        raise ValueError(f"--allow-loss is in points of average precision, at least 0; got {allow_loss:g}.")
    if evaluate_on and evaluate_on not in DatasetCatalog:
        DatasetCatalog.get(evaluate_on)  # raises an error that names similar data sets


_ELSEWHERE = {
    "tensorrt": "TensorRT reads the ONNX file: trtexec --onnx=model.onnx.",
    "coreml": "Core ML has no converter that takes these graphs; on Apple machines onnxruntime runs the ONNX file.",
    "executorch": "ExecuTorch has neither NMS nor RoIAlign; onnxruntime has builds for mobile systems.",
    "tflite": "onnx2tf and similar tools convert the ONNX file.",
}


def _check_target(path: Path) -> Path:
    """Return the folder to make; what is there must be an earlier export, or empty. A link stays one."""
    path = path.resolve()
    if not (there := next(p for p in (path, *path.parents) if p.exists())).is_dir():
        raise FileExistsError(f"{there} is a file; give a folder for the export.")
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    foreign = [name for name in names if name not in _WRITTEN]
    if names and not foreign:
        try:
            read_description(path)
        except (OSError, ValueError):
            foreign = names
    if foreign:
        raise FileExistsError(
            f"{path} holds other files than an export ({', '.join(foreign[:3])}), which would be lost; give a folder "
            "of its own."
        )
    return path


# All that may be in the folder of an export. Importing predict.py makes the last.
_WRITTEN = {"model.json", "predict.py", "model.bin", "__pycache__", *(row.file_name for row in FORMATS.values())}


def _check_weights(model: nn.Module) -> None:
    """Raise if there is a weight that no file can be made of."""
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise ValueError(f"The weight {name} has no values, as it is on the device meta; load a checkpoint first.")
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(
                f"The weight {name} is {weight.dtype}, and exports are made of torch.float32: call model.float(). For "
                "smaller numbers in the file there is precision='fp16' (--precision fp16)."
            )
        if not torch.isfinite(weight).all():
            raise ValueError(f"The weight {name} has values that are not finite; take an earlier checkpoint.")


def _move(source: Path, target: Path, aside: Path) -> None:
    """Give a finished folder its name; an earlier one goes aside, and comes back should that fail."""
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise


def _parts(model_or_cfg: Any, mapper: Any, metadata: Any, cfg: Any) -> tuple[nn.Module, Any, Any, Any]:
    """Return a model on the CPU, its mapper, names of its classes, and its config, as far as they can be known."""
    model = unwrap_model(model_or_cfg)
    if isinstance(model_or_cfg, CfgNode):
        cfg = model_or_cfg
        model = build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            DetectionCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    elif isinstance(model_or_cfg, DictConfig):
        cfg = model_or_cfg
        model = instantiate(cfg.model)
        if weights := OmegaConf.select(cfg, "train.init_checkpoint"):
            DetectionCheckpointer(model).load_for_inference(weights)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"export_model takes a torch.nn.Module, or a config of one; got a {type(model_or_cfg).__name__}."
        )
    if mapper is None and isinstance(cfg, CfgNode):
        mapper = DatasetMapper(cfg, is_train=False)
    elif (
        mapper is None
        and isinstance(cfg, DictConfig)
        and (described := OmegaConf.select(cfg, "dataloader.test.mapper"))
    ):
        mapper = instantiate(described)
    if metadata is None and isinstance(cfg, CfgNode):
        names = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if name in DatasetCatalog]
        metadata = MetadataCatalog.get(names[0]) if names else None
    if isinstance(model_or_cfg, (CfgNode, DictConfig)):
        model.eval()
    _check_weights(model)
    if any(p.device.type != "cpu" for p in model.parameters()):
        model = copy.deepcopy(model).cpu()
    return model, mapper, metadata, cfg


@dataclass
class _Export:
    """One export: what is to be written, and its steps."""

    model: nn.Module
    mapper: Any
    format: str
    precision: str
    dynamic: tuple[str, ...]
    size: tuple[int, int] | None
    options: GraphOptions
    threshold: float | None
    metadata: Any
    cfg: Any

    def run(
        self, work: Path, calibration: str | None, evaluate_on: str | None, allow_loss: float, verify: bool
    ) -> ExportReport:
        """Do all steps in the folder `work`; the result is in `work/export`."""
        images = self._calibration_images(calibration) if calibration is not None else []
        with score_threshold(self.model, self.threshold, self.options.max_detections):
            graph = build_graph(self.model, self.options)
            self._check_effects(graph)
            preprocessing = preprocessing_of(self.model, self.mapper)
            size = self._size(preprocessing)
            folder, full = work / "export", work / "full"
            description = self._describe(graph, preprocessing, size, self.format, self.precision)
            report = ExportReport(folder, description)
            _make(folder, description)
            cases = self._cases(graph, description, size, work / "images")
            # Smaller numbers are made of the ONNX file in 32 bits, which has to be right first.
            is_small = self.precision != "fp32"
            first = self._describe(graph, preprocessing, size, "onnx", "fp32") if is_small else description
            where = full if is_small else folder
            _make(where, first)
            write_artifact(first["format"], graph, self._example(graph, size), self.dynamic, where, first)
            if verify:
                report.comparisons = self._verify(graph, where, first, cases, work / "images")
                report.compared = _name_of(first)
            if is_small:
                self._shrink(where / first["artifact"], folder, description, images)
                if verify and self.precision in BOUNDS:
                    report.comparisons = self._verify(graph, folder, description, cases, work / "images")
                    report.compared = _name_of(description)
                elif verify:
                    _load(folder, description, graph)
            if evaluate_on:
                report.measurements = self._measure(folder, where, evaluate_on, cases[0].images[0])
                if verify:
                    _check_loss(report.measurements, allow_loss if is_small else _SAME_AP)
        return report

    def _check_effects(self, graph: Any) -> None:
        """Raise on an option that would change nothing of this model."""
        has_detections, is_semantic = "boxes" in graph.output_names, graph.task in ("semantic", "panoptic_deeplab")
        is_of_queries = graph.task == "mask_classification"
        has_instances = bool(graph.rules()["instances"]) if is_of_queries else not is_semantic
        has_threshold = graph.score_threshold is not None or (is_of_queries and has_instances)
        for option, is_given, has_effect, lack in (
            ("--masks pasted", self.options.masks == "pasted", "masks" in graph.output_names, "gives no masks"),
            ("--outputs flat", self.options.outputs == "flat", has_detections, "gives no detections"),
            ("--max-detections", self.options.max_detections is not None, has_instances, "gives no detections"),
            ("--score-threshold", self.threshold is not None, has_threshold, "has no score threshold"),
        ):
            if is_given and not has_effect:
                raise ValueError(f"An exported {type(self.model).__name__} {lack}: leave out {option}.")

    def _size(self, preprocessing: Mapping[str, Any]) -> tuple[int, int]:
        """Return the height and width of the batch to trace with."""
        square = preprocessing["square"]
        if self.size is not None:
            if square and max(self.size) > square:
                raise ValueError(f"The model pads images to a square of {square} pixels; --size is {self.size}.")
            if not 32 <= min(self.size) <= max(self.size) <= 16384:
                raise ValueError(f"--size is height and width in pixels, 32 to 16384 each; got {self.size}.")
            return self.size
        if "size" not in self.dynamic and square:
            return square, square
        short = preprocessing["short_edge"] or _SIDE
        if "size" not in self.dynamic:
            raise ValueError(
                "An export of a fixed size needs it: give --size HEIGHT WIDTH, which all images are to fit into "
                f"(this model resizes them to a shortest edge of {short} pixels)."
            )
        side = max(32, min(short, _SIDE, square or _SIDE))
        return side, min(max(side, round(side * 1.25)), square or side * 2)

    def _example(self, graph: Any, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Return inputs to trace with; of a dynamic batch more than one image, as one would be taken for a constant."""
        return graph.example_inputs(2 if "batch" in self.dynamic else 1, *size)

    def _describe(
        self, graph: Any, preprocessing: Mapping[str, Any], size: tuple[int, int], format: str, precision: str
    ) -> dict[str, Any]:
        return describe(
            graph,
            self.model,
            preprocessing=preprocessing,
            metadata=self.metadata,
            cfg=self.cfg,
            format=format,
            artifact=FORMATS[format].file_name,
            precision=precision,
            dynamic=self.dynamic,
            size=None if "size" in self.dynamic else size,
            output_layout=self.options.outputs,
            masks=self.options.masks,
            max_detections=self.options.max_detections,
            score_threshold=self.threshold,
        )

    def _cases(self, graph: Any, description: Mapping[str, Any], size: tuple[int, int], folder: Path) -> list[Case]:
        has_threshold = "score_threshold" in description["inputs"]
        return make_cases(
            size,
            folder=folder,
            dynamic=self.dynamic,
            batch=1,
            channels=description["preprocessing"]["channels"],
            threshold=self._visible_threshold(graph, size, folder) if has_threshold else None,
            limit=description["preprocessing"]["square"],
        )

    def _visible_threshold(self, graph: Any, size: tuple[int, int], folder: Path) -> float:
        """Return the threshold to compare at: the model's, or a lower one where it finds next to nothing."""
        own = float(graph.score_threshold)
        sample = make_cases(size, folder=folder / "sample", dynamic=(), batch=2)[0].images
        scores = torch.cat([r["scores"] for r in self._reference(self.model)(sample, 0.0)]).sort(descending=True).values
        if len(scores) == 0 or int((scores > own).sum()) >= _FEW:
            return own
        # Between two scores, so that none is on the edge.
        last = min(2 * _FEW, len(scores) - 1)
        return min(own, float(scores[last - 1 : last + 1].mean()))

    def _reference(self, model: nn.Module) -> Reference:
        """Return the function that the artifact is compared with: what a model does."""
        masks = self.options.masks
        plain = build_graph(model, GraphOptions(masks=masks, max_detections=self.options.max_detections))
        limit = self.options.max_detections

        def reference(images: Sequence[torch.Tensor], threshold: float | None) -> list[dict[str, torch.Tensor]]:
            found = eager_results(model, images, threshold, masks)
            if found is None:  # a model of the user's: its graph in PyTorch is the word
                found = split_outputs(_run_graph(plain, images, threshold), len(images))
            if limit is None:
                return found
            rows = ("boxes", "scores", "classes", "masks", "keypoint_heatmaps")
            return [{k: v[:limit] if k in rows else v for k, v in result.items()} for result in found]

        return reference

    def _verify(
        self, graph: Any, folder: Path, description: Mapping[str, Any], cases: Sequence[Case], images: Path
    ) -> list[Comparison]:
        """Run the artifact in `folder` on all cases, and raise where it is off."""
        bounds = bounds_of(self.model, description["precision"])
        found = verify(
            _load(folder, description, graph),
            self._reference(self.model),
            cases,
            bounds,
            size_hw=description["size"],
            limit=description["max_detections"],
            roundings=lambda: map(self._reference, otherwise_rounded(self.model)),
        )
        if self.mapper is not None and self.format in ("onnx", "openvino"):
            picture = sorted(images.rglob("*.png"))[0]
            found.append(compare_with_predictor(folder, self.model, self.mapper, picture, bounds, cases[0].threshold))
        if any(c.faults for c in found):
            raise VerificationError(
                f"The {description['format']} file does not do what the model does, and was removed.\n"
                f"{table_of(found)}\n{self._where(graph, cases, bounds)}"
            )
        return found

    def _where(self, graph: Any, cases: Sequence[Case], bounds: Any) -> str:
        """Say whether the graph in PyTorch is right, which tells where to look."""

        def run(inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
            return dict(zip(graph.output_names, graph(*inputs), strict=True))

        size = self.size if "size" not in self.dynamic else None
        found = verify(run, self._reference(self.model), cases, bounds, size_hw=size)
        if any(c.faults for c in found):
            return "The graph that was exported is off in PyTorch already."
        return (
            "The graph that was exported is right in PyTorch: its translation, or the runtime, is off. "
            f"{other_ways(self.format, graph, self.dynamic)}"
        )

    def _calibration_images(self, source: str) -> list[torch.Tensor]:
        return calibration_images(source, self.mapper or DatasetMapper(False, augmentations=[], image_format="BGR"))

    def _shrink(
        self, source: Path, folder: Path, description: Mapping[str, Any], images: Sequence[torch.Tensor]
    ) -> None:
        """Write the artifact in 16 bits, or in 8 with ranges of activations as on some images."""
        target = folder / description["artifact"]
        if self.precision == "fp16" and self.format == "openvino":
            convert_to_openvino(source, target, description, half=True)
            return
        onnx_file = target.with_suffix(".onnx")
        if self.precision == "fp16":
            to_half_precision(source, onnx_file, description)
        else:
            quantize_onnx(source, onnx_file, images, description)
        if self.format == "openvino":
            convert_to_openvino(onnx_file, target, description)
            onnx_file.unlink()

    def _measure(self, folder: Path, full: Path, dataset: str, image: torch.Tensor) -> list[Measurement]:
        """Evaluate the model, the artifact in 32 bits, and the one in the wanted precision."""
        if self.mapper is None:
            raise ValueError("--evaluate needs to know how images are prepared: give export_model a mapper or cfg.")
        measured = [self._measurement("model", self.model, dataset, image, None)]
        for each in dict.fromkeys((full, folder)):
            exported = ExportedModel(each)
            name = _name_of(exported.description)
            measured.append(self._measurement(name, exported, dataset, image, megabytes_of(each)))
        return measured

    def _measurement(
        self, name: str, model: nn.Module, dataset: str, image: torch.Tensor, megabytes: float | None
    ) -> Measurement:
        records = get_detection_dataset_dicts(dataset, filter_empty=False)
        loader = build_detection_test_loader(records, mapper=self.mapper)
        cfg = self.cfg if isinstance(self.cfg, CfgNode) else None
        with tempfile.TemporaryDirectory() as folder, _hushed():
            results = inference_on_dataset(model, loader, build_evaluator(dataset, folder, cfg=cfg))
        seconds = []
        with torch.no_grad():
            for _ in range(9):
                start = time.perf_counter()
                model([{"image": image}])
                seconds.append(time.perf_counter() - start)
        return Measurement(name, _main_metrics(results), megabytes, 1000 * float(np.median(seconds[2:])))


_SAME_AP = 0.05  # points that a file in 32 bits may lose: a detection more or less at a near-tie
_FEW = 5  # detections on two images, below which a comparison says little


def _name_of(description: Mapping[str, Any]) -> str:
    return f"{description['format']} {description['precision']}"


def _load(folder: Path, description: Mapping[str, Any], graph: Any) -> Callable[[Any], dict[str, torch.Tensor]]:
    """Load an artifact into its runtime, or raise a `VerificationError`."""
    try:
        return load_artifact(folder, description)
    except ImportError:
        raise
    except Exception as error:  # whatever a runtime raises
        raise VerificationError(
            f"The runtime of {description['format']} does not load what was written, and it was removed: {error}\n"
            f"{other_ways(description['format'], graph, description['dynamic'])}"
        ) from error


def _make(folder: Path, description: Mapping[str, Any]) -> None:
    """Begin the folder of an export."""
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    (folder / "predict.py").write_text(standalone_source(), encoding="utf-8")


def megabytes_of(folder: Path) -> float:
    """Return the size of the files of an exported model in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.glob("model*") if path.suffix != ".json") / 1e6


def _run_graph(graph: Any, images: Sequence[torch.Tensor], threshold: float | None) -> dict[str, torch.Tensor]:
    inputs: tuple[torch.Tensor, ...] = batch_of(images)
    if threshold is not None:
        inputs = (*inputs, torch.tensor(float(threshold)))
    return dict(zip(graph.output_names, graph(*inputs), strict=True))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hide the progress of an evaluation."""
    quiet = logging.getLogger("detectron2.evaluation")
    before = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        quiet.setLevel(before)


def _main_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for task, values in results.items():
        key = next((k for k in ("AP", "mIoU", "PQ") if k in values), None)
        if key is not None:
            found[_METRICS.get(task, f"{task} {key}")] = float(values[key])
    return found


def _check_loss(measurements: Sequence[Measurement], allowed: float) -> None:
    """Raise if the last one is worse than the model by more than what is allowed."""
    first, last = measurements[0], measurements[-1]
    for name, value in first.metrics.items():
        loss = value - last.metrics.get(name, float("nan"))
        if np.isnan(value) or loss <= allowed:
            continue
        cure = ""
        if allowed != _SAME_AP:
            cure = f" --allow-loss {np.ceil(loss * 10) / 10:g} would accept it."
        if "int8" in last.name:
            cure = f" Try other images for --calibration;{cure.lower()}"
        raise VerificationError(
            f"{last.name} loses {loss:.2f} points of {name}, more than {allowed:g}, and was removed.{cure}\n"
            f"{_table_of_measurements(measurements)}"
        )
