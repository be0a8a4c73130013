"""Configs of both kinds for a tiny model, data sets in both formats, and a function that runs a command."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detectron2.cli import main
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from tests.e2e.conftest import _tiny_config
from tests.engine.conftest import loggers_restored

LAZY = """
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
train = model_zoo.get_config("common/train.py").train

model.pixel_std = [57.0, 57.0, 57.0]
backbone = model.backbone
backbone.out_channels = 16
backbone.bottom_up.stages = dict(_target_=backbone.bottom_up.stages._target_, depth=18, norm="FrozenBN")
model.proposal_generator.head.in_channels = 16
model.proposal_generator.post_nms_topk = (30, 20)
heads = model.roi_heads
heads.update(num_classes=6, batch_size_per_image=16)
heads.box_head.update(input_shape=ShapeSpec(channels=16, height=7, width=7), fc_dims=[32])
heads.box_predictor.update(input_shape=ShapeSpec(channels=32), test_score_thresh=0.0, test_topk_per_image=5)
heads.mask_head.update(input_shape=ShapeSpec(channels=16, height=14, width=14), conv_dims=[8, 8])

dataloader.train.update(total_batch_size=2, num_workers=0)
dataloader.train.dataset.names = "cli_shapes"
dataloader.train.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)]
dataloader.test.num_workers = 0
dataloader.test.dataset.names = "cli_shapes"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)]
train.update(max_iter=2, eval_period=0)
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with 4 generated images, annotated in COCO format and in that of Pascal VOC (``data / "voc"``)."""
    folder = tmp_path_factory.mktemp("cli_data")
    content = json.loads(generate_shapes_dataset(folder, 4, size_hw=(64, 96), seed=5).read_text())
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / "voc" / part).mkdir(parents=True)
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        Image.open(folder / "images" / image["file_name"]).save(folder / "voc" / "JPEGImages" / f"{stem}.jpg")
        objects = "".join(
            f"<object><name>{SHAPE_CLASSES[a['category_id'] - 1]}</name><bndbox><xmin>{a['bbox'][0] + 1}</xmin>"
            f"<ymin>{a['bbox'][1] + 1}</ymin><xmax>{a['bbox'][0] + a['bbox'][2]}</xmax>"
            f"<ymax>{a['bbox'][1] + a['bbox'][3]}</ymax></bndbox></object>"
            for a in content["annotations"]
            if a["image_id"] == image["id"]
        )
        (folder / "voc" / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><size><width>96</width><height>64</height></size>{objects}</annotation>"
        )
    names = [Path(i["file_name"]).stem for i in content["images"]]
    (folder / "voc" / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names[:3]))
    (folder / "voc" / "ImageSets" / "Main" / "test.txt").write_text(names[3])
    return folder


@pytest.fixture(scope="session")
def coco(data: Path) -> list[str]:
    """The options that register the data set in COCO format."""
    return ["--coco", "cli_shapes", str(data / "annotations.json"), str(data / "images")]


@pytest.fixture(scope="session")
def voc(data: Path) -> list[str]:
    """The options that register the data sets in the format of Pascal VOC."""
    return ["--voc", "cli_voc_train", str(data / "voc"), "train", "--voc", "cli_voc_test", str(data / "voc"), "test"]


@pytest.fixture(scope="session")
def yaml_file(tmp_path_factory) -> str:
    cfg = _tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("cli_shapes",), ("cli_shapes",)
    path = tmp_path_factory.mktemp("cli_config") / "tiny.yaml"
    path.write_text(cfg.dump())
    return str(path)


@pytest.fixture(scope="session")
def lazy_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("cli_config") / "tiny.py"
    path.write_text(LAZY)
    return str(path)


def run_once(argv: list[str]) -> int:
    """Return the exit status. Data sets and loggers, which a process has once, are as before, for other commands."""
    before = set(DatasetCatalog.list())
    try:
        with loggers_restored():
            return main(argv)
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@pytest.fixture
def command(capsys):
    """A function that runs a command and returns (exit status, standard output, standard error)."""

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_once([str(a) for a in args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, yaml_file, coco) -> Path:
    """The output folder of ``detectron2 train`` with the YAML file."""
    output = tmp_path_factory.mktemp("cli_trained")
    assert run_once(["train", "--config-file", yaml_file, *coco, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def lazy_trained(tmp_path_factory, lazy_file, coco) -> Path:
    """The output folder of ``detectron2 train`` with the LazyConfig file."""
    output = tmp_path_factory.mktemp("cli_lazy_trained")
    assert run_once(["train", "--config-file", lazy_file, *coco, "--output", str(output)]) == 0
    return output
