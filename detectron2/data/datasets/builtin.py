"""The data sets that are registered from the start.

Their files are looked for below the folder named by the environment variable `DETECTRON2_DATASETS` (default:
`datasets` in the working directory). The variable is read when a data set or its metadata is first asked for, so
importing this module touches neither the folder nor the tables of classes.
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from detectron2.data.datasets.coco import load_coco_json, load_sem_seg
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json, merge_to_panoptic
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

__all__ = ["dataset_root", "is_builtin"]

# --------------------------------------------------------------------------------------------------------------------
# Files of each data set, below the data folder
# --------------------------------------------------------------------------------------------------------------------

# name: (image_root, json_file)
_COCO = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
    "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
}

_COCO_PERSON = {
    "keypoints_coco_2014_train": ("coco/train2014", "coco/annotations/person_keypoints_train2014.json"),
    "keypoints_coco_2014_val": ("coco/val2014", "coco/annotations/person_keypoints_val2014.json"),
    "keypoints_coco_2014_minival": ("coco/val2014", "coco/annotations/person_keypoints_minival2014.json"),
    "keypoints_coco_2014_valminusminival": (
        "coco/val2014",
        "coco/annotations/person_keypoints_valminusminival2014.json",
    ),
    "keypoints_coco_2017_train": ("coco/train2017", "coco/annotations/person_keypoints_train2017.json"),
    "keypoints_coco_2017_val": ("coco/val2017", "coco/annotations/person_keypoints_val2017.json"),
    "keypoints_coco_2017_val_100": ("coco/val2017", "coco/annotations/person_keypoints_val2017_100.json"),
}

# name: (image_root, what the other names are made of)
_COCO_PANOPTIC = {
    "coco_2017_train_panoptic": ("coco/train2017", "train2017"),
    "coco_2017_val_panoptic": ("coco/val2017", "val2017"),
    "coco_2017_val_100_panoptic": ("coco/val2017", "val2017_100"),
}

# name: json_file
_LVIS = {
    "lvis_v1_train": "lvis/lvis_v1_train.json",
    "lvis_v1_val": "lvis/lvis_v1_val.json",
    "lvis_v1_test_dev": "lvis/lvis_v1_image_info_test_dev.json",
    "lvis_v1_test_challenge": "lvis/lvis_v1_image_info_test_challenge.json",
    "lvis_v0.5_train": "lvis/lvis_v0.5_train.json",
    "lvis_v0.5_val": "lvis/lvis_v0.5_val.json",
    "lvis_v0.5_val_rand_100": "lvis/lvis_v0.5_val_rand_100.json",
    "lvis_v0.5_test": "lvis/lvis_v0.5_image_info_test.json",
    "lvis_v0.5_train_cocofied": "lvis/lvis_v0.5_train_cocofied.json",
    "lvis_v0.5_val_cocofied": "lvis/lvis_v0.5_val_cocofied.json",
}

# (year, split)
_VOC = ((2007, "trainval"), (2007, "train"), (2007, "val"), (2007, "test"))
_VOC += ((2012, "trainval"), (2012, "train"), (2012, "val"))

# name: folder
_ADE20K = {"ade20k_sem_seg_train": "training", "ade20k_sem_seg_val": "validation"}


# --------------------------------------------------------------------------------------------------------------------
# Lazy entries
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One data set.

    `paths` are metadata keys with paths below the data folder, `values` other keys, `tables` makes the tables of
    classes, and `load` gets all of these, with the paths completed and `name` added.
    """

    load: Callable[[Mapping[str, Any]], list[dict[str, Any]]]
    paths: Mapping[str, str]
    values: Mapping[str, Any]
    tables: Callable[[], Mapping[str, Any]] = field(default=dict)

    def describe(self) -> dict[str, Any]:
        """Return the metadata."""
        root = dataset_root()
        return {**{key: os.path.join(root, path) for key, path in self.paths.items()}, **self.values, **self.tables()}


