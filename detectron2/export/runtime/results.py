"""From the outputs of an exported model to results in the frame of the image, with NumPy.

The results are those of the models in PyTorch, from the same outputs.

Letters: `D` detections, `K` keypoints, `C` classes, `M` and `S` sides of a predicted mask and heat map, `H`, `W` height
and width of the image in pixels. Boxes are `(x1, y1, x2, y2)` in pixels, continuous: pixel `i` covers `[i, i + 1]`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .images import resized_size
from .mask_classification import results_of_queries
from .resizing import bands, labels_of, resized, unpadded

__all__ = ["class_name", "find_keypoints", "paste_masks", "postprocess", "regions", "to_json"]

_POINTS_AT_ONCE = 1 << 18  # distances between pixels and centres that are computed together


def postprocess(
    outputs: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    index: int,
    original_size: tuple[int, int],
    image_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Bring the outputs of the model for one image into the frame of the original image.

    Args:
        outputs: arrays by name, as the model gives them for a batch.
        meta: what `model.json` says.
        index: which image of the batch.
        original_size: `(height, width)` of the image before it was resized.
        image_size: `(height, width)` to which it was resized; by default what `preprocess` makes of `original_size`.

    Returns:
        What the task has of: `boxes` float32 `[D, 4]`, clipped to the image, without empty ones; `scores` float32
        `[D]`; `classes` int64 `[D]`; `masks` bool `[D, H, W]`; `keypoints` float32 `[D, K, 3]` of x, y and the
        probability of the point; `sem_seg` int32 `[H, W]`, a class for each pixel; `panoptic` int32 `[H, W]`, the id
        of the segment of each pixel; `segments`, a dictionary for each segment with `id`, `isthing`, `category_id`,
        and `score` and `instance_id` (the row of it in the other arrays) of things; where both come from queries, all
        have a `score` and none the other. Pixels of no segment have an id that no segment has: 0, or -1 of
        Panoptic-DeepLab.
    """
    if image_size is None:
        image_size = resized_size(original_size, meta)
    if meta["task"] == "panoptic_deeplab":
        return _deeplab(outputs, meta["panoptic"], index, original_size, image_size)
    if meta["task"] == "mask_classification":
        padded_h, padded_w = outputs["padded_sizes"][index].tolist()
        return results_of_queries(
            outputs["class_scores"][index],
            outputs["mask_logits"][index],
            meta["mask_classification"],
            ((padded_h, padded_w), image_size, original_size),
            meta.get("score_threshold") or 0.0,
            meta.get("max_detections"),
        )
    result: dict[str, Any] = {}
    if "boxes" in outputs:
        result = _instances(_rows_of_image(outputs, index), meta, original_size, image_size)
    if "sem_seg" in outputs:
        result["sem_seg"] = labels_of(unpadded(outputs["sem_seg"][index], image_size), original_size)
    if meta["task"] == "panoptic":
        result["panoptic"], result["segments"] = _merge(result, meta["panoptic"])
    return result


