"""`detectron2 config`: configs of every kind are shown, compared and explained."""

from pathlib import Path

import pytest
import torch
import yaml

from detectron2.cli.config import differences, explain, find_readers, read_any_config
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.config.key_meanings import config_keys, read_meanings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def point_rend_file() -> str:
    return str(ROOT / "projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")


def test_show_can_be_read_again(command, yaml_file, lazy_file, tmp_path):
    status, out, _ = command("config", "show", yaml_file, "SOLVER.BASE_LR", "-1e-3", "SOLVER.STEPS", "[1, 2]")
    assert status == 0
    (tmp_path / "again.yaml").write_text(out)
    again = read_any_config(str(tmp_path / "again.yaml"))
    assert (again.SOLVER.BASE_LR, again.SOLVER.STEPS) == (-1e-3, (1, 2))
    assert again.dump() == out
    status, out, err = command("config", "show", lazy_file, "train.max_iter=7", "train.seed=-1")
    assert (status, err) == (0, "")
    (tmp_path / "lazy.yaml").write_text(out)
    lazy = read_any_config(str(tmp_path / "lazy.yaml"))
    assert (lazy.train.max_iter, lazy.train.seed, lazy.model.roi_heads.num_classes) == (7, -1, 6)
    assert differences(read_any_config(lazy_file, ["train.max_iter=7", "train.seed=-1"]), lazy) == []


def test_show_what_differs_from_the_defaults(command, tmp_path):
    (tmp_path / "none.yaml").write_text("")
    assert command("config", "show", "--changed", tmp_path / "none.yaml")[:2] == (0, "")
    (tmp_path / "some.yaml").write_text("MODEL: {MASK_ON: true, RESNETS: {DEPTH: 50}}\nSOLVER: {EMA_DECAY: 0.9}\n")
    out = command("config", "show", tmp_path / "some.yaml", "SEED", "3", "--changed")[1]
    assert yaml.safe_load(out) == {"MODEL": {"MASK_ON": True}, "SOLVER": {"EMA_DECAY": 0.9}, "SEED": 3}
    status, _, err = command("config", "show", "COCO-Detection/fcos_R_50_FPN_1x.py", "--changed")
    assert status == 1 and "which has no defaults" in err and "detectron2 config diff OTHER" in err


def test_keys_of_projects(command, point_rend_file):
    status, out, _ = command("config", "show", point_rend_file, "MODEL.POINT_HEAD.NUM_FC", "2")
    assert status == 0 and yaml.safe_load(out)["MODEL"]["POINT_HEAD"]["NUM_FC"] == 2


def test_checkpoints_and_runs_are_configs(trained, lazy_trained, tmp_path):
    of_run, of_weights = read_any_config(str(trained)), read_any_config(str(trained / "model_final.pth"))
    assert isinstance(of_weights, CfgNode) and str(trained) == of_run.OUTPUT_DIR
    # A checkpoint does not say where it was written.
    assert {line[2:].split()[0] for line in differences(of_run, of_weights)} <= {"OUTPUT_DIR", "VERSION"}
    of_run, of_weights = read_any_config(str(lazy_trained)), read_any_config(str(lazy_trained / "model_final.pth"))
    assert {line[2:].split()[0] for line in differences(of_run, of_weights)} <= {"train.output_dir"}
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"was not saved with its config, and there is no .*config\.yaml"):
        read_any_config(str(tmp_path / "foreign.pth"))
    (tmp_path / "config.yaml").write_text("SEED: 5")
    assert read_any_config(str(tmp_path / "foreign.pth")).SEED == 5
    with pytest.raises(FileNotFoundError, match=r"not the output folder of a run: it has no config\.yaml"):
        read_any_config(str(tmp_path.parent))
    with pytest.raises(FileNotFoundError, match="There is no config file 'COCO-Detection/retina"):
        read_any_config("COCO-Detection/retinanet.yaml")


def test_the_device_is_that_of_the_config(yaml_file):
    assert read_any_config(yaml_file, ["MODEL.DEVICE", "cuda:7"]).MODEL.DEVICE == "cuda:7"


