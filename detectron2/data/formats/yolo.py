"""The YOLO format: read a folder with all its mistakes, and write one.

Each line of `labels/**/NAME.txt` is an object of `images/**/NAME.jpg`: its class, then `(centre x, centre y,
width, height)` of its box, or its outline `x1 y1 x2 y2 x3 y3 ...`; all numbers are shares of the image's width and
height. `data.yaml` names the classes and the folders of the splits.
"""

import codecs
import contextlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detectron2.data.checks.findings import Case
from detectron2.data.checks.masks import polygon_areas
from detectron2.data.formats.annotated_images import (
    IMAGE_SUFFIXES,
    AnnotatedImages,
    fill_sizes,
    flat_names,
    place_images,
    read_images_hw,
    split_overlaps,
    upright_xywh,
)
from detectron2.data.formats.reading import Meaning, Report, shorten
from detectron2.data.formats.run_lengths import decode_mask
from detectron2.data.transforms.transform import clip_polygon
from detectron2.structures import polygons_to_bitmask

__all__ = ["read_yolo", "write_yolo"]

_SPLITS = ("train", "val", "test")
_LARGEST = 1e7
_MOST_CLASSES = 1 << 20
_MOST_ENTRIES = 2_000_000  # of a folder
_MOST_WITHOUT_IMAGES = 200_000  # of them, as in a folder of the system
_MOST_BYTES = 1 << 28  # of a list of files
_SLACK = 1e-3  # rounding of others
_LEAST_SIDE = 1e-3  # of an outline, in pixels


def read_yolo(path: str | os.PathLike[str], split: str = "", classes: list[str] | None = None) -> AnnotatedImages:
    """Read `data.yaml`, the labels, and the sizes of the images.

    Args:
        path: `data.yaml` or the folder that has it; without one, classes are named by their numbers.
        split: "train", "val" or "test"; "" for all.
        classes: class names in order; None for those of `data.yaml`.

    Returns:
        what it holds.

    Raises:
        FileNotFoundError: there is no such split, or no folder of images.
        ValueError: `data.yaml` is malformed.
    """
    source = Path(path)
    folder = source if source.is_dir() else source.parent
    file = source if source.is_file() else next(iter(sorted(folder.glob("data.y*ml"))), None)
    settings, said = _settings(file), file.name if file else "data.yaml"
    if "path" in settings and (folder / str(settings["path"])).is_dir():
        folder = folder / str(settings["path"])
    files = {name: list(_image_files(folder, settings.get(name), said)) for name in _SPLITS if settings.get(name)}
    if not files:
        files = _splits_by_folder(folder)
    if split and split not in files:
        raise FileNotFoundError(f"'{path}' has no split '{split}'; it has: {', '.join(files) or 'none'}.")
    files = {name: paths for name, paths in files.items() if not split or name == split}
    names = list(classes) if classes is not None else _class_names(settings, folder, said)
    report = Report(_MISTAKES)
    paths = list(dict.fromkeys(p for group in files.values() for p in group))
    data = AnnotatedImages(str(path), "yolo", _read_images(paths, folder, names, report), str(folder))
    ids = {p: n for n, p in enumerate(paths, start=1)}
    data.splits = {name: [ids[p] for p in group] for name, group in files.items()}
    data.findings = report.findings + split_overlaps({name: [str(p) for p in group] for name, group in files.items()})
    return data


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as e:
        raise ValueError(f"'{path}' is not YAML: {str(e)[:200]}") from e
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' should have 'names', 'train', 'val'; it is a {type(settings).__name__}.")
    if settings.get("kpt_shape"):
        raise ValueError(f"'{path}' is a data set of keypoints ('kpt_shape'), which cannot be read from this format.")
    return settings


