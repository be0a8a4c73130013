"""``detectron2 eval`` with configs of both kinds."""

import json
import math

import pytest

from detectron2.data.datasets.synthetic import SHAPE_CLASSES


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_as_it_was_trained(command, trained, lazy_trained, coco, tmp_path, kind):
    """The numbers are those that training ended with."""
    folder = {"yaml": trained, "lazy": lazy_trained}[kind]
    weights = folder / "model_final.pth"
    args = ["eval", "--config-file", folder / "config.yaml", "--weights", weights, *coco, "--output", tmp_path]
    status, out, err = command(*args)
    assert status == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"bbox", "segm"}
    assert f"Results: {tmp_path / 'results.json'}" in out
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    after_training = {k: v for r in records for k, v in r.items() if k.startswith(("bbox/", "segm/"))}
    assert after_training
    for name, value in after_training.items():
        task, metric = name.split("/")
        assert results[task][metric] == pytest.approx(value, nan_ok=True), name


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take seconds, and are looked at elsewhere."""
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_with_analysis(command, trained, lazy_trained, coco, tmp_path, kind):
    folder = {"yaml": trained, "lazy": lazy_trained}[kind]
    status, out, err = command(
        *("eval", "--config-file", folder / "config.yaml", "--weights", folder / "model_final.pth", *coco),
        *("--output", tmp_path, "--analyze"),
    )
    assert status == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    for task in ("bbox", "segm"):
        found = json.loads((tmp_path / "analysis" / task / "metrics.json").read_text())
        assert found["data"] == "cli_shapes" and found["intervals"]
        for name in ("AP", "AP50", "APs"):
            expected = results[task][name]
            assert 100 * found["metrics"][name] == pytest.approx(expected) or math.isnan(expected)
        assert f"The whole report is {tmp_path}/analysis/{task}/report.html" in out


@pytest.mark.usefixtures("no_charts")
def test_analysis_of_several_data_sets(command, trained, data, coco, tmp_path):
    content = json.loads((data / "annotations.json").read_text())
    ids = {i["id"] for i in content["images"][:2]}
    kept = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "half.json").write_text(json.dumps({**content, "images": content["images"][:2], "annotations": kept}))
    status, _, err = command(
        *("eval", "--config-file", trained / "config.yaml", "--weights", trained / "model_final.pth", *coco),
        *("--coco", "cli_half", tmp_path / "half.json", data / "images", "--output", tmp_path / "o", "--analyze"),
        *("DATASETS.TEST", "('cli_shapes', 'cli_half')"),
    )
    assert status == 0, err
    for name, count in (("cli_shapes", 4), ("cli_half", 2)):
        found = json.loads((tmp_path / "o" / "analysis" / name / "bbox" / "metrics.json").read_text())
        assert len(found["per_image"]) == count and found["data"] == name
        assert (tmp_path / "o" / "inference" / name / "coco_instances_results.json").is_file()


def test_nothing_to_analyze(command, trained, voc, tmp_path, monkeypatch):
    monkeypatch.setattr("detectron2.cli.eval.DefaultTrainer.test", lambda *_: {"bbox": {"AP": 1.0}})
    status, out, err = command(
        *("eval", "--config-file", trained / "config.yaml", "--weights", trained / "model_final.pth", *voc),
        *("--output", tmp_path, "--analyze", "DATASETS.TEST", "('cli_voc_test',)"),
    )
    assert status == 0, err
    assert "cli_voc_test: its evaluator writes no predictions" in out and (tmp_path / "results.json").is_file()


def test_beside_the_weights(command, trained, coco, tmp_path):
    weights = tmp_path / "model_final.pth"
    weights.write_bytes((trained / "model_final.pth").read_bytes())
    status, _, err = command("eval", "--config-file", trained / "config.yaml", "--weights", weights, *coco)
    assert status == 0, err
    assert (tmp_path / "eval" / "results.json").is_file()


@pytest.mark.usefixtures("no_charts")
def test_the_run_knows_its_data_sets(command, trained, coco, tmp_path):
    """Neither eval nor analyze needs to be told again where the data sets of a training are."""
    weights = ("--weights", trained / "model_final.pth")
    for folder, options in (("told", coco), ("untold", [])):
        status, _, err = command("eval", *weights, *options, "--output", tmp_path / folder)
        assert status == 0, err
    told, untold = ((tmp_path / name / "results.json").read_text() for name in ("told", "untold"))
    assert told == untold
    status, out, err = command("analyze", trained, "--output", tmp_path / "analysis", "--worst", 0, "--resamples", 0)
    assert status == 0, err
    assert "The whole report is" in out


def test_weights_bring_a_config_along(command, trained, lazy_trained, coco, tmp_path):
    status, _, err = command("eval", *coco, "--output", tmp_path)
    assert status == 1 and "Give --weights" in err
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "m.pth").write_bytes((trained / "model_final.pth").read_bytes())
    status, _, err = command("eval", "--weights", alone / "m.pth", *coco, "TEST.DETECTIONS_PER_IMAGE", 3)
    assert status == 0, err
    assert "bbox" in json.loads((alone / "eval" / "results.json").read_text())
    status, _, err = command("eval", "--weights", lazy_trained / "model_final.pth", *coco, "--output", tmp_path)
    assert status == 1 and "is a LazyConfig" in err and "--config-file" in err


def test_weights_of_the_config(command, trained, coco, tmp_path):
    status, _, err = command(
        *("eval", "--config-file", trained / "config.yaml", *coco, "--output", tmp_path),
        *("MODEL.WEIGHTS", trained / "model_final.pth"),
    )
    assert status == 0, err
    assert (tmp_path / "results.json").is_file()


def test_voc(command, trained, voc, tmp_path):
    status, _, err = command(
        *("eval", "--config-file", trained / "config.yaml", "--weights", trained / "model_final.pth", *voc),
        *("--classes", "disc,square,triangle,star,cross,moon", "--output", tmp_path),
        *("DATASETS.TEST", "('cli_voc_test',)"),
    )
    assert status == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    assert "bbox" in results


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([], "No weights: give --weights FILE, or MODEL.WEIGHTS"),
        (["--weights", "/no/such.pth"], "There is no checkpoint /no/such.pth"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["--config-file", "Nothing/here.yaml"], "no config file 'Nothing/here.yaml'"),
    ],
)
def test_errors(command, yaml_file, coco, tmp_path, opts, message):
    status, _, err = command("eval", "--config-file", yaml_file, *coco, "--output", tmp_path, *opts)
    assert status == 1
    assert message in err
    assert not (tmp_path / "results.json").exists()


def test_lazy_errors(command, lazy_file, coco, tmp_path):
    base = ["eval", "--config-file", lazy_file, *coco, "--output", tmp_path]
    status, _, err = command(*base)
    assert status == 1
    assert "No weights" in err
    status, _, err = command(*base, "~dataloader.evaluator")
    assert status == 1
    assert "does not define dataloader.evaluator" in err


def _results(command, weights, data, output, name):
    weights = ("--weights", weights / "model_final.pth", *data, "--output", output)
    status, out, err = command("eval", *weights, "DATASETS.TEST", f"('{name}',)")
    assert status == 0, err
    return json.loads((output / "results.json").read_text()), out + err


def test_order_of_the_categories_does_not_matter(command, trained, data, coco, tmp_path):
    content = json.loads((data / "annotations.json").read_text())
    for c in content["categories"]:
        c["id"] = 7 - c["id"]
    for a in content["annotations"]:
        a["category_id"] = 7 - a["category_id"]
    (tmp_path / "reversed.json").write_text(json.dumps(content))
    expected, said = _results(command, trained, coco, tmp_path / "a", "cli_shapes")
    assert "another order" not in said
    turned = ("--coco", "turned", tmp_path / "reversed.json", data / "images")
    found, said = _results(command, trained, turned, tmp_path / "b", "turned")
    assert said.count("the same in another order") == 1
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert found["segm"] == pytest.approx(expected["segm"], nan_ok=True)


def test_voc_takes_the_order_of_the_weights(command, trained, data, voc, tmp_path):
    named = (*voc, "--classes", ",".join(SHAPE_CLASSES))
    expected, _ = _results(command, trained, named, tmp_path / "a", "cli_voc_test")
    found, said = _results(command, trained, voc, tmp_path / "b", "cli_voc_test")
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True) and "another order" not in said
    mixed = (*voc, "--classes", ",".join(reversed(SHAPE_CLASSES)))
    found, said = _results(command, trained, mixed, tmp_path / "c", "cli_voc_test")
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True) and "another order" in said


def test_other_classes_are_refused(command, trained, data, tmp_path):
    content = json.loads((data / "annotations.json").read_text())
    content["categories"][1]["name"] = "nut"
    (tmp_path / "nuts.json").write_text(json.dumps(content))
    status, _, err = command(
        *("eval", "--weights", trained / "model_final.pth", "--coco", "nuts", tmp_path / "nuts.json", data / "images"),
        *("--output", tmp_path, "DATASETS.TEST", "('nuts',)"),
    )
    assert status != 0 and "'nut'" in err and SHAPE_CLASSES[1] in err


def test_with_test_time_augmentation(command, trained, coco, tmp_path):
    """What TEST.AUG asks for is measured beside the usual, under names of its own."""
    status, _, err = command(
        *("eval", "--weights", trained / "model_final.pth", *coco, "--output", tmp_path),
        *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)"),
    )
    assert status == 0, err
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    name = "coco_instances_results.json"
    plain, augmented = (json.loads((tmp_path / f / name).read_text()) for f in ("inference", "inference_TTA"))
    assert plain and augmented and plain != augmented


def test_a_model_without_test_time_augmentation_is_refused_before_the_first_evaluation(
    command, trained, coco, tmp_path
):
    """And not after hours, when the usual results would be lost."""
    status, _, err = command(
        *("eval", "--weights", trained / "model_final.pth", *coco, "--output", tmp_path),
        *("MODEL.META_ARCHITECTURE", "ProposalNetwork", "TEST.AUG.ENABLED", "True"),
    )
    assert status != 0 and "got ProposalNetwork" in err and "set TEST.AUG.ENABLED to False" in err
    assert not (tmp_path / "inference").exists()


def test_predictions_in_shards(command, trained, data, coco, tmp_path):
    """The numbers are those of an evaluation in which the model runs; lacking images are named."""
    weights = ("--weights", trained / "model_final.pth")
    assert command("eval", *weights, *coco, "--output", tmp_path / "a")[0] == 0
    options = ("--confidence", "0", "--shard-size", 2)
    assert command("predict", data / "images", *weights, *options, "--shards", tmp_path / "shards")[0] == 0
    status, _, err = command(
        "eval", *weights, *coco, "--predictions", tmp_path / "shards", "--output", tmp_path / "b", "--analyze"
    )
    assert status == 0, err
    results = [json.loads((tmp_path / folder / "results.json").read_text()) for folder in "ab"]
    assert results[0] == results[1] and results[0]["bbox"] and "segm" in results[0]
    assert list((tmp_path / "b" / "analysis").rglob("*.html"))
    (tmp_path / "shards" / "part-000000.jsonl").unlink()
    status, _, err = command("eval", *weights, *coco, "--predictions", tmp_path / "shards", "--output", tmp_path / "b")
    assert status == 1 and "lack 2 of 4 images" in err