def _rows_of_image(outputs: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Detections of one image: of a padded batch, or of a flat list with the image of each row."""
    names = [n for n in ("boxes", "scores", "classes", "masks", "keypoint_heatmaps") if n in outputs]
    if "image_index" in outputs:
        mine = outputs["image_index"] == index
        return {name: outputs[name][mine] for name in names}
    return {name: outputs[name][index, : int(outputs["count"][index])] for name in names}


def _instances(
    rows: Mapping[str, np.ndarray], meta: Mapping[str, Any], original_size: tuple[int, int], image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    scale_xy = original_size[1] / image_size[1], original_size[0] / image_size[0]
    boxes: Any = rows["boxes"].astype(np.float32)
    for axis in (0, 1):
        boxes[:, axis::2] = (boxes[:, axis::2] * scale_xy[axis]).clip(0, original_size[1 - axis])
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    result = {"boxes": boxes[kept], "scores": rows["scores"][kept].astype(np.float32)}
    if "classes" in rows:
        result["classes"] = rows["classes"][kept].astype(np.int64)
    if "masks" in rows:
        masks = rows["masks"][kept]
        threshold = meta.get("mask_threshold") or 0.5
        if meta.get("masks") == "pasted":
            result["masks"] = _resized_bits(masks, original_size, image_size)
        else:
            result["masks"] = paste_masks(masks, result["boxes"], original_size, threshold)
    if "keypoint_heatmaps" in rows:
        keypoints = find_keypoints(rows["keypoint_heatmaps"][kept], rows["boxes"][kept])
        for axis in (0, 1):
            keypoints[:, :, axis] *= scale_xy[axis]
        result["keypoints"] = keypoints
    return result


def _resized_bits(masks: np.ndarray, original_size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Masks `[D, h, w]` of 0 and 1 in the frame of the model's input, in that of the original image."""
    bits = np.zeros((len(masks), *original_size), np.bool_)
    for out, mask in zip(bits, masks, strict=True):
        out[:] = resized(unpadded(mask[None], image_size).astype(np.float32), original_size)[0] >= 0.5
    return bits


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Resample masks `[D, M, M]` of probabilities to their boxes in an image; bool `[D, H, W]`.

    A mask is a signal sampled at the centres of its cells, zero around them, interpolated bilinearly at the centres of
    the image's pixels, up to one pixel beyond the box. A pixel belongs to the object from the threshold on.
    """
    pasted = np.zeros((len(masks), *size), np.bool_)
    for out, mask, (x1, y1, x2, y2) in zip(pasted, masks.astype(np.float32), boxes.astype(np.float32), strict=True):
        top, rows = _paste_weights(y1, y2, size[0], mask.shape[0])
        left, columns = _paste_weights(x1, x2, size[1], mask.shape[1])
        out[top : top + len(rows), left : left + len(columns)] = rows @ mask @ columns.T >= threshold
    return pasted


def _paste_weights(start: np.float32, stop: np.float32, size: int, cells: int) -> tuple[int, np.ndarray]:
    """Along one axis: the first pixel that a mask is pasted to, and the weights `(pixels, cells)` from there on."""
    if not stop > start:
        return 0, np.zeros((0, cells), np.float32)
    low, high = (int(np.clip(v, 0, size)) for v in (np.floor(start - 1), np.ceil(stop + 1)))
    pixels = np.arange(low, max(low, high), dtype=np.float32)
    with np.errstate(over="ignore"):  # of a box that is hardly wider than nothing
        position = (pixels + np.float32(0.5) - start) / (stop - start) * np.float32(cells) - np.float32(0.5)
    return low, np.maximum(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0)


def find_keypoints(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Find the peak of every heat map after enlarging it bicubically to the size of its region.

    Args:
        maps: logits `[D, K, S, S]`.
        boxes: `[D, 4]`, the regions, in the frame of the model's input.

    Returns:
        float32 `[D, K, 3]` of x and y in the frame of the boxes, and the probability of the peak under a softmax over
        the cells of the map.
    """
    maps, boxes = maps.astype(np.float32), boxes.astype(np.float32)
    found = np.zeros((*maps.shape[:2], 3), np.float32)
    per_region: Any = zip(found, maps, boxes, strict=True)
    for out, map_, box in per_region:
        size_wh = np.maximum(box[2:] - box[:2], 1)
        cells_w, cells_h = (int(v) for v in np.ceil(size_wh))
        rows, columns = _cubic_weights(maps.shape[2], cells_h), _cubic_weights(maps.shape[3], cells_w)
        large = (rows @ map_ @ columns.T).reshape(len(map_), -1)
        peak = large.argmax(axis=1)
        cell_xy = np.stack([peak % cells_w, peak // cells_w], axis=1).astype(np.float32)
        out[:, :2] = (cell_xy + np.float32(0.5)) * (size_wh / np.ceil(size_wh)) + box[:2]
        with np.errstate(divide="ignore"):  # far above all cells, as it can be before a model is trained
            out[:, 2] = 1 / np.exp(map_ - large.max(axis=1)[:, None, None]).sum(axis=(1, 2))
    return found


def _cubic_weights(size: int, new_size: int) -> np.ndarray:
    """Weights `(new_size, size)` of bicubic interpolation (Keys 1981, a = -0.75) with the edge cells repeated."""
    position = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * np.float32(size / new_size) - np.float32(0.5)
    first = np.floor(position).astype(np.int64)
    weights = np.zeros((new_size, size), np.float32)
    for tap in range(-1, 3):
        d = np.abs(position - (first + tap)).astype(np.float32)
        near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
        np.add.at(weights, (np.arange(new_size), (first + tap).clip(0, size - 1)), np.where(d <= 1, near, far))
    return weights


def _merge(result: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Panoptic FPN: instances claim pixels, the best first, then stuff takes what is left.

    Label 0 of `sem_seg` stands for all things.
    """
    labels = result["sem_seg"]
    owner = np.zeros(labels.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for row in np.argsort(-result["scores"], kind="stable").tolist():
        score = float(result["scores"][row])
        if score < options["instance_threshold"]:
            break
        mask = result["masks"][row]
        free = mask & (owner == 0)
        area, left = int(mask.sum()), int(free.sum())
        if left == 0 or (area - left) / area > options["overlap_threshold"]:
            continue
        thing = {"id": len(segments) + 1, "isthing": True, "score": score}
        segments.append({**thing, "category_id": int(result["classes"][row]), "instance_id": row})
        owner[free] = len(segments)
    free_labels = np.where(owner == 0, labels, 0)
    for label, area in enumerate(np.bincount(free_labels.ravel()).tolist()):
        if label == 0 or area == 0 or area < options["stuff_area"]:
            continue
        segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
        owner[free_labels == label] = len(segments)
    return owner, segments


def _deeplab(
    outputs: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    index: int,
    size: tuple[int, int],
    image_size: tuple[int, int],
) -> dict[str, Any]:
    """Panoptic-DeepLab (https://arxiv.org/abs/1911.10194, section 3): pixels of things go to the nearest centre."""
    scores, center, offset = (unpadded(outputs[name][index], image_size) for name in ("sem_seg", "center", "offset"))
    labels = labels_of(scores, size)
    heatmap = resized(center, size)[0]
    # Offsets are distances in the image, and are resized with it.
    offset = (
        resized(offset, size) * np.array([size[0] / image_size[0], size[1] / image_size[1]], np.float32)[:, None, None]
    )
    things = np.isin(labels, options["thing_ids"])
    centers = _find_centers(heatmap, options["center_threshold"], options["nms_kernel"], options["top_k"])
    instances = np.zeros(size, np.int64)
    if len(centers):
        y, x = np.nonzero(things)
        instances[y, x] = _nearest(offset[:, y, x].T + np.stack([y, x], axis=1).astype(np.float32), centers) + 1
    panoptic = _merge_deeplab(labels, instances, options)
    return {"sem_seg": labels, "panoptic": panoptic, **_deeplab_segments(panoptic, scores, heatmap, options)}


def _find_centers(heatmap: np.ndarray, threshold: float, kernel: int, top_k: int) -> np.ndarray:
    """The peaks `[P, 2]` (y, x) of a map: above the threshold, and the highest of a square of `kernel` pixels."""
    half, highest = kernel // 2, heatmap
    for axis in (0, 1):
        around = [(half, half) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(highest, around, constant_values=-np.inf)
        highest = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=axis).max(axis=-1)
    peaks = np.argwhere((heatmap == highest) & (heatmap > max(threshold, 0.0)))
    if len(peaks) > top_k:
        best = np.argsort(-heatmap[peaks[:, 0], peaks[:, 1]], kind="stable")[:top_k]
        peaks = peaks[np.sort(best)]
    return peaks


def _nearest(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Index of the centre `[P, 2]` nearest to each point `[Q, 2]`."""
    points, centers = points.astype(np.float64), centers.astype(np.float64)
    # |p - c|^2 = |p|^2 - 2pc + |c|^2, of which the first does not depend on the centre.
    factors, constants = -2 * centers.T, (centers**2).sum(axis=1)
    step = max(1, _POINTS_AT_ONCE // len(centers))
    parts = [points[i : i + step] for i in range(0, len(points), step)]
    return np.concatenate([np.zeros(0, np.int64), *((part @ factors + constants).argmin(axis=1) for part in parts)])


def _merge_deeplab(labels: np.ndarray, instances: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Ids `label * label_divisor + number`: the number is 0 for stuff, 1, 2 ... for things of a label; -1 for none."""
    divisor, num_labels = options["label_divisor"], int(labels.max()) + 1
    pairs = np.bincount((instances * num_labels + labels).ravel(), minlength=(instances.max() + 1) * num_labels)
    pairs = pairs.reshape(-1, num_labels)
    id_of_instance = np.full(len(pairs), -1, np.int32)
    numbers: Counter[int] = Counter()
    for i in range(1, len(pairs)):
        if pairs[i].max() > 0:
            label = int(pairs[i].argmax())
            numbers[label] += 1
            id_of_instance[i] = label * divisor + numbers[label]
    id_of_label = np.full(num_labels, -1, np.int32)
    for label, area in enumerate(pairs[0].tolist()):
        if area > 0 and area >= options["stuff_area"] and label not in options["thing_ids"]:
            id_of_label[label] = label * divisor
    return np.where(instances > 0, id_of_instance[instances], id_of_label[labels])


def _deeplab_segments(
    panoptic: np.ndarray, scores: np.ndarray, heatmap: np.ndarray, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Segments of a map, and its things as detections.

    The score of a thing is the mean probability of its class over its pixels, times the map of centres at its centre
    of mass.
    """
    ids, areas = np.unique(panoptic, return_counts=True)
    ids, areas = ids[ids >= 0], areas[ids >= 0]
    classes = ids // options["label_divisor"]
    is_thing = np.isin(classes, options["thing_ids"])
    things, thing_classes = ids[is_thing], classes[is_thing].astype(np.int64)
    sums = np.zeros(len(things))
    for band, part in bands(scores, panoptic.shape):
        here = panoptic[band]
        y, x = np.nonzero(np.isin(here, things))
        row, at = np.searchsorted(things, here[y, x]), part[:, y, x]
        shifted = at - at.max(axis=0, initial=-np.inf)
        probability = np.exp(shifted[thing_classes[row], np.arange(len(row))]) / np.exp(shifted).sum(axis=0)
        sums += np.bincount(row, probability, minlength=len(things))
    masks = panoptic[None] == things[:, None, None]
    boxes, found = np.zeros((len(things), 4), np.float32), np.zeros(len(things), np.float32)
    for i, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        boxes[i] = x.min(), y.min(), x.max() + 1, y.max() + 1
        found[i] = np.float32(sums[i] / len(y)) * heatmap[int(y.mean()), int(x.mean())]
    segments = []
    rows = iter(range(len(things)))
    for id_, label, thing, area in zip(ids.tolist(), classes.tolist(), is_thing.tolist(), areas.tolist(), strict=True):
        segment = {"id": id_, "isthing": thing, "category_id": label}
        row = next(rows) if thing else 0
        segments.append({**segment, **({"score": float(found[row]), "instance_id": row} if thing else {"area": area})})
    return {"segments": segments, "boxes": boxes, "scores": found, "classes": thing_classes, "masks": masks}


def to_json(result: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a result into what `json.dump` writes.

    Args:
        result: of a `Predictor`.
        meta: what `model.json` says.

    Returns:
        "instances" and "segments", lists of dictionaries with names of classes. Masks are COCO's uncompressed run
        lengths: `size` (height, width) and `counts` of pixels, column by column, beginning with those outside.
    """
    out: dict[str, Any] = {}
    if "boxes" in result:
        out["instances"] = []
        for row, box in enumerate(result["boxes"].tolist()):
            instance: dict[str, Any] = {"box": box, "score": float(result["scores"][row])}
            if "classes" in result:
                label = int(result["classes"][row])
                instance.update({"class": label, "name": class_name(meta, label, True)})
            if "keypoints" in result:
                instance["keypoints"] = result["keypoints"][row].tolist()
            if "masks" in result:
                instance["mask"] = _run_lengths(result["masks"][row])
            out["instances"].append(instance)
    if "sem_seg" in result or "segments" in result:
        out["segments"] = []
        for thing, label, score, mask in regions(result):
            segment = {
                "isthing": thing,
                "class": label,
                "name": class_name(meta, label, thing),
                "mask": _run_lengths(mask),
            }
            out["segments"].append(segment if score is None else {**segment, "score": score})
    return out


def regions(result: Mapping[str, Any]) -> Iterator[tuple[bool, int, float | None, np.ndarray]]:
    """Yield for each part of a segmented image whether it is a thing, its class, its score if it has one, and mask."""
    if "segments" in result:
        for s in result["segments"]:
            yield s["isthing"], s["category_id"], s.get("score"), result["panoptic"] == s["id"]
    else:
        for label in np.unique(result["sem_seg"]).tolist():
            yield False, label, None, result["sem_seg"] == label


def class_name(meta: Mapping[str, Any], label: int, is_thing: bool) -> str:
    """Return the name of a class of things or of stuff; "class 3" and the like where there is none."""
    names = meta.get("classes" if is_thing else "stuff_classes") or []
    return names[label] if label < len(names) else f"class {label}"


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    columns = np.flatnonzero(mask.any(axis=0))
    first, last = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    bits = np.concatenate([[False], mask[:, first:last].ravel(order="F"), [False]])
    changes = np.flatnonzero(bits[1:] != bits[:-1]) + first * len(mask)
    ends = [0, *changes[changes < mask.size].tolist(), mask.size]
    return {"size": list(mask.shape), "counts": np.diff(ends).tolist()}
