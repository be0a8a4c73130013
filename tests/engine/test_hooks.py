"""Each hook on a toy trainer."""

import json
import math

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.checkpoint import Checkpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import EventWriter, JSONWriter, get_event_storage


class Model(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)) if norm else nn.Linear(2, 1)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}


def trainer(norm=False, lr=0.1, groups=None):
    model = Model(norm)
    return SimpleTrainer(model, [torch.ones(4, 2)] * 100, torch.optim.SGD(groups or model.parameters(), lr=lr))


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

    def test_warm_up_is_left_out(self):
        t = trainer()
        t.register_hooks([hooks.IterationTimer(warmup_iter=2)])
        t.train(5, 10)
        times = t.storage.history("time").values()
        assert [i for _, i in times] == [7, 8, 9]
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


class TestCheckpointers:
    def test_periodic(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.PeriodicCheckpointer(Checkpointer(t.model, str(tmp_path)), period=2)])
        t.train(0, 5)
        assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
            "model_0000001.pth",
            "model_0000003.pth",
            "model_final.pth",
        ]
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    @pytest.mark.parametrize(("mode", "best"), [("max", 3.0), ("min", 1.0)])
    def test_best(self, tmp_path, mode, best):
        values = iter([2.0, math.nan, 3.0, 1.0])
        t = trainer()
        checkpointer = Checkpointer(t.model, str(tmp_path))
        keeper = hooks.BestCheckpointer(1, checkpointer, "bbox/AP", mode)
        t.register_hooks([hooks.EvalHook(1, lambda: {"bbox": {"AP": next(values)}}), keeper])
        t.train(0, 4)
        assert keeper.best_metric == best
        assert checkpointer.load(str(tmp_path / "model_best.pth"), checkpointables=[])["bbox/AP"] == best

    def test_a_resume_continues_from_the_newest_not_from_the_best(self, tmp_path):
        values = iter([1.0, 3.0, 2.0, 4.0])
        t = trainer()
        checkpointer = Checkpointer(t.model, str(tmp_path))
        periodic = hooks.PeriodicCheckpointer(checkpointer, period=1)
        evaluation = hooks.EvalHook(1, lambda: {"AP": next(values)})
        t.register_hooks([periodic, evaluation, hooks.BestCheckpointer(1, checkpointer, "AP")])
        t.train(0, 4)
        assert (tmp_path / "model_best.pth").is_file()
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    def test_best_survives_a_resume(self, tmp_path):
        t = trainer()
        keeper = hooks.BestCheckpointer(1, Checkpointer(t.model, str(tmp_path)), "x")
        keeper.best_metric, keeper.best_iter = 5.0, 3
        t.register_hooks([keeper])
        fresh = trainer()
        other = hooks.BestCheckpointer(1, Checkpointer(fresh.model, str(tmp_path)), "x")
        fresh.register_hooks([other])
        fresh.load_state_dict(t.state_dict())
        assert (other.best_metric, other.best_iter) == (5.0, 3)

    def test_metric_that_is_not_recorded(self, tmp_path, caplog):
        t = trainer()
        t.register_hooks([hooks.BestCheckpointer(1, Checkpointer(t.model, str(tmp_path)), "bbox/AP")])
        t.train(0, 2)
        assert "'bbox/AP' was not recorded" in caplog.text
        assert not list(tmp_path.glob("*.pth"))

    def test_mode_is_checked(self):
        with pytest.raises(ValueError, match='"max" or "min"'):
            hooks.BestCheckpointer(1, None, "x", mode="larger")


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

    @pytest.mark.parametrize(
        ("result", "error", "match"),
        [({"a": {"b": "x"}}, ValueError, "'a/b' is 'x'"), ([1], TypeError, "must return a dict, got list")],
    )
    def test_what_is_no_number_is_reported(self, result, error, match):
        t = trainer()
        t.register_hooks([hooks.EvalHook(0, lambda: result)])
        with pytest.raises(error, match=match):
            t.train(0, 1)


class TestPreciseBN:
    def test_statistics_are_the_average_over_batches(self):
        t = trainer(norm=True, lr=0.0)
        batches = [torch.randn(64, 2, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        t.register_hooks([hooks.PreciseBN(0, t.model, batches, 4)])
        t.train(0, 1)
        outputs = t.model.layer[0](torch.cat(batches)).detach()
        norm = t.model.layer[1]
        assert norm.running_mean.item() == pytest.approx(outputs.mean().item(), abs=1e-5)
        assert norm.running_var.item() == pytest.approx(outputs.var().item(), rel=2e-2)
        assert set(t.storage.latest()) == {"data_time", "total_loss", "loss"}

    def test_model_without_norm(self, caplog):
        caplog.set_level("INFO")
        t = trainer()
        t.register_hooks([hooks.PreciseBN(1, t.model, [], 4)])
        t.train(0, 2)
        assert "PreciseBN does nothing" in caplog.text


class TestProfilers:
    def test_traces_are_written(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.AutogradProfiler(lambda t: t.iter == 1, str(tmp_path), use_cuda=False)])
        t.train(0, 3)
        assert "traceEvents" in json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["profiler-summary-iter1.txt", "profiler-trace-iter1.json"]

    def test_trace_for_tensorboard(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.TorchProfiler(lambda t: t.iter == 0, str(tmp_path))])
        t.train(0, 1)
        assert list((tmp_path / "log").rglob("*.json"))

    def test_memory_without_cuda(self):
        t = trainer()
        t.register_hooks([hooks.TorchMemoryStats(period=1)])
        t.train(0, 2)
