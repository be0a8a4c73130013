"""Data as people have it, from the file to the trained model; and the tutorials about it, command by command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, DatasetError, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.engine import DefaultTrainer
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from tests.docs.pages import run_page
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture(autouse=True)
def _own_datasets():
    """Data sets that a test registers are gone when it is over."""
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - before[1]:
        MetadataCatalog.remove(name)


# ---------------------------------------------------------------------------------------------------------------------
# Tutorials
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restore_logging")
def test_getting_started(repo_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_page(repo_root / "docs" / "tutorials" / "getting_started.md")
    out = capsys.readouterr().out
    assert "photos/train.json (COCO)\n  images             12" in out and "No errors" in out
    assert 0 < len(names["instances"]) <= 5
    assert len(json.loads(Path("predictions/predictions.json").read_text())) > 0
    for picture in ("samples.png", "predicted.png", "predictions/00000.png"):
        with Image.open(picture) as opened:
            assert np.asarray(opened).std() > 1, picture


@pytest.mark.usefixtures("restore_logging")
def test_data(repo_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page(repo_root / "docs" / "tutorials" / "data.md")
    out = capsys.readouterr().out
    assert "Dataset 'mine' has 2 problems:" in out  # the check that the page shows
    assert "category_id 2 in annotation 0 of 'data/shapes/images/00003.png'" in out
    assert "torch.Size([5, 96, 128]) torch.uint16" in out
    assert set(names["losses"]) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert "[0, 1, 2, 3]" in out  # of the stream
    assert "data/tars: 12 images in 3 shards" in out and "data/tars (tar shards)" in out
    assert names["record"]["file_name"].startswith("shard://data/tars/tars-000000.tar#512+")
    for picture in ("raw.png", "augmented.png"):
        with Image.open(picture) as opened:
            assert np.asarray(opened).std() > 1, picture
    assert len(list(Path("drawn").glob("*.png"))) == 4
    content = [json.loads(Path(f).read_text()) for f in ("data/shapes/annotations.json", "data/again.json")]
    counts = [(len(c["images"]), len(c["annotations"]), len(c["categories"])) for c in content]
    assert counts[0] == counts[1]


# ---------------------------------------------------------------------------------------------------------------------
# From files to the trainer
# ---------------------------------------------------------------------------------------------------------------------


def save_all_kinds(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Write one picture, of few colours, in many kinds of files, and return it, and the names of the files."""
    pixels = np.full((48, 64, 3), (40, 90, 160), np.uint8)
    pixels[8:32, 8:32] = 220, 30, 30
    pixels[16:40, 40:56] = 30, 220, 30
    image = Image.fromarray(pixels)
    translucent = image.convert("RGBA")
    translucent.putalpha(100)
    palette = image.quantize(8)
    kinds = {
        "rgb.png": (image, {}),
        "rgb.bmp": (image, {}),
        "cmyk.tif": (image.convert("CMYK"), {}),
        "palette.png": (palette, {}),
        "transparent_palette.png": (palette, {"transparency": 0}),
        "rgba.png": (translucent, {}),
        "rgba.webp": (translucent, {"lossless": True}),
        "moving.gif": (palette, {"save_all": True, "append_images": [palette.rotate(180)]}),
        "moving.webp": (image, {"lossless": True, "save_all": True, "append_images": [image.rotate(180)]}),
        "pages.tif": (image, {"save_all": True, "append_images": [image.rotate(180)]}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    np.save(folder / "array.npy", pixels)
    return pixels, [*kinds, "turned.png", "array.npy"]


def test_kinds_of_files(tmp_path, tiny_config):
    """In a COCO file without sizes, and with as little else as possible; ids are in no order."""
    pixels, names = save_all_kinds(tmp_path)
    ids = [101 - 7 * n for n in range(len(names))]
    annotations = [{"image_id": i, "category_id": 9, "bbox": [8, 8, 24, 24]} for i in ids]
    images = [{"id": i, "file_name": name} for i, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 9, "name": "red"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances("tour", {}, str(tmp_path / "a.json"), str(tmp_path))
    cfg = tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 1)
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.RANDOM_FLIP", "none", "INPUT.FORMAT", "RGB"])
    cfg.DATASETS.TRAIN = ("tour",)
    cfg.SOLVER.IMS_PER_BATCH = len(names)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert {Path(d["file_name"]).name for d in batch} == set(names)
    for sample in batch:
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels, err_msg=sample["file_name"])
        assert sample["instances"].gt_boxes.tensor.tolist() == [[8, 8, 32, 32]]


def one_image(tmp_path: Path, **changes) -> dict:
    Image.new("RGB", (64, 48), (60, 120, 180)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 48, "width": 64}
    return {**record, **changes}


def train(cfg, records, tmp_path, **metadata) -> dict:
    DatasetCatalog.register("tour", lambda: records)
    MetadataCatalog.get("tour").set(**metadata)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tour",)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.SOLVER.MAX_ITER = 1
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train()


SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


@pytest.mark.parametrize("kind", ["polygon", "pairs", "runs", "array", "mixed"])
def test_kinds_of_masks(tmp_path, tiny_config, kind):
    bitmap = np.zeros((48, 64), np.uint8)
    bitmap[10:30, 10:30] = 1
    runs = [48 * 10 + 10, *[20, 28] * 19, 20, 18 + 48 * 34]  # by columns
    assert sum(runs) == bitmap.size
    masks = {
        "polygon": [[SQUARE]],
        "pairs": [[np.reshape(SQUARE, (4, 2))]],
        "runs": [{"size": [48, 64], "counts": runs}],
        "array": [bitmap.astype(bool)],
    }
    masks["mixed"] = [m for several in list(masks.values()) for m in several]
    box = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS}
    annotations = [{**box, "category_id": i, "segmentation": m} for i, m in enumerate(masks[kind])]
    DatasetCatalog.register("tour", lambda: [one_image(tmp_path, annotations=annotations)])
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 4, "INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.RANDOM_FLIP", "none"])
    cfg.DATASETS.TRAIN = ("tour",)
    instances = next(iter(build_detection_train_loader(cfg)))[0]["instances"]
    assert isinstance(instances.gt_masks, PolygonMasks if kind in ("polygon", "pairs") else BitMasks)
    drawn = instances.gt_masks.crop_and_resize(torch.tensor([[0.0, 0, 64, 48]]).expand(len(instances), 4), 48)
    expected = torch.zeros(48, 48)
    expected[10:30, 8:22] = 1  # 64 columns become 48: the edges at 7.5 and 22.5
    assert (drawn[:, :, 9:21].float() - expected[:, 9:21]).abs().max() == 0
    assert drawn[:, :10].sum() == drawn[:, 30:].sum() == drawn[:, :, :7].sum() == drawn[:, :, 23:].sum() == 0


