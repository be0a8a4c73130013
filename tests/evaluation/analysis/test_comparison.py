"""Confidence intervals and the comparison of two runs."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation.analysis import analyze_detections, compare_detections
from detectron2.evaluation.analysis._averages import average, metrics_of
from detectron2.evaluation.analysis._matching import COCO_IOUS, find_overlaps, match
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
    matching = match(gt, dt, find_overlaps(gt, dt, 0.5), COCO_IOUS)
    values = average(gt, dt, matching, times[None])
    np.testing.assert_allclose(average(gt, dt, matching, np.ones((1, 12), int)), average(gt, dt, matching), atol=1e-12)
    expected = np.where((stats := reference(copies, copied_rows).stats) < 0, np.nan, stats)
    assert list(metrics_of(gt)) == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]
    np.testing.assert_allclose(values[0, -1], expected, atol=1e-12)
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
