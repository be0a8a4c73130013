"""Deterministic transforms of images and of everything drawn on them.

A transform maps the image (`apply_image`), label maps (`apply_segmentation`), points (`apply_coords`), and what is made
of points (boxes, polygons). Coordinates are continuous and absolute: an image of `H` x `W` pixels spans `[0, W]` by
`[0, H]`, and points are `(x, y)`.

The basic transforms are the classes of `fvcore.transforms`, not copies of them, so that `isinstance` works across
packages. This module is the only one that imports them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    GridSampleTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ScaleTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from . import pixels

__all__ = [
    "BlendTransform",
    "ColorTransform",
    "CropTransform",
    "ExtentTransform",
    "GridSampleTransform",
    "HFlipTransform",
    "NoOpTransform",
    "PILColorTransform",
    "PadTransform",
    "ResizeTransform",
    "RotationTransform",
    "ScaleTransform",
    "Transform",
    "TransformList",
    "VFlipTransform",
]


def _floating(coords: np.ndarray) -> np.ndarray:
    """Coordinates that can hold fractions: floating-point arrays as they are, integers as float64."""
    if isinstance(coords, np.ndarray) and coords.dtype.kind != "f":
        return coords.astype(np.float64)
    return coords


def _check_size(transform: Transform, img: np.ndarray, h: int, w: int) -> None:
    if img.shape[:2] != (h, w):
        raise ValueError(
            f"{type(transform).__name__} was made for an image of height {h} and width {w}, and was given one of "
            f"height {img.shape[0]} and width {img.shape[1]}; make a new transform for an image of another size"
        )


class ExtentTransform(Transform):
    """Cut a rectangle out of the image and scale it to a given size.

    The rectangle may reach beyond the image. Those pixels get `fill` in the image and 0 in a label map.

    Args:
        src_rect: `(x0, y0, x1, y1)` of the rectangle in absolute coordinates of the input image; may be fractional.
        output_size: `(height, width)` of the result in pixels.
        interp: a `PIL.Image.Resampling` number.
        fill: grey level for pixels outside the input image.

    Example:
        >>> from detectron2.data import transforms as T
        >>> tfm = T.ExtentTransform(src_rect=(2, 0, 6, 4), output_size=(8, 8))
        >>> tfm.apply_image(np.zeros((4, 6, 3), dtype=np.uint8)).shape
        (8, 8, 3)
        >>> tfm.apply_coords(np.array([[3.0, 1.0]]))
        array([[2., 2.]], dtype=float32)
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: int = 0,
    ):
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Cut and scale an image `(H, W)` or `(H, W, C)`."""
        return self._extract(img, self.interp if interp is None else interp, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Cut and scale a label map `(H, W)` without mixing labels."""
        return self._extract(segmentation, Image.Resampling.NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points `(N, 2)`."""
        x0, y0, x1, y1 = self.src_rect
        h, w = self.output_size
        coords = coords.astype(np.float32)
        coords -= np.array([0.5 * (x0 + x1), 0.5 * (y0 + y1)], dtype=np.float32)
        coords *= np.array([w / (x1 - x0), h / (y1 - y0)], dtype=np.float32)
        coords += np.array([0.5 * w, 0.5 * h], dtype=np.float32)
        return coords

    def inverse(self) -> Transform:
        """Not possible: this transform does not know the size of the input image."""
        raise NotImplementedError("ExtentTransform cannot be inverted: it does not know the size of the image")

    def _extract(self, img: np.ndarray, interp: int, fill: int) -> np.ndarray:
        h, w = self.output_size
        method = Image.Resampling(interp)

        def operate(pil: Image.Image) -> Image.Image:
            color = (fill,) * len(pil.getbands()) if len(pil.getbands()) > 1 else fill
            return pil.transform((w, h), Image.Transform.EXTENT, self.src_rect, method, fill=0, fillcolor=color)

        return pixels.through_pil(img, operate)


class ResizeTransform(Transform):
    """Resize the image to a given size.

    8-bit images are resized by Pillow, which smooths when it shrinks; floating-point images by
    `torch.nn.functional.interpolate`, which does not.

    Args:
        h: height of the input in pixels.
        w: width of the input in pixels.
        new_h: height of the result in pixels.
        new_w: width of the result in pixels.
        interp: a `PIL.Image.Resampling` number; bilinear when it is None.

    Example:
        >>> from detectron2.data import transforms as T
        >>> tfm = T.ResizeTransform(h=4, w=6, new_h=8, new_w=12)
        >>> tfm.apply_image(np.zeros((4, 6, 3), dtype=np.uint8)).shape
        (8, 12, 3)
        >>> tfm.apply_box(np.array([[0.0, 0, 2, 3]]))
        array([[0., 0., 4., 6.]])
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        self.h = h
        self.w = w
        self.new_h = new_h
        self.new_w = new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image `(H, W)` or `(H, W, C)`, or a stack `(N, H, W, C)`, of the size given at construction."""
        if img.ndim == 4:
            return np.stack([self.apply_image(one, interp) for one in img])
        _check_size(self, img, self.h, self.w)
        return pixels.resize(img, int(self.new_h), int(self.new_w), self.interp if interp is None else interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label map `(H, W)` without mixing labels."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points `(N, 2)`; floating-point arrays are changed in place."""
        coords = _floating(coords)
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def inverse(self) -> "ResizeTransform":
        """Resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate the image counter-clockwise; corners without a pixel become black (label 0).

    OpenCV does the work when it is installed, otherwise PyTorch does; the geometry is the same.

    Args:
        h: height of the input in pixels.
        w: width of the input in pixels.
        angle: degrees, counter-clockwise as seen on the screen.
        expand: enlarge the canvas so that the whole rotated image fits; otherwise it keeps the size of the input.
        center: `(x, y)` of the fixed point, absolute; the middle of the image when None. It has no effect with
            `expand`, which moves the result to the middle of the new canvas anyway.
        interp: OpenCV's number of an interpolation: 0 nearest, 1 linear (default), 2 cubic.

    Example:
        >>> from detectron2.data import transforms as T
        >>> tfm = T.RotationTransform(h=4, w=6, angle=90)
        >>> tfm.apply_segmentation(np.eye(4, 6, dtype=np.uint8)).shape
        (6, 4)
        >>> tfm.apply_coords(np.array([[6.0, 0.0]])).round(6)  # the top right corner becomes the top left one
        array([[0., 0.]])
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ):
        self.h = h
        self.w = w
        self.angle = angle
        self.expand = expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = pixels.INTER_LINEAR if interp is None else interp
        self.abs_cos, self.abs_sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        self.bound_w, self.bound_h = w, h
        if expand:
            self.bound_w = int(np.rint(h * self.abs_sin + w * self.abs_cos))
            self.bound_h = int(np.rint(h * self.abs_cos + w * self.abs_sin))
        self.rm_coords = self.create_rotation_matrix()
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate an image `(H, W)` or `(H, W, C)` of the size the transform was made for."""
        if img.size == 0 or self._is_identity:
            return img
        _check_size(self, img, self.h, self.w)
        interp = self.interp if interp is None else interp
        return pixels.warp_affine(img, self.rm_coords, (self.bound_h, self.bound_w), interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate a label map `(H, W)` without mixing labels."""
        return self.apply_image(segmentation, interp=pixels.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate points `(N, 2)`; the result is float64."""
        coords = np.asarray(coords, dtype=np.float64)
        if len(coords) == 0 or self._is_identity:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """Return the `(2, 3)` float64 matrix that maps points `(x, y)` of the input to points of the result.

        `offset` says where the origin of both frames lies: 0 for continuous coordinates, -0.5 for pixel indices.
        """
        theta = np.deg2rad(self.angle)
        cos, sin = np.cos(theta), np.sin(theta)
        linear = np.array([[cos, sin], [-sin, cos]])  # y points down, so this turns counter-clockwise
        fixed = np.asarray(self.center, dtype=np.float64) + offset
        target = fixed
        if self.expand:
            fixed = self.image_center + offset
            target = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
        return np.concatenate([linear, (target - linear @ fixed)[:, None]], axis=1)

    def inverse(self) -> Transform:
        """Rotate back, then crop the middle, so that the result has the size of the input.

        Coordinates come back to within one pixel, since canvas and crop have whole pixels. Without `expand` it is a
        NotImplementedError, because corners of the image were lost.
        """
        if not self.expand:
            raise NotImplementedError("a rotation can only be inverted when it was made with expand=True")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        crop = CropTransform(x0, y0, self.w, self.h, orig_w=back.bound_w, orig_h=back.bound_h)
        return TransformList([back, crop])

    @property
    def _is_identity(self) -> bool:
        return self.angle % 360 == 0


class ColorTransform(Transform):
    """Change colours with any function of arrays; coordinates and labels stay.

    Args:
        op: takes an image array and returns one of the same height and width.

    Raises:
        TypeError: if `op` cannot be called.

    Example:
        >>> from detectron2.data import transforms as T
        >>> T.ColorTransform(lambda image: 255 - image).apply_image(np.array([[0, 200]], dtype=np.uint8))
        array([[255,  55]], dtype=uint8)
    """

    def __init__(self, op: Callable[[Any], Any]):
        if not callable(op):
            raise TypeError(f"{type(self).__name__} needs a function of an image, got {op!r}")
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Apply the function to an image."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map as it is."""
        return segmentation

    def inverse(self) -> Transform:
        """Return a transform that does nothing: no coordinate was changed."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """Change colours with a function of Pillow images, for example one made of `PIL.ImageEnhance`.

    Args:
        op: takes a `PIL.Image.Image` and returns one of the same size.

    Example:
        >>> from detectron2.data import transforms as T
        >>> from PIL import ImageOps
        >>> T.PILColorTransform(ImageOps.invert).apply_image(np.array([[0, 200]], dtype=np.uint8))
        array([[255,  55]], dtype=uint8)
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Apply the function to an 8-bit image `(H, W)` or `(H, W, 3)`."""
        return np.asarray(self.op(Image.fromarray(img)))


# Polygons: they are clipped without a geometry library, which is not a dependency


def clip_polygon(polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> list[np.ndarray]:
    """Cut out the parts of a polygon `(P, 2)` that lie in a window; they are simple polygons if the polygon is one.

    A polygon is an array of corners `(x, y)` that does not repeat the first corner at the end.
    """
    polygon = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if len(polygon) < 3:
        return []
    parts = [polygon]
    for axis, bound, sign in ((0, x0, 1), (1, y0, 1), (0, x1, -1), (1, y1, -1)):
        parts = [piece for part in parts for piece in _clip_half_plane(part, axis, bound, sign)]
    return [_from_first_corner(part, polygon) for part in parts if _has_area(part)]


def _from_first_corner(part: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """The same outline, beginning with the first corner of the polygon that is left of it."""
    hits = (np.flatnonzero((part == corner).all(axis=1)) for corner in polygon)
    return np.roll(part, -next((int(hit[0]) for hit in hits if len(hit)), 0), axis=0)


def _has_area(polygon: np.ndarray) -> bool:
    """Whether the corners do not all lie on one line; the signed area would be zero for a figure of eight."""
    x, y = (polygon[1:] - polygon[0]).T
    return bool(np.abs(x[:-1] * y[1:] - y[:-1] * x[1:]).sum() > 1e-12)


def _clip_half_plane(polygon: np.ndarray, axis: int, bound: float, sign: int) -> list[np.ndarray]:
    """Return the parts of a polygon where `sign * (coordinate - bound) >= 0`."""
    depth = sign * (polygon[:, axis] - bound)
    inside = depth > 0
    if inside.all():
        return [polygon]
    if not inside.any():
        return []
    # Begin outside, so that every run of inside corners is in one piece.
    start = int(np.argmin(inside))
    polygon, depth, inside = (np.roll(a, -start, axis=0) for a in (polygon, depth, inside))
    following = np.roll(np.arange(len(polygon)), -1)
    crossing = np.flatnonzero(inside != inside[following])  # edge i -> i + 1 crosses the line
    after = following[crossing]
    part = (depth[crossing] / (depth[crossing] - depth[after]))[:, None]
    points = polygon[crossing] + part * (polygon[after] - polygon[crossing])
    points[:, axis] = bound
    # Crossings come in turn: into the half plane, out of it, into it ...
    chains = [
        np.concatenate([points[k : k + 1], polygon[crossing[k] + 1 : crossing[k + 1] + 1], points[k + 1 : k + 2]])
        for k in range(0, len(crossing), 2)
    ]
    return _join_chains(chains, points[:, 1 - axis])


def _join_chains(chains: list[np.ndarray], position: np.ndarray) -> list[np.ndarray]:
    """Close chains `k` (which run from crossing `2k` to crossing `2k + 1`) along the line that cut them.

    Ordered along the line, the crossings of a simple polygon pair up: between the first and the second the line runs
    inside the polygon, between the second and the third outside, and so on.
    """
    order = np.argsort(position, kind="stable")
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    leads_to_entry = partner[1::2] % 2 == 0
    if not leads_to_entry.all():  # the polygon crosses itself: join in the order of its outline
        return [np.concatenate(chains)]
    following = (partner[1::2] // 2).tolist()
    rings, seen = [], set()
    for first in range(len(chains)):
        ring, k = [], first
        while k not in seen:
            seen.add(k)
            ring.append(chains[k])
            k = following[k]
        if ring:
            rings.append(np.concatenate(ring))
    return rings


def _crop_polygons(transform: Any, polygons: list[np.ndarray]) -> list[np.ndarray]:
    """Cut polygons at the window of the crop; one polygon may become none or several."""
    x0, y0 = transform.x0, transform.y0
    x1, y1 = x0 + transform.w, y0 + transform.h
    parts = [part for polygon in polygons for part in clip_polygon(polygon, x0, y0, x1, y1)]
    return [part - np.array([x0, y0], dtype=part.dtype) for part in parts]


# ---------------------------------------------------------------------------------------------------------------------
# Rotated boxes `(N, 5)`: `(center_x, center_y, width, height, angle)`, degrees counter-clockwise as seen on the screen.
# All functions change them in place.
# ---------------------------------------------------------------------------------------------------------------------


def HFlip_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Mirror rotated boxes left to right."""
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def VFlip_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Mirror rotated boxes top to bottom."""
    rotated_boxes[:, 1] = transform.height - rotated_boxes[:, 1]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def Resize_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Scale rotated boxes, as `RotatedBoxes.scale` does."""
    factors = transform.new_w / transform.w, transform.new_h / transform.h
    rotated_boxes[:, :2] *= factors
    return map_sides(rotated_boxes, np.diag(factors))


def _extract_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = transform.src_rect
    h, w = transform.output_size
    return map_sides(_shift_rotated_box(transform, rotated_boxes), np.diag((w / (x1 - x0), h / (y1 - y0))))


def map_sides(rotated_boxes: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Send the sides of rotated boxes through the linear map `(2, 2)`, in place; their centres stay.

    The image of a rectangle is a parallelogram. The result is the rectangle whose sides have the lengths of its sides
    and whose upright side points where its upright side does.
    """
    theta = np.deg2rad(rotated_boxes[:, 4])
    cos, sin = np.cos(theta), np.sin(theta)
    across, upright = linear @ np.stack([cos, -sin]), linear @ np.stack([sin, cos])  # y points down
    rotated_boxes[:, 2] *= np.hypot(*across)
    rotated_boxes[:, 3] *= np.hypot(*upright)
    rotated_boxes[:, 4] = np.rad2deg(np.arctan2(*upright))
    return rotated_boxes


def _shift_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    rotated_boxes[:, :2] = transform.apply_coords(rotated_boxes[:, :2])
    return rotated_boxes


def _rotate_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    rotated_boxes = _shift_rotated_box(transform, rotated_boxes)
    rotated_boxes[:, 4] += transform.angle
    return rotated_boxes


def _keep_rotated_box(transform, x: np.ndarray) -> np.ndarray:
    return x


# What the classes of fvcore lack, or do in another way


def _flip_vertically(transform: Any, img: np.ndarray) -> np.ndarray:
    """Flip an image `(H, W)` or `(H, W, C)`, or a stack `(N, H, W, C)`; the result is a contiguous copy."""
    return np.ascontiguousarray(np.flip(img, axis=0 if img.ndim <= 3 else -3))


def _no_direction(kind: str, name: str) -> NotImplementedError:
    return NotImplementedError(
        f"GridSampleTransform cannot transform {kind}: its grid only says where each pixel comes from; register a "
        f'function that knows the opposite direction with GridSampleTransform.register_type("{name}", function), '
        "or use it for images and label maps alone"
    )


def _refuse_coords(transform: Any, coords: np.ndarray) -> np.ndarray:
    raise _no_direction("points, polygons and boxes", "coords")


def _refuse_rotated_box(transform: Any, rotated_boxes: np.ndarray) -> np.ndarray:
    raise _no_direction("rotated boxes", "rotated_box")


# The names of parameters are those of the methods, which are documented.
_ROTATED_BOX_FUNCTIONS: dict[type[Transform], Callable[[Any, np.ndarray], np.ndarray]] = {
    HFlipTransform: HFlip_rotated_box,
    VFlipTransform: VFlip_rotated_box,
    ResizeTransform: Resize_rotated_box,
    ScaleTransform: Resize_rotated_box,
    ExtentTransform: _extract_rotated_box,
    RotationTransform: _rotate_rotated_box,
    CropTransform: _shift_rotated_box,
    PadTransform: _shift_rotated_box,
    NoOpTransform: _keep_rotated_box,
    BlendTransform: _keep_rotated_box,
    ColorTransform: _keep_rotated_box,
    GridSampleTransform: _refuse_rotated_box,
}
for _class, _function in _ROTATED_BOX_FUNCTIONS.items():
    _class.register_type("rotated_box", _function)
# The method of fvcore goes through PyTorch, which warns about arrays from Pillow, as they cannot be written to.
VFlipTransform.register_type("image", _flip_vertically)
# The method of fvcore needs shapely, and empties polygons that touch themselves.
CropTransform.register_type("polygons", _crop_polygons)
GridSampleTransform.register_type("coords", _refuse_coords)
