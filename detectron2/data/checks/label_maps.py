"""Checks of label maps: the files of semantic segmentation (labels) and of panoptic segmentation (ids of segments).

All files are looked for; a sample of them is decoded, since that takes as long as reading the images themselves.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from detectron2.data.checks.files import file_findings
from detectron2.data.checks.findings import Finding, evenly_spaced, image_findings
from detectron2.data.detection_utils import read_image
from detectron2.data.formats.reading import image_size_hw
from detectron2.utils.file_io import PathManager

__all__ = ["label_map_findings", "number_of_categories", "segment_findings"]

_DECODED = 40
MUCH_IGNORED = 0.5  # a share of pixels


def label_map_findings(
    dicts: list[dict[str, Any]],
    max_files: int | None,
    *,
    num_labels: int | None = None,
    num_labels_key: str = "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    ignore_label: int = 255,
    decode: bool = True,
) -> list[Finding]:
    """Check the files that "sem_seg_file_name" and "pan_seg_file_name" name.

    Of more than `max_files` files of each, that many are looked for; a sample is decoded. `num_labels` None leaves the
    upper end of the labels unchecked.
    """
    findings = []
    for key in ("sem_seg_file_name", "pan_seg_file_name"):
        findings += file_findings(dicts, max_files, key)
    if not decode:
        return findings
    flaws: dict[int, str] = {}
    excess: dict[int, int] = {}
    pixels: Counter[int] = Counter()
    for n, path in _sample(dicts, "sem_seg_file_name"):
        try:
            labels = _read_labels(path)
            _compare_size(labels, dicts[n])
        except OSError:  # among the findings already
            continue
        except ValueError as e:
            flaws[n] = f"({e})"
            continue
        pixels.update(dict(zip(*map(np.ndarray.tolist, np.unique(labels, return_counts=True)), strict=True)))
        highest = int(labels[labels != ignore_label].max(initial=0))
        if num_labels is not None and highest >= num_labels:
            excess[n] = highest
    where: Any = {"noun": "label map", "key": "sem_seg_file_name"}
    cure = "A label map is a grey 8-bit image of the size of its image, whose pixel values are the labels."
    findings += image_findings(dicts, "label-map-kind", "error", flaws, "cannot be used", cure, verb="", **where)
    highest = max(excess.values(), default=0)
    shown = {n: f"(label {label})" for n, label in excess.items()}
    flaw = f"labels of {num_labels} or more, while {num_labels_key} is {num_labels}"
    cure = f"Set {num_labels_key} to {highest + 1}, or give such pixels the label to be ignored, {ignore_label}."
    findings += image_findings(dicts, "label-map-labels", "error", shown, flaw, cure, **where)
    is_whole = sum("sem_seg_file_name" in d for d in dicts) <= _DECODED  # of a sample rare labels may be absent
    absent = [label for label in range(num_labels or 0) if not pixels[label]] if is_whole and pixels else []
    ignored = pixels[ignore_label] / max(pixels.total(), 1)
    if absent or ignored > MUCH_IGNORED:
        what = f"in the label maps {100 * ignored:.0f}% of the pixels are {ignore_label}, which is ignored, and "
        what += f"{len(absent)} of {num_labels} labels never occur: {absent[:10]}" if absent else "the rest is labelled"
        cure = "If 255 stands for a class, as in black and white masks, give it the label of that class."
        findings.append(Finding("label-map-census", "warning", what, cure))
    return findings


def _sample(dicts: list[dict[str, Any]], key: str) -> Iterator[tuple[int, str]]:
    """Yield index and path of some images that have such a file, evenly spaced."""
    having = [n for n, d in enumerate(dicts) if isinstance(d.get(key), str)]
    for i in evenly_spaced(len(having), _DECODED):
        yield having[i], dicts[having[i]][key]


def _read_labels(path: str) -> np.ndarray:
    """Return the labels `(H, W)`, if the mapper, which takes the grey levels of any image, would get them too."""
    grey = read_image(path, "L")[:, :, 0]
    if path.lower().endswith((".npy", ".npz")):
        return grey
    with PathManager.open(path, "rb") as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
        mode, stored = image.mode, np.asarray(image)
    planes = stored[..., None] if stored.ndim == 2 else stored[..., : 1 if mode == "LA" else 3]
    if (planes == grey[..., None]).all():
        return grey
    what = {
        "P": "it has a palette, and the grey levels of its colours differ from its indices; save the indices: "
        "Image.fromarray(np.asarray(Image.open(file))).save(file)",
        "1": "it is black and white, which is read as the labels 0 and 255",
    }
    raise ValueError(
        what.get(mode, f"it is a colour picture (mode {mode}), whose grey levels would be taken for labels")
    )


def _compare_size(labels: np.ndarray, record: dict[str, Any]) -> None:
    """For data sets that do not tell the size of the images; else it is compared with the header."""
    if None not in (record.get("height"), record.get("width")) or not isinstance(record.get("file_name"), str):
        return
    size_hw = image_size_hw(record["file_name"])
    if labels.shape != size_hw:
        raise ValueError(
            f"it is {labels.shape[1]} x {labels.shape[0]} (width x height), its image {size_hw[1]} x {size_hw[0]}"
        )


def segment_findings(
    dicts: list[dict[str, Any]], num_categories: int | None, name_of_number: str, *, decode: bool = True
) -> list[Finding]:
    """Check "segments_info" of panoptic data sets, and a sample of the files against it.

    `num_categories` None leaves the upper end of the categories unchecked; `name_of_number` says where it comes from.
    """
    having = [n for n, d in enumerate(dicts) if "pan_seg_file_name" in d]
    without = {n: f"({repr(dicts[n].get('segments_info'))[:80]})" for n in having if not _is_segments(dicts[n])}
    if without:
        flaw = "'pan_seg_file_name', but no usable 'segments_info'"
        cure = "It is a list of a dict for each segment, with 'id' and 'category_id'."
        return image_findings(dicts, "segments", "error", without, flaw, cure, key="pan_seg_file_name")
    wrong = {}
    for n in having:
        for s in dicts[n]["segments_info"]:
            category = s["category_id"]
            if category < 0 or (num_categories is not None and category >= num_categories):
                wrong[n] = f"(segment id {s['id']} has category_id {category})"
                break
    limit = "" if num_categories is None else f" {num_categories} or more ({name_of_number}), or"
    flaw = f"segments with a category_id of{limit} less than 0"
    cure = "Categories are numbered from 0; ids of the data set have to be mapped."
    found = image_findings(dicts, "segment-category", "error", wrong, flaw, cure, key="pan_seg_file_name")
    void = {n: "" for n in having if any(s["id"] == 0 for s in dicts[n]["segments_info"])}
    flaw = "a segment with the id 0, which stands for pixels without a label"
    cure = "No prediction can match it: give it another id, in 'segments_info' and in its file."
    found += image_findings(dicts, "segment-void", "warning", void, flaw, cure, key="pan_seg_file_name")
    return found + (_compare_ids(dicts) if decode else [])


def number_of_categories(metadata: Any) -> tuple[int | None, str]:
    """Return how many categories segments may have, things and stuff alike, and where that is said."""
    names = {key: metadata.get(key) for key in ("stuff_classes", "thing_classes")}
    known = {key: len(value) for key, value in names.items() if value is not None}
    if not known:
        return None, ""
    key = max(known, key=known.__getitem__)
    return known[key], f"the number of {key} in the metadata"


def _is_segments(record: dict[str, Any]) -> bool:
    segments = record.get("segments_info")
    return isinstance(segments, (list, tuple)) and all(
        isinstance(s, dict) and all(isinstance(s.get(k), (int, np.integer)) for k in ("id", "category_id"))
        for s in segments
    )


def _compare_ids(dicts: list[dict[str, Any]]) -> list[Finding]:
    absent: dict[int, str] = {}
    unknown: dict[int, str] = {}
    unread: dict[int, str] = {}
    for n, path in _sample(dicts, "pan_seg_file_name"):
        try:
            rgb = read_image(path, "RGB").astype(np.int64)
        except OSError:  # among the findings already
            continue
        except ValueError as e:
            unread[n] = f"({e})"
            continue
        drawn = set(np.unique(rgb @ (1, 256, 256 * 256)).tolist())
        said = {int(s["id"]) for s in dicts[n]["segments_info"]}
        if said - drawn:
            absent[n] = f"(no pixel has the id {min(said - drawn)}; {len(said - drawn)} of {len(said)} are absent)"
        if drawn - said - {0}:
            unknown[n] = f"(pixels have the id {min(drawn - said - {0})})"
    flaw = "segments that its file does not show"
    cure = "The id of a pixel is R + 256 G + 65536 B; is the file a colour image of these ids?"
    key = "pan_seg_file_name"
    findings = image_findings(dicts, "segment-absent", "error", absent, flaw, cure, key=key)
    findings += image_findings(
        dicts, "segment-map-kind", "error", unread, "a file that is not a map of segments", cure, key=key
    )
    flaw = "pixels with an id other than 0 that 'segments_info' does not have"
    cure = "Such pixels count as unlabelled."
    return findings + image_findings(dicts, "segment-unknown", "warning", unknown, flaw, cure, key=key)
