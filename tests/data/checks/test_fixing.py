"""`fix` repairs what can be repaired and takes out the rest; `tests/cli/test_data.py` has every kind of mistake."""

from detectron2.data.checks.fixing import fix
from detectron2.data.formats.annotated_images import AnnotatedImages

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]


def cleaned(*annotations):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    data = AnnotatedImages("a.json", "coco", content, "")
    return fix(data, check_files=False), data.content["annotations"]


def test_empty():
    assert cleaned() == ({}, [])


def test_good_annotations_stay():
    changes, annotations = cleaned({"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0})
    assert changes == {} and annotations[0]["bbox"] == [1, 2, 3, 4]


def test_boxes():
    changes, annotations = cleaned(
        {"bbox": [20, 10, 20, 5]},  # partly outside
        {"bbox": [40, 10, 20, 5]},  # wholly outside
        {"bbox": None, "segmentation": [SQUARE]},
        {"bbox": [1, 1, 0, 5]},
    )
    assert [a["bbox"] for a in annotations] == [[20, 10, 10, 5], [2, 2, 10, 10]]
    assert [a["area"] for a in annotations] == [50, 100]
    assert changes["boxes clipped to their image"] == changes["boxes taken from the polygons"] == 1
    assert changes["annotations outside their image taken out"] == 1
    assert changes["annotations without a usable box taken out"] == 1


def test_ids_written_as_text_keep_their_annotations():
    changes, (first, second) = cleaned(
        {"bbox": [1, 2, 3, 4], "category_id": "1"}, {"bbox": [5, 2, 3, 4], "image_id": "1", "category_id": 1.0}
    )
    assert changes["ids written as the images and categories have them"] == 2
    assert [(a["image_id"], a["category_id"]) for a in (first, second)] == [(1, 1), (1, 1)]
