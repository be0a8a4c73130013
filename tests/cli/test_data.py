"""``detectron2 data``: mistakes are found and taken out, pictures show what is there, formats keep what they can."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detectron2.cli import main
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sharded_dataset, load_voc_instances
from detectron2.data.detection_utils import read_image

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
PIXELS = np.zeros((40, 60), np.uint8)
PIXELS[10:20, 5:25] = 1


def run_lengths() -> dict:
    """Of PIXELS, by columns: the run of zeros first."""
    flat = PIXELS.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [40, 60], "counts": np.diff([0, *edges, len(flat)]).tolist()}


def write_coco(folder: Path, images=(), annotations=(), categories=(), **more) -> Path:
    """Write a.json with images of 60 x 40 pixels; annotations lack what is the same in all."""
    folder.mkdir(exist_ok=True)
    for image in images:
        if "file_name" in image and not (folder / image["file_name"]).exists():
            Image.new("RGB", (60, 40), (200, 30, 30)).save(folder / image["file_name"])
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories), **more}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def image(n: int, **changes) -> dict:
    return {"id": n, "file_name": f"{n}.png", "width": 60, "height": 40, **changes}


def annotation(n: int, image_id: int = 1, category_id: int = 1, bbox=(2, 3, 10, 11), **changes) -> dict:
    return {"id": n, "image_id": image_id, "category_id": category_id, "bbox": bbox and list(bbox), **changes}


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]


@pytest.fixture
def good(tmp_path) -> Path:
    """A file in COCO format without mistakes, with polygons, run lengths, a crowd region and an empty image."""
    annotations = [
        annotation(1, bbox=(2, 2, 10, 10), segmentation=[SQUARE]),
        annotation(2, category_id=5, bbox=(30.25, 4.5, 12.5, 20.25)),
        annotation(3, image_id=2, category_id=5, bbox=(5, 10, 20, 10), segmentation=run_lengths(), iscrowd=1),
        annotation(4, image_id=2, bbox=(0, 0, 60, 40)),
    ]
    return write_coco(tmp_path / "good", [image(1), image(2), image(3)], annotations, CATEGORIES)


def mistakes(folder: Path) -> Path:
    """A file with each kind of mistake that can be taken out."""
    images = [
        image(1),
        image(2, file_name="1.png"),
        image(3, width=0),
        image(3),
        image(4, file_name="gone.png"),
        image(5, width=40, height=60),
        image(6, width=40, height=60),
        {"file_name": "no_id.png"},
    ]
    annotations = [
        annotation(1),
        annotation(1, bbox=[20, 3, 10, 11]),
        annotation(2, image_id=2),  # the same file and box as the first
        annotation(3, image_id=99),
        annotation(4, category_id=2),
        annotation(5, bbox=[50, 30, 20, 20]),
        annotation(6, bbox=[70, 3, 10, 11]),
        annotation(7, bbox=[2, 3, 0, 11]),
        annotation(8, bbox=[2, 3, 0, 0], segmentation=[SQUARE]),
        annotation(9, bbox=[1, 1, 9, 9], segmentation=[[1, 1, 2, 2]]),
        annotation(10, bbox=[1, 1, 8, 8], segmentation=[[1, 1, 2, 2, 3, 3], SQUARE]),
        annotation(11, bbox=[1, 1, 7, 8], ignore=1),
        annotation(12, bbox=[1, 1, 6, 8], segmentation="mask"),
        annotation(13, bbox=[1, 2, 6, 8], keypoints=[1, 1, 2] * 2),
        annotation(14, bbox=[1, 2, 6, 7], keypoints=[1, 1, 2] * 2),
        annotation(15, bbox=[1, 2, 6, 6], keypoints=[1, 1, 2]),
        annotation(16, bbox=None),
        annotation(22, bbox=[1, 2, 3, 4], segmentation={"size": [40, 60], "counts": "0"}),
        annotation(23, bbox=[1, 2, 3, 5], segmentation={"size": [4, 6], "counts": [24]}),
        annotation(24, bbox=[1, 2, 3, 6], keypoints=[1, 1]),
        annotation(25, bbox=[1, 2, 3, 7], segmentation=[[1, 1, 2, 1, 1e9, 1]]),
        annotation(17, image_id=4),
        annotation(18, image_id=5, bbox=[45, 5, 5, 10]),
        annotation(19, image_id=6, bbox=[45, 3, 10, 11]),
        {"image_id": 3, "category_id": 5, "bbox": [1, 1, 5, 5]},
    ]
    categories = [*CATEGORIES, {"id": 5, "name": "bird"}, {"id": 7}, {"name": "fish"}]
    path = write_coco(folder, images, annotations, categories, extra=1)
    (folder / "gone.png").unlink()
    return path


def report_of(out: str) -> dict:
    (report,) = json.loads(out)["data_sets"]
    return report


def kinds(report: dict) -> dict:
    return {f["kind"]: f["count"] for f in report["findings"]}


@pytest.fixture
def panoptic(tmp_path) -> Path:
    """A file in the panoptic format: a hole in cheese, with PNG files, semantic labels and the object beside it."""
    for part in ("img", "pan", "sem"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "img" / "a.jpg")
    ids = np.full((64, 64), 7, np.uint8)
    ids[10:30, 10:30] = 3
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], -1)).save(tmp_path / "pan" / "a.png")
    Image.fromarray((ids == 7).astype(np.uint8)).save(tmp_path / "sem" / "a.png")
    categories = [{"id": 3, "name": "hole", "isthing": 1}, {"id": 7, "name": "cheese", "isthing": 0}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}]
    segments = [{"id": i, "category_id": i, "iscrowd": 0} for i in (3, 7)]
    annotations = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "pan.json").write_text(json.dumps(content))
    objects = [annotation(1, category_id=3, bbox=(10, 10, 20, 20))]
    content = {"images": images, "categories": categories[:1], "annotations": objects}
    (tmp_path / "objects.json").write_text(json.dumps(content))
    return tmp_path / "pan.json"


def turned_photo(path: Path) -> np.ndarray:
    """A picture stored 160 x 96 that EXIF shows as 96 x 160; the object is at x 10 to 60, y 20 to 50 as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((96, 160, 3), np.uint8)
    stored[20:50, 10:60] = 220
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(stored).save(path, exif=exif)
    return stored


