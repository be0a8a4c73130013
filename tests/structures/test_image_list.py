import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import ImageList
from detectron2.utils.env import TORCH_VERSION


def images(*sizes, channels=(3,)):
    return [torch.rand(*channels, h, w) for h, w in sizes]


@pytest.mark.parametrize("channels", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sizes", [[(4, 5)], [(4, 5), (7, 3)], [(4, 5), (0, 0)]])
def test_images_come_back(sizes, channels):
    originals = images(*sizes, channels=channels)
    batch = ImageList.from_tensors(originals, 4, pad_value=-1.0)
    assert len(batch) == len(sizes) and batch.image_sizes == sizes
    for i, original in enumerate(originals):
        assert torch.equal(batch[i], original)
    assert (batch.tensor == -1).sum() == batch.tensor.numel() - sum(o.numel() for o in originals)
    assert batch.tensor.is_contiguous()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3), st.integers(0, 9))
def test_common_size(sizes, divisibility):
    h, w = ImageList.from_tensors(images(*sizes), divisibility).tensor.shape[-2:]
    step = max(divisibility, 1)
    assert h % step == w % step == 0
    assert 0 <= h - max(s[0] for s in sizes) < step and 0 <= w - max(s[1] for s in sizes) < step


@pytest.mark.parametrize(
    ("constraints", "size"),
    [
        (None, (6, 9)),
        ({}, (6, 9)),
        ({"size_divisibility": 8}, (8, 16)),
        ({"square_size": 0}, (6, 9)),
        ({"square_size": 12}, (12, 12)),
        ({"square_size": 10, "size_divisibility": 8}, (16, 16)),
    ],
)
def test_padding_constraints(constraints, size):
    for batch in ([(5, 9)], [(5, 9), (4, 4)]):
        got = ImageList.from_tensors(images(*batch), 3, padding_constraints=constraints)
        assert got.tensor.shape[-2:] == size


def test_too_large_for_the_square():
    with pytest.raises(ValueError, match=r"height 5 and width 9.*8 pixels"):
        ImageList.from_tensors(images((5, 9)), padding_constraints={"square_size": 8})


def test_the_input_is_copied():
    original = images((4, 4))[0]
    ImageList.from_tensors([original]).tensor.zero_()
    assert original.any()


def test_slices():
    batch = ImageList.from_tensors(images((4, 5), (7, 3), (2, 2)))
    assert batch[1:].shape == (2, 3, 7, 3)
    assert batch[:0].shape == (0, 3, 0, 0)


def test_to_and_device():
    batch = ImageList.from_tensors(images((4, 5)))
    assert batch.device == torch.device("cpu")
    moved = batch.to("meta", torch.float16)
    assert moved.device.type == "meta" and moved.tensor.dtype == torch.float16 and moved.image_sizes == [(4, 5)]


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ([], ValueError, "at least one image"),
        (torch.zeros(2, 3, 4, 4), TypeError, "list of tensors, got Tensor"),
        ([[1, 2]], TypeError, "found list"),
        ([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)], ValueError, r"\(3, 4, 4\) and \(1, 4, 4\)"),
        ([torch.zeros(4)], ValueError, "differ in H and W only"),
    ],
)
def test_errors(tensors, error, words):
    with pytest.raises(error, match=words):
        ImageList.from_tensors(tensors)


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="PyTorch 2.6 does not see that rounding up makes nothing smaller")
def test_one_image_keeps_its_size_open_when_exported():
    class Model(torch.nn.Module):
        def forward(self, x):
            return ImageList.from_tensors([x], 4).tensor

    dims = {1: torch.export.Dim("h", min=2, max=64), 2: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(Model(), (torch.zeros(3, 5, 6),), dynamic_shapes={"x": dims}, strict=False)
    exported = program.module()
    assert exported(torch.zeros(3, 9, 17)).shape == (1, 3, 12, 20)


@pytest.mark.parametrize(
    ("size_hw", "expected_hw"),
    [((10, 20), (32, 64)), ((32, 33), (32, 64)), ((33, 10), (64, 32)), ((40, 60), (64, 96)), ((65, 97), (66, 98))],
)
def test_batches_are_padded_to_the_smallest_size_that_holds_them(size_hw, expected_hw):
    image = torch.ones(3, *size_hw)
    images = ImageList.from_tensors([image], 2, pad_to=[(64, 96), (32, 64), (63, 31)])
    assert images.tensor.shape[-2:] == expected_hw and images.image_sizes == [size_hw]
    assert torch.equal(images[0], image) and images.tensor.sum() == image.sum()
    square = ImageList.from_tensors([image], padding_constraints={"square_size": 128}, pad_to=[(32, 64)])
    assert square.tensor.shape[-2:] == (128, 128)
