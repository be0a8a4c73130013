from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detectron2.data import Metadata
from detectron2.inference import drawing
from detectron2.inference.drawing import draw
from detectron2.inference.results import Result
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.visualization import Visualizer

SIZE = (120, 160)
RED, BLUE = (255, 0, 0), (0, 0, 255)
NAMES = Metadata(
    thing_classes=["person", "dog"], thing_colors=[RED, BLUE], stuff_classes=["sky", "grass"],
    stuff_colors=[(0, 255, 0), (255, 255, 0)], keypoint_names=["nose", "tail"],
)  # fmt: skip


def result(outputs, metadata=NAMES):
    image = np.full((*SIZE, 3), 128, np.uint8)
    frame = SimpleNamespace(image=image, name="a", path=None, index=0, time=None, error=None, source=None)
    return Result(outputs, frame=frame, image_format="RGB", metadata=metadata)


def two_dogs(**fields):
    found = Instances(SIZE, pred_boxes=Boxes([[20, 30, 70, 90], [90, 30, 140, 90]]))
    found.scores, found.pred_classes = torch.tensor([0.75, 0.5]), torch.tensor([1, 1])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 40:80, 30:60] = masks[1, 40:80, 100:130] = True
    found.pred_masks = masks
    for name, value in fields.items():
        found.set(name, value)
    return found


def changed(picture):
    return (picture != 128).any(axis=2)


def texts(monkeypatch, shown, **options):
    """What is written into a picture."""
    written = []
    monkeypatch.setattr(
        "detectron2.visualization.canvas.VisImage.draw_text", lambda self, text, *_, **__: written.append(text)
    )
    draw(shown, **options)
    monkeypatch.undo()
    return written


def test_nothing_to_draw():
    for outputs in ({"instances": Instances(SIZE)}, {"panoptic_seg": (torch.zeros(SIZE).int(), [])}):
        assert not changed(draw(result(outputs)).get_image()).any()


def test_colours_of_classes_and_of_instances():
    def inside(shown, **options):
        picture = draw(shown, alpha=1.0, labels=False, **options).get_image()
        return picture[60, 45].tolist(), picture[60, 115].tolist()

    assert inside(result({"instances": two_dogs()}), color_by="class") == ([0, 0, 255], [0, 0, 255])
    first, second = inside(result({"instances": two_dogs()}))
    assert first == [0, 0, 255] and second != first
    # an identity keeps its colour wherever it is in the list
    tracked = result({"instances": two_dogs(ID=[5, 8])})
    other = result({"instances": two_dogs(ID=[8, 5])})
    assert inside(tracked) == inside(other)[::-1]
    assert inside(tracked, color_by="class") == ([0, 0, 255], [0, 0, 255])


def test_parts_are_left_out():
    points = torch.tensor([[[45.0, 20.0, 1.0], [45.0, 100.0, 1.0]]]).repeat(2, 1, 1)
    shown = result({"instances": two_dogs(pred_keypoints=points)})
    none = {"boxes": False, "masks": False, "labels": False, "keypoints": False}
    assert not changed(draw(shown, **none).get_image()).any()
    places = {"boxes": (30, 45), "masks": (60, 45), "keypoints": (100, 45)}
    for part in places:
        picture = changed(draw(shown, **{**none, part: True}).get_image())
        assert {name: bool(picture[place]) for name, place in places.items()} == {n: n == part for n in places}
    assert changed(draw(shown, **{**none, "labels": True}).get_image()).any()


def test_labels(monkeypatch):
    assert texts(monkeypatch, result({"instances": two_dogs()})) == ["dog 75%", "dog 50%"]
    assert texts(monkeypatch, result({"instances": two_dogs(ID=[3, 4])}), masks=False) == ["dog #3 75%", "dog #4 50%"]
    assert texts(monkeypatch, result({"instances": two_dogs()}), boxes=False, masks=False) == ["dog 75%", "dog 50%"]
    assert texts(monkeypatch, result({"instances": two_dogs()}), labels=False) == []
    assert texts(monkeypatch, result({"instances": two_dogs()}, None)) == ["1 75%", "1 50%"]


def test_rotated_boxes(monkeypatch):
    found = Instances(SIZE, pred_boxes=RotatedBoxes(torch.tensor([[80.0, 60.0, 60.0, 20.0, 90.0]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    picture = draw(result({"instances": found}), labels=False).get_image()
    rows, columns = np.nonzero(changed(picture))
    assert abs(rows.min() - 30) <= 2 and abs(rows.max() - 90) <= 2 and abs(columns.min() - 70) <= 2
    assert texts(monkeypatch, result({"instances": found})) == ["person 50%"]
    assert not changed(draw(result({"instances": found}), boxes=False, labels=False).get_image()).any()


def panoptic():
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:60], ids[70:110, 20:60], ids[70:110, 90:130] = 1, 2, 3
    dog = {"category_id": 1, "isthing": True, "score": 0.5}
    return ids, [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, **dog}, {"id": 3, **dog}]


def test_panoptic(monkeypatch):
    shown = result({"panoptic_seg": panoptic(), "instances": two_dogs()})
    picture = draw(shown, alpha=1.0, labels=False, color_by="class").get_image()
    assert [picture[place].tolist() for place in ((30, 80), (90, 40), (90, 110), (115, 80))] == [
        [0, 255, 0], [0, 0, 255], [0, 0, 255], [128, 128, 128],
    ]  # fmt: skip
    other = draw(shown, alpha=1.0, labels=False).get_image()
    assert other[90, 40].tolist() != other[90, 110].tolist()
    assert texts(monkeypatch, shown) == ["sky", "dog 50%", "dog 50%"]
    assert texts(monkeypatch, shown, labels=False) == []
    assert not changed(draw(shown, masks=False).get_image()).any()


def test_classes_of_pixels(monkeypatch):
    scores = torch.zeros(3, *SIZE)
    scores[1, :60] = scores[2, 90:] = 1
    shown = result({"sem_seg": scores})
    picture = draw(shown, alpha=1.0, labels=False).get_image()
    assert picture[30, 80].tolist() == [255, 255, 0] and picture[75, 80].tolist() == [0, 255, 0]
    assert sorted(texts(monkeypatch, shown)) == ["2", "grass", "sky"]
    assert sorted(texts(monkeypatch, result({"sem_seg": scores}, None))) == ["0", "1", "2"]
    assert shown.metadata is NAMES


def test_wrong_options():
    shown = result({"instances": two_dogs()})
    with pytest.raises(ValueError, match="color_by is one of 'instance', 'class', got 'score'"):
        draw(shown, color_by="score")
    with pytest.raises(ValueError, match=r"opacity of masks, is from 0 to 1, got 2"):
        draw(shown, alpha=2)
    assert drawing.__all__ == ["draw"]


def test_pictures_without_options_are_those_of_the_visualizer():
    image = np.full((*SIZE, 3), 128, np.uint8)
    ids, segments = panoptic()
    scores = torch.zeros(2, *SIZE)
    scores[1, :60] = 1
    expected = [
        (result({"panoptic_seg": (ids, segments)}), Visualizer(image, NAMES).draw_panoptic_seg(ids, segments)),
        (result({"instances": two_dogs()}), Visualizer(image, NAMES).draw_instance_predictions(two_dogs())),
        (result({"sem_seg": scores}), Visualizer(image, NAMES).draw_sem_seg(scores)),
    ]
    for shown, drawn in expected:
        np.testing.assert_array_equal(draw(shown).get_image(), drawn.get_image())
