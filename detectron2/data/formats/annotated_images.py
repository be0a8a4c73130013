"""Data sets as they lie on disk, in any of the known formats, with their mistakes.

Whatever the format, the content is that of a COCO annotation file: "images", "annotations", "categories".
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data.checks.findings import MAX_CASES, Case, Finding, quantity
from detectron2.data.formats.reading import current_exif, image_size_hw
from detectron2.data.tar_members import SCHEME, TarMember
from detectron2.structures import BoxMode

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "UNWRITABLE",
    "AnnotatedImages",
    "fill_sizes",
    "flat_names",
    "guess_format",
    "image_path",
    "place_images",
    "read_images_hw",
    "split_overlaps",
    "upright_xywh",
    "within_image",
    "write_folder_atomically",
]

FORMATS = ("coco", "voc", "yolo")
"""The formats that can be read and written."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings by which files of images are known."""

UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Characters that lines of text in UTF-8, or XML, cannot hold."""

_THREADS = 16
_ROUNDING = 1e-3  # pixels


@dataclass
class AnnotatedImages:
    """A data set that was read.

    Args:
        source: where from.
        format: one of `FORMATS`.
        content: as of a COCO annotation file.
        image_root: folder that the file names are relative to.
        splits: ids of images by the name of the split, such as "train".
        findings: mistakes that the reader found.
    """

    source: str
    format: str
    content: dict[str, Any]
    image_root: str
    splits: dict[str, list[Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def path(self, image: dict[str, Any]) -> str:
        """Return the file of one of `content["images"]`."""
        return image_path(self.image_root, image["file_name"])

    def select(self, split: str) -> "AnnotatedImages":
        """Return the part that belongs to one split."""
        if split not in self.splits:
            raise ValueError(f"'{self.source}' has no split '{split}'; it has: {', '.join(self.splits) or 'none'}.")
        ids = set(self.splits[split])
        content = {
            **self.content,
            "images": [i for i in self.content["images"] if i["id"] in ids],
            "annotations": [a for a in self.content["annotations"] if a["image_id"] in ids],
        }
        return AnnotatedImages(
            f"{self.source} ({split})",
            self.format,
            content,
            self.image_root,
            {split: self.splits[split]},
            self.findings,
        )


def guess_format(path: str | os.PathLike[str]) -> str:
    """Tell which of the `FORMATS` a file or folder has; a `ValueError` if it is not clear."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder '{path}' (working directory: '{os.getcwd()}').")
    if path.is_file() and path.suffix.lower() == ".json":
        return "coco"
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if (path / "Annotations").is_dir():
        return "voc"
    if any((path / name).exists() for name in ("data.yaml", "data.yml", "labels")) or any(path.glob("*/labels")):
        return "yolo"
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")]) if path.is_dir() else []
    hint = f" Is {' or '.join(repr(str(f)) for f in files[:3])} meant?" if files else ""
    raise ValueError(
        f"The format of '{path}' is not clear. COCO: a .json file; VOC: a folder with 'Annotations'; YOLO: data.yaml, "
        f"or a folder with 'images' and 'labels'.{hint}"
    )


def split_overlaps(splits: dict[str, list[Any]]) -> list[Finding]:
    """Find images that are in two splits, other than such as train and trainval."""
    findings = []
    names = list(splits)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            common = set(splits[a]) & set(splits[b])
            if common and a not in b and b not in a:
                cases = [Case("", None, image_id) for image_id in sorted(common, key=str)]
                what = f"{quantity(len(cases), 'image', 'is')} in both '{a}' and '{b}'"
                cure = "A test on images that were trained on tells nothing."
                findings.append(Finding("splits-overlap", "warning", what, cure, len(cases), cases[:MAX_CASES]))
    return findings


# Images


def image_path(root: str, name: str) -> str:
    """Return the file of an image; separators of Windows are understood everywhere."""
    path = os.path.join(root, name)
    if "\\" in name and os.sep != "\\" and not os.path.exists(path):
        path = os.path.join(root, name.replace("\\", "/"))
    return path


