"""``detectron2 predict``: pictures, a JSON file, and no file of the user's overwritten."""

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.mask import decode

from detectron2.cli.predict import _device_of_process, _image_ids, _inputs, _split_words, _tracked
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.inference import Predictor, read_shards
from detectron2.inference.loading import load_metadata
from detectron2.inference.video import VideoReader, VideoWriter
from detectron2.inference.writers import ResultWriter
from detectron2.structures import Boxes, Instances
from tests.cli.conftest import run_once
from tests.e2e.conftest import _tiny_config


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_file_and_folder(command, trained, lazy_trained, data, tmp_path, kind):
    """The config and the class names that training left beside the weights are found."""
    folder = {"yaml": trained, "lazy": lazy_trained}[kind]
    many, one = data / "images", data / "voc" / "JPEGImages" / "00000.jpg"
    status, out, err = command(
        *("predict", "--weights", folder / "model_final.pth", "--input", one, many),
        *("--output", tmp_path, "--confidence", "0"),
    )
    assert status == 0, err
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert f"{len(records)} objects in 5 images" in out
    assert {r["file_name"] for r in records} == {str(one), *(str(p) for p in many.iterdir())}
    for record in records:
        assert set(record) == {
            *("file_name", "category_id", "bbox", "score", "segmentation"),
            *("image_id", "category_name", "height", "width"),
        }
        assert record["category_name"] == SHAPE_CLASSES[record["category_id"]]
        assert (record["height"], record["width"]) == (64, 96)
        assert 0 <= record["category_id"] < len(SHAPE_CLASSES)
        x, y, w, h = record["bbox"]  # in the resolution of the file, 96 x 64
        assert x >= 0 and y >= 0 and x + w <= 96.01 and y + h <= 64.01
        assert record["segmentation"]["size"] == [64, 96]
    # Two images have the same name.
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        *("00000.png", "00000_2.png", "00001.png", "00002.png", "00003.png")
    ]
    with Image.open(tmp_path / "00001.png") as picture:
        assert picture.size == (96, 64)


@pytest.fixture(scope="module")
def trained_in_two_files(tmp_path_factory, yaml_file, coco):
    """The output folder of a training whose checkpoints are ``.safetensors``, with an average and a best one."""
    output = tmp_path_factory.mktemp("cli_safetensors")
    options = ["SOLVER.CHECKPOINT_FORMAT", "safetensors", "SOLVER.EMA_DECAY", "0.5", "TEST.EVAL_PERIOD", "1"]
    options += ["TEST.VALIDATION_LOSS_PERIOD", "1", "TEST.BEST_METRIC", "validation/total_loss"]
    assert run_once(["train", "--config-file", yaml_file, *coco, "--output", str(output), *options]) == 0
    return output


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("trained", "model_final.pth"),
        ("lazy_trained", "model_final.pth"),
        ("trained_in_two_files", "model_final.safetensors"),
        ("trained_in_two_files", "model_final_ema.safetensors"),
        ("trained_in_two_files", "model_best.safetensors"),
    ],
)
def test_one_file_is_enough(command, request, data, tmp_path, monkeypatch, which, name):
    """It is alone, in another folder, and no data set is registered; the image follows without an option."""
    shutil.copy(request.getfixturevalue(which) / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    image = data / "images" / "00000.png"
    status, out, err = command("predict", "--weights", name, image, "--output", "out", "--confidence", "0")
    assert status == 0, err
    assert out.startswith("5 objects in 1 image: ")
    assert (tmp_path / "out" / "00000.png").is_file()
    metadata = load_metadata(None, name)
    assert metadata.thing_classes == list(SHAPE_CLASSES)


def test_files_that_cannot_be_read(command, trained, data, tmp_path):
    """The others are not lost for them."""
    (tmp_path / "in").mkdir()
    shutil.copy(data / "images" / "00000.png", tmp_path / "in")
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    weights = trained / "model_final.pth"
    options = ["--output", tmp_path / "out", "--confidence", "0"]
    status, out, err = command("predict", "--weights", weights, tmp_path / "in", *options)
    assert status == 1
    assert "left out: " in err and "bad.jpg" in err and "5 objects in 1 image (1 cannot be read)" in out
    assert {r["file_name"] for r in json.loads((tmp_path / "out" / "predictions.json").read_text())} == {
        str(tmp_path / "in" / "00000.png")
    }
    status, out, err = command("predict", "--weights", weights, tmp_path / "in" / "bad.jpg", *options)
    assert status == 1 and "OSError: " in err and "bad.jpg" in err


def test_odd_files_in_a_folder_leave_the_others(command, trained, data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(data / "images" / "00000.png", folder / "b.png")
    shutil.copy(data / "images" / "00001.png", folder / "y.png")
    np.save(folder / "a.npy", np.zeros((0, 0, 3), np.uint8))
    content = (folder / "a.npy").read_bytes()
    (folder / "c.npy").write_bytes(content.replace(b"(0, 0, 3), }" + b" " * 20, b"(100000, 1000000, 3), }" + b" " * 9))
    (folder / "d.png").symlink_to("d.png")
    os.mkfifo(folder / "e.png")
    status, out, err = command(
        "predict", "--weights", trained / "model_final.pth", folder, "--output", tmp_path / "out"
    )
    assert status == 1 and "in 2 images (4 cannot be read)" in out, err
    for name in ("a.npy", "c.npy", "d.png", "e.png"):
        assert f"cannot read the image '{folder / name}'" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("b.png", "predictions.json", "predictions.jsonl", "y.png")
    ]


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_what_was_predicted(command, trained, data, tmp_path, monkeypatch, capsys, raised, status):
    """So does SIGTERM; a run that resumes does the rest, each image once."""
    calls = []

    def interrupted(self, samples):
        calls.append(samples)
        if len(calls) == 3 and raised is KeyboardInterrupt:
            raise KeyboardInterrupt
        if len(calls) == 3:
            os.kill(os.getpid(), raised)
        return original(self, samples)

    def predict(*options):
        args = ("predict", "--weights", trained / "model_final.pth", data / "images", "--confidence", "0", *options)
        try:
            return command(*args, "--output", tmp_path)
        except SystemExit as e:
            return e.code, *capsys.readouterr()

    def names():
        found = json.loads((tmp_path / "predictions.json").read_text())
        counts = Counter(Path(record["file_name"]).stem for record in found)
        assert set(counts.values()) <= {5}
        return sorted(counts)

    original = Predictor._predict
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Predictor, "_predict", interrupted)
    found = predict("--csv")
    assert found[0] == status and signal.getsignal(signal.SIGTERM) is before
    assert "10 objects in 2 images: " in found[1] and "the same command with --resume" in found[1]
    assert names() == ["00000", "00001"] and len((tmp_path / "counts.csv").read_text().splitlines()) == 3
    done = (tmp_path / "00000.png").stat()
    status, out, err = predict("--csv", "--resume")
    assert status == 0 and out.startswith("20 objects in 4 images: "), err
    assert len(calls) == 5 and names() == ["00000", "00001", "00002", "00003"]
    assert (tmp_path / "00000.png").stat() == done
    assert sorted(json.loads((tmp_path / "predictions.json").read_text())[i]["image_id"] for i in (0, 5, 10, 15)) == [
        *(0, 1, 2, 3)  # the names are numbers
    ]
    status, _, err = predict("--csv", "--resume", "--tile", "64")
    assert status == 1 and "were made with tile None (now 64)" in err
    status, out, err = predict()
    assert status == 0 and out.startswith("20 objects in 4 images: ") and len(calls) == 9
    assert not (tmp_path / "counts.csv").exists()