def dataset_root() -> str:
    """Return the folder that the built-in data sets are looked for in, as of now."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def is_builtin(name: str) -> bool:
    """Whether this name belongs to a built-in data set (and no other one is registered in its place)."""
    registered = DatasetCatalog.data.get(name)
    return isinstance(registered, functools.partial) and registered.func is _load


def _load(name: str) -> list[dict[str, Any]]:
    entry = _ENTRIES[name]
    # What the metadata says goes before, so that data and metadata agree on the folder even if the variable changed.
    return entry.load({**entry.describe(), **MetadataCatalog.get(name).as_dict(), "name": name})


def _builtin(name: str) -> Callable[[], Mapping[str, Any]]:
    return functools.partial(_get_builtin_metadata, name)


def _coco_entries() -> dict[str, _Entry]:
    def load(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_coco_json(m["json_file"], m["image_root"], m["name"])

    return {
        name: _Entry(load, {"json_file": json_file, "image_root": images}, {"evaluator_type": "coco"}, _builtin(family))
        for family, table in (("coco", _COCO), ("coco_person", _COCO_PERSON))
        for name, (images, json_file) in table.items()
    }


def _coco_panoptic_entries() -> dict[str, _Entry]:
    def load_separated(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        instances = load_coco_json(m["json_file"], m["image_root"], m["name"])
        return merge_to_panoptic(instances, load_stuff(m))

    def load_stuff(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_sem_seg(m["sem_seg_root"], m["image_root"])

    def load_standard(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_coco_panoptic_json(m["panoptic_json"], m["image_root"], m["panoptic_root"], m)

    entries = {}
    for name, (images, part) in _COCO_PANOPTIC.items():
        panoptic = {
            "panoptic_root": f"coco/panoptic_{part}",
            "image_root": images,
            "panoptic_json": f"coco/annotations/panoptic_{part}.json",
            "json_file": f"coco/annotations/instances_{part}.json",
        }
        stuff = {"sem_seg_root": f"coco/panoptic_stuff_{part}", "image_root": images}
        values = {"evaluator_type": "coco_panoptic_seg", "ignore_label": 255}
        separated = _builtin("coco_panoptic_separated")
        entries[name + "_separated"] = _Entry(load_separated, {**panoptic, **stuff}, values, separated)
        entries[name + "_stuffonly"] = _Entry(load_stuff, stuff, {**values, "evaluator_type": "sem_seg"}, separated)
        entries[name] = _Entry(
            load_standard, panoptic, {**values, "label_divisor": 1000}, _builtin("coco_panoptic_standard")
        )
    return entries


def _lvis_entries() -> dict[str, _Entry]:
    def load(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_lvis_json(m["json_file"], m["image_root"], m["name"])

    return {
        name: _Entry(
            load,
            {"json_file": json_file, "image_root": "coco/"},
            {"evaluator_type": "lvis"},
            functools.partial(get_lvis_instances_meta, name),
        )
        for name, json_file in _LVIS.items()
    }


def _cityscapes_entries() -> dict[str, _Entry]:
    def load_instances(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_cityscapes_instances(m["image_dir"], m["gt_dir"], from_json=True, to_polygons=True)

    def load_semantic(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_cityscapes_semantic(m["image_dir"], m["gt_dir"])

    def load_panoptic(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_cityscapes_panoptic(m["image_root"], m["panoptic_root"], m["panoptic_json"], m)

    entries = {}
    for split in ("train", "val", "test"):
        paths = {"image_dir": f"cityscapes/leftImg8bit/{split}/", "gt_dir": f"cityscapes/gtFine/{split}/"}
        entries[f"cityscapes_fine_instance_seg_{split}"] = _Entry(
            load_instances, paths, {"evaluator_type": "cityscapes_instance"}, _builtin("cityscapes")
        )
        entries[f"cityscapes_fine_sem_seg_{split}"] = _Entry(
            load_semantic, paths, {"evaluator_type": "cityscapes_sem_seg", "ignore_label": 255}, _builtin("cityscapes")
        )
    for split in ("train", "val"):
        entries[f"cityscapes_fine_panoptic_{split}"] = _Entry(
            load_panoptic,
            {
                "panoptic_root": f"cityscapes/gtFine/cityscapes_panoptic_{split}",
                "image_root": f"cityscapes/leftImg8bit/{split}",
                "panoptic_json": f"cityscapes/gtFine/cityscapes_panoptic_{split}.json",
                "gt_dir": f"cityscapes/gtFine/{split}",
            },
            {"evaluator_type": "cityscapes_panoptic_seg", "ignore_label": 255, "label_divisor": 1000},
            _builtin("cityscapes_panoptic"),
        )
    return entries


def _voc_entries() -> dict[str, _Entry]:
    def load(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_voc_instances(m["dirname"], m["split"], m["thing_classes"])

    return {
        f"voc_{year}_{split}": _Entry(
            load,
            {"dirname": f"VOC{year}"},
            {"year": year, "split": split, "evaluator_type": "pascal_voc"},
            lambda: {"thing_classes": list(CLASS_NAMES)},
        )
        for year, split in _VOC
    }


def _ade20k_entries() -> dict[str, _Entry]:
    def load(m: Mapping[str, Any]) -> list[dict[str, Any]]:
        return load_sem_seg(m["sem_seg_root"], m["image_root"], gt_ext="png", image_ext="jpg")

    return {
        name: _Entry(
            load,
            {
                "image_root": f"ADEChallengeData2016/images/{folder}",
                "sem_seg_root": f"ADEChallengeData2016/annotations_detectron2/{folder}",
            },
            {"evaluator_type": "sem_seg", "ignore_label": 255},
            _builtin("ade20k_sem_seg"),
        )
        for name, folder in _ADE20K.items()
    }


_ENTRIES: dict[str, _Entry] = {
    **_coco_entries(),
    **_coco_panoptic_entries(),
    **_lvis_entries(),
    **_cityscapes_entries(),
    **_voc_entries(),
    **_ade20k_entries(),
}

for _name, _entry in _ENTRIES.items():
    if _name not in DatasetCatalog:
        DatasetCatalog.register(_name, functools.partial(_load, _name))
    if _name not in MetadataCatalog:
        MetadataCatalog.register_lazy(_name, _entry.describe)
