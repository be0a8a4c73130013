"""Which calls a config out of weights may describe."""

import pytest
from omegaconf import OmegaConf
from torch import nn

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.config.lazy_text import load_lazy_yaml, to_yaml
from detectron2.config.trusted_calls import ForeignCallError, refuse_foreign_calls
from detectron2.engine import shard_model
from detectron2.layers import ShapeSpec


def reloaded(cfg):
    """-> a config as it comes out of a file."""
    return OmegaConf.create(load_lazy_yaml(to_yaml(cfg)[0], "x"), flags={"allow_objects": True})


@pytest.mark.parametrize("part", [{}, [], None, {"a": [1, {"b": "os.system"}]}])
def test_nothing_is_called(part):
    refuse_foreign_calls(part, "x")


@pytest.mark.parametrize(
    "path",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py",
        "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ.py",
    ],
)
def test_models_of_the_zoo(path):
    cfg = reloaded(model_zoo.get_config(path))
    for part in (cfg.model, cfg.dataloader.test.mapper):
        refuse_foreign_calls(part, "x")


def test_objects_of_every_form():
    import functools

    cfg = reloaded(
        OmegaConf.create(
            {
                "norm": functools.partial(nn.LayerNorm, eps=1e-6),
                "act": nn.GELU,
                "shape": ShapeSpec(channels=3),
                "flip": L(T.RandomFlip)(),
                "shard": L(shard_model)(model=L(nn.Linear)(in_features=1, out_features=1)),
                "stages": L("detectron2.modeling.backbone.ResNet.make_default_stages")(depth=18),
            },
            flags={"allow_objects": True},
        )
    )
    refuse_foreign_calls(cfg, "x")
    assert instantiate(cfg.norm).func is nn.LayerNorm and instantiate(cfg.act) is nn.GELU


LOCATE = "detectron2.utils.registry.locate"


@pytest.mark.parametrize(
    "call",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "builtins.eval", "source": "1"},
        {"_target_": "subprocess.run", "args": ["true"]},
        {"_target_": "torch.load", "f": "x"},
        {"_target_": "torch.hub.load", "repo_or_dir": "x"},
        # What other modules have imported, or what stands next to a model.
        {"_target_": "detectron2.layers.wrappers.torch.load", "f": "x"},
        {"_target_": "detectron2.data.dataset_mapper.np.load", "file": "x"},
        {"_target_": "torch.nn.modules.module.functools.partial"},
        {"_target_": "detectron2.config.LazyConfig.load", "filename": "http://localhost/x.py"},
        {"_target_": "detectron2.utils.env._import_file", "module_name": "a", "file_path": "x"},
        {"_target_": "detectron2.utils.env.import_file", "module_name": "a", "file_path": "x"},
        {"_target_": "detectron2.projects.training.train_or_evaluate", "args": None, "cfg": None},
        {"_target_": "detectron2.projects.training.launch_script", "main": None},
        {"_target_": "detectron2.checkpoint.DetectionCheckpointer"},
        {"_target_": "detectron2.modeling.mmdet_wrapper.MMDetDetector"},
        {"_target_": "detectron2.layers.Conv2d.__init__.__globals__"},
        # By way of descriptions of objects.
        {"_target_": LOCATE, "name": "os.system"},
        {"_target_": {"_target_": LOCATE, "name": "os.system"}, "command": "true"},
        {"_target_": "torch.nn.Linear", "in_features": [{"a": {"_target_": LOCATE, "name": "posix.system"}}]},
        {
            "_target_": "detectron2.config.lazy_text.make_partial",
            "func": {"_target_": LOCATE, "name": "os.system"},
            "args": [],
            "keywords": {"_target_": "builtins.dict"},
        },
        # A name that is put together later.
        {"_target_": {"_target_": "torch.nn.Identity"}},
        {"_target_": {"_target_": LOCATE, "name": {"_target_": "torch.nn.Identity"}}},
        {"_target_": 3},
        {"_target_": "${.where}.system", "where": "os"},
    ],
)
def test_refused(call):
    with pytest.raises(ForeignCallError, match=r"The config in w\.pth"):
        refuse_foreign_calls(OmegaConf.create({"model": call}), "w.pth")


def test_a_module_is_not_imported_to_find_out(tmp_path, monkeypatch):
    (tmp_path / "foreign_module.py").write_text("raise AssertionError('was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ForeignCallError, match="--import foreign_module"):
        refuse_foreign_calls({"_target_": "foreign_module.Model"}, "x")


def test_packages_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("import os\nclass Model: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    call = {"_target_": "own_module.Model"}
    with pytest.raises(ForeignCallError):
        refuse_foreign_calls(call, "x", ["own_mod"])
    refuse_foreign_calls(call, "x", ["own_module"])
    with pytest.raises(ForeignCallError):  # only what is defined there
        refuse_foreign_calls({"_target_": "own_module.os.system"}, "x", ["own_module"])


def test_a_name_that_does_not_exist():
    with pytest.raises(ImportError, match="Cannot import"):
        refuse_foreign_calls({"_target_": "torch.nn.Lineer"}, "x")
