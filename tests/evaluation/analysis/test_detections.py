"""The analysis of saved predictions: against hand-made cases, and against pycocotools."""

import contextlib
import copy
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation._coco_format import instances_to_coco_json
from detectron2.evaluation.analysis import analyze_detections
from detectron2.evaluation.analysis._scores import (
    best_point,
    calibrate,
    f1_curve,
    point_at,
    precision_curve,
)


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


def test_in_confusion_what_is_right_counts_first():
    objects = truth((1, 1, [0, 0, 10, 10]), (1, 2, [4, 0, 10, 10]), images=1, classes=2)
    rows = found((1, 2, [1, 0, 10, 10], 0.9), (1, 1, [0, 0, 10, 10], 0.6))
    # both find the object of their class, the first with an IoU of 7 / 13 although it overlaps the other one more
    assert analyze_detections(objects, rows).confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert analyze_detections(objects, rows, score_threshold=0.7).confusion.tolist() == [[0, 0, 1], [0, 1, 0], [0] * 3]
    assert analyze_detections(objects, rows, iou_threshold=0.6).confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.8])
def test_confusion_agrees_with_precision_and_recall(random_case, iou, threshold):
    result = analyze_detections(*random_case, iou_threshold=iou, score_threshold=threshold)
    rows, columns = result.confusion.sum(1)[:-1], result.confusion.sum(0)[:-1]
    right = result.confusion.diagonal()[:-1]
    assert right.sum() == sum(image.num_right for image in result.per_image) > 0
    for k, scores in enumerate(result.per_class):
        assert rows[k] == scores.num_objects
        if rows[k]:
            assert right[k] / rows[k] == scores.at_threshold.recall
        if columns[k]:
            assert right[k] / columns[k] == scores.at_threshold.precision


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


SCORED = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.booleans()), max_size=12)


@settings(max_examples=40, deadline=None)
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
