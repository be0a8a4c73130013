import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import box as shapely_box

from detectron2.structures import (
    Boxes,
    BoxMode,
    RotatedBoxes,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_boxlist_iou

# Multiples of 1/8 are exact in float32, so laws hold to the last bit.
coordinate = st.integers(-400, 400).map(lambda v: v / 8)
side = st.integers(0, 400).map(lambda v: v / 8)
xyxy = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
box_lists = st.lists(xyxy, max_size=5)


def make(rows):
    return Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))


class TestConstruction:
    @pytest.mark.parametrize("empty", [torch.zeros(0, 4), torch.zeros(0), [], np.zeros((0, 4))])
    def test_empty(self, empty):
        boxes = Boxes(empty)
        assert boxes.tensor.shape == (0, 4) and boxes.tensor.dtype == torch.float32 and len(boxes) == 0

    @pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
    def test_kinds(self, kind):
        boxes = Boxes(kind([[1, 2, 3, 4]]))
        assert boxes.tensor.tolist() == [[1, 2, 3, 4]] and boxes.tensor.dtype == torch.float32

    def test_a_float_tensor_is_not_copied(self):
        t = torch.zeros(2, 4)
        assert Boxes(t).tensor is t

    @pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(N, 4\)"):
            Boxes(torch.zeros(shape))


class TestMethods:
    def test_no_boxes(self):
        boxes = make([])
        boxes.clip((5, 5))
        boxes.scale(2, 3)
        assert boxes.area().shape == (0,) and boxes.nonempty().shape == (0,) and boxes.get_centers().shape == (0, 2)
        assert boxes.inside_box((5, 5)).shape == (0,) and list(boxes) == [] and len(boxes.clone()) == 0

    def test_measures(self):
        boxes = make([[1, 2, 4, 7], [3, 3, 3, 9]])
        assert boxes.area().tolist() == [15, 0]
        assert boxes.get_centers().tolist() == [[2.5, 4.5], [3, 6]]
        assert boxes.nonempty().tolist() == [True, False]
        assert boxes.nonempty(threshold=3).tolist() == [False, False]
        assert boxes.device == torch.device("cpu")

    def test_clip_takes_height_and_width(self):
        boxes = make([[-5, -5, 100, 100]])
        boxes.clip((10, 20))
        assert boxes.tensor.tolist() == [[0, 0, 20, 10]]

    @settings(max_examples=40, deadline=None)
    @given(box_lists, st.integers(1, 60), st.integers(1, 60))
    def test_clip_is_idempotent_and_stays_inside(self, rows, height, width):
        boxes = make(rows)
        boxes.clip((height, width))
        once = boxes.tensor.clone()
        boxes.clip((height, width))
        assert torch.equal(boxes.tensor, once)
        assert boxes.inside_box((height, width), 1).all()

    @pytest.mark.parametrize("change", [lambda b: b.clip((3, 3)), lambda b: b.scale(2, 2)])
    def test_changes_do_not_reach_the_tensor_it_was_made_of(self, change):
        t = torch.tensor([[1.0, 2, 5, 6]])
        boxes = Boxes(t)
        change(boxes)
        assert t.tolist() == [[1, 2, 5, 6]] and boxes.tensor.tolist() != t.tolist()

    def test_scale(self):
        boxes = make([[1, 2, 3, 4]])
        boxes.scale(2, 10)
        assert boxes.tensor.tolist() == [[2, 20, 6, 40]]

    def test_inside_box(self):
        boxes = make([[0, 0, 9, 4], [0, 0, 10, 4], [-1, 0, 5, 4], [-1.5, 0, 5, 4]])
        assert boxes.inside_box((5, 10)).tolist() == [True, False, False, False]
        assert boxes.inside_box((5, 10), boundary_threshold=1).tolist() == [True, True, True, False]

    def test_indexing(self):
        boxes = make([[i, 0, i + 1, 1] for i in range(4)])
        assert boxes[1].tensor.tolist() == [[1, 0, 2, 1]]
        assert boxes[-1].tensor.tolist() == [[3, 0, 4, 1]]
        assert len(boxes[1:3]) == 2
        assert boxes[torch.tensor([True, False, False, True])].tensor[:, 0].tolist() == [0, 3]
        assert boxes[torch.tensor([2, 0])].tensor[:, 0].tolist() == [2, 0]
        assert len(boxes[torch.zeros(4, dtype=torch.bool)]) == 0
        with pytest.raises(IndexError, match="one dimension"):
            boxes[torch.tensor([[0, 1]])]

    def test_iteration(self):
        assert [b.tolist() for b in make([[1, 2, 3, 4], [5, 6, 7, 8]])] == [[1, 2, 3, 4], [5, 6, 7, 8]]

    def test_cat(self):
        assert len(Boxes.cat([])) == 0
        parts = [make([[1, 2, 3, 4]]), make([]), make([[5, 6, 7, 8]])]
        assert Boxes.cat(parts).tensor.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert Boxes.cat(parts[:1]).tensor.data_ptr() != parts[0].tensor.data_ptr()
        with pytest.raises(TypeError, match="Tensor"):
            Boxes.cat([torch.zeros(1, 4)])

    def test_clone_and_to(self):
        boxes = make([[1, 2, 3, 4]])
        clone = boxes.clone()
        clone.tensor.zero_()
        assert boxes.tensor.tolist() == [[1, 2, 3, 4]]
        assert boxes.to("meta").device.type == "meta"
        assert boxes.to(torch.device("cpu"), non_blocking=True).tensor.tolist() == [[1, 2, 3, 4]]

    def test_repr(self):
        assert repr(make([])).startswith("Boxes(tensor(")