class TestCheck:
    def test_empty_file(self, command, tmp_path):
        status, out, _ = command("data", "check", write_coco(tmp_path), "--json")
        assert status == 1 and kinds(report_of(out)) == {"empty": 1}

    def test_only_images(self, command, tmp_path):
        write_coco(tmp_path, [image(1), {"id": 2, "file_name": "2.png"}])
        (tmp_path / "a.json").write_text(
            json.dumps({"images": json.loads((tmp_path / "a.json").read_text())["images"]})
        )
        status, out, _ = command("data", "check", tmp_path / "a.json", "--json")
        assert status == 0 and kinds(report_of(out)) == {"all-empty": 2}

    def test_good(self, command, good):
        status, out, _ = command("data", "check", good, "--num-classes", "2")
        assert status == 0
        assert "images              3   1 without objects" in out and "annotations         3   and 1 crowd" in out
        assert "No errors, no warnings." in out and "1  dog              1         1" in out
        # The standard output is JSON alone.
        _, out, _ = command("data", "check", good, "--json")
        assert json.loads(out)["passes"] and report_of(out)["classes"][0] == {
            "name": "cat",
            "annotations": 2,
            "images": 2,
        }

    def test_number_of_classes(self, command, good):
        status, out, _ = command("data", "check", good, "--num-classes", "1", "--files", "none")
        assert status == 1 and "1 annotation has a category_id of 1 or more, while --num-classes is 1" in out
        assert "ERROR" in out and "category_id 1 in annotation 1 (id 2) of" in out

    def test_all_mistakes(self, command, tmp_path):
        path = mistakes(tmp_path / "bad")
        status, out, _ = command("data", "check", path, "--json")
        assert status == 1
        found = kinds(report_of(out))
        assert found.keys() >= {
            *("image-incomplete", "image-id-twice", "image-size", "file-twice", "file-missing", "file-size"),
            *("category-incomplete", "category-twice", "category-unknown", "annotation-orphan", "annotation-id-twice"),
            *(
                "annotation-ignore",
                "annotation-unusable",
                "polygon-points",
                "polygon-area",
                "keypoint-count",
                "no-bbox",
            ),
            *("box-empty", "box-outside", "box-overhang"),
        }
        assert (found["file-missing"], found["file-size"], found["box-empty"]) == (1, 2, 2)
        _, out, _ = command("data", "check", path)
        assert "Images with the most errors and warnings" in out and "gone.png" in out

    def test_ids_that_a_file_maps_are_not_to_be_changed(self, command, tmp_path):
        """A placeholder with id 0 and no objects: one less would make each class the one before."""
        categories = [{"id": i, "name": name} for i, name in enumerate(("cells", "round", "long"))]
        boxes = [annotation(1, category_id=1), annotation(2, category_id=2, bbox=(20, 3, 10, 11))]
        path = write_coco(tmp_path, [image(1)], boxes, categories)
        _, out, _ = command("data", "check", path, "--num-classes", "2")
        assert "Set --num-classes to 3. Or take out of 'categories' what no object is of: 'cells'." in out
        assert "subtract 1" not in out

    @pytest.mark.parametrize("files", ["all", "1", "none"])
    def test_files(self, command, tmp_path, files):
        path = mistakes(tmp_path / "bad")
        _, out, _ = command("data", "check", path, "--json", "--files", files)
        assert ("file-missing" in kinds(report_of(out))) == (files == "all")

    def test_config(self, command, good, yaml_file):
        status, out, _ = command(
            *("data", "check", good, "--config", yaml_file, "--json"),
            *("--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "1", "MODEL.MASK_ON", "True"),
        )
        assert status == 1
        assert kinds(report_of(out)) == {"label-too-large": 1, "mask-missing": 2, "image-empty": 1}

    def test_lazy_config(self, command, good, lazy_file):
        status, out, _ = command(
            *("data", "check", good, "--config-file", lazy_file, "--json", "--opts", "model.roi_heads.num_classes=1")
        )
        assert status == 1
        assert kinds(report_of(out)) == {"label-too-large": 1, "mask-missing": 2, "image-empty": 1}

    def test_data_sets_of_the_config(self, command, coco, yaml_file):
        status, out, _ = command("data", "check", "--config-file", yaml_file, *coco)
        assert status == 0 and out.count("cli_shapes (COCO)") == 1

    def test_classes_are_compared(self, command, good, tmp_path):
        other = write_coco(
            tmp_path / "b", [image(1)], [annotation(1)], [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
        )
        status, out, _ = command("data", "check", good, other)
        assert status == 1
        assert "'cat' is label 0 in" in out and "[classes-order]" in out

    def test_registered_records(self, command, tmp_path):
        record = {"file_name": str(tmp_path / "no.png"), "height": 5, "width": 5, "image_id": 1, "annotations": []}
        DatasetCatalog.register("cli_data_records", lambda: [record])
        try:
            status, out, _ = command("data", "check", "cli_data_records")
        finally:
            DatasetCatalog.remove("cli_data_records")
            MetadataCatalog.pop("cli_data_records", None)
        assert status == 1 and "cli_data_records (registered)" in out and "cannot be found" in out

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "Name a data set"),
            (["/no/a.json"], "'/no/a.json' is neither a file or folder"),
            (["coco_2017_vall"], "Is 'coco_2017_val' or "),
            (["{folder}"], "The format of '{folder}' is not clear"),
            (["{file}", "{file}", "--fix", "b.json"], "name only one"),
            (["{file}"], "is not a JSON file"),
            (["{folder}/coco"], "Is '{folder}/coco/annotations/train.json' meant?"),
            (["{folder}/panoptic.json"], "is in the panoptic format of COCO"),
        ],
    )
    def test_errors(self, command, tmp_path, args, message):
        (tmp_path / "a.json").write_text("{")
        (tmp_path / "coco" / "annotations").mkdir(parents=True)
        (tmp_path / "coco" / "annotations" / "train.json").write_text("{}")
        (tmp_path / "panoptic.json").write_text('{"images": [], "annotations": [{"segments_info": []}]}')
        places = {"folder": str(tmp_path), "file": str(tmp_path / "a.json")}
        status, _, err = command("data", "check", *[a.format(**places) for a in args])
        assert status == 1 and message.format(**places) in err

    def test_label_maps(self, command, tmp_path):
        Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
        labels = np.zeros((4, 6), np.uint8)
        labels[0, :3] = 255, 1, 2
        Image.fromarray(labels).save(tmp_path / "labels.png")
        (tmp_path / "maps.py").write_text(
            "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
            f"FOLDER = {str(tmp_path)!r}\n"
            "def load():\n"
            "    return [dict(file_name=FOLDER + '/a.png', image_id=i, sem_seg_file_name=FOLDER + name)\n"
            "            for i, name in enumerate(['/labels.png', '/gone.png'])]\n"
            "DatasetCatalog.register('cli_maps', load)\n"
            "MetadataCatalog.get('cli_maps').set(stuff_classes=['sky', 'sea'], ignore_label=255)\n"
        )
        status, out, _ = command("data", "check", "cli_maps", "--import", tmp_path / "maps.py")
        assert status == 1 and "without objects" not in out and "  annotations" not in out
        assert "1 label map has labels of 2 or more, while the number of stuff_classes of the data set is 2" in out
        assert "1 of 2 checked label maps ('sem_seg_file_name') cannot be found" in out and "gone.png" in out

    def test_panoptic_file(self, command, panoptic):
        """It is found with its PNG files, and read as for training; what other formats cannot hold is refused."""
        status, out, err = command("data", "check", panoptic)
        assert status == 0 and "segments            2" in out and "1  cheese" in out, err
        status, out, err = command("data", "show", panoptic, "--output", panoptic.parent / "drawn")
        assert status == 0 and "1 pictures" in out, err
        for target in (["b.json"], ["voc", "--to", "voc"]):
            status, _, err = command("data", "convert", panoptic, panoptic.parent / target[0], *target[1:])
            assert status == 1 and "neither fixed nor converted" in err
        status, _, err = command("data", "check", panoptic, "--fix", panoptic.parent / "fixed.json")
        assert status == 1 and "neither fixed nor converted" in err
        assert not [p for p in panoptic.parent.iterdir() if p.name in ("b.json", "voc", "fixed.json")]

    def test_mistakes_of_panoptic_files(self, command, panoptic):
        content = json.loads(panoptic.read_text())
        (segment, _) = content["annotations"][0]["segments_info"]
        segment["id"] = 5
        panoptic.write_text(json.dumps(content))
        status, out, _ = command("data", "check", panoptic)
        assert status == 1 and "[segment-absent]" in out and "[segment-unknown]" in out
        segment["category_id"] = 4
        panoptic.write_text(json.dumps(content))
        status, _, err = command("data", "check", panoptic)
        assert status == 1 and "segment 5 of image id 1: it has category_id 4" in err
        for part in ("pan", "sem"):
            (panoptic.parent / part / "a.png").unlink()
        status, _, err = command("data", "check", panoptic)
        assert status == 1 and "'a.png', is in no folder beside it" in err

    def test_registered_panoptic_and_semantic_sets(self, command, panoptic):
        folder = panoptic.parent
        (folder / "own_pixels.py").write_text(
            "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
            "from detectron2.data.datasets import load_sem_seg, register_coco_panoptic_separated\n"
            f"F = {str(folder)!r}\n"
            "register_coco_panoptic_separated('cli_pan', {}, F + '/img', F + '/pan', F + '/pan.json', F + '/sem',"
            " F + '/objects.json')\n"
        )
        more = ["--import", folder / "own_pixels.py"]
        try:
            for name in ("cli_pan_separated", "cli_pan_stuffonly"):
                status, _, err = command("data", "check", name, *more)
                sys.modules.pop("own_pixels")
                assert status == 0, err
            status, _, err = command("data", "convert", "cli_pan_separated", folder / "b.json", *more)
            sys.modules.pop("own_pixels")
            assert status == 0 and "1 image has 'sem_seg_file_name', which files of objects do not have" in err
            assert len(json.loads((folder / "b.json").read_text())["annotations"]) == 1
            status, _, err = command("data", "convert", "cli_pan_stuffonly", folder / "c.json", *more)
            assert status == 1 and "is a data set of semantic segmentation" in err and not (folder / "c.json").exists()
        finally:
            sys.modules.pop("own_pixels", None)

    def test_nobody_reads(self, good):
        """As when the output goes into ``head``; Python would show a traceback."""
        program = [sys.executable, "-m", "detectron2", "data", "check", str(good)]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141

    @pytest.mark.skipif(os.name != "posix", reason="a shell closes streams")
    def test_the_caller_has_closed_the_streams(self, good):
        """As `>&-` and some schedulers do; Python has no `sys.stdout` then."""
        program = [sys.executable, "-m", "detectron2", "data", "check", str(good)]
        for closed in (">&-", ">&- 2>&-"):
            done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *program], capture_output=True, timeout=120)
            assert (done.returncode, done.stderr) == (0, b"")


