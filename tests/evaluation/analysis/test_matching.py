"""Matching of keypoints, of masks and of LVIS's partly annotated images: against other programs."""

import contextlib
import copy
import io
import math

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation.analysis import analyze_detections, compare_detections
from detectron2.evaluation.analysis._matching import find_overlaps
from detectron2.evaluation.analysis.inputs import read_found, read_truth


def random_case(seed, images=8, classes=3, keypoints=0, is_lvis=False):
    """Ground truth with crowds (not in LVIS), ties of scores, areas that differ from the box, and predictions."""
    rng = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": []}
    rows = []
    for c in range(1, classes + 1):
        content["categories"].append({"id": c, "name": f"c{c}", "frequency": "rcf"[c % 3]})
    for i in range(1, images + 1):
        content["images"].append({"id": i, "height": 200, "width": 200})
        for _ in range(int(rng.integers(0, 7))):
            wh = np.exp(rng.normal(3.6, 0.9, 2)).clip(3, 150)
            xy = rng.uniform(0, 1, 2) * (200 - wh)
            label = int(rng.integers(1, classes + 1))
            shape = {"bbox": [*xy.tolist(), *wh.tolist()], "area": float(wh.prod() * rng.choice([1, 0.5]))}
            points = np.concatenate([xy + wh * rng.random((keypoints, 2)), rng.integers(0, 3, (keypoints, 1))], 1)
            points[:, 2] *= rng.random() > 0.2
            if keypoints:
                shape |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
            crowd = 0 if is_lvis else int(rng.random() < 0.12)
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": i, "category_id": label, "iscrowd": crowd, **shape}
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = points[:, :2] + rng.normal(0, 0.06, (keypoints, 2)) * wh
                rows.append(_row(i, label if rng.random() < 0.8 else 1, shape["bbox"], moved, rng))
        wh = rng.uniform(10, 60, 2)
        rows.append(
            _row(i, int(rng.integers(1, classes + 1)), [20, 30, *wh], 20 + wh * rng.random((keypoints, 2)), rng)
        )
    if is_lvis:
        for image in content["images"]:
            here = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
            absent = [c for c in range(1, classes + 1) if c not in here]
            image["neg_category_ids"] = [c for c in absent if rng.random() < 0.5]
            image["not_exhaustive_category_ids"] = [c for c in sorted(here) if rng.random() < 0.3]
    return content, rows


def _row(image, label, box, points, rng):
    box = np.array(box) + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2)
    box[2:] = box[2:].clip(1)
    row = {"image_id": image, "category_id": label, "bbox": box.tolist(), "score": float(rng.integers(1, 20)) / 20}
    if len(points):
        row["keypoints"] = np.concatenate([points, np.ones((len(points), 1))], 1).ravel().tolist()
    return row


def reference(content, rows, kind, sigmas=None):
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(content)
        api.createIndex()
        engine = COCOeval(api, api.loadRes(copy.deepcopy(rows)), kind)
        if sigmas is not None:
            engine.params.kpt_oks_sigmas = np.array(sigmas)
        for step in (engine.evaluate, engine.accumulate, engine.summarize):
            step()
    return engine


def without_minus_one(values):
    return np.where(np.asarray(values) < 0, np.nan, values)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_as_pycocotools(seed):
    content, rows = random_case(seed)
    result, engine = analyze_detections(content, rows), reference(content, rows, "bbox")
    assert list(result.metrics)[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"] and len(result.metrics) == 12
    np.testing.assert_allclose(list(result.metrics.values()), without_minus_one(engine.stats), atol=1e-12)
    for k, scores in enumerate(result.per_class):
        for place, value in enumerate(scores.area_ap.values(), 1):
            table = without_minus_one(engine.eval["precision"][:, :, k, place, -1])
            assert value == pytest.approx(table.mean(), nan_ok=True)


@pytest.mark.parametrize(("seed", "count"), [(0, 17), (1, 17), (2, 5)])
def test_keypoints_as_pycocotools(seed, count):
    content, rows = random_case(seed, classes=2, keypoints=count)
    sigmas = () if count == 17 else np.linspace(0.03, 0.1, count).tolist()
    result = analyze_detections(content, rows, "keypoints", kpt_oks_sigmas=sigmas)
    engine = reference(content, rows, "keypoints", sigmas or None)
    assert list(result.metrics) == ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    np.testing.assert_allclose(list(result.metrics.values()), without_minus_one(engine.stats), atol=1e-12)
    assert 0.01 < result.overall.ap < 0.99
    assert len(result.keypoints) == count and result.keypoints[0].name == "1"
    without_size = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    engine = reference(content, without_size, "keypoints", sigmas or None)
    result = analyze_detections(content, without_size, "keypoints", kpt_oks_sigmas=sigmas)
    np.testing.assert_allclose(list(result.metrics.values()), without_minus_one(engine.stats), atol=1e-12)


def test_one_keypoint_by_hand():
    # A shift by d is worth exp(-d^2 / (2 area (2 sigma)^2)): with area 100 and sigma 0.1, 2 pixels are worth exp(-1/2).
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a", "keypoints": ["tip", "tail"]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 9, 9],
                "area": 100,
                "keypoints": [5, 5, 2, 8, 8, 1],
            },
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 0, 9, 9], "area": 100, "keypoints": [0] * 6},
        ],
    }
    row = {"image_id": 1, "category_id": 1, "keypoints": [5, 7, 0.9, 8, 8, 0.9], "score": 0.9}
    result = analyze_detections(content, [row], "keypoints", 0.8, kpt_oks_sigmas=[0.1, 0.1])
    assert [(k.name, k.count) for k in result.keypoints] == [("tip", 1), ("tail", 1)]
    assert [k.similarity for k in result.keypoints] == pytest.approx([math.exp(-0.5), 1.0])
    assert result.is_right.tolist() == [True]  # OKS 0.803
    assert analyze_detections(content, [row], "keypoints", 0.81, kpt_oks_sigmas=[0.1] * 2).is_right.tolist() == [False]
    assert result.is_ignored.tolist() == [False, True] and result.overall.num_objects == 1
    assert analyze_detections(content, [row], "keypoints", kpt_oks_sigmas=[0.1] * 2).overall.ap75 == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_lvis_as_hotcoco(seed):
    content, rows = random_case(seed, classes=7, is_lvis=True)
    result = analyze_detections(content, rows)
    truth = hotcoco.COCO(content)
    engine = hotcoco.COCOeval(truth, truth.load_res(copy.deepcopy(rows)), "bbox", lvis_style=True)
    with contextlib.redirect_stdout(io.StringIO()):
        engine.run()
    expected = engine.get_results()
    for name, value in result.metrics.items():
        key = {"AR300": "AR@300", "ARs": "ARs@300", "ARm": "ARm@300", "ARl": "ARl@300"}.get(name, name)
        assert value == pytest.approx(math.nan if expected[key] < 0 else expected[key], nan_ok=True), name
    assert any("searched for some classes" in note for note in result.notes)


