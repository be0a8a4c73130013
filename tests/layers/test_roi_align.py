import importlib
import math

import numpy as np
import pytest
import torch
import torchvision

from detectron2.layers import ROIAlign, roi_align

module = importlib.import_module("detectron2.layers.roi_align")  # the package has a function of this name


def bilinear(image, y, x):
    """Value at (y, x) between pixel samples; edge pixels reach one pixel further, zero beyond that."""
    h, w = image.shape[-2:]
    if y < -1 or y > h or x < -1 or x > w:
        return np.zeros(image.shape[0])
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    y0, x0 = min(int(y), h - 1), min(int(x), w - 1)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    dy, dx = y - y0, x - x0
    top = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
    bottom = image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx
    return top * (1 - dy) + bottom * dy


def slow_roi_align(image, box, out_hw, scale, ratio, aligned):
    x1, y1, x2, y2 = np.asarray(box) * scale - (0.5 if aligned else 0.0)
    w, h = x2 - x1, y2 - y1
    if not aligned:
        w, h = max(w, 1), max(h, 1)
    bin_h, bin_w = h / out_hw[0], w / out_hw[1]
    n_y, n_x = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
    out = np.zeros((image.shape[0], *out_hw))
    for i in range(out_hw[0]):
        for j in range(out_hw[1]):
            samples = [
                bilinear(image, y1 + (i + (a + 0.5) / n_y) * bin_h, x1 + (j + (b + 0.5) / n_x) * bin_w)
                for a in range(n_y)
                for b in range(n_x)
            ]
            out[:, i, j] = np.mean(samples, axis=0)
    return out


def test_function_gives_what_torchvisions_gives():
    x, rois = torch.rand(2, 4, 8, 8), torch.tensor([[0.0, 0, 0, 30, 20], [1, 8, 9, 16, 25]])
    expected = torchvision.ops.roi_align(x, rois, 3, 0.25, aligned=True)
    assert torch.equal(roi_align(x, rois, 3, 0.25, aligned=True), expected)
    assert torch.equal(roi_align(x, [rois[:1, 1:], rois[1:, 1:]], (3, 3), 0.25, -1, True), expected)
    assert roi_align(x, torch.zeros(0, 5), 3).shape == roi_align(x, [torch.zeros(0, 4)] * 2, 3).shape == (0, 4, 3, 3)
    assert roi_align(x[:, :, :0], torch.zeros(0, 5), 3).shape == (0, 4, 3, 3)


def pooled(x: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    return roi_align(x, rois, 3, 0.25, aligned=True)


def test_function_in_graphs():
    x, rois = torch.rand(2, 4, 8, 8), torch.tensor([[0.0, 0, 0, 30, 20], [1, 8, 9, 16, 25]])
    expected = pooled(x, rois)
    for graph in (
        torch.jit.trace(pooled, (x, rois)),
        torch.compile(pooled, backend="eager", fullgraph=True),
    ):
        assert torch.equal(graph(x, rois), expected)


@pytest.mark.parametrize(
    ("size_hw", "index", "width", "error"),
    [
        ((0, 0), 0.0, 4.0, ValueError),
        ((0, 8), 0.0, 4.0, ValueError),
        ((8, 8), 2.0, 4.0, ValueError),
        ((8, 8), -1.0, 4.0, ValueError),
        ((8, 8), 0.0, float("nan"), FloatingPointError),
    ],
)
def test_function_refuses_what_ends_the_process(size_hw, index, width, error):
    x, box = torch.rand(2, 4, *size_hw), [0.0, 0.0, width, 4.0]
    with pytest.raises(error, match="roi_align"):
        roi_align(x, torch.tensor([[index, *box]]), 3)
    if index == 0:
        with pytest.raises(error, match="roi_align"):
            roi_align(x, [torch.tensor([box]), torch.zeros(0, 4)], 3)


@pytest.mark.parametrize("size", [3, (3, 5)])
def test_no_regions(size):
    x = torch.zeros(2, 4, 8, 8, requires_grad=True)
    out = ROIAlign(size, 1.0, 0)(x, torch.zeros(0, 5))
    assert out.shape == (0, 4, 3, 3 if size == 3 else 5)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_no_images():
    assert ROIAlign(3, 1.0, 0)(torch.zeros(0, 4, 8, 8), torch.zeros(0, 5)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_against_a_slow_one(aligned, ratio, scale):
    x = torch.randn(2, 3, 12, 14)
    rois = torch.tensor(
        [[0, 1.0, 2, 9, 7], [1, -3, -4, 5, 6.5], [1, 3.2, 4.7, 30, 28], [0, 2, 2, 2.3, 2.4], [1, 0, 0, 14, 12]]
    )
    out = ROIAlign((4, 3), scale, ratio, aligned)(x, rois)
    for row, roi in zip(out.numpy(), rois.tolist(), strict=True):
        expected = slow_roi_align(x[int(roi[0])].double().numpy(), roi[1:], (4, 3), scale, ratio, aligned)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_linear_images_are_sampled_exactly():
    # On an image whose value is its continuous x, a cell's mean is the x of its centre.
    x = (torch.arange(20.0) + 0.5).expand(1, 1, 20, 20)
    out = ROIAlign((1, 4), 1.0, 2)(x, torch.tensor([[0.0, 4, 4, 12, 8]]))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([5.0, 7, 9, 11]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    x = torch.randn(1, 2, 8, 8)
    rois = torch.tensor([[0.0, 1, 1, 6, 7]])
    out = ROIAlign(2, 1.0, 2)(x.to(dtype), rois)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), ROIAlign(2, 1.0, 2)(x.to(dtype).float(), rois), rtol=1e-2, atol=1e-2)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"\(R, 5\).*\(3, 4\)"):
        ROIAlign(2, 1.0, 2)(torch.zeros(1, 1, 4, 4), torch.zeros(3, 4))


