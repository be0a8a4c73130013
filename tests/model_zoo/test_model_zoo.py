"""The model zoo: names, addresses, every shipped config against its recorded values, building models."""

import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf, SCMode

import detectron2.model_zoo
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.model_zoo import NotInModelZooError
from detectron2.utils.registry import locate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
YAML_FILES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
LAZY_FILES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.py"))
PROJECTS = CONFIGS.parent / "projects"
RECORDED_PROJECTS = ("MViTv2", "ViTDet")
PROJECT_LAZY_FILES = sorted(
    p.relative_to(PROJECTS.parent).as_posix()
    for project in RECORDED_PROJECTS
    for p in (PROJECTS / project / "configs").rglob("*.py")
)
OWN_FOLDERS = {"Demo", "Modern", "VOC-BCCD"}  # not in the published zoo
PUBLISHED_YAML_FILES = [name for name in YAML_FILES if name.split("/")[0] not in OWN_FOLDERS]
PUBLISHED_LAZY_FILES = [name for name in LAZY_FILES if name.split("/")[0] not in OWN_FOLDERS]


# ---------------------------------------------------------------------------------------------------------------- names


def test_import_forms():
    from detectron2.model_zoo import model_zoo as module

    assert module.get_config is model_zoo.get_config is detectron2.model_zoo.get_config


def test_importing_the_zoo_is_cheap():
    code = "import sys, detectron2.model_zoo; assert not {'torch', 'hydra', 'detectron2.modeling'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl",
        ),
        (
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl",
        ),
        (
            "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py",
            "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ/42047764/model_final_bb69de.pkl",
        ),
    ],
)
def test_checkpoint_urls(name, url):
    assert model_zoo.get_checkpoint_url(name) == f"https://dl.fbaipublicfiles.com/detectron2/{url}"


@pytest.mark.parametrize("name", ["", "x.yaml", "COCO-Detection", "Misc/semantic_R_50_FPN_1x.yaml"])
def test_no_weights(name):
    with pytest.raises(NotInModelZooError, match="no trained weights"):
        model_zoo.get_checkpoint_url(name)


def test_unknown_configs_get_the_nearest_names():
    for function in (model_zoo.get_config_file, model_zoo.get_config, model_zoo.get):
        with pytest.raises(RuntimeError, match=r"COCO-Detection/retinanet_R_50_FPN_1x\.yaml"):
            function("COCO-Detection/retinanet_R_50_FPN.yaml")
    with pytest.raises(FileNotFoundError):
        model_zoo.get_config("")
    with pytest.raises(NotInModelZooError, match="detectron2 zoo list"):
        model_zoo.get_config("zzz")


def test_config_files_exist():
    for name in [*YAML_FILES, *LAZY_FILES]:
        assert os.path.samefile(model_zoo.get_config_file(name), CONFIGS / name)


def test_configs_of_an_installed_package_come_first(tmp_path, monkeypatch):
    (tmp_path / "model_zoo" / "configs").mkdir(parents=True)
    (tmp_path / "model_zoo" / "configs" / "x.yaml").write_text("SEED: 3\n")
    monkeypatch.setattr("detectron2.config.node.__file__", str(tmp_path / "config" / "node.py"))
    assert model_zoo.get_config("x.yaml").SEED == 3


# --------------------------------------------------------------------------------------------------------- YAML configs


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_lists(value):
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", PUBLISHED_YAML_FILES)
def test_yaml_configs_are_as_recorded(name, shared_dir):
    recorded = json.loads((shared_dir / "facts" / "model_zoo_yaml.json").read_text())["configs"]
    defaults, cfg = dict(_leaves(get_cfg())), dict(_leaves(model_zoo.get_config(name)))
    assert cfg.keys() == defaults.keys()
    for key, value in cfg.items():
        expected = recorded[name]["overrides"].get(key, _as_lists(defaults[key]))
        # as text, so that 1 and 1.0 differ
        assert json.dumps(_as_lists(value)) == json.dumps(expected), key
        assert type(value) is type(defaults[key]) or defaults[key] is None, key


