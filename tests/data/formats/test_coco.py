"""A COCO file is read with its mistakes; `tests/data/datasets/test_coco.py` has those that stop the loading."""

import json

import pytest

from detectron2.data.datasets import load_coco_json
from detectron2.data.formats.coco import guess_image_root, ids_by_text, keypoint_metadata, read_coco, read_content
from detectron2.structures import BoxMode

IMAGE = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]


@pytest.fixture
def write(tmp_path):
    def write(**content):
        path = tmp_path / "val.json"
        path.write_text(json.dumps({"images": [IMAGE], "categories": CATEGORIES, **content}))
        return path

    return write


def lenient(data):
    """Dataset dicts, class names and findings of what was read."""
    reader = read_content(data)
    return list(reader.records.values()), list(reader.categories.values()), reader.report.findings


def annotation(**changes):
    return {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], **changes}


def test_empty(write):
    data = read_coco(write(images=[]))
    assert data.splits == {"val": []} and lenient(data) == ([], ["cat", "dog"], [])


def test_same_as_loading(write):
    segmentation = [[1, 2, 4, 2, 4, 6]]
    path = write(annotations=[annotation(segmentation=segmentation, iscrowd=0, keypoints=[1, 2, 2])])
    dicts, names, findings = lenient(read_coco(path, ""))
    assert (names, findings) == (["cat", "dog"], [])
    assert dicts == load_coco_json(path, "", "test_formats_coco", ["id"])
    assert dicts[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"images": [IMAGE, {"id": 2}]}, "image-incomplete"),
        ({"images": [IMAGE, IMAGE]}, "image-id-twice"),
        ({"images": [{**IMAGE, "height": 0}]}, "image-size"),
        ({"annotations": [{"id": 1}]}, "no-image_id"),
        ({"annotations": [annotation(image_id="1")]}, "image_id-type"),
        ({"annotations": [annotation(category_id="5")]}, "category-unknown"),
        ({"annotations": [annotation(), annotation()]}, "annotation-id-twice"),
        ({"annotations": [annotation(category_id=4)]}, "category-unknown"),
        ({"annotations": [annotation(ignore=1)]}, "annotation-ignore"),
        ({"annotations": [annotation(bbox=[1, 2])]}, "annotation-unusable"),
        ({"annotations": [annotation(segmentation={"size": [20, 30], "counts": "0"})]}, "annotation-unusable"),
        ({"annotations": [annotation(segmentation={"size": [20, 30], "counts": [5]})]}, "annotation-unusable"),
        ({"categories": [{"id": 1}]}, "category-incomplete"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "category-twice"),
        ({"categories": [*CATEGORIES, {"id": "3", "name": "bird"}]}, "category-ids-mixed"),
    ],
)
def test_what_is_an_error_stops_loading(write, changes, kind):
    path = write(**changes)
    _, _, findings = lenient(read_coco(path, ""))
    assert [(f.kind, f.level, f.count) for f in findings] == [(kind, "error", 1)]
    with pytest.raises(ValueError):
        load_coco_json(path, "", "test_formats_coco")


@pytest.mark.parametrize(
    ("changes", "kind", "left"),
    [
        ({"annotations": [annotation(image_id=9)]}, "annotation-orphan", 0),
        ({"annotations": [annotation(segmentation=[[1, 2, 3, 4]])]}, "polygon-points", 0),
        ({"annotations": [annotation(segmentation=[[1, 2], [0, 0, 1, 1, 0, 1]])]}, "polygon-points", 1),
    ],
)
def test_what_is_a_warning_is_loaded(write, changes, kind, left):
    path = write(**changes)
    dicts, _, findings = lenient(read_coco(path, ""))
    assert [(f.kind, f.level) for f in findings] == [(kind, "warning")]
    assert dicts == load_coco_json(path, "", "test_formats_coco", ["id"]) and len(dicts[0]["annotations"]) == left


def test_whole_floats_are_ids_in_loading_and_in_the_check(write):
    path = write(
        images=[{**IMAGE, "id": 1.0}], annotations=[annotation(image_id=1.0, category_id=5.0)], categories=CATEGORIES
    )
    dicts, _, findings = lenient(read_coco(path, ""))
    assert findings == [] and type(dicts[0]["image_id"]) is int
    assert dicts == load_coco_json(path, "", "test_formats_coco", ["id"]) and len(dicts[0]["annotations"]) == 1


def test_lists_that_are_none(write):
    data = read_coco(write(annotations={}, images=[IMAGE, 3]))
    assert [(f.kind, f.count) for f in data.findings] == [("format", 2)] and data.content["images"] == [IMAGE]


def test_panoptic_files_are_refused(write):
    with pytest.raises(ValueError, match="neither fixed nor converted"):
        read_coco(write(annotations=[{"segments_info": []}]))


def test_guess_image_root(tmp_path):
    (tmp_path / "images" / "val").mkdir(parents=True)
    (tmp_path / "images" / "val" / "a.jpg").touch()
    file = tmp_path / "annotations" / "instances_val.json"
    assert guess_image_root(file, [IMAGE]) == str(tmp_path / "images" / "val")
    assert guess_image_root(file, []) == str(file.parent)


def test_keypoint_metadata():
    names = ["nose", "left_eye", "right_eye"]
    found = keypoint_metadata([{"keypoints": names, "skeleton": [[1, 2], [1, 9]]}, {}])
    assert found["keypoint_names"] == names and found["keypoint_flip_map"] == [("left_eye", "right_eye")]
    assert [rule[:2] for rule in found["keypoint_connection_rules"]] == [("nose", "left_eye")]
    assert keypoint_metadata([]) == keypoint_metadata([{"keypoints": ["a"]}, {"keypoints": ["b"]}]) == {}


def test_ids_by_text():
    entries = [
        {"id": 7, "name": "cat"},
        {"id": 8, "name": "dog"},
        {"id": 9, "name": "dog"},
        {"id": "x", "name": "7"},
        {},
    ]
    assert ids_by_text(entries, "name") == {"cat": 7, "7": 7, "8": 8, "9": 9, "x": "x"}


def test_annotations_name_the_file_of_their_image(write):
    file = write(annotations=[annotation(image_id=IMAGE["file_name"])])
    with pytest.raises(ValueError, match=r"'image_id' is 'a\.jpg', while the id of that image is 1"):
        load_coco_json(file, "")


def test_annotations_of_none_of_the_images(write):
    file = write(annotations=[annotation(image_id=8), annotation(id=2, image_id=9)])
    with pytest.raises(ValueError, match="annotations: none of 2 belongs to an image of the file, whose ids are: 1"):
        load_coco_json(file, "")


@pytest.mark.parametrize("shift", [1, -1])
def test_categories_that_count_from_another_number(write, shift):
    categories = [{"id": i, "name": f"c{i}"} for i in (1, 2, 3)]
    annotations = [annotation(id=i, category_id=i + shift) for i in (1, 2, 3)]
    file = write(annotations=annotations, categories=categories)
    assert [f.kind for f in lenient(read_coco(file))[2]] == ["category-shifted"]
    with pytest.raises(ValueError, match="all are one off"):
        load_coco_json(file, "", f"shifted by {shift}")
    file = write(annotations=[*annotations, annotation(id=4, category_id=9)], categories=categories)
    assert [f.kind for f in lenient(read_coco(file))[2]] == ["category-unknown"]


def test_true_is_no_category(write):
    (finding,) = lenient(
        read_coco(write(annotations=[annotation(category_id=True)], categories=[{"id": 1, "name": "a"}]))
    )[2]
    assert finding.kind == "annotation-unusable" and "'category_id' must be a whole number" in finding.text
