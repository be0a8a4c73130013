"""Prediction on large images tile by tile: where the tiles lie, and one result from those of all tiles.

Tiles overlap, so an object near a border is seen by several of them, by some only in part. A detection is *cut* where
it reaches a border of its tile inside the image: the object may go on there. All others are *whole*. Two detections
of different tiles are of one object when they have the same class, and the same extent as far as both tiles could
see: the IoU of the two boxes is above the threshold, after a box has been clipped to the other's tile where the other
one is cut. A cut detection also belongs to one that holds most of its area and goes on beyond the border that cuts it
(intersection over the area of the piece), since boxes of small pieces are seldom exact (after Akyon et al., "Slicing
Aided Hyper Inference", ICIP 2022, who compare all boxes in this way).

- Of whole detections of one object the one with the highest score stays. This is NMS between tiles; two detections of
  one tile are always two objects, because the model has told them apart.
- A cut detection of an object that some tile saw whole goes, whatever the scores.
- The cut detections that are left are of objects that no tile saw whole. Those of one object are joined: the box is
  the union of their boxes, the mask the union of their masks. Suppression would leave the largest piece of a large
  object, and beside it those that share too little with that piece.

Therefore every object is found whole that is at most as long, in either direction, as tiles overlap, less a fiftieth
of the tile (a box within a hundredth of the tile of a border counts as cut by it). Longer ones are found whole where
a tile happens to hold them, else put together from pieces.

Letters: `N` detections, `P` pairs of them, `C` classes. Boxes are `(x1, y1, x2, y2)` in pixels of the whole image,
unless a tile is named as their frame.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from detectron2.layers.rotated_boxes import box_table, paired_iou
from detectron2.layers.run_lengths import changes, decode_part, encode_changes
from detectron2.structures import Boxes, BoxMode, Instances, Keypoints, RotatedBoxes

__all__ = ["Tile", "iter_tiles", "merge_sem_seg", "merge_tile_outputs", "merge_tiles"]

Tile = tuple[int, int, int, int]
"""`(x1, y1, x2, y2)` in pixels of the whole image."""

_MASK_FIELDS = ("pred_masks", "pred_masks_rle")
# A box this near to a border of its tile, as a share of the tile, is cut by it: boxes of cut objects end a bit early.
_MARGIN = 0.01


def iter_tiles(
    height: int, width: int, tile: int | tuple[int, int], overlap: float | tuple[float, float] = 0.2
) -> Iterator[Tile]:
    """Cover an image with tiles of one size, row by row.

    The last tiles of rows and columns are moved inwards, so that all have the full size; only in an image that is
    smaller than a tile they end with the image.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        tile: side of the tiles in pixels, or `(height, width)`.
        overlap: the least overlap of neighbours. A float is a share of the tile, from 0 to less than 1; an int is
            pixels. Or a pair of them, `(vertical, horizontal)`.

    Returns:
        An iterator of `(x1, y1, x2, y2)` in pixels.

    Raises:
        ValueError: a size is not positive, or the overlap is negative or not less than the tile.

    Example:
        >>> from detectron2.inference.tiling import iter_tiles
        >>> list(iter_tiles(400, 1000, tile=400, overlap=100))
        [(0, 0, 400, 400), (300, 0, 700, 400), (600, 0, 1000, 400)]
    """
    sizes_hw = tile if isinstance(tile, Sequence) else (tile, tile)
    if len(sizes_hw) != 2 or not all(_is_positive_int(v) for v in (height, width, *sizes_hw)):
        raise ValueError(
            "tiles need positive whole numbers of pixels as the height and width of the image and as the tile (or a "
            f"pair for its height and width), got image {height} x {width} and tile {tile}"
        )
    overlaps = overlap if isinstance(overlap, Sequence) else (overlap, overlap)
    if len(overlaps) != 2:
        raise ValueError(f"overlap must be one number or a pair (vertical, horizontal), got {overlap!r}")
    tops, lefts = (
        _starts(int(size), int(side), _overlap_pixels(share, int(side)))
        for size, side, share in zip((height, width), sizes_hw, overlaps, strict=True)
    )
    bottoms, rights = (
        [min(start + side, size) for start in starts]
        for starts, side, size in zip((tops, lefts), sizes_hw, (height, width), strict=True)
    )
    rows, columns = list(zip(tops, bottoms, strict=True)), list(zip(lefts, rights, strict=True))
    return iter([(x1, y1, int(x2), int(y2)) for y1, y2 in rows for x1, x2 in columns])


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) > 0


def _overlap_pixels(overlap: Any, side: int) -> int:
    """The overlap of tiles of this side in pixels."""
    if isinstance(overlap, (int, np.integer)) and not isinstance(overlap, bool):
        if not 0 <= overlap < side:
            raise ValueError(
                f"an overlap of {overlap} pixels does not fit tiles of {side}: it must be at least 0 and less than "
                "the tile; for a share of the tile give a float, such as 0.2"
            )
        return int(overlap)
    if not isinstance(overlap, (float, np.floating)) or not 0 <= overlap < 1:
        raise ValueError(
            f"overlap must be a share of the tile from 0 to less than 1 (a float), or pixels (an int); got {overlap!r}"
        )
    return min(round(float(overlap) * side), side - 1)


def _starts(size: int, side: int, overlap: int) -> list[int]:
    """Where tiles of length `side` begin that cover `size` pixels."""
    return [*range(0, size - side, side - overlap), size - side] if size > side else [0]


def merge_tiles(
    outputs: Sequence[Instances],
    tiles: Sequence[Tile],
    image_size: tuple[int, int],
    *,
    threshold: float = 0.5,
    join_pieces: bool = True,
) -> Instances:
    """Put the detections of all tiles together, every object once.

    The rule is at the top of this module. Run lengths are moved without making whole masks: that takes the memory of
    one object at a time. Whole masks take a byte for each pixel of the image and each object; of a large image let
    the model give run lengths (`mask_format="rle"`).

    Args:
        outputs: detections of each tile with `pred_boxes` (upright or rotated), `scores`, and possibly `pred_classes`,
            `pred_masks` (bool `(N, h, w)`) or `pred_masks_rle`, `pred_keypoints` and other fields with one entry per
            detection; all in the frame and of the size of the tile. They are not changed.
        tiles: where each tile lies, as `iter_tiles` gives them.
        image_size: `(height, width)` of the whole image.
        threshold: detections of different tiles are of one object when they overlap more than this.
        join_pieces: whether pieces of an object that no tile saw whole are joined; else the largest of them stays.
            Rotated boxes are never joined, and are compared without being clipped.

    Returns:
        Instances of the whole image by decreasing score. Joined pieces have the highest of their scores, each of
        their keypoints where it was found with the highest score, and other fields of the largest piece.

    Raises:
        ValueError: there are no tiles, or not one output for each, or an output has another size than its tile, or
            a tile is not within the image, or a field cannot be moved to another place.

    Example:
        >>> from detectron2.inference.tiling import iter_tiles, merge_tiles
        >>> from detectron2.structures import Boxes, Instances
        >>> tiles = list(iter_tiles(100, 160, tile=100, overlap=40))  # the second begins at x = 60
        >>> left = Instances((100, 100), pred_boxes=Boxes([[50, 10, 100, 40]]), scores=torch.tensor([0.9]))  # cut
        >>> right = Instances((100, 100), pred_boxes=Boxes([[0, 10, 60, 40]]), scores=torch.tensor([0.8]))  # cut
        >>> merge_tiles([left, right], tiles, (100, 160)).pred_boxes
        Boxes(tensor([[ 50.,  10., 120.,  40.]]))
    """
    outputs, tiles = list(outputs), [(int(a), int(b), int(c), int(d)) for a, b, c, d in tiles]
    _check_outputs(outputs, tiles, image_size, threshold)
    parts = [(o, t) for o, t in zip(outputs, tiles, strict=True) if len(o)] or [(outputs[0], tiles[0])]
    merged = Instances.cat([_moved(output, tile, image_size) for output, tile in parts])
    views = _Views.of(merged, parts, image_size)
    groups = _groups_of_pieces(views, threshold)
    if views.rotated is not None or not join_pieces:
        groups = [rows[:1] for rows in groups]
    groups.sort(key=lambda rows: (-max(views.scores[rows]), rows))
    result = merged[torch.tensor([rows[0] for rows in groups], dtype=torch.int64, device=merged.scores.device)]
    _join_fields(result, merged, groups)
    sources = [(output, tile, row) for output, tile in parts for row in range(len(output))]
    for name, join in (("pred_masks", _join_masks), ("pred_masks_rle", _join_run_lengths)):
        if parts[0][0].has(name):
            result.set(name, join([[sources[row] for row in rows] for rows in groups], parts[0][0], image_size))
    return result


def _check_outputs(outputs: list[Instances], tiles: list[Tile], image_size: tuple[int, int], threshold: float) -> None:
    """Raise where outputs, tiles and image do not go together."""
    _check_tiles(len(outputs), tiles, image_size)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    for place, (output, (x1, y1, x2, y2)) in enumerate(zip(outputs, tiles, strict=True)):
        missing = [name for name in ("pred_boxes", "scores") if not output.has(name)]
        if missing:
            raise ValueError(f"the detections of tile {place} have no {missing}, only {sorted(output.get_fields())}")
        if tuple(output.image_size) != (y2 - y1, x2 - x1):
            raise ValueError(
                f"the detections of tile {place} are for {tuple(output.image_size)} pixels (height, width), the tile "
                f"has {(y2 - y1, x2 - x1)}; give detections in the frame of the tile at its full size"
            )


def _check_tiles(count: int, tiles: list[Tile], image_size: tuple[int, int]) -> None:
    """Raise where tiles are missing or not within the image."""
    if not tiles or count != len(tiles):
        raise ValueError(
            f"merging needs one output for each tile, and at least one; got {count} for {len(tiles)} tiles"
        )
    height, width = image_size
    for x1, y1, x2, y2 in tiles:
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(
                f"tile {(x1, y1, x2, y2)} (x1, y1, x2, y2) is not within the image of {height} x {width} pixels "
                "(height x width)"
            )


def _moved(output: Instances, tile: Tile, image_size: tuple[int, int]) -> Instances:
    """The detections of a tile in the frame of the image, without masks."""
    moved = Instances(image_size)
    for name, value in output.get_fields().items():
        if name in _MASK_FIELDS:
            continue
        if isinstance(value, Boxes):
            shift = value.tensor.new_tensor(tile[:2] if isinstance(value, RotatedBoxes) else (*tile[:2], *tile[:2]))
            tensor = value.tensor.clone()
            tensor[:, : len(shift)] += shift
            value = type(value)(tensor)
        elif name == "pred_keypoints":
            tensor = (value.tensor if isinstance(value, Keypoints) else value).clone()
            tensor[..., :2] += tensor.new_tensor(tile[:2])
            value = tensor
        elif not isinstance(value, (torch.Tensor, list)):
            raise ValueError(
                f"field {name!r} of a tile holds {type(value).__name__}, which cannot be moved into the whole image; "
                "remove the field"
            )
        moved.set(name, value)
    return moved


@dataclass
class _Views:
    """What tiles saw, as columns of float64: `N` detections."""

    boxes: np.ndarray
    """`(N, 4)`; of rotated boxes their upright hulls."""
    rotated: torch.Tensor | None
    """`(N, 5)`"""
    tile: np.ndarray
    """`(N, 4)`, the tile of each."""
    tile_index: np.ndarray
    """`(N,)`"""
    is_cut: np.ndarray
    """bool `(N, 4)`: left, at the top, right, at the bottom."""
    area: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, merged: Instances, parts: list[tuple[Instances, Tile]], image_size: tuple[int, int]) -> "_Views":
        boxes = merged.pred_boxes.tensor.detach().cpu().double()
        is_rotated = isinstance(merged.pred_boxes, RotatedBoxes)
        xyxy = (BoxMode.convert(boxes, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS) if is_rotated else boxes).numpy()
        tile_index = np.repeat(np.arange(len(parts)), [len(output) for output, _ in parts])
        tile = np.array([tile for _, tile in parts], np.float64)[tile_index]
        margin = _MARGIN * np.tile(tile[:, 2:] - tile[:, :2], 2)
        is_inside = np.concatenate([tile[:, :2] > 0, tile[:, 2:] < np.array(image_size[::-1])], axis=1)
        is_near = np.concatenate([xyxy[:, :2] - tile[:, :2], tile[:, 2:] - xyxy[:, 2:]], axis=1) <= margin
        has_classes = merged.has("pred_classes")
        return cls(
            boxes=xyxy,
            rotated=boxes if is_rotated else None,
            tile=tile,
            tile_index=tile_index,
            is_cut=is_inside & is_near,
            area=(boxes[:, 2] * boxes[:, 3]).numpy() if is_rotated else _area(xyxy),
            scores=merged.scores.detach().cpu().double().numpy(),
            classes=merged.pred_classes.cpu().numpy() if has_classes else np.zeros(len(boxes), np.int64),
        )

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all pairs of a class whose boxes overlap, each from another tile; the first is the earlier one."""
        starts = np.searchsorted(self.tile_index, np.arange(self.tile_index.max(initial=-1) + 2)).tolist()
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for start, stop in pairwise(starts):
            own = self.boxes[start:stop]
            reach = np.concatenate([own[:, :2].min(axis=0), own[:, 2:].max(axis=0)])
            later = np.flatnonzero(_area(_clip(self.boxes[stop:], reach)) > 0) + stop
            is_pair = _area(_clip(own[:, None], self.boxes[None, later])) > 0
            row, column = np.nonzero(is_pair & (self.classes[start:stop, None] == self.classes[None, later]))
            found.append((row + start, later[column]))
        first, second = (np.concatenate(rows) for rows in zip(*found, strict=True))
        return first, second

    def overlap(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU of pairs as far as both tiles could see, and the area that they share, `(P,)`."""
        if self.rotated is not None:
            table = box_table(self.rotated)
            iou = paired_iou(table, table, torch.from_numpy(i), torch.from_numpy(j)).numpy()
            return iou, iou * (self.area[i] + self.area[j]) / (1 + iou)
        first, second = self.boxes[i], self.boxes[j]
        any_cut = np.asarray(self.is_cut.any(axis=1))
        seen_first = np.where(any_cut[j, None], _clip(first, self.tile[j]), first)
        seen_second = np.where(any_cut[i, None], _clip(second, self.tile[i]), second)
        shared = _area(_clip(seen_first, seen_second))
        union = _area(seen_first) + _area(seen_second) - shared
        iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        return iou, _area(_clip(first, second))

    def goes_on(self, piece: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether `other` goes on beyond a border that cuts `piece`, bool `(P,)`."""
        boxes, tile = self.boxes[other], self.tile[piece]
        beyond = np.concatenate([boxes[:, :2] < tile[:, :2], boxes[:, 2:] > tile[:, 2:]], axis=1)
        return np.asarray((self.is_cut[piece] & beyond).any(axis=1))


def _area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes `(..., 4)`; 0 of those that are inside out."""
    return np.clip(boxes[..., 2] - boxes[..., 0], 0, None) * np.clip(boxes[..., 3] - boxes[..., 1], 0, None)


def _clip(boxes: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The part of boxes `(..., 4)` within others; inside out where there is none."""
    return np.concatenate([np.maximum(boxes[..., :2], to[..., :2]), np.minimum(boxes[..., 2:], to[..., 2:])], axis=-1)


def _groups_of_pieces(views: _Views, threshold: float) -> list[list[int]]:
    """Rows of each object: of one seen whole the best row alone, else all its pieces, the largest first."""
    i, j = views.pairs()
    iou, shared = views.overlap(i, j)
    is_whole = ~np.asarray(views.is_cut.any(axis=1))
    is_same = iou > threshold
    is_gone = _suppressed(i, j, is_same & is_whole[i] & is_whole[j], views.scores)
    is_piece = []
    for piece, other in ((i, j), (j, i)):
        within = ~is_whole[piece] & (shared > threshold * views.area[piece]) & views.goes_on(piece, other)
        is_piece.append(within | is_same)
        # A piece also goes with a whole detection that another one suppressed: it was a piece of the same object.
        is_gone[piece[is_piece[-1] & ~is_whole[piece] & is_whole[other]]] = True
    left = np.flatnonzero((is_piece[0] | is_piece[1]) & ~(is_whole | is_gone)[i] & ~(is_whole | is_gone)[j])
    left = left[np.lexsort((-shared[left], -iou[left]))]
    groups = {row: [row] for row in np.flatnonzero(~is_gone).tolist()}
    for first, second in zip(i[left].tolist(), j[left].tolist(), strict=True):
        rows, others = groups[first], groups[second]
        # A tile sees an object once. This holds apart what lies side by side across a narrow overlap.
        if rows is others or set(views.tile_index[rows]) & set(views.tile_index[others]):
            continue
        rows += others
        groups.update(dict.fromkeys(others, rows))
    unique = {id(rows): rows for rows in groups.values()}
    return [sorted(rows, key=lambda row: (-views.area[row], row)) for rows in unique.values()]


def _suppressed(i: np.ndarray, j: np.ndarray, is_same: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Greedy NMS over the pairs that are the same: which rows go, bool `(N,)`."""
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    first, second = i[is_same], j[is_same]
    winner, loser = np.where(rank[first] < rank[second], (first, second), (second, first))
    order = np.argsort(rank[winner], kind="stable")
    is_gone = np.zeros(len(scores), np.bool_)
    for better, worse in zip(winner[order].tolist(), loser[order].tolist(), strict=True):
        is_gone[worse] |= not is_gone[better]
    return is_gone


def _join_fields(result: Instances, merged: Instances, groups: list[list[int]]) -> None:
    """Set boxes, scores and keypoints of objects that are joined from several pieces."""
    for place, rows in enumerate(groups):
        if len(rows) == 1:
            continue
        boxes = merged.pred_boxes.tensor[rows]
        result.pred_boxes.tensor[place] = torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])
        result.scores[place] = merged.scores[rows].max()
        if merged.has("pred_keypoints"):
            keypoints = merged.pred_keypoints[rows]
            best = keypoints[..., 2].argmax(dim=0)
            result.pred_keypoints[place] = keypoints[best, torch.arange(len(best), device=best.device)]


_Source = tuple[Instances, Tile, int]  # detections of a tile, where it lies, and the row in them


def _join_masks(groups: list[list[_Source]], like: Instances, image_size: tuple[int, int]) -> torch.Tensor:
    """Whole masks of all groups."""
    if not isinstance(like.pred_masks, torch.Tensor) or like.pred_masks.dim() != 3:
        raise ValueError(
            f"pred_masks of tiles must be tensors (N, height, width), got {type(like.pred_masks).__name__}; let the "
            "model paste its masks: mask_format='rle' or 'full'"
        )
    kind, shape = like.pred_masks, (len(groups), *image_size)
    try:
        if kind.device.type == "cpu" and kind.dtype == torch.bool:
            out = torch.from_numpy(np.zeros(shape, np.bool_))  # takes no memory until it is written to
        else:
            out = kind.new_zeros(shape)
    except MemoryError as error:
        raise MemoryError(
            f"{shape[0]} masks of {image_size[0]} x {image_size[1]} pixels (height x width) take "
            f"{math.prod(shape) / 2**30:.1f} GiB; run lengths (mask_format='rle') take a small part of that"
        ) from error
    for canvas, sources in zip(out, groups, strict=True):
        for output, (x1, y1, x2, y2), row in sources:
            part = canvas[y1:y2, x1:x2]
            part.copy_(torch.maximum(part, output.pred_masks[row]))
    return out


def _join_run_lengths(
    groups: list[list[_Source]], like: Instances, image_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Run lengths of all groups; no mask is larger than its object."""
    height, width = (int(v) for v in image_size)
    codes = []
    for sources in groups:
        parts = [decode_part(output.pred_masks_rle[row]) for output, _, row in sources]
        corners = [(x + tile[0], y + tile[1]) for (_, (x, y)), (_, tile, _) in zip(parts, sources, strict=True)]
        bits, corner_xy = _union([part for part, _ in parts], corners)
        codes.append(encode_changes([changes(bits, corner_xy, height)], height, width))
    return codes


def _union(parts: list[np.ndarray], corners: list[tuple[int, int]]) -> tuple[np.ndarray, tuple[int, int]]:
    """One part of the image with all parts in it, and column and row of its first pixel."""
    filled = [place for place, part in enumerate(parts) if part.size]
    if len(filled) <= 1:
        return (parts[filled[0]], corners[filled[0]]) if filled else (parts[0], corners[0])
    boxes = np.array(
        [(*corners[p], corners[p][0] + parts[p].shape[1], corners[p][1] + parts[p].shape[0]) for p in filled]
    )
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    bits = np.zeros((bottom - top, right - left), np.bool_)
    for place, (x1, y1, x2, y2) in zip(filled, boxes.tolist(), strict=True):
        bits[y1 - top : y2 - top, x1 - left : x2 - left] |= parts[place]
    return bits, (left, top)


def merge_sem_seg(scores: Iterable[torch.Tensor], tiles: Sequence[Tile], image_size: tuple[int, int]) -> torch.Tensor:
    """Put the semantic scores of all tiles together.

    Where tiles overlap, a pixel has the mean of their scores, weighted by how far it lies from the borders of the tile
    that are inside the image: a model knows least where it sees little around a pixel, and there is no seam.

    Args:
        scores: of each tile, `(C, h, w)`; an iterator is read once, so that only one tile has to be there at a time.
        tiles: where each tile lies, as `iter_tiles` gives them; together they cover the image.
        image_size: `(height, width)` of the whole image.

    Returns:
        `(C, height, width)`, of the type of the scores, at least float32.

    Raises:
        ValueError: there are no tiles, or not one `(C, h, w)` of its size for each, or they do not cover the image.

    Example:
        >>> from detectron2.inference.tiling import iter_tiles, merge_sem_seg
        >>> tiles = list(iter_tiles(1, 6, tile=4, overlap=2))
        >>> merge_sem_seg([torch.zeros(1, 1, 4), torch.ones(1, 1, 4)], tiles, (1, 6))
        tensor([[[0.0000, 0.0000, 0.2500, 0.7500, 1.0000, 1.0000]]])
    """
    tiles = [(int(a), int(b), int(c), int(d)) for a, b, c, d in tiles]
    _check_tiles(len(tiles), tiles, image_size)
    total = weights = None
    count = 0
    for count, tile_scores in enumerate(scores, start=1):
        x1, y1, x2, y2 = tiles[min(count, len(tiles)) - 1]
        classes = tile_scores.shape[0] if total is None else total.shape[0]
        if count > len(tiles) or tuple(tile_scores.shape) != (classes, y2 - y1, x2 - x1):
            raise ValueError(
                f"expected scores of {len(tiles)} tiles; number {count} has the shape {tuple(tile_scores.shape)}, and "
                f"its tile is {(classes, y2 - y1, x2 - x1)} (classes, height, width)"
            )
        if total is None or weights is None:
            dtype = torch.promote_types(tile_scores.dtype, torch.float32)
            total = torch.zeros((classes, *image_size), dtype=dtype, device=tile_scores.device)
            weights = torch.zeros(tuple(image_size), dtype=dtype, device=tile_scores.device)
        rows, columns = _from_border(y1, y2, image_size[0]), _from_border(x1, x2, image_size[1])
        weight = (rows[:, None] * columns[None]).to(weights)
        total[:, y1:y2, x1:x2] += weight * tile_scores
        weights[y1:y2, x1:x2] += weight
    if count < len(tiles) or total is None or weights is None:
        raise ValueError(f"expected scores of {len(tiles)} tiles, got {count}")
    if not weights.all():
        raise ValueError(f"the tiles do not cover the image of {image_size[0]} x {image_size[1]} (height x width)")
    return total.div_(weights)


def _from_border(start: int, stop: int, size: int) -> torch.Tensor:
    """How far each pixel of a tile is from its nearest border inside the image, along one axis; without any, 1."""
    centers = torch.arange(stop - start) + 0.5
    if start == 0:
        return stop - centers if stop < size else torch.ones_like(centers)
    return torch.minimum(centers, stop - start - centers) if stop < size else centers


def merge_tile_outputs(
    outputs: Sequence[dict[str, Any]], tiles: Sequence[Tile], image_size: tuple[int, int], **kwargs: Any
) -> dict[str, Any]:
    """Put the outputs of a model for all tiles together: instances and semantic scores.

    Args:
        outputs: of each tile the model's dictionary with `instances`, `sem_seg` or both.
        tiles: where each tile lies, as `iter_tiles` gives them.
        image_size: `(height, width)` of the whole image.
        **kwargs: `threshold` and `join_pieces` of `merge_tiles`.

    Returns:
        A dictionary like that of a tile, for the whole image.

    Raises:
        ValueError: there is something in the outputs that cannot be merged, such as `panoptic_seg`, or the outputs
            do not fit the tiles.

    Example:
        >>> from detectron2.inference.tiling import merge_tile_outputs
        >>> from detectron2.structures import Boxes, Instances
        >>> found = Instances((20, 30), pred_boxes=Boxes([[1, 2, 9, 9]]), scores=torch.tensor([0.9]))
        >>> merge_tile_outputs([{"instances": found}], [(0, 0, 30, 20)], (20, 30))["instances"].pred_boxes
        Boxes(tensor([[1., 2., 9., 9.]]))
    """
    if not outputs:
        raise ValueError("merging needs the output of at least one tile")
    names = set(outputs[0])
    if others := names - {"instances", "sem_seg"}:
        raise ValueError(
            f"{sorted(others)} of tiles cannot be merged, only instances and sem_seg can: a segment that goes on in "
            "another tile has another number there. Remove them from the outputs, or predict the whole image at once"
        )
    if any(set(output) != names for output in outputs):
        raise ValueError(f"all tiles need the same outputs; the first has {sorted(names)}")
    merged: dict[str, Any] = {}
    if "instances" in names:
        merged["instances"] = merge_tiles([o["instances"] for o in outputs], tiles, image_size, **kwargs)
    if "sem_seg" in names:
        merged["sem_seg"] = merge_sem_seg((o["sem_seg"] for o in outputs), tiles, image_size)
    return merged
