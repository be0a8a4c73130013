"""Training reads numbers from the device when a writer wants them, not more often, and still notices NaN."""

import math

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import AMPTrainer, SimpleTrainer, hooks, step_losses
from detectron2.engine.divergence import DivergencePolicy
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.engine.hooks.run_summary import RunSummary
from detectron2.solver import maybe_add_gradient_clipping
from detectron2.utils.events import CommonMetricPrinter, CSVWriter, EventStorage, JSONWriter, ProgressLine, put_scalar
from tests.waits import Waits


class Arrival:
    """Of a copy that arrives when so many others have been begun after it, or when it is waited for."""

    def __init__(self, begun, after):
        self.begun, self.due = begun, len(begun) + after

    def query(self):
        return len(self.begun) > self.due

    def synchronize(self):
        self.due = 0


class Numbers:
    """In memory of the host, where reading them costs nothing."""

    def __init__(self, values):
        self.values = values.numpy().copy()

    def tolist(self):
        return self.values.tolist()


@pytest.fixture(params=[0, 2])
def as_on_a_gpu(request, monkeypatch):
    """Let copies to the host arrive later, as those of a GPU do; return behind how many others."""
    begun = []

    def start_copy(values):
        arrival = Arrival(begun, request.param)
        begun.append(arrival)
        with torch._C.DisableTorchFunction():
            return Numbers(values), arrival

    monkeypatch.setattr(step_losses, "_start_copy", start_copy)
    monkeypatch.setattr(step_losses, "_is_at_hand", lambda values: False)
    return request.param


