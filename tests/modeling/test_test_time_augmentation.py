"""Test-time augmentation, mostly with models that see: their answers follow from the pixels of the copy they get."""

import copy
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import (
    DatasetMapperTTA,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    SemanticSegmentorWithTTA,
    build_model,
)
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.modeling.test_time_augmentation import (
    average_keypoints,
    average_masks,
    best_boxes,
    build_model_with_tta,
)
from detectron2.structures import Boxes, Instances, RotatedBoxes

SWAP = [1, 0, 2]  # left hand, right hand, head


def image_with_object(box_xyxy=(20, 10, 60, 40), size_hw=(64, 96)):
    """Channel 0 shows the object, channel 1 its left half, channel 2 its class."""
    image = torch.zeros(3, *size_hw, dtype=torch.uint8)
    x1, y1, x2, y2 = box_xyxy
    image[0, y1:y2, x1:x2] = 255
    image[1, y1:y2, x1 : (x1 + x2) // 2] = 255
    image[2, y1:y2, x1:x2] = 200
    return image


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask_on = True
        self.keypoint_on = True


class SeeingModel(GeneralizedRCNN):
    """Detects the one object of `image_with_object`; its hands are at a quarter of the box from each side."""

    def __init__(self, score=0.9):
        nn.Module.__init__(self)
        self.roi_heads = Heads()
        self.input_format = "RGB"
        self.score = score
        self.calls = []

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not do_postprocess
        self.calls.append((len(batched_inputs), detected_instances is not None, self.roi_heads.mask_on))
        if detected_instances is None:
            return [self._detect(x["image"].float()) for x in batched_inputs]
        assert self.roi_heads.mask_on and self.roi_heads.keypoint_on
        return [self._fill(x["image"].float(), d) for x, d in zip(batched_inputs, detected_instances, strict=True)]

    def _detect(self, image):
        seen = image[0] > 127
        out = Instances(tuple(image.shape[1:]))
        rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
        boxes = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
        out.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        out.scores = torch.full((len(boxes),), self.score)
        out.pred_classes = torch.full((len(boxes),), 2)
        return out

    def _fill(self, image, known):
        assert known.image_size == tuple(image.shape[1:])
        boxes = known.pred_boxes.tensor
        grid = (torch.arange(28) + 0.5) / 28
        x = boxes[:, 0, None] + grid * (boxes[:, 2:3] - boxes[:, :1])
        y = boxes[:, 1, None] + grid * (boxes[:, 3:4] - boxes[:, 1:2])
        masks = [(image[1] > 127)[b.long()[:, None], a.long()] for a, b in zip(x, y, strict=True)]
        known.pred_masks = torch.stack(masks)[:, None].float() if masks else torch.zeros(0, 1, 28, 28)
        share = torch.tensor([0.25, 0.75, 0.5])
        x = boxes[:, :1] + share * (boxes[:, 2:3] - boxes[:, :1])
        y = boxes[:, 1:2] + torch.tensor([0.5, 0.5, 0.0]) * (boxes[:, 3:4] - boxes[:, 1:2])
        known.pred_keypoints = torch.stack([x, y, torch.full_like(x, 0.5)], dim=2)
        known.pred_keypoint_heatmaps = torch.zeros(len(known), 3, 56, 56)
        return known


def config(*changes):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.TEST.AUG.MIN_SIZES = (48, 96)
    cfg.TEST.AUG.MAX_SIZE = 400
    cfg.merge_from_list(list(changes))
    return cfg


def with_keypoints(*changes):
    return config("MODEL.KEYPOINT_ON", True, *changes)


# ----------------------------------------------------------------------------------------------------------- the copies


@pytest.mark.parametrize(
    ("min_sizes", "flip", "sizes_hw"),
    [
        ([0], False, [(40, 60)]),
        ([20], False, [(20, 30)]),
        ([20, 80], True, [(20, 30), (20, 30), (60, 90), (60, 90)]),  # the longer edge is at most 90
    ],
)
def test_copies(min_sizes, flip, sizes_hw):
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    annotations = [object()]
    item = {"image": image, "height": 40, "width": 60, "annotations": annotations, "image_id": 7}
    before = dict(item)
    copies = DatasetMapperTTA(min_sizes, 90, flip)(item)
    assert [tuple(x["image"].shape[1:]) for x in copies] == sizes_hw
    assert all(x["annotations"] is annotations and x["image_id"] == 7 and x["height"] == 40 for x in copies)
    assert all(x["image"].dtype == torch.uint8 for x in copies)
    assert all(isinstance(x["transforms"], T.TransformList) for x in copies)
    assert item == before and item["image"] is image


def test_each_size_is_followed_by_its_mirror_image():
    plain, mirrored = DatasetMapperTTA([24], 100, True)({"image": torch.randint(0, 256, (3, 40, 60)).byte()})
    assert torch.equal(mirrored["image"], plain["image"].flip(2))
    assert not torch.equal(mirrored["image"], plain["image"])


def test_copies_come_from_the_config_and_leave_random_numbers_alone():
    cfg = config("TEST.AUG.FLIP", False)
    mapper = DatasetMapperTTA(cfg)
    assert (mapper.min_sizes, mapper.max_size, mapper.flip) == ((48, 96), 400, False)
    state = np.random.get_state()[1].copy()
    assert len(mapper({"image": image_with_object()})) == 2
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_copies_of_any_number_of_channels(channels, dtype):
    image = torch.randint(0, 256, (channels, 20, 30)).to(dtype)
    for x in DatasetMapperTTA([10, 40], 100, True)({"image": image}):
        assert x["image"].shape[0] == channels
        assert x["image"].dtype == dtype


@settings(max_examples=25, deadline=None)
@given(
    image_hw=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    original_hw=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    min_size=st.integers(4, 60),
)
def test_transforms_lead_from_the_original_image_to_the_copy_and_back(image_hw, original_hw, min_size):
    item = {"image": torch.zeros(3, *image_hw, dtype=torch.uint8), "height": original_hw[0], "width": original_hw[1]}
    plain, mirrored = DatasetMapperTTA([min_size], 100, True)(item)
    whole = np.array([[0, 0, original_hw[1], original_hw[0]]], dtype=np.float64)
    left_half = whole * [[1, 1, 0.5, 1]]
    for x, expected_x in ((plain, (0, 0.5)), (mirrored, (0.5, 1))):
        height, width = x["image"].shape[1:]
        np.testing.assert_allclose(x["transforms"].apply_box(whole), [[0, 0, width, height]], atol=1e-6)
        half = x["transforms"].apply_box(left_half)
        np.testing.assert_allclose(half[0, [0, 2]], np.array(expected_x) * width, atol=1e-6)
        np.testing.assert_allclose(x["transforms"].inverse().apply_box(half), left_half, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ detectors


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_masks_and_keypoints_of_all_copies_agree_with_the_image(flip):
    model = SeeingModel()
    tta = GeneralizedRCNNWithTTA(with_keypoints("TEST.AUG.FLIP", flip), model, keypoint_hflip_indices=SWAP)
    (result,) = tta([{"image": image_with_object()}])
    found = result["instances"]
    assert found.image_size == (64, 96)
    assert len(found) == 1  # that of the copies is one object
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[20.0, 10, 60, 40]]), atol=1.0, rtol=0)
    assert found.pred_classes.tolist() == [2]
    assert found.scores.tolist() == pytest.approx([0.9])
    expected = torch.zeros(64, 96, dtype=torch.bool)
    expected[10:40, 20:40] = True
    assert found.pred_masks.shape == (1, 64, 96)
    assert (found.pred_masks[0] != expected).sum() < 0.1 * expected.sum()
    expected = torch.tensor([[[30.0, 25], [50, 25], [40, 10]]])  # the left hand stays the left one
    torch.testing.assert_close(found.pred_keypoints[..., :2], expected, atol=1.0, rtol=0)
    torch.testing.assert_close(found.pred_keypoints[..., 2], torch.full((1, 3), 0.5))
    assert not found.has("pred_keypoint_heatmaps")