class TestFix:
    def test_nothing_to_fix(self, command, good, tmp_path):
        status, out, _ = command("data", "check", good, "--fix", tmp_path / "good" / "fixed.json", "--json")
        assert status == 0
        changes = json.loads(out)["fix"]["changes"]
        assert changes == {"missing 'iscrowd' set to 0": 3, "missing 'area' computed": 4}
        before, after = json.loads(good.read_text()), json.loads((tmp_path / "good" / "fixed.json").read_text())
        assert [a["area"] for a in after["annotations"]] == [100, 12.5 * 20.25, 200, 2400]
        for a in after["annotations"]:
            del a["area"]
        for a in before["annotations"]:
            a.setdefault("iscrowd", 0)
        assert after == before

    def test_what_only_a_person_can_tell_is_left_and_named(self, command, tmp_path):
        boxes = [annotation(1, iscrowd=0, area=110), annotation(2, bbox=[2, 3, 1, 1], iscrowd=0, area=1)]
        path = write_coco(tmp_path, [image(1)], boxes, CATEGORIES)
        status, out, _ = command("data", "check", path, "--fix", tmp_path / "fixed.json")
        assert status == 0 and "[box-tiny]" in out and "there was nothing to fix" not in out
        _, fixed = out.split("Wrote ")
        assert "nothing that could be fixed without guessing" in fixed
        assert "1 annotation has a box of no more than a pixel in width or height" in fixed

    def test_all_mistakes(self, command, tmp_path):
        path, target = mistakes(tmp_path / "bad"), tmp_path / "bad" / "fixed.json"
        status, out, err = command("data", "check", path, "--fix", target)
        assert status == 0, out + err
        assert "It passes the check." in out
        status, out, _ = command("data", "check", target)
        assert status == 0, out
        content = json.loads(target.read_text())
        assert content["extra"] == 1
        # 2 is the file of 1, 4 is missing; the boxes in 5 and 6 fit into the files, but not into the sizes said
        assert [(i["id"], i.get("width"), i.get("height")) for i in content["images"]] == [
            *((1, 60, 40), (3, None, None), (5, 60, 40), (6, 60, 40))
        ]
        assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cat"), (5, "dog"), (7, "class_7")]
        boxes = {a["id"]: a["bbox"] for a in content["annotations"]}
        assert boxes == {
            1: [2, 3, 10, 11],
            5: [50, 30, 10, 10],
            8: [2, 2, 10, 10],
            10: [1, 1, 8, 8],
            11: [1, 1, 7, 8],
            12: [1, 1, 6, 8],
            13: [1, 2, 6, 8],
            14: [1, 2, 6, 7],
            15: [1, 2, 6, 6],
            18: [45, 5, 5, 10],
            19: [45, 3, 10, 11],
            24: [1, 2, 3, 6],
            25: [20, 3, 10, 11],
            26: [1, 1, 5, 5],
        }
        of = {a["id"]: a for a in content["annotations"]}
        assert of[10]["segmentation"] == [SQUARE] and "segmentation" not in of[12]
        assert of[11]["iscrowd"] == 1 and of[15]["keypoints"] == [] and of[8]["area"] == 100
        records = load_coco_json(target, tmp_path / "bad")
        assert sum(len(r["annotations"]) for r in records) == len(boxes)

    def test_a_repair_that_leaves_no_annotation_does_not_pass(self, command, tmp_path):
        path = write_coco(tmp_path, [image(1)], [annotation(1, category_id=3)], CATEGORIES)
        status, out, _ = command("data", "check", path, "--fix", tmp_path / "fixed.json")
        assert status == 1 and "not a repair: 0 of 1 annotations are left" in out

    def test_a_set_that_had_no_annotation_does_not_pass(self, command, tmp_path):
        path = write_coco(tmp_path, [image(1)], [], CATEGORIES)
        status, out, _ = command("data", "check", path, "--fix", tmp_path / "fixed.json")
        assert status == 1 and "it has no annotation" in out and "passes" not in out

    def test_a_repair_that_loses_a_class_or_most_of_the_set_does_not_pass(self, command, tmp_path):
        for n, (bad, said) in enumerate(
            {5: "no annotation of 'dog' is left", 1: "2 of 5 annotations are left"}.items()
        ):
            boxes = [(1, [1, 1, 3, k]) for k in (5, 6)] + [
                (bad, [1, 1, 0, k]) for k in (range(2) if n == 0 else range(3))
            ]
            annotations = [annotation(k, category_id=c, bbox=b) for k, (c, b) in enumerate(boxes)]
            path = write_coco(tmp_path, [image(1)], annotations, CATEGORIES)
            status, out, _ = command("data", "check", path, "--fix", tmp_path / "fixed.json")
            assert status == 1 and said in out

    def test_photos_that_were_annotated_as_stored(self, command, yaml_file, tmp_path):
        turned_photo(tmp_path / "f" / "1.png")
        path = write_coco(
            tmp_path / "f", [image(1, width=160, height=96)], [annotation(1, bbox=[10, 20, 50, 30])], CATEGORIES
        )
        status, out, _ = command("data", "check", path)
        assert status == 1 and "[file-exif]" in out and "--fix cleaned.json" in out and "INPUT.EXIF" in out
        # or the images are read as they are stored, by all that read them
        one_policy = ["--config-file", yaml_file, "--opts", "INPUT.EXIF", "ignore", "MODEL.MASK_ON", "False"]
        status, out, _ = command("data", "check", path, *one_policy)
        assert status == 0, out
        status, out, _ = command("data", "show", path, *one_policy, "--output", tmp_path / "shown")
        with Image.open(tmp_path / "shown" / "1.png") as picture:
            assert picture.size == (160, 96)
        (record,) = load_coco_json(path, tmp_path / "f")
        arguments = {"is_train": True, "augmentations": [], "image_format": "RGB"}
        assert (DatasetMapper(**arguments, exif="ignore")(record)["image"][:, 20:50, 10:60] == 220).all()
        with pytest.raises(ValueError, match=r"96 pixels wide.*--fix cleaned.json"):
            DatasetMapper(**arguments)(record)
        status, out, _ = command("data", "check", path, "--fix", tmp_path / "f" / "fixed.json")
        assert status == 0 and "It passes the check." in out
        (record,) = load_coco_json(tmp_path / "f" / "fixed.json", tmp_path / "f")
        assert record["annotations"][0]["bbox"] == [46, 10, 30, 50]
        assert (read_image(record["file_name"])[10:60, 46:76] == 220).all()

    def test_text_ids_are_kept(self, command, tmp_path):
        path = write_coco(tmp_path, [image(1)], [annotation(1, category_id="5")], CATEGORIES)
        status, out, _ = command("data", "check", path, "--fix", tmp_path / "fixed.json")
        assert status == 0 and "1  ids written as the images and categories have them" in out
        assert json.loads((tmp_path / "fixed.json").read_text())["annotations"][0]["category_id"] == 5

    def test_other_ways_to_write_polygons(self, command, tmp_path):
        pairs = [SQUARE[i : i + 2] for i in range(0, len(SQUARE), 2)]
        annotations = [
            annotation(1, segmentation=SQUARE),
            annotation(2, bbox=[0, 0, 9, 9], segmentation=[pairs, SQUARE]),
        ]
        path, target = write_coco(tmp_path, [image(1)], annotations, CATEGORIES), tmp_path / "fixed.json"
        status, out, _ = command("data", "check", path, "--fix", target)
        assert status == 0 and "2  annotations" not in out
        assert "1  polygons put into a list" in out and "1  polygons with pairs of numbers written as one list" in out
        masks = [a["segmentation"] for a in json.loads(target.read_text())["annotations"]]
        assert masks == [[SQUARE], [SQUARE, SQUARE]]

    def test_without_files(self, command, tmp_path):
        path, target = mistakes(tmp_path / "bad"), tmp_path / "bad" / "fixed.json"
        status, _, _ = command("data", "check", path, "--fix", target, "--files", "none")
        assert status == 0
        assert {i["id"] for i in json.loads(target.read_text())["images"]} == {1, 3, 4, 5, 6}


