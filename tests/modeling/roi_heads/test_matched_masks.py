import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.modeling.roi_heads.matched_masks import MatchedBitMasks, take_matched
from detectron2.structures import BitMasks, Boxes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 12))
def test_matched_bitmaps_equal_gathered_ones(seed, objects, count):
    generator = torch.Generator().manual_seed(seed)
    masks = BitMasks(torch.rand(objects, 12, 15, generator=generator) > 0.5)
    index = torch.randint(objects, (count,), generator=generator)
    corner = torch.rand(count, 2, generator=generator) * 8
    boxes = torch.cat([corner, corner + 0.5 + 6 * torch.rand(count, 2, generator=generator)], dim=1)
    lazy, eager = MatchedBitMasks(masks, index), masks[index]
    keep = torch.rand(count, generator=generator) > 0.3
    assert len(lazy) == len(eager) == count and lazy.image_size == eager.image_size
    assert torch.equal(lazy.tensor, eager.tensor)
    assert torch.equal(lazy[keep].tensor, eager[keep].tensor) and torch.equal(lazy[1:].tensor, eager[1:].tensor)
    assert torch.equal(lazy.crop_and_resize(boxes, 5), eager.crop_and_resize(boxes, 5))
    assert torch.equal(lazy.to("cpu").get_bounding_boxes().tensor, eager.get_bounding_boxes().tensor)
    assert torch.equal(BitMasks.cat([lazy, eager]).tensor, torch.cat([eager.tensor, eager.tensor]))


def test_matched_bitmaps_check_their_arguments():
    lazy = MatchedBitMasks(BitMasks(torch.zeros(1, 4, 4)), torch.zeros(3, dtype=torch.int64))
    assert lazy[2].tensor.shape == (1, 4, 4)
    with pytest.raises(IndexError, match="one dimension"):
        lazy[torch.zeros(2, 2, dtype=torch.int64)]
    with pytest.raises(ValueError):
        lazy.crop_and_resize(torch.zeros(2, 4), 5)


def test_take_matched_gathers_only_what_is_not_a_bitmap():
    index = torch.tensor([1, 0, 1])
    assert isinstance(take_matched(BitMasks(torch.zeros(2, 4, 4)), index), MatchedBitMasks)
    boxes = take_matched(Boxes(torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])), index)
    assert boxes.tensor[:, 2].tolist() == [2, 1, 2]
