"""Whole models against recorded results.

The records of the published system lie outside the repository; where they are missing those tests skip. A small model
of our own (ResNet-18, FPN, Mask R-CNN) with weights given by a formula is compared everywhere: its record,
`tiny_mask_rcnn.json`, was written by `python tests/parity/test_models.py` when all the others agreed.
"""

import gzip
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks

TINY_RECORD = Path(__file__).with_name("tiny_mask_rcnn.json")

QUICK = ["COCO-Detection__fast_rcnn_R_50_FPN_1x", "COCO-Detection__rpn_R_50_FPN_1x"]
SLOW = [
    "COCO-Detection__faster_rcnn_R_101_FPN_3x",
    "COCO-Detection__faster_rcnn_R_50_C4_1x",
    "COCO-Detection__faster_rcnn_R_50_DC5_1x",
    "COCO-Detection__faster_rcnn_R_50_FPN_1x",
    "COCO-Detection__faster_rcnn_X_101_32x8d_FPN_3x",
    "COCO-Detection__retinanet_R_50_FPN_1x",
    "COCO-Detection__rpn_R_50_C4_1x",
    "COCO-InstanceSegmentation__mask_rcnn_R_50_C4_1x",
    "COCO-InstanceSegmentation__mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation__mask_rcnn_R_50_FPN_1x_giou",
    "COCO-InstanceSegmentation__mask_rcnn_X_101_32x8d_FPN_3x",
    "COCO-Keypoints__keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation__panoptic_fpn_R_50_1x",
    "Cityscapes__mask_rcnn_R_50_FPN",
    "DeepLab__deeplab_v3_R_103_os16_mg124_poly_90k_bs16",
    "DeepLab__deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16",
    "Detectron1-Comparisons__faster_rcnn_R_50_FPN_noaug_1x",
    "LVISv0.5-InstanceSegmentation__mask_rcnn_R_50_FPN_1x",
    "Misc__cascade_mask_rcnn_R_50_FPN_1x",
    "Misc__cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
    "Misc__mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc__mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "Misc__mask_rcnn_R_50_FPN_3x_gn",
    "Misc__semantic_R_50_FPN_1x",
    "Panoptic-DeepLab__panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv",
    "PascalVOC-Detection__faster_rcnn_R_50_C4",
    "PascalVOC-Detection__faster_rcnn_R_50_FPN",
    "PointRend__implicit_pointrend_R_50_FPN_1x_coco",
    "PointRend__pointrend_rcnn_R_50_FPN_1x_coco",
    "PointRend__pointrend_semantic_R_101_FPN_1x_cityscapes",
    "Rotated__faster_rcnn_R_50_FPN",
    "lazy__cascade_mask_rcnn_swin_b",
    "lazy__fcos_R_50_FPN",
    "lazy__mask_rcnn_mvitv2_t",
    "lazy__mask_rcnn_regnetx_4gf_dds_fpn",
    "lazy__mask_rcnn_vitdet_b",
    "lazy__new_baselines_mask_rcnn_R_50_FPN",
]


@pytest.mark.parity
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_recorded_model(name, shared_dir, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(shared_dir / "golden"))
    check_parity = importlib.import_module("check_parity")
    with gzip.open(shared_dir / "golden" / "data" / f"{name}.json.gz", "rt") as f:
        record = json.load(f)
    differences = {part: found for part, found in check_parity.check(record, str(repo_root)).items() if found}
    assert differences == {}


# --- the small model --------------------------------------------------------------------------------------------------


def noise(n: int, salt: int) -> np.ndarray:
    """`n` numbers in [-1, 1) that depend on nothing but integers (the finaliser of splitmix64)."""
    z = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def tiny_mask_rcnn():
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.PIXEL_STD", [57.375, 57.12, 58.395],
            "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16,
            "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 65536, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40,
            "MODEL.RPN.POST_NMS_TOPK_TEST", 40, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4096,
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_HEADS.NUM_CLASSES", 4, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
            "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "TEST.DETECTIONS_PER_IMAGE", 10,
        ]
    )  # fmt: skip
    model = build_model(cfg)
    with torch.no_grad():
        for i, (name, value) in enumerate(model.state_dict().items()):
            flat = noise(value.numel(), 1000 * i)
            if name.endswith("running_var"):
                flat = 1 + 0.2 * flat
            elif name.endswith("norm.weight"):
                flat = 0.5 + 0.1 * flat
            elif value.dim() > 1:  # of the variance that keeps the signal's scale
                flat = flat * np.sqrt(6 / np.prod(value.shape[1:]))
            else:
                flat = 0.02 * flat
            value.copy_(torch.from_numpy(flat).reshape(value.shape))
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.1)
    return model


def tiny_batch(train: bool) -> list[dict]:
    batch = []
    for i, (h, w) in enumerate([(64, 96), (80, 72)]):
        y, x = np.mgrid[0:h, 0:w]
        channels = [128 + 100 * ((x // (5 + c) + y // (7 + c) + i) % 3 - 1) for c in range(3)]
        item = {"image": torch.from_numpy(np.stack(channels).astype(np.uint8)), "height": 2 * h, "width": 3 * w // 2}
        if train:
            boxes = np.array([[6.0, 8, 40, 44], [30, 20, 70, 60]])
            item["instances"] = Instances(
                (h, w),
                gt_boxes=Boxes(torch.from_numpy(boxes).float()),
                gt_classes=torch.tensor([i, 3]),
                gt_masks=PolygonMasks([[np.array([x1, y1, x2, y1, x2, y2])] for x1, y1, x2, y2 in boxes]),
            )
        batch.append(item)
    return batch


def run_tiny() -> dict:
    model = tiny_mask_rcnn()
    losses = model(tiny_batch(True))
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        outputs = [x["instances"] for x in model(tiny_batch(False))]
    return {
        "losses": {k: v.item() for k, v in losses.items()},
        "gradients": {
            k: p.grad.norm().item() for k, p in model.named_parameters() if k.endswith("weight") and "roi_heads" in k
        },
        "boxes": [x.pred_boxes.tensor.tolist() for x in outputs],
        "scores": [x.scores.tolist() for x in outputs],
        "classes": [x.pred_classes.tolist() for x in outputs],
        "mask_areas": [x.pred_masks.flatten(1).sum(1).tolist() for x in outputs],
    }


def test_small_model():
    got, want = run_tiny(), json.loads(TINY_RECORD.read_text())
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-4)
    assert got["gradients"] == pytest.approx(want["gradients"], rel=1e-3)
    assert got["classes"] == want["classes"]
    for image in range(2):
        assert len(want["boxes"][image]) > 0
        np.testing.assert_allclose(got["boxes"][image], want["boxes"][image], atol=1e-2)
        np.testing.assert_allclose(got["scores"][image], want["scores"][image], rtol=1e-3)
        np.testing.assert_allclose(got["mask_areas"][image], want["mask_areas"][image], atol=3)


if __name__ == "__main__":
    TINY_RECORD.write_text(json.dumps(run_tiny(), indent=1) + "\n")
    sys.stdout.write(f"wrote {TINY_RECORD}\n")
