"""The default mapper, from files to tensors."""

import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data.dataset_mapper import transform_annotations
from detectron2.structures import BitMasks, BoxMode, PolygonMasks, RotatedBoxes

H, W = 40, 60


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3)).astype(np.uint8)


@pytest.fixture
def record(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    polygon = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]
    base = {"bbox": [10, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": [polygon], "category_id": 2}
    keypoints = [12.0, 6.0, 2, 28.0, 20.0, 1]
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": H,
        "width": W,
        "image_id": 7,
        "annotations": [
            {**base, "id": 1, "iscrowd": 0, "keypoints": keypoints},
            {**base, "id": 2, "iscrowd": 1, "keypoints": keypoints},
            {**base, "id": 3, "bbox": [40, 30, 0, 5], "keypoints": keypoints},
        ],
    }


def mapper(is_train=True, augmentations=(), **options):
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format="RGB", **options)


def mapper_of(image_format, augmentations):
    return DatasetMapper(True, augmentations=augmentations, image_format=image_format)


def test_no_annotations(record, pixels):
    for empty in ([], [{"iscrowd": 1, "bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}]):
        out = mapper(use_instance_mask=True, recompute_boxes=True)({**record, "annotations": empty})
        assert len(out["instances"]) == 0
        assert out["instances"].gt_boxes.tensor.shape == (0, 4)
    unlabelled = {k: v for k, v in record.items() if k != "annotations"}
    out = mapper()(unlabelled)
    assert "instances" not in out
    np.testing.assert_array_equal(out["image"].numpy(), pixels.transpose(2, 0, 1))


def test_boxes_only(record, pixels):
    out = mapper()(record)
    assert out["image"].dtype == torch.uint8
    assert (out["image_id"], out["height"], out["width"]) == (7, H, W)
    assert "annotations" not in out
    instances = out["instances"]
    # The crowd and the empty box are gone.
    assert instances.gt_boxes.tensor.tolist() == [[10, 5, 30, 25]]
    assert instances.gt_classes.tolist() == [2]
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"}


@pytest.mark.parametrize(
    "augmentations",
    [
        [],
        [T.Resize((31, 47))],
        [T.RandomFlip(1.0)],
        [T.RandomFlip(1.0, horizontal=False, vertical=True)],
        [T.RandomFlip(1.0), T.RandomFlip(1.0, horizontal=False, vertical=True)],
        [T.CropTransform(3, 4, 20, 11)],
        [T.CropTransform(3, 4, 20, 11), T.RandomFlip(1.0)],
        [T.CropTransform(3, 4, 1, 11), T.RandomFlip(1.0)],
        [T.PadTransform(1, 2, 3, 4)],
        [T.RandomRotation(90)],
        [T.RandomBrightness(0.5, 0.5)],
    ],
)
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_pixels_lie_together_in_memory_of_their_own(record, image_format, augmentations):
    out = mapper_of(image_format, augmentations)({k: v for k, v in record.items() if k != "annotations"})["image"]
    aug_input = T.AugInput(utils.read_image(record["file_name"], image_format))
    T.AugmentationList(augmentations)(aug_input)
    np.testing.assert_array_equal(out.numpy(), aug_input.image.transpose(2, 0, 1))
    assert out.permute(1, 2, 0).is_contiguous()
    assert out.untyped_storage().nbytes() == out.numel()  # what a worker process sends is no more than the image
    out += 1  # it may be written to


def test_images_of_augmentations_that_reuse_memory_stay_as_they_are(record):
    shared = np.zeros((H, W, 3), np.uint8)
    shared.setflags(write=False)

    class Constant(T.Augmentation):
        def get_transform(self, image):
            return _Replace(shared)

    first, second = (mapper(augmentations=[Constant()])(record)["image"] for _ in range(2))
    first += 1
    assert second.eq(0).all() and not shared.any()


class _Replace(T.NoOpTransform):
    def __init__(self, image):
        super().__init__()
        self.image = image

    def apply_image(self, img):
        return self.image


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_image_and_annotations_are_flipped_together(record, pixels, image_format):
    flip = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format=image_format)
    out = flip(record)
    assert out["instances"].gt_boxes.tensor.tolist() == [[30, 5, 50, 25]]
    expected = np.asarray(Image.fromarray(pixels).convert("L" if image_format == "L" else "RGB")).reshape(H, W, -1)
    if image_format == "BGR":
        expected = expected[:, :, ::-1]
    np.testing.assert_array_equal(out["image"].numpy(), expected[:, ::-1].transpose(2, 0, 1))
    out["image"][:] = 0  # it owns its memory


@pytest.mark.parametrize(("mask_format", "kind"), [("polygon", PolygonMasks), ("bitmask", BitMasks)])
def test_masks_and_keypoints(record, mask_format, kind):
    out = mapper(
        augmentations=[T.HFlipTransform(W)],
        use_instance_mask=True,
        use_keypoint=True,
        instance_mask_format=mask_format,
        keypoint_hflip_indices=[1, 0],
    )(record)
    instances = out["instances"]
    assert isinstance(instances.gt_masks, kind)
    assert instances.gt_keypoints.tensor.tolist() == [[[32, 20, 1], [48, 6, 2]]]


def test_masks_of_an_image_are_of_one_kind_and_may_differ_between_images(record):
    mixed = copy.deepcopy(record)
    bitmap = np.zeros((H, W), dtype=np.uint8, order="F")
    bitmap[5:25, 10:30] = 1
    encoded = mask_util.encode(bitmap)
    mixed["annotations"] += [
        {**mixed["annotations"][0], "segmentation": encoded},
        {**mixed["annotations"][0], "segmentation": encoded, "iscrowd": 1},
    ]
    options = {"augmentations": [T.HFlipTransform(W)], "use_instance_mask": True}
    polygons, bitmaps = (mapper(**options)(r)["instances"] for r in (record, mixed))
    assert isinstance(polygons.gt_masks, PolygonMasks) and isinstance(bitmaps.gt_masks, BitMasks)
    assert bitmaps.gt_masks.tensor.tolist() == [bitmap[:, ::-1].astype(bool).tolist()] * 2
    recomputed = mapper(**options, recompute_boxes=True)(mixed)["instances"]
    assert recomputed.gt_boxes.tensor.tolist() == [[W - 30, 5, W - 10, 25]] * 3  # the empty box is mended


def test_recomputed_boxes_fit_the_cropped_mask(record):
    l_shape = [10.0, 5, 50, 5, 50, 10, 15, 10, 15, 35, 10, 35]
    record["annotations"] = [
        {"bbox": [10, 5, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": [l_shape], "category_id": 0}
    ]
    crop = T.CropTransform(0, 20, W, 20, W, H)
    options = {"augmentations": [crop], "use_instance_mask": True}
    assert mapper(**options)(record)["instances"].gt_boxes.tensor.tolist() == [[10, 0, 50, 15]]
    tight = mapper(**options, recompute_boxes=True)(record)["instances"]
    assert tight.gt_boxes.tensor.tolist() == [[10, 0, 15, 15]]


class _KeepsBoxes(T.HFlipTransform):
    def apply_box(self, box):
        return box


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [T.ResizeTransform(H, W, 80, 30), T.HFlipTransform(30), T.NoOpTransform(), T.VFlipTransform(80)],
        [T.ResizeTransform(H, W, 80, 30), _KeepsBoxes(30)],
        [T.ResizeTransform(H, W, 80, 30), T.HFlipTransform(30), T.PadTransform(3, 1, 0, 0, 30, 80)],
        [T.NoOpTransform(), T.RotationTransform(H, W, 90)],
        [T.CropTransform(15, 8, 20, 20, W, H), T.HFlipTransform(20)],  # cuts polygons
    ],
    ids=["nothing", "axes stay", "boxes go their own way", "points move", "a turn", "a crop"],
)
def test_annotations_are_transformed_as_one_by_one(record, transforms):
    bitmap = np.zeros((H, W), dtype=np.uint8, order="F")
    bitmap[5:25, 10:30] = 1
    base = record["annotations"][0]
    two_parts = [[1, 2, 9, 2, 9, 8.5], np.array([[20.0, 5, 30, 5, 30, 9, 20, 9]])]
    record["annotations"] += [
        {**base, "segmentation": mask_util.encode(bitmap)},
        {**base, "segmentation": two_parts, "bbox": (1, 2, 30, 9), "bbox_mode": BoxMode.XYXY_ABS},
        {**base, "segmentation": []},
        {"bbox": np.array([50.0, 30, 20, 20]), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    height, width = T.TransformList(transforms).apply_image(np.zeros((H, W), np.uint8)).shape
    together, apart = copy.deepcopy(record["annotations"]), copy.deepcopy(record["annotations"])
    transform_annotations(together, T.TransformList(transforms), (height, width), [1, 0])
    for annotation in apart:
        utils.transform_instance_annotations(annotation, transforms, (height, width), keypoint_hflip_indices=[1, 0])
    assert [sorted(a) for a in together] == [sorted(a) for a in apart]
    for one, other in zip(together, apart, strict=True):
        assert one["bbox_mode"] == other["bbox_mode"]
        for key in {"bbox", "keypoints"} & set(one):
            np.testing.assert_array_equal(one[key], other[key])
        if "segmentation" in one:
            parts = (one["segmentation"], other["segmentation"])
            assert type(parts[0]) is type(parts[1]) and len(parts[0]) == len(parts[1])
            for part, expected in zip(*parts, strict=True):
                np.testing.assert_array_equal(part, expected)
    assert two_parts[1].tolist() == [[20, 5, 30, 5, 30, 9, 20, 9]]


def test_a_polygon_of_half_a_point(record):
    record["annotations"][0]["segmentation"] = [[1.0, 2, 3, 4, 5, 6, 7]]
    with pytest.raises(ValueError, match=r"a\.png"):
        mapper(use_instance_mask=True)(record)


def test_the_input_is_not_changed(record):
    record["proposal_boxes"] = np.array([[0.0, 0, 5, 5]])
    record["proposal_objectness_logits"] = np.array([1.0])
    record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    record["segments_info"] = [{"id": 1}]
    before = copy.deepcopy(record)
    out = mapper(
        augmentations=[T.Resize((80, 30)), T.HFlipTransform(30)],
        use_instance_mask=True,
        precomputed_proposal_topk=5,
    )(record)
    out["segments_info"].append("mine")
    assert out["proposals"].proposal_boxes.tensor.tolist() == [[27.5, 0, 30, 10]]
    assert str(record) == str(before)


def test_inference(record):
    out = mapper(is_train=False, augmentations=[T.Resize((20, 30))])(record)
    assert out["image"].shape == (3, 20, 30)
    assert (out["height"], out["width"]) == (H, W)
    assert "instances" not in out
    assert "annotations" not in out


def test_semantic_segmentation(record, tmp_path):
    labels = np.arange(H * W, dtype=np.uint8).reshape(H, W)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    out = mapper(augmentations=[T.RandomFlip(1.0)])(record)
    assert out["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(out["sem_seg"].numpy(), labels[:, ::-1])
    assert "sem_seg_file_name" not in out


def test_16_bit_images(tmp_path):
    deep = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read_all = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format=None)
    out = read_all({"file_name": str(tmp_path / "deep.png")})
    assert (out["height"], out["width"]) == (H, W)
    np.testing.assert_array_equal(out["image"].numpy(), deep[None, :, ::-1])


def test_errors_name_the_file(record, tmp_path):
    with pytest.raises(utils.SizeMismatchError, match=r"a\.png"):
        mapper()({**record, "height": 41})
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        mapper()({**record, "file_name": str(tmp_path / "missing.png")})
    record["annotations"][0]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]
    with pytest.raises(ValueError, match=r"a\.png.*id 1 .*polygon of 4 numbers"):
        mapper(use_instance_mask=True)(record)
    with pytest.raises(ValueError, match="needs use_instance_mask"):
        mapper(recompute_boxes=True)
    with pytest.raises(ValueError, match="instance_mask_format"):
        mapper(instance_mask_format="rle")


@pytest.mark.parametrize("names", [(), ("_mapper_not_registered",)])
def test_a_config_for_inference_needs_no_training_data(names):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", names, "MODEL.KEYPOINT_ON", True])
    made = DatasetMapper(cfg, is_train=False)
    assert made.use_keypoint
    assert made.keypoint_hflip_indices is None
    if names:
        with pytest.raises(ValueError, match="keypoint_flip_map"):
            DatasetMapper(cfg)


def test_from_config(record):
    name = "_mapper_keypoints"
    MetadataCatalog.get(name).set(keypoint_names=["l", "r"], keypoint_flip_map=[("l", "r")])
    try:
        cfg = get_cfg()
        cfg.merge_from_list(
            ["DATASETS.TRAIN", (name,), "MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "MODEL.LOAD_PROPOSALS", True]
        )
        cfg.merge_from_list(["INPUT.CROP.ENABLED", True, "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (50,)])
        made = DatasetMapper(cfg)
        assert [type(a) for a in made.augmentations.augs] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]
        assert made.is_train
        assert (made.image_format, made.instance_mask_format) == ("BGR", "bitmask")
        assert made.use_instance_mask
        assert made.use_keypoint
        assert made.recompute_boxes
        assert made.proposal_topk == 2000
        assert list(made.keypoint_hflip_indices) == [1, 0]
        out = made(record)
        assert isinstance(out["instances"].gt_masks, BitMasks)
        test = DatasetMapper(cfg, is_train=False)
        assert [type(a) for a in test.augmentations.augs] == [T.ResizeShortestEdge]
        assert (test.is_train, test.recompute_boxes, test.proposal_topk) == (False, False, 1000)
        custom = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize((8, 8))])
        assert custom(record)["image"].shape == (3, 8, 8)
    finally:
        MetadataCatalog.remove(name)


def test_subclasses_override_the_annotation_step(record):
    class Mine(DatasetMapper):
        @classmethod
        def from_config(cls, cfg, is_train=True):
            return {**super().from_config(cfg, is_train), "augmentations": [T.Resize(16)]}

        def _transform_annotations(self, dataset_dict, transforms, image_shape):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            dataset_dict["shape_seen"] = image_shape

    out = Mine(get_cfg(), is_train=True)(record)
    assert out["shape_seen"] == (16, 16)


def test_tutorial_mapper(record):
    def custom(dataset_dict):
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format="BGR")
        auginput = T.AugInput(image)
        transform = T.Resize((80, 80))(auginput)
        image = torch.from_numpy(auginput.image.transpose(2, 0, 1).copy())
        annos = [
            utils.transform_instance_annotations(annotation, [transform], image.shape[1:])
            for annotation in dataset_dict.pop("annotations")
        ]
        return {"image": image, "instances": utils.annotations_to_instances(annos, image.shape[1:])}

    assert custom(record)["instances"].image_size == (80, 80)


class SeesBoxes(T.Augmentation):
    """Remembers the boxes that it was shown."""

    def get_transform(self, image, boxes):
        self.seen = boxes
        return T.HFlipTransform(image.shape[1])


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: T.AugmentationList([a]), lambda a: T.RandomApply(a, prob=1.0)])
def test_augmentations_see_the_boxes(record, wrap):
    aug = SeesBoxes()
    mapper(augmentations=[T.HFlipTransform(W), wrap(aug)])(record)
    np.testing.assert_allclose(aug.seen, [(W - 30, 5, W - 10, 25), (W - 40, 30, W - 40, 35)])
    mapper(augmentations=[wrap(aug)])({**record, "annotations": []})
    assert aug.seen.shape == (0, 4)


