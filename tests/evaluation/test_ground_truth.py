"""What is wrong with ground truth, or not in it, is said, with how many are concerned."""

import json
import logging

import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, RotatedCOCOEvaluator, build_evaluator
from detectron2.evaluation.analysis import analyze_detections
from detectron2.structures import BoxMode, Instances, RotatedBoxes


def _truth(**annotation):
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "iscrowd": 0, "area": 2500}
            | {k: v for k, v in annotation.items() if v is not None}
        ],
        "categories": [{"id": 1, "name": "nut"}],
    }


@pytest.mark.parametrize("box", [[100, 120, -60, -90], [10, 10, 0, 5], [300, 10, 5, 5]])
def test_boxes_that_no_detection_can_match(coco, tools, caplog, box):
    """They are warned of before inference, and a diagnosis of AP 0 names them, not the weights."""
    evaluator = COCOEvaluator(coco(_truth(bbox=box)), ["bbox"], distributed=False)
    assert "1 annotation has a box" in caplog.text and "'bbox_mode'" in caplog.text and "id 1" in caplog.text
    caplog.clear()
    found = tools.predicted([[100, 120, 140, 150]], [0.9], [0])
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] in (0, pytest.approx(0))
    assert "look at the ground truth first" in caplog.text and "untrained" not in caplog.text


def test_analysis_warns_too(caplog):
    found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.5}]
    analyze_detections(_truth(bbox=[100, 120, -60, -90]), found, "bbox")
    assert "a box without area" in caplog.text


def test_good_boxes_are_not_warned_of(coco, tools, caplog):
    COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    assert "annotation" not in caplog.text


