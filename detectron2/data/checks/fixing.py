"""Taking the mistakes out of annotations in COCO format."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectron2.data.checks.files import file_problems
from detectron2.data.checks.findings import evenly_spaced
from detectron2.data.checks.masks import polygon_areas
from detectron2.data.formats.annotated_images import AnnotatedImages, within_image
from detectron2.data.formats.coco import ids_by_text, read_content
from detectron2.data.formats.reading import (
    EXIF_CURES,
    AnnotationFileError,
    checked_id,
    image_size_hw,
    is_polygon,
    stored_size_hw,
    turn_upright,
)
from detectron2.data.formats.run_lengths import decode_mask, encode_mask, mask_area

__all__ = ["UNREAD", "fix"]

_LEAST_AREA = 1e-6
_NUMBER_KEYS = ("bbox", "segmentation", "keypoints", "num_keypoints", "area", "iscrowd", "ignore")

UNREAD = "lines, objects or files that cannot be read left out"
"""Of the changes: what the reader has reported as an error, so that it is not in the content."""


def fix(
    data: AnnotatedImages, *, check_files: bool = True, max_files: int | None = None, exif: str = "apply"
) -> dict[str, int]:
    """Repair what can be repaired without guessing, and take the rest out.

    The content of `data` is replaced by a cleaned one. Of more than `max_files` images, that many are looked at, evenly
    spaced. `exif` is `INPUT.EXIF`. Returns what was changed, and how often, in the order in which it was done.
    """
    changes: Counter[str] = Counter()
    changes[UNREAD] += sum(f.count for f in data.findings if f.level == "error")
    categories = _categories(data.content["categories"], changes)
    images, same = _images(data.content["images"], changes)
    by_text = ids_by_text(images, "file_name") | {str(i): i for i in same}
    by_id = {c["id"]: c for c in categories}
    annotations = _annotations(data.content["annotations"], same, by_text, by_id, changes)
    if check_files:
        images = _check_files(data, images, annotations, changes, max_files, exif)
    sizes_wh = {i["id"]: (i.get("width"), i.get("height")) for i in images}
    annotations = [a for a in annotations if a["image_id"] in sizes_wh]
    annotations = _clean_masks(annotations, changes)
    annotations = [a for a in annotations if _has_good_box(a, sizes_wh[a["image_id"]], changes)]
    annotations = _without_duplicates(annotations, changes)
    _clean_keypoints(annotations, changes)
    data.findings = []
    data.content = {**data.content, "images": images, "annotations": annotations, "categories": categories}
    _number_annotations(annotations, changes)
    unusable = set(read_content(data).unusable)
    changes["annotations with values that cannot be used taken out"] += len(unusable)
    annotations[:] = [a for n, a in enumerate(annotations) if n not in unusable]
    _add_areas(annotations, changes)
    return {what: count for what, count in changes.items() if count}


def _as_id(value: Any) -> int | str | None:
    """Return an id as the reader understands it; None if it is none."""
    try:
        return checked_id(value, "", "")
    except AnnotationFileError:
        return None


def _meant(value: Any, ids: Mapping[Any, Any], by_text: Mapping[str, Any], changes: Counter[str]) -> Any:
    """Return which of the ids is meant, be it as a number or as text; None if it is none of them."""
    if isinstance(value, bool) and value in ids:  # true is 1, as where the annotations are read
        changes["ids written as the images and categories have them"] += 1
        return int(value)
    found = _as_id(value)
    if found is None or found in ids:
        return found
    changes["ids written as the images and categories have them"] += str(found) in by_text
    return by_text.get(str(found))


def _as_numbers(value: Any) -> Any:
    """Return a value with numbers in place of texts that are numbers, also in lists."""
    if isinstance(value, list):
        return [_as_numbers(v) for v in value] if any(isinstance(v, (str, list)) for v in value) else value
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(value, str) and number.is_integer() else number


def _categories(categories: list[dict[str, Any]], changes: Counter[str]) -> list[dict[str, Any]]:
    kept: dict[Any, dict[str, Any]] = {}
    for category in categories:
        category_id = _as_id(category.get("id"))
        if category_id is None or category_id in kept:
            changes["categories without an id, or with that of an earlier one, taken out"] += 1
        else:
            kept[category_id] = {**category, "id": category_id}
            if not isinstance(category.get("name"), str):
                name = category.get("name")
                kept[category_id]["name"] = str(name) if type(name) in (int, float) else f"class_{category_id}"
                changes["categories without a name as text given one"] += 1
    return list(kept.values())


def _images(images: list[dict[str, Any]], changes: Counter[str]) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """Return the images, and for each id the id of the image that stands for the same file."""
    kept: dict[Any, dict[str, Any]] = {}
    by_file: dict[str, Any] = {}
    same: dict[Any, Any] = {}
    for image in images:
        image_id, file_name = _as_id(image.get("id")), image.get("file_name")
        if image_id is None or not isinstance(file_name, str):
            changes["images without id or file_name taken out"] += 1
        elif image_id in same:
            changes["images with the id of an earlier one taken out"] += 1
        elif file_name in by_file:
            same[image_id] = by_file[file_name]
            changes["images of the same file put together"] += 1
        else:
            same[image_id] = by_file[file_name] = image_id
            kept[image_id] = {**image, "id": image_id}
    for image in kept.values():
        sides = image.get("width"), image.get("height")
        if any(s is not None and (not isinstance(s, (int, float)) or s <= 0 or s != int(s)) for s in sides):
            changes["impossible image sizes taken out (they are read from the files)"] += 1
            del image["width"], image["height"]
    return list(kept.values()), same


def _annotations(
    annotations: list[dict[str, Any]],
    same: dict[Any, Any],
    images_by_text: dict[str, Any],
    categories: dict[Any, Any],
    changes: Counter[str],
) -> list[dict[str, Any]]:
    kept = []
    categories_by_text = ids_by_text(categories.values(), "name")
    for original in annotations:
        annotation = {k: _as_numbers(v) if k in _NUMBER_KEYS else v for k, v in original.items()}
        changes["annotations whose numbers were text given numbers"] += annotation != original
        image_id = _meant(annotation.get("image_id"), same, images_by_text, changes)
        category_id = _meant(annotation.get("category_id"), categories, categories_by_text, changes)
        if image_id not in same:
            changes["annotations of images that are not there taken out"] += 1
        elif category_id not in categories:
            changes["annotations of unknown categories taken out"] += 1
        else:
            fixed = {**annotation, "image_id": same[image_id], "category_id": category_id}
            if fixed.pop("ignore", 0):
                fixed["iscrowd"] = 1
                changes["annotations marked with 'ignore' marked with 'iscrowd'"] += 1
            kept.append(fixed)
    return kept


def _check_files(
    data: AnnotatedImages,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    changes: Counter[str],
    max_files: int | None,
    exif: str,
) -> list[dict[str, Any]]:
    records = [{**i, "file_name": data.path(i)} for i in images]
    problems = file_problems(records, evenly_spaced(len(records), max_files), exif=exif)
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    if any(kind == "exif" for kind, _ in problems.values()):
        if exif == "ignore":
            raise ValueError(EXIF_CURES[exif])
        problems = file_problems(records, range(len(records)))
        _turn_images(images, records, problems, of_image, changes)
    out = {n for n, (kind, _) in problems.items() if kind in ("missing", "unreadable")}
    changes["images that cannot be found or read taken out"] += len(out)
    for n in (n for n, (kind, _) in problems.items() if kind == "size"):
        height, width = image_size_hw(records[n]["file_name"], exif)
        if _says_size((width, height), images[n], of_image[images[n]["id"]]):
            images[n]["width"], images[n]["height"] = width, height
            changes["image sizes corrected"] += 1
        else:
            changes["image sizes left that differ from the file, as nothing tells whether the boxes do, too"] += 1
    return [i for n, i in enumerate(images) if n not in out]


def _says_size(size_wh: tuple[int, int], image: dict[str, Any], annotations: list[dict[str, Any]]) -> bool:
    """Whether the boxes fit into this size, but not into the one that is said: then only the latter is wrong."""
    boxes = [a["bbox"] for a in annotations if _is_xywh(a.get("bbox"))]
    reach = [max((b[k] + b[k + 2] for b in boxes), default=0) for k in (0, 1)]
    beyond = any(r > s + 1 for r, s in zip(reach, (image["width"], image["height"]), strict=True))
    return not annotations or (beyond and all(r <= s + 1 for r, s in zip(reach, size_wh, strict=True)))


def _is_xywh(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)


def _turn_images(
    images: list[dict[str, Any]],
    records: list[dict[str, Any]],
    problems: dict[int, tuple[str, str]],
    of_image: Mapping[Any, list[dict[str, Any]]],
    changes: Counter[str],
) -> None:
    """Turn the annotations of images whose sizes are those of before the turn of EXIF.

    They tell that EXIF was ignored, so it was also where the turn does not change the size, unless others contradict.
    """
    upright, unclear = [], []
    for n, image in enumerate(images):
        kind, _ = problems.get(n, ("", ""))
        if kind not in ("", "exif"):
            continue
        path, own = records[n]["file_name"], of_image[image["id"]]
        size_hw, orientation = stored_size_hw(path)
        if not kind and orientation > 1 and own:
            if orientation >= 5 and image.get("width") and size_hw[0] != size_hw[1]:
                upright.append(path)
                continue
            unclear.append(path)
        for annotation in own if orientation > 1 else ():
            try:
                _turn(annotation, orientation, size_hw, changes)
            except (TypeError, ValueError, LookupError, OverflowError):  # other things than numbers, or no mask
                annotation.update(bbox=None, segmentation=None)
        if kind:
            image["width"], image["height"] = size_hw
        changes["images whose annotations were turned as EXIF says"] += bool(kind or (orientation > 1 and own))
    if upright and unclear:
        raise ValueError(
            f"Some annotations are of images as EXIF turns them ('{upright[0]}'), others of the stored ones, and the "
            f"size of '{unclear[0]}' does not tell which: turn it upright, or take it out, before --fix."
        )


def _turn(annotation: dict[str, Any], orientation: int, size_hw: tuple[int, int], changes: Counter[str]) -> None:
    """Turn the geometry of one annotation of a stored image as its EXIF orientation says."""

    def turned(flat: Any, limit_hw: tuple[int, int] = size_hw) -> list[float]:
        return turn_upright(np.array(flat, dtype=np.float64).reshape(-1, 2), orientation, limit_hw).reshape(-1).tolist()

    box, keypoints = annotation.get("bbox"), annotation.get("keypoints")
    mask: Any = annotation.get("segmentation")
    if box and len(box) == 5:
        x, y, width, height, degrees = box
        angle = math.radians(degrees)
        x, y, tip_x, tip_y = turned([x, y, x + math.cos(angle), y - math.sin(angle)])
        annotation["bbox"] = [x, y, width, height, math.degrees(math.atan2(y - tip_y, tip_x - x))]
    elif box:
        x1, y1, x2, y2 = turned([box[0], box[1], box[0] + box[2], box[1] + box[3]])
        # a box without area stays one
        annotation["bbox"] = [
            min(x1, x2),
            min(y1, y2),
            *(abs(v) if min(box[2:]) > 0 else 0 for v in (x2 - x1, y2 - y1)),
        ]
    if isinstance(mask, dict) and mask:
        pixels = decode_mask(mask, size_hw)
        pixels = pixels.T if orientation >= 5 else pixels
        pixels = pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
        mask = encode_mask(pixels)
        annotation["segmentation"] = {**mask, "counts": mask["counts"].decode()}
    elif mask:
        annotation["segmentation"] = [turned(p) for p in _as_polygons(mask, changes)]  # pyright: ignore[reportArgumentType]
    if keypoints:  # which are indices of pixels; those that are not labelled are 0, 0, 0
        moved = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
        points = turned(moved[:, :2], (size_hw[0] - 1, size_hw[1] - 1))
        moved[:, :2] = np.where(moved[:, 2:] > 0, np.reshape(points, (-1, 2)), moved[:, :2])
        annotation["keypoints"] = moved.reshape(-1).tolist()


def _clean_masks(annotations: list[dict[str, Any]], changes: Counter[str]) -> list[dict[str, Any]]:
    polygons, owners = [], []
    had_none = set()
    for n, annotation in enumerate(annotations):
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            mask = _as_polygons(mask, changes)
            good = [p for p in mask if is_polygon(p) and all(isinstance(v, (int, float)) for v in p)]
            changes["polygons of less than three points or with other than numbers taken out"] += len(mask) - len(good)
            polygons += good
            owners += [n] * len(good)
            if not mask:
                had_none.add(n)
            annotation["segmentation"] = []
        elif mask is not None and not (isinstance(mask, dict) and {"size", "counts"} <= mask.keys()):
            changes["segmentations of unknown form taken out"] += 1
            del annotation["segmentation"]
    areas = polygon_areas(polygons)
    changes["polygons without area taken out"] += int((~(areas > _LEAST_AREA)).sum())
    for polygon, owner, area in zip(polygons, owners, areas.tolist(), strict=True):
        if area > _LEAST_AREA:
            annotations[owner]["segmentation"].append(polygon)
    kept = []
    for n, annotation in enumerate(annotations):
        if annotation.get("segmentation") == []:
            del annotation["segmentation"]
            if n not in had_none:  # the loader leaves them out, too
                changes["annotations without a usable polygon taken out"] += 1
                continue
        kept.append(annotation)
    return kept


def _as_polygons(mask: list[Any], changes: Counter[str]) -> list[Any]:
    """Return a list of polygons, also of a polygon alone and of polygons with pairs `[x, y]`."""
    if mask and all(isinstance(v, (int, float)) for v in mask):
        changes["polygons put into a list"] += 1
        return [mask]
    flat = []
    for polygon in mask:
        is_pairs = isinstance(polygon, list) and polygon and all(isinstance(v, list) and len(v) == 2 for v in polygon)
        changes["polygons with pairs of numbers written as one list"] += bool(is_pairs)
        flat.append([v for point in polygon for v in point] if is_pairs else polygon)
    return flat


def _has_good_box(annotation: dict[str, Any], size_wh: tuple[Any, Any], changes: Counter[str]) -> bool:
    """Correct the box if possible; return whether there is one."""
    box: Any = annotation.get("bbox")
    numbers = isinstance(box, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    if not numbers or len(box) not in (4, 5) or min(box[2:4]) <= 0:
        around = None if numbers and len(box) == 5 else _box_around(annotation.get("segmentation"))
        if around is None:
            changes["annotations without a usable box taken out"] += 1
            return False
        annotation["bbox"] = around
        changes["boxes taken from the masks"] += 1
    width, height = (math.inf if s is None else s for s in size_wh)
    inside = within_image(annotation, (width, height))
    if inside is None:
        changes["annotations outside their image taken out"] += 1
        return False
    changes["boxes clipped to their image"] += inside is not annotation
    annotation.update(inside)
    return True


def _box_around(mask: Any) -> list[float] | None:
    """Return the box `(x, y, width, height)` around polygons or run lengths; None if there are none."""
    if isinstance(mask, dict):
        try:
            y, x = np.nonzero(decode_mask(mask))
        except (ValueError, TypeError, LookupError):
            return None
        points = np.stack([np.append(x, x + 1), np.append(y, y + 1)], axis=1)  # both edges of the pixels
    else:
        points = np.concatenate([np.zeros(0), *(np.asarray(p, dtype=np.float64) for p in mask or ())]).reshape(-1, 2)
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _without_duplicates(annotations: list[dict[str, Any]], changes: Counter[str]) -> list[dict[str, Any]]:
    seen: set[Any] = set()
    kept = []
    for annotation in annotations:
        key = (annotation["image_id"], annotation["category_id"], annotation.get("iscrowd", 0), *annotation["bbox"])
        if key in seen:
            changes["annotations with box and category of an earlier one taken out"] += 1
        else:
            seen.add(key)
            kept.append(annotation)
    return kept


def _clean_keypoints(annotations: list[dict[str, Any]], changes: Counter[str]) -> None:
    for annotation in annotations:
        if not isinstance(annotation.get("keypoints"), (list, type(None))):
            changes["keypoints of unknown form taken out"] += 1
            del annotation["keypoints"]
    having = [a for a in annotations if a.get("keypoints")]
    for annotation in having:
        points = annotation["keypoints"]
        if all(isinstance(p, list) and len(p) == 3 for p in points):
            points = [v for point in points for v in point]
            changes["keypoints in lists of three written as one list"] += 1
        triples = [points[i : i + 3] for i in range(0, len(points), 3)]
        odd = [n for n, t in enumerate(triples) if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in t)]
        for n in odd if len(points) % 3 == 0 else ():
            triples[n] = [0, 0, 0]
            annotation.pop("num_keypoints", None)
            changes["keypoints of other than finite numbers marked as not labelled"] += 1
        annotation["keypoints"] = [v for triple in triples for v in triple]
    counts = Counter(len(a["keypoints"]) for a in having if len(a["keypoints"]) % 3 == 0)
    usual = counts.most_common(1)[0][0] if counts else 0
    for annotation in having:
        if len(annotation["keypoints"]) != usual:
            changes["keypoints of another number than usual taken out"] += 1
            annotation["keypoints"] = []
            annotation["num_keypoints"] = 0


def _number_annotations(annotations: list[dict[str, Any]], changes: Counter[str]) -> None:
    """Give each its own id, and what other programs ask for."""
    taken = {_as_id(a.get("id")) for a in annotations}
    following = max((i for i in taken if isinstance(i, int)), default=0) + 1
    seen: set[Any] = set()
    for annotation in annotations:
        known = annotation["id"] = _as_id(annotation.get("id"))
        if known is None or known in seen:
            annotation["id"] = following
            following += 1
            changes["annotations given an id of their own"] += 1
        seen.add(annotation["id"])
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
            changes["missing 'iscrowd' set to 0"] += 1


def _add_areas(annotations: list[dict[str, Any]], changes: Counter[str]) -> None:
    for annotation in annotations:
        if isinstance(annotation.get("area"), (int, float)):
            continue
        mask, box = annotation.get("segmentation"), annotation["bbox"]
        try:
            annotation["area"] = float(mask_area(mask) if mask else box[2] * box[3])
        except (ValueError, TypeError):  # run lengths of an image that cannot be read; that is an error by itself
            annotation["area"] = float(box[2] * box[3])
        changes["missing 'area' computed"] += 1
