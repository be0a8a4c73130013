import json
import math

import hotcoco
import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator
from detectron2.evaluation._coco_format import load_coco_api
from detectron2.evaluation._coco_scoring import _evaluate_predictions_on_coco
from detectron2.evaluation._coco_table import ResultTable
from detectron2.evaluation.lvis_evaluation import _evaluate_predictions_on_lvis
from detectron2.structures import Boxes, Instances

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


# --- the protocol in plain loops --------------------------------------------------------------------------------------


def iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    w, h = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    shared = max(w, 0) * max(h, 0)
    return shared / (aw * ah + bw * bh - shared)


def match_image(truth, found, threshold, area, exhaustive):
    """Return [(score, hit, ignored)] and the number of objects that count."""
    low, high = area
    truth = sorted(truth, key=lambda a: not low <= a["area"] <= high)  # those that count come first
    counts = [low <= a["area"] <= high for a in truth]
    taken, rows = set(), []
    for d in sorted(found, key=lambda d: -d["score"]):
        best, best_iou = None, threshold
        for g, a in enumerate(truth):
            if g in taken:
                continue
            if best is not None and counts[best] and not counts[g]:
                break
            overlap = iou(d["bbox"], a["bbox"])
            if overlap >= best_iou:
                best, best_iou = g, overlap
        if best is None:
            outside = not low <= d["bbox"][2] * d["bbox"][3] <= high
            rows.append((d["score"], False, outside or not exhaustive))
        else:
            taken.add(best)
            rows.append((d["score"], True, not counts[best]))
    return rows, sum(counts)


def average_precision(rows, objects):
    rows = sorted((r for r in rows if not r[2]), key=lambda r: -r[0])
    hits = np.cumsum([r[1] for r in rows])
    precision = hits / np.arange(1, len(rows) + 1)
    recall = hits / objects
    best = [precision[recall >= r].max() if (recall >= r).any() else 0.0 for r in np.linspace(0, 1, 101)]
    return float(np.mean(best))


def slow_lvis(dataset, results, limit=300):
    per_image = {}
    for image in dataset["images"]:
        mine = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda r: -r["score"])
        per_image[image["id"]] = mine[:limit]
    table = {}
    for category in dataset["categories"]:
        for name, area in AREAS.items():
            for threshold in np.linspace(0.5, 0.95, 10):
                rows, objects = [], 0
                for image in dataset["images"]:
                    truth = [
                        a for a in dataset["annotations"]
                        if a["image_id"] == image["id"] and a["category_id"] == category["id"]
                    ]  # fmt: skip
                    if not truth and category["id"] not in image["neg_category_ids"]:
                        continue
                    found = [r for r in per_image[image["id"]] if r["category_id"] == category["id"]]
                    exhaustive = category["id"] not in image["not_exhaustive_category_ids"]
                    more, count = match_image(truth, found, threshold, area, exhaustive)
                    rows += more
                    objects += count
                if objects:
                    key = (category["id"], name, round(float(threshold), 2))
                    table[key] = average_precision(rows, objects)
    frequency = {c["id"]: c["frequency"] for c in dataset["categories"]}

    def mean(keep):
        values = [v for k, v in table.items() if keep(*k)]
        return 100 * float(np.mean(values)) if values else float("nan")

    result = {"AP": mean(lambda c, a, t: a == "all")}
    for t in (0.5, 0.75):
        result[f"AP{int(100 * t)}"] = mean(lambda c, a, u, t=t: a == "all" and u == t)
    for area in ("small", "medium", "large"):
        result["AP" + area[0]] = mean(lambda c, a, t, area=area: a == area)
    for f in "rcf":
        result["AP" + f] = mean(lambda c, a, t, f=f: a == "all" and frequency[c] == f)
    return result


# --- data -------------------------------------------------------------------------------------------------------------