def test_test_loader_says_what_training_says(names, tmp_path, caplog):
    Image.new("RGB", (200, 200)).save(tmp_path / "n.png")
    annotations = [
        {"bbox": [100, 120, 40, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
        {"bbox": [10, 10, 40, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 7},
    ]
    record = {"file_name": str(tmp_path / "n.png"), "image_id": 1, "height": 200, "width": 200}
    name = names()
    DatasetCatalog.register(name, lambda: [{**record, "annotations": annotations}])
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0, 2
    with caplog.at_level(logging.WARNING):
        assert len(build_detection_test_loader(cfg, name)) == 1
    assert "is 'bbox_mode' right?" in caplog.text and "category_id 7" in caplog.text


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_missing_keys_are_counted(coco, caplog, key):
    truth = _truth()
    del truth["annotations"][0][key]
    COCOEvaluator(coco(truth), distributed=False)
    assert f"1 of 1 annotations have no usable '{key}'" in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_number_of_keypoints_is_counted(coco, tools, caplog, fast):
    truth = _truth(keypoints=[20, 20, 2, 40, 40, 1])
    evaluator = COCOEvaluator(
        coco(truth), ["keypoints"], distributed=False, kpt_oks_sigmas=[0.1, 0.1], use_fast_impl=fast
    )
    assert "1 of 1 annotations have no usable 'num_keypoints'" in caplog.text
    points = torch.tensor([[[20.5, 20.5, 1.0], [40.5, 40.5, 1.0]]])
    found = tools.predicted([[10, 10, 60, 60]], [0.9], [0], pred_keypoints=points)
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)


def test_lvis_without_its_lists_says_what_does_not_count(names, tools, tmp_path, caplog):
    """Ten wrong detections on an image that nobody searched, one right one with a lower score."""
    path = tmp_path / "lvis_like.json"
    path.write_text(json.dumps(_truth()))
    name = names()
    MetadataCatalog.get(name).set(json_file=str(path), thing_classes=["nut"])
    evaluator = LVISEvaluator(name, ["bbox"], distributed=False)
    for text in ("2 of 2 images have no 'neg_category_ids'", "1 of 1 categories have no 'frequency'"):
        assert text in caplog.text
    wrong = tools.predicted([[15 * k, 5, 15 * k + 12, 50] for k in range(10)], [0.95] * 10, [0] * 10)
    evaluator.process([{"image_id": 1}], [{"instances": tools.predicted([[10, 10, 60, 60]], [0.5], [0])}])
    evaluator.process([{"image_id": 2}], [{"instances": wrong}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert "10 of 11 detections do not count" in caplog.text


def test_complete_lvis_is_silent(names, tmp_path, caplog):
    truth = _truth()
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth["categories"][0]["frequency"] = "r"
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    name = names()
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "lvis.json"), thing_classes=["nut"])
    LVISEvaluator(name, distributed=False)
    assert not caplog.records


def test_rotated_file_gets_the_evaluator_of_rotated_boxes(coco):
    """Without a config, as for records that were registered by a function."""
    boxes = [[100, 100, 80, 20, 30], [60, 60, 40, 10, -170]]
    truth = _truth()
    truth["annotations"] = [{**truth["annotations"][0], "id": k, "bbox": b} for k, b in enumerate(boxes, start=1)]
    name = coco(truth)
    MetadataCatalog.get(name).evaluator_type = "coco"
    evaluator = build_evaluator(name, distributed=False)
    assert type(evaluator) is RotatedCOCOEvaluator
    found = Instances((200, 200), pred_boxes=RotatedBoxes(torch.tensor(boxes).float()))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="use RotatedCOCOEvaluator"):
        COCOEvaluator(name, distributed=False)


@pytest.mark.parametrize("box", [[float("nan"), 10, 50, 50], [10, 10, float("inf"), 50]])
@pytest.mark.parametrize("fast", [True, False])
def test_boxes_that_are_not_finite_match_nothing(coco, tools, caplog, box, fast):
    """To pycocotools the overlap with NaN is no less than any threshold."""
    with pytest.raises(ValueError, match=r"annotation 1 .*not finite"):
        COCOEvaluator(coco(_truth(bbox=box)), ["bbox"], distributed=False)
    evaluator = COCOEvaluator(coco(_truth()), ["bbox"], distributed=False, use_fast_impl=fast)
    x, y, w, h = box
    found = tools.predicted([[x, y, x + w, y + h], [100, 100, 150, 150]], [0.9, 0.5], [0, 0])
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP50"] == 0
    assert "1 of 2 detections on image 1" in caplog.text and "diverged" in caplog.text


def test_scores_that_are_not_numbers_do_not_count(coco, tools):
    evaluator = COCOEvaluator(coco(_truth()), ["bbox"], distributed=False)
    found = tools.predicted([[10, 10, 60, 60]] * 2, [float("nan"), 0.5], [0, 0])
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("area", ["2500", -1, float("nan")])
def test_areas_that_cannot_be_used_count_as_missing(coco, tools, caplog, area):
    evaluator = COCOEvaluator(coco(_truth(area=area)), ["bbox"], distributed=False)
    assert "1 of 1 annotations have no usable 'area'" in caplog.text
    evaluator.process([{"image_id": 1}], [{"instances": tools.predicted([[10, 10, 60, 60]], [0.9], [0])}])
    result = evaluator.evaluate()["bbox"]
    assert result["AP"] == result["APm"] == pytest.approx(100)


def test_boxes_in_place_of_masks_are_told(coco, tools, caplog):
    evaluator = COCOEvaluator(coco(_truth()), distributed=False)
    masks = torch.zeros(1, 200, 200, dtype=torch.bool)
    evaluator.process(
        [{"image_id": 1}], [{"instances": tools.predicted([[10, 10, 60, 60]], [0.9], [0], pred_masks=masks)}]
    )
    evaluator.evaluate()
    assert "1 of 1 annotations have no 'segmentation'" in caplog.text


def test_objects_with_another_number_of_keypoints(coco, tools):
    truth = _truth(keypoints=[20, 20, 2] * 5, num_keypoints=5)
    evaluator = COCOEvaluator(coco(truth), ["keypoints"], distributed=False, kpt_oks_sigmas=[0.1] * 3)
    found = tools.predicted([[10, 10, 60, 60]], [0.9], [0], pred_keypoints=torch.ones(1, 3, 3))
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    with pytest.raises(ValueError, match=r"1 object.* \[5\] keypoints.*3 OKS sigmas"):
        evaluator.evaluate()


@pytest.mark.parametrize("kind", [COCOEvaluator, LVISEvaluator])
def test_rotated_predictions_need_their_evaluator(coco, kind):
    evaluator = kind(coco(_truth()), distributed=False)
    found = Instances((200, 200), pred_boxes=RotatedBoxes([[35.0, 35, 50, 50, 0]]), scores=torch.ones(1))
    found.pred_classes = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"rotated.*RotatedCOCOEvaluator"):
        evaluator.process([{"image_id": 1}], [{"instances": found}])


@pytest.mark.parametrize(
    "truth", [_truth(bbox=[35, 35, 50, 50, 0]), {**_truth(), "images": [{"id": 1, "neg_category_ids": 5}]}]
)
def test_a_file_that_lvis_cannot_read_is_named(coco, truth):
    name = coco(truth)
    with pytest.raises(ValueError, match=MetadataCatalog.get(name).json_file):
        LVISEvaluator(name, distributed=False)


def test_unknown_frequencies_are_told(coco, caplog):
    truth = _truth()
    truth["categories"][0]["frequency"] = "rare"
    LVISEvaluator(coco(truth), distributed=False)
    assert "1 of 1 categories have no 'frequency'" in caplog.text


@pytest.mark.parametrize(
    ("box", "told"), [([100, 100, 150, 150], "beyond the edge"), ([0.05, 0.05, 0.25, 0.25], "no more than a pixel")]
)
def test_boxes_in_another_form_are_looked_at_first(coco, tools, caplog, box, told):
    """Corners as width and height, or shares of the image: no detection matches."""
    evaluator = COCOEvaluator(coco(_truth(bbox=box)), ["bbox"], distributed=False)
    evaluator.process([{"image_id": 1}], [{"instances": tools.predicted([[100, 100, 150, 150]], [0.9], [0])}])
    evaluator.evaluate()
    assert "look at the ground truth first" in caplog.text and told in caplog.text
