"""The Pascal VOC format: read a folder with all its mistakes, and write one.

Boxes in the files count pixels from 1 and include the last one; those in the content are `(x, y, width, height)`,
continuous. So `x = xmin - 1` and `x + width = xmax`.
"""

import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from detectron2.data.checks.findings import Case, Finding, quantity
from detectron2.data.formats.annotated_images import (
    AnnotatedImages,
    fill_sizes,
    findings_of,
    flat_names,
    place_images,
    read_images_hw,
    split_overlaps,
    upright_xywh,
)

__all__ = ["read_voc", "write_voc"]

_LARGEST = 1e7  # far more pixels than any image has
_FLAGS = ("truncated", "occluded", "difficult")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: str | os.PathLike[str], split: str = "", classes: list[str] | None = None) -> AnnotatedImages:
    """Read `Annotations`, `ImageSets/Main` and the sizes that `JPEGImages` are said to have.

    Args:
        root: the folder.
        split: the list of images to read; "" for all that have annotations.
        classes: class names in order; None for all that occur, sorted.

    Returns:
        what it holds. Objects have "difficult", "truncated", "occluded" and "pose" where the files do.

    Raises:
        FileNotFoundError: there is no folder of annotations, or no such list.
    """
    folder = Path(root)
    if not (folder / "Annotations").is_dir():
        raise FileNotFoundError(f"There is no folder '{folder / 'Annotations'}'.")
    reader = _Reader(folder, classes)
    lists = {p.stem: _names(p) for p in sorted(folder.glob("ImageSets/Main/*.txt"))}
    if split and split not in lists:
        raise FileNotFoundError(f"There is no list '{folder / 'ImageSets' / 'Main' / (split + '.txt')}'.")
    # Lists of single classes, like aeroplane_train.txt, are not splits.
    lists = {k: v for k, v in lists.items() if k == split or (not split and "_" not in k)}
    annotated = sorted(p.stem for p in folder.glob("Annotations/*.xml"))
    stems = list(dict.fromkeys(n for names in lists.values() for n in names)) if split or lists else annotated
    reader.read(stems)
    if lists and not split:
        unlisted = [Case("", f"{n}.xml") for n in annotated if n not in set(stems)]
        reader.findings += findings_of(
            "voc-unlisted",
            "note",
            unlisted,
            lambda n: f"{quantity(n, 'annotation file', 'is')} in none of the lists",
            "They are not used.",
        )
    splits = {name: [reader.ids[n] for n in names if n in reader.ids] for name, names in lists.items()}
    reader.findings += split_overlaps({name: list(names) for name, names in lists.items()})
    data = AnnotatedImages(
        str(folder), "voc", reader.content(), str(folder / "JPEGImages"), splits or {"train": list(reader.ids.values())}
    )
    data.findings = reader.findings
    return data


