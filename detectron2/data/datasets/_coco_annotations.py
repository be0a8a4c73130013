"""From annotations of a file in the COCO format to those of a dataset dict.

Millions of them are converted one by one, so each check is one call that accepts what is right; only what it refuses
is looked at more closely.
"""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from detectron2.data.datasets._reading import (
    AnnotationFileError,
    checked_id,
    describe,
    find_duplicates,
    is_polygon,
    shorten,
)
from detectron2.data.datasets._run_lengths import is_compressed, run_length_totals, run_lengths
from detectron2.structures import BoxMode

__all__ = ["AnnotationConverter", "check_annotation_ids"]

logger = logging.getLogger("detectron2.data.datasets.coco")

# Far more pixels than any image has; beyond it, float32 and the drawing of polygons have no use for a number.
_LARGEST = 1e7


def check_annotation_ids(annotations: list[dict[str, Any]], json_file: Any) -> None:
    """Check that no two annotations have the same id.

    Args:
        annotations: those of the file; ids are optional.
        json_file: the file, for messages.

    Raises:
        ValueError: an id occurs twice, or is neither a number nor a string.
    """
    ids = [a["id"] for a in annotations if a.get("id") is not None]
    if set(map(type, ids)) - {int, str}:
        ids = [
            checked_id(a["id"], json_file, f"annotations[{index}]")
            for index, a in enumerate(annotations)
            if a.get("id") is not None
        ]
    # The ids of the published 2014 "minival" files are known not to be unique; nothing depends on them.
    if len(set(ids)) != len(ids) and "minival" not in os.path.basename(os.fspath(json_file)):
        raise AnnotationFileError(
            json_file,
            "annotations",
            f"several annotations have the same id: {shorten(find_duplicates(ids))}. Evaluation would count only one "
            "of them; give each annotation its own id.",
        )


