"""Draw predictions on the frames of a video, with the colours of objects kept from frame to frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arguments import check_instances, check_panoptic
from .canvas import VisImage
from .colors import ColorMode, class_color
from .labels import _create_text_labels
from .masks import GenericMask
from .panoptic import _PanopticPrediction
from .visualizer import Visualizer, _classes_of

__all__ = ["VideoVisualizer"]

_FRAMES_TO_REMEMBER = 8
_SAME_OBJECT_IOU = {"mask": 0.5, "box": 0.6}


@dataclass(slots=True)
class _DetectedInstance:
    """An object as it was last seen, with its box or its mask."""

    label: int
    bbox: Any = None
    mask_rle: Any = None
    color: Any = None  # RGB from 0 to 1
    ttl: int = _FRAMES_TO_REMEMBER  # for how many more frames it is remembered when it is not seen


class VideoVisualizer:
    """Draws frame after frame. An object that overlaps one of the same class in the last frames keeps its colour.

    Args:
        metadata: names and colours of the classes.
        instance_mode: IMAGE or IMAGE_BW.

    Example:
        >>> from detectron2.data import Metadata
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.visualization import VideoVisualizer
        >>> video = VideoVisualizer(Metadata(thing_classes=["cat"]))
        >>> for x in (20, 25, 30):  # one object, in one colour
        ...     frame = np.zeros((120, 160, 3), np.uint8)
        ...     found = Instances((120, 160), pred_boxes=Boxes([[x, 30, x + 70, 100]]), pred_classes=torch.tensor([0]))
        ...     picture = video.draw_instance_predictions(frame, found).get_image()
        ...
        >>> picture.shape
        (120, 160, 3)
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE):
        if instance_mode == ColorMode.SEGMENTATION:
            raise ValueError("VideoVisualizer draws in the modes IMAGE and IMAGE_BW only.")
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._old_instances: list[_DetectedInstance] = []
        self._colors_given = 0

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Any) -> VisImage:
        """Draw the instances of one frame.

        Args:
            frame: RGB image (height, width, 3), values from 0 to 255.
            predictions: as for `Visualizer.draw_instance_predictions`; with a field `ID`, objects of the same ID have
                the same colour.

        Returns:
            the picture of this frame.
        """
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        check_instances(predictions)
        if not predictions.get_fields() or len(predictions) == 0:
            return visualizer.output
        shown = visualizer._shown_parts(predictions)
        boxes, masks = shown["boxes"], shown["masks"]
        if predictions.has("ID"):
            colors = [class_color(int(number)) for number in predictions.ID]
        else:
            classes = _classes_of(predictions) or [0] * len(predictions)
            colors = self._assign_colors(_detected(classes, None if boxes is None else boxes.tensor.numpy(), masks))
        if masks is not None:
            shown["boxes"] = None  # around masks they add nothing but clutter to moving pictures
        return visualizer.overlay_instances(**shown, assigned_colors=colors)

    def draw_sem_seg(self, frame: np.ndarray, sem_seg: Any, area_threshold: float | None = None) -> VisImage:
        """Draw the semantic segmentation of one frame, as `Visualizer.draw_sem_seg` does."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: Any,
        segments_info: Sequence[dict] | None,
        area_threshold: float | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw the panoptic segmentation of one frame, as `Visualizer.draw_panoptic_seg`; things keep their colours."""
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        check_panoptic(panoptic_seg, segments_info, visualizer.img.shape[:2])
        segmentation = _PanopticPrediction(panoptic_seg, segments_info, visualizer.metadata)
        things = [(GenericMask.without_margins(mask), segment) for mask, segment in segmentation.instance_masks()]
        stuff = [segment for _, segment in segmentation.semantic_masks()]
        ids = segmentation.ids_except([segment["id"] for _, segment in things])
        visualizer.draw_panoptic_seg(ids, stuff, area_threshold=area_threshold, alpha=alpha)
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(segmentation.non_empty_mask()))
        if not things:
            return visualizer.output
        categories = [segment["category_id"] for _, segment in things]
        masks = visualizer._convert_masks([mask for mask, _ in things])
        return visualizer.overlay_instances(
            masks=masks,
            labels=_create_text_labels(categories, None, visualizer.metadata.get("thing_classes")),
            assigned_colors=self._assign_colors(_detected(categories, None, masks)),
            alpha=alpha,
        )

    draw_panoptic_seg = draw_panoptic_seg_predictions

    def _assign_colors(self, instances: list[_DetectedInstance]) -> list[Any]:
        """Give each instance the colour of the remembered object it overlaps most, or a new one, and remember it."""
        overlaps = _overlaps(instances, self._old_instances)
        threshold = _SAME_OBJECT_IOU["mask" if instances and instances[0].mask_rle is not None else "box"]
        continued = set()
        while overlaps.size:
            new, old = np.unravel_index(overlaps.argmax(), overlaps.shape)
            if overlaps[new, old] <= threshold:
                break
            instances[new].color = self._old_instances[old].color
            continued.add(int(old))
            overlaps[new, :] = overlaps[:, old] = 0
        for instance in instances:
            if instance.color is None:
                instance.color = class_color(self._colors_given)
                self._colors_given += 1
        unseen = [old for index, old in enumerate(self._old_instances) if index not in continued]
        for old in unseen:
            old.ttl -= 1
        self._old_instances = instances + [old for old in unseen if old.ttl > 0]
        return [instance.color for instance in instances]


def _detected(labels: Sequence[int], boxes: Any, masks: Any) -> list[_DetectedInstance]:
    return [
        _DetectedInstance(
            label=int(label),
            bbox=None if boxes is None else boxes[index],
            mask_rle=None if masks is None else masks[index].rle,
        )
        for index, label in enumerate(labels)
    ]


def _overlaps(new: list[_DetectedInstance], old: list[_DetectedInstance]) -> np.ndarray:
    """IoU (new, old) of masks, or of boxes without masks; 0 between different classes."""
    import pycocotools.mask as mask_util

    if not new or not old:
        return np.zeros((len(new), len(old)))
    if all(instance.mask_rle is not None for instance in new + old):
        shapes = [[instance.mask_rle for instance in group] for group in (new, old)]
        if len({tuple(rle["size"]) for rle in shapes[0] + shapes[1]}) > 1:
            return np.zeros((len(new), len(old)))
    elif all(instance.bbox is not None for instance in new + old):
        corners = [np.array([instance.bbox for instance in group], dtype=float) for group in (new, old)]
        shapes = [np.concatenate([box[:, :2], box[:, 2:4] - box[:, :2]], axis=1) for box in corners]
    else:
        return np.zeros((len(new), len(old)))
    iou = np.asarray(mask_util.iou(shapes[0], shapes[1], [0] * len(old))).reshape(len(new), len(old))
    same = np.array([i.label for i in new])[:, None] == np.array([i.label for i in old])[None, :]
    return iou * same
