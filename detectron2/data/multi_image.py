"""Augmentations that make one image of several: mosaic, mixup, copy-paste.

An `Augmentation` of `detectron2.data.transforms` sees one image. Those of this module get several samples, each as a
mapper made it, and return one. `MultiImageMapper` wraps a mapper and applies them::

    mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.RandomFlip(), T.LargeScaleJitter(1024)])
    mapper = MultiImageMapper(mapper, [CopyPaste()])
    loader = build_detection_train_loader(cfg, mapper=mapper)

and in a LazyConfig file `dataloader.train.mapper = L(MultiImageMapper)(mapper=dataloader.train.mapper,
augmentations=[L(CopyPaste)()])`.

Letters: `N` instances, `H`, `W` height and width of an image in pixels, `C` channels. Random numbers come from
`numpy.random`, seeded per data-loader worker.
"""
# ruff: noqa: NPY002 (the legacy global generator is the one that workers seed)

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from detectron2.layers.wrappers import any_along
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes

from . import transforms as T
from .common import DatasetFromList

__all__ = ["CopyPaste", "MixUp", "Mosaic", "MultiImageAugmentation", "MultiImageMapper"]

Sample = dict[str, Any]

_TRIALS = 10  # how often to look for another sample where the mapper returns None


# Parts: samples cut, moved and put together. Nothing here changes what it is given.


