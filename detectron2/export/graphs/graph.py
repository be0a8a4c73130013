"""Models as functions of tensors with fixed shapes, which exporters can record: the base class and its registry.

A graph holds a model unchanged and calls its layers. Only what selects, the steps whose result is as long as the image
has objects, is written anew with shapes that do not depend on values.

Letters: `N` images, `H` and `W` height and width in pixels of the input, `D` detections that an image may have.
Boxes are `(x1, y1, x2, y2)` in pixels of the input image, continuous coordinates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from detectron2.modeling import MViT, SwinTransformer, ViT
from detectron2.utils.env import TORCH_VERSION

__all__ = [
    "ExportGraph",
    "GraphOptions",
    "GraphPart",
    "NotExportableError",
    "OpenSizes",
    "build_graph",
    "register_exportable",
]


class NotExportableError(ValueError):
    """A model, or a part of one, has no form that can be exported; the message says which and what to do."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph returns and how it is written.

    Args:
        outputs: "padded" gives every image `D` rows and a count; "flat" gives the rows of all images after one another
            with the index of their image, and runs mask heads on real detections only.
        masks: "raw" masks cover their box, in cells; "pasted" ones cover the input image, in pixels.
        max_detections: `D`; None for what the model is configured for.
        nms: how non-maximum suppression is recorded. "operator": as the operator `detectron2::nms_keep`, for which
            `onnx_translations` has an ONNX form. "torchvision": by `torchvision::nms`. "aten": by PyTorch's own
            operators, without any size that depends on values.
    """

    outputs: str = "padded"
    masks: str = "raw"
    max_detections: int | None = None
    nms: str = "operator"

    def __post_init__(self) -> None:
        choices = {
            "outputs": ("padded", "flat"),
            "masks": ("raw", "pasted"),
            "nms": ("operator", "torchvision", "aten"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"GraphOptions.{name} is one of {', '.join(map(repr, allowed))}; got {value!r}")
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"GraphOptions.max_detections is at least 1, or None; got {self.max_detections}")


class GraphPart:
    """The exportable form of a part of a model; a subclass is called with tensors and returns tensors.

    Args:
        module: the part, which stays as it is.
        options: what to return.
    """

    replaces: tuple[str, ...] = ("forward",)
    """Methods of the module that this form takes the place of. A subclass that overrides one needs its own."""

    def __init__(self, module: Any, options: GraphOptions):
        self.module = module
        self.options = options


_FORMS: dict[type, type] = {}
_Form = TypeVar("_Form", bound=type)


def register_exportable(part: type) -> Callable[[_Form], _Form]:
    """Say how instances of a class of model parts are exported.

    The decorated class is called as `form(module, options)`. Of a whole model it is an `ExportGraph`; of a part a
    `GraphPart` like the one of the part it stands in for, for instance `StandardROIHeadsGraph` for ROI heads.

    Args:
        part: the class of the part: a meta-architecture, proposal generator, anchor generator, ROI heads, box
            predictor, mask head, keypoint head or pooler. Subclasses are exported the same way unless they override one
            of the methods that `form.replaces` lists.

    Returns:
        A decorator, which returns the class unchanged.

    Example:
        >>> from detectron2.export.graphs import StandardROIHeadsGraph, register_exportable
        >>> from detectron2.modeling import StandardROIHeads
        >>> class MyROIHeads(StandardROIHeads):
        ...     def forward(self, images, features, proposals, targets=None):
        ...         return super().forward(images, features, proposals, targets)
        ...
        >>> @register_exportable(MyROIHeads)
        ... class MyROIHeadsGraph(StandardROIHeadsGraph):
        ...     pass
        ...
    """

    def decorate(form: _Form) -> _Form:
        _FORMS[part] = form
        return form

    return decorate


def has_form(module: Any) -> bool:
    """Whether a class of the module's is registered."""
    return any(cls in _FORMS for cls in type(module).__mro__)


def graph_part(module: Any, options: GraphOptions, role: str) -> Any:
    """Make the registered form of a part; `role` is what a message calls it, such as "the ROI heads"."""
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    known = next((cls for cls in kind.__mro__ if cls in _FORMS), None)
    if known is None:
        raise NotExportableError(
            f"{role}, {name}, has no exportable form. Write one, a class that is called as form(module, options), and "
            f"register it with @detectron2.export.register_exportable({kind.__qualname__})"
        )
    form: Any = _FORMS[known]
    for method in form.replaces:
        if getattr(kind, method, None) is not getattr(known, method, None) or method in vars(module):
            raise NotExportableError(
                f"{role}, {name}, has its own {method}(), which the exportable form of {known.__qualname__} would not "
                f"call. Register a form of your own with @detectron2.export.register_exportable({kind.__qualname__}); "
                f"where {form.__name__} gives the same results, register a subclass of it"
            )
    return form(module, options)


