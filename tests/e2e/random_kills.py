"""Kill trainings at random moments, also in the final evaluation, and complete each by resuming.

python -m tests.e2e.random_kills --kills 100

Every completed training must have the weights of one that nobody killed, bit for bit. Both kinds of config, with and
without groups of one aspect ratio, with two workers, bfloat16, a moving average and accumulated gradients. Not part of
the test suite: a kill takes some seconds.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.engine import DefaultTrainer, lazy_train
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config

ITERATIONS = 8


def config(grouping: bool):
    """Return a tiny config with everything that has a state."""
    cfg = _tiny_config()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("kills",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 2, grouping
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.AMP.ENABLED = ITERATIONS, 2, True
    cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.9, "SOLVER.ACCUMULATION_STEPS", 2, "SEED", 7])
    return cfg


def train(folder: str, is_lazy: bool, grouping: bool, seed: int) -> None:
    """Train, or go on, in this process."""
    os.setpgrp()
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    torch.set_num_threads(1)
    cfg = config(grouping)
    cfg.OUTPUT_DIR = folder
    seed_all_rng(seed)
    if not is_lazy:
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()
        trainer.train()
        return
    from fvcore.common.param_scheduler import MultiStepParamScheduler

    from detectron2 import model_zoo

    lazy = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    lazy.model = L(DefaultTrainer.build_model)(cfg=cfg)
    lazy.optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.001, momentum=0.9)
    lazy.lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.5], milestones=[4, ITERATIONS])
    lazy.dataloader = {
        "train": L(DefaultTrainer.build_train_loader)(cfg=cfg),
        "test": L(DefaultTrainer.build_test_loader)(cfg=cfg, dataset_name="kills"),
        "evaluator": L(COCOEvaluator)(dataset_name="kills"),
    }
    lazy.train.output_dir, lazy.train.device, lazy.train.max_iter = folder, "cpu", ITERATIONS
    lazy.train.amp.enabled, lazy.train.ema_decay, lazy.train.accumulation_steps = True, 0.9, 2
    lazy.train.checkpointer.period, lazy.train.eval_period = 2, 0
    lazy_train(lazy, resume=True)


def start(*arguments) -> multiprocessing.Process:
    """Return the process that trains."""
    process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    process.start()
    return process


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the final weights, and their average."""
    names = ("model_final", "model_final_ema")
    models = {name: torch.load(folder / f"{name}.pth", weights_only=True)["model"] for name in names}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.items()}


def main() -> int:
    """Kill, resume, compare, and return 1 if some training could not be completed or has other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many trainings to kill")
    parser.add_argument("--seconds", type=float, default=3000, help="end after this time in any case")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--grouping", choices=("on", "off", "both"), default="both", help="by aspect ratio")
    args = parser.parse_args()
    rng, begin = random.Random(args.seed), time.monotonic()
    groupings = {"on": (True,), "off": (False,), "both": (True, False)}[args.grouping]
    kills = completed = late = wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate_shapes_dataset(root / "data", 10, size_hw=(96, 128), seed=5)
        register_coco_instances("kills", {}, str(root / "data/annotations.json"), str(root / "data/images"))
        expected, lasts = {}, {}
        for kind in itertools.product((False, True), groupings):
            began = time.monotonic()
            start(str(root / f"whole{kind}"), *kind, 1).join()
            expected[kind], lasts[kind] = weights(root / f"whole{kind}"), time.monotonic() - began
        for kind in itertools.cycle(expected):
            if kills >= args.kills or time.monotonic() - begin > args.seconds:
                break
            folder = root / "killed"
            while True:
                is_resumed = (folder / "last_checkpoint").exists()  # otherwise it begins anew, with the first seed
                process = start(str(folder), *kind, rng.randrange(2, 10**6) if is_resumed else 1)
                process.join(rng.uniform(0, 1.1) * lasts[kind])
                if process.exitcode is not None:
                    break
                late += (folder / "model_final.pth").exists()
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
            if process.exitcode != 0:
                wrong += 1
                sys.stdout.write(f"{kind}: resuming failed with {process.exitcode}\n")
            else:
                found = weights(folder)
                different = [k for k, v in expected[kind].items() if not torch.equal(v, found[k])]
                completed += not different
                wrong += bool(different)
                if different:
                    sys.stdout.write(f"{kind}: {len(different)} of {len(found)} tensors differ\n")
            shutil.rmtree(folder, ignore_errors=True)
            sys.stdout.write(f"{kills} kills, {late} after model_final; {completed} equal, {wrong} wrong\n")
            sys.stdout.flush()
    return int(wrong > 0 or completed == 0)


if __name__ == "__main__":
    sys.exit(main())
