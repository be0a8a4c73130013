"""The table of trained weights."""

import json
import re

from detectron2.model_zoo.checkpoints import CHECKPOINTS, URL_PREFIX


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
