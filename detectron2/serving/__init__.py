"""Predictions over HTTP: `detectron2 serve`."""

from detectron2.serving.app import Limits, create_app
from detectron2.serving.batching import Batcher

__all__ = ["Batcher", "Limits", "create_app"]