def test_repr():
    assert repr(ROIAlign(7, 0.25, 0)) == "ROIAlign(output_size=7, spatial_scale=0.25, sampling_ratio=0, aligned=True)"


def rows_of_features(shape=(2, 8, 12, 14), dtype=torch.float32):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def many_regions(count, generator=None):
    """Regions of all sizes, some of them partly or wholly outside of the map, or without area."""
    generator = generator or torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * 20 - 4
    size = torch.rand(count, 2, generator=generator) ** 2 * 16
    size[::7] = size[::7].round()
    size[3::11] = 0
    image = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(("size", "dtype"), [(3, torch.float32), ((2, 5), torch.float64)])
def test_sums_of_cells_are_torchvisions_results(monkeypatch, aligned, ratio, size, dtype):
    x, rois = rows_of_features(dtype=dtype), many_regions(150)
    expected = torchvision.ops.roi_align(x, rois.to(dtype), size, 0.9, ratio, aligned)
    monkeypatch.setattr(torchvision.ops, "roi_align", lambda *args: pytest.fail("not the sum of cells"))
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 1000)
    found = ROIAlign(size, 0.9, ratio, aligned)(x, rois)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)


def test_other_features_give_torchvisions_numbers():
    x, rois = rows_of_features().contiguous(), many_regions(20)
    expected = torchvision.ops.roi_align(x, rois, 3, 1.0, 0, True)
    assert torch.equal(ROIAlign(3, 1.0, 0)(x, rois), expected)


def test_samples_a_cell_apart_that_rounding_puts_further():
    x = rows_of_features((1, 8, 40, 40))
    start = torch.arange(1, 2000) * torch.tensor(1e-3)
    rois = torch.stack([0 * start, start, start, start + 21, start + 14], dim=1)
    expected = torchvision.ops.roi_align(x, rois, 7, 1.0, 0, True)
    torch.testing.assert_close(ROIAlign(7, 1.0, 0)(x, rois), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [[5.0, 5, 1, 1], [0.0, 0, 1e4, 8], [-80.0, -80, -50, -50], [0.0, 0, 3, 1e-20]])
def test_odd_regions(box):
    x, rois = rows_of_features(), torch.tensor([[0.0, *box]])
    expected = torchvision.ops.roi_align(x, rois, 2, 1.0, 0, True)
    torch.testing.assert_close(ROIAlign(2, 1.0, 0)(x, rois), expected, rtol=0, atol=1e-4)


def test_gradients_are_those_of_torchvision():
    gradients = []
    for pool in (ROIAlign(3, 1.0, 0), lambda x, rois: torchvision.ops.roi_align(x, rois, 3, 1.0, 0, True)):
        x = rows_of_features().requires_grad_()
        pool(x, many_regions(50)).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


