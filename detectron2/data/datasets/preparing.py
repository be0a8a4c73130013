"""What the scripts in `datasets/` do to downloaded annotations: other labels, other categories, small subsets.

The first part changes what is in memory, the second reads and writes files, the third is the command line that the
scripts have in common.
"""

import argparse
import functools
import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from detectron2.data.datasets.builtin import dataset_root
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.formats.coco import write_content as write_json
from detectron2.data.formats.reading import check_keys, checked_objects, read_json, shorten
from detectron2.utils.file_io import atomic_write

__all__ = [
    "ade20k_labels",
    "cocofied",
    "convert_files",
    "read_content",
    "run_script",
    "script_parser",
    "separated_stuff_tasks",
    "stuff_labels",
    "subset",
    "write_ade20k_labels",
    "write_json",
    "write_stuff_labels",
]

# WordNet synsets of COCO's things in the order of its ids, without ".n.01" where it ends so. Cows are beef.n.01.
_SYNSETS = """
person bicycle car motorcycle airplane bus train truck boat traffic_light fireplug stop_sign parking_meter bench
bird cat dog horse sheep beef elephant bear zebra giraffe backpack umbrella bag.n.04 necktie bag.n.06 frisbee
ski snowboard ball.n.06 kite.n.03 baseball_bat baseball_glove skateboard surfboard tennis_racket bottle
wineglass cup fork knife spoon bowl.n.03 banana.n.02 apple sandwich orange broccoli carrot frank.n.02 pizza
doughnut.n.02 cake.n.03 chair sofa pot.n.04 bed dining_table toilet.n.02 television_receiver laptop mouse.n.04
remote_control computer_keyboard cellular_telephone microwave.n.02 oven toaster.n.02 sink electric_refrigerator
book clock vase scissors teddy hand_blower toothbrush
"""


def _id_of_synset() -> dict[str, int]:
    things = (c["id"] for c in COCO_CATEGORIES if c["isthing"])
    synsets = (word if ".n." in word else f"{word}.n.01" for word in _SYNSETS.split())
    return dict(zip(synsets, things, strict=True))


COCO_ID_OF_SYNSET = _id_of_synset()


_NO_LABEL = 255
_IDS = {"images": ["id"], "annotations": ["image_id"], "categories": ["id"]}

# Contents


@functools.cache
def _stuff_label_of_category() -> dict[int, int]:
    meta = _get_builtin_metadata("coco_panoptic_separated")
    things = dict.fromkeys(meta["thing_dataset_id_to_contiguous_id"], 0)
    return {**meta["stuff_dataset_id_to_contiguous_id"], **things}


def stuff_labels(panoptic_rgb: np.ndarray, category_of_segment: Mapping[int, int]) -> np.ndarray:
    """Return semantic labels for Panoptic FPN (Kirillov et al., arXiv:1901.02446) from COCO's panoptic annotation.

    Args:
        panoptic_rgb: uint8 `(H, W, 3)`; the segment of a pixel is `R + 256 * G + 65536 * B`.
        category_of_segment: COCO's category of each segment.

    Returns:
        uint8 `(H, W)`: 0 for all things, 1 to 53 for stuff, 255 where there is no segment.
    """
    if panoptic_rgb.ndim != 3 or panoptic_rgb.shape[2] != 3 or panoptic_rgb.dtype != np.uint8:
        raise ValueError(
            f"a panoptic PNG has three channels of 8 bits, this one has {panoptic_rgb.dtype} {panoptic_rgb.shape}"
        )
    label_of = _stuff_label_of_category()
    unknown = [c for c in category_of_segment.values() if c not in label_of]
    if unknown:
        raise ValueError(f"segments have the categories {shorten(unknown)}, which COCO's panoptic task does not have")
    segments = panoptic_rgb.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)
    labels = np.full(segments.shape, _NO_LABEL, dtype=np.uint8)
    for segment, category in category_of_segment.items():
        labels[segments == segment] = label_of[category]
    return labels