class TestShow:
    def test_raw(self, command, good, tmp_path):
        status, out, err = command("data", "show", good, "--output", tmp_path / "out")
        assert status == 0, err
        assert "3 pictures are in" in out
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.png", "2.png", "3.png"]
        with Image.open(tmp_path / "out" / "3.png") as picture:  # nothing is drawn on it
            assert picture.size == (60, 40) and picture.getpixel((30, 20)) == (200, 30, 30)
        assert np.asarray(Image.open(tmp_path / "out" / "1.png")).std(axis=(0, 1)).max() > 5

    @pytest.mark.parametrize("augmented", [False, True])
    def test_other_than_8_bit_rgb(self, command, yaml_file, tmp_path, augmented):
        """Values from the lowest to the highest become grey levels from black to white."""
        values = np.full((40, 60), 3000, np.uint16)
        values[:, 30:] = 9000
        images = [image(1), image(2, file_name="2.npy")]
        np.save(tmp_path / "2.npy", np.stack([values] * 5, axis=2))
        Image.fromarray(values).save(tmp_path / "1.png")
        options = ["--augmented", "--config", yaml_file, "--opts", "INPUT.FORMAT", "None", "INPUT.RANDOM_FLIP", "none"]
        status, _, err = command(
            *("data", "show", write_coco(tmp_path, images, [], CATEGORIES), "--output", tmp_path / "out"),
            *(options if augmented else []),
        )
        assert status == 0 and not err.count("left out"), err
        for n in (1, 2):
            picture = np.asarray(Image.open(tmp_path / "out" / f"{n}.png"))
            assert (picture[5, 5] == 0).all() and (picture[-5, -5] == 255).all()

    @pytest.mark.parametrize("order", ["BGR", "RGB"])
    def test_augmented(self, command, good, yaml_file, tmp_path, order):
        status, _, err = command(
            *("data", "show", good, "--augmented", "--config", yaml_file, "--output", tmp_path / "out"),
            *("--opts", "INPUT.FORMAT", order, "INPUT.MASK_FORMAT", "bitmask", "MODEL.MASK_ON", "False"),
        )
        assert status == 0, err
        with Image.open(tmp_path / "out" / "3.png") as picture:
            # INPUT.MIN_SIZE_TRAIN is 64; the colour is that of the file whatever the order of the tensor
            assert picture.size == (96, 64) and picture.getpixel((30, 20)) == (200, 30, 30)

    @pytest.mark.parametrize("sheet", ["", "sheet.txt", "sheet"])
    def test_a_sheet_is_a_picture(self, command, data, tmp_path, sheet):
        status, _, err = command("data", "show", data / "annotations.json", "--sheet", tmp_path / sheet)
        assert status == 1 and "name a .png or .jpg file" in err and list(tmp_path.glob("sheet*")) == []

    def test_augmented_lazily(self, command, data, lazy_file, tmp_path):
        sheet = tmp_path / "sheet.png"
        status, out, err = command(
            *("data", "show", data / "annotations.json", "--augmented", "--config", lazy_file),
            *("--sheet", sheet, "--num", "3"),
        )
        assert status == 0, err
        assert "3 samples are in" in out
        with Image.open(
            sheet
        ) as picture:  # two columns and two rows of 384 x (256 + 16), four times as large, gaps of 4
            assert picture.size == (2 * 388 + 4, 2 * 276 + 4)

    def test_several_images_in_one(self, command, lazy_file, tmp_path):
        """In the order of channels of the mapper that is wrapped."""
        config = tmp_path / "mosaic.py"
        config.write_text(
            Path(lazy_file).read_text() + "\nfrom detectron2.data import Mosaic, MultiImageMapper\n"
            "dataloader.train.mapper = L(MultiImageMapper)(\n"
            "    mapper=dataloader.train.mapper, augmentations=[L(Mosaic)(size=(40, 60), scale_range=(2, 2))]\n)\n"
        )
        status, _, err = command(
            *("data", "show", write_coco(tmp_path, [image(1)], [], CATEGORIES), "--augmented", "--config", config),
            *("--output", tmp_path / "out"),
        )
        assert status == 0, err
        assert np.asarray(Image.open(tmp_path / "out" / "1.png"))[20, 30].tolist() == [200, 30, 30]

    def test_seed(self, command, data, tmp_path):
        files = {}
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            command(
                "data", "show", data / "annotations.json", "--num", "2", "--seed", seed, "--output", tmp_path / name
            )
            files[name] = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        assert files["a"] == files["b"] and len(files["a"]) == 2
        assert files["a"].keys() != files["c"].keys()

    def test_mistakes_are_no_obstacle(self, command, tmp_path):
        status, out, err = command("data", "show", mistakes(tmp_path / "bad"), "--output", tmp_path / "out")
        assert status == 0, err
        assert "left out" in err and "gone.png" in err and "5 pictures" in out

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--augmented"], "--augmented needs --config-file"),
            (["--num", "0"], "--num is a number of samples from 1 on"),
            ([], "has no images"),
        ],
    )
    def test_errors(self, command, tmp_path, args, message):
        status, _, err = command("data", "show", write_coco(tmp_path), *args)
        assert status == 1 and message in err


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ([annotation(1, category_id=0), annotation(2, category_id=4)], "category-shifted"),
        ([annotation(n, bbox=(20 + n, 5, 50, 30)) for n in (1, 2)], "box-corners"),
        ([annotation(n, bbox=(45 + n, 20, 20, 30)) for n in (1, 2)], "box-centres"),
        ([annotation(n, bbox=(0.1 * n, 0.2, 0.3, 0.4)) for n in (1, 2)], "box-shares"),
    ],
)
def test_fix_writes_nothing_where_only_the_user_knows(tmp_path, capsys, annotations, said):
    categories = [{"id": i, "name": f"c{i}"} for i in (1, 5)]
    file = write_coco(tmp_path, [image(1)], annotations, categories)
    assert main(["data", "check", str(file), "--fix", str(tmp_path / "fixed.json")]) == 1
    out = capsys.readouterr().out
    assert f"[{said}]" in out and "Wrote nothing" in out and not (tmp_path / "fixed.json").exists()


def test_conversion_refuses_what_only_the_user_knows(tmp_path, capsys):
    file = write_coco(tmp_path, [image(1)], [annotation(n, bbox=(20 + n, 5, 50, 30)) for n in (1, 2)], CATEGORIES[:1])
    assert main(["data", "convert", str(file), str(tmp_path / "new.json")]) == 1
    assert "all would fit as corners" in capsys.readouterr().err and not (tmp_path / "new.json").exists()


