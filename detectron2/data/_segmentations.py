"""Segmentations of annotations: polygons, run lengths (RLE) and bitmaps, for the functions of `_annotations`.

Polygons are `[x1, y1, ..., xn, yn]` in absolute continuous coordinates of the image; bitmaps have its size
`(H, W)` = (height, width) in pixels.
"""

import logging
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.structures import BitMasks, PolygonMasks, polygons_to_bitmask
from detectron2.utils.logger import log_first_n

__all__ = ["describe_annotation", "masks_of_annotations", "transform_segmentation"]


def describe_annotation(annotation: dict[str, Any], index: int | None = None) -> str:
    """Words for error messages: which annotation it is."""
    words = ["annotation"]
    if index is not None:
        words.append(f"number {index}")
    if "id" in annotation:
        words.append(f"id {annotation['id']}")
    if "category_id" in annotation:
        words.append(f"(category_id {annotation['category_id']})")
    return " ".join(words)


def transform_segmentation(
    annotation: dict[str, Any], transforms: Any, image_hw: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    """Transform polygons as such, anything else as a bitmap.

    Args:
        annotation: one annotation with "segmentation"; it is not changed.
        transforms: one transform: what was done to the image.
        image_hw: size of the transformed image.

    Returns:
        polygons, or a bitmap uint8 `(H, W)`.

    Raises:
        ValueError: if the segmentation is of an unknown kind, or has not the size of the image.
    """
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        polygons = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
        return [p.reshape(-1) for p in transforms.apply_polygons(polygons)]
    before = _as_bitmap(annotation)
    after = transforms.apply_segmentation(np.minimum(before, 1))
    if after.shape[:2] != image_hw:
        raise ValueError(
            f"the mask of {describe_annotation(annotation)} has (height, width) {before.shape}, which becomes "
            f"{after.shape[:2]} where the image becomes {image_hw}: mask and image differ in size"
        )
    # Padding may have a label of its own (FixedSizeCrop: 255), which is not the object.
    return (after == 1).view(np.uint8)


def _as_bitmap(annotation: dict[str, Any], index: int | None = None) -> np.ndarray:
    """The mask of an annotation that has no polygons: uint8 `(H, W)`, zero outside the object."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        if segmentation.dtype != np.uint8:  # transforms do not take bool
            segmentation = (segmentation != 0).view(np.uint8)
        return segmentation
    shape = f" and shape {segmentation.shape}" if isinstance(segmentation, np.ndarray) else ""
    raise ValueError(
        f"the segmentation of {describe_annotation(annotation, index)} has type {type(segmentation).__name__}{shape}; "
        "supported are polygons as list[list[float] or ndarray], COCO's RLE as a dict, or a mask as an ndarray (H, W)"
    )


def _decode_rle(rle: Any) -> np.ndarray:
    import pycocotools.mask as mask_util

    from detectron2.data.formats.run_lengths import is_compressed, run_length_totals, run_lengths

    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, (list, tuple)):  # not compressed
        total = sum(counts)
        rle = {"size": [height, width], "counts": list(counts)}
    else:
        text = counts.decode("latin1") if isinstance(counts, bytes) else counts
        total = int(run_length_totals([text])[0]) if is_compressed(text) else -1
    # Not left to pycocotools, which would show memory that was never written.
    if total != height * width:
        raise ValueError(
            f"the run lengths of an RLE of (height, width) {(height, width)} "
            + (f"add up to {total}; they must cover its {height * width} pixels" if total >= 0 else "are malformed")
        )
    encoded: Any = run_lengths(rle) if isinstance(rle["counts"], list) else rle
    return mask_util.decode(encoded)


def masks_of_annotations(
    annos: list[dict[str, Any]], image_hw: tuple[int, int], mask_format: str
) -> PolygonMasks | BitMasks:
    """Gather the transformed segmentations of one image.

    Polygons and bitmaps do not mix within an image; images of one batch may differ.

    Args:
        annos: annotations, each with "segmentation".
        image_hw: size of the image.
        mask_format: "polygon" or "bitmask"; "polygon" gives bitmaps where not all segmentations are polygons.

    Returns:
        the masks, in the order of the annotations.

    Raises:
        ValueError: if one is malformed.
    """
    if mask_format == "polygon":
        if all(isinstance(a["segmentation"], list) for a in annos):
            return _polygon_masks(annos)
        if torchdata.get_worker_info() is None:  # the many workers of a loader would all say it
            log_first_n(
                logging.INFO,
                "INPUT.MASK_FORMAT is 'polygon', but some images have masks that are not polygons (RLE or bitmaps):"
                " all masks of such an image are given as bitmaps.",
            )
    return _bit_masks(annos, image_hw)


def _check_polygons(anno: dict[str, Any], index: int) -> None:
    for polygon in anno["segmentation"]:
        if len(polygon) % 2 != 0 or len(polygon) < 6:
            raise ValueError(
                f"{describe_annotation(anno, index)} has a polygon of {len(polygon)} numbers; a polygon is "
                f"[x1, y1, ..., xn, yn] with at least three points"
            )


def _polygon_masks(annos: list[dict[str, Any]]) -> PolygonMasks:
    for i, anno in enumerate(annos):
        _check_polygons(anno, i)
    return PolygonMasks([a["segmentation"] for a in annos])


def _bit_masks(annos: list[dict[str, Any]], image_hw: tuple[int, int]) -> BitMasks:
    masks = torch.empty((len(annos), *image_hw), dtype=torch.bool)
    for i, anno in enumerate(annos):
        if isinstance(anno["segmentation"], list):
            _check_polygons(anno, i)
            mask = polygons_to_bitmask(anno["segmentation"], *image_hw)
        else:
            mask = _as_bitmap(anno, i)
        if mask.shape != tuple(image_hw):
            raise ValueError(
                f"the mask of {describe_annotation(anno, i)} has shape {mask.shape}, but the image has "
                f"(height, width) {tuple(image_hw)}"
            )
        if mask.dtype != np.bool_:
            mask = mask != 0
        masks[i] = torch.from_numpy(mask if min(mask.strides) >= 0 else mask.copy())
    return BitMasks(masks)
