"""From the name of a data set to batches: load, check and filter it, then sample, map and batch it.

With a seed (`SEED` in a config), an indexed data set is always gone through in the same order with the same
augmentations, with any number of workers; `loader.state_dict()` and `loader.load_state_dict()` continue a training
stream exactly where it was, `loader.set_position(num_batches)` at any batch, and each new iterator over a loader where
the last one stopped. See `detectron2.data._loader` for what this does not cover.
"""

import functools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.config import CfgNode, configurable
from detectron2.data._dataset_dicts import (
    check_metadata_consistency,
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    load_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data._loader import BatchLoader, GroupedBatchLoader, GuardedLoader, _TrainStream, usable_workers
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.common import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.multi_image import MultiImageMapper
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    ShardedTrainingSampler,
    TrainingSampler,
    WeightedTrainingSampler,
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
        dataset: indexed, or iterable (then `sampler` must be None). An iterable one has to yield a different share of
            the elements on each rank and in each worker: see `detectron2.data.ShardedIterableDataset`.
        sampler: gives indices; normally endless.
        total_batch_size: number of samples of a batch on all ranks together.
        aspect_ratio_grouping: whether to put only wide or only high images into a batch. The samples must then be
            dicts with "width" and "height".
        num_workers: number of processes that load data, on each rank; 0 loads in this one. No more are started than
            there are cores. It changes neither order nor content of the batches of an indexed data set.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.
        drop_last: whether to leave out a last batch that is not full.
        single_gpu_batch_size: number of samples of a batch on each rank; overrides `total_batch_size`.
        prefetch_factor: number of batches that each worker prepares in advance.
        persistent_workers: whether workers stay alive when the data set has been gone through.
        pin_memory: whether to copy tensors to page-locked memory, which pays only if the training step copies to the
            GPU without waiting.
        seed: seed of the random numbers of samples (augmentations). None takes the sampler's, or draws one from torch's
            global generator.
        **kwargs: further arguments of `torch.utils.data.DataLoader`.

    Returns:
        an iterable of batches, with `state_dict()`, `load_state_dict(state)` and `set_position(num_batches)` to
        continue the stream of another run.

    Raises:
        ValueError: the batch cannot be shared equally among the ranks.
    """
    batch_size = _local_batch_size(total_batch_size, single_gpu_batch_size)
    num_workers = usable_workers(num_workers)
    if isinstance(dataset, torchdata.IterableDataset):
        _check_iterable(sampler, num_workers)
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=1 if aspect_ratio_grouping else batch_size)
        dataset.seed = _seed_of_samples(seed, sampler)

    arguments = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        # torch rejects these two without workers
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers and num_workers > 0,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return BatchLoader(dataset, batch_size, drop_last=drop_last, collate_fn=collate_fn, **arguments)
    # Workers hand over single samples: only here is it known which of them go together.
    singles = _TrainStream(dataset, batch_size=1, collate_fn=operator.itemgetter(0), **arguments)
    return GroupedBatchLoader(singles, batch_size, collate_fn)


def _seed_of_samples(seed: int | None, sampler: Any) -> int:
    if seed is not None:
        return seed
    of_sampler = getattr(sampler, "seed", None)
    return of_sampler if isinstance(of_sampler, int) else int(torch.empty((), dtype=torch.int64).random_())


def _check_iterable(sampler: Any, num_workers: int) -> None:
    """Refuse a sampler for an iterable data set, and say that the data set has to share itself among processes."""
    if sampler is not None:
        raise ValueError("An iterable data set has its own order; sampler must be None.")
    processes = max(num_workers, 1) * comm.get_world_size()
    if processes > 1:
        logger.info(
            "The data set is iterable, and is read by %d processes (workers of all ranks): it has to yield a different "
            "share in each. If it does not, wrap it in detectron2.data.ShardedIterableDataset.",
            processes,
        )


def _local_batch_size(total_batch_size: int, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size is not None:
        return single_gpu_batch_size
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        down = max(total_batch_size // world_size, 1) * world_size
        raise ValueError(
            f"The total batch size ({total_batch_size}; SOLVER.IMS_PER_BATCH) must be a positive multiple of the "
            f"number of processes ({world_size}), such as {down} or {down + world_size}."
        )
    return total_batch_size // world_size


def num_classes_and_key(cfg: CfgNode) -> tuple[int | None, str]:
    """Return the number of classes of instances and its config key; None where no key is known to hold."""
    if cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN"):
        return cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return cfg.MODEL.RETINANET.NUM_CLASSES, "MODEL.RETINANET.NUM_CLASSES"
    if cfg.MODEL.META_ARCHITECTURE in ("HFDetector", "HFSegmenter"):
        return cfg.MODEL.get("HF", {}).get("NUM_CLASSES"), "MODEL.HF.NUM_CLASSES"
    if cfg.MODEL.META_ARCHITECTURE in ("DeformableDETR", "DINO"):
        return cfg.MODEL.get("DEFORMABLE_DETR", {}).get("NUM_CLASSES"), "MODEL.DEFORMABLE_DETR.NUM_CLASSES"
    if _mask_former_learns_instances(cfg):
        return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    return None, ""


def _mask_former_learns_instances(cfg: CfgNode) -> bool:
    mapper = cfg.INPUT.get("DATASET_MAPPER_NAME", "")
    return cfg.MODEL.META_ARCHITECTURE == "MaskFormer" and mapper in ("mask_former_instance", "coco_instance_lsj")


def num_label_map_classes(cfg: CfgNode) -> int | None:
    """Return the number of labels of label maps; None for models that are not trained on them."""
    has_labels = cfg.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticFPN")
    return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES if has_labels else None


def expected_by_model(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of `validate_dataset_dicts` about annotations of instances."""
    num_classes, num_classes_key = num_classes_and_key(cfg)
    mask_format = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
    return {
        "num_classes": num_classes,
        "num_classes_key": num_classes_key,
        "num_keypoints": cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None,
        "mask_format": "bitmask" if _mask_former_learns_instances(cfg) else mask_format,
    }


def _train_validator(cfg: CfgNode, mapper: Any) -> Callable[..., DatasetDicts]:
    return functools.partial(
        validate_dataset_dicts,
        **expected_by_model(cfg),
        num_labels=num_label_map_classes(cfg),
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        check_files=comm.is_main_process(),
        exif=_exif(cfg, mapper),
        skips_bad_images=cfg.DATALOADER.get("ON_BAD_IMAGE", "stop") == "skip",
        raise_on_error=not _is_own(cfg, mapper),
    )


def _is_own(cfg: CfgNode, mapper: Any) -> bool:
    """Whether a mapper is the user's: only that mapper knows what the data set must look like, and we warn."""
    mapper = mapper.mapper if isinstance(mapper, MultiImageMapper) else mapper
    is_of_mask2former = type(mapper).__module__.startswith("detectron2.") and _mask_former_learns_instances(cfg)
    return mapper is not None and type(mapper) is not DatasetMapper and not is_of_mask2former


def _exif(cfg: CfgNode, mapper: Any) -> str:
    mapper = mapper.mapper if isinstance(mapper, MultiImageMapper) else mapper
    return getattr(mapper, "exif", cfg.INPUT.get("EXIF", "apply"))


def _on_all_ranks(load: Callable[[], Any]) -> Any:
    """Call a function; if it raises on any rank, raise on all: one that went on would wait for the others forever."""
    result = error = None
    try:
        result = load()
    except Exception as e:
        error = e
    if comm.get_world_size() > 1:
        texts = comm.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        rank = next((rank for rank, text in enumerate(texts) if text is not None), None)
        if error is None and rank is not None:
            error = RuntimeError(f"Rank {rank} cannot load the training data: {texts[rank]}")
    if error is not None:
        raise error
    return result


def _train_loader_from_config(
    cfg: CfgNode, mapper: Any = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    sizes = None
    if dataset is None:
        dataset, sizes = _on_all_ranks(
            functools.partial(
                load_dataset_dicts,
                cfg.DATASETS.TRAIN,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
                proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
                validate=_train_validator(cfg, mapper),
                exif=_exif(cfg, mapper),
            )
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        names = cfg.DATASETS.TRAIN
        class_names = MetadataCatalog.get(names[0]).get("thing_classes") if sizes is not None else None
        sampler = _sampler_from_config(cfg, dataset, sizes, class_names)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "on_bad_image": cfg.DATALOADER.get("ON_BAD_IMAGE", "stop"),
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
    on_bad_image: str = "stop",
    **kwargs: Any,
) -> Any:
    """Make an endless loader of training batches; with `cfg` in place of `dataset`, from a config.

    From a config, the data sets of `DATASETS.TRAIN` are checked first: see
    `detectron2.data.validation.validate_dataset_dicts`. With a mapper of your own, findings are warnings.

    Args:
        dataset: a list of dicts, or a torch data set as `build_batch_data_loader` takes it.
        mapper: turns an element of the data set into a sample for the model; None as its result skips the element.
        sampler: gives indices; `TrainingSampler` by default. Must be None for an iterable data set.
        total_batch_size: number of samples of a batch on all ranks together.
        aspect_ratio_grouping: whether to put only wide or only high images into a batch; the elements then need
            "width" and "height".
        num_workers: number of processes that load data, on each rank.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.
        on_bad_image: what happens when an image cannot be read: "stop" raises the error; "skip" takes another image,
            names the bad one in the log and counts (`DATALOADER.ON_BAD_IMAGE`).
        **kwargs: further arguments of `build_batch_data_loader`.

    Returns:
        an iterable; each batch is a list of `total_batch_size / number of ranks` samples. It can be positioned: see
        `build_batch_data_loader`.

    Raises:
        DatasetError: from a config, if a data set has mistakes.
        ValueError: the batch cannot be shared equally among the ranks.
    """
    _check_source(dataset, mapper)
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if isinstance(mapper, MultiImageMapper) and not isinstance(dataset, torchdata.IterableDataset):
        mapper = mapper.drawing_from(dataset)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper, on_bad_image=on_bad_image)
    if not isinstance(dataset, torchdata.IterableDataset):
        sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        if not isinstance(sampler, Iterable):
            raise TypeError(f"sampler must be a torch Sampler, not {type(sampler).__name__}.")
    loader = build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )
    loader.mapper = mapper if collate_fn is None else None  # for `resize_later`
    return loader


