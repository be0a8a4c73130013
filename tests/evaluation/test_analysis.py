"""The analysis of saved predictions: against hand-made cases, and against pycocotools."""

import contextlib
import copy
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation._analysis_averages import frequencies_of, mean_of_classes, metrics_of, resample
from detectron2.evaluation._analysis_inputs import read_found, read_truth
from detectron2.evaluation._analysis_matching import COCO_IOUS, match, protocol_of
from detectron2.evaluation._analysis_overlaps import find_overlaps
from detectron2.evaluation._analysis_scores import best_point, calibrate, f1_curve, point_at, precision_curve
from detectron2.evaluation._coco_format import instances_to_coco_json
from detectron2.evaluation.analysis import analyze_detections, compare_detections


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
def hand_made():
    return analyze_detections(HAND_MADE, ONE_OF_EACH, score_threshold=0.3)


def test_no_predictions():
    result = analyze_detections(HAND_MADE, [])
    assert (result.overall.ap, result.overall.ar, result.overall.num_detections) == (0.0, 0.0, 0)
    assert math.isnan(result.overall.at_threshold.precision) and math.isnan(result.overall.best.threshold)
    assert result.overall.at_threshold.recall == result.overall.best.f1 == 0.0
    assert result.confusion.tolist() == [[0, 0, 0, 2], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert result.errors["missed"].count == 4
    assert math.isnan(result.overall.calibration_error)
    assert len(result.f1[0]) == 0
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("rows", [[], ONE_OF_EACH])
def test_no_objects(rows):
    result = analyze_detections(truth(), rows)
    assert math.isnan(result.overall.ap) and math.isnan(result.overall.at_threshold.recall)
    assert result.confusion.sum() == result.confusion[3, 0] == sum(r["score"] >= 0.5 for r in rows)
    assert math.isnan(result.errors["missed"].delta_ap) and result.errors["background"].count == len(rows)
    assert math.isnan(result.area_ap["small"])
    json.dumps(result.to_dict(), allow_nan=False)


def test_what_is_counted(hand_made):
    overall, first, second, third = hand_made.overall, *hand_made.per_class
    assert (overall.num_objects, overall.num_detections) == (4, 6)  # the crowd and what lies on it do not count
    assert (first.num_objects, first.num_detections, second.num_detections, third.num_objects) == (2, 6, 0, 0)
    assert overall.at_threshold.precision == pytest.approx(1 / 6) and overall.at_threshold.recall == 0.25
    assert overall.at_threshold.f1 == pytest.approx(0.2)
    assert (overall.best.threshold, overall.best.precision, overall.best.f1) == (0.9, 1.0, pytest.approx(0.4))
    assert first.best.f1 == pytest.approx(2 / 3)
    assert first.ap == pytest.approx(51 / 101) and second.ap == 0.0 and math.isnan(third.ap)
    assert overall.ap == pytest.approx(51 / 202)
    assert hand_made.is_right.tolist() == [True] + [False] * 6
    assert hand_made.is_counted.tolist() == [True] * 5 + [False, True]
    assert hand_made.is_found.tolist() == [True] + [False] * 4
    np.testing.assert_allclose(hand_made.precision[0], [1.0] * 51 + [0.0] * 50)
    assert np.isnan(hand_made.precision[2]).all()


def test_confusion(hand_made):
    # class 1 once right, class 2 once taken for it; one of each missed; four detections on nothing
    assert hand_made.confusion.tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [4, 0, 0, 0]]


def test_in_confusion_the_best_overlap_counts_first():
    objects = truth((1, 1, [0, 0, 10, 10]), (1, 2, [4, 0, 10, 10]), images=1, classes=2)
    rows = found((1, 2, [1, 0, 10, 10], 0.9), (1, 1, [0, 0, 10, 10], 0.6))
    # the second lies exactly on the first object and leaves the other (IoU 7 / 13) to the first
    assert analyze_detections(objects, rows).confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert analyze_detections(objects, rows, iou_threshold=0.6).confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert analyze_detections(objects, rows, score_threshold=0.7).confusion.tolist() == [[0, 1, 0], [0, 0, 1], [0] * 3]