def _class_names(settings: dict[str, Any], folder: Path, said: str) -> list[str] | None:
    """Return the names in the order of the classes; None if there are none."""
    names = settings.get("names")
    if names is None and (folder / "classes.txt").is_file():
        lines = [line.strip() for line in _text(folder / "classes.txt").strip().splitlines()]
        if "" in lines:
            raise ValueError(f"'{folder / 'classes.txt'}': line {lines.index('') + 1} is empty; name a class on each.")
        return lines
    if isinstance(names, dict):
        if not all(str(k).isdigit() and int(k) < _MOST_CLASSES for k in names):
            raise ValueError(f"{said}: the keys of 'names' must be classes from 0 on, not {shorten(names)}.")
        by_class = {int(k): v for k, v in names.items()}
        names = [by_class.get(i, f"class_{i}") for i in range(max(by_class, default=-1) + 1)]
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(n, (str, int)) and not isinstance(n, bool) for n in names):
        hint = ""
        if isinstance(names, list) and any(isinstance(n, bool) for n in names):
            hint = " YAML reads no, yes, off, on as false and true: put them in quotes."
        raise ValueError(f"{said}: 'names' must be a list of class names, not {str(names)[:80]!r}.{hint}")
    if settings.get("nc") is not None and str(settings["nc"]) != str(len(names)):
        raise ValueError(
            f"{said}: 'nc' is {str(settings['nc'])[:40]!r}, but 'names' has {len(names)}: make them agree."
        )
    return [str(n) for n in names]


def _image_files(folder: Path, where: Any, said: str) -> Iterable[Path]:
    """Yield the images of one entry of the file `said`: folders or lists of files."""
    for entry in where if isinstance(where, list) else [where]:
        plain = str(entry).replace("\\", "/")
        # Exports of some tools write ../train/images for what lies beside data.yaml.
        place = next((p for p in (folder / plain, folder / plain.removeprefix("../")) if p.exists()), None)
        if not isinstance(entry, str) or not plain.strip():
            raise ValueError(f"{said}: folders of images must be paths, not {str(entry)[:80]!r}.")
        if place is None:
            raise FileNotFoundError(f"There is no '{folder / plain}', which {said} names.")
        if place.is_file():
            yield from (folder / line for line in _lines(place, said) if line)
        elif not place.is_dir():
            raise ValueError(f"{said}: '{plain}' is neither a folder nor a file, but a device or the like.")
        elif folder.resolve().is_relative_to(place.resolve()) and place.resolve() != folder.resolve():
            raise ValueError(
                f"{said}: '{plain}' is '{place.resolve()}', which has the data set in it; name a folder of images."
            )
        else:
            yield from _below(place)


def _splits_by_folder(folder: Path) -> dict[str, list[Path]]:
    """Return splits by `images/SPLIT` or `SPLIT/images`; else all of `images` as "train"."""
    for pattern in ("images/{}", "{}/images"):
        found = {s: list(_below(folder / pattern.format(s))) for s in _SPLITS if (folder / pattern.format(s)).is_dir()}
        if found:
            return found
    if not (folder / "images").is_dir():
        raise FileNotFoundError(f"There is neither data.yaml nor a folder 'images' in '{folder}'.")
    return {"train": list(_below(folder / "images"))}


def _lines(place: Path, said: str) -> list[str]:
    """Return the lines of a list of files that `said` names; a `ValueError` if it can be none."""
    size = place.stat().st_size  # 0 of files that the system makes up, some of which have no end
    try:
        text = place.read_text(encoding="utf-8") if 0 < size < _MOST_BYTES else ""
    except UnicodeDecodeError:
        size = _MOST_BYTES
    if size >= _MOST_BYTES:
        raise ValueError(f"{said}: '{place}' is not a list of files, one a line in UTF-8; name one, or a folder.")
    return [line.strip() for line in text.splitlines()]


