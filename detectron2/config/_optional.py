"""Keys that a config may have, but does not have until a file, a command line or a program sets them.

The default config has exactly the published keys; what came later is here, so that a config that does not use it stays
readable elsewhere. Read such a key with ``cfg.GROUP.get("KEY", default)``.
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
    # Who shows the numbers of training; names as in detectron2.utils.events.make_writers.
    "WRITERS": ("terminal", "json", "tensorboard"),
}
"""Full name -> a value of the type that the key takes."""