def test_error_types(hand_made):
    assert {name: e.count for name, e in hand_made.errors.items()} == dict.fromkeys(hand_made.errors, 1)
    assert list(hand_made.errors) == ["classification", "localization", "both", "duplicate", "background", "missed"]
    gain = {name: e.delta_ap for name, e in hand_made.errors.items()}
    # with the right class, class 2 has one of two objects at full precision
    assert gain["classification"] == pytest.approx(51 / 101 / 2)
    # with the right place, the fifth detection of class 1 is its second right one
    assert gain["localization"] == pytest.approx(50 / 101 * 0.4 / 2)
    assert gain["both"] == gain["missed"] == 0  # a removed detection at the end; a missed object of a class at 0


def test_parts():
    objects = truth(
        (1, 1, [0, 0, 10, 40]),
        (2, 1, [0, 0, 50, 50]),
        (2, 1, [60, 0, 30, 10]),
        (2, 1, [0, 0, 99, 99], True),
    )
    rows = found((1, 1, [0, 0, 10, 40], 0.9), (1, 1, [50, 50, 50, 50], 0.95), (2, 1, [60, 0, 30, 10], 0.2))
    parts = analyze_detections(objects, rows).parts
    area, ratio, crowd = parts["area"], parts["width / height"], parts["objects in the image"]
    assert (area["small"].num_objects, area["small"].ap, area["small"].recall) == (2, pytest.approx(1.0), 0.5)
    assert (area["medium"].num_objects, area["medium"].ap, area["large"].num_objects) == (1, 0.0, 0)
    assert math.isnan(area["large"].ap) and math.isnan(area["large"].recall)
    assert [(s.num_objects, s.recall) for s in ratio.values()] == [(1, 1.0), (1, 0.0), (1, 0.0)]
    assert ratio["2 and more"].ap == pytest.approx(1.0)
    assert crowd["1"].ap == pytest.approx(0.5)  # there the wrong one comes before the right one
    assert crowd["2 to 5"].num_objects == 2


def test_images(hand_made):
    assert [(s.num_right, s.num_wrong, s.num_missed) for s in hand_made.per_image] == [(1, 3, 1), (0, 2, 2)]
    assert [s.image_id for s in hand_made.worst_images(5)] == [2, 1]  # four errors each, the first has something right
    assert [s.image_id for s in hand_made.worst_images(1)] == [2]
    perfect = analyze_detections(truth((1, 1, [0, 0, 9, 9])), found((1, 1, [0, 0, 9, 9], 0.9)))
    assert perfect.worst_images(5) == []


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


