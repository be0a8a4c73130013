"""Detectors and segmenters of Hugging Face transformers as graphs.

Letters: `N` images, `Q` queries, `L` labels of the network, `D` detections.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from detectron2.modeling.meta_arch.hf_detector import HFDetector
from detectron2.modeling.meta_arch.hf_segmenter import HFSegmenter

from .graph import ExportGraph, GraphOptions, OpenSizes, register_exportable
from .mask_classification import MaskClassificationGraph
from .rcnn import instances_of_outputs
from .roi_heads import as_detections, detection_names

__all__ = ["HFDetectorGraph", "HFSegmenterGraph"]


def _length(values: Any) -> Any:
    """Return a length as `len` does; of a tensor one that may vary, which `len` makes a constant."""
    return values.shape[0] if isinstance(values, torch.Tensor) else len(values)


def _whole(number: Any) -> Any:
    """Return a number as an integer; a size that may vary as it is, which `int` makes a constant."""
    if isinstance(number, torch.SymInt):
        return number
    return number.to(torch.int64) if isinstance(number, torch.Tensor) else int(number)


@contextlib.contextmanager
def _recordable(network: Any) -> Iterator[None]:
    """Give the code of a network other functions where its own ones cannot be recorded.

    What deformable attention asserts about sizes is left out: ONNX has no form for it.
    """
    names = vars(sys.modules[type(network).__module__])
    replaced = {"torch_compilable_check": lambda *args, **kwargs: None, "len": _length, "torch_int": _whole}
    before = {name: names[name] for name in replaced if name in names}
    names.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del names[name]
        names.update(before)


@contextlib.contextmanager
def _with_numbers(network: Any, name: str, numbers: list[float]) -> Iterator[None]:
    """Give a network numbers in the place of a buffer of this name, which it asks what to do."""
    buffer = network._buffers.pop(name, None)
    if buffer is None:
        yield
        return
    network.__dict__[name] = numbers
    try:
        yield
    finally:
        del network.__dict__[name]
        network._buffers[name] = buffer


@register_exportable(HFDetector)
class HFDetectorGraph(ExportGraph):
    """A detector without suppression: the best of its queries."""

    task = "instances"
    replaces = ("forward", "inference", "preprocess_image", "select")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.sizes_as_formulas = True  # the networks ask about the sizes of their feature maps
        self.score_threshold = model.test_score_thresh
        self.output_names = detection_names(options)

    def forward(
        self, images: torch.Tensor, image_sizes: torch.Tensor, score_threshold: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """See `ExportGraph.forward`."""
        model = self.model
        with torch.no_grad():
            if score_threshold is None:
                score_threshold = images.new_tensor(self.score_threshold, dtype=torch.float32)
            pixels = model._to_rgb(self.normalized(images, image_sizes))
            height, width = pixels.shape[2:]
            frames, further = image_sizes.flip(1), {}
            with _recordable(model.network), OpenSizes():
                if model.family.knows_padding:
                    further["pixel_mask"] = self.inside(image_sizes, (height, width)).long()
                else:
                    # Not of the sizes of images, but with as many rows.
                    frames = torch.ones_like(frames) * torch.tensor([width, height], device=frames.device)
                outputs = model.network(pixel_values=pixels, **further)
            boxes, scores, classes = model.select(outputs.logits, outputs.pred_boxes, frames.to(torch.float32))
            if (limit := self.options.max_detections) is not None:
                boxes, scores, classes = boxes[:, :limit], scores[:, :limit], classes[:, :limit]
            found = as_detections(boxes, scores, classes, scores > score_threshold, self.options).outputs
        return tuple(found[name] for name in self.output_names)

    def _padding(self) -> tuple[int, int]:
        return 0, self.model.size_divisibility

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"instances": result} for result in instances_of_outputs(outputs, image_sizes)]


@register_exportable(HFSegmenter)
class HFSegmenterGraph(MaskClassificationGraph):
    """A segmenter of transformers."""

    replaces = ("forward", "inference", "preprocess_image", "queries", "_result", "_instances", "_panoptic")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        probabilities = getattr(model.network, "attn_mask_probs", torch.zeros(0))
        self.mask_probabilities: list[float] = probabilities.tolist()

    def queries(self, images, inside):
        """See `MaskClassificationGraph.queries`."""
        network = self.model.network
        with _recordable(network), _with_numbers(network, "attn_mask_probs", self.mask_probabilities):
            return self.model.queries(self.model._to_rgb(images), inside.long())

    def _padding(self) -> tuple[int, int]:
        return self.model.square_size, self.model.size_divisibility

    def class_counts(self):
        """See `MaskClassificationGraph.class_counts`; label maps have one class for all things."""
        model = self.model
        return model.num_things, model.num_classes - model.num_things + (model.num_things > 0)

    def rules(self):
        """See `MaskClassificationGraph.rules`."""
        model, is_square = self.model, self.model.square_size > 0
        things = list(range(model.num_things))
        instances = {
            "classes": things,
            "candidates": None,
            "one_for_each_query": is_square,
            "kept_classes": things,
        }
        panoptic = {
            "object_threshold": model.object_mask_thresh,
            "overlap_threshold": model.overlap_thresh,
            "may_equal_threshold": False,
            "whole": "mask" if is_square else "product",
            "things": things,
            "first_stuff": model.num_things - 1,
        }
        return {
            "instances": instances if model.task != "semantic" else None,
            "semantic": {"enlarge": "masks", "merged_things": len(things)} if model.task != "instance" else None,
            "panoptic": panoptic if model.task == "panoptic" else None,
        }
