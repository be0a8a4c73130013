"""Predict with a trained model: on images, folders and videos, in batches, with results in the usual forms."""

__all__: list[str] = []
