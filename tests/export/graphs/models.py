"""Small models of every architecture that is exported, batches for them, and what they give in PyTorch."""

import functools

import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.export.graphs import build_graph
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.modeling.meta_arch import HFDetector, HFSegmenter
from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor
from detectron2.projects.panoptic_deeplab import (
    PanopticDeepLab,
    PanopticDeepLabInsEmbedHead,
    PanopticDeepLabSemSegHead,
)
from detectron2.projects.point_rend import PointRendSemSegHead, add_pointrend_config
from tests.export.test_tracing import MEAN, picture, tiny_model
from tests.modeling.meta_arch.hf_configs import DETECTORS, SEGMENTERS
from tests.projects.mask2former import models as mask2former_models

FEW = {
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 60,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.55,
}


def small(name, **changes):
    return tiny_model(name, **{**FEW, **changes})


# Standard deviations that predictions get. Those of random weights may be so large that scores round to one and that
# rounding moves boxes by tenths of a pixel.
GRADES = {
    "objectness_logits": 2.0,
    "anchor_deltas": 0.2,
    "cls_score": 2.0,
    "bbox_pred": 0.5,
    "predictor": 2.0,
    "prediction": 2.0,
}


def graded(model):
    """Scale the predictions of the two stages of an R-CNN."""
    handles = []
    for path, layer in model.named_modules():
        name = path.rpartition(".")[2]
        dense = name in ("cls_score", "bbox_pred") and not isinstance(layer, nn.Linear)
        if name not in GRADES or dense or "parameter_head" in path or not hasattr(layer, "weight"):
            continue

        def scale(layer, inputs, output, wanted=GRADES[name]):
            if output.numel() == 0:
                return output
            factor = wanted / output.std()
            layer.weight.data *= factor
            return output * factor

        handles.append(layer.register_forward_hook(scale))
    in_pytorch(model, *batch([(160, 224)]))
    for handle in handles:
        handle.remove()
    return model


def on_pyramid(name, bottom_up, out_channels=32, **changes):
    """A model whose feature maps come from another backbone."""
    model = small(name, **changes)
    features = list(bottom_up.output_shape())
    top = LastLevelP6P7(out_channels, out_channels, "p5") if name == "retinanet" else LastLevelMaxPool()
    model.backbone = FPN(bottom_up, features, out_channels, norm="", top_block=top).eval()
    return model


def swin():
    net = SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=3, drop_path_rate=0.0)
    return on_pyramid("faster", net)


def mvit():
    net = MViT(embed_dim=4, depth=5, last_block_indexes=(0, 2, 3, 4), adaptive_window_size=8, rel_pos_zero_init=False)
    return on_pyramid("faster", net)


def regnet():
    net = RegNet(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=8,
        w_a=8.0,
        w_0=8,
        w_m=2.0,
        group_width=4,
        norm="BN",
        out_features=["s1", "s2", "s3", "s4"],
    )
    return on_pyramid("mask", net)


def vitdet():
    net = ViT(
        img_size=256,
        embed_dim=16,
        depth=2,
        num_heads=2,
        use_rel_pos=True,
        window_size=3,
        window_block_indexes=(0,),
        pretrain_img_size=48,
        out_feature="last_feat",
    )
    model = small("mask")
    model.backbone = SimpleFeaturePyramid(
        net, "last_feat", 32, (4.0, 2.0, 1.0, 0.5), top_block=LastLevelMaxPool(), square_pad=256
    ).eval()
    return model


def deformable():
    return small(
        "faster_c4",
        **{
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, False],
            "MODEL.RESNETS.DEFORM_MODULATED": True,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        },
    )


def dilated_c5():
    return small(
        "faster_c4",
        **{
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.RESNETS.OUT_FEATURES": ["res5"],
            "MODEL.RESNETS.RES5_DILATION": 2,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.RPN.IN_FEATURES": ["res5"],
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        },
    )


C4 = {"MODEL.RESNETS.WIDTH_PER_GROUP": 8}
OLD_POOLING = {
    f"MODEL.ROI_{head}_HEAD.{key}": value
    for head in ("BOX", "MASK")
    for key, value in (("POOLER_TYPE", "ROIAlign"), ("POOLER_SAMPLING_RATIO", 2))
}


