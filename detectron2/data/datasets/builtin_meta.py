"""Names, ids and colours of the classes of the built-in data sets: COCO, its person keypoints, and Cityscapes.

`id` is the category's id in the data set's own files, `color` is `[R, G, B]` in [0, 255], `isthing` tells
countable things (1) from stuff (0). Colours and ids are those of the COCO panoptic task and of the Cityscapes labels.
"""

import json
from pathlib import Path
from typing import Any

__all__ = [
    "ADE20K_SEM_SEG_CATEGORIES",
    "CITYSCAPES_CATEGORIES",
    "COCO_CATEGORIES",
    "COCO_PERSON_KEYPOINT_FLIP_MAP",
    "COCO_PERSON_KEYPOINT_NAMES",
    "KEYPOINT_CONNECTION_RULES",
]

# The 150 classes of ADE20K scene parsing; the position in the list is the label. One name, "window ", ends with a space
# in the official list, and so in checkpoints and result files.
ADE20K_SEM_SEG_CATEGORIES: list[str] = json.loads(
    Path(__file__).with_name("ade20k_categories.json").read_text(encoding="utf-8")
)

# First the 80 things, then the 53 kinds of stuff of the panoptic task, each in the order of the ids.
COCO_CATEGORIES = [
    {"id": 1, "isthing": 1, "name": "person", "color": [220, 20, 60]},
    {"id": 2, "isthing": 1, "name": "bicycle", "color": [119, 11, 32]},
    {"id": 3, "isthing": 1, "name": "car", "color": [0, 0, 142]},
    {"id": 4, "isthing": 1, "name": "motorcycle", "color": [0, 0, 230]},
    {"id": 5, "isthing": 1, "name": "airplane", "color": [106, 0, 228]},
    {"id": 6, "isthing": 1, "name": "bus", "color": [0, 60, 100]},
    {"id": 7, "isthing": 1, "name": "train", "color": [0, 80, 100]},
    {"id": 8, "isthing": 1, "name": "truck", "color": [0, 0, 70]},
    {"id": 9, "isthing": 1, "name": "boat", "color": [0, 0, 192]},
    {"id": 10, "isthing": 1, "name": "traffic light", "color": [250, 170, 30]},
    {"id": 11, "isthing": 1, "name": "fire hydrant", "color": [100, 170, 30]},
    {"id": 13, "isthing": 1, "name": "stop sign", "color": [220, 220, 0]},
    {"id": 14, "isthing": 1, "name": "parking meter", "color": [175, 116, 175]},
    {"id": 15, "isthing": 1, "name": "bench", "color": [250, 0, 30]},
    {"id": 16, "isthing": 1, "name": "bird", "color": [165, 42, 42]},
    {"id": 17, "isthing": 1, "name": "cat", "color": [255, 77, 255]},
    {"id": 18, "isthing": 1, "name": "dog", "color": [0, 226, 252]},
    {"id": 19, "isthing": 1, "name": "horse", "color": [182, 182, 255]},
    {"id": 20, "isthing": 1, "name": "sheep", "color": [0, 82, 0]},
    {"id": 21, "isthing": 1, "name": "cow", "color": [120, 166, 157]},
    {"id": 22, "isthing": 1, "name": "elephant", "color": [110, 76, 0]},
    {"id": 23, "isthing": 1, "name": "bear", "color": [174, 57, 255]},
    {"id": 24, "isthing": 1, "name": "zebra", "color": [199, 100, 0]},
    {"id": 25, "isthing": 1, "name": "giraffe", "color": [72, 0, 118]},
    {"id": 27, "isthing": 1, "name": "backpack", "color": [255, 179, 240]},
    {"id": 28, "isthing": 1, "name": "umbrella", "color": [0, 125, 92]},
    {"id": 31, "isthing": 1, "name": "handbag", "color": [209, 0, 151]},
    {"id": 32, "isthing": 1, "name": "tie", "color": [188, 208, 182]},
    {"id": 33, "isthing": 1, "name": "suitcase", "color": [0, 220, 176]},
    {"id": 34, "isthing": 1, "name": "frisbee", "color": [255, 99, 164]},
    {"id": 35, "isthing": 1, "name": "skis", "color": [92, 0, 73]},
    {"id": 36, "isthing": 1, "name": "snowboard", "color": [133, 129, 255]},
    {"id": 37, "isthing": 1, "name": "sports ball", "color": [78, 180, 255]},
    {"id": 38, "isthing": 1, "name": "kite", "color": [0, 228, 0]},
    {"id": 39, "isthing": 1, "name": "baseball bat", "color": [174, 255, 243]},
    {"id": 40, "isthing": 1, "name": "baseball glove", "color": [45, 89, 255]},
    {"id": 41, "isthing": 1, "name": "skateboard", "color": [134, 134, 103]},
    {"id": 42, "isthing": 1, "name": "surfboard", "color": [145, 148, 174]},
    {"id": 43, "isthing": 1, "name": "tennis racket", "color": [255, 208, 186]},
    {"id": 44, "isthing": 1, "name": "bottle", "color": [197, 226, 255]},
    {"id": 46, "isthing": 1, "name": "wine glass", "color": [171, 134, 1]},
    {"id": 47, "isthing": 1, "name": "cup", "color": [109, 63, 54]},
    {"id": 48, "isthing": 1, "name": "fork", "color": [207, 138, 255]},
    {"id": 49, "isthing": 1, "name": "knife", "color": [151, 0, 95]},
    {"id": 50, "isthing": 1, "name": "spoon", "color": [9, 80, 61]},
    {"id": 51, "isthing": 1, "name": "bowl", "color": [84, 105, 51]},
    {"id": 52, "isthing": 1, "name": "banana", "color": [74, 65, 105]},
    {"id": 53, "isthing": 1, "name": "apple", "color": [166, 196, 102]},
    {"id": 54, "isthing": 1, "name": "sandwich", "color": [208, 195, 210]},
    {"id": 55, "isthing": 1, "name": "orange", "color": [255, 109, 65]},
    {"id": 56, "isthing": 1, "name": "broccoli", "color": [0, 143, 149]},
    {"id": 57, "isthing": 1, "name": "carrot", "color": [179, 0, 194]},
    {"id": 58, "isthing": 1, "name": "hot dog", "color": [209, 99, 106]},
    {"id": 59, "isthing": 1, "name": "pizza", "color": [5, 121, 0]},
    {"id": 60, "isthing": 1, "name": "donut", "color": [227, 255, 205]},
    {"id": 61, "isthing": 1, "name": "cake", "color": [147, 186, 208]},
    {"id": 62, "isthing": 1, "name": "chair", "color": [153, 69, 1]},
    {"id": 63, "isthing": 1, "name": "couch", "color": [3, 95, 161]},
    {"id": 64, "isthing": 1, "name": "potted plant", "color": [163, 255, 0]},
    {"id": 65, "isthing": 1, "name": "bed", "color": [119, 0, 170]},
    {"id": 67, "isthing": 1, "name": "dining table", "color": [0, 182, 199]},
    {"id": 70, "isthing": 1, "name": "toilet", "color": [0, 165, 120]},
    {"id": 72, "isthing": 1, "name": "tv", "color": [183, 130, 88]},
    {"id": 73, "isthing": 1, "name": "laptop", "color": [95, 32, 0]},
    {"id": 74, "isthing": 1, "name": "mouse", "color": [130, 114, 135]},
    {"id": 75, "isthing": 1, "name": "remote", "color": [110, 129, 133]},
    {"id": 76, "isthing": 1, "name": "keyboard", "color": [166, 74, 118]},
    {"id": 77, "isthing": 1, "name": "cell phone", "color": [219, 142, 185]},
    {"id": 78, "isthing": 1, "name": "microwave", "color": [79, 210, 114]},
    {"id": 79, "isthing": 1, "name": "oven", "color": [178, 90, 62]},
    {"id": 80, "isthing": 1, "name": "toaster", "color": [65, 70, 15]},
    {"id": 81, "isthing": 1, "name": "sink", "color": [127, 167, 115]},
    {"id": 82, "isthing": 1, "name": "refrigerator", "color": [59, 105, 106]},
    {"id": 84, "isthing": 1, "name": "book", "color": [142, 108, 45]},
    {"id": 85, "isthing": 1, "name": "clock", "color": [196, 172, 0]},
    {"id": 86, "isthing": 1, "name": "vase", "color": [95, 54, 80]},
    {"id": 87, "isthing": 1, "name": "scissors", "color": [128, 76, 255]},
    {"id": 88, "isthing": 1, "name": "teddy bear", "color": [201, 57, 1]},
    {"id": 89, "isthing": 1, "name": "hair drier", "color": [246, 0, 122]},
    {"id": 90, "isthing": 1, "name": "toothbrush", "color": [191, 162, 208]},
    {"id": 92, "isthing": 0, "name": "banner", "color": [255, 255, 128]},
    {"id": 93, "isthing": 0, "name": "blanket", "color": [147, 211, 203]},
    {"id": 95, "isthing": 0, "name": "bridge", "color": [150, 100, 100]},
    {"id": 100, "isthing": 0, "name": "cardboard", "color": [168, 171, 172]},
    {"id": 107, "isthing": 0, "name": "counter", "color": [146, 112, 198]},
    {"id": 109, "isthing": 0, "name": "curtain", "color": [210, 170, 100]},
    {"id": 112, "isthing": 0, "name": "door-stuff", "color": [92, 136, 89]},
    {"id": 118, "isthing": 0, "name": "floor-wood", "color": [218, 88, 184]},
    {"id": 119, "isthing": 0, "name": "flower", "color": [241, 129, 0]},
    {"id": 122, "isthing": 0, "name": "fruit", "color": [217, 17, 255]},
    {"id": 125, "isthing": 0, "name": "gravel", "color": [124, 74, 181]},
    {"id": 128, "isthing": 0, "name": "house", "color": [70, 70, 70]},
    {"id": 130, "isthing": 0, "name": "light", "color": [255, 228, 255]},
    {"id": 133, "isthing": 0, "name": "mirror-stuff", "color": [154, 208, 0]},
    {"id": 138, "isthing": 0, "name": "net", "color": [193, 0, 92]},
    {"id": 141, "isthing": 0, "name": "pillow", "color": [76, 91, 113]},
    {"id": 144, "isthing": 0, "name": "platform", "color": [255, 180, 195]},
    {"id": 145, "isthing": 0, "name": "playingfield", "color": [106, 154, 176]},
    {"id": 147, "isthing": 0, "name": "railroad", "color": [230, 150, 140]},
    {"id": 148, "isthing": 0, "name": "river", "color": [60, 143, 255]},
    {"id": 149, "isthing": 0, "name": "road", "color": [128, 64, 128]},
    {"id": 151, "isthing": 0, "name": "roof", "color": [92, 82, 55]},
    {"id": 154, "isthing": 0, "name": "sand", "color": [254, 212, 124]},
    {"id": 155, "isthing": 0, "name": "sea", "color": [73, 77, 174]},
    {"id": 156, "isthing": 0, "name": "shelf", "color": [255, 160, 98]},
    {"id": 159, "isthing": 0, "name": "snow", "color": [255, 255, 255]},
    {"id": 161, "isthing": 0, "name": "stairs", "color": [104, 84, 109]},
    {"id": 166, "isthing": 0, "name": "tent", "color": [169, 164, 131]},
    {"id": 168, "isthing": 0, "name": "towel", "color": [225, 199, 255]},
    {"id": 171, "isthing": 0, "name": "wall-brick", "color": [137, 54, 74]},
    {"id": 175, "isthing": 0, "name": "wall-stone", "color": [135, 158, 223]},
    {"id": 176, "isthing": 0, "name": "wall-tile", "color": [7, 246, 231]},
    {"id": 177, "isthing": 0, "name": "wall-wood", "color": [107, 255, 200]},
    {"id": 178, "isthing": 0, "name": "water-other", "color": [58, 41, 149]},
    {"id": 180, "isthing": 0, "name": "window-blind", "color": [183, 121, 142]},
    {"id": 181, "isthing": 0, "name": "window-other", "color": [255, 73, 97]},
    {"id": 184, "isthing": 0, "name": "tree-merged", "color": [107, 142, 35]},
    {"id": 185, "isthing": 0, "name": "fence-merged", "color": [190, 153, 153]},
    {"id": 186, "isthing": 0, "name": "ceiling-merged", "color": [146, 139, 141]},
    {"id": 187, "isthing": 0, "name": "sky-other-merged", "color": [70, 130, 180]},
    {"id": 188, "isthing": 0, "name": "cabinet-merged", "color": [134, 199, 156]},
    {"id": 189, "isthing": 0, "name": "table-merged", "color": [209, 226, 140]},
    {"id": 190, "isthing": 0, "name": "floor-other-merged", "color": [96, 36, 108]},
    {"id": 191, "isthing": 0, "name": "pavement-merged", "color": [96, 96, 96]},
    {"id": 192, "isthing": 0, "name": "mountain-merged", "color": [64, 170, 64]},
    {"id": 193, "isthing": 0, "name": "grass-merged", "color": [152, 251, 152]},
    {"id": 194, "isthing": 0, "name": "dirt-merged", "color": [208, 229, 228]},
    {"id": 195, "isthing": 0, "name": "paper-merged", "color": [206, 186, 171]},
    {"id": 196, "isthing": 0, "name": "food-other-merged", "color": [152, 161, 64]},
    {"id": 197, "isthing": 0, "name": "building-other-merged", "color": [116, 112, 0]},
    {"id": 198, "isthing": 0, "name": "rock-merged", "color": [0, 114, 143]},
    {"id": 199, "isthing": 0, "name": "wall-other-merged", "color": [102, 102, 156]},
    {"id": 200, "isthing": 0, "name": "rug-merged", "color": [250, 141, 255]},
]

