"""Which sample comes next, in training and in inference, on every rank."""

from detectron2.data.samplers.distributed_sampler import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.data.samplers.grouped_batch_sampler import GroupedBatchSampler
from detectron2.data.samplers.sharded_sampler import ShardedTrainingSampler
from detectron2.data.samplers.weighted_sampler import WeightedTrainingSampler

__all__ = [
    "GroupedBatchSampler",
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "ShardedTrainingSampler",
    "TrainingSampler",
    "WeightedTrainingSampler",
]
