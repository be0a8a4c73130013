import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import Keypoints, heatmaps_to_keypoints
from detectron2.structures import keypoints as module


class TestKeypoints:
    @pytest.mark.parametrize("kind", [lambda k: k, np.array, torch.tensor])
    def test_kinds(self, kind):
        keypoints = Keypoints(kind([[[1, 2, 2], [3, 4, 0]]]))
        assert keypoints.tensor.dtype == torch.float32 and keypoints.tensor.tolist() == [[[1, 2, 2], [3, 4, 0]]]
        assert len(keypoints) == 1 and keypoints.device == torch.device("cpu")
        assert repr(keypoints) == "Keypoints(num_instances=1, num_keypoints=2)"

    @pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (2, 17, 2)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(N, K, 3\)"):
            Keypoints(torch.zeros(shape))

    def test_indexing(self):
        keypoints = Keypoints(torch.arange(24.0).reshape(4, 2, 3))
        assert keypoints[1].tensor.shape == (1, 2, 3) and keypoints[:0].tensor.shape == (0, 2, 3)
        mask = torch.tensor([True, False, False, True])
        assert torch.equal(keypoints[mask].tensor, keypoints.tensor[[0, 3]])

    def test_cat(self):
        parts = [Keypoints(torch.zeros(n, 2, 3)) for n in (0, 2, 1)]
        assert len(Keypoints.cat(parts)) == 3
        with pytest.raises(ValueError, match="at least one"):
            Keypoints.cat([])
        with pytest.raises(TypeError, match="Tensor"):
            Keypoints.cat([torch.zeros(1, 2, 3)])

    def test_to(self):
        assert Keypoints(torch.zeros(1, 2, 3)).to("meta").device.type == "meta"


class TestToHeatmap:
    def test_no_instances(self):
        cells, valid = Keypoints(torch.zeros(0, 17, 3)).to_heatmap(torch.zeros(0, 4), 56)
        assert cells.shape == valid.shape == (0, 17) and cells.dtype == valid.dtype == torch.int64

    @pytest.mark.parametrize(
        ("keypoint", "cell"),
        [
            ((10, 20, 2), 0),
            ((13.9, 20, 1), 1),  # cells are 2 wide and 4 high
            ((10, 24, 2), 5),
            ((20, 40, 2), 24),  # right and lower edge: the last cell
            ((20, 20, 2), 4),
            ((15, 30, 0), None),  # not labeled
            ((9.9, 30, 2), None),
            ((15, 40.1, 2), None),
            ((20.1, 30, 2), None),
        ],
    )
    def test_cells(self, keypoint, cell):
        cells, valid = Keypoints([[list(keypoint)]]).to_heatmap(torch.tensor([[10.0, 20, 20, 40]]), 5)
        assert valid.tolist() == [[int(cell is not None)]] and cells.tolist() == [[cell or 0]]


def one_by_one(maps, rois):
    """Enlarge with PyTorch's own bicubic interpolation, region by region."""
    out = []
    for heat, (x1, y1, x2, y2) in zip(maps, rois.tolist(), strict=True):
        w, h = max(x2 - x1, 1), max(y2 - y1, 1)
        size = int(np.ceil(h)), int(np.ceil(w))
        large = F.interpolate(heat[None], size=size, mode="bicubic", align_corners=False)[0]
        for small, big in zip(heat, large, strict=True):
            y, x = np.unravel_index(int(big.argmax()), size)
            score = torch.exp(big.max()) / torch.exp(small).sum()
            out.append([(x + 0.5) * w / size[1] + x1, (y + 0.5) * h / size[0] + y1, big.max(), score])
    return torch.tensor(out, dtype=torch.float32).reshape(*maps.shape[:2], 4)


