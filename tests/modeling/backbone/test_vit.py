"""The plain vision transformer and its pyramid: shapes, names, values by hand, what may be asked of any backbone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone import get_vit_lr_decay_rate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import Attention, Block, ResBottleneckBlock
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import ImageList


def tiny_vit(**kwargs):
    """Four tokens of width 8 a side at 64 pixels; three blocks: windows of 3, whole map, whole map."""
    arguments = {
        "img_size": 64,
        "embed_dim": 8,
        "depth": 3,
        "num_heads": 2,
        "use_rel_pos": True,
        "window_size": 3,
        "window_block_indexes": (0,),
        "pretrain_img_size": 48,
    }
    return ViT(**{**arguments, **kwargs})


def tiny_pyramid(**kwargs):
    arguments = {
        "in_feature": "last_feat",
        "out_channels": 4,
        "scale_factors": (4.0, 2.0, 1.0, 0.5),
        "top_block": LastLevelMaxPool(),
    }
    return SimpleFeaturePyramid(**{"net": tiny_vit(), **arguments, **kwargs})


def randomize(model):
    """Draw all parameters, so that nothing starts at zero."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


# ----------------------------------------------------------------------------------------------------------- the blocks


def _attention_by_numpy(layer, x):
    """One image `(H, W, C)`, in double precision, without relative positions."""
    state = {k: v.double().numpy() for k, v in layer.state_dict().items()}
    tokens = x.reshape(-1, x.shape[-1]).double().numpy()
    q, k, v = np.split(tokens @ state["qkv.weight"].T + state.get("qkv.bias", 0), 3, axis=1)
    width = x.shape[-1] // layer.num_heads
    heads = []
    for i in range(layer.num_heads):
        columns = slice(i * width, (i + 1) * width)
        weights = np.exp(q[:, columns] @ k[:, columns].T / np.sqrt(width))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, columns])
    out = np.concatenate(heads, 1) @ state["proj.weight"].T + state["proj.bias"]
    return torch.from_numpy(out).view(*x.shape)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_by_numpy(qkv_bias):
    layer = randomize(Attention(6, num_heads=3, qkv_bias=qkv_bias)).double()
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    expected = torch.stack([_attention_by_numpy(layer, image) for image in x])
    torch.testing.assert_close(layer(x), expected)
    # Tables of zeros change nothing, though another implementation is taken.
    relative = Attention(6, num_heads=3, qkv_bias=qkv_bias, use_rel_pos=True, input_size=(2, 3)).double()
    assert relative.rel_pos_h.shape == (3, 2) and relative.rel_pos_w.shape == (5, 2)
    relative.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(relative(x), expected)


def test_relative_positions_attract():
    """A large entry for "one column to the right" makes every token look there."""
    layer = Attention(2, num_heads=1, use_rel_pos=True, input_size=(1, 4))
    for p in layer.parameters():
        nn.init.zeros_(p)
    layer.qkv.bias.data[:2] = 1.0  # every query is (1, 1)
    layer.qkv.weight.data[4:] = torch.eye(2)  # values are the input
    layer.proj.weight.data = torch.eye(2)
    layer.rel_pos_w.data[4 - 2] = 50.0  # query - key == -1
    x = torch.arange(8.0).view(1, 1, 4, 2)
    out = layer(x)
    torch.testing.assert_close(out[0, 0, :3], x[0, 0, 1:])
    torch.testing.assert_close(out[0, 0, 3], x[0, 0].mean(0))  # nothing to the right of the last


def test_attention_arguments():
    with pytest.raises(ValueError, match="8 channels cannot be split into 3 heads"):
        Attention(8, num_heads=3)
    with pytest.raises(ValueError, match="need input_size"):
        Attention(8, use_rel_pos=True)
    random = Attention(8, num_heads=2, use_rel_pos=True, rel_pos_zero_init=False, input_size=(2, 2))
    assert 0 < float(random.rel_pos_h.detach().std()) < 0.1


