import numpy as np
import pytest
import torch

from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.visualization import ColorMode, VideoVisualizer
from detectron2.visualization.video_visualizer import _DetectedInstance

HEIGHT, WIDTH = 80, 120
META = Metadata(thing_classes=["a", "b"], stuff_classes=["s"], stuff_colors=[[0, 255, 0]])


def frame(value=60):
    return np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)


def detected(*boxes, classes=None, masks=False):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    instances.scores = torch.ones(len(boxes))
    if masks:
        instances.pred_masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(instances.pred_masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
    return instances


def colors_of(video):
    return [instance.color for instance in video._old_instances]


@pytest.mark.parametrize("masks", [True, False])
def test_objects_keep_their_colours(masks):
    video = VideoVisualizer(META)
    video.draw_instance_predictions(frame(), detected([10, 10, 40, 40], [60, 10, 100, 60], masks=masks))
    first = colors_of(video)
    assert first[0] != first[1]
    # both move a little, and come in the other order
    video.draw_instance_predictions(frame(), detected([62, 11, 102, 61], [11, 11, 41, 41], masks=masks))
    assert colors_of(video) == first[::-1]


def test_another_class_is_another_object():
    video = VideoVisualizer(META)
    video.draw_instance_predictions(frame(), detected([10, 10, 40, 40]))
    video.draw_instance_predictions(frame(), detected([10, 10, 40, 40], classes=[1]))
    assert len(set(colors_of(video))) == 2


def test_objects_are_forgotten_in_the_end():
    video = VideoVisualizer(META)
    video.draw_instance_predictions(frame(), detected([10, 10, 40, 40]))
    (color,) = colors_of(video)
    for _ in range(4):
        video.draw_instance_predictions(frame(), detected([80, 50, 100, 70]))
    video.draw_instance_predictions(frame(), detected([10, 10, 40, 40]))
    assert colors_of(video)[0] == color
    for _ in range(9):
        video.draw_instance_predictions(frame(), detected([80, 50, 100, 70]))
    assert len(video._old_instances) == 1


def test_frames_without_objects_are_left_alone():
    video = VideoVisualizer(META)
    image = video.draw_instance_predictions(frame(), detected()).get_image()
    np.testing.assert_array_equal(image, frame())


def test_identities_decide_the_colour():
    pictures = []
    for place in ([10, 10, 40, 40], [60, 30, 90, 60]):
        video = VideoVisualizer(META)
        instances = detected(place, masks=True)
        instances.ID = torch.tensor([5])
        picture = video.draw_instance_predictions(frame(), instances).get_image()
        pictures.append(picture[place[3] - 3, place[0] + 3])
    np.testing.assert_array_equal(*pictures)


def test_black_and_white():
    colourful = frame(0)
    colourful[..., 1] = 120
    video = VideoVisualizer(META, ColorMode.IMAGE_BW)
    image = video.draw_instance_predictions(colourful, detected([10, 10, 60, 60], masks=True)).get_image()
    assert np.ptp(image[75, 110].astype(int)) == 0
    with pytest.raises(ValueError, match="IMAGE_BW"):
        VideoVisualizer(META, ColorMode.SEGMENTATION)


@pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
def test_panoptic_frames(mode):
    segments = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    segments[40:] = 1
    segments[5:30, 5:30] = 2
    info = [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 1, "isthing": True}]
    video = VideoVisualizer(META, mode)
    image = video.draw_panoptic_seg_predictions(frame(0), segments, info, alpha=0.5).get_image()
    np.testing.assert_allclose(image[75, 10], [0, 127, 0], atol=1)
    assert image[27, 8].any()
    assert not image[5, 110].any()
    assert len(video._old_instances) == 1
    image = video.draw_panoptic_seg_predictions(frame(0), segments, info[:1]).get_image()
    assert not image[27, 8].any()


def test_semantic_frames():
    image = VideoVisualizer(META).draw_sem_seg(frame(0), torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)).get_image()
    assert image[5, 5, 1] > 150


def test_a_memory_of_an_object():
    instance = _DetectedInstance(label=1, bbox=[0, 0, 1, 1], mask_rle=None, color=(1, 0, 0), ttl=3)
    assert (instance.label, instance.ttl) == (1, 3)
