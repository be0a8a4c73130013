"""The data sets that are registered from the start.

Their files are looked for below the folder named by the environment variable `DETECTRON2_DATASETS` (default:
`datasets` in the working directory). The variable is read when a data set or its metadata is first asked for, so
importing this module touches neither the folder nor the tables of classes.
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

Meta = Mapping[str, Any]


@dataclass(frozen=True)
class _Entry:
    """One data set.

    `paths` are metadata keys with paths below the data folder, `values` other keys, `tables` makes the tables of
    classes, and `load` gets all of these, with the paths completed and `name` added.
    """

    load: Callable[[Meta], list[dict[str, Any]]]
    paths: Mapping[str, str]
    values: Meta
    tables: Callable[[], Meta]

    def describe(self) -> dict[str, Any]:
        """Return the metadata."""
        root = dataset_root()
        return {**{key: os.path.join(root, path) for key, path in self.paths.items()}, **self.values, **self.tables()}


_ENTRIES: dict[str, _Entry] = {}


def _add(
    name: str,
    load: Callable[[Meta], list[dict[str, Any]]],
    tables: str | Callable[[], Meta],
    paths: Mapping[str, str],
    **values: Any,
) -> None:
    tables = functools.partial(_get_builtin_metadata, tables) if isinstance(tables, str) else tables
    _ENTRIES[name] = _Entry(load, paths, values, tables)


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


# part of the names: (folder of the images, end of the names of annotation files)
_COCO_PARTS = {
    "2014_train": ("train2014", "train2014"),
    "2014_val": ("val2014", "val2014"),
    "2014_minival": ("val2014", "minival2014"),
    "2014_valminusminival": ("val2014", "valminusminival2014"),
    "2017_train": ("train2017", "train2017"),
    "2017_val": ("val2017", "val2017"),
    "2017_val_100": ("val2017", "val2017_100"),
}


def _load_coco(m: Meta) -> list[dict[str, Any]]:
    return load_coco_json(m["json_file"], m["image_root"], m["name"])


def _load_coco_stuff(m: Meta) -> list[dict[str, Any]]:
    return load_sem_seg(m["sem_seg_root"], m["image_root"])


def _load_coco_panoptic(m: Meta) -> list[dict[str, Any]]:
    return load_coco_panoptic_json(m["panoptic_json"], m["image_root"], m["panoptic_root"], m)


def _add_coco(name: str, tables: str, images: str, file: str) -> None:
    paths = {"json_file": f"coco/annotations/{file}.json", "image_root": f"coco/{images}"}
    _add(name, _load_coco, tables, paths, evaluator_type="coco")


for _part, (_images, _end) in _COCO_PARTS.items():
    _add_coco(f"coco_{_part}", "coco", _images, f"instances_{_end}")
    _add_coco(f"keypoints_coco_{_part}", "coco_person", _images, f"person_keypoints_{_end}")
for _part in ("test", "test-dev"):
    _add_coco(f"coco_2017_{_part}", "coco", "test2017", f"image_info_{_part}2017")

for _part in ("2017_train", "2017_val", "2017_val_100"):
    _images, _end = _COCO_PARTS[_part]
    _panoptic = {
        "panoptic_root": f"coco/panoptic_{_end}",
        "image_root": f"coco/{_images}",
        "panoptic_json": f"coco/annotations/panoptic_{_end}.json",
        "json_file": f"coco/annotations/instances_{_end}.json",
    }
    _stuff = {"sem_seg_root": f"coco/panoptic_stuff_{_end}", "image_root": f"coco/{_images}"}
    _name, _values = f"coco_{_part}_panoptic", {"evaluator_type": "coco_panoptic_seg", "ignore_label": 255}
    _add(_name, _load_coco_panoptic, "coco_panoptic_standard", _panoptic, **_values, label_divisor=1000)
    _add(
        f"{_name}_separated",
        lambda m: merge_to_panoptic(_load_coco(m), _load_coco_stuff(m)),
        "coco_panoptic_separated",
        {**_panoptic, **_stuff},
        **_values,
    )
    _values["evaluator_type"] = "sem_seg"
    _add(f"{_name}_stuffonly", _load_coco_stuff, "coco_panoptic_separated", _stuff, **_values)


# name: end of the name of the annotation file
_LVIS = {
    "lvis_v1_train": "v1_train",
    "lvis_v1_val": "v1_val",
    "lvis_v1_test_dev": "v1_image_info_test_dev",
    "lvis_v1_test_challenge": "v1_image_info_test_challenge",
    "lvis_v0.5_train": "v0.5_train",
    "lvis_v0.5_val": "v0.5_val",
    "lvis_v0.5_val_rand_100": "v0.5_val_rand_100",
    "lvis_v0.5_test": "v0.5_image_info_test",
    "lvis_v0.5_train_cocofied": "v0.5_train_cocofied",
    "lvis_v0.5_val_cocofied": "v0.5_val_cocofied",
}
for _name, _end in _LVIS.items():
    _add(
        _name,
        lambda m: load_lvis_json(m["json_file"], m["image_root"], m["name"]),
        functools.partial(get_lvis_instances_meta, _name),
        {"json_file": f"lvis/lvis_{_end}.json", "image_root": "coco/"},
        evaluator_type="lvis",
    )

for _split in ("train", "val", "test"):
    _paths = {"image_dir": f"cityscapes/leftImg8bit/{_split}/", "gt_dir": f"cityscapes/gtFine/{_split}/"}
    _add(
        f"cityscapes_fine_instance_seg_{_split}",
        lambda m: load_cityscapes_instances(m["image_dir"], m["gt_dir"]),
        "cityscapes",
        _paths,
        evaluator_type="cityscapes_instance",
    )
    _add(
        f"cityscapes_fine_sem_seg_{_split}",
        lambda m: load_cityscapes_semantic(m["image_dir"], m["gt_dir"]),
        "cityscapes",
        _paths,
        evaluator_type="cityscapes_sem_seg",
        ignore_label=255,
    )
for _split in ("train", "val"):
    _add(
        f"cityscapes_fine_panoptic_{_split}",
        lambda m: load_cityscapes_panoptic(m["image_root"], m["panoptic_root"], m["panoptic_json"], m),
        "cityscapes_panoptic",
        {
            "panoptic_root": f"cityscapes/gtFine/cityscapes_panoptic_{_split}",
            "image_root": f"cityscapes/leftImg8bit/{_split}",
            "panoptic_json": f"cityscapes/gtFine/cityscapes_panoptic_{_split}.json",
            "gt_dir": f"cityscapes/gtFine/{_split}",
        },
        evaluator_type="cityscapes_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )

for _year, _splits in ((2007, ("trainval", "train", "val", "test")), (2012, ("trainval", "train", "val"))):
    for _split in _splits:
        _add(
            f"voc_{_year}_{_split}",
            lambda m: load_voc_instances(m["dirname"], m["split"], m["thing_classes"]),
            lambda: {"thing_classes": list(CLASS_NAMES)},
            {"dirname": f"VOC{_year}"},
            year=_year,
            split=_split,
            evaluator_type="pascal_voc",
        )

for _split, _folder in (("train", "training"), ("val", "validation")):
    _add(
        f"ade20k_sem_seg_{_split}",
        lambda m: load_sem_seg(m["sem_seg_root"], m["image_root"], gt_ext="png", image_ext="jpg"),
        "ade20k_sem_seg",
        {
            "image_root": f"ADEChallengeData2016/images/{_folder}",
            "sem_seg_root": f"ADEChallengeData2016/annotations_detectron2/{_folder}",
        },
        evaluator_type="sem_seg",
        ignore_label=255,
    )

for _name, _entry in _ENTRIES.items():
    if _name not in DatasetCatalog:
        DatasetCatalog.register(_name, functools.partial(_load, _name))
    if _name not in MetadataCatalog:
        MetadataCatalog.register_lazy(_name, _entry.describe)
