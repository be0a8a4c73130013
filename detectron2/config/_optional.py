"""Keys that a config may have, but does not have until a file, a command line or a program sets them.

The default config has exactly the published keys; what came later is here, so that a config that does not use it stays
readable elsewhere. Read such a key with ``cfg.GROUP.get("KEY", default)``.

A LazyConfig has the same by other names. What the training loop does is a key of ``train``: ``SOLVER.EMA_DECAY`` is
``train.ema_decay``, and so on for all keys below SOLVER, TRAIN and TEST, and for WRITERS. Exceptions: OPTIMIZER, BETAS
and FUSED are ``_target_`` and arguments of the section ``optimizer``, LAYER_DECAY is its ``params.lr_factor_func``;
MASK_FORMAT is ``model.mask_format``. Of the data, ON_BAD_IMAGE is ``dataloader.train.on_bad_image``, and
RANDOM_SUBSET_RATIO, DATASET_WEIGHTS and TRAIN_REPEAT_FACTOR are arguments of the ``dataloader.train.sampler`` that they
are for.
"""

from typing import Any

__all__ = ["OPTIONAL_KEYS"]

OPTIONAL_KEYS: dict[str, Any] = {
    # "stop": an image that cannot be read ends training; "skip": another one is taken, and counted.
    "DATALOADER.ON_BAD_IMAGE": "stop",
    # Part of the data set that RandomSubsetTrainingSampler trains on.
    "DATALOADER.RANDOM_SUBSET_RATIO": 1.0,
    # Of WeightedTrainingSampler and WeightedCategoryTrainingSampler: one number per data set of DATASETS.TRAIN, in
    # proportion to which samples are drawn from them; or how often each image comes in an epoch: [[name, times], ...].
    "DATALOADER.DATASET_WEIGHTS": (),
    "DATASETS.TRAIN_REPEAT_FACTOR": [],
    # "SGD", "Adam" or "AdamW"; the betas are of the latter two.
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BETAS": (0.9, 0.999),
    # Update all parameters in one kernel.
    "SOLVER.FUSED": False,
    # Factor on the learning rate from one layer of the backbone to the one below it.
    "SOLVER.LAYER_DECAY": 1.0,
    # Batches whose gradients are averaged for one step of the optimizer.
    "SOLVER.ACCUMULATION_STEPS": 1,
    # Moving average of the weights, which is evaluated and saved; 0.0 keeps none.
    "SOLVER.EMA_DECAY": 0.0,
    # Length of training in passes over the data in place of MAX_ITER, and epochs in place of STEPS.
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.STEP_EPOCHS": (),
    # Patterns of names of parameters that are not trained, such as "backbone.bottom_up.*".
    "SOLVER.FREEZE": (),
    # How many periodic checkpoints are kept; 0 keeps all.
    "SOLVER.CHECKPOINTS_TO_KEEP": 0,
    # "pth", or "safetensors": the weights in a file of their own, and the rest of the training's state beside it.
    "SOLVER.CHECKPOINT_FORMAT": "pth",
    # "stop", or "skip" the step, at most so many times in a row.
    "TRAIN.ON_NONFINITE_LOSS": "stop",
    "TRAIN.MAX_SKIPPED_IN_A_ROW": 10,
    "TRAIN.COMPILE": False,
    "TRAIN.CHANNELS_LAST": False,
    # Split parameters, gradients and optimizer state over all processes (FSDP2), for models too large for one GPU.
    "TRAIN.SHARD_MODEL": False,
    # Algorithms that give the same numbers each time; with SEED.
    "TRAIN.DETERMINISTIC": False,
    # How a model gives masks: "full", "rle" or "roi"; see detectron2.modeling.detector_postprocess.
    "TEST.MASK_FORMAT": "full",
    # Iterations between two measurements of the loss on DATASETS.TEST; 0 for none.
    "TEST.VALIDATION_LOSS_PERIOD": 0,
    # The metric, such as "bbox/AP" or "validation/total_loss", of model_best.pth, and whether "max" or "min" is best.
    "TEST.BEST_METRIC": "",
    "TEST.BEST_MODE": "max",
    # Evaluations without a new best after which training ends; 0 for never.
    "TEST.EARLY_STOPPING_PATIENCE": 0,
    # Try the evaluators on two images before the first iteration, so that what is wrong with them is known then.
    "TEST.TRY_EVALUATOR": True,
    # Who shows the numbers of training; names as in detectron2.utils.events.make_writers.
    "WRITERS": ("terminal", "json", "tensorboard"),
}
"""Full name -> a value of the type that the key takes."""