def test_residual_block_starts_as_the_identity():
    block = ResBottleneckBlock(4, 4, 2)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(block(x), x)
    assert [k for k in block.state_dict() if k.startswith("conv")] == [f"conv{i}.weight" for i in (1, 2, 3)]
    assert {f"norm{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")} < block.state_dict().keys()
    assert not torch.equal(randomize(block)(x), x)
    with pytest.raises(ValueError, match="needs a norm"):
        ResBottleneckBlock(4, 4, 2, norm="")


def test_windows_do_not_see_each_other():
    block = randomize(Block(4, 2, window_size=2, use_rel_pos=True))
    x = torch.randn(1, 4, 4, 4)
    changed = x.clone()
    changed[:, 3, 3, 0] += 1.0
    differs = (block(changed) != block(x)).any(-1)[0]
    assert bool(differs[2:, 2:].all()) and int(differs.sum()) == 4
    whole = randomize(Block(4, 2, use_rel_pos=True, input_size=(4, 4)))
    assert bool((whole(changed) != whole(x)).any(-1).all())


# -------------------------------------------------------------------------------------------------------------- the ViT


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize("size_hw", [(64, 64), (32, 80), (17, 16)])
def test_output_shape_is_that_of_the_output(num_images, size_hw):
    model = tiny_vit(out_feature="map")
    out = model(torch.zeros(num_images, 3, *size_hw))
    spec = model.output_shape()["map"]
    assert list(out) == ["map"] and (spec.channels, spec.stride) == (8, 16)
    assert out["map"].shape == (num_images, 8, size_hw[0] // 16, size_hw[1] // 16)


def test_names_and_shapes_of_parameters():
    model = tiny_vit(depth=2, residual_block_indexes=[1])
    block = {
        "norm1.weight": (8,),
        "norm1.bias": (8,),
        "attn.qkv.weight": (24, 8),
        "attn.qkv.bias": (24,),
        "attn.proj.weight": (8, 8),
        "attn.proj.bias": (8,),
        "norm2.weight": (8,),
        "norm2.bias": (8,),
        "mlp.fc1.weight": (32, 8),
        "mlp.fc1.bias": (32,),
        "mlp.fc2.weight": (8, 32),
        "mlp.fc2.bias": (8,),
    }
    convolutions = {"conv1.weight": (4, 8, 1, 1), "conv2.weight": (4, 4, 3, 3), "conv3.weight": (8, 4, 1, 1)}
    norms = {f"norm{i}.{p}": (c,) for i, c in ((1, 4), (2, 4), (3, 8)) for p in ("weight", "bias")}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        "pos_embed": (1, 10, 8),  # (48 / 16) ** 2 and the class token
        "patch_embed.proj.weight": (8, 3, 16, 16),
        "patch_embed.proj.bias": (8,),
        **{f"blocks.{i}.{k}": v for i in range(2) for k, v in block.items()},
        **{f"blocks.0.attn.rel_pos_{axis}": (5, 4) for axis in "hw"},  # windows of 3
        **{f"blocks.1.attn.rel_pos_{axis}": (7, 4) for axis in "hw"},  # 64 / 16 tokens a side
        **{f"blocks.1.residual.{k}": v for k, v in {**convolutions, **norms}.items()},
    }
    assert "pos_embed" not in tiny_vit(use_abs_pos=False).state_dict()
    assert tiny_vit(pretrain_use_cls_token=False).pos_embed.shape == (1, 9, 8)


def test_no_blocks():
    model = tiny_vit(depth=0)
    x = torch.randn(2, 3, 48, 48)
    patches = nn.functional.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=16)
    positions = model.pos_embed[:, 1:].view(1, 3, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(x)["last_feat"], patches + positions)


def test_one_block_by_its_formula():
    model = randomize(tiny_vit(depth=1, use_rel_pos=False, window_block_indexes=(), use_abs_pos=False)).double()
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    tokens = model.patch_embed(x)[0]
    block = model.blocks[0]
    tokens = tokens + _attention_by_numpy(block.attn, block.norm1(tokens).detach())
    hidden = nn.functional.gelu(nn.functional.linear(block.norm2(tokens), block.mlp.fc1.weight, block.mlp.fc1.bias))
    tokens = tokens + nn.functional.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(model(x)["last_feat"][0], tokens.permute(2, 0, 1))


