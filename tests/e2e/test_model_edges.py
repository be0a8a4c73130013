"""Every kind of model at the edges: no objects, nothing found, objects of one pixel, half precision, copies."""

import copy
import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.backbone import BasicBlock, ResNet
from detectron2.modeling.meta_arch import HFDetector, HFSegmenter
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.mask2former import MaskFormer
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from tests.projects.deformable_detr.conftest import tiny_model as deformable_detr
from tests.projects.mask2former.models import tiny_model as mask2former

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
SIZES_HW = [(64, 96), (48, 80)]
CLASSES, STUFF, KEYPOINTS = 3, 5, 17

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.PIXEL_STD", [57.0, 57.0, 57.0],
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 8,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8, 8),
    "MODEL.RETINANET.NUM_CLASSES", CLASSES,
    "MODEL.RETINANET.NUM_CONVS", 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", STUFF,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "TEST.DETECTIONS_PER_IMAGE", 10,
]  # fmt: skip
RESNET_18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
RESNET_50 = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 1]
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
POINTS = [
    "MODEL.POINT_HEAD.NUM_CLASSES", CLASSES,
    "MODEL.POINT_HEAD.FC_DIM", 8,
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 9,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 16,
    "MODEL.ROI_MASK_HEAD.FC_DIM", 8,
]  # fmt: skip
DEEPLAB = [
    "MODEL.RESNETS.NORM", "BN",
    "MODEL.SEM_SEG_HEAD.NORM", "BN",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 32,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [8],
    "INPUT.CROP.SIZE", [64, 96],
]  # fmt: skip


def from_yaml(file, *changes, add=None, resnet=RESNET_18):
    cfg = get_cfg()
    if add is None:
        cfg = model_zoo.get_config(file)
    else:
        add(cfg)
        cfg.merge_from_file(str(PROJECTS / file))
    cfg.merge_from_list([*TINY, *resnet, *changes])
    return build_model(cfg)


def fcos():
    model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    model.update(num_classes=CLASSES, test_score_thresh=0.0, test_topk_candidates=50, max_detections_per_image=10)
    model.backbone.out_channels = model.backbone.top_block.in_channels = 32
    model.backbone.bottom_up.stem.out_channels = 8
    model.backbone.bottom_up.stages = [
        ResNet.make_stage(BasicBlock, 1, stride_per_block=[s], in_channels=i, out_channels=o, norm="FrozenBN")
        for s, i, o in ((1, 8, 8), (2, 8, 16), (2, 16, 24), (2, 24, 32))
    ]
    model.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[32])
    return instantiate(model)