_PAIRED_KEYPOINTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON_KEYPOINT_NAMES = ("nose", *(f"{side}_{part}" for part in _PAIRED_KEYPOINTS for side in ("left", "right")))
"""The 17 keypoints of a person in COCO, in the order of its files."""

# Names that change places when the image is mirrored.
COCO_PERSON_KEYPOINT_FLIP_MAP = tuple((f"left_{part}", f"right_{part}") for part in _PAIRED_KEYPOINTS)

# Lines of the drawn skeleton: (from, to, (R, G, B)).
KEYPOINT_CONNECTION_RULES = [
    ("left_ear", "left_eye", (102, 204, 255)),
    ("right_ear", "right_eye", (51, 153, 255)),
    ("left_eye", "nose", (102, 0, 204)),
    ("nose", "right_eye", (51, 102, 255)),
    ("left_shoulder", "right_shoulder", (255, 128, 0)),
    ("left_shoulder", "left_elbow", (153, 255, 204)),
    ("right_shoulder", "right_elbow", (128, 229, 255)),
    ("left_elbow", "left_wrist", (153, 255, 153)),
    ("right_elbow", "right_wrist", (102, 255, 224)),
    ("left_hip", "right_hip", (255, 102, 0)),
    ("left_hip", "left_knee", (255, 255, 77)),
    ("right_hip", "right_knee", (153, 255, 204)),
    ("left_knee", "left_ankle", (191, 255, 128)),
    ("right_knee", "right_ankle", (255, 195, 77)),
]

