import copy
import pickle

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.matched_masks import MatchedBitMasks
from detectron2.modeling.roi_heads.roi_heads import (
    ROI_HEADS_REGISTRY,
    add_ground_truth_to_proposals,
    select_proposals_with_visible_keypoints,
)
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage

SIZE = (64, 96)
IMAGES = ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE])
MATCHER = Matcher([0.5], [0, 1], allow_low_quality_matches=False)


def base(batch=4, fraction=0.5, append=False, num_classes=3):
    return ROIHeads(
        num_classes=num_classes,
        batch_size_per_image=batch,
        positive_fraction=fraction,
        proposal_matcher=MATCHER,
        proposal_append_gt=append,
    )


def grid_proposals(make_proposals):
    boxes = [[x, y, x + 16, y + 16] for x in range(0, 80, 12) for y in range(0, 48, 12)]
    return [make_proposals(SIZE, boxes) for _ in range(2)]


# --- sampling --------------------------------------------------------------------------------------------------------


def test_labels_and_fields_follow_the_matched_object(make_proposals, make_ground_truth):
    target = make_ground_truth(SIZE, [[0, 0, 20, 20], [40, 20, 60, 50]], [2, 0])
    boxes = [[40, 20, 60, 48], [0, 0, 20, 18], [70, 0, 90, 30], [0, 0, 20, 20]]
    heads = base(batch=100, fraction=1.0)
    with EventStorage() as storage:
        (got,) = heads.label_and_sample_proposals([make_proposals(SIZE, boxes)], [target])
        stats = {k: float(v[0]) for k, v in storage.latest().items()}
    by_box = {tuple(b): i for i, b in enumerate(got.proposal_boxes.tensor.tolist())}
    order = [by_box[tuple(map(float, b))] for b in boxes]
    assert got.gt_classes[order].tolist() == [0, 2, 3, 2]  # 3: background
    assert got.gt_boxes.tensor[order][[0, 1, 3]].tolist() == [[40, 20, 60, 50], [0, 0, 20, 20], [0, 0, 20, 20]]
    assert len(got.gt_masks) == len(got.gt_keypoints) == 4
    assert torch.equal(got.gt_keypoints.tensor[order[0]], target.gt_keypoints.tensor[1])
    assert stats == {"roi_head/num_fg_samples": 3, "roi_head/num_bg_samples": 1}


def test_sample_is_limited_and_foreground_comes_first(make_proposals, make_ground_truth):
    target = make_ground_truth(SIZE, [[0, 0, 20, 20]], [1])
    boxes = [[0, 0, 20, 20 - 0.1 * i] for i in range(6)] + [[50, 30, 60 + i, 50] for i in range(6)]
    (got,) = base(batch=8, fraction=0.25).label_and_sample_proposals([make_proposals(SIZE, boxes)], [target])
    assert got.gt_classes.tolist() == [1, 1, 3, 3, 3, 3, 3, 3]


def test_ground_truth_joins_the_proposals(make_proposals, make_ground_truth):
    target = make_ground_truth(SIZE, [[0, 0, 20, 20]], [1])
    heads = base(batch=8, append=True)
    (got,) = heads.label_and_sample_proposals([make_proposals(SIZE, [])], [target])
    assert got.proposal_boxes.tensor.tolist() == [[0, 0, 20, 20]] and got.gt_classes.tolist() == [1]


def test_image_without_objects_gives_background(make_proposals, make_ground_truth):
    target = make_ground_truth(SIZE, [], [])
    (got,) = base().label_and_sample_proposals([make_proposals(SIZE, [[0, 0, 9, 9]])], [target])
    assert got.gt_classes.tolist() == [3] and not got.has("gt_boxes") and not got.has("gt_masks")
    (got,) = base().label_and_sample_proposals([make_proposals(SIZE, [])], [target])
    assert len(got) == 0
    assert base().label_and_sample_proposals([], []) == []


def test_ignored_proposals_are_never_sampled(make_proposals, make_ground_truth):
    heads = base(batch=10)
    heads.proposal_matcher = Matcher([0.3, 0.7], [0, -1, 1])
    target = make_ground_truth(SIZE, [[0, 0, 20, 20]], [1])
    boxes = [[0, 0, 20, 10], [0, 0, 20, 19], [60, 30, 80, 50]]  # IoU 0.5, 0.95, 0
    (got,) = heads.label_and_sample_proposals([make_proposals(SIZE, boxes)], [target])
    assert sorted(got.gt_classes.tolist()) == [1, 3] and len(got) == 2


