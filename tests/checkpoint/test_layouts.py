"""Names of other programs: what a table does to them, and the backbones of MMDetection and transformers."""

import pytest
import torch
from torch import nn

from detectron2.checkpoint.layouts import BACKBONES, Layout, convert_layout, recognise_layout
from detectron2.modeling.backbone import SwinTransformer
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.modeling.backbone.swin import PatchMerging

SOME = Layout("some program", r"net\.", [(r"^net\.([qkv])_proj\.", r"attn.in_proj/\1."), (r"^net\.old\..*", "")])
BACKBONE = Layout("some program", r"backbone\.", BACKBONES)


def test_no_weights():
    assert recognise_layout({}, [SOME]) is None and convert_layout({}, SOME) == {}
    assert recognise_layout({"net.a": 1}, []) is None


def test_the_mark_is_at_the_beginning_of_a_name():
    assert recognise_layout(["other", "net.a"], [BACKBONE, SOME]) is SOME
    assert recognise_layout(["a.net.b"], [SOME]) is None


def test_rules_joined_parts_and_what_is_dropped(caplog):
    weights = {f"net.{x}_proj.weight": torch.full((1, 2), float(i)) for i, x in enumerate("kqv")}
    weights |= {"net.old.bias": torch.zeros(1), "bn.num_batches_tracked": torch.tensor(3), "rest": torch.ones(1)}
    with caplog.at_level("INFO"):
        found = convert_layout(weights, SOME)
    assert list(found) == ["rest", "attn.in_proj_weight"] and len(weights) == 6
    assert found["attn.in_proj_weight"].tolist() == [[1, 1], [0, 0], [2, 2]]
    assert caplog.messages == ["The weights have the names of some program, which were converted."]


def test_a_missing_part():
    with pytest.raises(ValueError, match=r"has attn\.in_proj/q\.bias, but not attn\.in_proj/v\.bias"):
        convert_layout({"net.q_proj.bias": torch.zeros(1), "net.k_proj.bias": torch.zeros(1)}, SOME)


def test_step_between_stages_of_mmdetection():
    """It takes squares with `nn.Unfold`, whose channels come in another order."""
    torch.manual_seed(0)
    norm, reduction = nn.LayerNorm(12), nn.Linear(12, 6, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.rand(1, 4, 6, 3)
    squares = nn.Unfold(2, stride=2)(x.permute(0, 3, 1, 2)).transpose(1, 2)
    expected = reduction(norm(squares)).unflatten(1, (2, 3))
    theirs = {"norm.weight": norm.weight, "norm.bias": norm.bias, "reduction.weight": reduction.weight}
    found = convert_layout({f"backbone.stages.1.downsample.{k}": v for k, v in theirs.items()}, BACKBONE)
    ours = PatchMerging(3)
    ours.load_state_dict({k.removeprefix("backbone.layers.1.downsample."): v for k, v in found.items()})
    torch.testing.assert_close(ours(x), expected)


def test_swin_of_mmdetection():
    names = {
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "patch_embed.norm.bias": "patch_embed.norm.bias",
        "stages.0.blocks.1.attn.w_msa.relative_position_bias_table": (
            "layers.0.blocks.1.attn.relative_position_bias_table"
        ),
        "stages.0.blocks.1.attn.w_msa.relative_position_index": "layers.0.blocks.1.attn.relative_position_index",
        "stages.0.blocks.1.attn.w_msa.qkv.weight": "layers.0.blocks.1.attn.qkv.weight",
        "stages.0.blocks.1.attn.w_msa.proj.bias": "layers.0.blocks.1.attn.proj.bias",
        "stages.0.blocks.1.norm1.weight": "layers.0.blocks.1.norm1.weight",
        "stages.0.blocks.1.ffn.layers.0.0.weight": "layers.0.blocks.1.mlp.fc1.weight",
        "stages.0.blocks.1.ffn.layers.1.bias": "layers.0.blocks.1.mlp.fc2.bias",
        "stages.0.downsample.norm.weight": "layers.0.downsample.norm.weight",
        "norm3.weight": "norm3.weight",
    }
    found = convert_layout({f"backbone.{name}": torch.zeros(4) for name in names}, BACKBONE)
    assert list(found) == [f"backbone.{name}" for name in names.values()]
    own = SwinTransformer(depths=(2, 1, 1, 1), out_indices=(3,)).state_dict()
    assert set(names.values()) <= set(own)


def load_backbone(model, weights, prefix):
    found = convert_layout({f"{prefix}{name}": value for name, value in weights.items()}, BACKBONE)
    report = model.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items()}, strict=False)
    assert not report.unexpected_keys
    assert all("relative_position_index" in key for key in report.missing_keys)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=64,
        depths=[2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3],
        hidden_sizes=[64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048],
        layer_type=kind,
        out_features=["stage2", "stage4"],
    )
    theirs = transformers.ResNetBackbone(config).eval()
    stem = BasicStem(3, 64, "BN")
    options = {"depth": 18} if kind == "basic" else {"depth": 50, "stride_in_1x1": False}
    stages = ResNet.make_default_stages(norm="BN", **options)
    ours = ResNet(stem, stages, out_features=["res3", "res5"]).eval()
    load_backbone(ours, theirs.state_dict(), "backbone.")
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        got, expected = ours(image), theirs(image).feature_maps
    torch.testing.assert_close(list(got.values()), list(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("old", [False, True])
def test_swin_of_transformers(old):
    """Files on hubs have the names of before version 5."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        embed_dim=12, depths=[2, 1, 1], num_heads=[1, 2, 3], window_size=4, out_features=["stage1", "stage3"]
    )
    theirs = transformers.SwinBackbone(config).eval()
    weights = theirs.state_dict()
    if old:
        pairs = [
            ("swin.", ""),
            ("attention.relative_position_bias.", "attention.self."),
            ("attention.q_proj", "attention.self.query"),
            ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]
        for new, name in pairs:
            weights = {key.replace(new, name): value for key, value in weights.items()}
    ours = SwinTransformer(
        embed_dim=12, depths=(2, 1, 1), num_heads=(1, 2, 3), window_size=4, out_indices=(0, 2)
    ).eval()
    load_backbone(ours, weights, "backbone.")
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        got, expected = ours(image), theirs(image).feature_maps
    torch.testing.assert_close(list(got.values()), list(expected), atol=1e-4, rtol=1e-4)
