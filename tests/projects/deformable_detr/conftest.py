"""Tiny models, batches for them, and the same model in transformers."""

import re

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deformable_detr import add_deformable_detr_config
from detectron2.structures import Boxes, Instances

SIZES_HW = [(60, 90), (64, 70), (50, 64)]
OPTIONS = {
    "plain": [],
    "refined": ["MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE", True],
    "two_stage": ["MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE", True, "MODEL.DEFORMABLE_DETR.TWO_STAGE", True],
    "DINO": ["MODEL.META_ARCHITECTURE", "DINO"],
}


def tiny_config(kind="plain", *changes):
    """A config of 64 channels on a narrow ResNet-18, with dropout off."""
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DeformableDETR"
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS = 18, 8, 8
    resnet.OUT_FEATURES = ["res3", "res4", "res5"]
    detr = cfg.MODEL.DEFORMABLE_DETR
    detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM, detr.NHEADS = 5, 12, 64, 4
    detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DIM_FEEDFORWARD, detr.DROPOUT = 2, 3, 40, 0.0
    cfg.merge_from_list([*OPTIONS[kind], *changes])
    return cfg


def tiny_model(kind="plain", *changes):
    """A model whose weights are all random: those of a new model make every query predict the same."""
    torch.manual_seed(0)
    model = build_model(tiny_config(kind, *changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch():
    """Three images of different sizes: with two objects, with one, and with none."""
    random = torch.Generator().manual_seed(0)
    inputs = []
    for (height, width), count in zip(SIZES_HW, (2, 1, 0), strict=True):
        target = Instances((height, width))
        target.gt_boxes = Boxes(torch.tensor([[0.0, 0, width, height], [3, 4, 20, 30]])[:count])
        target.gt_classes = torch.tensor([3, 1])[:count]
        image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
        inputs.append({"image": image, "instances": target, "height": 2 * height, "width": 3 * width})
    return inputs


@pytest.fixture
def batch():
    return make_batch()


_RULES = (
    (r"^transformer\.(encoder|decoder|level_embed|reference_points|enc_output|pos_trans)", r"model.\1"),
    (r"^(input_proj)", r"model.\1"),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"encoder\.layers\.(\d)\.norm1", r"encoder.layers.\1.self_attn_layer_norm"),
    (r"encoder\.layers\.(\d)\.norm2", r"encoder.layers.\1.final_layer_norm"),
    (r"decoder\.layers\.(\d)\.norm1", r"decoder.layers.\1.encoder_attn_layer_norm"),
    (r"decoder\.layers\.(\d)\.norm2", r"decoder.layers.\1.self_attn_layer_norm"),
    (r"decoder\.layers\.(\d)\.norm3", r"decoder.layers.\1.final_layer_norm"),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.out_proj\.", ".o_proj."),
)


def names_in_transformers(weights):
    """The weights of a Deformable DETR, without its backbone, under the names of transformers."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith("backbone."):
            continue
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if ".in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[name] = value
    return renamed
