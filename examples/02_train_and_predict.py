#!/usr/bin/env python
"""Train a detector, evaluate it, and use it on an image.

python examples/02_train_and_predict.py

It takes a few seconds, because the model is tiny and sees six images: for one that has learnt something, run
`detectron2 demo`. With data of your own, begin with the weights of the model zoo and more iterations.
"""

import argparse

from detectron2 import model_zoo
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

OUTPUT = "output/examples/training"


def make_config():
    """A Faster R-CNN of the model zoo, made small; with a GPU and data of your own leave out the second part."""
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SHAPE_CLASSES)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 2, 0.0025
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 5, ()
    cfg.OUTPUT_DIR = OUTPUT

    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_STD = "cpu", "", [57.0, 57.0, 57.0]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 18, 16, 16
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 32
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = (160,), 160, 0
    return cfg


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    setup_logger()
    for name, count, seed in (("shapes_train", 6, 0), ("shapes_val", 2, 1)):
        annotations = generate_shapes_dataset(f"output/examples/{name}", count, seed=seed)
        register_coco_instances(name, {}, str(annotations), f"output/examples/{name}/images")

    cfg = make_config()
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    print("box AP:", results["bbox"]["AP"])

    cfg.MODEL.WEIGHTS = f"{OUTPUT}/model_final.pth"
    image = read_image("output/examples/shapes_val/images/00000.png", "BGR")
    predictor = DefaultPredictor(cfg)
    instances = predictor(image)["instances"]
    drawn = Visualizer(image[:, :, ::-1], predictor.metadata, scale=3).draw_instance_predictions(instances[:5])
    drawn.save(f"{OUTPUT}/prediction.png")
    print(f"{len(instances)} objects: {OUTPUT}/prediction.png")