def test_results_have_the_size_of_the_original_image():
    tta = GeneralizedRCNNWithTTA(config(), SeeingModel())
    found = tta([{"image": image_with_object(), "height": 128, "width": 288}])[0]["instances"]
    assert found.image_size == (128, 288)
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[60.0, 20, 180, 80]]), atol=3.0, rtol=0)
    assert found.pred_masks.shape == (1, 128, 288)


def test_nothing_found():
    model = SeeingModel()
    tta = GeneralizedRCNNWithTTA(with_keypoints(), model, keypoint_hflip_indices=SWAP)
    found = tta([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])[0]["instances"]
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_masks.shape == (0, 64, 96)
    assert found.pred_keypoints.shape == (0, 3, 3)
    assert [call[0] for call in model.calls] == [3, 1, 1]  # no masks are asked for in the other copies


def test_no_images():
    assert GeneralizedRCNNWithTTA(config(), SeeingModel())([]) == []


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_model_gets_no_more_copies_than_asked_for(batch_size):
    model = SeeingModel()
    GeneralizedRCNNWithTTA(config("TEST.AUG.MIN_SIZES", (32, 48, 64)), model, batch_size=batch_size)(
        [{"image": image_with_object()}]
    )
    sizes = [call[0] for call in model.calls]
    assert max(sizes) <= batch_size
    assert sum(sizes) == 12  # six copies, for boxes and then for masks
    assert [call[1:] for call in model.calls] == [(False, False)] * (len(sizes) // 2) + [(True, True)] * (
        len(sizes) // 2
    )


