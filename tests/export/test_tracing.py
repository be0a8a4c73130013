"""Traced models: one graph, made from one image, is right for images of other sizes and other counts of objects."""

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.export import TracingAdapter
from detectron2.layers import batched_nms, batched_nms_rotated
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.numerics import best_after_nms
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import Boxes

CLASSES = 3
CONFIGS = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "proposals": "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "semantic": "Misc/semantic_R_50_FPN_1x.yaml",
    "rotated": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "point_rend": "",
    "fcos": "",
    "panoptic_deeplab": "",
}
POINT_REND = "projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
ROTATED = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "RRPN",
    "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[-60, 0, 60]],
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1, 1, 1, 1, 1),
    "MODEL.ROI_HEADS.NAME": "RROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignRotated",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10, 10, 5, 5, 1),
}
QUICK = ("faster", "mask", "keypoint", "retinanet")
MEAN = [103.53, 116.28, 123.675]
SIZES = [(96, 128), (64, 64), (160, 224)]
MODELS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]


def tiny_model(name, **changes):
    """A small model with random weights; of a picture without contrast every score is that of no object."""
    if name in ("fcos", "panoptic_deeplab"):
        return tiny_fcos() if name == "fcos" else tiny_panoptic_deeplab()
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(POINT_REND if name == "point_rend" else model_zoo.get_config_file(CONFIGS[name]))
    if name == "rotated":
        changes = {**ROTATED, **changes}
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    if name != "faster_c4":  # its last stage is made of bottlenecks
        cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [32]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1 if name == "keypoint" else CLASSES
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.POINT_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 32
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 500, 60
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = 100
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.012  # just above the score that the bias gives
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.6
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    cfg.merge_from_list([x for pair in changes.items() for x in pair])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    return spread_scores(model)


def tiny_fcos():
    backbone = tiny_model("retinanet").backbone
    shapes = list(backbone.output_shape().values())
    model = FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=CLASSES, conv_dims=[32]),
        num_classes=CLASSES,
        pixel_mean=MEAN,
        pixel_std=[1.0, 1.0, 1.0],
        test_topk_candidates=100,
        max_detections_per_image=20,
    )
    return spread_scores(model.eval())


def tiny_panoptic_deeplab():
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "PanopticDeepLab"
    cfg.MODEL.PIXEL_MEAN = MEAN
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "PanopticDeepLabSemSegHead", 133
    for head in (cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD):
        head.IN_FEATURES, head.PROJECT_FEATURES, head.PROJECT_CHANNELS = ["res2", "res3"], ["res2"], [4]
        head.CONVS_DIM = head.ASPP_CHANNELS = head.HEAD_CHANNELS = 8
        head.NORM = "BN"
    cfg.MODEL.PANOPTIC_DEEPLAB.STUFF_AREA = 4
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic"]
    torch.manual_seed(0)
    return spread_scores(build_model(cfg).eval())


def spread_scores(model):
    """Make scores depend on the picture: without a bias, and with weights that give some regions a high score."""
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if last in ("cls_score", "predictor", "objectness_logits", "center_predictor"):
            torch.nn.init.normal_(module.weight, std=1.0)
        elif last in ("bbox_pred", "anchor_deltas"):
            torch.nn.init.normal_(module.weight, std=0.001)
    return model


def picture(height, width, contrast=1.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, height, width, generator=generator) - 0.5
    return torch.tensor(MEAN)[:, None, None] + 255 * contrast * noise


def traced(model, inputs):
    adapter = TracingAdapter(model, inputs)
    return adapter, torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


def number_of_instances(result):
    return len(result["instances"]) if "instances" in result else 0


def assert_same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-3, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("contrast", [1.0, 0.0], ids=["from objects", "from none"])
def test_one_graph_serves_all_images(name, contrast):
    model = tiny_model(name)
    adapter, graph = traced(model, [{"image": picture(96, 128, contrast)}])
    counts = []
    for size in SIZES:
        for seed, other in ((2, 1.0), (3, 0.5), (4, 0.0)):
            image = picture(*size, contrast=other, seed=seed)
            want = adapter(image)
            assert_same(graph(image), want)
            counts.append(number_of_instances(adapter.outputs_schema(want)[0]))
    if name not in ("semantic", "proposals"):
        assert len(set(counts)) > 2 and 0 in counts, counts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["faster", pytest.param("mask", marks=pytest.mark.slow)])
def test_images_of_a_batch_change_their_sizes(name):
    model = tiny_model(name)
    adapter, graph = traced(model, [{"image": picture(96, 128)}, {"image": picture(64, 64)}])
    for sizes in (((96, 128), (64, 64)), ((64, 64), (160, 224)), ((160, 64), (64, 224))):
        images = [picture(*size, seed=i + 5) for i, size in enumerate(sizes)]
        assert_same(graph(*images), adapter(*images))


