"""Ground truth that is read for evaluation: mistakes name file and place, ids may be text."""

import json
import re

import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation._coco_format import load_coco_api
from detectron2.structures import Boxes, Instances


def write_truth(folder, **changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0, **changes}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
        "categories": [{"id": annotation["category_id"] or 1, "name": "a"}],
        "annotations": [annotation],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return str(folder / "truth.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_id": None}, "it has no 'image_id' in annotation (id 1)"),
        ({"image_id": {}}, "'image_id' must be a whole number"),
        ({"bbox": "x"}, "annotation (id 1) of"),
        ({"bbox": [1, 2]}, "annotation (id 1) of"),
        ({"category_id": None}, "'category_id' must be a whole number"),
        ({"id": []}, "annotations[0]"),
    ],
)
def test_mistakes_in_ground_truth_name_file_and_annotation(tmp_path, changes, named):
    path = write_truth(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(path)) as error:
        load_coco_api(path)
    assert named in str(error.value)


@pytest.mark.parametrize("text", ["{", '{"images": [], "categories": []} x', "[]"])
def test_ground_truth_that_is_no_json_object(tmp_path, text):
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(ValueError, match=r"truth\.json"):
        load_coco_api(str(tmp_path / "truth.json"))


def test_ids_that_are_text_and_values_that_are_null(tmp_path):
    api = load_coco_api(write_truth(tmp_path, id="x", iscrowd=None, area=None))
    assert (api.dataset["annotations"][0]["id"], api.dataset["annotations"][0]["area"]) == (1, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": -5},
        {"id": 2**70},
        {"image_id": True},
        {"segmentation": {}},
        {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9], [1, 1, 9, 1, 9, 9, 1]]},
        {"segmentation": {"size": [20.0, 20.0], "counts": [0, 400]}},
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_what_the_check_lets_pass_can_be_evaluated(tmp_path, changes, fast):
    register_coco_instances("odd", {}, write_truth(tmp_path, **changes), str(tmp_path))
    try:
        evaluator = COCOEvaluator("odd", ("bbox", "segm"), use_fast_impl=fast)
        evaluator.reset()
        found = Instances((20, 20), pred_boxes=Boxes(torch.tensor([[1.0, 1, 9, 9]])), scores=torch.ones(1))
        found.pred_classes = torch.zeros(1).long()
        found.pred_masks = torch.zeros(1, 20, 20, dtype=torch.bool)
        edge = (
            slice(0, 20) if isinstance(changes.get("segmentation"), dict) and changes["segmentation"] else slice(1, 9)
        )
        found.pred_masks[0, edge, edge] = True
        evaluator.process([{"image_id": 1, "height": 20, "width": 20}], [{"instances": found}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    finally:
        MetadataCatalog.remove("odd")
        DatasetCatalog.remove("odd")


def test_annotations_of_no_image_do_not_count(tmp_path, caplog):
    api = load_coco_api(write_truth(tmp_path, image_id=-5))
    assert api.dataset["annotations"] == [] and "1 annotations belong to no image" in caplog.text


@pytest.mark.parametrize("category_id", ["0", "tree", -1])
@pytest.mark.parametrize("fast", [True, False])
def test_category_ids_that_are_text_or_negative(tmp_path, category_id, fast):
    register_coco_instances("text ids", {}, write_truth(tmp_path, category_id=category_id), str(tmp_path))
    try:
        DatasetCatalog.get("text ids")
        evaluator = COCOEvaluator("text ids", ("bbox",), output_dir=str(tmp_path / "out"), use_fast_impl=fast)
        evaluator.reset()
        boxes = Boxes(torch.tensor([[1.0, 1, 9, 9]]))
        found = Instances((20, 20), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.zeros(1).long())
        evaluator.process([{"image_id": 1, "height": 20, "width": 20}], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
        (result,) = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
        assert result["category_id"] == category_id
    finally:
        DatasetCatalog.remove("text ids")
        MetadataCatalog.remove("text ids")


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([], 1),
        ([[]], 0),
        ([[{"x": 1, "y": 2}]], 0),
        ([[1, 1, 9, 9]], 0),
        ([[1, 1, 9, 9, 1]], 0),
        ([[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]], 1),
    ],
)
def test_objects_whose_polygons_are_all_unusable_count_as_in_training(tmp_path, caplog, mask, counts):
    path = write_truth(tmp_path, segmentation=mask)
    register_coco_instances("flat_polygons", {}, path, str(tmp_path))
    try:
        assert len(DatasetCatalog.get("flat_polygons")[0]["annotations"]) == counts
    finally:
        DatasetCatalog.remove("flat_polygons")
        MetadataCatalog.remove("flat_polygons")
    assert len(load_coco_api(path).anns) == counts
    assert ("1 annotations have only polygons of less than three points" in caplog.text) == (counts == 0)