def test_boxes_alone_need_no_second_pass():
    model = SeeingModel()
    found = GeneralizedRCNNWithTTA(config("MODEL.MASK_ON", False), model)([{"image": image_with_object()}])
    assert set(found[0]["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert [call[1] for call in model.calls] == [False, False]


def test_switches_of_the_heads_are_restored_after_an_error(monkeypatch):
    model = SeeingModel()
    tta = GeneralizedRCNNWithTTA(config(), model)
    with pytest.raises(ZeroDivisionError), tta._turn_off_roi_heads(["mask_on", "densepose_on"]):
        assert not model.roi_heads.mask_on and model.roi_heads.keypoint_on
        assert not hasattr(model.roi_heads, "densepose_on")
        raise ZeroDivisionError
    assert model.roi_heads.mask_on and not hasattr(model.roi_heads, "densepose_on")

    monkeypatch.setattr(model, "_detect", lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tta([{"image": image_with_object()}])
    assert model.roi_heads.mask_on and model.roi_heads.keypoint_on


def test_image_is_read_from_its_file(tmp_path):
    image = image_with_object()
    Image.fromarray(image.permute(1, 2, 0).numpy(), "RGB").save(tmp_path / "a.png")
    tta = GeneralizedRCNNWithTTA(config(), SeeingModel())
    item = {"file_name": str(tmp_path / "a.png")}
    from_file, from_tensor = tta([item, {"image": image}])
    assert list(item) == ["file_name"]
    assert torch.equal(from_file["instances"].pred_boxes.tensor, from_tensor["instances"].pred_boxes.tensor)
    assert from_file["instances"].image_size == (64, 96)
    with pytest.raises(KeyError, match="'image' or 'file_name'"):
        tta([{"image_id": 3}])


@pytest.mark.parametrize(
    "step", [T.VFlipTransform(64), T.NoOpTransform(), T.TransformList([T.HFlipTransform(96), T.VFlipTransform(64)])]
)
def test_other_mappers_may_flip_as_they_like(step):
    def mapper(item):
        image = step.apply_image(item["image"].permute(1, 2, 0).numpy())
        changed = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return [
            {"image": item["image"], "transforms": T.NoOpTransform()},
            {"image": changed, "transforms": T.TransformList([step])},
        ]

    plain = GeneralizedRCNNWithTTA(config("TEST.AUG.MIN_SIZES", (0,), "TEST.AUG.FLIP", False), SeeingModel())
    changed = GeneralizedRCNNWithTTA(config(), SeeingModel(), mapper)
    item = {"image": image_with_object()}
    item["image"][1, 10:25] = 0  # asymmetric in both directions
    expected, found = (model([item])[0]["instances"] for model in (plain, changed))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert expected.pred_masks.any()
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_keypoints_that_change_places_come_from_the_metadata():
    name = "tta_keypoints"
    cfg = with_keypoints("DATASETS.TRAIN", (name,))
    metadata = MetadataCatalog.get(name)
    try:
        with pytest.raises(ValueError, match="keypoint_hflip_indices"):
            GeneralizedRCNNWithTTA(cfg, SeeingModel())
        metadata.set(keypoint_names=["left", "right", "head"], keypoint_flip_map=[("left", "right")])
        tta = GeneralizedRCNNWithTTA(cfg, SeeingModel())
        assert list(tta.keypoint_hflip_indices) == SWAP
    finally:
        MetadataCatalog.remove(name)


def test_keypoints_that_change_places_are_not_needed_without_flip():
    cfg = with_keypoints("TEST.AUG.FLIP", False, "DATASETS.TRAIN", ())
    assert GeneralizedRCNNWithTTA(cfg, SeeingModel())([{"image": image_with_object()}])[0]["instances"].has(
        "pred_keypoints"
    )
    surprise = GeneralizedRCNNWithTTA(cfg, SeeingModel(), lambda item: DatasetMapperTTA([0], 99, True)(item))
    with pytest.raises(ValueError, match="keypoint_flip_map"):
        surprise([{"image": image_with_object()}])


class NotGiven(SeeingModel):
    def inference(self, batched_inputs, do_postprocess=True):
        raise AssertionError("must not be called")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: GeneralizedRCNNWithTTA(config(), nn.Linear(1, 1)),
            TypeError,
            r"SemanticSegmentorWithTTA.*leave out --tta",
        ),
        (lambda: GeneralizedRCNNWithTTA(config(), NotGiven()), TypeError, "detected_instances"),
        (lambda: GeneralizedRCNNWithTTA(config(), SeeingModel(), batch_size=0), ValueError, "batch_size"),
        (
            lambda: GeneralizedRCNNWithTTA(config("MODEL.LOAD_PROPOSALS", True), SeeingModel()),
            ValueError,
            "MODEL.LOAD_PROPOSALS",
        ),
    ],
)
def test_what_cannot_be_augmented(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_model_without_a_proposal_generator_is_refused(tiny_rcnn_cfg):
    """Its proposals are boxes of the image, and would be taken for boxes of the copies."""
    cfg = tiny_rcnn_cfg("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    with pytest.raises(ValueError, match="PROPOSAL_GENERATOR"):
        GeneralizedRCNNWithTTA(cfg, build_model(cfg))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MIN_SIZES", ()),
        ("MIN_SIZES", (48, -5)),
        ("MIN_SIZES", ("48",)),
        ("MIN_SIZES", ((48, 96),)),
        ("MAX_SIZE", 0),
        ("MAX_SIZE", -3),
    ],
)
@pytest.mark.parametrize("kind", [GeneralizedRCNNWithTTA, SemanticSegmentorWithTTA])
def test_impossible_sizes_of_copies(kind, key, value):
    cfg = config()
    cfg.TEST.AUG[key] = value
    with pytest.raises(ValueError, match=rf"TEST\.AUG\.{key}\) must be .*but is"):
        kind(cfg, SeeingModel())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": image_with_object()}, "a list of inputs, got a dict"),
        (image_with_object()[None], "a list of inputs, got a Tensor"),
        ([{"image": np.zeros((3, 8, 8), np.uint8)}], "got a ndarray"),
        ([{"image": torch.zeros(8, 8)}], r"got shape \(8, 8\)"),
        ([{"image": torch.zeros(3, 0, 8)}], r"got shape \(3, 0, 8\)"),
    ],
)
def test_inputs_that_are_none(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        GeneralizedRCNNWithTTA(config(), SeeingModel())(batch)


@pytest.mark.parametrize(
    ("mapper", "message"),
    [
        (lambda x: None, "returned none"),
        (lambda x: [], "returned none"),
        (lambda x: [x], r"returned \[\['height', 'image', 'width'\]\]"),
        (lambda x: [x["image"]], r"returned \['Tensor'\]"),
    ],
)
def test_what_a_mapper_must_return(mapper, message):
    with pytest.raises(ValueError, match=message):
        GeneralizedRCNNWithTTA(config(), SeeingModel(), mapper)([{"image": image_with_object()}])


def test_turned_copies_are_refused_where_they_cannot_be_averaged():
    """They serve for boxes."""

    def turn(x):
        turned = x["image"].rot90(1, (1, 2))
        return [{**x, "image": turned, "transforms": T.TransformList([T.RotationTransform(64, 96, 90)])}]

    batch = [{"image": image_with_object()}]
    with pytest.raises(ValueError, match=r"masks cannot be averaged .* RotationTransform"):
        GeneralizedRCNNWithTTA(config(), SeeingModel(), turn)(batch)
    with pytest.raises(ValueError, match=r"semantic scores cannot be averaged .* RotationTransform"):
        SemanticSegmentorWithTTA(config(), Brightness(), turn)(batch)
    (found,) = GeneralizedRCNNWithTTA(config("MODEL.MASK_ON", False), SeeingModel(), turn)(batch)
    torch.testing.assert_close(found["instances"].pred_boxes.tensor, torch.tensor([[20.0, 10, 60, 40]]))


@pytest.mark.parametrize("indices", [[], [1, 0], [1, 0, 5], [1, 1, 2], [1, 2, 0], [-2, 0, 2]])
def test_impossible_keypoint_orders(indices):
    with pytest.raises(ValueError, match="keypoint_hflip_indices"):
        augmented(with_keypoints(), SeeingModel(), indices=indices)([{"image": image_with_object()}])


def test_keypoints_that_change_places_come_from_given_metadata():
    """That of a checkpoint, where no data set of the training is registered."""
    cfg = with_keypoints("DATASETS.TRAIN", ("_tta_not_here",))
    names = {"keypoint_names": ["left", "right", "head"], "keypoint_flip_map": [["left", "right"]]}
    tta = build_model_with_tta(cfg, SeeingModel(), Metadata().set(**names))
    assert tta.keypoint_hflip_indices == SWAP
    for lacking in (None, Metadata(), Metadata().set(keypoint_names=["left"])):
        with pytest.raises(ValueError, match=r"TEST\.AUG\.FLIP"):
            build_model_with_tta(cfg, SeeingModel(), lacking)


# ---------------------------------------------------------------------------------------------------------- real models

KINDS = {
    "boxes": ("MODEL.MASK_ON", False),
    "masks and keypoints": ("MODEL.KEYPOINT_ON", True),
    "cascade": ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    "c4": (
        "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p3"], "MODEL.RESNETS.NORM", "BN",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 2, "MODEL.RESNETS.WIDTH_PER_GROUP", 1, "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
    ),
    "rotated": (
        "MODEL.MASK_ON", False, "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "MODEL.ANCHOR_GENERATOR.NAME",
        "RotatedAnchorGenerator", "MODEL.ANCHOR_GENERATOR.ANGLES", [[-45.0, 0.0, 45.0]], "MODEL.RPN.BBOX_REG_WEIGHTS",
        (1.0, 1.0, 1.0, 1.0, 1.0), "MODEL.ROI_HEADS.NAME", "RROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        "ROIAlignRotated", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0, 1.0),
    ),
}  # fmt: skip
MIRRORED_KEYPOINTS = [1, 0, 3, 2]


