"""``detectron2 benchmark`` with configs of both kinds, registered and generated data."""

import json

import pytest

from detectron2.cli import benchmark
from detectron2.cli.benchmark import Report, advice, as_text
from detectron2.data import DatasetCatalog
from tests.e2e.conftest import _tiny_config


@pytest.fixture(autouse=True)
def few_small_images(monkeypatch):
    """To draw images takes seconds otherwise."""
    monkeypatch.setattr(benchmark, "_GENERATED_HW", (64, 96))
    monkeypatch.setattr(benchmark, "_GENERATED_IMAGES", 3)


PARTS = {"training": {"forward", "backward", "update"}, "inference": {"network", "postprocessing", "evaluation"}}


def report(**changes) -> Report:
    values = {
        "model": "GeneralizedRCNN",
        "device": "cpu",
        "threads": 2,
        "torch": "2.6",
        "batch": 4,
        "workers": 2,
        "data": "birds",
        "weights": "w.pth",
        "mixed_precision": False,
        "compiled": False,
        "has_fast_bf16": True,
        "has_opencv": True,
        "is_yaml": True,
        "mapping": 50.0,
        "loading": {0: 50.0, 2: 90.0, 8: 300.0},
        "training": {"forward": 40.0, "backward": 20.0, "update": 200.0},
        "inference": {"network": 10.0, "postprocessing": 100.0, "evaluation": 1000.0},
    }
    return Report(**{**values, **changes})


def test_a_step_is_the_sum_of_its_parts():
    assert report(training={"forward": 4.0, "backward": 4.0, "update": 2.0}).step == pytest.approx(1.0)


SLOW = {0: 5.0, 2: 5.0, 8: 5.2}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, ["not the data: backward takes 62% of a step", "SOLVER.AMP.ENABLED True"]),
        ({"is_yaml": False}, ["train.amp.enabled=True"]),
        ({"mixed_precision": True}, ["smaller input"]),
        ({"has_fast_bf16": False}, ["smaller input"]),
        ({"device": "cuda:0, H200", "mixed_precision": True}, ["compilation: TRAIN.COMPILE True"]),
        ({"device": "cuda:0, H200", "mixed_precision": True, "compiled": True}, ["smaller input"]),
        (
            {"loading": {0: 4.0, 2: 6.0, 8: 30.0}},
            ["waits for data: 6.0 images/s arrive, the model would take 12.5", "8 workers bring 30.0 images/s"],
        ),
        ({"loading": {0: 4.0, 2: 6.0, 8: 30.0}, "is_yaml": False}, ["dataloader.train.num_workers=8"]),
        ({"loading": SLOW}, ["More workers do not help", "fewer augmentations"]),
        ({"loading": SLOW, "has_opencv": False}, ["More workers do not help", "detectron2[opencv]"]),
    ],
)
def test_advice_for_training(changes, texts):
    text = advice(report(**changes))[0]
    for part in texts:
        assert part in text


@pytest.mark.parametrize(
    ("slowest", "has_fast_bf16", "text"),
    [
        ("network", True, "--precision bf16"),
        ("network", False, "OpenVINO"),
        ("postprocessing", True, "Fewer objects"),
        ("evaluation", True, "paid once for a data set"),
    ],
)
def test_advice_for_inference(slowest, has_fast_bf16, text):
    rates = {"network": 30.0, "postprocessing": 30.0, "evaluation": 30.0, slowest: 10.0}
    found = advice(report(inference=rates, has_fast_bf16=has_fast_bf16))[1]
    assert f"{slowest} takes 60% of the time" in found and text in found


def test_table():
    lines = as_text(report()).splitlines()
    assert ["data:", "loader,", "2", "workers", "(config)", "90.00", "11.11"] in [line.split() for line in lines]
    assert ["training:", "backward", "20.00", "50.00"] in [line.split() for line in lines]
    assert lines[-2:] == advice(report())


def test_registered_data_and_weights(command, trained, coco, tmp_path):
    status, out, err = command(
        *("benchmark", "--weights", trained / "model_final.pth", *coco, "--data", "cli_shapes", "--iters", 2),
        *("--batch", 1, "--json", tmp_path / "out.json"),
    )
    assert status == 0, err
    assert "Data: cli_shapes\n" in out and f"Weights: {trained}" in out
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["batch"] == 1 and content["workers"] == 0 and {"0"} <= content["loading"].keys()
    for group, parts in PARTS.items():
        assert content[group].keys() == parts and min(content[group].values()) > 0
    assert content["advice"] == out.splitlines()[-3:-1]


def test_generated_data(command, yaml_file):
    """The data set of the config is not registered."""
    status, out, err = command("benchmark", "--config-file", yaml_file, "--iters", 1, "SOLVER.AMP.ENABLED", "True")
    assert status == 0, err
    assert "3 generated images of 64 x 96 (cli_shapes is not there; --data NAME takes others)" in out
    assert "Weights: random" in out and "mixed precision in training" in out
    assert "no effect" not in err and "matches an object" not in err
    assert benchmark._GENERATED not in DatasetCatalog


def test_a_lazy_config(command, lazy_file, coco):
    status, out, err = command("benchmark", "--config-file", lazy_file, *coco, "--iters", 1, "train.device=cpu")
    assert status == 0, err
    assert "Data: cli_shapes\n" in out and "whole step, batch of 2" in out


@pytest.mark.parametrize("name", ["COCO-Keypoints/keypoint_rcnn_R_50", "COCO-PanopticSegmentation/panoptic_fpn_R_50"])
def test_generated_labels(name, tmp_path):
    """Generated data have what the model is trained with."""
    cfg = _tiny_config(f"{name}_FPN_1x.yaml" if "Keypoints" in name else f"{name}_1x.yaml")
    benchmark.register_generated(cfg, str(tmp_path))
    try:
        records = DatasetCatalog.get(benchmark._GENERATED)
    finally:
        benchmark.forget_generated()
    assert len(records) == 3 and all(r["file_name"].endswith(".jpg") for r in records)
    annotation = records[0]["annotations"][0]
    if "Keypoints" in name:
        x, y, width, height = annotation["bbox"]
        xs, ys = annotation["keypoints"][::3], annotation["keypoints"][1::3]
        assert len(xs) == 17 and x <= min(xs) <= max(xs) <= x + width and y <= min(ys) <= max(ys) <= y + height
    else:
        assert all(r["sem_seg_file_name"].endswith(".png") for r in records)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Give --config-file, or --weights"),
        (["--config-file", "no_such.yaml"], "no config file 'no_such.yaml'"),
        (["--config-file", "YAML", "--data", "birds"], "'birds' is not registered"),
        (["--config-file", "YAML", "--data", "coco_2017_val"], "instances_val2017.json"),
        (["--config-file", "YAML", "--device", "abacus"], "--device is 'abacus', which is not a device"),
        (["--config-file", "YAML", "--weights", "no_such.pth"], "no_such.pth"),
        (["--config-file", "YAML", "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "rotated boxes"),
    ],
)
def test_what_is_missing_is_said(command, yaml_file, words, text, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    status, _, err = command("benchmark", *(yaml_file if w == "YAML" else w for w in words))
    assert status == 1 and text in err
    assert benchmark._GENERATED not in DatasetCatalog


def test_ctrl_c(command, yaml_file, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "load_model", stop)
    status, out, err = command("benchmark", "--config-file", yaml_file)
    assert status == 130 and out == "" and "Interrupted" in err
    assert benchmark._GENERATED not in DatasetCatalog