def test_no_yaml_config_is_missing(shared_dir):
    recorded = json.loads((shared_dir / "facts" / "model_zoo_yaml.json").read_text())["configs"]
    assert set(recorded) == set(PUBLISHED_YAML_FILES)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Base-RCNN-FPN.yaml", "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        ("Base-RCNN-C4.yaml", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
        ("Base-RetinaNet.yaml", "SOLVER.BASE_LR", 0.01),
        ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", "MODEL.RESNETS.STRIDE_IN_1X1", False),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", "SOLVER.STEPS", (210000, 250000)),
        ("Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml", "INPUT.MIN_SIZE_TRAIN", (800,)),
        ("Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml", "MODEL.WEIGHTS", ""),
        ("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", "DATASETS.TRAIN", ("voc_2007_trainval", "voc_2012_trainval")),
        ("VOC-BCCD/faster_rcnn_R_18_FPN_scratch.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
        ("VOC-BCCD/faster_rcnn_R_18_FPN_scratch.yaml", "SOLVER.CLIP_GRADIENTS.ENABLED", True),
        ("VOC-BCCD/faster_rcnn_R_18_FPN_scratch.yaml", "INPUT.MIN_SIZE_TRAIN", (256,)),
        ("VOC-BCCD/faster_rcnn_timm_resnet10t_FPN_scratch.yaml", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
        ("VOC-BCCD/faster_rcnn_timm_resnet10t_FPN_scratch.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
        ("VOC-BCCD/rt_detr_v2_scratch.yaml", "MODEL.META_ARCHITECTURE", "HFDetector"),
        ("VOC-BCCD/rt_detr_v2_scratch.yaml", "SOLVER.EMA_DECAY", 0.998),
    ],
)
def test_some_values_of_yaml_configs(name, key, value):
    found = dict(_leaves(model_zoo.get_config(name)))[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name", PUBLISHED_YAML_FILES)
def test_yaml_configs_hold_nothing_but_differences(name):
    """A key that repeats the value of the base says nothing, and hides what matters."""
    path = CONFIGS / name
    own = CfgNode.load_cfg(path.read_text())
    base_name = own.pop("_BASE_", None)
    base = get_cfg()
    if base_name:
        base.merge_from_file(str(path.parent / base_name))
    inherited = dict(_leaves(base))
    for key, value in _leaves(own):
        assert key == "VERSION" or _as_lists(inherited[key]) != _as_lists(value), key


@pytest.mark.parametrize("name", [*PUBLISHED_YAML_FILES, *PUBLISHED_LAZY_FILES])
def test_files_open_with_what_they_are_and_how_they_run(name):
    lines = (CONFIGS / name).read_text().splitlines()[:4]
    assert lines[0].startswith("# ")
    is_part = "/Base-" in f"/{name}" or name.startswith("common/")
    assert is_part or any(line.startswith("#") and f"configs/{name}" in line for line in lines)


def test_trained_configs_start_from_the_weights():
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", trained=True)
    assert cfg.MODEL.WEIGHTS.endswith("/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl")
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    lazy = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py", trained=True)
    assert lazy.train.init_checkpoint.endswith("/model_final_bfca0b.pkl")
    with pytest.raises(NotInModelZooError, match="no trained weights"):
        model_zoo.get_config("Misc/semantic_R_50_FPN_1x.yaml", trained=True)


# --------------------------------------------------------------------------------------------------------- lazy configs


def _names(obj, recorded):
    """Is ``obj``, a callable or its dotted name, what the recorded name means?"""
    if "<lambda>" in recorded or recorded.startswith((".", "builtins.Class")):
        return callable(obj)  # defined in a config file
    obj = locate(obj) if isinstance(obj, str) else obj
    return obj == locate(recorded)


def _assert_same(found, recorded, path=""):
    if isinstance(recorded, str) and recorded.startswith("${interp}"):
        recorded = recorded.removeprefix("${interp}")
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    if isinstance(found, functools.partial) and isinstance(recorded, dict):
        found = {"_partial_": found.func, "args": list(found.args), **found.keywords}
    if isinstance(recorded, str) and "(" in recorded and isinstance(found, dict):
        recorded, found = recorded.partition("(")[0], found["_target_"]  # we describe what was built in the recording
    if isinstance(recorded, dict):
        assert isinstance(found, dict) and found.keys() == recorded.keys(), path
        for key, value in recorded.items():
            if key in ("_target_", "_partial_"):
                assert _names(found[key], value), (path, found[key], value)
            else:
                _assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), path
        for i, (a, b) in enumerate(zip(found, recorded, strict=True)):
            _assert_same(a, b, f"{path}[{i}]")
    elif callable(found):
        assert _names(found, recorded), path
    else:
        assert found == recorded and type(found) is type(recorded), (path, found, recorded)


@pytest.mark.parametrize("name", PUBLISHED_LAZY_FILES)
def test_lazy_configs_are_as_recorded(name, shared_dir):
    recorded = json.loads((shared_dir / "facts" / "lazy_configs.json").read_text())[f"configs/{name}"]
    cfg = LazyConfig.load(str(CONFIGS / name))
    plain = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    _assert_same(plain, recorded)


@pytest.mark.parametrize("name", PROJECT_LAZY_FILES)
def test_lazy_configs_of_projects_are_as_recorded(name, shared_dir):
    recorded = json.loads((shared_dir / "facts" / "lazy_configs.json").read_text())[name]
    cfg = LazyConfig.load(str(PROJECTS.parent / name))
    plain = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    _assert_same(plain, recorded)


def test_no_lazy_config_is_missing(shared_dir):
    recorded = json.loads((shared_dir / "facts" / "lazy_configs.json").read_text())
    assert {n.removeprefix("configs/") for n in recorded if n.startswith("configs/")} == set(PUBLISHED_LAZY_FILES)
    assert {n for n in recorded if n.startswith("projects/")} == set(PROJECT_LAZY_FILES)


@pytest.mark.parametrize(
    "name", ["common/optim.py", "common/data/coco.py", "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"]
)
def test_lazy_configs_can_be_saved_and_loaded(name, tmp_path, caplog):
    cfg = model_zoo.get_config(name)
    assert isinstance(cfg, DictConfig)
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    assert not caplog.records
    LazyConfig.save(LazyConfig.load(str(tmp_path / "saved.yaml")), str(tmp_path / "again.yaml"))
    assert (tmp_path / "saved.yaml").read_text() == (tmp_path / "again.yaml").read_text()


# --------------------------------------------------------------------------------------------------------------- models


def test_get_builds_a_model_of_a_yaml_config(tmp_path, monkeypatch):
    module = sys.modules["detectron2.model_zoo.model_zoo"]
    text = "_BASE_: {}\nMODEL: {{RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}, WEIGHTS: ''}}\n"
    (tmp_path / "small.yaml").write_text(text.format(CONFIGS / "Base-RCNN-FPN.yaml"))
    monkeypatch.setattr(module, "config_folder", lambda: tmp_path)
    model = model_zoo.get("small.yaml", device="cpu")
    assert type(model).__name__ == "GeneralizedRCNN" and model.training
    assert model.device.type == "cpu"


def test_get_builds_a_model_of_a_lazy_config(tmp_path, monkeypatch):
    module = sys.modules["detectron2.model_zoo.model_zoo"]
    (tmp_path / "small.py").write_text(
        "from torch import nn\nfrom detectron2.config import LazyCall as L\n"
        "model = L(nn.Linear)(in_features=2, out_features=1)\n"
    )
    (tmp_path / "none.py").write_text("data = dict(x=1)\n")
    monkeypatch.setattr(module, "config_folder", lambda: tmp_path)
    model = model_zoo.get("small.py", device="cpu")
    assert model.weight.shape == (1, 2) and model.training
    with pytest.raises(ValueError, match="describes no model: it defines data"):
        model_zoo.get("none.py")
    monkeypatch.setitem(module.CHECKPOINTS, "", {"small": "1/model_final_1.pkl"})
    with pytest.raises(ValueError, match="init_checkpoint"):
        model_zoo.get("small.py", trained=True)


@pytest.mark.parametrize("ending", ["yaml", "py"])
def test_trained_models_come_from_the_cache(tmp_path, monkeypatch, ending):
    """Loaded from where a download would be kept; a file that does not fill the model is refused."""
    module = sys.modules["detectron2.model_zoo.model_zoo"]
    monkeypatch.setattr(module, "config_folder", lambda: tmp_path)
    monkeypatch.setitem(module.CHECKPOINTS, "", {"small": "1/model_final_1.pkl"})
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    if ending == "yaml":
        text = (
            "_BASE_: {}\nMODEL: {{RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}, FPN: {{OUT_CHANNELS: 8}}, "
            "ROI_BOX_HEAD: {{FC_DIM: 8}}}}\n"
        )
        (tmp_path / "small.yaml").write_text(text.format(CONFIGS / "Base-RCNN-FPN.yaml"))
    else:
        (tmp_path / "small.py").write_text(
            "from torch import nn\nfrom detectron2.config import LazyCall as L\n"
            "model = L(nn.Linear)(in_features=2, out_features=1)\n"
            "train = dict(init_checkpoint='', device='cpu')\n"
        )
    with pytest.raises(OSError, match=r"DETECTRON2_OFFLINE.*small/1/model_final_1\.pkl"):
        model_zoo.get(f"small.{ending}", trained=True, device="cpu")

    cfg = module.get_config(f"small.{ending}")
    source = module.instantiate(cfg.model) if ending == "py" else _build(cfg)
    weights = {key: value.numpy() + 1 for key, value in source.state_dict().items()}
    file = tmp_path / "cache" / "detectron2" / "small" / "1" / "model_final_1.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}))
    found = model_zoo.get(f"small.{ending}", trained=True, device="cpu").state_dict()
    assert found.keys() == weights.keys()
    assert all((found[key].numpy() == weights[key]).all() for key in weights)

    weights.pop(next(key for key in weights if key.endswith("bias")))
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}))
    with pytest.raises(ValueError, match="not in the file"):
        model_zoo.get(f"small.{ending}", trained=True, device="cpu")


def _build(cfg):
    from detectron2.modeling import build_model

    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)