def test_what_nobody_looked_for_is_no_mistake():
    box, other = [0, 0, 9, 9], [50, 50, 9, 9]
    content = {
        "images": [
            {"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
            {"id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": [1]},
        ],
        "categories": [{"id": c, "name": f"c{c}"} for c in (1, 2, 3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 81} for i in (1, 2)],
    }
    rows = [
        {"image_id": image, "category_id": label, "bbox": place, "score": 0.9}
        for image, label, place in ((1, 1, box), (1, 2, other), (1, 3, other), (2, 1, other), (2, 2, box))
    ]
    result = analyze_detections(content, rows)
    # class 2 is known not to be in image 1; of class 3 nothing is known, nor of class 2 in image 2; and image 2 may
    # have more of class 1 than are annotated
    assert result.is_counted.tolist() == [True, True, False, False, False]
    assert result.errors["background"].count == 1 and result.errors["classification"].count == 0
    assert result.confusion.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert result.per_class[0].num_detections == 1
    assert [(s.num_right, s.num_wrong, s.num_missed) for s in result.per_image] == [(1, 1, 0), (0, 0, 1)]
    comparison = compare_detections(content, rows[1:], rows, num_resamples=10)
    assert comparison.metrics["AP"].delta == pytest.approx(51 / 101)


def test_only_the_best_of_an_image_count():
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}],
    }
    rows = [{"image_id": 1, "category_id": 1, "bbox": [50, 50, 9, 9], "score": 0.9 - n / 1000} for n in range(100)]
    late = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.1}
    result = analyze_detections(content, [late, *rows])
    assert result.overall.ap == 0 and not result.is_counted[0] and result.is_counted[1:].all()
    assert any("1 of 101 detections are not among the best" in note for note in result.notes)
    assert analyze_detections(content, [late, *rows[1:]]).overall.ap == pytest.approx(0.01)


BOX = st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 50)] * 2).map(list)


@settings(max_examples=30, deadline=None)
@given(st.lists(BOX, max_size=4), st.lists(BOX, max_size=4), st.floats(-40, 40))
def test_laws_of_overlaps(first, second, shift):
    def values(truth, found, key=lambda d, g: (d, g)):
        content = {
            "images": [{"id": 1}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": b, "area": 1} for n, b in enumerate(truth, 1)
            ],
        }
        gt = read_truth(content, "bbox")
        dt = read_found([{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.5} for b in found], gt)
        pairs = find_overlaps(gt, dt, 0.0)
        return {key(*p): v for *p, v in zip(pairs.detection, pairs.object, pairs.value, strict=True)}

    one, other = values(first, second), values(second, first, lambda d, g: (g, d))
    assert one.keys() == other.keys() and len(one) == len(first) * len(second)
    assert all(one[k] == pytest.approx(other[k]) for k in one)
    assert all(0 <= v <= 1 + 1e-12 for v in one.values())
    moved = values(*([[x + shift, y + shift, w, h] for x, y, w, h in boxes] for boxes in (first, second)))
    assert all(one[k] == pytest.approx(moved[k], abs=1e-9) for k in one)
    assert all(values(first, first)[n, n] == pytest.approx(1.0) for n in range(len(first)))