class Model(nn.Module):
    """Like a detector it has several losses and statistics of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        y = self.norm(self.layer(x))
        put_scalar("model/count", (y > 0).sum())
        put_scalar("model/largest", y.max())
        return {"loss_a": y.square().mean(), "loss_b": (y - 1).abs().mean()}


def config(*options):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, *options])
    return cfg


def build(cls=SimpleTrainer, *, clip="norm", folder=None, **kwargs):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = maybe_add_gradient_clipping(config("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip), optimizer)
    trainer = cls(model, [torch.randn(4, 3) for _ in range(20)] * 10, optimizer, **kwargs)
    trainer.divergence = DivergencePolicy(folder=str(folder or ""))
    return trainer


def usual_hooks(trainer, folder, period, max_iter=70):
    """What DefaultTrainer and lazy_train register, with all options on."""
    keeper = DetectionCheckpointer(trainer.model, str(folder))
    average = hooks.WeightAverage(trainer.model, 0.99)
    data = [torch.randn(4, 3)]
    best = hooks.BestCheckpointer(period, keeper, "validation/total_loss", "min")
    path = str(folder / "metrics")
    writers = [
        CommonMetricPrinter(max_iter),
        ProgressLine(max_iter),
        JSONWriter(f"{path}.json"),
        CSVWriter(f"{path}.csv"),
    ]
    return [
        hooks.StopOnSignal(keeper),
        RandomStates(trainer.model, 0),
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=ConstantParamScheduler(1.0)),
        average,
        hooks.ValidationLoss(period, trainer.model, lambda: data),
        best,
        hooks.EarlyStopping(period, 50, best, keeper),
        hooks.PeriodicWriter(writers, period),
        RunSummary(4),
    ]


@pytest.mark.parametrize("clip", ["value", "norm", "full_model"])
@pytest.mark.parametrize("cls", [SimpleTrainer, AMPTrainer])
def test_steps_read_nothing(cls, clip, as_on_a_gpu, tmp_path):
    trainer = build(cls, clip=clip, folder=tmp_path, **({"log_grad_scaler": True} if cls is AMPTrainer else {}))
    trainer.register_hooks(usual_hooks(trainer, tmp_path, 10)[:5])
    trainer.accumulation_steps = 2
    with Waits() as waits:
        trainer.train(0, 15)
    # In the end the clock reports, which reads what there is.
    assert waits.found in ([], ["tolist"])
    history = trainer.storage.history("total_loss").values()
    assert [at for _, at in history] == list(range(15))
    assert all(math.isfinite(value) for value, _ in history)


def test_one_transfer_for_all_writers_of_a_period(as_on_a_gpu, tmp_path, monkeypatch):
    trainer = build(folder=tmp_path)
    kept = (hooks.ValidationLoss, hooks.BestCheckpointer, hooks.EarlyStopping)
    trainer.register_hooks([h for h in usual_hooks(trainer, tmp_path, 20) if not isinstance(h, kept)])
    with Waits() as waits:
        trainer.train(0, 70)
    assert waits.found == ["tolist"] * (1 + math.ceil(70 / 20))  # one more for the first line
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert len(lines) == 4 and all("total_loss" in line and "model/count" in line for line in lines)


def test_what_reads_in_its_own_period(as_on_a_gpu, tmp_path):
    trainer = build(folder=tmp_path)
    trainer.register_hooks(usual_hooks(trainer, tmp_path, 20))
    with Waits() as waits:
        trainer.train(0, 70)
    # Each period: the validation loss, and everything recorded. And one for the first line.
    assert waits.found.count("tolist") == 2 * math.ceil(70 / 20) + 1


class OneWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        (record,) = batch
        return {"loss": (self.w - record["x"]).square().sum(), "loss_b": self.w.sum() * 0}


def one_weight(values, **kwargs):
    model = OneWeight()
    data = [[{"x": torch.tensor(v), "file_name": f"{i}.jpg", "image_id": i}] for i, v in enumerate(values)]
    return SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.25), **kwargs)


def test_the_batch_that_did_it_is_known_although_numbers_arrive_late(as_on_a_gpu, tmp_path):
    trainer = one_weight([1.0, 1.0, math.nan, 1.0, 1.0, 1.0])
    trainer.divergence = DivergencePolicy(folder=str(tmp_path))
    with pytest.raises(
        FloatingPointError, match=r"in iteration 2: loss=nan, loss_b=0\.[\s\S]*2\.jpg \(image_id 2\)"
    ) as e:
        trainer.train(0, 6)
    assert "is in the input: batch[0].x" in str(e.value)
    assert trainer.model.w.item() == pytest.approx(0.75)  # of two steps: the third one changed nothing
    saved = torch.load(tmp_path / "nonfinite_0000002.pth", weights_only=True)
    assert saved["iteration"] == 2 and saved["model"]["w"].item() == pytest.approx(0.75)
    assert saved["batches"][0][0]["image_id"] == 2


def test_skipping_leaves_out_exactly_that_step(as_on_a_gpu):
    trainer = one_weight([1.0, math.nan, 1.0, 1.0])
    trainer.divergence = DivergencePolicy("skip")
    trainer.train(0, 4)
    assert trainer.model.w.item() == pytest.approx(1 - 0.5**3)
    assert trainer.divergence.num_skipped == 1
    assert [at for _, at in trainer.storage.history("loss").values()] == [0, 2, 3]


class OwnStep(SimpleTrainer):
    """A project that has its own step and records its losses as it used to."""

    def run_step(self):
        losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, 0.25)
        self.optimizer.step()


def test_own_steps_notice_when_the_numbers_have_arrived(as_on_a_gpu):
    trainer = one_weight([1.0, math.nan] + [1.0] * 8)
    trainer.__class__ = OwnStep
    with pytest.raises(FloatingPointError, match="in iteration 1: loss=nan"):
        trainer.train(0, 10)
    assert trainer.iter == 1 + as_on_a_gpu


def test_without_delay_own_steps_are_stopped_at_once():
    trainer = one_weight([1.0, math.nan, 1.0])
    trainer.__class__ = OwnStep
    with pytest.raises(FloatingPointError, match="in iteration 1: loss=nan"):
        trainer.train(0, 3)
    assert trainer.iter == 1 and trainer.model.w.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, {"total_loss": 0.0}),
        ({"a": torch.tensor([2.0]), "b": torch.tensor(1, dtype=torch.int64)}, {"total_loss": 3.0, "a": 2.0, "b": 1.0}),
        ({"a": torch.tensor(2.0, dtype=torch.bfloat16), "b": 0.5}, {"total_loss": 2.5, "a": 2.0, "b": 0.5}),
        ({"total_loss": torch.tensor(4.0)}, {"total_loss": 4.0}),
        ({"a": torch.tensor(1.0), "total_loss": torch.tensor(4.0)}, {"total_loss": 5.0, "a": 1.0}),
    ],
)
@pytest.mark.parametrize("is_at_hand", [True, False])
def test_what_is_recorded(losses, expected, is_at_hand, monkeypatch):
    monkeypatch.setattr(step_losses, "_is_at_hand", lambda values: is_at_hand)
    with EventStorage(7) as storage:
        SimpleTrainer.write_metrics(losses, 0.5, prefix="")
        SimpleTrainer.write_metrics(losses, 0.25, 3, "val_")
        latest = storage.latest()
    assert latest == {
        **{name: (value, 7 if name == "total_loss" else 3) for name, value in expected.items()},
        "val_total_loss": (expected["total_loss"], 3),
        "data_time": (0.25, 3),
    }


class TestMessages:
    """What processes send each other, put together by hand."""

    ROWS = (((1.0, 3.0), 0.5), ((3.0, 5.0), 0.25))

    @pytest.fixture
    def two(self, monkeypatch):
        """Act as rank 0 of 2, and return what the other one sends."""
        other = []

        def gather(row):
            return torch.stack([row, other[0]])

        monkeypatch.setattr(step_losses.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(step_losses, "_gather_rows", gather)
        return other

    def message(self, names, values, seconds=0.25):
        return step_losses._message(names, torch.tensor(values), seconds)

    def record(self, losses):
        with EventStorage(7) as storage:
            step_losses.record_losses(losses, 0.5)
            return {name: value for name, (value, _) in storage.latest().items()}

    def test_means(self, two):
        two.append(self.message(("a", "b"), [3.0, 5.0]))
        found = self.record({"a": torch.tensor(1.0), "b": torch.tensor(3.0)})
        assert found == {"data_time": 0.5, "total_loss": 6.0, "a": 2.0, "b": 4.0}

    def test_the_slowest_counts(self, two):
        two.append(self.message(("a",), [3.0], 0.75))
        assert self.record({"a": torch.tensor(1.0)})["data_time"] == 0.75

    def test_other_losses_are_left_out(self, two, caplog, monkeypatch):
        monkeypatch.setattr(step_losses, "log_first_n", lambda level, text, **_: step_losses.logger.log(level, text))
        two.append(self.message(("a", "b"), [3.0, 5.0]))
        assert self.record({"a": torch.tensor(1.0)})["a"] == 1.0
        assert "only 1 of 2 processes have the losses a;" in caplog.text

    def test_the_one_that_diverged_is_named(self, two):
        two.append(self.message(("a",), [math.inf]))
        with pytest.raises(step_losses.LossNotFinite, match=r"in iteration 7 on rank 1\.$") as e:
            self.record({"a": torch.tensor(1.0)})
        assert e.value.ranks == (1,)

    def test_more_losses_than_a_message_holds(self):
        names = [str(i) for i in range(200)]
        message = self.message(names, [float(i) for i in range(200)])
        assert message.shape == (256,) and message[2:202].tolist() == list(range(200))

    def test_a_watch_names_ranks(self, two):
        two.append(torch.tensor([math.nan, 0.0]))
        watch = step_losses.LossWatch(torch.tensor(1.0), torch.device("cpu"))
        watch.raise_for_failure()
        own, other = watch.totals()
        assert own == 1 and math.isnan(other)

    def test_a_watch_knows_who_left(self, two):
        two.append(torch.tensor([math.inf, 1.0]))
        watch = step_losses.LossWatch(torch.tensor(1.0), torch.device("cpu"))
        with pytest.raises(step_losses.LossNotFinite, match="left the step") as e:
            watch.raise_for_failure()
        assert not e.value.is_joint
