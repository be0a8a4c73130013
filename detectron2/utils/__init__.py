"""What every other layer may lean on: registries, statistics, communication, logging, files.

Import the module that you need (``from detectron2.utils import comm``); nothing is imported here.
"""

__all__: list[str] = []