def test_conversion_and_fix_refuse_labels_of_another_form(tmp_path, capsys):
    for part in ("images", "labels"):
        (tmp_path / "yolo" / part).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "yolo" / "images" / "a.png")
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.1 0.5 0.3 0.9\n0 0.6 0.1 0.9 0.7")
    assert main(["data", "convert", str(tmp_path / "yolo"), str(tmp_path / "new.json")]) == 1
    assert "all 2 would fit as corners" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "yolo"), "--fix", str(tmp_path / "new.json")]) == 1
    assert "Wrote nothing" in capsys.readouterr().out and not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_conversion_of_odd_names_can_be_read_again(tmp_path, to):
    names = ["a\nb.jpg", " c .jpg", "C.jpg", "c.jpg", "q'\".jpg", "\udcff.jpg", "%s.jpg", "-d.jpg", "ü 1.jpg"]
    entries = [image(n, file_name=name) for n, name in enumerate(names, start=1)]
    file = write_coco(tmp_path, entries, [annotation(n, image_id=n) for n in range(1, 10)], CATEGORIES[:1])
    assert main(["data", "convert", str(file), str(tmp_path / "new"), "--to", to, "--images", "copy"]) == 0
    source = tmp_path / "new" / "annotations" / "train.json" if to == "coco" else tmp_path / "new"
    assert main(["data", "check", str(source)]) == 0
    assert main(["data", "convert", str(source), str(tmp_path / "back.json")]) == 0
    assert len(json.loads((tmp_path / "back.json").read_text())["annotations"]) == 9


def test_conversion_to_voc_needs_names_that_xml_can_hold(tmp_path, capsys):
    file = write_coco(tmp_path, [image(1)], [annotation(1)], [{"id": 1, "name": "a\x07"}])
    assert main(["data", "convert", str(file), str(tmp_path / "new"), "--to", "voc"]) == 1
    assert r"names of the categories 'a\x07'" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_conversion_to_voc_needs_names(tmp_path, capsys):
    file = write_coco(tmp_path, [image(1)], [annotation(1)], [{"id": 1, "name": " "}])
    assert main(["data", "convert", str(file), str(tmp_path / "voc"), "--to", "voc"]) == 1
    assert "the categories with the ids [1] have no name" in capsys.readouterr().err
    assert not (tmp_path / "voc").exists()


def test_fix_reads_true_as_the_loader_does(tmp_path, capsys):
    file = write_coco(tmp_path, [image(1)], [annotation(1, image_id=True, category_id=True)], CATEGORIES[:1])
    assert main(["data", "check", str(file), "--fix", str(tmp_path / "fixed.json")]) == 0
    (fixed,) = json.loads((tmp_path / "fixed.json").read_text())["annotations"]
    assert (fixed["image_id"], fixed["category_id"]) == (1, 1) and fixed["image_id"] is not True


def test_fix_that_loses_the_keypoints_is_no_repair(tmp_path, capsys):
    annotations = [annotation(n, bbox=(n, 3, 10, 11), keypoints=[4, 5, 6, 7]) for n in (1, 2)]
    file = write_coco(tmp_path, [image(1)], annotations, CATEGORIES[:1])
    assert main(["data", "check", str(file), "--fix", str(tmp_path / "fixed.json")]) == 1
    assert "This is not a repair: none of 2 'keypoints' is left." in capsys.readouterr().out


def test_fix_tells_what_it_could_not_read(tmp_path, capsys):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    good, bad = "0 0.5 0.5 0.2 0.1\n", "0,0.5,0.5,0.2,0.1\n"
    for text, code, said in ((good + bad, 0, "It passes"), (good + 2 * bad, 1, "not a repair: 1 of 3 annotations")):
        (tmp_path / "labels" / "a.txt").write_text(text)
        assert main(["data", "check", str(tmp_path), "--fix", str(tmp_path / "fixed.json")]) == code
        out = capsys.readouterr().out
        assert said in out and f"{text.count(bad)}  lines, objects or files that cannot be read left out" in out


def objects_of(path: Path) -> dict[str, list[tuple]]:
    """Return (class name, box) of all but crowd regions by the name of the image."""
    content = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    result: dict[str, list[tuple]] = {Path(i["file_name"]).stem: [] for i in content["images"]}
    files = {i["id"]: Path(i["file_name"]).stem for i in content["images"]}
    for a in content["annotations"]:
        if not a.get("iscrowd", 0):
            result[files[a["image_id"]]].append((names[a["category_id"]], *a["bbox"]))
    return result


def assert_same_objects(a: Path, b: Path, tolerance: float) -> None:
    first, second = objects_of(a), objects_of(b)
    assert first.keys() == second.keys()
    for name in first:
        assert [o[0] for o in first[name]] == [o[0] for o in second[name]]
        np.testing.assert_allclose([o[1:] for o in first[name]], [o[1:] for o in second[name]], atol=tolerance)


