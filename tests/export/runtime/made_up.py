"""Metadata and outputs of exported models that were made up, and a small model in ONNX."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detectron2.export.runtime import standalone_source
from detectron2.structures import Boxes, Instances

NAMES = ["cat", "dog", "bird"]


def metadata(task="instances", outputs=("boxes", "scores", "classes", "count"), **changes):
    """What `model.json` says; `changes` to `preprocessing` are made where they are known there."""
    preparation = {
        "channels": "BGR", "short_edge": 0, "long_edge": 1333, "exif": "apply", "size_divisibility": 32, "square": 0,
        "pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1],
    }  # fmt: skip
    preparation.update((key, changes.pop(key)) for key in list(changes) if key in preparation)
    return {
        "layout": 1, "format": "onnx", "artifact": "model.onnx", "architecture": "GeneralizedRCNN", "task": task,
        "inputs": ["images", "image_sizes", "score_threshold"], "outputs": list(outputs), "output_layout": "padded",
        "masks": "raw" if "masks" in outputs else None, "dynamic": ["batch", "size"], "size": None,
        "max_detections": 2, "score_threshold": 0.05, "mask_threshold": 0.5, "classes": NAMES, "class_colors": None,
        "stuff_classes": None, "stuff_colors": None, "keypoints": None, "preprocessing": preparation,
        "panoptic": None, "precision": "fp32", **changes,
    }  # fmt: skip


def detections(boxes, size, classes=3, mask_side=0, keypoints=0, seed=0):
    """Instances in an image of `size` as a model gives them before post-processing."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    found = Instances(size, pred_boxes=Boxes(boxes), scores=scores)
    found.pred_classes = torch.randint(classes, (count,), generator=generator)
    if mask_side:
        found.pred_masks = torch.rand(count, 1, mask_side, mask_side, generator=generator)
    if keypoints:
        found.pred_keypoint_heatmaps = 3 * torch.randn(count, keypoints, 14, 14, generator=generator)
    return found


def padded(batch, rows):
    """Instances of a batch as arrays by name, with `rows` rows for each image."""
    names = {"boxes": "pred_boxes", "scores": "scores", "classes": "pred_classes", "masks": "pred_masks"}
    names["keypoint_heatmaps"] = "pred_keypoint_heatmaps"
    outputs = {"count": np.array([len(found) for found in batch])}
    for name, field in names.items():
        if not batch[0].has(field):
            continue
        values = [found.get(field) for found in batch]
        values = [getattr(v, "tensor", v).numpy() for v in values]
        values = [v[:, 0] if name == "masks" else v for v in values]
        shape = (len(batch), rows, *values[0].shape[1:])
        outputs[name] = np.full(shape, -1 if name == "classes" else 0, values[0].dtype)
        for i, v in enumerate(values):
            outputs[name][i, : len(v)] = v
    return outputs


def flattened(outputs):
    """A padded batch as a flat list of detections."""
    counts = outputs["count"]
    flat = {"image_index": np.repeat(np.arange(len(counts)), counts)}
    for name in outputs.keys() - {"count"}:
        flat[name] = np.concatenate([outputs[name][i, :n] for i, n in enumerate(counts)])
    return flat


MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
two_boxes (float[N, 3, H, W] images, int64[N, 2] image_sizes, float score_threshold)
    => (float[N, 2, 4] boxes, float[N, 2] scores, int64[N, 2] classes, int64[N] count)
<
    float[2, 4] shares = {0.1, 0.2, 0.6, 0.7, 0.5, 0.4, 0.95, 0.9}, int64[4] whxy = {1, 0, 1, 0}, int64[1] one = {1},
    int64[3] axes = {1, 2, 3}, int64[1, 2] labels = {0, 2}, float[2] least = {0.6, 0.1},
    float[1] range = {800.0}
>
{
    sizes = Cast<to = 1>(image_sizes)
    edges = Gather<axis = 1>(sizes, whxy)
    edges_of_each = Unsqueeze(edges, one)
    boxes = Mul(edges_of_each, shares)
    brightness = ReduceMean<keepdims = 0>(images, axes)
    share = Div(brightness, range)
    column = Unsqueeze(share, one)
    scores = Add(column, least)
    shape = Shape(scores)
    classes = Expand(labels, shape)
    is_kept = Greater(scores, score_threshold)
    kept = Cast<to = 7>(is_kept)
    count = ReduceSum<keepdims = 0>(kept, one)
}
"""
"""Two boxes at fixed places of the image, with scores from 0.6 to 0.92 and 0.1 to 0.42 by its brightness."""


def write_model(folder: Path, with_metadata=False, **changes):
    """Write the folder that an export of `MODEL` would be; needs onnx. Returns the metadata."""
    import onnx
    from onnx import parser

    meta = metadata(**changes)
    model = parser.parse_model(MODEL)
    if with_metadata:
        model.metadata_props.add(key="detectron2", value=json.dumps(meta))
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "model.json").write_text(json.dumps(meta))
    (folder / "predict.py").write_text(standalone_source())
    return meta


def picture(height, width, seed=0):
    """A smooth picture in colours, uint8 `(H, W, 3)`."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
