import contextlib
import copy
import io
import itertools
import json
import math
import operator
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator, _coco_table
from detectron2.evaluation._coco_diagnosis import explain_cap, score_histogram
from detectron2.evaluation._coco_format import instances_to_table
from detectron2.evaluation._coco_table import (
    join_results,
    pack_predictions,
    unpack_predictions,
    write_predictions,
    write_results,
)
from detectron2.evaluation.coco_evaluation import (
    COCOevalMaxDets,
    _evaluate_box_proposals,
    _evaluate_predictions_on_coco,
    instances_to_coco_json,
)
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances


def reference(dataset, results, iou_type, max_dets=None):
    """Evaluate with pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(dataset))
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))), iou_type)
        if max_dets:
            evaluator.params.maxDets = max_dets
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def coco_results(pairs, masks=False):
    """COCO results of (input, output) pairs, made without the code under test."""
    results = []
    for input_, output in pairs:
        instances = output["instances"]
        for k in range(len(instances)):
            x1, y1, x2, y2 = instances.pred_boxes.tensor[k].tolist()
            result = {
                "image_id": input_["image_id"],
                "category_id": 11 + int(instances.pred_classes[k]),
                "score": float(instances.scores[k]),
            }
            if masks:
                rle = mask_util.encode(np.asfortranarray(instances.pred_masks[k].numpy().astype(np.uint8)))
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            else:
                result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            results.append(result)
    return results


def run(evaluator, pairs):
    evaluator.reset()
    for input_, output in pairs:
        evaluator.process([input_], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_and_masks_score_as_in_pycocotools(coco, tools, fast, seed):
    dataset = tools.random_coco(seed)
    pairs = tools.jittered(dataset, seed)
    evaluator = COCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast)
    results = run(evaluator, pairs)
    assert list(results) == ["bbox", "segm"]
    for task in results:
        expected = reference(dataset, coco_results(pairs, masks=task == "segm"), task)
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        for name, value in zip(names, expected.stats, strict=False):
            if value < 0:
                assert math.isnan(results[task][name])
            else:
                assert results[task][name] == pytest.approx(100 * value, abs=1e-6)
        for k, category in enumerate(dataset["categories"]):
            precision = expected.eval["precision"][:, :, k, 0, -1]
            expected_ap = 100 * precision[precision > -1].mean()
            assert results[task][f"AP-{category['name']}"] == pytest.approx(expected_ap, abs=1e-6)


def test_perfect_predictions_score_100(coco, tools):
    dataset = tools.random_coco(3)
    pairs = []
    for image in dataset["images"]:
        mine = [a for a in dataset["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        boxes = [[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]] for a in mine]
        instances = tools.predicted(boxes, [0.9] * len(mine), [a["category_id"] - 11 for a in mine])
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    assert run(COCOEvaluator(coco(dataset), distributed=False), pairs)["bbox"]["AP"] == pytest.approx(100)


def test_evaluating_twice_gives_the_same(coco, tools):
    dataset = tools.random_coco(2)
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    first = run(evaluator, tools.jittered(dataset, 2))
    for task, metrics in evaluator.evaluate().items():
        assert metrics == pytest.approx(first[task], abs=0, nan_ok=True)


@pytest.mark.parametrize("fast", [True, False])
def test_no_predictions_at_all_are_explained(coco, tools, fast, caplog):
    dataset = tools.random_coco(0)
    evaluator = COCOEvaluator(coco(dataset), ("bbox", "segm"), distributed=False, use_fast_impl=fast)
    pairs = [({"image_id": image["id"]}, {"instances": tools.predicted([], [], [])}) for image in dataset["images"]]
    results = run(evaluator, pairs)
    assert set(results) == {"bbox", "segm"}
    assert all(math.isnan(value) for task in results.values() for value in task.values())
    assert "found nothing on any of 6 images" in caplog.text


def test_no_images_give_no_results(coco, tools):
    assert run(COCOEvaluator(coco(tools.random_coco(0)), distributed=False), []) == {}


def test_files_are_written(coco, tools, tmp_path):
    dataset = tools.random_coco(1)
    pairs = tools.jittered(dataset, 1)
    out = tmp_path / "out"
    run(COCOEvaluator(coco(dataset), ("bbox",), distributed=False, output_dir=str(out)), pairs)
    written = json.loads((out / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in written} <= {11, 12, 13}
    assert set(written[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    saved = torch.load(out / "instances_predictions.pth", weights_only=True)
    assert [p["image_id"] for p in saved] == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in out.iterdir()) == ["coco_instances_results.json", "instances_predictions.pth"]


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_data_set_without_a_file_is_converted(coco, standard, tools, tmp_path, with_folder):
    dataset = tools.random_coco(2)
    for annotation in dataset["annotations"]:
        annotation["area"] = float(
            mask_util.area(mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], 120, 160)))
        )
    pairs = tools.jittered(dataset, 2)
    folder = str(tmp_path / "converted") if with_folder else None
    converted = run(COCOEvaluator(standard(dataset), distributed=False, output_dir=folder), pairs)
    direct = run(COCOEvaluator(coco(dataset), distributed=False), pairs)
    assert converted["bbox"]["AP50"] == pytest.approx(direct["bbox"]["AP50"], abs=0.5)
    assert converted["segm"]["AP"] == pytest.approx(direct["segm"]["AP"], abs=0.5)


def test_incomplete_annotations_are_completed(coco, tools, caplog):
    dataset = tools.random_coco(1)
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 0
        annotation["area"] = float(
            mask_util.area(mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], 120, 160)))
        )
    pairs = tools.jittered(dataset, 1)
    complete = run(COCOEvaluator(coco(dataset), distributed=False), pairs)
    bare = {k: v for k, v in dataset.items() if k != "info"}
    bare["annotations"] = [
        {k: v for k, v in a.items() if k not in ("area", "iscrowd", "id")} for a in dataset["annotations"]
    ]
    completed = run(COCOEvaluator(coco(bare), distributed=False), pairs)
    for task in ("bbox", "segm"):
        assert completed[task] == pytest.approx(complete[task], nan_ok=True)
    assert "numbering them from 1" in caplog.text


def test_annotation_id_zero_can_be_found(coco, tools):
    dataset = tools.random_coco(1)
    dataset["annotations"] = [dict(dataset["annotations"][0], id=0, iscrowd=0, image_id=1)]
    x, y, w, h = dataset["annotations"][0]["bbox"]
    instances = tools.predicted([[x, y, x + w, y + h]], [0.5], [dataset["annotations"][0]["category_id"] - 11])
    pairs = [({"image_id": 1}, {"instances": instances})]
    for fast in (True, False):
        assert run(COCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast), pairs)["bbox"][
            "AP"
        ] == pytest.approx(100)


def test_annotations_without_box_and_mask_are_named(coco, tools):
    dataset = tools.random_coco(1)
    del dataset["annotations"][2]["bbox"], dataset["annotations"][2]["segmentation"]
    with pytest.raises(ValueError, match="annotation 3 has neither"):
        COCOEvaluator(coco(dataset), distributed=False)


@pytest.mark.parametrize("fast", [True, False])
def test_more_than_100_detections_count_when_asked(coco, tools, fast):
    count = 150
    boxes = np.array([[10 * (k % 15), 10 * (k // 15), 9, 9] for k in range(count)], dtype=float)
    dataset = tools.random_coco(0, images=1, classes=2)
    dataset["annotations"] = [
        {"id": k + 1, "image_id": 1, "category_id": 11, "bbox": b.tolist(), "area": 81.0, "iscrowd": 0}
        for k, b in enumerate(boxes)
    ]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    instances = tools.predicted(corners, np.linspace(0.1, 0.9, count), [0] * count)
    pairs = [({"image_id": 1}, {"instances": instances})]
    name = coco(dataset)
    limited = run(COCOEvaluator(name, distributed=False, use_fast_impl=fast), pairs)
    # 100 of 150 found: precision is 1 at the recalls 0, 0.01, … 0.66
    assert limited["bbox"]["AP"] == pytest.approx(100 * 67 / 101)
    for limit in (200, [1, 10, 200]):
        evaluator = COCOEvaluator(name, distributed=False, use_fast_impl=fast, max_dets_per_image=limit)
        assert evaluator._max_dets_per_image == [1, 10, 200]
        results = run(evaluator, pairs)["bbox"]
        assert results["AP"] == results["AP75"] == results["AP-class0"] == pytest.approx(100)
        assert math.isnan(results["APl"])


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 10])
def test_a_limit_below_coco_s_own(coco, tools, fast, limit):
    count = 12
    boxes = np.array([[20 * i, 0, 10, 10] for i in range(count)], dtype=float)
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box.tolist(), "area": 100.0, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    dataset = {
        "images": [{"id": 1, "width": 400, "height": 400, "file_name": "1.jpg"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": annotations,
    }
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    pairs = [({"image_id": 1}, {"instances": tools.predicted(corners, np.linspace(0.1, 0.9, count), [0] * count)})]
    evaluator = COCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast, max_dets_per_image=limit)
    # precision is 1 at those of the recalls 0, 0.01, … 1 that are reached
    reached = sum(100 * limit >= count * percent for percent in range(101))
    assert run(evaluator, pairs)["bbox"]["AP"] == pytest.approx(100 * reached / 101)


@pytest.mark.parametrize("limits", [[], [100], [1, 100], [100, 10, 1], [0, 10, 100], 0])
def test_bad_limits_are_refused(coco, tools, limits):
    with pytest.raises(ValueError, match="increasing"):
        COCOEvaluator(coco(tools.random_coco(0)), max_dets_per_image=limits)


@pytest.mark.parametrize("fast", [True, False])
def test_the_result_has_what_projects_read(coco, tools, fast):
    dataset = tools.random_coco(4)
    results = coco_results(tools.jittered(dataset, 4))
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    mine = _evaluate_predictions_on_coco(evaluator._coco_api, results, "bbox", use_fast_impl=fast)
    expected = reference(dataset, results, "bbox")
    np.testing.assert_allclose(mine.stats, expected.stats, atol=1e-9)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(mine.eval[name], expected.eval[name], atol=1e-9)
    assert mine.params.maxDets == [1, 10, 100]
    assert list(mine.params.catIds) == [11, 12, 13]
    np.testing.assert_array_equal(mine.params.iouThrs, expected.params.iouThrs)
    assert isinstance(mine, COCOeval)


@pytest.mark.parametrize("fast", [True, False])
def test_a_subset_of_the_images(coco, tools, fast):
    dataset = tools.random_coco(5)
    results = coco_results(tools.jittered(dataset, 5))
    api = COCOEvaluator(coco(dataset), distributed=False)._coco_api
    part = _evaluate_predictions_on_coco(api, results, "bbox", None, fast, img_ids=[1, 2, 3])
    kept = {
        **dataset,
        "images": dataset["images"][:3],
        "annotations": [a for a in dataset["annotations"] if a["image_id"] <= 3],
    }
    expected = reference(kept, [r for r in results if r["image_id"] <= 3], "bbox")
    np.testing.assert_allclose(part.stats, expected.stats, atol=1e-9)


def test_max_dets_summary_equals_pycocotools_at_100(tools):
    dataset = tools.random_coco(6)
    results = coco_results(tools.jittered(dataset, 6))
    expected = reference(dataset, results, "bbox")
    mine = COCOevalMaxDets(expected.cocoGt, expected.cocoDt, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        mine.evaluate()
        with pytest.raises(RuntimeError, match="accumulate"):
            mine.summarize()
        mine.accumulate()
    mine.summarize()
    np.testing.assert_allclose(mine.stats, expected.stats)


def test_a_class_that_the_data_set_lacks_is_named(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    pairs = [({"image_id": 1}, {"instances": tools.predicted([[0, 0, 9, 9]], [0.5], [3])})]
    with pytest.raises(ValueError, match=r"class 3, but .* 3 classes \[0, 1, 2\]"):
        run(evaluator, pairs)


def test_an_image_that_the_data_set_lacks_is_named(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    pairs = [({"image_id": "1"}, {"instances": tools.predicted([[0, 0, 9, 9]], [0.5], [0])})]
    with pytest.raises(ValueError, match=r"1 predicted image ids are not in the ground truth, for example \['1'\]"):
        run(evaluator, pairs)


def test_too_few_class_names_cost_only_the_class_table(coco, tools, caplog):
    dataset = tools.random_coco(0)
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    coco_eval = _evaluate_predictions_on_coco(evaluator._coco_api, coco_results(tools.jittered(dataset, 0)), "bbox")
    results = evaluator._derive_coco_results(coco_eval, "bbox", class_names=["a", "b"])
    assert list(results) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert "2 thing_classes, the annotations 3" in caplog.text
    assert list(evaluator._derive_coco_results(coco_eval, "bbox")) == list(results)


def test_unknown_tasks_are_refused(coco, tools):
    with pytest.raises(ValueError, match="boxes"):
        COCOEvaluator(coco(tools.random_coco(0)), ("boxes",))


def test_what_evaluation_does_not_read_may_have_any_form(coco, tools):
    dataset = tools.random_coco(1)
    pairs = tools.jittered(dataset, 1)
    expected = run(COCOEvaluator(coco(dataset), distributed=False), pairs)["bbox"]
    for image in dataset["images"]:
        image.update(license="free", date_captured=2020, coco_url=None)
    for category in dataset["categories"]:
        category.update(supercategory=3, keypoints="none", skeleton=0)
    for annotation in dataset["annotations"]:
        annotation.update(num_keypoints="2")
    odd = run(COCOEvaluator(coco({**dataset, "info": [], "licenses": "free"}), distributed=False), pairs)["bbox"]
    assert odd == pytest.approx(expected, abs=0, nan_ok=True)


def test_one_task_as_text(coco, tools):
    assert COCOEvaluator(coco(tools.random_coco(0)), "bbox")._tasks == ("bbox",)


def test_tasks_that_the_predictions_have_nothing_for(coco, tools):
    dataset = tools.random_coco(0)
    evaluator = COCOEvaluator(coco(dataset), ("bbox", "keypoints"), distributed=False)
    with pytest.raises(ValueError, match=r"nothing for the tasks \['keypoints'\]; they have .*'bbox'"):
        run(evaluator, tools.jittered(dataset, 0))


def test_an_image_that_is_given_twice(coco, tools, caplog):
    dataset = tools.random_coco(0)
    pairs = list(tools.jittered(dataset, 0))
    evaluator = COCOEvaluator(coco(dataset), ("bbox",), distributed=False)
    run(evaluator, pairs)
    assert "more than once" not in caplog.text
    run(evaluator, [*pairs, pairs[0]])
    assert (
        f"1 images were given to COCOEvaluator more than once, such as image_id {pairs[0][0]['image_id']}"
        in caplog.text
    )


def test_as_many_outputs_as_inputs(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    evaluator.process([], [])
    with pytest.raises(
        ValueError, match="COCOEvaluator got 0 outputs of the model for 1 inputs; expected one for each"
    ):
        evaluator.process([{"image_id": 1}], [])


def test_inputs_without_an_image_id(coco, tools):
    with pytest.raises(KeyError, match=r"needs 'image_id'; it has .*file_name"):
        COCOEvaluator(coco(tools.random_coco(0))).process([{"file_name": "a.jpg"}], [{}])


def test_a_config_in_place_of_the_tasks(coco, tools):
    cfg = CfgNode({"TEST": {"KEYPOINT_OKS_SIGMAS": [0.1, 0.2]}})
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), cfg, True)
    assert evaluator._tasks is None
    assert list(evaluator._kpt_oks_sigmas) == [0.1, 0.2]


def test_a_split_without_annotations_is_not_scored(coco, tools, tmp_path):
    dataset = tools.random_coco(0)
    pairs = tools.jittered(dataset, 0)
    del dataset["annotations"]
    evaluator = COCOEvaluator(coco(dataset), distributed=False, output_dir=str(tmp_path / "o"))
    assert evaluator._do_evaluation is False
    assert run(evaluator, pairs) == {}
    assert (tmp_path / "o" / "coco_instances_results.json").exists()


def test_tasks_are_read_off_the_predictions(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    assert evaluator._tasks_from_predictions([]) == ["bbox"]
    assert evaluator._tasks_from_predictions([{"keypoints": []}, {"segmentation": {}}]) == [
        "bbox",
        "keypoints",
        "segm",
    ]


def test_instances_become_results(tools):
    assert instances_to_coco_json(tools.predicted([], [], []), 7) == []
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 0, 0] = True
    keypoints = torch.tensor([[[10.5, 20.5, 0.9]], [[1.0, 2.0, 0.1]]])
    instances = tools.predicted(
        [[1, 2, 4, 8], [0, 0, 1, 1]], [0.5, 0.25], [2, 0], pred_masks=masks, pred_keypoints=keypoints
    )
    first, second = instances_to_coco_json(instances, "a")
    assert first["image_id"] == "a"
    assert first["category_id"] == 2
    assert first["bbox"] == [1, 2, 3, 6]
    assert first["score"] == 0.5
    assert first["keypoints"] == pytest.approx([10, 20, 0.9])
    assert second["keypoints"] == pytest.approx([0.5, 1.5, 0.1])
    for result, mask in zip((first, second), masks, strict=True):
        np.testing.assert_array_equal(mask_util.decode(result["segmentation"]), mask.numpy())
    json.dumps([first, second])
    # the predictions themselves stay as they were
    assert instances.pred_boxes.tensor.tolist() == [[1, 2, 4, 8], [0, 0, 1, 1]]
    assert instances.pred_keypoints[0, 0, 0] == 10.5


def test_masks_that_are_already_encoded(tools):
    mask = np.zeros((120, 160), dtype=np.uint8, order="F")
    mask[3:9, 4:30] = 1
    rle = mask_util.encode(mask)
    (result,) = instances_to_coco_json(tools.predicted([[4, 3, 30, 9]], [1.0], [0], pred_masks_rle=[rle]), 1)
    assert result["segmentation"]["counts"] == rle["counts"].decode()


def keypoint_data(tools, keypoints=5):
    rng = np.random.default_rng(0)
    dataset = tools.random_coco(7, classes=1)
    for annotation in dataset["annotations"]:
        x, y, w, h = annotation["bbox"]
        points = np.concatenate([rng.uniform([x, y], [x + w, y + h], (keypoints, 2)), np.full((keypoints, 1), 2)], 1)
        annotation.update(keypoints=points.ravel().tolist(), num_keypoints=keypoints, area=w * h * 10)
    pairs = []
    for image in dataset["images"]:
        mine = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        points = np.array([a["keypoints"] for a in mine], dtype=np.float32).reshape(len(mine), keypoints, 3)
        points[..., :2] += rng.normal(0, 1.5, points[..., :2].shape) + 0.5
        boxes = [[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]] for a in mine]
        instances = tools.predicted(
            boxes, rng.uniform(0, 1, len(mine)), [0] * len(mine), pred_keypoints=torch.from_numpy(points)
        )
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    return dataset, pairs


@pytest.mark.parametrize("fast", [True, False])
def test_keypoints_with_other_sigmas(coco, tools, fast):
    dataset, pairs = keypoint_data(tools)
    sigmas = [0.05, 0.1, 0.05, 0.08, 0.1]
    name = coco(dataset)
    evaluator = COCOEvaluator(name, ("keypoints",), False, kpt_oks_sigmas=sigmas, use_fast_impl=fast)
    results = run(evaluator, pairs)["keypoints"]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(dataset))
        gt.createIndex()
        rows = [
            {
                "image_id": i["image_id"],
                "category_id": 11,
                "score": float(o["instances"].scores[k]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "keypoints": (o["instances"].pred_keypoints[k].numpy() - [0.5, 0.5, 0]).ravel().tolist(),
            }
            for i, o in pairs
            for k, (x1, y1, x2, y2) in enumerate(o["instances"].pred_boxes.tensor.tolist())
        ]
        expected = COCOeval(gt, gt.loadRes(rows), "keypoints")
        expected.params.kpt_oks_sigmas = np.array(sigmas)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    assert 0 < expected.stats[0] < 1
    assert list(results) == ["AP", "AP50", "AP75", "APm", "APl"]
    for value, mine in zip(expected.stats, results.values(), strict=False):
        assert mine == pytest.approx(100 * value, abs=1e-6) or (value < 0 and math.isnan(mine))


def test_the_number_of_sigmas_is_checked(coco, tools):
    dataset, pairs = keypoint_data(tools)
    with pytest.raises(ValueError, match="5 keypoints, but there are 17"):
        run(COCOEvaluator(coco(dataset), ("keypoints",), False), pairs)


def proposals(boxes, logits):
    result = Instances((120, 160))
    result.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.objectness_logits = torch.tensor(logits, dtype=torch.float32)
    return result


def test_recall_of_proposals(coco, tools, tmp_path):
    dataset = tools.random_coco(0, images=3, classes=2)
    boxes = {1: [[0, 0, 10, 10], [50, 50, 40, 40]], 2: [[0, 0, 100, 100]]}
    dataset["annotations"] = [
        {"id": 10 * image + k + 1, "image_id": image, "category_id": 11, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for image, rows in boxes.items()
        for k, b in enumerate(rows)
    ]
    outputs = [
        # the first object exactly, the second with IoU 0.8, and a spare
        ({"image_id": 1}, {"proposals": proposals([[50, 50, 90, 82], [0, 0, 10, 10], [1, 1, 9, 9]], [0.0, 2.0, 1.0])}),
        ({"image_id": 2}, {"proposals": proposals([], [])}),
        ({"image_id": 3}, {"proposals": proposals([[0, 0, 9, 9]], [1.0])}),
    ]
    evaluator = COCOEvaluator(coco(dataset), distributed=False, output_dir=str(tmp_path))
    results = run(evaluator, outputs)["box_proposals"]
    # IoU 1 counts at ten thresholds, 0.8 at 0.5 … 0.75 and, within rounding, at 0.8
    assert results["ARs@100"] == pytest.approx(100)
    assert results["ARm@100"] in (pytest.approx(60), pytest.approx(70))
    assert results["ARl@1000"] == 0
    assert results["AR@100"] == pytest.approx((results["ARs@100"] + results["ARm@100"]) / 3)
    assert (tmp_path / "box_proposals.pkl").exists()
    one = _evaluate_box_proposals(evaluator._predictions, evaluator._coco_api, limit=1, thresholds=[0.5, 0.95])
    assert one["recalls"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert one["num_pos"] == 3
    with pytest.raises(ValueError, match="huge"):
        _evaluate_box_proposals([], evaluator._coco_api, area="huge")
    assert math.isnan(_evaluate_box_proposals([], evaluator._coco_api)["ar"])


def with_crowds(dataset):
    for annotation in dataset["annotations"][::2]:
        annotation["iscrowd"] = 1


def without_objects(dataset):
    dataset["annotations"] = []


def of_all_areas(dataset):
    for annotation, side in zip(dataset["annotations"], [8, 40, 200, 31.9, 96] * 9, strict=False):
        annotation["area"] = float(side * side)


def with_an_unused_class(dataset):
    dataset["categories"].append({"id": 99, "name": "nothing of this kind"})


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [100, 150])
@pytest.mark.parametrize("change", [without_objects, with_crowds, of_all_areas, with_an_unused_class])
def test_special_ground_truth_scores_as_in_pycocotools(coco, tools, change, limit, task):
    dataset = tools.random_coco(8)
    change(dataset)
    pairs = tools.jittered(dataset, 8)
    results = coco_results(pairs, masks=task == "segm")
    limits = [1, 10, limit]
    evaluator = COCOEvaluator(coco(dataset), (task,), False, max_dets_per_image=limits)
    mine = run(evaluator, pairs)[task]
    # pycocotools' own summary knows 100 only: with another last limit, its mean is taken from the table
    expected = reference(dataset, results, task, limits)
    table = expected.eval["precision"]
    for name, area in (("AP", 0), ("APs", 1), ("APm", 2), ("APl", 3)):
        defined = table[..., area, -1][table[..., area, -1] > -1]
        value = 100 * defined.mean() if defined.size else float("nan")
        assert mine[name] == pytest.approx(value, abs=1e-6, nan_ok=True)
    for k, category in enumerate(dataset["categories"]):
        defined = table[:, :, k, 0, -1][table[:, :, k, 0, -1] > -1]
        value = 100 * defined.mean() if defined.size else float("nan")
        assert mine[f"AP-{category['name']}"] == pytest.approx(value, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("fast", [True, False])
def test_images_named_by_text(coco, tools, fast):
    dataset = tools.random_coco(2)
    pairs = tools.jittered(dataset, 2)
    expected = run(COCOEvaluator(coco(dataset), distributed=False), pairs)
    for image in dataset["images"]:
        image["id"] = f"{image['id']}.jpg"
    for annotation in dataset["annotations"]:
        annotation["image_id"] = f"{annotation['image_id']}.jpg"
    pairs = [({"image_id": f"{i['image_id']}.jpg"}, output) for i, output in pairs]
    named = run(COCOEvaluator(coco(dataset), distributed=False, use_fast_impl=fast), pairs)
    for task in ("bbox", "segm"):
        assert named[task] == pytest.approx(expected[task], abs=1e-6, nan_ok=True)


def test_predictions_read_like_lists_of_results(coco, tools):
    dataset = tools.random_coco(1)
    pairs = tools.jittered(dataset, 1)
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    for input_, output in pairs:
        evaluator.process([input_], [output])
    for (input_, output), prediction in zip(pairs, evaluator._predictions, strict=True):
        kept, plain = prediction["instances"], instances_to_coco_json(output["instances"], input_["image_id"])
        assert isinstance(plain, list) and len(kept) == len(plain) == len(output["instances"])
        assert kept == plain and [kept[k] for k in range(len(kept))] == plain
        assert kept[-1] == plain[-1] and kept[1:] == plain[1:] and kept[::2] == plain[::2]
        assert operator.add(kept, plain) == operator.add(plain, kept) == plain * 2
        assert pickle.loads(pickle.dumps(kept)) == copy.deepcopy(kept) == plain
        assert type(pickle.loads(pickle.dumps(kept))) is list
        with pytest.raises(IndexError):
            kept[len(plain)]


def test_evaluators_that_work_on_the_list_of_results(coco, tools):
    """Projects take the results of all images apart, change them, and score them on their own."""

    class Mine(COCOEvaluator):
        def _eval_predictions(self, predictions, img_ids=None):
            results = list(itertools.chain(*[p["instances"] for p in predictions]))
            assert set(self._tasks_from_predictions(results)) == {"bbox", "segm"}
            for result in results:
                result["category_id"] += 11
            found = _evaluate_predictions_on_coco(self._coco_api, results, "segm", img_ids=img_ids)
            self._results["segm"] = self._derive_coco_results(found, "segm")

    dataset = tools.random_coco(4)
    pairs = tools.jittered(dataset, 4)
    name = coco(dataset)
    expected = run(COCOEvaluator(name, distributed=False), pairs)["segm"]
    mine = run(Mine(name, distributed=False), pairs)["segm"]
    assert mine == pytest.approx({k: expected[k] for k in mine}, abs=1e-6, nan_ok=True)


def plain_predictions(predictions):
    return [{**p, "instances": list(p["instances"])} for p in predictions]


@pytest.mark.parametrize("masks", [True, False])
def test_predictions_survive_the_way_between_processes(coco, tools, masks):
    dataset = tools.random_coco(3)
    pairs = tools.jittered(dataset, 3)
    pairs[2][1]["instances"] = pairs[2][1]["instances"][:0]
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    for input_, output in pairs:
        if not masks:
            output["instances"].remove("pred_masks")
            output["instances"].pred_keypoints = torch.rand(len(output["instances"]), 4, 3)
        evaluator.process([input_], [output])
    before = plain_predictions(evaluator._predictions)
    packed = pack_predictions(evaluator._predictions)
    assert not isinstance(packed, list)  # arrays, not dictionaries
    assert plain_predictions(unpack_predictions(pickle.loads(pickle.dumps(packed)))) == before
    again = unpack_predictions(pack_predictions(unpack_predictions(packed)))
    assert plain_predictions(again) == before
    for part in (slice(None), slice(1, 3)):
        assert list(join_results(again[part])) == [r for p in before[part] for r in p["instances"]]


@pytest.mark.parametrize("predictions", [[], [{"image_id": 1, "instances": []}], [{"image_id": 1, "other": 2}]])
def test_other_predictions_travel_as_they_are(predictions):
    assert pack_predictions(predictions) is predictions
    assert unpack_predictions(predictions) is predictions


def test_results_with_and_without_masks_together(coco, tools):
    dataset = tools.random_coco(1)
    pairs = tools.jittered(dataset, 1)
    pairs[0][1]["instances"].remove("pred_masks")
    evaluator = COCOEvaluator(coco(dataset), ("bbox",), distributed=False)
    mixed = run(evaluator, pairs)["bbox"]
    assert mixed == pytest.approx(run(evaluator, tools.jittered(dataset, 1))["bbox"], abs=1e-6, nan_ok=True)


def test_files_of_many_results(tmp_path, monkeypatch, tools):
    monkeypatch.setattr(_coco_table, "_ROWS_AT_ONCE", 4)
    predictions = []
    for image_id in range(5):
        boxes = np.random.default_rng(image_id).uniform(0, 50, (image_id, 4))
        masks = torch.zeros(image_id, 20, 30, dtype=torch.bool)
        masks[:, :image_id] = True
        instances = tools.predicted(boxes, [0.5] * image_id, [0] * image_id, pred_masks=masks)
        predictions.append({"image_id": f"ü{image_id}", "instances": instances_to_table(instances, f"ü{image_id}")})
    expected = plain_predictions(predictions)
    with open(tmp_path / "p.pth", "wb") as f:
        write_predictions(f, predictions)
    assert torch.load(tmp_path / "p.pth", weights_only=True) == expected
    for results in (join_results(predictions), [], [r for p in expected for r in p["instances"]]):
        stream = io.StringIO()
        write_results(stream, results)
        assert json.loads(stream.getvalue()) == list(results)


def test_masks_of_each_format_score_the_same(coco, tools):
    dataset = tools.random_coco(5)
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for input_, output in tools.jittered(dataset, 5):
        output["instances"].pred_masks = torch.rand(len(output["instances"]), 1, 7, 7, generator=generator)
        outputs.append((input_, output["instances"]))
    evaluator = COCOEvaluator(coco(dataset), distributed=False)
    scores = []
    for kind in ("full", "rle", "roi"):
        evaluator.reset()
        for input_, instances in outputs:
            copied = copy.deepcopy(instances)
            done = detector_postprocess(copied, *instances.image_size, mask_format=kind)
            evaluator.process([input_], [{"instances": done}])
        scores.append((plain_predictions(evaluator._predictions), evaluator.evaluate()))
    for predictions, results in scores[1:]:
        assert predictions == scores[0][0]
        assert results["segm"] == pytest.approx(scores[0][1]["segm"], nan_ok=True)


def test_uncompressed_run_lengths_and_bytes(tools):
    rles = [{"size": [4, 5], "counts": [6, 3, 11]}, {"size": (4, 5), "counts": b"63;"}]
    results = instances_to_coco_json(tools.predicted([[0, 0, 1, 1]] * 2, [1, 1], [0, 0], pred_masks_rle=rles), 1)
    for result in results:
        assert mask_util.decode(result["segmentation"]).ravel("F").nonzero()[0].tolist() == [6, 7, 8]
        assert isinstance(result["segmentation"]["counts"], str)


@pytest.mark.parametrize(
    ("counts", "told"), [([], False), ([99] * 50, False), ([100] + [5] * 99, True), ([100] + [5] * 100, False)]
)
def test_images_at_the_cap(counts, told):
    text = explain_cap(counts, 100)
    assert (text is not None) is told
    if text:
        assert "1 of 100 images" in text and "max_dets_per_image" in text


def test_one_warning_for_the_cap(coco, tools, caplog):
    dataset = tools.random_coco(6)
    evaluator = COCOEvaluator(coco(dataset), distributed=False, max_dets_per_image=2)
    run(evaluator, tools.jittered(dataset, 6))
    assert caplog.text.count("no more than 2 of an image") == 1


def test_predictions_of_other_classes_are_explained(coco, tools, caplog):
    dataset = tools.random_coco(0)
    for annotation in dataset["annotations"]:
        annotation["category_id"] = 13
    pairs = [({"image_id": 1}, {"instances": tools.predicted([[0, 0, 9, 9], [1, 1, 9, 9]], [0.02, 0.6], [0, 1])})]
    assert run(COCOEvaluator(coco(dataset), distributed=False), pairs)["bbox"]["AP"] == 0
    assert "None of 2 detections on 1 images" in caplog.text
    assert "predicted are the categories [11, 12], annotated [13]" in caplog.text
    assert "Scores: 0.01 to 0.05: 1, 0.5 to 0.75: 1." in caplog.text


def test_predictions_in_wrong_places_are_explained(coco, tools, caplog):
    dataset = tools.random_coco(0)
    boxes = [[150, 110, 159, 119]]
    pairs = [({"image_id": 1}, {"instances": tools.predicted(boxes, [0.6], [k])}) for k in range(3)]
    assert run(COCOEvaluator(coco(dataset), distributed=False), pairs)["bbox"]["AP"] == 0
    assert "the classes fit and the places do not" in caplog.text


def test_score_histogram():
    assert score_histogram(np.zeros(0)) == ""
    assert score_histogram(np.array([0.0, 0.05, 0.95, 1.0, 1.5, np.nan])) == (
        "0 to 0.01: 2, 0.05 to 0.1: 1, 0.9 to 1: 3; 1 are not a number"
    )


@pytest.mark.parametrize("limit", [10.5, "100", {10}, [1, 10]])
def test_limits_of_other_kinds(coco, tools, limit):
    with pytest.raises(ValueError, match="max_dets_per_image needs three or more increasing limits"):
        COCOEvaluator(coco(tools.random_coco(0)), max_dets_per_image=limit)
    assert COCOEvaluator(coco(tools.random_coco(0)), max_dets_per_image=np.int64(50))._max_dets_per_image == [1, 10, 50]


def test_masks_of_another_size_than_the_image(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)  # images of 120 x 160 pixels
    instances = tools.predicted([[1, 1, 9, 9]], [0.5], [0])
    instances.pred_masks = torch.ones((1, 60, 80), dtype=torch.bool)
    with pytest.raises(ValueError, match=r"image 1 are 60 pixels high and 80 wide, the image is 120 high and 160 wide"):
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
    instances.remove("pred_masks")
    instances.pred_masks_rle = [{"size": [60, 80], "counts": b"PT1"}]
    with pytest.raises(ValueError, match="60 pixels high"):
        evaluator.process([{"image_id": 1}], [{"instances": instances}])


def test_predictions_with_gradients(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    instances = tools.predicted([[1, 1, 9, 9]], [0.5], [0])
    instances.scores.requires_grad_()
    instances.pred_boxes.tensor.requires_grad_()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert len(evaluator._predictions) == 1
