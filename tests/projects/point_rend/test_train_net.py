"""The training script, from the first iteration to the evaluation."""

import runpy

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.engine import default_argument_parser
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

NAME = "pointrend_shapes"


@pytest.fixture
def instances(tmp_path):
    """A registered data set of generated images with masks."""
    folder = tmp_path / "shapes"
    generate_shapes_dataset(folder, 4, size_hw=(64, 80), seed=5)
    register_coco_instances(NAME, {}, str(folder / "annotations.json"), str(folder / "images"))
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def label_maps(tmp_path):
    """A registered data set of noise with label maps of three classes and pixels without a label."""
    records = []
    for i in range(3):
        image, labels = tmp_path / f"{i}.png", tmp_path / f"{i}_labels.png"
        Image.fromarray(np.random.randint(0, 256, (64, 80, 3), dtype=np.uint8)).save(image)
        values = np.arange(64 * 80).reshape(64, 80) // 400 % 4
        Image.fromarray(np.where(values == 3, 255, values).astype(np.uint8)).save(labels)
        records.append(
            {"file_name": str(image), "sem_seg_file_name": str(labels), "height": 64, "width": 80, "image_id": i}
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=["a", "b", "c"], evaluator_type="sem_seg", ignore_label=255)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def train_net(repo_root, tiny_config, tmp_path, restore_logging):
    """`train_net(kind, arguments, changes)` runs the script's main function on a tiny config -> its result."""
    script = runpy.run_path(str(repo_root / "projects/PointRend/train_net.py"), run_name="train_net")

    def call(kind, arguments, changes=()):
        cfg = tiny_config(kind, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2)
        cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0])
        cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.BASE_LR", 0.001])
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        cfg.merge_from_list(list(changes))
        (tmp_path / "tiny.yaml").write_text(cfg.dump())
        argv = ["--config-file", str(tmp_path / "tiny.yaml"), *map(str, arguments)]
        return script["main"](default_argument_parser().parse_args(argv))

    return call


@pytest.mark.parametrize("kind", ["standard", "implicit"])
def test_instances(train_net, instances, kind, tmp_path):
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", 6, "MODEL.POINT_HEAD.NUM_CLASSES", 6]
    trained = train_net(kind, [], classes)
    assert set(trained) == {"bbox", "segm"}
    evaluated = train_net(kind, ["--eval-only", "MODEL.WEIGHTS", tmp_path / "output/model_final.pth"], classes)
    assert evaluated["segm"]["AP"] == pytest.approx(trained["segm"]["AP"], nan_ok=True)


def test_label_maps_with_crops_and_distorted_colors(train_net, label_maps):
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (48, 64)]
    crop += ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, "INPUT.COLOR_AUG_SSD", True]
    results = train_net("semantic", [], crop)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_augmentations(repo_root, tiny_config):
    script = runpy.run_path(str(repo_root / "projects/PointRend/train_net.py"), run_name="train_net")
    build = script["build_sem_seg_augmentation"]
    names = [type(x).__name__ for x in build(tiny_config("semantic"))]
    assert names == ["ResizeShortestEdge", "RandomFlip"]
    cfg = tiny_config("semantic", "INPUT.CROP.ENABLED", True, "INPUT.COLOR_AUG_SSD", True)
    names = [type(x).__name__ for x in build(cfg)]
    assert names == ["ResizeShortestEdge", "RandomCrop_CategoryAreaConstraint", "ColorAugSSDTransform", "RandomFlip"]
