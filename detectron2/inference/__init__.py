"""Predict with a trained model: on images, folders and videos, in batches, with results in the usual forms."""

from .sources import Frame, read_frames

__all__ = ["Frame", "read_frames"]
