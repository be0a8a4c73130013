"""The training sampler that a config names, and what it makes of the data set."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from detectron2.config import CfgNode
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    WeightedTrainingSampler,
)

# Messages come from the public module.
logger = logging.getLogger("detectron2.data.build")

_MAX_CLASSES = 100  # rows of a table


def sampler_from_config(
    cfg: CfgNode, dataset: Any, sizes: Sequence[int] | None = None, class_names: Sequence[str] | None = None
) -> Any:
    """Make the sampler ``DATALOADER.SAMPLER_TRAIN``.

    Args:
        cfg: the config.
        dataset: the images of all data sets ``DATASETS.TRAIN``, one behind the other.
        sizes: number of images of each of them; None if that is not known.
        class_names: names of the classes, for a table of how often they are drawn.

    Returns:
        the sampler.

    Raises:
        ValueError: there is no such sampler, or keys that it needs are not set or contradict each other.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s.", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), _subset_ratio(cfg))
    if name == "RepeatFactorTrainingSampler":
        sampler = RepeatFactorTrainingSampler(_category_factors(cfg, dataset))
    elif name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        factors = _category_factors(cfg, dataset) if name == "WeightedCategoryTrainingSampler" else None
        sampler = _weighted(cfg, sizes, factors)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}; known are 'TrainingSampler', 'RepeatFactorTrainingSampler', "
            "'RandomSubsetTrainingSampler', 'WeightedTrainingSampler' and 'WeightedCategoryTrainingSampler'. For "
            "another one, pass sampler=... to build_detection_train_loader."
        )
    if logger.isEnabledFor(logging.INFO) and isinstance(dataset, list):
        names = list(cfg.DATASETS.TRAIN) if sizes is not None else ["all"]
        table = distribution_table(dataset, sampler.repeat_factors, names, sizes or [len(dataset)], class_names)
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
    unknown = sorted(of_dataset.keys() - set(cfg.DATASETS.TRAIN))
    if unknown:
        raise ValueError(f"DATASETS.TRAIN_REPEAT_FACTOR names {unknown}, which DATASETS.TRAIN does not.")
    of_image = torch.repeat_interleave(
        torch.tensor([of_dataset.get(name, 1.0) for name in cfg.DATASETS.TRAIN]), torch.tensor(list(sizes))
    )
    return RepeatFactorTrainingSampler(of_image if factors is None else of_image * factors)


def distribution_table(
    dicts: list[dict[str, Any]],
    factors: torch.Tensor,
    names: Sequence[str],
    sizes: Sequence[int],
    class_names: Sequence[str] | None,
) -> str:
    """Show how often images of each data set, and with objects of each class, are drawn.

    Args:
        dicts: the images of all data sets, one behind the other; ``N`` of them.
        factors: ``Tensor[N]``, how often each image comes in an epoch, on average.
        names: names of the data sets.
        sizes: number of images of each.
        class_names: names of the classes; None leaves them out.

    Returns:
        a table.
    """
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
