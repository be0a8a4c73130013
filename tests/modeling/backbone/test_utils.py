"""Parts of vision transformers: windows, positions, attention. Expected values come from loops and from numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.modeling.backbone import utils
from detectron2.modeling.backbone.utils import (
    PatchEmbed,
    add_decomposed_rel_pos,
    decomposed_attention,
    drop_path,
    get_abs_pos,
    get_rel_pos,
    window_partition,
    window_unpartition,
)

# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_of_no_images():
    windows, padded_hw = window_partition(torch.zeros(0, 5, 7, 2), 3)
    assert windows.shape == (0, 3, 3, 2) and padded_hw == (6, 9)
    assert window_unpartition(windows, 3, padded_hw, (5, 7)).shape == (0, 5, 7, 2)


def test_windows_by_hand():
    x = torch.arange(1.0, 16).view(1, 3, 5, 1)
    windows, padded_hw = window_partition(x, 2)
    assert padded_hw == (4, 6)
    assert windows[..., 0].tolist() == [
        [[1, 2], [6, 7]],
        [[3, 4], [8, 9]],
        [[5, 0], [10, 0]],
        [[11, 12], [0, 0]],
        [[13, 14], [0, 0]],
        [[15, 0], [0, 0]],
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_come_back_together(n, height, width, size):
    x = torch.randn(n, height, width, 2)
    windows, padded_hw = window_partition(x, size)
    assert all(p % size == 0 and 0 <= p - s < size for p, s in zip(padded_hw, (height, width), strict=True))
    back = window_unpartition(windows, size, padded_hw, (height, width))
    assert torch.equal(back, x) and back.is_contiguous()
    assert float(windows.abs().sum()) == pytest.approx(float(x.abs().sum()), rel=1e-4)  # the rest is zero


# ----------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("q_size", "k_size", "expected"),
    [
        (1, 1, [[0]]),
        (3, 3, [[2, 1, 0], [3, 2, 1], [4, 3, 2]]),  # distance 0 in the middle of the table
        (4, 2, [[2, 0], [3, 1], [4, 2], [5, 3]]),  # a key is two queries wide
        (2, 4, [[3, 2, 1, 0], [5, 4, 3, 2]]),
    ],
)
def test_distances(q_size, k_size, expected):
    table = torch.arange(2.0 * max(q_size, k_size) - 1)[:, None].repeat(1, 3)
    found = get_rel_pos(q_size, k_size, table)
    assert found.shape == (q_size, k_size, 3)
    assert found[..., 1].tolist() == expected


@pytest.mark.parametrize("length", [1, 3, 9, 14])
def test_tables_of_other_lengths_are_interpolated(length):
    table = torch.randn(length, 2, dtype=torch.float64)
    found = get_rel_pos(4, 4, table)
    # linear, with samples in the middle of cells
    at = (np.arange(7) + 0.5) * length / 7 - 0.5
    resized = np.stack([np.interp(at, np.arange(length), table[:, c].numpy()) for c in range(2)], -1)
    expected = np.array([[resized[i - j + 3] for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_tables_get_gradients():
    table = torch.zeros(5, 2, requires_grad=True)
    get_rel_pos(3, 3, table).sum().backward()
    assert table.grad[:, 0].tolist() == [1, 2, 3, 2, 1]  # how often each distance occurs


def test_absolute_positions():
    table = torch.randn(1, 10, 4)
    assert torch.equal(get_abs_pos(table, True, (3, 3))[0, 2, 1], table[0, 1 + 2 * 3 + 1])
    assert torch.equal(get_abs_pos(table[:, 1:], False, (3, 3))[0, 0, 2], table[0, 3])
    constant = torch.full((1, 9, 4), 2.5)
    resized = get_abs_pos(constant, False, (5, 2))
    assert resized.shape == (1, 5, 2, 4) and torch.allclose(resized, torch.tensor(2.5))
    with pytest.raises(ValueError, match=r"10 positions do not form a square; is has_cls_token=False right\?"):
        get_abs_pos(table, False, (3, 3))


# ----------------------------------------------------------------------------------------------------------- attention

SIZES = [((3, 5), (3, 5)), ((4, 6), (2, 3)), ((2, 3), (4, 6)), ((1, 1), (1, 1))]


def _inputs(q_size, k_size, batch=2, channels=3, dtype=torch.float64):
    def draw(*shape):
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    (q_h, q_w), (k_h, k_w) = q_size, k_size
    return (
        draw(batch, q_h * q_w, channels),
        draw(batch, k_h * k_w, channels),
        draw(batch, k_h * k_w, channels),
        draw(2 * max(q_h, k_h) - 1, channels),
        draw(2 * max(q_w, k_w) - 1, channels),
    )


def _logits_by_loops(q, k, rel_pos_h, rel_pos_w, q_size, k_size, scale):
    """Equation 4 of the MViTv2 paper, one pair of a query and a key at a time."""
    (q_h, q_w), (k_h, k_w) = q_size, k_size
    out = np.zeros((len(q), q_h * q_w, k_h * k_w))
    for i in range(q_h * q_w):
        for j in range(k_h * k_w):
            step_h, step_w = max(q_h, k_h), max(q_w, k_w)
            distance_h = i // q_w * (step_h // q_h) - j // k_w * (step_h // k_h) + (k_h - 1) * (step_h // k_h)
            distance_w = i % q_w * (step_w // q_w) - j % k_w * (step_w // k_w) + (k_w - 1) * (step_w // k_w)
            key = scale * k[:, j] + rel_pos_h[distance_h] + rel_pos_w[distance_w]
            out[:, i, j] = (q[:, i] * key).sum(-1)
    return out


@pytest.mark.parametrize(("q_size", "k_size"), SIZES)
def test_decomposed_positions_by_loops(q_size, k_size):
    q, k, _, rel_pos_h, rel_pos_w = (t.detach() for t in _inputs(q_size, k_size))
    found = add_decomposed_rel_pos(0.3 * q @ k.mT, q, rel_pos_h, rel_pos_w, q_size, k_size)
    arrays = [t.numpy() for t in (q, k, rel_pos_h, rel_pos_w)]
    np.testing.assert_allclose(found.numpy(), _logits_by_loops(*arrays, q_size, k_size, 0.3), atol=1e-12)


@pytest.mark.parametrize(("q_size", "k_size"), SIZES)
@pytest.mark.parametrize("implementation", ["_attend_explicitly", "_attend_fused"])
def test_attention_by_loops(q_size, k_size, implementation, monkeypatch):
    """Both implementations: which one is taken depends on the device, the precision, and whether it trains."""
    monkeypatch.setattr(utils, "_implementation", lambda *_: getattr(utils, implementation))
    q, k, v, rel_pos_h, rel_pos_w = inputs = _inputs(q_size, k_size)
    found = decomposed_attention(q, k, v, 0.3, rel_pos_h, rel_pos_w, q_size, k_size)
    arrays = [t.detach().numpy() for t in inputs]
    logits = _logits_by_loops(arrays[0], arrays[1], arrays[3], arrays[4], q_size, k_size, 0.3)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.detach().numpy(), weights @ arrays[2], atol=1e-12)

    # The gradient of everything, against that of the formula with autograd's own pieces.
    along = torch.randn_like(found)
    plain = add_decomposed_rel_pos(0.3 * q @ k.mT, q, rel_pos_h, rel_pos_w, q_size, k_size).softmax(-1) @ v
    for a, b in zip(torch.autograd.grad(found, inputs, along), torch.autograd.grad(plain, inputs, along), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_both_implementations_are_in_use():
    q = torch.zeros(1, 1, 1)
    assert utils._implementation(q, q) is utils._attend_fused
    assert utils._implementation(q.requires_grad_(), q) is utils._attend_explicitly
    assert utils._implementation(torch.zeros(1, 1, 1), q.bfloat16()) is utils._attend_explicitly
    meta = torch.zeros(1, 1, 1, device="meta", requires_grad=True)
    assert utils._implementation(meta, meta) is utils._attend_fused


@pytest.mark.parametrize("implementation", ["_attend_explicitly", "_attend_fused"])
def test_attention_of_no_images_and_in_mixed_precision(implementation, monkeypatch):
    monkeypatch.setattr(utils, "_implementation", lambda *_: getattr(utils, implementation))
    q, k, v, *tables = _inputs((3, 2), (3, 2), batch=0, channels=8, dtype=torch.float32)
    assert decomposed_attention(q, k, v, 0.3, *tables, (3, 2), (3, 2)).shape == (0, 6, 8)

    q, k, v, *tables = _inputs((3, 2), (3, 2), channels=8, dtype=torch.float32)
    expected = decomposed_attention(q, k, v, 0.3, *tables, (3, 2), (3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        # as it comes from a linear layer, and with queries in full precision, as they come from a norm
        for low in ((q.bfloat16(), k.bfloat16(), v.bfloat16()), (q, k, v.bfloat16())):
            found = decomposed_attention(*low, 0.3, *tables, (3, 2), (3, 2))
            torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)
            found.float().sum().backward()


# ------------------------------------------------------------------------------------------------------ smaller layers


def test_drop_path():
    assert isinstance(drop_path(0.0), torch.nn.Identity)
    layer = drop_path(0.75)
    x = torch.ones(4000, 2, 2, 3)
    out = layer(x)
    per_image = out.flatten(1)
    assert bool((per_image == per_image[:, :1]).all())  # all of an image or nothing
    assert set(per_image[:, 0].tolist()) == {0.0, 4.0}  # what stays makes up for what goes
    assert float((per_image[:, 0] > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert layer.eval()(x) is x
    assert not layer.state_dict()


def test_patches():
    layer = PatchEmbed(kernel_size=(2, 3), stride=(2, 3), in_chans=1, embed_dim=4)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "proj.weight": (4, 1, 2, 3),
        "proj.bias": (4,),
    }
    x = torch.randn(2, 1, 5, 6)  # the last row belongs to no patch
    out = layer(x)
    assert out.shape == (2, 2, 2, 4)
    expected = (layer.proj.weight[:, 0] * x[1, 0, 2:4, 3:6]).sum((1, 2)) + layer.proj.bias
    torch.testing.assert_close(out[1, 1, 1], expected)
    assert PatchEmbed()(torch.zeros(0, 3, 32, 48)).shape == (0, 2, 3, 768)