class TestHeatmapsToKeypoints:
    def test_no_regions(self):
        assert heatmaps_to_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 4)

    ROIS = [[3, 4, 50, 60.5], [10, 2, 90.2, 33], [5, 5, 5.2, 5.3], [0, 0, 7, 90]]

    def test_against_one_by_one(self):
        maps, rois = torch.randn(4, 3, 14, 14), torch.tensor(self.ROIS)
        torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), one_by_one(maps, rois), rtol=1e-4, atol=1e-3)

    def test_many_regions(self):
        """More than have their weights computed together; and the first of equal peaks is the one that counts."""
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(2 * 32 + 1, 2, 6, 5, generator=generator)
        size = torch.rand(len(maps), 2, generator=generator) * 30 + 1
        rois = torch.cat([size, 2 * size], dim=1)
        torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), one_by_one(maps, rois), rtol=1e-4, atol=1e-3)
        maps = torch.zeros(1, 1, 6, 5)
        maps[0, 0, 1, 1] = maps[0, 0, 4, 3] = maps[0, 0, 1, 3] = 2.0
        found = heatmaps_to_keypoints(maps, torch.tensor([[0.0, 0, 5, 6]]))
        assert found[0, 0, :3].tolist() == [1.5, 1.5, 2.0]

    @pytest.mark.parametrize("step", [1, 3, 4])
    def test_several_regions_in_a_pass(self, step):
        maps, rois = torch.randn(4, 3, 14, 14), torch.tensor(self.ROIS)
        cells_wh = (rois[:, 2:] - rois[:, :2]).clamp(min=1).ceil()
        steps = zip(maps.split(step), cells_wh.split(step), strict=True)
        parts = [module._find_peaks_together(*part, 81, 90) for part in steps]
        expected = one_by_one(maps, torch.cat([torch.zeros(4, 2), cells_wh], dim=1))
        torch.testing.assert_close(torch.cat([cell for cell, _ in parts]) + 0.5, expected[..., :2])
        torch.testing.assert_close(torch.cat([logit for _, logit in parts]), expected[..., 2], rtol=1e-4, atol=1e-4)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 13), st.integers(0, 13), st.integers(1, 4), st.integers(-50, 50), st.integers(-50, 50))
    def test_a_single_peak_is_found_where_it_was_put(self, x, y, scale, left, top):
        # The label of a keypoint, drawn as a heatmap, gives back the keypoint to within a cell.
        box = torch.tensor([[left, top, left + 14 * scale, top + 14 * scale]], dtype=torch.float32)
        point = torch.tensor([[[left + (x + 0.5) * scale, top + (y + 0.5) * scale, 2]]])
        cells, valid = Keypoints(point).to_heatmap(box, 14)
        heat = torch.zeros(1, 1, 14 * 14)
        heat[0, 0, cells[0, 0]] = 10
        found = heatmaps_to_keypoints(heat.view(1, 1, 14, 14), box)[0, 0]
        assert valid.item() == 1
        assert (found[:2] - point[0, 0, :2]).abs().max() <= scale

    def test_no_gradient_and_half_precision(self):
        maps = torch.randn(1, 2, 14, 14, requires_grad=True)
        rois = torch.tensor([[0.0, 0, 20, 20]])
        with torch.autocast("cpu", torch.bfloat16):
            out = heatmaps_to_keypoints(maps, rois)
        assert not out.requires_grad and out.dtype == torch.float32
        torch.testing.assert_close(out, one_by_one(maps.detach(), rois), rtol=1e-4, atol=1e-3)


def test_cat_of_other_numbers():
    with pytest.raises(ValueError, match=r"differ in the first dimension only, got \(1, 4, 3\), \(2, 5, 3\)"):
        Keypoints.cat([Keypoints(torch.zeros(1, 4, 3)), Keypoints(torch.zeros(2, 5, 3))])


def test_heatmap_needs_a_box_each():
    with pytest.raises(ValueError, match="one box for each instance, got 1 for 2"):
        Keypoints(torch.zeros(2, 5, 3)).to_heatmap(torch.zeros(1, 4), 7)
