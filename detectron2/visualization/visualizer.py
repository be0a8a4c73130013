"""Draw predictions and annotations on an image.

Positions are in absolute pixels of the image, continuous coordinates. `N` instances, `K` keypoints.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, cast

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import make_boxes_absolute
from detectron2.layers.mask_ops import paste_masks_in_boxes
from detectron2.structures import BoxMode, PolygonMasks, ROIMasks
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from ._arguments import as_array, as_label_map, as_numbers, as_rgb_image, check_instances, check_panoptic, shape_of
from ._primitives import DrawsPrimitives, scaled_padding
from .canvas import VisImage
from .colors import _OFF_WHITE, _RED, ColorMode, class_color, instance_colors, to_rgb
from .labels import LabelPlacer, _create_text_labels
from .masks import GenericMask, union_of_masks
from .panoptic import _PanopticPrediction

__all__ = ["Visualizer"]

logger = logging.getLogger(__name__)

_SMALL_OBJECT_AREA_THRESH = 1000
_LARGE_MASK_AREA_THRESH = 120000
_KEYPOINT_THRESHOLD = 0.05


Point = tuple[float, float]


class Visualizer(DrawsPrimitives):
    """Draws on one image: single shapes (`draw_box`, `draw_text` …), or all its predictions or annotations.

    The pictures are deterministic: an object gets the same colour each time. Their style may change between versions;
    if it must not, use the methods for single shapes.

    Args:
        img_rgb: RGB image (height, width, 3), values from 0 to 255.
        metadata: names and colours of the classes, as in `detectron2.data.MetadataCatalog`.
        scale: size of the picture relative to the image.
        instance_mode: style of instances.

    Example:
        >>> from detectron2.data import Metadata
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.visualization import Visualizer
        >>> image = np.full((120, 160, 3), 128, np.uint8)
        >>> predictions = Instances((120, 160), pred_boxes=Boxes([[20, 30, 90, 100]]))
        >>> predictions.scores, predictions.pred_classes = torch.tensor([0.97]), torch.tensor([0])
        >>> visualizer = Visualizer(image, Metadata(thing_classes=["cat"]), scale=2)
        >>> drawn = visualizer.draw_instance_predictions(predictions)
        >>> drawn.get_image().shape
        (240, 320, 3)
        >>> drawn.save("cat.png")
    """

    def __init__(
        self, img_rgb: np.ndarray, metadata: Any = None, scale: float = 1.0, instance_mode: ColorMode = ColorMode.IMAGE
    ):
        self.img = as_rgb_image(img_rgb)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        if not hasattr(self.metadata, "get"):
            raise TypeError(
                f"metadata is what MetadataCatalog.get(name) returns, with names and colours; got {shape_of(metadata)}."
            )
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        # large enough to read on the canvas, and in proportion to large images
        self._default_font_size = max(np.sqrt(self.output.height * self.output.width) / 90, 10 / scale)
        self._instance_mode = ColorMode(instance_mode)
        self.keypoint_threshold = _KEYPOINT_THRESHOLD
        self._random = np.random.default_rng(0)
        self._label_placer = LabelPlacer((self.output.width, self.output.height))

    def get_output(self) -> VisImage:
        """Return the image with everything drawn so far."""
        return self.output

    # -- whole images -------------------------------------------------------------------------------------------------

    def draw_instance_predictions(self, predictions: Any, jittering: bool = True) -> VisImage:
        """Draw the predictions of an instance-level model.

        Args:
            predictions: an `Instances` with any of `pred_boxes`, `scores`, `pred_classes`, `pred_masks`
                (whole, or `ROIMasks` in `pred_boxes`) or `pred_masks_rle`, and `pred_keypoints`.
            jittering: vary the colours of a class slightly in the mode SEGMENTATION.

        Returns:
            `output`.
        """
        check_instances(predictions)
        count = len(predictions) if predictions.get_fields() else 0
        colors = self._colors_of(_classes_of(predictions) or [0] * count, jittering)
        return self.overlay_instances(**self._shown_parts(predictions), assigned_colors=colors)

    def draw_sem_seg(self, sem_seg: Any, area_threshold: float | None = None, alpha: float = 0.8) -> VisImage:
        """Draw a semantic segmentation.

        Args:
            sem_seg: integer map (height, width) of class ids, or the scores (classes, height, width) that a model
                returns. Ids without a name in `stuff_classes` are coloured without a text; those below 0 and
                `ignore_label` of the metadata, or else 255, are left out.
            area_threshold: connected regions with fewer square pixels are not drawn.
            alpha: opacity.

        Returns:
            `output`.

        Example:
            >>> from detectron2.data import Metadata
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8), Metadata(stuff_classes=["sky", "grass"]))
            >>> classes = np.zeros((60, 80), int)
            >>> classes[30:] = 1
            >>> visualizer.draw_sem_seg(classes).get_image().shape
            (60, 80, 3)
        """
        labels_map = as_label_map(sem_seg, self.img.shape[:2])
        labels, areas = np.unique(labels_map, return_counts=True)
        names = self.metadata.get("stuff_classes") or []
        for label in labels[np.argsort(-areas, kind="stable")].tolist():
            if label >= 0 and (label < len(names) or label != self.metadata.get("ignore_label", 255)):
                self._draw_stuff(labels_map == label, int(label), area_threshold, alpha, unnamed=None)
        return self.output

    def _draw_stuff(
        self, mask: np.ndarray, category: int, area_threshold: float | None, alpha: float, *, unnamed: str | None
    ) -> None:
        """Draw a region of stuff with its name, or else with a text for those without one."""
        names = self.metadata.get("stuff_classes") or []
        self.draw_binary_mask(
            mask,
            color=class_color(category, self.metadata.get("stuff_colors")),
            edge_color=_OFF_WHITE,
            text=names[category] if 0 <= category < len(names) else unnamed,
            alpha=alpha,
            area_threshold=10 if area_threshold is None else area_threshold,
        )

    def draw_panoptic_seg(
        self,
        panoptic_seg: Any,
        segments_info: Sequence[dict] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw a panoptic segmentation: stuff first, things above it.

        Args:
            panoptic_seg: integer map (height, width) of segment ids.
            segments_info: dictionaries with `id`, `category_id`, `isthing`, and possibly `score`; None to read
                the category as `id // metadata.label_divisor`.
            area_threshold: connected regions of stuff with fewer square pixels are not drawn.
            alpha: opacity.

        Returns:
            `output`.

        Example:
            >>> from detectron2.data import Metadata
            >>> from detectron2.visualization import Visualizer
            >>> metadata = Metadata(thing_classes=["cat"], stuff_classes=["grass"])
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8), metadata)
            >>> segments = np.ones((60, 80), int)
            >>> segments[20:40, 30:50] = 2
            >>> grass, cat = {"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}
            >>> visualizer.draw_panoptic_seg(segments, [grass, cat]).get_image().shape
            (60, 80, 3)
        """
        check_panoptic(panoptic_seg, segments_info, self.img.shape[:2])
        segmentation = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        if unknown := segmentation.unknown():
            logger.warning(f"The ids {unknown[:10]} in the panoptic map are not in segments_info: they are not drawn.")
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(segmentation.non_empty_mask()))
        for mask, segment in segmentation.semantic_masks():
            category = segment["category_id"]
            self._draw_stuff(mask, category, area_threshold, alpha, unnamed=str(category))
        things = [(GenericMask.without_margins(mask), segment) for mask, segment in segmentation.instance_masks()]
        if not things:
            return self.output
        categories = [segment["category_id"] for _, segment in things]
        labels = _create_text_labels(
            categories,
            [segment["score"] for _, segment in things] if all("score" in s for _, s in things) else None,
            self.metadata.get("thing_classes"),
            [segment.get("iscrowd", 0) for _, segment in things],
        )
        return self.overlay_instances(
            masks=[mask for mask, _ in things],
            labels=labels,
            assigned_colors=instance_colors(categories, self.metadata.get("thing_colors")),
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the ground truth of one image.

        Args:
            dic: an entry of a data set in the standard format; `annotations`, `sem_seg` or `sem_seg_file_name`,
                and `pan_seg` or `pan_seg_file_name` with `segments_info` are drawn.

        Returns:
            `output`.

        Example:
            >>> from detectron2.structures import BoxMode
            >>> from detectron2.visualization import Visualizer
            >>> cat = {"bbox": [10, 10, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> visualizer.draw_dataset_dict({"annotations": [cat]}).get_image().shape
            (60, 80, 3)
        """
        if not isinstance(dic, Mapping):
            raise TypeError(f"draw_dataset_dict() takes one entry of a data set, a dictionary; got {shape_of(dic)}.")
        annotations = dic.get("annotations")
        if annotations:
            self._draw_annotations(annotations)
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            sem_seg = _read_image(dic["sem_seg_file_name"])
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        panoptic = dic.get("pan_seg")
        if panoptic is None and "pan_seg_file_name" in dic:
            channels = _read_image(dic["pan_seg_file_name"]).astype(np.int64)
            # COCO's panoptic format writes an id in base 256, the lowest digit in the red channel
            panoptic = channels[..., 0] + 256 * channels[..., 1] + 256**2 * channels[..., 2]
        if panoptic is not None:
            self.draw_panoptic_seg(panoptic, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def _draw_annotations(self, annotations: Sequence[dict]) -> None:
        annotations = [dict(a) for a in annotations]
        make_boxes_absolute(annotations, self.img.shape[:2])
        boxes = masks = keypoints = None
        if all("segmentation" in a for a in annotations):
            masks = [a["segmentation"] for a in annotations]
        if all("keypoints" in a for a in annotations):
            counts = [np.size(a["keypoints"]) for a in annotations]
            if counts[0] % 3 or len(set(counts)) > 1:
                raise ValueError(
                    f"keypoints: expected x, y, visibility of each, as many for all; got {counts} numbers."
                )
            keypoints = np.array([np.ravel(a["keypoints"]) for a in annotations], float).reshape(len(counts), -1, 3)
        if all("bbox" in a for a in annotations):
            boxes = [
                a["bbox"] if len(a["bbox"]) == 5 else BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                for a in annotations
            ]
        for i, annotation in enumerate(annotations):
            if "category_id" not in annotation:
                raise ValueError(f"Annotation {i} has no 'category_id', only {sorted(annotation)}.")
        classes = [a["category_id"] for a in annotations]
        crowd = [a.get("iscrowd", 0) for a in annotations]
        labels = _create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd)
        self.overlay_instances(
            labels=labels, boxes=boxes, masks=masks, keypoints=keypoints, assigned_colors=self._colors_of(classes, True)
        )

    # -- instances ----------------------------------------------------------------------------------------------------

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Iterable[Any] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, the large ones below the small ones, and their labels above all.

        Args:
            boxes: `Boxes`, `RotatedBoxes`, or an array (N, 4) of `(x1, y1, x2, y2)` or (N, 5) of `(center x,
                center y, width, height, degrees counter-clockwise)`.
            labels: N texts, or numbers such as those of tracks.
            masks: `BitMasks`, `PolygonMasks`, or N masks in any form that `GenericMask` takes.
            keypoints: `Keypoints` or an array (N, K, 3) of `(x, y, visibility or score)`.
            assigned_colors: N colours; None to choose them.
            alpha: opacity of the masks.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> drawn = visualizer.overlay_instances(
            ...     boxes=np.array([[10, 20, 50, 50]]), labels=["cat"], assigned_colors=["orange"]
            ... )
            >>> drawn.get_image().shape
            (60, 80, 3)
        """
        if isinstance(labels, str):
            raise TypeError(f"labels is a list with a text for each instance; got the text {labels!r}.")
        labels = None if labels is None else [label if label is None else str(label) for label in as_array(labels)]
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else self._convert_keypoints(keypoints)
        count = _common_length(boxes=boxes, labels=labels, masks=masks, keypoints=keypoints, colors=assigned_colors)
        if count == 0:
            return self.output
        if assigned_colors is None:
            assigned_colors = [class_color(index) for index in range(count)]
        if boxes is not None and boxes.shape[1] == 5:
            return self.overlay_rotated_instances(boxes=boxes, labels=labels, assigned_colors=assigned_colors)
        frames = boxes
        if frames is None and masks is not None:
            frames = np.array([mask.bbox() for mask in masks])
        order = range(count)
        if frames is not None:
            order = np.argsort(-(frames[:, 2:] - frames[:, :2]).prod(axis=1), kind="stable").tolist()
        for index in order:
            color = assigned_colors[index]
            if masks is not None:
                rings = [ring for region in masks[index].regions for ring in region]
                self._draw_region(rings, color, None, alpha)
            if boxes is not None:
                self.draw_box(boxes[index], edge_color=color, alpha=0.9)
        if keypoints is not None:
            for instance in keypoints:
                self.draw_and_connect_keypoints(instance)
        if labels is not None and frames is not None:
            for index in order:
                self._draw_label(labels[index], frames[index], assigned_colors[index], on_box=boxes is not None)
        return self.output

    def overlay_rotated_instances(
        self, boxes: Any = None, labels: Sequence[str] | None = None, assigned_colors: Sequence[Any] | None = None
    ) -> VisImage:
        """Draw rotated boxes (N, 5), the large ones below the small ones; for the arguments see `overlay_instances`."""
        boxes = np.zeros((0, 5)) if boxes is None else self._convert_boxes(boxes).reshape(-1, 5)
        if _common_length(boxes=boxes, labels=labels, colors=assigned_colors) == 0:
            return self.output
        for index in map(int, np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")):
            self.draw_rotated_box_with_label(
                boxes[index],
                alpha=0.9,
                edge_color=class_color(index) if assigned_colors is None else assigned_colors[index],
                label=None if labels is None else labels[index],
            )
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Draw the keypoints of one instance, and the lines between them.

        `keypoint_connection_rules` of the metadata lists `(name, name, (r, g, b))`. Where both shoulders are
        visible, lines also lead from their middle to the nose and to the middle of the hips.

        Args:
            keypoints: array (K, 3) of `(x, y, score)`; those up to `keypoint_threshold` are not drawn.

        Returns:
            `output`.
        """
        points = as_numbers(
            keypoints, "draw_and_connect_keypoints", "(keypoints, 3) of one instance at a time", (2, (3,))
        )
        names = self.metadata.get("keypoint_names") or []
        rules = self.metadata.get("keypoint_connection_rules") or []
        if unknown := {str(name) for rule in rules for name in rule[:2]} - {*map(str, names)}:
            text = f"keypoint_connection_rules name {sorted(unknown)}, which keypoint_names lack: lines are left out."
            log_first_n(logging.WARNING, text, key="message")
        visible: dict[str, tuple[float, float]] = {}
        for index, (x, y, score) in enumerate(points.tolist()):
            if score > self.keypoint_threshold:
                visible[names[index] if index < len(names) else str(index)] = (x, y)
        radius = max(1.0, self._default_font_size / 4)
        if len(visible) > 1:
            # dots that would hide a small instance are drawn smaller
            extent = np.ptp(np.array(list(visible.values())), axis=0).max()
            radius = float(np.clip(extent / 50, 1.0, radius))
        for start, end, color in _skeleton_lines(visible, rules):
            # a line of this many points is 1.4 times as many pixels wide: a little less than the dots
            self.draw_line([start[0], end[0]], [start[1], end[1]], color=color, linewidth=radius * self.output.scale)
        for position in visible.values():
            self.draw_circle(position, color=_RED, radius=radius)
        return self.output

    def _draw_label(self, text: str, frame_xyxy: np.ndarray, color: Any, on_box: bool) -> None:
        """Write the label of an instance at its box, or in the middle of its mask, where no other label is."""
        if not text or not np.isfinite(frame_xyxy).all():
            return
        font_size = self._label_font_size()
        scale = self.output.scale
        padding = scaled_padding(font_size * scale) / scale
        width, height = self.output.text_size_wh(text, font_size * scale)
        width, height = width + 2 * padding, height + 2 * padding
        x0, y0, x1, y1 = frame_xyxy.tolist()
        corners = [(x0, y0 - height), (x0, y0), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1), (x1, y0)]
        corners += [(x0, y1 - height), (x0 - width, y0), (x1 - width, y0), ((x0 + x1 - width) / 2, (y0 + y1) / 2)]
        if not on_box:
            corners.insert(0, ((x0 + x1 - width) / 2, (y0 + y1 - height) / 2))
        x, y = self._label_placer.place((width, height), corners)
        self.draw_text(text, (x + padding, y + padding), color=color, horizontal_alignment="left", font_size=font_size)

    # -- conversions --------------------------------------------------------------------------------------------------

    def _shown_parts(self, predictions: Any) -> dict[str, Any]:
        """Arguments of `overlay_instances` for predictions, but for the colours; also sets the background."""
        predictions = predictions.to(self.cpu_device)
        scores = predictions.scores if predictions.has("scores") else None
        masks = self._predicted_masks(predictions)
        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = union_of_masks(masks, self.output.height, self.output.width) if masks else None
            self.output.reset_image(self._create_grayscale_image(covered))
        return {
            "boxes": predictions.pred_boxes if predictions.has("pred_boxes") else None,
            "labels": _create_text_labels(_classes_of(predictions), scores, self.metadata.get("thing_classes")),
            "masks": masks,
            "keypoints": predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            "alpha": {ColorMode.IMAGE: 0.5, ColorMode.SEGMENTATION: 0.8, ColorMode.IMAGE_BW: 0.3}[self._instance_mode],
        }

    def _predicted_masks(self, predictions: Any) -> list[GenericMask] | None:
        if not predictions.has("pred_masks"):
            return self._convert_masks(predictions.pred_masks_rle) if predictions.has("pred_masks_rle") else None
        if isinstance(predictions.pred_masks, ROIMasks):
            height, width = self.output.height, self.output.width
            parts = paste_masks_in_boxes(predictions.pred_masks.tensor, predictions.pred_boxes, (height, width))
            return [GenericMask.from_part(part, corner_xy, height, width) for part, corner_xy in parts]
        return self._convert_masks(predictions.pred_masks)

    def _colors_of(self, classes: Sequence[int], jittering: bool) -> list[tuple[float, float, float]]:
        """Colours of instances in the present mode."""
        given = self.metadata.get("thing_colors")
        if self._instance_mode == ColorMode.SEGMENTATION:
            colors = [class_color(category, given) for category in classes]
            return [self._jitter(color) for color in colors] if jittering else colors
        return instance_colors(classes, given)

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, except where the mask (height, width) is true."""
        gray = self.img.mean(axis=2, dtype=np.float32).astype(np.uint8)
        image = np.repeat(gray[:, :, None], 3, axis=2)
        if mask is not None:
            image[mask != 0] = self.img[mask != 0]
        return image

    def _jitter(self, color: Any) -> tuple[float, float, float]:
        """A colour near the given one; the sequence is the same in each visualizer."""
        step = self._random.uniform(-0.12, 0.12, 3)
        red, green, blue = (np.array(to_rgb(color)) + step).clip(0.0, 1.0).tolist()
        return red, green, blue

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        """Boxes of any kind as an array (N, 4) or, rotated, (N, 5)."""
        array = as_numbers(boxes, "boxes", "(N, 4), or (N, 5) of rotated boxes", None)
        return as_numbers(array if array.size else array.reshape(-1, 4), "boxes", "(N, 4) or (N, 5)", (2, (4, 5)))

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        """Masks of any kind, one object for each instance."""
        masks = masks_or_polygons
        if isinstance(masks, ROIMasks):
            raise TypeError(
                "ROIMasks cover boxes that they do not know. Draw predictions with draw_instance_predictions(), which "
                "pastes them into pred_boxes, or paste them with to_bitmasks()."
            )
        masks = masks.polygons if isinstance(masks, PolygonMasks) else as_array(masks)
        size_hw = (self.output.height, self.output.width)
        return [m if isinstance(m, GenericMask) else GenericMask(as_array(m), *size_hw) for m in masks]

    def _convert_keypoints(self, keypoints: Any) -> np.ndarray:
        """Keypoints of any kind as an array (N, K, 3)."""
        return as_numbers(keypoints, "keypoints", "(N, keypoints, 3)", (3, (3,)))


def _classes_of(predictions: Any) -> list[int] | None:
    """The class of each instance, if they are known."""
    return [int(c) for c in as_array(predictions.pred_classes)] if predictions.has("pred_classes") else None


def _common_length(**columns: Any) -> int:
    """Return the number of instances; raise an error if the columns differ in length."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Expected the same number of each for all instances, got {lengths}.")
    return next(iter(lengths.values()), 0)


def _read_image(path: str) -> np.ndarray:
    """An image file as it is, without conversion of colours."""
    from PIL import Image

    with PathManager.open(path, "rb") as f:
        return np.asarray(Image.open(cast("IO[bytes]", f)))


def _skeleton_lines(visible: dict[str, Point], rules: Iterable[Any]) -> list[tuple[Point, Point, Any]]:
    """Ends and colours of the rules' lines, and from the middle of the shoulders to the nose and that of the hips."""
    lines: list[tuple[Point, Point, Any]] = []
    for first, second, color in rules:
        if first in visible and second in visible:
            lines.append((visible[first], visible[second], tuple(channel / 255.0 for channel in color)))
    shoulders = _middle(visible, "shoulder")
    for end in (visible.get("nose"), _middle(visible, "hip")):
        if shoulders is not None and end is not None:
            lines.append((shoulders, end, _RED))
    return lines


def _middle(visible: dict[str, Point], part: str) -> Point | None:
    """The point between a left and a right keypoint, where both are visible."""
    left, right = visible.get(f"left_{part}"), visible.get(f"right_{part}")
    if left is None or right is None:
        return None
    return (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
