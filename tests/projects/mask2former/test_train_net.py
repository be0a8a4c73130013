"""The training script, the commands, and the configs of the project."""

import runpy

import pytest
import torch

from detectron2.cli import main
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.inference.loading import load_config
from detectron2.modeling import build_model
from detectron2.projects.mask2former import MaskFormerDatasetMapper, MaskFormerTrainer
from detectron2.solver import build_lr_scheduler
from tests.engine.conftest import restore_logging
from tests.projects.mask2former.test_training import config

__all__ = ["restore_logging"]


@pytest.fixture
def yaml_file(datasets, tmp_path):
    """A tiny config in a file, which learns and evaluates instances."""
    cfg = config(datasets, tmp_path / "output", "instances", {"MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False})
    cfg.DATASETS.TEST, cfg.INPUT.MIN_SIZE_TEST = (datasets["instances"],), 64
    path = tmp_path / "tiny.yaml"
    path.write_text(cfg.dump())
    return str(path)


def test_script(repo_root, yaml_file, tmp_path, restore_logging):
    script = runpy.run_path(str(repo_root / "projects/Mask2Former/train_net.py"), run_name="train_net")
    parse = default_argument_parser().parse_args
    trained = script["main"](parse(["--config-file", yaml_file]))
    assert set(trained) == {"bbox", "segm"}
    weights = str(tmp_path / "output/model_final.pth")
    evaluated = script["main"](parse(["--config-file", yaml_file, "--eval-only", "MODEL.WEIGHTS", weights]))
    assert evaluated["segm"]["AP"] == pytest.approx(trained["segm"]["AP"], nan_ok=True)


def test_commands(yaml_file, datasets, tmp_path, restore_logging, monkeypatch, capsys):
    """`train` uses the trainer of the project; `predict` and `eval` find its keys."""
    built = []
    optimizer = MaskFormerTrainer.build_optimizer.__func__
    monkeypatch.setattr(
        MaskFormerTrainer, "build_optimizer", classmethod(lambda cls, *x: built.append(cls) or optimizer(cls, *x))
    )
    assert main(["train", "--config-file", yaml_file, "SOLVER.MAX_ITER", "1"]) == 0
    assert built == [MaskFormerTrainer]
    weights = str(tmp_path / "output/model_final.pth")
    image = DatasetCatalog.get(datasets["instances"])[0]["file_name"]
    assert main(["predict", "--weights", weights, image, "--output", str(tmp_path / "predicted")]) == 0
    assert main(["eval", "--weights", weights, "--output", str(tmp_path / "evaluated")]) == 0
    assert "segm" in capsys.readouterr().out


def test_configs(repo_root):
    """Every file is complete, and its model can be built; the largest in memory is only shapes."""
    folder = repo_root / "projects/Mask2Former/configs"
    files = [path for path in sorted(folder.rglob("*.yaml")) if not path.name.startswith("Base")]
    assert len(files) == 19
    for path in files:
        cfg = load_config(str(path), ["MODEL.WEIGHTS", ""], None, "cpu")
        MaskFormerDatasetMapper(cfg)
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        queries = 200 if "large" in path.name and "coco" in str(path) else 20 if "shapes" in path.name else 100
        assert model.sem_seg_head.predictor.query_feat.num_embeddings == queries
        if "WarmupPoly" not in cfg.SOLVER.LR_SCHEDULER_NAME:
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            assert build_lr_scheduler(cfg, optimizer).get_last_lr()[0] > 0