@pytest.mark.usefixtures("restore_logging")
def test_keypoints_of_a_file(shared_dir, tmp_path, tiny_config):
    """Their names, and which change places, are those of the file."""
    folder = shared_dir / "data" / "coco_keypoints_sample"
    register_coco_instances("tour_keypoints", {}, str(folder / "test_coco.json"), str(folder))
    cfg = tiny_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "INPUT.RANDOM_FLIP", "horizontal")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tour_keypoints",), ()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path), 1
    trainer = DefaultTrainer(cfg)
    trainer.train()
    assert trainer.storage.latest()["loss_keypoint"][0] > 0
    assert create_keypoint_hflip_indices("tour_keypoints") == [0, *(i for n in range(1, 17, 2) for i in (n + 1, n))]


@pytest.mark.usefixtures("restore_logging")
def test_rotated_boxes(tmp_path, tiny_config):
    """Trained and evaluated by default; other evaluators would stumble over the fifth number."""
    cfg = tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 1)
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"])
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.ANGLES", [[-45, 0, 45]], "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"])
    cfg.merge_from_list(["MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 1, 1), "MODEL.ROI_HEADS.NAME", "RROIHeads"])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5, 1)])
    box = {"bbox": [30, 24, 30, 16, 30], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    records = [one_image(tmp_path, annotations=[box], image_id=i) for i in range(2)]
    results = train(cfg, records, tmp_path, thing_classes=["a"])
    assert results["bbox"]["AP"] >= 0


def test_labels_beyond_the_classes(tmp_path, tiny_config):
    labels = np.zeros((48, 64), np.uint8)
    labels[:10] = 9
    Image.fromarray(labels).save(tmp_path / "labels.png")
    cfg = tiny_config("Misc/semantic_R_50_FPN_1x.yaml", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
    record = one_image(tmp_path, sem_seg_file_name=str(tmp_path / "labels.png"))
    with pytest.raises(DatasetError, match=r"labels of 3 or more, while MODEL\.SEM_SEG_HEAD\.NUM_CLASSES .*label 9"):
        train(cfg, [record], tmp_path, stuff_classes=["a", "b", "c"])
