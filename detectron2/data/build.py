"""From the name of a data set to batches: load, check and filter it, then sample, map and batch it."""

import functools
import logging
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.config import CfgNode, configurable
from detectron2.data._dataset_dicts import (
    check_metadata_consistency,
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.data.validation import validate_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "check_metadata_consistency",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)

DatasetDicts = list[dict[str, Any]]


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Make a batch of samples by leaving them in their list."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators in a data loading worker, differently in each."""
    # In a worker torch.initial_seed() is the loader's seed plus the worker's id already.
    seed_all_rng(torch.initial_seed() % 2**31)


def build_batch_data_loader(
    dataset: Any,
    sampler: Any,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Make a loader that yields this rank's share of each batch, a list of samples.

    Args:
        dataset: indexed, or iterable (then ``sampler`` must be None).
        sampler: gives indices; normally endless.
        total_batch_size: number of samples of a batch on all ranks together.
        aspect_ratio_grouping: whether to put only wide or only high images into a batch. The samples must then be
            dicts with "width" and "height".
        num_workers: number of processes that load data, on each rank; 0 loads in this one.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.
        drop_last: whether to leave out a last batch that is not full.
        single_gpu_batch_size: number of samples of a batch on each rank; overrides ``total_batch_size``.
        prefetch_factor: number of batches that each worker prepares in advance.
        persistent_workers: whether workers stay alive when the data set has been gone through.
        pin_memory: whether to copy tensors to page-locked memory. That is one more copy of each image, which pays only
            if the training step copies to the GPU without waiting.
        seed: seed of the workers' random numbers; None takes it from torch's global generator.
        **kwargs: further arguments of ``torch.utils.data.DataLoader``.

    Returns:
        an iterable of batches.

    Raises:
        ValueError: the batch cannot be shared equally among the ranks.
    """
    batch_size = _local_batch_size(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("An iterable data set has its own order; sampler must be None.")
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=1 if aspect_ratio_grouping else batch_size)

    generator = None if seed is None else torch.Generator().manual_seed(seed)
    make_loader = functools.partial(
        torchdata.DataLoader,
        dataset,
        num_workers=num_workers,
        worker_init_fn=worker_init_reset_seed,
        # torch rejects these two without workers
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers and num_workers > 0,
        pin_memory=pin_memory,
        generator=generator,
        **kwargs,
    )
    if not aspect_ratio_grouping:
        return make_loader(batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn or trivial_batch_collator)
    # Workers hand over single samples: only here is it known which of them go together.
    singles = make_loader(batch_size=1, collate_fn=operator.itemgetter(0))
    grouped = AspectRatioGroupedDataset(singles, batch_size)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _local_batch_size(total_batch_size: int, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size is not None:
        return single_gpu_batch_size
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        down = total_batch_size // world_size * world_size
        raise ValueError(
            f"The total batch size ({total_batch_size}; SOLVER.IMS_PER_BATCH) must be a positive multiple of the "
            f"number of processes ({world_size}), e.g. {max(down, world_size)} or {max(down, 0) + world_size}."
        )
    return total_batch_size // world_size


# ---------------------------------------------------------------------------------------------------------------------
# The train loader
# ---------------------------------------------------------------------------------------------------------------------


def _num_classes(cfg: CfgNode) -> tuple[int | None, str]:
    """Return the number of classes of instances and its config key; None where no key is known to hold."""
    keys = {
        "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
        "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
        "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    }
    key = keys.get(cfg.MODEL.META_ARCHITECTURE, "")
    value: Any = cfg
    for part in key.split(".") if key else ():
        value = value[part]
    return (value if key else None), key


def _train_validator(cfg: CfgNode, mapper: Any) -> Callable[..., DatasetDicts]:
    # With a mapper of the user's own, only that mapper knows what the data set must look like: then we warn.
    own_mapper = mapper is not None and type(mapper) is not DatasetMapper
    num_classes, num_classes_key = _num_classes(cfg)
    return functools.partial(
        validate_dataset_dicts,
        num_classes=num_classes,
        num_classes_key=num_classes_key,
        num_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None,
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
        check_files=comm.is_main_process(),
        raise_on_error=not own_mapper,
    )


def _num_workers(wanted: int) -> int:
    """No more workers than cores: the default, 4, would slow a small machine down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cores:
        logger.info("DATALOADER.NUM_WORKERS is %d; using %d, the number of cores.", wanted, cores)
    return min(wanted, cores)


def _sampler_from_config(cfg: CfgNode, dataset: Any) -> Any:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s.", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.get("REPEAT_SQRT", True)
        )
        return RepeatFactorTrainingSampler(factors)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO")
        if ratio is None:
            raise ValueError(
                "RandomSubsetTrainingSampler needs to know how much of the data set to use. The config has no default "
                "for that: set cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.1, say."
            )
        return RandomSubsetTrainingSampler(len(dataset), ratio)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; known are 'TrainingSampler', 'RepeatFactorTrainingSampler' and "
        "'RandomSubsetTrainingSampler'. For another one, pass sampler=... to build_detection_train_loader."
    )