def test_depth_is_dropped_more_and_more():
    rates = [getattr(b.drop_path, "p", 0.0) for b in tiny_vit(drop_path_rate=0.4).blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    assert getattr(tiny_vit(depth=1, drop_path_rate=0.4).blocks[0].drop_path, "p", 0.0) == 0.0
    model = tiny_vit(drop_path_rate=0.9)
    x = torch.randn(1, 3, 64, 64)
    assert any(not torch.equal(model(x)["last_feat"], model(x)["last_feat"]) for _ in range(5))
    model.eval()
    assert torch.equal(model(x)["last_feat"], model(x)["last_feat"])


def test_activation_checkpoints_change_nothing_but_memory():
    plain = randomize(tiny_vit(residual_block_indexes=[2]))
    saving = tiny_vit(residual_block_indexes=[2], use_act_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    results = []
    for model in (plain, saving):
        out = model(x)["last_feat"]
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------------------------------- the pyramid


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize(
    ("scale_factors", "names"),
    [
        ((1.0,), ["p4"]),
        ((4.0, 2.0, 1.0, 0.5), ["p2", "p3", "p4", "p5", "p6"]),
        ((2.0, 1.0, 0.5), ["p3", "p4", "p5", "p6"]),
    ],
)
def test_pyramid_output_shape_is_that_of_the_output(num_images, scale_factors, names):
    top_block = LastLevelMaxPool() if 0.5 in scale_factors else None
    pyramid = tiny_pyramid(scale_factors=scale_factors, top_block=top_block)
    outputs = pyramid(torch.zeros(num_images, 3, 64, 128))
    assert list(outputs) == list(pyramid.output_shape()) == names
    for name, spec in pyramid.output_shape().items():
        assert spec.channels == 4 and spec.stride == 2 ** int(name[1:])
        assert outputs[name].shape == (num_images, 4, 64 // spec.stride, 128 // spec.stride)


def test_pyramid_names_of_parameters():
    convolutions = {  # positions in the sequence: the norm and the activation count
        "simfp_2": {0: (8, 4, 2, 2), 3: (4, 2, 2, 2), 4: (4, 2, 1, 1), 5: (4, 4, 3, 3)},
        "simfp_3": {0: (8, 4, 2, 2), 1: (4, 4, 1, 1), 2: (4, 4, 3, 3)},
        "simfp_4": {0: (4, 8, 1, 1), 1: (4, 4, 3, 3)},
        "simfp_5": {1: (4, 8, 1, 1), 2: (4, 4, 3, 3)},
    }
    weights = {f"{level}.{i}.weight": s for level, layers in convolutions.items() for i, s in layers.items()}
    for norm in ("LN", ""):
        state = tiny_pyramid(norm=norm).state_dict()
        names = {k for k in state if not k.startswith("net.")}
        assert {k: tuple(state[k].shape) for k in weights} == weights
        biases = {"simfp_2.0.bias", "simfp_2.3.bias", "simfp_3.0.bias"}
        if norm:
            normed = [k[: -len(".weight")] for k in weights if k not in {b[:-4] + "weight" for b in biases}]
            others = {f"{k}.norm.{p}" for k in normed for p in ("weight", "bias")}
            others |= {"simfp_2.1.weight", "simfp_2.1.bias"}
        else:
            others = {k.replace("weight", "bias") for k in weights}
        assert names == set(weights) | biases | others
    assert list(state).index("simfp_5.2.weight") < list(state).index("net.pos_embed")


def test_constraints_on_the_input():
    pyramid = tiny_pyramid(square_pad=96)
    assert pyramid.size_divisibility == 32
    assert pyramid.padding_constraints == {"size_divisibility": 32, "square_size": 96}
    images = [torch.zeros(3, 50, 90), torch.zeros(3, 64, 40)]
    constraints = pyramid.padding_constraints
    assert ImageList.from_tensors(images, padding_constraints=constraints).tensor.shape == (2, 3, 96, 96)
    constraints = tiny_pyramid().padding_constraints
    assert ImageList.from_tensors(images, padding_constraints=constraints).tensor.shape == (2, 3, 64, 96)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"in_feature": "res5"}, r"'res5': the backbone offers \['last_feat'\]"),
        ({"scale_factors": (1.0, 3.0)}, "5 is not a power of two"),
        ({"scale_factors": (2.0, 0.5)}, "32 is not twice 8"),
        ({"scale_factors": (0.25,), "top_block": None}, "4.0, 2.0, 1.0 and 0.5; got 0.25"),
        ({"top_block": LastLevelMaxPool("p7")}, "starts from 'p7'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_pyramid(**kwargs)


def test_top_block_may_start_from_the_backbone():
    pyramid = tiny_pyramid(top_block=LastLevelMaxPool("last_feat"), out_channels=8)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(pyramid(x)["p6"], pyramid.net(x)["last_feat"][:, :, ::2, ::2])


# ------------------------------------------------------------------------------------------------------- as a backbone


def test_copies_pickles_and_state_dicts():
    pyramid = randomize(tiny_pyramid())
    x = torch.randn(1, 3, 64, 64)
    expected = pyramid(x)
    other = tiny_pyramid()
    other.load_state_dict(pyramid.state_dict())
    for copied in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid)), other):
        for name, value in copied(x).items():
            assert torch.equal(value, expected[name])
    clone = copy.deepcopy(pyramid)
    nn.init.zeros_(clone.simfp_4[0].weight)
    assert not torch.equal(clone(x)["p4"], expected["p4"])  # the copy runs its own layers


