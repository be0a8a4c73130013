"""The table of trained weights."""

import json
import re

from detectron2.model_zoo.checkpoints import BACKBONES, CHECKPOINTS, URL_PREFIX, nearest_weights


def test_same_as_recorded(shared_dir):
    yaml_zoo = json.loads((shared_dir / "facts" / "model_zoo_yaml.json").read_text())
    expected = {k.removesuffix(".yaml"): v["checkpoint"] for k, v in yaml_zoo["configs"].items() if v["checkpoint"]}
    expected |= json.loads((shared_dir / "facts" / "model_zoo_lazy_checkpoints.json").read_text())
    assert yaml_zoo["url_prefix"] == URL_PREFIX
    assert {f"{folder}/{name}": v for folder, names in CHECKPOINTS.items() for name, v in names.items()} == expected


def test_every_entry_names_a_run_and_a_file():
    for names in CHECKPOINTS.values():
        for location in names.values():
            assert re.fullmatch(r"\d+/model_\w+\.pkl", location)


def test_every_entry_has_a_config(repo_root):
    for folder, names in CHECKPOINTS.items():
        for name in names:
            stem = repo_root / "configs" / folder / name
            assert stem.with_name(f"{name}.yaml").is_file() or stem.with_name(f"{name}.py").is_file(), stem


def test_every_backbone_of_a_config_is_listed(shared_dir):
    facts = [
        (shared_dir / "facts" / f"{name}.json").read_text()
        for name in ("model_zoo_yaml", "lazy_configs", "project_configs")
    ]
    named = set(re.findall(r'detectron2://((?:ImageNetPretrained|DeepLab)/[^"?]+)', " ".join(facts)))
    assert named == set(BACKBONES)


def test_nearest_weights():
    assert nearest_weights("") == ""
    assert nearest_weights("detectron2://zzzzzzzz") == ""
    hint = nearest_weights("detectron2://COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0c.pkl")
    assert "detectron2://COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl" in hint
    assert nearest_weights(f"{URL_PREFIX}ImageNetPretrained/MSRA/R50.pkl").count("detectron2://") >= 1
