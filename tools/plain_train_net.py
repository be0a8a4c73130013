#!/usr/bin/env python
"""Train or evaluate with a loop that can be read in one minute: no trainer, no hooks.

python tools/plain_train_net.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --num-gpus 8

It has fewer features than tools/train_net.py and is the place to start for a loop of your own.
"""

import argparse
import logging
import math
import os
from typing import Any

from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import create_ddp_model, default_setup, default_writers
from detectron2.engine.checkpointing import iteration_after
from detectron2.engine.class_names import match_classes
from detectron2.engine.random_states import random_states, set_random_states
from detectron2.engine.run_folder import resumes_after_restart, training_in
from detectron2.evaluation import build_evaluator, inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.projects.training import launch_script
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import IN_FILE

logger = logging.getLogger("detectron2")


def do_test(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Evaluate on every test data set."""
    results = {}
    for name in cfg.DATASETS.TEST:
        match_classes(model, [name])
        loader = build_detection_test_loader(cfg, name)
        evaluator = build_evaluator(name, os.path.join(cfg.OUTPUT_DIR, "inference", name), cfg=cfg)
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def do_train(cfg: CfgNode, model: nn.Module, resume: bool = False) -> None:
    """The loop."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    loader = build_detection_train_loader(cfg)
    state: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler, "data_loader": loader}
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, **state)
    loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    # MODEL.WEIGHTS may come from another run: its iteration does not apply here
    start, former = 0, []
    if resume and checkpointer.has_checkpoint():
        start = iteration_after(loaded.get("iteration", -1), checkpointer.get_checkpoint_file())
        former = loaded.get("random_states", [])  # of each process
    max_iter = cfg.SOLVER.MAX_ITER
    periodic_checkpointer = PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_iter=max_iter)
    writers = default_writers(cfg.OUTPUT_DIR, max_iter) if comm.is_main_process() else []
    logger.info("Training from iteration %d to %d", start, max_iter)
    if 0 < start >= max_iter:  # resumed behind the last iteration
        logger.warning("No iteration is left: the model is evaluated. To train longer, raise SOLVER.MAX_ITER.")
        if not checkpointer.get_checkpoint_file().endswith("model_final.pth"):
            checkpointer.save("model_final", iteration=start - 1)
    with training_in(cfg.OUTPUT_DIR, start), EventStorage(start) as storage:
        if start:
            checkpointer.remove_leftovers()
        for iteration, data in zip(range(start, max_iter), loader, strict=False):
            storage.iter = iteration
            if iteration == start and len(former) == comm.get_world_size():
                set_random_states(former[comm.get_rank()])
            loss_dict = model(data)
            losses: Any = sum(loss_dict.values())
            reduced = comm.reduce_dict(loss_dict)
            if comm.is_main_process():  # numbers stay on the GPU until a writer asks for them
                storage.put_scalar("total_loss", sum(reduced.values()))
                for name, value in reduced.items():
                    storage.put_scalar(name, value)
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()
            is_last = iteration == max_iter - 1
            if cfg.TEST.EVAL_PERIOD > 0 and (iteration + 1) % cfg.TEST.EVAL_PERIOD == 0 and not is_last:
                do_test(cfg, model)
                comm.synchronize()
            if (iteration + 1) % 20 == 0 or is_last:
                for writer in writers:
                    writer.write()
                if comm.is_main_process() and not math.isfinite(storage.latest()["total_loss"][0]):
                    raise FloatingPointError(f"The loss is not finite in iteration {iteration} or before.")
            is_saved = is_last or (iteration + 1) % cfg.SOLVER.CHECKPOINT_PERIOD == 0
            periodic_checkpointer.step(iteration, random_states=comm.gather(random_states()) if is_saved else [])
    for writer in writers:
        writer.close()


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    model = build_model(cfg)
    logger.info("Model:\n%s", model, extra=IN_FILE)
    if args.eval_only:
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.load_for_inference(cfg.MODEL.WEIGHTS, resume=args.resume)
        return do_test(cfg, model)
    model = create_ddp_model(model, broadcast_buffers=False)
    do_train(cfg, model, resume=args.resume or resumes_after_restart(cfg.OUTPUT_DIR))
    return do_test(cfg, model)


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    launch_script(main)


if __name__ == "__main__":
    invoke_main()
