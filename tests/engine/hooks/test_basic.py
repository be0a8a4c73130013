"""The basic hooks on a toy trainer."""

import io
import json
import logging
import re
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.engine import hooks
from detectron2.engine.hooks import CallbackHook
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    ProgressLine,
    get_event_storage,
)
from tests.engine.hooks.toy import trainer


class TestCallbackHook:
    def test_empty(self):
        t = trainer()
        t.register_hooks([hooks.CallbackHook()])
        t.train(0, 1)

    def test_calls_and_release(self):
        calls = []
        names = ("before_train", "before_step", "after_step", "after_train")
        hook = hooks.CallbackHook(**{n: (lambda t, n=n: calls.append((n, t.iter))) for n in names})
        t = trainer()
        t.register_hooks([hook])
        t.train(0, 1)
        assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]
        assert hook._after_step is None


class TestIterationTimer:
    def test_no_iteration(self):
        t = trainer()
        t.register_hooks([hooks.IterationTimer()])
        t.train(0, 0)
        assert "time" not in t.storage.histories()

    def test_fifty_iterations_give_48_times(self):
        t = trainer()
        t.register_hooks([hooks.IterationTimer()])
        t.train(0, 50)
        assert len(t.storage.history("time").values()) == 48

    def test_warm_up_is_left_out(self):
        t = trainer()
        t.register_hooks([hooks.IterationTimer(warmup_iter=2)])
        t.train(5, 10)
        times = t.storage.history("time").values()
        assert [i for _, i in times] == [6, 7, 8, 9]
        assert all(v > 0 for v, _ in times)


class TestPeriodicWriter:
    def test_only_writers(self):
        with pytest.raises(TypeError, match="Expected an EventWriter, got str"):
            hooks.PeriodicWriter(["metrics.json"])

    def test_when_it_writes(self):
        class Writer(EventWriter):
            def __init__(self):
                self.at, self.closed = [], 0

            def write(self):
                self.at.append(get_event_storage().iter)

            def close(self):
                self.closed += 1

        writer, t = Writer(), trainer()
        t.register_hooks([hooks.PeriodicWriter([writer], period=3)])
        t.train(0, 7)
        assert writer.at == [2, 5, 6, 7]
        assert writer.closed == 1

    def test_json(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.PeriodicWriter([JSONWriter(str(tmp_path / "m.json"))], period=2)])
        t.train(0, 4)
        lines = [json.loads(x) for x in (tmp_path / "m.json").read_text().splitlines()]
        assert [x["iteration"] for x in lines] == [1, 3]
        assert lines[0]["total_loss"] >= lines[1]["total_loss"] >= 0

    def test_a_progress_line_moves_between_the_periods(self, monkeypatch):
        """It is drawn at once, then every half second, and whenever the others write."""
        now = [100.0]
        monkeypatch.setattr("detectron2.utils.writers.time.monotonic", lambda: now[0])
        screen = io.StringIO()
        screen.isatty = lambda: True
        writer = Mock(spec=EventWriter)
        hook = hooks.PeriodicWriter([writer, ProgressLine(100, stream=screen)], period=20)
        hook.trainer = SimpleNamespace(iter=0, max_iter=100)
        drawn = []
        with EventStorage(0) as storage:
            for _ in range(20):
                hook.after_step()
                drawn.append(screen.getvalue().count("/100"))
                storage.step()
                hook.trainer.iter, now[0] = storage.iter, now[0] + 0.2
            assert writer.write.call_count == 1
            hook.after_train()
        assert drawn == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8]

    def test_a_line_is_logged_at_once_and_at_least_every_minute(self, monkeypatch, caplog):
        """Slow iterations are seen, too; other writers keep to the period."""
        monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
        monkeypatch.setattr(logging.getLogger("detectron2"), "handlers", [])
        caplog.set_level(logging.INFO, logger="detectron2.utils.events")
        now = [100.0]
        monkeypatch.setattr("detectron2.utils.writers.time.monotonic", lambda: now[0])
        writer = Mock(spec=EventWriter)
        piped = ProgressLine(100, stream=io.StringIO())
        hook = hooks.PeriodicWriter([CommonMetricPrinter(100), writer, piped], period=20)
        hook.trainer = SimpleNamespace(iter=40, max_iter=100)
        with EventStorage(40) as storage:
            for _ in range(20):
                hook.after_step()
                storage.step()
                hook.trainer.iter, now[0] = storage.iter, now[0] + 16
        shown = [int(r.getMessage().partition("iter: ")[2].split()[0]) for r in caplog.records]
        assert shown == [i for i in (40, 44, 48, 52, 56, 59) for _ in range(2)]
        assert writer.write.call_count == 1