def read_images_hw(paths: Iterable[str]) -> list[tuple[int, int] | Exception]:
    """Read the sizes `(height, width)` of images from their headers, several at a time; or why that failed."""

    exif = current_exif()  # which the threads do not know

    def size(path: str) -> tuple[int, int] | Exception:
        try:
            return image_size_hw(path, exif)
        except Exception as e:  # Pillow raises many kinds; all are reported by the caller
            return e

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(size, paths))


def fill_sizes(data: AnnotatedImages) -> None:
    """Read the sizes of those images whose size is not known, and put them into the content."""
    unknown = [i for i in data.content["images"] if not i.get("width") or not i.get("height")]
    for image, size in zip(unknown, read_images_hw(data.path(i) for i in unknown), strict=True):
        if isinstance(size, Exception):
            raise ValueError(f"The size of '{data.path(image)}' is not known, and it cannot be read: {size}")
        image["height"], image["width"] = size


def flat_names(file_names: Iterable[str]) -> list[str]:
    """Return names without folders, all different whatever the extension and the case of letters.

    Characters that lists and XML cannot hold become `_`.
    """
    taken: set[str] = set()
    names = []
    for file_name in file_names:
        path = UNWRITABLE.sub("_", file_name.replace("\\", "/"))
        base = os.path.basename(path)
        if os.path.splitext(base)[0].casefold() in taken:
            base = path.replace("../", "").strip("/").replace("/", "_")
        stem, extension = os.path.splitext(base)
        candidate, n = stem, 2
        while candidate.casefold() in taken:
            candidate, n = f"{stem}_{n}", n + 1
        taken.add(candidate.casefold())
        names.append(candidate + extension)
    return names


def place_images(pairs: Iterable[tuple[str, Path]], mode: str) -> None:
    """Put images to other places: "copy", "link" (a copy where links are impossible, also to archives) or "none"."""
    if mode == "none":
        return
    for source, target in pairs:
        if source.startswith(SCHEME):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(TarMember.parse(source).read())
            continue
        if not os.path.isfile(source):
            raise FileNotFoundError(f"There is no image '{source}'. To leave the images where they are: --images none")
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "link":
            try:
                target.symlink_to(os.path.abspath(source))
                continue
            except OSError:  # some systems and file systems have no such links
                pass
        shutil.copy2(source, target)


def upright_xywh(box: list[float], size_wh: tuple[float, float] | None = None) -> list[float]:
    """Return `(x, y, width, height)` of a box of a COCO file; of a rotated one the upright box around it.

    What is outside an image of the size that is given is cut off.
    """
    x, y, width, height = box[:4]
    if len(box) == 5:
        x, y, x2, y2 = BoxMode.convert(list(map(float, box)), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        width, height = x2 - x, y2 - y
    if size_wh is None:
        return [x, y, width, height]
    x1, y1 = max(x, 0), max(y, 0)
    return [x1, y1, min(x + width, size_wh[0]) - x1, min(y + height, size_wh[1]) - y1]


def within_image(annotation: dict[str, Any], size_wh: tuple[float, float]) -> dict[str, Any] | None:
    """Return an annotation of a COCO file with its box clipped to the image; None if no area of it lies in the image.

    Masks and rotated boxes stay as they are, and so does what differs from the edge by rounding alone.
    """
    box = annotation["bbox"]
    around, (x, y, width, height) = upright_xywh(box), upright_xywh(box, size_wh)
    if not (min(width, height, *box[2:4]) > 0):  # also of NaN
        return None
    ends = zip((x, y, x + width, y + height), (*around[:2], around[0] + around[2], around[1] + around[3]), strict=True)
    if len(box) == 5 or max(abs(a - b) for a, b in ends) <= _ROUNDING:
        return annotation
    clipped = {**annotation, "bbox": [x, y, width, height]}
    return (
        clipped if annotation.get("segmentation") or "area" not in annotation else {**clipped, "area": width * height}
    )


@contextlib.contextmanager
def write_folder_atomically(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder under a temporary name, and give it its own when it is complete.

    The target must not exist, or be empty; else `FileExistsError`.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"'{target}' exists already; name another place, or remove it.")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    os.replace(temporary, target)
