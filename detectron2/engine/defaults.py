"""The usual way to train and to predict from a config; thin, over ``_setup``, ``_default_trainer``, ``_default_predictor``."""

from detectron2.engine._default_predictor import DefaultPredictor
from detectron2.engine._default_trainer import DefaultTrainer
from detectron2.engine._setup import (
    _highlight,
    _try_get_key,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]
