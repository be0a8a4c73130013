"""What the analysis reads: every source, and every message about a bad one."""

import contextlib
import copy
import gzip
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO

from detectron2.evaluation.analysis import analyze_detections, compare_detections
from detectron2.evaluation.analysis.inputs import read_found, read_truth


def truth(*objects, images=2, classes=3):
    """Ground truth of (image, class, xywh[, crowd]); images and classes from 1 on."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": f"c{c}"} for c in range(1, classes + 1)],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(any(crowd)),
            }
            for n, (image, label, box, *crowd) in enumerate(objects, 1)
        ],
    }


def found(*rows):
    """Predictions of (image, class, xywh, score)."""
    return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in rows]


HAND_MADE = truth(
    (1, 1, [10, 10, 20, 20]),
    (1, 2, [60, 60, 20, 20]),
    (2, 1, [10, 10, 20, 20]),
    (2, 1, [50, 10, 40, 40], True),
    (2, 2, [70, 70, 20, 20]),
)


ONE_OF_EACH = found(
    (1, 1, [10, 10, 20, 20], 0.9),  # right
    (1, 1, [10, 10, 20, 19], 0.8),  # a duplicate
    (1, 1, [60, 60, 20, 20], 0.7),  # the wrong class
    (1, 1, [80, 10, 10, 10], 0.65),  # background
    (2, 1, [18, 10, 20, 20], 0.6),  # badly localized, IoU 240 / 560
    (2, 1, [55, 15, 10, 10], 0.5),  # on a crowd
    (2, 1, [78, 70, 20, 20], 0.4),  # the wrong class and badly localized
)


@pytest.fixture(scope="module")
def random_case():
    rng = np.random.default_rng(3)
    objects = [
        (int(i), int(rng.integers(1, 4)), [*rng.uniform(0, 60, 2).tolist(), *rng.uniform(5, 40, 2).tolist()], i == 4)
        for i in rng.integers(1, 13, 60)
    ]
    dataset = truth(*objects, images=12, classes=4)
    rows = [
        (i, c, (np.array(b) + rng.normal(0, 2, 4)).clip(1).tolist(), float(rng.integers(1, 12)) / 12)
        for i, c, b, _ in objects
        for _ in range(int(rng.integers(0, 3)))
    ]
    return dataset, found(*rows)


@pytest.mark.parametrize("as_text", [False, True])
def test_ids_of_images_may_be_text(random_case, as_text):
    dataset, rows = copy.deepcopy(random_case)
    for entry in [*dataset["annotations"], *rows]:
        entry["image_id"] = f"image {entry['image_id']:02d}" if as_text else entry["image_id"] - 1
    for image in dataset["images"]:
        image["id"] = f"image {image['id']:02d}" if as_text else image["id"] - 1
    same, other = analyze_detections(*random_case), analyze_detections(dataset, rows)
    assert same.to_dict()["overall"] == other.to_dict()["overall"]
    assert other.per_image[3].image_id == ("image 04" if as_text else 3)


def test_sources_are_equal_and_not_changed(random_case, tmp_path):
    dataset, rows = random_case
    before = copy.deepcopy((dataset, rows))
    files = tmp_path / "gt.json", tmp_path / "dt.json"
    for file, content in zip(files, (dataset, rows), strict=True):
        file.write_text(json.dumps(content))
    api = COCO()
    api.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    results = [analyze_detections(gt, dt).to_dict() for gt, dt in [(dataset, rows), files, (api, tuple(rows))]]
    assert results[0] == results[1] == results[2]
    assert (dataset, rows) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, r"1 of 7 predictions have an unknown image_id.* prediction 0.*77.*2 ids such as \[1, 2\]"),
        ({"image_id": "1"}, "of another type"),
        ({"category_id": 0}, r"unknown category_id.*\[1, 2, 3\]"),
        ({"score": math.nan}, "prediction 0 has the score nan"),
        ({"score": "high"}, "prediction 0 has the score 'high'"),
        ({"bbox": [1, 2, 3]}, r"prediction 0 has the bbox \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, math.inf]}, "4 finite numbers"),
        ({"bbox": [1, 2, 3, -1]}, "a width and a height of at least 0"),
        ({"bbox": [1, 2, 3, 4, 30]}, "Rotated boxes cannot be analyzed"),
        ({"bbox": "1234"}, "prediction 0 has the bbox '1234'"),
        ({"image_id": [1]}, r"unknown image_id.*\[1\]"),
        ({"score": "0.5"}, "prediction 0 has the score '0.5'"),
        ({"score": None}, "prediction 0 lacks score; it has"),
    ],
)
def test_bad_predictions(change, message):
    rows = copy.deepcopy(ONE_OF_EACH)
    rows[0].update(change)
    rows[0] = {k: v for k, v in rows[0].items() if v is not None}
    with pytest.raises(ValueError, match=message):
        analyze_detections(HAND_MADE, rows)


@pytest.mark.parametrize(
    ("gt", "dt", "kind", "message"),
    [
        (truth(images=0), [], ValueError, "no images"),
        (truth(classes=0), [], ValueError, "no categories"),
        ({"images": []}, [], ValueError, "'categories'"),
        (truth(*[(9, 1, [0, 0, 1, 1])] * 2), [], ValueError, "none of 2 belongs to an image of the file"),
        (3, [], TypeError, "coco_gt is a file"),
        (HAND_MADE, HAND_MADE, ValueError, "ground truth in COCO format; predictions are a list"),
        (HAND_MADE, {"bbox": 1}, ValueError, "coco_instances_results.json"),
        (HAND_MADE, 3, TypeError, "results is of type int"),
        (HAND_MADE, [3], ValueError, "prediction 0 is of type int"),
        ({**HAND_MADE, "images": HAND_MADE["images"][:1] * 2}, [], ValueError, "the id 1 twice"),
    ],
)
def test_wrong_content(gt, dt, kind, message):
    with pytest.raises(kind, match=message):
        analyze_detections(gt, dt)


def test_wrong_files_and_numbers(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ValueError, match=r"list\.json is a list"):
        analyze_detections(tmp_path / "list.json", [])
    with pytest.raises(ValueError, match=r"text\.json: this is not a JSON file"):
        analyze_detections(HAND_MADE, tmp_path / "text.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        analyze_detections(HAND_MADE, tmp_path / "none.json")
    with pytest.raises(ValueError, match="iou_threshold"):
        analyze_detections(HAND_MADE, [], iou_threshold=0.05)
    with pytest.raises(ValueError, match="iou_type is 'bbox', 'segm' or 'keypoints', not 'boxes'"):
        analyze_detections(HAND_MADE, [], "boxes")
    with pytest.raises(ValueError, match="has no 'keypoints'"):
        analyze_detections(HAND_MADE, [], "keypoints")
    with pytest.raises(ValueError, match="num_resamples"):
        analyze_detections(HAND_MADE, [], num_resamples=-1)
    with pytest.raises(ValueError, match="Annotation 1 has no 'segmentation'"):
        analyze_detections(HAND_MADE, [], "segm")
    with pytest.raises(ValueError, match="num_resamples"):
        compare_detections(HAND_MADE, [], [], num_resamples=-1)


def test_wrong_masks_and_keypoints(tools):
    dataset = tools.random_coco(3)
    rle = {"size": [10, 20], "counts": "0"}
    row = {"image_id": 1, "category_id": 11, "segmentation": rle, "score": 0.5}
    with pytest.raises(ValueError, match="mask of prediction 0 is 10 pixels high and 20 wide, its image 1 120 and 160"):
        analyze_detections(dataset, [row], "segm")
    dataset["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 2]
    points = {"image_id": 1, "category_id": 11, "keypoints": [1, 2, 1], "score": 0.5}
    with pytest.raises(ValueError, match="2 keypoints, but there are 17 sigmas"):
        analyze_detections(dataset, [points], "keypoints")
    for change, message in (
        ({}, r"prediction 0 has the keypoints \[1, 2, 1\].*The objects of the ground truth have 2 keypoints"),
        ({"keypoints": [1, 2]}, r"prediction 0 has the keypoints \[1, 2\]; expected"),
        ({"keypoints": [1, 2, 1, 3, 4, math.nan]}, "finite numbers"),
        ({"bbox": [1, 2], "keypoints": [1, 2, 1, 3, 4, 1]}, r"prediction 0 has the bbox \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            analyze_detections(dataset, [{**points, **change}], "keypoints", kpt_oks_sigmas=[0.1, 0.1])
    dataset["annotations"][1]["keypoints"] = [1, 2, 2]
    with pytest.raises(ValueError, match=r"equally many for all; got \[3, 6\]"):
        analyze_detections(dataset, [], "keypoints")


def test_names_of_classes():
    dataset = copy.deepcopy(HAND_MADE)
    for category, name in zip(dataset["categories"], ("same", "same", "background"), strict=True):
        category["name"] = name
    result = analyze_detections(dataset, ONE_OF_EACH)
    assert [s.name for s in result.per_class] == ["same (1)", "same (2)", "background (3)"]
    dataset["categories"][2]["name"] = "\ud800"
    comparison = compare_detections(dataset, [], ONE_OF_EACH, num_resamples=0)
    assert list(comparison.per_class) == ["same (1)", "same (2)", "?"]


def test_files_in_other_encodings(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "found.json").write_text("[]", encoding=encoding)
        assert analyze_detections(HAND_MADE, tmp_path / "found.json").overall.ap == 0
    (tmp_path / "found.json").write_bytes(gzip.compress(b"[]"))
    with pytest.raises(ValueError, match=r"found\.json: this is not a JSON file: it is compressed with gzip"):
        analyze_detections(HAND_MADE, tmp_path / "found.json")


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        [[1, 2]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, math.nan]],
        {"size": [5]},
        {"size": [100, 100], "counts": 3},
        "mask",
    ],
)
def test_things_that_are_no_masks(mask):
    truth = copy.deepcopy(HAND_MADE)
    for a in truth["annotations"]:
        a["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    found = [{"image_id": truth["images"][0]["id"], "category_id": 1, "score": 0.5, "segmentation": mask}]
    with pytest.raises(ValueError, match="segmentation of prediction 0 is"):
        read_found(found, read_truth(truth, "segm"))


@pytest.mark.parametrize(("counts", "said"), [("\x01", "are not run lengths"), ("11", "do not cover its")])
def test_run_lengths_of_nothing(counts, said):
    truth = copy.deepcopy(HAND_MADE)
    for a in truth["annotations"]:
        a["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    image = truth["images"][0]
    mask = {"size": [image["height"], image["width"]], "counts": counts}
    found = [{"image_id": image["id"], "category_id": 1, "score": 0.5, "segmentation": mask}]
    with pytest.raises(ValueError, match=said):
        read_found(found, read_truth(truth, "segm"))


def test_true_is_no_id():
    found = [{"image_id": True, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]
    with pytest.raises(ValueError, match=r"unknown image_id.*True"):
        analyze_detections(HAND_MADE, found)


def test_ground_truth_without_objects():
    truth = {**HAND_MADE, "annotations": []}
    found = [{"image_id": truth["images"][0]["id"], "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]
    assert "The ground truth has no objects" in analyze_detections(truth, found).notes[0]
