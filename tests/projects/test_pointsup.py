"""PointSup: labelled points from annotations to losses, the tool that makes them, and whole models in small."""

import copy
import importlib
import json
import math
import pickle
import runpy
import sys

import numpy as np
import pytest
import torch

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import Boxes, BoxMode, Instances
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

SIZES_HW = [(64, 96), (48, 80)]
CONFIGS = {
    "mask": "mask_rcnn_R_50_FPN_3x_point_sup",
    "aug": "mask_rcnn_R_50_FPN_3x_point_sup_point_aug",
    "implicit": "implicit_pointrend_R_50_FPN_3x_point_sup_point_aug",
}
NAME = "pointsup_shapes"


@pytest.fixture(scope="module")
def project(repo_root):
    """The package of the project, which is not installed."""
    folder = str(repo_root / "projects" / "PointSup")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("point_sup")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def tool(repo_root):
    path = repo_root / "projects/PointSup/tools/prepare_coco_point_annotations_without_masks.py"
    return runpy.run_path(str(path), run_name="tool")


@pytest.fixture
def config(project, repo_root):
    def make(name):
        cfg = get_cfg()
        add_pointrend_config(cfg)
        project.add_point_sup_config(cfg)
        cfg.merge_from_file(str(repo_root / f"projects/PointSup/configs/{CONFIGS[name]}.yaml"))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        return cfg

    return make


@pytest.fixture
def tiny_config(config):
    def make(name, *changes):
        cfg = config(name)
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
        cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
        cfg.MODEL.FPN.OUT_CHANNELS = 8
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 3
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
        cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 16
        cfg.MODEL.POINT_HEAD.FC_DIM = 8
        cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 1
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        cfg.merge_from_list(list(changes))
        return cfg

    return make


def batch(boxes=(((4, 4, 40, 36), (30, 10, 90, 60)), ((10, 8, 42, 40),)), points=4):
    result = []
    for size_hw, of_image in zip(SIZES_HW, boxes, strict=True):
        instances = Instances(size_hw)
        instances.gt_boxes = Boxes(torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.arange(len(of_image)) % 3
        corner, size = instances.gt_boxes.tensor[:, None, :2], instances.gt_boxes.tensor[:, None, 2:]
        share = torch.rand(len(of_image), points, 2)
        instances.gt_point_coords = corner + share * (size - corner)
        instances.gt_point_labels = (share[..., 0] < 0.5).long()
        image = torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)
        result.append({"image": image, "instances": instances})
    return result


# --- annotations ---


def annotation(coords, labels, box=(0, 0, 10, 10)):
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "point_coords": coords,
        "point_labels": labels,
    }


def test_points_follow_the_image(project):
    anno = annotation([[1.0, 2.0], [9.5, 3.0], [19.0, 9.0]], [1, 0, 1])
    transforms = T.TransformList([T.HFlipTransform(20), T.CropTransform(4, 0, 16, 10)])
    got = project.transform_instance_annotations(anno, transforms, (10, 16))
    # x becomes 20 - x, then 4 less; the last point has left the crop.
    np.testing.assert_allclose(got["point_coords"], [[15, 2], [6.5, 3], [-3, 9]])
    assert got["point_labels"].tolist() == [1, 0, -1]
    np.testing.assert_allclose(got["bbox"], [6, 0, 16, 10])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"point_coords": None}, "point_coords"),
        ({"point_labels": [1]}, "2 point_coords"),
        ({"point_labels": [1, 2]}, "0 or 1"),
    ],
)
def test_bad_points_are_refused(project, change, text):
    anno = {**annotation([[1, 2], [3, 4]], [0, 1]), **change}
    anno = {k: v for k, v in anno.items() if v is not None}
    with pytest.raises(ValueError, match=text):
        project.transform_instance_annotations(anno, T.NoOpTransform(), (20, 20))


def test_instances_of_no_annotation(project):
    instances = project.annotations_to_instances([], (20, 30), 5)
    assert len(instances) == 0 and instances.gt_point_coords.shape == (0, 0, 2)
    assert instances.gt_point_labels.shape == (0, 0)


