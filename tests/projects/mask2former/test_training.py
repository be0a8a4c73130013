"""Training: the optimizer, a few iterations of each task, and continuing as if nothing had happened."""

import pytest
import torch

from detectron2.data import DatasetCatalog, DatasetError
from detectron2.projects.deeplab import WarmupPolyLR
from detectron2.projects.mask2former import MaskFormerTrainer
from tests.projects.mask2former.models import tiny_config, tiny_model

TASKS = {
    "instances": ("coco_instance_lsj", 6, "INSTANCE_ON"),
    "semantic": ("mask_former_semantic", 4, "SEMANTIC_ON"),
    "panoptic": ("mask_former_panoptic", 4, "PANOPTIC_ON"),
}


def config(datasets, folder, task, changes=()):
    mapper, classes, result = TASKS[task]
    return tiny_config(
        {
            "DATASETS.TRAIN": (datasets[task],),
            "DATASETS.TEST": (),
            "DATALOADER.NUM_WORKERS": 0,
            "INPUT.DATASET_MAPPER_NAME": mapper,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.IMAGE_SIZE": 64,
            "INPUT.MIN_SCALE": 0.5,
            "INPUT.MAX_SCALE": 1.0,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
            f"MODEL.MASK_FORMER.TEST.{result}": True,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "SOLVER.STEPS": (),
            "SOLVER.CHECKPOINT_PERIOD": 1,
            "SOLVER.CLIP_GRADIENTS.ENABLED": True,
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
            "SOLVER.BASE_LR": 0.01,
            "SEED": 1,
            "OUTPUT_DIR": str(folder),
            **dict(changes),
        }
    )


@pytest.mark.parametrize("task", TASKS)
def test_trains_and_continues_bit_by_bit(datasets, tmp_path, task):
    """With a moving average of the weights, and the polynomial schedule."""
    changes = {"SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR"} if task == "semantic" else {}
    cfg = config(datasets, tmp_path, task, changes)
    cfg.SOLVER.EMA_DECAY = 0.5
    torch.manual_seed(0)
    trainer = MaskFormerTrainer(cfg)
    assert isinstance(trainer.scheduler, WarmupPolyLR) == (task == "semantic")
    before = {name: x.clone() for name, x in trainer.model.named_parameters()}
    trainer.train()
    want = trainer.model.state_dict()
    assert all(x.isfinite().all() for x in want.values() if x.is_floating_point())
    assert sum(not torch.equal(x, want[name]) for name, x in before.items()) > 0.9 * len(before)
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    torch.manual_seed(99)
    again = MaskFormerTrainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert again.start_iter == 1
    assert all(torch.equal(x, want[name]) for name, x in again.model.state_dict().items())


def test_optimizer():
    model = tiny_model({"MODEL.SWIN.APE": True})
    cfg = tiny_config({"SOLVER.BASE_LR": 0.5, "SOLVER.WEIGHT_DECAY": 0.25, "SOLVER.BACKBONE_MULTIPLIER": 0.5})
    optimizer = MaskFormerTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: settings[id(p)] for name, p in model.named_parameters()}
    assert len(optimizer.param_groups) == 4
    assert found["backbone.patch_embed.proj.weight"] == (0.25, 0.25)
    for name in ("absolute_pos_embed", "norm0.weight", "layers.0.blocks.0.attn.relative_position_bias_table"):
        assert found[f"backbone.{name}"] == (0.25, 0.0)
    for name in ("predictor.query_feat.weight", "predictor.level_embed.weight", "predictor.decoder_norm.bias"):
        assert found[f"sem_seg_head.{name}"] == (0.5, 0.0)
    assert found["sem_seg_head.pixel_decoder.transformer.level_embed"] == (0.5, 0.25)  # as published
    assert found["sem_seg_head.predictor.class_embed.bias"] == (0.5, 0.25)
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert isinstance(MaskFormerTrainer.build_optimizer(cfg, model), torch.optim.SGD)
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER must be one of \['ADAMW', 'SGD'\], but is 'LION'"):
        MaskFormerTrainer.build_optimizer(cfg, model)


def test_boxes_alone_are_refused_before_training(datasets, tmp_path):
    records = [
        {**record, "annotations": [{k: v for k, v in a.items() if k != "segmentation"} for a in record["annotations"]]}
        for record in DatasetCatalog.get(datasets["instances"])
    ]
    DatasetCatalog.register("mask2former_boxes", lambda: records)
    try:
        with pytest.raises(DatasetError, match=r"no 'segmentation', while the model learns masks"):
            MaskFormerTrainer(config({**datasets, "instances": "mask2former_boxes"}, tmp_path, "instances"))
    finally:
        DatasetCatalog.remove("mask2former_boxes")


def test_classes_are_counted_before_training(datasets, tmp_path):
    few = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5}
    with pytest.raises(DatasetError, match=r"Set MODEL\.SEM_SEG_HEAD\.NUM_CLASSES to 6"):
        MaskFormerTrainer(config(datasets, tmp_path, "instances", few))