@dataclass(frozen=True)
class _Placement:
    """Where an image goes on a canvas: it is resized, its corner put somewhere, and what leaves a window is cut off."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    corner_xy: tuple[int, int]  # on the canvas; may be outside
    window_xyxy: tuple[int, int, int, int]  # the part of the canvas that the image may cover
    canvas_hw: tuple[int, int]

    @property
    def is_identity(self) -> bool:
        """Whether the image is the canvas."""
        h, w = self.image_hw
        return self == _Placement((h, w), (h, w), (0, 0), (0, 0, w, h), (h, w))

    @property
    def covered_xyxy(self) -> tuple[int, int, int, int]:
        """The part of the canvas that the image covers; an empty part has no width or no height."""
        (x, y), (h, w), (x1, y1, x2, y2) = self.corner_xy, self.resized_hw, self.window_xyxy
        left, top = max(x, x1), max(y, y1)
        return left, top, max(min(x + w, x2), left), max(min(y + h, y2), top)

    @property
    def covered(self) -> tuple[slice, slice]:
        """The same as rows and columns of an array."""
        x1, y1, x2, y2 = self.covered_xyxy
        return slice(y1, y2), slice(x1, x2)

    @property
    def cut(self) -> T.TransformList:
        """From the image to the part that is covered."""
        x1, y1, x2, y2 = self.covered_xyxy
        transforms: list[T.Transform] = []
        if self.resized_hw != self.image_hw:
            transforms.append(T.ResizeTransform(*self.image_hw, *self.resized_hw))
        x0, y0 = x1 - self.corner_xy[0], y1 - self.corner_xy[1]
        transforms.append(T.CropTransform(x0, y0, x2 - x1, y2 - y1, self.resized_hw[1], self.resized_hw[0]))
        return T.TransformList(transforms)

    @property
    def pad(self) -> T.PadTransform:
        """From the part that is covered to the canvas."""
        x1, y1, x2, y2 = self.covered_xyxy
        return T.PadTransform(x1, y1, self.canvas_hw[1] - x2, self.canvas_hw[0] - y2, x2 - x1, y2 - y1)


def _check_samples(name: str, samples: Sequence[Sample], needs: Sequence[str] = ()) -> None:
    """Refuse samples that the augmentation `name` cannot put together: other keys, proposals, other kinds of images."""
    for sample in samples:
        if not isinstance(sample, dict):
            raise TypeError(
                f"{name} needs samples that are dictionaries, as mappers make them, got a {type(sample).__name__}"
            )
        if missing := [key for key in ("image", *needs) if key not in sample]:
            raise ValueError(
                f"{name} needs samples with {', '.join(map(repr, missing))}, as DatasetMapper makes them for training; "
                f"this one has {', '.join(sample)}"
            )
        if "proposals" in sample:
            raise ValueError(f"{name} cannot combine precomputed proposals: set MODEL.LOAD_PROPOSALS to False")
        for key in ("instances", "sem_seg"):
            if (key in samples[0]) != (key in sample):
                raise ValueError(f"{name} got samples of which only some have {key!r}; combine alike ones")
        a, b = samples[0]["image"], sample["image"]
        if not isinstance(b, torch.Tensor) or b.dim() != 3 or 0 in b.shape:
            got = f"shape {tuple(b.shape)}" if isinstance(b, torch.Tensor) else f"a {type(b).__name__}"
            raise ValueError(f"{name} needs images as tensors (C, H, W) with at least one pixel, got {got}")
        if a.shape[0] != b.shape[0] or a.dtype != b.dtype:
            raise ValueError(
                f"{name} got images of {a.shape[0]} channels ({a.dtype}) and {b.shape[0]} ({b.dtype}); combine images "
                "of one format"
            )
        image_hw = tuple(b.shape[1:])
        if (instances := sample.get("instances")) is not None and not instances.get_fields():
            raise ValueError(f"{name} got instances without any field; where there are none, set empty gt_boxes")
        if instances is not None and tuple(instances.image_size) != image_hw:
            raise ValueError(
                f"{name} got instances of an image of (height, width) {tuple(instances.image_size)} with an image of "
                f"{image_hw}; transform both in the mapper"
            )
        if (labels := sample.get("sem_seg")) is not None and tuple(labels.shape) != image_hw:
            raise ValueError(
                f"{name} got a label map 'sem_seg' of shape {tuple(labels.shape)} with an image of (height, width) "
                f"{image_hw}; transform both in the mapper"
            )


def _is_number(value: Any, low: float, high: float = np.inf, kind: type = Real) -> bool:
    return isinstance(value, kind) and bool(low <= value <= high) and bool(np.isfinite(value))


def _is_pair(value: Any, low: float, high: float = np.inf, kind: type = Real) -> bool:
    is_list = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)
    return is_list and len(value) == 2 and all(_is_number(x, low, high, kind) for x in value)


def _check_min_visible(name: str, min_visible: Any) -> None:
    if not _is_number(min_visible, 0, 1):
        raise ValueError(f"{name} needs min_visible between 0 and 1, got {min_visible!r}")


def _check_pad_value(name: str, pad_value: Any) -> None:
    if not _is_number(pad_value, -np.inf):
        raise ValueError(f"{name} needs a number as pad_value, got {pad_value!r}")


def _place_image(image: torch.Tensor, placement: _Placement, canvas: torch.Tensor) -> None:
    """Write an image `(C, H, W)` to its place on a canvas, changing the canvas alone."""
    piece = placement.cut.apply_image(image.permute(1, 2, 0).numpy())
    canvas.numpy()[(slice(None), *placement.covered)] = piece.transpose(2, 0, 1)


def _place_labels(labels: torch.Tensor, placement: _Placement, canvas: torch.Tensor) -> None:
    """Write a label map `(H, W)` to its place on a canvas, changing the canvas alone."""
    canvas.numpy()[placement.covered] = placement.cut.apply_segmentation(labels.numpy())


def _place_instances(instances: Instances, placement: _Placement, min_visible: float) -> Instances:
    """Move ground truth with its image, clip it, and leave out what is cut off.

    Boxes that were cut are the tightest ones around the masks, where there are masks. An instance stays if the part
    `min_visible` of the area of its box is left.
    """
    if placement.is_identity:
        return instances
    x1, y1, x2, y2 = placement.covered_xyxy
    part = _transform(instances, placement.cut, (y2 - y1, x2 - x1))
    if "gt_boxes" in part:
        part = _clip(part, min_visible)
    return _transform(part, placement.pad, placement.canvas_hw)


def _transform(instances: Instances, transform: Any, image_hw: tuple[int, int]) -> Instances:
    fields = instances.get_fields().items()
    return Instances(image_hw, **{name: _transform_field(name, value, transform) for name, value in fields})


def _transform_field(name: str, value: Any, transform: Any) -> Any:
    if isinstance(value, RotatedBoxes):
        return RotatedBoxes(torch.from_numpy(transform.apply_rotated_box(value.tensor.numpy().astype(np.float32))))
    if isinstance(value, Boxes):
        return Boxes(torch.from_numpy(transform.apply_box(value.tensor.numpy()).astype(np.float32)))
    if isinstance(value, PolygonMasks):
        corners = [[p.reshape(-1, 2).copy() for p in polygons] for polygons in value.polygons]
        return PolygonMasks([[p.reshape(-1) for p in transform.apply_polygons(polygons)] for polygons in corners])
    if isinstance(value, BitMasks):
        return BitMasks(_transform_bitmaps(value.tensor, transform))
    if isinstance(value, Keypoints):
        points = value.tensor.clone()
        xy = transform.apply_coords(points[:, :, :2].reshape(-1, 2).numpy().astype(np.float64))
        points[:, :, :2] = torch.from_numpy(xy).view(*points.shape[:2], 2)
        return Keypoints(points)
    if isinstance(value, list) or (isinstance(value, torch.Tensor) and value.dim() == 1):
        return value
    raise ValueError(
        f"images cannot be combined with the field {name!r} of their instances, a {type(value).__name__}: how it moves "
        "with the image is not known; remove the field in the mapper"
    )


def _transform_bitmaps(masks: torch.Tensor, transform: Any) -> torch.Tensor:
    """Resize, cut and pad bool `(N, H, W)`, all masks at once."""
    steps: list[Any] = transform.transforms if isinstance(transform, T.TransformList) else [transform]
    for step in steps:
        kind = type(step)
        if kind is T.CropTransform:
            masks = masks[:, step.y0 : step.y0 + step.h, step.x0 : step.x0 + step.w]
        elif kind is T.PadTransform:
            masks = F.pad(masks, (step.x0, step.x1, step.y0, step.y1))
        else:
            rows = T.ResizeTransform(step.h, 1, step.new_h, 1).apply_segmentation(np.arange(step.h)[:, None])[:, 0]
            columns = T.ResizeTransform(1, step.w, 1, step.new_w).apply_segmentation(np.arange(step.w)[None])[0]
            # Six times as fast as indices of PyTorch: 6 ms for 15 masks of a megapixel.
            masks = torch.from_numpy(masks.numpy().take(rows, axis=1).take(columns, axis=2))
    return masks


def _clip(instances: Instances, min_visible: float) -> Instances:
    """Clip boxes and keypoints to the image, and leave out instances of which too little is left."""
    h, w = instances.image_size
    boxes = instances.gt_boxes
    if isinstance(boxes, RotatedBoxes):  # not clipped: what counts is the centre
        x, y = boxes.tensor[:, 0], boxes.tensor[:, 1]
        return instances[(x > 0) & (x < w) & (y > 0) & (y < h)]
    clipped = boxes.clone()
    clipped.clip((h, w))
    keep = clipped.nonempty(1e-5) & (clipped.area() >= min_visible * boxes.area())
    is_cut = (clipped.tensor != boxes.tensor).any(dim=1)
    if instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
        is_cut &= keep
        if is_cut.any():
            clipped.tensor[is_cut] = instances.gt_masks[is_cut].get_bounding_boxes().tensor
    fields = {**instances.get_fields(), "gt_boxes": clipped}
    fields = {k: _hide_outside(v, (h, w)) if isinstance(v, Keypoints) else v for k, v in fields.items()}
    out = Instances((h, w), **fields)
    return out if keep.all() else out[keep]


def _hide_outside(keypoints: Keypoints, image_hw: tuple[int, int]) -> Keypoints:
    points = keypoints.tensor.clone()
    x, y = points[:, :, 0], points[:, :, 1]
    inside = (x >= 0) & (x <= image_hw[1]) & (y >= 0) & (y <= image_hw[0])
    points[:, :, 2][~inside] = 0
    return Keypoints(points)


def _bitmaps(instances: Instances) -> torch.Tensor:
    """Return the masks of instances as bitmaps of the image: bool `(N, H, W)`."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        return BitMasks.from_polygon_masks(masks, *instances.image_size).tensor
    return masks.tensor