def test_instances_are_filled_up(project):
    annos = [annotation([[1, 2], [3, 4], [5, 6]], [0, 1, 0]), annotation([[7, 8]], [1]), annotation([], [])]
    annos = [project.transform_instance_annotations(x, T.NoOpTransform(), (20, 30)) for x in annos]
    instances = project.annotations_to_instances(annos, (20, 30))
    assert instances.gt_point_labels.tolist() == [[0, 1, 0], [1, -1, -1], [-1, -1, -1]]
    assert instances.gt_point_coords[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert instances.gt_point_coords[1, 0].tolist() == [7, 8]
    assert instances.gt_boxes.tensor.shape == (3, 4) and instances.gt_classes.tolist() == [1, 1, 1]


def test_some_points_are_drawn(project):
    annos = [annotation([[i, i] for i in range(10)], [i % 2 for i in range(10)]), annotation([[7, 7]], [1])]
    annos = [project.transform_instance_annotations(x, T.NoOpTransform(), (20, 30)) for x in annos]
    drawn = set()
    for _ in range(50):
        instances = project.annotations_to_instances(annos, (20, 30), 4)
        xs = instances.gt_point_coords[0, :, 0].long().tolist()
        assert len(set(xs)) == 4 and instances.gt_point_labels[0].tolist() == [x % 2 for x in xs]
        drawn.update(xs)
        assert instances.gt_point_labels[1].tolist() == [1, -1, -1, -1]  # what there is goes first
    assert drawn == set(range(10))


# --- points of regions ---


def regions(size_hw, boxes, coords, labels, classes):
    return Instances(
        size_hw,
        proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        gt_classes=torch.tensor(classes),
        gt_point_coords=torch.tensor(coords, dtype=torch.float32),
        gt_point_labels=torch.tensor(labels),
    )


def nothing():
    """An image without objects: its regions have no points."""
    return Instances((9, 9), proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))


def test_points_in_the_frame_of_regions(project):
    instances = [
        regions((50, 50), [[10, 20, 30, 30]], [[[15, 25], [10, 20], [9, 25], [15, 31]]], [[1, 0, 1, 1]], [0]),
        nothing(),
        regions((50, 50), [[0, 0, 10, 10], [5, 5, 5, 5]], [[[5, 2]], [[6, 6]]], [[0], [1]], [1, 0]),
    ]
    coords, labels = project.get_point_coords_from_point_annotation(instances)
    assert coords.shape == (3, 4, 2)
    assert coords[0, :2].tolist() == [[0.25, 0.5], [0, 0]] and coords[1, 0].tolist() == [0.5, pytest.approx(0.2)]
    # Outside of the box; beside the points of an image that has fewer; in a box without area.
    assert labels.tolist() == [[1, 0, -1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]]
    assert torch.isfinite(coords).all()


@pytest.mark.parametrize("count", [0, 2])
def test_points_of_no_region(project, count):
    coords, labels = project.get_point_coords_from_point_annotation([nothing()] * count)
    assert coords.shape == (0, 0, 2) and labels.shape == (0, 0)
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = project.mask_rcnn_point_loss(logits, [nothing()] * count)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_by_hand(project, agnostic):
    logits = torch.randn(1, 1 if agnostic else 3, 4, 4)
    # In cells of 10 pixels: the centre of cell (row 1, column 2), halfway between two centres, outside.
    instances = [regions((50, 50), [[0, 0, 40, 40]], [[[25, 15], [10, 5], [45, 5]]], [[1, 0, 1]], [2])]
    cells = logits[0, 0 if agnostic else 2].double()
    expected = math.log1p(math.exp(-cells[1, 2])) + math.log1p(math.exp((cells[0, 0] + cells[0, 1]) / 2))
    assert project.mask_rcnn_point_loss(logits, instances).item() == pytest.approx(expected / 3, rel=1e-5)


# --- whole models ---


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(config, name):
    cfg = config(name)
    assert cfg.INPUT.POINT_SUP and (0 if name == "mask" else 5) == cfg.INPUT.SAMPLE_POINTS
    assert cfg.DATASETS.TRAIN == ("coco_2017_train_points_n10_v1_without_masks",)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (270000, (210000, 250000))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert "PointSup" in type(model.roi_heads.mask_head).__name__


@pytest.mark.parametrize("name", ["mask", "implicit"])
@pytest.mark.parametrize(
    ("boxes", "points"), [(((), ()), 4), (((), ((10, 8, 42, 40),)), 4), ((((4, 4, 40, 36),), ()), 0), (None, 4)]
)
def test_training(tiny_config, name, boxes, points):
    model = build_model(tiny_config(name))
    losses = model(batch(points=points) if boxes is None else batch(boxes, points))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ["mask", "implicit"])
