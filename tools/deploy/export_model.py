#!/usr/bin/env python
r"""Export a model, by the published flags.

python tools/deploy/export_model.py --config-file configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml \
    --output exported --export-method tracing --format torchscript --sample-image photo.jpg MODEL.DEVICE cpu

| --export-method | --format    | what is written                                                                |
| --------------- | ----------- | ------------------------------------------------------------------------------ |
| tracing         | torchscript | `model.ts` by `TracingAdapter`: one image of any size, without post-processing |
| tracing         | onnx        | a folder as of `detectron2 export --format onnx`: any batch and size, checked  |
| scripting       | torchscript | `model.ts` by `scripting_with_instances`: any batch                            |
| caffe2_tracing  | torchscript | `model.ts` by `Caffe2Tracer`: inputs `data` and `im_info`, raw outputs         |
| caffe2_tracing  | onnx        | `model.onnx` by `Caffe2Tracer`                                                 |

What is in a `model.ts` is also written as text. PyTorch has removed Caffe2, so `--format caffe2` is an error.
`detectron2 export` writes more formats and checks each.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import build_evaluator, inference_on_dataset, print_csv_format
from detectron2.export import (
    Caffe2Model,
    Caffe2Tracer,
    TracingAdapter,
    add_export_config,
    dump_torchscript_IR,
    scripting_with_instances,
)
from detectron2.inference.loading import find_config_file, load_config
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("detectron2.export")

FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": torch.Tensor,
    "pred_boxes": Boxes,
    "scores": torch.Tensor,
    "pred_classes": torch.Tensor,
    "pred_masks": torch.Tensor,
    "pred_keypoints": torch.Tensor,
    "pred_keypoint_heatmaps": torch.Tensor,
}
Predict = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def raw_results(model: Any, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results in the frame of the network input; those of R-CNNs have their masks as probabilities in the boxes."""
    if isinstance(model, GeneralizedRCNN) and not hasattr(model, "sem_seg_head"):
        return [{"instances": x} for x in model.inference(inputs, do_postprocess=False)]
    return model(inputs)


def postprocessed(result: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """Bring a result in the frame of the network input to the size that is asked for."""
    if "panoptic_seg" in result:
        raise ValueError(
            "Merged panoptic maps cannot be resized: evaluate with `detectron2 export`, which merges later."
        )
    size, height, width = item["image"].shape[-2:], item["height"], item["width"]
    found = dict(result)
    if "instances" in found:
        found["instances"] = detector_postprocess(found["instances"], height, width)
    if "sem_seg" in found:
        found["sem_seg"] = sem_seg_postprocess(found["sem_seg"], (size[0], size[1]), height, width)
    return found


def export_tracing(model: torch.nn.Module, image: torch.Tensor, output: Path) -> Predict:
    """Trace the model with one image."""
    adapter = TracingAdapter(model, [{"image": image}], raw_results)
    with torch.no_grad():
        traced: Any = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    save_torchscript(traced, output)
    schema = adapter.outputs_schema
    assert schema is not None

    def predict(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [postprocessed(schema(traced(item["image"]))[0], item) for item in inputs]

    return predict


def export_scripting(model: torch.nn.Module, image: torch.Tensor, output: Path) -> Predict:
    """Script the model."""
    scripted: Any = scripting_with_instances(model, FIELDS)
    save_torchscript(scripted, output)

    def predict(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results = []
        for item, fields in zip(inputs, scripted([{"image": item["image"]} for item in inputs]), strict=True):
            size = fields.pop("image_size").tolist()
            fields["pred_boxes"] = Boxes(fields["pred_boxes"])
            results.append(postprocessed({"instances": Instances(tuple(size), **fields)}, item))
        return results

    return predict


def save_torchscript(program: Any, output: Path) -> None:
    """Write a program, and what is in it as texts."""
    program.save(str(output / "model.ts"))
    dump_torchscript_IR(program, str(output))


def export_caffe2_tracing(
    cfg: CfgNode, model: torch.nn.Module, image: torch.Tensor, output: Path, format: str
) -> Predict | None:
    """Export by `Caffe2Tracer`."""
    tracer = Caffe2Tracer(add_export_config(cfg.clone()), model, [{"image": image}])
    if format == "torchscript":
        save_torchscript(tracer.export_torchscript(), output)
        return None
    program = tracer.export_onnx()
    (output / "model.onnx").write_bytes(program.SerializeToString())
    return Caffe2Model(program)


def sample_image(cfg: CfgNode, path: str | None) -> torch.Tensor:
    """The image to trace with: the given one, or the first of the test set, resized as the config says."""
    if path is not None:
        return DatasetMapper(cfg, is_train=False)({"file_name": path})["image"]
    if not cfg.DATASETS.TEST:
        raise ValueError("No image to trace with: give --sample-image, or DATASETS.TEST in the config.")
    return next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], num_workers=0)))[0]["image"]