def _areas(masks: torch.Tensor) -> torch.Tensor:
    """Count the pixels of bitmaps bool `(N, H, W)`."""
    # PyTorch would convert every pixel to 64 bits, which takes 50 times as long.
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)


def _concatenate(parts: Sequence[Instances]) -> Instances:
    """Put the instances of one image together; images without any may lack fields that others have."""
    filled = [part for part in parts if len(part) > 0]
    for part in filled:
        if differing := set(part.get_fields()) ^ set(filled[0].get_fields()):
            raise ValueError(
                f"images cannot be combined of which only some have {', '.join(sorted(differing))} in their instances; "
                "give every object an annotation of the same kind, or leave the others out of the data set"
            )
    return Instances.cat(filled) if filled else parts[0]


# Augmentations


class MultiImageAugmentation:
    """A way to make one sample of several.

    Subclasses write `combine`. Samples are what a mapper returns: dicts with "image" `(C, H, W)`, and "instances",
    "sem_seg" `(H, W)` or both; they must not be changed in place.

    Args:
        num_others: how many other samples one needs.
        prob: probability that the augmentation is applied.
    """

    def __init__(self, num_others: int, prob: float = 1.0):
        if not _is_number(num_others, 0, kind=Integral):
            raise ValueError(f"num_others must be a whole number of at least 0, got {num_others!r}")
        if not _is_number(prob, 0, 1):
            raise ValueError(f"prob must be between 0 and 1, got {prob!r}")
        self.num_others = num_others
        self.prob = prob

    def combine(self, sample: Sample, others: Sequence[Sample]) -> Sample:
        """Make one new sample of `sample` and `num_others` others.

        Entries of `sample` that cannot be combined, such as its file name, are kept.
        """
        raise NotImplementedError(f"{type(self).__name__} must define combine")


