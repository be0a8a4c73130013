"""Results as the objects of other libraries: supervision (https://supervision.roboflow.com) and FiftyOne.

Both are optional, and are imported when they are needed.
"""

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

__all__ = ["to_fiftyone", "to_supervision"]


def to_supervision(result: Any) -> Any:
    """The objects of a `Result`, or without `instances` its panoptic segments, as `supervision.Detections`.

    Args:
        result: a `Result`.

    Returns:
        Detections with `xyxy`, whole masks where the model gives any, `confidence`, `class_id`, `tracker_id` of tracked
        objects, and in `data` the `class_name`, of rotated boxes the corners (`xyxyxyxy`, (N, 4, 2)), and `keypoints`
        (N, points, 3). The ids of segments of stuff are those of `panoptic_categories`.

    Raises:
        ImportError: supervision is not installed.
        ValueError: there is only a semantic segmentation, which supervision has no object for.

    Example:
        >>> detections = result.to_supervision()  # doctest: +SKIP
        >>> annotated = supervision.BoxAnnotator().annotate(image, detections)  # doctest: +SKIP
    """
    try:
        import supervision
    except ImportError as e:
        raise ImportError("to_supervision() needs supervision, which is not installed: pip install supervision") from e
    instances = result.instances
    if instances is None and result.panoptic_seg is None:
        if result.error is not None:
            return supervision.Detections.empty()
        raise ValueError("supervision has no object for a semantic segmentation; use result.label_map.")
    if instances is None:
        return _segments(supervision, result)
    if not instances.get_fields() or not len(instances):
        return supervision.Detections.empty()
    content = result.to_dict(masks=None)["objects"]
    data: dict[str, Any] = {"class_name": np.array(result.names)}
    boxes = instances.pred_boxes.tensor.numpy()
    if boxes.shape[1] == 5:
        data["xyxyxyxy"] = np.stack([_corners(box) for box in boxes.tolist()]).astype(np.float32)
    if instances.has("pred_keypoints"):
        data["keypoints"] = instances.pred_keypoints.numpy()
    rles, tracks = result.masks_rle, result.track_ids
    return supervision.Detections(
        xyxy=np.array([entry["box_xyxy"] for entry in content], dtype=np.float32),
        mask=None if rles is None else _decode(rles),
        confidence=instances.scores.numpy() if instances.has("scores") else None,
        class_id=np.array([entry["class_id"] for entry in content]),
        tracker_id=None if tracks is None else np.array(tracks),
        data=data,
    )


def _segments(supervision: Any, result: Any) -> Any:
    """Panoptic segments as detections."""
    segments = result.to_dict(masks="rle")["segments"]
    segments = [segment for segment in segments if segment["area"]]
    if not segments:
        return supervision.Detections.empty()
    record, _ = result.to_coco_panoptic(0)
    return supervision.Detections(
        xyxy=np.array([segment["box_xyxy"] for segment in segments], dtype=np.float32),
        mask=_decode([segment["mask"] for segment in segments]),
        class_id=np.array([info["category_id"] for info in record["segments_info"]]),
        data={"class_name": np.array([segment["class"] for segment in segments])},
    )


def to_fiftyone(result: Any) -> dict[str, Any]:
    """A `Result` as labels of FiftyOne.

    Args:
        result: a `Result`.

    Returns:
        what there is of: `detections` (`Detections` with boxes relative to the image and masks cut out at them),
        `polylines` (`Polylines`, of rotated boxes), `keypoints` (`Keypoints`; a point with the score 0 is NaN),
        `panoptic` (`Detections` of the segments), `segmentation` (`Segmentation`, whose values are the class and 1,
        because FiftyOne takes 0 for the background). Identities of tracked objects are in `index`.

    Raises:
        ImportError: FiftyOne is not installed.

    Example:
        >>> for field, label in result.to_fiftyone().items():  # doctest: +SKIP
        ...     sample[field] = label
    """
    try:
        import fiftyone
    except ImportError as e:
        raise ImportError("to_fiftyone() needs FiftyOne, which is not installed: pip install fiftyone") from e
    if result.error is not None:
        return {}
    height, width = result.size_hw
    size_wh = np.array([width, height], dtype=float)
    content = result.to_dict(masks="rle")
    labels: dict[str, Any] = {}
    objects = content["objects"]
    if objects is not None and any("box_rotated" in entry for entry in objects):
        lines = [
            fiftyone.Polyline(
                points=[(_corners(entry["box_rotated"]) / size_wh).tolist()],
                closed=True,
                filled=False,
                **_common(entry),
            )
            for entry in objects
        ]
        labels["polylines"] = fiftyone.Polylines(polylines=lines)
    elif objects is not None:
        labels["detections"] = fiftyone.Detections(detections=[_detection(fiftyone, e, size_wh) for e in objects])
    if objects and "keypoints" in objects[0]:
        labels["keypoints"] = fiftyone.Keypoints(keypoints=[_keypoint(fiftyone, e, size_wh) for e in objects])
    if content["segments"] is not None:
        segments = [segment for segment in content["segments"] if segment["area"]]
        found = [_detection(fiftyone, segment, size_wh) for segment in segments]
        labels["panoptic"] = fiftyone.Detections(detections=found)
    if result.label_map is not None:
        values = result.label_map + 1
        kind = np.uint8 if values.max(initial=0) < 256 else np.uint16
        labels["segmentation"] = fiftyone.Segmentation(mask=values.astype(kind))
    return labels


def _common(entry: dict[str, Any]) -> dict[str, Any]:
    """What all labels of an object have."""
    return {"label": entry["class"], "confidence": entry.get("score"), "index": entry.get("track_id")}


def _detection(fiftyone: Any, entry: dict[str, Any], size_wh: np.ndarray) -> Any:
    x1, y1, x2, y2 = entry["box_xyxy"]
    width, height = size_wh.tolist()
    mask = None
    if "mask" in entry:
        # FiftyOne stretches a mask over its box, whose edges lie within a pixel of these
        left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
        whole = mask_util.decode(entry["mask"]).astype(bool)
        mask = whole[top : max(math.ceil(y2), top + 1), left : max(math.ceil(x2), left + 1)]
        mask = mask if mask.size else None
    return fiftyone.Detection(
        bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height], mask=mask, **_common(entry)
    )


def _keypoint(fiftyone: Any, entry: dict[str, Any], size_wh: np.ndarray) -> Any:
    """The points of an object; the confidence is that of each point."""
    points = np.array(entry["keypoints"], dtype=float)
    places = points[:, :2] / size_wh
    places[points[:, 2] == 0] = np.nan
    common = {**_common(entry), "confidence": points[:, 2].tolist()}
    return fiftyone.Keypoint(points=[tuple(place) for place in places.tolist()], **common)


def _corners(rotated: list[float]) -> np.ndarray:
    """Corners (4, 2) of a rotated box, which is turned counter-clockwise to the eye."""
    x, y, width, height, degrees = rotated
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    local = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    return local @ np.array([[cos, -sin], [sin, cos]]) + [x, y]


def _decode(rles: list[dict[str, Any]]) -> np.ndarray:
    """Whole masks, bool (N, height, width)."""
    return np.stack([mask_util.decode(rle).astype(bool) for rle in rles])  # pyright: ignore[reportArgumentType]
