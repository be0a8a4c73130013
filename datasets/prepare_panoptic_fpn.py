#!/usr/bin/env python
"""Make the semantic labels that Panoptic FPN is trained with from COCO's panoptic annotations.

python datasets/prepare_panoptic_fpn.py
python datasets/prepare_panoptic_fpn.py --root /data --splits val2017

reads  <root>/coco/annotations/panoptic_<split>.json and the PNG files in <root>/coco/panoptic_<split>/
writes <root>/coco/panoptic_stuff_<split>/*.png

In these images all things are 0, stuff is 1 to 53 and the rest 255. They belong to the data sets
coco_2017_{train,val,val_100}_panoptic_{separated,stuffonly}.
"""

import argparse
import os
from collections.abc import Iterator, Sequence

from detectron2.data.datasets.preparing import (
    convert_files,
    run_script,
    script_parser,
    separated_stuff_tasks,
    write_stuff_labels,
)

SPLITS = ("val2017_100", "val2017", "train2017")


def prepare(options: argparse.Namespace) -> Iterator[str]:
    """Convert all splits whose annotations are there; -> what was done."""
    coco = os.path.join(options.root, "coco")
    annotations = {split: os.path.join(coco, "annotations", f"panoptic_{split}.json") for split in SPLITS}
    splits = options.splits or [split for split in SPLITS if os.path.isfile(annotations[split])]
    if not splits:
        raise FileNotFoundError(
            f"there is none of {', '.join(annotations.values())}: extract COCO's panoptic annotations there, or say "
            "with --root or $DETECTRON2_DATASETS where the data sets are"
        )
    for split in splits:
        output = os.path.join(coco, f"panoptic_stuff_{split}")
        tasks = separated_stuff_tasks(annotations[split], os.path.join(coco, f"panoptic_{split}"), output)
        convert_files(write_stuff_labels, tasks, split, options)
        yield f"{output}: {len(tasks)} files"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, help="which annotations to convert (default: those that are there)"
    )
    run_script(prepare, parser, argv)


if __name__ == "__main__":
    main()
