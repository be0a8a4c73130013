"""The keys that a config accepts beside the published ones, and the value that holds while a key is not set.

`get_cfg()` has exactly the published keys, so that a config which uses nothing else can be read by other versions. A
key of this table appears in a config when a file, the command line or a program sets it. Read one with
`cfg.GROUP.get("KEY", default)`; the training loop reads its keys through `detectron2.engine.options.TrainOptions`.

A LazyConfig has the same options under other names. WRITERS and the keys of SOLVER, TRAIN and TEST that the training
loop reads are keys of `train` in lower case: `SOLVER.EMA_DECAY` is `train.ema_decay`. The rest is in other sections:

- `optimizer`: OPTIMIZER is its `_target_`; BETAS and FUSED are arguments; LAYER_DECAY is `params.lr_factor_func`.
- `model`: MASK_FORMAT is `model.mask_format`.
- `dataloader.train`: INPUT.EXIF is `mapper.exif` and, where annotations lack sizes, `dataset.exif` (of
  `dataloader.test`, too).
- `dataloader.train`: ON_BAD_IMAGE is `on_bad_image`; RANDOM_SUBSET_RATIO, DATASET_WEIGHTS and TRAIN_REPEAT_FACTOR are
  arguments of the `sampler` that uses them.
"""

from typing import Any

__all__ = ["OPTIONAL_KEYS"]

OPTIONAL_KEYS: dict[str, Any] = {
    # What to do about an image that cannot be read: "stop" training, or "skip" it, count it, and take another one.
    "DATALOADER.ON_BAD_IMAGE": "stop",
    # Fraction of the data set that RandomSubsetTrainingSampler uses.
    "DATALOADER.RANDOM_SUBSET_RATIO": 1.0,
    # For WeightedTrainingSampler and WeightedCategoryTrainingSampler: a weight for each data set in DATASETS.TRAIN, or
    # how often each of its images appears in an epoch: [[name, times], ...].
    "DATALOADER.DATASET_WEIGHTS": (),
    "DATASETS.TRAIN_REPEAT_FACTOR": [],
    # "apply" to turn images upright as their EXIF data say, "ignore" if annotations are of the stored images.
    "INPUT.EXIF": "apply",
    # "SGD", "Adam" or "AdamW"; Adam and AdamW use BETAS.
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BETAS": (0.9, 0.999),
    # Update all parameters in one kernel.
    "SOLVER.FUSED": False,
    # Factor on the learning rate from one layer of the backbone to the one below it.
    "SOLVER.LAYER_DECAY": 1.0,
    # Batches whose gradients are averaged for one step of the optimizer.
    "SOLVER.ACCUMULATION_STEPS": 1,
    # Decay of the moving average of the weights, which is then evaluated and saved; 0.0 keeps no average.
    "SOLVER.EMA_DECAY": 0.0,
    # Length of training in epochs (replaces MAX_ITER), and the steps of the schedule in epochs (replaces STEPS).
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.STEP_EPOCHS": (),
    # Name patterns of parameters that are not trained, such as "backbone.bottom_up.*".
    "SOLVER.FREEZE": (),
    # How many periodic checkpoints are kept; 0 keeps all.
    "SOLVER.CHECKPOINTS_TO_KEEP": 0,
    # "pth", or "safetensors": weights in one file, the rest of the training state in another.
    "SOLVER.CHECKPOINT_FORMAT": "pth",
    # What to do when a loss is not finite: "stop" training, or "skip" the step, at most MAX_SKIPPED_IN_A_ROW times.
    "TRAIN.ON_NONFINITE_LOSS": "stop",
    "TRAIN.MAX_SKIPPED_IN_A_ROW": 10,
    "TRAIN.COMPILE": False,
    "TRAIN.CHANNELS_LAST": False,
    # Split parameters, gradients and optimizer state over all processes (FSDP2), for models too large for one GPU.
    "TRAIN.SHARD_MODEL": False,
    # Use deterministic algorithms; set SEED as well.
    "TRAIN.DETERMINISTIC": False,
    # Form of predicted masks: "full", "rle" or "roi"; see detectron2.modeling.detector_postprocess.
    "TEST.MASK_FORMAT": "full",
    # Iterations between two measurements of the loss on DATASETS.TEST; 0 for none.
    "TEST.VALIDATION_LOSS_PERIOD": 0,
    # The metric that selects model_best.pth, such as "bbox/AP" or "validation/total_loss", and whether its "max" or
    # "min" is best.
    "TEST.BEST_METRIC": "",
    "TEST.BEST_MODE": "max",
    # Training ends after this many evaluations without a new best value; 0 for never.
    "TEST.EARLY_STOPPING_PATIENCE": 0,
    # Run the evaluators on two images before the first iteration, so that a broken evaluation is known at once.
    "TEST.TRY_EVALUATOR": True,
    # Where metrics are written; names as in detectron2.utils.events.make_writers.
    "WRITERS": ("terminal", "json", "tensorboard"),
}
"""Maps the full name of each key to its default, which has the type that the key takes."""
