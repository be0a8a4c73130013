"""The 1203 categories of LVIS v1, in the order of their ids (1 to 1203).

Each row of `lvis_v1_categories.tsv` has a name and the number of training images that contain the category. The
frequency group of a category follows from that number: rare (`"r"`) up to 10 images, common (`"c"`) up to 100,
frequent (`"f"`) above. Source: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", and the
data set's own tables.
"""

import csv
from pathlib import Path
from typing import Any

__all__ = ["LVIS_CATEGORIES"]


def _frequency_group(image_count: int) -> str:
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def _read_categories() -> list[dict[str, Any]]:
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [
        {
            "id": category_id,
            "name": row["name"],
            "synonyms": [row["name"]],
            "image_count": int(row["image_count"]),
            "frequency": _frequency_group(int(row["image_count"])),
        }
        for category_id, row in enumerate(rows, start=1)
    ]


LVIS_CATEGORIES = _read_categories()
"""The 1203 categories of LVIS v1, as in its annotation files."""
