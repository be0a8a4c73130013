import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import (
    encode_masks,
    mask_ops,
    paste_masks_as_rle,
    paste_masks_in_boxes,
    paste_masks_in_image,
)
from detectron2.layers.mask_ops import _do_paste_mask, pad_masks, paste_mask_in_image_old, scale_boxes
from detectron2.structures import Boxes


def slow_paste(mask, box, height, width):
    """Soft values, pixel by pixel."""
    h, w = mask.shape
    out = np.zeros((height, width))
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return out
    padded = np.pad(mask, 1)
    for y in range(max(0, int(np.floor(y1 - 1))), min(height, int(np.ceil(y2 + 1)))):
        for x in range(max(0, int(np.floor(x1 - 1))), min(width, int(np.ceil(x2 + 1)))):
            v = (y + 0.5 - y1) / (y2 - y1) * h - 0.5
            u = (x + 0.5 - x1) / (x2 - x1) * w - 0.5
            if not (-1 < v < h and -1 < u < w):
                continue
            j, i = int(np.floor(v)), int(np.floor(u))
            dv, du = v - j, u - i
            cells = padded[j + 1 : j + 3, i + 1 : i + 3]
            out[y, x] = (np.array([1 - dv, dv]) @ cells) @ np.array([1 - du, du])
    return out


BOXES = [
    [3.0, 4, 17, 15],
    [2.3, 5.7, 12.9, 8.2],
    [-6.5, -3, 8, 40],  # beyond the image on three sides
    [50, 50, 60, 60],  # outside
    [5, 5, 5, 9],  # no width
    [9, 9, 4, 12],  # turned over
    [6.2, 6.2, 6.9, 6.9],  # within one pixel
]


@pytest.mark.parametrize("threshold", [0.5, -1])
def test_no_masks(threshold):
    out = paste_masks_in_image(torch.zeros(0, 28, 28), Boxes(torch.zeros(0, 4)), (20, 30), threshold)
    assert out.shape == (0, 20, 30) and out.dtype == (torch.bool if threshold > 0 else torch.uint8)


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (5, 9)])
def test_against_a_slow_one(size):
    masks = torch.rand(len(BOXES), *size)
    soft = paste_masks_in_image(masks, torch.tensor(BOXES), (20, 24), -1)
    hard = paste_masks_in_image(masks, Boxes(torch.tensor(BOXES)), (20, 24), 0.4)
    assert soft.dtype == torch.uint8 and hard.dtype == torch.bool
    for mask, box, s, b in zip(masks.double().numpy(), BOXES, soft.numpy(), hard.numpy(), strict=True):
        expected = slow_paste(mask, box, 20, 24)
        assert np.abs(s - expected * 255).max() <= 1 + 1e-3
        clear = np.abs(expected - 0.4) > 1e-5
        assert (b == (expected >= 0.4))[clear].all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 25), st.integers(1, 25))
def test_a_full_mask_of_small_cells_fills_its_box(x, y, w, h):
    # Cells smaller than half a pixel: the fall-off at the border never reaches the centre of a pixel.
    out = paste_masks_in_image(torch.ones(1, 64, 64), torch.tensor([[x, y, x + w, y + h]]).float(), (28, 36))[0]
    expected = torch.zeros(28, 36, dtype=torch.bool)
    expected[y : y + h, x : x + w] = True
    assert torch.equal(out, expected)


def test_threshold_zero_takes_everything():
    assert paste_masks_in_image(torch.zeros(1, 4, 4), torch.tensor([[1.0, 1, 3, 3]]), (5, 5), 0.0).all()


@pytest.mark.parametrize("skip_empty", [True, False])
def test_all_at_once_equals_one_by_one(skip_empty):
    masks, boxes = torch.rand(len(BOXES), 7, 7), torch.tensor(BOXES)
    values, region = _do_paste_mask(masks[:, None], boxes, 20, 24, skip_empty)
    full = torch.zeros(len(BOXES), 20, 24)
    full[(slice(None), *region)] = values
    expected = [slow_paste(m, b, 20, 24) for m, b in zip(masks.double().numpy(), BOXES, strict=True)]
    np.testing.assert_allclose(full.numpy(), np.stack(expected), atol=1e-4)


def test_region_of_small_boxes():
    values, region = _do_paste_mask(torch.ones(1, 7, 7), torch.tensor([[3.0, 4, 8, 9]]), 20, 24)
    assert region == (slice(3, 10), slice(2, 9)) and values.shape == (1, 7, 7)


def test_the_way_of_accelerators(monkeypatch):
    from detectron2.layers import mask_ops

    masks, boxes = torch.rand(len(BOXES), 7, 7), torch.tensor(BOXES)
    monkeypatch.setattr(mask_ops, "_PASS_BYTES", 20 * 24 * 16 * 2)  # two masks at a time
    got = mask_ops._paste_in_passes(masks, boxes, 20, 24, 0.4, torch.bool)
    assert (got != paste_masks_in_image(masks, boxes, (20, 24), 0.4)).sum() <= 1


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(2, 7, 7\) and \(3, 4\)"):
        paste_masks_in_image(torch.zeros(2, 7, 7), torch.zeros(3, 4), (5, 5))


