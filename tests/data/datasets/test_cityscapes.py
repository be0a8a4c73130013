"""Cityscapes: instances of polygons and of id images, and semantic segmentation."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from detectron2.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detectron2.structures import BoxMode


def square(label, x, y, side, **more):
    return {"label": label, "polygon": [[x, y], [x + side, y], [x + side, y + side], [x, y + side]], **more}


@pytest.fixture
def city(tmp_path):
    """One frame with the given objects and ids."""

    def write(objects=(), ids=None):
        images, gt = tmp_path / "leftImg8bit", tmp_path / "gtFine"
        for folder in (images / "ulm", gt / "ulm"):
            folder.mkdir(parents=True, exist_ok=True)
        (images / "license.txt").touch()
        Image.new("RGB", (40, 30)).save(images / "ulm" / "ulm_0_0_leftImg8bit.png")
        content = {"imgHeight": 30, "imgWidth": 40, "objects": list(objects)}
        (gt / "ulm" / "ulm_0_0_gtFine_polygons.json").write_text(json.dumps(content))
        if ids is not None:
            Image.fromarray(ids.astype(np.uint16)).save(gt / "ulm" / "ulm_0_0_gtFine_instanceIds.png")
        return images, gt

    return write


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_cityscapes_instances(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="no images"):
        load_cityscapes_instances(tmp_path, tmp_path)


def test_no_objects(city):
    (record,) = load_cityscapes_instances(*city())
    assert record.pop("file_name").endswith("ulm_0_0_leftImg8bit.png")
    assert record == {"image_id": "ulm_0_0_leftImg8bit.png", "height": 30, "width": 40, "annotations": []}


def test_later_objects_are_in_front(city):
    objects = [
        square("road", 0, 0, 20),
        square("car", 0, 0, 10),  # loses its right half to the wall
        square("person", 20, 0, 4, deleted=1),
        square("bicyclegroup", 20, 10, 4),
        square("car", 30, 20, 4),  # wholly covered
        {"label": "wall", "polygon": [[5, -1], [15, -1], [15, 12], [5, 12]]},
        square("sky", 29, 19, 6),
        square("license plate", 1, 1, 2),
    ]
    (record,) = load_cityscapes_instances(*city(objects))
    bikes, car = record["annotations"]
    assert (car["category_id"], car["iscrowd"], car["bbox"]) == (2, 0, [0.5, 0.5, 5.5, 10.5])
    assert car["bbox_mode"] == BoxMode.XYXY_ABS
    (polygon,) = car["segmentation"]
    corners = {(0.5, 0.5), (5.5, 0.5), (5.5, 10.5), (0.5, 10.5)}
    assert len(polygon) == 8 and set(zip(polygon[0::2], polygon[1::2], strict=True)) == corners
    assert (bikes["category_id"], bikes["iscrowd"], bikes["bbox"]) == (7, 1, [20.5, 10.5, 24.5, 14.5])


@pytest.mark.parametrize("item", [{"label": "car"}, {"polygon": [[0, 0], [1, 0], [1, 1]]}, square("car", 0, 0, 1)])
def test_malformed_objects_are_named(city, item):
    item = {**item, "polygon": item["polygon"][:2]} if len(item) == 2 else item
    with pytest.raises(ValueError, match=r"ulm_0_0_gtFine_polygons\.json: objects\[1\]: 'label' must be"):
        load_cityscapes_instances(*city([square("road", 0, 0, 20), item]))


def test_another_json_file(city):
    images, gt = city()
    (gt / "ulm" / "ulm_0_0_gtFine_polygons.json").write_text('{"images": []}')
    for load in (load_cityscapes_instances, load_cityscapes_semantic):
        with pytest.raises(ValueError, match=r"polygons\.json: Cityscapes' files have 'imgHeight'; there is: 'images'"):
            load(images, gt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgHeight": "30"}, "'imgHeight' must be a positive whole number of pixels, not the string '30'"),
        ({"imgWidth": 0}, "'imgWidth' must be a positive whole number of pixels, not the number 0"),
        ({"objects": None}, "objects: expected a list, not null"),
        ({"objects": ["car"]}, r"objects\[0\]: expected an object, not the string 'car'"),
        *(
            ({"objects": [{"label": "car", "polygon": polygon}]}, r"objects\[0\]: .* a list of three points \[x, y\]")
            for polygon in (
                [1, 2, 3, 4, 5, 6],
                [[1, 2, 3]] * 3,
                [[1, 2], [3], [4, 5]],
                [["a", 1], [2, 3], [4, 5]],
                [[None, 1], [2, 3], [4, 5]],
                [[float("inf"), 1], [2, 3], [4, 5]],
                "abc",
            )
        ),
    ],
)
def test_values_that_cannot_be_are_named(city, change, message):
    images, gt = city()
    content = {"imgHeight": 30.0, "imgWidth": 40, "objects": []}
    (gt / "ulm" / "ulm_0_0_gtFine_polygons.json").write_text(json.dumps(content))
    assert load_cityscapes_instances(images, gt)[0]["height"] == 30
    (gt / "ulm" / "ulm_0_0_gtFine_polygons.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=rf"ulm_0_0_gtFine_polygons\.json: {message}"):
        load_cityscapes_instances(images, gt)


def test_object_cut_in_two(city):
    objects = [square("car", 0, 0, 10), {"label": "pole", "polygon": [[4, -1], [6, -1], [6, 12], [4, 12]]}]
    (record,) = load_cityscapes_instances(*city(objects))
    (car,) = record["annotations"]
    assert len(car["segmentation"]) == 2 and car["bbox"] == [0.5, 0.5, 10.5, 10.5]


def test_run_lengths_of_polygons(city):
    with pytest.raises(ValueError, match="from_json=False"):
        load_cityscapes_instances(*city(), to_polygons=False)


def test_id_images(city):
    ids = np.zeros((30, 40), np.int32)
    ids[5:10, 3:9] = 26002  # a car
    ids[12:14, 3:9] = 33  # a group of bicycles
    ids[20:22, 3:9] = 29001  # a caravan is not evaluated
    (record,) = load_cityscapes_instances(*city(ids=ids), from_json=False, to_polygons=False)
    bikes, car = record["annotations"]
    assert (bikes["category_id"], bikes["iscrowd"]) == (7, 1) and (car["category_id"], car["iscrowd"]) == (2, 0)
    assert car["bbox"] == [3, 5, 9, 10] and (record["height"], record["width"]) == (30, 40)
    assert mask_util.area(car["segmentation"]) == 30


def test_id_images_that_are_none_are_named(city):
    images, gt = city(ids=np.zeros((30, 40)))
    path = gt / "ulm" / "ulm_0_0_gtFine_instanceIds.png"
    whole = path.read_bytes()
    for content, message in ((b"hello", "cannot be read: cannot identify"), (whole[:60], "cannot be read: image file")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"instanceIds.png: the picture of the instances' ids {message}"):
            load_cityscapes_instances(images, gt, from_json=False, to_polygons=False)
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(ValueError, match=r"instanceIds.png: expected one channel.*not shape \(30, 40, 3\)"):
        load_cityscapes_instances(images, gt, from_json=False, to_polygons=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"instanceIds.png"):
        load_cityscapes_instances(images, gt, from_json=False, to_polygons=False)


def test_id_images_as_polygons(city):
    pytest.importorskip("cv2")
    ids = np.zeros((30, 40), np.int32)
    ids[5:10, 3:9] = 26002
    (record,) = load_cityscapes_instances(*city(ids=ids), from_json=False)
    (polygon,) = record["annotations"][0]["segmentation"]
    assert (min(polygon[0::2]), max(polygon[0::2])) == (3.5, 8.5)
    assert (min(polygon[1::2]), max(polygon[1::2])) == (5.5, 9.5)


def test_semantic(city):
    images, gt = city()
    with pytest.raises(FileNotFoundError, match="createTrainIdLabelImgs"):
        load_cityscapes_semantic(images, gt)
    (gt / "ulm" / "ulm_0_0_gtFine_labelTrainIds.png").touch()
    assert load_cityscapes_semantic(images, gt) == [
        {
            "file_name": str(images / "ulm" / "ulm_0_0_leftImg8bit.png"),
            "sem_seg_file_name": str(gt / "ulm" / "ulm_0_0_gtFine_labelTrainIds.png"),
            "height": 30,
            "width": 40,
        }
    ]