def test_bitmaps_are_not_copied_for_every_region(make_proposals, make_ground_truth):
    target = make_ground_truth(SIZE, [[0, 0, 20, 20], [40, 20, 60, 50]], [2, 0], mask_format="bitmask")
    boxes = [[40, 20, 60, 48], [0, 0, 20, 18]]
    (got,) = base(fraction=1.0).label_and_sample_proposals([make_proposals(SIZE, boxes)], [target])
    assert isinstance(got.gt_masks, MatchedBitMasks)
    for i in range(2):
        own = got.gt_boxes.tensor[i].long().tolist()
        assert torch.equal(got.gt_masks.get_bounding_boxes().tensor[i].long(), torch.tensor(own))


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (-1, "-1")])
def test_labels_outside_the_classes_are_named(make_proposals, make_ground_truth, label, shown):
    targets = [make_ground_truth(SIZE, [], []), make_ground_truth(SIZE, [[0, 0, 9, 9]], [label])]
    proposals = [make_proposals(SIZE, [[0, 0, 9, 9]])] * 2
    with pytest.raises(ValueError, match=rf"image 1 .* label {shown}, .* 3 classes.*NUM_CLASSES"):
        base().label_and_sample_proposals(proposals, targets)


def test_select_foreground():
    a, b = Instances(SIZE, gt_classes=torch.tensor([3, 0, -1, 2])), Instances(SIZE, gt_classes=torch.tensor([3]))
    chosen, masks = select_foreground_proposals([a, b], 3)
    assert [x.gt_classes.tolist() for x in chosen] == [[0, 2], []]
    assert [m.tolist() for m in masks] == [[False, True, False, True], [False]]
    assert select_foreground_proposals([], 3) == ([], [])
    with pytest.raises(ValueError, match="gt_classes"):
        select_foreground_proposals([Instances(SIZE, proposal_boxes=Boxes(torch.zeros(1, 4)))], 3)


def test_select_visible_keypoints():
    keypoints = [  # of a box (10, 10, 20, 30)
        [[15, 20, 2], [0, 0, 0]],
        [[10, 30, 1], [50, 50, 2]],  # on the border counts
        [[15, 20, 0], [15, 25, 0]],  # not labelled
        [[21, 20, 2], [15, 31, 2]],  # outside
    ]
    some = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[10.0, 10, 20, 30]] * 4)))
    some.gt_keypoints = Keypoints(torch.tensor(keypoints, dtype=torch.float32))
    some.row = torch.arange(4)
    none = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))  # lacks gt_keypoints
    with EventStorage() as storage:
        got = select_proposals_with_visible_keypoints([some, none])
        assert storage.latest()["keypoint_head/num_fg_samples"][0] == 1.0
    assert [len(x) for x in got] == [2, 0] and got[0].row.tolist() == [0, 1]
    assert select_proposals_with_visible_keypoints([]) == []


def test_names_that_projects_import_from_here():
    assert callable(add_ground_truth_to_proposals)
    assert {"StandardROIHeads", "Res5ROIHeads", "CascadeROIHeads"} <= {name for name, _ in ROI_HEADS_REGISTRY}


# --- StandardROIHeads -------------------------------------------------------------------------------------------------


def standard(tiny_rcnn_cfg, tiny_shapes, *changes):
    return build_roi_heads(tiny_rcnn_cfg(*changes), tiny_shapes)


def test_attributes_and_state(tiny_rcnn_cfg, tiny_shapes):
    heads = standard(tiny_rcnn_cfg, tiny_shapes, "MODEL.KEYPOINT_ON", True)
    assert heads.in_features == heads.box_in_features == heads.mask_in_features == ["p2", "p3"]
    assert heads.mask_on and heads.keypoint_on and not heads.train_on_pred_boxes
    assert tuple(heads.box_pooler.output_size) == (5, 5) and tuple(heads.mask_pooler.output_size) == (4, 4)
    prefixes = {k.split(".")[0] for k in heads.state_dict()}
    assert prefixes == {"box_head", "box_predictor", "mask_head", "keypoint_head"}
    boxes_only = standard(tiny_rcnn_cfg, tiny_shapes, "MODEL.MASK_ON", False)
    assert not boxes_only.mask_on and not hasattr(boxes_only, "mask_head")


