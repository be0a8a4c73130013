import json
import math

import numpy as np
import pytest
import torch
from shapely import affinity, geometry

from detectron2.evaluation import COCOEvaluator, RotatedCOCOEvaluator
from detectron2.evaluation._coco_table import ResultTable
from detectron2.evaluation.rotated_coco_evaluation import RotatedCOCOeval
from detectron2.structures import Instances, RotatedBoxes

HEIGHT, WIDTH = 120, 160
BOTH = pytest.mark.parametrize("fast", [True, False])


def random_rotated(seed, images=5, classes=2):
    """A COCO dictionary with rotated boxes and a few crowds, and (input, output) pairs of a mediocre detector."""
    rng = np.random.default_rng(seed)
    annotations, pairs = [], []
    for image in range(1, images + 1):
        boxes, labels = [], []
        for _ in range(int(rng.integers(0, 5))):
            box = [*rng.uniform(40, 80, 2), *rng.uniform(10, 50, 2), rng.uniform(-180, 180)]
            label = int(rng.integers(classes))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 11 + label, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.2),
                }
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                boxes.append(np.array(box) + rng.normal(0, 2, 5))
                labels.append(label)
        boxes.append([*rng.uniform(40, 80, 2), *rng.uniform(10, 50, 2), rng.uniform(-180, 180)])
        labels.append(0)
        pairs.append(({"image_id": image}, {"instances": detections(boxes, rng.random(len(boxes)), labels)}))
    dataset = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 11 + c, "name": f"class{c}"} for c in range(classes)],
    }
    return dataset, pairs


def detections(boxes, scores, labels):
    out = Instances((HEIGHT, WIDTH))
    out.pred_boxes = RotatedBoxes(torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 5))
    out.scores = torch.tensor(np.array(scores), dtype=torch.float32)
    out.pred_classes = torch.tensor(labels, dtype=torch.int64)
    return out


def run(evaluator, pairs):
    evaluator.reset()
    for input_, output in pairs:
        evaluator.process([input_], [output])
    return evaluator.evaluate()


# --- overlaps ---------------------------------------------------------------------------------------------------------


def region(box):
    x, y, w, h, angle = box
    # y points down, so counter-clockwise on the screen is clockwise for shapely
    return affinity.rotate(geometry.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), -angle, origin=(x, y))


@pytest.mark.parametrize("crowd", [0, 1])
def test_overlaps_by_shapely(crowd):
    rng = np.random.default_rng(crowd)
    dt, gt = (
        np.c_[rng.uniform(20, 60, (n, 2)), rng.uniform(10, 50, (n, 2)), rng.uniform(-180, 180, n)] for n in (6, 4)
    )
    found = RotatedCOCOeval.compute_iou_dt_gt(dt.tolist(), gt.tolist(), [crowd, 0, crowd, 0])
    for i, a in enumerate(map(region, dt)):
        for j, b in enumerate(map(region, gt)):
            shared = a.intersection(b).area
            whole = a.area if crowd and j % 2 == 0 else a.union(b).area
            assert found[i, j] == pytest.approx(shared / whole, abs=1e-6)


def test_overlaps_of_nothing_and_of_mixed_boxes():
    for dt, gt in (([], []), ([[0, 0, 2, 2]], []), ([], [[5, 5, 2, 2, 30]])):
        assert RotatedCOCOeval.compute_iou_dt_gt(dt, gt, [0] * len(gt)).shape == (len(dt), len(gt))
    # (x, y, width, height) from (10, 20) to (30, 30); the same, turned by 90 degrees; one without area
    found = RotatedCOCOeval.compute_iou_dt_gt([[10, 20, 20, 10], [1, 1, 0, 0]], [[20, 25, 10, 20, 90]], [1])
    np.testing.assert_allclose(found, [[1], [0]], atol=1e-9)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_both_engines_agree(coco, seed, tmp_path):
    dataset, pairs = random_rotated(seed)
    name = coco(dataset)
    fast = run(RotatedCOCOEvaluator(name, distributed=False), pairs)["bbox"]
    slow = run(RotatedCOCOEvaluator(name, distributed=False, use_fast_impl=False), pairs)["bbox"]
    assert fast == pytest.approx(slow, nan_ok=True)
    assert 0 < fast["AP"] < 100 and "AP-class1" in fast


@pytest.mark.parametrize("rotated", [True, False])
def test_columns_score_like_dictionaries(coco, tools, rotated):
    dataset = tools.random_coco(2)
    pairs = tools.jittered(dataset, 2)
    if rotated:
        dataset, pairs = random_rotated(2)
    evaluator = RotatedCOCOEvaluator(coco(dataset), distributed=False)
    found = run(evaluator, pairs)["bbox"]
    assert all(isinstance(p["instances"], ResultTable) for p in evaluator._predictions)
    results = [{**r, "category_id": r["category_id"] + 11} for p in evaluator._predictions for r in p["instances"]]
    judge = evaluator._evaluate_predictions_on_coco(evaluator._coco_api, results)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    for name, value in zip(names, judge.stats, strict=False):
        assert found[name] == pytest.approx(100 * value if value >= 0 else math.nan, abs=1e-9, nan_ok=True)
    assert 0 < found["AP"] < 100


