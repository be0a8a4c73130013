"""Each hook on a toy trainer."""

import contextlib
import json
import math

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.checkpoint import Checkpointer, DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.engine._checkpoint_hooks import AverageCheckpointer
from detectron2.engine._stop_signals import command_to_continue
from detectron2.engine.hooks import CallbackHook
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
        assert "'bbox/AP' was not recorded" in caplog.text and "Recorded: none" in caplog.text
        assert not list(tmp_path.glob("*.pth"))

    def test_metric_that_has_another_name(self, tmp_path, caplog):
        t = trainer()
        keeper = hooks.BestCheckpointer(1, Checkpointer(t.model, str(tmp_path)), "bbox/ap50")
        t.register_hooks([hooks.EvalHook(1, lambda: {"bbox": {"AP": 1.0, "AP50": 2.0}}), keeper])
        t.train(0, 1)
        assert "Did you mean 'bbox/AP50'? Recorded: bbox/AP, bbox/AP50" in caplog.text

    def test_a_value_that_is_not_a_number_is_explained(self, tmp_path, caplog):
        t = trainer()
        keeper = hooks.BestCheckpointer(1, DetectionCheckpointer(t.model, str(tmp_path)), "bbox/AP")
        stopping = hooks.EarlyStopping(1, 1, keeper, keeper._checkpointer)
        t.register_hooks([hooks.EvalHook(1, lambda: {"bbox": {"AP": math.nan}}), keeper, stopping])
        t.train(0, 3)
        assert t.iter == 3 and keeper.history == [] and not list(tmp_path.iterdir())
        found = [m for m in caplog.messages if "bbox/AP is NaN in iteration" in m]
        assert len(found) == 3
        assert "no model_best is saved for it, and it does not count for early stopping" in found[0]
        assert "no annotated objects" in found[0]

    def test_killed_while_the_best_is_saved(self, tmp_path, monkeypatch):
        """Then nothing on disk says that it had been."""
        t, keeper = weight_trainer(tmp_path)
        best = hooks.BestCheckpointer(1, keeper, "AP")
        values = iter([1.0, 2.0])
        t.register_hooks([hooks.EvalHook(1, lambda: {"AP": next(values)}), best])
        save = keeper.save_aside

        def killed(name, **data):
            if data["AP"] == 2.0:
                raise KeyboardInterrupt
            return save(name, **data)

        monkeypatch.setattr(keeper, "save_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            t.train(0, 3)
        assert json.loads((tmp_path / "model_best_history.json").read_text())["values"] == [[0, 1.0]]
        assert keeper.load(str(tmp_path / "model_best.pth"), checkpointables=[])["AP"] == 1.0

    @pytest.mark.parametrize("kind", ["pth", "safetensors"])
    def test_what_is_kept(self, tmp_path, kind):
        def run(start, end):
            t, keeper = weight_trainer(tmp_path)
            keeper.file_format = kind
            t.register_hooks([hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=2)])
            keeper.resume_or_load("")
            t.train(start, end)
            return t

        run(0, 4)
        # What a killed process may leave: too many checkpoints, halves of files, a state without weights.
        for name in ("model_0000004.state.pt", f"model_0000005.{kind}.77.tmp", "last_checkpoint.3.tmp", "mine.tmp"):
            (tmp_path / name).write_text("")
        t = run(4, 7)
        assert t.model.w == 7
        stems = ["model_0000005", "model_0000006", "model_final"]
        endings = [".pth"] if kind == "pth" else [".safetensors", ".state.pt"]
        expected = {stem + ending for stem in stems for ending in endings} | {"last_checkpoint", "mine.tmp"}
        # The second training saved model_final once more, without touching the state of the one on disk.
        found = {p.name.replace("model_final.state2.pt", "model_final.state.pt") for p in tmp_path.iterdir()}
        assert found == expected

    @pytest.mark.parametrize("kind", ["pth", "safetensors"])
    def test_average_at_the_end(self, tmp_path, kind):
        t, keeper = weight_trainer(tmp_path)
        keeper.file_format = kind
        keeper.describe = lambda: {"is_average": False, "x": 1}
        average = hooks.WeightAverage(t.model, 0.25)
        t.register_hooks([average, AverageCheckpointer(average, keeper)])
        t.train(0, 3)
        assert sorted(p.name for p in tmp_path.iterdir()) == [f"model_final_ema.{kind}"]
        other, fresh = weight_trainer()
        rest = fresh.load(str(tmp_path / f"model_final_ema.{kind}"))
        assert rest == {"iteration": 2, "description": {"is_average": True, "x": 1}}
        assert other.model.w.item() == pytest.approx(average.state_dict()["average"]["w"].item())
        assert t.model.w == 3 and list(keeper.checkpointables) == ["trainer"]

    def test_average_of_a_training_that_was_not_finished(self, tmp_path):
        t, keeper = weight_trainer(tmp_path)
        average = hooks.WeightAverage(t.model, 0.25)
        stop = hooks.CallbackHook(after_step=lambda _: (_ for _ in ()).throw(OSError("stop")))
        t.register_hooks([average, AverageCheckpointer(average, keeper), stop])
        with pytest.raises(OSError, match="stop"):
            t.train(0, 3)
        assert not list(tmp_path.iterdir())

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