ROIS = [[0, 1.0, 2, 9, 7], [1, -3, -4, 5, 6.5], [1, 3.2, 4.7, 30, 28], [0, 2, 2, 2.3, 2.4], [1, 0, 0, 60, 40]]
ROIS += [[0, 10, 10, 5, 5], [1, 100, 100, 120, 130]]  # turned inside out, and outside


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_is_that_of_torchvision(aligned, ratio):
    x, rois = rows_of_features((2, 16, 20, 30), torch.float64).requires_grad_(), torch.tensor(ROIS, dtype=torch.float64)
    out = ROIAlign((4, 3), 0.5, ratio, aligned)(x, rois)
    assert type(out.grad_fn).__name__ == "_SumCellsBackward"
    expected = roi_align(x, rois, (4, 3), 0.5, ratio, aligned)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    (found,), (wanted,) = torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradient_by_differences():
    x, rois = (
        rows_of_features((1, 8, 4, 5), torch.float64).requires_grad_(),
        torch.tensor([[0, 0.3, 0.6, 4.2, 3.1], [0, 2, 1, 9, 3]], dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda x: ROIAlign(2, 1.0, 0)(x, rois), x)


def test_gradient_is_the_same_each_time():
    x, rois = rows_of_features((2, 16, 20, 30)).requires_grad_(), torch.tensor(ROIS)
    out = ROIAlign(7, 0.5, 0)(x, rois)
    grad = torch.randn_like(out)
    first, second = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradient_in_half_precision():
    x, rois = rows_of_features((2, 16, 20, 30)).requires_grad_(), torch.tensor(ROIS)
    half = x.detach().bfloat16().requires_grad_()
    out = ROIAlign(7, 0.5, 0)(half, rois)
    out.sum().backward()
    assert out.dtype == half.grad.dtype == torch.bfloat16
    ROIAlign(7, 0.5, 0)(x, rois).sum().backward()
    torch.testing.assert_close(half.grad.float(), x.grad, rtol=0.01, atol=0.01)


def test_gradient_of_the_gradient_is_refused():
    x = rows_of_features((1, 8, 4, 5), torch.float64).requires_grad_()
    out = ROIAlign(2, 1.0, 0)(x, torch.tensor([[0, 0.3, 0.6, 4.2, 3.1]], dtype=torch.float64))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
class TestWhatTheOperatorsDoNotSurvive:
    """Most of these would end the process."""

    @pytest.mark.parametrize("size_hw", [(0, 0), (0, 5), (5, 0)])
    def test_no_cells(self, memory_format, size_hw):
        x = torch.zeros(1, 16, *size_hw).contiguous(memory_format=memory_format)
        assert ROIAlign(3, 1.0, 0)(x, torch.zeros(0, 5)).shape == (0, 16, 3, 3)
        with pytest.raises(ValueError, match=r"1 regions from features without cells, of shape \(1, 16, "):
            ROIAlign(3, 1.0, 0)(x, torch.tensor([[0.0, 0, 0, 8, 8]]))

    @pytest.mark.parametrize("index", [-1, 2, 500_000])
    def test_no_such_image(self, memory_format, index):
        x = torch.zeros(2, 16, 4, 4).contiguous(memory_format=memory_format)
        rois = torch.tensor([[0.0, 0, 0, 8, 8], [index, 0, 0, 8, 8]])
        with pytest.raises(ValueError, match=f"of image {index}, but the features are of 2 images"):
            ROIAlign(3, 1.0, 0)(x, rois)

    @pytest.mark.parametrize("ratio", [0, 2])
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_not_finite(self, memory_format, value, ratio):
        x = torch.zeros(2, 16, 4, 4).contiguous(memory_format=memory_format)
        rois = torch.tensor([[0.0, 0, 0, 8, 8], [1, 0, 0, 8, float(value)]])
        with pytest.raises(FloatingPointError, match=rf"region 1 is \[0.0, 0.0, 8.0, {value}\]; coordinates must"):
            ROIAlign(3, 1.0, ratio)(x, rois)


def test_features_of_another_shape():
    with pytest.raises(ValueError, match=r"\(N, C, H, W\); got \(16, 9, 5\)"):
        ROIAlign(3, 1.0, 0)(torch.zeros(16, 9, 5), torch.zeros(1, 5))
