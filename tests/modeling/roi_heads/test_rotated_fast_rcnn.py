"""Fast R-CNN on rotated boxes: detections against a loop, labels by hand, and a whole model that learns."""

import math

import pytest
import torch

from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import RROIHeads
from detectron2.modeling.roi_heads.rotated_fast_rcnn import (
    RotatedFastRCNNOutputLayers,
    fast_rcnn_inference_rotated,
    fast_rcnn_inference_single_image_rotated,
)
from detectron2.structures import ImageList, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage

SIZE = (64, 96)
ROTATED = [
    "MODEL.MASK_ON", False,
    "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN",
    "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES", [[-60, 0, 60]],
    "MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 1, 1),
    "MODEL.ROI_HEADS.NAME", "RROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5, 1),
]  # fmt: skip


def random_boxes(count, seed=0):
    unit = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    return unit * torch.tensor([96.0, 64, 30, 30, 360]) + torch.tensor([0.0, 0, 5, 5, -180])


def ground_truth(rows=((40, 30, 40, 16, 50), (70, 40, 20, 12, -30)), classes=None):
    boxes = RotatedBoxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 5))
    classes = torch.arange(len(boxes)) % 3 if classes is None else torch.tensor(classes)
    return Instances(SIZE, gt_boxes=boxes, gt_classes=classes)


def proposals_of(rows):
    boxes = RotatedBoxes(torch.as_tensor(rows, dtype=torch.float32).reshape(-1, 5))
    return Instances(SIZE, proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))


class TestInference:
    def test_no_images_and_no_regions(self):
        assert fast_rcnn_inference_rotated([], [], [], 0.1, 0.5, 10) == ([], [])
        result, rows = fast_rcnn_inference_single_image_rotated(
            torch.zeros(0, 10), torch.zeros(0, 3), SIZE, 0.1, 0.5, 10
        )
        assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 5) and rows.shape == (0,)

    @pytest.mark.parametrize("topk", [3, 0, -1])
    @pytest.mark.parametrize("agnostic", [False, True])
    def test_against_a_loop(self, agnostic, topk):
        boxes = random_boxes(20 * (1 if agnostic else 2)).view(20, -1)
        boxes[0, 4] = 0.5  # clipped
        scores = torch.rand(20, 3)
        scores[5, 1] = math.nan
        boxes[6, 2] = math.inf
        (result,), (rows,) = fast_rcnn_inference_rotated([boxes], [scores], [SIZE], 0.3, 0.2, topk)

        kept = []
        order = sorted(((scores[r, k].item(), r, k) for r in range(20) for k in range(2)), key=lambda x: -x[0])
        for score, r, k in order:
            if r in (5, 6) or score <= 0.3:
                continue
            box = RotatedBoxes(boxes[r].view(-1, 5)[0 if agnostic else k][None])
            box.clip(SIZE)
            if all(k != other[2] or pairwise_iou_rotated(box.tensor, other[3]).item() <= 0.2 for other in kept):
                kept.append((score, r, k, box.tensor))
        kept = kept if topk < 0 else kept[:topk]
        assert isinstance(result.pred_boxes, RotatedBoxes) and result.image_size == SIZE
        assert rows.tolist() == [k[1] for k in kept]
        assert result.pred_classes.tolist() == [k[2] for k in kept]
        assert result.scores.tolist() == pytest.approx([k[0] for k in kept])
        for got, expected in zip(result.pred_boxes.tensor, kept, strict=True):
            torch.testing.assert_close(got, expected[3][0])


class TestOutputLayers:
    @staticmethod
    def layers(**kwargs):
        transform = Box2BoxTransformRotated((10, 10, 5, 5, 1))
        return RotatedFastRCNNOutputLayers(8, box2box_transform=transform, num_classes=3, **kwargs)

    def test_widths(self):
        assert self.layers().bbox_pred.out_features == 15
        assert self.layers(cls_agnostic_bbox_reg=True).bbox_pred.out_features == 5

    def test_no_proposals(self):
        layers = self.layers()
        predictions = layers(torch.zeros(0, 8))
        assert layers.inference(predictions, []) == ([], [])
        losses = layers.losses(predictions, [])
        assert set(losses) == {"loss_cls", "loss_box_reg"}
        assert all(torch.isfinite(x) for x in losses.values())

    def test_box_loss_by_hand(self):
        layers = self.layers(cls_agnostic_bbox_reg=True)
        proposals = proposals_of([(10, 10, 8, 4, 30), (20, 10, 8, 4, 30)])
        proposals.gt_boxes = RotatedBoxes([[10, 10, 16, 4, 75], [0, 0, 1, 1, 0]])
        proposals.gt_classes = torch.tensor([1, 3])
        losses = layers.losses((torch.zeros(2, 4), torch.zeros(2, 5)), [proposals])
        assert losses["loss_box_reg"].item() == pytest.approx((5 * math.log(2) + math.pi / 4) / 2)
        assert losses["loss_cls"].item() == pytest.approx(math.log(4))

    def test_other_losses_are_refused(self):
        with pytest.raises(ValueError, match="'smooth_l1', not 'giou'"):
            self.layers(box_reg_loss_type="giou")