def _check_source(dataset: Any, mapper: Any) -> None:
    """Refuse what a loader can neither index nor iterate over, and a mapper that cannot be called."""
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not isinstance(dataset, torchdata.IterableDataset) and (
        not indexed or isinstance(dataset, (str, bytes, Mapping))
    ):
        hint = " Make a list of it: list(...)." if isinstance(dataset, Iterator) else ""
        raise TypeError(
            "dataset must be a list of dicts, or a torch data set (with __getitem__ and __len__, or an "
            f"IterableDataset), not {type(dataset).__name__}.{hint}"
        )
    if mapper is not None and not callable(mapper):
        raise TypeError(f"mapper must be a function of an element of the data set, or None, not {mapper!r}.")


# A wrong folder shows in the first few files; every header of a test set is not worth waiting for.
_TEST_FILES_TO_CHECK = 200


def _test_loader_from_config(cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Any = None) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        file_of = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=True))
        proposal_files = [file_of[name] for name in names]
    dataset = get_detection_dataset_dicts(
        names,
        filter_empty=False,
        proposal_files=proposal_files,
        validate=functools.partial(
            validate_dataset_dicts,
            **expected_by_model(cfg),
            only_warns_of_annotations=True,
            exif=_exif(cfg, mapper),
            # On all ranks: what is wrong then stops all of them, and these are few files.
            max_files=_TEST_FILES_TO_CHECK,
            raise_on_error=not _is_own(cfg, mapper),
        ),
        exif=_exif(cfg, mapper),
    )
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
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
    """Make a loader that goes through a data set once; with `(cfg, dataset_name)`, from a config.

    Args:
        dataset: a list of dicts, or a torch data set as `build_batch_data_loader` takes it.
        mapper: turns an element of the data set into a sample for the model.
        sampler: gives indices; `InferenceSampler` by default, which shares all samples among the ranks. Must be
            None for an iterable data set.
        batch_size: number of samples of a batch on each rank. Evaluation is usually reported with 1.
        num_workers: number of processes that load data, on each rank; no more are started than there are cores.
        collate_fn: makes a batch of a list of samples; by default the list is the batch.

    Returns:
        the loader; each batch is a list of samples.
    """
    _check_source(dataset, mapper)
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    num_workers = usable_workers(num_workers)
    if isinstance(dataset, torchdata.IterableDataset):
        _check_iterable(sampler, num_workers)
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    collate_fn = collate_fn or trivial_batch_collator
    return GuardedLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn
    )


