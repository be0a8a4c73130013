"""What is published about the models of the zoo: every config is listed, every number is the recorded one."""

import json
from pathlib import Path

import pytest

from detectron2.checkpoint.torchvision_weights import CONFIGS as TORCHVISION_CONFIGS
from detectron2.model_zoo import NotInModelZooError, get_config_file
from detectron2.model_zoo.checkpoints import CHECKPOINTS
from detectron2.model_zoo.published import ZooModel, find_model, list_models

NAMES = {
    "box AP": "box AP",
    "mask AP": "mask AP",
    "kp. AP": "keypoint AP",
    "PQ": "PQ",
    "prop. AR": "proposal AR",
    "box AP50": "box AP50",
    "inference time (s/im)": "seconds per image",
    "train time (s/iter)": "training seconds per iteration",
    "train time (s/im)": "training seconds per image",
    "train mem (GB)": "training memory in GB",
}


def test_no_model():
    assert list_models("no such words") == []
    assert ZooModel("a/b.py", "boxes").kind == "LazyConfig"


def test_every_config_is_listed_once():
    folder = Path(get_config_file("Base-RCNN-FPN.yaml")).parent
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix in (".yaml", ".py")]
    parts = [name for name in files if name.startswith("common/") or Path(name).name.startswith("Base-")]
    models = list_models()
    assert sorted([m.name for m in models] + parts) == sorted(files)
    has_weights = [bool(m.url) for m in models]
    assert has_weights == sorted(has_weights, reverse=True)  # those with weights come first
    of_torchvision = {m.name: m.url for m in models if m.url.startswith("torchvision://")}
    assert of_torchvision == {name: f"torchvision://{model}" for model, name in TORCHVISION_CONFIGS.items()}
    of_weights = {m.name.rpartition(".")[0] for m in models if m.url and m.name not in of_torchvision}
    assert of_weights == {f"{folder}/{name}" for folder, names in CHECKPOINTS.items() for name in names}


def test_numbers_are_those_recorded(shared_dir):
    recorded = json.loads((shared_dir / "facts" / "model_zoo_results.json").read_text())
    rows = {row["config"]: row for row in recorded if row["config"]}
    for name, row in rows.items():
        expected = {new: float(row[old]) for old, new in NAMES.items() if row.get(old) not in (None, "", "N/A")}
        found = dict(find_model(name).results)
        schedule = found.pop("schedule", "")
        assert found == expected, name
        assert schedule == (row.get("lr sched") or (f"{row['epochs']} epochs" if "epochs" in row else ""))
    # A config in Python that has the weights of one in YAML has its results.
    assert {m.name.rpartition(".")[0] for m in list_models() if m.results} == {n.rpartition(".")[0] for n in rows}


@pytest.mark.parametrize(
    ("words", "task", "number"),
    [
        ("keypoint R_101", "keypoints", 66.1),
        ("PANOPTIC R_101_3x", "panoptic", 43.0),
        ("rpn_R_50_C4", "proposals", 51.6),
    ],
)
def test_words_that_choose(words, task, number):
    (model,) = list_models(words)
    assert model.task == task and number in model.results.values()


def test_one_by_name():
    assert find_model("COCO-Detection/fcos_R_50_FPN_1x").name == "COCO-Detection/fcos_R_50_FPN_1x.py"
    assert find_model("COCO-Detection/retinanet_R_50_FPN_1x").name.endswith(".yaml")  # before the one in Python
    with pytest.raises(NotInModelZooError, match=r"nearest names are: .*retinanet_R_50_FPN_1x"):
        find_model("COCO-Detection/retinanet_R_50_FPN_1.yaml")
    with pytest.raises(NotInModelZooError, match="a part that other configs are made of"):
        find_model("common/train.py")


def test_one_by_path(tmp_path):
    name = "Demo/mask_rcnn_R_18_FPN_shapes.yaml"
    assert find_model(get_config_file(name)).name == find_model(f"configs/{name}").name == name
    (tmp_path / "mine.yaml").write_text("VERSION: 2")
    with pytest.raises(NotInModelZooError, match=r"mine\.yaml is a file of yours.*config show"):
        find_model(str(tmp_path / "mine.yaml"))
