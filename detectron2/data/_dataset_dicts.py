"""Data sets as lists of dicts: load them by name, check them, filter them, put them together."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch.utils.data as torchdata

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.formats.reading import exif_policy
from detectron2.data.validation import DatasetError
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.safe_pickle import load_plain_pickle

__all__ = [
    "check_metadata_consistency",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]

# Messages come from the public module.
logger = logging.getLogger("detectron2.data.build")

DatasetDicts = list[dict[str, Any]]


# Filtering


def filter_images_with_only_crowd_annotations(dataset_dicts: DatasetDicts) -> DatasetDicts:
    """Leave out images that have no annotations, or none but crowd regions.

    Args:
        dataset_dicts: the data set, with annotations.

    Returns:
        a new list with the other images.
    """
    kept = [d for d in dataset_dicts if any(a.get("iscrowd", 0) == 0 for a in d.get("annotations", ()))]
    logger.info(
        "%d of %d images are left out, since they have no annotations to learn from; %d remain.",
        *(len(dataset_dicts) - len(kept), len(dataset_dicts), len(kept)),
    )
    return kept


def filter_images_with_few_keypoints(dataset_dicts: DatasetDicts, min_keypoints_per_image: int) -> DatasetDicts:
    """Leave out images with too few visible keypoints.

    Args:
        dataset_dicts: the data set, with annotations.
        min_keypoints_per_image: the least number of keypoints of an image whose visibility is not 0.

    Returns:
        a new list with the other images.
    """

    def visible(record: Mapping[str, Any]) -> int:
        return sum(v > 0 for a in record.get("annotations", ()) for v in _flat(a.get("keypoints", ()))[2::3])

    kept = [d for d in dataset_dicts if visible(d) >= min_keypoints_per_image]
    logger.info(
        "%d of %d images are left out, since they have fewer than %d keypoints; %d remain.",
        *(len(dataset_dicts) - len(kept), len(dataset_dicts), min_keypoints_per_image, len(kept)),
    )
    return kept


def _flat(keypoints: Any) -> Any:
    """Keypoints as one sequence of numbers, also where they are written as `(K, 3)`."""
    is_flat = isinstance(keypoints, (list, tuple)) and not (keypoints and isinstance(keypoints[0], (list, tuple)))
    return keypoints if is_flat else np.ravel(keypoints)


# Loading


def load_proposals_into_dataset(dataset_dicts: DatasetDicts, proposal_file: str) -> DatasetDicts:
    """Add precomputed object proposals to a data set.

    The file is a pickled dict of plain data:

    - "ids": image ids, int or str;
    - "boxes": for each id an array `(N, 4)`;
    - "objectness_logits": for each id an array `(N,)`;
    - "bbox_mode": how the boxes are written, `BoxMode.XYXY_ABS` if absent.

    Older files call "ids" "indexes", and "objectness_logits" "scores".

    Args:
        dataset_dicts: the data set; each image receives `proposal_boxes, proposal_objectness_logits,
            proposal_bbox_mode`, best first.
        proposal_file: path of the file.

    Returns:
        `dataset_dicts`.

    Raises:
        ValueError: the file holds other things than these, or lacks an image.
    """
    logger.info("Loading proposals from %s ...", proposal_file)
    box_mode = {f"detectron2.structures.{module}BoxMode": BoxMode for module in ("", "boxes.", "_box_mode.")}
    with open(PathManager.get_local_path(proposal_file), "rb") as f:
        content: Any = load_plain_pickle(f, name=proposal_file, extra=box_mode)
    names = {"ids": "indexes", "boxes": "boxes", "objectness_logits": "scores"}
    if not isinstance(content, dict) or not all(new in content or old in content for new, old in names.items()):
        found = list(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"'{proposal_file}' should be a dict with the keys {list(names)}; it is {found}.")
    fields = {new: content[new if new in content else old] for new, old in names.items()}
    mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    position_of = {str(image_id): position for position, image_id in enumerate(fields["ids"])}
    for record in dataset_dicts:
        position = position_of.get(str(record["image_id"]))
        if position is None:
            raise ValueError(
                f"'{proposal_file}' has no proposals for image id {record['image_id']!r} "
                f"('{record.get('file_name')}'). Check that DATASETS.PROPOSAL_FILES_* lists the files in the order of "
                "the data sets."
            )
        logits = fields["objectness_logits"][position]
        best_first = logits.argsort()[::-1]
        record["proposal_boxes"] = fields["boxes"][position][best_first]
        record["proposal_objectness_logits"] = logits[best_first]
        record["proposal_bbox_mode"] = mode
    return dataset_dicts


def print_instances_class_histogram(dataset_dicts: DatasetDicts, class_names: Sequence[str]) -> None:
    """Log how many instances each class has, crowd regions aside.

    Args:
        dataset_dicts: the data set, with annotations.
        class_names: names of the classes; the position is the label.

    Raises:
        ValueError: a label is outside `[0, len(class_names))`.
    """
    from tabulate import tabulate

    labels = np.asarray(
        [a["category_id"] for d in dataset_dicts for a in d["annotations"] if not a.get("iscrowd", 0)], dtype=np.int64
    )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise ValueError(
            f"Labels range from {labels.min()} to {labels.max()}, while there are {len(class_names)} class names: "
            f"expected 0 to {len(class_names) - 1}."
        )
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    columns = max(1, min(3, len(class_names)))
    cells: list[Any] = [cell for name, n in zip(class_names, counts, strict=True) for cell in (_short(name), n or "-")]
    cells += [None] * (-len(cells) % (2 * columns))
    cells += ["total", sum(counts)] if len(class_names) > 1 else []
    rows = [cells[i : i + 2 * columns] for i in range(0, len(cells), 2 * columns)]
    table = tabulate(
        rows, headers=["category", "#instances"] * columns, tablefmt="pipe", numalign="left", stralign="center"
    )
    logger.info("Instances of the %d classes:\n%s", len(class_names), table)


def _short(name: str) -> str:
    """Long names (LVIS, Open Images) would make the table too wide."""
    return name if len(name) <= 13 else name[:11] + ".."


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
    *,
    validate: Callable[..., DatasetDicts] | None = None,
    exif: str = "apply",
) -> Any:
    """Load one or several data sets and put them together for training or evaluation.

    Args:
        names: a name or several, as registered.
        filter_empty: whether to leave out images without annotations (crowd regions aside).
        min_keypoints: leave out images with fewer visible keypoints; 0 leaves none out.
        proposal_files: a file with precomputed proposals for each data set.
        check_consistency: whether to require that all have the same classes.
        validate: called with each data set and `name=...`; checks it and returns what to use of it.
        exif: "apply" or "ignore", as the mapper has it: how sizes that annotations lack are read from the images.

    Returns:
        a list of dicts in the standard format; or a torch data set, if that is what the names stand for.

    Raises:
        KeyError: a name is not registered.
        ValueError: a data set is empty, or nothing is left after filtering; or classes differ.
    """
    options = {"validate": validate, "exif": exif}
    return load_dataset_dicts(names, filter_empty, min_keypoints, proposal_files, check_consistency, **options)[0]


def load_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
    *,
    validate: Callable[..., DatasetDicts] | None = None,
    exif: str = "apply",
) -> tuple[Any, list[int] | None]:
    """Return what `get_detection_dataset_dicts` returns, and how many elements of it are of each data set, in order.

    The numbers are None for torch data sets.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("No data set is named. Set DATASETS.TRAIN or DATASETS.TEST to registered names.")
    with exif_policy(exif):
        parts = [DatasetCatalog.get(name) for name in names]
        if isinstance(parts[0], torchdata.Dataset):
            # The user's own kind of data set: what its elements are is not for us to check.
            return (torchdata.ConcatDataset(parts) if len(parts) > 1 else parts[0]), None
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            _check_is_list(name, part)
            if validate is not None:
                parts[index] = validate(part, name=name)
            elif len(part) == 0:
                raise DatasetError(name, ["it is empty. Check the function or the files that it is loaded from."])

    if proposal_files is not None:
        if len(proposal_files) != len(names):
            raise ValueError(f"There are {len(proposal_files)} proposal files for {len(names)} data sets: {names}.")
        parts = [load_proposals_into_dataset(part, file) for part, file in zip(parts, proposal_files, strict=True)]

    dicts = list(itertools.chain.from_iterable(parts))
    sizes = [len(part) for part in parts]
    if dicts and isinstance(dicts[0], Mapping) and "annotations" in dicts[0]:
        kept = _filtered(dicts, names, filter_empty, min_keypoints)
        if len(kept) < len(dicts):
            remaining = set(map(id, kept))
            sizes = [sum(id(d) in remaining for d in part) for part in parts]
        dicts = kept
        _log_classes(dicts, names, check_consistency)
    return dicts, sizes


