"""MViT: pooling attention against loops over windows, the layout of blocks, shapes of every size, ways to run."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.modeling import MViT
from detectron2.modeling.backbone.mvit import MultiScaleAttention, MultiScaleBlock, attention_pool


def tiny(**changes):
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "embed_dim": 4, "depth": 5, "last_block_indexes": (0, 2, 3, 4), "adaptive_window_size": 8}
    return MViT(**{**kwargs, "rel_pos_zero_init": False, **changes})


def image(n=2, height=37, width=50):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------ attention


def test_pooling_of_maps():
    x = torch.arange(24.0).view(1, 4, 3, 2)
    pooled = attention_pool(x, nn.MaxPool2d(2, ceil_mode=True))
    assert pooled.tolist() == [[[[8, 9], [10, 11]], [[20, 21], [22, 23]]]]
    assert attention_pool(x, nn.Identity(), nn.Softmax(-1)).sum().item() == pytest.approx(12)
    assert attention_pool(x[:0], nn.MaxPool2d(2)).shape == (0, 2, 1, 2)


def unpooled(dim=4, heads=2, **changes):
    """Attention whose pooling and norms leave queries, keys and values as they are."""
    torch.manual_seed(1)
    attn = MultiScaleAttention(dim, 2 * dim, heads, pool_kernel=(1, 1), norm_layer=lambda c: nn.Identity(), **changes)
    for pool in (attn.pool_q, attn.pool_k, attn.pool_v):
        nn.init.ones_(pool.weight)
    return attn.double()


def attention_of_one_head(q, k, v, rel_pos_h, rel_pos_w):
    """Tokens of one window, `[side, side, D]`, pair after pair."""
    side, scale = q.shape[0], q.shape[-1] ** -0.5
    out = torch.zeros_like(q)
    for y in range(side):
        for x in range(side):
            logits = [
                scale * q[y, x] @ k[i, j] + q[y, x] @ (rel_pos_h[y - i + side - 1] + rel_pos_w[x - j + side - 1])
                for i in range(side)
                for j in range(side)
            ]
            out[y, x] = torch.stack(logits).softmax(0) @ v.reshape(side * side, -1)
    return out


@pytest.mark.parametrize("residual_pooling", [True, False])
@pytest.mark.parametrize(("hw", "window_size"), [((4, 4), 0), ((4, 4), 2), ((3, 5), 2), ((1, 1), 3)])
def test_attention_within_windows(hw, window_size, residual_pooling):
    size = window_size or hw[0]
    attn = unpooled(
        window_size=window_size,
        residual_pooling=residual_pooling,
        use_rel_pos=True,
        rel_pos_zero_init=False,
        input_size=(size, size),
    )
    x = torch.randn(2, *hw, 4, dtype=torch.float64)
    bottom, right = -hw[0] % size, -hw[1] % size
    queries, keys, values = F.pad(attn.qkv(x), (0, 0, 0, right, 0, bottom)).chunk(3, -1)
    mixed = torch.zeros_like(queries)
    for n in range(2):
        for top in range(0, hw[0], size):
            for left in range(0, hw[1], size):
                for channels in (slice(0, 4), slice(4, 8)):  # of the two heads
                    where = (n, slice(top, top + size), slice(left, left + size), channels)
                    mixed[where] = attention_of_one_head(
                        queries[where], keys[where], values[where], attn.rel_pos_h, attn.rel_pos_w
                    )
    if residual_pooling:
        mixed = mixed + queries
    torch.testing.assert_close(attn(x), attn.proj(mixed[:, : hw[0], : hw[1]]))


def test_without_relative_positions_distances_do_not_count():
    attn = unpooled(residual_pooling=False)
    assert not [name for name, _ in attn.named_parameters() if "rel_pos" in name]
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(attn(x.flip(1)), attn(x).flip(1))
    # zeros for every distance are the same as no distances
    with_zeros = unpooled(residual_pooling=False, use_rel_pos=True, input_size=(4, 4))
    with_zeros.load_state_dict(attn.state_dict(), strict=False)
    torch.testing.assert_close(with_zeros(x), attn(x))


@pytest.mark.parametrize("hw", [(1, 1), (9, 7)])
@pytest.mark.parametrize("window_size", [0, 4])
def test_without_gradients_attention_is_the_same(window_size, hw):
    attn = MultiScaleAttention(
        4, 8, 2, stride_q=2, stride_kv=4, window_size=window_size, use_rel_pos=True, input_size=(8, 8)
    )
    nn.init.normal_(attn.rel_pos_h)
    nn.init.normal_(attn.rel_pos_w)
    x = torch.randn(2, *hw, 4)
    expected = attn(x)
    with torch.no_grad():  # another implementation
        torch.testing.assert_close(attn(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hw", [(1, 1), (2, 3), (8, 8), (9, 7)])
@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("window_size", [0, 4])
def test_a_block_halves_the_map_and_widens_it(n, hw, window_size):
    block = MultiScaleBlock(4, 8, 2, stride_q=2, stride_kv=4, window_size=window_size)
    assert block(torch.randn(n, *hw, 4)).shape == (n, -(-hw[0] // 2), -(-hw[1] // 2), 8)
    assert MultiScaleBlock(4, 4, 2, window_size=window_size)(torch.randn(n, *hw, 4)).shape == (n, *hw, 4)


def test_shortcut_of_a_block():
    block = MultiScaleBlock(4, 8, 1, stride_q=2)
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.attn.proj.bias)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    x = torch.randn(1, 3, 3, 4)
    wide = block.proj(block.norm1(x))
    expected = torch.stack([wide[0, :2, :2].amax((0, 1)), wide[0, :2, 1:].amax((0, 1))])  # windows of 3 around 0 and 2
    torch.testing.assert_close(block(x)[0, 0], expected)


# --------------------------------------------------------------------------------------------------------------- layout


def test_names_and_shapes_of_the_published_weights():
    with torch.device("meta"):
        model = MViT(depth=10, last_block_indexes=(0, 2, 7, 9))
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    distances = [shapes[f"blocks.{i}.attn.rel_pos_h"] for i in range(10)]
    # 2 * size - 1, where the size is that of the larger one of pooled queries and pooled keys
    assert distances == [(n, 96) for n in (111, 55, 55, 55, 27, 27, 27, 27, 27, 13)]
    assert [shapes[f"blocks.{i}.attn.qkv.weight"] for i in (0, 1, 3, 8)] == [
        (288, 96),
        (576, 96),
        (1152, 192),
        (2304, 384),
    ]
    assert [i for i in range(10) if f"blocks.{i}.proj.weight" in shapes] == [1, 3, 8]
    assert shapes["blocks.9.attn.pool_v.weight"] == (96, 1, 3, 3) and shapes["blocks.9.attn.norm_q.bias"] == (96,)
    assert shapes["blocks.9.mlp.fc1.weight"] == (3072, 768)
    assert shapes["scale5_norm.weight"] == (768,)
    assert shapes["patch_embed.proj.weight"] == (96, 3, 7, 7)
    assert len(shapes) == 2 + 10 * 23 + 3 * 2 + 4 * 2


def test_windows_and_strides_of_blocks():
    with torch.device("meta"):
        model = MViT(depth=10, last_block_indexes=(0, 2, 7, 9))
    attention = [block.attn for block in model.blocks]
    assert [a.window_size for a in attention] == [56, 56, 0, 28, 14, 14, 14, 0, 14, 0]
    assert [a.pool_q.stride[0] for a in attention] == [1, 2, 1, 2, 1, 1, 1, 1, 2, 1]
    assert [a.pool_k.stride[0] for a in attention] == [4, 2, 4, 1, 1, 1, 1, 2, 1, 1]
    assert [a.num_heads for a in attention] == [1, 2, 2, 4, 4, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 64), (37, 50)])
def test_output_shape_is_that_of_the_output(n, height, width):
    model = tiny()
    outputs = model(image(n, height, width))
    assert list(outputs) == list(model.output_shape()) == ["scale2", "scale3", "scale4", "scale5"]
    for i, (name, spec) in enumerate(model.output_shape().items()):
        assert (spec.stride, spec.channels) == (4 * 2**i, 4 * 2**i)
        assert outputs[name].shape == (n, spec.channels, -(-height // spec.stride), -(-width // spec.stride))


def test_later_blocks_are_not_computed_for_nothing():
    model = tiny(out_features=["scale3"])
    model.blocks[3].forward = lambda x: pytest.fail("computed")
    assert {k: v.shape for k, v in model(image()).items()} == {"scale3": (2, 8, 5, 7)}
    assert [k for k in model.state_dict() if "_norm." in k] == ["scale3_norm.weight", "scale3_norm.bias"]


@pytest.mark.parametrize("cls_token", [True, False])
def test_absolute_positions_are_resized(cls_token):
    model = tiny(use_abs_pos=True, pretrain_img_size=16, pretrain_use_cls_token=cls_token)
    assert model.pos_embed.shape == (1, 16 + cls_token, 4)
    nn.init.constant_(model.pos_embed, 0.5)  # constant at every size
    if cls_token:
        nn.init.constant_(model.pos_embed[:, :1].data, 99.0)  # not used
    shifted = tiny()
    shifted.load_state_dict({k: v for k, v in model.state_dict().items() if k != "pos_embed"})
    shifted.patch_embed.register_forward_hook(lambda module, args, out: out + 0.5)
    expected = shifted(image())
    for name, value in model(image()).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"last_block_indexes": ()}, "rise to the last block, 4"),
        ({"last_block_indexes": (0, 3)}, "rise to the last block, 4"),
        ({"last_block_indexes": (2, 0, 4)}, "rise to the last block, 4"),
        ({"out_features": ()}, "out_features"),
        ({"out_features": ("res2",)}, r"'scale5'\]; got \['res2'\]"),
        ({"num_heads": 3}, "4 channels cannot be split into 3"),
        ({"adaptive_window_size": 6}, "windows of side 6 cannot be pooled"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny(**wrong)


@pytest.mark.parametrize("input_size", [None, (4, 6)])
def test_relative_positions_need_a_square(input_size):
    with pytest.raises(ValueError, match="size of a square"):
        MultiScaleAttention(4, 4, 1, use_rel_pos=True, input_size=input_size)


def test_depth_drops_more_with_depth():
    rates = [getattr(block.drop_path, "p", 0.0) for block in tiny(drop_path_rate=0.4).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


# ---------------------------------------------------------------------------------------------------------- ways to run


def loss_of(outputs):
    return sum(v.float().square().mean() for v in outputs.values())


def gradients(model, x):
    model.zero_grad()
    loss_of(model(x)).backward()
    return {k.removeprefix("_orig_mod."): p.grad.clone() for k, p in model.named_parameters()}


def test_every_parameter_learns_and_checkpointing_changes_nothing():
    model = tiny().train()
    expected = gradients(model, image())
    assert all(g.isfinite().all() for g in expected.values())
    # A bias common to all keys does not change attention; the rest does.
    assert all(g.abs().sum() > 0 for k, g in expected.items() if "norm_k.bias" not in k)
    again = tiny(use_act_checkpoint=True).train()
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


def test_copies_and_weights():
    model = tiny().eval()
    expected = model(image())
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    fresh = tiny().eval()
    nn.init.normal_(fresh.patch_embed.proj.weight)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        for name, value in other(image()).items():
            torch.testing.assert_close(value, expected[name])


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    model = tiny(depth=3, last_block_indexes=(0, 2), out_features=("scale2", "scale3")).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    expected = gradients(model, image())
    for name, gradient in gradients(compiled, image()).items():
        torch.testing.assert_close(gradient, expected[name])
