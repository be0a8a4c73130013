"""Levels by the formula, and the pooled rows against one pooler per level."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import ROIAlign, ROIAlignRotated
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes, RotatedBoxes
from detectron2.utils.env import TORCH_VERSION

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def random_boxes(count, largest=200.0):
    corner = torch.rand(count, 2) * 50
    return Boxes(torch.cat((corner, corner + 2 + torch.rand(count, 2) * largest), dim=1))


def pyramid(num_images=2, channels=3, **kwargs):
    return [torch.randn(num_images, channels, 256 // s, 256 // s, **kwargs) for s in (4, 8, 16, 32)]


def test_levels_by_hand():
    sides = [1, 111, 112, 223, 224, 447, 448, 5000]
    boxes = Boxes(torch.tensor([[0.0, 0.0, s, s] for s in sides]))
    assert assign_boxes_to_levels([boxes], 2, 5, 224, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # A box without area goes to the finest level.
    assert assign_boxes_to_levels([Boxes(torch.zeros(1, 4))], 2, 5, 224, 4).tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 900), st.floats(1, 900)), max_size=6), st.integers(2, 4), st.integers(4, 6))
def test_levels_by_equation_1(sizes_wh, finest, coarsest):
    boxes = [Boxes(torch.tensor([[3.0, 5.0, 3.0 + w, 5.0 + h]])) for w, h in sizes_wh]
    if not boxes:
        boxes = [Boxes(torch.zeros(0, 4))]
    levels = assign_boxes_to_levels(boxes, finest, coarsest, 224, 4).tolist()
    assert len(levels) == len(sizes_wh)
    for level, (w, h) in zip(levels, sizes_wh, strict=True):
        exact = 4 + math.log2(math.sqrt(w * h) / 224)
        # Single precision may round either way next to a whole number.
        allowed = {min(max(math.floor(exact + e), finest), coarsest) - finest for e in (-1e-4, 1e-4)}
        assert level in allowed


def test_pooler_format():
    lists = [Boxes(torch.tensor([[1.0, 2, 3, 4]])), Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[5.0, 6, 7, 8]] * 2))]
    assert convert_boxes_to_pooler_format(lists).tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8], [2, 5, 6, 7, 8]]
    assert convert_boxes_to_pooler_format([Boxes(torch.zeros(0, 4))]).shape == (0, 5)


def test_no_images_and_no_boxes():
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2")
    assert pooler(pyramid(0), []).shape == (0, 3, 7, 7)
    features = pyramid(2, requires_grad=True)
    none = pooler(features, [Boxes(torch.zeros(0, 4))] * 2)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert all(f.grad is not None and not f.grad.any() for f in features)


@pytest.mark.parametrize("grad", [True, False])
def test_each_region_comes_from_its_level(grad):
    features = pyramid()
    boxes = [random_boxes(9, 600), random_boxes(4, 60)]
    with torch.set_grad_enabled(grad):
        pooled = ROIPooler((3, 5), SCALES, 2, "ROIAlignV2")(features, boxes)
    regions = convert_boxes_to_pooler_format(boxes)
    levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
    assert len(set(levels.tolist())) > 1
    for row, region, level in zip(pooled, regions, levels, strict=True):
        alone = ROIAlign((3, 5), SCALES[level], 2, aligned=True)(features[level], region[None])
        assert torch.allclose(row, alone[0], atol=1e-6)


def test_gradient_is_that_of_each_level():
    boxes = [random_boxes(9, 600), random_boxes(4, 60)]
    features = pyramid(requires_grad=True)
    weight = torch.randn(13, 3, 2, 2)
    (ROIPooler(2, SCALES, 2, "ROIAlign")(features, boxes) * weight).sum().backward()
    got = [f.grad.clone() for f in features]
    for f in features:
        f.grad = None
    regions = convert_boxes_to_pooler_format(boxes)
    levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
    loss = torch.zeros(())
    for i, level in enumerate(levels.tolist()):
        alone = ROIAlign((2, 2), SCALES[level], 2, aligned=False)(features[level], regions[i : i + 1])
        loss = loss + (alone[0] * weight[i]).sum()
    loss.backward()
    for f, g in zip(features, got, strict=True):
        assert torch.allclose(g, f.grad if f.grad is not None else torch.zeros_like(f), atol=1e-5)


def test_one_level_needs_no_assignment():
    features, boxes = [torch.randn(1, 2, 16, 16)], [random_boxes(5)]
    pooled = ROIPooler(4, (1 / 16,), 0, "ROIAlignV2")(features, boxes)
    expected = ROIAlign((4, 4), 1 / 16, 0, aligned=True)(features[0], convert_boxes_to_pooler_format(boxes))
    assert torch.equal(pooled, expected)


def test_roi_pool_takes_the_maximum_of_each_bin():
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = ROIPooler(2, (1.0,), 0, "ROIPool")([feature], [Boxes(torch.tensor([[0.0, 0.0, 3.0, 3.0]]))])
    assert pooled.tolist() == [[[[5, 7], [13, 15]]]]


def test_attributes():
    pooler = ROIPooler([7, 5], SCALES, 0, "ROIAlign", canonical_box_size=112, canonical_level=3)
    assert pooler.output_size == (7, 5)
    assert (pooler.min_level, pooler.max_level) == (2, 5)
    assert (pooler.canonical_level, pooler.canonical_box_size) == (3, 112)
    assert len(pooler.level_poolers) == 4


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="PyTorch 2.6 wants to know how many regions each level has")
def test_exported_graph_follows_its_input():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pooler = ROIPooler(3, SCALES, 2, "ROIAlignV2")

        def forward(self, features, boxes):
            return self.pooler(features, [Boxes(boxes)])

    model, features = Model().eval(), pyramid(1)
    with torch.no_grad():
        shapes = ([{}] * 4, {0: torch.export.Dim("regions", min=2, max=100)})
        program = torch.export.export(
            model, (features, random_boxes(9, 600).tensor), dynamic_shapes=shapes, strict=False
        )
        other = random_boxes(5, 60).tensor
        assert torch.equal(program.module()(features, other), model(features, other))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pooler_type": "ROIMean"}, "unknown POOLER_TYPE 'ROIMean'"),
        ({"scales": ()}, "powers of two"),
        ({"scales": (1 / 4, 1 / 16)}, "each half"),
        ({"scales": (1 / 6,)}, "powers of two"),
        ({"scales": (2.0, 1.0)}, "larger than the input"),
        ({"output_size": (7, 7, 7)}, "height, width"),
        ({"canonical_box_size": 0}, "canonical_box_size"),
    ],
)
def test_bad_arguments(kwargs, message):
    arguments = {"output_size": 7, "scales": SCALES, "sampling_ratio": 0, "pooler_type": "ROIAlignV2"}
    with pytest.raises(ValueError, match=message):
        ROIPooler(**{**arguments, **kwargs})


def test_bad_inputs():
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2")
    with pytest.raises(ValueError, match="list of 4 feature maps; got 3 maps"):
        pooler(pyramid()[:3], [random_boxes(1)] * 2)
    with pytest.raises(ValueError, match="got a dict"):
        pooler(dict(enumerate(pyramid())), [random_boxes(1)] * 2)
    with pytest.raises(ValueError, match="boxes of 1 images for a batch of 2"):
        pooler(pyramid(), [random_boxes(1)])


class TestRotated:
    def test_no_boxes(self):
        pooler = ROIPooler(3, SCALES, 2, "ROIAlignRotated")
        assert pooler(pyramid(), [RotatedBoxes([]), RotatedBoxes([])]).shape == (0, 3, 3, 3)

    def test_each_region_comes_from_its_level(self):
        pooler = ROIPooler((2, 3), SCALES, 2, "ROIAlignRotated")
        features = pyramid()
        sides = [10.0, 150, 300, 600]
        boxes = RotatedBoxes([[60.0, 70, side, side, 30] for side in sides])
        pooled = pooler(features, [RotatedBoxes([]), boxes])
        regions = convert_boxes_to_pooler_format([RotatedBoxes([]), boxes])
        assert regions.shape == (4, 6) and regions[:, 0].tolist() == [1, 1, 1, 1]
        for level, scale in enumerate(SCALES):
            expected = ROIAlignRotated((2, 3), scale, 2)(features[level], regions[level : level + 1])
            torch.testing.assert_close(pooled[level : level + 1], expected)


def test_channels_last_in_channels_last_out():
    torch.manual_seed(0)
    features, boxes = pyramid(channels=8), [random_boxes(20, 400.0), random_boxes(3)]
    pooler = ROIPooler(3, SCALES, 0, "ROIAlignV2")
    last = [x.contiguous(memory_format=torch.channels_last) for x in features]
    expected, found = pooler(features, boxes), pooler(last, boxes)
    assert expected.is_contiguous() and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