def build_graph(model: nn.Module, options: GraphOptions | None = None) -> "ExportGraph":
    """Make the exportable form of a model.

    Args:
        model: a model in evaluation mode. It is not changed, and the graph shares its weights.
        options: what to return; by default padded outputs.

    Returns:
        The graph. In PyTorch it gives the same results as `model.inference(..., do_postprocess=False)`.

    Raises:
        ValueError: the model is in training mode.
        NotExportableError: the model, or one of its parts, has no exportable form.

    Example::

        graph = build_graph(model, GraphOptions(outputs="flat"))
        outputs = dict(zip(graph.output_names, graph(images, image_sizes), strict=True))
        results = graph.to_results(outputs, image_sizes)
    """
    if (path := next((path for path, part in model.named_modules() if part.training), None)) is not None:
        what = f"a part of the model, {path}," if path else "the model"
        raise ValueError(f"{what} is in training mode; call model.eval() before it is exported")
    graph = graph_part(model, options or GraphOptions(), "the model")
    return graph.eval()


def _is_open(values: Any) -> bool:
    """Whether a number, or one of nested lists of numbers, is a size that varies."""
    if isinstance(values, (list, tuple)):
        return any(map(_is_open, values))
    return isinstance(values, (torch.SymInt, torch.Tensor))


def _stacked(values: Any, **options: Any) -> torch.Tensor:
    """Make a tensor of nested lists of numbers."""
    if isinstance(values, (list, tuple)):
        return torch.stack([_stacked(x, **options) for x in values])
    if isinstance(values, torch.Tensor):
        return torch.as_tensor(values, **options)
    return torch.scalar_tensor(values, **options)


def _smoothly_resized(x: torch.Tensor, size_hw: Sequence[Any]) -> torch.Tensor:
    """Resize `Tensor[..., h, w]` bicubically with anti-aliasing, as `F.interpolate` does, by multiplying matrices."""

    def weights(old: Any, new: Any) -> torch.Tensor:
        one = x.new_ones(())
        cells_of_old, cells_of_new = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5 for n in (old, new))
        ratio = (one * old) / (one * new)
        t = ((cells_of_old - cells_of_new[:, None] * ratio) / ratio.clamp(min=1)).abs()
        # The kernel of Keys with a = -1/2, which is 0 from two cells on.
        far = torch.where(t < 2, ((2.5 - 0.5 * t) * t - 4) * t + 2, 0.0)
        found = torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, far)
        return found / found.sum(dim=1, keepdim=True)

    vertical, horizontal = (weights(old, new) for old, new in zip(x.shape[-2:], size_hw, strict=True))
    return vertical @ x @ horizontal.T