class TestOldPaste:
    def test_full_mask(self):
        out = paste_mask_in_image_old(torch.ones(7, 7), torch.tensor([2.0, 1, 4, 3]), 6, 8, 0.5)
        expected = torch.zeros(6, 8, dtype=torch.uint8)
        expected[1:4, 2:5] = 1
        assert torch.equal(out, expected)

    def test_beyond_the_image_and_soft(self):
        out = paste_mask_in_image_old(torch.full((7, 7), 0.5), torch.tensor([-2.0, -2, 1, 1]), 6, 8, -1)
        assert out[:2, :2].tolist() == [[127, 127]] * 2 and out.sum() == 4 * 127

    def test_outside(self):
        assert not paste_mask_in_image_old(torch.ones(7, 7), torch.tensor([20.0, 20, 30, 30]), 6, 8, 0.5).any()


def encoded(masks):
    """What pycocotools makes of masks (N, H, W)."""
    return [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


@pytest.mark.parametrize("boxes", [[], BOXES])
def test_run_lengths_are_those_of_pycocotools(boxes):
    masks = torch.rand(len(boxes), 7, 5)
    xyxy = torch.tensor(boxes).reshape(-1, 4)
    expected = encoded(paste_masks_in_image(masks, xyxy, (20, 24), 0.4).numpy())
    got = paste_masks_as_rle(masks, Boxes(xyxy), (20, 24), 0.4)
    assert got == [{"size": [20, 24], "counts": rle["counts"].decode()} for rle in expected]


@given(st.integers(1, 12), st.integers(1, 300), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_run_lengths_of_masks_that_reach_the_borders(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 3, 4, generator=generator)
    masks[0] = 1
    corners = torch.rand(3, 2, 2, generator=generator) * torch.tensor([width, height]) * 1.5
    xyxy = torch.cat([corners.amin(1) - 1, corners.amax(1) + 1], 1)
    xyxy[0] = torch.tensor([-9.0, -9, width + 9, height + 9])
    dense = paste_masks_in_image(masks, xyxy, (height, width)).numpy()
    got = paste_masks_as_rle(masks, xyxy, (height, width))
    assert [rle["counts"].encode() for rle in got] == [rle["counts"] for rle in encoded(dense)]


def test_more_masks_than_are_worked_out_together():
    masks = torch.rand(70, 3, 3)
    xyxy = torch.rand(70, 4) * 20 + torch.tensor([0, 0, 20, 20])
    together = paste_masks_in_image(masks, xyxy, (50, 45))
    for k in (0, 31, 32, 69):
        assert torch.equal(together[k], paste_masks_in_image(masks[k : k + 1], xyxy[k : k + 1], (50, 45))[0])
    assert [r["counts"].encode() for r in paste_masks_as_rle(masks, xyxy, (50, 45))] == [
        r["counts"] for r in encoded(together.numpy())
    ]


def test_an_image_without_pixels_has_empty_run_lengths():
    assert paste_masks_as_rle(torch.ones(1, 2, 2), torch.tensor([[0.0, 0, 2, 2]]), (0, 5)) == [
        {"size": [0, 5], "counts": ""}
    ]


@pytest.mark.parametrize("threshold", [0, -1])
def test_run_lengths_need_a_positive_threshold(threshold):
    with pytest.raises(ValueError, match="positive"):
        paste_masks_as_rle(torch.ones(1, 2, 2), torch.tensor([[0.0, 0, 2, 2]]), (4, 5), threshold)


def test_large_results_are_announced(monkeypatch, caplog):
    masks, xyxy = torch.ones(3, 2, 2), torch.tensor([[0.0, 0, 2, 2]]).expand(3, 4)
    paste_masks_in_image(masks, xyxy, (40, 50))
    assert not caplog.records
    monkeypatch.setattr(mask_ops, "_LARGE_RESULT_BYTES", 3 * 40 * 50)
    paste_masks_in_image(masks, xyxy, (40, 50))
    assert "3 masks into an image of 40 x 50" in caplog.text and "mask_format='rle'" in caplog.text


def test_memory_that_does_not_suffice_is_explained():
    side = 2**26  # 2**52 bytes are more than any machine has
    with pytest.raises(MemoryError, match="4194304"):
        paste_masks_in_image(torch.ones(1, 2, 2), torch.tensor([[0.0, 0, 2, 2]]), (side, side))


@pytest.fixture
def small_steps(monkeypatch):
    """Everything is done in many small steps, as with large images."""
    monkeypatch.setattr(mask_ops, "_PIXELS_AT_ONCE", 50)
    monkeypatch.setattr(mask_ops, "_WEIGHT_BYTES", 1)
    monkeypatch.setattr(mask_ops, "_LARGE_RESULT_BYTES", 1)


@pytest.mark.parametrize("boxes", [[], [*BOXES, [-9, -9, 40, 40]]])
def test_small_steps_give_the_same(request, boxes):
    masks, xyxy = torch.rand(len(boxes), 7, 5), torch.tensor(boxes).reshape(-1, 4).float()
    if boxes:
        masks[-1] = 1  # fills the image: a single run over all columns
    whole = paste_masks_in_image(masks, xyxy, (20, 24), 0.4)
    soft = paste_masks_in_image(masks, xyxy, (20, 24), -1)
    run_lengths = paste_masks_as_rle(masks, xyxy, (20, 24), 0.4)
    assert all(mask_util.area(rle) == mask.sum() for rle, mask in zip(run_lengths, whole.numpy(), strict=True))
    request.getfixturevalue("small_steps")
    assert torch.equal(paste_masks_in_image(masks, xyxy, (20, 24), 0.4), whole)
    assert torch.equal(paste_masks_in_image(masks, xyxy, (20, 24), -1), soft)
    assert paste_masks_as_rle(masks, xyxy, (20, 24), 0.4) == encode_masks(whole) == run_lengths
    pasted_in_boxes(masks, xyxy, whole)


def pasted_in_boxes(masks, xyxy, whole):
    """`paste_masks_in_boxes` gives parts of the whole masks, without which nothing is left of these."""
    parts = list(paste_masks_in_boxes(masks, Boxes(xyxy), (20, 24), 0.4))
    for (bits, (x, y)), mask, box in zip(parts, whole.numpy(), xyxy.tolist(), strict=True):
        assert bits.dtype == np.bool_ and bits.shape[0] <= 20 and bits.shape[1] <= 24
        rest = mask.copy()
        np.testing.assert_array_equal(rest[y : y + bits.shape[0], x : x + bits.shape[1]], bits)
        rest[y : y + bits.shape[0], x : x + bits.shape[1]] = False
        assert not rest.any()
        if bits.size:
            assert (x >= box[0] - 2 and y >= box[1] - 2) or x == 0 or y == 0


@pytest.mark.parametrize("boxes", [[], BOXES])
def test_masks_in_their_boxes(boxes):
    masks, xyxy = torch.rand(len(boxes), 7, 7), torch.tensor(boxes).reshape(-1, 4)
    pasted_in_boxes(masks, xyxy, paste_masks_in_image(masks, xyxy, (20, 24), 0.4))


def test_masks_in_their_boxes_are_checked_before_the_first_is_asked_for():
    with pytest.raises(ValueError, match="paste_masks_in_boxes expects a positive threshold"):
        paste_masks_in_boxes(torch.ones(1, 2, 2), torch.tensor([[0.0, 0, 2, 2]]), (4, 5), 0)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        paste_masks_in_boxes(torch.ones(1, 2, 2), torch.zeros(1, 3), (4, 5))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("count", [0, 5])
def test_whole_masks_are_encoded_as_by_pycocotools(dtype, count):
    masks = torch.rand(count, 9, 13) < torch.linspace(0, 1, count)[:, None, None]  # from none to all of the pixels
    if count:
        masks[2] = False
        masks[2, 3:, 4] = True
    expected = [{"size": [9, 13], "counts": rle["counts"].decode()} for rle in encoded(masks.numpy())]
    given = masks.to(dtype) * 3 if dtype != torch.bool else masks
    assert encode_masks(given) == expected
    if dtype == torch.float32:
        assert encode_masks(torch.where(masks, 0.25, -1.0)) == expected


def test_masks_to_encode_have_three_dimensions():
    assert encode_masks(torch.zeros(2, 0, 5)) == [{"size": [0, 5], "counts": ""}] * 2
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 4\)"):
        encode_masks(torch.zeros(2, 1, 3, 4))


@pytest.mark.parametrize("count", [0, 2])
def test_padding_of_masks_and_scaling_of_boxes_go_together(count):
    padded, scale = pad_masks(torch.ones(count, 28, 28), 1)
    assert padded.shape == (count, 30, 30) and padded.sum() == count * 28 * 28 and scale == 30 / 28
    assert not padded[:, 0].any() and not padded[:, :, -1].any()
    boxes = torch.tensor([[10.0, 20, 38, 76]] * count).reshape(-1, 4)
    torch.testing.assert_close(scale_boxes(boxes, scale), torch.tensor([[9.0, 18, 39, 78]] * count).reshape(-1, 4))


def test_autocast_changes_no_pixel():
    masks = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.2, 4.1, 40.7, 50.3], [10, 2, 61.5, 33], [0, 0, 64, 60]])
    whole, coded = paste_masks_in_image(masks, boxes, (60, 64)), paste_masks_as_rle(masks, boxes, (60, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paste_masks_in_image(masks, boxes, (60, 64)), whole)
        assert paste_masks_as_rle(masks, boxes, (60, 64)) == coded
