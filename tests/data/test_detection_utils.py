"""Reading images, transforming annotations, and errors that say what is wrong."""

import types
from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import detectron2.data.detection_utils as utils
import detectron2.data.transforms as T
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

RNG = np.random.default_rng(0)


def picture(h=20, w=30):
    return RNG.integers(0, 256, (h, w, 3)).astype(np.uint8)


@pytest.fixture
def metadata():
    names = []

    def make(name, **entries):
        names.append(name)
        return MetadataCatalog.get(name).set(**entries)

    yield make
    for name in names:
        MetadataCatalog.remove(name)


def annotation(**changes):
    base = {
        "id": 42,
        "bbox": [10.0, 20.0, 30.0, 40.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 3,
        "segmentation": [[10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]],
    }
    return {**base, **changes}


def rle(h=80, w=100, box=(10, 20, 40, 60)):
    mask = np.zeros((h, w), dtype=np.uint8, order="F")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask_util.encode(mask)


# --- reading images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [None, *range(1, 9), 0, 99])
def test_images_stand_upright(tmp_path, orientation):
    img = Image.fromarray(picture())
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    img.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.testing.assert_array_equal(utils.read_image(tmp_path / "a.png", "RGB"), expected)
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "a.png"), "BGR"), expected[:, :, ::-1])


def test_broken_exif_is_ignored(caplog):
    class Broken:
        def load(self):
            pass

        def getexif(self):
            raise SyntaxError("not a TIFF file")

    broken = Broken()
    assert utils._apply_exif_orientation(broken) is broken
    assert "not a TIFF file" in caplog.text
    no_exif = types.SimpleNamespace()
    assert utils._apply_exif_orientation(no_exif) is no_exif


def test_formats(tmp_path):
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "a.png")

    def read(image_format):
        return utils.read_image(tmp_path / "a.png", image_format)

    np.testing.assert_array_equal(read(None), rgb)
    np.testing.assert_array_equal(read("L"), np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None])
    np.testing.assert_array_equal(read("HSV"), np.asarray(Image.fromarray(rgb).convert("HSV")))
    yuv = read("YUV-BT.601")
    np.testing.assert_allclose(yuv[..., 0] * 255, rgb @ [0.299, 0.587, 0.114], atol=1e-6)
    grey = Image.fromarray(rgb[:, :, 0])
    assert utils.convert_PIL_to_numpy(grey, "RGB").shape == (20, 30, 3)
    assert utils.convert_PIL_to_numpy(grey, "L").shape == (20, 30, 1)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "YUV-BT.601", "HSV", "YCbCr"])
def test_conversion_to_rgb_and_back(image_format):
    rgb = picture()
    there = utils.convert_PIL_to_numpy(Image.fromarray(rgb), image_format)
    back = utils.convert_image_to_rgb(there, image_format)
    tolerance = {"RGB": 0, "BGR": 0, "YUV-BT.601": 0.02}.get(image_format, 12)  # 8-bit HSV rounds coarsely
    np.testing.assert_allclose(back.astype(float), rgb, atol=tolerance)
    tensor = torch.from_numpy(there.copy())
    np.testing.assert_array_equal(utils.convert_image_to_rgb(tensor, image_format), back)


def test_grey_to_rgb():
    grey = picture()[:, :, :1]
    np.testing.assert_array_equal(utils.convert_image_to_rgb(grey, "L"), np.repeat(grey, 3, axis=2))