class OpenSizes(TorchFunctionMode):
    """Compute what exporters take for constants though it varies: lengths of `torch.linspace`, sizes as tensors.

    A size that varies is a `torch.SymInt` to `torch.export`, and a tensor to `torch.jit.trace`. Bicubic resizing with
    anti-aliasing to such a size becomes a product of matrices, as OpenVINO resizes without anti-aliasing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (torch.as_tensor, torch.tensor) and isinstance(args[0], (list, tuple)) and _is_open(args[0]):
            return _stacked(args[0], **options)
        is_smooth = func is F.interpolate and options.get("antialias") and not options.get("align_corners")
        if is_smooth and options["mode"] == "bicubic" and _is_open(options.get("size")):
            return _smoothly_resized(args[0], options["size"])
        if func is not torch.linspace or not _is_open(args[2]):
            return func(*args, **options)
        start, end, steps = args
        places = torch.arange(steps, **options)
        length, parts = (places.new_ones(()) * x for x in (end - start, steps - 1))
        return places * (length / parts.clamp(min=1)) + start


class ExportGraph(nn.Module):
    """A model as a function of padded images and their sizes.

    Subclasses set `task` and define `outputs`.

    Args:
        model: the model; it is used as it is.
        options: what to return.
    """

    replaces: tuple[str, ...] = ("forward", "inference", "preprocess_image")
    """See `GraphPart.replaces`."""
    task: str = ""
    """"instances", "keypoints", "proposals", "semantic", "panoptic", "panoptic_deeplab" or "mask_classification"."""
    output_names: tuple[str, ...] = ()
    """Names of what `forward` returns."""
    score_threshold: float | None = None
    """The model's own score threshold; None for models without one."""

    sizes_as_formulas: bool
    """How an exporter sees the sizes of feature maps when images vary in size. If false, they are multiples of two new
    numbers, the sizes of the padded image in multiples of what the backbone asks for: that is several times faster. If
    true, they are formulas of the size of the input. Backbones that ask about sizes, as those of windows do, need
    this, and an example for which the answers are those for most images."""

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__()
        self.model = model
        self.options = options
        # Before PyTorch 2.15, which can do without, exporters guard on sizes that they would have to compute first.
        formulas = any(isinstance(x, (SwinTransformer, MViT, ViT)) for x in model.modules())
        self.sizes_as_formulas = formulas or TORCH_VERSION < (2, 15)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the arguments of `forward`."""
        names = ("images", "image_sizes", "score_threshold")
        return names if self.score_threshold is not None else names[:2]

    def forward(
        self, images: torch.Tensor, image_sizes: torch.Tensor, score_threshold: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Predict.

        Args:
            images: float32 `Tensor[N, C, H, W]` of values from 0 to 255 in the model's order of channels. Each image is
                at the top left; what is right of it and below does not matter.
            image_sizes: int64 `Tensor[N, 2]`, `(height, width)` of each image.
            score_threshold: float32 scalar; None for the model's own.

        Returns:
            Tensors in the order of `output_names`.
        """
        with torch.no_grad():
            if score_threshold is None and self.score_threshold is not None:
                score_threshold = images.new_tensor(self.score_threshold, dtype=torch.float32)
            features = self.model.backbone(self.normalized(images, image_sizes))
            found = self.outputs(features, image_sizes, score_threshold, images.shape[-2:])
        return tuple(found[name] for name in self.output_names)

    def outputs(
        self, features: dict[str, torch.Tensor], image_sizes: torch.Tensor, score_threshold: Any, size_hw: Sequence[Any]
    ) -> dict[str, torch.Tensor]:
        """Compute the outputs by name from the backbone's features; `size_hw` is `(H, W)` of the input."""
        raise NotImplementedError(f"{type(self).__name__} must define outputs()")

    def normalized(self, images: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Normalise images, put zeros around each of them, and pad all as the backbone asks."""
        height, width = images.shape[-2:]
        x = (images - self.model.pixel_mean) / self.model.pixel_std
        x = torch.where(self.inside(image_sizes, (height, width))[:, None], x, 0.0)
        square, divisibility = self._padding()
        if square > 0:
            return F.pad(x, (0, square - width, 0, square - height))
        if divisibility > 1:
            down, right = (self._multiple(size, divisibility) - size for size in (height, width))
            return F.pad(x, (0, right, 0, down))
        return x

    def inside(self, image_sizes: torch.Tensor, size_hw: Sequence[Any]) -> torch.Tensor:
        """Which pixels of a batch of a size are of an image: bool `Tensor[N, H, W]`."""
        rows, columns = (
            torch.arange(n, device=image_sizes.device) < image_sizes[:, i : i + 1] for i, n in enumerate(size_hw)
        )
        return rows[:, :, None] & columns[:, None]

    def _multiple(self, size: Any, divisor: int) -> Any:
        """The smallest multiple of `divisor` that is not below `size`."""
        is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 lacks the first
        symbolic = isinstance(size, torch.SymInt) and is_exporting()
        if symbolic and not self.sizes_as_formulas and self.options.nms != "aten":
            count: Any = ((torch.scalar_tensor(size, dtype=torch.int64) + (divisor - 1)) // divisor).item()
            torch._check(count >= 2)
        else:
            count = (size + divisor - 1) // divisor
        return count * divisor

    def _padding(self) -> tuple[int, int]:
        """The side of the square that the backbone asks for, or 0, and what sizes must be a multiple of."""
        backbone = self.model.backbone
        constraints = backbone.padding_constraints
        return constraints.get("square_size", 0), constraints.get("size_divisibility", backbone.size_divisibility)

    def example_inputs(self, batch: int = 2, height: int = 160, width: int = 288) -> tuple[torch.Tensor, ...]:
        """Inputs of a size: images of noise, of which all but the first are a quarter smaller than the batch.

        Where the backbone takes squares of one size, height and width are at most that.
        """
        device, square = self.model.device, self._padding()[0]
        height, width = (min(x, square) if square > 0 else x for x in (height, width))
        images = 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        sizes = torch.tensor([[height, width]] + [[height * 3 // 4, width * 3 // 4]] * (batch - 1))
        inputs = (images.to(device), sizes.to(device))
        if self.score_threshold is None:
            return inputs
        return (*inputs, torch.tensor(self.score_threshold, dtype=torch.float32, device=device))

    def dynamic_shapes(self, dynamic: Sequence[str] = ("batch", "size"), named: bool = False) -> tuple[Any, ...]:
        """Which dimensions of the inputs vary, as `torch.export.export` takes it.

        Args:
            dynamic: "batch", "size" (height and width), both or none.
            named: give names, as `torch.onnx.export` takes them, and not kinds of dimensions.

        Returns:
            For each input a dictionary from dimension to what it is.
        """
        unknown = sorted(set(dynamic) - {"batch", "size"})
        if unknown:
            raise ValueError(f"what can vary is 'batch' and 'size'; got {unknown}")
        varying = {0: "batch"} if "batch" in dynamic else {}
        images = {**varying, **({2: "height", 3: "width"} if "size" in dynamic else {})}
        shapes = [images, varying] + [{}] * (self.score_threshold is not None)
        if named:
            return tuple(shapes)
        # The smallest size follows from the coarsest feature map; an exporter finds it.
        return tuple(dict.fromkeys(shape, torch.export.Dim.DYNAMIC) for shape in shapes)

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """Make of the outputs what the model's own inference gives before it is brought to the size of the photo.

        Args:
            outputs: the outputs by name.
            image_sizes: int64 `Tensor[N, 2]`, as they went in.

        Returns:
            For each image a dictionary: "instances" or "proposals", an `Instances`; "sem_seg", scores at the size of
            the padded input. What results are made of without this library stays as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define to_results()")
