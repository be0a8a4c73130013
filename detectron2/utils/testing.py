"""Helpers for tests of detection code. They rely only on the interface of results (`get_fields()`, `.tensor`)."""

import io
import tempfile
from typing import Any

import torch
from packaging.version import Version

__all__ = [
    "assert_instances_allclose",
    "convert_scripted_instances",
    "get_model_no_weights",
    "get_sample_coco_image",
    "has_dynamic_axes",
    "min_torch_version",
    "random_boxes",
    "reload_lazy_config",
    "reload_script_model",
]


def get_model_no_weights(config_path: str) -> torch.nn.Module:
    """Build a model of the model zoo, by the name of its YAML or Python config, with initial weights."""
    from detectron2.config import instantiate
    from detectron2.model_zoo import get_config
    from detectron2.modeling import build_model

    cfg = get_config(config_path)
    if config_path.endswith(".py"):
        return instantiate(cfg.model)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def get_sample_coco_image(tensor: bool = True) -> Any:
    """Make an image of a usual size, always the same: float32 `(3, 480, 640)`, or an array (480, 640, 3) of uint8."""
    image = torch.randint(256, (3, 480, 640), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return image.float() if tensor else image.permute(1, 2, 0).contiguous().numpy()


def convert_scripted_instances(instances: Any) -> Any:
    """Turn instances of a scripted model, whose fields are attributes `_name`, into ordinary ones."""
    from detectron2.structures import Instances

    found = {name: getattr(instances, f"_{name}", None) for name in instances._field_names}
    return Instances(instances.image_size, **{name: value for name, value in found.items() if value is not None})


def reload_script_model(module: Any) -> Any:
    """Save a scripted or traced module to memory, and load it again."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def reload_lazy_config(cfg: Any) -> Any:
    """Save a lazy config to a YAML file, and load it again."""
    from detectron2.config import LazyConfig

    with tempfile.TemporaryDirectory(prefix="detectron2") as folder:
        LazyConfig.save(cfg, f"{folder}/config.yaml")
        return LazyConfig.load(f"{folder}/config.yaml")


def min_torch_version(min_version: str) -> bool:
    """Whether PyTorch is of this version or newer; pre-releases and builds count as their version."""
    return Version(Version(torch.__version__).base_version) >= Version(min_version)


def has_dynamic_axes(onnx_model: Any) -> bool:
    """Whether no side of any input of an ONNX model is a fixed number."""
    sides = [side for value in onnx_model.graph.input for side in value.type.tensor_type.shape.dim]
    return all(not side.dim_value and not side.dim_param.isnumeric() for side in sides)


def _as_comparable(value: Any) -> Any:
    """Return the tensor inside boxes, masks and keypoints; other values unchanged."""
    inner = getattr(value, "tensor", None)
    return inner if isinstance(inner, torch.Tensor) else value


def assert_instances_allclose(
    input: Any, other: Any, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Assert that two `Instances` agree: image size, fields, and values within a tolerance.

    The `AssertionError` begins with `msg` and names the field. `rtol` is the tolerance of floating-point fields,
    relative to the mean magnitude of the expected field; `size_as_tensor` tells whether the image sizes are tensors.
    """
    prefix = f"{msg}: " if msg else ""
    sizes = (input.image_size, other.image_size)
    if size_as_tensor:
        sizes = (torch.as_tensor(sizes[0]).tolist(), torch.as_tensor(sizes[1]).tolist())
    if list(sizes[0]) != list(sizes[1]):
        raise AssertionError(f"{prefix}image size is {sizes[0]}, expected {sizes[1]}")
    have, want = input.get_fields(), other.get_fields()
    if sorted(have) != sorted(want):
        raise AssertionError(f"{prefix}fields are {sorted(have)}, expected {sorted(want)}")
    for name in want:
        _assert_field_close(f"{prefix}field {name!r}", _as_comparable(have[name]), _as_comparable(want[name]), rtol)


def _assert_field_close(what: str, have: Any, want: Any, rtol: float) -> None:
    if not isinstance(want, torch.Tensor):
        if have != want:
            raise AssertionError(f"{what} is {have!r}, expected {want!r}")
        return
    if have.shape != want.shape:
        raise AssertionError(f"{what} has the shape {tuple(have.shape)}, expected {tuple(want.shape)}")
    if not want.numel():
        return
    if not want.dtype.is_floating_point:
        if not torch.equal(have, want):
            raise AssertionError(f"{what} differs in {int((have != want).sum())} of {want.numel()} elements")
        return
    # Small elements of a field with large ones (a coordinate near 0) must not be held to their own magnitude.
    allowed = rtol * float(want.abs().mean())
    worst = float((have - want).abs().max())
    if not worst <= allowed:
        raise AssertionError(f"{what} is off by {worst:.3g}, allowed are {allowed:.3g}")


def random_boxes(num_boxes: int, max_coord: float = 100, device: str | torch.device = "cpu") -> torch.Tensor:
    """Make N random boxes, `Tensor[N, 4]`: (x1, y1, x2, y2) in [0, `max_coord`], sides at least a hundredth of that."""
    corners = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    corners = corners.clamp(min=max_coord * 0.01)
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1)