def test_changes_to_the_config_in_the_checkpoint(command, trained, lazy_trained, data, tmp_path):
    image = data / "images" / "00000.png"
    for folder, change in (
        (trained, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999"]),
        (lazy_trained, ["model.roi_heads.box_predictor.test_score_thresh=0.999"]),
    ):
        weights = folder / "model_final.pth"
        status, out, err = command(
            "predict", "--weights", weights, image, *change, "--output", tmp_path, "--confidence", "0"
        )
        assert status == 0, err
        assert out.startswith("0 objects in 1 image\n")


def test_images_and_changes_in_any_order(command, trained, data, tmp_path):
    a, b = data / "images" / "00000.png", data / "images" / "00001.png"
    status, out, err = command(
        *("predict", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999", a, "--output", tmp_path, "--confidence", "0"),
        *("INPUT.MIN_SIZE_TEST", 32, b, "--weights", trained / "model_final.pth", "--device", "cpu"),
    )
    assert status == 0, err
    assert out.startswith("0 objects in 2 images")


def test_the_file_is_what_coco_and_analyze_take(command, trained, data, coco, tmp_path):
    """With the data set given, ids are those of the data set, and its evaluation finds what eval finds."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    weights = trained / "model_final.pth"
    options = ("--output", tmp_path, "--confidence", "0", "--weights", weights)
    status, _, err = command("predict", data / "images", *coco, *options)
    assert status == 0, err
    records = json.loads((tmp_path / "predictions.json").read_text())
    truth = COCO(str(data / "annotations.json"))
    for record in records:
        assert truth.imgs[record["image_id"]]["file_name"] == Path(record["file_name"]).name
        assert truth.cats[record["category_id"]]["name"] == record["category_name"]
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert run_once(["eval", "--weights", str(weights), *coco, "--output", str(tmp_path / "eval")]) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert evaluation.stats[0] * 100 == pytest.approx(results["bbox"]["AP"], abs=1e-3)
    for place in (tmp_path / "predictions.json", tmp_path):
        status, _, err = command("analyze", place, "--data", data / "annotations.json", "--output", tmp_path / "a")
        assert status == 0, err


def test_ids_without_a_data_set(tmp_path):
    args = argparse.Namespace(coco=[])
    assert _image_ids([], args) == {}
    assert _image_ids(["x/000000000139.jpg", "y/7.png"], args) == {"x/000000000139.jpg": 139, "y/7.png": 7}
    assert _image_ids(["x/7.jpg", "y/7.png"], args) == {"x/7.jpg": 1, "y/7.png": 2}
    assert _image_ids(["a.jpg", "7.png"], args) == {"a.jpg": 1, "7.png": 2}


def test_folders_in_folders_and_patterns(tmp_path):
    for name in ("a.png", "in/b.JPG", "in/deep/c.png", "out/a.png", "notes.txt", "in/v.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*paths, output=tmp_path / "out"):
        files = _inputs([str(tmp_path / path) for path in paths], str(output))
        return [os.path.relpath(file.value, tmp_path) for file in files]

    assert found("") == ["a.png", "in/b.JPG", "in/deep/c.png"]
    assert found("in/*.J?G", "**/c.png", "in/b.JPG") == ["in/b.JPG", "in/deep/c.png"]  # each once
    assert found("in/v.mp4") == ["in/v.mp4"]
    assert found("", output=tmp_path) == ["a.png", "in/b.JPG", "in/deep/c.png", "out/a.png"]
    with pytest.raises(FileNotFoundError, match=r"match the pattern .*x\*\.png"):
        found("x*.png")
    # What an earlier run wrote is no input.
    header, line = {"schema": "detectron2.predictions/1", "asked": {}}, {"key": "a", "files": ["a.png"]}
    (tmp_path / "predictions.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in (header, line)))
    assert found("", output=tmp_path) == ["in/b.JPG", "in/deep/c.png", "out/a.png"]
    with pytest.raises(ValueError, match="nothing to predict on but what an earlier run wrote into"):
        found("a.png", output=tmp_path)


@pytest.mark.parametrize(("architecture", "shown"), [("PanopticFPN", "panoptic"), ("SemanticSegmentor", "semantic")])
def test_models_that_label_pixels(command, yaml_file, data, tmp_path, architecture, shown):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.inference.loading import load_config
    from detectron2.modeling import build_model

    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"]
    opts += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "MODEL.SEM_SEG_HEAD.NORM", "''"]
    opts += ["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "0"]
    DetectionCheckpointer(build_model(load_config(yaml_file, opts)), str(tmp_path)).save("model")
    image = data / "images" / "00000.png"
    status, out, err = command(
        *("predict", "--config-file", yaml_file, *opts, "--weights", tmp_path / "model.pth"),
        *("--input", image, "--output", tmp_path / "out"),
    )
    assert status == 0, err
    assert f"{shown}.json and label maps in {shown}\n" in out
    drawn, plain = (np.asarray(Image.open(p).convert("RGB")) for p in (tmp_path / "out" / "00000.png", image))
    assert (drawn != plain).any(axis=2).mean() > 0.5  # every pixel has a class
    content = json.loads((tmp_path / "out" / f"{shown}.json").read_text())
    labels = np.asarray(Image.open(tmp_path / "out" / shown / "00000.png")).astype(int)
    if shown == "semantic":
        assert "Classes of pixels in 1 image: " in out
        assert set(np.unique(labels)) == {record["category_id"] for record in content}
        for record in content:
            area = decode({**record["segmentation"], "counts": record["segmentation"]["counts"].encode()}).sum()
            assert area == (labels == record["category_id"]).sum()
    else:
        ids = labels @ [1, 256, 256**2]
        (annotation,) = content["annotations"]
        assert annotation["file_name"] == "00000.png" and annotation["image_id"] == 0
        assert {s["id"]: s["area"] for s in annotation["segments_info"]} == {
            int(i): int((ids == i).sum()) for i in np.unique(ids) if i
        }


def test_words_that_are_images_and_words_that_are_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.jpg").touch()
    (tmp_path / "DATA").mkdir()
    assert _split_words([]) == ([], [])
    words = ["x.jpg", "A.B_C", "y.jpg", "a.b=1", "DATA", "a=b.jpg", "~a.c", "no", "A.LAST"]
    assert _split_words(words) == (["x.jpg", "DATA", "a=b.jpg", "no"], ["A.B_C", "y.jpg", "a.b=1", "~a.c", "A.LAST"])


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_a_device_that_is_none(command, trained, data, tmp_path, device):
    options = ["--weights", trained / "model_final.pth", "--output", tmp_path, "--device", device]
    status, _, err = command("predict", data / "images", *options)
    assert status == 1
    assert f"--device is {device!r}, which is not a device; expected cpu, cuda or cuda:NUMBER" in err


def test_shards(command, trained, data, tmp_path):
    """Results are those of the usual command; a rerun does what is missing; options without effect are refused."""
    options = ["--weights", trained / "model_final.pth", "--confidence", "0"]
    usual, shards = tmp_path / "usual", tmp_path / "shards"
    assert command("predict", data / "images", *options, "--save", "none", "--output", usual)[0] == 0
    status, out, err = command("predict", data / "images", *options, "--shards", shards, "--shard-size", 2)
    assert status == 0, err
    lines = (usual / "predictions.jsonl").read_text().splitlines()
    expected = {row["file"]: row["objects"] for row in map(json.loads, lines) if row.get("objects") is not None}
    found = {row["file"]: row["objects"] for row in read_shards(shards)}
    assert all(thing.pop("mask")["counts"] for things in found.values() for thing in things)  # which the journal lacks
    assert found == expected and expected
    assert f"{len(expected)} of {len(expected)} images in " in out and "0 cannot be read" in out
    for path in list(shards.glob("part-*"))[:1]:
        path.unlink()
    status, out, err = command("predict", data / "images", *options, "--shards", shards, "--shard-size", 2, "--resume")
    assert status == 0 and out.startswith(f"2 of {len(expected)} images in ")
    assert len(list(read_shards(shards))) == len(expected)
    status, _, err = command("predict", data / "images", *options, "--shards", shards, "--shard-size", 2)
    assert status == 1 and "--resume" in err
    status, _, err = command("predict", data / "images", *options, "--shards", tmp_path / "s", "--csv")
    assert status == 1 and "--csv is not for --shards" in err and not (tmp_path / "s").exists()
    for option in (["--save", "none"], ["--color-by", "class"], ["--output", tmp_path / "o"], ["--classes", "disc"]):
        status, _, err = command("predict", data / "images", *options, "--shards", tmp_path / "s", *option)
        assert status == 1 and f"{option[0]} is not for --shards" in err and not (tmp_path / "s").exists()
    for images, weights, name in [("images", "no.pth", "no.pth"), ("nowhere", trained / "model_final.pth", "nowhere")]:
        status, _, err = command("predict", data / images, "--weights", weights, "--shards", tmp_path / "s")
        assert status == 1 and name in err and not (tmp_path / "s").exists()


def test_shards_of_files_that_cannot_be_read(command, trained, tmp_path, monkeypatch):
    """One process says so by its status; one of several does not, for which a launcher would end the others."""
    (tmp_path / "bad.jpg").write_text("no image")
    words = ["predict", tmp_path / "bad.jpg", "--weights", trained / "model_final.pth", "--shards"]
    status, out, err = command(*words, tmp_path / "one")
    assert status == 1 and "1 of 1 images" in out and "1 cannot be read" in out and "bad.jpg" in err
    monkeypatch.setattr(
        "detectron2.cli.predict.find_layout", lambda count: SimpleNamespace(rank=0, local_rank=0, world_size=2)
    )
    assert command(*words, tmp_path / "two")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the name")
def test_a_name_that_is_not_unicode(command, trained, data, tmp_path):
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(os.fsencode(tmp_path / "in") + b"/odd\xff.png")
    shutil.copy(data / "images" / "00000.png", odd)
    words = ["predict", tmp_path / "in", "--weights", trained / "model_final.pth", "--confidence", "0"]
    for _ in range(2):
        status, _, err = command(*words, "--output", tmp_path / "out", "--csv", "--crops", "--resume")
        assert status == 0, err
    assert {r["file_name"] for r in json.loads((tmp_path / "out" / "predictions.json").read_text())} == {odd}
    assert "odd\\udcff.png" in (tmp_path / "out" / "predictions.csv").read_text()
    assert command(*words, "--shards", tmp_path / "shards")[0] == 0
    assert [row["file"] for row in read_shards(tmp_path / "shards")] == [odd]
    if importlib.util.find_spec("pyarrow"):
        assert command(*words, "--shards", tmp_path / "table", "--shard-format", "parquet")[0] == 0
        assert [row["file"] for row in read_shards(tmp_path / "table")] == [odd.replace("\udcff", "\\udcff")]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    for count, device, local_rank, expected in [
        (0, None, 1, None),
        (0, "cpu", 1, "cpu"),
        (4, None, 3, "cuda:3"),
        (4, "cuda", 0, "cuda:0"),
        (1, None, 3, "cuda:0"),  # with --gpus-per-task 1
        (4, "cuda:2", 0, "cuda:2"),
        (4, "cpu", 1, "cpu"),
    ]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert _device_of_process(device, local_rank) == expected


def test_a_checkpoint_may_not_call_what_it_likes(command, lazy_trained, data, tmp_path):
    content = torch.load(lazy_trained / "model_final.pth", weights_only=True)
    mark = tmp_path / "was_run"
    text = f"model: {{_target_: os.system, command: 'touch {mark}'}}\ndataloader: {{}}\ntrain: {{device: cpu}}\n"
    content["description"]["config"] = text
    torch.save(content, tmp_path / "m.pth")
    for extra in ([], ["--import", "json"]):
        status, _, err = command("predict", "--weights", tmp_path / "m.pth", data / "images" / "00000.png", *extra)
        assert status == 1
        assert "wants to call os.system" in err and "--import os" in err and "--config-file" in err
    assert not mark.exists()


def _download_model(folder):
    """A model whose parts fetch a pickle from a `data:` address and open it (F1a)."""
    return {
        "_target_": "torchvision.models._api.WeightsEnum.get_state_dict",
        "file_name": "z.pth",
        "model_dir": str(folder),
        "progress": False,
        "self": {
            "_target_": "torchvision.models._api.Weights",
            "url": "data:application/octet-stream;base64,AAAA",
            "transforms": None,
            "meta": {},
        },
    }


def _partial_model(folder):
    """A layer that calls what it gets as its activation (F1d)."""
    locate = "detectron2.utils.registry.locate"
    call = {"_target_": "detectron2.config.lazy_text.make_partial", "args": [f"touch {folder}/was_run"], "keywords": {}}
    return {
        "_target_": "torchvision.ops.misc.ConvNormActivation",
        "in_channels": 1,
        "out_channels": 1,
        "norm_layer": None,
        "inplace": None,
        "activation_layer": {**call, "func": {"_target_": locate, "name": "os.system"}},
    }


def _leaking_model(folder):
    """A model that puts a variable of the environment into an argument (F1c)."""
    return {"_target_": "torch.nn.Identity", "a": f"{folder}/${{oc.env:HOME}}"}


@pytest.mark.parametrize("model", [_download_model, _partial_model, _leaking_model])
@pytest.mark.parametrize("place", ["inside", "beside"])
def test_hostile_configs_that_come_with_weights(command, data, tmp_path, model, place):
    mapper = {
        "_target_": "detectron2.data.DatasetMapper",
        "is_train": False,
        "augmentations": [],
        "image_format": "BGR",
    }
    config = {"model": model(tmp_path), "train": {"device": "cpu"}, "dataloader": {"test": {"mapper": mapper}}}
    content = {"model": {}}
    if place == "inside":
        content["description"] = {"config": yaml.safe_dump(config), "config_kind": "lazy"}
    else:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(content, tmp_path / "m.pth")
    before = sorted(tmp_path.iterdir())
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", data / "images" / "00000.png")
    assert status == 1
    assert ("m.pth" if place == "inside" else "config.yaml") in err and "--config-file" in err
    assert "wants to call" in err or "computes a value" in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_config_beside_weights_names_no_other_file(command, data, tmp_path):
    torch.save({"model": {}}, tmp_path / "m.pth")
    for text in ("_BASE_: http://localhost:1/x.yaml\n", '{"\\x5fBASE_": /etc/x.yaml}\n'):
        (tmp_path / "config.yaml").write_text(text)
        status, _, err = command("predict", "--weights", tmp_path / "m.pth", data / "images" / "00000.png")
        assert status == 1 and "continues another file" in err and "--config-file" in err


def test_a_config_of_weights_that_builds_no_model(command, data, tmp_path):
    mapper = {
        "_target_": "detectron2.data.DatasetMapper",
        "is_train": False,
        "augmentations": [],
        "image_format": "BGR",
    }
    config = {"model": {"a": 1}, "train": {"device": "cpu"}, "dataloader": {"test": {"mapper": mapper}}}
    description = {"config": yaml.safe_dump(config), "config_kind": "lazy"}
    torch.save({"model": {}, "description": description}, tmp_path / "m.pth")
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", data / "images" / "00000.png")
    assert status == 1 and "where a model should be" in err


def test_weights_of_others(command, trained, yaml_file, data, tmp_path):
    """Without a description: the message says what to give, and with it they are used."""
    content = torch.load(trained / "model_final.pth", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "m.pth")
    image = data / "images" / "00000.png"
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", image)
    assert status == 1
    assert "m.pth does not say which model it is of" in err and "--config-file" in err
    options = ["--config-file", yaml_file, "--output", tmp_path / "out"]
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", image, *options)
    assert status == 0, err
    shutil.copy(trained / "config.yaml", tmp_path)  # as older runs have it beside
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", image, "--output", tmp_path / "out")
    assert status == 0, err


def test_a_model_of_a_project(command, data, tmp_path):
    """Its keys are added, and its classes registered, where they come with the library."""
    from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer
    from detectron2.modeling import build_model
    from detectron2.projects.point_rend import add_pointrend_config

    cfg = _tiny_config()
    add_pointrend_config(cfg)
    cfg.merge_from_list(
        ["MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead",
         "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.ROI_MASK_HEAD.FC_DIM", 16,
         "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14, "MODEL.POINT_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 80,
         "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
    )  # fmt: skip
    checkpointer = DetectionCheckpointer(build_model(cfg), str(tmp_path))
    checkpointer.describe = lambda: CheckpointDescription(config=cfg.dump()).to_plain()
    checkpointer.save("m")
    image = data / "images" / "00000.png"
    status, _, err = command("predict", "--weights", tmp_path / "m.pth", image, "--output", tmp_path)
    assert status == 0, err
    (tmp_path / "c.yaml").write_text(cfg.dump())
    options = ["--config-file", tmp_path / "c.yaml", "MODEL.POINT_HEAD.SUBDIVISION_STEPS", "1"]
    status, _, err = command(
        "predict", "--weights", tmp_path / "m.pth", "--input", image, *options, "--output", tmp_path
    )
    assert status == 0, err


def test_confidence(command, trained, data, tmp_path):
    status, out, err = command(
        *("predict", "--weights", trained / "model_final.pth", "--input", data / "images" / "00000.png"),
        *("--output", tmp_path, "--confidence", "1"),
    )
    assert status == 0, err
    assert out.startswith("0 objects in 1 image\n")
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert (tmp_path / "00000.png").is_file()


def test_images_are_not_overwritten(command, trained, data, tmp_path):
    shutil.copy(data / "images" / "00000.png", tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    status, _, err = command(
        "predict", "--weights", trained / "model_final.pth", "--input", tmp_path, "--output", tmp_path
    )
    assert status == 0, err
    assert (tmp_path / "a.png").read_bytes() == before
    assert (tmp_path / "a_2.png").is_file()


def test_grey_image_and_one_with_transparency(command, trained, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.full((40, 50), 99, np.uint8)).save(images / "grey.png")
    Image.fromarray(np.full((40, 50, 4), 99, np.uint8)).save(images / "rgba.png")
    status, _, err = command(
        "predict", "--weights", trained / "model_final.pth", "--input", images, "--output", tmp_path / "out"
    )
    assert status == 0, err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_config_file_and_changes(command, yaml_file, trained, data, tmp_path):
    status, _, err = command(
        *("predict", "--config-file", yaml_file, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999"),
        *("--weights", trained / "model_final.pth", "--confidence", "0"),
        *("--input", data / "images" / "00000.png", "--output", tmp_path),
    )
    assert status == 0, err
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weights", "{folder}/model_final.pth"], "There is nothing to predict on"),
        (["no.jpg", "--weights", "{folder}/model_final.pth"], "No such image, video or folder: 'no.jpg'"),
        (["{image}", "NO.KEY", "3", "--weights", "{folder}/model_final.pth"], "unknown key 'NO.KEY'"),
        (["--input", "{image}"], "Give --weights of a training run, which bring their config along, or --config-file"),
        (
            ["--input", "{image}", "--weights", "/no/model.pth"],
            "There is no checkpoint /no/model.pth; the folder /no does not exist",
        ),
        (["--input", "{image}", "--weights", "{folder}/model_0.pth"], "holds model_final.pth"),
        (
            ["--input", "/no/a.jpg", "--weights", "{folder}/model_final.pth"],
            "No such image, video or folder: '/no/a.jpg'",
        ),
        (["--input", "{empty}", "--weights", "{folder}/model_final.pth"], "No images (.jpg, "),
        (["--input", "{text}", "--weights", "{folder}/model_final.pth"], "notes.png"),
        (["{image}", "--overlap", "0.2"], "--overlap does nothing without --tile: give both, or leave it out."),
        (["{image}", "--shard-size", "500"], "--shard-size does nothing without --shards"),
        (["{image}", "--shard-format", "jsonl"], "--shard-format does nothing without --shards"),
    ],
)
def test_errors(command, trained, data, tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.png").write_text("no image")
    places = {
        "image": data / "images" / "00000.png",
        "folder": trained,
        "empty": tmp_path / "empty",
        "text": tmp_path / "notes.png",
    }
    status, _, err = command("predict", "--output", tmp_path / "out", *[a.format(**places) for a in args])
    assert status == 1
    assert message in err


def test_model_without_objects(command, yaml_file, data, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.inference.loading import load_config
    from detectron2.modeling import build_model

    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    DetectionCheckpointer(build_model(load_config(yaml_file, opts)), str(tmp_path)).save("model")
    status, _, err = command(
        *("predict", "--config-file", yaml_file, *opts, "--weights", tmp_path / "model.pth"),
        *("--input", data / "images" / "00000.png", "--output", tmp_path),
    )
    assert status == 1
    assert "for models that find objects or label pixels; this one (ProposalNetwork) returns proposals" in err


def test_with_test_time_augmentation(command, trained, data, tmp_path):
    found = []
    for is_on in ("False", "True"):
        status, _, err = command(
            *("predict", "--weights", trained / "model_final.pth", "--confidence", "0", "--output", tmp_path / is_on),
            *(data / "voc" / "JPEGImages" / "00000.jpg", "TEST.AUG.ENABLED", is_on, "TEST.AUG.MIN_SIZES", "(64, 96)"),
        )
        assert status == 0, err
        found.append(json.loads((tmp_path / is_on / "predictions.json").read_text()))
    assert found[0] and found[1] and found[0] != found[1]
    assert {"segmentation", "bbox"} < set(found[1][0])


def test_tables_crops_and_formats(command, trained, data, tmp_path):
    words = ("predict", "--weights", trained / "model_final.pth", data / "images", "--confidence", "0")
    options = ("--save", "svg", "--color-by", "class", "--no-json", "--csv", "--crops", "--classes", "disc,star")
    status, out, err = command(*words, "--output", tmp_path / "a", *options)
    assert status == 0, err
    assert (
        re.search(r"^Written to .*: pictures, predictions\.csv and counts\.csv$", out, re.M) and "left out" not in err
    )
    with open(tmp_path / "a" / "predictions.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {row["class"] for row in rows} <= {"disc", "star"}
    with open(tmp_path / "a" / "counts.csv", newline="") as f:
        counts = list(csv.DictReader(f))
    assert [Path(row["file"]).name for row in counts] == [f"0000{i}.png" for i in range(4)]
    assert sum(int(row[name]) for row in counts for name in ("disc", "star")) == len(rows)
    assert len(list((tmp_path / "a" / "crops").glob("*/*.png"))) == len(rows)
    svg = (tmp_path / "a" / "00000.svg").read_text()
    assert svg.startswith("<?xml") and not (tmp_path / "a" / "predictions.json").exists()
    assert f"{len(rows)} object" in out

    status, out, err = command(*words, "--output", tmp_path / "b", "--save", "none")
    assert status == 0 and sorted(os.listdir(tmp_path / "b")) == ["predictions.json", "predictions.jsonl"], err
    status, _, err = command(*words, "--output", tmp_path / "c", "--classes", "disc,Star")
    assert status == 1 and "--classes names 'Star'; the model has disc, " in err and not (tmp_path / "c").exists()


def test_classes_of_a_voc_data_set_choose_nothing(command, trained, voc, data, tmp_path):
    """With --voc the option has the meaning that it has in all commands."""
    options = ["--weights", trained / "model_final.pth", "--confidence", "0", "--output", tmp_path]
    status, out, err = command(
        "predict", data / "images" / "00000.png", *options, *voc, "--classes", ",".join(SHAPE_CLASSES)
    )
    assert status == 0 and out.startswith("5 objects in 1 image: "), err


@pytest.fixture(scope="module")
def clips(tmp_path_factory, data):
    """Two videos with 6 and 3 frames, at odd times."""
    pytest.importorskip("cv2", reason="videos")
    folder = tmp_path_factory.mktemp("cli_clips")
    for name, times in (("a.mp4", [0.0, 0.1, 0.2, 0.4, 0.5, 0.8]), ("b.mp4", [0.0, 0.5, 1.0])):
        image = np.asarray(Image.open(data / "images" / "00000.png").convert("RGB"))
        with VideoWriter(folder / name, image_format="RGB") as writer:
            for time in times:
                writer.write(image, time)
    return folder


def test_videos(command, trained, data, clips, tmp_path, monkeypatch):
    """The objects keep their numbers within a video, and the frames their times."""
    original = Predictor._predict

    def sure(self, samples):
        outputs = original(self, samples)
        for output in outputs:
            output["instances"].scores = output["instances"].scores * 0 + 0.9
        return outputs

    monkeypatch.setattr(Predictor, "_predict", sure)
    words = ("predict", "--weights", trained / "model_final.pth", "--output", tmp_path, "--csv")
    status, out, err = command(*words, clips / "*.mp4", data / "images" / "00000.png", "--track", "--batch", "4")
    assert status == 0, err
    assert (
        re.search(r"in 10 images \(\d+ different ones in videos\): ", out)
        and ": pictures, videos, predictions.json, predictions.csv and counts.csv\n" in out
    )
    records = json.loads((tmp_path / "predictions.json").read_text())
    of_video = {name: [r for r in records if r["file_name"].endswith(name)] for name in ("a.mp4", "b.mp4", "00000.png")}
    times = {name: dict.fromkeys((r["frame"], r["time"]) for r in of_video[name]) for name in ("a.mp4", "b.mp4")}
    for name, reader in ((name, VideoReader(tmp_path / name)) for name in times):
        given = [time for _, time in VideoReader(clips / name)]
        assert list(times[name]) == [(i, pytest.approx(time)) for i, time in enumerate(given)]
        assert [time for _, time in reader] == pytest.approx(given, abs=0.02)
        first = {r["track_id"] for r in of_video[name] if r["frame"] == 0}
        assert 0 in first and {r["track_id"] for r in of_video[name] if r["frame"] == 2} == first
    assert not any("track_id" in r or "frame" in r for r in of_video["00000.png"]) and len(of_video["00000.png"]) == 5
    ids = Counter(r["image_id"] for r in records)
    assert len(ids) == 10
    different = {(r["file_name"], r["track_id"]) for r in records if "track_id" in r}
    assert f"({len(different)} different ones" in out
    status, again, err = command(*words, clips / "*.mp4", data / "images" / "00000.png", "--track", "--resume")
    assert status == 0 and again == out, err  # nothing was left, and the same is said

    status, _, err = command(*words, data / "images", "--track")
    assert status == 1 and "there is no video here" in err


def test_an_exported_model(command, trained, data, tmp_path):
    """Its folder is enough."""
    words = ("export", "--weights", trained / "model_final.pth", "--format", "torchscript")
    options = ("--size", "64", "96", "--no-verify", "--score-threshold", "0.01")
    status, _, err = command(*words, *options, "--output", tmp_path / "exported")
    assert status == 0, err
    image = data / "images" / "00000.png"
    options = ("--confidence", "0", "--output", tmp_path / "out")
    status, out, err = command("predict", "--weights", tmp_path / "exported", image, *options)
    assert status == 0 and out.startswith("5 objects in 1 image: "), err
    status, _, err = command("predict", "--weights", tmp_path / "exported", image, *options, "INPUT.MIN_SIZE_TEST", "9")
    assert status == 1 and "has its weights and its config built in" in err


def test_an_error_before_the_first_result_leaves_those_of_an_earlier_run(command, trained, data, tmp_path, caplog):
    words = ("predict", "--weights", trained / "model_final.pth", "--output", tmp_path / "out")
    assert command(*words, data / "images" / "00000.png")[0] == 0
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir())
    (tmp_path / "bad.jpg").write_text("no image")
    status, _, err = command(*words, tmp_path / "bad.jpg")
    assert status == 1 and "bad.jpg" in err
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()) == before
    assert "replaced" not in caplog.text
    status, _, err = command(*words, data / "images" / "00001.png")
    assert status == 0, err
    assert re.search(r"The results of an earlier run in .* \(1 images\) are replaced", caplog.text)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["00001.png"]


def test_what_cannot_be_written_ends_the_run(command, trained, data, tmp_path, monkeypatch):
    """The writing thread tells of it, and the run does not wait for it."""

    def full(self, result):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResultWriter, "write", full)
    status, _, err = command("predict", "--weights", trained / "model_final.pth", data / "images", "--output", tmp_path)
    assert status == 1 and "No space left on device" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_run_goes_on(trained, data, tmp_path):
    """After SIGINT to the group, and after SIGKILL, a run that resumes does the rest: each image exactly once."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(60):
        shutil.copy(data / "images" / f"0000{i % 4}.png", images / f"{i}.png")
    (images / "30.png").write_text("no image")
    out = tmp_path / "out"
    words = [sys.executable, "-m", "detectron2", "predict", "--weights", trained / "model_final.pth", images]
    words += ["--output", out, "--confidence", "0", "--csv", "--resume"]

    def finished():
        journal = out / "predictions.jsonl"
        return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0

    def run(stop=None, count=0):
        with subprocess.Popen(
            list(map(str, words)),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            while stop is not None and process.poll() is None and finished() < count:
                time.sleep(0.005)
            if stop is not None and process.poll() is None:
                os.killpg(process.pid, stop)
            output, errors = process.communicate()
        return process.returncode, output, errors

    status, output, errors = run(signal.SIGINT, 10)
    assert status == 130 and "the same command with --resume" in output, errors
    done = finished()
    with open(out / "counts.csv", newline="") as f:
        assert len(list(csv.DictReader(f))) == done >= 10
    status, _, _ = run(signal.SIGKILL, done + 10)
    assert status == -signal.SIGKILL
    status, output, errors = run()
    assert status == 1 and "295 objects in 59 images (1 cannot be read)" in output
    assert errors.count("left out: ") == 1 and "30.png" in errors
    records = json.loads((out / "predictions.json").read_text())
    counts = Counter(record["image_id"] for record in records)
    assert counts == dict.fromkeys(set(range(60)) - {30}, 5)
    assert sorted(int(p.stem) for p in out.glob("*.png")) == sorted(counts)


def test_ctrl_c_is_the_end_of_a_camera(command, trained, data, tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="videos")
    image = np.asarray(Image.open(data / "images" / "00000.png").convert("RGB"))[:, :, ::-1]

    class Camera:
        def __init__(self, number, image_format="BGR"):
            assert (number, image_format) == (0, "BGR")
            self.number = number

        def __iter__(self):
            yield from ((image, i / 10) for i in range(3))
            raise KeyboardInterrupt

    monkeypatch.setattr("detectron2.inference.sources.Camera", Camera)
    words = ("predict", "webcam:0", "--weights", trained / "model_final.pth", "--confidence", "0", "--batch", "8")
    status, out, err = command(*words, "--output", tmp_path)
    assert status == 0 and out.startswith("15 objects in 3 frames: "), err
    assert len(list(VideoReader(next(tmp_path.glob("*.mp4"))))) == 3


@pytest.mark.parametrize(
    ("confidence", "score", "count"), [(0.2, 0.25, 1), (0.2, 0.15, 0), (0.9, 0.75, 1), (0.9, 0.65, 0)]
)
def test_what_is_asked_for_may_begin_a_track(confidence, score, count):
    found = Instances((20, 20), pred_boxes=Boxes([[1.0, 1, 9, 9]]), pred_classes=torch.tensor([0]))
    found.scores = torch.tensor([score])
    frame = SimpleNamespace(source=".")
    result = SimpleNamespace(error=None, time=0.0, path="a.mp4", frame=frame, instances=found)
    (tracked,) = _tracked(iter([result]), confidence)
    assert len(tracked.instances) == count


def test_in_half_precision(command, trained, data, tmp_path):
    words = ("predict", "--weights", trained / "model_final.pth", data / "images", "--output", tmp_path / "out")
    status, out, err = command(*words, "--precision", "bf16", "--confidence", "0")
    assert status == 0 and "objects in" in out, err
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert records and all(r["segmentation"]["size"] == [r["height"], r["width"]] for r in records)


def test_a_video_that_cannot_be_opened_leaves_nothing(command, trained, tmp_path):
    (tmp_path / "clip.mp4").write_text("no video")
    words = ("predict", "--weights", trained / "model_final.pth", tmp_path / "clip.mp4", "--output", tmp_path / "out")
    status, _out, err = command(*words)
    assert status == 1 and "clip.mp4" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("score", ["50", "-0.1", "nan", "much"])
def test_a_confidence_is_a_score(command, score):
    with pytest.raises(SystemExit, match="2"):
        command("predict", "--weights", "x.pth", "a.jpg", f"--confidence={score}")
