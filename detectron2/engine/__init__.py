"""Training loops, hooks, the default trainer and predictor, and the launcher for several processes."""

from detectron2.utils.collector import paused_gc

with paused_gc():
    from detectron2.engine import hooks
    from detectron2.engine.defaults import (
        DefaultPredictor,
        DefaultTrainer,
        create_ddp_model,
        default_argument_parser,
        default_setup,
        default_writers,
    )
    from detectron2.engine.hooks import *  # noqa: F403  # each hook is public here, too
    from detectron2.engine.launch import DEFAULT_TIMEOUT, launch
    from detectron2.engine.lazy import lazy_test, lazy_train
    from detectron2.engine.sharding import ShardedCheckpointer, shard_model
    from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer, TrainerBase

__all__ = [
    "DEFAULT_TIMEOUT",
    "AMPTrainer",
    "DefaultPredictor",
    "DefaultTrainer",
    "ShardedCheckpointer",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
    "lazy_test",
    "lazy_train",
    "shard_model",
]
__all__ += hooks.__all__
