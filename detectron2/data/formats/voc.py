"""The Pascal VOC format: read a folder, for training or with all its mistakes, and write one.

Boxes in the files count pixels from 1 and include the last one; ours are continuous and start at 0. So `x1 = xmin - 1`
and `y1 = ymin - 1`, while `(xmax, ymax)`, the end of the last pixel, stay.
"""

import math
import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.checks.findings import Case
from detectron2.data.formats.annotated_images import (
    IMAGE_SUFFIXES,
    UNWRITABLE,
    AnnotatedImages,
    fill_sizes,
    flat_names,
    place_images,
    read_images_hw,
    split_overlaps,
    upright_xywh,
)
from detectron2.data.formats.reading import AnnotationFileError, Meaning, Report, checked_file_name, checked_size
from detectron2.utils.file_io import PathManager

__all__ = [
    "VOC_MISTAKES",
    "listed_names",
    "read_voc",
    "read_voc_objects",
    "read_voc_records",
    "voc_classes",
    "write_voc",
]

_LARGEST = 1e7  # far more pixels than any image has
_FLAGS = ("truncated", "occluded", "difficult")
_EDGES = ("xmin", "ymin", "xmax", "ymax")

VOC_MISTAKES = {
    "voc-missing": Meaning(
        *("error", "listed image", "no annotation file"),
        "Names in a list have no folder and no ending. Correct the name, add the file, or take the name out.",
    ),
    "voc-xml": Meaning("error", "annotation file", "no well-formed XML of this format", "Repair it."),
    "voc-size": Meaning("error", "annotation file", "no usable <size>, and the image cannot be read", "Add it."),
    "voc-size-read": Meaning(
        "warning", "annotation file", "no usable <size>", "The size of the image is used; write it into the file."
    ),
    "voc-object": Meaning("error", "object", "no <name> or no usable <bndbox>", "Complete it or take it out."),
    "voc-class": Meaning("error", "object", "a class that was not named", "Add it to --classes, or correct it."),
    "voc-twice": Meaning("warning", "listed image", "the name of an earlier one", "It is used once; list it once."),
    "voc-filename": Meaning("note", "annotation file", "another <filename> than its own", "The own name is used."),
    "voc-unlisted": Meaning("note", "annotation file", "no place in any of the lists", "Such files are not used."),
}
"""What can be wrong with a folder in this format."""