_MAX_CLASSES = 100  # rows of a table


def _sampler_from_config(
    cfg: CfgNode, dataset: Any, sizes: Sequence[int] | None = None, class_names: Sequence[str] | None = None
) -> Any:
    """Make the sampler `DATALOADER.SAMPLER_TRAIN` for the images of all data sets, whose `sizes` may be unknown.

    The names of the classes are for a table of how often they are drawn.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s.", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), _subset_ratio(cfg))
    if name == "ShardedTrainingSampler":
        sizes_of_shards = ShardedTrainingSampler.shard_sizes_of(dataset)
        return ShardedTrainingSampler(sizes_of_shards, window=cfg.DATALOADER.get("SHARD_WINDOW", 8))
    if name == "RepeatFactorTrainingSampler":
        sampler = RepeatFactorTrainingSampler(_category_factors(cfg, dataset))
    elif name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        factors = _category_factors(cfg, dataset) if name == "WeightedCategoryTrainingSampler" else None
        sampler = _weighted(cfg, sizes, factors)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}; known are 'TrainingSampler', 'RepeatFactorTrainingSampler', "
            "'RandomSubsetTrainingSampler', 'ShardedTrainingSampler', 'WeightedTrainingSampler' and "
            "'WeightedCategoryTrainingSampler'. For another one, pass sampler=... to build_detection_train_loader."
        )
    if logger.isEnabledFor(logging.INFO) and isinstance(dataset, list):
        names = list(cfg.DATASETS.TRAIN) if sizes is not None else ["all"]
        table = _distribution_table(dataset, sampler.repeat_factors, names, sizes or [len(dataset)], class_names)
        logger.info("What %s draws in an epoch, on average:\n%s", name, table)
    return sampler


def _subset_ratio(cfg: CfgNode) -> float:
    ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO")
    if ratio is None:
        logger.warning(
            "DATALOADER.RANDOM_SUBSET_RATIO is not set, so RandomSubsetTrainingSampler takes the whole data set; 0.1 "
            "would take a tenth of it."
        )
    return 1.0 if ratio is None else ratio


def _category_factors(cfg: CfgNode, dataset: Any) -> torch.Tensor:
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.get("REPEAT_SQRT", True)
    )


def _weighted(cfg: CfgNode, sizes: Sequence[int] | None, factors: torch.Tensor | None) -> RepeatFactorTrainingSampler:
    """Weight the data sets by shares of all samples (DATASET_WEIGHTS) or by repetition (TRAIN_REPEAT_FACTOR)."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    weights = cfg.DATALOADER.get("DATASET_WEIGHTS") or ()
    repeats = cfg.DATASETS.get("TRAIN_REPEAT_FACTOR") or ()
    if bool(weights) == bool(repeats):
        raise ValueError(
            f"{name} needs one of two keys, and {'both are' if weights else 'none is'} set: DATALOADER.DATASET_WEIGHTS "
            "is a number for each of DATASETS.TRAIN, in proportion to which they are drawn; "
            "DATASETS.TRAIN_REPEAT_FACTOR is a list of (name, how often each image comes in an epoch)."
        )
    if sizes is None:
        raise ValueError(
            f"{name} has to know which image is of which data set: it works for registered data sets of dicts "
            "(DATASETS.TRAIN), not with dataset=... or with torch data sets. Pass sampler=WeightedTrainingSampler(...)."
        )
    if weights:
        return WeightedTrainingSampler(sizes, weights, image_factors=factors)
    of_dataset = {str(name): float(factor) for name, factor in repeats}
    if unknown := sorted(of_dataset.keys() - set(cfg.DATASETS.TRAIN)):
        raise ValueError(f"DATASETS.TRAIN_REPEAT_FACTOR names {unknown}, which DATASETS.TRAIN does not.")
    of_image = torch.repeat_interleave(
        torch.tensor([of_dataset.get(name, 1.0) for name in cfg.DATASETS.TRAIN]), torch.tensor(list(sizes))
    )
    return RepeatFactorTrainingSampler(of_image if factors is None else of_image * factors)


