"""`fix` repairs what can be repaired and takes out the rest; `tests/cli/test_data.py` has every kind of mistake."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image, ImageOps

from detectron2.data.checks.fixing import fix
from detectron2.data.formats.annotated_images import AnnotatedImages
from detectron2.data.formats.run_lengths import encode_mask
from detectron2.structures import polygons_to_bitmask

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
    assert changes["boxes clipped to their image"] == changes["boxes taken from the masks"] == 1
    assert changes["annotations outside their image taken out"] == 1
    assert changes["annotations without a usable box taken out"] == 1


def test_numbers_written_as_text_are_numbers():
    changes, annotations = cleaned(
        {"bbox": ["1", "2", "3.5", "4"], "area": "14", "iscrowd": "0", "segmentation": [[str(v) for v in SQUARE]]},
        {"bbox": [1, 2, 3, 5], "area": 15, "iscrowd": 0, "keypoints": ["4", "5", "2"]},
        {"bbox": [1, 2, 3, 6], "area": 18, "iscrowd": 0, "segmentation": [SQUARE]},
    )
    assert [a["bbox"] for a in annotations] == [[1, 2, 3.5, 4], [1, 2, 3, 5], [1, 2, 3, 6]]
    assert annotations[0]["segmentation"] == [SQUARE] and annotations[1]["keypoints"] == [4, 5, 2]
    assert [(a["area"], a["iscrowd"]) for a in annotations] == [(14, 0), (15, 0), (18, 0)]
    assert changes == {"annotations whose numbers were text given numbers": 2}


def test_boxes_are_taken_from_run_lengths():
    pixels = np.zeros((20, 30), np.uint8)
    pixels[4:9, 3:10] = 1
    mask = encode_mask(pixels)
    flawed = ({"bbox": [np.nan] * 4}, {"bbox": [0, 0, 0, 0], "iscrowd": 1}, {})
    changes, annotations = cleaned(
        *({**a, "segmentation": {**mask, "counts": mask["counts"].decode()}} for a in flawed)
    )
    assert changes["boxes taken from the masks"] == 3 and annotations[0]["bbox"] == [3, 4, 7, 5]


def test_missing_areas_are_those_of_the_masks():
    inner = [5.0, 5.0, 9.0, 5.0, 9.0, 9.0, 5.0, 9.0]
    mask = encode_mask(polygons_to_bitmask([np.array(SQUARE), np.array(inner) + 10], 20, 30))
    _, annotations = cleaned(
        {"bbox": [2, 2, 10, 10], "segmentation": [SQUARE, inner]},  # one inside the other
        {"bbox": [2, 2, 17, 17], "segmentation": {**mask, "counts": mask["counts"].decode()}},
        {"bbox": [2, 2, 10, 17], "segmentation": [SQUARE], "area": 7},
    )
    assert [a["area"] for a in annotations] == [100, 100 + 16, 7]


def test_ids_written_as_text_keep_their_annotations():
    changes, (first, second) = cleaned(
        {"bbox": [1, 2, 3, 4], "category_id": "1"}, {"bbox": [5, 2, 3, 4], "image_id": "1", "category_id": 1.0}
    )
    assert changes["ids written as the images and categories have them"] == 2
    assert [(a["image_id"], a["category_id"]) for a in (first, second)] == [(1, 1), (1, 1)]


def exif_set(folder, orientation, said_wh, annotations, more=()):
    """Images that are stored 16 x 10 with an EXIF orientation, and more: (name, size, orientation, annotations)."""
    images, found = [], []
    for n, (wh, o, own) in enumerate([(said_wh, orientation, annotations), *more], start=1):
        stored = np.zeros((10, 16) if n == 1 or wh != (12, 12) else (12, 12), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = o
        Image.fromarray(stored).save(folder / f"{n}.png", exif=exif)
        images.append({"id": n, "file_name": f"{n}.png", "width": wh[0], "height": wh[1]})
        found += [{"id": len(found) + k, "image_id": n, "category_id": 1, **a} for k, a in enumerate(own, start=1)]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "cat"}]}
    return AnnotatedImages("a.json", "coco", content, str(folder))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_made_without_the_turn_of_exif_are_turned(tmp_path, orientation):
    pixels = np.zeros((10, 16), np.uint8)
    pixels[2:5, 1:7] = 1
    polygon = [1, 2, 7, 2, 7, 5, 1, 5]
    rle = {"size": [10, 16], "counts": encode_mask(pixels)["counts"].decode()}
    mine = [
        {"bbox": [1, 2, 6, 3], "segmentation": [polygon], "keypoints": [1, 2, 2, 0, 0, 0]},
        {"bbox": [1, 2, 6, 3], "segmentation": rle, "iscrowd": 1},
        {"bbox": [4, 3.5, 6, 3, 30]},
    ]
    data = exif_set(tmp_path, orientation, (16, 10), mine)
    changes = fix(data)
    assert changes["images whose annotations were turned as EXIF says"] == 1
    assert (data.content["images"][0]["width"], data.content["images"][0]["height"]) == (10, 16)
    upright = np.asarray(ImageOps.exif_transpose(with_tag(Image.fromarray(pixels * 255), orientation))) > 0
    rows, columns = np.nonzero(upright)
    x, y, w, h = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
    polygons, crowd, rotated = data.content["annotations"]
    assert polygons["bbox"] == crowd["bbox"] == [x, y, w, h]
    assert (polygons_to_bitmask([np.array(p) for p in polygons["segmentation"]], 16, 10) == upright).all()
    crowd["segmentation"]["counts"] = crowd["segmentation"]["counts"].encode()
    assert (mask_util.decode(crowd["segmentation"]) == upright).all()
    corner = np.zeros((10, 16), np.uint8)
    corner[2, 1] = 255
    (row,), (column,) = np.nonzero(np.asarray(ImageOps.exif_transpose(with_tag(Image.fromarray(corner), orientation))))
    assert polygons["keypoints"] == [column, row, 2, 0, 0, 0]
    angle = {5: -120, 6: -60, 7: 60, 8: 120}[orientation]
    assert rotated["bbox"] == pytest.approx([x + w / 2, y + h / 2, 6, 3, angle])


def with_tag(image, orientation):
    image.getexif()[0x0112] = orientation
    return image


def test_turns_that_keep_the_size_are_taken_as_those_of_the_others(tmp_path):
    box = {"bbox": [1, 2, 6, 3]}
    data = exif_set(tmp_path, 6, (16, 10), [box], [((16, 10), 3, [box]), ((12, 12), 8, [box]), ((16, 10), 1, [box])])
    fix(data)
    boxes = [a["bbox"] for a in data.content["annotations"]]
    assert boxes == [[5, 1, 3, 6], [9, 5, 6, 3], [2, 5, 3, 6], [1, 2, 6, 3]]
    # one image of the upright kind, and nothing tells about the second
    data = exif_set(tmp_path, 6, (16, 10), [box], [((16, 10), 3, [box]), ((10, 16), 6, [box])])
    with pytest.raises(ValueError, match="does not tell which"):
        fix(data)
    with pytest.raises(ValueError, match=r"INPUT\.EXIF"):
        fix(exif_set(tmp_path, 6, (10, 16), [box]), exif="ignore")


@pytest.mark.parametrize(
    ("said", "box", "right"),
    [
        ((10, 16), [8, 1, 7, 5], True),  # only the size is wrong: the box fits into the file alone
        ((10, 16), [1, 1, 5, 5], False),
        ((32, 20), [1, 1, 5, 5], False),  # perhaps of an image that was made smaller
        ((32, 20), [20, 1, 9, 5], False),
        ((32, 20), None, True),
    ],
)
def test_another_size_is_corrected_only_where_the_boxes_tell(tmp_path, said, box, right):
    data = exif_set(tmp_path, 1, said, [] if box is None else [{"bbox": box}])
    changes = fix(data)
    assert ("image sizes corrected" in changes) is right
    assert (data.content["images"][0]["width"], data.content["images"][0]["height"]) == ((16, 10) if right else said)
    assert [a["bbox"] for a in data.content["annotations"]] == ([] if box is None else [box])


def test_keypoints_in_other_forms():
    changes, annotations = cleaned(
        {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "keypoints": [[4, 5, 2], [6, 7, 1]]},
        {"bbox": [1, 2, 3, 5], "area": 15, "iscrowd": 0, "keypoints": [np.nan, np.nan, 0, 6, 7, 1]},
        {"bbox": [1, 2, 3, 6], "area": 18, "iscrowd": 0, "keypoints": [4, 5, 2, None, 7, 1], "num_keypoints": 2},
    )
    assert [a["keypoints"] for a in annotations] == [[4, 5, 2, 6, 7, 1], [0, 0, 0, 6, 7, 1], [4, 5, 2, 0, 0, 0]]
    assert changes["keypoints of other than finite numbers marked as not labelled"] == 2
    assert "num_keypoints" not in annotations[2]
