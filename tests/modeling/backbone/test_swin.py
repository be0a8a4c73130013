"""Swin: windows against attention written out over the whole map, shapes of every size, freezing, ways to run."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.modeling import SwinTransformer
from detectron2.modeling.backbone.swin import PatchMerging, SwinTransformerBlock, WindowAttention


def tiny(**changes):
    torch.manual_seed(0)
    kwargs = {"embed_dim": 8, "depths": (2, 1, 2), "num_heads": (1, 2, 4), "window_size": 3, "drop_path_rate": 0.0}
    return SwinTransformer(**{**kwargs, "out_indices": (0, 1, 2), **changes})


def image(n=2, height=37, width=50):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------ attention


def attention_over_the_plane(attn, x, side, shift):
    """What windowed attention means: tokens see each other where floor((position - shift) / side) agrees, both ways."""
    n, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    rows, columns = x.shape[1:3]
    r = torch.arange(rows).repeat_interleave(columns)
    q = torch.arange(columns).repeat(rows)
    window = ((r - shift) // side) * 1000 + (q - shift) // side
    together = window[:, None] == window
    offset = (r[:, None] - r + side - 1) * (2 * side - 1) + q[:, None] - q + side - 1
    bias = attn.relative_position_bias_table[offset.where(together, torch.zeros_like(offset))]
    heads = attn.num_heads
    query, key, value = attn.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    mixed = []
    for i in range(heads):
        own = slice(i * c // heads, (i + 1) * c // heads)
        logits = query[..., own] @ key[..., own].transpose(1, 2) * (c // heads) ** -0.5 + bias[..., i]
        mixed.append(logits.masked_fill(~together, -torch.inf).softmax(-1) @ value[..., own])
    return attn.proj(torch.cat(mixed, -1)).view(n, rows, columns, c)[:, :h, :w]


@pytest.mark.parametrize("hw", [(1, 1), (2, 5), (3, 3), (6, 9), (7, 8), (10, 4)])
@pytest.mark.parametrize(("side", "shift"), [(3, 0), (3, 1), (4, 2), (1, 0)])
def test_a_block_is_attention_within_windows(hw, side, shift):
    torch.manual_seed(1)
    block = SwinTransformerBlock(8, 2, window_size=side, shift_size=shift).double().eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, *hw, 8, dtype=torch.float64)
    # The blocks of a stage get the mask from the stage.
    stage = tiny(embed_dim=8, depths=(1,), num_heads=(2,), out_indices=(0,)).layers[0]
    stage.blocks = nn.ModuleList([block])
    y = x + attention_over_the_plane(block.attn, block.norm1(x), side, shift)
    torch.testing.assert_close(stage(x), y + block.mlp(block.norm2(y)))


def test_scale_and_bias_of_attention():
    attn = WindowAttention(4, 2, 1, qkv_bias=False, qk_scale=0.0)
    assert attn.qkv.bias is None
    nn.init.zeros_(attn.relative_position_bias_table)
    x = torch.randn(3, 4, 4)
    value = attn.qkv(x)[..., 8:].mean(1, keepdim=True).expand(3, 4, 4)  # all tokens count the same
    torch.testing.assert_close(attn(x), attn.proj(value))


def test_dropout_of_attention_is_for_training():
    attn = WindowAttention(8, 3, 2, attn_drop_rate=0.5)
    x = torch.randn(2, 9, 8)
    torch.manual_seed(0)
    assert not torch.equal(attn(x), attn(x))
    attn.eval()
    assert torch.equal(attn(x), attn(x))


def test_offsets_of_a_window():
    index = WindowAttention(4, 2, 1).relative_position_index
    # offsets (down, right) of token j as seen from token i, in rows of three
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert index.dtype == torch.int64


@pytest.mark.parametrize("hw", [(1, 1), (2, 2), (4, 6), (3, 6), (5, 3)])
def test_merging_joins_two_by_two_tokens(hw):
    merge = PatchMerging(3)
    x = torch.randn(2, *hw, 3)
    padded = F.pad(x, (0, 0, 0, hw[1] % 2, 0, hw[0] % 2))
    four = [padded[:, 0::2, 0::2], padded[:, 1::2, 0::2], padded[:, 0::2, 1::2], padded[:, 1::2, 1::2]]
    torch.testing.assert_close(merge(x), merge.reduction(merge.norm(torch.cat(four, -1))))


# -------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 32), (37, 50)])
def test_output_shape_is_that_of_the_output(n, height, width):
    model = tiny()
    outputs = model(image(n, height, width))
    assert list(outputs) == list(model.output_shape()) == ["p0", "p1", "p2"]
    for i, (name, spec) in enumerate(model.output_shape().items()):
        assert (spec.stride, spec.channels) == (4 * 2**i, 8 * 2**i)
        assert outputs[name].shape == (n, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
    assert model.size_divisibility == 16


def test_other_patches_and_fewer_outputs():
    model = tiny(patch_size=2, patch_norm=False, out_indices=[2, 0])
    assert model.patch_embed.norm is None
    assert {k: v.stride for k, v in model.output_shape().items()} == {"p0": 2, "p2": 8}
    assert {k: v.shape[-2:] for k, v in model(image(1, 20, 12)).items()} == {"p0": (10, 6), "p2": (3, 2)}
    assert not hasattr(model, "norm1")


def test_later_stages_are_not_computed_for_nothing():
    model = tiny(out_indices=(0,))
    model.layers[1].forward = lambda x: pytest.fail("computed")
    assert list(model(image())) == ["p0"]


def test_absolute_positions_are_resized():
    model = tiny(ape=True, pretrain_img_size=16)
    assert model.absolute_pos_embed.shape == (1, 8, 4, 4)
    nn.init.constant_(model.absolute_pos_embed, 0.0)
    zero = model(image())
    nn.init.constant_(model.absolute_pos_embed, 0.5)  # constant at every size
    shifted = tiny()
    shifted.load_state_dict({k: v for k, v in model.state_dict().items() if k != "absolute_pos_embed"})
    shifted.patch_embed.register_forward_hook(lambda module, args, out: out + 0.5)
    expected = shifted(image())
    for name, value in model(image()).items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.allclose(value, zero[name])


def test_names_and_shapes_of_the_published_weights():
    with torch.device("meta"):
        state = SwinTransformer().state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert shapes["patch_embed.proj.weight"] == (96, 3, 4, 4)
    assert shapes["layers.2.blocks.5.attn.relative_position_bias_table"] == (169, 12)
    assert shapes["layers.2.blocks.5.attn.relative_position_index"] == (49, 49)
    assert shapes["layers.3.blocks.1.mlp.fc1.weight"] == (3072, 768)
    assert shapes["layers.0.downsample.reduction.weight"] == (192, 384)
    assert shapes["norm3.bias"] == (768,)
    assert len(shapes) == 4 + 12 * 14 + 3 * 3 + 4 * 2
    assert not [k for k in shapes if "mask" in k or k.startswith("layers.3.downsample")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": ()}, "num_heads for each"),
        ({"depths": (1, 1)}, "num_heads for each"),
        ({"out_indices": ()}, "out_indices"),
        ({"out_indices": (0, 3)}, "out_indices"),
        ({"num_heads": (3, 3, 3)}, "8 channels cannot be split into 3 equal heads"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny(**wrong)
    with pytest.raises(ValueError, match="less than window_size=3"):
        SwinTransformerBlock(8, 2, window_size=3, shift_size=3)


@pytest.mark.parametrize(
    ("frozen_stages", "prefixes"),
    [
        (-1, ()),
        (0, ("patch_embed.",)),
        (1, ("patch_embed.", "absolute_pos_embed")),
        (2, ("patch_embed.", "absolute_pos_embed", "layers.0.")),
        (4, ("patch_embed.", "absolute_pos_embed", "layers.")),
    ],
)
def test_frozen_stages(frozen_stages, prefixes):
    model = tiny(ape=True, frozen_stages=frozen_stages, drop_rate=0.1).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name
    assert model.training and model.norm0.training
    assert model.layers[0].training == (frozen_stages < 2) == model.pos_drop.training
    assert not model.eval().layers[2].training


def test_depth_drops_more_with_depth():
    rates = [getattr(b.drop_path, "p", 0.0) for s in tiny(drop_path_rate=0.4).layers for b in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


# ---------------------------------------------------------------------------------------------------------- ways to run


def loss_of(outputs):
    return sum(v.float().square().mean() for v in outputs.values())


def gradients(model, x):
    model.zero_grad()
    loss_of(model(x)).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def test_every_parameter_learns_and_checkpointing_changes_nothing():
    model = tiny().train()
    expected = gradients(model, image())
    assert all(g.isfinite().all() and g.abs().sum() > 0 for k, g in expected.items() if "qkv.bias" not in k)
    again = tiny(use_checkpoint=True).train()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, gradient in gradients(again, image()).items():
        torch.testing.assert_close(gradient, expected[name])


def test_two_steps_in_bfloat16():
    model = tiny(drop_path_rate=0.2).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(image()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    exact = model.eval()(image())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(image())
    for name, value in exact.items():
        torch.testing.assert_close(rounded[name].float(), value, atol=0.1, rtol=0.1)


def test_whole_model_in_half_precision():
    model = tiny().eval()
    exact = model(image())
    for name, value in model.to(torch.bfloat16)(image().bfloat16()).items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.float(), exact[name], atol=0.15, rtol=0.1)


def test_copies_and_weights():
    model = tiny().eval()
    expected = model(image())
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    fresh = tiny(depths=(2, 1, 2)).eval()
    nn.init.normal_(fresh.patch_embed.proj.weight)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        for name, value in other(image()).items():
            torch.testing.assert_close(value, expected[name])


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    model = tiny(depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1)).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    expected = gradients(model, image())
    for name, gradient in gradients(compiled, image()).items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")])
