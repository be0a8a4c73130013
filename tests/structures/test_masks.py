import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, ROIMasks, polygons_to_bitmask
from detectron2.structures import masks as module
from detectron2.structures.masks import polygon_area, rasterize_polygons_within_box

SQUARE = np.array([2.0, 3, 8, 3, 8, 7, 2, 7])
TRIANGLE = np.array([10.0, 10, 20, 10, 10, 16])


def ellipse(cx, cy, a, b, n=24):
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([cx + a * np.cos(t), cy + b * np.sin(t)], 1).reshape(-1)


def by_pycocotools(polygons, h, w):
    union = np.zeros((h, w), bool)
    for code in mask_util.frPyObjects([list(map(float, p)) for p in polygons], h, w):
        union |= mask_util.decode(code).astype(bool)
    return union


class TestPolygonFunctions:
    def test_no_polygons(self):
        got = polygons_to_bitmask([], 4, 5)
        assert got.shape == (4, 5) and got.dtype == bool and not got.any()

    def test_a_square_fills_whole_pixels(self):
        got = polygons_to_bitmask([SQUARE], 10, 12)
        expected = np.zeros((10, 12), bool)
        expected[3:7, 2:8] = True
        assert np.array_equal(got, expected)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(*[st.floats(-5, 45)] * 2, *[st.floats(1, 20)] * 2), min_size=1, max_size=3))
    def test_against_pycocotools(self, ellipses):
        polygons = [ellipse(*e) for e in ellipses]
        assert np.array_equal(polygons_to_bitmask(polygons, 30, 40), by_pycocotools(polygons, 30, 40))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=3))
    def test_area_against_shapely(self, corners):
        x, y = np.array(corners, dtype=float).T
        assert polygon_area(x, y) == pytest.approx(Polygon(corners).area)

    def test_rasterize_within_box(self):
        # The left half of the box is covered.
        got = rasterize_polygons_within_box([np.array([2.0, 3, 5, 3, 5, 7, 2, 7])], np.array([2.0, 3, 8, 7]), 10)
        expected = torch.zeros(10, 10, dtype=torch.bool)
        expected[:, :5] = True
        assert torch.equal(got, expected)

    def test_rasterize_within_a_box_without_extent(self):
        got = rasterize_polygons_within_box([SQUARE], np.array([5.0, 5, 5, 5]), 4)
        assert got.shape == (4, 4) and got.all()

    def test_the_polygons_stay_as_they_are(self):
        polygon = SQUARE.copy()
        rasterize_polygons_within_box([polygon], np.array([0.0, 0, 4, 4]), 7)
        assert np.array_equal(polygon, SQUARE)


