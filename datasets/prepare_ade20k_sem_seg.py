#!/usr/bin/env python
"""Make semantic labels that start at 0 from the annotations of ADE20k's scene parsing benchmark.

python datasets/prepare_ade20k_sem_seg.py
python datasets/prepare_ade20k_sem_seg.py --root /data

reads  <root>/ADEChallengeData2016/annotations/{training,validation}/*.png
writes <root>/ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png

There 1 to 150 are classes and 0 is anything else; here the classes are 0 to 149, and the rest is 255. They belong to
the data sets ade20k_sem_seg_{train,val}.
"""

import argparse
import os
from collections.abc import Iterator, Sequence

from detectron2.data.datasets.preparing import convert_files, run_script, script_parser, write_ade20k_labels

SPLITS = ("training", "validation")


def prepare(options: argparse.Namespace) -> Iterator[str]:
    """Convert both splits; -> what was done."""
    root = os.path.join(options.root, "ADEChallengeData2016")
    for split in SPLITS:
        source, output = os.path.join(root, "annotations", split), os.path.join(root, "annotations_detectron2", split)
        if not os.path.isdir(source):
            raise FileNotFoundError(
                f"there is no folder '{source}': extract ADEChallengeData2016 there, or say with --root or "
                "$DETECTRON2_DATASETS where the data sets are"
            )
        names = sorted(name for name in os.listdir(source) if name.endswith(".png"))
        if not names:
            raise FileNotFoundError(f"there are no PNG files in '{source}'")
        tasks = [(os.path.join(source, name), os.path.join(output, name)) for name in names]
        convert_files(write_ade20k_labels, tasks, split, options)
        yield f"{output}: {len(tasks)} files"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    run_script(prepare, script_parser(__doc__), argv)


if __name__ == "__main__":
    main()
