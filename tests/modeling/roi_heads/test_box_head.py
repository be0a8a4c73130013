import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, build_box_head
from detectron2.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY

SHAPE = ShapeSpec(channels=4, height=3, width=5)


@pytest.mark.parametrize("regions", [0, 1, 6])
@pytest.mark.parametrize(
    ("conv_dims", "fc_dims", "shape"),
    [([], [7], (7,)), ([6], [], (6, 3, 5)), ([6, 2], [8, 9], (9,))],
)
def test_output_has_the_announced_shape(regions, conv_dims, fc_dims, shape):
    head = FastRCNNConvFCHead(SHAPE, conv_dims=conv_dims, fc_dims=fc_dims)
    out = head(torch.randn(regions, 4, 3, 5))
    assert out.shape == (regions, *shape)
    announced = head.output_shape
    assert (announced.channels, announced.height or 1, announced.width or 1) == (*shape, 1, 1)[:3]


def test_state_dict_names_and_shapes():
    head = FastRCNNConvFCHead(SHAPE, conv_dims=[6], fc_dims=[8, 9], conv_norm="GN" if 6 % 32 == 0 else "BN")
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if "norm" not in k}
    assert shapes == {
        "conv1.weight": (6, 4, 3, 3),  # no bias in front of a norm
        "fc1.weight": (8, 6 * 3 * 5),
        "fc1.bias": (8,),
        "fc2.weight": (9, 8),
        "fc2.bias": (9,),
    }


def test_computes_what_its_layers_say():
    head = FastRCNNConvFCHead(SHAPE, conv_dims=[], fc_dims=[7])
    x = torch.randn(2, 4, 3, 5)
    expected = (x.reshape(2, -1) @ head.fc1.weight.T + head.fc1.bias).clamp(min=0)
    torch.testing.assert_close(head(x), expected)


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match="NUM_FC"):
        FastRCNNConvFCHead(SHAPE, conv_dims=[], fc_dims=[])


def test_built_from_config(tiny_rcnn_cfg):
    cfg = tiny_rcnn_cfg("MODEL.ROI_BOX_HEAD.NUM_CONV", 2, "MODEL.ROI_BOX_HEAD.CONV_DIM", 6)
    head = build_box_head(cfg, SHAPE)
    assert [layer.out_channels for layer in head.conv_norm_relus] == [6, 6]
    assert [layer.out_features for layer in head.fcs] == [16]
    assert "FastRCNNConvFCHead" in ROI_BOX_HEAD_REGISTRY


def test_initial_weights_keep_the_scale_of_the_signal():
    head = FastRCNNConvFCHead(ShapeSpec(channels=64, height=7, width=7), conv_dims=[64], fc_dims=[256])
    conv, fc = head.conv1.weight, head.fc1.weight
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # He et al. 2015, fan out
    bound = (3 / (64 * 49)) ** 0.5  # uniform, of variance 1 / fan in
    assert fc.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not head.conv1.bias.any() and not head.fc1.bias.any()