def implicit_point_rend():
    model = small(
        "point_rend",
        **{
            "MODEL.ROI_MASK_HEAD.NAME": "ImplicitPointRendMaskHead",
            "MODEL.POINT_HEAD.NAME": "ImplicitPointHead",
            "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 2,
            "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 196,
        },
    )
    with torch.no_grad():  # the weights of the point head; with random ones all probabilities are near 0 or 1
        model.roi_heads.mask_head.parameter_head.prediction.weight *= 0.2
    return model


def point_rend():
    return small(
        "point_rend", **{"MODEL.POINT_HEAD.SUBDIVISION_STEPS": 2, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 196}
    )


def point_rend_semantic():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    backbone = small("semantic").backbone
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PointRendSemSegHead"
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM, cfg.MODEL.SEM_SEG_HEAD.NORM = 16, ""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 5
    cfg.MODEL.POINT_HEAD.IN_FEATURES = ["p2"]
    cfg.MODEL.POINT_HEAD.FC_DIM = 16
    cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 700  # more than the first map of a small image has
    torch.manual_seed(1)
    head = PointRendSemSegHead(cfg, backbone.output_shape())
    return SemanticSegmentor(backbone=backbone, sem_seg_head=head, pixel_mean=MEAN, pixel_std=[1.0] * 3).eval()


class Meta:
    """All that an architecture asks of a data set."""

    thing_dataset_id_to_contiguous_id = {1: 1}
    label_divisor = 1000


def panoptic_deeplab():
    backbone = small("semantic").backbone
    shapes = {"p2": ShapeSpec(channels=32, stride=4), "p4": ShapeSpec(channels=32, stride=16)}
    common = {
        "project_channels": [4],
        "aspp_dilations": [1, 2, 3],
        "aspp_dropout": 0.0,
        "decoder_channels": [8, 8],
        "common_stride": 4,
        "norm": "BN",
        "train_size": None,
        "head_channels": 8,
    }
    torch.manual_seed(1)
    semantic = PanopticDeepLabSemSegHead(
        shapes, **common, loss_weight=1.0, loss_type="cross_entropy", loss_top_k=1.0, ignore_value=255, num_classes=4
    )
    embedding = PanopticDeepLabInsEmbedHead(shapes, **common, center_loss_weight=1.0, offset_loss_weight=1.0)
    model = PanopticDeepLab(
        backbone=backbone,
        sem_seg_head=semantic,
        ins_embed_head=embedding,
        metadata=Meta(),
        pixel_mean=MEAN,
        pixel_std=[1.0] * 3,
        size_divisibility=64,
    )
    return model.eval()


def mask2former(changes=()):
    """Gives results of all three kinds."""
    MetadataCatalog.get("made up for Mask2Former").thing_dataset_id_to_contiguous_id = {1: 0, 2: 2}
    on = {f"MODEL.MASK_FORMER.TEST.{kind}_ON": True for kind in ("SEMANTIC", "INSTANCE", "PANOPTIC")}
    return mask2former_models.tiny_model({**dict(changes), **on, "DATASETS.TRAIN": ("made up for Mask2Former",)}).eval()


MODELS = {
    "Faster R-CNN, FPN": lambda: small("faster"),
    "Faster R-CNN, C4": lambda: small("faster_c4", **C4),
    "Faster R-CNN, DC5": dilated_c5,
    "Mask R-CNN, FPN": lambda: small("mask"),
    "Mask R-CNN, C4": lambda: small("faster_c4", **C4, **{"MODEL.MASK_ON": True}),
    "Mask R-CNN, ROIAlign with 2 samples": lambda: small("mask", **OLD_POOLING),
    "Cascade Mask R-CNN": lambda: small("cascade"),
    "Keypoint R-CNN": lambda: small("keypoint"),
    "RetinaNet": lambda: small("retinanet"),
    "RetinaNet, torchvision's anchors": lambda: small(
        "retinanet", **{"MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator"}
    ),
    "FCOS": lambda: tiny_model("fcos"),
    "proposals": lambda: small("proposals"),
    "semantic FPN": lambda: small("semantic"),
    "panoptic FPN": lambda: small("panoptic"),
    "PointRend": point_rend,
    "implicit PointRend": implicit_point_rend,
    "semantic PointRend": point_rend_semantic,
    "Panoptic-DeepLab": panoptic_deeplab,
    "Mask R-CNN, RegNet": regnet,
    "Faster R-CNN, Swin": swin,
    "Faster R-CNN, MViT": mvit,
    "Mask R-CNN, ViTDet": vitdet,
    "Faster R-CNN, deformable convolution": deformable,
    "Mask2Former": lambda: mask2former(mask2former_models.RESNET),
}