@BOTH
def test_by_hand(coco, fast):
    """A box turned by a quarter is another one, by half a turn the same."""
    box = [60.0, 50.0, 40.0, 10.0, 30.0]
    dataset, _ = random_rotated(0, images=2, classes=1)
    dataset["annotations"] = [
        {"id": i, "image_id": i, "category_id": 11, "bbox": box, "area": 400, "iscrowd": 0} for i in (1, 2)
    ]
    pairs = [
        ({"image_id": 1}, {"instances": detections([[*box[:4], 210.0]], [0.9], [0])}),
        ({"image_id": 2}, {"instances": detections([[*box[:4], 120.0]], [0.8], [0])}),
    ]
    found = run(RotatedCOCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast), pairs)["bbox"]
    # one of two found, before any mistake: precision 1 up to recall 0.5, which are 51 of 101 places
    assert found["AP"] == found["AP50"] == pytest.approx(100 * 51 / 101)
    assert found["APs"] == pytest.approx(100 * 51 / 101) and math.isnan(found["APl"])


@BOTH
def test_boxes_that_are_not_rotated(coco, tools, fast):
    dataset = tools.random_coco(3)
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 0
    name, pairs = coco(dataset), tools.jittered(dataset, 4)
    expected = run(COCOEvaluator(name, ("bbox",), False, use_fast_impl=False), pairs)["bbox"]
    found = run(RotatedCOCOEvaluator(name, distributed=False, use_fast_impl=fast), pairs)
    assert set(found) == {"bbox"}  # there are masks, too
    assert found["bbox"] == pytest.approx(expected, nan_ok=True)


@BOTH
def test_some_images_and_fewer_detections(coco, fast):
    dataset, pairs = random_rotated(1)
    evaluator = RotatedCOCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast)
    whole = run(evaluator, pairs)["bbox"]
    part = evaluator.evaluate(img_ids=[2, 3])["bbox"]
    alone = {**dataset, "images": [i for i in dataset["images"] if i["id"] in (2, 3)]}
    alone["annotations"] = [a for a in dataset["annotations"] if a["image_id"] in (2, 3)]
    other = RotatedCOCOEvaluator(coco(alone), distributed=False, use_fast_impl=fast)
    assert part == pytest.approx(run(other, [p for p in pairs if p[0]["image_id"] in (2, 3)])["bbox"], nan_ok=True)
    limited = RotatedCOCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast, max_dets_per_image=1)
    assert run(limited, pairs)["bbox"]["AP"] < whole["AP"]


def test_categories_do_not_matter_for_proposals(coco):
    """`useCats = 0` compares all with all."""
    dataset, pairs = random_rotated(2)
    evaluator = RotatedCOCOEvaluator(coco(dataset), distributed=False)
    evaluator.reset()
    results = [
        {**r, "category_id": 11}
        for input_, output in pairs
        for r in (evaluator.process([input_], [output]), evaluator._predictions[-1]["instances"])[1]
    ]
    judge = RotatedCOCOeval(evaluator._coco_api, evaluator._coco_api.loadRes(results), "bbox")
    judge.params.useCats = 0
    judge.evaluate()
    image = pairs[0][0]["image_id"]
    objects = [a for a in dataset["annotations"] if a["image_id"] == image]
    assert judge.ious[image, -1].shape == (len(pairs[0][1]["instances"]), len(objects))


# --- the evaluator ----------------------------------------------------------------------------------------------------


def test_files_are_written(coco, tmp_path):
    dataset, pairs = random_rotated(0)
    run(RotatedCOCOEvaluator(coco(dataset), distributed=False, output_dir=str(tmp_path / "out")), pairs)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    np.testing.assert_allclose(written[0]["bbox"], pairs[0][1]["instances"].pred_boxes.tensor[0].numpy())
    assert {r["category_id"] for r in written} == {11, 12}


@BOTH
def test_nothing_found(coco, caplog, fast):
    dataset, _ = random_rotated(0)
    evaluator = RotatedCOCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast)
    assert run(evaluator, []) == {}
    found = run(evaluator, [({"image_id": 1}, {"instances": detections([], [], [])})])["bbox"]
    assert all(math.isnan(value) for value in found.values()) and "found nothing" in caplog.text


def test_without_annotations_results_are_only_written(coco, tmp_path):
    dataset, pairs = random_rotated(0)
    del dataset["annotations"]
    evaluator = RotatedCOCOEvaluator(coco(dataset), distributed=False, output_dir=str(tmp_path))
    assert run(evaluator, pairs) == {}


def test_wrong_use_is_explained(coco):
    dataset, _ = random_rotated(0)
    name = coco(dataset)
    with pytest.raises(ValueError, match=r"\['bbox'\], not \['segm'\]"):
        RotatedCOCOEvaluator(name, ("bbox", "segm"))
    evaluator = RotatedCOCOEvaluator(name, ("bbox",), distributed=False)
    with pytest.raises(ValueError, match="not in the ground truth"):
        run(evaluator, [({"image_id": 77}, {"instances": detections([[5, 5, 2, 2, 0]], [0.5], [0])})])
    with pytest.raises(ValueError, match="no measure for 'proposals'"):
        run(evaluator, [({"image_id": 1}, {"proposals": detections([], [], [])})])