def vitdet():
    cfg = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    cfg.backbone.net.update(img_size=96, embed_dim=16, depth=2, num_heads=2, window_size=4, window_block_indexes=[0])
    cfg.backbone.update(square_pad=96, out_channels=32)
    cfg.proposal_generator.head.in_channels = 32
    cfg.proposal_generator.update(batch_size_per_image=32, pre_nms_topk=(100, 100), post_nms_topk=(30, 20))
    cfg.roi_heads.update(num_classes=CLASSES, batch_size_per_image=16)
    cfg.roi_heads.box_head.update(input_shape={**cfg.roi_heads.box_head.input_shape, "channels": 32})
    cfg.roi_heads.box_head.update(conv_dims=[8], fc_dims=[16])
    cfg.roi_heads.box_predictor.input_shape.channels = 16
    cfg.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.roi_heads.mask_head.input_shape.channels = 32
    cfg.roi_heads.mask_head.conv_dims = [8, 8]
    return instantiate(cfg)


ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50"
POINT_REND = "PointRend/configs"
BUILDERS = {
    "mask FPN": (from_yaml, f"{ZOO}_FPN_1x.yaml"),
    "mask C4": (functools.partial(from_yaml, resnet=RESNET_50), f"{ZOO}_C4_1x.yaml"),
    "mask DC5": (functools.partial(from_yaml, resnet=RESNET_50), f"{ZOO}_DC5_1x.yaml"),
    "mask deformable": (functools.partial(from_yaml, resnet=RESNET_50), "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml"),
    "cascade": (from_yaml, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"),
    "keypoint": (from_yaml, "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"),
    "fast": (from_yaml, "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml"),
    "rotated": (from_yaml, "Base-RCNN-FPN.yaml", *ROTATED),
    "proposals FPN": (from_yaml, "COCO-Detection/rpn_R_50_FPN_1x.yaml"),
    "RetinaNet": (from_yaml, "COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
    "panoptic FPN": (from_yaml, "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"),
    "semantic FPN": (from_yaml, "Misc/semantic_R_50_FPN_1x.yaml"),
    "FCOS": (fcos,),
    "ViTDet": (vitdet,),
    "PointRend": (
        functools.partial(from_yaml, add=add_pointrend_config),
        f"{POINT_REND}/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml",
        *POINTS,
    ),
    "implicit PointRend": (
        functools.partial(from_yaml, add=add_pointrend_config),
        f"{POINT_REND}/InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml",
        *POINTS,
    ),
    "semantic PointRend": (
        functools.partial(from_yaml, add=add_pointrend_config),
        f"{POINT_REND}/SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml",
        *POINTS,
        "MODEL.POINT_HEAD.NUM_CLASSES",
        STUFF,
    ),
    "DeepLab v3": (
        functools.partial(from_yaml, add=add_deeplab_config, resnet=RESNET_50),
        "DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_R_103_os16_mg124_poly_90k_bs16.yaml",
        *DEEPLAB,
    ),
    "DeepLab v3+": (
        functools.partial(from_yaml, add=add_deeplab_config, resnet=RESNET_50),
        "DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml",
        *DEEPLAB,
    ),
    "Panoptic-DeepLab": (
        functools.partial(from_yaml, add=add_panoptic_deeplab_config, resnet=RESNET_50),
        "Panoptic-DeepLab/configs/Cityscapes-PanopticSegmentation/"
        "panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024.yaml",
        *DEEPLAB,
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [8, 8],
        "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS", 8,
        "MODEL.INS_EMBED_HEAD.NORM", "BN",
        "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", 8,
        "MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS", [8, 8],
        "MODEL.INS_EMBED_HEAD.CONVS_DIM", 8,
        "MODEL.INS_EMBED_HEAD.HEAD_CHANNELS", 8,
    ),
    "Mask2Former": (mask2former, {"MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}),
    "Deformable DETR": (deformable_detr, "two_stage"),
    "DINO": (deformable_detr, "DINO"),
}  # fmt: skip
WIDE = [[4.0, 4.0, 40.0, 36.0], [30.0, 10.0, 79.0, 47.0]]
ONE_PIXEL = [[4.0, 4.0, 5.0, 5.0], [20.0, 10.0, 21.0, 11.0]]
BOXES = {
    "objects": (WIDE, WIDE[:1]),
    "no objects": ([], []),
    "objects of one pixel, one image without": (ONE_PIXEL, []),
}


def annotations(size_hw, boxes, name):
    """Instances with every kind of annotation: masks that fill the boxes, keypoints along their middles."""
    boxes = torch.tensor(boxes).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.unbind(1)
    found = Instances(size_hw)
    if name == "rotated":
        found.gt_boxes = RotatedBoxes(torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, x1], dim=1))
    else:
        found.gt_boxes = Boxes(boxes)
    found.gt_classes = torch.arange(len(boxes)) % CLASSES
    polygons = [[np.array([a, b, c, b, c, d, a, d])] for a, b, c, d in boxes.tolist()]
    is_bitmask = "PointRend" in name
    found.gt_masks = BitMasks.from_polygon_masks(polygons, *size_hw) if is_bitmask else PolygonMasks(polygons)
    x = x1[:, None] + (x2 - x1)[:, None] * (torch.arange(KEYPOINTS) + 0.5) / KEYPOINTS
    y = ((y1 + y2) / 2)[:, None].expand_as(x)
    found.gt_keypoints = Keypoints(torch.stack([x, y, torch.full_like(x, 2.0)], dim=2))
    return found


def pixel_targets(size_hw, boxes):
    """What the mapper of Panoptic-DeepLab adds, and the label map of semantic models."""
    labels = torch.zeros(size_hw, dtype=torch.int64)
    labels[:4] = 255
    center, offset, inside = torch.zeros(size_hw), torch.zeros(2, *size_hw), torch.zeros(size_hw)
    rows, columns = (torch.arange(length, dtype=torch.float32) for length in size_hw)
    for i, (x1, y1, x2, y2) in enumerate(torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4).tolist()):
        labels[y1:y2, x1:x2] = 1 + i % CLASSES
        inside[y1:y2, x1:x2] = 1.0
        center[(y1 + y2) // 2, (x1 + x2) // 2] = 1.0
        offset[0, y1:y2, x1:x2] = ((y1 + y2) / 2 - rows[y1:y2])[:, None]
        offset[1, y1:y2, x1:x2] = ((x1 + x2) / 2 - columns[x1:x2])[None]
    return {
        "sem_seg": labels,
        "sem_seg_weights": torch.ones(size_hw),
        "center": center,
        "center_weights": torch.ones(size_hw),
        "offset": offset,
        "offset_weights": inside,
    }


def batch_of(name, boxes=None):
    """Two images of different size; with `boxes` for each also everything to train on."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for i, size_hw in enumerate(SIZES_HW):
        item = {"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator)}
        if boxes is not None:
            item["instances"] = annotations(size_hw, boxes[i], name)
            item.update(pixel_targets(size_hw, boxes[i]))
        if name == "fast":
            item["proposals"] = Instances(size_hw)
            item["proposals"].proposal_boxes = Boxes(torch.tensor([*WIDE, [0.0, 0.0, 20.0, 20.0]]))
            item["proposals"].objectness_logits = torch.zeros(3)
        batch.append(item)
    return batch


def test_no_architecture_is_left_out():
    known = {cls for _, cls in META_ARCH_REGISTRY if cls.__module__.startswith("detectron2.")}
    known -= {HFDetector, HFSegmenter}  # whose edges are in their own tests, beside the library that they wrap
    assert known <= {type(built(name)) for name in BUILDERS}


@functools.cache
def built(name):
    torch.manual_seed(0)
    builder, *arguments = BUILDERS[name]
    return builder(*arguments)


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return copy.deepcopy(built(name))


def flat(value):
    """Every tensor of an output, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Instances):
        return [tensor for key in sorted(value.get_fields()) for tensor in flat(value.get(key))]
    if isinstance(value, Boxes | RotatedBoxes):
        return [value.tensor]
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in flat(value[key])]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in flat(item)]
    return [] if value is None else [torch.as_tensor(value)]