def test_16_bits_are_kept_or_refused(tmp_path):
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(utils.read_image(tmp_path / "deep.png"), deep)
    with pytest.raises(ValueError, match=r"deep.png.*values from 0 to 599.*format=None"):
        utils.read_image(tmp_path / "deep.png", "RGB")
    Image.fromarray(deep // 4).save(tmp_path / "labels.png")  # fits in 8 bits
    np.testing.assert_array_equal(utils.read_image(tmp_path / "labels.png", "L")[:, :, 0], deep // 4)


def test_missing_and_broken_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.png.*DETECTRON2_DATASETS"):
        utils.read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(OSError, match=r"text.png.*not an image"):
        utils.read_image(tmp_path / "text.png")
    Image.fromarray(picture(200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(OSError, match=r"half.png.*truncated"):
        utils.read_image(tmp_path / "half.png")
    with pytest.raises(ValueError, match=r"whole.png"):
        utils.read_image(tmp_path / "whole.png", "no such format")
    broken = bytearray((tmp_path / "whole.png").read_bytes())
    end_of_data = broken.rindex(b"IEND")
    broken[end_of_data - 4 : end_of_data + 4] = b"\0\0\0\0S\xd5\xcfk"  # a chunk that PNG does not have
    second = broken.index(b"IDAT", broken.index(b"IDAT") + 4)
    broken[second : second + 4] = b"\1\2\3\4"
    (tmp_path / "broken.png").write_bytes(broken)
    with pytest.raises(OSError, match=r"cannot read the image .*broken.png"):
        utils.read_image(tmp_path / "broken.png")


def test_an_image_that_is_too_large_for_pillow(tmp_path, monkeypatch):
    Image.fromarray(picture(20, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"large.png.*exceeds limit"):
        utils.read_image(tmp_path / "large.png")


def test_image_size_is_checked():
    record = {"file_name": "a.jpg"}
    utils.check_image_size(record, picture(20, 30))
    assert (record["height"], record["width"]) == (20, 30)
    utils.check_image_size(record, picture(20, 30))
    with pytest.raises(utils.SizeMismatchError, match=r"'a.jpg' is 31 pixels wide and 20 high.*30 wide and 20 high"):
        utils.check_image_size(record, picture(20, 31))
    with pytest.raises(ValueError, match="EXIF"):
        utils.check_image_size(record, picture(30, 20))


# --- annotations of one instance -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bbox", "mode"), [([10, 20, 40, 60], BoxMode.XYXY_ABS), ((10.0, 20, 30, 40), BoxMode.XYWH_ABS)]
)
def test_boxes_are_moved_and_clipped(bbox, mode):
    for transforms in ([], [T.NoOpTransform()], T.TransformList([]), T.NoOpTransform()):
        out = utils.transform_instance_annotations({"bbox": bbox, "bbox_mode": mode}, transforms, (80, 100))
        np.testing.assert_array_equal(out["bbox"], [10, 20, 40, 60])
        assert out["bbox_mode"] == BoxMode.XYXY_ABS
    crop = T.CropTransform(20, 30, 15, 20)
    out = utils.transform_instance_annotations({"bbox": bbox, "bbox_mode": mode}, [crop], torch.Size([20, 15]))
    np.testing.assert_array_equal(out["bbox"], [0, 0, 15, 20])
    np.testing.assert_array_equal(utils.get_bbox({"bbox": bbox, "bbox_mode": mode}), [10, 20, 40, 60])


@pytest.mark.parametrize(
    ("boxes", "modes"),
    [
        ([], []),
        ([[10, 20, 40, 60]] * 2, [BoxMode.XYXY_ABS] * 2),
        ([[10, 20, 30, 40]] * 2, [BoxMode.XYWH_ABS] * 2),
        ([[10, 20, 30, 40], np.array([10, 20, 40, 60])], [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS]),
        ([[25, 40, 30, 40, 0]] * 2, [BoxMode.XYWHA_ABS] * 2),
    ],
)
def test_boxes_of_an_image(boxes, modes):
    annotations = [{"bbox": b, "bbox_mode": m, "category_id": 0} for b, m in zip(boxes, modes, strict=True)]
    instances = utils.annotations_to_instances(annotations, (80, 100))
    assert instances.gt_boxes.tensor.tolist() == [[10, 20, 40, 60]] * len(boxes)


@pytest.mark.parametrize("bbox", [[0, 0, 5], [0, 0, 5, 5, 5]])
def test_one_box_of_another_length(bbox):
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for b in ([0, 0, 5, 5], bbox)]
    with pytest.raises(ValueError, match="values to unpack"):
        utils.annotations_to_instances(annotations, (80, 100))


def test_boxes_without_a_mode_beside_others():
    annotations = [{"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}, {"bbox": [0, 0, 5, 5]}]
    with pytest.raises(KeyError, match="has no 'bbox_mode'"):
        utils.annotations_to_instances(annotations, (80, 100))


def test_rotated_mode_becomes_the_box_around():
    box = utils.get_bbox({"bbox": [50, 40, 20, 10, 90], "bbox_mode": BoxMode.XYWHA_ABS})
    np.testing.assert_allclose(box, [45, 30, 55, 50], atol=1e-4)


def test_annotations_without_a_box():
    with pytest.raises(KeyError, match=r"annotation id 42 \(category_id 3\) has no 'bbox_mode'"):
        utils.get_bbox({"id": 42, "category_id": 3, "bbox": [0, 0, 1, 1]})


def test_the_same_dict_is_returned_and_its_arrays_are_not_changed():
    polygon = np.array([10.0, 20, 40, 20, 40, 60])
    keypoints = np.array([12.0, 22, 2])
    bbox = np.array([10.0, 20, 40, 60])
    anno = annotation(bbox=bbox, bbox_mode=BoxMode.XYXY_ABS, segmentation=[polygon], keypoints=keypoints)
    before = [a.copy() for a in (polygon, keypoints, bbox)]
    out = utils.transform_instance_annotations(
        anno, [T.ResizeTransform(80, 100, 160, 50), T.HFlipTransform(50)], (160, 50), keypoint_hflip_indices=[0]
    )
    assert out is anno
    for array, copy in zip((polygon, keypoints, bbox), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(
    xywh=st.tuples(*[st.floats(-20, 120)] * 2, *[st.floats(0, 150)] * 2),
    new_hw=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_boxes_are_inside_the_image(xywh, new_hw):
    transforms = [T.HFlipTransform(100), T.ResizeTransform(80, 100, *new_hw)]
    anno = {"bbox": list(xywh), "bbox_mode": BoxMode.XYWH_ABS}
    box = utils.transform_instance_annotations(anno, transforms, new_hw)["bbox"]
    assert (box >= 0).all()
    assert (box <= [new_hw[1], new_hw[0]] * 2).all()
    again = utils.transform_instance_annotations({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS}, [], new_hw)["bbox"]
    np.testing.assert_array_equal(again, box)


def test_polygons_and_masks_move_alike():
    transforms = T.TransformList([T.HFlipTransform(100), T.CropTransform(30, 10, 60, 60, 100, 80)])
    polygon = utils.transform_instance_annotations(annotation(), transforms, (60, 60))["segmentation"]
    mask = utils.transform_instance_annotations(annotation(segmentation=rle()), transforms, (60, 60))["segmentation"]
    expected = np.zeros((60, 60))
    expected[10:50, 30:60] = 1
    np.testing.assert_array_equal(mask, expected)
    drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects([p.tolist() for p in polygon], 60, 60)))
    np.testing.assert_array_equal(drawn, expected)


def test_uncompressed_rle():
    encoded = {"size": [2, 3], "counts": [1, 2, 3]}  # columns first: 0 1 | 1 0 | 0 0
    out = utils.transform_instance_annotations(
        {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": encoded}, [], (2, 3)
    )
    np.testing.assert_array_equal(out["segmentation"], [[0, 1, 0], [1, 0, 0]])


def test_uncompressed_rle_of_another_length():
    # pycocotools would write behind its memory, or leave it as it was
    for counts in ([1, 2, 2], [1, 2, 30]):
        with pytest.raises(ValueError, match=r"\(2, 3\) add up to (5|33)"):
            segmentation = {"size": [2, 3], "counts": counts}
            utils.transform_instance_annotations(annotation(segmentation=segmentation), [], (2, 3))


def test_unknown_segmentations():
    with pytest.raises(ValueError, match=r"annotation id 42 .* has type str; supported"):
        utils.transform_instance_annotations(annotation(segmentation="mask.png"), [], (80, 100))
    with pytest.raises(ValueError, match=r"annotation id 42.*\(80, 100\).*\(80, 90\)"):
        utils.transform_instance_annotations(annotation(segmentation=rle()), [], (80, 90))


# --- keypoints -------------------------------------------------------------------------------------------------------


def test_no_keypoints():
    assert utils.transform_keypoint_annotations([], [], (10, 10)).shape == (0, 3)


def test_keypoints_outside_are_not_labelled():
    out = utils.transform_keypoint_annotations(
        [5, 5, 2, 50, 5, 1, 20, 20, 2], [T.CropTransform(0, 0, 20, 20)], (20, 20)
    )
    np.testing.assert_array_equal(out, [[5, 5, 2], [50, 5, 0], [20, 20, 2]])


def test_left_and_right_change_places():
    points = [10, 5, 2, 30, 6, 1, 0, 0, 0]
    out = utils.transform_keypoint_annotations(points, [T.HFlipTransform(100)], (100, 100), [1, 0, 2])
    np.testing.assert_array_equal(out, [[70, 6, 1], [90, 5, 2], [0, 0, 0]])
    twice = [T.HFlipTransform(100), T.ResizeTransform(100, 100, 100, 100), T.HFlipTransform(100)]
    np.testing.assert_array_equal(
        utils.transform_keypoint_annotations(points, twice, (100, 100)), np.reshape(points, (3, 3))
    )
    single = utils.transform_keypoint_annotations(points, T.HFlipTransform(100), (100, 100), [1, 0, 2])
    np.testing.assert_array_equal(single, out)


def test_keypoint_errors():
    with pytest.raises(ValueError, match="need keypoint_hflip_indices"):
        utils.transform_keypoint_annotations([1, 1, 2], [T.HFlipTransform(9)], (9, 9))
    with pytest.raises(ValueError, match="has 1 keypoints, but the data set has 2"):
        utils.transform_keypoint_annotations([1, 1, 2], [], (9, 9), [1, 0])


def test_flip_indices(metadata):
    entries = {"keypoint_names": ["nose", "l", "r"], "keypoint_flip_map": [("l", "r")]}
    metadata("_kp_a", **entries)
    metadata("_kp_b", **entries)
    metadata("_kp_c", **{**entries, "keypoint_names": ["nose", "r", "l"]})
    metadata("_kp_d", **{**entries, "keypoint_flip_map": [("l", "right")]})
    assert utils.create_keypoint_hflip_indices("_kp_a") == [0, 2, 1]
    assert utils.create_keypoint_hflip_indices(["_kp_a", "_kp_b"]) == [0, 2, 1]
    with pytest.raises(ValueError, match=r"keypoint_names.*'_kp_a'.*'_kp_c'"):
        utils.create_keypoint_hflip_indices(["_kp_a", "_kp_c"])
    with pytest.raises(ValueError, match=r"\['right'\]"):
        utils.create_keypoint_hflip_indices("_kp_d")
    utils.check_metadata_consistency("keypoint_names", [])
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        utils.create_keypoint_hflip_indices([])


def test_keypoints_without_metadata(metadata):
    metadata("_kp_e")
    metadata("_kp_f", keypoint_names=["nose"])
    with pytest.raises(
        AttributeError, match=r"'_kp_e' has no keypoint_names and no keypoint_flip_map.*needed where.*set"
    ):
        utils.create_keypoint_hflip_indices("_kp_e")
    with pytest.raises(ValueError, match=r"'_kp_f' has no keypoint_flip_map, .*\[\] if none do"):
        utils.create_keypoint_hflip_indices("_kp_f")
    metadata("_kp_g", keypoint_names=["nose", "ear"], keypoint_flip_map=[])
    assert utils.create_keypoint_hflip_indices("_kp_g") == [0, 1]


def test_fed_loss_weights(metadata):
    metadata("_lvis", class_image_count=[{"id": 2, "image_count": 9}, {"id": 1, "image_count": 4}])
    torch.testing.assert_close(utils.get_fed_loss_cls_weights("_lvis", 0.5), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(utils.get_fed_loss_cls_weights(["_lvis"]), torch.tensor([4.0, 9.0]))


# --- instances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_no_annotations(mask_format):
    instances = utils.annotations_to_instances([], (80, 100), mask_format)
    assert len(instances) == 0
    assert instances.image_size == (80, 100)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert not instances.has("gt_masks")
    assert len(utils.filter_empty_instances(instances)) == 0


def test_annotations_without_a_class():
    with pytest.raises(KeyError, match="annotation number 0 id 42 has no 'category_id'"):
        utils.annotations_to_instances([{k: v for k, v in annotation().items() if k != "category_id"}], (80, 100))


def test_instances():
    annos = [annotation(keypoints=[1, 2, 2]), annotation(category_id=5, keypoints=[3, 4, 1])]
    instances = utils.annotations_to_instances(annos, (80, 100))
    assert instances.gt_boxes.tensor.tolist() == [[10, 20, 40, 60]] * 2
    assert instances.gt_classes.tolist() == [3, 5]
    assert isinstance(instances.gt_masks, PolygonMasks)
    assert instances.gt_keypoints.tensor.tolist() == [[[1, 2, 2]], [[3, 4, 1]]]


@pytest.mark.parametrize(
    "segmentation",
    [[[10.0, 20, 40, 20, 40, 60, 10, 60]], rle(), mask_util.decode(rle()), mask_util.decode(rle()).astype(bool)],
    ids=["polygon", "RLE", "uint8", "bool"],
)
def test_bitmasks_from_anything(segmentation):
    instances = utils.annotations_to_instances([annotation(segmentation=segmentation)], (80, 100), "bitmask")
    assert isinstance(instances.gt_masks, BitMasks)
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), mask_util.decode(rle()) > 0)


@pytest.mark.parametrize("other", [rle(), mask_util.decode(rle()), mask_util.decode(rle()).astype(bool)], ids=type)
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_polygons_among_other_masks_become_bitmaps(other, mask_format):
    small = [[0.0, 0, 5, 0, 5, 5, 0, 5]]
    annos = [annotation(segmentation=small), annotation(segmentation=other), annotation(segmentation=[])]
    annos = [utils.transform_instance_annotations(a, [T.HFlipTransform(100)], (80, 100)) for a in annos]
    instances = utils.annotations_to_instances(annos, (80, 100), mask_format)
    expected = np.zeros((3, 80, 100), dtype=bool)
    expected[0, :5, 95:] = True
    expected[1, 20:60, 60:90] = True
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected)
    kept = utils.filter_empty_instances(instances)
    assert isinstance(kept.gt_masks, BitMasks) and len(kept) == 2


def test_the_change_to_bitmaps_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._TIMES_SEEN", Counter())
    caplog.set_level("INFO")
    for _ in range(2):
        assert isinstance(utils.annotations_to_instances([annotation()], (80, 100)).gt_masks, PolygonMasks)
    assert caplog.records == []
    for _ in range(2):
        utils.annotations_to_instances([annotation(segmentation=rle())], (80, 100))
    assert [r.name for r in caplog.records] == ["detectron2.data.detection_utils"]
    assert "given as bitmaps" in caplog.text


@pytest.mark.parametrize(
    ("annos", "mask_format", "message"),
    [
        ([annotation(segmentation=[[1, 2, 3, 4]])], "polygon", r"id 42 .*polygon of 4 numbers"),
        ([annotation(segmentation=[[1, 2, 3, 4]])], "bitmask", r"id 42 .*polygon of 4 numbers"),
        ([annotation(), annotation(segmentation=np.ones((80, 90)))], "polygon", r"number 1 .*shape \(80, 90\)"),
        ([annotation(segmentation=np.ones((2, 80, 100)))], "bitmask", r"type ndarray and shape \(2, 80, 100\)"),
        ([annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])], "polygon", r"polygon of 7 numbers"),
        ([annotation(segmentation=np.ones((80, 90)))], "bitmask", r"shape \(80, 90\).*\(80, 100\)"),
        ([annotation(segmentation="a.png")], "bitmask", r"type str"),
        ([annotation()], "rle", r"INPUT.MASK_FORMAT.*'rle'"),
        (
            [annotation(), {k: v for k, v in annotation().items() if k != "segmentation"}],
            "polygon",
            "number 1 .*has no",
        ),
        ([annotation(keypoints=[1, 1, 1]), annotation(keypoints=[1] * 6)], "polygon", "has 2 keypoints.*has 1"),
    ],
)
def test_unusable_annotations(annos, mask_format, message):
    with pytest.raises(ValueError, match=message):
        utils.annotations_to_instances(annos, (80, 100), mask_format)


@pytest.mark.parametrize("count", [0, 2])
def test_rotated_instances(count):
    from detectron2.structures import RotatedBoxes

    annos = [{"bbox": [50, 40, 300, 10, 0], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 1}] * count
    instances = utils.annotations_to_instances_rotated(annos, (80, 100))
    assert isinstance(instances.gt_boxes, RotatedBoxes)
    assert instances.gt_boxes.tensor.tolist() == [[50, 40, 100, 10, 0]] * count
    assert instances.gt_classes.tolist() == [1] * count


def rotated_corners(box):
    x, y, width, height, angle = box
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    offsets = np.array([(-width, -height), (width, -height), (width, height), (-width, height)]) / 2
    return np.array([(x + cos * dx + sin * dy, y + cos * dy - sin * dx) for dx, dy in offsets])


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [T.HFlipTransform(100)],
        [T.VFlipTransform(80), T.CropTransform(10, 5, 60, 50)],
        [T.ResizeTransform(80, 100, 160, 200), T.RotationTransform(160, 200, 33)],
    ],
    ids=["none", "hflip", "vflip-crop", "resize-rotate"],
)
def test_rotated_annotation_follows_the_image(transforms):
    box = [50.0, 40, 30, 10, 20]
    anno = utils.transform_rotated_annotation({"bbox": box, "bbox_mode": BoxMode.XYWHA_ABS, "id": 1}, transforms)
    assert anno["bbox_mode"] == BoxMode.XYWHA_ABS and anno["id"] == 1 and box == [50, 40, 30, 10, 20]
    expected = T.TransformList(transforms).apply_coords(rotated_corners(box))
    found = rotated_corners(anno["bbox"])
    distances = np.linalg.norm(expected[:, None] - found[None], axis=2)  # a flip changes the order of the corners
    assert distances.min(axis=0).max() < 1e-6 and distances.min(axis=1).max() < 1e-6