def read_voc(root: str | os.PathLike[str], split: str = "", classes: list[str] | None = None) -> AnnotatedImages:
    """Read a folder with all its mistakes.

    Args:
        root: the folder, with `Annotations`, `ImageSets/Main` and `JPEGImages`.
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
    report = Report(VOC_MISTAKES)
    found = sorted(p.stem for p in folder.glob("ImageSets/Main/*.txt"))
    # Lists of single classes, like aeroplane_train.txt beside train.txt, are not splits.
    found = [name for name in found if not ("_" in name and name.rpartition("_")[2] in found)]
    lists = {name: listed_names(root, name, report) for name in ([split] if split else found)}
    annotated = sorted(p.stem for p in folder.glob("Annotations/*.xml"))
    stems = list(dict.fromkeys(n for names in lists.values() for n in names)) if lists else annotated
    for stem in sorted(set(annotated) - set(stems)) if not split else ():
        report("voc-unlisted", ValueError(stem), Case("", f"{stem}.xml"))
    records = _read(root, stems, classes, report)
    ids = {r["image_id"]: n for n, r in enumerate(records, start=1)}
    splits = {name: [ids[n] for n in names if n in ids] for name, names in lists.items()}
    content = _as_coco(records, classes)
    data = AnnotatedImages(os.fspath(root), "voc", content, str(folder / "JPEGImages"), splits)
    data.splits = splits or {"train": list(ids.values())}
    data.findings = report.findings + split_overlaps(lists)
    return data


def voc_classes(root: str | os.PathLike[str]) -> list[str]:
    """Return the sorted class names in all annotations of a folder; those of one split may lack some.

    A `ValueError` if there are none.
    """
    stems = sorted(p.stem for p in Path(root).glob("Annotations/*.xml"))
    names = {o["name"] for record in _read(root, stems, None, Report(VOC_MISTAKES)) for o in record["objects"]}
    if not names:
        raise ValueError(f"No annotated objects under {root}/Annotations; name the classes with --classes.")
    return sorted(names)


def read_voc_records(
    root: str | os.PathLike[str], split: str, classes: Sequence[str], report: Report
) -> list[dict[str, Any]]:
    """Read the images of one list.

    Returns for each image `file_name, image_id, height, width` (the size may be missing unless `report` is strict), and
    "objects": each with "name", "bbox" `(x1, y1, x2, y2)`, and flags and "pose" where the file has them.
    """
    return _read(root, listed_names(root, split, report), classes, report)


def listed_names(root: str | os.PathLike[str], split: str, report: Report) -> list[str]:
    """Return the names in a list of images of a folder, each once; mistakes in it go to `report`."""
    path = os.path.join(root, "ImageSets", "Main", f"{split}.txt")
    try:
        with open(PathManager.get_local_path(path), encoding="utf-8-sig") as f:
            names = [_listed_name(root, line.rstrip("\n")) for line in f if line.strip()]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no list of images '{path}'. A data set in Pascal VOC format has the folders Annotations, "
            f"ImageSets/Main and JPEGImages below '{os.fspath(root)}'."
        ) from None
    except UnicodeDecodeError as e:
        raise AnnotationFileError(path, "", f"this is not text in UTF-8: {e}") from e
    seen: dict[str, None] = {}
    for line, name in enumerate(names, start=1):
        where = f"image {line}"
        if name in seen:
            report("voc-twice", AnnotationFileError(path, where, f"'{name}' is there already"), Case(f"'{name}'", path))
        seen[checked_file_name(name, path, where, "the name of the image")] = None
    return list(seen)


def _listed_name(root: str | os.PathLike[str], line: str) -> str:
    """Return the name, which may have blanks; a line may carry a second column, as the lists of single classes do."""
    name, *flag = line.rsplit(maxsplit=1)
    if line == name or PathManager.isfile(os.path.join(root, "Annotations", line + ".xml")):
        return line
    line = line.strip()
    whole = not flag or PathManager.isfile(os.path.join(root, "Annotations", line + ".xml"))
    return line if whole or flag[0] not in ("-1", "0", "1") else name.strip()


def _read(
    root: str | os.PathLike[str], stems: Iterable[str], classes: Sequence[str] | None, report: Report
) -> list[dict[str, Any]]:
    annotations = PathManager.get_local_path(os.path.join(root, "Annotations"))
    images = os.path.join(root, "JPEGImages")
    files = set(os.listdir(images)) if os.path.isdir(images) else set()
    by_stem = {os.path.splitext(f)[0]: f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES)}
    known = None if classes is None else set(classes)
    records: list[dict[str, Any]] = []
    unsized: list[tuple[dict[str, Any], str, str]] = []
    for stem in stems:
        path = os.path.join(annotations, stem + ".xml")
        try:
            tree = _parse(path)
        except FileNotFoundError:
            mistake = FileNotFoundError(f"There is no annotation file '{path}' for image '{stem}'.")
            report("voc-missing", mistake, Case("", path))
            continue
        except AnnotationFileError as e:
            report("voc-xml", e, Case(f"({e.what.partition(': ')[2]})", path))
            continue
        # The file may name an image of another type; a name that has nothing to do with its own is not to be trusted.
        named = os.path.basename(tree.findtext("filename") or "").strip()
        own = os.path.splitext(named)[0] == stem
        if named and not own:
            mistake = AnnotationFileError(path, "<filename>", f"says '{named}'")
            report("voc-filename", mistake, Case(f"says '{named}'", path))
        if not own or not os.path.splitext(named)[1] or (named not in files and stem in by_stem):
            named = by_stem.get(stem, stem + ".jpg")
        record: dict[str, Any] = {"file_name": os.path.join(images, named), "image_id": stem}
        try:
            for key in ("height", "width"):
                record[key] = checked_size(_number(tree, f"size/{key}", path), path, "<size>", key)
        except AnnotationFileError as e:
            unsized.append((record, path, e.what))
        elements = enumerate(tree.iterfind("object"), start=1)
        objects = (_object(element, path, number, known, report) for number, element in elements)
        record["objects"] = [o for o in objects if o is not None]
        records.append(record)
    for (record, path, why), size in zip(unsized, read_images_hw(r["file_name"] for r, _, _ in unsized), strict=True):
        if isinstance(size, Exception):
            what = f"{why} The size cannot be read from the image '{record['file_name']}' either: {size}"
            report("voc-size", AnnotationFileError(path, "<size>", what), Case(f"({what})", path))
        else:
            record["height"], record["width"] = size
            report("voc-size-read", AnnotationFileError(path, "<size>", why), Case(f"({why})", path))
    return records


def read_voc_objects(path: str) -> list[dict[str, Any]]:
    """Read the objects of one annotation file, as in `read_voc_records`; the first mistake is raised."""
    report = Report(VOC_MISTAKES, strict=True)
    objects = (_object(e, path, n, None, report) for n, e in enumerate(_parse(path).iterfind("object"), start=1))
    return [o for o in objects if o is not None]


def _parse(path: str) -> ET.Element:
    """Return <annotation>, without namespaces; an `AnnotationFileError` also where objects would be overlooked."""
    try:
        return _checked_tree(ET.parse(path).getroot())
    except (ET.ParseError, ValueError, LookupError) as e:  # the last two: encodings that the parser does not know
        raise AnnotationFileError(path, "", f"this is not well-formed XML of this format: {e}") from e


def _checked_tree(tree: ET.Element) -> ET.Element:
    if tree.tag.startswith("{"):
        for element in tree.iter():
            element.tag = element.tag.rpartition("}")[2]
    if tree.tag != "annotation" and not any(tree.find(tag) is not None for tag in ("size", "object")):
        raise ValueError(f"the outermost element is <{tree.tag}>, not <annotation>")
    if tree.find("object") is None:
        odd = next((e.tag for e in tree.iter() if isinstance(e.tag, str) and e.tag.lower() == "object"), None)
        if odd is not None:
            raise ValueError(f"<{odd}> is not an <object> that is directly in <annotation>")
    return tree


def _object(
    element: ET.Element, path: str, number: int, known: set[str] | None, report: Report
) -> dict[str, Any] | None:
    """Read one object; None if it cannot be used."""
    where = f"object {number}"
    try:
        name = _text(element, "name", path, where)
        box = element.find("bndbox")
        if box is None:
            raise AnnotationFileError(path, where, "there is no <bndbox>.")
        x1, y1, x2, y2 = (_number(box, key, path, where) for key in _EDGES)
    except AnnotationFileError as e:
        report("voc-object", e, Case(e.what.rstrip("."), path, None, number))
        return None
    if known is not None and name not in known:
        what = (
            f"it is an object of class '{name}', which is not among the class names {sorted(known)}. Add it to the "
            "class names, or take the object out."
        )
        report("voc-class", AnnotationFileError(path, where, what), Case(f"'{name}'", path, None, number))
        return None
    found: dict[str, Any] = {"name": name, "bbox": [x1 - 1.0, y1 - 1.0, x2, y2]}
    for flag in _FLAGS:
        text = (element.findtext(flag) or "").strip()
        if text:
            found[flag] = int(text.lower() not in ("0", "false", "no", "unspecified"))
    pose = (element.findtext("pose") or "").strip()
    return {**found, "pose": pose} if pose not in ("", "Unspecified") else found


def _text(element: ET.Element, tag: str, path: str, where: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise AnnotationFileError(path, where, f"there is no <{tag}> in <{element.tag}>, or it is empty.")
    return text


def _number(element: ET.Element, tag: str, path: str, where: str = "") -> float:
    text = _text(element, tag, path, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < _LARGEST:
        what = f"<{tag}> in <{element.tag}> must be a number of pixels, not '{text[:80]}'."
        raise AnnotationFileError(path, where, what)
    return number


def _as_coco(records: list[dict[str, Any]], classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the content of a COCO file; images and categories are numbered from 1."""
    if classes is None:
        classes = sorted({o["name"] for r in records for o in r["objects"]})
    labels = {name: n for n, name in enumerate(classes, start=1)}
    images, annotations = [], []
    for image_id, record in enumerate(records, start=1):
        size = {key: record[key] for key in ("width", "height") if {"width", "height"} <= record.keys()}
        images.append({"id": image_id, "file_name": os.path.basename(record["file_name"]), **size})
        for found in record["objects"]:
            x1, y1, x2, y2 = found["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": labels[found["name"]],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    **{k: v for k, v in found.items() if k != "name"},
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    categories = [{"id": i, "name": name} for name, i in labels.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


# Writing


def write_voc(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write `Annotations`, `ImageSets/Main` and `JPEGImages` into an empty folder.

    `images` is a mode of `place_images`. Returns what the format cannot express, and how often.
    """
    fill_sizes(data)
    lost: Counter[str] = Counter()
    categories = {c["id"]: c["name"] for c in data.content["categories"]}
    if empty := [i for i, name in categories.items() if not name.strip()]:
        raise ValueError(
            f"{data.source}: the categories with the ids {empty} have no name, without which an object of the VOC "
            "format cannot be read. Give each a 'name' of its own."
        )
    if odd := [repr(name) for name in categories.values() if UNWRITABLE.search(name)]:
        raise ValueError(f"{data.source}: no XML can hold the names of the categories {', '.join(odd)}; rename them.")
    entries = data.content["images"]
    names = flat_names(i["file_name"] for i in entries)
    sizes_wh = {i["id"]: (i["width"], i["height"]) for i in entries}
    objects = defaultdict(list)
    for annotation in data.content["annotations"]:
        if annotation.get("iscrowd", 0):
            lost["crowd regions"] += 1
            continue
        lost["angles of boxes"] += len(annotation["bbox"]) == 5
        lost["masks"] += bool(annotation.get("segmentation"))
        lost["sets of keypoints"] += bool(annotation.get("keypoints"))
        box = upright_xywh(annotation["bbox"], sizes_wh[annotation["image_id"]])
        objects[annotation["image_id"]].append(_object_element(annotation, box, categories[annotation["category_id"]]))
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
    size = _element("size", width=image["width"], height=image["height"], depth=3)
    root = _element("annotation", folder="JPEGImages", filename=name)
    root.extend([size, *_element("annotation", segmented=0), *objects])
    return root


def _object_element(annotation: dict[str, Any], box_xywh: list[float], name: str) -> ET.Element:
    flags = {f: int(annotation.get(f, 0)) for f in _FLAGS if f in annotation or f != "occluded"}
    element = _element("object", name=name, pose=annotation.get("pose", "Unspecified"), **flags)
    x, y, w, h = box_xywh
    edges = zip(_EDGES, (x + 1, y + 1, x + w, y + h), strict=True)
    element.append(_element("bndbox", **{key: f"{value:.2f}".rstrip("0").rstrip(".") for key, value in edges}))
    return element


def _element(tag: str, **children: Any) -> ET.Element:
    """Return an element with children that hold text."""
    element = ET.Element(tag)
    for child, text in children.items():
        ET.SubElement(element, child).text = str(text)
    return element
