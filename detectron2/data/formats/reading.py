"""Reading annotation files: JSON in one go, checks of single values, and what becomes of the mistakes that are found.

A reader walks its file once and hands each mistake to a `Report`, which raises it in training, or collects it.
"""

import contextlib
import contextvars
import io
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from detectron2.data.checks.findings import MAX_CASES, Case, Finding, Level, quantity
from detectron2.data.tar_members import SCHEME, TarMember
from detectron2.utils.collector import paused_gc
from detectron2.utils.file_io import PathManager

__all__ = [
    "EXIF_CURES",
    "AnnotationFileError",
    "Meaning",
    "Report",
    "check_keys",
    "checked_file_name",
    "checked_id",
    "checked_objects",
    "checked_size",
    "current_exif",
    "describe",
    "exif_policy",
    "find_duplicates",
    "image_size_hw",
    "is_polygon",
    "load_json",
    "read_json",
    "shorten",
    "stored_size_hw",
    "timed",
    "turn_upright",
    "why_swapped",
]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long a block took if that was more than a second."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > 1:
        logger.info("Loading %s took %.1f seconds.", what, seconds)


class AnnotationFileError(ValueError):
    """An annotation file cannot be used: which, the place in it, such as "images[3]" or "", and what is wrong there."""

    def __init__(self, file: str | os.PathLike[str], where: str, what: str) -> None:
        self.file, self.where, self.what = os.fspath(file), where, what
        super().__init__(f"{self.file}: {where}: {what}" if where else f"{self.file}: {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.where, self.what)


class Meaning(NamedTuple):
    """What a kind of mistake is: "3 `noun`s have `what`. `cure`"."""

    level: Level
    noun: str
    what: str
    cure: str


class Report:
    """Takes the mistakes that a reader finds.

    Args:
        meanings: all kinds of mistakes that the reader knows.
        strict: raise the first error, as loading does; only warnings and notes are collected then.
    """

    def __init__(self, meanings: Mapping[str, Meaning], *, strict: bool = False) -> None:
        self._meanings, self._strict = meanings, strict
        self._cases: dict[str, list[Case]] = {kind: [] for kind in meanings}

    def __call__(self, kind: str, mistake: Exception, case: Case | None = None) -> None:
        """Take a mistake: as the error to raise, and as the case to show (by default the text of the error)."""
        if self._strict and self._meanings[kind].level == "error":
            raise mistake from None
        if case is None:
            known = isinstance(mistake, AnnotationFileError)
            case = Case(f"{mistake.where}: {mistake.what.rstrip('.')}" if known else str(mistake))
        self._cases[kind].append(case)

    @property
    def findings(self) -> list[Finding]:
        """What was collected: one finding for each kind."""
        return [
            Finding(kind, level, f"{quantity(len(cases), noun)} {what}", cure, len(cases), cases[:MAX_CASES])
            for kind, (level, noun, what, cure) in self._meanings.items()
            if (cases := self._cases[kind])
        ]

    def log_warnings(self, source: Any) -> None:
        """Log the warnings, as a loader does at its end."""
        for finding in self.findings:
            if finding.level == "warning":
                logger.warning("%s: %s", source, finding.text)


# What is left where a file is cut off between values, or in one that is not a text.
_WORD_BEGUN = re.compile(
    r"-?|\.|[eE][-+]?|t(r|ru)?|f(a|al|als)?|n(u|ul)?|N(a)?|-?I(n|nf|nfi|nfin|nfini|nfinit)?|\\(u[0-9a-fA-F]{0,3})?"
)
# How files begin that are often met in place of a JSON file.
_OTHER_FORMATS = (
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first (gunzip)"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first (unzip)"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first (unzstd)"),
    (b"BZh", "it is compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it first (unxz)"),
    (b"version https://git-lfs", "it is a placeholder of Git LFS; fetch the file itself (git lfs pull)"),
    (b"<", "it begins like XML or a web page; was it downloaded completely, from the right address?"),
)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an annotation file whose outermost value is an object.

    Args:
        path: the file.

    Returns:
        its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or holds something other than an object.
    """
    local_path = PathManager.get_local_path(os.fspath(path))
    if os.path.isdir(local_path):
        raise FileNotFoundError(f"'{path}' is a folder, while an annotation file is expected. Are both exchanged?")
    if not os.path.isfile(local_path):
        raise FileNotFoundError(
            f"There is no annotation file '{path}' (working directory: '{os.getcwd()}'). Check the path that the data "
            "set was registered with; the built-in data sets are looked for under $DETECTRON2_DATASETS."
        )
    content = load_json(path)
    if not isinstance(content, dict):
        hint = " (A list is the format of detection results, not of annotations.)" if isinstance(content, list) else ""
        raise AnnotationFileError(
            path, "", f"expected a JSON object with 'images' and 'annotations', not {describe(content)}.{hint}"
        )
    return content


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    A `ValueError` that says what it is instead, if it is not JSON.
    """
    with open(PathManager.get_local_path(os.fspath(path)), "rb") as f, paused_gc():
        try:
            data = f.read()
            text = data.decode(json.detect_encoding(data), "surrogatepass")
            del data  # json.load() would keep it, which is as much memory again
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            f.seek(0)
            # Not chained: the exceptions of json hold on to the whole text.
            raise AnnotationFileError(path, "", f"this is not a JSON file: {_why_not_json(f.read(64), e)}") from None


def _why_not_json(start: bytes, error: Exception) -> str:
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        return "it is empty" if len(start) < 64 else "it begins with nothing but blanks"
    for beginning, meaning in _OTHER_FORMATS:
        if start.startswith(beginning):
            return meaning
    if isinstance(error, UnicodeDecodeError):
        return f"its text is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        rest = error.doc[error.pos :].strip()
        if (error.msg.startswith(("Unterminated", "Invalid \\")) and "\n" not in rest) or _WORD_BEGUN.fullmatch(rest):
            return f"it ends too early ({error}); was it written or downloaded completely?"
        if error.msg == "Extra data" and rest[:1] in "[{":
            return f"there are several values one after the other, as in JSON Lines ({error}); write one list of them"
    return str(error)


def describe(value: Any) -> str:
    """Say what a JSON value is, in a few words."""
    names = {dict: "an object", list: "a list", str: "the string", bool: "the value", type(None): "null"}
    name = names.get(type(value), "the number")
    if value is None:
        return name
    if isinstance(value, (dict, list)):
        return f"{name} of {len(value)} entries" if len(value) != 1 else f"{name} of 1 entry"
    try:
        text = json.dumps(value) if isinstance(value, bool) else repr(value)
    except ValueError:  # an integer of thousands of digits, which Python refuses to write
        return "a number of thousands of digits"
    return f"{name} {text}" if len(text) <= 80 else f"{name} {text[:40]}... ({len(text)} characters)"


def checked_objects(content: dict[str, Any], key: str, file: Any, *, required: bool = True) -> list[dict[str, Any]]:
    """Return a list of objects of a file, such as its images; none is an empty one unless it is `required`."""
    values = content.get(key)
    if values is None and not required:
        return []
    if values is None and key not in content:
        there = f"there is: {shorten(content)}" if content else "the object is empty"
        raise AnnotationFileError(file, "", f"expected the key '{key}' of the COCO format; {there}.")
    if not isinstance(values, list):
        raise AnnotationFileError(file, key, f"expected a list, not {describe(values)}.")
    if set(map(type, values)) - {dict}:
        index, wrong = next((i, v) for i, v in enumerate(values) if not isinstance(v, dict))
        raise AnnotationFileError(file, f"{key}[{index}]", f"expected an object, not {describe(wrong)}.")
    return values


def check_keys(entry: Mapping[str, Any], file: Any, where: str, *keys: str) -> None:
    """Check that an object of a file has these keys. `where` is for messages."""
    if not set(keys) <= entry.keys():
        needs = f"needs {', '.join(map(repr, keys[:-1]))} and {keys[-1]!r}" if keys[1:] else f"needs {keys[0]!r}"
        raise AnnotationFileError(file, where, f"{needs}; it has: {shorten(entry)}.")


def checked_id(value: Any, file: Any, where: str, key: str = "id") -> int | str:
    """Return an id: a string, or an integer of 64 bits (also where the file writes 3.0). `where` is for messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    raise AnnotationFileError(
        file, where, f"'{key}' must be a whole number (of 64 bits) or a string, not {describe(value)}."
    )


def checked_file_name(name: Any, file: Any, where: str, key: str = "file_name") -> str:
    """Return a name that a file may have. `where` is for messages."""
    if not isinstance(name, str) or not name:
        what = "empty" if name == "" else describe(name)
        raise AnnotationFileError(file, where, f"'{key}' must be a path, not {what}.")
    if "\0" in name or not name.isascii():
        try:
            if "\0" in os.fsdecode(os.fsencode(name)):
                raise ValueError("embedded null character")
        except ValueError as e:
            raise AnnotationFileError(file, where, f"'{key}' is {name!r}, which no file can be called: {e}.") from e
    return name


def checked_size(value: Any, file: Any, where: str, key: str, hint: str = "") -> int:
    """Return a height or a width in pixels: a positive integer (also where the file writes 640.0)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and 0 < value < 2**31:
        return value
    raise AnnotationFileError(
        file, where, f"'{key}' must be a positive whole number of pixels, not {describe(value)}.{hint}"
    )


def shorten(values: Iterable[Any], limit: int = 5) -> str:
    """Write the first few of many values."""
    values = list(values)
    text = ", ".join(describe(v) if isinstance(v, (dict, list)) else repr(v)[:120] for v in values[:limit])
    return text + (f" ... ({len(values)} in all)" if len(values) > limit else "")


def find_duplicates(values: Iterable[Any]) -> list[Any]:
    """Return the ids that occur more than once."""
    counts = Counter(value for value in values if not isinstance(value, (list, dict)))
    return [value for value, count in counts.items() if count > 1]


def is_polygon(coordinates: Any) -> bool:
    """Whether this is `[x1, y1, ..., xn, yn]` with at least three points."""
    return isinstance(coordinates, list) and len(coordinates) >= 6 and len(coordinates) % 2 == 0


_POLICY = contextvars.ContextVar("exif", default="apply")


@contextlib.contextmanager
def exif_policy(exif: str) -> Iterator[None]:
    """Have the sizes that annotations lack read from the images as `INPUT.EXIF` ("apply" or "ignore") says."""
    token = _POLICY.set(exif)
    try:
        yield
    finally:
        _POLICY.reset(token)


def current_exif() -> str:
    """Return what `exif_policy` has set."""
    return _POLICY.get()


def image_size_hw(path: str, exif: str | None = None) -> tuple[int, int]:
    """Read the size `(height, width)` of an image from its header; `exif` is by default that of `exif_policy`."""
    size_hw, orientation = stored_size_hw(path)
    return size_hw if orientation < 5 or (exif or current_exif()) == "ignore" else (size_hw[1], size_hw[0])


def stored_size_hw(path: str) -> tuple[tuple[int, int], int]:
    """Read the size `(height, width)` of an image as it is stored, and its EXIF orientation: 1 to 8, 1 for upright."""
    from PIL import Image

    if path.lower().endswith((".npy", ".npz")):
        return _array_size_hw(path), 1
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is a folder, a pipe or a device, not a file")
    with PathManager.open(path, "rb") as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
        width, height = image.size
        orientation = 1
        # Without the condition, getexif() would decode whole PNG files in search of it.
        if "exif" in image.info or image.format in ("TIFF", "MPO"):
            orientation = image.getexif().get(0x0112, 1)
        if orientation in (5, 6, 7, 8) and image.format == "TIFF":
            image.load()  # Pillow turns these itself; when it tells the new size depends on its version
            height, width = image.size
        return (height, width), orientation if orientation in range(1, 9) else 1


EXIF_CURES = {
    "apply": "The annotations were made without the turn that EXIF asks for: turn them (detectron2 data check FILE "
    '--fix cleaned.json), or set INPUT.EXIF (exif of the mapper) to "ignore" if that holds for all images.',
    "ignore": 'The annotations are of the upright image, while INPUT.EXIF is "ignore": set it to "apply".',
}
"""What to do if sizes are swapped because of EXIF, by `INPUT.EXIF`."""


def why_swapped(path: str, size_hw: tuple[int, int]) -> str:
    """Say why an image that was read with this size is annotated with height and width exchanged, and the cure."""
    try:
        stored_hw, orientation = stored_size_hw(path)
    except Exception:  # whatever it is, it is not an image that says otherwise
        stored_hw, orientation = size_hw[::-1], 6
    if orientation < 5:
        return "Height and width are swapped, and EXIF asks for no turn: exchange them if the boxes are of this image."
    return EXIF_CURES["ignore" if stored_hw == size_hw else "apply"]


def turn_upright(points_xy: np.ndarray, orientation: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Move points `(x, y)` of a stored picture of that size to where its EXIF orientation shows them."""
    # EXIF 2.32, section 4.6.4: the axes are exchanged first, then turned around
    x_y_limit = np.array(size_hw[::-1])
    if orientation >= 5:
        points_xy, x_y_limit = points_xy[:, ::-1], x_y_limit[::-1]
    return np.where([orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)], x_y_limit - points_xy, points_xy)


def _array_size_hw(path: str) -> tuple[int, int]:
    if path.startswith(SCHEME):
        arrays: Any = np.load(io.BytesIO(TarMember.parse(path).read()), allow_pickle=False)
    else:
        arrays = np.load(PathManager.get_local_path(path), mmap_mode="r", allow_pickle=False)
    if not path.lower().endswith(".npz"):
        height, width = arrays.shape[:2]
        return height, width
    with arrays:
        height, width = arrays[arrays.files[0]].shape[:2]
        return height, width
