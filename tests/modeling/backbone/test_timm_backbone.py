"""Backbones of timm: its maps, families of networks in three detectors, weights from files, freezing, ways to run."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.export import export_model
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_backbone, external
from detectron2.modeling.backbone.timm_backbone import TimmBackbone, timm_pixel_statistics, use_timm_pixel_statistics
from detectron2.modeling.optimized import OptimizedForm, optimized_for_inference
from detectron2.solver import build_optimizer
from detectron2.solver.build import layer_decay

timm = pytest.importorskip("timm")

# Name, and channels of the maps of strides 4, 8, 16 and 32 or of the only one of 16, as the papers have them.
FAMILIES = {
    "resnet10t": (64, 128, 256, 512),
    "resnext26ts": (256, 512, 1024, 2048),
    "regnetx_002": (24, 56, 152, 368),
    "efficientnet_b0": (24, 40, 112, 320),
    "mobilenetv3_small_050": (8, 16, 24, 288),
    "mobilenetv4_conv_small_035": (16, 24, 32, 336),
    "convnext_atto": (40, 80, 160, 320),
    "convnextv2_atto": (40, 80, 160, 320),
    "swin_tiny_patch4_window7_224": (96, 192, 384, 768),
    "swinv2_tiny_window8_256": (96, 192, 384, 768),
    "pvt_v2_b0": (32, 64, 160, 256),
    "efficientvit_b0": (16, 32, 64, 128),
    "hrnet_w18_small": (128, 256, 512, 1024),
    "densenet121": (256, 512, 1024, 1024),
    "vgg11_bn": (256, 512, 512, 512),
    "res2net50d": (256, 512, 1024, 2048),
    "resnest14d": (256, 512, 1024, 2048),
    "dla46_c": (64, 64, 128, 256),
    "fastvit_t8": (48, 96, 192, 384),
    "ghostnet_050": (12, 20, 40, 80),
    "repvgg_a0": (48, 96, 192, 1280),
    "hgnetv2_b0": (64, 256, 512, 1024),
    "vit_tiny_patch16_224": (192,),
    "deit_tiny_patch16_224": (192,),
    "deit3_small_patch16_224": (384,),
    "vit_small_patch14_dinov2": (384,),
    "eva02_tiny_patch14_224": (192,),
}
LARGE = (
    "resnext26ts",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "hrnet_w18_small",
    "densenet121",
    "vgg11_bn",
    "res2net50d",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
)
DETECTORS = ("Faster R-CNN", "RetinaNet", "Mask R-CNN")


def of_strides(name):
    return (16,) if len(FAMILIES[name]) == 1 else (4, 8, 16, 32)


def detector_cfg(name, detector, *changes):
    cfg = get_cfg()
    levels = (3, 4, 5) if detector == "RetinaNet" else (2, 3, 4, 5)
    pyramid = [f"p{k}" for k in range(levels[0], 8 if detector == "RetinaNet" else 7)]
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.TIMM.NAME": name,
        "MODEL.TIMM.PATCH_SIZE": 16 if "patch14" in name else 0,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": [f"res{k}" for k in levels],
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[2 * 2 ** int(p[1])] for p in pyramid],
    }
    if detector == "RetinaNet":
        values |= {
            "MODEL.META_ARCHITECTURE": "RetinaNet",
            "MODEL.BACKBONE.NAME": "build_retinanet_timm_fpn_backbone",
            "MODEL.RETINANET.IN_FEATURES": pyramid,
            "MODEL.RETINANET.NUM_CLASSES": 3,
            "MODEL.RETINANET.NUM_CONVS": 1,
        }
    else:
        values |= {
            "MODEL.RPN.IN_FEATURES": pyramid,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 30,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.NUM_CLASSES": 3,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_HEADS.IN_FEATURES": pyramid[:-1],
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
            "MODEL.MASK_ON": detector == "Mask R-CNN",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 4,
        }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    cfg.merge_from_list(list(changes))
    return cfg


def timm_part(model):
    (part,) = [m for m in model.modules() if isinstance(m, TimmBackbone)]
    return part


def image(height=64, width=96, n=1):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------- families


CASES = [
    pytest.param(
        name, detector, marks=[pytest.mark.slow] if name in LARGE or i % 3 != DETECTORS.index(detector) else []
    )
    for i, name in enumerate(FAMILIES)
    for detector in DETECTORS
]


@pytest.mark.parametrize(("name", "detector"), CASES)
def test_families_in_detectors(name, detector, rcnn_batch):
    model = build_model(detector_cfg(name, detector)).train()
    backbone = timm_part(model)
    assert {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()} == {
        external.map_name(s): (c, s) for c, s in zip(FAMILIES[name], of_strides(name), strict=True)
    }
    losses = model(rcnn_batch(train=True))
    assert losses and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    total = sum(p.grad.abs().sum() for p in backbone.parameters())
    assert total > 0
    first = next(p for p in backbone.parameters() if p.ndim == 4)
    assert first.grad.abs().sum() > 0

    model.eval()
    odd = image(47, 75)
    outputs = backbone(odd)
    for key, spec in backbone.output_shape().items():
        assert outputs[key].shape == (1, spec.channels, -(-47 // spec.stride), -(-75 // spec.stride))
    with torch.no_grad():
        for result in model(rcnn_batch()):
            assert result["instances"].scores.isfinite().all()

    state = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1.0)
    backbone.load_state_dict(state)
    for key, value in backbone(odd).items():
        assert torch.equal(value, outputs[key])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_maps_are_those_of_timm(name):
    ours = TimmBackbone(name).eval()
    more = {"dynamic_img_size": True, "out_indices": [-1]} if "vit" in name else {}
    theirs = timm.create_model(name, features_only=True, feature_cls="getter", **more).eval()
    shared = {k.removeprefix("network."): v for k, v in ours.state_dict().items()}
    theirs.model.load_state_dict(shared, strict=True)
    maps = dict(zip([external.map_name(s) for s in theirs.feature_info.reduction()], theirs(image()), strict=True))
    for key, value in ours(image()).items():
        assert torch.equal(value, maps[key])


def test_fewer_maps_need_fewer_layers():
    whole, part = TimmBackbone("test_resnet"), TimmBackbone("test_resnet", out_features=["res3"])
    assert list(part.output_shape()) == ["res3"] and part.size_divisibility == 8
    assert len(list(part.parameters())) < len(list(whole.parameters()))
    assert "network.fc.weight" not in whole.state_dict()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
        ("swinv2_tiny_window8_256", {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
        ("vit_tiny_patch16_224", {"embed_dim": 12, "depth": 1, "num_heads": 1}),
        ("vit_small_patch14_dinov2", {"embed_dim": 12, "depth": 1, "num_heads": 1, "patch_size": 16}),
        ("vit_small_patch16_dinov3", {"embed_dim": 12, "depth": 1, "num_heads": 1}),
    ],
)
def test_networks_of_one_size_take_others(name, kwargs):
    backbone = TimmBackbone(name, **kwargs).train()
    outputs = backbone(image(47, 75, n=2))
    for key, spec in backbone.output_shape().items():
        assert outputs[key].shape == (2, spec.channels, -(-47 // spec.stride), -(-75 // spec.stride))
    sum(value.square().mean() for value in outputs.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_further_arguments():
    backbone = TimmBackbone("test_vit", in_chans=4, patch_size=8, drop_path_rate=0.2, depth=3)
    assert backbone.output_shape()["res3"].stride == 8 and len(backbone.network.blocks) == 3
    assert backbone.network.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
    assert backbone(torch.rand(1, 4, 9, 17))["res3"].shape[-2:] == (2, 3)
    assert backbone.pixel_mean is None


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet18x", {}, "has no architecture 'resnet18x'"),
        ("", {}, "has no architecture ''; timm.list_models"),
        ("wholly-else", {}, "has no architecture 'wholly-else'; timm.list_models"),
        ("resnett18", {}, "has no architecture 'resnett18'; similar are .*resnet18"),
        ("ResNet18", {}, "has no architecture 'ResNet18'; similar are .*resnet18"),
        ("resnet18.nothing", {}, r"no weights 'nothing' of resnet18; it has resnet18\.\w+, "),
        ("test_resnet", {"in_chans": 0}, "needs in_chans of 1 or more.* got 0, 0.0 and None"),
        ("test_resnet", {"drop_path_rate": 1.5}, "drop_path_rate from 0 to below 1.* got 3, 1.5 and None"),
        ("test_vit", {"patch_size": -3}, "patch_size of 1 or more, or none; got 3, 0.0 and -3"),
        ("test_vit", {"embed_dim": -8}, r"timm's test_vit cannot be built with the arguments {.*'embed_dim': -8}: "),
        ("convnext", {}, "similar are convnext_"),
        ("test_resnet", {"patch_size": 16}, r"does not take all of these arguments: \['patch_size'\]"),
        ("test_resnet", {"out_features": ["p2"]}, "may be res1, res2, res3, res4, res5"),
        ("test_resnet", {"norm": "GN"}, "one of keep"),
        ("test_convnext", {"norm": "FrozenBN"}, "has none; use 'keep'"),
        ("test_maxvit", {}, "does not take images of 64 x 96 pixels"),
    ],
)
def test_wrong_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, **kwargs)


def test_without_timm(monkeypatch):
    monkeypatch.setattr(external.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[timm\]'"):
        TimmBackbone("test_resnet")


# ------------------------------------------------------------------------------------------------------ norms, freezing


def test_frozen_norms_keep_their_activations():
    backbone = TimmBackbone("test_efficientnet").eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    frozen = TimmBackbone("test_efficientnet", norm="FrozenBN").train()
    frozen.load_state_dict(backbone.state_dict())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    expected = backbone(image())
    for key, value in frozen(image()).items():
        torch.testing.assert_close(value, expected[key])
    plain = TimmBackbone("test_resnet", norm="FrozenBN")
    assert isinstance(plain.network.bn1, FrozenBatchNorm2d)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("test_resnet", ("conv1.", "bn1.", "layer1.")),
        ("test_efficientnet", ("conv_stem.", "bn1.", "blocks.0.")),
        ("test_convnext", ("stem.", "stages.0.")),
        ("test_vit", ("cls_token", "pos_embed", "patch_embed.", "blocks.0.")),
    ],
)
def test_stem_and_first_stage_are_frozen(name, frozen):
    backbone = TimmBackbone(name, freeze_at=2).train()
    for key, parameter in backbone.network.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
    before = copy.deepcopy(backbone.state_dict())
    backbone(image(n=2))
    for key, value in backbone.state_dict().items():
        if key.removeprefix("network.").startswith(frozen):
            assert torch.equal(value, before[key]), key
    assert not backbone.train().get_submodule(backbone._frozen_parts[-1]).training


def test_layers_without_order_cannot_be_frozen():
    with pytest.raises(ValueError, match="does not tell the order of the layers of a MetaFormer"):
        TimmBackbone("poolformer_s12", freeze_at=1)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        (
            "test_vit",
            {"patch_embed.proj.weight": 7, "cls_token": 7, "blocks.0.attn.qkv.weight": 6, "blocks.5.norm1.bias": 1},
        ),
        ("test_resnet", {"conv1.0.weight": 5, "layer1.0.conv1.weight": 4, "layer4.0.conv1.weight": 1}),
        ("test_convnext", {"stem.0.weight": 10}),
    ],
)
def test_layer_wise_decay(name, factors):
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.bottom_up = TimmBackbone(name)
    factor = layer_decay(model, 0.5)
    assert factor("backbone.fpn_output2.weight") == factor("proposal_generator.conv.weight") == 1.0
    for key, power in factors.items():
        assert f"network.{key}" in dict(model.backbone.bottom_up.named_parameters())
        assert factor(f"backbone.bottom_up.network.{key}") == 0.5**power


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def weight_file(tmp_path):
    """A file with weights of timm's `test_resnet`, as the hub has them."""
    torch.manual_seed(5)
    network = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_a_file(weight_file, tmp_path, ending):
    network, path = weight_file
    if ending == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        path = tmp_path / "weights.safetensors"
        safetensors.save_file(network.state_dict(), path)
    backbone = TimmBackbone("test_resnet", checkpoint=str(path), freeze_at=2)
    for key, value in network.state_dict().items():
        if not key.startswith("fc.") and "num_batches" not in key:
            assert torch.equal(backbone.state_dict()[f"network.{key}"], value), key


