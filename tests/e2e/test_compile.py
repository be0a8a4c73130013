"""`torch.compile` takes backbones and heads whole: one graph, the same numbers, and one more graph for all sizes.

The backend "eager" runs the graph as it was captured, so what is tested is that the code can be captured.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead

SIZES = [(32, 64), (64, 96), (96, 32)]
REGION = ShapeSpec(channels=4, height=4, width=4)


def tensors_of(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:
        return []
    return [t for x in (output.values() if isinstance(output, dict) else output) for t in tensors_of(x)]


def gradients(module, output):
    module.zero_grad()
    sum(t.square().sum() for t in tensors_of(output)).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_compiles(module, inputs, function=None):
    """Compile ``function`` (by default ``module``), compare outputs for all ``inputs``, and gradients for the last.

    Two graphs may be captured for two sizes, the second one for sizes to come; a third one for an unlucky number.
    """
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    function = function or module
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for x in inputs:
        expected, found = function(x), compiled(x)
        assert len(tensors_of(found)) == len(tensors_of(expected)) > 0
        for a, b in zip(tensors_of(found), tensors_of(expected), strict=True):
            torch.testing.assert_close(a, b)
    assert len(graphs) <= 3
    expected, found = gradients(module, expected), gradients(module, found)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())  # a compiled graph has frozen norms beside their convolutions
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


def images():
    return [torch.randn(2, 3, *hw) for hw in SIZES]


def maps(channels=4, strides=(4, 8)):
    return [[torch.randn(2, channels, h // s, w // s) for s in strides] for h, w in SIZES]


def regions():
    return [torch.randn(n, 4, 4, 4) for n in (3, 5, 2)]


def bottleneck(cls, norm="BN", **kwargs):
    return cls(4, 8, bottleneck_channels=4, norm=norm, **kwargs)


# ------------------------------------------------------------------------------------------------------------ backbones


@pytest.mark.parametrize(
    "norm", ["", "BN", "FrozenBN", "LN", "naiveSyncBN", "naiveSyncBN_N", lambda c: nn.GroupNorm(2, c)]
)
def test_norms(norm):
    assert_compiles(BasicBlock(3, 4, stride=2, norm=norm), images())


def test_resnet():
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=4, stride=1, norm="BN"),
        ResNet.make_stage(BottleneckBlock, 1, in_channels=4, out_channels=8, bottleneck_channels=4, stride=2),
    ]
    assert_compiles(ResNet(BasicStem(3, 4), stages, out_features=["res2", "res3"], freeze_at=1), images())


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_block(modulated):
    block = bottleneck(DeformBottleneckBlock, stride=2, deform_modulated=modulated, deform_num_groups=2)
    assert_compiles(block, [torch.randn(2, 4, h // 4, w // 4) for h, w in SIZES])


def test_stage_of_regions():
    blocks = ResNet.make_stage(
        BottleneckBlock, 2, stride_per_block=[2, 1], in_channels=4, out_channels=8, bottleneck_channels=4
    )
    assert_compiles(nn.Sequential(*blocks), regions())


class Strides(Backbone):
    """Two maps of strides 4 and 8."""

    def __init__(self):
        super().__init__()
        self._out_features = ["res2", "res3"]
        self._out_feature_channels = {"res2": 3, "res3": 3}
        self._out_feature_strides = {"res2": 4, "res3": 8}

    def forward(self, x):
        return {"res2": F.avg_pool2d(x, 4), "res3": F.avg_pool2d(x, 8)}


@pytest.mark.parametrize(
    ("top_block", "fuse_type"),
    [(None, "avg"), (LastLevelMaxPool("p3"), "sum"), (LastLevelP6P7(3, 4, "res3"), "sum")],
)
def test_fpn(top_block, fuse_type):
    fpn = FPN(Strides(), ["res2", "res3"], 4, norm="LN", top_block=top_block, fuse_type=fuse_type)
    assert_compiles(fpn, images())


def test_regnet():
    regnet = RegNet(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=2,
        w_a=8.0,
        w_0=8,
        w_m=2.0,
        group_width=4,
        norm="BN",
    )
    assert_compiles(regnet, images())


# ---------------------------------------------------------------------------------------------------------------- heads


def test_rpn_head():
    assert_compiles(StandardRPNHead(in_channels=4, num_anchors=3), maps())


def test_rpn_head_of_two_convolutions_and_rotated_boxes():
    assert_compiles(StandardRPNHead(in_channels=4, num_anchors=3, box_dim=5, conv_dims=(-1, 6)), maps())


@pytest.mark.parametrize("norm", ["", "BN"])
def test_retinanet_head(norm):
    head = RetinaNetHead(
        input_shape=[ShapeSpec(channels=4)] * 2, num_classes=3, num_anchors=2, conv_dims=[4], norm=norm
    )
    assert_compiles(head, maps())


def test_fcos_head():
    head = FCOSHead(input_shape=[ShapeSpec(channels=4)] * 2, num_classes=3, conv_dims=[4], norm="BN")
    assert_compiles(head, maps())


def test_semantic_head():
    shapes = {"p2": ShapeSpec(channels=4, stride=4), "p3": ShapeSpec(channels=4, stride=8)}
    head = SemSegFPNHead(shapes, num_classes=3, conv_dims=4, common_stride=4, norm="LN").eval()
    assert_compiles(head, [dict(zip(shapes, x, strict=True)) for x in maps()], lambda x: head(x)[0])


@pytest.mark.parametrize(("conv_dims", "fc_dims", "norm"), [([], [6, 6], ""), ([4, 4], [6], "LN"), ([4], [], "BN")])
def test_box_head(conv_dims, fc_dims, norm):
    assert_compiles(FastRCNNConvFCHead(REGION, conv_dims=conv_dims, fc_dims=fc_dims, conv_norm=norm), regions())


def test_mask_head():
    head = MaskRCNNConvUpsampleHead(REGION, num_classes=3, conv_dims=[4, 4], conv_norm="BN")
    assert_compiles(head, regions(), head.layers)


def test_keypoint_head():
    head = KRCNNConvDeconvUpsampleHead(REGION, num_keypoints=3, conv_dims=[4, 4])
    assert_compiles(head, regions(), head.layers)


@pytest.mark.parametrize("options", [{}, {"cls_agnostic_bbox_reg": True, "use_sigmoid_ce": True}])
def test_box_predictor(options):
    predictor = FastRCNNOutputLayers(REGION, box2box_transform=Box2BoxTransform((1, 1, 1, 1)), num_classes=3, **options)
    assert_compiles(predictor, regions())