# The 19 evaluated classes; `trainId` is their contiguous label.
CITYSCAPES_CATEGORIES = [
    {"id": 7, "trainId": 0, "isthing": 0, "name": "road", "color": [128, 64, 128]},
    {"id": 8, "trainId": 1, "isthing": 0, "name": "sidewalk", "color": [244, 35, 232]},
    {"id": 11, "trainId": 2, "isthing": 0, "name": "building", "color": [70, 70, 70]},
    {"id": 12, "trainId": 3, "isthing": 0, "name": "wall", "color": [102, 102, 156]},
    {"id": 13, "trainId": 4, "isthing": 0, "name": "fence", "color": [190, 153, 153]},
    {"id": 17, "trainId": 5, "isthing": 0, "name": "pole", "color": [153, 153, 153]},
    {"id": 19, "trainId": 6, "isthing": 0, "name": "traffic light", "color": [250, 170, 30]},
    {"id": 20, "trainId": 7, "isthing": 0, "name": "traffic sign", "color": [220, 220, 0]},
    {"id": 21, "trainId": 8, "isthing": 0, "name": "vegetation", "color": [107, 142, 35]},
    {"id": 22, "trainId": 9, "isthing": 0, "name": "terrain", "color": [152, 251, 152]},
    {"id": 23, "trainId": 10, "isthing": 0, "name": "sky", "color": [70, 130, 180]},
    {"id": 24, "trainId": 11, "isthing": 1, "name": "person", "color": [220, 20, 60]},
    {"id": 25, "trainId": 12, "isthing": 1, "name": "rider", "color": [255, 0, 0]},
    {"id": 26, "trainId": 13, "isthing": 1, "name": "car", "color": [0, 0, 142]},
    {"id": 27, "trainId": 14, "isthing": 1, "name": "truck", "color": [0, 0, 70]},
    {"id": 28, "trainId": 15, "isthing": 1, "name": "bus", "color": [0, 60, 100]},
    {"id": 31, "trainId": 16, "isthing": 1, "name": "train", "color": [0, 80, 100]},
    {"id": 32, "trainId": 17, "isthing": 1, "name": "motorcycle", "color": [0, 0, 230]},
    {"id": 33, "trainId": 18, "isthing": 1, "name": "bicycle", "color": [119, 11, 32]},
]

