"""Hooks that save checkpoints, on a toy trainer."""

import contextlib
import json
import math

import pytest
import torch

from detectron2.checkpoint import Checkpointer, DetectionCheckpointer
from detectron2.engine import ShardedCheckpointer, hooks
from detectron2.engine.hooks import CallbackHook
from detectron2.engine.hooks.checkpoints import AverageCheckpointer, FinalDescription
from tests.engine.hooks.toy import trainer, weight_trainer


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
        for name in (
            "model_0000004.state.pt",
            f"model_0000005.{kind}.99999977.tmp",
            "last_checkpoint.99999973.tmp",
            "mine.tmp",
        ):
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
            (tmp_path / "model_0000009.pth.99999923.tmp").write_text("half")
            trainer.train(start, end)
        names = {p.name for p in tmp_path.iterdir()}
        assert names == {"model_0000004.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"}

    @pytest.mark.parametrize("kind", [DetectionCheckpointer, ShardedCheckpointer])
    def test_a_process_that_writes_nothing_removes_nothing(self, tmp_path, kind):
        """Of two that look at the same moment, the second would find the file gone that it has just seen."""
        t = trainer()
        keeper = kind(t.model, str(tmp_path), save_to_disk=False)
        for iteration in range(3):
            (tmp_path / f"model_{iteration:07d}.pth").touch()
        (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
        t.register_hooks([hooks.PeriodicCheckpointer(keeper, period=1, max_to_keep=1)])
        t.train(0, 3)
        assert len(list(tmp_path.glob("model_*.pth"))) == 3

    def test_a_new_run_leaves_old_files_alone(self, tmp_path):
        (tmp_path / "model_0000007.pth").write_text("another run's")
        trainer, keeper = weight_trainer(tmp_path)
        trainer.register_hooks([hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=1)])
        trainer.train(0, 2)
        assert (tmp_path / "model_0000007.pth").is_file() and not (tmp_path / "model_0000000.pth").exists()

    def test_of_other_layouts(self, tmp_path):
        """Parts of a former run are folders; what is saved while training goes on is there when the next one is."""
        folder = tmp_path / "model_0000003.sharded"
        for start, end, layout in ((0, 4, "full"), (4, 6, "full"), (6, 9, "sharded_async"), (9, 11, "sharded")):
            trainer, keeper = weight_trainer(tmp_path)
            keeper = ShardedCheckpointer(keeper.model, str(tmp_path), trainer=trainer)
            keeper.layout = layout
            trainer.register_hooks([hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=2), FinalDescription(keeper)])
            keeper.resume_or_load("", resume=True)
            trainer.train(start, end)
            assert trainer.model.w.item() == torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]["w"]
            names = {p.name for p in tmp_path.iterdir()}
            kept = {f"model_{end - i:07d}.pth" for i in (1, 2)}
            assert names == {*kept, "model_final.pth", "last_checkpoint"}
            if start == 0:
                (tmp_path / "model_0000003.pth").unlink()
                folder.mkdir()  # as if it had been one of parts
        assert not folder.exists()

    def test_the_final_one_that_is_being_saved_is_no_leftover(self, tmp_path):
        """A model that is split is saved to a folder with such a name, which a thread fills."""
        t = trainer()
        keeper = DetectionCheckpointer(t.model, str(tmp_path))
        (tmp_path / "model_0000001.sharded.tmp").mkdir()
        keeper.save = lambda name, **_: (tmp_path / f"{name}.sharded.tmp").mkdir()
        t.register_hooks([hooks.PeriodicCheckpointer(keeper, period=2)])
        t.train(4, 4)
        assert [p.name for p in tmp_path.iterdir()] == ["model_final.sharded.tmp"]
