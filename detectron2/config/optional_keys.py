"""The keys that a config accepts beside the published ones, and the value that holds while a key is not set.

What the keys mean is in `key_meanings.yaml`. `get_cfg()` has exactly the published keys, so that a config which uses
nothing else can be read by other versions. A key of this table appears in a config when a file, the command line or a
program sets it. Read one with `cfg.GROUP.get("KEY", default)`; the training loop reads its keys through
`detectron2.engine.options.TrainOptions`.

A LazyConfig has the same options under other names. WRITERS and the keys of SOLVER, TRAIN and TEST that the training
loop reads are keys of `train` in lower case: `SOLVER.EMA_DECAY` is `train.ema_decay`. The rest is in other sections:

- `optimizer`: OPTIMIZER is its `_target_`; BETAS and FUSED are arguments; LAYER_DECAY and BACKBONE_LR_FACTOR are
  `params.lr_factor_func`.
- `model`: MASK_FORMAT is `model.mask_format`; the keys of MODEL.HF are arguments of the model. The keys of MODEL.TIMM
  and MODEL.TRANSFORMERS are arguments of `TimmBackbone` and `TransformersBackbone` in `detectron2.modeling.backbone`,
  the `_target_` of a backbone.
- `dataloader.train`: INPUT.EXIF is `mapper.exif` and, where annotations lack sizes, `dataset.exif` (of
  `dataloader.test`, too).
- `dataloader.train`: ON_BAD_IMAGE is `on_bad_image`; RANDOM_SUBSET_RATIO, DATASET_WEIGHTS, SHARD_WINDOW and
  TRAIN_REPEAT_FACTOR are arguments of the `sampler` that uses them.
"""

from typing import Any

__all__ = ["OPTIONAL_KEYS"]

OPTIONAL_KEYS: dict[str, Any] = {
    "DATALOADER.ON_BAD_IMAGE": "stop",
    "DATALOADER.RANDOM_SUBSET_RATIO": 1.0,
    "DATALOADER.DATASET_WEIGHTS": (),
    "DATALOADER.SHARD_WINDOW": 8,
    "DATASETS.TRAIN_REPEAT_FACTOR": [],
    "INPUT.EXIF": "apply",
    "MODEL.TIMM.NAME": "",
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.TIMM.CHECKPOINT": "",
    "MODEL.TIMM.OUT_FEATURES": (),
    "MODEL.TIMM.NORM": "keep",
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,
    "MODEL.TIMM.PATCH_SIZE": 0,
    "MODEL.TRANSFORMERS.NAME": "",
    "MODEL.TRANSFORMERS.PRETRAINED": False,
    "MODEL.TRANSFORMERS.OUT_FEATURES": (),
    "MODEL.TRANSFORMERS.NORM": "keep",
    "MODEL.HF.CONFIG": "",
    "MODEL.HF.PRETRAINED": "",
    "MODEL.HF.NUM_CLASSES": None,
    "MODEL.HF.LABEL_IDS": (),
    "MODEL.HF.SIZE_DIVISIBILITY": 0,
    "MODEL.HF.SCORE_THRESH_TEST": 0.0,
    "MODEL.HF.TASK": "instance",
    "MODEL.HF.NUM_THINGS": None,
    "MODEL.HF.OBJECT_MASK_THRESH": 0.8,
    "MODEL.HF.OVERLAP_THRESH": 0.8,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BETAS": (0.9, 0.999),
    "SOLVER.FUSED": None,
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.BACKBONE_LR_FACTOR": 1.0,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.EMA_DECAY": 0.0,
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.STEP_EPOCHS": (),
    "SOLVER.FREEZE": (),
    "SOLVER.AMP_DTYPE": "",
    "SOLVER.CHECKPOINTS_TO_KEEP": 0,
    "SOLVER.CHECKPOINT_FORMAT": "pth",
    "SOLVER.CHECKPOINT_LAYOUT": "full",
    "TRAIN.ON_NONFINITE_LOSS": "stop",
    "TRAIN.MAX_SKIPPED_IN_A_ROW": 10,
    "TRAIN.COMPILE": False,
    "TRAIN.CHANNELS_LAST": None,
    "TRAIN.SHARD_MODEL": False,
    "TRAIN.DETERMINISTIC": False,
    "TRAIN.PREFETCH": True,
    "TRAIN.RESIZE_ON_DEVICE": False,
    "TRAIN.PAD_TO": (),
    "TRAIN.CUDA_GRAPHS": False,
    "TRAIN.GRADIENT_COMPRESSION": "",
    "TRAIN.STATIC_GRAPH": False,
    "TEST.MASK_FORMAT": "full",
    "TEST.VALIDATION_LOSS_PERIOD": 0,
    "TEST.BEST_METRIC": "",
    "TEST.BEST_MODE": "max",
    "TEST.EARLY_STOPPING_PATIENCE": 0,
    "TEST.TRY_EVALUATOR": True,
    "WRITERS": ("terminal", "json", "tensorboard"),
}
"""Maps the full name of each key to its default, which has the type that the key takes."""