@pytest.fixture(params=KINDS)
def real(request, tiny_rcnn_cfg):
    """A config and its model, whose box scores differ enough for one order."""
    common = ("TEST.AUG.MIN_SIZES", (0,), "TEST.AUG.FLIP", False, "MODEL.PIXEL_STD", (57.0, 57.0, 57.0))
    cfg = tiny_rcnn_cfg(*KINDS[request.param], *common)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("cls_score.weight"):
                weight.mul_(30)
    return cfg, model


def augmented(cfg, model, *changes, indices=MIRRORED_KEYPOINTS, **kwargs):
    cfg = cfg.clone()
    cfg.merge_from_list(list(changes))
    return GeneralizedRCNNWithTTA(cfg, model, keypoint_hflip_indices=indices, **kwargs)


def test_one_unchanged_copy_gives_what_the_model_gives(real, rcnn_batch):
    batch = rcnn_batch()
    batch[0].update(height=128, width=192)
    with torch.no_grad():
        expected = [real[1](copy.deepcopy([x]))[0]["instances"] for x in batch]  # without the padding of a batch
    found = [x["instances"] for x in augmented(*real)(batch)]
    for one, other in zip(found, expected, strict=True):
        assert one.image_size == other.image_size
        assert len(one) == len(other) > 0
        assert type(one.pred_boxes) is type(other.pred_boxes)
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, atol=2e-3, rtol=1e-4)
        assert torch.equal(one.pred_classes, other.pred_classes)
        torch.testing.assert_close(one.scores, other.scores)
        if other.has("pred_masks"):
            assert (one.pred_masks != other.pred_masks).float().mean() < 1e-3
        if other.has("pred_keypoints"):
            # A box that is a hair wider is decoded on another grid.
            assert ((one.pred_keypoints - other.pred_keypoints).abs() < 0.01).float().mean() > 0.9