class TestPairwise:
    @pytest.mark.parametrize("f", [pairwise_iou, pairwise_ioa, pairwise_intersection])
    @pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
    def test_no_boxes(self, f, n, m):
        assert f(Boxes(torch.zeros(n, 4)), Boxes(torch.zeros(m, 4))).shape == (n, m)

    @settings(deadline=None)
    @given(box_lists, box_lists)
    def test_laws(self, a, b):
        iou = pairwise_iou(make(a), make(b))
        assert torch.equal(iou, pairwise_iou(make(b), make(a)).T)
        assert ((iou >= 0) & (iou <= 1)).all()

    @settings(max_examples=30, deadline=None)
    @given(box_lists, box_lists)
    def test_against_shapely(self, a, b):
        inter, iou, ioa = (f(make(a), make(b)) for f in (pairwise_intersection, pairwise_iou, pairwise_ioa))
        for i, p in enumerate(shapely_box(*r) for r in a):
            for j, q in enumerate(shapely_box(*r) for r in b):
                area = p.intersection(q).area
                assert inter[i, j] == pytest.approx(area, abs=1e-4)
                assert iou[i, j] == pytest.approx(area / (p.area + q.area - area) if area else 0, rel=1e-5)
                assert ioa[i, j] == pytest.approx(area / q.area if area else 0, rel=1e-5)

    def test_degenerate_boxes(self):
        odd = make([[3, 3, 3, 3], [5, 5, 1, 1], [math.nan] * 4])
        assert pairwise_iou(odd, odd).tolist() == [[0] * 3] * 3
        assert pairwise_ioa(odd, odd).tolist() == [[0] * 3] * 3

    def test_inputs_stay_as_they_are(self):
        a = make([[0, 0, 2, 2]])
        pairwise_iou(a, a)
        assert a.tensor.tolist() == [[0, 0, 2, 2]]

    def test_gradient(self):
        from detectron2.structures.boxes import _pairwise_intersection

        a = torch.tensor([[0.0, 0, 4, 5]], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([[1.0, 2, 7, 8], [9, 9, 10, 10]], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: _pairwise_intersection(x, b), a)
        boxes = make([[1, 1, 3, 4]])
        boxes.tensor.requires_grad_()
        pairwise_iou(boxes, make([[0, 0, 4, 8]])).sum().backward()
        # inside the other box IoU = w * h / 32, so d/dx2 = h / 32 and d/dx1 = -h / 32
        torch.testing.assert_close(boxes.tensor.grad, torch.tensor([[-3.0, -2, 3, 2]]) / 32)

    def test_point_box_distance(self):
        points = torch.tensor([[2.0, 3], [10, 0]])
        boxes = make([[1, 1, 5, 9]])
        assert pairwise_point_box_distance(points, boxes).tolist() == [[[1, 2, 3, 6]], [[9, -1, -5, 9]]]
        assert pairwise_point_box_distance(torch.zeros(0, 2), boxes).shape == (0, 1, 4)
        assert pairwise_point_box_distance(points, make([])).shape == (2, 0, 4)

    @settings(deadline=None)
    @given(st.lists(st.tuples(xyxy, xyxy), max_size=5))
    def test_matched(self, pairs):
        a, b = make([p for p, _ in pairs]), make([q for _, q in pairs])
        torch.testing.assert_close(matched_pairwise_iou(a, b), pairwise_iou(a, b).diagonal())
        assert matched_boxlist_iou is matched_pairwise_iou

    def test_matched_lengths(self):
        with pytest.raises(ValueError, match="1 and 2"):
            matched_pairwise_iou(make([[0, 0, 1, 1]]), make([[0, 0, 1, 1]] * 2))


AXIS_ALIGNED = [(BoxMode.XYXY_ABS, BoxMode.XYWH_ABS), (BoxMode.XYXY_REL, BoxMode.XYWH_REL)]


class TestBoxMode:
    def test_values(self):
        assert [(m.name, int(m)) for m in BoxMode] == [
            ("XYXY_ABS", 0),
            ("XYWH_ABS", 1),
            ("XYXY_REL", 2),
            ("XYWH_REL", 3),
            ("XYWHA_ABS", 4),
        ]

    @pytest.mark.parametrize(("corners", "size"), AXIS_ALIGNED)
    @pytest.mark.parametrize(
        "kind",
        [list, tuple, np.array, lambda b: np.array([b] * 2), torch.tensor, lambda b: torch.tensor([b])],
    )
    def test_same_kind_out(self, kind, corners, size):
        box, expected = kind([1.0, 2, 3, 5]), kind([1.0, 2, 4, 7])
        got = BoxMode.convert(box, size, corners)
        assert type(got) is type(expected)
        assert np.array_equal(np.asarray(got), np.asarray(expected))
        back = BoxMode.convert(got, corners, size)
        assert np.array_equal(np.asarray(back), np.asarray(box))
        assert np.array_equal(np.asarray(box), np.asarray(kind([1.0, 2, 3, 5])))  # the input stays as it is

    @pytest.mark.parametrize("empty", [np.zeros((0, 4)), torch.zeros(0, 4)])
    def test_no_boxes(self, empty):
        assert BoxMode.convert(empty, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).shape == (0, 4)
        assert BoxMode.convert(empty, BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS).shape == (0, 5)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
    def test_dtype_stays(self, dtype):
        box = np.array([[1, 2, 3, 5]], dtype=dtype)
        assert BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS).dtype == dtype
        t = torch.from_numpy(box)
        assert BoxMode.convert(t, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS).dtype == t.dtype

    def test_lists_keep_all_digits(self):
        assert BoxMode.convert([0.1, 0.2, 0.7, 0.9], 1, 0) == [0.1, 0.2, 0.1 + 0.7, 0.2 + 0.9]
        assert BoxMode.convert([1, 2, 3, 4], 1, 0) == [1, 2, 4, 6]

    def test_same_mode_is_the_same_object(self):
        box = [1, 2, 3, 4]
        assert BoxMode.convert(box, BoxMode.XYXY_REL, BoxMode.XYXY_REL) is box

    @settings(max_examples=40, deadline=None)
    @given(xyxy)
    def test_round_trips(self, box):
        for mode in (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS):
            there = BoxMode.convert(box, BoxMode.XYXY_ABS, mode)
            assert BoxMode.convert(there, mode, BoxMode.XYXY_ABS) == pytest.approx(box)

    @settings(max_examples=40, deadline=None)
    @given(st.tuples(coordinate, coordinate, side, side, st.floats(-360, 360)))
    def test_rotated_boxes_against_shapely(self, box):
        x, y, w, h, angle = box
        corners = shapely_box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        expected = affinity.rotate(corners, -angle, origin=(x, y)).bounds  # y points down
        for kind in (list, np.array, torch.tensor):
            given_box = kind(list(box)) if kind is not torch.tensor else torch.tensor(box, dtype=torch.float64)
            got = BoxMode.convert(given_box, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
            assert list(got) == pytest.approx(expected, abs=1e-6)
        size = BoxMode.convert(list(box), BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS)
        x1, y1, x2, y2 = expected
        assert size == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-6)

    def test_rotated_float32_tensor(self):
        got = BoxMode.convert(torch.tensor([[5.0, 5, 4, 2, 90]]), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        torch.testing.assert_close(got, torch.tensor([[4.0, 3, 6, 7]]))

    @pytest.mark.parametrize(
        ("box", "source", "target", "error", "words"),
        [
            ([1, 2, 3], 0, 1, ValueError, "XYXY_ABS has 4 numbers, got 3"),
            ([1, 2, 3, 4], 4, 1, ValueError, "XYWHA_ABS has 5 numbers, got 4"),
            (np.zeros((2, 5)), 1, 0, ValueError, "4 numbers, got 5"),
            ([1, 2, 3, 4], 0, 2, ValueError, "size of the image"),
            ([1, 2, 3, 4], 3, 1, ValueError, "size of the image"),
            ([[1, 2, 3, 4]] * 4, 0, 1, ValueError, "array or a tensor"),
            ("box", 0, 1, TypeError, "got str"),
            ([1, 2, 3, 4], 0, 9, ValueError, "9"),
        ],
    )
    def test_errors(self, box, source, target, error, words):
        with pytest.raises(error, match=words):
            BoxMode.convert(box, source, target)


@pytest.mark.parametrize("function", [pairwise_iou, pairwise_ioa, pairwise_intersection])
def test_pairs_of_other_boxes(function):
    with pytest.raises(ValueError, match=r"got shapes \(1, 4\) and \(2, 5\); rotated boxes"):
        function(Boxes(torch.zeros(1, 4)), RotatedBoxes(torch.zeros(2, 5)))
