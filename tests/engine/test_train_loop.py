"""The loop, its hooks and its metrics, on a linear model."""

import math
import pickle
import re

import pytest
import torch
from torch import nn

from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.engine.hooks import CallbackHook
from detectron2.utils.events import EventStorage, get_event_storage


class Model(nn.Module):
    """One weight; the loss is (w - x)^2 for input x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": ((self.w - x) ** 2).sum(), "loss_other": 0 * self.w.sum()}


def trainer(cls=SimpleTrainer, values=(1.0,), lr=0.25, **kwargs):
    model = Model()
    data = [torch.tensor(values[i % len(values)]) for i in range(100)]
    return cls(model, data, torch.optim.SGD(model.parameters(), lr=lr), **kwargs)


class Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name in ("before_train", "after_train", "before_step", "after_step", "after_backward"):
            return lambda: self.calls.append((name, self.trainer.iter))
        return super().__getattribute__(name)


class TestTrainerBase:
    def test_no_iterations(self):
        t, hook = trainer(), Recorder()
        t.register_hooks([None, hook])
        t.train(0, 0)
        assert hook.calls == [("before_train", 0), ("after_train", 0)]

    def test_order_of_hooks(self):
        t, hook = trainer(), Recorder()
        t.register_hooks([hook])
        t.train(3, 5)
        step = lambda i: [("before_step", i), ("after_backward", i), ("after_step", i)]
        assert hook.calls == [("before_train", 3), *step(3), *step(4), ("after_train", 5)]

    def test_after_train_runs_when_a_step_fails(self):
        class Failing(TrainerBase):
            def run_step(self):
                raise OSError("disk")

        t, hook = Failing(), Recorder()
        t.register_hooks([hook])
        with pytest.raises(OSError, match="disk"):
            t.train(0, 2)
        assert hook.calls[-1] == ("after_train", 0)

    def test_run_step_must_be_implemented(self):
        with pytest.raises(NotImplementedError, match="TrainerBase must implement"):
            TrainerBase().train(0, 1)

    def test_hooks_must_be_hooks(self):
        with pytest.raises(TypeError, match="Expected a HookBase, got int"):
            trainer().register_hooks([3])

    def test_hook_does_not_keep_the_trainer_alive(self):
        import weakref

        t, hook = trainer(), CallbackHook()
        t.register_hooks([hook])
        alive = weakref.ref(t)
        del t
        assert alive() is None

    def test_state_of_hooks(self):
        class Stateful(HookBase):
            value = 0

            def state_dict(self):
                return {"value": self.value}

            def load_state_dict(self, state):
                self.value = state["value"]

        t, hook = trainer(), Stateful()
        hook.value = 7
        t.register_hooks([hook])
        t.iter = 4
        state = pickle.loads(pickle.dumps(t.state_dict()))
        other, fresh = trainer(), Stateful()
        other.register_hooks([fresh])
        other.load_state_dict(state)
        assert (other.iter, fresh.value) == (4, 7)

    def test_state_of_unknown_hook_is_reported(self, caplog):
        t = trainer()
        t.load_state_dict({**t.state_dict(), "hooks": {"Gone": {}}})
        assert "Gone" in caplog.text


class TestSimpleTrainer:
    def test_one_step_is_gradient_descent(self):
        t = trainer()
        t.train(0, 1)
        # d/dw (w - 1)^2 at 0 is -2, times 0.25
        assert t.model.w.item() == pytest.approx(0.5)

    @pytest.mark.parametrize("before", [False, True])
    def test_gradients_are_cleared(self, before):
        t = trainer(zero_grad_before_forward=before)
        t.train(0, 3)
        assert t.model.w.item() == pytest.approx(1 - 0.5**3)

    @pytest.mark.parametrize("async_write", [False, True])
    def test_metrics(self, async_write):
        t = trainer(async_write_metrics=async_write)
        t.train(0, 3)
        values = t.storage.history("total_loss").values()
        assert values == [(pytest.approx(1.0), 0), (pytest.approx(0.25), 1), (pytest.approx(0.0625), 2)]
        assert len(t.storage.history("data_time").values()) == 3

    def test_gather_period(self):
        t = trainer(gather_metric_period=2)
        t.train(0, 4)
        assert [i for _, i in t.storage.history("loss").values()] == [1, 3]

    @pytest.mark.parametrize("async_write", [False, True])
    def test_infinite_loss_is_explained(self, async_write):
        class Diverging(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(1))

            def forward(self, batch):
                return {"loss_cls": self.w.sum(), "loss_box": self.w.sum() * math.inf}

        model = Diverging()
        data = [[{"file_name": f"img{i}.jpg"}] for i in range(3)]
        t = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.02), async_write_metrics=async_write)
        with pytest.raises(FloatingPointError, match=r"iteration 0: .*loss_box=inf[\s\S]*img0\.jpg[\s\S]*0\.02"):
            t.train(0, 3)
        assert model.w.item() == 1  # the weights were not spoiled

    def test_model_left_in_evaluation_mode_is_reported(self):
        t = trainer()
        t.register_hooks([CallbackHook(after_step=lambda trainer: trainer.model.eval())])
        with pytest.raises(RuntimeError, match=r"call model.train\(\)"):
            t.train(0, 2)

    def test_model_must_return_losses(self):
        class Predicting(Model):
            def forward(self, x):
                return [{"instances": 1}]

        model = Predicting()
        t = SimpleTrainer(model, [0], torch.optim.SGD(model.parameters(), lr=1))
        with pytest.raises(TypeError, match="dict of losses in training mode, got list of length 1"):
            t.train(0, 1)

    @pytest.mark.parametrize("steps", [1, 2])
    @pytest.mark.parametrize(
        ("output", "problem"),
        [
            (lambda w: {}, "non-empty dict of losses in training mode, got dict of length 0"),
            (lambda w: None, "non-empty dict of losses in training mode, got NoneType of length ?"),
            (lambda w: 3.0, "non-empty dict of losses in training mode, got float of length ?"),
            (lambda w: w.expand(2), "'loss' of type torch.float32 and shape (2,)"),
            (lambda w: {"a": w.sum(), "b": w[:0]}, "got 'b' of type torch.float32 and shape (0,)."),
            (lambda w: {"a": w.expand(2), "b": w.expand(3)}, "'a' of type torch.float32 and shape (2,), 'b' of"),
            (lambda w: {"a": w.sum() * 1j}, "'a' of type torch.complex64 and shape ()"),
            (lambda w: {"a": w.sum(), "b": "x"}, "got 'b' of type str."),
            (lambda w: {"a": w.sum(), "b": None}, "got 'b' of type NoneType."),
            (lambda w: {"a": {"b": w.sum()}}, "got 'a' of type dict."),
            (lambda w: {1: w.sum()}, "the name 1 (int)"),
            (lambda w: {"a": 3}, "None of the losses (a) has a gradient"),
            (lambda w: {"a": w.sum().detach(), "b": 1.0}, "None of the losses (a, b) has a gradient"),
            (lambda w: w.sum().detach(), "None of the losses (loss) has a gradient"),
        ],
    )
    def test_what_is_not_a_loss(self, output, problem, steps):
        class Odd(Model):
            def forward(self, x):
                return output(self.w)

        model = Odd()
        t = SimpleTrainer(model, [0, 0], torch.optim.SGD(model.parameters(), lr=1))
        t.accumulation_steps = steps
        with pytest.raises(TypeError, match=re.escape(problem)):
            t.train(0, 1)
        assert model.w.item() == 0

    def test_losses_of_one_element_and_numbers_without_gradients(self):
        class Mixed(Model):
            def forward(self, x):
                return {"a": 2 * self.w, "b": torch.tensor(3), "c": 4, "d": True}

        model = Mixed()
        t = SimpleTrainer(model, [0], torch.optim.SGD(model.parameters(), lr=0.5))
        t.train(0, 1)
        assert model.w.item() == -1 and t.storage.latest()["total_loss"] == (8.0, 0)

    def test_a_single_loss_tensor(self):
        class One(Model):
            def forward(self, x):
                return super().forward(x)["loss"]

        model = One()
        t = SimpleTrainer(model, [torch.ones(())], torch.optim.SGD(model.parameters(), lr=0.25))
        t.train(0, 1)
        assert t.storage.latest()["total_loss"] == (1.0, 0)

    def test_state_dict_restores_the_optimizer(self):
        def momentum_trainer():
            model = Model()
            return SimpleTrainer(
                model, [torch.ones(())] * 10, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            )

        whole, first, second = momentum_trainer(), momentum_trainer(), momentum_trainer()
        whole.train(0, 4)
        first.train(0, 2)
        second.load_state_dict(first.state_dict())
        second.model.load_state_dict(first.model.state_dict())
        second.train(2, 4)
        assert torch.equal(whole.model.w, second.model.w)

    def test_hooks_end_also_when_the_pending_losses_are_not_finite(self):
        ended = []
        t = trainer(values=(1.0, math.nan), async_write_metrics=True)
        t.register_hooks([CallbackHook(after_train=ended.append)])
        with pytest.raises(FloatingPointError, match="iteration 1"):
            t.train(0, 2)
        assert len(ended) == 1

    @pytest.mark.parametrize("count", [0, 3])
    def test_data_that_end_too_early(self, count):
        t = trainer()
        t.accumulation_steps, t.data_loader = 2, [torch.ones(())] * count
        with pytest.raises(StopIteration, match=f"ended in iteration {count // 2}, before the training"):
            t.train(0, 2)

    def test_reset_data_loader(self):
        t = trainer()
        t.train(0, 1)
        t.reset_data_loader(lambda: [torch.tensor(5.0)])
        assert next(t._data_loader_iter).item() == 5.0

    def test_write_metrics_is_static(self):
        with EventStorage(8):
            SimpleTrainer.write_metrics({"a": torch.tensor(2.0), "b": torch.tensor(1.0)}, 0.5, prefix="val_")
            latest = get_event_storage().latest()
        assert latest["val_total_loss"] == (3.0, 8)
        assert latest["data_time"] == (0.5, 8)


class TestAMPTrainer:
    def test_documented_position_of_the_scaler(self):
        model = Model()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        t = AMPTrainer(model, [], torch.optim.SGD(model.parameters(), lr=1), scaler)
        assert t.grad_scaler is scaler

    def test_all_arguments_arrive(self):
        t = trainer(
            AMPTrainer,
            gather_metric_period=3,
            zero_grad_before_forward=True,
            async_write_metrics=True,
            precision=torch.bfloat16,
            log_grad_scaler=True,
        )
        assert (t.gather_metric_period, t.zero_grad_before_forward, t.async_write_metrics) == (3, True, True)
        assert (t.precision, t.log_grad_scaler) == (torch.bfloat16, True)

    def test_trains_in_bfloat16_on_the_cpu(self):
        seen = []

        class Linear(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 1)

            def forward(self, x):
                y = self.layer(x)
                seen.append(y.dtype)
                return {"loss": (y.float() - 1).square().mean()}

        model = Linear()
        t = AMPTrainer(model, [torch.ones(8, 4)] * 50, torch.optim.SGD(model.parameters(), lr=0.1))
        t.train(0, 30)
        assert seen[0] == torch.bfloat16
        assert t.storage.history("loss").latest() < 0.01

    def test_state_round_trip(self):
        t = trainer(AMPTrainer)
        t.train(0, 1)
        other = trainer(AMPTrainer)
        other.load_state_dict(t.state_dict())
        assert other.iter == t.iter
        plain = trainer()
        other.load_state_dict(plain.state_dict())  # of a run without mixed precision


class TestEnd:
    def test_a_hook_that_fails_at_the_end_does_not_keep_others_from_closing(self, caplog):
        ended = []

        def fail(trainer):
            raise OSError("disk full")

        t = trainer()
        t.register_hooks([CallbackHook(after_train=fail), CallbackHook(after_train=ended.append)])
        with pytest.raises(OSError, match="disk full"):
            t.train(0, 1)
        assert len(ended) == 1
        assert "CallbackHook failed in after_train: OSError: disk full" in caplog.text

    def test_what_stopped_training_is_raised_not_what_failed_after_it(self, caplog):
        def fail(trainer):
            raise OSError("disk full")

        t = trainer(values=(math.nan,))
        t.register_hooks([CallbackHook(after_train=fail)])
        with pytest.raises(FloatingPointError, match="iteration 0"):
            t.train(0, 1)
        assert "disk full" in caplog.text

    def test_a_hook_asks_for_the_end(self):
        t, hook = trainer(), Recorder()
        t.register_hooks([hook, CallbackHook(after_step=lambda t: t.request_stop() if t.iter == 1 else None)])
        t.train(0, 5)
        assert hook.calls[-2:] == [("after_step", 1), ("after_train", 2)]
        assert t.max_iter == 2

    def test_at_once(self):
        t, hook = trainer(), Recorder()
        t.register_hooks([hook, CallbackHook(before_train=lambda t: t.request_stop())])
        t.train(3, 5)
        assert hook.calls == [("before_train", 3), ("after_train", 3)]

    def test_with_an_exception_training_is_not_complete(self):
        t, hook = trainer(), Recorder()
        t.register_hooks([hook, CallbackHook(after_step=lambda t: t.request_stop(SystemExit(3)))])
        with pytest.raises(SystemExit, match="3"):
            t.train(0, 5)
        assert (hook.calls[-1], t.max_iter) == (("after_train", 0), 5)


class TestAccumulation:
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 1)

        def forward(self, batch):
            x, y = batch
            return {"loss": (self.layer(x) - y).square().mean(), "loss_l1": (self.layer(x) - y).abs().mean()}

    @pytest.mark.parametrize("cls", [SimpleTrainer, AMPTrainer])
    @pytest.mark.parametrize("before", [False, True])
    def test_small_batches_equal_a_large_one(self, cls, before):
        torch.manual_seed(1)
        x, y = torch.randn(3, 12, 3, dtype=torch.float32), torch.randn(3, 12, 1)
        large = list(zip(x, y, strict=True))
        small = [(a, b) for xs, ys in large for a, b in zip(xs.split(4), ys.split(4), strict=True)]
        extra = {"precision": torch.float32} if cls is AMPTrainer else {}
        models, histories = [], []
        for data, steps in ((large, 1), (small, 3)):
            model = self.Regression()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            t = cls(model, data, optimizer, zero_grad_before_forward=before)
            if extra:
                t._autocast = lambda: torch.autocast("cpu", enabled=False)
            t.accumulation_steps = steps
            t.train(0, 3)
            models.append(model)
            histories.append([v for v, _ in t.storage.history("total_loss").values()])
        torch.testing.assert_close(models[0].layer.weight, models[1].layer.weight)
        torch.testing.assert_close(models[0].layer.bias, models[1].layer.bias)
        assert histories[0] == pytest.approx(histories[1], rel=1e-5)

    def test_hooks_see_one_step(self):
        t, hook = trainer(values=(1.0, 3.0)), Recorder()
        t.accumulation_steps = 2
        t.register_hooks([hook])
        t.train(0, 1)
        # the gradient is the mean of -2 and -6, times the rate of 0.25
        assert t.model.w.item() == pytest.approx(1.0)
        assert [name for name, _ in hook.calls] == [
            "before_train", "before_step", "after_backward", "after_step", "after_train"
        ]  # fmt: skip