def _below(folder: Path) -> list[Path]:
    """Return the images in a folder; a `ValueError` if it has too much to be a data set, or other things alone."""
    images: list[Path] = []
    waiting, count = [os.fspath(folder)], 0
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(place) as entries:  # one that may not be read, or has gone
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    images.append(Path(entry.path))
                count += 1
                if count > _MOST_ENTRIES or (count > _MOST_WITHOUT_IMAGES and not images):
                    raise ValueError(
                        f"'{folder}' has more than {count - 1} files and folders{'' if images else ', none an image'}; "
                        "name a folder of images alone."
                    )
    if count and not images:
        raise ValueError(f"'{folder}' has {count} files and folders, but no image ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(images)


def _text(path: Path) -> str:
    """Read a text in UTF-8, or as Windows saves it: with a byte order mark, or in UTF-16."""
    data = path.read_bytes()
    return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def _label_file(image: Path) -> Path:
    """Return where the labels of an image are: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _file_name(image: Path, folder: Path) -> str:
    """Return the path of an image from the folder on, with `/`; the whole one if it is on another drive of Windows."""
    try:
        return Path(os.path.relpath(image, folder)).as_posix()
    except ValueError:
        return image.absolute().as_posix()


def _read_images(paths: list[Path], folder: Path, classes: list[str] | None, report: Report) -> dict[str, Any]:
    """Return the content of a COCO file; images, annotations and categories are numbered from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[int] = set()
    boxes: list[list[float]] = []
    for path, size in zip(paths, read_images_hw(map(str, paths)), strict=True):
        image: dict[str, Any] = {"id": len(images) + 1, "file_name": _file_name(path, folder)}
        images.append(image)
        if isinstance(size, Exception):
            continue  # is reported where the content is looked at, as for the other formats
        image["height"], image["width"] = size
        labels = _label_file(path)
        if not labels.is_file():
            report("yolo-unlabelled", ValueError(), Case("", str(path)))
            continue
        try:
            lines = _text(labels).splitlines()
        except UnicodeDecodeError as e:
            report("yolo-text", e, Case(f"({e.reason} at byte {e.start})", str(labels)))
            continue
        for number, line in enumerate(lines, start=1):
            found = (
                _read_line(line, image, f"{labels}, line {number}", classes, used, boxes, report)
                if line.strip()
                else None
            )
            if found is not None:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **found})
    if other := _other_form(np.array(boxes).reshape(-1, 4)):
        report("yolo-corners", ValueError(other), Case(f"all {len(boxes)} would fit as {other}"))
    if classes is None:
        classes = [f"class_{i}" for i in range(max((a["category_id"] for a in annotations), default=0))]
    if used and min(used) == 1 and max(used) == len(classes):
        report("yolo-from-one", ValueError(f"classes 1 to {max(used)}, while data.yaml names 0 to {max(used) - 1}"))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_line(
    line: str,
    image: dict[str, Any],
    where: str,
    classes: list[str] | None,
    used: set[int],
    boxes: list[list[float]],
    report: Report,
) -> dict[str, Any] | None:
    """Read one object, add its class to those that are `used` and numbers to `boxes`; None if it cannot be used."""

    def mistake(kind: str, value: str) -> None:
        report(kind, ValueError(value), Case(value, where))

    try:
        label, *numbers = (float(v) for v in line.split())
    except ValueError:
        numbers, label = [], 0.5
    whole = all(abs(v) < _LARGEST for v in numbers) and label in range(1 << 20)  # neither is NaN
    if not whole or len(numbers) < 4 or len(numbers) % 2:
        return mistake("yolo-line", f"'{line[:60]}'")
    used.add(int(label))
    if classes is not None and label >= len(classes):
        return mistake("yolo-class", f"class {int(label)}")
    size_wh = np.array([image["width"], image["height"]], dtype=np.float64)
    shares = np.array(numbers).reshape(-1, 2)
    if len(shares) == 2:
        boxes.append(numbers)
        low, high = shares[0] - shares[1] / 2, shares[0] + shares[1] / 2
    else:
        low, high = shares.min(axis=0), shares.max(axis=0)
    if (low < -_SLACK).any() or (high > 1 + _SLACK).any():
        mistake("yolo-range", f"'{line[:60]}'")
    box_xywh = [*(low * size_wh).tolist(), *((high - low) * size_wh).tolist()]
    found: dict[str, Any] = {"category_id": int(label) + 1, "bbox": [round(v, 4) for v in box_xywh]}
    area = box_xywh[2] * box_xywh[3]
    if len(shares) > 2:
        points = shares * size_wh
        found["segmentation"] = [[round(v, 4) for v in points.reshape(-1).tolist()]]
        area = float(polygon_areas([points.reshape(-1)])[0])
    return {**found, "area": round(area, 4), "iscrowd": 0}


