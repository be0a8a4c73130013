"""What does not belong together is refused as early as it can be known."""

import pytest

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation._coco_diagnosis import check_category_ids, explain_class_overlap


@pytest.mark.parametrize(
    ("mapping", "in_file"), [(None, []), (None, [1]), ({}, [1]), ({1: 0}, []), ({1: 0, 9: 1}, [1, 2]), ({1: 0}, [1])]
)
def test_maps_that_can_count(mapping, in_file):
    metadata = Metadata()
    if mapping is not None:
        metadata.thing_dataset_id_to_contiguous_id = mapping
    before = metadata.as_dict()
    check_category_ids(metadata, in_file)
    assert metadata.as_dict() == before


def test_a_map_from_other_ids_is_refused(coco, tools):
    name = coco(tools.random_coco(0))
    mapping = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    mapping.clear()
    mapping.update({0: 0, 1: 1, 2: 2})  # labels, where the ids 11, 12, 13 of the file are needed
    with pytest.raises(ValueError, match=r"has the category ids \[0, 1, 2\], and .*\.json has \[11, 12, 13\]"):
        COCOEvaluator(name)


def test_an_unknown_class_is_refused_at_the_first_image(coco, tools):
    evaluator = COCOEvaluator(coco(tools.random_coco(0)), distributed=False)
    boxes = [[0, 0, 9, 9]] * 2
    evaluator.process([{"image_id": 1}], [{"instances": tools.predicted(boxes, [0.5, 0.5], [0, 2])}])
    with pytest.raises(ValueError, match=r"A prediction on image 2 has class 3, but .* has the 3 classes \[0, 1, 2\]"):
        evaluator.process([{"image_id": 2}], [{"instances": tools.predicted(boxes, [0.5, 0.5], [3, 2])}])
    evaluator.process([{"image_id": 2}], [{"instances": tools.predicted([], [], [])}])


@pytest.mark.parametrize(
    ("predicted", "annotated", "text"),
    [
        ([1, 2], [2, 3], None),
        ([1], [2], "predicted are the categories [1], annotated [2]"),
        (range(12), [40], "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] and 2 more"),
    ],
)
def test_overlap_of_classes(predicted, annotated, text):
    found = explain_class_overlap(predicted, annotated, "the map")
    assert (found is None) if text is None else (text in found and "the map in its metadata is wrong" in found)
