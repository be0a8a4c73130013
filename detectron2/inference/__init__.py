"""Predict with a trained model: on images, folders and videos, in batches, with results in the usual forms."""

from .bulk import BulkRun, list_images, read_shards
from .predictor import Predictor
from .results import Result
from .sources import Frame, read_frames
from .writers import ResultWriter

__all__ = ["BulkRun", "Frame", "Predictor", "Result", "ResultWriter", "list_images", "read_frames", "read_shards"]