class AnnotationConverter:
    """Turns annotations of the file into those of a dataset dict, and counts what it had to leave out.

    Args:
        json_file: the file, for messages.
        labels: the label of each category id; None leaves the ids as they are.
        records: dataset dicts by image id, for the size that masks must have.
        extra_keys: further keys to hand through.
    """

    def __init__(
        self,
        json_file: Any,
        labels: Mapping[int | str, int] | None,
        records: Mapping[Any, dict[str, Any]],
        extra_keys: list[str],
    ) -> None:
        self._json_file = json_file
        self._labels = labels
        self._records = records
        self._extra_keys = extra_keys
        self._without_valid_polygon: list[Any] = []
        self._compressed: list[tuple[Any, Any, str, int]] = []  # annotation id, image id, text, number of pixels

    def __call__(self, annotation: dict[str, Any]) -> dict[str, Any] | None:
        """Convert one annotation, whose image is among the records; None if no polygon of it has three points."""
        converted: dict[str, Any] = {}
        if annotation.get("ignore"):
            raise self._error(annotation, "'ignore' is not supported; mark regions to be left out with 'iscrowd': 1")
        crowd = annotation.get("iscrowd")
        if crowd is not None:
            if crowd not in (0, 1):
                raise self._error(annotation, f"'iscrowd' must be 0 or 1, not {describe(crowd)}")
            converted["iscrowd"] = int(crowd)

        box = annotation.get("bbox")
        if box is not None:
            self._check_box(annotation, box)
            converted["bbox"] = box
        converted["bbox_mode"] = BoxMode.XYWHA_ABS if box is not None and len(box) == 5 else BoxMode.XYWH_ABS

        segmentation = annotation.get("segmentation")
        if segmentation:
            segmentation = self._segmentation(annotation, segmentation)
            if segmentation is None:
                return None
            converted["segmentation"] = segmentation
        elif segmentation not in (None, [], {}):
            raise self._segmentation_error(annotation, segmentation)

        keypoints = annotation.get("keypoints")
        if keypoints is not None:
            self._check_keypoints(annotation, keypoints)
            moved = [v + 0.5 for v in keypoints]
            moved[2::3] = keypoints[2::3]
            converted["keypoints"] = moved

        if self._labels is not None or "category_id" in annotation:
            converted["category_id"] = self._label(annotation)
        for key in self._extra_keys:
            if key in annotation:
                converted.setdefault(key, annotation[key])
        return converted

    def _label(self, annotation: dict[str, Any]) -> int | str:
        category_id = annotation.get("category_id")
        if self._labels is None:
            if type(category_id) is int and 0 <= category_id < 2**31:
                return category_id
            return checked_id(category_id, self._json_file, self._where(annotation), "category_id")
        try:
            return self._labels[category_id]  # pyright: ignore[reportArgumentType] (whatever it is, it is no key then)
        except (KeyError, TypeError):
            raise self._error(
                annotation,
                f"category_id {shorten([category_id])} is not among the ids of 'categories': "
                f"{shorten(self._labels, 10)}",
            ) from None

    def _check_box(self, annotation: dict[str, Any], box: Any) -> None:
        if not isinstance(box, list) or len(box) not in (4, 5):
            what = f"[{shorten(box, 6)}]" if isinstance(box, list) and len(box) < 20 else describe(box)
            raise self._error(annotation, f"'bbox' must be [x, y, width, height], not {what}")
        try:
            if math.hypot(*box) < _LARGEST:
                return
        except (TypeError, OverflowError):
            pass
        # NaN and infinity are left to the validation of the data set, which reports all such boxes, or drops them.
        bad = [v for v in box if not _is_number(v) or (abs(v) >= _LARGEST and abs(v) != math.inf)]
        if bad:
            raise self._error(
                annotation,
                f"'bbox' must be four numbers of pixels (five if it is rotated), below {_LARGEST:.0e}; one is "
                f"{describe(bad[0])}",
            )

    def _check_keypoints(self, annotation: dict[str, Any], keypoints: Any) -> None:
        if not isinstance(keypoints, list) or len(keypoints) % 3:
            raise self._error(
                annotation,
                f"'keypoints' must be three numbers for each keypoint, [x1, y1, v1, ...], not {describe(keypoints)}",
            )
        self._check_numbers(annotation, "keypoints", keypoints)

    def _check_numbers(self, annotation: dict[str, Any], key: str, numbers: list[Any]) -> None:
        try:
            if math.hypot(*numbers) < _LARGEST:
                return
        except (TypeError, OverflowError):
            pass
        bad = [v for v in numbers if not _is_number(v) or not abs(v) < _LARGEST]
        if bad:
            raise self._error(
                annotation, f"'{key}' must be numbers of pixels, below {_LARGEST:.0e}; one is {describe(bad[0])}"
            )

    def _segmentation(self, annotation: dict[str, Any], segmentation: Any) -> Any:
        """Return polygons, or a mask as compressed run lengths; None if no polygon has three points."""
        if isinstance(segmentation, dict):
            return self._mask(annotation, segmentation)
        if not isinstance(segmentation, list):
            raise self._segmentation_error(annotation, segmentation)
        polygons = [p for p in segmentation if is_polygon(p)]
        if len(polygons) != len(segmentation):
            wrong = [p for p in segmentation if not isinstance(p, list)]
            if wrong:
                hint = " (for a single polygon: [[x1, y1, x2, y2, ...]])" if _is_number(wrong[0]) else ""
                raise self._error(
                    annotation,
                    f"'segmentation' must be a list of polygons, which are lists themselves{hint}; one is "
                    f"{describe(wrong[0])}",
                )
            if any(p and isinstance(p[0], list) for p in segmentation):
                raise self._error(
                    annotation,
                    "'segmentation' must have polygons [x1, y1, x2, y2, ...], all numbers in one list; one has pairs "
                    f"of them: {str(segmentation[0])[:60]}",
                )
        for polygon in polygons:
            self._check_numbers(annotation, "segmentation", polygon)
        if not polygons:
            self._without_valid_polygon.append(annotation.get("id"))
            return None
        return polygons

    def _mask(self, annotation: dict[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
        record = self._records[annotation["image_id"]]
        size_hw = [record["height"], record["width"]]
        if mask.get("size") != size_hw:
            got = mask.get("size")
            got = f"[{shorten(got)}]" if isinstance(got, list) and len(got) < 5 else describe(got)
            raise self._error(
                annotation,
                f"the 'size' of run lengths in 'segmentation' must be that of the image, [height, width] = {size_hw}, "
                f"not {got}",
            )
        counts, pixels = mask.get("counts"), size_hw[0] * size_hw[1]
        if isinstance(counts, list):
            if not all(type(v) is int and v >= 0 for v in counts):
                raise self._error(annotation, "'counts' of run lengths in 'segmentation' must be whole numbers from 0")
            if sum(counts) != pixels:
                raise self._wrong_total(annotation.get("id"), annotation["image_id"], sum(counts), pixels)
            return run_lengths({"size": size_hw, "counts": counts})
        if not isinstance(counts, str) or not is_compressed(counts):
            raise self._error(
                annotation,
                "'counts' of run lengths in 'segmentation' must be a list of numbers, or a whole string of "
                f"pycocotools, not {describe(counts)}",
            )
        self._compressed.append((annotation.get("id"), annotation["image_id"], counts, pixels))
        return {"size": size_hw, "counts": counts}

    def _wrong_total(self, annotation_id: Any, image_id: Any, total: int, pixels: int) -> AnnotationFileError:
        there = f"of {total} pixels" if 0 <= total < 2**63 else "with a number that is too large"
        return AnnotationFileError(
            self._json_file,
            f"annotation id {annotation_id} of image id {image_id}",
            f"the run lengths in 'segmentation' are {there}, while the image has {pixels}.",
        )

    def _segmentation_error(self, annotation: dict[str, Any], segmentation: Any) -> ValueError:
        return self._error(annotation, f"'segmentation' must be a list or an object, not {describe(segmentation)}")

    def _where(self, annotation: dict[str, Any]) -> str:
        return f"annotation id {annotation.get('id')} of image id {annotation.get('image_id')}"

    def _error(self, annotation: dict[str, Any], what: str) -> AnnotationFileError:
        return AnnotationFileError(self._json_file, self._where(annotation), what + ".")

    def finish(self) -> None:
        """Do the checks that are faster for all annotations together, and log what was left out."""
        totals = run_length_totals([text for _, _, text, _ in self._compressed]).tolist()
        for (annotation_id, image_id, _, pixels), total in zip(self._compressed, totals, strict=True):
            if total != pixels:
                raise self._wrong_total(annotation_id, image_id, total, pixels)
        if self._without_valid_polygon:
            logger.warning(
                "%s: %d annotations are left out, since none of their polygons has three points or more (ids %s).",
                *(self._json_file, len(self._without_valid_polygon), shorten(self._without_valid_polygon)),
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
