"""Checkpointers of trainings; `tests/e2e/test_self_description.py` has the descriptions of whole runs."""

from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine.checkpointing import build_checkpointer, yaml_config
from detectron2.engine.options import TrainOptions


class Trainer:
    def state_dict(self):
        return {}


def test_checkpointer_of_a_whole_model(tmp_path):
    found = build_checkpointer(nn.Linear(1, 1), str(tmp_path), TrainOptions(), Trainer())
    assert type(found) is DetectionCheckpointer and found.file_format == "pth"
    assert list(found.checkpointables) == ["trainer"]


def test_config_text_does_not_have_the_folder(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    text, kind = yaml_config(cfg)
    assert kind == "yaml" and "OUTPUT_DIR: ./output" in text and str(tmp_path) not in text
    assert str(tmp_path) == cfg.OUTPUT_DIR