class TestPolygonMasks:
    def make(self):
        return PolygonMasks([[SQUARE, TRIANGLE], [TRIANGLE], []])

    def test_no_instances(self):
        masks = PolygonMasks([])
        assert len(masks) == 0 and masks.area().shape == (0,) and masks.nonempty().shape == (0,)
        assert masks.get_bounding_boxes().tensor.shape == (0, 4)
        assert masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
        assert len(masks[torch.zeros(0, dtype=torch.bool)]) == 0 and list(masks) == []

    @pytest.mark.parametrize("kind", [list, lambda p: torch.tensor(p), lambda p: np.array(p, dtype=np.float32)])
    def test_polygons_become_float64_arrays(self, kind):
        polygon = PolygonMasks([[kind([0, 0, 2, 0, 2, 3])]]).polygons[0][0]
        assert polygon.dtype == np.float64 and polygon.tolist() == [0, 0, 2, 0, 2, 3]

    def test_measures(self):
        masks = self.make()
        assert masks.area().tolist() == [24 + 30, 30, 0]
        assert masks.nonempty().tolist() == [True, True, False]
        assert masks.get_bounding_boxes().tensor.tolist() == [[2, 3, 20, 16], [10, 10, 20, 16], [0, 0, 0, 0]]
        assert masks.device == torch.device("cpu") and masks.to("cuda") is masks
        assert repr(masks) == "PolygonMasks(num_instances=3)"

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            (slice(0, 0), []),
            (1, [1]),
            (-1, [2]),
            (np.int64(1), [1]),
            (slice(1, 3), [1, 2]),
            ([], []),
            ([2, 0], [2, 0]),
            (torch.tensor([2, 0]), [2, 0]),
            (torch.tensor([True, False, True]), [0, 2]),
            (np.array([False, True, False]), [1]),
        ],
    )
    def test_indexing(self, item, expected):
        masks = self.make()
        assert [p is masks.polygons[i] for p, i in zip(masks[item], expected, strict=True)] == [True] * len(expected)

    @pytest.mark.parametrize("item", [torch.ones(2, dtype=torch.bool), torch.tensor([[0]]), torch.tensor([0.5]), 3])
    def test_bad_index(self, item):
        with pytest.raises(IndexError):
            self.make()[item]

    def test_cat(self):
        assert len(PolygonMasks.cat([self.make(), PolygonMasks([]), self.make()])) == 6
        with pytest.raises(ValueError, match="at least one"):
            PolygonMasks.cat([])
        with pytest.raises(TypeError, match="found list"):
            PolygonMasks.cat([self.make(), [[SQUARE]]])

    def test_crop_and_resize(self):
        masks = self.make()
        boxes = torch.tensor([[0.0, 0, 20, 20], [10, 10, 20, 16], [0, 0, 5, 5]])
        got = masks.crop_and_resize(boxes, 14)
        assert got.dtype == torch.bool
        for cells, polygons, box in zip(got.numpy(), masks, boxes.numpy(), strict=True):
            scale = 14 / (box[2:] - box[:2])
            moved = [((p.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for p in polygons]
            assert np.array_equal(cells, by_pycocotools(moved, 14, 14) if moved else np.zeros((14, 14), bool))
        with pytest.raises(ValueError, match="2 boxes and 3 masks"):
            masks.crop_and_resize(boxes[:2], 14)

    @pytest.mark.parametrize(
        ("polygons", "error", "words"),
        [
            (torch.zeros(2, 4, 4), TypeError, r"got Tensor of shape \(2, 4, 4\).*bitmask"),
            ([np.zeros((4, 4))], TypeError, r"Instance 0.*ndarray of shape \(4, 4\).*bitmask"),
            (
                [[SQUARE], {"counts": b"x", "size": [4, 4]}],
                TypeError,
                r"Instance 1.*dict with keys \['counts', 'size'\]",
            ),
            ([[1.0, 2, 3, 4, 5, 6]], TypeError, "Instance 0.*list of lists"),
            ([[[1, 2, 3, 4]]], ValueError, r"three corners or more, got shape \(4,\): \[1.0, 2.0, 3.0, 4.0\]"),
            ([[[1, 2, 3, 4, 5, 6, 7]]], ValueError, r"shape \(7,\)"),
            ([[np.zeros((3, 2))]], ValueError, r"shape \(3, 2\)"),
        ],
    )
    def test_bad_polygons(self, polygons, error, words):
        with pytest.raises(error, match=words):
            PolygonMasks(polygons)


class TestHugePolygons:
    """They would crash pycocotools, and the process with it."""

    def test_outlines_beyond_all_images(self):
        for far in (1e6, 1e9, 1e300):
            covered = polygons_to_bitmask([np.array([-far, -far, far, -far, far, far, -far, far])], 4, 6)
            assert covered.shape == (4, 6) and covered.all()
            above = polygons_to_bitmask([np.array([-far, -far, far, -far, far, 2, -far, 2])], 4, 6)
            assert above[:2].all() and not above[2:].any()

    def test_many_corners(self):
        corners = np.tile([0.0, 0.0, 3.0, 0.0, 3.0, 2.0, 0.0, 2.0], 10_000)
        assert polygons_to_bitmask([corners + 5000], 4, 6).sum() == 0
        assert polygons_to_bitmask([corners[:8]], 4, 6).sum() == 6

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, bad):
        with pytest.raises(ValueError, match="not finite"):
            polygons_to_bitmask([np.array([0, 0, 3, 0, 3, bad])], 4, 6)

    def test_within_a_thin_box(self):
        square = np.array([-1e8, -1e8, 1e8, -1e8, 1e8, 1e8, -1e8, 1e8])
        assert rasterize_polygons_within_box([square], np.array([0, 0, 1e-3, 1e-3]), 5).all()


class TestBitMasks:
    def make(self):
        bits = torch.zeros(3, 6, 8, dtype=torch.bool)
        bits[0, 1:4, 2:7] = True
        bits[2, 5, 7] = True
        return BitMasks(bits)

    def test_no_instances(self):
        masks = BitMasks(torch.zeros(0, 6, 8))
        assert len(masks) == 0 and masks.nonempty().shape == (0,)
        assert masks.get_bounding_boxes().tensor.shape == (0, 4)
        assert masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
        assert BitMasks.from_polygon_masks([], 6, 8).tensor.shape == (0, 6, 8)

    def test_no_pixels(self):
        masks = BitMasks(torch.zeros(2, 0, 8))
        assert masks.get_bounding_boxes().tensor.tolist() == [[0] * 4] * 2 and not masks.nonempty().any()

    def test_measures(self):
        masks = self.make()
        assert masks.nonempty().tolist() == [True, False, True]
        assert masks.get_bounding_boxes().tensor.tolist() == [[2, 1, 7, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
        assert tuple(masks.image_size) == (6, 8) and masks.device == torch.device("cpu")
        assert repr(masks) == "BitMasks(num_instances=3, image_size=(6, 8))"
        assert masks.to("meta").device.type == "meta"

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
    def test_bounding_boxes_are_tight(self, seed, h, w):
        bits = torch.rand(2, h, w, generator=torch.Generator().manual_seed(seed)) > 0.8
        for m, box in zip(bits.numpy(), BitMasks(bits).get_bounding_boxes().tensor.tolist(), strict=True):
            y, x = np.nonzero(m)
            assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])

    @pytest.mark.parametrize("kind", [lambda b: b.numpy(), lambda b: b.float(), lambda b: b.to(torch.uint8)])
    def test_anything_becomes_bool(self, kind):
        bits = self.make().tensor
        assert torch.equal(BitMasks(kind(bits)).tensor, bits)

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"\(N, H, W\), got \(6, 8\)"):
            BitMasks(torch.zeros(6, 8))

    def test_indexing(self):
        masks = self.make()
        assert masks[0].tensor.shape == (1, 6, 8) and masks[1:].tensor.shape == (2, 6, 8)
        assert torch.equal(masks[torch.tensor([True, False, True])].tensor, masks.tensor[[0, 2]])
        assert [m.shape for m in masks] == [(6, 8)] * 3
        with pytest.raises(IndexError, match="one dimension"):
            masks[torch.tensor([[0, 1]])]

    def test_from_polygons(self):
        polygons = [[SQUARE], [SQUARE, TRIANGLE], []]
        for given_polygons in (polygons, PolygonMasks(polygons)):
            masks = BitMasks.from_polygon_masks(given_polygons, 20, 24)
            assert np.array_equal(masks.tensor.numpy(), [polygons_to_bitmask(p, 20, 24) for p in polygons])

    @pytest.mark.parametrize("pass_pixels", [1, 2 * 48, 10**6])
    def test_crop_and_resize(self, pass_pixels, monkeypatch):
        monkeypatch.setattr(module, "_PASS_PIXELS", pass_pixels)
        bits = torch.rand(5, 6, 8) > 0.5
        boxes = torch.tensor([[0.0, 0, 8, 6], [1, 1, 4, 5], [-2, -2, 3, 3], [2.5, 2.5, 7.1, 3.3], [3, 3, 3, 3]])
        expected = [
            ROIAlign((7, 7), 1.0, 0, aligned=True)(m[None, None].float(), torch.tensor([[0, *b]]))[0, 0] >= 0.5
            for m, b in zip(bits, boxes.tolist(), strict=True)
        ]
        assert torch.equal(BitMasks(bits).crop_and_resize(boxes, 7), torch.stack(expected))

    def test_crop_of_a_box_is_the_box(self):
        cropped = self.make().crop_and_resize(torch.tensor([[2.0, 1, 7, 4]] * 3), 5)
        assert cropped[0].all() and not cropped[1:].any()
        with pytest.raises(ValueError, match="1 boxes and 3 masks"):
            self.make().crop_and_resize(torch.zeros(1, 4), 5)

    def test_cat(self):
        assert len(BitMasks.cat([self.make(), self.make()])) == 6
        with pytest.raises(ValueError, match="at least one"):
            BitMasks.cat([])
        with pytest.raises(TypeError, match="BitMasks"):
            BitMasks.cat([torch.zeros(1, 2, 2)])

    @pytest.mark.parametrize("first", [PolygonMasks, BitMasks])
    def test_cat_of_both_kinds(self, first):
        bits = self.make()
        both = [PolygonMasks([]), PolygonMasks([[SQUARE], []]), bits]
        both = both if first is PolygonMasks else both[::-1]
        drawn = torch.zeros(2, 6, 8, dtype=torch.bool)
        drawn[0, 3:6, 2:8] = True  # the square, cut by the edge
        expected = [drawn, bits.tensor] if first is PolygonMasks else [bits.tensor, drawn]
        for masks in (first.cat(both), PolygonMasks.cat(both), BitMasks.cat(both)):
            assert isinstance(masks, BitMasks)
            assert torch.equal(masks.tensor, torch.cat(expected))

    def test_instances_of_both_kinds(self):
        a, b = (Instances((6, 8), gt_masks=m) for m in (PolygonMasks([[SQUARE]]), self.make()))
        for order in ([a, b], [b, a]):
            assert Instances.cat(order).gt_masks.tensor.shape == (4, 6, 8)
        assert isinstance(Instances.cat([a, a]).gt_masks, PolygonMasks)

    def test_cat_without_its_own_kind(self):
        with pytest.raises(TypeError, match="no BitMasks at all, only PolygonMasks"):
            BitMasks.cat([PolygonMasks([[SQUARE]])])
        with pytest.raises(TypeError, match="no PolygonMasks at all, only BitMasks"):
            PolygonMasks.cat([self.make()])