@pytest.mark.filterwarnings("ignore")
def test_wanted_sizes_are_inputs_of_the_graph():
    model = tiny_model("mask")
    inputs = [{"image": picture(96, 128), "height": torch.tensor(50), "width": torch.tensor(70)}]
    adapter, graph = traced(model, inputs)
    arguments = (torch.tensor(91), picture(64, 64, contrast=0.5), torch.tensor(80))  # in the order of the names
    want = adapter(*arguments)
    assert next(w for w in want if w.dim() == 3).shape[1:] == (91, 80)
    assert_same(graph(*arguments), want)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["panoptic_deeplab", pytest.param("panoptic", marks=pytest.mark.slow)])
def test_panoptic_results_are_those_of_the_model(name):
    model = tiny_model(name)
    height, width = torch.tensor(70), torch.tensor(96)
    adapter, graph = traced(model, [{"image": picture(96, 128), "height": height, "width": width}])
    counts = []
    for size, contrast in (((64, 96), 1.0), ((96, 96), 0.5), ((64, 64), 0.0)):
        image, height, width = picture(*size, contrast, seed=5), size[0] + 13, 2 * size[1]
        result = adapter.outputs_schema(graph(torch.tensor(height), image, torch.tensor(width)))[0]["panoptic_seg"]
        with torch.no_grad():
            want = model([{"image": image, "height": height, "width": width}])[0]["panoptic_seg"]
        assert result[0].shape == (height, width)
        assert (result[0] != want[0]).sum() <= 2  # a pixel between two classes
        assert type(result[1]) is type(want[1])
        keys = ("id", "isthing", "category_id", "instance_id")
        for got, segment in zip(result[1] or (), want[1] or (), strict=True):
            assert got.keys() == segment.keys()
            assert [got.get(key) for key in keys] == [segment.get(key) for key in keys]
        counts.append(len(want[0].unique()))
    assert counts[2] == 1 < min(counts[:2])


@pytest.mark.filterwarnings("ignore")
def test_graph_made_with_gradients_has_them():
    model = tiny_model("faster")

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            images = model.preprocess_image([{"image": image}])
            features = model.backbone(images.tensor)
            proposals, _ = model.proposal_generator(images, features)
            maps = [features[name] for name in model.roi_heads.box_in_features]
            return model.roi_heads.box_pooler(maps, [x.proposal_boxes for x in proposals])

    pooled = Pooled()
    graph = torch.jit.trace(pooled, picture(96, 128), check_trace=False)
    weight = model.backbone.fpn_output2.weight
    image = picture(160, 64, seed=2)
    gradients = []
    for function in (pooled, graph):
        out = function(image)
        gradients.append((out.detach(), *torch.autograd.grad((out * out).sum(), weight)))
    assert_same(*reversed(gradients))
    assert gradients[0][1].abs().max() > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [(1, 1), (0, 2), (3, 1)])
def test_any_number_of_regions_on_each_level(first):
    pooler = ROIPooler(2, [1 / 4, 1 / 8], 0, "ROIAlignV2", canonical_box_size=32, canonical_level=3)

    def pooled(small, large, fine, coarse):
        return pooler([fine, coarse], [Boxes(torch.cat((small, large)))])

    def arguments(counts):
        small, large = torch.tensor([[2.0, 3, 12, 14]]), torch.tensor([[1.0, 2, 60, 55]])
        generator = torch.Generator().manual_seed(sum(counts))
        maps = (torch.rand(1, 3, 64 // s, 64 // s, generator=generator) for s in (4, 8))
        return small.repeat(counts[0], 1), large.repeat(counts[1], 1), *maps

    graph = torch.jit.trace(pooled, arguments(first), check_trace=False)
    for counts in ((0, 0), (1, 0), (0, 1), (2, 3)):
        assert_same([graph(*arguments(counts))], [pooled(*arguments(counts))])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [0, 5, 3000])
def test_suppression_of_few_and_of_many_boxes(first):
    """Many boxes are suppressed in parts, and the best of very many are searched in prefixes."""

    def boxes(count, columns=4):
        unit = torch.rand(count, columns, generator=torch.Generator().manual_seed(count))
        unit[:, 2:4] += unit[:, :2] * (columns == 4)
        return 100 * unit, unit[:, 0].clone(), torch.arange(count) % 40

    def both(xyxy, scores, classes):
        return batched_nms(xyxy, scores, classes, 0.3), best_after_nms(xyxy, scores, classes, 0.3, 50)

    def rotated(xywha, scores, classes):
        return (batched_nms_rotated(xywha, scores, classes, 0.3),)

    for function, columns in ((both, 4), (rotated, 5)):
        graph = torch.jit.trace(function, boxes(first, columns), check_trace=False)
        for count in (0, 1, 900, 2500, 9000 if columns == 4 else 10):
            got, want = graph(*boxes(count, columns)), function(*boxes(count, columns))
            assert_same(got if isinstance(got, tuple) else (got,), want)