# What stands for all things together in the "separated" panoptic data sets, whose semantic labels know stuff only.
_ALL_THINGS = {"id": 0, "name": "things", "color": [82, 18, 128]}


def _get_coco_instances_meta() -> dict[str, Any]:
    """Describe the 80 things of COCO."""
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    return {
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "thing_classes": [c["name"] for c in things],
        "thing_colors": [c["color"] for c in things],
    }


def _get_coco_panoptic_separated_meta() -> dict[str, Any]:
    """Describe COCO for Panoptic FPN: 80 things, and 54 semantic classes of which the first is "any thing"."""
    stuff = [_ALL_THINGS, *(c for c in COCO_CATEGORIES if not c["isthing"])]
    return {
        **_get_coco_instances_meta(),
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(stuff)},
        "stuff_classes": [c["name"].replace("-other", "").replace("-merged", "") for c in stuff],
        "stuff_colors": [c["color"] for c in stuff],
    }


def _standard_panoptic_meta(categories: list[dict[str, Any]], labels: list[int]) -> dict[str, Any]:
    """Describe a panoptic data set in which things and stuff share one range of labels."""
    pairs = list(zip(categories, labels, strict=True))
    meta: dict[str, Any] = {}
    for kind, is_thing in (("thing", 1), ("stuff", 0)):
        ids = {c["id"]: label for c, label in pairs if c["isthing"] == is_thing}
        meta[f"{kind}_dataset_id_to_contiguous_id"] = ids
        meta[f"{kind}_classes"] = [c["name"] for c in categories]
        meta[f"{kind}_colors"] = [c["color"] for c in categories]
    return meta


