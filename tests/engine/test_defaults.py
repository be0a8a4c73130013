"""The default trainer and predictor, and what scripts do before anything else."""

import argparse
import copy
import functools
import itertools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.engine.defaults import _try_get_key
from detectron2.engine.hooks.checkpoints import FinalDescription
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.engine.hooks.run_summary import RunSummary
from detectron2.engine.run_folder import RunFolder, RunFolderRelease
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, ProgressLine, TensorboardXWriter

pytestmark = pytest.mark.usefixtures("restore_logging")


@pytest.fixture
def toy_cfg(tmp_path):
    """A config for :class:`ToyTrainer`, which needs neither a data set nor a detector."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.STEPS = (3,)
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.BASE_LR = 0.1
    return cfg


class Toy(nn.Module):
    """One weight; the loss is (w - x)^2, with dropout as something that is random."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": ((self.w - x) ** 2).sum()} if self.training else [{"w": self.w.item()}]


class ToyTrainer(DefaultTrainer):
    """Overrides every ``build_*`` and notes what was called."""

    calls: list = []

    @classmethod
    def build_model(cls, cfg):
        cls.calls.append("model")
        return Toy()

    @classmethod
    def build_optimizer(cls, cfg, model):
        cls.calls.append("optimizer")
        return torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=0.9)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        cls.calls.append("lr_scheduler")
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        cls.calls.append("train_loader")
        return [torch.tensor(float(i)) for i in range(100)]

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        cls.calls.append(("test_loader", dataset_name))
        return [[torch.tensor(0.0)]] * 6

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        cls.calls.append(("evaluator", dataset_name))
        return Constant({"toy": {dataset_name: 1.0}})

    def build_writers(self):
        self.calls.append("writers")
        Path(self.cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        return [JSONWriter(f"{self.cfg.OUTPUT_DIR}/metrics.json")]


class Constant(DatasetEvaluator):
    """Finds the same numbers whatever it is shown."""

    def __init__(self, results):
        self.results = results

    def evaluate(self):
        return self.results


@pytest.fixture(autouse=True)
def _forget_calls():
    ToyTrainer.calls = []


def records(cfg):
    return [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]


class TestTrainer:
    def test_whole_run(self, cfg):
        trainer = DefaultTrainer(cfg)
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.resume_or_load(resume=False)
        results = trainer.train()
        assert set(results) == {"bbox", "segm"}
        assert {"AP", "AP50"} <= set(results["bbox"])
        assert any(not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
        output = Path(cfg.OUTPUT_DIR)
        assert (output / "last_checkpoint").read_text() == "model_final.pth"
        assert (output / "model_final.pth").is_file()
        (record,) = [r for r in records(cfg) if "total_loss" in r]
        assert record["iteration"] == 1
        parts = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
        assert record["total_loss"] == pytest.approx(sum(record[p] for p in parts), rel=1e-3)
        assert list(output.glob("events.out.tfevents.*"))

    @pytest.mark.parametrize("method", ["build_model", "build_optimizer", "build_train_loader", "build_hooks"])
    def test_a_method_without_return(self, toy_cfg, method):
        kind = type("Forgetful", (ToyTrainer,), {method: lambda self, *arguments: None})
        with pytest.raises(TypeError, match=rf"Forgetful\.{method} returns None\. Is a return missing"):
            kind(toy_cfg)

    @pytest.mark.parametrize("method", ["build_test_loader", "build_evaluator"])
    def test_what_test_calls_must_be_a_class_method(self, toy_cfg, method):
        kind = type("OfInstance", (ToyTrainer,), {method: lambda self, cfg, name: []})
        with pytest.raises(TypeError, match=rf"OfInstance\.{method} must be a class method"):
            kind(toy_cfg).train()
        assert not Path(toy_cfg.OUTPUT_DIR, "model_final.pth").exists()
        # A `test` of their own may call them as it likes.
        kind.test = lambda self, cfg, model: {"toy": {"AP": float(getattr(self, method)(cfg, "x") == [])}}
        assert kind(toy_cfg).train() == {"toy": {"AP": 1.0}}

    def test_resume_is_exact(self, cfg, tmp_path):
        """A run that ends in the middle and a new trainer that resumes it give the weights of an undisturbed run."""
        cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 3, 4, 2
        cfg.DATASETS.TEST = ()

        def run(folder, stop_at=None):
            cfg.OUTPUT_DIR = str(folder)
            torch.manual_seed(0)
            trainer = DefaultTrainer(cfg)
            trainer.resume_or_load()
            # The same data and the same random samples of anchors in the same iteration.
            trainer.data_loader = list(itertools.islice(batches, trainer.start_iter, stop_at))
            trainer.register_hooks([hooks.CallbackHook(before_step=lambda t: torch.manual_seed(t.iter))])
            if stop_at is None:
                trainer.train()
            else:
                with pytest.raises(StopIteration):  # as if the machine had gone away
                    trainer.train()
            return trainer

        batches = list(itertools.islice(DefaultTrainer.build_train_loader(cfg), 4))
        whole = run(tmp_path / "whole")
        run(tmp_path / "parts", stop_at=2)
        second = run(tmp_path / "parts")
        assert second.start_iter == 2
        for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        assert whole.scheduler.get_last_lr() == second.scheduler.get_last_lr()
        loss = [t.storage.history("total_loss").values()[-2:] for t in (whole, second)]
        assert loss[0] == loss[1]

    def test_every_builder_can_be_overridden(self, toy_cfg):
        trainer = ToyTrainer(toy_cfg)
        assert ToyTrainer.calls == ["train_loader", "model", "optimizer", "lr_scheduler", "writers"]
        assert isinstance(trainer._trainer, SimpleTrainer)
        assert trainer.train() == {}

    def test_momentum_and_schedule_by_hand(self, toy_cfg):
        """x = 0, 1, 2, 3 and rates 0.1 * (0.001, 0.5005, 1, 0.1), by the formulas of SGD with momentum."""
        trainer = ToyTrainer(toy_cfg)
        trainer.train()
        w = v = 0.0
        for x, factor in enumerate([0.001, 0.5005, 1.0, 0.1]):
            v = 0.9 * v + 2 * (w - x)
            w -= 0.1 * factor * v
        assert trainer.model.w.item() == pytest.approx(w, rel=1e-5)
        rates = {i: r for r, i in trainer.storage.history("lr").values()}
        assert rates == pytest.approx({0: 0.0001, 1: 0.05005, 2: 0.1, 3: 0.01})

    def test_mixed_precision(self, toy_cfg):
        toy_cfg.SOLVER.AMP.ENABLED = True
        trainer = ToyTrainer(toy_cfg)
        assert isinstance(trainer._trainer, AMPTrainer) and trainer._trainer.precision == torch.bfloat16
        trainer.train()
        state = torch.load(Path(toy_cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
        assert "grad_scaler" in state["trainer"]["_trainer"]
        toy_cfg.merge_from_list(["SOLVER.AMP_DTYPE", "float16"])
        assert ToyTrainer(toy_cfg)._trainer.precision == torch.float16

    def test_properties_are_those_of_the_inner_trainer(self, toy_cfg):
        trainer = ToyTrainer(toy_cfg)
        assert trainer.model is trainer._trainer.model
        assert trainer.optimizer is trainer._trainer.optimizer
        trainer.model, trainer.data_loader, trainer.optimizer = "model", "data", "optimizer"
        inner = trainer._trainer
        assert (inner.model, inner.data_loader, inner.optimizer) == ("model", "data", "optimizer")

    def test_config_is_not_changed(self, toy_cfg):
        before = toy_cfg.clone()
        ToyTrainer(toy_cfg).train()
        assert toy_cfg == before

    def test_trainer_is_released(self, toy_cfg):
        """Reference counting alone frees it: no cycle keeps the model's memory until the next garbage collection."""
        import gc
        import weakref

        gc.collect()
        gc.disable()
        try:
            trainer = ToyTrainer(toy_cfg)
            trainer.train()
            model = weakref.ref(trainer.model)
            del trainer
            assert model() is None
        finally:
            gc.enable()

    def test_logging_is_set_up_for_those_who_did_not(self, toy_cfg, capsys):
        ToyTrainer(toy_cfg).train()
        assert "Starting training from iteration 0" in capsys.readouterr().out


class TestResume:
    def test_nothing_to_resume(self, toy_cfg):
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 0

    def test_weights_are_not_a_state(self, toy_cfg, tmp_path):
        torch.save({"model": {"w": torch.tensor([7.0])}, "iteration": 3}, tmp_path / "w.pth")
        toy_cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load(resume=True)  # there is nothing in OUTPUT_DIR
        assert trainer.model.w.item() == 7.0
        assert trainer.start_iter == 0

    def test_checkpoint_wins_over_weights(self, toy_cfg):
        first = ToyTrainer(toy_cfg)
        first.train()
        toy_cfg.MODEL.WEIGHTS = "/does/not/exist.pth"
        toy_cfg.SOLVER.MAX_ITER = 6
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 4
        assert torch.equal(trainer.model.w, first.model.w)
        trainer.train()
        assert Path(toy_cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_final.pth"

    def test_after_the_end(self, toy_cfg):
        ToyTrainer(toy_cfg).train()
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load(resume=True)
        before = trainer.model.w.item()
        assert before and trainer.train() == {}
        assert (trainer.start_iter, trainer.iter, trainer.model.w.item()) == (4, 4, before)
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load(resume=False)
        assert trainer.start_iter == 0

    def test_from_the_middle(self, toy_cfg):
        toy_cfg.SOLVER.CHECKPOINT_PERIOD = 2
        ToyTrainer(toy_cfg).train()
        Path(toy_cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
        trainer = ToyTrainer(toy_cfg)
        trainer.resume_or_load()
        assert trainer.start_iter == 2

    def test_checkpoint_of_older_versions(self, toy_cfg):
        """It holds optimizer and schedule beside the model, and no state of a trainer."""
        trainer = ToyTrainer(toy_cfg)
        checkpointer = DetectionCheckpointer(
            trainer.model, toy_cfg.OUTPUT_DIR, optimizer=trainer.optimizer, scheduler=trainer.scheduler
        )
        checkpointer.save("model_0000001", iteration=1)
        trainer.resume_or_load()
        assert trainer.start_iter == 2


class HandMade(ToyTrainer):
    """Skips the constructor of the default trainer, as many projects do."""

    def __init__(self, cfg):
        super(DefaultTrainer, self).__init__()
        cfg = DefaultTrainer.auto_scale_workers(cfg, 1)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = SimpleTrainer(model, self.build_train_loader(cfg), optimizer)
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=self.scheduler)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())


class TestHandMade:
    def test_trains_like_the_default(self, toy_cfg, tmp_path):
        trainer = HandMade(toy_cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        other = toy_cfg.clone()
        other.OUTPUT_DIR = str(tmp_path / "other")
        default = ToyTrainer(other)
        default.train()
        assert torch.equal(trainer.model.w, default.model.w)

    def test_resumes_where_it_stopped(self, toy_cfg):
        toy_cfg.SOLVER.CHECKPOINT_PERIOD = 2
        at_once = HandMade(toy_cfg)
        at_once.train()
        Path(toy_cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
        trainer = HandMade(toy_cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 2
        trainer.data_loader = trainer.data_loader[2:]
        trainer.train()
        assert torch.equal(trainer.model.w, at_once.model.w)

    def test_own_run_step(self, toy_cfg):
        class Own(HandMade):
            def run_step(self):
                assert self.model.training
                data = next(self._trainer._data_loader_iter)
                losses = self.model(data)
                self.optimizer.zero_grad()
                sum(losses.values()).backward()
                self._trainer._write_metrics(losses, 0.0)
                self.optimizer.step()

        own, default = Own(toy_cfg), HandMade(toy_cfg)
        own.train()
        default.train()
        assert torch.equal(own.model.w, default.model.w)
        values = [t.storage.history("loss").values() for t in (own, default)]
        assert values[0] == values[1]
        assert [at for _, at in values[0]] == [0, 1, 2, 3]

    def test_own_scaling_to_the_number_of_processes(self, toy_cfg):
        class Own(ToyTrainer):
            @staticmethod
            def auto_scale_workers(cfg, num_workers):
                cfg = cfg.clone()
                cfg.SOLVER.MAX_ITER = 2 * num_workers
                return cfg

        assert Own(toy_cfg).max_iter == 2


class TestHooks:
    def test_order(self, toy_cfg):
        kinds = [type(h) for h in ToyTrainer(toy_cfg)._hooks]
        built = [
            hooks.IterationTimer,
            hooks.LRScheduler,
            hooks.PeriodicCheckpointer,
            hooks.EvalHook,
            hooks.PeriodicWriter,
        ]
        outer = [RunFolder, hooks.StopOnSignal, RandomStates], [FinalDescription, RunSummary, RunFolderRelease]
        assert kinds == [*outer[0], *built, *outer[1]]
        assert [type(h) for h in ToyTrainer(toy_cfg).build_hooks() if h] == built

    def test_precise_bn_has_a_loader_of_its_own(self, toy_cfg):
        workers = []

        class T(ToyTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                workers.append(cfg.DATALOADER.NUM_WORKERS)
                return super().build_train_loader(cfg)

        toy_cfg.TEST.PRECISE_BN.ENABLED = True
        toy_cfg.DATALOADER.NUM_WORKERS = 3
        kinds = [type(h) for h in T(toy_cfg)._hooks]
        assert kinds.index(hooks.PreciseBN) == kinds.index(hooks.LRScheduler) + 1
        assert workers == [3, 0]

    def test_subclass_inserts_a_hook_before_the_writer(self, toy_cfg):
        seen = []

        class T(ToyTrainer):
            def build_hooks(self):
                ret = super().build_hooks()
                ret.insert(-1, hooks.CallbackHook(after_step=lambda t: seen.append(t.iter)))
                return ret

        T(toy_cfg).train()
        assert seen == [0, 1, 2, 3]

    def test_evaluation_sees_the_saved_model_and_is_written(self, toy_cfg):
        class T(ToyTrainer):
            @classmethod
            def test(cls, cfg, model, evaluators=None):
                assert Path(cfg.OUTPUT_DIR, "model_final.pth").is_file()
                return {"toy": {"AP": 12.5}}

        results = T(toy_cfg).train()
        assert results == {"toy": {"AP": 12.5}}
        assert records(toy_cfg)[-1]["toy/AP"] == 12.5

    def test_expected_results(self, toy_cfg):
        toy_cfg.TEST.EXPECTED_RESULTS = [["toy", "a", 1.0, 0.1]]
        toy_cfg.DATASETS.TEST = ("a",)
        assert ToyTrainer(toy_cfg).train() == {"toy": {"a": 1.0}}
        toy_cfg.TEST.EXPECTED_RESULTS = [["toy", "a", 2.0, 0.1]]
        with pytest.raises(SystemExit):
            ToyTrainer(toy_cfg).train()


class TestTest:
    def test_no_data_set(self, toy_cfg):
        assert ToyTrainer.test(toy_cfg, Toy()) == {}

    def test_one_data_set(self, toy_cfg):
        toy_cfg.DATASETS.TEST = ("a",)
        model = Toy()
        assert ToyTrainer.test(toy_cfg, model) == {"toy": {"a": 1.0}}
        assert ToyTrainer.calls == [("test_loader", "a"), ("evaluator", "a")]
        assert model.training

    def test_several_data_sets(self, toy_cfg):
        toy_cfg.DATASETS.TEST = ("a", "b")
        assert ToyTrainer.test(toy_cfg, Toy()) == {"a": {"toy": {"a": 1.0}}, "b": {"toy": {"b": 1.0}}}

    @pytest.mark.parametrize("as_list", [False, True])
    def test_given_evaluator(self, toy_cfg, as_list):
        toy_cfg.DATASETS.TEST = ("a",)
        given = Constant({"toy": {"given": 2.0}})
        assert ToyTrainer.test(toy_cfg, Toy(), [given] if as_list else given) == {"toy": {"given": 2.0}}
        assert ToyTrainer.calls == [("test_loader", "a")]

    def test_wrong_number_of_evaluators(self, toy_cfg):
        toy_cfg.DATASETS.TEST = ("a", "b")
        with pytest.raises(ValueError, match=r"2 test data sets \(a, b\), got 1"):
            ToyTrainer.test(toy_cfg, Toy(), Constant({}))

    def test_data_set_without_evaluator(self, toy_cfg, caplog):
        class T(ToyTrainer):
            @classmethod
            def build_evaluator(cls, cfg, dataset_name):
                if dataset_name == "b":
                    raise NotImplementedError
                return super().build_evaluator(cfg, dataset_name)

        toy_cfg.DATASETS.TEST = ("a", "b")
        assert T.test(toy_cfg, Toy()) == {"a": {"toy": {"a": 1.0}}, "b": {}}
        assert "No evaluator for b" in caplog.text

    def test_with_augmentation_evaluates_as_the_subclass_says(self, toy_cfg, monkeypatch):
        """What it writes lies in a folder of its own."""
        folders = []

        class T(ToyTrainer):
            @classmethod
            def build_evaluator(cls, cfg, dataset_name):
                folders.append(cfg.OUTPUT_DIR)
                return super().build_evaluator(cfg, dataset_name)

        monkeypatch.setattr("detectron2.engine.defaults.build_model_with_tta", lambda cfg, model, metadata: model)
        before = toy_cfg.OUTPUT_DIR
        toy_cfg.DATASETS.TEST = ("_not_registered",)
        toy_cfg.freeze()
        assert T.test_with_TTA(toy_cfg, Toy()) == {"toy_TTA": {"_not_registered": 1.0}}
        assert folders == [f"{before}/inference_TTA"]
        assert before == toy_cfg.OUTPUT_DIR


class TestTestSets:
    """A name that nobody registered is noticed before training, unless the subclass evaluates in its own way."""

    def test_unknown(self, toy_cfg):
        class Plain(DefaultTrainer):
            build_model, build_optimizer = ToyTrainer.build_model, ToyTrainer.build_optimizer
            build_train_loader, build_writers = ToyTrainer.build_train_loader, ToyTrainer.build_writers
            calls: list = []

        toy_cfg.DATASETS.TEST = ("coco_2017_vall",)
        trainer = Plain(toy_cfg)
        with pytest.raises(KeyError, match=r"'coco_2017_vall' is not registered.*Did you mean 'coco_2017_val'"):
            trainer.train()
        assert trainer.iter == 0
        trainer._hooks = [h for h in trainer._hooks if not isinstance(h, hooks.EvalHook)]
        trainer.train()
        assert trainer.iter == 4

    @pytest.mark.parametrize("kind", [classmethod, staticmethod])
    def test_own_evaluation(self, toy_cfg, kind):
        class Own(ToyTrainer):
            test = kind(lambda *args: {"toy": {"AP": 1.0}})

        toy_cfg.DATASETS.TEST = ("what I like",)
        assert Own(toy_cfg).train() == {"toy": {"AP": 1.0}}


class TestAutoScaleWorkers:
    @staticmethod
    def config(reference):
        cfg = get_cfg()
        solver = cfg.SOLVER
        solver.REFERENCE_WORLD_SIZE, solver.IMS_PER_BATCH, solver.BASE_LR = reference, 16, 0.1
        solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD = 5000, (4000, 4500), 100, 500
        cfg.TEST.EVAL_PERIOD = 250
        return cfg

    @pytest.mark.parametrize("reference", [0, 4])
    def test_nothing_to_scale(self, reference):
        cfg = self.config(reference)
        assert DefaultTrainer.auto_scale_workers(cfg, 4) is cfg

    def test_documented_example(self):
        """Eight processes in place of four: batch and rate double, everything counted in iterations halves."""
        cfg = self.config(4)
        cfg.freeze()
        scaled = DefaultTrainer.auto_scale_workers(cfg, 8)
        solver = scaled.SOLVER
        assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (32, 0.2)
        assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (2500, (2000, 2250), 50)
        assert (solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (250, 125)
        assert solver.REFERENCE_WORLD_SIZE == 8
        assert scaled.is_frozen()
        assert cfg == TestAutoScaleWorkers.config(4)

    def test_fewer_processes(self):
        scaled = DefaultTrainer.auto_scale_workers(self.config(4), 1)
        assert not scaled.is_frozen()
        assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR) == (4, 0.025)
        assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.STEPS) == (20000, (16000, 18000))

    def test_indivisible(self):
        with pytest.raises(ValueError, match=r"IMS_PER_BATCH \(16\) must be divisible by .*\(3\)"):
            DefaultTrainer.auto_scale_workers(self.config(3), 1)


NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)


def keep_features(heads, features, proposals):
    heads.features = features
    return type(heads)._forward_box(heads, features, proposals)


def as_the_plain_model(predictor, image):
    """What a predictor gives with the model as it is: hooks keep it from the optimized form."""
    handle = predictor.model.register_forward_hook(lambda *args: None)
    other = predictor.model.backbone.register_forward_hook(lambda *args: None)
    try:
        outputs = predictor(image)
        assert predictor._form.current() is predictor.model
        return outputs
    finally:
        handle.remove()
        other.remove()


def assert_close(found, expected):
    assert len(found) == len(expected) > 0
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.02)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3


@pytest.fixture
def predictor(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    return DefaultPredictor(cfg)


class TestPredictor:
    def test_output_is_in_the_resolution_of_the_image(self, predictor, shapes):
        image = np.full((50, 70, 3), 128, np.uint8)
        instances = predictor(image)["instances"]
        assert instances.image_size == (50, 70)
        assert len(instances) > 0
        assert instances.pred_masks.shape[1:] == (50, 70)
        assert not instances.scores.requires_grad
        assert predictor.metadata is MetadataCatalog.get(shapes)
        assert not predictor.model.training

    @pytest.mark.parametrize("order", ["BGR", "RGB"])
    def test_colour_order(self, cfg, order):
        """Images come as BGR; blue must arrive in the model's own channel for blue."""
        cfg.INPUT.FORMAT = order
        predictor = DefaultPredictor(cfg)
        seen = []
        predictor.model = lambda inputs: seen.extend(inputs) or [{}]
        image = np.zeros((96, 96, 3), np.uint8)
        image[..., 0] = 200
        predictor(image)
        (given,) = seen
        assert given["image"].shape == (3, 96, 96)
        assert given["image"].dtype == torch.float32
        assert (given["height"], given["width"]) == (96, 96)
        assert given["image"][:, 0, 0].tolist() == ([200, 0, 0] if order == "BGR" else [0, 0, 200])

    def test_resized_image_lies_on_the_device(self, cfg):
        predictor = DefaultPredictor(cfg)
        seen = []
        predictor.model = lambda inputs: seen.extend(inputs) or [{}]
        predictor.cfg.MODEL.DEVICE = "meta"  # stands for a GPU
        predictor(np.zeros((50, 100, 3), np.uint8))
        assert seen[0]["image"].device.type == "meta"
        assert seen[0]["image"].shape == (3, 80, 160)  # 96 for the short side would make the long one exceed 160
        assert (seen[0]["height"], seen[0]["width"]) == (50, 100)

    def test_no_resizing(self, cfg):
        cfg.INPUT.MIN_SIZE_TEST = 0
        predictor = DefaultPredictor(cfg)
        seen = []
        predictor.model = lambda inputs: seen.extend(inputs) or [{}]
        predictor(np.zeros((50, 300, 3), np.uint8))
        assert seen[0]["image"].shape == (3, 50, 300)

    def test_no_test_data_set(self, cfg):
        cfg.DATASETS.TEST = ()
        assert DefaultPredictor(cfg).metadata.get("thing_classes") is None

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (None, TypeError, "got NoneType: the file could not be read"),
            ("a.jpg", TypeError, "got str"),
            (["a", "b"], TypeError, "got list: predict on one at a time"),
            (Path("a.jpg"), TypeError, "got PosixPath"),
            (torch.zeros(4, 4, 3), TypeError, r"got Tensor: give image\.numpy\(\)"),
            (np.zeros((4, 4)), ValueError, r"of shape \(H, W, 3\) .*, got \(4, 4\): .*COLOR_GRAY2BGR.*read_image"),
            (np.zeros((4, 4, 1), np.uint8), ValueError, "COLOR_GRAY2BGR"),
            (np.zeros((4, 4, 4), np.uint8), ValueError, r"MODEL\.PIXEL_MEAN.*COLOR_BGRA2BGR"),
            (np.zeros((3, 4, 5), np.uint8), ValueError, r"image\.transpose\(1, 2, 0\)"),
            (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "a batch: predict on one at a time"),
            (np.zeros((0, 4, 3), np.uint8), ValueError, "is empty"),
            (np.zeros((4, 4, 3), bool), TypeError, r"astype\('uint8'\) \* 255"),
            (np.full((4, 4, 3), 65535, np.uint16), ValueError, r"from 65535 to 65535.*image // 257"),
            (np.full((4, 4, 3), np.nan), ValueError, "replace NaN"),
        ],
    )
    def test_wrong_input(self, predictor, image, error, message):
        with pytest.raises(error, match=message):
            predictor(image)

    def test_augmented(self, cfg):
        """Two sizes, each also mirrored, of the model that the predictor has at the time."""
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (64, 96)
        predictor, seen = DefaultPredictor(cfg), []
        predictor.model.mask_format = "rle"
        predictor.model.backbone.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
        instances = predictor(np.zeros((90, 120, 3), np.uint8))["instances"]
        assert len(seen) == 4 * 2  # boxes, then masks
        assert instances.image_size == (90, 120) and instances.has("pred_masks_rle")

    def test_augmented_as_the_plain_model(self, cfg):
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (64, 96)
        predictor = DefaultPredictor(cfg)
        found, expected = predictor(NOISE)["instances"], as_the_plain_model(predictor, NOISE)["instances"]
        assert predictor._form.current() is not predictor.model
        assert_close(found, expected)

    def test_augmentation_that_the_model_cannot_have(self, cfg, caplog):
        retinanet = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
        retinanet.MODEL.DEVICE, retinanet.MODEL.WEIGHTS, retinanet.INPUT.MIN_SIZE_TEST = "cpu", "", 64
        retinanet.TEST.AUG.ENABLED = True
        predictor = DefaultPredictor(retinanet)
        (text,) = [r.getMessage() for r in caplog.records if "TEST.AUG" in r.getMessage()]
        assert "has no effect" in text and "RetinaNet" in text and "set TEST.AUG.ENABLED to False" in text
        assert predictor(np.zeros((64, 64, 3), np.uint8))["instances"].image_size == (64, 64)

    def test_the_optimized_form_runs(self, predictor):
        expected = as_the_plain_model(predictor, NOISE)["instances"]
        found = predictor(NOISE)["instances"]
        assert predictor._form.current() is not predictor.model
        assert_close(found, expected)
        assert torch.equal(as_the_plain_model(predictor, NOISE)["instances"].scores, expected.scores)

    def test_the_model_may_change_or_be_replaced(self, predictor):
        predictor(NOISE)
        predictor.model.roi_heads.box_predictor.test_score_thresh = 1.0
        assert len(predictor(NOISE)["instances"]) == 0
        predictor.model.backbone.register_forward_hook(lambda *args: seen.append(args[0]))
        seen = []
        predictor(NOISE)
        assert seen == [predictor.model.backbone]
        predictor.model = lambda inputs: ["replaced"]
        assert predictor(NOISE) == "replaced"

    def test_subclasses_of_projects(self, predictor):
        """One calls the model itself, one has a constructor of its own, one reads what a patched method keeps."""

        class Own(DefaultPredictor):
            def __init__(self, other):
                self.cfg, self.model, self.aug, self.input_format = other.cfg, other.model, other.aug, "BGR"

        class CallsTheModel(Own):
            def __call__(self, image):
                with torch.no_grad():
                    return self.model([{"image": torch.as_tensor(image.transpose(2, 0, 1).copy()).float()}])[0]

        expected = predictor(NOISE)["instances"]
        assert_close(Own(predictor)(NOISE)["instances"], expected)
        assert_close(CallsTheModel(predictor)(NOISE)["instances"], expected)
        roi_heads = predictor.model.roi_heads
        roi_heads._forward_box = functools.partial(keep_features, roi_heads)
        predictor(NOISE)
        assert set(roi_heads.features) >= {"p2", "p5"}

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies(self, predictor, copied):
        expected = predictor(NOISE)["instances"]
        other = copied(predictor)
        assert_close(other(NOISE)["instances"], expected)
        assert other.model is not predictor.model and other._form.model is other.model
        other.model.roi_heads.box_predictor.test_score_thresh = 1.0
        assert len(other(NOISE)["instances"]) == 0 < len(predictor(NOISE)["instances"])

    def test_settings_that_the_model_does_not_read(self, cfg, caplog):
        cfg.merge_from_list(["MODEL.RETINANET.SCORE_THRESH_TEST", 0.7, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 3])
        DefaultPredictor(cfg)
        (text,) = [r.getMessage() for r in caplog.records if "Nothing reads" in r.getMessage()]
        (line,) = [line for line in text.splitlines() if "RETINANET" in line]
        assert line.strip().startswith("MODEL.RETINANET.SCORE_THRESH_TEST = 0.7; this GeneralizedRCNN reads MODEL.ROI_")

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((4, 4, 3), 0.5), "has values from 0.5 to 0.5, but the model expects 0..255: give image * 255"),
            (np.full((4, 4, 3), -1.0, np.float32), "has values from -1 to -1"),
            (np.full((4, 4, 3), 255.0), None),
            (np.zeros((4, 4, 3)), None),
            (np.full((4, 4, 3), 255), None),
        ],
    )
    def test_doubtful_range(self, predictor, image, message, caplog):
        predictor(image)
        predictor(image)
        found = [r.getMessage() for r in caplog.records if "has values" in r.getMessage()]
        assert len(found) == (message is not None) and all(message in text for text in found)

    def test_model_for_another_range(self, cfg, caplog):
        cfg.MODEL.PIXEL_MEAN = [0.4, 0.4, 0.5]
        DefaultPredictor(cfg)(np.full((4, 4, 3), 0.5))
        assert "has values" not in caplog.text

    @pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
    def test_no_gpu(self, cfg, caplog):
        cfg.MODEL.DEVICE = "cuda:1"
        cfg.freeze()
        predictor = DefaultPredictor(cfg)
        assert predictor.cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.DEVICE == "cuda:1"
        assert "instances" in predictor(np.zeros((64, 64, 3), np.uint8))
        assert caplog.text.count("MODEL.DEVICE is 'cuda:1' but no GPU is available; using the CPU.") == 1

    def test_unknown_colour_order(self, cfg):
        cfg.INPUT.FORMAT = "YUV-BT.601"
        with pytest.raises(ValueError, match=r"INPUT\.FORMAT .*YUV"):
            DefaultPredictor(cfg)

    def test_missing_weights(self, cfg):
        cfg.MODEL.WEIGHTS = "/does/not/exist.pth"
        with pytest.raises(FileNotFoundError, match=r"/does/not/exist\.pth"):
            DefaultPredictor(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_training_without_a_gpu(toy_cfg, capsys):
    toy_cfg.MODEL.DEVICE = "cuda"
    toy_cfg.freeze()
    trainer = ToyTrainer(toy_cfg)
    assert trainer.cfg.MODEL.DEVICE == "cpu" and trainer.cfg.is_frozen()
    assert capsys.readouterr().out.count("no GPU is available; using the CPU.") == 1


class TestUnreadSettings:
    def test_in_training(self, toy_cfg, capsys):
        """Keys of model, data and solver that were not read; tests come later."""
        toy_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, toy_cfg.SOLVER.GAMMA, toy_cfg.TEST.AUG.ENABLED = 3.0, 0.5, True
        toy_cfg.INPUT.MIN_SIZE_TEST, toy_cfg.VIS_PERIOD, toy_cfg.TEST.DETECTIONS_PER_IMAGE = 640, 20, 7
        trainer = ToyTrainer(toy_cfg)
        lines = [x.strip() for x in capsys.readouterr().out.splitlines() if x.startswith("  ")]
        assert lines == ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 3.0"]
        trainer.train()
        assert "\n  TEST.AUG.ENABLED = True\n" in capsys.readouterr().out


class TestSetup:
    def test_yaml_config(self, toy_cfg, tmp_path):
        toy_cfg.SEED = 3
        file = tmp_path / "given.yaml"
        file.write_text("SEED: 3\n")
        default_setup(toy_cfg, argparse.Namespace(config_file=str(file), eval_only=False))
        a = (torch.rand(1).item(), np.random.rand())
        default_setup(toy_cfg, argparse.Namespace())
        assert a == (torch.rand(1).item(), np.random.rand())
        saved = get_cfg()
        saved.merge_from_file(f"{toy_cfg.OUTPUT_DIR}/config.yaml")
        assert yaml.safe_load(saved.dump()) == yaml.safe_load(toy_cfg.dump())
        log = Path(toy_cfg.OUTPUT_DIR, "log.txt").read_text()
        for text in ("Process 0 of 1", "PyTorch", "Command line", "Contents of", "SEED"):
            assert text in log

    def test_lazy_config(self, tmp_path):
        cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 5}})
        default_setup(cfg, argparse.Namespace())
        assert OmegaConf.load(tmp_path / "out" / "config.yaml") == cfg
        a = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(a, torch.rand(1))
        cfg.train.update(seed="x", output_dir=str(tmp_path / "other"))
        with pytest.raises(ValueError, match=r"train\.seed must be a whole number, but is 'x'"):
            default_setup(cfg, argparse.Namespace())
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize(("precision", "expected"), [("", "highest"), ("high", "high")])
    def test_float32_precision(self, toy_cfg, monkeypatch, precision, expected):
        found = ["highest"]
        monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
        toy_cfg.FLOAT32_PRECISION = precision
        default_setup(toy_cfg, argparse.Namespace())
        assert found[-1] == expected
        toy_cfg.FLOAT32_PRECISION = "low"
        with pytest.raises(ValueError, match="FLOAT32_PRECISION must be empty, or one of highest, high, medium"):
            default_setup(toy_cfg, argparse.Namespace())

    @pytest.mark.parametrize(("benchmark", "eval_only", "expected"), [(True, False, True), (True, True, False)])
    def test_cudnn_benchmark(self, toy_cfg, monkeypatch, benchmark, eval_only, expected):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        toy_cfg.CUDNN_BENCHMARK = benchmark
        default_setup(toy_cfg, argparse.Namespace(eval_only=eval_only))
        assert torch.backends.cudnn.benchmark is expected

    def test_without_output_folder(self, toy_cfg, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        toy_cfg.OUTPUT_DIR = ""
        default_setup(toy_cfg, argparse.Namespace())
        assert list(tmp_path.iterdir()) == []


class TestTryGetKey:
    def test_no_keys(self):
        assert _try_get_key(get_cfg(), default=1) == 1

    @pytest.mark.parametrize(
        "cfg",
        [get_cfg(), OmegaConf.create({"SOLVER": {"BASE_LR": 0.001}, "n": None, "SEED": -1})],
        ids=["yaml", "lazy"],
    )
    def test_both_kinds(self, cfg):
        assert _try_get_key(cfg, "solver.lr", "SOLVER.BASE_LR") == 0.001
        assert _try_get_key(cfg, "SEED", "SOLVER.BASE_LR") == -1
        assert _try_get_key(cfg, "SEED.deeper", "n.deeper", "SOLVERS.BASE_LR", default="x") == "x"

    def test_text_is_taken_as_it_is(self):
        cfg = get_cfg()
        cfg.OUTPUT_DIR = "${HOME}/out"
        assert _try_get_key(cfg, "OUTPUT_DIR") == "${HOME}/out"


class TestArgumentParser:
    def test_defaults(self):
        args = default_argument_parser().parse_args([])
        assert vars(args) == {
            "config_file": "",
            "resume": False,
            "eval_only": False,
            "num_gpus": 1,
            "num_machines": 1,
            "machine_rank": 0,
            "dist_url": "auto",
            "opts": [],
        }

    def test_changes_come_last(self):
        args = default_argument_parser().parse_args(
            ["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "SOLVER.BASE_LR", "-1e-3"]
        )
        assert (args.config_file, args.resume, args.num_gpus) == ("a.yaml", True, 2)
        assert args.opts == ["SOLVER.BASE_LR", "-1e-3"]

    def test_epilog(self):
        assert default_argument_parser("my own words").format_help().endswith("my own words\n")
        assert "--num-gpus 8" in default_argument_parser().format_help()


def test_ddp_of_one_process_is_the_model():
    model = Toy()
    assert create_ddp_model(model, broadcast_buffers=False) is model


def test_writers(tmp_path):
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(w) for w in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    for writer in writers:
        writer.close()
    assert (tmp_path / "new").is_dir()


def test_writers_of_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    writers = default_writers(str(tmp_path), 10)
    assert [type(w) for w in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter, ProgressLine]
    for writer in writers:
        writer.close()
