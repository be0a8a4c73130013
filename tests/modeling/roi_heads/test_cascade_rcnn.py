import copy

import pytest
import torch

from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, build_roi_heads, fast_rcnn
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SIZE = (64, 96)
IMAGES = ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE])
CASCADE = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)


@pytest.fixture
def heads(tiny_rcnn_cfg, tiny_shapes):
    return build_roi_heads(tiny_rcnn_cfg(*CASCADE), tiny_shapes)


@pytest.fixture
def proposals(make_proposals):
    boxes = [[x, y, x + 16, y + 16] for x in range(0, 80, 12) for y in range(0, 48, 12)]
    return [make_proposals(SIZE, boxes) for _ in range(2)]


def test_structure(heads):
    assert isinstance(heads, CascadeROIHeads) and heads.num_cascade_stages == 3
    names = {".".join(k.split(".")[:2]) for k in heads.state_dict()}
    assert {f"{part}.{i}" for part in ("box_head", "box_predictor") for i in range(3)} < names
    assert [tuple(p.box2box_transform.weights) for p in heads.box_predictor] == [
        (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15),
    ]  # fmt: skip
    assert [m.thresholds[1] for m in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    assert heads.proposal_matcher.thresholds[1] == 0.5 and not isinstance(heads.proposal_matchers, torch.nn.Module)


@pytest.mark.parametrize("objects", [[], [[0, 0, 20, 20], [50, 20, 51, 21]]])
def test_training(heads, tiny_features, proposals, make_ground_truth, objects):
    targets = [make_ground_truth(SIZE, objects, [1] * len(objects)), make_ground_truth(SIZE, [], [])]
    with EventStorage() as storage:
        _, losses = heads(IMAGES, tiny_features, proposals, targets)
        names = set(storage.latest())
    expected = {f"loss_{kind}_stage{i}" for kind in ("cls", "box_reg") for i in range(3)} | {"loss_mask"}
    assert set(losses) == expected
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.parameters())
    assert {f"stage{i}/fast_rcnn/cls_accuracy" for i in range(3)} < names
    assert {"stage1/roi_head/num_fg_samples", "stage2/roi_head/num_bg_samples", "roi_head/num_fg_samples"} < names
    heads(IMAGES, tiny_features, proposals, targets)  # also where nobody listens


def test_inference_averages_scores_and_takes_the_last_boxes(monkeypatch, heads, tiny_features, proposals):
    seen = []

    def spy(boxes, scores, *rest):
        seen.append((boxes, scores))
        return [Instances(SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0).long())] * 2, None

    monkeypatch.setattr(fast_rcnn, "fast_rcnn_inference", spy)
    heads.eval()
    with torch.no_grad():
        heads(IMAGES, tiny_features, proposals)
        maps, boxes, probabilities = [tiny_features[f] for f in heads.box_in_features], None, []
        regions = proposals
        for stage in range(3):
            if stage:
                regions = heads._create_proposals_from_boxes(boxes, [SIZE, SIZE])
            predictions = heads._run_stage(maps, regions, stage)
            boxes = heads.box_predictor[stage].predict_boxes(predictions, regions)
            probabilities.append(heads.box_predictor[stage].predict_probs(predictions, regions))
    got_boxes, got_scores = seen[0]
    for i in range(2):
        torch.testing.assert_close(got_boxes[i], boxes[i])
        torch.testing.assert_close(got_scores[i], sum(p[i] for p in probabilities) / 3)


def test_inference(heads, tiny_features, proposals, make_proposals):
    heads.eval()
    with torch.no_grad():
        detections, losses = heads(IMAGES, tiny_features, proposals)
        assert losses == {} and detections[0].pred_masks.shape == (10, 1, 8, 8)
        twin, _ = copy.deepcopy(heads)(IMAGES, tiny_features, proposals)
        assert torch.equal(twin[1].pred_boxes.tensor, detections[1].pred_boxes.tensor)
        nothing, _ = heads(IMAGES, tiny_features, [make_proposals(SIZE, [])] * 2)
    assert [len(x) for x in nothing] == [0, 0]