class TestLRScheduler:
    def test_multiplier(self):
        t = trainer(lr=0.1)
        t.register_hooks([hooks.LRScheduler(scheduler=MultiStepParamScheduler([1.0, 0.1], milestones=[2, 4]))])
        t.train(0, 4)
        assert [v for v, _ in t.storage.history("lr").values()] == pytest.approx([0.1, 0.1, 0.01, 0.01])

    def test_torch_scheduler_resumes(self):
        def make():
            t = trainer(lr=1.0)
            t.register_hooks([hooks.LRScheduler(scheduler=torch.optim.lr_scheduler.StepLR(t.optimizer, 2, 0.5))])
            return t

        first, second, whole = make(), make(), make()
        first.train(0, 3)
        second.load_state_dict(first.state_dict())
        second.train(3, 6)
        whole.train(0, 6)
        rates = [v for t in (first, second) for v, _ in t.storage.history("lr").values()]
        assert rates == [v for v, _ in whole.storage.history("lr").values()] == [1, 1, 0.5, 0.5, 0.25, 0.25]

    def test_constant(self):
        t = trainer(lr=0.3)
        t.register_hooks([hooks.LRScheduler(scheduler=ConstantParamScheduler(0.5))])
        t.train(0, 2)
        assert t.storage.latest()["lr"][0] == pytest.approx(0.15)

    @pytest.mark.parametrize("schedule", [None, "cosine", torch.optim.lr_scheduler.ReduceLROnPlateau])
    def test_what_is_no_schedule(self, schedule):
        t = trainer()
        t.scheduler = schedule(t.optimizer) if isinstance(schedule, type) else schedule
        t.register_hooks([hooks.LRScheduler()])
        text = (
            "ReduceLROnPlateau steps on a metric"
            if isinstance(schedule, type)
            else f"got {schedule!r}. It comes from build_lr"
        )
        with pytest.raises(TypeError, match=re.escape(text)):
            t.train(0, 1)

    def test_neither_a_schedule_nor_a_trainer_with_one(self):
        t = trainer()
        t.register_hooks([hooks.LRScheduler()])
        with pytest.raises(TypeError, match=r"got None\. It comes from build_lr_scheduler"):
            t.train(0, 1)

    def test_a_rate_that_is_not_a_number(self):
        t = trainer(lr=float("nan"))
        t.register_hooks([hooks.LRScheduler(scheduler=ConstantParamScheduler(1.0))])
        with pytest.raises(FloatingPointError, match="in iteration 1"):
            t.train(0, 3)

    def test_representative_group(self):
        p = [nn.Parameter(torch.zeros(1)) for _ in range(6)]
        best = hooks.LRScheduler.get_best_param_group_id
        assert best(torch.optim.SGD([{"params": p[:1], "lr": 1}, {"params": p[1:], "lr": 2}], lr=1)) == 1
        singles = [{"params": [x], "lr": lr} for x, lr in zip(p, [1, 2, 3, 2, 2, 1], strict=True)]
        assert best(torch.optim.SGD(singles, lr=1)) == 1


class TestEvalHook:
    @pytest.mark.parametrize(("period", "at"), [(0, [6]), (2, [1, 3, 6]), (3, [2, 6]), (10, [6])])
    def test_when_it_evaluates(self, period, at):
        t = trainer()
        seen = []
        t.register_hooks([hooks.EvalHook(period, lambda: seen.append(t.iter))])
        t.train(0, 6)
        assert seen == at

    def test_not_after_training(self):
        t = trainer()
        t.register_hooks([hooks.EvalHook(0, lambda: pytest.fail("evaluated"), eval_after_train=False)])
        t.train(0, 1)

    def test_not_after_a_failure(self):
        t = trainer()
        t.register_hooks(
            [
                hooks.EvalHook(0, lambda: pytest.fail("evaluated")),
                hooks.CallbackHook(after_step=lambda _: (_ for _ in ()).throw(OSError("stop"))),
            ]
        )
        with pytest.raises(OSError, match="stop"):
            t.train(0, 2)

    def test_numbers_are_recorded(self):
        t = trainer()
        t.register_hooks([hooks.EvalHook(0, lambda: {"bbox": {"AP": 12.5, "AP50": 30}})])
        t.train(0, 1)
        assert t.storage.latest()["bbox/AP"] == (12.5, 1)
        assert t.storage.latest()["bbox/AP50"] == (30.0, 1)

    def test_the_last_results_are_at_hand(self):
        t = trainer()
        results = iter([{"bbox": {"AP": 1}}, None, {"bbox": {"AP": 3}}])
        hook = hooks.EvalHook(1, lambda: next(results))
        assert (hook.latest_results, hook.latest_iter) == ({}, None)
        seen = []
        t.register_hooks([hook, CallbackHook(after_step=lambda _: seen.append(hook.latest_iter))])
        t.train(0, 3)
        assert seen == [0, 0, 0]  # the second evaluation, perhaps of another process, gave nothing
        assert (hook.latest_results, hook.latest_iter) == ({"bbox/AP": 3.0}, 2)

    @pytest.mark.parametrize(
        ("result", "error", "match"),
        [({"a": {"b": "x"}}, ValueError, "'a/b' is 'x'"), ([1], TypeError, "must return a dict, got list")],
    )
    def test_what_is_no_number_is_reported(self, result, error, match):
        t = trainer()
        t.register_hooks([hooks.EvalHook(0, lambda: result)])
        with pytest.raises(error, match=match):
            t.train(0, 1)
