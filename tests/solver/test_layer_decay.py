import pytest
import torch
from torch import nn

from detectron2.modeling.backbone import BasicStem, ResNet, SwinTransformer, ViT
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver._layer_decay import layer_decay


def model_of(*names):
    """A module with one parameter under each dotted name."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                setattr(node, part, nn.Module())
            node = getattr(node, part)
        node.register_parameter(last, nn.Parameter(torch.zeros(1)))
    return root


@pytest.mark.parametrize("names", [[], ["head.weight"], ["backbone.conv.weight"], ["head.blocks.0.weight"]])
def test_a_backbone_without_known_layers_is_refused(names):
    with pytest.raises(ValueError, match=r"SOLVER\.LAYER_DECAY"):
        layer_decay(model_of(*names), 0.9)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        layer_decay(model_of("backbone.res2.weight"), rate)


@pytest.mark.parametrize(
    ("powers"),
    [
        # ResNet below a pyramid, RegNet
        {
            "backbone.bottom_up.stem.conv1.weight": 3,
            "backbone.bottom_up.res2.0.conv1.weight": 2,
            "backbone.bottom_up.res3.3.conv2.norm.bias": 1,
            "backbone.fpn_lateral2.weight": 0,
            "roi_heads.res5.weight": 0,
        },
        {"backbone.stem.weight": 3, "backbone.s1.b1.weight": 2, "backbone.s2.b1.weight": 1, "head.s1.weight": 0},
        # ViT
        {
            "backbone.net.patch_embed.proj.weight": 4,
            "backbone.net.pos_embed": 4,
            "backbone.net.blocks.0.attn.weight": 3,
            "backbone.net.blocks.2.attn.weight": 1,
            "backbone.net.blocks.2.residual.conv1.weight": 0,
            "backbone.simfp_2.0.weight": 0,
            "head.weight": 0,
        },
        # Swin: five blocks, in stages of two and three
        {
            "backbone.bottom_up.patch_embed.proj.weight": 6,
            "backbone.bottom_up.layers.0.blocks.0.weight": 5,
            "backbone.bottom_up.layers.0.blocks.1.weight": 4,
            "backbone.bottom_up.layers.0.downsample.weight": 4,
            "backbone.bottom_up.layers.1.blocks.0.weight": 3,
            "backbone.bottom_up.layers.1.blocks.1.weight": 2,
            "backbone.bottom_up.layers.1.blocks.2.weight": 1,
            "backbone.bottom_up.norm1.weight": 0,
            "head.layers.0.blocks.0.weight": 0,
        },
    ],
    ids=["resnet", "regnet", "vit", "swin"],
)
def test_factors(powers):
    factor = layer_decay(model_of(*powers), 0.5)
    assert {name: factor(name) for name in powers} == {name: 0.5**power for name, power in powers.items()}


def test_the_real_backbones_are_known():
    with torch.device("meta"):
        backbones = {
            "vit": ViT(img_size=32, patch_size=16, embed_dim=8, depth=3, num_heads=2),
            "swin": SwinTransformer(embed_dim=8, depths=[1, 2], num_heads=[1, 2], out_indices=(0, 1)),
            "resnet": ResNet(BasicStem(), ResNet.make_default_stages(18)),
        }
    for name, backbone in backbones.items():
        model = nn.Module()
        model.backbone = backbone
        factors = {layer_decay(model, 0.5)(key) for key, _ in model.named_parameters()}
        assert {0.5, 0.25, 0.125} <= factors, name
    model.backbone = backbones["vit"]
    for key, _ in model.named_parameters():
        assert layer_decay(model, 0.7)(key) == get_vit_lr_decay_rate(key, 0.7, 3)
