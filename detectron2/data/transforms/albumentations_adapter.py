"""Transforms of the Albumentations library as an augmentation, so that boxes, masks and keypoints follow the image.

Albumentations augments an image and its annotations in one call; here the image is augmented first, and annotations
are transformed one by one afterwards. So the call is made once, with two things in place of annotations that can be
looked up later: a mask that holds the position of every pixel, and points on a regular grid.

Letters: `H`, `W` height and width in pixels, `N` boxes, `P` points. Coordinates are continuous `(x, y)`: the centre of
the first pixel lies at `(0.5, 0.5)`, where Albumentations has keypoints at `(0, 0)`.
"""

import copy
import importlib
from typing import Any

import numpy as np

from .augmentation import Augmentation
from .transform import Transform, clip_polygon, map_sides

__all__ = ["Albumentations"]

_NODE_DISTANCE = 16  # pixels
_MOST_NODES = 65  # along each side
_AFFINE_TOLERANCE = 0.02  # pixels; what single precision leaves over in large images
_LARGEST_SEED = 2**31 - 1


class Albumentations(Augmentation):
    """Use transforms of Albumentations like any other augmentation, in front of, between or behind others.

    Boxes, polygons, bitmaps, label maps and keypoints go where the pixels go, to within half a pixel where something is
    resized (there Albumentations' images, masks and keypoints differ from each other by that much), and a few pixels
    where it is bent strongly. The mapper clips boxes and removes those of which nothing is left, so `bbox_params` and
    `keypoint_params` of a given `Compose` have no effect. Left and right keypoints do not change places when
    Albumentations mirrors the image: for keypoints use `RandomFlip`.

    The channels are in the order of the mapper's `image_format`, BGR by default, while transforms of colours expect
    RGB: set `INPUT.FORMAT` to "RGB" for those. Leave out `Normalize` and `ToTensorV2`: models normalise.

    Random numbers follow `numpy.random`, which data-loader workers seed; a `seed` of the `Compose` has no effect.

    Args:
        transform: a transform, a composition of transforms, or a list of them.

    Raises:
        ImportError: if Albumentations is not installed.

    Example:
        >>> from detectron2.data import transforms as T
        >>> import albumentations as A
        >>> aug = T.Albumentations(A.Compose([A.HorizontalFlip(p=1.0)]))
        >>> image, tfms = T.apply_augmentations([aug], np.array([[1, 2, 3]], dtype=np.uint8))
        >>> image
        array([[3, 2, 1]], dtype=uint8)
        >>> tfms.apply_box(np.array([[0.0, 0, 1, 1]]))
        array([[2., 0., 3., 1.]])
    """

    input_args = ("image", "boxes")

    def __init__(self, transform: Any):
        super().__init__()
        library = _albumentations()
        self.transform = transform
        if isinstance(transform, library.Compose):
            parts, prob = list(transform.transforms), transform.p
        else:
            parts, prob = (list(transform) if isinstance(transform, (list, tuple)) else [transform]), 1.0
        parts = _with_all_keypoints(parts)
        self._changes_colours_only = all(_changes_colours_only(part, library) for part in parts)
        annotations = {}
        if not self._changes_colours_only:
            annotations["keypoint_params"] = library.KeypointParams(format="xy", remove_invisible=False)
            annotations["bbox_params"] = library.BboxParams(format="pascal_voc")
        self._compose = library.Compose(parts, p=prob, **annotations)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None = None) -> Transform:
        """Augment the image and record what happened to its pixels and to points.

        The image is uint8, or float32 in [0, 1]. Boxes `(N, 4)` are for transforms that look at them before they crop.
        """
        if hasattr(self._compose, "set_random_seed"):  # older ones follow the generators of Python and NumPy
            self._compose.set_random_seed(int(np.random.randint(_LARGEST_SEED)))  # noqa: NPY002 (workers seed it)
        if self._changes_colours_only:
            return _Recorded(image, self._call(image=image), None, None)
        hw = image.shape[:2]
        nodes_x, nodes_y = _nodes(hw[1]), _nodes(hw[0])
        nodes = np.stack(np.meshgrid(nodes_x, nodes_y), axis=-1).reshape(-1, 2)
        extra = {"mask": _positions(hw), "keypoints": nodes - np.float32(0.5)}
        if boxes is not None:
            extra.update(_usable_boxes(boxes, hw))
        out = self._call(image=image, **extra)
        moved = np.asarray(out["keypoints"], dtype=np.float64)[:, :2] + 0.5
        if len(moved) != len(nodes):
            raise ValueError(
                f"the transforms in {self.transform!r} dropped {len(nodes) - len(moved)} of {len(nodes)} keypoints "
                "that were to be kept (remove_invisible=False), so annotations cannot follow; leave out the transform "
                "that drops keypoints (in old versions CoarseDropout and others that cut holes), or update "
                "albumentations"
            )
        return _Recorded(image, out, _SourcePixels(out["mask"], hw), _PointMap(nodes_x, nodes_y, moved))

    def _call(self, **arguments: Any) -> dict[str, Any]:
        arguments["image"] = np.ascontiguousarray(arguments["image"])
        out = self._compose(**arguments)
        if not isinstance(out["image"], np.ndarray):
            raise TypeError(
                f"the transforms made a {type(out['image']).__name__} of the image, where an array (H, W, C) is "
                "needed; leave out ToTensorV2: the mapper makes tensors"
            )
        return out


