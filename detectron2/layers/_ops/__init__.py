"""Geometry behind the operators on rotated boxes, in plain PyTorch. Nothing here is part of the API."""
