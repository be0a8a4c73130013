"""Helpers for tests of detection code. They rely only on the interface of results (`get_fields()`, `.tensor`)."""

from typing import Any

import torch

__all__ = ["assert_instances_allclose", "random_boxes"]


def _as_comparable(value: Any) -> Any:
    """Return the tensor inside boxes, masks and keypoints; other values unchanged."""
    inner = getattr(value, "tensor", None)
    return inner if isinstance(inner, torch.Tensor) else value


def assert_instances_allclose(
    input: Any, other: Any, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Assert that two `Instances` agree: image size, fields, and values within a tolerance.

    Args:
        input: the result.
        other: the expected result.
        rtol: tolerance of floating-point fields, relative to the mean magnitude of the expected field.
        msg: prefix of the error.
        size_as_tensor: whether the image sizes are tensors.

    Raises:
        AssertionError: the two differ; the message names the field.
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
    """Make random valid boxes.

    Args:
        num_boxes: N.
        max_coord: upper bound of all coordinates.
        device: device of the boxes.

    Returns:
        `Tensor[N, 4]`, (x1, y1, x2, y2) in [0, `max_coord`], each side at least a hundredth of it.
    """
    corners = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    corners = corners.clamp(min=max_coord * 0.01)
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1)