def _albumentations() -> Any:
    try:
        return importlib.import_module("albumentations")
    except ImportError as e:
        raise ImportError("T.Albumentations needs albumentations: pip install 'detectron2[albumentations]'") from e


def _changes_colours_only(part: Any, library: Any) -> bool:
    if isinstance(part, library.BaseCompose):
        return all(_changes_colours_only(inner, library) for inner in part.transforms)
    return isinstance(part, library.ImageOnlyTransform)


def _with_all_keypoints(parts: list[Any]) -> list[Any]:
    """Copy the transforms; distortions move keypoints by their formula, not by a slow mask that loses some."""
    copies = copy.deepcopy(parts)
    waiting = list(copies)
    while waiting:
        part = waiting.pop()
        waiting += getattr(part, "transforms", ())
        if getattr(part, "keypoint_remapping_method", "direct") == "mask":
            part.keypoint_remapping_method = "direct"
    return copies


def _nodes(size: int) -> np.ndarray:
    """Return pixel centres along one side, the first and the last among them: float32 `(P,)`, at least two."""
    count = min(max(-(-size // _NODE_DISTANCE) + 1, 2), _MOST_NODES)
    return np.linspace(0.5, max(size, 2) - 0.5, count, dtype=np.float32)


def _positions(hw: tuple[int, int]) -> np.ndarray:
    """Return a mask float32 `(H, W, 3)` of `(row + 1, column + 1, -(row + 1))`; filled pixels differ in form."""
    mask = np.empty((*hw, 3), dtype=np.float32)
    mask[:, :, 0] = np.arange(1, hw[0] + 1, dtype=np.float32)[:, None]
    mask[:, :, 1] = np.arange(1, hw[1] + 1, dtype=np.float32)
    np.negative(mask[:, :, 0], out=mask[:, :, 2])
    return mask


def _usable_boxes(boxes_xyxy: np.ndarray, hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return boxes `(N, 5)` that Albumentations accepts: in the image, with an area, and their number as a label."""
    clipped = np.clip(boxes_xyxy, 0, (hw[1], hw[0], hw[1], hw[0]))
    numbers = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    if len(numbers) == 0:
        return {}
    return {"bboxes": np.concatenate([clipped[numbers], numbers[:, None]], axis=1).astype(np.float32)}


class _SourcePixels:
    """For every pixel of the result the pixel of the input `hw` that it comes from, read from the mask `_positions`."""

    def __init__(self, positions: np.ndarray, hw: tuple[int, int]):
        rows, columns = np.rint(positions[:, :, 0]).astype(np.intp), np.rint(positions[:, :, 1]).astype(np.intp)
        is_from_image = positions[:, :, 2] == -positions[:, :, 0]
        is_from_image &= (rows >= 1) & (rows <= hw[0]) & (columns >= 1) & (columns <= hw[1])
        self.input_hw = hw
        self.rows, self.columns = np.where(is_from_image, rows - 1, 0), np.where(is_from_image, columns - 1, 0)
        self.filled = None if is_from_image.all() else ~is_from_image
        self.fill = 0 if self.filled is None else positions[:, :, 0][self.filled]

    def gather(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """Pick pixels of `(H, W)` or `(H, W, C)`; those from outside the image become `fill`."""
        if values.shape[:2] != self.input_hw:
            raise ValueError(
                f"these transforms were applied to an image of (height, width) {self.input_hw}, and cannot be applied "
                f"to an array of {values.shape[:2]}; an augmentation decides anew for each image"
            )
        out = values[self.rows, self.columns]
        if self.filled is not None:
            out[self.filled] = fill
        return out


class _PointMap:
    """Where points go: affine if the evenly spaced nodes `(B, A)` went so, `moved[B * A, 2]`, else bilinear between."""

    def __init__(self, nodes_x: np.ndarray, nodes_y: np.ndarray, moved: np.ndarray):
        self.origin = np.array([nodes_x[0], nodes_y[0]], dtype=np.float64)
        self.distance = np.array([nodes_x[-1] - nodes_x[0], nodes_y[-1] - nodes_y[0]], dtype=np.float64)
        self.distance /= (len(nodes_x) - 1, len(nodes_y) - 1)
        self.moved = moved.reshape(len(nodes_y), len(nodes_x), 2)
        self.matrix = self._fit_affine()

    def _fit_affine(self) -> np.ndarray | None:
        """Return the `(2, 3)` matrix of the map, if it is affine."""
        rows, columns = self.moved.shape[:2]
        corner, right, down = self.moved[0, 0], self.moved[0, -1], self.moved[-1, 0]
        linear = np.stack([(right - corner) / (columns - 1), (down - corner) / (rows - 1)], axis=1)
        y, x = np.mgrid[:rows, :columns]
        expected = np.stack([x, y], axis=-1) @ linear.T + corner
        if np.abs(expected - self.moved).max() > _AFFINE_TOLERANCE:
            return None
        linear = linear / self.distance
        return np.concatenate([linear, (corner - linear @ self.origin)[:, None]], axis=1)

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """Map points `(P, 2)`; outside the image the map goes on as at its edge."""
        if self.matrix is not None:
            return xy @ self.matrix[:, :2].T + self.matrix[:, 2]
        position = (xy - self.origin) / self.distance
        most = np.array(self.moved.shape[1::-1]) - 2
        cell = np.clip(np.floor(position), 0, most).astype(np.intp)
        right, down = (position - cell).T[:, :, None]
        column, row = cell.T
        top = self.moved[row, column] * (1 - right) + self.moved[row, column + 1] * right
        bottom = self.moved[row + 1, column] * (1 - right) + self.moved[row + 1, column + 1] * right
        return top * (1 - down) + bottom * down


class _Recorded(Transform):
    """What one call did to an image: its colours, and where its pixels and points went (None if they stay)."""

    def __init__(self, image: np.ndarray, out: dict[str, Any], pixels: _SourcePixels | None, points: _PointMap | None):
        super().__init__()
        self._image = image
        self._result: np.ndarray = out["image"]
        self._pixels = pixels
        self._points = points

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the augmented image; another image of that size has its pixels moved and keeps its colours."""
        if img is self._image or np.array_equal(img, self._image):
            return self._result
        return img if self._pixels is None else self._pixels.gather(img, 0)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Move labels with the pixels; filled ones get the label that the transforms have for masks (usually 0)."""
        if self._pixels is None:
            return segmentation
        return self._pixels.gather(segmentation, self._pixels.fill)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move points `(P, 2)`; the result is float64."""
        return coords if self._points is None else self._points(np.asarray(coords, dtype=np.float64))

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Move polygons and cut them at the edges of the result, where a crop leaves parts of them outside."""
        if self._points is None:
            return polygons
        h, w = self._result.shape[:2]
        return [part for polygon in polygons for part in clip_polygon(self.apply_coords(polygon), 0, 0, w, h)]

    def apply_rotated_box(self, rotated_boxes: np.ndarray) -> np.ndarray:
        """Move, turn and scale rotated boxes `(N, 5)`, in place."""
        if self._points is None:
            return rotated_boxes
        if self._points.matrix is None:
            raise NotImplementedError(
                "Albumentations cannot transform rotated boxes where it bends the image or changes its perspective: "
                "use transforms that keep straight lines parallel (flips, crops, A.Affine)"
            )
        rotated_boxes[:, :2] = self.apply_coords(rotated_boxes[:, :2])
        return map_sides(rotated_boxes, self._points.matrix[:, :2])

    def inverse(self) -> Transform:
        """Not possible in general: pixels may be lost."""
        raise NotImplementedError("what Albumentations did cannot be inverted; use transforms of this package")

    def __repr__(self) -> str:
        return f"Albumentations({self._image.shape[:2]} -> {self._result.shape[:2]})"

    __str__ = __repr__
