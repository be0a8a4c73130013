"""What a check of a data set finds: findings, and the cases that show them.

`N` images, `M` annotations (crowd regions aside, which training leaves out) of all images, one behind the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

__all__ = [
    "MAX_CASES",
    "MAX_EXAMPLES",
    "AnnotationTable",
    "Case",
    "Finding",
    "Level",
    "describe_image",
    "evenly_spaced",
    "image_findings",
    "quantity",
]

MAX_EXAMPLES = 3
"""How many of many cases of the same mistake a message shows."""

MAX_CASES = 20
"""How many of many cases a finding keeps."""

Level = Literal["error", "warning", "note"]
"""How severe a finding is: training stops at an error."""


@dataclass(frozen=True)
class Case:
    """One case of a mistake; `str()` tells where it is.

    Args:
        value: what is there.
        file: the image file.
        image_id: id of the image.
        annotation: position among the annotations of the image; None if the mistake is the image's.
        annotation_id: the annotation's own id.
    """

    value: str = ""
    file: str | None = None
    image_id: Any = None
    annotation: int | None = None
    annotation_id: Any = None

    @property
    def place(self) -> str:
        """Which annotation or image this is, as one would look for it."""
        image = describe_image({"file_name": self.file, "image_id": self.image_id})
        if self.annotation is None and self.annotation_id is None:
            return image if self.file is not None or self.image_id is not None else ""
        text = "annotation" if self.annotation is None else f"annotation {self.annotation}"
        if self.annotation_id is not None:
            text += f" (id {self.annotation_id})"
        return text if self.file is None and self.image_id is None else f"{text} of {image}"

    def __str__(self) -> str:
        if self.annotation is None and self.annotation_id is None:
            return f"{self.place} {self.value}".strip()
        return f"{self.value} in {self.place}"


@dataclass(frozen=True)
class Finding:
    """One kind of mistake of a data set, with all its cases.

    Args:
        kind: a short fixed name, such as "box-empty".
        level: "error" if training or evaluation would stumble over it, "warning" if the result would suffer, "note" if
            it is only good to know.
        what: one clause that says what is wrong and how often.
        cure: what to do, in whole sentences; may be empty.
        count: how many cases there are.
        cases: the first of them.
        images: int64 indices of the images concerned, one for each case, where known.
    """

    kind: str
    level: Level
    what: str
    cure: str = ""
    count: int = 1
    cases: Sequence[Case] = ()
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def text(self) -> str:
        """All in one line."""
        shown = [str(c) for c in self.cases[:MAX_EXAMPLES]]
        if shown and self.count > len(shown):
            shown.append(f"and {self.count - len(shown)} more")
        return (self.what + (": " + "; ".join(shown) if shown else "") + f". {self.cure}").strip()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON can hold them."""
        cases = [{k: v for k, v in vars(c).items() if v not in (None, "")} for c in self.cases]
        return {
            "kind": self.kind,
            "level": self.level,
            "count": self.count,
            "what": self.what,
            "cure": self.cure,
            "cases": cases,
        }


def describe_image(record: dict[str, Any]) -> str:
    """Say which image this is."""
    file_name = record.get("file_name")
    image_id = record.get("image_id")
    if file_name is None:
        return f"image id {image_id!r}"
    return f"'{file_name}'" + (f" (image_id {image_id!r})" if image_id is not None else "")


def quantity(count: int, noun: str = "annotation", verb: str = "has") -> str:
    """Return such as "1 annotation has" or "3 annotations have"."""
    plural = {"has": "have", "is": "are", "ends": "end", "belongs": "belong", "": ""}[verb]
    plural_noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("x") else "s")
    return f"{count} {noun} {verb}".strip() if count == 1 else f"{count} {plural_noun} {plural}".strip()


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return the indices from 0 to `count - 1`; if these are more than `limit`, that many of them, evenly spaced."""
    if limit is None or count <= limit:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(np.int64).tolist()


def image_findings(
    dicts: Sequence[Any],
    kind: str,
    level: Level,
    found: Mapping[int, str] | Sequence[int],
    flaw: str,
    cure: str = "",
    *,
    noun: str = "image",
    verb: str = "has",
    key: str = "file_name",
) -> list[Finding]:
    """Return one finding, "3 images have `flaw`", if any are `found`: indices, and perhaps what is there."""
    if not len(found):
        return []
    values = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    cases = [Case(v, dicts[n].get(key), dicts[n].get("image_id")) for n, v in islice(values.items(), MAX_CASES)]
    what = f"{quantity(len(values), noun, verb)} {flaw}"
    return [Finding(kind, level, what, cure, len(values), cases, np.array(list(values), dtype=np.int64))]


@dataclass
class AnnotationTable:
    """All annotations of a data set but crowd regions, one behind the other."""

    dicts: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    image_of: np.ndarray  # int64[M], index into `dicts`
    position: np.ndarray  # int64[M], index into `dicts[image_of]["annotations"]`

    def __len__(self) -> int:
        return len(self.annotations)

    @classmethod
    def gather(cls, dicts: list[dict[str, Any]]) -> "AnnotationTable":
        """Put the annotations of all images into one list."""
        per_image = [d.get("annotations") or () for d in dicts]
        counts = np.fromiter(map(len, per_image), dtype=np.int64, count=len(per_image))
        annotations: list[dict[str, Any]] = list(chain.from_iterable(per_image))
        image_of = np.repeat(np.arange(len(dicts)), counts)
        first = np.cumsum(counts) - counts
        position = np.arange(len(annotations)) - np.repeat(first, counts)
        table = cls(dicts, annotations, image_of, position)
        crowd = np.fromiter((bool(a.get("iscrowd", 0)) for a in annotations), dtype=bool, count=len(annotations))
        return table.take(np.flatnonzero(~crowd)) if crowd.any() else table

    def take(self, indices: np.ndarray) -> "AnnotationTable":
        """Return the table of some annotations."""
        annotations = [self.annotations[i] for i in indices.tolist()]
        return AnnotationTable(self.dicts, annotations, self.image_of[indices], self.position[indices])

    def sizes_hw(self) -> np.ndarray:
        """Return `float64[M, 2]`, height and width of each annotation's image; NaN where the data set does not tell."""
        sizes = np.array([(_number(d.get("height")), _number(d.get("width"))) for d in self.dicts], dtype=np.float64)
        return sizes.reshape(-1, 2)[self.image_of]

    def case(self, index: int, value: str) -> Case:
        """Return one annotation as a case of a mistake."""
        record = self.dicts[int(self.image_of[index])]
        return Case(
            value,
            record.get("file_name"),
            record.get("image_id"),
            int(self.position[index]),
            self.annotations[index].get("id"),
        )

    def findings(
        self, kind: str, level: Level, indices: Any, flaw: str, show: Callable[[int], str], cure: str = ""
    ) -> list[Finding]:
        """Return one finding, "3 annotations have `flaw`", if there are any `indices`; `show` says what is there."""
        if not len(indices):
            return []
        indices = np.asarray(indices, dtype=np.int64)
        cases = [self.case(i, show(i)) for i in indices[:MAX_CASES].tolist()]
        what = f"{quantity(len(indices))} {flaw}"
        return [Finding(kind, level, what, cure, len(indices), cases, self.image_of[indices])]


def _number(value: Any) -> float:
    return float(value) or np.nan if isinstance(value, (int, float, np.integer, np.floating)) else np.nan
