"""`detectron2 train`: train the model of a config.

detectron2 train --config-file configs/VOC-BCCD/faster_rcnn_R_18_FPN_scratch.yaml \\
    --voc bccd_train data/bccd trainval --voc bccd_test data/bccd test --classes RBC,WBC,Platelets
"""

import argparse

from detectron2.cli.common import (
    add_config_arguments,
    add_dataset_arguments,
    dataset_names,
    find_config_file,
    load_config,
    register_datasets,
    save_metadata,
)
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, default_setup, launch, lazy_train
from detectron2.engine.launch import DEFAULT_TIMEOUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `detectron2 train`."""
    add_config_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="output folder; default: the one of the config")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on each machine, one GPU each")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="which machine this is, from 0")
    parser.add_argument("--dist-url", default="auto", help="where processes meet: tcp://MACHINE0:PORT")


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


def train(args: argparse.Namespace) -> None:
    """Body of each process."""
    register_datasets(args)
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts, args.output)
    default_setup(cfg, args)
    if isinstance(cfg, CfgNode):
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        save_metadata(cfg)  # after the trainer has loaded the data, and the weights, whose order of classes holds
        trainer.train()
    else:
        save_metadata(cfg)
        for name in dataset_names(cfg, "test"):
            if name not in DatasetCatalog:
                DatasetCatalog.get(name)  # raises now, not when training is over
        lazy_train(cfg, resume=args.resume)
