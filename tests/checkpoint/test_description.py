"""What a checkpoint says about itself, and how little it may do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer, read_description
from detectron2.checkpoint.description import dataset_metadata, installed_versions
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog


def described(tmp_path, kind, plain):
    """Return a checkpoint with a description that may be any value."""
    checkpointer = DetectionCheckpointer(nn.Linear(2, 1), str(tmp_path))
    checkpointer.file_format = kind
    checkpointer.save("a", **({} if plain is None else {"description": plain}))
    return str(tmp_path / f"a.{kind}")


FULL = CheckpointDescription(
    config="SEED: 3\n",
    metadata={"thing_classes": ["a", "b"], "thing_colors": [[1, 2, 3]]},
    image_format="RGB",
    pixel_mean=[1.0, 2.0, 3.0],
    pixel_std=[1.0, 1.0, 1.0],
    versions={"torch": "2"},
    iteration=9,
    metrics={"bbox/AP": 1.5},
    metrics_iteration=4,
    is_average=True,
    metrics_of_average=True,
)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
class TestRoundTrip:
    def test_none(self, tmp_path, kind):
        assert read_description(described(tmp_path, kind, None)) is None

    def test_empty(self, tmp_path, kind):
        empty = CheckpointDescription()
        assert read_description(described(tmp_path, kind, empty.to_plain())) == empty

    def test_full(self, tmp_path, kind):
        path = described(tmp_path, kind, FULL.to_plain())
        assert read_description(path) == FULL
        rest = DetectionCheckpointer(nn.Linear(2, 1)).load(path)
        assert rest == {"description": FULL.to_plain()}

    def test_entries_of_a_later_version_are_left_out(self, tmp_path, kind):
        path = described(tmp_path, kind, {**FULL.to_plain(), "licence": ["free"]})
        assert read_description(path) == FULL

    @pytest.mark.parametrize(
        "plain",
        [[], "text", {"metrics": []}, {"config": 3}, {"metadata": None}, {"versions": ["x"]}, {"config_kind": "py"}],
    )
    def test_damaged(self, tmp_path, kind, plain):
        with pytest.raises(ValueError, match=r"The description in .*a\."):
            read_description(described(tmp_path, kind, plain))


def test_what_is_not_a_number_is_left_out():
    plain = CheckpointDescription(metrics={"a": float("nan"), "b": float("inf"), "c": 1.0}).to_plain()
    assert plain["metrics"] == {"c": 1.0}
    json.dumps(plain, allow_nan=False)


def test_published_loaders_can_read_it(tmp_path):
    """A plain dictionary of tensors, containers, numbers and texts."""
    content = torch.load(described(tmp_path, "pth", FULL.to_plain()), weights_only=True)
    assert content.keys() == {"model", "description"}


def test_files_of_others(tmp_path):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "plain.pth")
    torch.save({"model": {}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "zoo.pkl").write_bytes(b"\x80\x02}q\x00.")
    for name in ("plain.pth", "old.pth", "list.pth", "zoo.pkl"):
        assert read_description(str(tmp_path / name)) is None
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*none\.pth; the folder .* holds list"):
        read_description(str(tmp_path / "none.pth"))
    with pytest.raises(
        FileNotFoundError, match=r"is a folder, and a file of weights is needed; the folder .* holds list"
    ):
        read_description(str(tmp_path))
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.json").touch()
    with pytest.raises(FileNotFoundError, match=r"is an exported model, .*; the folder .*exported holds no checkpoint"):
        read_description(str(tmp_path / "exported/"))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.pth .* is not a readable checkpoint"):
        read_description(str(tmp_path / "cut.pth"))


class TestConfig:
    def test_none(self):
        with pytest.raises(ValueError, match="has no config"):
            CheckpointDescription().load_config()

    def test_yaml(self):
        cfg = get_cfg()
        cfg.MODEL.DEVICE, cfg.SOLVER.STEPS = "cpu", (1, 2)
        cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.5])
        assert CheckpointDescription(config=cfg.dump()).load_config().dump() == cfg.dump()

    def test_keys_of_projects_stay(self):
        cfg = get_cfg()
        cfg.MODEL.MINE = CfgNode({"DEEP": {"A": 1}})
        cfg.EXTRA = "x"
        loaded = CheckpointDescription(config=cfg.dump()).load_config()
        assert loaded.dump() == cfg.dump()
        with pytest.raises(KeyError):  # but no others can be added
            loaded.merge_from_list(["MODEL.MINE.DEEP.B", 2])

    def test_keys_that_came_later_have_their_defaults(self):
        loaded = CheckpointDescription(config="SEED: 3\n").load_config()
        expected = get_cfg()
        expected.SEED = 3
        assert loaded == expected

    def test_lazy(self):
        text = "model: {_target_: torch.nn.Linear, in_features: 2, out_features: 1}\ntrain: {device: cpu}\n"
        loaded = CheckpointDescription(config=text, config_kind="lazy").load_config()
        assert loaded.model.in_features == 2 and loaded.train.device == "cpu"

    @pytest.mark.parametrize("text", ["model: {name: '${'}", "a: ['x${b']", "model: {?[1, 2]: 3}", "? 2020-01-01\n: 1"])
    def test_lazy_keys_and_links_that_cannot_be_read(self, text):
        with pytest.raises(ValueError, match="the config in the checkpoint"):
            CheckpointDescription(config=text, config_kind="lazy").load_config()

    @pytest.mark.parametrize("kind", ["yaml", "lazy"])
    def test_no_code_is_run(self, kind, tmp_path):
        text = f"SEED: !!python/object/apply:os.system ['touch {tmp_path}/x']\n"
        with pytest.raises(ValueError, match="not supported"):
            CheckpointDescription(config=text, config_kind=kind).load_config()
        assert not list(Path(tmp_path).iterdir())


class TestMetadata:
    def test_nothing_known(self):
        assert dataset_metadata([]) == {}
        assert dataset_metadata(["description_unknown"]) == {}
        assert "description_unknown" not in MetadataCatalog

    def test_the_first_that_is_known(self):
        names = ["description_a", "description_b", "description_c"]
        try:
            MetadataCatalog.get(names[0]).ignore_label = 255
            MetadataCatalog.get(names[1]).set(
                thing_classes=("x", "y"),
                thing_colors=np.array([[1, 2, 3], [4, 5, 6]]),
                keypoint_connection_rules=[("a", "b", (1, 2, 3))],
                keypoint_flip_map=(("l", "r"),),
                json_file="/home/me/a.json",
            )
            MetadataCatalog.get(names[2]).thing_classes = ["z"]
            found = dataset_metadata(names)
        finally:
            for name in names:
                MetadataCatalog.pop(name, None)
        assert found == {
            "thing_classes": ["x", "y"],
            "thing_colors": [[1, 2, 3], [4, 5, 6]],
            "keypoint_connection_rules": [["a", "b", [1, 2, 3]]],
            "keypoint_flip_map": [["l", "r"]],
        }
        assert json.loads(json.dumps(found)) == found

    def test_for_drawing(self):
        metadata = FULL.load_metadata()
        assert metadata.thing_classes == ["a", "b"] and metadata.get("stuff_classes") is None


def test_versions():
    assert installed_versions()["torch"] == torch.__version__ and len(installed_versions()) == 3