def federated(dataset, seed):
    """Make a COCO dictionary an LVIS one: categories from 1, searched for in some images only."""
    rng = np.random.default_rng(seed)
    for a in dataset["annotations"]:
        a["category_id"] -= 10
        a["area"] = a["bbox"][2] * a["bbox"][3]
        del a["iscrowd"]
    for c, frequency in zip(dataset["categories"], "rcfr", strict=False):
        c["id"] -= 10
        c["frequency"] = frequency
    ids = [c["id"] for c in dataset["categories"]]
    for image in dataset["images"]:
        present = {a["category_id"] for a in dataset["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [c for c in ids if c not in present and rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [c for c in present if rng.random() < 0.3]
    return dataset


def results_of(dataset, pairs):
    results = []
    for input_, output in pairs:
        instances = output["instances"]
        for box, score, c in zip(
            instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(),
            strict=True,
        ):  # fmt: skip
            x1, y1, x2, y2 = box
            results.append(
                {
                    "image_id": input_["image_id"],
                    "category_id": c + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score + 1e-4 * len(results),  # no equal scores: their order is not part of the protocol
                }
            )
    return results


@pytest.fixture
def lvis(names, tmp_path):
    def register(dataset, **metadata):
        name = names()
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataset))
        MetadataCatalog.get(name).set(
            json_file=str(path), thing_classes=[c["name"] for c in dataset["categories"]], **metadata
        )
        return name

    return register


def run(evaluator, pairs):
    evaluator.reset()
    for input_, output in pairs:
        evaluator.process([input_], [output])
    return evaluator.evaluate()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "limit"), [(0, None), (1, None), (2, 3), (3, 2)])
