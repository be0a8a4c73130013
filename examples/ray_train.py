#!/usr/bin/env python
"""Train a detector with Ray Train: on this machine, or on all machines of a Ray cluster.

python examples/ray_train.py [output]

Needs `pip install 'detectron2[ray]'`. Ray starts the processes and makes their process group; the training function
is the one that `torchrun` or `detectron2.engine.launch` would call.
"""

import argparse
import os
import sys

try:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
except ModuleNotFoundError:
    sys.exit("This example needs Ray: pip install 'detectron2[ray]'")


def train(options: dict) -> None:
    """Train a tiny model on drawn shapes; every process calls this."""
    from detectron2 import model_zoo
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("ray_shapes",), ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 4, 0.0025, 3, ()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = options["output"], 1, 0

    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_STD = "cpu", "", [57.0, 57.0, 57.0]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 18, 16, 16
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.INPUT.MIN_SIZE_TRAIN = 16, 32, (96,)

    if "ray_shapes" not in DatasetCatalog.list():
        register_coco_instances("ray_shapes", {}, f"{options['data']}/annotations.json", f"{options['data']}/images")
    default_setup(cfg, default_argument_parser().parse_args([]))
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


if __name__ == "__main__":
    from detectron2.data.datasets.synthetic import generate_shapes_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="output/examples/ray_train")
    output = os.path.abspath(parser.parse_args().output)
    generate_shapes_dataset(f"{output}/data", 8)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)  # in a cluster: ray.init()
    trainer = TorchTrainer(
        train,
        train_loop_config={"data": f"{output}/data", "output": output},  # a folder that all machines see
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(storage_path=f"{output}/ray", name="run"),
    )
    trainer.fit()
    ray.shutdown()
    print(f"trained: {output}/model_final.pth")