class Weight(nn.Module):
    """The gradient of its loss is -1: with a rate of 1, the weight is the number of steps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.count = self.count + 1
        if "late" not in self._buffers:
            self.register_buffer("late", torch.zeros(()), persistent=False)
        torch.rand(())
        return {"loss": self.drop(self.norm(x)).sum().detach() - self.w}


def weight_trainer(folder=None, steps=100):
    torch.manual_seed(0)
    model = Weight()
    data = [torch.randn(4, 2) for _ in range(steps)]
    trainer = SimpleTrainer(model, data, torch.optim.SGD([model.w], lr=1.0))
    return trainer, DetectionCheckpointer(model, str(folder or ""), trainer=trainer)


class TestWeightAverage:
    def test_by_hand(self, tmp_path):
        trainer, _ = weight_trainer(tmp_path)
        average = hooks.WeightAverage(trainer.model, 0.25, str(tmp_path))
        seen = []

        def evaluate():
            with average.in_place():
                seen.append(trainer.model.w.item())

        trainer.register_hooks([average, hooks.EvalHook(1, evaluate)])
        trainer.train(0, 3)
        value, expected = 0.0, []
        for t in range(3):
            d = min(0.25, (1 + t) / (10 + t))
            value = d * value + (1 - d) * (t + 1)
            expected.append(value)
        assert seen == pytest.approx(expected)
        assert trainer.model.w.item() == 3
        saved = torch.load(tmp_path / "model_final_ema.pth", weights_only=True)
        assert saved["model"]["w"].item() == pytest.approx(value)
        assert saved["iteration"] == 2
        assert set(average.state_dict()["average"]) == {
            "w", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"
        }  # fmt: skip

    def test_best_checkpoint_holds_what_was_evaluated(self, tmp_path):
        trainer, keeper = weight_trainer(tmp_path)
        average = hooks.WeightAverage(trainer.model, 0.5)
        best = hooks.BestCheckpointer(1, keeper, "a/b", average=average)
        trainer.register_hooks([average, hooks.EvalHook(1, lambda: {"a": {"b": 1.0}}), best])
        trainer.train(0, 2)
        saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
        assert saved["model"]["w"].item() == pytest.approx(0.9)  # 0.1 * 0 + 0.9 * 1
        assert "trainer" not in saved and "trainer" in keeper.checkpointables

    @pytest.mark.parametrize("decay", [0.0, 1.0])
    def test_decay_is_checked(self, decay):
        with pytest.raises(ValueError, match=r"in \(0, 1\)"):
            hooks.WeightAverage(Weight(), decay)


class TestValidationLoss:
    def test_leaves_no_trace(self):
        states = []
        for is_used in (False, True):
            trainer, _ = weight_trainer()
            trainer.model.drop.eval()  # what a project keeps in evaluation mode stays so
            draws = []
            hook = hooks.ValidationLoss(1, trainer.model, lambda: [torch.randn(4, 2)] * 3) if is_used else None
            trainer.register_hooks([hook, CallbackHook(after_step=lambda t, d=draws: d.append(torch.rand(()).item()))])
            trainer.train(0, 3)
            buffers = {n: b.clone() for n, b in trainer.model.named_buffers()}
            modes = [m.training for m in trainer.model.modules()]
            states.append((draws, buffers, {n: p.clone() for n, p in trainer.model.named_parameters()}, modes))
        without, with_it = states
        assert without[0] == with_it[0] and without[3] == with_it[3]
        for a, b in ((without[1], with_it[1]), (without[2], with_it[2])):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in a)

    def test_value(self):
        """Batch norm with mean 0 and variance 1 changes nothing; nothing is dropped out."""
        trainer, _ = weight_trainer()
        data = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])]
        found = hooks.ValidationLoss(1, trainer.model, lambda: data).measure()
        assert found == {"loss": pytest.approx(5.5, rel=1e-4), "total_loss": pytest.approx(5.5, rel=1e-4)}

    def test_no_data(self, caplog):
        trainer, _ = weight_trainer()
        assert hooks.ValidationLoss(1, trainer.model, list).measure() == {}
        assert "no data" in caplog.text

    def test_is_recorded(self):
        trainer, _ = weight_trainer()
        trainer.register_hooks([hooks.ValidationLoss(2, trainer.model, lambda: [torch.zeros(1, 2)])])
        trainer.train(0, 5)
        assert [at for _, at in trainer.storage.history("validation/total_loss").values()] == [1, 3, 4]


class TestEarlyStopping:
    def run(self, folder, values, start=0, until=None, patience=2):
        trainer, keeper = weight_trainer(folder)
        best = hooks.BestCheckpointer(1, keeper, "a/b")
        evaluation = hooks.EvalHook(1, lambda: {"a": {"b": values[trainer.iter]}})
        saving = hooks.PeriodicCheckpointer(keeper, 1)
        trainer.register_hooks([saving, evaluation, best, hooks.EarlyStopping(1, patience, best, keeper)])
        if start:
            keeper.resume_or_load("", resume=True)
        if until is not None:
            trainer.register_hooks(
                [CallbackHook(after_step=lambda t: t.iter == until and t.request_stop(SystemExit()))]
            )
        with contextlib.suppress(SystemExit):
            trainer.train(start, len(values) - 1)  # the last value is that of the evaluation after training
        return trainer, best

    def test_ends(self, tmp_path):
        trainer, best = self.run(tmp_path, [1.0, 3.0, 2.0, 3.0, 5.0, 6.0])
        assert (trainer.iter, trainer.max_iter, best.best_iter) == (4, 4, 1)
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 3

    def test_stays_ended(self, tmp_path):
        self.run(tmp_path, [1.0, 3.0, 2.0, 3.0, 5.0, 6.0])
        trainer, _ = self.run(tmp_path, [1.0, 3.0, 2.0, 3.0, 5.0, 6.0], start=4)
        assert trainer.iter == 4

    def test_counts_what_was_before_a_resume(self, tmp_path):
        self.run(tmp_path, [1.0, 3.0, 2.0, 3.0, 5.0, 6.0], until=2)
        trainer, best = self.run(tmp_path, [1.0, 3.0, 2.0, 3.0, 5.0, 6.0], start=3)
        assert [at for at, _ in best.history] == [0, 1, 2, 3]
        assert trainer.iter == 4

    def test_while_it_improves(self, tmp_path):
        trainer, best = self.run(tmp_path, [1.0, 2.0, 3.0, 2.0, 4.0])
        assert (trainer.iter, best.best_iter) == (4, 4)  # the last evaluation comes after the last iteration

    @pytest.mark.parametrize(("period", "patience"), [(0, 1), (1, 0)])
    def test_arguments(self, period, patience):
        with pytest.raises(ValueError, match=r"EVAL_PERIOD|at least one"):
            hooks.EarlyStopping(period, patience, None, None)


class TestLastCheckpoints:
    def test_across_a_resume(self, tmp_path):
        for start, end in ((0, 4), (4, 6)):
            trainer, keeper = weight_trainer(tmp_path)
            trainer.register_hooks([hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=2)])
            keeper.resume_or_load("", resume=True)
            (tmp_path / "model_0000009.pth.123.tmp").write_text("half")
            trainer.train(start, end)
        names = {p.name for p in tmp_path.iterdir()}
        assert names == {"model_0000004.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"}

    def test_a_new_run_leaves_old_files_alone(self, tmp_path):
        (tmp_path / "model_0000007.pth").write_text("another run's")
        trainer, keeper = weight_trainer(tmp_path)
        trainer.register_hooks([hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=1)])
        trainer.train(0, 2)
        assert (tmp_path / "model_0000007.pth").is_file() and not (tmp_path / "model_0000000.pth").exists()


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["t.py"], ["python", "t.py"], "python t.py --resume"),
        (["t.py", "--config-file", "a b.yaml", "SEED", "1"], ["python", "-u", "t.py", "--config-file", "a b.yaml",
         "SEED", "1"], "python -u t.py --resume --config-file 'a b.yaml' SEED 1"),
        (["t.py", "--resume"], ["python", "t.py", "--resume"], "python t.py --resume"),
        (["/bin/detectron2", "train", "a.yaml"], ["python", "/bin/detectron2", "train", "a.yaml"],
         "python /bin/detectron2 train --resume a.yaml"),
        (["/x/mod.py", "-a"], ["python", "-m", "pkg.mod", "-a"], "python -m pkg.mod --resume -a"),
        (["t.py", "-a"], ["python", "-c", "from multiprocessing.spawn import spawn_main"], "python t.py --resume -a"),
    ],
)  # fmt: skip
def test_command_to_continue(argv, original, expected):
    assert command_to_continue(argv, original) == expected