def test_inference_copies_and_low_precision(tiny_config, name):
    model, x = build_model(tiny_config(name)), batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(x)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = [item["instances"].pred_masks for item in model(x)]
        assert [tuple(m.shape[1:]) for m in expected] == SIZES_HW and len(expected[0]) > 0
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(o["instances"].pred_masks, e) for o, e in zip(other(x), expected, strict=True))


# --- data ---


def test_builtin_names_are_registered_and_nothing_is_read(project, monkeypatch):
    name = "coco_2017_train_points_n10_v1_without_masks"
    project.register_all_coco_point_annotations()  # a second time changes nothing
    assert name in DatasetCatalog and name in MetadataCatalog
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    with pytest.raises(FileNotFoundError, match="n10_v1_without_masks"):
        DatasetCatalog.get(name)


def test_tool_labels_points_by_masks(tool):
    rle = {"size": [6, 8], "counts": [24, 24]}  # the right half, column after column
    content = {
        "images": [{"id": 7, "height": 6, "width": 8}],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [0, 0, 8, 6], "segmentation": rle},
            {"id": 2, "image_id": 7, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
            {"id": 3, "image_id": 7, "bbox": [0, 0, 8, 6], "segmentation": rle, "iscrowd": 1},
        ],
        "categories": [],
    }
    got = tool["replace_masks"](content, 50, 1)
    assert not any("segmentation" in x for x in got["annotations"]) and "segmentation" in content["annotations"][0]
    half, square, crowd = got["annotations"]
    assert "point_coords" not in crowd
    coords = np.array(half["point_coords"])
    assert coords.shape == (50, 2) and (coords >= 0).all() and (coords <= [8, 6]).all()
    assert half["point_labels"] == [int(x >= 4) for x, _ in half["point_coords"]]
    assert square["point_labels"] == [1] * 50 and np.ptp(square["point_coords"], axis=0).min() > 3
    assert tool["replace_masks"](content, 50, 1) == got
    assert tool["replace_masks"](content, 50, 2) != got


@pytest.fixture
def shapes(project, tool, tmp_path):
    """A registered data set of generated images with labelled points, made by the tool."""
    folder = tmp_path / "shapes"
    generate_shapes_dataset(folder, 4, size_hw=(64, 80), seed=5)
    tool["main"](["6", "--input", str(folder / "annotations.json")])
    made = folder / "annotations_n6_v1_without_masks.json"
    project.register_coco_point_annotations(NAME, {}, str(made), str(folder / "images"))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_mapper(project, tiny_config, shapes):
    mapper = project.PointSupDatasetMapper(tiny_config("aug"), is_train=True)
    assert mapper.sample_points == 5 and not mapper.use_instance_mask
    records = DatasetCatalog.get(shapes)
    for record in records:
        before = json.dumps(record["annotations"])
        instances = mapper(record)["instances"]
        assert json.dumps(record["annotations"]) == before
        assert instances.gt_point_coords.shape == (len(record["annotations"]), 5, 2)
        assert not instances.has("gt_masks")
        boxes = instances.gt_boxes.tensor[:, None]
        inside = (instances.gt_point_coords >= boxes[..., :2] - 0.01) & (
            instances.gt_point_coords <= boxes[..., 2:] + 0.01
        )
        assert inside.all()
    assert "instances" not in project.PointSupDatasetMapper(tiny_config("aug"), is_train=False)(records[0])
    del records[0]["annotations"][0]["point_coords"]
    with pytest.raises(ValueError, match=r"(?s)00000\.png.*point_coords"):
        mapper(records[0])


@pytest.mark.parametrize("name", ["aug", "implicit"])
def test_script(project, tiny_config, shapes, repo_root, tmp_path, restore_logging, name):
    cfg = tiny_config(
        name, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0
    )
    cfg.merge_from_list(["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 6])
    cfg.merge_from_list(["MODEL.POINT_HEAD.NUM_CLASSES", 6, "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.BASE_LR", 0.001])
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    script = runpy.run_path(str(repo_root / "projects/PointSup/train_net.py"), run_name="train_net")
    script["main"](default_argument_parser().parse_args(["--config-file", str(tmp_path / "tiny.yaml")]))
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "augmentations used in training" in log and "no 'segmentation'" not in log
    assert (tmp_path / "output" / "model_final.pth").is_file()
