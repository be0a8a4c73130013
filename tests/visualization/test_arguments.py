"""Every public drawing function draws what our models return, or says what it takes."""

import logging
import re

import numpy as np
import pytest
import torch

from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.visualization import ColorMode, VideoVisualizer, Visualizer

GREY = np.full((60, 80, 3), 128, np.uint8)
NAMES = {"thing_classes": ["car"], "thing_colors": [(0, 0, 255)], "stuff_classes": ["sky", "road"]}


def _found():
    return Instances(
        (60, 80), pred_boxes=Boxes([[5, 5, 40, 40]]), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0])
    )


def _picture(image=GREY, **metadata):
    return Visualizer(image, Metadata(**{**NAMES, **metadata}))


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (lambda x: {"instances": x}, 'predictions["instances"]'),
        (lambda x: {"sem_seg": x}, "draw_sem_seg()"),
        (lambda x: [{"instances": x}], 'predictions[0]["instances"]'),
        (lambda x: x.scores > 0.7, "instances[instances.scores > 0.7]"),
        (lambda _: None, "Pass the Instances"),
    ],
)
@pytest.mark.parametrize("is_video", [False, True])
def test_other_than_instances(given, cure, is_video):
    with pytest.raises(TypeError, match=re.escape(cure)):
        if is_video:
            VideoVisualizer(Metadata(**NAMES)).draw_instance_predictions(GREY, given(_found()))
        else:
            _picture().draw_instance_predictions(given(_found()))


@pytest.mark.parametrize("metadata", [[(0, 0, 255)], "coco_2017_val", 3])
def test_other_than_metadata(metadata):
    with pytest.raises(TypeError, match=r"MetadataCatalog\.get\(name\)"):
        Visualizer(GREY, metadata)
    with pytest.raises(TypeError, match=r"MetadataCatalog\.get\(name\)"):
        VideoVisualizer(metadata).draw_instance_predictions(GREY, _found())


@pytest.mark.parametrize(
    "image",
    [GREY / 255, (GREY / 255).astype(np.float32), GREY.astype(np.uint16) * 257, GREY.astype(float), torch.tensor(GREY)],
)
def test_images_of_other_types_keep_their_grey(image):
    assert _picture(image).draw_instance_predictions(_found()).get_image()[55, 70].tolist() == [128] * 3


@pytest.mark.parametrize(
    "image", [(GREY - 128.0) / 57 - 1, GREY.astype(int) * 257, GREY * np.nan, GREY.astype(float) * 10]
)
def test_images_of_another_range(image):
    with pytest.raises(ValueError, match="from 0 to 255"):
        _picture(image)


@pytest.mark.parametrize("image", [None, "cat.jpg", np.array(["a"])])
def test_no_image(image):
    with pytest.raises(TypeError, match="RGB array"):
        _picture(image)