def test_a_mirrored_image_has_mirrored_results(real):
    """The copies of the mirrored image are those of the image."""
    tta = augmented(*real, "TEST.AUG.MIN_SIZES", (32, 64), "TEST.AUG.FLIP", True)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    plain, mirrored = (x["instances"] for x in tta([{"image": image}, {"image": image.flip(2)}]))
    assert len(plain) == len(mirrored) > 0
    torch.testing.assert_close(plain.scores, mirrored.scores, atol=1e-5, rtol=1e-4)
    boxes = mirrored.pred_boxes.tensor.clone()
    if isinstance(mirrored.pred_boxes, RotatedBoxes):
        boxes[:, 0], boxes[:, 4] = 96 - boxes[:, 0], -boxes[:, 4]
    else:
        boxes[:, [0, 2]] = 96 - boxes[:, [2, 0]]
    torch.testing.assert_close(plain.pred_boxes.tensor, boxes, atol=1e-2, rtol=1e-3)
    if plain.has("pred_masks"):
        assert (plain.pred_masks != mirrored.pred_masks.flip(2)).float().mean() < 5e-3
    if plain.has("pred_keypoints"):
        assert torch.isfinite(plain.pred_keypoints).all()
        keypoints = mirrored.pred_keypoints[:, MIRRORED_KEYPOINTS].clone()
        keypoints[..., 0] = 96 - keypoints[..., 0]
        # A heat map's peak may be a cell further where two cells are as good.
        assert ((plain.pred_keypoints - keypoints).abs() < 0.1).float().mean() > 0.9


