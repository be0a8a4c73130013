"""The numbers of `COCOEvaluator` are those of pycocotools, on data that has something of everything."""

import contextlib
import io
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation._coco_format import load_coco_api
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH, KEYPOINTS = 60, 80, 3
SIGMAS = [0.1, 0.05, 0.2]
# Classes, by what there is of them.
BOTH, ONLY_TRUTH, ONLY_FOUND, NEITHER = 11, 12, 15, 17
CATEGORIES = [{"id": c, "name": str(c)} for c in (BOTH, ONLY_TRUTH, ONLY_FOUND, NEITHER)]
NAMES = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


def random_objects(rng, images, objects, crowd):
    """A data set in which every kind of image and of class is likely."""
    annotations = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, objects + 1))):
            x, y, w, h = *rng.uniform(0, 35, 2), *rng.uniform(3, 25, 2)
            points = np.c_[rng.uniform([x, y], [x + w, y + h], (KEYPOINTS, 2)), rng.integers(0, 3, KEYPOINTS)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice([BOTH, BOTH, ONLY_TRUTH])),
                    "bbox": [x, y, w, h],
                    # any size, so that objects fall into all ranges of areas, and on their borders
                    "area": float(rng.choice([w * h, 32**2, 31.9**2, 96**2, 5000, 1e5])),
                    "iscrowd": int(rng.random() < crowd),
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x + w / 2, y + h, x, y + h / 2]],
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
    return {
        "info": {},
        "images": [{"id": i, "file_name": "", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def random_detections(rng, dataset, count):
    """Per image the results of COCO as dictionaries, and the same as `Instances`."""
    contiguous = {c["id"]: k for k, c in enumerate(CATEGORIES)}
    for image in dataset["images"]:
        mine = [a for a in dataset["annotations"] if a["image_id"] == image["id"] and a["category_id"] == BOTH]
        rows = []
        for _ in range(int(rng.integers(0, count + 1))):
            if mine and rng.random() < 0.7:
                near = mine[int(rng.integers(len(mine)))]
                bbox, label = np.array(near["bbox"]) + rng.normal(0, 0.8, 4), BOTH
                points = np.array(near["keypoints"]).reshape(-1, 3) + rng.normal(0, 0.8, (KEYPOINTS, 3))
            else:
                bbox, label = np.array([*rng.uniform(0, 35, 2), *rng.uniform(3, 25, 2)]), int(rng.choice([BOTH, 15]))
                points = np.c_[rng.uniform(0, 50, (KEYPOINTS, 2)), rng.random(KEYPOINTS)]
            bbox = np.maximum(bbox, [0, 0, 1, 1]).astype(np.float32).astype(float)
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
            x, y, w, h = bbox.round().astype(int)
            mask[y : y + h, x : x + w] = 1
            # few scores, so that there are ties
            rows.append((bbox, label, float(rng.integers(1, 9)) / 8, mask, points.astype(np.float32)))
        results = [
            {
                "image_id": image["id"],
                "category_id": label,
                "bbox": bbox.tolist(),
                "score": score,
                "segmentation": mask_util.encode(mask),
                "keypoints": points.astype(float).ravel().tolist(),
            }
            for bbox, label, score, mask, points in rows
        ]
        instances = Instances((HEIGHT, WIDTH))
        xyxy = np.array([[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b, *_ in rows]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.from_numpy(xyxy))
        instances.pred_boxes.tensor = torch.from_numpy(xyxy)  # doubles, in which width and height are exact
        instances.pred_classes = torch.tensor([contiguous[r[1]] for r in rows], dtype=torch.int64)
        instances.scores = torch.tensor([r[2] for r in rows], dtype=torch.float64)
        masks = np.array([r[3] for r in rows], dtype=bool).reshape(-1, HEIGHT, WIDTH)
        instances.pred_masks = torch.from_numpy(masks)
        points = torch.from_numpy(np.array([r[4] for r in rows]).reshape(-1, KEYPOINTS, 3)).double()
        points[..., :2] += 0.5
        instances.pred_keypoints = points
        yield image["id"], results, instances


def by_pycocotools(dataset, results, task, limits):
    """A finished evaluation by pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(dataset))
        truth.createIndex()
        unwanted = {"bbox": ("segmentation", "keypoints"), "segm": ("bbox", "keypoints"), "keypoints": ()}[task]
        found = truth.loadRes([{k: v for k, v in r.items() if k not in unwanted} for r in results])
        evaluator = COCOeval(truth, found, task)
        if task == "keypoints":
            evaluator.params.kpt_oks_sigmas = np.array(SIGMAS)
        else:
            evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def mean_of(table):
    """In percent, of what is defined."""
    return 100 * float(table[table > -1].mean()) if (table > -1).any() else math.nan


def expected_metrics(judge, task):
    """The metrics by pycocotools' table of precisions, (T, R, K, A, M), with the largest limit."""
    precision, params = judge.eval["precision"][..., -1], judge.params
    expected = {}
    for name in NAMES[task]:
        area = params.areaRngLbl.index({"APs": "small", "APm": "medium", "APl": "large"}.get(name, "all"))
        part = precision[..., area]
        if name in ("AP50", "AP75"):
            part = part[np.isclose(params.iouThrs, int(name[2:]) / 100)]
        expected[name] = mean_of(part)
    return expected | {f"AP-{c['name']}": mean_of(precision[:, :, k, 0]) for k, c in enumerate(CATEGORIES)}


@pytest.fixture
def compare(coco):
    """Evaluate random data with `COCOEvaluator` and pycocotools, and compare all numbers."""

    def run(seed, task, fast, images=4, objects=5, crowd=0.2, detections=7, limit=100):
        rng = np.random.default_rng(seed)
        dataset = random_objects(rng, images, objects, crowd)
        found = list(random_detections(rng, dataset, detections))
        evaluator = COCOEvaluator(
            coco(dataset), (task,), False, use_fast_impl=fast, max_dets_per_image=limit, kpt_oks_sigmas=SIGMAS
        )
        evaluator.reset()
        for image_id, _, instances in found:
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        mine = evaluator.evaluate()[task]
        results = [r for _, of_image, _ in found for r in of_image]
        if not results:
            assert set(mine) == set(NAMES[task]) and all(math.isnan(value) for value in mine.values())
            return mine
        expected = expected_metrics(by_pycocotools(dataset, results, task, evaluator._max_dets_per_image), task)
        assert set(mine) == set(expected)
        for name, value in expected.items():
            assert mine[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
        return mine

    return run


TASKS = pytest.mark.parametrize("task", list(NAMES))
ENGINES = pytest.mark.parametrize("fast", [True, False], ids=["fast", "pycocotools"])


@TASKS
@ENGINES
def test_no_predictions_and_no_objects(compare, task, fast):
    compare(0, task, fast, images=2, objects=0, detections=0)
    compare(0, task, fast, images=2, objects=4, detections=0)
    nothing = compare(0, task, fast, images=2, objects=0, detections=5)
    assert all(math.isnan(value) for value in nothing.values())


@TASKS
@ENGINES
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), crowd=st.sampled_from([0.0, 0.3, 1.0]), objects=st.integers(0, 6))
def test_everything_together(compare, task, fast, seed, crowd, objects):
    mine = compare(seed, task, fast, objects=objects, crowd=crowd)
    # of a class without objects there is no AP, whether it was predicted or not
    assert all(math.isnan(mine.get(f"AP-{c}", math.nan)) for c in (ONLY_FOUND, NEITHER))


@TASKS
@ENGINES
def test_classes_of_each_kind(compare, task, fast):
    mine = compare(3, task, fast, images=6, crowd=0.1)
    assert 0 < mine[f"AP-{BOTH}"] < 100 and mine[f"AP-{ONLY_TRUTH}"] == 0
    assert math.isnan(mine[f"AP-{ONLY_FOUND}"]) and math.isnan(mine[f"AP-{NEITHER}"])


@ENGINES
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [5, 100, 130, 300])
def test_many_detections_on_one_image(compare, task, fast, limit):
    """Boxes of two hundred detections of one class, of which the limit counts."""
    mine = compare(1, task, fast, images=2, objects=60, detections=220, limit=limit)
    assert 0 < mine["AP"] < 100


@TASKS
def test_tables_are_those_of_pycocotools(coco, task):
    """`_evaluate_predictions_on_coco` gives what projects read, to the last digits."""
    rng = np.random.default_rng(5)
    dataset = random_objects(rng, 5, 6, 0.2)
    results = [r for _, of_image, _ in random_detections(rng, dataset, 9) for r in of_image]
    wanted = [{k: v for k, v in r.items() if k != "bbox" or task != "segm"} for r in results]
    api = load_coco_api(MetadataCatalog.get(coco(dataset)).json_file)
    expected = by_pycocotools(dataset, results, task, [1, 10, 100])
    with contextlib.redirect_stdout(io.StringIO()):
        expected.summarize()
    for mine in (
        _evaluate_predictions_on_coco(api, wanted, task, kpt_oks_sigmas=SIGMAS, use_fast_impl=True),
        _evaluate_predictions_on_coco(api, wanted, task, kpt_oks_sigmas=SIGMAS, use_fast_impl=False),
        as_drop_in(expected, task),
    ):
        np.testing.assert_allclose(mine.stats, expected.stats, atol=1e-12)
        for name in ("precision", "recall", "scores"):
            assert mine.eval[name].shape == expected.eval[name].shape
            np.testing.assert_allclose(mine.eval[name], expected.eval[name], atol=1e-12)
        assert list(mine.params.catIds) == list(expected.params.catIds)
        assert list(mine.params.imgIds) == list(expected.params.imgIds)
        assert mine.params.areaRngLbl == expected.params.areaRngLbl
        np.testing.assert_array_equal(mine.params.recThrs, expected.params.recThrs)


def as_drop_in(judge, task):
    """The published interface of `COCOeval_opt`, on the data of pycocotools."""
    mine = COCOeval_opt(judge.cocoGt, judge.cocoDt, task)
    if task == "keypoints":
        mine.params.kpt_oks_sigmas = np.array(SIGMAS)
    with contextlib.redirect_stdout(io.StringIO()):
        mine.evaluate()
        mine.accumulate()
        mine.summarize()
    return mine
