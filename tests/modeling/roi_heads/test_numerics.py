import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads import numerics
from detectron2.modeling.roi_heads.numerics import best_after_nms, full_precision, select_class


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_single(dtype):
    x = torch.ones(2, dtype=dtype)
    y = full_precision(x)
    assert y.dtype == (torch.float32 if x.element_size() == 2 else dtype)
    assert (y is x) == (x.element_size() > 2)


def test_select_class():
    x = torch.arange(12).reshape(2, 3, 2)
    assert select_class(x, torch.tensor([2, 0])).tolist() == [[4, 5], [6, 7]]
    assert select_class(x[:, :1], torch.tensor([2, 0])).tolist() == [[0, 1], [6, 7]]
    assert select_class(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(-1, 20))
def test_search_in_prefixes_finds_the_same(seed, count, limit):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 2 + 6 * torch.rand(count, 2, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(3, (count,), generator=generator)
    expected = batched_nms(boxes, scores, classes, 0.3)
    expected = expected if limit < 0 else expected[:limit]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "_SMALL_SET", 8)
        assert best_after_nms(boxes, scores, classes, 0.3, limit).tolist() == expected.tolist()


@pytest.mark.parametrize("limit", [-1, 1, 10])
def test_rotated_boxes_are_suppressed_as_such(limit):
    boxes = torch.tensor([[10.0, 10, 20, 4, 0], [10, 10, 20, 4, 90], [10, 10, 20, 4, 2], [10, 10, 20, 4, 2]])
    keep = best_after_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]), 0.5, limit)
    assert keep.tolist() == [0, 1, 3][: limit if limit > 0 else None]
