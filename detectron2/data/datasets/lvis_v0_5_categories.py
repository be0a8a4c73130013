"""The 1230 categories of LVIS v0.5, in the order of their ids (1 to 1230); the names are in the text file beside it."""

from pathlib import Path

__all__ = ["LVIS_CATEGORIES"]

# The 1230 categories of LVIS v0.5, as in its annotation files.
LVIS_CATEGORIES = [
    {"id": category_id, "name": name, "synonyms": [name]}
    for category_id, name in enumerate(
        Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines(), start=1
    )
]
