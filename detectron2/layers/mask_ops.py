"""Pasting the small masks that a head predicts into the image.

Letters: `N` masks, `(h, w)` size of a predicted mask, `(H, W)` size of the image. Boxes are `(x1, y1, x2, y2)` in
pixels of the image, continuous coordinates: pixel `i` covers `[i, i + 1]`.
"""

import logging
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .run_lengths import changes, crop_to_content, encode_changes

__all__ = [
    "encode_masks",
    "paste_mask_in_image_old",
    "paste_masks_as_rle",
    "paste_masks_in_boxes",
    "paste_masks_in_image",
]

logger = logging.getLogger(__name__)

# Bytes that one pass on an accelerator may take for intermediate results.
_PASS_BYTES = 1 << 30
# A warning announces results of at least this many bytes.
_LARGE_RESULT_BYTES = 4 << 30
# On the CPU: masks, and bytes of interpolation weights, that are worked out together; pixels computed at a time.
_MASKS_PER_PART = 32
_WEIGHT_BYTES = 8 << 20
_PIXELS_AT_ONCE = 2 << 20


def paste_masks_in_image(
    masks: torch.Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Resample every mask to its box, and put it into an image that is empty elsewhere.

    A mask is a signal sampled at the centres of its `h x w` cells, zero around them, interpolated bilinearly at the
    centres of the image's pixels, up to one pixel beyond the box.

    The result takes `N * H * W` bytes; a warning says so if they are many. On the CPU, memory is not taken for
    pixels that no mask comes near, and the work takes as much more as in `paste_masks_as_rle`; on an accelerator
    it takes 1 GiB, or 16 bytes for each pixel of the image.

    Args:
        masks: `(N, h, w)`, values in [0, 1].
        boxes: `Boxes` or tensor `(N, 4)`.
        image_shape: `(H, W)` in pixels.
        threshold: a pixel belongs to the object when its value is at least this. A negative threshold keeps the
            values, as `value * 255` in uint8.

    Returns:
        `(N, H, W)`, bool, or uint8 for a negative threshold.

    Raises:
        ValueError: the shapes do not fit one another.
        MemoryError: the result does not fit into the memory of the machine.

    Example:
        >>> from detectron2.layers import paste_masks_in_image
        >>> boxes = torch.tensor([[10.0, 20, 50, 60]])
        >>> pasted = paste_masks_in_image(torch.ones(1, 28, 28), boxes, (100, 120))
        >>> pasted.shape, pasted.dtype, pasted.sum()
        (torch.Size([1, 100, 120]), torch.bool, tensor(1600))
    """
    xyxy = _checked_xyxy(masks, boxes)
    if isinstance(masks.shape[0], torch.Tensor):  # so are the lengths in a graph that is being traced
        size_hw = torch.stack([torch.as_tensor(s) for s in image_shape])
        return _paste_in_graph(masks.float(), xyxy.float(), size_hw, threshold)
    height, width = (int(s) for s in image_shape)
    dtype = torch.bool if threshold >= 0 else torch.uint8
    if masks.shape[0] == 0:
        return torch.zeros(0, height, width, dtype=dtype, device=masks.device)
    if masks.shape[0] * height * width >= _LARGE_RESULT_BYTES:
        logger.warning(_describe_large_result(masks.shape[0], height, width))
    if masks.device.type == "cpu":
        return _paste_inside_boxes(masks.float(), xyxy.float(), height, width, threshold, dtype)
    return _paste_in_passes(masks, xyxy, height, width, threshold, dtype)


def paste_masks_as_rle(
    masks: torch.Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """The masks of `paste_masks_in_image` as COCO's compressed run lengths, without making whole images.

    Works on the CPU, a part of one box at a time. Beside the result it takes less than 150 MiB in an image of
    8000 x 4000 pixels, however many and large the boxes, and more for larger images only as their sides, not as their
    area, grow.

    Args:
        masks: `(N, h, w)`, values in [0, 1].
        boxes: `Boxes` or tensor `(N, 4)`.
        image_shape: `(H, W)` in pixels.
        threshold: a pixel belongs to the object when its value is at least this; positive.

    Returns:
        For each mask `{"size": [H, W], "counts": text}`, as pycocotools encodes it.

    Raises:
        ValueError: the shapes do not fit one another, or the threshold is not positive.

    Example:
        >>> from detectron2.layers import paste_masks_as_rle
        >>> paste_masks_as_rle(torch.ones(1, 28, 28), torch.tensor([[3.0, 1, 4, 3]]), (10, 5))
        [{'size': [10, 5], 'counts': 'o02a0'}]
    """
    masks, xyxy = _checked_on_cpu("paste_masks_as_rle", masks, boxes, threshold)
    height, width = (int(s) for s in image_shape)
    codes = []
    for rows, columns, (x1, y1) in _factors(masks, xyxy, height, width):
        begins = [
            changes(values.numpy() >= threshold, (x1 + start, y1), height)
            for start, values in _values_by_columns(rows, columns)
        ]
        codes.append(encode_changes(begins, height, width))
    return codes


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of whole masks.

    Works on the CPU, one mask at a time, in the part of the image where there is something: beside the result it takes
    a few bytes for each pixel of the largest object.

    Args:
        masks: `(N, H, W)`, of any type, positive where the objects are.

    Returns:
        For each mask `{"size": [H, W], "counts": text}`, as pycocotools encodes it.

    Raises:
        ValueError: the masks have another shape.

    Example:
        >>> from detectron2.layers import encode_masks
        >>> masks = torch.zeros(1, 100, 120)
        >>> masks[0, 20:60, 10:50] = 1
        >>> encode_masks(masks)[0]["size"]
        [100, 120]
    """
    if masks.dim() != 3:
        raise ValueError(f"encode_masks expects masks (N, H, W), got {tuple(masks.shape)}.")
    height, width = masks.shape[1:]
    bits = (mask if mask.dtype == torch.bool else mask > 0 for mask in masks.detach().cpu())
    parts = (crop_to_content(mask.numpy()) for mask in bits)
    return [encode_changes([changes(crop, corner_xy, height)], height, width) for crop, corner_xy in parts]


def paste_masks_in_boxes(
    masks: torch.Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """The masks of `paste_masks_in_image` one after the other, each cut to the pixels that it can reach.

    Works on the CPU; beside the mask that is asked for it takes as much as `paste_masks_as_rle`.

    Args:
        masks: `(N, h, w)`, values in [0, 1].
        boxes: `Boxes` or tensor `(N, 4)`.
        image_shape: `(H, W)` in pixels.
        threshold: a pixel belongs to the object when its value is at least this; positive.

    Returns:
        For each mask a bool array (a box and a pixel beyond, as far as it is in the image), and column and row of the
        image where its first pixel is. No pixel of the object lies outside of the array.

    Raises:
        ValueError: the shapes do not fit one another, or the threshold is not positive.

    Example:
        >>> from detectron2.layers import paste_masks_in_boxes
        >>> parts = paste_masks_in_boxes(torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 50, 60]]), (100, 120))
        >>> [(part.shape, corner_xy) for part, corner_xy in parts]
        [((42, 42), (9, 19))]
    """
    masks, xyxy = _checked_on_cpu("paste_masks_in_boxes", masks, boxes, threshold)
    return _bits_in_boxes(masks, xyxy, int(image_shape[0]), int(image_shape[1]), threshold)


def _bits_in_boxes(
    masks: torch.Tensor, xyxy: torch.Tensor, height: int, width: int, threshold: float
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    for rows, columns, corner_xy in _factors(masks, xyxy, height, width):
        bits = np.empty((rows.shape[0], columns.shape[0]), np.bool_)
        for start, values in _values_by_columns(rows, columns):
            np.greater_equal(values.numpy(), threshold, out=bits[:, start : start + values.shape[1]])
        yield bits, corner_xy


def _checked_on_cpu(
    function: str, masks: torch.Tensor, boxes: Any, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and boxes as float32 on the CPU; a threshold that pixels outside of the box pass is refused."""
    if threshold <= 0:
        raise ValueError(f"{function} expects a positive threshold, got {threshold}.")
    xyxy = _checked_xyxy(masks, boxes)
    return masks.detach().float().cpu(), xyxy.detach().float().cpu()


def _checked_xyxy(masks: torch.Tensor, boxes: Any) -> torch.Tensor:
    xyxy = (boxes if isinstance(boxes, torch.Tensor) else boxes.tensor).to(masks.device)
    if masks.dim() != 3 or xyxy.shape != (masks.shape[0], 4):
        raise ValueError(
            f"Pasting expects masks (N, h, w) and boxes (N, 4), got {tuple(masks.shape)} and {tuple(xyxy.shape)}."
        )
    return xyxy


def _describe_large_result(count: int, height: int, width: int) -> str:
    return (
        f"Pasting {count} masks into an image of {height} x {width} pixels (height x width) takes "
        f"{count * height * width / 2**30:.1f} GiB. detector_postprocess(..., mask_format='rle') gives run lengths in "
        "a small part of that, and mask_format='roi' leaves the masks as the head predicts them."
    )


def _paste_in_passes(
    masks: torch.Tensor, xyxy: torch.Tensor, height: int, width: int, threshold: float, dtype: torch.dtype
) -> torch.Tensor:
    """Compute whole images, as many at once as memory allows; nothing has to be read back from the device."""
    out = torch.empty(masks.shape[0], height, width, dtype=dtype, device=masks.device)
    per_pass = max(1, _PASS_BYTES // (height * width * 4 * 4))  # the grid (2), the samples (1), their comparison
    for part in range(0, masks.shape[0], per_pass):
        rows = slice(part, part + per_pass)
        out[rows] = _binarize(_do_paste_mask(masks[rows], xyxy[rows], height, width, False)[0], threshold)
    return out


def _binarize(values: torch.Tensor, threshold: float) -> torch.Tensor:
    return values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)


def _paste_inside_boxes(
    masks: torch.Tensor, xyxy: torch.Tensor, height: int, width: int, threshold: float, dtype: torch.dtype
) -> torch.Tensor:
    """Compute only the pixels that a mask can reach."""
    if threshold == 0:  # zero passes the threshold, also outside the box
        return torch.ones(masks.shape[0], height, width, dtype=dtype)
    out = _untouched_zeros(masks.shape[0], height, width, dtype)
    for canvas, (rows, columns, (x1, y1)) in zip(out, _factors(masks, xyxy, height, width), strict=True):
        for start, values in _values_by_columns(rows, columns):
            left = x1 + start
            canvas[y1 : y1 + values.shape[0], left : left + values.shape[1]] = _binarize(values, threshold)
    return out


@torch.jit.script_if_tracing  # a traced graph would paste as many masks as the first image has, to the same places
def _paste_in_graph(masks: torch.Tensor, xyxy: torch.Tensor, size_hw: torch.Tensor, threshold: float) -> torch.Tensor:
    """Do the work of `paste_masks_in_image` by what a script can do."""
    height, width = int(size_hw[0]), int(size_hw[1])
    y_ranges, rows = _reach_and_weights(xyxy[:, 1], xyxy[:, 3], height, masks.shape[1])
    x_ranges, columns = _reach_and_weights(xyxy[:, 0], xyxy[:, 2], width, masks.shape[2])
    out = _binarize(masks.new_zeros((masks.shape[0], 1, 1)), threshold).repeat(1, height, width)
    for i, mask in enumerate(masks):
        values = (rows[i] @ mask) @ columns[i].t()
        out[i, y_ranges[i][0] : y_ranges[i][1], x_ranges[i][0] : x_ranges[i][1]] = _binarize(values, threshold)
    return out


def _untouched_zeros(count: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that cost nothing until they are touched, and most pixels never are; torch's fill the memory at once."""
    shape = (count, height, width)
    numpy_dtype = np.bool_ if dtype == torch.bool else np.uint8
    try:
        if count * height * width < _LARGE_RESULT_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
            return torch.from_numpy(np.zeros(shape, numpy_dtype))
        # numpy asks for huge pages, of which each row of a small mask in a large image would touch another: measured
        # with 300 masks in 8000 x 4000 pixels, 2.5 times the memory.
        pages = mmap.mmap(-1, count * height * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.from_numpy(np.frombuffer(pages, numpy_dtype).reshape(shape))
    except (MemoryError, OSError) as error:
        raise MemoryError(_describe_large_result(count, height, width)) from error


def _factors(
    masks: torch.Tensor, xyxy: torch.Tensor, height: int, width: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[int, int]]]:
    """Factors `rows @ mask` and `columns`, `(pixels, w)`, of each mask where it can reach, and where that begins."""
    weight_bytes = 4 * (height * masks.shape[1] + width * masks.shape[2])  # of a box as large as the image
    together = min(max(1, _WEIGHT_BYTES // max(weight_bytes, 1)), _MASKS_PER_PART)
    for some_masks, some_xyxy in zip(masks.split(together), xyxy.split(together), strict=True):
        y_ranges, rows = _reach_and_weights(some_xyxy[:, 1], some_xyxy[:, 3], height, masks.shape[1])
        x_ranges, columns = _reach_and_weights(some_xyxy[:, 0], some_xyxy[:, 2], width, masks.shape[2])
        each = zip(some_masks, y_ranges, x_ranges, rows, columns, strict=True)
        for mask, (y1, _), (x1, _), row, column in each:
            yield _product(row, mask), column, (x1, y1)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` on the CPU; autocast would round it to half precision, which moves the edges of masks."""
    with torch.autocast("cpu", enabled=False):
        return a @ b


def _values_by_columns(rows: torch.Tensor, columns: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The product of the factors, a few columns of pixels at a time, and the number of columns before them."""
    if rows.shape[0] == 0:
        return
    together = max(1, _PIXELS_AT_ONCE // rows.shape[0])
    for start in range(0, columns.shape[0], together):
        yield start, _product(rows, columns[start : start + together].t())


def _reach_and_weights(
    start: torch.Tensor, stop: torch.Tensor, size: int, cells: int
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """First pixel of one axis that each mask is pasted to, the one after the last, and weights `(pixels, cells)`."""
    low, high = _pixel_range(start, stop)
    low, high = low.clamp(0, size).long(), high.clamp(0, size).long()
    high = high.maximum(low)
    lengths = high - low
    owner = torch.repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    pixel = torch.arange(owner.shape[0], device=low.device) + (low - first)[owner]
    position = (pixel + 0.5 - start[owner]) / (stop - start)[owner] * cells - 0.5
    weights = (1 - (position[:, None] - torch.arange(cells, device=low.device)).abs_()).clamp_(min=0)
    ranges: list[list[int]] = torch.stack([low, high], dim=1).tolist()
    sizes: list[int] = lengths.tolist()
    return ranges, list(weights.split(sizes))


def _pixel_range(start: torch.Tensor, stop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first pixel that a mask is pasted to and the one after the last: its box and a pixel beyond."""
    some = stop > start  # not of a box without extent, or with a coordinate that is not a number
    return torch.where(some, (start - 1).floor(), 0.0), torch.where(some, (stop + 1).ceil(), 0.0)


def _cell_position(start: torch.Tensor, stop: torch.Tensor, size: int, cells: int) -> torch.Tensor:
    """Where the centre of each pixel lies among the cells of a mask, `(N, size)`; -2 where it is not pasted to."""
    pixel = torch.arange(size, dtype=start.dtype, device=start.device)
    low, high = _pixel_range(start, stop)
    position = (pixel + 0.5 - start[:, None]) / (stop - start)[:, None] * cells - 0.5
    return torch.where((pixel >= low[:, None]) & (pixel < high[:, None]), position, -2.0)


def _do_paste_mask(
    masks: torch.Tensor, boxes: torch.Tensor, img_h: int, img_w: int, skip_empty: bool = True
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Resample masks `(N, [1,] h, w)` over the image or the region of all boxes: `(N, H', W')`, and its slices."""
    if masks.dim() == 3:
        masks = masks[:, None]
    mask_h, mask_w = masks.shape[2:]
    boxes = boxes.float()
    y_position = _cell_position(boxes[:, 1], boxes[:, 3], img_h, mask_h)
    x_position = _cell_position(boxes[:, 0], boxes[:, 2], img_w, mask_w)
    region: tuple[slice, ...] = ()
    if skip_empty and boxes.shape[0]:
        low = (boxes[:, :2].amin(0) - 1).floor().clamp(min=0).long().tolist()
        high = (boxes[:, 2:].amax(0) + 1).ceil().long().tolist()
        region = (slice(low[1], max(low[1], min(high[1], img_h))), slice(low[0], max(low[0], min(high[0], img_w))))
        y_position, x_position = y_position[:, region[0]], x_position[:, region[1]]
    # grid_sample's coordinates with align_corners=False: -1 and 1 are the outer edges of the first and last cell.
    y = (y_position + 0.5) * (2.0 / mask_h) - 1
    x = (x_position + 0.5) * (2.0 / mask_w) - 1
    shape = (boxes.shape[0], y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks.to(grid.dtype), grid, align_corners=False)[:, 0], region


def scale_boxes(boxes: torch.Tensor, scale: float) -> torch.Tensor:
    """Deprecated: boxes `(N, 4)` with their sides multiplied, around their centres."""
    center, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * (0.5 * scale)
    return torch.cat([center - half, center + half], dim=1)


def pad_masks(masks: torch.Tensor, padding: int) -> tuple[torch.Tensor, float]:
    """Deprecated: masks `(N, h, h)` with zeros around them, and by how much that makes their sides longer."""
    return F.pad(masks, (padding,) * 4), (masks.shape[-1] + 2 * padding) / masks.shape[-1]


def paste_mask_in_image_old(
    mask: torch.Tensor, box: torch.Tensor, img_h: int, img_w: int, threshold: float
) -> torch.Tensor:
    """Paste one mask with its box rounded to whole pixels: faster and less exact than `paste_masks_in_image`.

    Args:
        mask: `(h, w)`, values in [0, 1].
        box: `(4,)`; both corners, cut to integers, are pixels of the object.
        img_h: height of the image.
        img_w: width of the image.
        threshold: a pixel belongs to the object when its value is greater; negative keeps the values times 255.

    Returns:
        uint8 `(img_h, img_w)`.

    Example:
        >>> from detectron2.layers.mask_ops import paste_mask_in_image_old
        >>> paste_mask_in_image_old(torch.ones(28, 28), torch.tensor([10.0, 20, 50, 60]), 100, 120, 0.5).shape
        torch.Size([100, 120])
    """
    from PIL import Image

    x1, y1, x2, y2 = (int(v) for v in box.tolist())
    size_wh = (max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1))
    resized = Image.fromarray(mask.detach().float().cpu().numpy()).resize(size_wh, resample=Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(resized, copy=True))
    values = (values > threshold).to(torch.uint8) if threshold >= 0 else (values * 255).to(torch.uint8)
    out = torch.zeros(img_h, img_w, dtype=torch.uint8)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, img_w), min(y2 + 1, img_h)
    if left < right and top < bottom:
        out[top:bottom, left:right] = values[top - y1 : bottom - y1, left - x1 : right - x1]
    return out