CALLS = {
    "keypoints of all": lambda v: v.draw_and_connect_keypoints(torch.rand(3, 6, 3)),
    "two boxes": lambda v: v.draw_box(np.zeros((2, 4))),
    "a rotated box": lambda v: v.draw_box((1, 2, 3, 4, 5)),
    "a plain box": lambda v: v.draw_rotated_box_with_label((1, 2, 3, 4)),
    "a circle": lambda v: v.draw_circle((1, 2, 3), "r"),
    "a text": lambda v: v.draw_text("a", 3),
    "a polygon": lambda v: v.draw_polygon([1, 2, 3], "r"),
    "names": lambda v: v.draw_polygon("abc", "r"),
    "boxes": lambda v: v.overlay_instances(boxes=_found()),
    "boxes of six": lambda v: v.overlay_instances(boxes=np.zeros((2, 6))),
    "keypoints": lambda v: v.overlay_instances(keypoints=np.ones((6, 3))),
    "labels": lambda v: v.overlay_instances(boxes=np.ones((3, 4)), labels="cat"),
    "records": lambda v: v.draw_dataset_dict([{}]),
    "whole output, semantic": lambda v: v.draw_sem_seg({"sem_seg": torch.rand(2, 60, 80)}),
    "whole output, panoptic": lambda v: v.draw_panoptic_seg({"panoptic_seg": 1}, None),
    "segments without a category": lambda v: v.draw_panoptic_seg(np.ones((60, 80), int), [{"id": 1}]),
    "segments by name": lambda v: v.draw_panoptic_seg(np.ones((60, 80), int), ["sky"]),
    "pair": lambda v: v.draw_panoptic_seg((torch.zeros(60, 80), []), []),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_wrong_arguments(call):
    with pytest.raises(TypeError, match=r"(?i)expected|takes|a list"):
        call(_picture())


@pytest.mark.parametrize(
    "call",
    [
        lambda v: v.draw_sem_seg(np.zeros((30, 40), int)),
        lambda v: v.draw_sem_seg(np.full((60, 80), 0.5)),
        lambda v: v.draw_panoptic_seg(np.zeros((30, 40), int), []),
        lambda v: v.draw_binary_mask(np.zeros((30, 40), bool)),
        lambda v: v.draw_soft_mask(np.zeros((30, 40))),
    ],
)
def test_maps_of_another_size(call):
    with pytest.raises(ValueError, match="60"):
        call(_picture())


def test_scores_of_a_model_are_drawn_as_their_labels():
    labels = torch.zeros(60, 80, dtype=torch.long)
    labels[:, 40:] = 1
    scores = torch.nn.functional.one_hot(labels, 2).permute(2, 0, 1).float()
    expected = _picture().draw_sem_seg(labels).get_image()
    assert (_picture().draw_sem_seg(scores).get_image() == expected).all()
    video = VideoVisualizer(Metadata(**NAMES))
    assert (video.draw_sem_seg(GREY, scores).get_image() == expected).all()


def _changed(drawn, places):
    return [bool((drawn.get_image()[y, x] != 128).any()) for y, x in places]


@pytest.mark.parametrize("names", [None, ["background"], list("abcdefgh")])
def test_every_label_has_a_colour(names):
    labels = np.zeros((60, 80), int)
    labels[10:50, 10:40], labels[10:50, 45:75] = 1, 7
    drawn = _picture(stuff_classes=names).draw_sem_seg(labels, alpha=1.0)
    assert _changed(drawn, ((55, 5), (12, 12), (12, 47))) == [True] * 3


@pytest.mark.parametrize(("ignored", "metadata"), [(255, {}), (-1, {}), (9, {"ignore_label": 9})])
def test_ignored_pixels_are_not_coloured(ignored, metadata):
    labels = np.zeros((60, 80), int)
    labels[:, 40:] = ignored
    drawn = _picture(**metadata).draw_sem_seg(labels, alpha=1.0)
    assert _changed(drawn, ((5, 5), (5, 75))) == [True, False]


def test_segments_without_a_description_are_named(caplog):
    ids = np.zeros((60, 80), int)
    ids[:, 20:40], ids[:, 40:60], ids[:, 60:] = 1, 2, 3
    info = [{"id": 1, "category_id": 0, "isthing": True}, {"id": 2, "category_id": 1, "isthing": False}]
    _picture().draw_panoptic_seg(ids, info)
    assert "The ids [3]" in caplog.text
    caplog.clear()
    VideoVisualizer(Metadata(**NAMES)).draw_panoptic_seg_predictions(GREY, ids, info)
    assert "The ids [3]" in caplog.text
    caplog.clear()
    VideoVisualizer(None).draw_panoptic_seg_predictions(GREY, np.where(ids == 3, 0, ids), info)
    assert not caplog.records


def test_rules_for_unknown_keypoints_are_named(caplog):
    points = np.array([[10, 10, 1.0], [30, 30, 1.0]])
    rules = [("tip", "end", (255, 0, 0)), ("tip", "middle part", (255, 0, 0))]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _picture(keypoint_names=["tip", "end"], keypoint_connection_rules=rules).draw_and_connect_keypoints(points)
    assert caplog.text.count("['middle part']") == 1


@pytest.mark.parametrize("mode", list(ColorMode))
def test_a_class_below_zero_has_neither_name_nor_colour_of_another(mode):
    drawn = []
    for metadata in (NAMES, {"thing_classes": [], "thing_colors": []}):
        found = _found()
        found.pred_classes = torch.tensor([-1])
        drawn.append(Visualizer(GREY, Metadata(**metadata), instance_mode=mode).draw_instance_predictions(found))
    assert (drawn[0].get_image() == drawn[1].get_image()).all()


@pytest.mark.parametrize("classes", [[0], torch.tensor([0.0]), np.array([0]), np.array([0], np.uint8)])
def test_classes_in_other_types(classes):
    found, video = _found(), VideoVisualizer(Metadata(**NAMES))
    expected = _picture().draw_instance_predictions(found).get_image()
    found.pred_classes = classes
    assert (_picture().draw_instance_predictions(found).get_image() == expected).all()
    assert (video.draw_instance_predictions(GREY, found).get_image() != GREY).any()


def test_nothing_was_found():
    nothing = Instances((60, 80))
    assert (_picture().draw_instance_predictions(nothing).get_image() == GREY).all()
    assert (VideoVisualizer(None).draw_instance_predictions(GREY, nothing).get_image() == GREY).all()


def test_unknown_mode():
    with pytest.raises(ValueError, match="ColorMode"):
        Visualizer(GREY, instance_mode=7)