def test_upright_annotation_as_a_rotated_one():
    anno = {"bbox": [10, 20, 40, 60], "bbox_mode": BoxMode.XYXY_ABS}
    assert utils.transform_rotated_annotation(anno, [])["bbox"].tolist() == [25, 40, 30, 40, 0]
    with pytest.raises(KeyError, match="has no 'bbox'"):
        utils.transform_rotated_annotation({"bbox_mode": BoxMode.XYXY_ABS}, [])


def test_filter_empty_instances():
    instances = Instances((80, 100))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [0, 0, 9, 9]]))
    instances.gt_masks = BitMasks(torch.tensor([True, True, False])[:, None, None].expand(3, 80, 100))
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False]
    assert len(kept) == 1
    assert len(utils.filter_empty_instances(kept)) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False, box_threshold=6)) == 1
    with pytest.raises(ValueError, match="by_box=True or by_mask=True"):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


# --- proposals -------------------------------------------------------------------------------------------------------


def test_no_proposals():
    record = {}
    utils.transform_proposals(record, (10, 10), T.TransformList([]), proposal_topk=3)
    assert record == {}


def test_proposals():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 500, 500], [5, 5, 5, 50], [0, 0, 3, 4]], dtype=np.float32)
    record = {
        "proposal_boxes": boxes.copy(),
        "proposal_objectness_logits": np.array([4, 3, 2, 1.0]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    utils.transform_proposals(record, (100, 200), T.HFlipTransform(200), proposal_topk=2, min_box_size=3)
    assert list(record) == ["proposals"]
    assert record["proposals"].proposal_boxes.tensor.tolist() == [[190, 0, 200, 10], [0, 50, 150, 100]]
    assert record["proposals"].objectness_logits.tolist() == [4, 3]


# --- crops and configs -----------------------------------------------------------------------------------------------


def test_crop_around_an_instance():
    for _ in range(100):
        crop = utils.gen_crop_transform_with_instance((20, 30), (80, 100), annotation())
        assert crop.x0 <= 25 <= crop.x0 + crop.w
        assert crop.y0 <= 40 <= crop.y0 + crop.h
        assert 0 <= crop.x0 <= 70
        assert 0 <= crop.y0 <= 60


@pytest.mark.parametrize("box", [[-90, -80, -50, -30], [300, 200, 400, 280], [30, 500, 50, 600]])
def test_a_crop_for_a_box_outside_the_image_is_inside_it(box):
    entry = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
    crop = utils.gen_crop_transform_with_instance((20, 30), (80, 100), entry)
    assert 0 <= crop.x0 <= 70 and 0 <= crop.y0 <= 60


def config(flip="horizontal"):
    return types.SimpleNamespace(
        INPUT=types.SimpleNamespace(
            MIN_SIZE_TRAIN=(640, 800),
            MAX_SIZE_TRAIN=1333,
            MIN_SIZE_TRAIN_SAMPLING="choice",
            MIN_SIZE_TEST=800,
            MAX_SIZE_TEST=1000,
            RANDOM_FLIP=flip,
        )
    )


def test_default_augmentations():
    resize, flip = utils.build_augmentation(config(), is_train=True)
    assert (resize.short_edge_length, resize.max_size, resize.is_range) == ((640, 800), 1333, False)
    assert (flip.horizontal, flip.vertical, flip.prob) == (True, False, 0.5)
    assert utils.build_transform_gen(config("vertical"), is_train=True)[1].vertical
    assert len(utils.build_augmentation(config("none"), is_train=True)) == 1
    (resize,) = utils.build_augmentation(config(), is_train=False)
    assert (resize.short_edge_length, resize.max_size) == ((800, 800), 1000)
    with pytest.raises(ValueError, match=r"INPUT.RANDOM_FLIP.*'both'"):
        utils.build_augmentation(config("both"), is_train=True)


@pytest.mark.parametrize("name", ["T", "_M_RGB2YUV", "_M_YUV2RGB", "_EXIF_ORIENT", "logging", *utils.__all__])
def test_names_that_projects_import(name):
    assert hasattr(utils, name)
