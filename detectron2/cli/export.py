"""`detectron2 export`: write a trained model in a format that other programs run.

detectron2 export --weights output/model_final.pth --format onnx --output exported
detectron2 export --weights output/model_final.pth --format onnx --output int8 --precision int8 \\
    --calibration my_train --evaluate my_val --coco my_train train.json images --coco my_val val.json images

What is written is run beside the model before it gets its name; where it does something else, nothing is left of it.
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.cli.common import load_chosen_config, register_datasets, require_registered
from detectron2.config import CfgNode
from detectron2.engine.class_names import match_classes
from detectron2.export.api import export_model, megabytes_of
from detectron2.inference.loading import load_metadata, load_model


def run(args: argparse.Namespace) -> int:
    """Export, and print what was checked."""
    register_datasets(args)
    folder = os.path.isdir(args.calibration or "")
    require_registered(name for name in (args.evaluate, None if folder else args.calibration) if name)
    args.device = args.device or "cpu"  # where it is traced, and compared
    cfg = load_chosen_config(args, args.opts)
    model, mapper = load_model(cfg, args.weights)
    if args.evaluate:
        match_classes(model, [args.evaluate])
    report = export_model(
        model,
        args.output,
        args.format,
        mapper=mapper,
        metadata=load_metadata(cfg, args.weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else "")),
        cfg=cfg,
        dynamic=args.dynamic,
        size=None if args.size is None else (args.size[0], args.size[1]),
        outputs=args.outputs,
        masks=args.masks,
        max_detections=args.max_detections,
        score_threshold=args.score_threshold,
        precision=args.precision,
        calibration=args.calibration,
        evaluate_on=args.evaluate,
        allow_loss=args.allow_loss,
        verify=not args.no_verify,
    )
    table = report.table()
    artifact = Path(args.output, report.description["artifact"])
    sys.stdout.write(f"{table}\n\n" if table else "")
    sys.stdout.write(f"Model: {artifact} ({megabytes_of(report.folder):.1f} MB)\n")
    if args.format in ("onnx", "openvino"):
        sys.stdout.write(f"Try:   python {Path(args.output, 'predict.py')} photo.jpg --output drawn.png\n")
    return 0
