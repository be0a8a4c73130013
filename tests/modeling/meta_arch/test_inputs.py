import pytest
import torch

from detectron2.modeling.meta_arch.inputs import normalized_batch, required_entry
from detectron2.structures import Instances


def test_images_are_normalized_and_padded_with_zeros():
    images = [torch.full((3, 2, 4), 7, dtype=torch.uint8), torch.full((3, 3, 2), 3, dtype=torch.uint8)]
    mean, std = torch.full((3, 1, 1), 5.0), torch.full((3, 1, 1), 2.0)
    batch = normalized_batch([{"image": image} for image in images], mean, std, size_divisibility=2)
    assert batch.tensor.shape == (2, 3, 4, 4) and batch.image_sizes == [(2, 4), (3, 2)]
    assert batch[0].eq(1).all() and batch[1].eq(-1).all()
    assert batch.tensor.sum() == 3 * (8 - 6)


def test_channels_are_checked():
    with pytest.raises(ValueError, match=r"image 0 .* \(3, height, width\)"):
        normalized_batch([{"image": torch.zeros(1, 4, 5)}], torch.ones(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize(("device", "non_blocking"), [("cpu", False), ("meta", True)])
def test_a_copy_towards_the_cpu_is_waited_for(device, non_blocking, monkeypatch):
    asked, move = [], torch.Tensor.to

    def record(self, *args, **kwargs):
        asked.append(kwargs["non_blocking"])
        return move(self, *args, **kwargs)

    mean = torch.ones(3, 1, 1, device=device)
    monkeypatch.setattr(torch.Tensor, "to", record)
    batch = normalized_batch([{"image": torch.zeros(3, 4, 5)}], mean, mean)
    assert asked == [non_blocking] and batch.tensor.shape == (1, 3, 4, 5)


def test_required_entries():
    inputs = [{"instances": Instances((4, 5))}, {"instances": Instances((6, 7))}]
    assert [x.image_size for x in required_entry(inputs, "instances", torch.device("cpu"), "")] == [(4, 5), (6, 7)]
    assert required_entry([], "instances", torch.device("cpu"), "") == []
    with pytest.raises(ValueError, match=r"input 1 .* 'instances'.*because"):
        required_entry([inputs[0], {"image": 0}], "instances", torch.device("cpu"), "because")