def _train_loader_from_config(
    cfg: CfgNode, mapper: Any = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
            validate=_train_validator(cfg, mapper),
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _sampler_from_config(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": _num_workers(cfg.DATALOADER.NUM_WORKERS),
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any],
    sampler: Any = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Make an endless loader of training batches; with ``cfg`` in place of ``dataset``, from a config.

    From a config, the data sets of ``DATASETS.TRAIN`` are checked first: see
    :func:`~detectron2.data.validation.validate_dataset_dicts`. With a mapper of your own, findings are warnings.

    Args:
        dataset: a list of dicts, or a torch data set, indexed or iterable.
        mapper: turns an element of the data set into a sample for the model; None as its result skips the element.
        sampler: gives indices; :class:`TrainingSampler` by default. Must be None for an iterable data set.
        total_batch_size: number of samples of a batch on all ranks together.
        aspect_ratio_grouping: whether to put only wide or only high images into a batch; the elements then need
            "width" and "height".
        num_workers: number of processes that load data, on each rank.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.
        **kwargs: further arguments of :func:`build_batch_data_loader`.

    Returns:
        an iterable; each batch is a list of ``total_batch_size / number of ranks`` samples.

    Raises:
        DatasetError: from a config, if a data set has mistakes.
        ValueError: the batch cannot be shared equally among the ranks.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("An iterable data set has its own order; sampler must be None.")
    else:
        sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        if not isinstance(sampler, Iterable):
            raise TypeError(f"sampler must be a torch Sampler, not {type(sampler).__name__}.")
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The test loader
# ---------------------------------------------------------------------------------------------------------------------

# A wrong folder shows in the first few files; every header of a test set is not worth waiting for.
_TEST_FILES_TO_CHECK = 200


def _test_loader_from_config(cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Any = None) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        file_of = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=True))
        proposal_files = [file_of[name] for name in names]
    own_mapper = mapper is not None and type(mapper) is not DatasetMapper
    dataset = get_detection_dataset_dicts(
        names,
        filter_empty=False,
        proposal_files=proposal_files,
        validate=functools.partial(
            validate_dataset_dicts,
            check_annotations=False,
            check_files=comm.is_main_process(),
            max_files=_TEST_FILES_TO_CHECK,
            raise_on_error=not own_mapper,
        ),
    )
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": _num_workers(cfg.DATALOADER.NUM_WORKERS),
        "sampler": None if isinstance(dataset, torchdata.IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any],
    sampler: Any = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """Make a loader that goes through a data set once; with ``(cfg, dataset_name)``, from a config.

    Args:
        dataset: a list of dicts, or a torch data set, indexed or iterable.
        mapper: turns an element of the data set into a sample for the model.
        sampler: gives indices; :class:`InferenceSampler` by default, which shares all samples among the ranks. Must be
            None for an iterable data set.
        batch_size: number of samples of a batch on each rank. Evaluation is usually reported with 1.
        num_workers: number of processes that load data, on each rank.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.

    Returns:
        the loader; each batch is a list of samples.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("An iterable data set has its own order; sampler must be None.")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )
