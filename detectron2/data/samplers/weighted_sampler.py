"""Training on several data sets in chosen proportions."""

import math
from collections.abc import Sequence

import torch

from detectron2.data.samplers.distributed_sampler import RepeatFactorTrainingSampler

__all__ = ["WeightedTrainingSampler"]


class WeightedTrainingSampler(RepeatFactorTrainingSampler):
    """Like `TrainingSampler`, but each data set has a share of the samples that does not depend on its size.

    An epoch has as many samples as there are images, on average. Images of a small data set with a large weight are
    repeated in it; of a large one with a small weight each epoch draws another part.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        image_factors: torch.Tensor | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        """Make the sampler.

        Args:
            sizes: number of images of each data set, in the order in which they stand one behind the other.
            weights: a data set with twice the weight of another is sampled twice as often; 0 leaves one out.
            image_factors: `Tensor[N]`, how often each of the `N` images comes in proportion to the others of its
                data set, e.g. from `repeat_factors_from_category_frequency`; None for equally often.
            shuffle: whether each epoch has its own random order.
            seed: seed of shuffle and choice, the same on all ranks; None draws one and shares it.
        """
        super().__init__(_factors(sizes, weights, image_factors), shuffle=shuffle, seed=seed)


def _factors(sizes: Sequence[int], weights: Sequence[float], image_factors: torch.Tensor | None) -> torch.Tensor:
    """Return how often each image comes in an epoch, `Tensor[N]`."""
    if len(sizes) != len(weights):
        raise ValueError(f"There are {len(weights)} weights (DATALOADER.DATASET_WEIGHTS) for {len(sizes)} data sets.")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise ValueError(f"Weights of data sets must not be negative, and not all zero: {list(weights)}.")
    empty = [i for i, (size, weight) in enumerate(zip(sizes, weights, strict=True)) if size == 0 and weight > 0]
    if empty:
        raise ValueError(f"Data set {empty[0]} has no images, but the weight {weights[empty[0]]}.")
    total = sum(sizes)
    if image_factors is None:
        image_factors = torch.ones(total)
    elif len(image_factors) != total:
        raise ValueError(f"There are {len(image_factors)} image factors for {total} images.")
    parts = [
        part * (total * weight / sum(weights) / float(part.double().sum())) if len(part) else part
        for part, weight in zip(image_factors.split(list(sizes)), weights, strict=True)
    ]
    return torch.cat(parts)
