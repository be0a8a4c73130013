"""Backbones of transformers with tiny random weights: shapes, detectors, folders, freezing, layers, ways to run."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_backbone, external
from detectron2.modeling.backbone.transformers_backbone import TransformersBackbone
from detectron2.modeling.optimized import OptimizedForm, optimized_for_inference
from detectron2.solver import build_optimizer
from detectron2.solver.build import layer_decay
from tests.modeling.backbone.test_timm_backbone import detector_cfg, image

pytest.importorskip("transformers")

WIDTHS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
CONFIGS = {
    "resnet": {"embedding_size": 8, "layer_type": "basic", **WIDTHS},
    "convnext": WIDTHS,
    "swin": SWIN,
    "dinov2": PLAIN,
    "dinov3_vit": {**PLAIN, "intermediate_size": 32},
}
CHANNELS = {
    "resnet": (8, 16, 24, 32),
    "convnext": (8, 16, 24, 32),
    "swin": (8, 16, 32, 64),
    "dinov2": (16,),
    "dinov3_vit": (16,),
}


def config_of(kind):
    return {"model_type": kind, **CONFIGS[kind]}


def make(kind, **kwargs):
    torch.manual_seed(0)
    return TransformersBackbone(config_of(kind), **kwargs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`folders(kind)`: a folder with config and weights, as the library saves them, with its statistics of images."""

    def folder(kind):
        path = tmp_path_factory.getbasetemp() / f"folder_{kind}"
        if not path.exists():
            make(kind).network.save_pretrained(path)
            (path / "preprocessor_config.json").write_text(
                '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}'
            )
        return str(path)

    return folder


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("n", "height", "width"), [(0, 64, 64), (2, 47, 75)])
def test_output_shape_is_that_of_the_output(kind, n, height, width):
    backbone = make(kind).eval()
    strides = (16,) if len(CHANNELS[kind]) == 1 else (4, 8, 16, 32)
    assert {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()} == {
        external.map_name(s): (c, s) for c, s in zip(CHANNELS[kind], strides, strict=True)
    }
    if n == 0 and kind in ("swin", "dinov2", "dinov3_vit"):
        return  # the library itself takes no empty batch
    for name, value in backbone(image(height, width, n=n)).items():
        spec = backbone.output_shape()[name]
        assert value.shape == (n, spec.channels, -(-height // spec.stride), -(-width // spec.stride))


@pytest.mark.parametrize("kind", CONFIGS)
def test_maps_are_those_of_transformers(kind):
    from transformers import AutoBackbone, AutoConfig

    ours = make(kind, **({"out_features": ["res3", "res5"]} if len(CHANNELS[kind]) > 1 else {})).eval()
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    config.out_features = ["stage2", "stage4"] if len(CHANNELS[kind]) > 1 else ["stage2"]
    theirs = AutoBackbone.from_config(config).eval()
    theirs.load_state_dict(ours.network.state_dict(), strict=True)
    for value, expected in zip(ours(image()).values(), theirs(image()).feature_maps, strict=True):
        assert torch.equal(value, expected)


DETECTORS = ("Faster R-CNN", "RetinaNet", "Mask R-CNN")


@pytest.mark.parametrize(
    ("kind", "detector"),
    [
        pytest.param(kind, detector, marks=[] if i % 3 == j else [pytest.mark.slow])
        for i, kind in enumerate(CONFIGS)
        for j, detector in enumerate(DETECTORS)
    ],
)
def test_detectors_learn(kind, detector, rcnn_batch, folders):
    cfg = detector_cfg("", detector, "MODEL.TRANSFORMERS.NAME", folders(kind))
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("timm", "transformers")
    model = build_model(cfg).train()
    losses = model(rcnn_batch(train=True))
    assert losses and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    (backbone,) = [m for m in model.modules() if isinstance(m, TransformersBackbone)]
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        else:
            assert key.endswith(("mask_token", "swin.layernorm.weight", "swin.layernorm.bias")), key
    assert next(p for p in backbone.parameters() if p.ndim == 4).grad.abs().sum() > 0
    with torch.no_grad():
        assert all(r["instances"].scores.isfinite().all() for r in model.eval()(rcnn_batch()))


def test_folders(folders):
    first, second = (TransformersBackbone(folders("convnext"), pretrained=True).eval() for _ in range(2))
    original = make("convnext").eval()
    for name, value in original(image()).items():
        assert torch.equal(first(image())[name], value) and torch.equal(second(image())[name], value)
    assert first.pixel_mean == [127.5, 102.0, 76.5] and original.pixel_mean is None
    random = TransformersBackbone(folders("convnext")).eval()
    assert not torch.equal(random(image())["res5"], original(image())["res5"])


def test_pixel_statistics_and_keys(folders):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_transformers_backbone", 1
    with pytest.raises(ValueError, match=r"MODEL\.TRANSFORMERS\.NAME is empty"):
        build_backbone(cfg)
    cfg.merge_from_list(["MODEL.TRANSFORMERS.NAME", folders("resnet"), "MODEL.TRANSFORMERS.PRETRAINED", "True"])
    cfg.merge_from_list(["MODEL.TRANSFORMERS.NORM", "FrozenBN", "MODEL.TRANSFORMERS.OUT_FEATURES", "['res4']"])
    with pytest.raises(ValueError, match="expect other images") as error:
        build_backbone(cfg)
    cfg.merge_from_list(str(error.value).splitlines()[-1].split(" "))
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res4"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    assert not backbone.network.embedder.embedder.convolution.weight.requires_grad
    cfg.MODEL.WEIGHTS = "weights.pth"
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0, 0.0]
    build_backbone(cfg)  # what trained weights expect is in their config


def test_what_cannot_be_built(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="needs the key model_type, such as resnet; got None"):
        TransformersBackbone({"hidden_sizes": [8]})
    with pytest.raises(ValueError, match=r"model_type, such as resnet, .*got 'resnett'"):
        TransformersBackbone({"model_type": "resnett"})
    with pytest.raises(ValueError, match=r"takes no resnet with {'depths': 'x'}: .*'depths'"):
        TransformersBackbone({"model_type": "resnet", "depths": "x"})
    with pytest.raises(ValueError, match="resnet of transformers cannot be a backbone"):
        TransformersBackbone({"model_type": "resnet", "hidden_sizes": [8, 8]})
    with pytest.raises(TypeError, match=r"Give a folder, .* got a int"):
        TransformersBackbone(3)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*elsewhere"):
        TransformersBackbone(str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="bert of transformers cannot be a backbone"):
        TransformersBackbone({"model_type": "bert"})
    with pytest.raises(ValueError, match="A config has no pretrained weights"):
        make("resnet", pretrained=True)
    with pytest.raises(ValueError, match="may be res2, res3, res4, res5"):
        make("resnet", out_features=["p2"])
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    with pytest.raises(OSError, match=r"nobody/nothing of transformers could not be had.*hf download"):
        TransformersBackbone("nobody/nothing")
    monkeypatch.setattr(external.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[transformers\]'"):
        make("resnet")


def test_defaults_of_convnext():
    """The library's own defaults are tuples, to which its backbone adds lists."""
    backbone = TransformersBackbone({"model_type": "convnext", "depths": [1, 1, 1, 1]}, out_features=["res2"])
    assert backbone.output_shape()["res2"].channels == 96


def test_lazy_config():
    backbone = instantiate(LazyCall(TransformersBackbone)(name=config_of("convnext"), out_features=["res4"]))
    assert list(backbone.output_shape()) == ["res4"]


@pytest.mark.parametrize(
    ("kind", "first", "last", "count"),
    [
        ("resnet", "embedder.embedder.convolution.weight", "encoder.stages.3.layers.0.layer.0.convolution.weight", 4),
        ("convnext", "embeddings.patch_embeddings.weight", "encoder.stages.3.layers.0.dwconv.weight", 4),
        ("swin", "swin.embeddings.norm.weight", "swin.encoder.layers.3.blocks.0.layernorm_before.weight", 4),
        ("dinov2", "embeddings.cls_token", "encoder.layer.1.norm1.weight", 2),
    ],
)
def test_order_of_layers(kind, first, last, count):
    model = nn.Module()
    model.backbone = make(kind)
    for coarse in (False, True):
        groups = model.backbone.layer_groups(coarse)
        assert groups.keys() == dict(model.backbone.named_parameters()).keys()
        assert (groups[f"network.{first}"], groups[f"network.{last}"], max(groups.values())) == (0, count, count)
    factor = layer_decay(model, 0.5)
    assert factor(f"backbone.network.{first}") == 0.5 ** (count + 1) and factor(f"backbone.network.{last}") == 0.5
    frozen = make(kind, freeze_at=1)
    for name, parameter in frozen.named_parameters():
        is_used = not name.endswith(("mask_token", "swin.layernorm.weight", "swin.layernorm.bias"))
        assert parameter.requires_grad == (groups[name] > 0 and is_used), name


def test_resume_is_exact(tmp_path, rcnn_batch, folders):
    cfg = detector_cfg("", "Faster R-CNN", "MODEL.TRANSFORMERS.NAME", folders("convnext"))
    cfg.MODEL.BACKBONE.NAME = "build_transformers_fpn_backbone"
    batch = rcnn_batch(train=True)

    def trained(steps, save=False, resume=False):
        torch.manual_seed(9 if resume else 0)
        model = build_model(cfg).train()
        optimizer = build_optimizer(cfg, model)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
        if resume:
            checkpointer.resume_or_load("")
        for number in steps:
            torch.manual_seed(number)
            optimizer.zero_grad()
            sum(model(copy.deepcopy(batch)).values()).backward()
            optimizer.step()
        if save:
            checkpointer.save("half")
        return model

    whole = trained(range(3))
    trained(range(2), save=True)
    resumed = trained([2], resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("kind", ["resnet", "dinov2"])
def test_precision_layout_and_optimized_form(kind):
    backbone = make(kind).eval()
    with torch.no_grad():
        expected = backbone(image())
        other = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
        for key, value in other(image().contiguous(memory_format=torch.channels_last)).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(image())
        for key, value in rounded.items():
            assert F.cosine_similarity(value.float().flatten(), expected[key].flatten(), dim=0) > 0.99
        for key, value in optimized_for_inference(backbone)(image()).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
    assert OptimizedForm(backbone).current() is backbone