def test_against_plain_loops(tools, seed, limit):
    dataset = federated(tools.random_coco(seed, images=8, classes=4), seed)
    results = results_of(dataset, tools.jittered(tools.random_coco(seed, images=8, classes=4), seed + 100))
    found = _evaluate_predictions_on_lvis(hotcoco.COCO(dataset), results, "bbox", limit)
    expected = slow_lvis(dataset, results, limit or 300)
    assert tuple(found) == METRICS
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    assert 0 < found["AP"] < 100


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_where_everything_is_searched_it_is_coco(coco, lvis, tools, task):
    dataset = tools.random_coco(5)
    for a in dataset["annotations"]:
        a["iscrowd"] = 0
    for image in dataset["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [11, 12, 13], []
    mapping = {11: 0, 12: 1, 13: 2}
    evaluator = LVISEvaluator(
        lvis(dataset, thing_dataset_id_to_contiguous_id=mapping), tasks=(task,), distributed=False
    )
    pairs = tools.jittered(dataset, 6)
    found = run(evaluator, pairs)[task]
    kept = [r for prediction in evaluator._predictions for r in prediction["instances"]]
    results = [{**r, "category_id": r["category_id"] + 11} for r in kept]
    judge = _evaluate_predictions_on_coco(
        load_coco_api(MetadataCatalog.get(coco(dataset)).json_file), results, task, use_fast_impl=False,
        max_dets_per_image=[1, 10, 300],
    )  # fmt: skip
    for name, value in zip(METRICS[:6], judge.stats[:6], strict=True):
        assert found[name] == pytest.approx(100 * value if value >= 0 else math.nan, nan_ok=True)
    assert all(math.isnan(found[name]) for name in METRICS[6:])  # nobody told frequencies


def test_some_images_only(tools):
    dataset = federated(tools.random_coco(1, images=8, classes=4), 1)
    results = results_of(dataset, tools.jittered(tools.random_coco(1, images=8, classes=4), 2))
    chosen = [2, 3, 5]
    found = _evaluate_predictions_on_lvis(hotcoco.COCO(dataset), results, "bbox", img_ids=chosen)
    part = {**dataset, "images": [i for i in dataset["images"] if i["id"] in chosen]}
    assert found["AP"] == pytest.approx(slow_lvis(part, results)["AP"])


def test_anything_with_a_dataset_is_ground_truth(tools, tmp_path):
    dataset = federated(tools.random_coco(1), 1)
    results = results_of(dataset, tools.jittered(tools.random_coco(1), 2))

    class Api:
        def __init__(self, dataset):
            self.dataset = dataset

    assert _evaluate_predictions_on_lvis(Api(dataset), results, "bbox") == pytest.approx(
        _evaluate_predictions_on_lvis(hotcoco.COCO(dataset), results, "bbox"), nan_ok=True
    )


# --- the evaluator ----------------------------------------------------------------------------------------------------


def test_tasks_files_and_categories(lvis, tools, tmp_path):
    dataset = federated(tools.random_coco(0), 0)
    evaluator = LVISEvaluator(lvis(dataset), distributed=False, output_dir=str(tmp_path / "out"))
    assert isinstance(evaluator, DatasetEvaluator)
    pairs = tools.jittered(tools.random_coco(0), 1)
    found = run(evaluator, pairs)
    assert set(found) == {"bbox", "segm"} and tuple(found["segm"]) == METRICS
    assert evaluator.evaluate()["segm"] == pytest.approx(found["segm"], nan_ok=True)
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert {r["category_id"] for r in written} <= {1, 2, 3}
    given = [c + 1 for _, output in pairs for c in output["instances"].pred_classes.tolist()]
    assert [r["category_id"] for r in written] == given
    saved = torch.load(tmp_path / "out" / "instances_predictions.pth", weights_only=True)
    assert [p["image_id"] for p in saved] == [i["image_id"] for i, _ in pairs]


@pytest.mark.parametrize("limit", [None, 2])
def test_columns_score_like_dictionaries(lvis, tools, limit):
    dataset = federated(tools.random_coco(6, images=8, classes=4), 6)
    evaluator = LVISEvaluator(lvis(dataset), distributed=False, max_dets_per_image=limit)
    found = run(evaluator, tools.jittered(tools.random_coco(6, images=8, classes=4), 7))
    assert all(isinstance(p["instances"], ResultTable) for p in evaluator._predictions)
    results = [{**r, "category_id": r["category_id"] + 1} for p in evaluator._predictions for r in p["instances"]]
    for task in ("bbox", "segm"):
        expected = _evaluate_predictions_on_lvis(hotcoco.COCO(dataset), results, task, limit)
        assert found[task] == pytest.approx(expected, nan_ok=True) and 0 < expected["AP"] < 100


def test_images_with_and_without_masks(lvis, tools):
    """Their columns differ, so that they are scored as dictionaries."""
    dataset = federated(tools.random_coco(1), 1)
    evaluator = LVISEvaluator(lvis(dataset), ("bbox",), distributed=False)
    pairs = tools.jittered(tools.random_coco(1), 2)
    expected = run(evaluator, pairs)["bbox"]
    pairs[0][1]["instances"].remove("pred_masks")
    assert run(evaluator, pairs)["bbox"] == pytest.approx(expected, nan_ok=True)
    pairs[0][1]["instances"].pred_classes[:] = 7
    with pytest.raises(ValueError, match="class 7"):
        run(evaluator, pairs)


def test_limit_of_detections(lvis, tools):
    dataset = federated(tools.random_coco(0), 0)
    name = lvis(dataset)
    pairs = tools.jittered(tools.random_coco(0), 1, extra=6)
    few = run(LVISEvaluator(name, ("bbox",), False, max_dets_per_image=1), pairs)["bbox"]
    all_of_them = run(LVISEvaluator(name, ("bbox",), False), pairs)["bbox"]
    assert few["AP"] < all_of_them["AP"]


def test_nothing_found(lvis, tools, caplog):
    dataset = federated(tools.random_coco(0), 0)
    evaluator = LVISEvaluator(lvis(dataset), distributed=False)
    assert run(evaluator, []) == {} and "no predictions" in caplog.text
    empty = tools.predicted([], [], [])
    found = run(evaluator, [({"image_id": 1}, {"instances": empty})])
    assert tuple(found["bbox"]) == METRICS and all(math.isnan(v) for v in found["bbox"].values())


def test_proposals(lvis, tools):
    dataset = federated(tools.random_coco(0), 0)
    pairs = []
    for image in dataset["images"]:
        boxes = [a["bbox"] for a in dataset["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        proposals = Instances((image["height"], image["width"]))
        proposals.proposal_boxes, proposals.objectness_logits = Boxes(boxes), torch.zeros(len(boxes))
        pairs.append(({"image_id": image["id"]}, {"proposals": proposals}))
    found = run(LVISEvaluator(lvis(dataset), distributed=False), pairs)["box_proposals"]
    assert found["AR@100"] == pytest.approx(100) and "ARs@1000" in found


def test_without_annotations_results_are_only_written(lvis, tools, tmp_path):
    dataset = federated(tools.random_coco(0), 0)
    del dataset["annotations"]
    evaluator = LVISEvaluator(lvis(dataset), distributed=False, output_dir=str(tmp_path))
    assert run(evaluator, tools.jittered(tools.random_coco(0), 1)) == {}
    assert (tmp_path / "lvis_instances_results.json").exists()


def test_wrong_use_is_explained(lvis, names, tools):
    with pytest.raises(ValueError, match="json_file"):
        LVISEvaluator(names())
    dataset = federated(tools.random_coco(0), 0)
    with pytest.raises(ValueError, match="keypoints"):
        LVISEvaluator(lvis(dataset), ("keypoints",))
    evaluator = LVISEvaluator(lvis(dataset), distributed=False)
    with pytest.raises(ValueError, match=r"class 3, .*has the 3 classes.*NUM_CLASSES"):
        run(evaluator, [({"image_id": 1}, {"instances": tools.predicted([[0, 0, 5, 5]], [0.5], [3])})])
    with pytest.raises(ValueError, match="not in the ground truth"):
        run(evaluator, [({"image_id": 99}, {"instances": tools.predicted([[0, 0, 5, 5]], [0.5], [0])})])
    with pytest.raises(ValueError, match="keypoints"):
        _evaluate_predictions_on_lvis(hotcoco.COCO(dataset), [{}], "keypoints")


LVIS_FILE = {
    "images": [{"id": 1, "height": 100, "width": 100, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
    "categories": [{"id": i, "name": name, "frequency": "r"} for i, name in ((1, "cat"), (2, "dog"))],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400}],
}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("images", {"neg_category_ids": None}),
        ("images", {"not_exhaustive_category_ids": None}),
        ("categories", {"frequency": 5}),
        ("annotations", {"id": -2}),
        ("annotations", {"segmentation": {}}),
    ],
)
def test_odd_values_that_do_not_matter(lvis, tools, key, changes):
    dataset = json.loads(json.dumps(LVIS_FILE))
    dataset[key][0].update(changes)
    evaluator = LVISEvaluator(lvis(dataset), ["bbox"], distributed=False)
    pairs = [({"image_id": 1}, {"instances": tools.predicted([[10, 10, 30, 30]], [0.5], [0])})]
    assert run(evaluator, pairs)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("images", {"neg_category_ids": "2"}, "image id 1: 'neg_category_ids' must be a list of category ids"),
        ("images", {"not_exhaustive_category_ids": [[1]]}, "'not_exhaustive_category_ids' must be a list"),
        ("annotations", {"bbox": "x", "id": -1}, "'bbox' must be"),
    ],
)
def test_mistakes_in_the_file_are_named(lvis, key, changes, message):
    dataset = json.loads(json.dumps(LVIS_FILE))
    dataset[key][0].update(changes)
    with pytest.raises(ValueError, match=message):
        LVISEvaluator(lvis(dataset), distributed=False)
