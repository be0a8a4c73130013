"""Results from classes and masks of queries, against the post-processing of transformers and by hand."""

from types import SimpleNamespace

import pytest
import torch

from detectron2.projects.mask2former.post_processing import (
    instances_of_queries,
    panoptic_of_queries,
    semantic_of_queries,
)

SIDE = 384  # transformers makes instances and panoptic segments at this size


def no_queries():
    return torch.zeros(0, 4), torch.zeros(0, 6, 8)


def blobs(queries, classes, seed=0, sure=6.0):
    """Class and mask logits: each query is sure of a class or of none, and of overlapping blobs."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(1, queries, 6, 6, generator=generator) * 4
    masks = torch.nn.functional.interpolate(masks, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[0]
    wanted = torch.randint(0, classes + 1, (queries,), generator=generator)
    logits = torch.randn(queries, classes + 1, generator=generator)
    logits[torch.arange(queries), wanted] += sure
    return logits, masks


def processor():
    """Post-processing of transformers, which needs none of the processor's settings."""
    found = pytest.importorskip("transformers.models.mask2former.image_processing_mask2former")
    return found.Mask2FormerImageProcessor()


def as_outputs(logits, masks):
    return SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])


def test_nothing():
    logits, masks = no_queries()
    assert semantic_of_queries(logits, masks).shape == (3, 6, 8) and not semantic_of_queries(logits, masks).any()
    found = instances_of_queries(logits, masks, 10)
    assert len(found) == 0 and found.image_size == (6, 8) and found.pred_masks.shape == (0, 6, 8)
    segmentation, segments = panoptic_of_queries(logits, masks, {0}, 0.0, 0.0)
    assert segmentation.shape == (6, 8) and not segmentation.any() and segments == []
    # A query that is sure of no object, or not sure enough.
    unsure = torch.tensor([[1.0, 0.0, 0.0, 9.0]]), torch.ones(1, 6, 8)
    assert panoptic_of_queries(*unsure, {0}, 0.0, 0.0)[1] == []
    assert panoptic_of_queries(torch.zeros(1, 4), torch.ones(1, 6, 8), {0}, 0.3, 0.0)[1] == []


def test_semantic_labels_equal_those_of_transformers():
    logits, masks = blobs(9, 4)
    (want,) = processor().post_process_semantic_segmentation(as_outputs(logits, masks), [(SIDE, SIDE)])
    assert torch.equal(semantic_of_queries(logits, masks).argmax(0), want) and len(want.unique()) > 2


def test_instances_equal_those_of_transformers():
    logits, masks = blobs(9, 4)
    (want,) = processor().post_process_instance_segmentation(
        as_outputs(logits, masks), threshold=0.0, target_sizes=[(SIDE, SIDE)], return_binary_maps=True
    )
    found = instances_of_queries(logits, masks, 9)
    scores = torch.tensor([x["score"] for x in want["segments_info"]])
    order = scores.argsort(descending=True)
    assert len(found) == 9
    torch.testing.assert_close(found.scores, scores[order], atol=1e-6, rtol=1e-5)
    assert found.pred_classes.tolist() == [want["segments_info"][i]["label_id"] for i in order.tolist()]
    assert torch.equal(found.pred_masks, want["segmentation"][order].bool())


def test_instances_by_hand():
    masks = torch.full((3, 4, 4), -9.0)
    masks[0, :2, :3], masks[1, 3, 3] = 9.0, 0.5  # the third is empty
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 5.0, 0.0], [9.0, 0.0, 0.0]])
    found = instances_of_queries(logits, masks, 3)
    assert found.pred_classes.tolist() == [0, 1]
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 3, 2], [3, 3, 4, 4]]
    probabilities = logits.softmax(-1)
    want = [probabilities[0, 0] * torch.tensor(9.0).sigmoid(), probabilities[1, 1] * torch.tensor(0.5).sigmoid()]
    torch.testing.assert_close(found.scores, torch.stack(want), atol=1e-5, rtol=1e-5)
    assert instances_of_queries(logits, masks, 3, classes={1}).pred_classes.tolist() == [1]
    assert len(instances_of_queries(logits, masks, 3, classes=set())) == 0
    assert instances_of_queries(logits, masks, 2).pred_classes.tolist() == [1]  # the empty one took the other place


def slow_panoptic(logits, masks, things, sure, left):
    """One query after another."""
    probabilities, stuff = logits.softmax(-1), {}
    best, labels = probabilities.max(-1)
    kept = [q for q in range(len(logits)) if labels[q] < logits.shape[1] - 1 and best[q] > sure]
    segmentation, segments = torch.zeros(masks.shape[1:], dtype=torch.int32), []
    if not kept:
        return segmentation, segments
    owner = torch.stack([best[q] * masks[q].sigmoid() for q in kept]).argmax(0)
    for i, q in enumerate(kept):
        mine, whole, label = owner == i, masks[q].sigmoid() >= 0.5, int(labels[q])
        if not (mine & whole).any() or mine.sum() / whole.sum() < left:
            continue
        if label not in things and label in stuff:
            segmentation[mine & whole] = stuff[label]
            continue
        number = len(segments) + 1
        segmentation[mine & whole] = number
        if label not in things:
            stuff[label] = number
        segments.append({"id": number, "isthing": label in things, "category_id": label, "score": float(best[q])})
    return segmentation, segments


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("sure", "left"), [(0.0, 0.0), (0.8, 0.8), (0.5, 0.3)])
def test_panoptic_results(seed, sure, left):
    logits, masks = blobs(12, 4, seed)
    masks = masks[:, ::8, ::8]
    segmentation, segments = panoptic_of_queries(logits, masks, {0, 1}, sure, left)
    want, wanted = slow_panoptic(logits, masks, {0, 1}, sure, left)
    assert torch.equal(segmentation, want) and segmentation.dtype == torch.int32
    assert [{**x, "score": None} for x in segments] == [{**x, "score": None} for x in wanted]
    assert [x["score"] for x in segments] == pytest.approx([x["score"] for x in wanted])


def test_panoptic_segments_equal_those_of_transformers():
    """It asks where class and mask together are sure, which is the same for classes without a doubt."""
    logits, masks = blobs(6, 4, sure=60.0)
    segmentation, segments = panoptic_of_queries(logits, masks, {0, 1}, 0.8, 0.3)
    (want,) = processor().post_process_panoptic_segmentation(
        as_outputs(logits, masks), 0.8, 0.5, 0.3, label_ids_to_fuse={2, 3}, target_sizes=[(SIDE, SIDE)]
    )
    theirs = {x["id"]: x["label_id"] for x in want["segments_info"]}  # merged ones occur again
    ours = {x["id"]: x["category_id"] for x in segments}
    assert len(ours) > 2 and list(ours.values()) == list(theirs.values())
    for mine, other in zip(ours, theirs, strict=True):
        inside = segmentation == mine
        # Pixels of a query whose mask is not sure there are in no segment of ours.
        assert (want["segmentation"][inside] == other).all() and inside.any()
