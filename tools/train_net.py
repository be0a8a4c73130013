#!/usr/bin/env python
"""Train or evaluate a model from a YAML config.

python tools/train_net.py --config-file configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml --num-gpus 8
python tools/train_net.py --config-file configs/... --num-gpus 1 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0025
python tools/train_net.py --config-file configs/... --eval-only MODEL.WEIGHTS /path/to/checkpoint
python tools/train_net.py --config-file configs/... --eval-only MODEL.WEIGHTS ... TEST.AUG.ENABLED True

With TEST.AUG.ENABLED the model is evaluated a second time, with test-time augmentation; those results end in "_TTA".
Use it as an example: what differs in your project goes into a subclass of DefaultTrainer.
"""

import argparse
from collections import OrderedDict
from typing import Any

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.modeling.test_time_augmentation import build_model_with_tta


class Trainer(DefaultTrainer):
    """The default trainer, with a second evaluation under test-time augmentation where TEST.AUG.ENABLED asks for it."""

    def build_hooks(self) -> list[hooks.HookBase | None]:
        found = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            build_model_with_tta(self.cfg, self.model)  # refuses models that cannot have it before the training
            # Before the last hook, which writes what the others recorded; only after the last iteration.
            found.insert(-1, hooks.EvalHook(0, self._test_with_tta_and_save_results))
        return found

    def _test_with_tta_and_save_results(self) -> "OrderedDict[str, Any]":
        results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results = {**self._last_eval_results, **results}
        return results


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from file and command line, then logging, seed and output folder."""
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.load_for_inference(cfg.MODEL.WEIGHTS, resume=args.resume)
        if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST:  # refuses models that cannot have it before the first evaluation
            build_model_with_tta(cfg, model, MetadataCatalog.get(cfg.DATASETS.TEST[0]))
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    parser = default_argument_parser()
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    invoke_main()
