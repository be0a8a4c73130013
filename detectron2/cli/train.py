"""`detectron2 train`: train the model of a config.

detectron2 train --config-file configs/VOC-BCCD/faster_rcnn_R_18_FPN_scratch.yaml \\
    --voc bccd_train data/bccd trainval --voc bccd_test data/bccd test --classes RBC,WBC,Platelets
"""

import argparse
import itertools
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.cli.common import (
    chosen_device,
    register_datasets,
    require_registered,
    require_weights,
    save_metadata,
)
from detectron2.config import CfgNode
from detectron2.config.lazy_text import load_lazy_yaml
from detectron2.config.project_keys import PROJECT_TRAINERS
from detectron2.engine import DefaultTrainer, default_setup, launch, lazy_train
from detectron2.engine.auto_batch import set_largest_batch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.engine.run_folder import earlier_results, is_restarted, other_training
from detectron2.inference.loading import dataset_names, find_config_file, load_config
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.registry import locate

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Train, in one process or many."""
    launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        timeout=DEFAULT_TIMEOUT,
    )
    return 0


def _folder(cfg: Any) -> str:
    return cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir


def _check_folder(cfg: Any, args: argparse.Namespace, resumes: bool) -> None:
    """Raise where another training runs in the output folder or has left results there, or weights are missing."""
    folder = _folder(cfg)
    if text := other_training(folder):
        raise ValueError(text)
    if not (resumes and os.path.isfile(os.path.join(folder, "last_checkpoint"))):
        require_weights(cfg, is_needed=False)
    found = earlier_results(folder)
    if resumes or not found:
        return
    if args.overwrite:  # what is resumed next is this training
        Path(folder, "last_checkpoint").unlink(missing_ok=True)
        return
    free = next(name for i in itertools.count(2) if not os.path.exists(name := f"{folder.rstrip('/')}_{i}"))
    raise ValueError(
        f"{folder} holds the results of an earlier training ({', '.join(found)}). To continue it, add --resume. To "
        "train anew in the same folder, add --overwrite: checkpoints of the same names are replaced, earlier metrics "
        f"are kept aside. To keep all of it, write elsewhere: --output {shlex.quote(free)}"
    )


def _chosen_batch(cfg: Any, args: argparse.Namespace) -> str:
    """Set the batch of `--auto-batch`; return what was chosen."""
    if args.scale_lr and not args.auto_batch:
        raise ValueError("--scale-lr scales the learning rate with the batch that --auto-batch finds: give both.")
    if not args.auto_batch:
        return ""
    if args.resume:
        raise ValueError("--auto-batch changes the batch, which a training that is continued must keep: leave it out.")
    if is_restarted(_folder(cfg)):
        return _same_batch(cfg)
    return set_largest_batch(cfg, args.scale_lr, trainer_of(cfg) if isinstance(cfg, CfgNode) else DefaultTrainer)


def _same_batch(cfg: CfgNode) -> str:
    """Set the batch that `--auto-batch` chose when this training was started; return what it was."""
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    text = Path(path).read_text(encoding="utf-8") if comm.is_main_process() else ""
    chosen = load_lazy_yaml(comm.all_gather(text)[0], path)["SOLVER"]
    keys = ("IMS_PER_BATCH", "REFERENCE_WORLD_SIZE", "BASE_LR")
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SOLVER.update({key: chosen[key] for key in keys})
    if was_frozen:
        cfg.freeze()
    return f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, as when this training was started."


def trainer_of(cfg: CfgNode) -> type[DefaultTrainer]:
    """The trainer that suits a model: of a project of this library its own."""
    name = cfg.MODEL.META_ARCHITECTURE
    is_ours = name in PROJECT_TRAINERS and META_ARCH_REGISTRY.get(name).__module__.startswith("detectron2.projects.")
    return locate(PROJECT_TRAINERS[name]) if is_ours else DefaultTrainer


def train(args: argparse.Namespace) -> None:
    """Body of each process."""
    register_datasets(args)
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts, args.output, chosen_device(args))
    require_registered(dataset_names(cfg, "train") + dataset_names(cfg, "test"))
    resumes = args.resume or is_restarted(_folder(cfg))
    if comm.is_main_process():
        _check_folder(cfg, args, resumes)
    batch = _chosen_batch(cfg, args)
    default_setup(cfg, args)
    if batch:
        logger.info(batch)
    if isinstance(cfg, CfgNode):
        trainer = trainer_of(cfg)(cfg)
        trainer.resume_or_load(resume=args.resume)
        save_metadata(cfg)  # after the trainer has loaded the data, and the weights, whose order of classes holds
        trainer.train()
    else:
        save_metadata(cfg)
        lazy_train(cfg, resume=args.resume)