def reference(dataset, rows, images=None):
    """pycocotools' evaluation."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(dataset)
        api.createIndex()
        engine = COCOeval(api, api.loadRes(copy.deepcopy(rows)), "bbox")
        if images is not None:
            engine.params.imgIds = images
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    return engine


def test_averages_are_those_of_coco(random_case):
    result, engine = analyze_detections(*random_case), reference(*random_case)
    overall = result.overall
    expected = [*engine.stats[:3], engine.stats[8]]
    assert [overall.ap, overall.ap50, overall.ap75, overall.ar] == pytest.approx(expected)
    areas = [math.nan if v < 0 else v for v in engine.stats[3:6]]
    assert list(result.area_ap.values()) == pytest.approx(areas, nan_ok=True)
    for k, scores in enumerate(result.per_class[:3]):
        assert scores.ap == pytest.approx(engine.eval["precision"][:, :, k, 0, -1].mean())
        assert scores.ar == pytest.approx(engine.eval["recall"][:, k, 0, -1].mean())
        np.testing.assert_allclose(result.precision[k], engine.eval["precision"][0, :, k, 0, -1], atol=1e-12)
    assert math.isnan(result.per_class[3].ap)


@pytest.mark.parametrize("as_text", [False, True])
def test_ids_of_images_may_be_text(random_case, as_text):
    dataset, rows = copy.deepcopy(random_case)
    for entry in [*dataset["annotations"], *rows]:
        entry["image_id"] = f"image {entry['image_id']:02d}" if as_text else entry["image_id"] - 1
    for image in dataset["images"]:
        image["id"] = f"image {image['id']:02d}" if as_text else image["id"] - 1
    same, other = analyze_detections(*random_case), analyze_detections(dataset, rows)
    assert same.overall == other.overall
    assert other.per_image[3].image_id == ("image 04" if as_text else 3)


def test_masks(tools):
    dataset = tools.random_coco(3)
    pairs = tools.jittered(dataset, 4)
    rows = [r for i, o in pairs for r in instances_to_coco_json(o["instances"], i["image_id"])]
    for row in rows:
        row["category_id"] += 11
    result = analyze_detections(dataset, rows, "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO()
        api.dataset = copy.deepcopy(dataset)
        api.createIndex()
        stripped = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
        engine = COCOeval(api, api.loadRes(stripped), "segm")
        for step in (engine.evaluate, engine.accumulate, engine.summarize):
            step()
    assert result.overall.ap == pytest.approx(engine.stats[0])
    assert result.overall.ap > 0.01
    assert result.confusion[:3].sum() == result.overall.num_objects
    assert sum(s.num_objects for s in result.parts["area"].values()) == result.overall.num_objects


def test_many_masks(tools):
    """More of them than a byte can count, as pycocotools does with the masks of one call."""
    dataset = tools.random_coco(3)
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"], "score": 0.5}
        for a in dataset["annotations"]
        if not a["iscrowd"]
    ]
    rows *= 300 // len(rows) + 1
    result = analyze_detections(dataset, rows, "segm")
    assert result.overall.num_detections == len(rows) > 255


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
        ({"image_id": "1"}, "as another type"),
        ({"category_id": 0}, r"unknown category_id.*\[1, 2, 3\]"),
        ({"score": math.nan}, "score of prediction 0 is nan"),
        ({"score": "high"}, "score of prediction 0 is 'high'"),
        ({"bbox": [1, 2, 3]}, r"bbox of prediction 0 is \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, math.inf]}, "4 finite numbers"),
        ({"bbox": [1, 2, 3, -1]}, "a width and a height of at least 0"),
        ({"bbox": [1, 2, 3, 4, 30]}, "Rotated boxes cannot be analyzed"),
        ({"bbox": "1234"}, "bbox of prediction 0 is '1234'"),
        ({"image_id": [1]}, r"unknown image_id.*\[1\]"),
        ({"score": "0.5"}, "score of prediction 0 is '0.5'"),
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
        (truth((9, 1, [0, 0, 1, 1])), [], ValueError, "annotations have an unknown image_id"),
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
    with pytest.raises(ValueError, match=r"text\.json is not JSON"):
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
        ({}, "prediction 0 has 1 keypoints, the objects of the ground truth 2"),
        ({"keypoints": [1, 2]}, "keypoints of prediction 0 are"),
        ({"keypoints": [1, 2, 1, 3, 4, math.nan]}, "finite numbers"),
        ({"bbox": [1, 2], "keypoints": [1, 2, 1, 3, 4, 1]}, r"bbox of prediction 0 is \[1, 2\]"),
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "There are no predictions."),
        ([(1, 1, [10, 10, 20, 20], 0.9)], "1 of 2 images have no predictions; their 2 objects count as missed."),
        ([(1, 3, [10, 10, 20, 20], 0.9), (2, 3, [0, 0, 9, 9], 0.9)], "no predicted class has an object"),
        ([(1, 1, [40, 40, 9, 9], 0.9), (2, 1, [0, 0, 3, 3], 0.9)], "classes fit and the places do not"),
        ([(1, 1, [60, 60, 80, 80], 0.9), (2, 1, [10, 10, 20, 20], 0.9)], "50% of the predicted boxes reach far beyond"),
        ([(1, 1, [10, 10, 20, 20], 3.5), (2, 1, [10, 10, 20, 20], 0.9)], "Scores lie between 0.9 and 3.5"),
    ],
)
def test_notes(rows, message):
    assert any(message in note for note in analyze_detections(HAND_MADE, found(*rows)).notes)


def test_no_notes_about_what_is_usual():
    rows = found(*((i, c, b, 0.9) for i, c, b, *_ in ((1, 1, [10, 10, 20, 20]), (2, 1, [10, 10, 20, 20]))))
    assert analyze_detections(HAND_MADE, rows).notes == []


def test_intervals_of_one_run(random_case):
    result = analyze_detections(*random_case, num_resamples=200)
    assert list(result.intervals) == list(result.metrics)
    for name, (low, high) in result.intervals.items():
        assert 0 <= low < result.metrics[name] < high <= 1 or math.isnan(result.metrics[name]) == math.isnan(low)
    assert result.overall.ap_interval == result.intervals["AP"]
    assert all(low < s.ap < high for s in result.per_class[:3] for low, high in [s.ap_interval])
    assert math.isnan(result.per_class[3].ap_interval[0])
    again, other = (analyze_detections(*random_case, num_resamples=200, seed=s).intervals["AP"] for s in (0, 1))
    assert again == result.intervals["AP"] != other
    assert analyze_detections(*random_case).intervals == {}
    json.dumps(result.to_dict(), allow_nan=False)


def test_interval_by_hand():
    # Two images with an object each, of which the first is found: AP of a resample is 0, 51 / 101 or 1, with
    # probabilities of 1/4, 1/2, 1/4, so that the ends are 0 and 1; their mean is moved onto AP.
    objects = truth((1, 1, [0, 0, 9, 9]), (2, 1, [0, 0, 9, 9]), classes=1)
    low, high = analyze_detections(objects, found((1, 1, [0, 0, 9, 9], 0.9)), num_resamples=4000).intervals["AR100"]
    assert (low, high) == (pytest.approx(0.0, abs=0.03), pytest.approx(1.0, abs=0.03))
    one = truth((1, 1, [0, 0, 9, 9]), classes=1)
    result = analyze_detections(one, found((1, 1, [0, 0, 9, 9], 0.9)), num_resamples=20)
    assert np.isnan(result.intervals["AP"]).all()  # one image says nothing about others


def test_comparison(random_case):
    dataset, rows = random_case
    worse = [r for r in rows if r["image_id"] % 3]
    result = compare_detections(dataset, worse, rows, num_resamples=200, seed=1)
    ap = result.metrics["AP"]
    expected = [reference(dataset, r).stats[0] for r in (worse, rows)]
    assert [ap.first, ap.second, ap.delta] == pytest.approx([*expected, expected[1] - expected[0]])
    assert 0 < ap.low < ap.delta < ap.high and ap.is_clear
    assert list(result.per_class) == ["c1", "c2", "c3", "c4"] and math.isnan(result.per_class["c4"].delta)
    k = reference(dataset, rows).eval["precision"][:, :, 1, 0, -1].mean()
    assert result.per_class["c2"].second == pytest.approx(k)
    assert all(d.low <= d.delta <= d.high for d in list(result.per_class.values())[:3])
    small = reference(dataset, rows).eval["precision"][:, :, 1, 1, -1]
    assert result.per_class_areas["c2"]["APs"].second == pytest.approx(small.mean())
    assert set(result.per_class_areas["c1"]) == {"APs", "APm", "APl"}
    assert not math.isnan(result.metrics["APs"].low) and not math.isnan(result.metrics["APm"].low)
    again = compare_detections(dataset, worse, rows, num_resamples=200, seed=1).metrics["AP"]
    assert again == ap
    assert compare_detections(dataset, worse, rows, num_resamples=200, seed=2).metrics["AP"] != ap


def test_an_image_that_is_drawn_twice_counts_twice():
    # Three images with an object each; the first run finds that of image 1, the second all.
    objects = truth(*((i, 1, [0, 0, 9, 9]) for i in (1, 2, 3)), images=3, classes=1)
    rows = found(*((i, 1, [0, 0, 9, 9], 1 - i / 10) for i in (1, 2, 3)))
    result = compare_detections(objects, rows[:1], rows, num_resamples=2000, confidence=0.9)
    # image 1 is drawn three times in 1 of 27 cases, twice in 6: below 5 % lies the first, just above the second
    ap, ar = result.metrics["AP"], result.metrics["AR100"]
    assert (ap.low, ap.high) == (pytest.approx(1 - 67 / 101), pytest.approx(1.0))
    assert (ar.delta, ar.low, ar.high) == (pytest.approx(2 / 3), pytest.approx(1 / 3), pytest.approx(1.0))


def test_weights_count_as_copies(random_case):
    dataset, rows = random_case
    times = np.random.default_rng(5).integers(0, 4, 12)
    copies = {**dataset, "images": [], "annotations": []}
    copied_rows = []
    for image, n in zip(dataset["images"], times.tolist(), strict=True):
        for copy_ in range(n):
            new = image["id"] * 10 + copy_
            copies["images"].append({**image, "id": new})
            copied_rows += [{**r, "image_id": new} for r in rows if r["image_id"] == image["id"]]
            for a in dataset["annotations"]:
                if a["image_id"] == image["id"]:
                    copies["annotations"].append({**a, "image_id": new, "id": len(copies["annotations"]) + 1})
    rows = [{**r, "score": r["score"] + n * 1e-6} for n, r in enumerate(rows)]  # copies of equals would mix
    copied_rows = [{**r, "score": next(q["score"] for q in rows if q["bbox"] is r["bbox"])} for r in copied_rows]
    gt = read_truth(dataset, "bbox")
    dt = read_found(rows, gt)
    protocol = protocol_of(gt, COCO_IOUS)
    matching = match(gt, dt, find_overlaps(gt, dt, 0.5), protocol)
    metrics = metrics_of(gt, protocol)
    values = resample(gt, dt, matching, protocol, metrics, times[None])
    means = mean_of_classes(values, metrics, frequencies_of(gt))[0]
    expected = np.where((stats := reference(copies, copied_rows).stats) < 0, np.nan, stats)
    assert list(metrics) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    np.testing.assert_allclose(means, expected, atol=1e-12)
    assert values[0, 1, 0] == pytest.approx(reference(copies, copied_rows).eval["precision"][:, :, 1, 0, -1].mean())


def test_intervals_come_from_resampled_images():
    # One object in each of two images; the second run finds both, the first only that of image 1.
    objects = truth((1, 1, [0, 0, 9, 9]), (2, 1, [0, 0, 9, 9]), classes=1)
    both = found((1, 1, [0, 0, 9, 9], 0.9), (2, 1, [0, 0, 9, 9], 0.8))
    ap = compare_detections(objects, both[:1], both, num_resamples=500).metrics["AP"]
    assert ap.delta == pytest.approx(50 / 101)
    assert (ap.low, ap.high) == (pytest.approx(0.0), pytest.approx(1.0))  # image 1 twice, and image 2 twice
    assert not ap.is_clear
    none = compare_detections(objects, both[:1], both, num_resamples=0).metrics["AP"]
    assert none.delta == pytest.approx(50 / 101) and math.isnan(none.low) and not none.is_clear


@pytest.mark.parametrize("runs", [([], []), ([], ONE_OF_EACH), (ONE_OF_EACH, [])])
def test_comparison_with_no_predictions(runs):
    ap = compare_detections(HAND_MADE, *runs, num_resamples=10).metrics["AP"]
    assert [ap.first, ap.second] == pytest.approx([51 / 202 if run else 0.0 for run in runs])


SCORED = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.booleans()), max_size=12)


@given(SCORED, st.integers(0, 5))
def test_the_best_threshold_is_the_best(rows, missed):
    score = np.array([s for s, _ in rows], float)
    right = np.array([r for _, r in rows], bool)
    total = int(right.sum()) + missed
    thresholds, f1 = f1_curve(score, right, total)
    assert thresholds.tolist() == sorted(set(score.tolist()), reverse=True)
    by_hand = [
        2 * sum(r for s, r in rows if s >= t) / (sum(s >= t for s, _ in rows) + total) for t in thresholds.tolist()
    ]
    np.testing.assert_allclose(f1, by_hand)
    best = best_point(score, right, total)
    if right.any():
        assert best == point_at(score, right, total, best.threshold)
        assert best.f1 == pytest.approx(max(by_hand))
    else:
        assert math.isnan(best.threshold)
    curve = precision_curve(score, right, total)
    assert np.isnan(curve).all() if total == 0 else (np.diff(curve) <= 0).all()


def test_calibration():
    bins, error = calibrate(np.zeros(0), np.zeros(0, bool), 4)
    assert [b.count for b in bins] == [0] * 4 and math.isnan(error)
    # bin 0: 0.1 and 0.2, one right; bin 3: 1.0 and 0.75, both right
    bins, error = calibrate(np.array([0.1, 1.0, 0.2, 0.75]), np.array([True, True, False, True]), 4)
    assert [b.count for b in bins] == [2, 0, 0, 2]
    assert (bins[0].confidence, bins[0].accuracy) == (pytest.approx(0.15), 0.5)
    assert error == pytest.approx((0.35 + 0.125) / 2)
