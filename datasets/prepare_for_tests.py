#!/usr/bin/env python
"""Make the small data sets for quick tests, of 100 images each, from the annotations of the full ones.

python datasets/prepare_for_tests.py
python datasets/prepare_for_tests.py --root /data --size 20

reads  <root>/coco/annotations/{instances,person_keypoints,panoptic}_val2017.json, <root>/coco/panoptic_val2017/*.png,
       <root>/lvis/lvis_v0.5_val.json; whichever are there
writes <root>/coco/annotations/*_val2017_100.json, <root>/coco/panoptic_val2017_100/*.png,
       <root>/coco/panoptic_stuff_val2017_100/*.png, <root>/lvis/lvis_v0.5_val_rand_100.json

They belong to the data sets coco_2017_val_100, keypoints_coco_2017_val_100, coco_2017_val_100_panoptic* and
lvis_v0.5_val_rand_100. Of COCO the images with the lowest ids are taken, of LVIS always the same random ones. The
images stay where they are.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence

from detectron2.data.datasets.preparing import (
    convert_files,
    read_content,
    run_script,
    script_parser,
    separated_stuff_tasks,
    subset,
    write_json,
    write_stuff_labels,
)
from detectron2.utils.file_io import atomic_write

# file to read, file to write, seed of the random choice
FILES = (
    ("coco/annotations/instances_val2017.json", "coco/annotations/instances_val2017_100.json", None),
    ("coco/annotations/person_keypoints_val2017.json", "coco/annotations/person_keypoints_val2017_100.json", None),
    ("coco/annotations/panoptic_val2017.json", "coco/annotations/panoptic_val2017_100.json", None),
    ("lvis/lvis_v0.5_val.json", "lvis/lvis_v0.5_val_rand_100.json", 0),
)


def copy_file(task: tuple[str, str]) -> None:
    """Copy a file: all of it, or nothing."""
    with open(task[0], "rb") as source, atomic_write(task[1]) as target:
        shutil.copyfileobj(source, target)


def prepare(options: argparse.Namespace) -> Iterator[str]:
    """Make what can be made; -> what was done."""
    found = [row for row in FILES if os.path.isfile(os.path.join(options.root, row[0]))]
    if not found:
        raise FileNotFoundError(
            f"there is none of {', '.join(os.path.join(options.root, row[0]) for row in FILES)}; say with --root or "
            "$DETECTRON2_DATASETS where the data sets are"
        )
    for source, target, seed in found:
        output = os.path.join(options.root, target)
        if not (options.skip_existing and os.path.exists(output)):
            content = subset(read_content(os.path.join(options.root, source), "images"), options.size, seed=seed)
            write_json(content, output)
            yield f"{output}: {len(content['images'])} images"
        if "panoptic" in source:
            yield from _prepare_panoptic_images(os.path.join(options.root, "coco"), output, options)


def _prepare_panoptic_images(coco: str, panoptic_json: str, options: argparse.Namespace) -> Iterator[str]:
    full, small = os.path.join(coco, "panoptic_val2017"), os.path.join(coco, "panoptic_val2017_100")
    stuff = os.path.join(coco, "panoptic_stuff_val2017_100")
    tasks = separated_stuff_tasks(panoptic_json, full, stuff)
    copies = [(task[0], os.path.join(small, os.path.basename(task[0]))) for task in tasks]
    convert_files(copy_file, copies, "panoptic", options)
    convert_files(write_stuff_labels, tasks, "stuff", options)
    yield f"{small}, {stuff}: {len(tasks)} files each"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    parser = script_parser(__doc__)
    parser.add_argument("--size", type=int, default=100, metavar="N", help="images in each (default: 100)")
    run_script(prepare, parser, argv)


if __name__ == "__main__":
    main()