def _get_coco_person_meta() -> dict[str, Any]:
    """Describe the person keypoints of COCO."""
    return {
        "thing_classes": ["person"],
        "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
        "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
        "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
    }


def _get_cityscapes_meta() -> dict[str, Any]:
    """Describe Cityscapes for instance and semantic segmentation, each with its own labels."""
    return {
        "thing_classes": [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]],
        "stuff_classes": [c["name"] for c in CITYSCAPES_CATEGORIES],
    }


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Return the class tables of a family of data sets, as keys and values for `detectron2.data.Metadata`."""
    makers = {
        "coco": _get_coco_instances_meta,
        "coco_panoptic_separated": _get_coco_panoptic_separated_meta,
        "coco_panoptic_standard": lambda: _standard_panoptic_meta(COCO_CATEGORIES, list(range(len(COCO_CATEGORIES)))),
        "coco_person": _get_coco_person_meta,
        "cityscapes": _get_cityscapes_meta,
        "cityscapes_panoptic": lambda: _standard_panoptic_meta(
            CITYSCAPES_CATEGORIES, [c["trainId"] for c in CITYSCAPES_CATEGORIES]
        ),
        "ade20k_sem_seg": lambda: {"stuff_classes": list(ADE20K_SEM_SEG_CATEGORIES)},
    }
    if dataset_name not in makers:
        raise KeyError(f"There are no built-in class tables called {dataset_name!r}; there are: {', '.join(makers)}.")
    return makers[dataset_name]()
