"""What a model found in one image, in the forms that people use.

Letters: `N` objects, `K` classes. Boxes are `(x1, y1, x2, y2)` in absolute pixels of the image, continuous coordinates,
and rotated boxes `(center x, center y, width, height, degrees counter-clockwise)`.
"""

import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_util

from detectron2.data import Metadata
from detectron2.data.images import convert_image_to_rgb, read_image, viewable_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.panoptic_evaluation import id_map_to_rgb
from detectron2.layers import encode_masks
from detectron2.layers.mask_ops import paste_masks_as_rle
from detectron2.structures import Instances, ROIMasks
from detectron2.utils.file_io import atomic_write
from detectron2.visualization.masks import GenericMask

from .conversions import to_fiftyone, to_supervision
from .drawing import draw

__all__ = ["SCHEMA", "Result", "object_rows", "panoptic_categories"]

SCHEMA = "detectron2.result/1"
"""Version of the form of `Result.to_dict()`; a change that readers have to follow gets a new number."""

_KINDS = ("instances", "panoptic_seg", "sem_seg")
_VOID = -1
_FIRST_UNNAMED_STUFF = 1000  # panoptic category id of stuff where no class has a name, so that none is a thing, too


class Result:
    """What a model found in one image. `Predictor` makes them.

    Attributes are `None` where the model gives nothing of the kind:

    - `instances`: the objects, `Instances` on the CPU, with `pred_boxes`, `scores`, `pred_classes`, and possibly
      `pred_masks`, `pred_masks_rle`, `pred_keypoints` and, where objects are tracked, `ID`.
    - `sem_seg`: scores `(K, height, width)` as models give them, or labels `(height, width)` with -1 for none, as
      `filter` gives them; `label_map` is always the latter.
    - `panoptic_seg`: a map of segment ids `(height, width)`, 0 where there is none, and a list of segments.
    - `name`, `path`, `index`, `time`: of the `frame`, the image that was predicted on (`detectron2.inference.sources`).
    - `seconds`: how long the model took; in a batch, its part of that.
    - `error`: what reading the image raised. Such a result has nothing else.

    `len(result)` is the number of objects, or without `instances` of segments, or else of classes in the label map.

    Args:
        outputs: what the model returns for one image.
        frame: the image.
        image_format: order of the channels of the image, as `read_image` takes it.
        metadata: names and colours of the classes.
        seconds: how long the model took.

    Raises:
        ValueError: the outputs have nothing of these kinds, and the frame no error.

    Example:
        >>> from types import SimpleNamespace
        >>> from detectron2.data import Metadata
        >>> from detectron2.inference.results import Result
        >>> from detectron2.structures import Boxes, Instances
        >>> image = np.zeros((480, 640, 3), np.uint8)
        >>> frame = SimpleNamespace(image=image, name="a.jpg", path=None, index=0, time=None, error=None, source=None)
        >>> found = Instances((480, 640), pred_boxes=Boxes([[10, 20, 50, 60], [0, 0, 200, 20]]))
        >>> found.scores, found.pred_classes = torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
        >>> names = Metadata(thing_classes=["person", "dog"])
        >>> result = Result({"instances": found}, frame=frame, image_format="BGR", metadata=names, seconds=0.1)
        >>> result
        2 objects in a.jpg (480 x 640): 1 dog, 1 person
        >>> result.filter(classes=["dog"]).to_coco(image_id=7)[0]["bbox"]
        [10.0, 20.0, 40.0, 40.0]
    """

    def __init__(
        self, outputs: Mapping[str, Any], *, frame: Any, image_format: str | None, metadata: Any, seconds: float = 0.0
    ):
        self.frame = frame
        self.image_format = image_format
        self.metadata = Metadata() if metadata is None else metadata
        self.name: str = frame.name
        self.path: str | None = frame.path
        self.index: int = frame.index
        self.time: float | None = frame.time
        self.error: Exception | None = frame.error
        self.seconds = seconds
        if self.error is None and not any(outputs.get(kind) is not None for kind in _KINDS):
            raise ValueError(
                f"A Result is of a model that finds objects or labels pixels (it returns one of {', '.join(_KINDS)}); "
                f"this one returns {', '.join(outputs) or 'nothing'}."
            )
        instances, panoptic, sem_seg = (outputs.get(kind) for kind in _KINDS)
        self.instances: Instances | None = None if instances is None else instances.to("cpu")
        self.sem_seg: torch.Tensor | None = None if sem_seg is None else torch.as_tensor(sem_seg).cpu()
        self.panoptic_seg: tuple[torch.Tensor, list[dict[str, Any]]] | None = None
        if panoptic is not None:
            ids, segments = panoptic
            self.panoptic_seg = _with_segments(ids, segments, self.metadata)
        self.size_hw: tuple[int, int] | None = self._find_size()
        self._encoded: tuple[Instances, list[dict[str, Any]]] | None = None

    def _find_size(self) -> tuple[int, int] | None:
        if self.frame.image is not None:
            return self.frame.image.shape[:2]
        if self.instances is not None:
            return self.instances.image_size
        maps = self.panoptic_seg[0] if self.panoptic_seg is not None else self.sem_seg
        return None if maps is None else (int(maps.shape[-2]), int(maps.shape[-1]))

    # -- what was found -----------------------------------------------------------------------------------------------

    @property
    def thing_classes(self) -> list[str]:
        """Names of the classes of objects, as far as they are known."""
        return list(map(str, self.metadata.get("thing_classes") or []))

    @property
    def stuff_classes(self) -> list[str]:
        """Names of the classes of pixels, as far as they are known."""
        return list(map(str, self.metadata.get("stuff_classes") or []))

    @property
    def names(self) -> list[str]:
        """The class of each object, or of each segment or each class in the label map: as many as `len(result)`.

        A class without a name is called by its number.
        """
        if self.instances is not None:
            return [_name(label, self.thing_classes) for label in self._labels()]
        if self.panoptic_seg is not None:
            return [self._name_of_segment(segment) for segment in self.panoptic_seg[1]]
        return [_name(label, self.stuff_classes) for label in self._areas_of_labels()]

    def __len__(self) -> int:
        return len(self.names)

    def __bool__(self) -> bool:
        return True  # a result without objects is still a result

    def __repr__(self) -> str:
        if self.error is not None:
            return f"{self.name} cannot be read: {self.error}"
        kind = ("object", "objects")
        if self.instances is None:
            kind = ("class of pixels", "classes of pixels") if self.panoptic_seg is None else ("segment", "segments")
        count = len(self)
        size = "" if self.size_hw is None else f" ({self.size_hw[0]} x {self.size_hw[1]})"
        text = f"{count or 'no'} {kind[count != 1]} in {self.name}{size}"
        found = Counter(self.names)
        order = sorted(found, key=lambda name: -found[name])
        parts = [name if self.is_label_map else f"{found[name]} {name}" for name in order[:8]]
        return text + (": " if parts else "") + ", ".join(parts + ["…"] * (len(order) > 8))

    @property
    def is_label_map(self) -> bool:
        """Whether there is nothing but a semantic segmentation."""
        return self.instances is None and self.panoptic_seg is None and self.sem_seg is not None

    @cached_property
    def label_map(self) -> np.ndarray | None:
        """Semantic segmentation: the class of each pixel, int32 `(height, width)`; -1 for none."""
        if self.sem_seg is None:
            return None
        labels = self.sem_seg.argmax(dim=0) if self.sem_seg.dim() == 3 else self.sem_seg
        return labels.numpy().astype(np.int32)

    @property
    def masks_rle(self) -> list[dict[str, Any]] | None:
        """The masks of the objects as COCO's run lengths, counts as text; None for a model without masks.

        Masks that are kept in their boxes are pasted at the threshold 0.5.
        """
        instances = self.instances
        if instances is None or not (instances.has("pred_masks") or instances.has("pred_masks_rle")):
            return None
        if self._encoded is None or self._encoded[0] is not instances:  # trackers exchange the instances
            self._encoded = instances, _encode_masks(instances)
        return self._encoded[1]

    @property
    def track_ids(self) -> list[int] | None:
        """The identity of each object; None where objects are not tracked."""
        if self.instances is None or not self.instances.has("ID"):
            return None
        return [int(number) for number in self.instances.ID]

    @property
    def image_rgb(self) -> np.ndarray:
        """The image, RGB `(height, width, 3)`, to draw on; of one with other channels what can be seen of it.

        Raises:
            ValueError: the image was not kept, and it is not in a file of its own.
        """
        if self.error is not None:
            raise ValueError(f"{self.name} cannot be read, so there is no image: {self.error}")
        image = self.frame.image
        if image is None:
            if self.path is None or self.time is not None:
                raise ValueError(f"The image {self.name} was not kept; draw while it is in memory.")
            image = read_image(self.path, self.image_format)
        if self.image_format is None or image.ndim != 3 or (self.image_format == "BGR" and image.shape[2] != 3):
            return viewable_rgb(image)
        return convert_image_to_rgb(image, self.image_format)

    def _labels(self) -> list[int]:
        """Contiguous class id of each object."""
        assert self.instances is not None
        if not self.instances.get_fields():
            return []
        if not self.instances.has("pred_classes"):
            return [0] * len(self.instances)
        return [int(label) for label in self.instances.pred_classes.tolist()]

    def _name_of_segment(self, segment: Mapping[str, Any]) -> str:
        names = self.thing_classes if segment.get("isthing", True) else self.stuff_classes
        return _name(segment["category_id"], names)

    def _areas_of_labels(self) -> dict[int, int]:
        if self.label_map is None:
            return {}
        labels, areas = np.unique(self.label_map, return_counts=True)
        return {label: area for label, area in zip(labels.tolist(), areas.tolist(), strict=True) if label >= 0}

    def filter(self, score: float | None = None, classes: Iterable[str | int] | None = None) -> "Result":
        """Keep the objects, segments and pixels of some classes, and the objects with some score.

        Args:
            score: the least score. What has none, as segments of stuff and pixels, stays.
            classes: names or contiguous ids of classes, of objects and of pixels alike.

        Returns:
            a new result. Pixels of other classes become -1 in the semantic and 0 in the panoptic segmentation.

        Raises:
            ValueError: there is no class of that name.
        """
        things = stuff = None
        if classes is not None:
            chosen = [classes] if isinstance(classes, str) else list(classes)
            things, stuff = (self._ids_of(chosen, names) for names in (self.thing_classes, self.stuff_classes))
            known = {*self.thing_classes, *self.stuff_classes}
            if unknown := [name for name in chosen if isinstance(name, str) and name not in known]:
                there = ", ".join([*self.thing_classes, *self.stuff_classes][:20]) or "no names of classes"
                raise ValueError(f"The model has no class {unknown[0]!r}; it has {there}.")
        outputs: dict[str, Any] = {"instances": self.instances, "sem_seg": self.sem_seg}
        outputs["panoptic_seg"] = self.panoptic_seg
        if self.instances is not None and self.instances.get_fields():
            keep = torch.ones(len(self.instances), dtype=torch.bool)
            if score is not None and self.instances.has("scores"):
                keep &= self.instances.scores >= score
            if things is not None:
                keep &= torch.tensor([label in things for label in self._labels()], dtype=torch.bool)
            outputs["instances"] = self.instances[keep]
        if self.panoptic_seg is not None:
            ids, segments = self.panoptic_seg
            segments = [s for s in segments if score is None or s.get("score", score) >= score]
            if things is not None and stuff is not None:
                segments = [s for s in segments if s["category_id"] in (things if s.get("isthing", True) else stuff)]
            kept = torch.isin(ids, torch.tensor([s["id"] for s in segments], dtype=ids.dtype))
            outputs["panoptic_seg"] = torch.where(kept, ids, 0), segments
        if self.label_map is not None and stuff is not None:
            kept = np.isin(self.label_map, list(stuff))
            outputs["sem_seg"] = torch.from_numpy(np.where(kept, self.label_map, _VOID))
        return Result(
            outputs,
            frame=self.frame,
            image_format=self.image_format,
            metadata=self.metadata,
            seconds=self.seconds,
        )

    @staticmethod
    def _ids_of(chosen: Sequence[str | int], names: Sequence[str]) -> set[int]:
        numbers = {int(c) for c in chosen if not isinstance(c, str)}
        return numbers | {i for i, name in enumerate(names) if name in chosen}

    # -- plain data ---------------------------------------------------------------------------------------------------

    def to_dict(self, masks: str | None = "rle") -> dict[str, Any]:
        """Everything as plain Python, which JSON takes; numbers that are not finite become None.

        Args:
            masks: `"rle"` for COCO's run lengths (`{"size": [height, width], "counts": text}`), `"polygons"` for the
                outlines of the regions (lists `[x0, y0, x1, y1, …]`; holes are lost), or None to leave them out.

        Returns:
            `schema` (`SCHEMA`), `file` (the path, or the name of what is in no file), `index`, `time` (seconds into a
            video), `seconds`, `height`, `width`, `error` (text), and, each a list or None:

            - `objects`: `class_id` (contiguous, from 0), `class`, `score`, `box_xyxy`, and where there is such a thing
              `box_rotated` (`box_xyxy` is then around it), `track_id`, `area` (pixels of the mask), `mask`,
              `keypoints` (lists `[x, y, score]`);
            - `segments` of a panoptic segmentation: `id`, `class_id`, `class`, `is_thing`, `box_xyxy`, `area`, and
              possibly `score` and `mask`;
            - `pixel_classes` of a semantic segmentation: `class_id`, `class`, `area`, and possibly `mask`.

        Raises:
            ValueError: another word for the masks.
        """
        if masks not in ("rle", "polygons", None):
            raise ValueError(f'masks is "rle", "polygons" or None, got {masks!r}.')
        height, width = self.size_hw or (None, None)
        return {
            "schema": SCHEMA,
            "file": self.path or self.name,
            "index": self.index,
            "time": self.time,
            "seconds": _finite(self.seconds),
            "height": height,
            "width": width,
            "error": None if self.error is None else str(self.error),
            "objects": None if self.instances is None else self._objects(masks),
            "segments": None if self.panoptic_seg is None else self._segments(masks),
            "pixel_classes": None if self.sem_seg is None else self._pixel_classes(masks),
        }

    def to_json(self, masks: str | None = "rle", indent: int | None = None) -> str:
        """`to_dict` as text in JSON."""
        return json.dumps(self.to_dict(masks), indent=indent, allow_nan=False, ensure_ascii=False)

    def _objects(self, masks: str | None) -> list[dict[str, Any]]:
        assert self.instances is not None
        fields = self.instances.get_fields()
        labels, count = self._labels(), len(self.instances) if fields else 0
        scores = fields["scores"].tolist() if "scores" in fields else [None] * count
        boxes = fields["pred_boxes"].tensor.tolist() if "pred_boxes" in fields else None
        rles, tracks = self.masks_rle, self.track_ids
        keypoints = fields["pred_keypoints"].tolist() if "pred_keypoints" in fields else None
        objects = []
        for i, label in enumerate(labels):
            name = _name(label, self.thing_classes)
            box = boxes[i] if boxes is not None else _box_of_rle(rles[i]) if rles is not None else []
            entry: dict[str, Any] = {"class_id": label, "class": name, "score": _finite(scores[i])}
            entry["box_xyxy"] = [_finite(v) for v in (_around(box) if len(box) == 5 else box)] or None
            if len(box) == 5:
                entry["box_rotated"] = [_finite(v) for v in box]
            if tracks is not None:
                entry["track_id"] = tracks[i]
            if rles is not None:
                entry |= _mask_entry(rles[i], masks)
            if keypoints is not None:
                entry["keypoints"] = [[_finite(v) for v in point] for point in keypoints[i]]
            objects.append(entry)
        return objects

    def _segments(self, masks: str | None) -> list[dict[str, Any]]:
        assert self.panoptic_seg is not None
        ids = self.panoptic_seg[0].numpy()
        entries = []
        for segment in self.panoptic_seg[1]:
            rle = _encode(ids == segment["id"])
            entry = {"id": int(segment["id"]), "class_id": int(segment["category_id"])}
            entry |= {"class": self._name_of_segment(segment), "is_thing": bool(segment.get("isthing", True))}
            if segment.get("score") is not None:
                entry["score"] = _finite(segment["score"])
            entries.append({**entry, "box_xyxy": _box_of_rle(rle), **_mask_entry(rle, masks)})
        return entries

    def _pixel_classes(self, masks: str | None) -> list[dict[str, Any]]:
        entries = []
        for label, area in self._areas_of_labels().items():
            entry = {"class_id": label, "class": _name(label, self.stuff_classes), "area": area}
            if masks is not None:
                entry |= _mask_entry(_encode(self.label_map == label), masks)
            entries.append(entry)
        return entries

    # -- COCO ---------------------------------------------------------------------------------------------------------

    def to_coco(self, image_id: int | str, category_ids: Mapping[Any, int | str] | None = None) -> list[dict[str, Any]]:
        """The objects as COCO results, which pycocotools' `loadRes` and `detectron2 analyze` take.

        Objects with a box or score that is not finite are left out. Numbers are not rounded.

        Args:
            image_id: written to each record.
            category_ids: ids of the classes in a data set, by name or by contiguous id. Without them `category_id` is
                the contiguous id, which counts from 0 in the order of the model's classes.

        Returns:
            a dictionary for each object: `image_id`, `category_id`, `bbox` (x, y, width, height; five numbers of
            rotated boxes), `score`, possibly `segmentation` and `keypoints`, and `file_name`, `height`, `width`,
            `category_name`, and, where objects are tracked, `track_id`.

        Raises:
            ValueError: the model gives no objects, or a class has no id.
        """
        if self.error is not None:
            return []
        if self.instances is None:
            raise ValueError(
                "This model gives no objects, so there are none for to_coco(); see to_coco_panoptic() and "
                "to_coco_sem_seg()."
            )
        if not self.instances.get_fields() or not len(self.instances):
            return []
        boxes, scores = self.instances.pred_boxes.tensor, self.instances.scores
        usable = boxes.isfinite().all(dim=1) & scores.isfinite()
        instances = self.instances[usable]
        tracks = [int(number) for number in instances.ID] if instances.has("ID") else None
        height, width = self.size_hw or instances.image_size
        known = {"file_name": self.path or self.name, "height": height, "width": width}
        records = []
        for i, record in enumerate(instances_to_coco_json(instances, image_id)):
            label = int(record["category_id"])
            name = _name(label, self.thing_classes)
            category = _category_id(label, name, label, category_ids)
            entry = {**_plain(record), **known, "category_id": category, "category_name": name}
            records.append(entry if tracks is None else {**entry, "track_id": tracks[i]})
        return records

    def to_coco_panoptic(
        self, image_id: int | str, category_ids: Mapping[Any, int | str] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """The panoptic segmentation in COCO's format.

        Args:
            image_id: written to the record.
            category_ids: ids of the classes in a data set, by name; None for those of `panoptic_categories`.

        Returns:
            the annotation, with `image_id`, `file_name` of the PNG, and `segments_info` (`id`, `category_id`,
            `isthing`, `area`, `bbox`, `iscrowd`); and the PNG file, whose colours are the ids `R + 256 G + 65536 B`.

        Raises:
            ValueError: the model gives no panoptic segmentation, or a class has no id.
        """
        if self.panoptic_seg is None:
            raise ValueError("This result has no panoptic segmentation; see to_coco() and to_coco_sem_seg().")
        ids = self.panoptic_seg[0].numpy()
        default = {(c["isthing"], c["class_id"]): c["id"] for c in _panoptic_ids(self.metadata)}
        infos, present = [], {0}
        for segment in self._segments(None):
            if not segment["area"]:
                continue
            is_thing, label = int(segment["is_thing"]), segment["class_id"]
            own = default.get((is_thing, label), label if is_thing else label + self._first_stuff())
            x1, y1, x2, y2 = segment["box_xyxy"]
            infos.append(
                {
                    "id": segment["id"],
                    "category_id": _category_id(None, segment["class"], own, category_ids),
                    "isthing": is_thing,
                    "area": segment["area"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                }
            )
            present.add(segment["id"])
        stream = io.BytesIO()
        Image.fromarray(id_map_to_rgb(np.where(np.isin(ids, list(present)), ids, 0))).save(stream, format="PNG")
        stem = os.path.splitext(os.path.basename(self.path or self.name))[0]
        return {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": infos}, stream.getvalue()

    def to_coco_sem_seg(self, category_ids: Mapping[Any, int | str] | None = None) -> list[dict[str, Any]]:
        """The semantic segmentation as COCO stuff results, as `SemSegEvaluator` writes them.

        Args:
            category_ids: ids of the classes in a data set, by name or by contiguous id; None for the contiguous ids.

        Returns:
            for each class in the image `file_name`, `category_id`, and `segmentation` as run lengths.

        Raises:
            ValueError: the model gives no semantic segmentation, or a class has no id.
        """
        if self.sem_seg is None:
            raise ValueError("This result has no semantic segmentation; see to_coco() and to_coco_panoptic().")
        records = []
        for entry in self._pixel_classes("rle"):
            category = _category_id(entry["class_id"], entry["class"], entry["class_id"], category_ids)
            record = {"file_name": self.path or self.name, "category_id": category, "segmentation": entry["mask"]}
            records.append(record)
        return records

    def _first_stuff(self) -> int:
        """Panoptic category id of stuff class 0."""
        if self.thing_classes == self.stuff_classes:
            return 0 if self.thing_classes else _FIRST_UNNAMED_STUFF
        return len(self.thing_classes)

    # -- other libraries ----------------------------------------------------------------------------------------------

    def to_dataframe(self) -> Any:
        """A pandas table with the rows of `object_rows`. Join those of several images with `pandas.concat`."""
        try:
            import pandas
        except ImportError as e:
            raise ImportError("to_dataframe() needs pandas, which is not installed: pip install pandas") from e
        return pandas.DataFrame(object_rows(self.to_dict(masks=None)), columns=list(ROW_KEYS))

    def to_supervision(self) -> Any:
        """The objects, or without `instances` the segments, as `supervision.Detections`.

        See `detectron2.inference.conversions.to_supervision`.
        """
        return to_supervision(self)

    def to_fiftyone(self) -> dict[str, Any]:
        """Labels of FiftyOne, by the name of a field; see `detectron2.inference.conversions.to_fiftyone`."""
        return to_fiftyone(self)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, **options: Any) -> np.ndarray:
        """Draw what was found: the panoptic segmentation, or else objects, or else classes of pixels.

        Args:
            **options: those of `detectron2.inference.drawing.draw`: `color_by`, `boxes`, `masks`, `labels`,
                `keypoints`, `alpha`, `scale`.

        Returns:
            uint8 RGB image (height * scale, width * scale, 3).
        """
        return draw(self, **options).get_image()

    def save(self, path: str | os.PathLike, **options: Any) -> None:
        """Write a picture, or `.json` with what `to_json` returns: completely, or not at all.

        Args:
            path: its suffix chooses the format: `.png`, `.jpg` and others that Pillow writes; `.svg` and `.pdf` with
                shapes and text that can be edited and stay sharp; `.json`.
            **options: those of `plot`, or for JSON those of `to_json`.
        """
        if os.fspath(path).lower().endswith(".json"):
            text = self.to_json(**options)
            with atomic_write(path, "w") as f:
                f.write(text + "\n")
            return
        draw(self, **options).save(path)

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows."""
        if self.error is not None:
            return None
        stream = io.BytesIO()
        Image.fromarray(self.plot()).save(stream, format="PNG")
        return stream.getvalue()


ROW_KEYS = (
    *("file", "index", "time", "object", "class_id", "class", "score"),
    *("x1", "y1", "x2", "y2", "width", "height", "angle", "area", "track_id"),
)
"""Columns of the table of objects."""


def object_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table: one for each object, or without objects for each segment, or else for each class of pixels.

    Args:
        content: what `Result.to_dict` returns.

    Returns:
        dictionaries with the keys `ROW_KEYS`: `object` counts from 0 within the image; `width` and `height` are those
        of the box, and of a rotated box, whose `angle` is in degrees, along its sides; `area` is in pixels of the mask.
        What is not known is None.

    Example:
        >>> from detectron2.inference.results import object_rows
        >>> entry = {"class_id": 0, "class": "cat", "score": 0.9, "box_xyxy": [1.0, 2.0, 4.0, 6.0]}
        >>> row = object_rows({"file": "a.jpg", "index": 0, "time": None, "objects": [entry]})[0]
        >>> row["width"], row["height"], row["area"]
        (3.0, 4.0, None)
    """
    kinds = (content.get("objects"), content.get("segments"), content.get("pixel_classes"))
    rows = []
    for number, entry in enumerate(next((k for k in kinds if k is not None), [])):
        box: Any = entry.get("box_xyxy") or [None] * 4
        row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
        row |= {key: content.get(key) for key in ROW_KEYS[:3]} | {"object": number}
        row |= {key: entry.get(key) for key in ("class_id", "class", "score", "area", "track_id")}
        row |= dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
        if "box_rotated" in entry:
            row["width"], row["height"], row["angle"] = entry["box_rotated"][2:]
        elif None not in box:
            row["width"], row["height"] = box[2] - box[0], box[3] - box[1]
        rows.append(row)
    return rows


def panoptic_categories(metadata: Any) -> list[dict[str, Any]]:
    """The `categories` of a COCO panoptic file where there is no data set: things count from 0, stuff goes on.

    Where things and stuff share one list of names they share their ids, too. (Where no class has a name, the ids of
    stuff are those of the model and 1000.)

    Args:
        metadata: with `thing_classes` and `stuff_classes`.

    Returns:
        dictionaries with `id`, `name`, `isthing`.

    Example:
        >>> from detectron2.data import Metadata
        >>> from detectron2.inference.results import panoptic_categories
        >>> panoptic_categories(Metadata(thing_classes=["cat"], stuff_classes=["sky"]))[1]
        {'id': 1, 'name': 'sky', 'isthing': 0}
    """
    return [{key: c[key] for key in ("id", "name", "isthing")} for c in _panoptic_ids(metadata)]


def _panoptic_ids(metadata: Any) -> list[dict[str, Any]]:
    """Categories with `class_id`, the contiguous id among things or stuff."""
    things, stuff = ([str(n) for n in metadata.get(key) or []] for key in ("thing_classes", "stuff_classes"))
    if things == stuff:
        is_thing = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        return [{"id": i, "name": n, "isthing": int(i in is_thing), "class_id": i} for i, n in enumerate(things)]
    first = [{"id": i, "name": n, "isthing": 1, "class_id": i} for i, n in enumerate(things)]
    return first + [{"id": len(things) + i, "name": n, "isthing": 0, "class_id": i} for i, n in enumerate(stuff)]


def _category_id(label: int | None, name: str, default: int, category_ids: Mapping[Any, Any] | None) -> Any:
    """The id of a class in a data set."""
    if category_ids is None:
        return default
    for key in (name, label):
        if key is not None and key in category_ids:
            return category_ids[key]
    raise ValueError(f"category_ids has no id for the class {name!r}; it has {list(category_ids)[:20]}.")


def _with_segments(ids: Any, segments: Sequence[Mapping[str, Any]] | None, metadata: Any) -> tuple[Any, Any]:
    """A map with 0 for void, and the list of its segments, which some models leave to `label * divisor + number`."""
    ids = torch.as_tensor(ids).cpu()
    if segments is not None:
        return ids.clamp(min=0), [dict(segment) for segment in segments]
    divisor = metadata.get("label_divisor")
    if divisor is None:
        raise ValueError("The model gives a panoptic_seg without segments, which needs label_divisor in the metadata.")
    things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
    found = [
        {"id": value + 1, "category_id": value // divisor, "isthing": value // divisor in things}
        for value in torch.unique(ids).tolist()
        if value >= 0
    ]
    return ids + 1, found


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _finite(value: Any) -> Any:
    """A number that JSON takes, or None."""
    return None if value is None or not math.isfinite(value) else value


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of Python's own numbers."""
    return {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in record.items()}


def _around(rotated: Sequence[float]) -> list[float]:
    """The upright box around a rotated one."""
    x, y, width, height, degrees = rotated
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_w, half_h = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return [x - half_w, y - half_h, x + half_w, y + half_h]


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths with counts as text."""
    counts = rle["counts"]
    if isinstance(counts, (list, tuple)):
        uncompressed: Any = dict(rle)
        counts = mask_util.frPyObjects(uncompressed, *rle["size"])["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _encode_masks(instances: Instances) -> list[dict[str, Any]]:
    """Masks in any of their forms as run lengths."""
    if instances.has("pred_masks_rle"):
        return [_as_text(rle) for rle in instances.pred_masks_rle]
    masks = instances.pred_masks
    if isinstance(masks, ROIMasks):
        return paste_masks_as_rle(masks.tensor, instances.pred_boxes, instances.image_size)
    return encode_masks(masks if isinstance(masks, torch.Tensor) else masks.tensor)


def _encode(mask: np.ndarray) -> dict[str, Any]:
    return encode_masks(torch.from_numpy(mask)[None])[0]


def _box_of_rle(rle: Any) -> list[float]:
    """The box around a mask; zeros around an empty one."""
    x, y, width, height = mask_util.toBbox(rle).tolist()
    return [x, y, x + width, y + height]


def _mask_entry(rle: Any, form: str | None) -> dict[str, Any]:
    """Area of a mask, and the mask in the form that is asked for."""
    entry: dict[str, Any] = {"area": int(mask_util.area(rle))}
    if form == "rle":
        entry["mask"] = rle
    elif form == "polygons":
        entry["mask"] = [ring.tolist() for ring in GenericMask(rle, *rle["size"]).polygons]
    return entry