def test_flip_at_scales_in_half_precision(real, rcnn_batch):
    tta = augmented(*real, "TEST.AUG.MIN_SIZES", (32, 64), "TEST.AUG.FLIP", True)
    with torch.autocast("cpu", torch.bfloat16):
        found = tta(rcnn_batch())
    assert [x["instances"].image_size for x in found] == [(64, 96), (48, 80)]
    assert all(torch.isfinite(x["instances"].pred_boxes.tensor).all() for x in found)


def test_training_mode_is_refused_and_restored(tiny_rcnn_cfg, rcnn_batch):
    model = build_model(tiny_rcnn_cfg("TEST.AUG.MIN_SIZES", (32,)))
    tta = GeneralizedRCNNWithTTA(tiny_rcnn_cfg("TEST.AUG.MIN_SIZES", (32,)), model)
    assert tta.training
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        tta(rcnn_batch())
    assert model.roi_heads.mask_on
    tta.eval()
    assert len(tta(rcnn_batch())) == 2
    assert not GeneralizedRCNNWithTTA(tiny_rcnn_cfg(), model).training
    found = tta(rcnn_batch())[0]["instances"]
    assert not found.scores.requires_grad and not found.pred_boxes.tensor.requires_grad


def test_copies_and_states(tiny_rcnn_cfg, rcnn_batch):
    cfg = tiny_rcnn_cfg("TEST.AUG.MIN_SIZES", (32,))
    tta = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())
    batch = rcnn_batch()
    expected = tta(batch)[0]["instances"].pred_boxes.tensor
    for other in (copy.deepcopy(tta), pickle.loads(pickle.dumps(tta))):
        assert torch.equal(other(batch)[0]["instances"].pred_boxes.tensor, expected)
    assert set(tta.state_dict()) == {f"model.{name}" for name in tta.model.state_dict()}


# -------------------------------------------------------------------------------------------------------- the functions


@pytest.mark.parametrize("dim", [4, 5])
def test_best_of_no_boxes(dim):
    found = best_boxes(torch.zeros(0, dim), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (9, 9), 0.5, 10)
    assert found.pred_boxes.tensor.shape == (0, dim)
    assert len(found) == 0


