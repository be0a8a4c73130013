"""`RotatedBoxes`, by hand and by its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import detectron2.data.transforms as T
from detectron2.layers.rotated_boxes import pairwise_iou_rotated as tensor_iou
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou_rotated
from detectron2.structures.rotated_boxes import pairwise_iou


def make(*rows):
    return RotatedBoxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 5))


def corners(boxes):
    """The four corners `(N, 4, 2)`, by the rotation matrix of the documentation."""
    out = []
    for x, y, width, height, angle in boxes.tensor.tolist():
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            dx, dy = dx * width / 2, dy * height / 2
            out.append((s * dy + c * dx + x, c * dy - s * dx + y))
    return np.array(out).reshape(-1, 4, 2)


class TestConstruction:
    @pytest.mark.parametrize("empty", [[], torch.zeros(0), torch.zeros(0, 5), torch.zeros(0, 4), torch.zeros(3, 0)])
    def test_empty(self, empty):
        boxes = RotatedBoxes(empty)
        assert boxes.tensor.shape == (0, 5)
        assert len(boxes) == 0 and list(boxes) == []
        assert boxes.area().shape == boxes.nonempty().shape == boxes.inside_box((5, 5)).shape == (0,)
        boxes.clip((5, 5))
        boxes.scale(2, 3)
        boxes.normalize_angles()
        assert boxes.tensor.shape == (0, 5)
        assert boxes.get_centers().shape == (0, 2)

    @pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 2, 5)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"RotatedBoxes expects a tensor of shape \(N, 5\)"):
            RotatedBoxes(torch.zeros(shape))

    def test_type_and_sharing(self):
        tensor = torch.rand(2, 5)
        assert RotatedBoxes(tensor).tensor is tensor
        assert RotatedBoxes(tensor.double()).tensor.dtype == torch.float32
        assert isinstance(RotatedBoxes(tensor), Boxes)
        assert RotatedBoxes([[1, 2, 3, 4, 5]]).tensor.tolist() == [[1, 2, 3, 4, 5]]


class TestListing:
    boxes = make((5, 3, 4, 2, 0), (5, 3, 4, 2, 90), (1, 2, 3, 4, 5))

    @pytest.mark.parametrize(
        ("item", "rows"),
        [
            (slice(0, 0), []),
            (1, [1]),
            (-1, [2]),
            (slice(1, 3), [1, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.tensor([2, 0]), [2, 0]),
        ],
    )
    def test_indexing(self, item, rows):
        chosen = self.boxes[item]
        assert isinstance(chosen, RotatedBoxes)
        assert chosen.tensor.tolist() == self.boxes.tensor[rows].tolist()

    def test_indexing_in_two_dimensions(self):
        with pytest.raises(IndexError, match="one dimension"):
            self.boxes[torch.zeros(2, 2, dtype=torch.int64)]

    def test_iteration_clone_device_repr(self):
        assert [b.shape for b in self.boxes] == [(5,)] * 3
        copy = self.boxes.clone()
        assert isinstance(copy, RotatedBoxes)
        copy.tensor[0, 0] = 100
        assert self.boxes.tensor[0, 0] == 5
        assert self.boxes.device == torch.device("cpu")
        moved = self.boxes.to("meta")
        assert isinstance(moved, RotatedBoxes) and moved.device.type == "meta"
        assert repr(self.boxes).startswith("RotatedBoxes(tensor(")

    def test_cat(self):
        assert RotatedBoxes.cat([]).tensor.shape == (0, 5)
        both = RotatedBoxes.cat([self.boxes, make(), self.boxes[:1]])
        assert isinstance(both, RotatedBoxes) and len(both) == 4
        one = RotatedBoxes.cat([self.boxes])
        assert one.tensor.data_ptr() != self.boxes.tensor.data_ptr()
        with pytest.raises(TypeError, match="found Boxes"):
            RotatedBoxes.cat([Boxes(torch.zeros(1, 4))])

    def test_in_instances(self):
        instances = Instances((10, 10), gt_boxes=self.boxes)
        joined = Instances.cat([instances, instances[:1]])
        assert isinstance(joined.gt_boxes, RotatedBoxes) and len(joined.gt_boxes) == 4


class TestMeasures:
    def test_area_centers_nonempty(self):
        boxes = make((5, 3, 4, 2, 30), (1, 2, 0, 9, 10), (0, 0, 3, 3, 0))
        assert boxes.area().tolist() == [8, 0, 9]
        assert boxes.get_centers().tolist() == [[5, 3], [1, 2], [0, 0]]
        assert boxes.nonempty().tolist() == [True, False, True]
        assert boxes.nonempty(threshold=2).tolist() == [False, False, True]

    @settings(max_examples=40, deadline=None)
    @given(st.floats(-1e4, 1e4, width=32))
    def test_normalized_angles(self, angle):
        boxes = make((5, 3, 4, 2, angle))
        before = boxes.tensor
        boxes.normalize_angles()
        (got,) = boxes.tensor[:, 4].tolist()
        assert -180 <= got < 180
        assert math.cos(math.radians(got - angle)) == pytest.approx(1, abs=1e-6)
        assert before[0, 4] == angle  # the tensor that was handed in is not touched

    def test_inside_box_looks_at_the_corners(self):
        boxes = make((5, 5, 10, 10, 0), (5, 5, 9, 9, 0), (5, 5, 9, 9, 45), (5, 5, 13, 2, 0), (5, 5, 13, 2, 45))
        # A square of side 9 on its corner reaches 6.4 from its centre; 13 x 2 turned by 45 degrees 5.3.
        assert boxes.inside_box((10, 10)).tolist() == [False, True, False, False, False]
        assert boxes.inside_box((10, 10), 1).tolist() == [True, True, False, False, True]
        assert boxes.inside_box((10, 10), 2).tolist() == [True] * 5

    @settings(max_examples=40, deadline=None)
    @given(st.tuples(*[st.floats(-5, 25)] * 2, *[st.floats(0.5, 15)] * 2, st.floats(-400, 400)))
    def test_inside_box_by_corners(self, row):
        boxes = make(row)
        points = corners(boxes)[0]
        low, high = points.min(0), points.max(0)
        gap = min(*(low + 2), 20 + 2 - high[0], 16 + 2 - high[1])
        if abs(gap) > 1e-3:
            assert boxes.inside_box((16, 20), 2).item() == (gap > 0)


class TestClip:
    def test_nearly_upright_boxes_only(self):
        boxes = make((0, 5, 10, 4, 0), (0, 5, 10, 4, 1), (0, 5, 10, 4, 1.01), (0, 5, 10, 4, 720.5), (0, 5, 10, 4, 180))
        before = boxes.tensor
        boxes.clip((6, 8))
        expected = [(2.5, 4.5, 5, 3, 0), (2.5, 4.5, 5, 3, 1), (0, 5, 10, 4, 1.01), (2.5, 4.5, 5, 3, 0.5)]
        expected.append((0, 5, 10, 4, -180))
        np.testing.assert_allclose(boxes.tensor, expected, atol=1e-5)
        assert before[0].tolist() == [0, 5, 10, 4, 0]

    def test_threshold(self):
        boxes = make((0, 5, 10, 4, 20))
        boxes.clip((6, 8), clip_angle_threshold=30)
        assert boxes.tensor.tolist() == [[2.5, 4.5, 5, 3, 20]]

    @settings(max_examples=40, deadline=None)
    @given(
        st.tuples(*[st.floats(-50, 150, width=32)] * 2, *[st.floats(0, 300, width=32)] * 2, st.floats(-2, 2, width=32))
    )
    def test_laws(self, row):
        boxes = make(row)
        boxes.clip((80, 100))
        once = boxes.tensor.clone()
        boxes.clip((80, 100))
        torch.testing.assert_close(boxes.tensor, once, rtol=0, atol=2e-5)
        width, height, angle = once[0, 2:].tolist()
        assert width <= row[2] and height <= row[3]
        if abs(angle) <= 1:
            upright = Boxes(torch.tensor([[row[0] - row[2] / 2, row[1] - row[3] / 2, *(0, 0)]]))
            upright.tensor[0, 2:] = upright.tensor[0, :2] + torch.tensor(row[2:4])
            upright.clip((80, 100))
            expected = (upright.tensor[0, 2:] - upright.tensor[0, :2]).tolist()
            np.testing.assert_allclose([width, height], expected, atol=1e-4)


class TestScale:
    @pytest.mark.parametrize("angle", [0, 90, 180, -90])
    def test_quarter_turns_are_exact(self, angle):
        boxes = make((5, 3, 4, 2, angle))
        expected = corners(boxes) * (3, 0.5)
        boxes.scale(3, 0.5)
        np.testing.assert_allclose(corners(boxes), expected, atol=1e-4)

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0.1, 10), st.floats(-360, 360))
    def test_equal_factors_are_exact(self, factor, angle):
        boxes = make((5, 3, 4, 2, angle))
        expected = corners(boxes) * factor
        boxes.scale(factor, factor)
        np.testing.assert_allclose(corners(boxes), expected, atol=1e-3)

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(-360, 360))
    def test_sides_are_as_long_as_those_of_the_parallelogram(self, scale_x, scale_y, angle):
        boxes = make((5, 3, 40, 20, angle))
        skewed = (corners(boxes) * (scale_x, scale_y))[0]
        boxes.scale(scale_x, scale_y)
        result = corners(boxes)[0]
        for i, j in ((0, 1), (0, 3)):
            assert np.linalg.norm(result[i] - result[j]) == pytest.approx(np.linalg.norm(skewed[i] - skewed[j]), 1e-4)
        height = result[3] - result[0], skewed[3] - skewed[0]
        assert height[0] @ height[1] == pytest.approx(np.linalg.norm(height[0]) * np.linalg.norm(height[1]), 1e-4)

    def test_as_the_resize_transform_does(self):
        rows = np.random.default_rng(0).uniform((0, 0, 1, 1, -180), (50, 40, 30, 30, 180), (20, 5))
        boxes = RotatedBoxes(torch.from_numpy(rows))
        boxes.scale(2.5, 0.5)
        resized = T.ResizeTransform(40, 50, 20, 125).apply_rotated_box(rows.copy())
        np.testing.assert_allclose(boxes.tensor, resized, atol=1e-3)

    def test_the_given_tensor_is_not_changed(self):
        tensor = torch.tensor([[5.0, 3, 4, 2, 30]])
        RotatedBoxes(tensor).scale(2, 3)
        assert tensor.tolist() == [[5, 3, 4, 2, 30]]


def test_angles_are_counter_clockwise():
    """The example of the documentation: (5, 3, 4, 2) and its quarter turns."""
    np.testing.assert_allclose(corners(make((5, 3, 4, 2, 90)))[0], [(4, 5), (4, 1), (6, 1), (6, 5)], atol=1e-6)
    # The overlap sees it the same way: the strip lies along the raised diagonal.
    strip = make((5, 5, 10, 1, 45))
    on_it, off_it = make((7, 3, 1, 1, 0)), make((7, 7, 1, 1, 0))
    assert pairwise_iou_rotated(strip, on_it).item() > 0.05
    assert pairwise_iou_rotated(strip, off_it).item() == 0


def test_pairwise_iou():
    assert pairwise_iou is pairwise_iou_rotated
    assert pairwise_iou_rotated(make(), make((1, 2, 3, 4, 5))).shape == (0, 1)
    a, b = make((0, 0, 2, 2, 0), (9, 9, 1, 1, 0)), make((0, 0, 2, 2, 45), (1, 0, 2, 2, 180), (0, 0, 2, 1, 0))
    np.testing.assert_allclose(pairwise_iou_rotated(a, b), [[0.5**0.5, 1 / 3, 0.5], [0, 0, 0]], atol=1e-6)
    assert torch.equal(pairwise_iou_rotated(a, b), tensor_iou(a.tensor, b.tensor))
