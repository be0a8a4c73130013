"""Rotated pooling against a loop over its definition, against RoIAlign, and its gradient."""

import math
import sys

import numpy as np
import pytest
import torch
import torchvision

from detectron2.layers import ROIAlign, ROIAlignRotated, roi_align_rotated


def regions(*rows, dtype=torch.float32):
    return torch.tensor(rows, dtype=dtype).reshape(-1, 6)


def bilinear(plane, x, y):
    """One sample at cell coordinates, `plane` an array (C, H, W)."""
    height, width = plane.shape[1:]
    if not (-1 <= x <= width and -1 <= y <= height):
        return np.zeros(plane.shape[0])
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    upper = plane[:, y0, x0] * (1 - (x - x0)) + plane[:, y0, x1] * (x - x0)
    lower = plane[:, y1, x0] * (1 - (x - x0)) + plane[:, y1, x1] * (x - x0)
    return upper * (1 - (y - y0)) + lower * (y - y0)


def slow(features, rois, output_hw, scale, ratio):
    features, out = features.numpy(), np.zeros((len(rois), features.shape[1], *output_hw))
    for r, (image, *box, angle) in enumerate(rois.tolist()):
        x, y, width, height = (v * scale for v in box)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        rows = ratio or math.ceil(height / output_hw[0])
        columns = ratio or math.ceil(width / output_hw[1])
        for i in range(output_hw[0] * rows):
            for j in range(output_hw[1] * columns):
                down = ((i + 0.5) / (output_hw[0] * rows) - 0.5) * height
                along = ((j + 0.5) / (output_hw[1] * columns) - 0.5) * width
                # y points down, so counter-clockwise moves "along" towards smaller y
                at = (x - 0.5 + cos * along + sin * down, y - 0.5 + cos * down - sin * along)
                out[r, :, i // rows, j // columns] += bilinear(features[int(image)], *at) / (rows * columns)
    return torch.from_numpy(out)


ROIS = [
    (0, 10, 8, 12, 6, 0),
    (1, 10, 8, 12, 6, 30),
    (0, 3, 3, 20, 9, -75),
    (1, 20, 14, 2.5, 30, 200),
    (1, 60, 60, 5, 5, 10),  # outside
    (0, 12, 10, 100, 80, 45),  # larger than the map
    (1, 12, 10, 0, 0, 45),
]


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("size", [(2, 7, 2), (1, 1, 3)])
def test_no_regions(ratio, size):
    features = torch.randn(size[0], size[1], 4, 5, requires_grad=True)
    out = ROIAlignRotated(size[2], 1.0, ratio)(features, regions())
    assert out.shape == (0, size[1], size[2], size[2])
    out.sum().backward()
    assert not features.grad.any()


def test_no_images_and_no_channels():
    assert ROIAlignRotated(3, 1.0, 0)(torch.zeros(0, 2, 4, 5), regions()).shape == (0, 2, 3, 3)
    assert ROIAlignRotated(3, 1.0, 0)(torch.zeros(1, 0, 4, 5), regions(ROIS[0])).shape == (1, 0, 3, 3)


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize(("output_hw", "scale"), [((3, 4), 1.0), ((1, 1), 0.5), ((4, 2), 0.25)])
def test_against_a_loop(output_hw, scale, ratio):
    features = torch.randn(2, 3, 16, 20, dtype=torch.float64)
    rois = regions(*ROIS, dtype=torch.float64)
    got = roi_align_rotated(features, rois, output_hw, scale, ratio)
    expected = slow(features, rois, output_hw, scale, ratio)
    if ratio == 0:
        expected[-1] = 0  # a region without extent has no samples
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert got.is_contiguous()


@pytest.mark.parametrize("ratio", [0, 2])
def test_upright_regions_as_by_roi_align(ratio):
    features = torch.randn(2, 5, 16, 20)
    rois = regions(*[(*r[:5], 0) for r in ROIS[:6]])
    center, half = rois[:, 1:3], rois[:, 3:5] / 2
    upright = torch.cat([rois[:, :1], center - half, center + half], dim=1)
    expected = ROIAlign((3, 4), 0.5, ratio)(features, upright)
    torch.testing.assert_close(ROIAlignRotated((3, 4), 0.5, ratio)(features, rois), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("angle", "turns"), [(90, -1), (-90, 1), (180, 2), (360, 0), (-1170, 1)])
def test_quarter_turns_turn_the_result(angle, turns):
    features = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    upright = roi_align_rotated(features, regions((0, 10, 9, 8, 8, 0), dtype=torch.float64), 4, 1.0, 2)
    turned = roi_align_rotated(features, regions((0, 10, 9, 8, 8, angle), dtype=torch.float64), 4, 1.0, 2)
    torch.testing.assert_close(turned, torch.rot90(upright, turns, (2, 3)))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("at_once", [1 << 18, 50])
def test_gradient(monkeypatch, ratio, at_once):
    monkeypatch.setattr(sys.modules[ROIAlignRotated.__module__], "_SAMPLES_AT_ONCE", at_once)
    features = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = regions(*ROIS, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: roi_align_rotated(f, rois, (2, 3), 0.25, ratio), (features,))


@pytest.mark.parametrize("ratio", [0, 2])
def test_work_in_pieces_is_the_same(monkeypatch, ratio):
    features, rois = torch.randn(2, 3, 16, 20), regions(*ROIS)
    whole = roi_align_rotated(features, rois, 3, 1.0, ratio)
    monkeypatch.setattr(sys.modules[ROIAlignRotated.__module__], "_SAMPLES_AT_ONCE", 20)
    torch.testing.assert_close(roi_align_rotated(features, rois, 3, 1.0, ratio), whole, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_in_single(dtype):
    features, rois = torch.randn(2, 3, 16, 20).to(dtype), regions(*ROIS)
    out = ROIAlignRotated(3, 1.0, 0)(features, rois)
    assert out.dtype == dtype
    torch.testing.assert_close(out, ROIAlignRotated(3, 1.0, 0)(features.float(), rois).to(dtype))


def test_memory_format_does_not_matter():
    features, rois = torch.randn(2, 3, 16, 20), regions(*ROIS)
    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(roi_align_rotated(last, rois, 3, 1.0, 0), roi_align_rotated(features, rois, 3, 1.0, 0))


@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_that_are_not_finite_give_zeros(ratio):
    rois = regions((0, math.nan, 3, 4, 4, 0), (0, 3, 3, math.inf, 4, 0), (0, 3, 3, 4, 4, math.nan), ROIS[0])
    out = roi_align_rotated(torch.ones(1, 2, 16, 20), rois, 2, 1.0, ratio)
    assert not out[:3].any()
    torch.testing.assert_close(out[3], torch.ones(2, 2, 2))


def test_a_region_far_larger_than_the_map():
    """Only the samples on the map are worked on; the others are counted in the mean."""
    out = roi_align_rotated(torch.ones(1, 1, 10, 10), regions((0, 5, 5, 1000, 1000, 33)), 1, 1.0, 0)
    # Of 10^6 samples, one for each cell, about 12 x 12 lie on the map and the cell around it.
    assert out.item() == pytest.approx(1.21e-4, rel=0.05)


@pytest.mark.parametrize("index", [-1, 3])
def test_no_such_image(index):
    with pytest.raises(ValueError, match=f"of image {index}, but the features are of 2 images"):
        ROIAlignRotated(2, 1.0, 0)(torch.zeros(2, 4, 9, 9), regions([index, 4, 4, 8, 8, 0]))


def test_bad_input_and_repr():
    layer = ROIAlignRotated((3, 4), 0.5, 2)
    assert repr(layer) == "ROIAlignRotated(output_size=(3, 4), spatial_scale=0.5, sampling_ratio=2)"
    with pytest.raises(ValueError, match=r"shape \(R, 6\)"):
        layer(torch.zeros(1, 1, 4, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\)"):
        layer(torch.zeros(1, 4, 4), torch.zeros(2, 6))


def test_torchvision_agrees_on_a_constant():
    """Where a region leaves the map, both count the outside as zero."""
    features = torch.ones(1, 1, 8, 8)
    got = roi_align_rotated(features, regions((0, 0, 4, 8, 4, 0)), (2, 4), 1.0, 2)
    expected = torchvision.ops.roi_align(features, torch.tensor([[0.0, -4, 2, 4, 6]]), (2, 4), 1.0, 2, True)
    torch.testing.assert_close(got, expected)
