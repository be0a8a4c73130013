"""Fixed-size selection against the functions of the models."""

import pytest
import torch

from detectron2.export.graphs.selection import (
    best_labelled,
    best_of_levels,
    best_of_regions,
    clip_boxes,
    top_k,
)
from detectron2.layers import batched_nms
from detectron2.structures import Boxes
from tests.export.graphs.test_operators import some

FORMS = ["operator", "torchvision", "aten"]


@pytest.mark.parametrize("form", [None, *FORMS])
def test_more_are_wanted_than_there_are(form):
    chosen = top_k(torch.tensor([[0.1, 0.7, -torch.inf]]), 5, form)
    assert chosen.scores.tolist()[0][:2] == pytest.approx([0.7, 0.1]) and chosen.index.tolist()[0][:2] == [1, 0]
    assert chosen.found.tolist() == [[True, True, False, False, False]]
    assert int(chosen.index.min()) >= 0 and int(chosen.index.max()) <= 2
    assert top_k(torch.tensor([[0.1, 0.7, 0.3]]), 2, form).index.tolist() == [[1, 2]]


def test_boxes_are_clipped_to_their_own_image():
    boxes, _ = some(2, 1, 9)
    boxes = boxes * 3 - 20
    sizes = torch.tensor([[30, 20], [10, 40]])
    for i, size in enumerate(sizes.tolist()):
        want = Boxes(boxes[i])
        want.clip(tuple(size))
        assert torch.equal(clip_boxes(boxes, sizes)[i], want.tensor)
    assert torch.equal(clip_boxes(boxes[:, :, None], sizes)[:, :, 0], clip_boxes(boxes, sizes))


def agree(chosen, boxes, scores, groups, limit):
    """The choice for each image is that of the models, from candidates in this order."""
    for i in range(len(boxes)):
        valid = (scores[i] > -torch.inf).nonzero()[:, 0]
        keep = batched_nms(boxes[i][valid], scores[i][valid], groups[valid], 0.4)[:limit]
        assert chosen.index[i][chosen.found[i]].tolist() == valid[keep].tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [3, 40])
def test_levels(form, limit):
    boxes, scores = (x.unflatten(0, (2, 3)) for x in some(6, 1, 15))
    scores = scores[:, :, 0]
    chosen = best_of_levels(boxes, scores, 0.4, limit, form)
    agree(chosen, boxes.flatten(1, 2), scores.flatten(1), torch.arange(3).repeat_interleave(15), limit)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of_class", [False, True])
def test_regions(form, of_class):
    num_classes, regions = 4, 12
    boxes = some(2, 1, regions * (num_classes if of_class else 1))[0]
    boxes = boxes.unflatten(1, (regions, -1))
    scores = some(2, regions, num_classes, seed=3)[1]
    chosen = best_of_regions(boxes, scores, 0.4, 10, form)
    every = boxes.expand(-1, -1, num_classes, -1).flatten(1, 2)
    agree(chosen, every, scores.flatten(1), torch.arange(num_classes).repeat(regions), 10)


@pytest.mark.parametrize("form", FORMS)
def test_labelled_candidates(form):
    boxes, scores = some(2, 1, 30)
    classes = torch.arange(30) % 4
    chosen = best_labelled(boxes, scores[:, 0], classes.expand(2, -1), 4, 0.4, 10, form)
    agree(chosen, boxes, scores[:, 0], classes, 10)


@pytest.mark.parametrize("form", FORMS)
def test_no_candidates(form):
    boxes, scores = some(1, 1, 6, empty=2.0)
    assert not best_of_levels(boxes[:, None], scores, 0.4, 3, form).found.any()
    assert not best_of_regions(boxes[:, :, None], scores.transpose(1, 2), 0.4, 3, form).found.any()
    assert not best_labelled(boxes, scores[:, 0], torch.zeros(1, 6).long(), 2, 0.4, 3, form).found.any()