def test_differences():
    assert differences(CfgNode(), CfgNode()) == []
    first = CfgNode({"A": (1, 2), "B": {"C": 1.0, "D": True}, "E": "x"})
    second = CfgNode({"A": [1, 2], "B": {"C": 1, "D": 1}, "F": None})
    assert differences(first, second) == ["  B.D  True -> 1", "- E    'x'", "+ F    None"]
    lazy = LazyConfig.load(str(ROOT / "configs/common/optim.py"))
    other = LazyConfig.apply_overrides(LazyConfig.load(str(ROOT / "configs/common/optim.py")), ["SGD.lr=1", "~AdamW"])
    lines = differences(lazy, other)
    assert "  SGD.lr" in lines[0] and lines[0].endswith("0.02 -> 1")
    assert all(line.startswith("- AdamW.") for line in lines[1:]) and len(lines) > 3


def test_diff(command, yaml_file, tmp_path):
    (tmp_path / "other.yaml").write_text(f"_BASE_: {yaml_file}\nSEED: 77\n")
    status, out, _ = command("config", "diff", yaml_file, tmp_path / "other.yaml")
    assert status == 0 and out.split()[0] == "SEED" and out.endswith("-> 77\n") and out.count("\n") == 1
    assert command("config", "diff", yaml_file, yaml_file)[:2] == (0, "")
    status, _, err = command("config", "diff", yaml_file, "COCO-Detection/fcos_R_50_FPN_1x.py")
    assert status == 1 and "a YAML config and COCO-Detection/fcos_R_50_FPN_1x.py is a LazyConfig" in err


def test_explain_lists_groups(command):
    status, out, _ = command("config", "explain")
    rows = dict(line.rsplit(maxsplit=2)[:2] for line in out.splitlines())
    assert status == 0 and rows["MODEL.RPN"] and rows["(top level)"]
    assert sum(map(int, rows.values())) == len(read_meanings())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "MODEL.RPN.NMS_THRESH",
            ["overlaps a better one", "type      float", "default   0.7", "unit      IoU", "rpn.py:"],
        ),
        ("model.rpn.nms_thresh", ["MODEL.RPN.NMS_THRESH"]),
        ("NMS_THRESH", ["MODEL.RPN.NMS_THRESH", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RETINANET.NMS_THRESH_TEST"]),
        (
            "train.ema_decay",
            ["SOLVER.EMA_DECAY", "train.ema_decay in a LazyConfig", "a number in [0, 1)", "not part of"],
        ),
        ("MODEL.BACKBONE", ["MODEL.BACKBONE.NAME = 'build_resnet_backbone'", "FREEZE_AT = 2  (stages)"]),
        ("SOLVER.WEIGHT_DECAY_BIAS", ["number or None"]),
        ("MODEL.POINT_HEAD.NUM_FC", ["default   3", "detectron2.projects.point_rend (add_pointrend_config)"]),
        ("MODEL.TRIDENT.NUM_BRANCH", ["tridentnet (add_tridentnet_config)"]),
    ],
)
def test_explain(name, shown):
    text = explain([name])
    for part in shown:
        assert part in text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SOLVER.BASE_LT", "The nearest are: SOLVER.BASE_LR"),
        ("learning_rate", "The nearest are: SOLVER.BASE_LR"),  # by what the texts say
        ("model.roi_heads.num_klasses", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("model.backbone.bottom_up.depth", "Arguments in a LazyConfig are explained by the class"),
        ("xyzxyz", "Without a KEY, the groups are listed"),
    ],
)
def test_explain_unknown(command, name, near):
    status, out, err = command("config", "explain", name)
    assert (status, out) == (1, "") and f"There is no config key {name!r}" in err and near in err


def test_every_key_has_a_reader():
    unread = {name for name in read_meanings() if not find_readers(name)}
    projects = {"MODEL.SEM_SEG_HEAD.PROJECT_FEATURES", "MODEL.INS_EMBED_HEAD.PROJECT_FEATURES"}
    assert unread == {"VERSION", "GLOBAL.HACK", *projects}
    for name in {"GLOBAL.HACK", *projects}:  # the version is read while files are merged
        assert "not read it" in read_meanings()[name][1] or "nothing reads it" in read_meanings()[name][1]


def test_readers_read():
    (place,) = find_readers("MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE")
    path, _, line = place.partition(":")
    assert "MIN_KEYPOINTS_PER_IMAGE" in (ROOT / path).read_text().splitlines()[int(line) - 1]
    assert find_readers("SOLVER.NONE_SUCH") == []


def test_types_are_those_of_the_defaults():
    assert "type      bool" in explain(["MODEL.MASK_ON"]) and config_keys(False)["MODEL.MASK_ON"].default is False
    assert get_cfg().MODEL.MASK_ON is False