def _distribution_table(
    dicts: list[dict[str, Any]],
    factors: torch.Tensor,
    names: Sequence[str],
    sizes: Sequence[int],
    class_names: Sequence[str] | None,
) -> str:
    """Show how often images of each data set, and with objects of each class, are drawn in an epoch, on average."""
    from tabulate import tabulate

    expected: list[float] = factors.double().tolist()
    num_images, num_drawn = len(expected), sum(expected)

    def row(name: str, images: int, drawn: float) -> list[str]:
        times = f"{drawn / images:.2f}" if images else "-"
        return [name, str(images), f"{images / num_images:.1%}", f"{drawn:.0f}", f"{drawn / num_drawn:.1%}", times]

    drawn_of = [float(part.double().sum()) for part in factors.split(list(sizes))]
    rows = [row(f"dataset {name}", n, drawn) for name, n, drawn in zip(names, sizes, drawn_of, strict=True)]
    if class_names is not None and all("annotations" in d for d in dicts):
        images: Counter[int] = Counter()
        drawn: Counter[int] = Counter()
        for record, times in zip(dicts, expected, strict=True):
            for category in {a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)}:
                images[category] += 1
                drawn[category] += times  # type: ignore[assignment]  # a counter of floats
        by_number = sorted(range(len(class_names)), key=lambda category: images[category])
        shown = set(by_number if len(by_number) <= _MAX_CLASSES else by_number[: _MAX_CLASSES // 2])
        shown.update(by_number[-(_MAX_CLASSES // 2) :])
        rows += [row(f"class {class_names[c]}", images[c], drawn[c]) for c in sorted(shown)]
        if len(shown) < len(by_number):
            rows.append([f"({len(by_number) - len(shown)} classes between the rarest and the most frequent)"])
    rows.append(row("all", num_images, num_drawn))
    headers = ["images of, or with", "images", "share", "drawn", "share", "times each"]
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=("left", *["right"] * 5), disable_numparse=True)
