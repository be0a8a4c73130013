"""Detectors of Hugging Face transformers as graphs.

Letters: `N` images, `Q` queries, `L` labels of the network, `D` detections.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from detectron2.modeling.meta_arch.hf_detector import HFDetector
from detectron2.modeling.meta_arch.hf_segmenter import HFSegmenter

from .graph import ExportGraph, GraphOptions, NotExportableError, register_exportable
from .rcnn import instances_of_outputs
from .roi_heads import as_detections, detection_names

__all__ = ["HFDetectorGraph", "HFSegmenterGraph"]


def _length(values: Any) -> Any:
    """Return a length as `len` does; of a tensor one that may vary, which `len` makes a constant."""
    return values.shape[0] if isinstance(values, torch.Tensor) else len(values)


@contextlib.contextmanager
def _recordable(network: Any) -> Iterator[None]:
    """Give the code of a network other functions where its own ones cannot be recorded.

    What deformable attention asserts about sizes is left out: ONNX has no form for it.
    """
    names = vars(sys.modules[type(network).__module__])
    replaced = {"torch_compilable_check": lambda *args, **kwargs: None, "len": _length}
    before = {name: names[name] for name in replaced if name in names}
    names.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del names[name]
        names.update(before)


def _is_open(values: Any) -> bool:
    """Whether a number, or one of nested lists of numbers, is a size that varies."""
    return any(map(_is_open, values)) if isinstance(values, (list, tuple)) else isinstance(values, torch.SymInt)


def _stacked(values: Any, **options: Any) -> torch.Tensor:
    """Make a tensor of nested lists of numbers."""
    if isinstance(values, (list, tuple)):
        return torch.stack([_stacked(x, **options) for x in values])
    return torch.scalar_tensor(values, **options)


class _OpenSizes(TorchFunctionMode):
    """Compute what exporters take for constants though it varies: lengths of `torch.linspace`, sizes as tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (torch.as_tensor, torch.tensor) and _is_open(args[0]):
            return _stacked(args[0], **options)
        if func is not torch.linspace or not _is_open(args[2]):
            return func(*args, **options)
        start, end, steps = args
        places = torch.arange(steps, **options)
        length, parts = (places.new_ones(()) * x for x in (end - start, steps - 1))
        return places * (length / parts.clamp(min=1)) + start


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
            if model.family.knows_padding:
                rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
                columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
                further["pixel_mask"] = (rows[:, :, None] & columns[:, None]).long()
            else:
                # Not of the sizes of images, but with as many rows.
                frames = torch.ones_like(frames) * torch.tensor([width, height], device=frames.device)
            with _recordable(model.network), _OpenSizes():
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
class HFSegmenterGraph(ExportGraph):
    """A segmenter of transformers, which is refused by name."""

    def __init__(self, model: Any, options: GraphOptions):
        kind = model.transformers_config["model_type"]
        raise NotExportableError(
            f"the model, HFSegmenter with {kind}, has no exportable form: its masks belong to queries, not to boxes, "
            "and exported models have no such output. Export model.network with the tools of transformers"
        )
