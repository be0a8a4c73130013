"""Processes of a run: their layout, how they start and meet, and which one is missing when an exchange fails.

Import the module that you need, for example `from detectron2.distributed import layout`. Training code exchanges data
through `detectron2.utils.comm`.
"""

__all__: list[str] = []