def export(cfg: CfgNode, args: argparse.Namespace) -> Predict | None:
    """Write the exported model; return a function that predicts with it, where there is one."""
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        DetectionCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    else:
        logger.warning("MODEL.WEIGHTS is empty: a model with random weights is exported.")
    output = Path(args.output)
    if args.export_method == "tracing" and args.format == "onnx":
        from detectron2.export import ExportedModel, export_model

        logger.info(
            "%s", export_model(model, output, "onnx", cfg=cfg, mapper=DatasetMapper(cfg, is_train=False)).table()
        )
        return ExportedModel(output)
    output.mkdir(parents=True, exist_ok=True)
    image = sample_image(cfg, args.sample_image)
    if args.export_method == "caffe2_tracing":
        return export_caffe2_tracing(cfg, model, image, output, args.format)
    return (export_tracing if args.export_method == "tracing" else export_scripting)(model, image, output)


def evaluate(cfg: CfgNode, predict: Predict) -> dict[str, Any]:
    """Evaluate the exported model on the first test set."""
    name = cfg.DATASETS.TEST[0]
    loader = build_detection_test_loader(cfg, name, num_workers=0)
    with torch.no_grad():
        results = inference_on_dataset(predict, loader, build_evaluator(name, cfg=cfg, distributed=False))
    print_csv_format(results)
    return results


def main() -> dict[str, Any] | None:
    """Parse the command line, export, and evaluate if asked to."""
    parser = argparse.ArgumentParser(epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["caffe2", "onnx", "torchscript"], default="torchscript")
    parser.add_argument("--export-method", choices=["caffe2_tracing", "tracing", "scripting"], default="tracing")
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML config, or its name in the model zoo")
    parser.add_argument("--sample-image", metavar="FILE", help="to trace with; by default the first of the test set")
    parser.add_argument("--run-eval", action="store_true", help="evaluate what was exported on the first test set")
    parser.add_argument("--output", default="output", metavar="DIR", help="folder for what is written")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config")
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed")
    if args.format == "caffe2":
        parser.error(
            "PyTorch has removed Caffe2, so nothing could run such a file; use --format onnx or --format torchscript"
        )
    if args.export_method == "scripting" and args.format != "torchscript":
        parser.error("--export-method scripting writes --format torchscript; for onnx use --export-method tracing")
    is_folder_of_an_export = args.export_method == "tracing" and args.format == "onnx"  # holds no other file
    setup_logger(None if is_folder_of_an_export else args.output)
    cfg = load_config(find_config_file(args.config_file), args.opts)
    if not isinstance(cfg, CfgNode):
        parser.error("this script takes YAML configs; for LazyConfig files use `detectron2 export --config-file FILE`")
    if args.run_eval and not cfg.DATASETS.TEST:
        parser.error("--run-eval needs a data set: set DATASETS.TEST in the config")
    if args.run_eval and args.export_method == "caffe2_tracing" and args.format == "torchscript":
        parser.error("--run-eval of --export-method caffe2_tracing needs --format onnx")
    predict = export(cfg, args)
    logger.info("Written to %s.", args.output)
    return evaluate(cfg, predict) if args.run_eval and predict is not None else None


if __name__ == "__main__":
    main()