def cocofied(lvis: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of LVIS' annotations that are of COCO's categories, under COCO's ids.

    The categories of the content need their "synset". What LVIS says of a category ("frequency", ...) stays as it is.
    """
    coco_id_of = {
        c["id"]: COCO_ID_OF_SYNSET[c["synset"]] for c in lvis["categories"] if c.get("synset") in COCO_ID_OF_SYNSET
    }
    missing = COCO_ID_OF_SYNSET.keys() - {c.get("synset") for c in lvis["categories"]}
    if missing:
        raise ValueError(
            f"{len(missing)} of COCO's 80 categories have no category with their WordNet synset in this file: "
            f"{shorten(sorted(missing))}"
        )

    def image(record: Mapping[str, Any]) -> dict[str, Any]:
        lists = ("not_exhaustive_category_ids", "neg_category_ids")
        known = {key: [coco_id_of[i] for i in record[key] if i in coco_id_of] for key in lists if key in record}
        return {**record, **known}

    categories = [{**c, "id": coco_id_of[c["id"]]} for c in lvis["categories"] if c["id"] in coco_id_of]
    result = {
        **lvis,
        "images": [image(record) for record in lvis["images"]],
        "categories": sorted(categories, key=lambda c: c["id"]),
    }
    if any("category_id" not in a for a in lvis.get("annotations", ())):
        raise ValueError("an annotation has no 'category_id'")
    if "annotations" in lvis:
        result["annotations"] = [
            {**a, "category_id": coco_id_of[a["category_id"]]}
            for a in lvis["annotations"]
            if a["category_id"] in coco_id_of
        ]
    return result


def ade20k_labels(raw: np.ndarray) -> np.ndarray:
    """Return the labels from 0 on of the ADE20k scene parsing benchmark.

    `raw` is uint8 `(H, W)`, where 0 stands for "other" and classes count from 1; the result has 255 for "other".
    """
    if raw.ndim != 2 or raw.dtype != np.uint8:
        raise ValueError(f"an annotation is one channel of 8 bits, this one has {raw.dtype} {raw.shape}")
    if raw.size and raw.max() > 150:
        raise ValueError(
            f"it has the value {raw.max()}, while the classes are 1 to 150; annotations of the full ADE20k are others"
        )
    return raw - np.uint8(1)  # 0 becomes 255


def subset(content: Mapping[str, Any], size: int, *, seed: int | None = None) -> dict[str, Any]:
    """Return a file in one of the COCO formats with fewer images, and their annotations.

    The first `size` images by their ids are taken, or random ones if there is a `seed`.
    """
    ids = sorted(image["id"] for image in content["images"])
    chosen = set(ids[:size] if seed is None else random.Random(seed).sample(ids, min(size, len(ids))))
    result = {**content, "images": [image for image in content["images"] if image["id"] in chosen]}
    if "annotations" in content:
        result["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    return result


# Files


def read_content(path: str, *keys: str) -> dict[str, Any]:
    """Read an annotation file, which must have the `keys`, and ids in its lists; else it is a `ValueError`."""
    content = read_json(path)
    check_keys(content, path, "", *keys)
    for key, ids in _IDS.items():
        for index, entry in enumerate(checked_objects(content, key, path, required=key in content)):
            check_keys(entry, path, f"{key}[{index}]", *ids)
    return content


def separated_stuff_tasks(panoptic_json: str, png_dir: str, output_dir: str) -> list[tuple[Any, ...]]:
    """Return one task for `write_stuff_labels` for each image of a panoptic file with PNG files in `png_dir`.

    The semantic labels, which get the same names, go to `output_dir`.
    """
    annotations = read_content(panoptic_json, "annotations")["annotations"]
    for index, annotation in enumerate(annotations):
        check_keys(annotation, panoptic_json, f"annotations[{index}]", "file_name", "segments_info")
        for number, segment in enumerate(checked_objects(annotation, "segments_info", panoptic_json)):
            check_keys(segment, panoptic_json, f"annotations[{index}].segments_info[{number}]", "id", "category_id")
    if not os.path.isdir(png_dir):
        raise FileNotFoundError(
            f"there is no folder '{png_dir}' of the PNG files of '{panoptic_json}': they come in an archive of that "
            "name within COCO's archive of panoptic annotations"
        )
    return [
        (
            os.path.join(png_dir, a["file_name"]),
            os.path.join(output_dir, a["file_name"]),
            {segment["id"]: segment["category_id"] for segment in a["segments_info"]},
        )
        for a in annotations
    ]


def write_stuff_labels(task: tuple[str, str, Mapping[int, int]]) -> None:
    """Convert one panoptic PNG: `(path, where to write, category of each segment)`."""
    path, output, category_of_segment = task
    _convert_image(path, output, lambda pixels: stuff_labels(pixels, category_of_segment))


def write_ade20k_labels(task: tuple[str, str]) -> None:
    """Convert one annotation of ADE20k: `(path, where to write)`."""
    _convert_image(*task, ade20k_labels)


def _convert_image(path: str, output: str, convert: Callable[[np.ndarray], np.ndarray]) -> None:
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image)
    try:
        result = convert(pixels)
    except ValueError as e:
        raise ValueError(f"'{path}': {e}") from e
    with atomic_write(output) as f:
        Image.fromarray(result).save(f, format="PNG")


def convert_files(
    convert: Callable[[Any], None], tasks: Sequence[tuple[Any, ...]], title: str, options: argparse.Namespace
) -> None:
    """Call `convert` with each of the tasks, tuples whose second entry is the file that it writes.

    A progress bar shows the `title`; `options` are those of `script_parser`.
    """
    from tqdm import tqdm

    if options.skip_existing:
        tasks = [task for task in tasks if not os.path.exists(task[1])]
    with tqdm(total=len(tasks), desc=title, unit="file") as bar:
        if options.processes <= 1:
            for task in tasks:
                convert(task)
                bar.update()
            return
        with ProcessPoolExecutor(options.processes) as pool:
            try:
                for _ in pool.map(convert, tasks, chunksize=16):
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # else the other ten thousands would be done first
                raise


# Command line


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have, to add others to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", default=dataset_root(), help="folder of the data sets (default: $DETECTRON2_DATASETS or ./datasets)"
    )
    processes = min(8, os.cpu_count() or 1)
    parser.add_argument("--processes", type=int, default=processes, help=f"processes to use (default: {processes})")
    parser.add_argument("--skip-existing", action="store_true", help="keep files that are there already, do the rest")
    return parser


def run_script(
    main: Callable[[argparse.Namespace], Iterable[str]], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> None:
    """Run a script, whose `main` yields a line for the user at each step.

    A missing or malformed file ends it with one line and exit status 1.
    """
    options = parser.parse_args(argv)
    try:
        for line in main(options):
            sys.stdout.write(f"{line}\n")
    except (OSError, ValueError) as e:
        parser.exit(1, f"{parser.prog}: error: {e}\n")