def _names(path: Path) -> list[str]:
    # A line may carry a second column, as the lists of single classes do.
    return [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


class _Reader:
    """Reads the annotation files one by one."""

    def __init__(self, folder: Path, classes: list[str] | None) -> None:
        self.folder = folder
        self.classes = classes
        self.findings: list[Finding] = []
        self.images: list[dict[str, Any]] = []
        self.ids: dict[str, int] = {}
        self.objects: list[dict[str, Any]] = []
        self.cases: dict[str, list[Case]] = defaultdict(list)
        jpeg = folder / "JPEGImages"
        self.files = {p.stem: p.name for p in sorted(jpeg.iterdir())} if jpeg.is_dir() else {}

    def read(self, stems: list[str]) -> None:
        for stem in stems:
            path = self.folder / "Annotations" / f"{stem}.xml"
            try:
                self._image(stem, ET.parse(path).getroot())
            except FileNotFoundError:
                self.cases["voc-missing"].append(Case("", str(path)))
            except (ET.ParseError, ValueError, LookupError) as e:  # the last two: unknown encodings
                self.cases["voc-xml"].append(Case(f"({e})", str(path)))
        unknown = [i for i in self.images if "width" not in i]
        paths = [str(self.folder / "JPEGImages" / i["file_name"]) for i in unknown]
        for image, path, size in zip(unknown, paths, read_images_hw(paths), strict=True):
            if not isinstance(size, Exception):  # that is reported where the content is looked at
                image["height"], image["width"] = size
                self.cases["voc-size-read"].append(Case("", path))
        for kind, (level, noun, what, cure) in _MEANINGS.items():
            self.findings += findings_of(
                kind, level, self.cases[kind], lambda n, noun=noun, what=what: f"{quantity(n, noun)} {what}", cure
            )

    def _image(self, stem: str, root: ET.Element) -> None:
        named = os.path.basename(root.findtext("filename") or "").strip()
        if named and os.path.splitext(named)[0] != stem:
            self.cases["voc-filename"].append(Case(f"says '{named}'", f"{stem}.xml"))
        file_name = named if os.path.splitext(named)[0] == stem and os.path.splitext(named)[1] else ""
        if not file_name or (self.files and file_name != self.files.get(stem, file_name)):
            file_name = self.files.get(stem, f"{stem}.jpg")
        image: dict[str, Any] = {"id": len(self.images) + 1, "file_name": file_name}
        size = [_number(root.findtext(f"size/{key}")) for key in ("width", "height")]
        if all(size):
            image["width"], image["height"] = (int(v or 0) for v in size)
        self.images.append(image)
        self.ids[stem] = image["id"]
        for position, element in enumerate(root.iterfind("object")):
            self._object(stem, image["id"], position, element)

    def _object(self, stem: str, image_id: int, position: int, element: ET.Element) -> None:
        name = (element.findtext("name") or "").strip()
        box = [_number(element.findtext(f"bndbox/{key}")) for key in _EDGES]
        if not name or any(v is None for v in box):
            lacking = ["name"] * (not name) + [k for k, v in zip(_EDGES, box, strict=True) if v is None]
            self.cases["voc-object"].append(Case(f"no {', '.join(lacking)}", f"{stem}.xml", None, position))
            return
        if self.classes is not None and name not in self.classes:
            self.cases["voc-class"].append(Case(f"'{name}'", f"{stem}.xml", None, position))
            return
        x1, y1, x2, y2 = (float(v or 0) for v in box)
        found: dict[str, Any] = {"image_id": image_id, "name": name, "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]}
        for flag in _FLAGS:
            text = (element.findtext(flag) or "").strip()
            if text:
                found[flag] = int(text not in ("0", "False", "false"))
        if (element.findtext("pose") or "Unspecified").strip() != "Unspecified":
            found["pose"] = (element.findtext("pose") or "").strip()
        self.objects.append(found)

    def content(self) -> dict[str, Any]:
        classes = self.classes if self.classes is not None else sorted({o["name"] for o in self.objects})
        ids = {name: i for i, name in enumerate(classes, start=1)}
        annotations = []
        for n, found in enumerate(self.objects, start=1):
            width, height = found["bbox"][2:]
            rest = {k: v for k, v in found.items() if k not in ("image_id", "name")}
            label = ids[found["name"]]
            annotations.append(
                {
                    "id": n,
                    "image_id": found["image_id"],
                    "category_id": label,
                    "area": width * height,
                    "iscrowd": 0,
                    **rest,
                }
            )
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        return {"images": self.images, "annotations": annotations, "categories": categories}


_MEANINGS: Any = {
    "voc-missing": ("error", "listed image", "no annotation file", "Add it, or take the name out of the list."),
    "voc-xml": ("error", "annotation file", "no well-formed XML", "Repair it."),
    "voc-size-read": ("warning", "annotation file", "no usable <size>", "That of the image was used; add it."),
    "voc-object": ("error", "object", "no <name> or not all of <bndbox>", "Complete it or take it out."),
    "voc-class": ("error", "object", "a class that was not named", "Add it to --classes, or correct it."),
    "voc-filename": ("note", "annotation file", "another <filename> than its own", "The own name was used."),
}


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < _LARGEST else None  # NaN, too, is none


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_voc(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write `Annotations`, `ImageSets/Main` and `JPEGImages`.

    Args:
        data: what to write.
        folder: an empty folder.
        images: "copy", "link" or "none"; see `place_images`.

    Returns:
        what the format cannot express, and how often.
    """
    fill_sizes(data)
    lost: Counter[str] = Counter()
    categories = {c["id"]: c["name"] for c in data.content["categories"]}
    entries = data.content["images"]
    names = flat_names(i["file_name"] for i in entries)
    objects = defaultdict(list)
    for annotation in data.content["annotations"]:
        if annotation.get("iscrowd", 0):
            lost["crowd regions"] += 1
            continue
        lost["angles of boxes"] += len(annotation["bbox"]) == 5
        lost["masks"] += bool(annotation.get("segmentation"))
        lost["sets of keypoints"] += bool(annotation.get("keypoints"))
        objects[annotation["image_id"]].append(_object_element(annotation, categories[annotation["category_id"]]))
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    stems = {}
    for image, name in zip(entries, names, strict=True):
        stems[image["id"]] = os.path.splitext(name)[0]
        tree = ET.ElementTree(_annotation_element(image, name, objects[image["id"]]))
        ET.indent(tree, "\t")
        tree.write(folder / "Annotations" / f"{stems[image['id']]}.xml", encoding="utf-8")
    for split, ids in data.splits.items():
        lines = "".join(f"{stems[i]}\n" for i in ids)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    pairs = zip(entries, names, strict=True)
    place_images(((data.path(i), folder / "JPEGImages" / name) for i, name in pairs), images)
    return {k: v for k, v in lost.items() if v}


def _annotation_element(image: dict[str, Any], name: str, objects: list[ET.Element]) -> ET.Element:
    root = ET.Element("annotation")
    _child(root, "folder", "JPEGImages")
    _child(root, "filename", name)
    size = _child(root, "size")
    for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
        _child(size, key, str(value))
    _child(root, "segmented", "0")
    root.extend(objects)
    return root


def _object_element(annotation: dict[str, Any], name: str) -> ET.Element:
    element = ET.Element("object")
    _child(element, "name", name)
    _child(element, "pose", annotation.get("pose", "Unspecified"))
    for flag in _FLAGS:
        if flag in annotation or flag != "occluded":
            _child(element, flag, str(int(annotation.get(flag, 0))))
    x, y, w, h = upright_xywh(annotation["bbox"])
    box = _child(element, "bndbox")
    for key, value in zip(_EDGES, (x + 1, y + 1, x + w, y + h), strict=True):
        _child(box, key, f"{value:.2f}".rstrip("0").rstrip("."))
    return element


def _child(parent: ET.Element, tag: str, text: str | None = None) -> ET.Element:
    element = ET.SubElement(parent, tag)
    element.text = text
    return element
