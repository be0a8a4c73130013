#!/usr/bin/env python
"""Train with PyTorch Lightning in place of our own loop; needs "pip install lightning".

python tools/lightning_train_net.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --num-gpus 8
python tools/lightning_train_net.py --config-file configs/... --eval-only MODEL.WEIGHTS /path/to/checkpoint

An example of using model, data, optimizer and evaluators in another framework. Lightning's own checkpoints lie in the
output folder, beside model_final.pth in our format.
"""

import argparse
import logging
import os
from collections import OrderedDict
from typing import Any

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import default_argument_parser, default_setup, default_writers
from detectron2.evaluation import build_evaluator, print_csv_format
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

logger = logging.getLogger("detectron2")

LOG_PERIOD = 20


def import_lightning() -> Any:
    """Import the package, which is not among our dependencies."""
    try:
        import lightning.pytorch as lightning
    except ImportError as e:
        raise ImportError("This script needs PyTorch Lightning: pip install lightning") from e
    return lightning


def make_training_module(cfg: CfgNode) -> Any:
    """Make a LightningModule: model, losses, optimizer, evaluation."""
    lightning = import_lightning()

    class TrainingModule(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model(cfg)
            self.storage: EventStorage | None = None
            self.writers: list[Any] = []
            self.evaluators: list[Any] = []
            self.results: OrderedDict[str, Any] = OrderedDict()

        def configure_optimizers(self) -> Any:
            optimizer = build_optimizer(cfg, self.model)
            schedule = build_lr_scheduler(cfg, optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_start(self) -> None:
            self.storage = EventStorage(self.global_step)
            if self.trainer.is_global_zero:
                self.writers = default_writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            assert self.storage is not None, "on_train_start() comes first"
            self.storage.iter = self.global_step
            with self.storage:
                losses = self.model(batch)
                total = sum(losses.values())
                assert isinstance(total, torch.Tensor), "the model returned no losses"
                self.storage.put_scalars(total_loss=total, **losses)
                self.storage.put_scalar("lr", self.optimizers().param_groups[0]["lr"], smoothing_hint=False)
                if (self.global_step + 1) % LOG_PERIOD == 0:
                    for writer in self.writers:
                        writer.write()
            return total

        def on_train_end(self) -> None:
            assert self.storage is not None, "on_train_start() comes first"
            self.storage.iter = self.global_step
            with self.storage:
                for writer in self.writers:
                    writer.write()
                    writer.close()
            DetectionCheckpointer(self.model, cfg.OUTPUT_DIR, save_to_disk=self.trainer.is_global_zero).save(
                "model_final"
            )

        def on_validation_epoch_start(self) -> None:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            self.evaluators = [build_evaluator(name, folder, cfg=cfg) for name in cfg.DATASETS.TEST]
            for evaluator in self.evaluators:
                evaluator.reset()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.evaluators[dataloader_idx].process(batch, self.model(batch))

        def on_validation_epoch_end(self) -> None:
            for name, evaluator in zip(cfg.DATASETS.TEST, self.evaluators, strict=True):
                self.results[name] = evaluator.evaluate() or {}
                if comm.is_main_process():
                    print_csv_format(self.results[name])

    return TrainingModule()


def make_data_module(cfg: CfgNode) -> Any:
    """Make a LightningDataModule: the loaders of the config."""
    lightning = import_lightning()

    class DataModule(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return build_detection_train_loader(cfg)

        def val_dataloader(self) -> list[Any]:
            return [build_detection_test_loader(cfg, name) for name in cfg.DATASETS.TEST]

    return DataModule()


def train(cfg: CfgNode, args: argparse.Namespace) -> "OrderedDict[str, Any]":
    """Train, or only evaluate, and return results by data set."""
    lightning = import_lightning()
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    period = cfg.TEST.EVAL_PERIOD if 0 < cfg.TEST.EVAL_PERIOD < cfg.SOLVER.MAX_ITER else cfg.SOLVER.MAX_ITER
    trainer = lightning.Trainer(
        max_epochs=None,  # the loader is endless: iterations count
        max_steps=cfg.SOLVER.MAX_ITER,
        val_check_interval=period,
        num_nodes=args.num_machines,
        accelerator="gpu" if on_gpu else "cpu",
        devices=args.num_gpus if on_gpu else 1,
        strategy="ddp" if on_gpu and args.num_gpus * args.num_machines > 1 else "auto",
        precision="16-mixed" if cfg.SOLVER.AMP.ENABLED else "32-true",
        callbacks=[
            lightning.callbacks.ModelCheckpoint(
                dirpath=cfg.OUTPUT_DIR, save_last=True, every_n_train_steps=cfg.SOLVER.CHECKPOINT_PERIOD
            )
        ],
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our samplers give every process its share
        default_root_dir=cfg.OUTPUT_DIR,
    )
    module, data = make_training_module(cfg), make_data_module(cfg)
    last = os.path.join(cfg.OUTPUT_DIR, "last.ckpt")
    if args.eval_only:
        DetectionCheckpointer(module.model).load_for_inference(cfg.MODEL.WEIGHTS)
        trainer.validate(module, datamodule=data)
    elif args.resume and os.path.exists(last):
        trainer.fit(module, datamodule=data, ckpt_path=last)
        if not module.results:  # no step was left
            trainer.validate(module, datamodule=data)
    else:
        DetectionCheckpointer(module.model).load(cfg.MODEL.WEIGHTS)
        trainer.fit(module, datamodule=data)
    return module.results


def main(args: argparse.Namespace) -> "OrderedDict[str, Any]":
    """Read the config, then train."""
    import_lightning()  # said before anything else is prepared
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return train(cfg, args)


if __name__ == "__main__":
    parser = default_argument_parser()
    arguments = parser.parse_args()
    if not arguments.config_file:
        parser.error("--config-file is needed")
    main(arguments)