def _check_is_list(name: str, part: Any) -> None:
    if part is None or isinstance(part, (str, bytes, Mapping)) or not hasattr(part, "__len__"):
        lost = " (does the function lack its 'return'?)" if part is None else ""
        raise DatasetError(
            name,
            [f"the function that it was registered with must return a list of dicts, not {type(part).__name__}{lost}."],
        )


def _filtered(dicts: DatasetDicts, names: list[str], filter_empty: bool, min_keypoints: int) -> DatasetDicts:
    kept = filter_images_with_only_crowd_annotations(dicts) if filter_empty else dicts
    if dicts and not kept:
        raise DatasetError(
            ", ".join(names),
            [
                f"none of its {len(dicts)} images has annotations (crowd regions aside), so all were left out. Check "
                "that the annotations' image ids are those of the images, or set "
                "DATALOADER.FILTER_EMPTY_ANNOTATIONS to False to train on images without objects."
            ],
        )
    annotated = kept
    if min_keypoints > 0:
        kept = filter_images_with_few_keypoints(annotated, min_keypoints)
    if annotated and not kept:
        raise DatasetError(
            ", ".join(names),
            [
                f"none of its {len(annotated)} annotated images has {min_keypoints} visible keypoints, so all were "
                "left out. Check that the annotations have 'keypoints' with visibility 1 or 2, or lower "
                "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE."
            ],
        )
    return kept


def _log_classes(dicts: DatasetDicts, names: list[str], check_consistency: bool) -> None:
    if not check_consistency:
        return
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    if class_names is None:  # e.g. a data set for semantic segmentation only
        return
    if len(names) > 1:
        check_metadata_consistency("thing_classes", names)
    print_instances_class_histogram(dicts, class_names)
