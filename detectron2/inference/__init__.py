"""Predict with a trained model: on images, folders and videos, in batches, with results in the usual forms."""

from .predictor import Predictor
from .results import Result
from .sources import Frame, read_frames
from .writers import ResultWriter

__all__ = ["Frame", "Predictor", "Result", "ResultWriter", "read_frames"]