def test_it_compiles_without_a_break():
    torch.compiler.reset()
    pyramid = tiny_pyramid(net=tiny_vit(drop_path_rate=0.5, residual_block_indexes=[1], depth=2))
    compiled = torch.compile(pyramid, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 64, 96)
    outputs = []
    for model in (compiled, pyramid):
        torch.manual_seed(0)  # for the branches that are dropped
        outputs.append(model(x))
    for name in pyramid.output_shape():
        torch.testing.assert_close(outputs[0][name], outputs[1][name])


def test_it_trains_in_mixed_precision():
    pyramid = tiny_pyramid(net=tiny_vit(drop_path_rate=0.2, residual_block_indexes=[1], depth=2))
    optimizer = torch.optim.SGD(pyramid.parameters(), lr=0.01)
    x = torch.randn(4, 3, 64, 96)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(value.float().square().mean() for value in pyramid(x).values())
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in pyramid.parameters())
        optimizer.step()


# -------------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("roi_heads.box_predictor.cls_score.weight", 0),
        ("roi_heads.blocks.0.weight", 0),  # not in the backbone
        ("backbone.simfp_2.0.weight", 0),
        ("backbone.net.blocks.1.residual.conv1.weight", 0),
        ("backbone.net.blocks.11.mlp.fc1.bias", 1),
        ("backbone.net.blocks.0.attn.rel_pos_h", 12),
        ("backbone.net.patch_embed.proj.weight", 13),
        ("backbone.net.pos_embed", 13),
    ],
)
def test_learning_rate_decays_towards_the_image(name, steps):
    assert get_vit_lr_decay_rate(name, lr_decay_rate=0.5, num_layers=12) == 0.5**steps
    assert get_vit_lr_decay_rate(name) == 1.0


def test_learning_rates_of_an_optimizer():
    model = nn.Module()
    model.backbone = tiny_pyramid()
    model.head = nn.Linear(2, 2)
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        lr_factor_func=lambda name: get_vit_lr_decay_rate(name, lr_decay_rate=0.5, num_layers=3),
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    vit = model.backbone.net
    assert found[id(vit.pos_embed)] == (0.5**4, 0.0)
    assert found[id(vit.patch_embed.proj.weight)] == (0.5**4, 0.1)
    assert [found[id(b.mlp.fc1.weight)][0] for b in vit.blocks] == [0.125, 0.25, 0.5]
    assert found[id(model.head.weight)] == (1.0, 0.1)
