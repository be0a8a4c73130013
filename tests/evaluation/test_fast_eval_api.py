import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation.fast_eval_api import COCOeval_opt


@pytest.fixture
def both(tools):
    """The same ground truth and detections for either evaluator."""
    dataset = tools.random_coco(8)
    results = [
        {"image_id": i["image_id"], "category_id": 11 + int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(s)}
        for i, o in tools.jittered(dataset, 8)
        for (x1, y1, x2, y2), s, c in zip(
            o["instances"].pred_boxes.tensor.tolist(), o["instances"].scores, o["instances"].pred_classes, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = dataset
        gt.createIndex()
        return gt, gt.loadRes(results)


def finish(evaluator):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def changes():
    return {
        "none": {},
        "images": {"imgIds": [1, 3]},
        "classes": {"catIds": [12]},
        "class-agnostic": {"useCats": 0},
        "thresholds": {"iouThrs": np.array([0.3, 0.5, 0.75])},
        "limits": {"maxDets": [1, 2, 100]},
    }


def renamed(dataset, name):
    """The same data set under other image ids."""
    renamed = COCO()
    renamed.dataset = {
        **dataset.dataset,
        "images": [{**i, "id": name(i["id"])} for i in dataset.dataset["images"]],
        "annotations": [{**a, "image_id": name(a["image_id"])} for a in dataset.dataset["annotations"]],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        renamed.createIndex()
    return renamed


@pytest.mark.parametrize("name", [lambda i: f"{i:04d}.jpg", lambda i: -i], ids=["text", "negative"])
def test_any_image_id(both, name):
    other = [renamed(dataset, name) for dataset in both]
    expected, mine = finish(COCOeval(*other, "bbox")), COCOeval_opt(*other, "bbox")
    finish(mine)
    np.testing.assert_allclose(mine.stats, expected.stats, atol=1e-12)
    assert [e and e["image_id"] for e in mine.evalImgs] == [e and e["image_id"] for e in expected.evalImgs]
    for evaluator in (expected, mine):
        evaluator.params.imgIds = [name(1), name(3)]
    np.testing.assert_allclose(finish(mine).stats, finish(expected).stats, atol=1e-12)


def test_text_ids_that_no_image_has(both):
    results = []
    for kind in (COCOeval, COCOeval_opt):
        evaluator = kind(*(renamed(dataset, str) for dataset in both), "bbox")
        evaluator.params.imgIds = ["1", "3", "nowhere"]
        results.append(finish(evaluator).stats)
    np.testing.assert_allclose(results[1], results[0], atol=1e-12)


@pytest.mark.parametrize("change", list(changes()))
def test_same_numbers_as_pycocotools(both, change):
    pair = [COCOeval(*both, "bbox"), COCOeval_opt(*both, "bbox")]
    for evaluator in pair:
        for name, value in changes()[change].items():
            setattr(evaluator.params, name, value)
    expected, mine = map(finish, pair)
    np.testing.assert_allclose(mine.stats, expected.stats, atol=1e-12)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(mine.eval[name], expected.eval[name], atol=1e-12)
    assert mine.eval["params"] is mine.params


def test_edits_of_the_ground_truth_are_seen(both):
    gt, dt = both
    assert finish(COCOeval_opt(gt, dt, "bbox")).stats[0] > 0
    gt.dataset["annotations"] = []
    assert finish(COCOeval_opt(gt, dt, "bbox")).stats[0] == -1


@pytest.mark.parametrize("use_cats", [0, 1])
def test_matches_of_each_image_are_where_pycocotools_has_them(both, use_cats):
    pair = [COCOeval(*both, "bbox"), COCOeval_opt(*both, "bbox")]
    assert pair[1].evalImgs == []
    for evaluator in pair:
        evaluator.params.useCats = use_cats
        finish(evaluator)
    expected, mine = pair[0].evalImgs, pair[1].evalImgs
    assert len(mine) == len(expected) > 0
    for a, b in zip(expected, mine, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a["image_id"], a["aRng"]) == (b["image_id"], b["aRng"])
            np.testing.assert_allclose(a["dtScores"], b["dtScores"])
            np.testing.assert_array_equal(a["dtMatches"], b["dtMatches"])


def outcome(kind, gt, dt, iou_type="bbox", **params):
    """The tables of an evaluation, or the class of its error."""
    loaded = []
    for dataset in copy.deepcopy([gt, dt]):
        coco = COCO()
        coco.dataset = dataset
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        loaded.append(coco)
    evaluator = kind(*loaded, iou_type)
    vars(evaluator.params).update(params)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
    except Exception as e:
        return type(e)
    return {name: evaluator.eval[name] for name in ("counts", "precision", "recall", "scores")}


def assert_same(*args, **params):
    expected, mine = (outcome(kind, *args, **params) for kind in (COCOeval, COCOeval_opt))
    assert isinstance(mine, type) == isinstance(expected, type)
    if isinstance(expected, type):
        assert mine is expected
    else:
        for name in expected:
            np.testing.assert_allclose(mine[name], expected[name], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("content", ["both", "no detections", "no ground truth", "neither"])
@pytest.mark.parametrize(
    "params",
    [
        {"useCats": 0},
        {"useCats": 0, "catIds": []},
        {"catIds": []},
        {"imgIds": []},
        {"iouThrs": []},
        {"recThrs": []},
        {"maxDets": []},
        {"maxDets": [1]},
        {"maxDets": [5, 1]},
        {"maxDets": [-1, 3]},
        {"areaRng": []},
        {"areaRng": [], "areaRngLbl": []},
        {"areaRngLbl": ["all"]},
        {"recThrs": [0.5, 0.0]},
        {"useCats": 2},
        {"imgIds": ["1"]},
        {"catIds": ["11"]},
        {"useSegm": 0},
    ],
    ids=str,
)
def test_every_setting_gives_what_pycocotools_gives(both, params, content):
    gt, dt = both[0].dataset, both[1].dataset
    if content in ("no detections", "neither"):
        dt = {**dt, "annotations": []}
    if content in ("no ground truth", "neither"):
        gt = {**gt, "annotations": []}
    assert_same(gt, dt, **params)


@pytest.mark.parametrize("use_cats", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        *("iscrowd", "score", "area", "bbox", {"score": None}, {"bbox": []}, {"id": 1}, {"id": 0}, {"id": -3}),
        *({"id": 2**70}, {"image_id": "1"}, {"category_id": None}, {"category_id": -1}, {"bbox": ["5"] * 4}),
    ],
    ids=str,
)
def test_odd_annotations_are_taken_as_pycocotools_takes_them(both, change, side, use_cats):
    datasets = copy.deepcopy([both[0].dataset, both[1].dataset])
    annotation = datasets[side]["annotations"][3]
    if isinstance(change, str):
        annotation.pop(change, None)
    else:
        annotation.update(change)
    assert_same(*datasets, useCats=use_cats)


def test_accumulate_before_evaluate_is_explained(both):
    with pytest.raises(AttributeError, match="evaluate"):
        COCOeval_opt(*both, "bbox").accumulate()


def test_accumulate_takes_other_parameters(both):
    pair = [COCOeval(*both, "bbox"), COCOeval_opt(*both, "bbox")]
    for evaluator in pair:
        finish(evaluator)
        params = copy.deepcopy(evaluator.params)
        params.maxDets = [1]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate(params)
    expected, mine = pair
    np.testing.assert_allclose(mine.eval["precision"], expected.eval["precision"], atol=1e-12)
    assert mine.eval["precision"].shape[-1] == 1


@pytest.mark.parametrize(
    "params",
    [
        {"maxDets": [1, 10]},
        {"recThrs": np.linspace(0, 1, 11)},
        {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"]},
        {"imgIds": [1, 3]},
        {"catIds": [12]},
        {"useCats": 0},
        {"iouThrs": [0.5]},
    ],
    ids=str,
)
def test_parameters_may_change_between_evaluate_and_accumulate(both, params):
    results = []
    for kind in (COCOeval, COCOeval_opt):
        evaluator = finish(kind(*both, "bbox"))
        vars(evaluator.params).update(params)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                evaluator.accumulate()
            except IndexError:  # of pycocotools, for fewer thresholds
                results.append(None)
                continue
        results.append(evaluator.eval["precision"])
    np.testing.assert_equal(results[1], results[0])


def test_matches_can_be_joined_from_parts(both):
    """As scripts do that evaluate a part of the images in each process."""
    expected, parts = finish(COCOeval(*both, "bbox")), []
    images = expected.params.imgIds
    for part in (images[:3], images[3:]):
        evaluator = COCOeval_opt(*both, "bbox")
        evaluator.params.imgIds = part
        evaluator.evaluate()
        parts.append(np.array(evaluator.evalImgs, dtype=object).reshape(-1, 4, len(part)))
    evaluator.evalImgs = np.concatenate(parts, axis=2).ravel().tolist()
    evaluator.params.imgIds = images
    evaluator._paramsEval = copy.deepcopy(evaluator.params)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
        evaluator.summarize()
    np.testing.assert_allclose(evaluator.stats, expected.stats, atol=1e-12)


@pytest.mark.parametrize("use_cats", [0, 1])
def test_overlaps_are_there_when_asked_for(both, use_cats):
    pair = [COCOeval(*both, "bbox"), COCOeval_opt(*both, "bbox")]
    assert pair[1].ious == {}
    for evaluator in pair:
        evaluator.params.useCats = use_cats
        finish(evaluator)
    matches = pair[1].evalImgs
    assert pair[1].ious.keys() == pair[0].ious.keys()
    for key, overlaps in pair[0].ious.items():
        np.testing.assert_array_equal(pair[1].ious[key], overlaps)
    np.testing.assert_equal(pair[1].evalImgs, matches)  # reading them changes nothing else


def test_keypoints_of_all_classes_together(both):
    """They are never matched by pycocotools, which has no overlaps of them."""
    datasets = copy.deepcopy([both[0].dataset, both[1].dataset])
    for annotation in datasets[0]["annotations"] + datasets[1]["annotations"]:
        x, y = annotation["bbox"][:2]
        annotation.update(keypoints=[x, y, 2] * 17, num_keypoints=17)
    assert_same(*datasets, iou_type="keypoints", useCats=0)


@pytest.mark.parametrize("segmentation", [None, []])
def test_objects_without_a_mask(both, segmentation):
    datasets = copy.deepcopy([both[0].dataset, both[1].dataset])
    datasets[0]["annotations"][3]["segmentation"] = segmentation
    assert_same(*datasets, iou_type="segm")
