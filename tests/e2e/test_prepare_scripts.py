"""Miniatures of all built-in data sets, a few pixels each: the scripts prepare them, and every name loads."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.preparing import COCO_ID_OF_SYNSET

H, W = 6, 8
POLYGON = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0]
PERSON, BANNER = 7, 300  # segments of the panoptic images


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(path: Path) -> None:
    write(path, np.zeros((H, W, 3), np.uint8))


def images(count: int, **more):
    return [{"id": i, "file_name": f"{i:012d}.jpg", "height": H, "width": W, **more} for i in range(1, count + 1)]


def annotations(count: int, category: int, **more):
    box = {"bbox": [1, 1, 4, 3], "area": 6, "segmentation": [POLYGON]}
    return [{"id": i, "image_id": i, "category_id": category, **box, **more} for i in range(1, count + 1)]


def make_coco(root: Path) -> None:
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for split in ("train2014", "val2014", "train2017", "val2017", "test2017"):
        for image in images(3):
            picture(root / split / image["file_name"])
    for split in ("train2014", "val2014", "minival2014", "valminusminival2014", "train2017", "val2017"):
        content = {"images": images(3), "annotations": annotations(3, 18, iscrowd=0), "categories": things}
        write(root / "annotations" / f"instances_{split}.json", content)
        persons = annotations(3, 1, iscrowd=0, keypoints=[2, 2, 2] * 17, num_keypoints=17)
        content = {"images": images(3), "annotations": persons, "categories": things[:1]}
        write(root / "annotations" / f"person_keypoints_{split}.json", content)
    for split in ("test2017", "test-dev2017"):
        write(root / "annotations" / f"image_info_{split}.json", {"images": images(3), "categories": things})
    segments = np.zeros((H, W, 3), np.uint8)
    segments[:2, :, 0] = PERSON
    segments[2:4, :, :2] = (BANNER % 256, BANNER // 256)
    segments_info = [{"id": PERSON, "category_id": 1}, {"id": BANNER, "category_id": 92}]
    for split in ("train2017", "val2017"):
        panoptic = []
        for image in images(3):
            name = image["file_name"].replace("jpg", "png")
            write(root / f"panoptic_{split}" / name, segments)
            panoptic.append({"image_id": image["id"], "file_name": name, "segments_info": segments_info})
        write(root / "annotations" / f"panoptic_{split}.json", {"images": images(3), "annotations": panoptic})


def make_lvis(root: Path) -> None:
    synsets = [*COCO_ID_OF_SYNSET, "aerosol.n.02"]
    categories = [{"id": i, "name": s.split(".")[0], "synset": s} for i, s in enumerate(synsets, start=1)]
    more = {"coco_url": "x/val2017/000000000001.jpg", "neg_category_ids": [81, 2], "not_exhaustive_category_ids": []}
    for name in ("v1_train", "v1_val", "v0.5_train", "v0.5_val"):
        content = {
            "images": images(3, **more),
            "annotations": [*annotations(2, 1), annotations(3, 81)[2]],
            "categories": categories,
        }
        write(root / f"lvis_{name}.json", content)
    for name in ("v1_image_info_test_dev", "v1_image_info_test_challenge", "v0.5_image_info_test"):
        write(root / f"lvis_{name}.json", {"images": images(3, **more), "categories": categories})


def make_cityscapes(root: Path) -> None:
    for split in ("train", "val", "test"):
        picture(root / "leftImg8bit" / split / "ulm" / "ulm_0_0_leftImg8bit.png")
        gt = root / "gtFine" / split / "ulm"
        objects = [{"label": "car", "polygon": [[1, 1], [5, 1], [5, 4]]}]
        write(gt / "ulm_0_0_gtFine_polygons.json", {"imgHeight": H, "imgWidth": W, "objects": objects})
        write(gt / "ulm_0_0_gtFine_labelTrainIds.png", np.zeros((H, W), np.uint8))
        name = f"cityscapes_panoptic_{split}"
        write(root / "gtFine" / name / "ulm_0_0_gtFine_panoptic.png", np.zeros((H, W, 3), np.uint8))
        segments = [{"id": 0, "category_id": 26}]
        annotation = {"image_id": "ulm_0_0", "file_name": "ulm_0_0_gtFine_panoptic.png", "segments_info": segments}
        write(root / "gtFine" / f"{name}.json", {"annotations": [annotation]})


def make_voc(root: Path) -> None:
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>4</ymax></bndbox>"
    size = f"<size><width>{W}</width><height>{H}</height></size>"
    content = f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
    for split in ("train", "val", "trainval", "test"):
        write(root / "ImageSets" / "Main" / f"{split}.txt", "000001\n")
    write(root / "Annotations" / "000001.xml", content)
    picture(root / "JPEGImages" / "000001.jpg")


def make_ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        picture(root / "images" / split / "a.jpg")
        write(root / "annotations" / split / "a.png", np.array([[0, 1], [2, 150]], np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory, repo_root):
    """The folder with all data sets, after the scripts have run."""
    root = tmp_path_factory.mktemp("data sets")
    make_coco(root / "coco")
    make_lvis(root / "lvis")
    make_cityscapes(root / "cityscapes")
    make_voc(root / "VOC2007")
    make_voc(root / "VOC2012")
    make_ade20k(root / "ADEChallengeData2016")
    call(repo_root, "prepare_for_tests", root, "--size", "2")
    for name in ("prepare_panoptic_fpn", "prepare_cocofied_lvis", "prepare_ade20k_sem_seg"):
        call(repo_root, name, root)
    return root


def call(repo_root: Path, name: str, root: Path, *options: str) -> None:
    script = runpy.run_path(str(repo_root / "datasets" / f"{name}.py"))
    script["main"](["--root", str(root), "--processes", "1", *options])


SCRIPTS = ("prepare_panoptic_fpn", "prepare_cocofied_lvis", "prepare_ade20k_sem_seg", "prepare_for_tests")


@pytest.fixture
def catalogs(monkeypatch):
    """The catalogs as they are at the start of a program."""
    monkeypatch.setattr(MetadataCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "_factories", {n: e.describe for n, e in builtin._ENTRIES.items()})


def labels(path: Path) -> list:
    with Image.open(path) as image:
        return np.asarray(image).tolist()


def test_every_name_loads(root, catalogs, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for name in builtin._ENTRIES:
        records = DatasetCatalog.get(name)
        few = 2 if "_100" in name else 1 if name.startswith(("city", "voc", "ade")) else 3
        assert len(records) == few, name
        metadata = MetadataCatalog.get(name)
        for record in records:
            files = [value for key, value in record.items() if key.endswith("file_name")]
            assert files and all(Path(file).is_file() for file in files), (name, files)
            for annotation in record.get("annotations", []):
                assert 0 <= annotation["category_id"] < len(metadata.thing_classes), name
            for segment in record.get("segments_info", []):
                classes = metadata.thing_classes if segment["isthing"] else metadata.stuff_classes
                assert 0 <= segment["category_id"] < len(classes), name


def test_classes(root, catalogs, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for name, first in (
        ("coco_2017_val", "dog"),
        ("keypoints_coco_2017_val_100", "person"),
        ("lvis_v0.5_train_cocofied", "person"),
        ("lvis_v1_val", "aerosol_can"),
        ("cityscapes_fine_instance_seg_val", "car"),
        ("voc_2012_val", "dog"),
    ):
        annotation = DatasetCatalog.get(name)[0]["annotations"][0]
        assert MetadataCatalog.get(name).thing_classes[annotation["category_id"]] == first, name


def test_prepared_files(root):
    for split in ("train2017", "val2017", "val2017_100"):
        folder = root / "coco" / f"panoptic_stuff_{split}"
        assert len(list(folder.iterdir())) == (2 if split == "val2017_100" else 3)
        assert labels(folder / "000000000002.png") == [[0] * W] * 2 + [[1] * W] * 2 + [[255] * W] * 2
    assert labels(root / "coco" / "panoptic_val2017_100" / "000000000001.png")[2][0] == [44, 1, 0]
    cocofied = json.loads((root / "lvis" / "lvis_v0.5_train_cocofied.json").read_text())
    assert [a["category_id"] for a in cocofied["annotations"]] == [1, 1]
    assert cocofied["images"][0]["neg_category_ids"] == [2]
    ade20k = root / "ADEChallengeData2016" / "annotations_detectron2"
    assert labels(ade20k / "training" / "a.png") == [[255, 0], [1, 149]]
    assert not list(root.rglob("*.tmp"))


def test_existing_files_are_kept(root, repo_root, capsys):
    (root / "lvis" / "lvis_v0.5_val_cocofied.json").touch()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for name in SCRIPTS:
        call(repo_root, name, root, "--skip-existing")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == times


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_there(repo_root, name, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        call(repo_root, name, tmp_path)
    error = capsys.readouterr().err
    assert e.value.code == 1 and str(tmp_path) in error and "DETECTRON2_DATASETS" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(repo_root, name, capsys):
    with pytest.raises(SystemExit) as e:
        call(repo_root, name, Path(), "--help")
    text = capsys.readouterr().out
    assert e.value.code == 0 and f"python datasets/{name}.py" in text and "--skip-existing" in text


def test_not_the_categories_of_lvis(repo_root, tmp_path, capsys):
    write(tmp_path / "lvis" / "mine.json", {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    with pytest.raises(SystemExit):
        call(repo_root, "prepare_cocofied_lvis", tmp_path, "--names", "mine")
    assert "mine.json' cannot be converted: 80 of COCO's" in capsys.readouterr().err
    assert len(list((tmp_path / "lvis").iterdir())) == 1
