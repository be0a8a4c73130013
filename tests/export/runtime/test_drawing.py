"""Results are drawn where they are, in colours that can be told apart, for every task."""

import numpy as np
import pytest

from detectron2.export.runtime.drawing import draw
from detectron2.export.runtime.results import postprocess
from tests.export.runtime.made_up import detections, metadata, padded, picture

SIZE = (160, 240)


def drawn(result, meta, image=None):
    image = picture(*SIZE) if image is None else image
    before = image.copy()
    out = draw(image, result, meta)
    assert np.array_equal(image, before) and out.size == (image.shape[1], image.shape[0]) and out.mode == "RGB"
    return np.asarray(out), before


def result_of(boxes, meta, **fields):
    return postprocess(padded([detections(boxes, SIZE, **fields)], 6), meta, 0, SIZE, SIZE)


def test_picture_stays_as_it_is_without_objects():
    after, before = drawn(result_of([], metadata()), metadata())
    assert np.array_equal(after, before)


def test_mask_and_box_are_painted():
    meta = metadata(outputs=("boxes", "masks"), class_colors=[[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    result = result_of([[60, 50, 180, 130]], meta, mask_side=28)
    result["masks"][:] = False
    result["masks"][0, 70:110, 90:150] = True
    after, before = drawn(result, meta)
    color = np.array(meta["class_colors"][result["classes"][0]])
    assert (after[50, 100:180] == color).all() and (after[70, 90:150] == color).all()  # the edge of box and mask
    expected = before[80:100, 100:140] * 0.55 + color * 0.45
    assert np.abs(after[80:100, 100:140] - expected).max() <= 1
    assert np.array_equal(after[52:68, 62:178], before[52:68, 62:178])  # in the box, outside of the mask
    assert np.array_equal(after[135:], before[135:])


@pytest.mark.parametrize("changes", [{"class_colors": [[200, 100, 0]] * 3}, {"classes": ["cat"]}], ids=["many", "one"])
def test_objects_of_a_class_are_told_apart(changes):
    meta = metadata(**changes)
    result = result_of([[10, 60, 60, 110], [90, 60, 140, 110], [170, 60, 220, 110]], meta)
    result["classes"][:] = 0
    after, _ = drawn(result, meta)
    assert len({tuple(after[109, x]) for x in (20, 100, 180)}) == 3


def test_names_keep_clear_of_each_other():
    one, meta = [60, 50, 180, 130], metadata()
    single, _ = drawn(result_of([one], meta), meta)
    double, before = drawn(result_of([one, one], meta), meta)
    rows = [(a != before).any(axis=2).sum(axis=1) for a in (single, double)]
    assert (rows[1] > 10).sum() > (rows[0] > 10).sum()  # the second name takes rows of its own


@pytest.mark.parametrize("box", [[0, 0, 240, 160], [0, 0, 1, 1], [239, 159, 240, 160], [100.2, 0, 100.4, 160]])
def test_boxes_at_the_border(box):
    after, before = drawn(result_of([box], metadata()), metadata())
    assert (after != before).any()


def test_picture_of_one_pixel():
    found = detections([[0, 0, 1, 1]], (1, 1), mask_side=28)
    found.pred_masks[:] = 1
    result = postprocess(padded([found], 1), metadata(), 0, (1, 1), (1, 1))
    assert drawn(result, metadata(), picture(1, 1))[0].shape == (1, 1, 3)


@pytest.mark.parametrize("ends", [("nose", "tail"), (0, 1)], ids=str)
def test_skeleton(ends):
    about = {"names": ["nose", "tail", "ear"], "connections": [[*ends, [1, 2, 3]], [ends[0], 2, [4, 5, 6]]]}
    meta = metadata("keypoints", keypoints=about)
    result = result_of([[20, 20, 220, 140]], meta, keypoints=3)
    result["keypoints"][0] = [[50, 50, 0.9], [150, 110, 0.8], [100, 40, 0.01]]  # the last is not seen
    after, _ = drawn(result, meta)
    assert tuple(after[80, 100]) == (1, 2, 3) and not (after == [4, 5, 6]).all(axis=2).any()


def test_proposals_have_no_names():
    result = result_of([[60, 50, 180, 130]], metadata("proposals"))
    result.pop("classes")
    after, before = drawn(result, metadata("proposals"))
    assert (after[50, 60:180] != before[50, 60:180]).any() and np.array_equal(after[:49], before[:49])


def test_regions_of_a_segmentation():
    labels = np.zeros(SIZE, np.int32)
    labels[:, 120:] = 1
    meta = metadata("semantic", stuff_classes=["a", "b"], stuff_colors=[[0, 0, 0], [255, 255, 255]])
    after, before = drawn({"sem_seg": labels}, meta)
    assert (after[5:60, 5:100] <= before[5:60, 5:100]).all() and (after[5:60, 130:230] >= before[5:60, 130:230]).all()
    segments = [{"id": 7, "isthing": False, "category_id": 1, "area": 1}]
    after, before = drawn({"sem_seg": labels, "panoptic": labels * 7, "segments": segments}, meta)
    assert np.array_equal(after[:, :120], before[:, :120]) and (after[5:60, 130:230] != before[5:60, 130:230]).any()
