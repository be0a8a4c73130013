"""The model within wrappers for parallel training and compilation."""

from typing import Any

from torch import nn

__all__ = ["unwrap_model"]


def unwrap_model(model: Any) -> Any:
    """Return the model within `DistributedDataParallel`, `DataParallel` and `torch.compile`, however deeply nested.

    >>> linear = nn.Linear(2, 2)
    >>> unwrap_model(nn.DataParallel(linear)) is linear
    True
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model
