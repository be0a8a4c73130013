"""Selection of proposals against a slow reference, and the joining of ground truth."""

import pytest
import torch

from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    add_ground_truth_to_proposals_single_image,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

DEFAULTS = {"nms_thresh": 0.5, "pre_nms_topk": 100, "post_nms_topk": 100, "min_box_size": 0.0, "training": False}


def find(boxes, logits, sizes_hw, **kwargs):
    return find_top_rpn_proposals(boxes, logits, sizes_hw, **{**DEFAULTS, **kwargs})


def iou(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_reference(levels, size_hw, nms_thresh, pre_nms_topk, post_nms_topk, min_box_size):
    """The selection for one image, in plain Python; `levels` holds lists of (logit, box)."""
    height, width = size_hw
    kept = []
    for level in levels:
        best = sorted(level, key=lambda x: -x[0])[:pre_nms_topk]
        survivors = []
        for logit, (x1, y1, x2, y2) in best:
            box = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
            big = box[2] - box[0] > min_box_size and box[3] - box[1] > min_box_size
            if big and all(iou(box, other) <= nms_thresh for _, other in survivors):
                survivors.append((logit, box))
        kept += survivors
    return sorted(kept, key=lambda x: -x[0])[:post_nms_topk]


def random_level(num_images, count):
    corner = torch.rand(num_images, count, 2) * 80 - 10
    return torch.cat((corner, corner + torch.rand(num_images, count, 2) * 50), dim=2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"nms_thresh": 0.5, "pre_nms_topk": 100, "post_nms_topk": 100, "min_box_size": 0.0},
        {"nms_thresh": 0.3, "pre_nms_topk": 12, "post_nms_topk": 100, "min_box_size": 10.0},
        {"nms_thresh": 0.7, "pre_nms_topk": 100, "post_nms_topk": 5, "min_box_size": 0.0},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_against_slow_reference(kwargs, training):
    sizes_hw = [(60, 70), (50, 40)]
    boxes = [random_level(2, 40), random_level(2, 15)]
    logits = [torch.randn(2, 40), torch.randn(2, 15)]
    results = find(boxes, logits, sizes_hw, training=training, **kwargs)
    assert len(results) == 2
    for i, (result, size_hw) in enumerate(zip(results, sizes_hw, strict=True)):
        levels = [list(zip(s[i].tolist(), b[i].tolist(), strict=True)) for b, s in zip(boxes, logits, strict=True)]
        expected = slow_reference(levels, size_hw, **kwargs)
        assert result.image_size == size_hw
        assert torch.allclose(result.objectness_logits, torch.tensor([s for s, _ in expected]))
        assert torch.allclose(result.proposal_boxes.tensor, torch.tensor([b for _, b in expected]), atol=1e-5)


def test_no_images_and_no_anchors():
    assert find([torch.zeros(0, 3, 4)], [torch.zeros(0, 3)], []) == []
    (result,) = find([torch.zeros(1, 0, 4)], [torch.zeros(1, 0)], [(5, 5)])
    assert len(result) == 0 and result.proposal_boxes.tensor.shape == (0, 4)


def test_levels_do_not_suppress_each_other():
    box = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    (result,) = find([box, box], [torch.tensor([[1.0]]), torch.tensor([[2.0]])], [(20, 20)])
    assert result.objectness_logits.tolist() == [2, 1]


def test_input_is_left_alone():
    boxes, logits = [random_level(1, 9)], [torch.randn(1, 9)]
    before = boxes[0].clone()
    find(boxes, logits, [(20, 20)])
    assert torch.equal(boxes[0], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["box", "logit"])
def test_not_finite(bad, where):
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]], [[0.0, 0.0, 9.0, 9.0]] * 2])
    logits = torch.zeros(2, 2)
    if where == "box":
        boxes[1, 0, 2] = bad
    else:
        logits[1, 0] = bad
    results = find([boxes], [logits], [(40, 40)] * 2)
    assert [len(r) for r in results] == [2, 1]
    with EventStorage(start_iter=7), pytest.raises(FloatingPointError, match=r"in iteration 7, for 1 of 4") as e:
        find([boxes], [logits], [(40, 40)] * 2, training=True)
    assert "images [1]" in str(e.value) and ("box deltas" if where == "box" else "logits") in str(e.value)
    with pytest.raises(FloatingPointError, match="diverged"):
        find([boxes], [logits], [(40, 40)] * 2, training=True)


def test_logits_of_low_precision():
    boxes = random_level(1, 9)
    (result,) = find([boxes], [torch.randn(1, 9, dtype=torch.bfloat16)], [(90, 90)])
    assert result.objectness_logits.dtype == torch.float32


def proposals(count, **fields):
    p = Instances((50, 60))
    p.proposal_boxes = Boxes(torch.rand(count, 4))
    p.objectness_logits = torch.randn(count)
    for name, value in fields.items():
        p.set(name, value)
    return p


@pytest.mark.parametrize("num_proposals", [0, 3])
@pytest.mark.parametrize("num_gt", [0, 2])
@pytest.mark.parametrize("as_boxes", [True, False])
def test_ground_truth_is_appended(num_proposals, num_gt, as_boxes):
    gt = Instances((50, 60), gt_boxes=Boxes(torch.rand(num_gt, 4)), gt_classes=torch.zeros(num_gt, dtype=torch.int64))
    before = proposals(num_proposals)
    (after,) = add_ground_truth_to_proposals([gt.gt_boxes if as_boxes else gt], [before])
    assert set(after.get_fields()) == {"proposal_boxes", "objectness_logits"} and after.image_size == (50, 60)
    assert torch.equal(after.proposal_boxes.tensor, torch.cat((before.proposal_boxes.tensor, gt.gt_boxes.tensor)))
    assert torch.equal(after.objectness_logits[:num_proposals], before.objectness_logits)
    assert torch.allclose(
        after.objectness_logits[num_proposals:].double().exp(), torch.tensor(1e10).double(), rtol=1e-4
    )


def test_other_fields_come_along():
    gt = Instances((50, 60), gt_boxes=Boxes(torch.rand(2, 4)), level=torch.tensor([7, 8]))
    after = add_ground_truth_to_proposals_single_image(gt, proposals(1, level=torch.tensor([5])))
    assert after.level.tolist() == [5, 7, 8]


def test_fewer_image_sizes_than_images_give_as_many_results():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 1, 4)
    assert len(find([boxes], [torch.ones(3, 1)], [(40, 50)] * 2)) == 2


def test_infinite_logits_are_passed_over_in_evaluation():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 30]]])
    logits = torch.tensor([[float("inf"), 1.0, float("-inf")]])
    (result,) = find([boxes], [logits], [(40, 50)], training=False)
    assert result.objectness_logits.tolist() == [1]


@pytest.mark.parametrize("error", [AssertionError, ValueError])
def test_missing_fields_are_an_error_of_both_classes(error):
    with pytest.raises(error, match="lacks"):
        add_ground_truth_to_proposals([Boxes([[0, 0, 1, 1]])], [proposals(1, extra=torch.ones(1))])
    with pytest.raises(error, match="2 images"):
        add_ground_truth_to_proposals([Boxes([])] * 2, [proposals(1)])


def test_ground_truth_must_fit():
    with pytest.raises(ValueError, match=r"fields \['level'\]"):
        add_ground_truth_to_proposals([Boxes(torch.rand(1, 4))], [proposals(1, level=torch.tensor([5]))])
    with pytest.raises(ValueError, match="ground truth of 0 images but proposals of 1"):
        add_ground_truth_to_proposals([], [proposals(1)])
    assert add_ground_truth_to_proposals([], []) == []
