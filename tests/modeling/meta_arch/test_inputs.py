import numpy as np
import pytest
import torch

from detectron2.modeling import build_model
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


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ({"image": torch.zeros(3, 4, 5)}, TypeError, r"got dict: give \[inputs\]"),
        (torch.zeros(1, 3, 4, 5), TypeError, "got Tensor: give .*for image in batch"),
        (({"image": torch.zeros(3, 4, 5)} for _ in range(2)), TypeError, "expected a list of .*, got generator"),
        ([torch.zeros(3, 4, 5)], TypeError, "input 0 of the batch is a Tensor, expected a dictionary with 'image'"),
        ([{"image": torch.zeros(3, 4, 5)}, {"file_name": "a"}], ValueError, r"input 1 .* only \['file_name'\]"),
        ([{"image": np.zeros((4, 5, 3))}], TypeError, r"image 0 of the batch is a ndarray, .* torch.as_tensor\("),
        ([{"image": torch.zeros(3, 0, 5)}], ValueError, r"image 0 of the batch has shape \(3, 0, 5\): it is empty"),
    ],
)
def test_wrong_inputs_are_named(inputs, error, text):
    with pytest.raises(error, match=text):
        normalized_batch(inputs, torch.ones(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_every_type_gives_that_of_the_model(dtype):
    batch = normalized_batch([{"image": torch.full((1, 2, 2), 7, dtype=dtype)}], *[torch.full((1, 1, 1), 5.0)] * 2)
    assert batch.tensor.dtype == torch.float32 and (batch.tensor == torch.tensor(0.4)).all()


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


def test_padding_to_a_larger_size_adds_background_only(tiny_rcnn_cfg, rcnn_batch):
    # All anchors and proposals are drawn, so that nothing is left to chance.
    draw_all = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10_000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1_000]
    draw_all += ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 10_000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 1_000]
    model = build_model(tiny_rcnn_cfg(*draw_all))
    batch = rcnn_batch(train=True)
    usual = model(batch)
    model.pad_to = ((64, 96),)  # what the batch has anyway
    assert model.preprocess_image(batch).tensor.shape == (2, 3, 64, 96)
    same = model(batch)
    model.pad_to = ((128, 128), (80, 112))
    assert model.preprocess_image(batch).tensor.shape == (2, 3, 80, 112)
    padded = model(batch)
    for name, value in usual.items():
        assert same[name].item() == pytest.approx(value.item(), rel=1e-2), name
    assert padded["loss_rpn_loc"].item() == pytest.approx(usual["loss_rpn_loc"].item(), rel=1e-4)
    assert padded["loss_mask"].item() == pytest.approx(usual["loss_mask"].item(), rel=1e-2)
    assert padded["loss_rpn_cls"] > usual["loss_rpn_cls"]  # of anchors in the padding, which are background