class TestConvert:
    def test_empty(self, command, tmp_path):
        source = write_coco(tmp_path / "empty")
        for target in ("voc", "yolo"):
            status, _, err = command("data", "convert", source, tmp_path / target, "--to", target)
            assert status == 0, err
            status, _, err = command("data", "convert", tmp_path / target, tmp_path / f"{target}.json")
            assert status == 0, err
            assert json.loads((tmp_path / f"{target}.json").read_text())["images"] == []

    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_round_trip(self, command, good, tmp_path, form):
        status, out, err = command("data", "convert", good, tmp_path / form, "--to", form)
        assert status == 0, err
        assert "3 images, 4 annotations, 2 classes; splits: train (3)" in out and "1 crowd regions could not" in out
        status, _, err = command("data", "convert", tmp_path / form, tmp_path / "back.json")
        assert status == 0, err
        assert_same_objects(good, tmp_path / "back.json", 0.006 if form == "voc" else 1e-3)
        assert not list(tmp_path.glob("*.tmp"))
        status, out, _ = command("data", "check", tmp_path / form)
        assert status == 0, out

    def test_voc_files(self, command, good, tmp_path):
        command("data", "convert", good, tmp_path / "voc", "--to", "voc")
        root = ET.parse(tmp_path / "voc" / "Annotations" / "1.xml").getroot()
        assert root.findtext("filename") == "1.png" and root.findtext("size/width") == "60"
        # pixels from 1, the last one included: [2, 2, 10, 10] covers the pixels 3 to 12
        box = root.find("object/bndbox")
        assert [e.text for e in box] == ["3", "3", "12", "12"]
        (first, _, _) = load_voc_instances(tmp_path / "voc", "train", ["cat", "dog"])
        assert first["annotations"][0]["bbox"] == [2, 2, 12, 12]
        assert first["annotations"][1] == {"category_id": 1, "bbox": [30.25, 4.5, 42.75, 24.75], "bbox_mode": 0}
        assert Path(first["file_name"]).is_symlink() and Path(first["file_name"]).is_file()

    def test_yolo_files(self, command, good, tmp_path):
        command("data", "convert", good, tmp_path / "yolo", "--to", "yolo", "--images", "copy", "--split", "val")
        assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text()) == {
            "val": "images/val",
            "names": {0: "cat", 1: "dog"},
        }
        outline, box = (tmp_path / "yolo" / "labels" / "val" / "1.txt").read_text().splitlines()
        np.testing.assert_allclose(
            [float(v) for v in outline.split()], [0, *(np.array(SQUARE) / [60, 40, 60, 40, 60, 40, 60, 40])], rtol=1e-6
        )
        expected = [1, (30.25 + 6.25) / 60, (4.5 + 10.125) / 40, 12.5 / 60, 20.25 / 40]
        np.testing.assert_allclose([float(v) for v in box.split()], expected, rtol=1e-6)
        assert (tmp_path / "yolo" / "labels" / "val" / "3.txt").read_text() == ""
        copied = tmp_path / "yolo" / "images" / "val" / "1.png"
        assert copied.is_file() and not copied.is_symlink()

    def test_yolo_keeps_polygons(self, command, good, tmp_path):
        command("data", "convert", good, tmp_path / "yolo", "--to", "yolo")
        command("data", "convert", tmp_path / "yolo", tmp_path / "back.json")
        first = json.loads((tmp_path / "back.json").read_text())["annotations"][0]
        np.testing.assert_allclose(first["segmentation"], [SQUARE], atol=1e-3)
        assert first["area"] == pytest.approx(100, abs=0.01)

    def test_parts_and_pixels_become_one_outline(self, command, tmp_path):
        """Area and bounds are those of the parts; their outlines run in different directions here."""
        far = [30, 20, 30, 30, 50, 30, 50, 20]
        annotations = [
            annotation(1, bbox=(2, 2, 48, 28), segmentation=[SQUARE, far]),
            annotation(2, bbox=(5, 10, 20, 10), segmentation=run_lengths()),
        ]
        source = write_coco(tmp_path / "a", [image(1)], annotations, CATEGORIES)
        status, out, err = command("data", "convert", source, tmp_path / "yolo", "--to", "yolo")
        assert status == 0, err
        assert "masks" not in out
        command("data", "convert", tmp_path / "yolo", tmp_path / "back.json")
        parts, pixels = json.loads((tmp_path / "back.json").read_text())["annotations"]
        assert parts["area"] == pytest.approx(100 + 200, abs=0.01)
        np.testing.assert_allclose(parts["bbox"], [2, 2, 48, 28], atol=1e-3)
        assert pixels["area"] == pytest.approx(200, abs=1)  # without the corners
        np.testing.assert_allclose(pixels["bbox"], [5, 10, 20, 10], atol=1e-3)

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_what_loading_leaves_out_is_left_out_and_counted(self, command, tmp_path, form):
        annotations = [
            annotation(1, segmentation=[SQUARE]),
            annotation(2, bbox=(30, 5, 10, 10), segmentation=[SQUARE, [1, 1, 5, 1, 5]]),
            annotation(3, bbox=(30, 20, 10, 10), segmentation=[[{"x": 1, "y": 2}]]),
            annotation(4, image_id=-7),
        ]
        source = write_coco(tmp_path / "a", [image(1)], annotations, CATEGORIES)
        target = tmp_path / "b.json" if form == "coco" else tmp_path / form
        status, out, err = command("data", "convert", source, target, "--to", form)
        assert status == 0, err
        for said in ("1 annotations of images that are not there", "1 annotations without a usable polygon"):
            assert f"{said} were left out" in out
        assert "1 annotations lost polygons that cannot be used" in out
        if form != "coco":
            command("data", "convert", target, tmp_path / "b.json")
        found = json.loads((tmp_path / "b.json").read_text())["annotations"]
        assert len(found) == 2
        if form != "voc":
            np.testing.assert_allclose([a["segmentation"] for a in found], [[SQUARE], [SQUARE]], atol=1e-3)

    def test_an_outline_without_height_becomes_its_box_in_yolo(self, command, tmp_path):
        flat = annotation(1, bbox=(5, 6, 20, 15), segmentation=[[5, 6, 25, 6, 15, 6]])
        source = write_coco(tmp_path / "a", [image(1)], [flat], CATEGORIES)
        status, out, _ = command("data", "convert", source, tmp_path / "yolo", "--to", "yolo")
        assert status == 0 and "1 masks without an outline (written as boxes)" in out
        status, _, err = command("data", "convert", tmp_path / "yolo", tmp_path / "b.json")
        assert status == 0, err
        (found,) = json.loads((tmp_path / "b.json").read_text())["annotations"]
        np.testing.assert_allclose(found["bbox"], [5, 6, 20, 15], atol=1e-3)

    def test_to_a_coco_folder(self, command, voc_folder, tmp_path):
        status, _, err = command("data", "convert", voc_folder, tmp_path / "coco", "--to", "coco")
        assert status == 0, err
        assert sorted(p.name for p in (tmp_path / "coco" / "annotations").iterdir()) == [
            *("test.json", "train.json", "trainval.json")
        ]
        (record,) = load_coco_json(tmp_path / "coco" / "annotations" / "test.json", tmp_path / "coco" / "images")
        assert Path(record["file_name"]).is_file() and len(record["annotations"]) == 1

    def test_splits(self, command, voc_folder, tmp_path):
        """In the YOLO format, each image is in one split."""
        command("data", "convert", voc_folder, tmp_path / "yolo", "--to", "yolo")
        settings = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
        assert settings == {"test": "images/test", "train": "images/train", "names": {0: "cat", 1: "dog"}}
        command("data", "convert", tmp_path / "yolo", tmp_path / "voc", "--to", "voc")
        assert (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").read_text().split() == ["a", "b"]
        status, _, _ = command("data", "convert", voc_folder, tmp_path / "b.json", "--split", "test")
        assert status == 0 and list(objects_of(tmp_path / "b.json")) == ["c"]

    def test_flags_of_voc_survive(self, command, voc_folder, tmp_path):
        command("data", "convert", voc_folder, tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_text())["annotations"][0]["difficult"] == 1
        command(
            "data",
            "convert",
            tmp_path / "a.json",
            tmp_path / "voc",
            "--to",
            "voc",
            "--image-root",
            voc_folder / "JPEGImages",
        )
        root = ET.parse(tmp_path / "voc" / "Annotations" / "a.xml").getroot()
        assert root.findtext("object/difficult") == "1" and root.findtext("object/pose") == "Left"

    def test_same_name_in_two_folders(self, command, tmp_path):
        for folder in "xy":
            (tmp_path / folder).mkdir()
        images = [image(1, file_name="x/1.png"), image(2, file_name="y/1.png")]
        source = write_coco(tmp_path, images, [annotation(1), annotation(2, image_id=2, bbox=(0, 0, 5, 5))], CATEGORIES)
        status, _, err = command("data", "convert", source, tmp_path / "voc", "--to", "voc")
        assert status == 0, err
        assert sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").iterdir()) == ["1.png", "y_1.png"]

    def test_mistakes_stop_it(self, command, tmp_path):
        status, _, err = command("data", "convert", mistakes(tmp_path / "bad"), tmp_path / "voc", "--to", "voc")
        assert status == 1 and "DatasetError" in err and "category_id that is not among" in err
        assert not (tmp_path / "voc").exists()

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_boxes_are_in_their_images(self, command, tmp_path, form):
        """What reaches over the edge is clipped, box and outline, and counted; area that was that of the box, too."""
        wide = [50, 5, 90, 5, 90, 25, 50, 25]
        annotations = [
            annotation(1, bbox=(50, 30, 20, 20), area=400),
            annotation(2, bbox=(-10, 5, 20, 10), iscrowd=0),
            annotation(3, image_id=2, bbox=(50, 5, 40, 20), segmentation=[wide]),
            annotation(4, image_id=2, bbox=(0, 0, 60.0004, 40)),
        ]
        source = write_coco(tmp_path / "a", [image(1), image(2)], annotations, CATEGORIES)
        target = tmp_path / "a.json" if form == "coco" else tmp_path / form
        status, out, err = command("data", "convert", source, target, "--to", form)
        assert status == 0 and "3 boxes were clipped to their image" in out, err
        if form != "coco":
            command("data", "convert", target, tmp_path / "a.json")
        found = json.loads((tmp_path / "a.json").read_text())["annotations"]
        boxes = [[50, 30, 10, 10], [0, 5, 10, 10], [50, 5, 10, 20], [0, 0, 60, 40]]
        np.testing.assert_allclose([a["bbox"] for a in found], boxes, atol=1e-3)
        if form == "coco":
            assert found[0]["area"] == 100 and "area" not in found[1]
        if form == "yolo":
            np.testing.assert_allclose(np.max(found[2]["segmentation"]), 60)

    @pytest.mark.parametrize("box", [(70, 3, 10, 11), (2, 3, 0, 11), (2, -20, 5, 10)])
    def test_boxes_that_training_refuses_are_refused(self, command, tmp_path, box):
        source = write_coco(tmp_path, [image(1)], [annotation(1), annotation(2, bbox=box)], CATEGORIES)
        for target in ("b.json", "voc"):
            status, _, err = command("data", "convert", source, tmp_path / target, "--to", "coco")
            assert status == 1 and "(id 2)" in err and "--fix cleaned.json" in err
            assert not (tmp_path / target).exists()
        command("data", "check", source, "--fix", tmp_path / "fixed.json")
        status, _, err = command("data", "convert", tmp_path / "fixed.json", tmp_path / "b.json")
        assert status == 0, err

    def test_boxes_that_training_leaves_out_are_left_out(self, command, tmp_path):
        source = write_coco(tmp_path, [image(1)], [annotation(1), annotation(2, bbox=(70, 3, 10, 11))], CATEGORIES)
        MetadataCatalog.get("cli_loose").set(degenerate_boxes="drop")
        try:
            register = ["--coco", "cli_loose", source, tmp_path]
            status, out, err = command("data", "convert", "cli_loose", tmp_path / "b.json", *register)
        finally:
            MetadataCatalog.pop("cli_loose", None)
        assert status == 0 and "1 annotations without area in their image were left out" in out, err
        assert len(json.loads((tmp_path / "b.json").read_text())["annotations"]) == 1

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo", "registered"])
    def test_an_object_without_a_category_is_refused(self, command, tmp_path, form):
        (tmp_path / "a").mkdir()
        source = write_coco(tmp_path / "a", [image(1)], [annotation(1), annotation(2)], CATEGORIES)
        more = []
        if form == "coco":
            content = json.loads(source.read_text())
            del content["annotations"][1]["category_id"]
            source.write_text(json.dumps(content))
        elif form == "registered":
            more = ["--import", tmp_path / "own_records.py"]
            one = {"bbox": [1, 2, 3, 4], "bbox_mode": 1}
            record = {"file_name": "x.png", "image_id": 1, "height": 40, "width": 60, "annotations": [one]}
            (tmp_path / "own_records.py").write_text(
                "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
                f"DatasetCatalog.register('cli_no_class', lambda: [{record}])\n"
                "MetadataCatalog.get('cli_no_class').set(thing_classes=['cat'])\n"
            )
            source = "cli_no_class"
        else:
            command("data", "convert", source, tmp_path / form, "--to", form)
            source = tmp_path / form
            labels = source / ("Annotations/1.xml" if form == "voc" else "labels/train/1.txt")
            text = labels.read_text()
            labels.write_text(text.replace("<name>cat</name>", "", 1) if form == "voc" else text.replace("0 ", "", 1))
        try:
            status, out, _ = command("data", "check", source, *more)
            assert status == 1 and "ERROR" in out
            status, _, _ = command("data", "convert", source, tmp_path / "b.json", *more)
            assert status == 1 and not (tmp_path / "b.json").exists()
        finally:
            sys.modules.pop("own_records", None)

    @pytest.mark.parametrize("exif", ["apply", "ignore"])
    def test_sizes_of_turned_photos(self, command, yaml_file, tmp_path, exif):
        """The size that is not said, or that the format never says, is that of the images as they are read."""
        turned_photo(tmp_path / "f" / "1.png")
        stored, upright = ((160, 96), [10, 20, 50, 30]), ((96, 160), [46, 10, 30, 50])
        (wh, box), other = (upright, stored) if exif == "apply" else (stored, upright)
        source = write_coco(tmp_path / "f", [{"id": 1, "file_name": "1.png"}], [annotation(1, bbox=box)], CATEGORIES)
        option = ["--exif", exif] if exif == "ignore" else []
        status, out, err = command("data", "check", source, *option)
        assert status == 0, out
        for more in (option, ["--config-file", yaml_file, "--opts", "INPUT.EXIF", exif]):
            folder = tmp_path / f"yolo{len(more)}"
            status, out, err = command("data", "convert", source, folder, "--to", "yolo", *more)
            assert status == 0, err
            numbers = [float(v) for v in (folder / "labels/train/1.txt").read_text().split()]
            centre = [(box[0] + box[2] / 2) / wh[0], (box[1] + box[3] / 2) / wh[1]]
            np.testing.assert_allclose(numbers, [0, *centre, box[2] / wh[0], box[3] / wh[1]], rtol=1e-6)
        command("data", "convert", folder, tmp_path / "back.json", *option)
        back = json.loads((tmp_path / "back.json").read_text())
        assert (back["images"][0]["width"], back["images"][0]["height"]) == wh
        np.testing.assert_allclose(back["annotations"][0]["bbox"], box, atol=1e-3)
        # a size that is said, and is not that of the image as it is read, is an error as in the check
        write_coco(tmp_path / "f", [image(1, width=other[0][0], height=other[0][1])], [annotation(1)], CATEGORIES)
        status, _, err = command("data", "convert", source, tmp_path / "no.json", *option)
        assert status == 1 and "height and width exchanged by their EXIF orientation" in err

    def test_nothing_is_left_of_a_failure(self, command, good, tmp_path):
        (good.parent / "2.png").unlink()
        status, _, err = command("data", "convert", good, tmp_path / "voc", "--to", "voc")
        assert status == 1 and "There is no image" in err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["good"]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["{new}"], "Name the format to convert to"),
            (["{new}.json", "--to", "voc"], "is a file, but the voc format is a folder"),
            (["{old}", "--to", "voc"], "exists already"),
            (["{file}"], "exists already"),
        ],
    )
    def test_errors(self, command, good, tmp_path, args, message):
        places = {"new": tmp_path / "new", "old": good.parent, "file": good}
        status, _, err = command("data", "convert", good, *[a.format(**places) for a in args])
        assert status == 1 and message in err


