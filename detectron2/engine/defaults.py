"""The usual way to train and to predict from a config: what most scripts import."""

from detectron2.engine._default_predictor import DefaultPredictor
from detectron2.engine._default_trainer import DefaultTrainer
from detectron2.engine._setup import (
    _highlight,  # noqa: F401 (private, yet projects import it from here)
    _try_get_key,  # noqa: F401 (likewise)
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
