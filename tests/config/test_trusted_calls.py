"""Which calls a config out of weights may describe."""

import pytest
from omegaconf import OmegaConf
from torch import nn

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.config.lazy_text import load_lazy_yaml, to_yaml
from detectron2.config.trusted_calls import ForeignCallError, refuse_foreign_calls, refuse_foreign_config
from detectron2.engine import shard_model
from detectron2.layers import ShapeSpec


def reloaded(cfg):
    """A config as it comes out of a file."""
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
        # Functions and methods in packages that hold layers and models.
        {"_target_": "torchvision.models._api.WeightsEnum.get_state_dict", "self": {}, "file_name": "x"},
        {"_target_": "torchvision.models._api.Weights", "url": "data:,x", "transforms": None, "meta": {}},
        {"_target_": "torchvision.models.resnet.WeightsEnum.get_state_dict", "self": {}},
        {"_target_": "torchvision.models.get_model", "name": "resnet50", "weights": "DEFAULT"},
        {"_target_": "torchvision.models.get_weight", "name": "ResNet50_Weights.DEFAULT"},
        {"_target_": "torchvision.models.ResNet50_Weights", "value": "x"},
        {"_target_": "torchvision.models.resnet50", "weights": "DEFAULT"},
        {"_target_": "torchvision.models.resnet50", "pretrained": True},
        {"_target_": "torchvision.models.resnet50", "weights": {"_target_": "builtins.dict"}},
        {"_target_": "torchvision.models.resnet.resnet18", "progress": True},
        {"_target_": "torchvision.models.detection.fasterrcnn_resnet50_fpn"},  # fetches a backbone by default
        {"_target_": "torchvision.models.detection.backbone_utils.resnet_fpn_backbone", "backbone_name": "resnet50"},
        {"_target_": LOCATE, "name": "torchvision.models.resnet50"},  # another would call it with its own arguments
        {"_target_": {"_target_": LOCATE, "name": "torchvision.models.resnet50"}, "weights": "DEFAULT"},
        {"_target_": "torchvision.models.feature_extraction.create_feature_extractor"},
        {"_target_": "torchvision.ops.misc.torch.load", "f": "x"},
        {"_target_": "torch.nn.cpp.OrderedDictWrapper", "cpp_module": None, "attr": "x"},
        {"_target_": "torch.nn.cpp.OrderedDictWrapper.cpp_dict.fget", "self": None},
        {"_target_": "torch.nn.functional.handle_torch_function", "public_api": None},
        {"_target_": "torch.nn.functional.boolean_dispatch"},
        {"_target_": "torch.nn.functional.torch.load", "f": "x"},
        {"_target_": "torch.nn.Module.load_state_dict", "self": {}, "state_dict": {}},
        {"_target_": "torch.nn.Linear.__init__", "self": {}},
        {"_target_": "torch.nn.Linear.forward.__globals__"},
        {"_target_": "torch.nn.DataParallel", "module": {}},
        {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": {}},
        {"_target_": "torch.nn.utils.parametrize.register_parametrization"},
        {"_target_": "torch.nn.init.uniform_"},
        {"_target_": "torch.nn.modules.module._load_from_state_dict"},
        {"_target_": "torch.nn.modules.module.torch.load", "f": "x"},
        {"_target_": "torch.nn.attention._utils"},
        {"_target_": "fvcore.nn.flop_count.FlopCountAnalysis"},
        {"_target_": "fvcore.nn.print_model.model_stats_table"},
        {"_target_": "detectron2.modeling.build_model", "cfg": {}},
        {"_target_": "detectron2.modeling.backbone.build.BACKBONE_REGISTRY.get", "name": "x"},
        {"_target_": "detectron2.modeling.FastRCNNOutputLayers.from_config", "cfg": {}},
        {"_target_": "detectron2.layers.Conv2d.load_state_dict", "self": {}},
        {"_target_": "detectron2.data.detection_utils.read_image", "file_name": "x"},
        {"_target_": "detectron2.data.transforms.RandomFlip.__reduce__"},
        {"_target_": "detectron2.engine.launch", "main_func": {"_target_": LOCATE, "name": "os.system"}},
        {"_target_": "detectron2.engine.train_loop.torch.save", "obj": 1, "f": "x"},
        {"_target_": "detectron2.model_zoo.get", "config_path": "x"},
        {"_target_": "detectron2.utils.file_io.PathManager.rm", "path": "x"},
        {"_target_": "detectron2.config.instantiate.locate", "name": "os.system"},
        {"_target_": "builtins.getattr"},
        {"_target_": "builtins.dict.fromkeys", "iterable": []},
        {"_target_": "builtins.list.__class__"},
        {"_target_": "functools.partial"},
        {"_target_": "operator.attrgetter"},
        {"_target_": "importlib.import_module", "name": "antigravity"},
        {"_target_": " torch.nn.ReLU"},
        {"_target_": "torch.nn..ReLU"},
        {"_target_": "torch.nn.ReLU.", "a": 1},
        {"_target_": ".torch.nn.ReLU"},
        {"_target_": "torch.nn\u200b.ReLU"},
        {"_target_": ""},
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


def test_builders_of_torchvision_without_their_weights():
    call = {"_target_": "torchvision.models.resnet18", "num_classes": 3, "weights": None}
    refuse_foreign_calls(call, "x")
    assert instantiate(call).fc.out_features == 3


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "http://localhost/${oc.env:HOME}", "${oc.decode:${.a}}", "${oc.create:{a:1}}", "${${.a}:x}"],
)
def test_a_config_that_reads_its_surroundings(text):
    for cfg in (
        {"model": {"_target_": "torch.nn.ReLU"}, "train": {"a": [text]}},
        {"model": {"a": "oc.env", "b": text}},
    ):
        with pytest.raises(ForeignCallError, match="computes a value"):
            refuse_foreign_config(OmegaConf.create(cfg), "w.pth")