@pytest.mark.parametrize("train_on_pred_boxes", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_training(
    tiny_rcnn_cfg,
    tiny_shapes,
    tiny_features,
    make_proposals,
    make_ground_truth,
    mask_format,
    agnostic,
    train_on_pred_boxes,
):
    heads = standard(
        tiny_rcnn_cfg,
        tiny_shapes,
        "MODEL.KEYPOINT_ON",
        True,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        agnostic,
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
        train_on_pred_boxes,
    )
    targets = [
        make_ground_truth(SIZE, [[0, 0, 20, 20], [50, 20, 51, 21]], [2, 0], mask_format),  # one object of one pixel
        make_ground_truth(SIZE, [], [], mask_format),
    ]
    features = {k: v.requires_grad_() for k, v in tiny_features.items()}
    sampled, losses = heads(IMAGES, features, grid_proposals(make_proposals), targets)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"}
    assert all(torch.isfinite(v) for v in losses.values()) and [len(x) for x in sampled] == [30, 28]
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.parameters())
    assert features["p2"].grad.abs().sum() > 0


def test_training_without_any_object(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals, make_ground_truth):
    heads = standard(tiny_rcnn_cfg, tiny_shapes, "MODEL.KEYPOINT_ON", True)
    targets = [make_ground_truth(SIZE, [], [])] * 2
    _, losses = heads(IMAGES, tiny_features, grid_proposals(make_proposals), targets)
    sum(losses.values()).backward()
    assert losses["loss_mask"] == losses["loss_keypoint"] == losses["loss_box_reg"] == 0 < losses["loss_cls"]
    assert all(p.grad is not None for p in heads.parameters())  # else distributed training would wait for ever


