"""What to do with images that cannot be read in the middle of a training: stop, or take others and count them."""

import logging

import torch
import torch.utils.data as torchdata
from PIL import Image

logger = logging.getLogger("detectron2.data.common")

POLICIES = ("stop", "skip")

# What readers raise for damaged, missing and mislabelled files. Other exceptions are mistakes in a program.
BAD_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

# So many failures one after the other mean that it is not the images: the folder is gone, or the mapper is wrong.
_MAX_IN_A_ROW = 100

_MAX_NAMED = 20  # per process; after that only the count is reported
_SLOTS = 1024


class BadImages:
    """Counts elements that could not be read, over all workers, and names the first ones in the log."""

    def __init__(self) -> None:
        # One slot per process, so that no two write to the same: workers see this memory, not a copy.
        self._counts = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()
        self._named: set[str] = set()

    @property
    def total(self) -> int:
        """How often an element could not be read, in all processes."""
        return int(self._counts.sum())

    def add(self, description: str, error: Exception) -> None:
        """Count one.

        Args:
            description: which element it is.
            error: why it could not be read.
        """
        worker = torchdata.get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1)] += 1
        if description in self._named or len(self._named) >= _MAX_NAMED:
            return
        self._named.add(description)
        last = "; further ones are only counted" if len(self._named) == _MAX_NAMED else ""
        logger.warning("Skipped %s: %s: %s%s", description, type(error).__name__, error, last)


def check_policy(policy: str) -> str:
    """-> the policy, if there is such a one; else it raises ValueError."""
    if policy not in POLICIES:
        raise ValueError(
            f'on_bad_image (DATALOADER.ON_BAD_IMAGE) is {policy!r}; it must be "stop" (an image that cannot be read '
            'ends training) or "skip" (another one is taken in its place, and counted).'
        )
    return policy


def check_in_a_row(count: int, description: str) -> None:
    """Give up if too many elements one after the other could not be read.

    Args:
        count: how many.
        description: which one was the last.

    Raises:
        RuntimeError: too many.
    """
    if count >= _MAX_IN_A_ROW:
        raise RuntimeError(
            f"{count} elements one after the other could not be read, the last being {description}. Check that the "
            "image folder is still there; to see the error itself, set DATALOADER.ON_BAD_IMAGE (on_bad_image) to "
            '"stop".'
        )
