"""Losses that are not finite: their origin, the policy, and saved batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.divergence import DivergencePolicy, first_nonfinite, from_plain, tensors_in, to_plain
from detectron2.engine.replay import replay
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks


class Net(nn.Module):
    """Layers, of which ``second`` takes a square root."""

    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2)
        self.second = self.Root()
        self.third = nn.Linear(2, 1)
        nn.init.eye_(self.first.weight)

    def forward(self, batch):
        x = torch.stack([d["x"] for d in batch])
        self.norm(self.first(x))
        return {"loss": self.third(self.second(self.first(x))).mean()}


def batch_of(*values, name="a.jpg"):
    return [{"x": torch.tensor([v, 1.0]), "file_name": name, "image_id": 7} for v in values]


def trainer_of(batches, policy=None, cls=SimpleTrainer):
    torch.manual_seed(0)
    model = Net()
    trainer = cls(model, batches, torch.optim.SGD(model.parameters(), lr=0.02))
    if policy is not None:
        trainer.divergence = policy
    return trainer


@pytest.mark.parametrize(
    ("value", "spoil", "expected"),
    [
        (1.0, None, None),
        (math.inf, None, r"in the input: batch\[0\]\.x, float32\[2\] with 0 NaN and 1 infinite of 2 values"),
        (1.0, "third.bias", r"a parameter, before this step: third\.bias, float32\[1\] with 1 NaN"),
        (-1.0, None, r"comes from second \(Root\): output, float32\[2, 2\] with 1 NaN and 0 infinite of 4 values; its "
         "inputs are finite"),
    ],
)  # fmt: skip
def test_first_nonfinite(value, spoil, expected):
    model = Net().train()
    if spoil:
        model.get_parameter(spoil).data.fill_(math.nan)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = first_nonfinite(model, batch_of(value, 2.0))
    if expected is None:
        assert found is None
    else:
        import re

        assert re.search(expected, found)
    assert all(torch.equal(v, before[k]) or v.isnan().any() for k, v in model.state_dict().items())
    assert not model.second._forward_hooks


def test_stop_says_everything(tmp_path):
    trainer = trainer_of(
        [batch_of(1.0, 2.0), batch_of(3.0, -1.0, name="bad.jpg")], DivergencePolicy(folder=str(tmp_path))
    )
    with pytest.raises(FloatingPointError) as info:
        trainer.train(0, 2)
    text = str(info.value)
    assert "infinite or NaN in iteration 1: loss=nan" in text
    assert "comes from second (Root)" in text
    assert "Iteration 1. Learning rate: 0.02." in text
    assert "scaled linearly to the 2 here, 0.02 would be 0.0025" in text  # 0.02 * 2 / 16
    assert "Images of the batch: bad.jpg (image_id 7), bad.jpg (image_id 7)." in text
    assert f"python -m detectron2.engine.replay {tmp_path}/nonfinite_0000001.pth" in text
    assert trainer.model.third.weight.isfinite().all()
    losses, found = replay(f"{tmp_path}/nonfinite_0000001.pth", Net())
    assert math.isnan(losses["loss"]) and "second (Root)" in found
    with pytest.raises(ValueError, match="holds no config"):
        replay(f"{tmp_path}/nonfinite_0000001.pth")


@pytest.mark.parametrize("cls", [SimpleTrainer, AMPTrainer])
def test_skip(cls, caplog):
    good, bad = batch_of(1.0, 2.0), batch_of(-1.0, 2.0, name="bad.jpg")
    policy = DivergencePolicy("skip", 2)
    trainer = trainer_of([good, bad, bad, good, bad, good], policy, cls)
    trainer.train(0, 6)
    only_good = trainer_of([good, good, good], cls=cls)
    only_good.train(0, 3)
    for (name, a), b in zip(trainer.model.state_dict().items(), only_good.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name  # statistics of the norm as well
    assert policy.num_skipped == 3
    assert [v for v, _ in trainer.storage.history("skipped_steps").values()] == [1, 2, 3]
    assert "Step 1 is skipped (1 in a row, 1 in all)" in caplog.text and "bad.jpg" in caplog.text


def test_skip_gives_up():
    bad = batch_of(-1.0, 2.0)
    trainer = trainer_of([bad] * 5, DivergencePolicy("skip", 2))
    with pytest.raises(FloatingPointError, match=r"(?s)Gave up after 2 skipped steps in a row.*second \(Root\)"):
        trainer.train(0, 5)
    assert trainer.iter == 2


@pytest.mark.parametrize(("policy", "count", "match"), [("go on", 1, '"stop" or "skip"'), ("skip", 0, "at least 1")])
def test_policy_is_checked(policy, count, match):
    with pytest.raises(ValueError, match=match):
        DivergencePolicy(policy, count)


def test_a_model_that_notices_by_itself():
    class Noticing(Net):
        def forward(self, batch):
            super().forward(batch)
            raise FloatingPointError("my boxes are not finite")

    model = Noticing()
    trainer = SimpleTrainer(model, [batch_of(-1.0, 2.0)], torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(FloatingPointError, match=r"(?s)my boxes are not finite.*second \(Root\).*a\.jpg"):
        trainer.train(0, 1)


@pytest.mark.parametrize("value", [None, [], {}, {"a": [1, 2.5, "x", True, None]}, [[{"image": torch.zeros(0)}]]])
def test_plain_containers(value):
    back = from_plain(to_plain(value))
    assert str(back) == str(value)


def test_structures_survive(tmp_path):
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    instances.gt_classes = torch.tensor([3])
    instances.gt_masks = PolygonMasks([[np.array([0.0, 0, 2, 0, 2, 3])]])
    instances.gt_bits = BitMasks(torch.ones(1, 4, 6, dtype=torch.bool))
    instances.gt_keypoints = Keypoints(torch.tensor([[[1.0, 2.0, 2.0]]]))
    batch = [
        {"image": torch.arange(6), "instances": instances, "array": np.arange(3), "other": object(), "n": np.int64(2)}
    ]
    torch.save(to_plain(batch), tmp_path / "b.pth")
    (back,) = from_plain(torch.load(tmp_path / "b.pth", weights_only=True))
    assert back["instances"].image_size == (4, 6)
    assert torch.equal(back["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert back["instances"].gt_classes.tolist() == [3]
    assert back["instances"].gt_masks.polygons[0][0].tolist() == [0.0, 0, 2, 0, 2, 3]
    assert back["instances"].gt_bits.tensor.all()
    assert back["instances"].gt_keypoints.tensor.tolist() == [[[1.0, 2.0, 2.0]]]
    assert back["array"].tolist() == [0, 1, 2] and back["n"] == 2 and "object" in back["other"]
    names = [name for name, _ in tensors_in(batch, "batch")]
    assert names[:3] == ["batch[0].image", "batch[0].instances.gt_boxes", "batch[0].instances.gt_classes"]
