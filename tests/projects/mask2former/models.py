"""Tiny models, and weights of Hugging Face transformers under the names of this package."""

import re

import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.mask2former import add_maskformer2_config

NUM_CLASSES = 5
_KEYS = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": [1, 2, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 3, 4],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 4,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 48,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 7,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 4.0,
}
RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
}
"""Changes of keys for a small ResNet, and fewer layers."""


def tiny_config(changes=()):
    """A config of a Swin with a few channels; `changes` are pairs of a key and a value."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_list([x for pair in {**_KEYS, **dict(changes)}.items() for x in pair])
    return cfg


def tiny_model(changes=(), seed=0):
    """A tiny model with random weights."""
    torch.manual_seed(seed)
    return build_model(tiny_config(changes))


def transformers_model(cfg, seed=0):
    """The same network of transformers, with random weights, also where it begins with zeros and ones."""
    import transformers

    swin, head, model = cfg.MODEL.SWIN, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    backbone = transformers.SwinConfig(
        embed_dim=swin.EMBED_DIM,
        depths=list(swin.DEPTHS),
        num_heads=list(swin.NUM_HEADS),
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=head.CONVS_DIM,
        mask_feature_size=head.MASK_DIM,
        hidden_dim=model.HIDDEN_DIM,
        dim_feedforward=model.DIM_FEEDFORWARD,
        encoder_layers=head.TRANSFORMER_ENC_LAYERS,
        decoder_layers=model.DEC_LAYERS,
        num_attention_heads=model.NHEADS,
        num_queries=model.NUM_OBJECT_QUERIES,
        num_labels=head.NUM_CLASSES,
        pre_norm=model.PRE_NORM,
        dropout=model.DROPOUT,
        train_num_points=model.TRAIN_NUM_POINTS,
        no_object_weight=model.NO_OBJECT_WEIGHT,
        class_weight=model.CLASS_WEIGHT,
        mask_weight=model.MASK_WEIGHT,
        dice_weight=model.DICE_WEIGHT,
        output_auxiliary_logits=True,
    )
    torch.manual_seed(seed)
    found = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "sampling_offsets" not in name or "weight" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


_BACKBONE, _PIXELS = r"^model\.pixel_level_module\.encoder\.", r"^model\.pixel_level_module\.decoder\."
_QUERIES, _HEAD = r"^model\.transformer_module\.", "sem_seg_head."
_LAYER, _MINE = rf"{_QUERIES}decoder\.layers\.(\d+)\.", f"{_HEAD}predictor.transformer_"
_NAMES = (
    (rf"{_BACKBONE}swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (rf"{_BACKBONE}swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (rf"{_BACKBONE}swin\.encoder\.layers", "backbone.layers"),
    (rf"{_BACKBONE}hidden_states_norms\.stage(\d)", lambda match: f"backbone.norm{int(match[1]) - 1}"),
    (r"attention\.relative_position_bias\.(?=rel)", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.([qkv])_proj", r"attn.qkv/\1"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (rf"{_PIXELS}input_projections", f"{_HEAD}pixel_decoder.input_proj"),
    (rf"{_PIXELS}mask_projection", f"{_HEAD}pixel_decoder.mask_features"),
    (rf"{_PIXELS}(adapter_1|layer_1)\.0", rf"{_HEAD}pixel_decoder.\1"),
    (rf"{_PIXELS}(adapter_1|layer_1)\.1", rf"{_HEAD}pixel_decoder.\1.norm"),
    (rf"({_PIXELS}encoder\.layers\.\d+)\.self_attn_layer_norm", r"\1.norm1"),
    (rf"({_PIXELS}encoder\.layers\.\d+)\.final_layer_norm", r"\1.norm2"),
    (rf"({_PIXELS}encoder\.layers\.\d+)\.fc(\d)", r"\1.linear\2"),
    (rf"{_PIXELS}(encoder|level_embed)", rf"{_HEAD}pixel_decoder.transformer.\1"),
    (rf"{_QUERIES}queries_embedder", f"{_HEAD}predictor.query_embed"),
    (rf"{_QUERIES}queries_features", f"{_HEAD}predictor.query_feat"),
    (rf"{_QUERIES}level_embed", f"{_HEAD}predictor.level_embed"),
    (rf"{_QUERIES}input_projections", f"{_HEAD}predictor.input_proj"),
    (rf"{_QUERIES}decoder\.layernorm", f"{_HEAD}predictor.decoder_norm"),
    (rf"{_QUERIES}decoder\.mask_predictor\.mask_embedder\.(\d)\.0", rf"{_HEAD}predictor.mask_embed.layers.\1"),
    (r"^class_predictor", f"{_HEAD}predictor.class_embed"),
    (rf"{_LAYER}self_attn\.([qkv])_proj\.", rf"{_MINE}self_attention_layers.\1.self_attn.in_proj/\2_"),
    (rf"{_LAYER}self_attn_layer_norm", rf"{_MINE}self_attention_layers.\1.norm"),
    (rf"{_LAYER}cross_attn_layer_norm", rf"{_MINE}cross_attention_layers.\1.norm"),
    (rf"{_LAYER}final_layer_norm", rf"{_MINE}ffn_layers.\1.norm"),
    (rf"{_LAYER}self_attn", rf"{_MINE}self_attention_layers.\1.self_attn"),
    (rf"{_LAYER}cross_attn", rf"{_MINE}cross_attention_layers.\1.multihead_attn"),
    (rf"{_LAYER}fc(\d)", rf"{_MINE}ffn_layers.\1.linear\2"),
)


def converted(weights):
    """Weights of the model of transformers under the names of this package."""
    found = {}
    for name, value in weights.items():
        if "swin.layernorm" in name:  # of a classifier
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    for name in [name for name in found if re.search(r"/q", name)]:
        parts = [found.pop(name.replace("/q", f"/{letter}")) for letter in "qkv"]
        found[re.sub(r"/q\.?", "." if "qkv/" in name else "", name)] = torch.cat(parts)
    return found


def noise(*size, seed=0):
    """An image of noise, uint8 `Tensor[3, H, W]`."""
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
