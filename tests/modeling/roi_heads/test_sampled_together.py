"""Proposals of a batch are labelled and sampled with one wait."""

import pytest
import torch

from detectron2.modeling import fixed_shapes
from detectron2.modeling.fixed_shapes import PaddedProposals, num_foreground
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.roi_heads.matched_masks import MatchedPolygonMasks
from detectron2.modeling.roi_heads.sampled_together import sampled_together
from detectron2.structures import Boxes, Instances
from tests.waits import Waits

K = 3


def heads(**kwargs):
    arguments = {"num_classes": K, "batch_size_per_image": 6, "positive_fraction": 0.5, "proposal_append_gt": True}
    return ROIHeads(**{**arguments, "proposal_matcher": Matcher([0.5], [0, 1]), **kwargs})


def padded(counts, is_finite=True):
    """Three places for each image: on the first object, near it, and far from all."""
    boxes = torch.tensor([[4.0, 4, 40, 36], [4, 4, 40, 33], [70, 2, 80, 12]])
    regions = [
        Instances((64, 96), proposal_boxes=Boxes(boxes.clone()), objectness_logits=torch.tensor([3.0, 2, 1]))
        for _ in counts
    ]
    return PaddedProposals(regions, torch.tensor(counts), torch.tensor(is_finite), lambda: "not finite")


def test_no_images():
    assert sampled_together(heads(), [], []) == []


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("counts", [(0, 3), (1, 2), (3, 3)])
def test_only_proposals_are_drawn_and_their_numbers_read_at_once(counts, append, make_ground_truth):
    targets = [make_ground_truth((64, 96), [[4, 4, 40, 36]], [1]), make_ground_truth((64, 96), [], [])]
    proposals = padded(counts)
    with Waits() as waits:
        sampled = sampled_together(heads(proposal_append_gt=append), proposals, targets)
    assert waits.found == ["cpu"]
    # All that overlap the object are foreground, three at most; the second image has none.
    expected = min(min(counts[0], 2) + append, 3), 0
    for per_image, count, foreground, more in zip(sampled, counts, expected, (append, 0), strict=True):
        assert len(per_image) == count + more
        assert num_foreground(per_image) == foreground
        assert per_image.gt_classes.tolist() == [1] * foreground + [K] * (len(per_image) - foreground)
        assert not torch.isinf(per_image.objectness_logits).any()
    assert sampled[0].gt_boxes.tensor.tolist() == [[4, 4, 40, 36]] * len(sampled[0])
    assert isinstance(sampled[0].gt_masks, MatchedPolygonMasks) and not sampled[1].has("gt_masks")


def test_predictions_that_are_not_finite_are_an_error(make_ground_truth):
    with pytest.raises(FloatingPointError, match="not finite"):
        sampled_together(heads(), padded((3,), is_finite=False), [make_ground_truth((64, 96), [], [])])


def test_lists_of_proposals_keep_their_fields(make_ground_truth):
    proposals = padded((3,)).padded
    proposals[0].note = ["a", "b", "c"]
    target = make_ground_truth((64, 96), [[4, 4, 40, 36]], [1])
    (sampled,) = sampled_together(heads(proposal_append_gt=False), proposals, [target])
    assert sorted(sampled.note) == ["a", "b", "c"] and len(sampled.gt_masks) == 3


def test_masks_are_cut_out_for_the_boxes_that_the_host_knows(make_ground_truth, monkeypatch):
    monkeypatch.setattr(fixed_shapes, "runs_ahead", lambda device: True)
    target = make_ground_truth((64, 96), [[4, 4, 40, 36], [30, 10, 90, 60]], [1, 2])
    with Waits() as waits:
        (sampled,) = heads().label_and_sample_proposals(padded((3,)), [target])
        foreground = sampled[: num_foreground(sampled)]
        masks = foreground.gt_masks.crop_and_resize(foreground.proposal_boxes.tensor, 7)
    assert waits.found == ["cpu"]
    plain = MatchedPolygonMasks.__bases__[0](foreground.gt_masks.polygons)
    assert torch.equal(masks, plain.crop_and_resize(foreground.proposal_boxes.tensor, 7))

    boxes = foreground.proposal_boxes.tensor
    boxes += 1.0  # changed behind its back
    with Waits() as waits:
        moved = foreground.gt_masks.crop_and_resize(boxes, 7)
    assert torch.equal(moved, plain.crop_and_resize(boxes, 7)) and "cpu" in waits.found
    assert type(foreground.gt_masks[torch.tensor([0])]) is type(plain)