def test_positions_and_patches_of_a_file_are_resized(tmp_path):
    network = timm.create_model("test_vit")
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    same = TimmBackbone("test_vit", checkpoint=str(tmp_path / "vit.pth"))
    assert torch.equal(same.network.pos_embed, network.pos_embed)
    backbone = TimmBackbone("test_vit", checkpoint=str(tmp_path / "vit.pth"), patch_size=8)
    assert backbone.network.patch_embed.proj.weight.shape[-2:] == (8, 8)
    assert torch.equal(backbone.network.blocks[3].mlp.fc1.weight, network.blocks[3].mlp.fc1.weight)


def test_weights_that_do_not_fit(weight_file, tmp_path):
    _, path = weight_file
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing"):
        TimmBackbone("test_resnet", checkpoint=str(tmp_path / "nothing.pth"))
    with pytest.raises(ValueError, match="does not hold the weights of timm's test_convnext"):
        TimmBackbone("test_convnext", checkpoint=str(path))
    with pytest.raises(ValueError, match="does not hold the weights of timm's resnet10t"):
        TimmBackbone("resnet10t", checkpoint=str(path))
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        TimmBackbone("test_resnet", checkpoint=str(tmp_path / "damaged.pth"))


def test_weights_without_network(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(OSError, match=r"no route to the hub(?s:.*)MODEL.TIMM.CHECKPOINT.*hf download timm/test_resnet"):
        TimmBackbone("test_resnet", pretrained=True)


def test_weights_of_a_whole_detector_do_not_need_the_hub(monkeypatch, weight_file, tmp_path, caplog):
    _, path = weight_file
    start = detector_cfg("test_resnet", "Faster R-CNN", "MODEL.TIMM.CHECKPOINT", str(path))
    use_timm_pixel_statistics(start)
    model = build_model(start)
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    path.unlink()
    start.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    again = build_model(start)
    DetectionCheckpointer(again).load_for_inference(start.MODEL.WEIGHTS)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_a_file_of_timm_as_weights_of_a_model(weight_file):
    network, path = weight_file
    model = build_model(detector_cfg("test_resnet", "Faster R-CNN"))
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    backbone = timm_part(model)
    assert torch.equal(backbone.network.layer3[0].conv1.weight, network.layer3[0].conv1.weight)


# ------------------------------------------------------------------------------------------------------------- configs


def test_pixel_statistics(weight_file, caplog, monkeypatch):
    assert timm_pixel_statistics("resnet18.a1_in1k") == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    with pytest.raises(ValueError, match="knows no weights of the name 'resnet18x'"):
        timm_pixel_statistics("resnet18x")
    cfg = detector_cfg("test_resnet", "Faster R-CNN", "MODEL.TIMM.CHECKPOINT", str(weight_file[1]))
    with caplog.at_level(logging.WARNING):
        build_backbone(cfg)
    assert "INPUT.FORMAT RGB" in caplog.text and "is from the hub" in caplog.text
    caplog.clear()
    cfg.MODEL.TIMM.CHECKPOINT = ""
    build_backbone(cfg)  # random numbers take any images
    assert not caplog.text
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: weight_file[0].state_dict()
    )
    cfg.MODEL.TIMM.PRETRAINED = True
    with pytest.raises(ValueError, match="expect other images"):
        build_backbone(cfg)
    use_timm_pixel_statistics(cfg)
    assert cfg.INPUT.FORMAT == "RGB" and len(cfg.MODEL.PIXEL_STD) == 3
    backbone = build_backbone(cfg).bottom_up
    assert torch.equal(backbone.network.conv1[0].weight, weight_file[0].conv1[0].weight)


