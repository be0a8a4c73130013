"""Training: by the script, by the default trainer, and continued."""

import itertools
import runpy

import pytest
import torch

from detectron2 import Predictor
from detectron2.engine import DefaultTrainer, default_argument_parser, hooks
from detectron2.projects.deformable_detr import DeformableTrainer
from detectron2.projects.deformable_detr.training import with_crops
from tests.e2e.conftest import shapes, shapes_dir
from tests.engine.conftest import restore_logging

from .conftest import tiny_config, tiny_model

__all__ = ["restore_logging", "shapes", "shapes_dir"]

KINDS = ["two_stage", "DINO"]


@pytest.fixture
def script(repo_root):
    return runpy.run_path(str(repo_root / "projects/DeformableDETR/train_net.py"), run_name="train_net")


def training_config(kind, data, folder, iterations):
    cfg = tiny_config(kind, "SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2)
    cfg.merge_from_list(["DATASETS.TRAIN", (data,), "DATASETS.TEST", (data,), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.BASE_LR", 0.001])
    cfg.merge_from_list(["MODEL.DEFORMABLE_DETR.NUM_CLASSES", 6, "SOLVER.OPTIMIZER", "AdamW", "SEED", 3])
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def test_script(script, shapes, tmp_path, restore_logging):
    def call(*arguments):
        (tmp_path / "tiny.yaml").write_text(training_config("refined", shapes, tmp_path / "output", 2).dump())
        argv = ["--config-file", str(tmp_path / "tiny.yaml"), *arguments]
        return script["main"](default_argument_parser().parse_args(argv))

    trained = call()
    evaluated = call("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"))
    assert set(trained) == {"bbox"}
    assert evaluated["bbox"]["AP"] == pytest.approx(trained["bbox"]["AP"], nan_ok=True)


def test_augmentations():
    cfg = tiny_config("plain", "INPUT.MIN_SIZE_TRAIN", (480, 800))
    first, *others = with_crops(cfg)
    resize, crop = first.aug.augs
    assert first.prob == 0.5 and list(resize.short_edge_length) == [400, 500, 600] and crop.crop_size == (384, 600)
    assert [type(x).__name__ for x in others] == ["ResizeShortestEdge", "RandomFlip"]


def test_learning_rates():
    cfg = tiny_config("plain", "SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 1.0, "SOLVER.BACKBONE_LR_FACTOR", 0.5)
    model = tiny_model()
    optimizer = DeformableTrainer.build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slow = any(x in name for x in ("sampling_offsets", "reference_points"))
            assert rates[id(parameter)] == (0.5 if name.startswith("backbone") else 0.1 if slow else 1.0), name
    del cfg.SOLVER["OPTIMIZER"]
    with pytest.raises(ValueError, match='must be "AdamW" for these models, but is not set'):
        DeformableTrainer.build_optimizer(cfg, model)
    cfg.SOLVER.OPTIMIZER = "SGD"
    with pytest.raises(ValueError, match="must be \"AdamW\" for these models, but is 'SGD'"):
        DeformableTrainer.build_optimizer(cfg, model)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_is_the_same_bit_for_bit(kind, shapes, tmp_path, restore_logging):
    """With dropout and a moving average of the weights."""
    cfg = training_config(kind, shapes, tmp_path, 4)
    cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.5, "SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.DEFORMABLE_DETR.DROPOUT", 0.1])
    cfg.DATASETS.TEST = ()

    def run(name, stop_at=None):
        cfg.OUTPUT_DIR = str(tmp_path / name)
        torch.manual_seed(0)
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()
        trainer.data_loader = list(itertools.islice(batches, trainer.start_iter, stop_at))
        trainer.register_hooks([hooks.CallbackHook(before_step=lambda t: torch.manual_seed(t.iter))])
        if stop_at is None:
            trainer.train()
        else:
            with pytest.raises(StopIteration):  # as if the machine had gone away
                trainer.train()
        return trainer

    batches = list(itertools.islice(DefaultTrainer.build_train_loader(cfg), 4))
    whole = run("whole")
    run("parts", stop_at=2)
    second = run("parts")
    assert second.start_iter == 2
    for name in ("model_final.pth", "model_final_ema.pth"):
        one, other = (torch.load(tmp_path / run / name, weights_only=False)["model"] for run in ("whole", "parts"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    assert whole.scheduler.get_last_lr() == second.scheduler.get_last_lr()
    # The checkpoint brings its keys along.
    predictor = Predictor(str(tmp_path / "whole" / "model_final.pth"), score_threshold=0.0)
    assert len(predictor(batches[0][0]["image"].permute(1, 2, 0).numpy()).instances) > 0