def _other_form(boxes: np.ndarray) -> str:
    """Say as what all boxes `(N, 4)` fit into the image, if many do not as centre and size, as is the format; or ""."""
    xy, wh = boxes[:, :2], boxes[:, 2:]
    over = ((xy - wh / 2 < -_SLACK) | (xy + wh / 2 > 1 + _SLACK)).any(axis=1)
    if len(boxes) < 2 or 4 * over.sum() < len(boxes) or (boxes < -_SLACK).any() or (boxes > 1 + _SLACK).any():
        return ""
    if (wh > xy).all():
        return "corners, x1 y1 x2 y2"
    return "the upper left corner, width and height" if (xy + wh <= 1 + _SLACK).all() else ""


_MISTAKES = {
    "yolo-line": Meaning(
        *("error", "line", "something other than a class and 4 numbers or the points of an outline"),
        "A line is 'class x y width height' or 'class x1 y1 x2 y2 x3 y3 ...', with blanks between, and has no score.",
    ),
    "yolo-text": Meaning("error", "label file", "no text in UTF-8", "Write it as text, a line for each object."),
    "yolo-from-one": Meaning(
        *("error", "data set", "classes that seem to count from 1"), "They count from 0: subtract 1 from each."
    ),
    "yolo-corners": Meaning(
        *("warning", "data set", "boxes of which many leave their image, as if they had another form"),
        "A line is 'class x y width height', where x and y are the centre: write all boxes so.",
    ),
    "yolo-class": Meaning(
        "error", "line", "a class that data.yaml does not name", "Add it to 'names', or correct the line."
    ),
    "yolo-range": Meaning(
        "warning",
        "line",
        "numbers outside 0 to 1, as if in pixels, of another image, or corners of boxes",
        "Correct it.",
    ),
    "yolo-unlabelled": Meaning("note", "image", "no file of labels", "It counts as an image without objects."),
}


# Writing


def write_yolo(data: AnnotatedImages, folder: Path, images: str) -> dict[str, int]:
    """Write `data.yaml`, `images/SPLIT` and `labels/SPLIT` into an empty folder.

    Each image is in one split: one that others make up, such as trainval, is not written. `images` is a mode of
    `place_images`. Returns what the format cannot express, and how often.
    """
    fill_sizes(data)
    lost: Counter[str] = Counter()
    categories = sorted(data.content["categories"], key=lambda c: c["id"])
    labels = {c["id"]: n for n, c in enumerate(categories)}
    entries = data.content["images"]
    sizes_hw = {i["id"]: (i["height"], i["width"]) for i in entries}
    names = dict(zip((i["id"] for i in entries), flat_names(i["file_name"] for i in entries), strict=True))
    lines = defaultdict(list)
    for annotation in data.content["annotations"]:
        if annotation.get("iscrowd", 0):
            lost["crowd regions"] += 1
            continue
        lost["sets of keypoints"] += bool(annotation.get("keypoints"))
        numbers = _numbers(annotation, sizes_hw[annotation["image_id"]], lost)
        label = labels[annotation["category_id"]]
        lines[annotation["image_id"]].append(f"{label} " + " ".join(f"{v:.8g}" for v in numbers) + "\n")
    paths = {i["id"]: data.path(i) for i in entries}
    splits = _disjoint(data.splits)
    for split, ids in splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        (folder / "images" / split).mkdir(parents=True)
        for i in ids:
            text = "".join(lines[i])
            (folder / "labels" / split / f"{os.path.splitext(names[i])[0]}.txt").write_text(text, encoding="utf-8")
        place_images(((paths[i], folder / "images" / split / names[i]) for i in ids), images)
    settings = {s: f"images/{s}" for s in splits}
    settings["names"] = {n: c["name"] for n, c in enumerate(categories)}  # type: ignore[assignment] - of another type
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return {k: v for k, v in lost.items() if v}