def test_keys(caplog):
    changes = ["MODEL.TIMM.NORM", "FrozenBN", "MODEL.TIMM.OUT_FEATURES", "['res4']", "MODEL.TIMM.DROP_PATH_RATE", "0.1"]
    cfg = detector_cfg("test_resnet", "Faster R-CNN", *changes, "MODEL.BACKBONE.NAME", "build_timm_backbone")
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    with caplog.at_level(logging.WARNING):
        backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res4"] and isinstance(backbone.network.layer1[0].bn1, FrozenBatchNorm2d)
    assert not backbone.network.conv1[0].weight.requires_grad
    assert "the frozen layers keep random numbers" in caplog.text
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME is empty"):
        build_backbone(cfg)


def test_lazy_config():
    config = LazyCall(TimmBackbone)(name="test_resnet", out_features=["res3", "res5"], norm="FrozenBN")
    assert list(instantiate(config).output_shape()) == ["res3", "res5"]


# ---------------------------------------------------------------------------------------------------------- ways to run


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_resume_is_exact(name, tmp_path, rcnn_batch):
    cfg = detector_cfg(name, "Faster R-CNN", "SOLVER.BASE_LR", "0.01")
    batch = rcnn_batch(train=True)

    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            optimizer.zero_grad()
            sum(model(copy.deepcopy(batch)).values()).backward()
            optimizer.step()

    def start():
        torch.manual_seed(0)
        model = build_model(cfg).train()
        return model, build_optimizer(cfg, model)

    whole, optimizer = start()
    steps(whole, optimizer, range(3))
    first, optimizer = start()
    steps(first, optimizer, range(2))
    DetectionCheckpointer(first, str(tmp_path), optimizer=optimizer).save("half")
    torch.manual_seed(9)
    second = build_model(cfg).train()
    optimizer = build_optimizer(cfg, second)
    DetectionCheckpointer(second, str(tmp_path), optimizer=optimizer).resume_or_load("")
    steps(second, optimizer, range(2, 3))
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_precision_layout_and_optimized_form(name, rcnn_batch):
    model = build_model(detector_cfg(name, "Faster R-CNN")).eval()
    backbone = timm_part(model)
    with torch.no_grad():
        expected = backbone(image())
        other = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
        for key, value in other(image().contiguous(memory_format=torch.channels_last)).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(image())
        for key, value in rounded.items():
            assert F.cosine_similarity(value.float().flatten(), expected[key].flatten(), dim=0) > 0.99
        fast = optimized_for_inference(model)
        for key, value in timm_part(fast)(image()).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
    assert OptimizedForm(model).current() is model  # layers of other libraries may keep something of each call


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_exports_to_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    model = build_model(detector_cfg(name, "Faster R-CNN")).eval()
    report = export_model(model, tmp_path / "exported", "onnx", dynamic=["size"], size=(64, 96))
    assert (tmp_path / "exported" / "model.onnx").is_file() and report