def test_crops_that_look_at_objects(record):
    """A crop may cut this object or leave it out, but not less than 90 % of it."""
    annos = [a for a in record["annotations"] if a["id"] == 1]
    np.random.seed(0)
    for _ in range(10):
        out = mapper(augmentations=[T.MinIoURandomCrop(min_ious=(0.9,), min_crop_size=0.3)])(
            {**record, "annotations": annos}
        )
        assert len(out["instances"]) == 1


class TestRotatedBoxes:
    def rotated(self, record, boxes):
        annos = [{"bbox": b, "bbox_mode": BoxMode.XYWHA_ABS, "category_id": i} for i, b in enumerate(boxes)]
        return {**record, "annotations": annos}

    def test_no_annotations(self, record):
        instances = mapper(use_rotated_boxes=True)(self.rotated(record, []))["instances"]
        assert isinstance(instances.gt_boxes, RotatedBoxes)
        assert instances.gt_boxes.tensor.shape == (0, 5) and instances.gt_classes.shape == (0,)

    def test_what_is_cropped_away_or_without_area_goes(self, record):
        boxes = [(20, 20, 10, 4, 30), (58, 20, 4, 2, 10), (31, 15, 6, 6, 45), (20, 20, 0, 5, 0)]
        crop = T.CropTransform(10, 10, 20, 20)
        instances = mapper(use_rotated_boxes=True, augmentations=[crop])(self.rotated(record, boxes))["instances"]
        np.testing.assert_allclose(instances.gt_boxes.tensor, [(10, 10, 10, 4, 30), (21, 5, 6, 6, 45)], atol=1e-5)
        assert instances.gt_classes.tolist() == [0, 2]

    def test_upright_and_crowd(self, record):
        instances = mapper(use_rotated_boxes=True)(record)["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[20, 15, 20, 20, 0]]

    def test_by_config(self, record):
        cfg = get_cfg()
        cfg.INPUT.RANDOM_FLIP = "none"
        assert not DatasetMapper(cfg).use_rotated_boxes
        cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
        assert DatasetMapper(cfg).use_rotated_boxes

    def test_not_with_masks(self):
        with pytest.raises(ValueError, match=r"MODEL\.MASK_ON"):
            mapper(use_rotated_boxes=True, use_instance_mask=True)


@pytest.mark.parametrize(
    ("mode", "box"), [(BoxMode.XYXY_REL, [0.25, 0.5, 0.75, 1.0]), (BoxMode.XYWH_REL, (0.25, 0.5, 0.5, 0.5))]
)
@pytest.mark.parametrize("rotated", [False, True])
def test_boxes_that_are_shares_of_the_image(record, mode, box, rotated):
    record["annotations"] = [{"bbox": box, "bbox_mode": mode, "category_id": 0}]
    before = copy.deepcopy(record)
    augmentations = [T.MinIoURandomCrop(min_ious=(), mode_trials=0), T.ResizeTransform(H, W, 2 * H, 2 * W)]
    found = mapper(augmentations=augmentations, use_rotated_boxes=rotated)(record)["instances"].gt_boxes.tensor
    assert found.tolist() == [[60, 60, 60, 40, 0] if rotated else [30, 40, 90, 80]]
    assert record == before


class _Halves(T.Transform):
    """Takes half of the image, but not of what the key names."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def apply_image(self, img):
        return img[: H // 2]

    def apply_segmentation(self, segmentation):
        return self.labels

    def apply_coords(self, coords):
        return coords


@pytest.mark.parametrize("labels", [np.zeros((H, W), np.uint8), None])
def test_label_map_of_another_size(record, labels):
    name = record["file_name"].replace("a.png", "labels.png")
    Image.fromarray(np.zeros((H, W), np.uint8)).save(name)
    record["sem_seg_file_name"] = name
    with pytest.raises(
        ValueError, match=r"labels.png' is, after _Halves, .*and its image \(20, 60\).*apply_segmentation"
    ):
        mapper(augmentations=[_Halves(labels)])(record)
    Image.fromarray(np.zeros((H, W - 1), np.uint8)).save(name)
    with pytest.raises(ValueError, match=r"labels.png' is \(40, 59\), \(height, width\), and its image \(40, 60\)"):
        mapper(augmentations=[T.Resize((8, 8))])(record)
