#!/usr/bin/env python
"""Make LVIS annotations of COCO's 80 categories, to evaluate models that were trained on COCO.

python datasets/prepare_cocofied_lvis.py
python datasets/prepare_cocofied_lvis.py --root /data --names lvis_v1_val

reads  <root>/lvis/<name>.json, for lvis_v0.5_train and lvis_v0.5_val
writes <root>/lvis/<name>_cocofied.json

Annotations of other categories are left out; the category ids are those of COCO. They belong to the data sets
lvis_v0.5_{train,val}_cocofied.
"""

import argparse
import os
from collections.abc import Iterator, Sequence

from detectron2.data.datasets.preparing import cocofied, read_content, run_script, script_parser, write_json

NAMES = ("lvis_v0.5_train", "lvis_v0.5_val")


def prepare(options: argparse.Namespace) -> Iterator[str]:
    """Convert the files; -> what was done."""
    folder = os.path.join(options.root, "lvis")
    names = options.names or [name for name in NAMES if os.path.isfile(os.path.join(folder, f"{name}.json"))]
    if not names:
        raise FileNotFoundError(
            f"there is none of {', '.join(os.path.join(folder, f'{name}.json') for name in NAMES)}: extract LVIS' "
            "annotations there, or say with --root or $DETECTRON2_DATASETS where the data sets are"
        )
    for name in names:
        source, output = os.path.join(folder, f"{name}.json"), os.path.join(folder, f"{name}_cocofied.json")
        if options.skip_existing and os.path.exists(output):
            continue
        content = read_content(source, "images", "categories")
        try:
            result = cocofied(content)
        except ValueError as e:
            raise ValueError(f"'{source}' cannot be converted: {e}") from e
        write_json(result, output)
        before, after = len(content.get("annotations", [])), len(result.get("annotations", []))
        yield f"{output}: {after} of {before} annotations"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help=f"files without .json (default: those there of {', '.join(NAMES)})"
    )
    run_script(prepare, parser, argv)


if __name__ == "__main__":
    main()