class Mosaic(MultiImageAugmentation):
    """Four images around a random point (Bochkovskiy et al., "YOLOv4", arXiv:2004.10934, section 3.4).

    The four parts of the result meet in a point drawn from the middle of it. Each image is scaled at random and put
    into its part with the corner that points to the middle; what does not fit is cut off.

    Args:
        size: `(height, width)` of the result in pixels; one number means a square.
        scale_range: each image is scaled to fit in the size times a number drawn from `[min, max)`, greater than 0;
            None leaves the sizes that the mapper made.
        center_range: the four parts meet between these fractions, in [0, 1], of height and width.
        min_visible: instances are left out if less than this part of their box is left.
        pad_value: grey level where no image is.
        seg_pad_value: label where no image is.
        prob: probability that the augmentation is applied.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        scale_range: tuple[float, float] | None = (0.4, 1.0),
        center_range: tuple[float, float] = (0.25, 0.75),
        min_visible: float = 0.1,
        pad_value: float = 128,
        seg_pad_value: int = 255,
        prob: float = 1.0,
    ):
        super().__init__(3, prob)
        if scale_range is not None and not (_is_pair(scale_range, 0) and 0 < scale_range[0] <= scale_range[1]):
            raise ValueError(f"Mosaic needs scale_range with 0 < min <= max, got {scale_range!r}")
        if not (_is_pair(center_range, 0, 1) and center_range[0] <= center_range[1]):
            raise ValueError(f"Mosaic needs center_range with 0 <= min <= max <= 1, got {center_range!r}")
        size_hw: Any = (size, size) if isinstance(size, Integral) else size
        if not _is_pair(size_hw, 1, kind=Integral):
            raise ValueError(
                f"Mosaic needs a size in pixels, a whole number above 0 or two (height, width), got {size!r}"
            )
        _check_min_visible("Mosaic", min_visible)
        _check_pad_value("Mosaic", pad_value)
        if not _is_number(seg_pad_value, -np.inf, kind=Integral):
            raise ValueError(f"Mosaic needs a whole number as seg_pad_value, got {seg_pad_value!r}")
        self.size = (int(size_hw[0]), int(size_hw[1]))
        self.scale_range = scale_range
        self.center_range = center_range
        self.min_visible = min_visible
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def combine(self, sample: Sample, others: Sequence[Sample]) -> Sample:
        """Put the sample into the top left part and three others into the other parts."""
        samples = [sample, *others]
        _check_samples("Mosaic", samples)
        placements = self._draw([tuple(s["image"].shape[1:]) for s in samples])
        out = _canvas(sample, self.size, self.pad_value, self.seg_pad_value)
        for source, placement in zip(samples, placements, strict=True):
            _place_image(source["image"], placement, out["image"])
            if "sem_seg" in out:
                _place_labels(source["sem_seg"], placement, out["sem_seg"])
        if "instances" in sample:
            pairs = zip(samples, placements, strict=True)
            out["instances"] = _concatenate([_place_instances(s["instances"], p, self.min_visible) for s, p in pairs])
        return out

    def _draw(self, sizes_hw: list[tuple[int, int]]) -> list[_Placement]:
        height, width = self.size
        center_y = round(height * np.random.uniform(*self.center_range))
        center_x = round(width * np.random.uniform(*self.center_range))
        placements = []
        for i, (h, w) in enumerate(sizes_hw):
            new_h, new_w = h, w
            if self.scale_range is not None:
                factor = np.random.uniform(*self.scale_range) * min(height / h, width / w)
                new_h, new_w = max(round(h * factor), 1), max(round(w * factor), 1)
            is_left, is_top = i % 2 == 0, i < 2
            corner_xy = (center_x - new_w if is_left else center_x, center_y - new_h if is_top else center_y)
            x1, x2 = (0, center_x) if is_left else (center_x, width)
            y1, y2 = (0, center_y) if is_top else (center_y, height)
            placements.append(_Placement((h, w), (new_h, new_w), corner_xy, (x1, y1, x2, y2), self.size))
        return placements


class MixUp(MultiImageAugmentation):
    """The weighted sum of two images, with the instances of both (Zhang et al., arXiv:1902.04103, section 3.1).

    Both images keep their sizes and positions: the result is as high and as wide as the larger one. All instances count
    in full, however faint they are. Label maps cannot be mixed.

    Args:
        alpha: the weight of the first image is drawn from the distribution Beta(alpha, alpha); greater than 0.
        pad_value: grey level where only one of the images is.
        prob: probability that the augmentation is applied.
    """

    def __init__(self, alpha: float = 1.5, *, pad_value: float = 128, prob: float = 1.0):
        super().__init__(1, prob)
        if not (_is_number(alpha, 0) and alpha > 0):
            raise ValueError(f"MixUp needs alpha > 0, got {alpha!r}")
        _check_pad_value("MixUp", pad_value)
        self.alpha = alpha
        self.pad_value = pad_value

    def combine(self, sample: Sample, others: Sequence[Sample]) -> Sample:
        """Blend the sample with the first of the others."""
        samples = [sample, others[0]]
        _check_samples("MixUp", samples, ["instances"])
        if "sem_seg" in sample:
            raise ValueError("MixUp cannot mix label maps ('sem_seg'): a pixel has one label; use Mosaic or CopyPaste")
        sizes = [tuple(s["image"].shape[1:]) for s in samples]
        canvas_hw = (max(h for h, _ in sizes), max(w for _, w in sizes))
        window_xyxy = (0, 0, canvas_hw[1], canvas_hw[0])
        weight = float(np.random.beta(self.alpha, self.alpha))
        mixed, instances = torch.zeros(()), []
        for source, size, factor in zip(samples, sizes, (weight, 1 - weight), strict=True):
            placement = _Placement(size, size, (0, 0), window_xyxy, canvas_hw)
            canvas = _filled(source["image"], canvas_hw, self.pad_value)
            _place_image(source["image"], placement, canvas)
            mixed = mixed + canvas.to(torch.float32) * factor
            instances.append(_place_instances(source["instances"], placement, 0.0))
        out = _with_size(sample, canvas_hw)
        dtype = sample["image"].dtype
        out["image"] = (mixed if dtype.is_floating_point else mixed.round()).to(dtype)
        out["instances"] = _concatenate(instances)
        return out


class CopyPaste(MultiImageAugmentation):
    """Objects of another image pasted onto this one (Ghiasi et al., "Simple Copy-Paste", arXiv:2012.07177).

    A random subset of the other image's objects is copied by their masks. What they cover loses that part of its masks
    and boxes, or is left out; its keypoints there are marked as not visible (`v = 1`), and a label map gets the labels
    of the other image. An image of another size is put at a random place, and cut at the edges. The masks of the
    result are bitmaps.

    The paper scales both images strongly before: use `T.LargeScaleJitter` in the mapper.

    Args:
        max_objects: the most objects that are pasted, at least one; None for all of them.
        min_visible: instances are left out if no more than this part of their mask stays visible.
        prob: probability that the augmentation is applied.
    """

    def __init__(self, *, max_objects: int | None = None, min_visible: float = 0.0, prob: float = 1.0):
        super().__init__(1, prob)
        if max_objects is not None and not _is_number(max_objects, 1, kind=Integral):
            raise ValueError(f"CopyPaste needs max_objects of at least 1, or None for all, got {max_objects!r}")
        _check_min_visible("CopyPaste", min_visible)
        self.max_objects = max_objects
        self.min_visible = min_visible

    def combine(self, sample: Sample, others: Sequence[Sample]) -> Sample:
        """Paste objects of the first of the others onto the sample."""
        other = others[0]
        _check_samples("CopyPaste", [sample, other], ["instances"])
        for instances in (sample["instances"], other["instances"]):
            if instances.has("gt_boxes") and isinstance(instances.gt_boxes, RotatedBoxes):
                raise ValueError("CopyPaste needs upright boxes, and these are rotated; use Mosaic or MixUp")
            if len(instances) > 0 and not instances.has("gt_masks"):
                raise ValueError(
                    "CopyPaste needs masks: set MODEL.MASK_ON (use_instance_mask of the mapper) to True, and use a "
                    "data set whose annotations have 'segmentation'"
                )
        if len(other["instances"]) == 0:
            return sample
        canvas_hw = tuple(sample["image"].shape[1:])
        placement = self._draw(tuple(other["image"].shape[1:]), canvas_hw)
        pasted = _place_instances(self._choose(other["instances"]), placement, 0.0)
        masks = _bitmaps(pasted)
        is_left = _areas(masks) > 0  # the thinnest of polygons cover no pixel
        if not is_left.any():
            return sample
        pasted = Instances(pasted.image_size, **{**pasted.get_fields(), "gt_masks": BitMasks(masks)})[is_left]
        covered = any_along(masks, 0)
        out = dict(sample)
        image = sample["image"].clone()
        _place_image(other["image"], placement, image)
        out["image"] = torch.where(covered, image, sample["image"])
        if "sem_seg" in sample:
            labels = sample["sem_seg"].clone()
            _place_labels(other["sem_seg"], placement, labels)
            out["sem_seg"] = torch.where(covered, labels, sample["sem_seg"])
        out["instances"] = _concatenate([self._cover(sample["instances"], covered), pasted])
        return out

    def _choose(self, instances: Instances) -> Instances:
        most = len(instances) if self.max_objects is None else min(self.max_objects, len(instances))
        count = np.random.randint(1, most + 1)
        return instances[torch.from_numpy(np.sort(np.random.permutation(len(instances))[:count]))]

    @staticmethod
    def _draw(image_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> _Placement:
        room_y, room_x = canvas_hw[0] - image_hw[0], canvas_hw[1] - image_hw[1]
        y = int(np.random.randint(min(room_y, 0), max(room_y, 0) + 1))
        x = int(np.random.randint(min(room_x, 0), max(room_x, 0) + 1))
        return _Placement(image_hw, image_hw, (x, y), (0, 0, canvas_hw[1], canvas_hw[0]), canvas_hw)

    def _cover(self, instances: Instances, covered: torch.Tensor) -> Instances:
        """Take covered pixels `(H, W)` away from instances."""
        if len(instances) == 0:
            return instances
        before = _bitmaps(instances)
        after = before & ~covered
        area_before, area_after = _areas(before), _areas(after)
        keep = (area_after > self.min_visible * area_before) & (area_after > 0)
        out = Instances(instances.image_size, **instances.get_fields())
        out.gt_masks = BitMasks(after)
        boxes = instances.gt_boxes.clone()
        is_cut = area_after < area_before
        boxes.tensor[is_cut] = out.gt_masks[is_cut].get_bounding_boxes().tensor
        out.gt_boxes = boxes
        if out.has("gt_keypoints"):
            out.gt_keypoints = _occlude(out.gt_keypoints, covered)
        return out[keep]


def _occlude(keypoints: Any, covered: torch.Tensor) -> Any:
    """Mark visible keypoints on covered pixels `(H, W)` as labelled but not visible."""
    points = keypoints.tensor.clone()
    h, w = covered.shape
    column, row = points[:, :, 0].long().clamp(0, w - 1), points[:, :, 1].long().clamp(0, h - 1)
    points[:, :, 2][covered[row, column] & (points[:, :, 2] == 2)] = 1
    return type(keypoints)(points)


def _filled(image: torch.Tensor, canvas_hw: tuple[int, int], value: float) -> torch.Tensor:
    return _full((image.shape[0], *canvas_hw), "pad_value", value, image.dtype)


def _full(shape: tuple[int, ...], name: str, value: float, dtype: torch.dtype) -> torch.Tensor:
    if not dtype.is_floating_point and not (limits := torch.iinfo(dtype)).min <= value <= limits.max:
        raise ValueError(f"{name} must be from {limits.min} to {limits.max}, because pixels are {dtype}, got {value}")
    return torch.full(shape, value, dtype=dtype)


def _with_size(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    """Return a copy with the "height" and "width" of a new image, by which batches are grouped."""
    return {**sample, "height": size_hw[0], "width": size_hw[1]}


def _canvas(sample: Sample, size_hw: tuple[int, int], pad_value: float, seg_pad_value: int) -> Sample:
    out = _with_size(sample, size_hw)
    out["image"] = _filled(sample["image"], size_hw, pad_value)
    if "sem_seg" in sample:
        out["sem_seg"] = _full(size_hw, "seg_pad_value", seg_pad_value, sample["sem_seg"].dtype)
    return out


class MultiImageMapper:
    """A mapper that makes samples with another mapper and combines several of them into one.

    The other samples are drawn from `dataset`, and are mapped, and so augmented, anew each time. Without `dataset`,
    `build_detection_train_loader` has them drawn from the data set that is loaded. Where that can only be iterated
    over, and where the mapper is used without that function, they are drawn from the last `pool_size` records that
    went through this mapper (in each worker): images that a sampler repeats are drawn more often, too, and the first
    record is not combined.

    Args:
        mapper: makes a sample of a record, for example a `DatasetMapper`.
        augmentations: applied in order, each with samples of its own.
        dataset: records to draw others from, a list or an indexed torch data set.
        pool_size: how many records to remember without `dataset`.

    Raises:
        ValueError: if there is nothing to draw from.
        TypeError: if something in `augmentations` does not combine samples.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], Sample | None],
        augmentations: Sequence[MultiImageAugmentation],
        *,
        dataset: Any = None,
        pool_size: int = 1000,
    ):
        if not callable(mapper):
            raise TypeError(f"MultiImageMapper wraps a mapper such as a DatasetMapper, got a {type(mapper).__name__}")
        if isinstance(augmentations, MultiImageAugmentation):
            raise TypeError("MultiImageMapper takes a list of augmentations; of one give [augmentation]")
        if not _is_number(pool_size, 1, kind=Integral):
            raise ValueError(f"MultiImageMapper needs pool_size of at least 1, got {pool_size!r}")
        if dataset is not None and (isinstance(dataset, str) or not hasattr(dataset, "__getitem__")):
            raise TypeError(
                "MultiImageMapper draws from a list or an indexed data set, such as get_detection_dataset_dicts(name), "
                f"got a {type(dataset).__name__}"
            )
        if dataset is not None and len(dataset) == 0:
            raise ValueError("the data set that MultiImageMapper should draw from is empty")
        for augmentation in augmentations:
            if not isinstance(augmentation, MultiImageAugmentation):
                raise TypeError(
                    f"MultiImageMapper applies MultiImageAugmentations, got a {type(augmentation).__name__}; give "
                    "augmentations of single images to the mapper that it wraps"
                )
        self.mapper = mapper
        self.augmentations = list(augmentations)
        self.dataset = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        self.pool_size = pool_size
        self._pool: list[dict[str, Any]] = []
        self._oldest = 0

    def __call__(self, dataset_dict: dict[str, Any]) -> Sample | None:
        """Map a record and combine the sample with others; None if the wrapped mapper makes nothing of the record."""
        record = None if self.dataset is not None else copy.deepcopy(dataset_dict)  # mappers may change it
        sample = self.mapper(dataset_dict)
        if sample is None:
            return None
        for augmentation in self.augmentations:
            if np.random.uniform() < augmentation.prob:
                others = self._others(augmentation.num_others)
                if others is not None:
                    sample = augmentation.combine(sample, others)
                    if sample is None:
                        raise TypeError(
                            f"combine of {type(augmentation).__name__} returned None; it must return a sample"
                        )
        if record is not None:
            self._remember(record)
        return sample

    def drawing_from(self, dataset: Any) -> "MultiImageMapper":
        """Return this mapper, drawing from an indexed data set, unless it was given one already."""
        if self.dataset is not None:
            return self
        mapper = copy.copy(self)
        mapper.dataset = dataset
        return mapper

    def _others(self, count: int) -> list[Sample] | None:
        """Return `count` other samples; None if there are not enough."""
        records = self._pool if self.dataset is None else self.dataset
        others = []
        for _ in range(count + _TRIALS):
            if len(others) == count or len(records) == 0:
                break
            other = self.mapper(copy.deepcopy(records[int(np.random.randint(len(records)))]))
            if other is not None:
                others.append(other)
        return others if len(others) == count else None

    def _remember(self, record: dict[str, Any]) -> None:
        if len(self._pool) < self.pool_size:
            self._pool.append(record)
        else:
            self._pool[self._oldest] = record
            self._oldest = (self._oldest + 1) % self.pool_size
