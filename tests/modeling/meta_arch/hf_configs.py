"""Configs of the smallest networks of transformers, with three labels and random weights."""

from typing import Any

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
_HGNET = {
    "model_type": "hgnet_v2",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 8, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [8, 8, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
_TRANSFORMER = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 8,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
}
_DETR = {**_TRANSFORMER, "d_model": 16, "backbone_config": {**_RESNET, "out_features": ["stage4"]}}
_RT_DETR = {
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_in_channels": [16, 16, 16],
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_n_points": 2,
    "num_queries": 10,
    "num_denoising": 6,
    "hidden_expansion": 0.5,
    "dropout": 0.0,
    "backbone_config": {**_RESNET, "model_type": "rt_detr_resnet"},
}
_D_FINE = {**_RT_DETR, "backbone_config": _HGNET, "max_num_bins": 4, "decoder_n_points": [2, 2, 2]}
_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_LW_DETR = {
    "d_model": 16,
    "num_queries": 6,
    "group_detr": 2,
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_n_points": 2,
    "c2f_num_blocks": 1,
    "hidden_expansion": 0.5,
}
_DETECTORS: dict[str, dict[str, Any]] = {
    "detr": _DETR,
    "conditional_detr": _DETR,
    "table-transformer": _DETR,
    "dab-detr": {**{k: v for k, v in _DETR.items() if k != "d_model"}, "hidden_size": 16},
    "deformable_detr": {  # whose groups of channels are 32
        **_TRANSFORMER,
        "d_model": 32,
        "backbone_config": _RESNET,
        "num_feature_levels": 3,
        "encoder_n_points": 2,
        "decoder_n_points": 2,
    },
    "rt_detr": _RT_DETR,
    "rt_detr_v2": _RT_DETR,
    "d_fine": _D_FINE,
    "deimv2": _D_FINE,
    "yolos": {
        **_VIT,
        "intermediate_size": 16,
        "image_size": [64, 96],
        "patch_size": 16,
        "num_detection_tokens": 6,
        "use_mid_position_embeddings": False,
    },
    "lw_detr": {
        **_LW_DETR,
        "projector_scale_factors": [1.0],
        "backbone_config": {
            **_VIT,
            "model_type": "lw_detr_vit",
            "image_size": 64,
            "pretrain_image_size": 64,
            "patch_size": 16,
            "window_block_indices": [0],
            "num_windows": 4,
            "out_indices": [1, 2],
        },
    },
    "rf_detr": {
        **_LW_DETR,
        "backbone_config": {
            **_VIT,
            "model_type": "rf_detr_dinov2",
            "image_size": 56,
            "patch_size": 14,
            "mlp_ratio": 2,
            "num_windows": 2,
            "out_indices": [1, 2],
        },
    },
}


def labels(count: int) -> dict[str, Any]:
    """The part of a config that names its labels."""
    return {
        "id2label": {str(i): f"label {i}" for i in range(count)},
        "label2id": {f"label {i}": i for i in range(count)},
    }


DETECTORS = {kind: {**config, "model_type": kind, **labels(3)} for kind, config in _DETECTORS.items()}


def _text_ids() -> dict[str, list[int]]:
    """Numbers of the words that OneFormer reads; the last one ends a text."""
    texts = [f"the task is {task}" for task in ("instance", "semantic", "panoptic")]
    texts += ["an instance photo", "a semantic photo", "an panoptic photo"]
    texts += [f"a photo with a label {i}" for i in range(4)]
    words = sorted({word for text in texts for word in text.split()})
    return {text: [78, *(1 + words.index(word) for word in text.split()), 79] for text in texts}


_SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SEGMENTERS: dict[str, dict[str, Any]] = {
    "mask2former": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 2,
        "dim_feedforward": 16,
        "num_queries": 7,
        "train_num_points": 60,
        "backbone_config": {**_SWIN, **_STAGES},
    },
    "maskformer": {
        "fpn_feature_size": 32,
        "mask_feature_size": 16,
        "num_queries": 7,
        "use_auxiliary_loss": True,
        "backbone_config": {**_SWIN, **_STAGES},
        "decoder_config": {
            "model_type": "detr",
            "d_model": 16,
            "decoder_layers": 2,
            "decoder_ffn_dim": 16,
            "num_queries": 7,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "dropout": 0.0,
        },
    },
    "oneformer": {
        "conv_dim": 64,
        "mask_dim": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "query_dec_layers": 1,
        "num_attention_heads": 2,
        "dim_feedforward": 16,
        "dropout": 0.0,
        "num_queries": 7,
        "task_seq_len": 12,
        "text_encoder_width": 64,
        "text_encoder_context_length": 12,
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 80,
        "text_encoder_n_ctx": 2,
        "train_num_points": 60,
        "backbone_config": {**_SWIN, **_STAGES},
        "text_ids": _text_ids(),
    },
    "eomt": {
        **_VIT,
        "num_hidden_layers": 3,
        "image_size": 96,
        "patch_size": 16,
        "num_register_tokens": 1,
        "num_blocks": 1,
        "num_upscale_blocks": 1,
        "num_queries": 7,
        "train_num_points": 60,
        "mlp_ratio": 1,
    },
}
SEGMENTERS = {kind: {**config, "model_type": kind, **labels(4)} for kind, config in _SEGMENTERS.items()}