def test_inference(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    heads = standard(tiny_rcnn_cfg, tiny_shapes, "MODEL.KEYPOINT_ON", True).eval()
    with torch.no_grad():
        detections, losses = heads(IMAGES, tiny_features, grid_proposals(make_proposals))
    assert losses == {} and [len(x) for x in detections] == [10, 10]
    for x in detections:
        assert set(x.get_fields()) == {
            "pred_boxes",
            "scores",
            "pred_classes",
            "pred_masks",
            "pred_keypoints",
            "pred_keypoint_heatmaps",
        }
        assert x.pred_masks.shape == (10, 1, 8, 8) and x.pred_keypoints.shape == (10, 4, 3)
        assert torch.equal(x.scores, x.scores.sort(descending=True).values)


def test_inference_that_finds_nothing(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    heads = standard(
        tiny_rcnn_cfg, tiny_shapes, "MODEL.KEYPOINT_ON", True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0
    ).eval()
    for proposals in (grid_proposals(make_proposals), [make_proposals(SIZE, [])] * 2):
        with torch.no_grad():
            detections, _ = heads(IMAGES, tiny_features, proposals)
        assert [len(x) for x in detections] == [0, 0] and detections[0].pred_masks.shape == (0, 1, 8, 8)


def test_given_boxes_get_the_same_masks(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    heads = standard(tiny_rcnn_cfg, tiny_shapes).eval()
    with torch.no_grad():
        detections, _ = heads(IMAGES, tiny_features, grid_proposals(make_proposals))
        bare = [Instances(SIZE, pred_boxes=x.pred_boxes, pred_classes=x.pred_classes) for x in detections]
        again = heads.forward_with_given_boxes(tiny_features, bare)
    for a, b in zip(detections, again, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


def test_partial_execution(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    """By the names of the first releases, and with feature maps as a list."""
    heads = standard(tiny_rcnn_cfg, tiny_shapes).eval()
    maps = [tiny_features[f] for f in heads.in_features]
    with torch.no_grad():
        by_list, by_name = (heads._forward_box(f, grid_proposals(make_proposals)) for f in (maps, tiny_features))
        assert torch.equal(by_list[0].pred_boxes.tensor, by_name[0].pred_boxes.tensor)
        mask_features = heads.mask_pooler(maps, [x.pred_boxes for x in by_list])
        assert mask_features.shape == (20, 8, 4, 4)
        expected = heads._forward_mask(tiny_features, by_name)[0].pred_masks
        assert torch.equal(heads._forward_mask(maps, by_list)[0].pred_masks, expected)


def test_heads_without_pooler_read_the_feature_maps(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    seen = []

    class WholeMapHead(nn.Module):
        def forward(self, features, instances):
            seen.append(sorted(features))
            return instances

    cfg = tiny_rcnn_cfg()
    heads = StandardROIHeads(cfg, tiny_shapes, mask_pooler=None, mask_head=WholeMapHead()).eval()
    with torch.no_grad():
        heads(IMAGES, tiny_features, grid_proposals(make_proposals))
    assert seen == [["p2", "p3"]]


def test_parts_can_be_replaced_from_outside(tiny_rcnn_cfg, tiny_shapes):
    class MyOutput(FastRCNNOutputLayers):
        pass

    cfg = tiny_rcnn_cfg()
    mine = MyOutput(cfg, ShapeSpec(channels=16))
    assert StandardROIHeads(cfg, tiny_shapes, box_predictor=mine).box_predictor is mine


def test_init_methods_can_be_overridden(tiny_rcnn_cfg, tiny_shapes):
    class Edited(StandardROIHeads):
        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            arguments = super()._init_box_head(cfg, input_shape)
            assert set(arguments) == {"box_in_features", "box_pooler", "box_head", "box_predictor"}
            arguments["box_in_features"] = ["p3"]
            arguments["box_pooler"] = ROIPooler(5, [1 / 8], 0, "ROIAlignV2")
            return arguments

    class FormerStyle(StandardROIHeads):
        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape, **StandardROIHeads._init_box_head(cfg, input_shape))
            self._init_mask_head(cfg)

        def _init_mask_head(self, cfg):
            self.mask_on = False

    assert Edited(tiny_rcnn_cfg(), tiny_shapes).box_in_features == ["p3"]
    assert not FormerStyle(tiny_rcnn_cfg(), tiny_shapes).mask_on


def explicit():
    return StandardROIHeads(
        num_classes=3,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=MATCHER,
        box_in_features=["p2", "p3"],
        box_pooler=ROIPooler(5, [1 / 4, 1 / 8], 0, "ROIAlignV2"),
        box_head=FastRCNNConvFCHead(ShapeSpec(channels=8, height=5, width=5), conv_dims=[], fc_dims=[16]),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=16), box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=3
        ),
        mask_in_features=["p2", "p3"],
        mask_pooler=ROIPooler(4, [1 / 4, 1 / 8], 0, "ROIAlignV2"),
        mask_head=MaskRCNNConvUpsampleHead(ShapeSpec(channels=8, width=4, height=4), num_classes=3, conv_dims=[8, 8]),
    )


def test_copies_and_state_round_trip(tiny_features, make_proposals):
    heads = explicit().eval()
    other = explicit().eval()
    other.load_state_dict(heads.state_dict())
    with torch.no_grad():
        expected = heads(IMAGES, tiny_features, grid_proposals(make_proposals))[0][0]
        for twin in (copy.deepcopy(heads), pickle.loads(pickle.dumps(heads)), other):
            got = twin(IMAGES, tiny_features, grid_proposals(make_proposals))[0][0]
            assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(got.pred_masks, expected.pred_masks)


def test_mistakes_are_named(tiny_rcnn_cfg, tiny_shapes, tiny_features, make_proposals):
    heads = explicit()
    with pytest.raises(ValueError, match="instances"):
        heads(IMAGES, tiny_features, grid_proposals(make_proposals))
    with pytest.raises(ValueError, match="eval"):
        heads.forward_with_given_boxes(tiny_features, [])
    with pytest.raises(ValueError, match="pred_classes"):
        heads.eval().forward_with_given_boxes(tiny_features, [Instances(SIZE, pred_boxes=Boxes(torch.zeros(1, 4)))])
    with pytest.raises(ValueError, match="p9"):
        standard(tiny_rcnn_cfg, tiny_shapes, "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p9"])
    with pytest.raises(ValueError, match="channels"):
        build_roi_heads(tiny_rcnn_cfg(), {**tiny_shapes, "p3": ShapeSpec(channels=9, stride=8)})
    with pytest.raises(NotImplementedError, match="forward"):
        base()(IMAGES, tiny_features, [])


# --- Res5ROIHeads -----------------------------------------------------------------------------------------------------

C4 = (
    "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p3"],
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 2, "MODEL.RESNETS.WIDTH_PER_GROUP", 1, "MODEL.RESNETS.NORM", "BN",
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
)  # fmt: skip


def res5_input():
    """In the ResNet res4 is half as wide as res5."""
    return {"p3": ShapeSpec(channels=8, stride=8)}


def test_c4_trains_and_detects(tiny_rcnn_cfg, tiny_features, make_proposals, make_ground_truth):
    heads = build_roi_heads(tiny_rcnn_cfg(*C4), res5_input())
    assert isinstance(heads, Res5ROIHeads) and heads.in_features == ["p3"] and heads.mask_on
    assert {k.split(".")[0] for k in heads.state_dict()} == {"res5", "box_predictor", "mask_head"}
    targets = [make_ground_truth(SIZE, [[0, 0, 20, 20]], [2]), make_ground_truth(SIZE, [], [])]
    returned, losses = heads(IMAGES, tiny_features, grid_proposals(make_proposals), targets)
    assert returned == [] and set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())

    heads.eval()
    with torch.no_grad():
        detections, losses = heads(IMAGES, tiny_features, grid_proposals(make_proposals))
        assert losses == {} and detections[0].pred_masks.shape[1:] == (1, 6, 6)  # 5 cells, halved, doubled
        bare = [Instances(SIZE, pred_boxes=x.pred_boxes, pred_classes=x.pred_classes) for x in detections]
        again = heads.forward_with_given_boxes(tiny_features, bare)
    torch.testing.assert_close(detections[1].pred_masks, again[1].pred_masks)


