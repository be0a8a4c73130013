"""Checkpoints that trainers save say everything that using their weights takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler

from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.engine import DefaultPredictor, DefaultTrainer, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.env import seed_all_rng
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]
pytestmark = pytest.mark.usefixtures("restore_logging")

OPTIONS = [
    "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2, "SOLVER.EMA_DECAY", 0.5,
    "TEST.BEST_METRIC", "validation/total_loss", "TEST.BEST_MODE", "min", "TEST.VALIDATION_LOSS_PERIOD", 2,
]  # fmt: skip


def evaluated(values):
    """Return a stand-in for the evaluation, with these results one after the other."""
    results = iter(values)
    return classmethod(lambda cls, cfg, model, evaluators=None: next(results))


RESULTS = [{"bbox": {"AP": 1.0, "APs": float("nan")}}, {"bbox": {"AP": 2.0}}]


@pytest.fixture
def train(cfg, monkeypatch):
    """A function that trains with four iterations and two evaluations and returns the folder of the run."""

    def run(*options, results=RESULTS):
        monkeypatch.setattr(DefaultTrainer, "test", evaluated(results))
        cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN = "RGB", [1.0, 2.0, 3.0]
        cfg.merge_from_list([*OPTIONS, *options])
        seed_all_rng(0)
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()
        trainer.train()
        return Path(cfg.OUTPUT_DIR)

    return run


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_every_checkpoint(train, cfg, kind, monkeypatch, shapes_dir):
    folder = train("SOLVER.CHECKPOINT_FORMAT", kind)
    found = {p.stem: read_description(str(p)) for p in folder.glob(f"*.{kind}")}
    assert set(found) == {"model_0000001", "model_0000003", "model_final", "model_final_ema", "model_best"}
    loss = json.loads((folder / "model_best_history.json").read_text())["values"]
    for name, description in found.items():
        assert description.metadata == {"thing_classes": list(SHAPE_CLASSES)}
        assert (description.image_format, description.pixel_mean) == ("RGB", [1.0, 2.0, 3.0])
        assert description.pixel_std == [57.0, 57.0, 57.0]
        assert description.versions["torch"] == torch.__version__
        assert description.is_average == (name in ("model_final_ema", "model_best"))
        expected = cfg.clone()
        expected.OUTPUT_DIR = "./output"
        assert description.load_config().dump() == expected.dump()
    best = min(loss, key=lambda pair: pair[1])[0]
    assert [found[name].iteration for name in sorted(found)] == [1, 3, best, 3, 3]
    assert (found["model_0000001"].metrics, found["model_0000001"].metrics_iteration) == ({}, None)
    # Saved before the evaluation of its iteration: it has what was known then.
    metrics = found["model_0000003"].metrics
    assert metrics["bbox/AP"] == 1.0 and "bbox/APs" not in metrics and found["model_0000003"].metrics_iteration == 1
    for name in ("model_final", "model_final_ema"):
        assert found[name].metrics["bbox/AP"] == 2.0 and found[name].metrics_iteration == 3
        assert found[name].metrics["validation/total_loss"] == pytest.approx(loss[1][1])
        assert found[name].metrics_of_average
    _predicts_without_anything_else(folder / f"model_best.{kind}", monkeypatch, shapes_dir)


def _predicts_without_anything_else(path, monkeypatch, shapes_dir):
    for name in ("e2e_shapes",):
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
    cfg = read_description(str(path)).load_config()
    cfg.MODEL.WEIGHTS = str(path)
    predictor = DefaultPredictor(cfg)
    assert predictor.metadata.thing_classes == list(SHAPE_CLASSES) and predictor.input_format == "RGB"
    instances = predictor(np.zeros((40, 50, 3), np.uint8))["instances"]
    assert instances.image_size == (40, 50)
    assert "e2e_shapes" not in DatasetCatalog


def test_published_code_can_read_it(train):
    content = torch.load(train() / "model_final.pth", weights_only=True)
    assert content.keys() == {"model", "trainer", "description", "iteration"}
    assert content["iteration"] == content["trainer"]["iteration"] == 3

    def check(value):
        assert value is None or type(value) in (dict, list, str, int, float, bool), value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part)

    check(content["description"])


def test_the_last_checkpoint_is_otherwise_untouched(train, monkeypatch):
    """Writing the last results into it changes nothing else."""
    monkeypatch.setattr(DetectionCheckpointer, "describe_again", lambda self, name, **changes: None)
    before = train()
    one = torch.load(before / "model_final.pth", weights_only=True)
    monkeypatch.undo()
    last = before / "model_0000003.pth"
    two = torch.load(last, weights_only=True)
    assert one["description"] == two["description"]
    checkpointer = DetectionCheckpointer(torch.nn.Identity(), str(before))
    checkpointer.describe = lambda: {"new": 1}
    checkpointer.describe_again("model_final")
    three = torch.load(before / "model_final.pth", weights_only=True)
    assert three.pop("description") == {"new": 1}
    one.pop("description")
    assert three.keys() == one.keys() and three["model"].keys() == one["model"].keys()
    assert all(torch.equal(three["model"][k], v) for k, v in one["model"].items())
    assert three["model"]._metadata == one["model"]._metadata
    assert repr(three["trainer"]) == repr(one["trainer"])


def test_the_last_checkpoint_cannot_be_written_again(train, monkeypatch, capsys):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("detectron2.checkpoint.detection_checkpoint.describe_again", fail)
    description = read_description(str(train() / "model_final.pth"))
    assert description.metrics_iteration == 1
    assert "could not be written into model_final" in capsys.readouterr().out


def test_results_from_before_a_resume_are_kept(train, cfg):
    folder = train()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    train("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 0, "TEST.VALIDATION_LOSS_PERIOD", 0, "TEST.BEST_METRIC", "",
          results=[None, None])  # fmt: skip
    for name in ("model_0000005", "model_final"):
        description = read_description(str(folder / f"{name}.pth"))
        assert (description.iteration, description.metrics_iteration) == (5, 1)
        assert description.metrics["bbox/AP"] == 1.0


def test_a_trainer_that_is_put_together_otherwise(cfg):
    """Projects write a constructor of their own, which knows nothing of descriptions."""

    class Own(DefaultTrainer):
        def __init__(self, cfg):
            from detectron2.engine import SimpleTrainer, TrainerBase

            TrainerBase.__init__(self)
            model = build_model(cfg)
            optimizer = build_optimizer(cfg, model)
            self._trainer = SimpleTrainer(model, self.build_train_loader(cfg), optimizer)
            self.scheduler = self.build_lr_scheduler(cfg, optimizer)
            self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer)
            self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
            self.register_hooks([hooks.PeriodicCheckpointer(self.checkpointer, 1)])

    Own(cfg).train()
    description = read_description(f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert description.iteration == 1 and description.metadata["thing_classes"] == list(SHAPE_CLASSES)


def test_a_checkpointer_of_another_kind(cfg):
    from fvcore.common.checkpoint import Checkpointer

    class Own(DefaultTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.checkpointer = Checkpointer(self.model, cfg.OUTPUT_DIR)
            self._hooks = []
            self.register_hooks([hooks.PeriodicCheckpointer(self.checkpointer, 1)])

    Own(cfg).train()
    assert read_description(f"{cfg.OUTPUT_DIR}/model_final.pth") is None


def test_lazy(shapes, tmp_path):
    from detectron2.config import LazyCall as L
    from detectron2.config import LazyConfig, instantiate
    from detectron2.config.trusted_calls import refuse_foreign_calls
    from detectron2.engine import lazy_train
    from tests.cli.conftest import LAZY

    (tmp_path / "config.py").write_text(LAZY.replace("cli_shapes", shapes))
    config = LazyConfig.load(str(tmp_path / "config.py"))
    config.lr_multiplier = L(ConstantParamScheduler)(value=1.0)
    config.train.update(output_dir=str(tmp_path / "out"), device="cpu", max_iter=1, ema_decay=0.5)
    config.train.try_evaluator = False
    lazy_train(config)
    for name in ("model_final", "model_final_ema"):
        path = str(tmp_path / "out" / f"{name}.pth")
        description = read_description(path)
        assert (description.config_kind, description.image_format, description.iteration) == ("lazy", "BGR", 0)
        assert description.metadata == {"thing_classes": list(SHAPE_CLASSES)}
        assert description.is_average == (name == "model_final_ema")
        assert any(key.startswith("bbox/") for key in description.metrics) or description.metrics == {}
        assert description.metrics_iteration == (0 if description.metrics else None)
        loaded = description.load_config()
        assert loaded.train.output_dir == "./output" and str(tmp_path) not in description.config
        refuse_foreign_calls(loaded.model, path)
        DetectionCheckpointer(instantiate(loaded.model)).load_for_inference(path)
    assert config.train.output_dir == str(tmp_path / "out")


def test_plain_loops_can_describe_as_well(tmp_path):
    model = torch.nn.Linear(1, 1)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.describe = lambda: {"config": CfgNode({"SEED": 5}).dump()}
    checkpointer.save("a")
    assert read_description(str(tmp_path / "a.pth")).load_config().SEED == 5