def test_best_boxes():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 99, 99], [5, 5, 6, 6], [float("nan"), 0, 1, 1]]
    )
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.0, 0.9])
    classes = torch.tensor([1, 1, 2, 1, 0, 1])
    found = best_boxes(boxes, scores, classes, (40, 50), 0.5, 100)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 50, 40]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.pred_classes.tolist() == [1, 2, 1]
    assert len(best_boxes(boxes, scores, classes, (40, 50), 0.5, 2)) == 2


def test_merging_takes_lists_too():
    tta = GeneralizedRCNNWithTTA(config(), SeeingModel())
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    scores, classes = [torch.tensor(0.5), torch.tensor(0.75)], [torch.tensor(3), torch.tensor(4)]
    found = tta._merge_detections(boxes, scores, classes, (40, 40))
    assert found.scores.tolist() == [0.75, 0.5]
    assert found.pred_classes.tolist() == [4, 3]


def test_average_of_masks():
    one = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    other = torch.tensor([[[[0.0, 0.0], [1.0, 0.0]]]])
    found = average_masks([one, other], [[], [-1]])
    assert found.tolist() == [[[[0.0, 0.5], [0.25, 0.625]]]]
    assert one.tolist() == [[[[0.0, 1.0], [0.5, 0.25]]]]
    assert average_masks([one[:0], one[:0]], [[], [-1]]).shape == (0, 1, 2, 2)


def test_average_of_keypoints_follows_the_scores():
    keypoints = torch.tensor([[[[0.0, 8.0, 0.6], [1.0, 1.0, 0.0]]], [[[4.0, 0.0, 0.2], [3.0, 5.0, 0.0]]]])
    found = average_keypoints(keypoints)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 6.0, 0.4], [2.0, 3.0, 0.0]]]))
    assert average_keypoints(torch.zeros(2, 0, 3, 3)).shape == (0, 3, 3)


# ------------------------------------------------------------------------------------------------ semantic segmentation


