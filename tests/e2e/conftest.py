"""A tiny model and a tiny data set for whole runs."""

from pathlib import Path

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset


def skip_unless_cpus_can_shard():
    """For runs that also shard a model on processors."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"PyTorch {torch.__version__} does not shard models on processors")


TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.PIXEL_STD", [57.0, 57.0, 57.0],
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8, 8),
    "INPUT.MIN_SIZE_TRAIN", (96,),
    "INPUT.MAX_SIZE_TRAIN", 160,
    "INPUT.MIN_SIZE_TEST", 96,
    "INPUT.MAX_SIZE_TEST", 160,
    "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.IMS_PER_BATCH", 2,
    "SOLVER.MAX_ITER", 2,
    "SOLVER.STEPS", (),
    "SOLVER.BASE_LR", 0.001,
    "TEST.DETECTIONS_PER_IMAGE", 5,
]  # fmt: skip


def _tiny_config(name: str = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", *opts) -> CfgNode:
    """Return a config of the zoo, shrunk so that a step takes a fraction of a second on the CPU."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(TINY + list(opts))
    return cfg


@pytest.fixture
def tiny_config():
    """The function that shrinks a config of the zoo."""
    return _tiny_config


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
    """A folder with 6 generated images and their annotations."""
    folder = tmp_path_factory.mktemp("shapes")
    generate_shapes_dataset(folder, 6, size_hw=(96, 128), seed=5)
    return folder


@pytest.fixture
def shapes(shapes_dir: Path):
    """The name of the registered data set."""
    register_coco_instances("e2e_shapes", {}, str(shapes_dir / "annotations.json"), str(shapes_dir / "images"))
    yield "e2e_shapes"
    DatasetCatalog.remove("e2e_shapes")
    MetadataCatalog.remove("e2e_shapes")


@pytest.fixture
def cfg(shapes: str, tmp_path: Path) -> CfgNode:
    """Mask R-CNN on the shapes, writing to a temporary folder."""
    cfg = _tiny_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (shapes,), (shapes,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg
