"""Where hotcoco and the analysis agree, and where they differ, which is why the analysis counts on its own."""

import contextlib
import copy
import io

import hotcoco
import numpy as np
import pytest
from pycocotools import mask as mask_util

from detectron2.evaluation import analyze_detections

SIZE = 200
TIDE = {
    "Cls": "classification",
    "Loc": "localization",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def octagon(box):
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    return [np.stack([x + w / 2 + w / 2 * np.cos(angle), y + h / 2 + h / 2 * np.sin(angle)], 1).ravel().tolist()]


def run_lengths(box):
    rle = mask_util.merge(mask_util.frPyObjects(octagon(box), SIZE, SIZE))
    return {**rle, "counts": rle["counts"].decode()}


def random_case(seed, kind):
    """Ground truth with crowd regions (not in LVIS), and predictions: near, moved, of other classes, of nothing."""
    rng = np.random.default_rng(seed)
    images, objects, rows = [], [], []
    for image in range(1, 11):
        images.append({"id": image, "height": SIZE, "width": SIZE})
        for _ in range(int(rng.integers(0, 6))):
            wh = rng.uniform(8, 120, 2)
            box = np.concatenate([rng.uniform(0, 1, 2) * (SIZE - wh), wh])
            label, points = int(rng.integers(1, 5)), box[:2] + wh * rng.random((17, 2))
            crowd = int(rng.random() < 0.1 and kind != "lvis")
            entry = {"id": len(objects) + 1, "image_id": image, "category_id": label, "iscrowd": crowd}
            entry |= {"bbox": box.tolist(), "area": float(wh.prod()), "segmentation": octagon(box)}
            entry |= {"segmentation": run_lengths(box)} if crowd else {}
            entry |= {"keypoints": np.c_[points, np.full(17, 2)].ravel().tolist(), "num_keypoints": 17}
            objects.append(entry)
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.normal(0, 0.12, 4) * np.tile(wh, 2)
                moved[2:] = moved[2:].clip(2)
                guess = label if rng.random() < 0.8 else int(rng.integers(1, 5))
                rows.append(row(image, guess, moved, points + rng.normal(0, 0.06, (17, 2)) * wh, rng))
        rows.append(row(image, int(rng.integers(1, 5)), rng.uniform(5, 60, 4), rng.uniform(0, SIZE, (17, 2)), rng))
    if kind == "lvis":
        for image in images:
            here = {o["category_id"] for o in objects if o["image_id"] == image["id"]}
            image["neg_category_ids"] = [k for k in range(1, 5) if k not in here and rng.random() < 0.5]
            image["not_exhaustive_category_ids"] = [k for k in sorted(here) if rng.random() < 0.3]
    categories = [{"id": k, "name": f"c{k}", "frequency": "rcf"[k % 3]} for k in range(1, 5)]
    return {"images": images, "annotations": objects, "categories": categories}, rows


def row(image, label, box, points, rng):
    shape = {"bbox": box.tolist(), "segmentation": run_lengths(box)}
    shape["keypoints"] = np.c_[points, np.ones(17)].ravel().tolist()
    return {"image_id": image, "category_id": label, "score": float(rng.uniform(0.01, 0.99)), **shape}


def both(seed, kind):
    """The analysis, and hotcoco's evaluation of the same."""
    task = "bbox" if kind == "lvis" else kind
    content, rows = random_case(seed, kind)
    if task != "keypoints":
        for entry in [*content["annotations"], *rows]:
            del entry["keypoints"]
    if task != "segm":
        for entry in [*content["annotations"], *rows]:
            del entry["segmentation"]
    truth = hotcoco.COCO(copy.deepcopy(content))
    engine = hotcoco.COCOeval(truth, truth.load_res(copy.deepcopy(rows)), task, lvis_style=kind == "lvis")
    with contextlib.redirect_stdout(io.StringIO()):
        engine.run()
    return analyze_detections(content, rows, task, score_threshold=0.0), engine


KINDS = ("bbox", "segm", "keypoints", "lvis")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_classes_is_equal(seed, kind):
    result, engine = both(seed, kind)
    precision = np.where(engine.eval["precision"] < 0, np.nan, engine.eval["precision"])[:, :, :, 0, -1]
    recall = np.where(engine.eval["recall"] < 0, np.nan, engine.eval["recall"])[:, :, 0, -1]
    np.testing.assert_allclose([s.ap for s in result.per_class], precision.mean((0, 1)), atol=1e-12)
    np.testing.assert_allclose([s.ar for s in result.per_class], recall.mean(0), atol=1e-12)
    np.testing.assert_allclose(result.precision, precision[0].T, atol=1e-12)
    assert 0.02 < result.overall.ap < 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_of_images_are_equal(seed, kind):
    result, engine = both(seed, kind)
    theirs = engine.image_diagnostics()["img_summary"]
    for image in result.per_image:
        counts = theirs.get(image.image_id, {"tp": 0, "fp": 0, "fn": 0})
        assert (image.num_right, image.num_wrong, image.num_missed) == (counts["tp"], counts["fp"], counts["fn"])
    assert sum(image.num_right for image in result.per_image) > 5


@pytest.mark.parametrize("kind", ["bbox", "segm", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_errors_of_all_classes_are_equal_but_for_keypoints(seed, kind):
    result, engine = both(seed, kind)
    theirs = engine.tide_errors()
    assert {TIDE[name]: count for name, count in theirs["counts"].items()} == {
        name: error.count for name, error in result.errors.items()
    }
    for name, ours in TIDE.items():
        assert theirs["delta_ap"][name] == pytest.approx(result.errors[ours].delta_ap, abs=1e-12)
    gains = [theirs["delta_ap"]["FP"], theirs["delta_ap"]["FN"]]
    assert gains == pytest.approx([result.gains["false positives"], result.gains["false negatives"]], abs=1e-12)


def test_errors_of_keypoints_differ():
    # Why is not known: ours takes the OKS throughout, and with the overlap of boxes instead the counts differ as well.
    pairs = [both(seed, "keypoints") for seed in range(3)]
    ours = [[e.count for e in result.errors.values()] for result, _ in pairs]
    theirs = [[engine.tide_errors()["counts"][name] for name in TIDE] for _, engine in pairs]
    assert ours != theirs, "hotcoco now agrees: its tide_errors can replace ours for keypoints"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_calibration_is_equal(seed, kind):
    result, engine = both(seed, kind)
    theirs = engine.calibration()
    assert theirs["ece"] == pytest.approx(result.overall.calibration_error, abs=1e-12)
    assert [b["count"] for b in theirs["bins"]] == [b.count for b in result.calibration]
    for scores in result.per_class:
        if scores.num_detections:
            assert theirs["per_category"][scores.name] == pytest.approx(scores.calibration_error, abs=1e-12)


@pytest.mark.parametrize("tenths", range(11))
def test_a_score_on_an_edge_lies_in_the_bin_that_begins_there(tenths):
    # 0.3, 0.6 and 0.7 are less than three, six and seven times the float 0.1.
    content = {
        "images": [{"id": 1, "height": 9, "width": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
        ],
    }
    rows = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": tenths / 10}]
    truth = hotcoco.COCO(copy.deepcopy(content))
    engine = hotcoco.COCOeval(truth, truth.load_res(copy.deepcopy(rows)), "bbox")
    engine.evaluate()
    ours = [b.count for b in analyze_detections(content, rows).calibration]
    assert ours == [b["count"] for b in engine.calibration()["bins"]]
    assert ours.index(1) == min(tenths, 9)


def test_confusion_differs():
    # Two detections of one object: a better score with the wrong class, a better overlap with the right one. hotcoco
    # lets the score decide, so the object counts as confused although it was found; here what is right counts first.
    content = {
        "images": [{"id": 1, "height": 99, "width": 99}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0},
        ],
    }
    rows = [
        {"image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 15], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.8},
    ]
    truth = hotcoco.COCO(copy.deepcopy(content))
    theirs = hotcoco.COCOeval(truth, truth.load_res(copy.deepcopy(rows)), "bbox").confusion_matrix()["matrix"]
    assert analyze_detections(content, rows).confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert theirs.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_slices_are_of_images():
    # `slice_by` takes images, each once: neither parts of the objects of an image, nor resamples with repetitions.
    result, engine = both(0, "bbox")
    ids = [image.image_id for image in result.per_image]
    slices = engine.slice_by({"once": ids[:5], "twice": ids[:5] * 2})
    assert slices["once"]["AP"] == slices["twice"]["AP"] and slices["twice"]["num_images"] == 5
    assert set(result.parts) == {"area", "width / height", "objects in the image"}
