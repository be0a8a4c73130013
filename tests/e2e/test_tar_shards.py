"""Training from tar shards by two processes, of which one is killed in the midst of an epoch."""

import os
import signal

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances, register_sharded_dataset
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.data.formats.tar_shards import write_shards
from detectron2.data.samplers import ShardedTrainingSampler
from detectron2.engine import DefaultTrainer, hooks, launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config

IMAGES, SHARD, BATCH, ITERATIONS = 14, 3, 4, 5  # an epoch is three steps and a half


class Note(hooks.HookBase):
    """Writes which images each step has, and kills a process."""

    def __init__(self, folder, kill):
        self.folder, self.kill = folder, kill

    def before_step(self):
        if self.kill and self.trainer.iter == 3 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self):
        with open(f"{self.folder}/images_{comm.get_rank()}.txt", "a") as file:
            file.write("".join(f"{image}\n" for image in self.trainer.seen))


def train(folder, seed, kill):
    register_sharded_dataset("tar_shards_e2e", os.path.join(os.path.dirname(folder), "tars"))
    cfg = _tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tar_shards_e2e",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 48)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = BATCH, ITERATIONS, 2
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.NUM_WORKERS = "ShardedTrainingSampler", 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.merge_from_list(["DATALOADER.SHARD_WINDOW", 2, "OUTPUT_DIR", folder])
    seed_all_rng(seed)
    trainer = DefaultTrainer(cfg)
    assert isinstance(trainer.data_loader.dataset.sampler, ShardedTrainingSampler)
    trainer.resume_or_load()
    run = trainer._trainer.model.forward

    def forward(inputs):
        trainer.seen = [x["image_id"] for x in inputs]
        return run(inputs)

    trainer._trainer.model.forward = forward
    trainer.register_hooks([Note(folder, kill)])
    trainer.train()


def images_of(folder):
    return [[int(line) for line in (folder / f"images_{rank}.txt").read_text().split()] for rank in (0, 1)]


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    file = generate_shapes_dataset(tmp_path, IMAGES, size_hw=(32, 48), max_objects=3, seed=4)
    register_coco_instances("tar_shards_single", {}, file, tmp_path / "images")
    write_shards(
        DatasetCatalog.get("tar_shards_single"), {"thing_classes": list("abcdef")}, tmp_path / "tars", shard_size=SHARD
    )
    DatasetCatalog.remove("tar_shards_single")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    launch(train, 2, args=(str(tmp_path / "whole"), 0, False))
    with pytest.raises(Exception, match="SIGKILL"):
        launch(train, 2, args=(str(tmp_path / "parts"), 0, True))
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000001.pth"
    before = [images[:BATCH] for images in images_of(tmp_path / "parts")]
    for rank in (0, 1):
        (tmp_path / "parts" / f"images_{rank}.txt").unlink()
    launch(train, 2, args=(str(tmp_path / "parts"), 99, False))
    whole = images_of(tmp_path / "whole")
    assert [a + b for a, b in zip(before, images_of(tmp_path / "parts"), strict=True)] == whole
    assert sorted(whole[0][: IMAGES // 2] + whole[1][: IMAGES // 2]) == list(range(1, IMAGES + 1))
    states = [
        DetectionCheckpointer(torch.nn.Identity())._read(str(tmp_path / name / "model_final.pth"))
        for name in ("whole", "parts")
    ]
    assert states[0]["model"].keys() == states[1]["model"].keys()
    assert all(torch.equal(states[0]["model"][key], value) for key, value in states[1]["model"].items())
    assert states[0]["trainer"]["_trainer"]["data_loader"] == states[1]["trainer"]["_trainer"]["data_loader"]