def test_c4_without_masks_and_without_detections(tiny_rcnn_cfg, tiny_features, make_proposals):
    cfg = tiny_rcnn_cfg(*C4, "MODEL.MASK_ON", False, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    heads = build_roi_heads(cfg, res5_input()).eval()
    with torch.no_grad():
        detections, _ = heads(IMAGES, tiny_features, grid_proposals(make_proposals))
    assert [len(x) for x in detections] == [0, 0] and not detections[0].has("pred_masks")


def test_c4_block_can_be_overridden_either_way(tiny_rcnn_cfg):
    class ByClass(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg):
            block, channels = super()._build_res5_block(cfg)
            block.add_module("extra", nn.BatchNorm2d(channels))
            return block, channels

    class BySelf(Res5ROIHeads):
        def _build_res5_block(self, cfg):
            block, channels = super()._build_res5_block(cfg)
            block.add_module("extra", nn.BatchNorm2d(channels))
            return block, channels

    for kind in (ByClass, BySelf):
        assert "res5.extra.weight" in kind(tiny_rcnn_cfg(*C4), res5_input()).state_dict()


def test_c4_shared_transform_and_list_of_blocks():
    heads = Res5ROIHeads(
        num_classes=3, batch_size_per_image=16, positive_fraction=0.25, proposal_matcher=MATCHER, in_features=["p3"],
        pooler=ROIPooler(4, [1 / 8], 0, "ROIAlignV2"), res5=[nn.Conv2d(8, 6, 1), nn.MaxPool2d(2)],
        box_predictor=FastRCNNOutputLayers(6, box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=3),
    )  # fmt: skip
    assert isinstance(heads.res5, nn.Sequential) and not heads.mask_on
    x = heads._shared_roi_transform([torch.randn(1, 8, 8, 12)], [Boxes(torch.tensor([[0.0, 0, 30, 30]]))])
    assert x.shape == (1, 6, 2, 2)


@pytest.mark.parametrize(
    "changes",
    [
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
    ],
)
def test_c4_says_what_it_cannot_do(tiny_rcnn_cfg, tiny_shapes, changes):
    with pytest.raises(ValueError, match="Res5ROIHeads"):
        build_roi_heads(tiny_rcnn_cfg(*C4, *changes), tiny_shapes)


def test_one_seed_gives_the_published_losses():
    torch.manual_seed(121)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10, 10, 5, 5)
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features, shapes = {"res4": torch.rand(2, 1024, 1, 2)}, {"res4": ShapeSpec(channels=1024, stride=16)}
    targets = [
        Instances(
            (15, 15), gt_boxes=Boxes(b), gt_classes=torch.tensor(c), gt_masks=BitMasks(torch.rand(2, 15, 15) > 0.5)
        )
        for b, c in (([[1, 1, 3, 3], [2, 2, 6, 6]], [2, 1]), ([[1, 5, 2, 8], [7, 3, 10, 5]], [1, 2]))
    ]
    rpn, heads = build_proposal_generator(cfg, shapes), StandardROIHeads(cfg, shapes)
    with EventStorage():
        proposals, _ = rpn(images, features, targets)
        _, losses = heads(images, features, proposals, targets)
    got = {name: loss.item() for name, loss in losses.items()}
    assert got == pytest.approx({"loss_cls": 4.52537298, "loss_box_reg": 0.00978572, "loss_mask": 0.6931845}, abs=1e-6)