class TestHeads:
    def test_sampling_by_hand(self, tiny_rcnn_cfg, tiny_shapes):
        heads = build_roi_heads(tiny_rcnn_cfg(*ROTATED, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False), tiny_shapes)
        assert isinstance(heads, RROIHeads)
        target = ground_truth(classes=[2, 0])
        target.gt_ids = torch.tensor([7, 8])
        # the first one upside down; across it; the second one; nothing
        proposals = proposals_of([(40, 30, 40, 16, 230), (40, 30, 40, 16, 140), (70, 40, 20, 13, -30), (9, 9, 5, 5, 0)])
        with EventStorage() as storage:
            (sampled,) = heads.label_and_sample_proposals([proposals], [target])
            assert storage.latest()["roi_head/num_fg_samples"][0] == 2
            assert storage.latest()["roi_head/num_bg_samples"][0] == 2
        found = {tuple(b.tolist()): int(c) for b, c in zip(sampled.proposal_boxes, sampled.gt_classes, strict=True)}
        assert found == {
            (40, 30, 40, 16, 230): 2, (40, 30, 40, 16, 140): 3, (70, 40, 20, 13, -30): 0, (9, 9, 5, 5, 0): 3,
        }  # fmt: skip
        foreground = sampled[sampled.gt_classes == 0]
        assert foreground.gt_boxes.tensor.tolist() == [[70, 40, 20, 12, -30]]
        assert foreground.gt_ids.tolist() == [8]

    def test_image_without_ground_truth(self, tiny_rcnn_cfg, tiny_shapes):
        heads = build_roi_heads(tiny_rcnn_cfg(*ROTATED), tiny_shapes)
        (sampled,) = heads.label_and_sample_proposals([proposals_of(random_boxes(5))], [ground_truth([])])
        assert sampled.gt_classes.tolist() == [3] * 5
        assert not sampled.has("gt_boxes")
        (none,) = heads.label_and_sample_proposals([proposals_of([])], [ground_truth([])])
        assert len(none) == 0

    def test_ground_truth_joins_the_proposals(self, tiny_rcnn_cfg, tiny_shapes):
        heads = build_roi_heads(tiny_rcnn_cfg(*ROTATED), tiny_shapes)
        (sampled,) = heads.label_and_sample_proposals([proposals_of([])], [ground_truth()])
        assert isinstance(sampled.proposal_boxes, RotatedBoxes)
        assert sorted(sampled.gt_classes.tolist()) == [0, 1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("MODEL.MASK_ON", True), "no masks"),
            (("MODEL.KEYPOINT_ON", True), "no keypoints"),
            (("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True), "TRAIN_ON_PRED_BOXES"),
            (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"), "ROIAlignRotated"),
            (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5)), "five weights"),
        ],
    )
    def test_settings_that_do_not_fit(self, tiny_rcnn_cfg, tiny_shapes, change, message):
        cfg = tiny_rcnn_cfg(*ROTATED, *change)
        for part in ("MASK", "KEYPOINT"):  # they fail for being there, not for their pooler
            cfg.MODEL[f"ROI_{part}_HEAD"].POOLER_TYPE = "ROIAlignV2"
        with pytest.raises(ValueError, match=message):
            build_roi_heads(cfg, tiny_shapes)

    def test_training_needs_ground_truth(self, tiny_rcnn_cfg, tiny_shapes, tiny_features):
        heads = build_roi_heads(tiny_rcnn_cfg(*ROTATED), tiny_shapes)
        images = ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE])
        with pytest.raises(ValueError, match="no ground truth"):
            heads(images, tiny_features, [proposals_of(random_boxes(5))] * 2)


def test_a_model_learns_and_detects(tiny_rcnn_cfg):
    model = build_model(tiny_rcnn_cfg(*ROTATED))
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    batch = [{"image": image, "instances": ground_truth()}, {"image": image, "instances": ground_truth([])}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    totals = []
    with EventStorage():
        for _ in range(15):
            losses = model(batch)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert totals[-1] < 0.8 * totals[0]
    with torch.no_grad():
        result = model.eval()([{"image": image, "height": 128, "width": 96}])[0]["instances"]
    assert result.image_size == (128, 96)
    assert isinstance(result.pred_boxes, RotatedBoxes)
    assert 0 < len(result) <= 10
    assert result.pred_boxes.tensor.isfinite().all()


def test_postprocessing_scales_rotated_boxes():
    found = Instances(SIZE, pred_boxes=RotatedBoxes([[40, 30, 20, 10, 90], [10, 10, 0, 5, 0]]), scores=torch.ones(2))
    result = detector_postprocess(found, 128, 96)
    torch.testing.assert_close(result.pred_boxes.tensor, torch.tensor([[40.0, 60, 40, 10, 90]]))