def test_links_within_a_config():
    cfg = OmegaConf.create(
        {"model": {"_target_": "torch.nn.Linear", "in_features": "${.out_features}", "out_features": 2}}
    )
    refuse_foreign_config(cfg, "w.pth")
    cfg = OmegaConf.create({"model": "${other}", "other": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(ForeignCallError, match=r"os\.system"):
        refuse_foreign_config(cfg, "w.pth")


def test_names_are_checked_before_anything_is_imported(tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "detectron2.projects.deeplab.loss", raising=False)
    calls = [{"_target_": "detectron2.projects.deeplab.loss.DeepLabCE"}, {"_target_": "os.system", "command": "true"}]
    with pytest.raises(ForeignCallError):
        refuse_foreign_calls(calls, "x")
    assert "detectron2.projects.deeplab.loss" not in sys.modules


def test_control_characters_in_a_name_are_not_printed():
    with pytest.raises(ForeignCallError) as info:
        refuse_foreign_calls({"_target_": "os.\x1b[2J\x07"}, "x")
    assert str(info.value).isprintable()


def test_nothing_that_may_be_built_starts_a_process_or_opens_a_socket_or_a_file_for_writing():
    import subprocess
    import sys

    run = subprocess.run([sys.executable, "-m", "tests.config.calls_under_watch"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    classes, built, *events = run.stdout.strip().split("\n")
    assert int(classes) > 250 and int(built) > 300, run.stdout
    assert events == []


def test_links_that_repeat_each_other():
    cfg = {"a0": [1] * 9, **{f"a{i}": [f"${{a{i - 1}}}"] * 9 for i in range(1, 12)}, "model": {"x": "${a11}"}}
    with pytest.raises(ForeignCallError, match="100,000 values"):
        refuse_foreign_config(OmegaConf.create(cfg), "w.pth")
    cfg = {"a0": "x", **{f"a{i}": f"${{a{i - 1}}}" * 9 for i in range(1, 12)}, "model": {"x": "${a11}"}}
    with pytest.raises(ForeignCallError, match="fill the memory"):
        refuse_foreign_config(OmegaConf.create(cfg), "w.pth")


def test_links_that_lead_nowhere_or_in_a_circle():
    for model in ("${model}", "${nothing}", {"a": "${.a}"}, {"a": "${model}"}):
        with pytest.raises(ForeignCallError, match=r"in w\.pth cannot be read"):
            refuse_foreign_config(OmegaConf.create({"model": model}), "w.pth")