class TestROIMasks:
    def test_no_instances(self):
        masks = ROIMasks(torch.zeros(0, 28, 28))
        assert len(masks) == 0 and masks.to_bitmasks(torch.zeros(0, 4), 6, 8).tensor.shape == (0, 6, 8)

    def test_to_bitmasks(self):
        masks, boxes = ROIMasks(torch.ones(1, 28, 28)), Boxes(torch.tensor([[2.0, 1, 7, 4]]))
        expected = torch.zeros(1, 6, 8, dtype=torch.bool)
        expected[0, 1:4, 2:7] = True
        assert torch.equal(masks.to_bitmasks(boxes, 6, 8).tensor, expected)
        assert torch.equal(BitMasks.from_roi_masks(masks, 6, 8, boxes).tensor, expected)
        assert not ROIMasks(torch.full((1, 28, 28), 0.4)).to_bitmasks(boxes, 6, 8).tensor.any()
        with pytest.raises(ValueError, match="boxes"):
            BitMasks.from_roi_masks(masks, 6, 8)

    def test_indexing_and_cat(self):
        masks = ROIMasks(torch.rand(3, 7, 7))
        assert len(masks[0]) == 1 and len(masks[1:]) == 2 and len(masks[torch.tensor([True, False, True])]) == 2
        assert len(ROIMasks.cat([masks, masks])) == 6
        assert masks.to("meta").device.type == "meta"
        assert repr(masks) == "ROIMasks(num_instances=3, size=(7, 7))"

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"\(7, 7\)"):
            ROIMasks(torch.zeros(7, 7))


@pytest.mark.parametrize("kind", [BitMasks, ROIMasks])
def test_cat_of_other_sizes(kind):
    with pytest.raises(ValueError, match=r"differ in the first dimension only, got \(1, 4, 5\), \(2, 5, 5\)"):
        kind.cat([kind(torch.zeros(1, 4, 5)), kind(torch.zeros(2, 5, 5))])


def test_crop_of_masks_without_pixels():
    """It would end the process."""
    assert BitMasks(torch.zeros(0, 0, 0)).crop_and_resize(torch.zeros(0, 4), 3).shape == (0, 3, 3)
    with pytest.raises(ValueError, match="crop_and_resize cannot pool 2 regions from features without cells"):
        BitMasks(torch.zeros(2, 0, 0)).crop_and_resize(torch.rand(2, 4), 3)