def hf_detector(kind):
    """A small detector of transformers, whose features have the scale of trained ones.

    As the library makes them, features vanish: all places of an image get the same score, and any of them is chosen.
    """
    torch.manual_seed(0)
    arguments = {"pixel_mean": [10.0] * 3, "pixel_std": [255.0] * 3, "max_detections_per_image": 6}
    model = HFDetector(config=DETECTORS[kind], input_format="BGR", **arguments).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
        elif name.endswith("weight"):  # of a normalization
            nn.init.ones_(weight)
    return model


def hf_segmenter(kind, **arguments):
    torch.manual_seed(0)
    return HFSegmenter(config=SEGMENTERS[kind], **arguments).eval()


def batch(sizes_hw, contrast=1.0):
    """Images of these sizes with noise around the smaller ones, and the sizes."""
    height, width = (max(sizes) for sizes in zip(*sizes_hw, strict=True))
    images = 255 * torch.rand(len(sizes_hw), 3, height, width, generator=torch.Generator().manual_seed(0))
    for i, (h, w) in enumerate(sizes_hw):
        images[i, :, :h, :w] = picture(h, w, contrast, seed=i + 3)
    return images, torch.tensor(sizes_hw)


def in_pytorch(model, images, sizes, threshold=None):
    """What the model itself gives for each image, as `ExportGraph.to_results`; with another score threshold."""
    kind = type(model).__name__
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
    holders = [m for m in model.modules() if hasattr(m, "test_score_thresh")]
    before = [m.test_score_thresh for m in holders]
    for holder in holders if threshold is not None else ():
        holder.test_score_thresh = threshold
    try:
        with torch.no_grad():
            if kind == "GeneralizedRCNN":
                return [{"instances": x} for x in model.inference(inputs, do_postprocess=False)]
            if kind == "PanopticFPN":
                found = model.inference(inputs, do_postprocess=False)
                return [{"instances": x, "sem_seg": y} for x, y in zip(*found, strict=True)]
            padded = model.preprocess_image(inputs)
            features = model.backbone(padded.tensor)
            if kind == "MaskFormer":
                found = model.sem_seg_head(features)
                parts = found["pred_logits"].softmax(-1), found["pred_masks"]
                sizes = torch.tensor(padded.tensor.shape[2:]).expand(len(images), 2)
                names = ("class_scores", "mask_logits", "padded_sizes")
                return [dict(zip(names, x, strict=True)) for x in zip(*parts, sizes, strict=True)]
            if kind == "ProposalNetwork":
                return [{"proposals": x} for x in model.proposal_generator(padded, features, None)[0]]
            if kind == "SemanticSegmentor":
                return [{"sem_seg": x} for x in model.sem_seg_head(features, None)[0]]
            if kind == "PanopticDeepLab":
                parts = model.sem_seg_head(features)[0], *model.ins_embed_head(features)[:2]
                return [dict(zip(("sem_seg", "center", "offset"), x, strict=True)) for x in zip(*parts, strict=True)]
            maps = [features[name] for name in model.head_in_features]
            return [{"instances": x} for x in model.forward_inference(padded, maps, model.head(maps))]
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.test_score_thresh = value


def by_graph(graph, images, sizes, run=None):
    """The results of a graph, or of `run`, which takes and gives tensors as the graph does."""
    outputs = (run or graph)(images, sizes)
    return graph.to_results(dict(zip(graph.output_names, outputs, strict=True)), sizes)


def fields(result):
    """All tensors of the result of an image, by name."""
    found = {}
    for name, value in result.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
            continue
        for field, x in value.get_fields().items():
            found[field] = x if isinstance(x, torch.Tensor) else x.tensor
    return found


def difference(got, want):
    """The largest difference of each field; shapes must agree."""
    worst = {}
    assert len(got) == len(want)
    for g, w in zip(map(fields, got), map(fields, want), strict=True):
        assert g.keys() == w.keys()
        for name, x in w.items():
            assert g[name].shape == x.shape, (name, g[name].shape, x.shape)
            gap = (g[name].double() - x.double()).abs().max().item() if x.numel() else 0.0
            worst[name] = max(worst.get(name, 0.0), gap)
    return worst


@functools.cache
def model_of(name):
    return graded(MODELS[name]())


def graph_of(name, options=None):
    return build_graph(model_of(name), options)
