"""Class names of weights and of the data sets they meet: one label means one class."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from detectron2.checkpoint.detection_checkpoint import parameter_versions
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.common import MapDataset
from detectron2.data.formats.reading import shorten
from detectron2.data.validation import DatasetError, class_names_of
from detectron2.engine.random_states import random_states_kept
from detectron2.modeling import ProposalNetwork
from detectron2.utils.wrappers import unwrap_model

__all__ = ["has_fixed_classes", "match_classes", "match_training_classes"]

logger = logging.getLogger(__name__)

_BY_LABEL = ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id")
_FIXED = ("stuff_classes", "class_image_count")  # tables of files that are not renumbered


def match_classes(model: nn.Module, names: Iterable[str], *, is_strict: bool = True) -> bool:
    """Compare the class names that loaded weights tell of themselves with those of registered data sets.

    Where a data set has the same names in another order, its labels become those of the weights, here and wherever it
    is used afterwards; other names are a `DatasetError`, or a warning. A model that was trained since it was loaded is
    not compared. Returns whether labels changed, so that loaders have to be built anew.
    """
    model = unwrap_model(getattr(model, "model", model))  # within test-time augmentation
    record = getattr(model, "_weights_record", {})
    if record.get("versions") != parameter_versions(model) or isinstance(model, ProposalNetwork):
        return False
    has_changed, is_strict = False, is_strict and has_fixed_classes(model)
    for name in (n for n in names if n in DatasetCatalog):
        for key in ("thing_classes", "stuff_classes"):
            wanted = list(record["metadata"].get(key) or ())
            own = list((class_names_of(name) if key == "thing_classes" else MetadataCatalog.get(name).get(key)) or ())
            words, own_words = [[re.sub(r"[\W_]+", "", str(c).casefold()) for c in names] for names in (wanted, own)]
            if not wanted or not own or words == own_words:
                continue
            is_same = len(set(words)) == len(words) and sorted(words) == sorted(own_words)
            if is_same and not any(k in MetadataCatalog.get(name).as_dict() for k in _FIXED):
                _relabel(name, wanted, [words.index(word) for word in own_words])
                logger.warning(
                    f"Dataset '{name}' has the classes {own}, and {record['source']} the same in another order: "
                    f"{wanted}. The data set takes the labels of the weights."
                )
                has_changed = True
                continue
            text = (
                f"its {key} are {own}, but {record['source']} is of {wanted}, so that a label means another class. "
                "Use data and weights of the same classes; if these are other words for the same, in the same order, "
                "give the data set the names of the weights."
                if is_strict
                else f"its {key} are {shorten(own)}, those of {record['source']} {shorten(wanted)}: until it is "
                "trained on this data set, the model's labels do not mean these classes."
            )
            if is_strict:
                raise DatasetError(name, [text])
            logger.warning("Dataset '%s': %s", name, text)
    return has_changed


def has_fixed_classes(model: nn.Module) -> bool:
    """Whether the parts of a model that know its classes are of this library, in which a label means one class.

    Others may have an open vocabulary, and take the names of the classes from each data set.
    """
    model = unwrap_model(model)
    parts = (model, *(getattr(model, name, None) for name in ("roi_heads", "sem_seg_head")))
    # A sharded model has a class of PyTorch's, of which its own one is the base.
    kinds = [
        next(c for c in type(part).__mro__ if not c.__module__.startswith("torch."))
        for part in parts
        if part is not None
    ]
    return all(kind.__module__.startswith("detectron2.") for kind in kinds)


def _relabel(name: str, classes: Sequence[str], new_labels: Sequence[int]) -> None:
    """Change the labels of a data set, in its metadata and wherever it is loaded."""
    values, load = vars(MetadataCatalog.get(name)), DatasetCatalog.data[name]
    before = {key: values[key] for key in _BY_LABEL if key in values}
    first = int(values.get("evaluator_type") == "lvis")  # the id of label 0 without a map
    ids = before.get("thing_dataset_id_to_contiguous_id") or {old + first: old for old in range(len(classes))}
    after = {"thing_classes": list(classes), _BY_LABEL[2]: {i: new_labels[old] for i, old in ids.items()}}
    if "thing_colors" in before:
        after["thing_colors"] = [before["thing_colors"][new_labels.index(new)] for new in range(len(classes))]

    def exchange(content: Mapping[str, Any]) -> None:
        for key in _BY_LABEL:
            values.pop(key, None)
        values.update(content)

    def relabelled(record: dict[str, Any]) -> dict[str, Any]:
        objects = [{**a, "category_id": new_labels[a["category_id"]]} for a in record.get("annotations", ())]
        return {**record, "annotations": objects} if "annotations" in record else record

    def load_relabelled() -> Any:
        exchange(before)  # which the files of the data set are compared with
        try:
            records = load()
        finally:
            exchange(after)
        return [relabelled(r) for r in records] if isinstance(records, list) else MapDataset(records, relabelled)

    exchange(after)
    DatasetCatalog.data[name] = load_relabelled


def match_training_classes(
    trainer: Any, train: Iterable[str], test: Iterable[str], build_loader: Callable[[], Any], is_resumed: bool
) -> None:
    """Compare the classes before training; where labels change, the data continue where they are, in a new loader."""
    if not match_classes(trainer.model, train, is_strict=is_resumed):
        return
    match_classes(trainer.model, test, is_strict=False)
    state = trainer.data_loader.state_dict() if hasattr(trainer.data_loader, "state_dict") else None
    with random_states_kept():
        trainer.reset_data_loader(build_loader)
    if state is not None:
        trainer.data_loader.load_state_dict(state)
