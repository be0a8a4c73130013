"""Utilities for all other layers: registries, statistics, communication, logging, files.

Import the module that you need, for example `from detectron2.utils import comm`.
"""

__all__: list[str] = []