def test_labels_of_a_later_stage_by_hand(heads, make_ground_truth):
    target = make_ground_truth(SIZE, [[0, 0, 20, 20], [40, 20, 60, 50]], [2, 0])
    boxes = Boxes(torch.tensor([[40.0, 20, 60, 40], [0, 0, 20, 11], [0, 0, 20, 19]]))  # IoU 0.667, 0.55, 0.95
    regions = [Instances(SIZE, proposal_boxes=boxes), Instances(SIZE, proposal_boxes=boxes)]
    with EventStorage() as storage:
        got, empty = heads._match_and_label_boxes(regions, 1, [target, make_ground_truth(SIZE, [], [])])
        assert storage.latest()["stage1/roi_head/num_fg_samples"][0] == 1.0  # (2 + 0) / 2
    assert got.gt_classes.tolist() == [0, 3, 2] and empty.gt_classes.tolist() == [3, 3, 3]
    assert got.gt_boxes.tensor[0].tolist() == [40, 20, 60, 50]


def test_new_proposals_are_clipped_detached_and_in_training_not_empty(heads):
    boxes = torch.tensor([[-5.0, -5, 200, 30], [120, 10, 130, 20]], requires_grad=True)
    (trained,) = heads._create_proposals_from_boxes([boxes], [SIZE])
    assert trained.proposal_boxes.tensor.tolist() == [[0, 0, 96, 30]]
    assert not trained.proposal_boxes.tensor.requires_grad
    (tested,) = heads.eval()._create_proposals_from_boxes([boxes], [SIZE])
    assert len(tested) == 2
    assert boxes[0, 0].item() == -5  # the prediction itself is left alone


def test_scale_gradient():
    x = torch.ones(2, requires_grad=True)
    y = _ScaleGradient.apply(x, 0.25)
    y.sum().backward()
    assert y.tolist() == [1, 1] and x.grad.tolist() == [0.25, 0.25]


def test_init_box_head_can_be_edited(tiny_rcnn_cfg, tiny_shapes):
    class Edited(CascadeROIHeads):
        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            arguments = super()._init_box_head(cfg, input_shape)
            assert set(arguments) == {
                "box_in_features", "box_pooler", "box_heads", "box_predictors", "proposal_matchers",
            }  # fmt: skip
            cls.note = "set while building"
            arguments["proposal_matchers"][2] = Matcher([0.9], [0, 1])
            return arguments

    heads = Edited(tiny_rcnn_cfg(*CASCADE), tiny_shapes)
    assert heads.note and heads.proposal_matchers[2].thresholds[1] == 0.9


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False), "CLS_AGNOSTIC_BBOX_REG"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.4, 0.6, 0.7]), "IOU_THRESHOLDS"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5, 0.6]), "BBOX_REG_WEIGHTS"),
    ],
)
def test_contradicting_configs_are_named(tiny_rcnn_cfg, tiny_shapes, changes, named):
    with pytest.raises(ValueError, match=named):
        build_roi_heads(tiny_rcnn_cfg(*CASCADE, *changes), tiny_shapes)


def test_contradicting_arguments_are_named(heads, tiny_features, proposals, make_ground_truth):
    parts = {
        "box_in_features": ["p2"], "box_pooler": heads.box_pooler, "box_heads": list(heads.box_head),
        "box_predictors": list(heads.box_predictor), "proposal_matchers": heads.proposal_matchers,
        "num_classes": 3, "batch_size_per_image": 4, "positive_fraction": 0.25,
    }  # fmt: skip
    assert CascadeROIHeads(**parts).num_cascade_stages == 3
    with pytest.raises(ValueError, match="proposal_matchers"):
        CascadeROIHeads(**parts, proposal_matcher=heads.proposal_matcher)
    with pytest.raises(ValueError, match="every stage"):
        CascadeROIHeads(**{**parts, "box_heads": list(heads.box_head)[:2]})
    with pytest.raises(ValueError, match="targets"):
        heads._forward_box(tiny_features, proposals)
