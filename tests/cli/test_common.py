"""What the commands share: writing results, and what is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.cli import common
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.data.formats.tar_shards import write_shards


def test_write_json_makes_its_folder(tmp_path: Path):
    common.write_json(tmp_path / "a" / "b.json", {"x": np.float32(0.5)})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 0.5}


@pytest.fixture
def catalog():
    """Data sets that a test registers are gone after it."""
    before = set(DatasetCatalog.list())
    yield DatasetCatalog
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_data_sets_of_a_run(catalog, data, tmp_path):
    common.register_datasets_of_run(tmp_path, ["mine"])  # nothing is known
    assert "mine" not in catalog
    write_shards(load_coco_json(str(data / "annotations.json"), str(data / "images")), {}, tmp_path / "shards")
    places = {
        "sharded": {"tar_shards": [str(tmp_path / "shards")]},
        "sharded_moved": {"tar_shards": [str(tmp_path / "no_shards")]},
        "mine": {"coco": [str(data / "annotations.json"), str(data / "images")]},
        "voc": {"voc": [str(data / "voc"), "train"]},
        "moved": {"coco": ["/no/such.json", str(data / "images")]},
        "voc_moved": {"voc": [str(data / "voc"), "no_such_split"]},
        "of_a_later_version": {"other": []},
    }
    (tmp_path / "datasets.json").write_text(json.dumps(places))
    (tmp_path / "metadata.json").write_text(json.dumps({"thing_classes": list(SHAPE_CLASSES)}))
    for _ in range(2):  # the second time they are registered
        common.register_datasets_of_run(tmp_path, [*places, "unknown"])
    assert {name for name in places if name in catalog} == {"mine", "voc", "sharded"}
    assert len(catalog.get("mine")) == len(catalog.get("sharded")) == 4 and len(catalog.get("voc")) == 3
    assert MetadataCatalog.get("voc").thing_classes == list(SHAPE_CLASSES)


@pytest.mark.parametrize("content", ["", "[]", '{"mine": 3}', '{"mine": {"coco": []}}'])
def test_a_damaged_list_of_data_sets(catalog, tmp_path, content):
    (tmp_path / "datasets.json").write_text(content)
    with pytest.raises(ValueError, match=r"datasets\.json.*Remove it"):
        common.register_datasets_of_run(tmp_path, ["mine"])


def test_names_cannot_control_the_terminal(command, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "\x1b[31ma.png", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "\x1b]0;title\x07\x1b[2J"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, out, err = command("data", "check", tmp_path / "a.json", "--num-classes", "3")
    assert "\\x1b]0;title\\x07\\x1b[2J" in out
    assert (out + err).replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Files that are neither a config nor weights of this library."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "noise").write_bytes(np.random.default_rng(0).bytes(999))
    (folder / "ultralytics").write_bytes(b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n.")
    torch.save({"meta": {"mmengine_version": "0.10"}, "state_dict": {"a": torch.zeros(1)}}, folder / "mmdet")
    return folder


DATA = ["DATASETS.TRAIN", "('cli_mine',)"], ["DATASETS.TEST", "('cli_mine',)"]
LAZY_DATA = ["dataloader.train.dataset.names=cli_mine"], ["dataloader.test.dataset.names=cli_mine"]
CURE = ["'cli_mine' is not registered", "--coco NAME JSON IMAGES, --voc NAME ROOT SPLIT"]
LOST = ["There is no checkpoint no/such.pth", "does not exist"]
WEIGHTS = ["--weights", "{trained}"]
EXPORT = ["export", *WEIGHTS, "--format", "torchscript", "--output", "a/b"]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["demo", "SOLVER.BASE_LRR", "1"], ["did you mean 'SOLVER.BASE_LR'"]),
        (["demo", "SOLVER.MAX_ITER", "-1"], ["SOLVER.MAX_ITER must be a whole number of at least 0"]),
        (["demo", "--iters", "0"], ["--iters must be at least 1"]),
        (["demo", "--pictures", "-1"], ["--pictures"]),
        *((["train", "--config-file", "{yaml}", "{coco}", *opts], CURE) for opts in DATA),
        *((["train", "--config-file", "{lazy}", "{coco}", *opts], CURE) for opts in LAZY_DATA),
        (["train", "--config-file", "{yaml}", "SOLVER.BASE_LRR", "1"], ["did you mean 'SOLVER.BASE_LR'"]),
        (["train", "--config-file", "{yaml}", "{coco}", "MODEL.WEIGHTS", "no/such.pth"], LOST),
        (["train", "--config-file", "{yaml}", "{coco}", "--resume", "MODEL.WEIGHTS", "no/such.pth"], LOST),
        (["train", "--config-file", "{lazy}", "{coco}", "train.init_checkpoint=no/such.pth"], LOST),
        (["train", "--config-file", "{yaml}", "--coco", "a", "no.json", "{images}"], ["--coco a: no such", "no.json"]),
        (["train", "--config-file", "{yaml}", "--voc", "a", "{voc}", "trian"], ["splits: test, train."]),
        (["eval", *WEIGHTS, "{coco}", *DATA[1]], CURE),
        (["eval", *WEIGHTS, "{coco}", "SOLVER.BASE_LRR", "1"], ["did you mean 'SOLVER.BASE_LR'"]),
        (["eval", "--config-file", "{yaml}", "{coco}"], ["No weights: give --weights FILE"]),
        (["eval", "--config-file", "{yaml}", "{coco}", "--weights", "no/such.pth"], LOST),
        (["eval", "--config-file", "{lazy}", "{coco}", "--weights", "no/such.pth"], LOST),
        (["eval", "{coco}", "--weights", "no/such.pth"], LOST),
        (["eval", *WEIGHTS, "--coco", "a", "no.json", "{images}"], ["--coco a: no such", "no.json"]),
        (["eval", *WEIGHTS, "--coco", "a", "{images}", "{found}"], ["--coco a: a JSON file and then a folder"]),
        (
            ["eval", *WEIGHTS, "--config-file", "{trained}"],
            ["it is a file of weights. Weights are given with --weights"],
        ),
        (
            ["eval", *WEIGHTS, "--config-file", "{images}"],
            ["is not a config of this library (.yaml or .py): it is a folder"],
        ),
        (["train", "--config-file", "{noise}"], ["it is not text", "UTF-8"]),
        (["predict", "{images}", "--weights", "{noise}"], ["it is of an unknown kind", "Weights are .pth"]),
        (["predict", "{images}", "--weights", "{mmdet}"], ["is a checkpoint of MMDetection", "docs/moving.md"]),
        (
            ["predict", "{images}", "--config-file", "{yaml}", "--weights", "{ultralytics}"],
            ["It is of Ultralytics", "docs/moving.md"],
        ),
        (["eval", *WEIGHTS, "{coco}", "--output", "{found}"], ["{found} is a file, and a folder is needed"]),
        (["train", "--config-file", "{yaml}", "{coco}", "--output", "{found}/o"], ["{found} is a file, and a folder"]),
        (["train", "--config-file", "{yaml}", "{coco}", "--num-gpus", "0"], ["One process trains on the CPU as well"]),
        (
            ["train", "--config-file", "{yaml}", "--tar-shards", "a", "{found}"],
            ["index.json'", "detectron2 data shard"],
        ),
        (
            ["predict", "{images}", "--weights", "{found}"],
            ["{found} is not a readable checkpoint: it is a JSON file with a list, as of predictions."],
        ),
        (["predict", "{images}", *WEIGHTS, "--output", "{found}"], ["{found} is a file, and a folder is needed"]),
        (["plot", "{found}"], ["has no records; give the output folder"]),
        (["predict", "no.png", *WEIGHTS], ["no.png"]),
        (["predict", "{images}", "--weights", "no/such.pth"], LOST),
        (["predict", "{images}", *WEIGHTS, "SOLVER.BASE_LRR", "1"], ["did you mean 'SOLVER.BASE_LR'"]),
        (["predict", "{images}", *WEIGHTS, "--coco", "a", "no.json", "{images}"], ["--coco a: no such", "no.json"]),
        (["export", "--weights", "no/such.pth", "--format", "torchscript", "--output", "a/b"], LOST),
        ([*EXPORT, "SOLVER.BASE_LRR", "1"], ["did you mean 'SOLVER.BASE_LR'"]),
        ([*EXPORT, "--evaluate", "cli_mine"], CURE),
        ([*EXPORT, "--calibration", "cli_mine"], CURE),
        ([*EXPORT[:4], "tflite", *EXPORT[5:]], ["tflite"]),
        ([*EXPORT, "--coco", "a", "no.json", "{images}"], ["--coco a: no such", "no.json"]),
        (["analyze", "no.json", "--output", "a/b"], ["no.json"]),
        (["analyze", "{found}", "--data", "cli_mine", "--output", "a/b"], ["cli_mine", "--coco", "--voc"]),
        (["data", "check", "cli_mine", "--fix", "a/b.json"], ["'cli_mine' is neither", "--tar-shards NAME DIR"]),
        (["data", "show", "cli_mine", "--output", "a/b"], ["'cli_mine' is neither", "--tar-shards NAME DIR"]),
        (
            ["data", "convert", "cli_mine", "a/b", "--to", "yolo"],
            ["'cli_mine' is neither", "--tar-shards NAME DIR"],
        ),
        (["plot", "no/run", "--output", "a/b"], ["no/run"]),
        (["config", "show", "no.yaml"], ["no.yaml"]),
        (["config", "diff", "{yaml}", "{lazy}"], ["Compare two of one kind"]),
        (["config", "explain", "no_such"], ["no_such"]),
        (["zoo", "info", "none/such"], ["none/such"]),
        (["zoo", "download", "none/such"], ["none/such"]),
    ],
    ids=lambda words: " ".join(words)[:60].replace("/", "_"),
)
def test_a_mistake_of_the_user_leaves_nothing_behind(
    command, trained, yaml_file, lazy_file, data, coco, others, tmp_path, monkeypatch, words, messages
):
    """One message on stderr, exit status 1, and no file or folder, be it in the default place."""
    places = {"yaml": yaml_file, "lazy": lazy_file, "trained": trained / "model_final.pth", "voc": data / "voc"}
    places.update(images=data / "images", found=trained / "inference" / "coco_instances_results.json")
    places.update({name: others / name for name in ("noise", "mmdet", "ultralytics")})
    before = sorted(trained.rglob("*"))
    monkeypatch.chdir(tmp_path)
    found = [x for word in words for x in (coco if word == "{coco}" else [word.format(**places)])]
    status, out, err = command(*found)
    assert status == 1
    for message in (*(m.format(**places) for m in messages), f"detectron2 {words[0]}: ", "--traceback"):
        assert message in err
    assert "Traceback (most" not in out + err
    assert list(tmp_path.rglob("*")) == [] and sorted(trained.rglob("*")) == before