OBJECT = """<object><name>{}</name><pose>Left</pose><difficult>1</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def voc_folder(tmp_path) -> Path:
    """Images a, b of the list train, c of test; all of them are in trainval but c."""
    root = tmp_path / "source"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True)
    lists = {"train": "ab", "test": "c", "trainval": "ab"}
    for name, stems in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems))
    for n, stem in enumerate("abc"):
        Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{stem}.jpg")
        text = OBJECT.format(("cat", "dog")[n % 2], 1 + n, 2, 30, 40)
        size = "<size><width>60</width><height>40</height></size>"
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    return root


class TestVoc:
    def test_mistakes(self, command, voc_folder):
        folder = voc_folder / "Annotations"
        (folder / "a.xml").write_text("<annotation>")
        (folder / "b.xml").write_text(
            "<annotation><filename>z.jpg</filename><size><width>0</width></size>"
            + OBJECT.format("", 1, 2, 3, 4)
            + OBJECT.format("dog", 1, "", 3, 4)
            + OBJECT.format("bird", 1, 2, 13, 14)
            + "</annotation>"
        )
        (folder / "d.xml").write_text("<annotation/>")
        (voc_folder / "ImageSets" / "Main" / "test.txt").write_text("c\nb\nmissing")
        status, out, _ = command("data", "check", voc_folder, "--json", "--classes", "cat,dog")
        assert status == 1
        assert kinds(report_of(out)) == {
            "voc-xml": 1,
            "voc-object": 2,
            "voc-class": 1,
            "voc-missing": 1,
            "voc-size-read": 1,
            "voc-filename": 1,
            "voc-unlisted": 1,
            "image-empty": 1,
            "splits-overlap": 1,  # of the two with b in common, trainval and test
        } | {"splits-overlap": 1}

    def test_split(self, command, voc_folder):
        _, out, _ = command("data", "check", voc_folder, "--json", "--split", "test")
        assert report_of(out)["images"] == 1
        status, _, err = command("data", "check", voc_folder, "--split", "val")
        assert status == 1 and "There is no list" in err

    def test_real_data(self, command, shared_dir):
        """364 images of blood cells: two boxes are a single pixel, and nothing else is wrong."""
        folder = shared_dir / "data" / "bccd"
        status, out, _ = command("data", "check", folder, "--json", "--files", "20")
        assert status == 0
        report = report_of(out)
        assert Counter({c["name"]: c["annotations"] for c in report["classes"]}) == {
            "RBC": 4155,
            "WBC": 372,
            "Platelets": 361,
        }
        assert kinds(report) == {"box-tiny": 2, "annotation-nearly-twice": 7}
        tiny = report["findings"][0]["cases"]
        assert sorted(Path(c["file"]).stem for c in tiny) == ["BloodImage_00338", "BloodImage_00343"]


class TestYolo:
    def write(self, root: Path, labels: dict[str, str], settings: dict | None) -> Path:
        for part in ("images", "labels"):
            (root / "train" / part).mkdir(parents=True)
        for stem, text in labels.items():
            Image.new("RGB", (60, 40)).save(root / "train" / "images" / f"{stem}.png")
            if text is not None:
                (root / "train" / "labels" / f"{stem}.txt").write_text(text)
        if settings is not None:
            (root / "data.yaml").write_text(yaml.safe_dump(settings))
        return root

    def test_mistakes(self, command, tmp_path):
        lines = "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5\ncat 1 2 3 4\n0 30 20 10 10\n\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"
        self.write(tmp_path, {"a": lines, "b": None}, {"names": ["cat", "dog"], "train": "../train/images"})
        (tmp_path / "train" / "images" / "c.jpg").write_text("no image")
        status, out, _ = command("data", "check", tmp_path, "--json")
        assert status == 1
        report = report_of(out)
        assert kinds(report) == {
            "yolo-class": 1,
            "yolo-line": 2,
            "yolo-range": 1,
            "image-size": 1,
            "yolo-unlabelled": 1,
            "box-outside": 1,
            "image-empty": 2,
            "file-unreadable": 1,
        }
        assert [c["annotations"] for c in report["classes"]] == [2, 1]

    @pytest.mark.parametrize("settings", [None, {"names": {0: "cat", 2: "dog"}, "train": ["train/images"]}])
    def test_layouts(self, command, tmp_path, settings):
        self.write(tmp_path, {"a": "2 0.5 0.5 0.2 0.2"}, settings)
        status, out, err = command("data", "check", tmp_path, "--json")
        assert status == 0, err
        expected = ["class_0", "class_1", "class_2"] if settings is None else ["cat", "class_1", "dog"]
        assert [c["name"] for c in report_of(out)["classes"]] == expected

    def test_list_of_files(self, command, tmp_path):
        self.write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2", "b": ""}, {"names": ["cat"], "val": "val.txt"})
        (tmp_path / "val.txt").write_text("train/images/a.png\n")
        _, out, _ = command("data", "check", tmp_path / "data.yaml", "--json")
        assert report_of(out)["images"] == 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"names": [], "train": "nowhere"}, "which data.yaml names"),
            ({"names": ["cat"], "nc": 2}, "data.yaml: 'nc' is '2'"),
            ({"names": ["cat"], "train": "listed.txt"}, "data.yaml: '{folder}/listed.txt' is not a list of files"),
            (["a"], "should have 'names', 'train', 'val'"),
            ({"kpt_shape": [17, 3]}, "keypoints"),
        ],
    )
    def test_errors(self, command, tmp_path, settings, message):
        self.write(tmp_path, {"a": ""}, settings)
        (tmp_path / "listed.txt").write_bytes(b"\xff")
        message = message.format(folder=tmp_path)
        status, _, err = command("data", "check", tmp_path)
        assert status == 1 and message in err
        (tmp_path / "data.yaml").rename(tmp_path / "shapes.yaml")  # the message names the file that was given
        status, _, err = command("data", "check", tmp_path / "shapes.yaml")
        assert status == 1 and message.replace("data.yaml", "shapes.yaml") in err


@pytest.mark.parametrize("action", ["check", "show", "convert"])
def test_help(action, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["data", action, "--help"])
    assert exit_.value.code == 0 and f"usage: detectron2 data {action}" in capsys.readouterr().out


class TestShard:
    def test_empty(self, command, tmp_path):
        path = write_coco(tmp_path / "in")
        status, _, err = command("data", "shard", path, "--output", tmp_path / "tars")
        assert status == 1 and "no images to write into shards" in err
        assert [p.name for p in tmp_path.iterdir()] == ["in"]

    def test_good(self, command, good, tmp_path):
        status, out, err = command(
            "data", "shard", good, "--output", tmp_path / "tars", "--shard-size", 2, "--keep-order"
        )
        assert status == 0, err
        records = load_coco_json(good, good.parent, "d2_data_shard")
        shards = -(-len(records) // 2)
        assert f"tars: {len(records)} images in {shards} shards" in out and f"--tar-shards NAME {tmp_path}/tars" in out
        again = load_sharded_dataset(tmp_path / "tars", "d2_data_shards")
        for record in records:  # text, since bytes are not for JSON
            for segmentation in (a.get("segmentation") for a in record["annotations"]):
                if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
                    segmentation["counts"] = segmentation["counts"].decode()
        assert [{**r, "file_name": ""} for r in again] == [{**r, "file_name": ""} for r in records]
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
            assert MetadataCatalog.get("d2_data_shards").get(key) == MetadataCatalog.get("d2_data_shard").get(key)
        assert MetadataCatalog.get("d2_data_shards").get("keypoint_flip_map") is None
        status, out, _ = command("data", "check", tmp_path / "tars")
        assert status == 0 and "tars (tar shards)" in out and f"image files  {len(records):>8}   looked at" in out
        status, _, err = command("data", "shard", good, "--output", tmp_path / "tars")
        assert status == 1 and "exists already" in err
        status, out, _ = command("data", "convert", tmp_path / "tars", tmp_path / "coco", "--to", "coco")
        assert status == 0
        assert len(load_coco_json(tmp_path / "coco/annotations/train.json", tmp_path / "coco/images")) == len(records)
        status, out, _ = command("data", "show", tmp_path / "tars", "--num", 2, "--output", tmp_path / "drawn")
        assert status == 0 and len(list((tmp_path / "drawn").iterdir())) == 2
        for name in ("d2_data_shard", "d2_data_shards"):
            MetadataCatalog.remove(name)

    def test_order_is_shuffled_and_the_same_each_time(self, command, coco, tmp_path):
        for name in ("a", "b"):
            assert command("data", "shard", "cli_shapes", *coco, "--output", tmp_path / name / "tars")[0] == 0
        first, second = (p.read_bytes() for p in sorted(tmp_path.glob("*/tars/*.tar")))
        assert first == second
        assert [r["image_id"] for r in load_sharded_dataset(tmp_path / "a/tars")] not in ([1, 2, 3, 4], [])

    def test_mistakes_stop_it(self, command, tmp_path):
        path = write_coco(tmp_path / "in", [image(1)], [annotation(1, category_id=7)], CATEGORIES)
        status, _, err = command("data", "shard", path, "--output", tmp_path / "tars")
        assert status == 1 and "category_id" in err and not (tmp_path / "tars").exists()
        path = write_coco(tmp_path / "in", [image(1)], [annotation(1)], CATEGORIES)
        (tmp_path / "in" / "1.png").unlink()
        status, _, err = command("data", "shard", path, "--output", tmp_path / "tars")
        assert status == 1 and "1.png" in err and not (tmp_path / "tars").exists()

    def test_panoptic(self, command, panoptic, tmp_path):
        status, _, err = command("data", "shard", panoptic, "--output", tmp_path / "tars")
        assert status == 0, err
        status, out, _ = command("data", "check", tmp_path / "tars")
        assert status == 0 and "segments" in out

    def test_training_and_evaluation(self, command, coco, yaml_file, tmp_path):
        assert command("data", "shard", "cli_shapes", *coco, "--output", tmp_path / "tars", "--shard-size", 2)[0] == 0
        shards = ["--tar-shards", "cli_shapes", str(tmp_path / "tars")]
        seed = ["SEED", 1, "DATALOADER.SAMPLER_TRAIN", "ShardedTrainingSampler", "TEST.EVAL_PERIOD", 0]
        status, _, err = command("train", "--config-file", yaml_file, *shards, "--output", tmp_path / "run", *seed)
        assert status == 0, err
        results = []
        for number, options in enumerate((shards, coco)):
            weights = ["--weights", tmp_path / "run" / "model_final.pth"]
            status, _, err = command("eval", *weights, *options, "--output", tmp_path / str(number))
            assert status == 0, err
            results.append((tmp_path / str(number) / "results.json").read_text())
        assert results[0] == results[1]

    def test_folder_that_is_none(self, command, tmp_path):
        status, _, err = command("data", "check", "a", "--tar-shards", "a", tmp_path)
        assert status == 1 and f"There is no '{tmp_path}/index.json'" in err