def _disjoint(splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the splits with every image in one only: the smaller ones first."""
    taken: set[Any] = set()
    result = {}
    for name in sorted(splits, key=lambda s: len(splits[s])):
        ids = [i for i in splits[name] if i not in taken]
        taken.update(ids)
        if ids or not splits[name]:
            result[name] = ids
    return {name: result[name] for name in splits if name in result}


def _numbers(annotation: dict[str, Any], size_hw: tuple[int, int], lost: Counter[str]) -> list[float]:
    """Return the outline of an object if it has one, else its box, as shares of the image."""
    size_wh = np.array([size_hw[1], size_hw[0]], dtype=np.float64)
    mask = annotation.get("segmentation")
    if mask:
        outline = _outline(mask, size_hw, lost)
        if outline is not None:
            return (outline / size_wh).reshape(-1).tolist()
        lost["masks without an outline (written as boxes)"] += 1
    lost["angles of boxes"] += len(annotation["bbox"]) == 5
    x, y, w, h = upright_xywh(annotation["bbox"], (size_hw[1], size_hw[0]))
    return (np.array([[x + w / 2, y + h / 2], [w, h]]) / size_wh).reshape(-1).tolist()


def _outline(mask: Any, size_hw: tuple[int, int], lost: Counter[str]) -> np.ndarray | None:
    """Return one outline `(P, 2)` whose inside, where lines that cross twice count as outside, is the mask."""
    rings = [] if isinstance(mask, dict) else [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in mask]
    outlined = bool(rings)
    # An outline has no shares beyond 0 and 1.
    is_inside = all(ring.min(initial=0) >= 0 and (ring <= size_hw[::-1]).all() for ring in rings)
    rings = rings if is_inside else [part for r in rings for part in clip_polygon(r, 0, 0, size_hw[1], size_hw[0])]
    # A box around an outline without width or height is one without area.
    rings = [ring for ring in rings if len(ring) >= 3 and np.ptp(ring, axis=0).min() > _LEAST_SIDE]
    if len(rings) == 1 or (outlined and not rings):
        return rings[0] if rings else None
    if rings:
        areas = polygon_areas([ring.reshape(-1) for ring in rings], signed=True)
        # one way round for all, so that areas add up
        joined = _joined([r if a >= 0 else r[::-1] for r, a in zip(rings, areas, strict=True)])
        pixels = polygons_to_bitmask([r.reshape(-1) for r in rings], *size_hw)
        if (polygons_to_bitmask([joined.reshape(-1)], *size_hw) == pixels).all():
            return joined
    else:
        pixels = decode_mask(mask, size_hw)
    outlines = _outlines(pixels)
    if not outlines:
        return None
    joined = _joined(outlines)
    lost["masks whose pixels changed at their edges"] += bool(
        (polygons_to_bitmask([joined.reshape(-1)], *size_hw) != pixels).any()
    )
    return joined


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """Return one outline around all parts, which are joined by lines that go there and back and so have no area."""
    outline = rings[0]
    for ring in rings[1:]:
        distances = ((outline[:, None] - ring[None]) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        outline = np.concatenate([outline[: i + 1], np.roll(ring, -j, axis=0), ring[j : j + 1], outline[i:]])
    return outline


def _outlines(pixels: np.ndarray) -> list[np.ndarray]:
    """Return outlines of a mask `(H, W)` around its pixels with the corners cut; those of holes run the other way."""
    import contourpy

    generator: Any = contourpy.contour_generator(
        z=np.pad(pixels, 1).astype(np.float64), fill_type=contourpy.FillType.OuterOffset
    )
    points, offsets = generator.filled(0.5, 1.5)
    # The padding moves indices by 1, and the centre of pixel i lies at i + 0.5.
    return [p[a : b - 1] - 0.5 for p, o in zip(points, offsets, strict=True) for a, b in itertools.pairwise(o)]