class Brightness(nn.Module):
    """The scores of a pixel are its channels and its share of the width, at the size that is asked for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, batched_inputs):
        self.calls.append(len(batched_inputs))
        out = []
        for x in batched_inputs:
            image = x["image"].float()
            ramp = torch.linspace(0, 1, image.shape[2]).expand(1, *image.shape[1:])
            size_hw = (x["height"], x["width"])
            scores = F.interpolate(torch.cat([image, ramp])[None], size=size_hw, mode="bilinear")[0]
            out.append({"sem_seg": scores, "panoptic_seg": (scores[0], [])})
        return out


def test_scores_of_all_copies_are_averaged():
    cfg = config("TEST.AUG.MIN_SIZES", (64, 64, 128))
    model = Brightness()
    image = image_with_object()
    (found,) = SemanticSegmentorWithTTA(cfg, model)([{"image": image}])
    assert list(found) == ["sem_seg"]
    assert found["sem_seg"].shape == (4, 64, 96)
    assert model.calls == [1] * 6
    wrong = (found["sem_seg"][:3] - image).abs() > 60
    assert wrong.float().mean() < 0.02  # only at the borders of the object
    torch.testing.assert_close(found["sem_seg"][3], torch.full((64, 96), 0.5))  # mirrored, the ramp goes the other way


def test_semantic_scores_without_flip_and_in_batches():
    model = Brightness()
    cfg = config("TEST.AUG.MIN_SIZES", (32, 64, 96), "TEST.AUG.FLIP", False)
    tta = SemanticSegmentorWithTTA(cfg, model, batch_size=2)
    found = tta([{"image": image_with_object(), "height": 32, "width": 48}])[0]["sem_seg"]
    assert found.shape == (4, 32, 48)
    assert model.calls == [2, 1]
    torch.testing.assert_close(found[3, 0], torch.linspace(0, 1, 48), atol=0.02, rtol=0)


def test_models_without_semantic_scores_are_refused():
    class Other(nn.Module):
        def forward(self, batched_inputs):
            return [{"instances": None}]

    with pytest.raises(TypeError, match=r"Other returns \['instances'\]"):
        SemanticSegmentorWithTTA(config(), Other())([{"image": image_with_object()}])


def test_semantic_segmentor(tiny_rcnn_cfg):
    cfg = tiny_rcnn_cfg(
        "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.NORM", "",
        "TEST.AUG.MIN_SIZES", (32, 64),
    )  # fmt: skip
    tta = SemanticSegmentorWithTTA(cfg, build_model(cfg).eval(), batch_size=3)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    plain, mirrored = (x["sem_seg"] for x in tta([{"image": image}, {"image": image.flip(2)}]))
    assert plain.shape == (4, 64, 96)
    assert plain.std() > 0
    torch.testing.assert_close(plain, mirrored.flip(2), atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------------- formats of masks, panoptic


@pytest.mark.parametrize("kind", ["rle", "roi"])
def test_masks_come_in_the_format_of_the_model_or_another(kind):
    image = image_with_object()
    full = GeneralizedRCNNWithTTA(config(), SeeingModel())([{"image": image}])[0]["instances"]
    assert len(full) == 1 and full.pred_masks.any()
    model = SeeingModel()
    model.mask_format = kind
    of_model = GeneralizedRCNNWithTTA(config(), model)
    asked_for = GeneralizedRCNNWithTTA(config(), SeeingModel(), mask_format=kind)
    for tta in (of_model, asked_for):
        found = tta([{"image": image}])[0]["instances"]
        assert found.has("pred_masks_rle") is (kind == "rle") and found.has("pred_masks") is (kind == "roi")
        (rle,) = paste_predicted_masks(found, "rle").pred_masks_rle
        np.testing.assert_array_equal(mask_util.decode(rle), full.pred_masks[0].numpy())
    assert GeneralizedRCNNWithTTA(config(), model, mask_format="full").mask_format == "full"
    with pytest.raises(ValueError, match="'polygon'"):
        GeneralizedRCNNWithTTA(config(), SeeingModel(), mask_format="polygon")


def panoptic(tiny_rcnn_cfg, *changes):
    cfg = tiny_rcnn_cfg(
        "MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "",
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 10, "MODEL.PIXEL_STD", (57.0, 57.0, 57.0),
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0, "TEST.AUG.MIN_SIZES", (0,), "TEST.AUG.FLIP",
        False, *changes,
    )  # fmt: skip
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
    return cfg, model


@pytest.mark.parametrize("kind", ["full", "rle"])
def test_one_unchanged_copy_of_a_panoptic_model(tiny_rcnn_cfg, rcnn_batch, kind):
    cfg, model = panoptic(tiny_rcnn_cfg, "TEST.MASK_FORMAT", kind)
    item = rcnn_batch()[0]
    with torch.no_grad():
        expected = model([item])[0]
    found = GeneralizedRCNNWithTTA(cfg, model)([item])[0]
    assert set(found) == {"instances", "sem_seg", "panoptic_seg"}
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores)
    assert (found["panoptic_seg"][0] != expected["panoptic_seg"][0]).float().mean() < 0.02
    kinds = [[(s["isthing"], s["category_id"]) for s in x["panoptic_seg"][1]] for x in (found, expected)]
    assert kinds[0] == kinds[1] and any(is_thing for is_thing, _ in kinds[0])


def test_semantic_scores_of_a_panoptic_model_are_those_of_the_other_augmentation(tiny_rcnn_cfg):
    cfg, model = panoptic(tiny_rcnn_cfg, "TEST.AUG.MIN_SIZES", (32, 64), "TEST.AUG.FLIP", True)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    item = {"image": image, "height": 48, "width": 72}
    expected = SemanticSegmentorWithTTA(cfg, model, batch_size=3)([item])[0]["sem_seg"]
    for thresh in (0.0, 1.0):  # the second: nothing is found, and the semantic scores are as before
        model.roi_heads.box_predictor.test_score_thresh = thresh
        found = GeneralizedRCNNWithTTA(cfg, model, batch_size=3)([item])[0]
        assert (len(found["instances"]) == 0) is (thresh == 1.0)
        assert found["sem_seg"].shape == (4, 48, 72) and found["panoptic_seg"][0].shape == (48, 72)
        torch.testing.assert_close(found["sem_seg"], expected, atol=1e-4, rtol=1e-3)