def predictions(model, name):
    with torch.no_grad():
        return model.eval()(batch_of(name))


def same(a, b):
    return len(flat(a)) == len(flat(b)) > 0 and all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


@pytest.mark.parametrize("case", BOXES)
def test_training(model, name, case):
    losses = model.train()(batch_of(name, BOXES[case]))
    assert losses
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "parallel training waits for their gradients"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def find_nothing(model):
    """Raise thresholds above any score and filters above any box; where there are neither, empty all masks."""
    if isinstance(model, MaskFormer):
        torch.nn.init.zeros_(model.sem_seg_head.predictor.mask_embed.layers[-1].weight)
        torch.nn.init.zeros_(model.sem_seg_head.predictor.mask_embed.layers[-1].bias)
    for module in model.modules():
        for attribute in (
            "test_score_thresh",
            "threshold",
            "combine_instances_score_thresh",
            "instance_score_threshold",
        ):
            if isinstance(getattr(module, attribute, None), float | int):
                setattr(module, attribute, 1e9)
        if hasattr(module, "min_box_size"):
            module.min_box_size = 1e9


def test_nothing_is_found(model, name):
    usual = predictions(model, name)
    find_nothing(model)
    empty = predictions(model, name)
    for some, none, size_hw in zip(usual, empty, SIZES_HW, strict=True):
        assert set(some) == set(none)
        for key in ("instances", "proposals"):
            if key not in some:
                continue
            assert len(some[key]) > 0 or "DeepLab" in name  # whose centres need training
            assert len(none[key]) == 0
            assert none[key].image_size == size_hw
            assert set(none[key].get_fields()) == set(some[key].get_fields())
            for before, after in zip(flat(some[key]), flat(none[key]), strict=True):
                assert after.shape == (0, *before.shape[1:]) and after.dtype == before.dtype
        if "sem_seg" in some:
            assert some["sem_seg"].shape[1:] == none["sem_seg"].shape[1:] == size_hw
        if "panoptic_seg" in some:
            assert none["panoptic_seg"][0].shape == size_hw


def test_two_steps_of_half_precision(model, name):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch_of(name, BOXES["objects"]))
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_copies_predict_the_same(model, name, tmp_path):
    expected = predictions(model, name)
    assert same(expected, predictions(copy.deepcopy(model), name))
    assert same(expected, predictions(pickle.loads(pickle.dumps(model)), name))
    torch.manual_seed(1)
    builder, *arguments = BUILDERS[name]
    other = builder(*arguments)
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    DetectionCheckpointer(other).load_for_inference(str(tmp_path / "a.pth"))
    assert same(expected, predictions(other, name))
