"""Mosaic, mixup and copy-paste: every object keeps its pixels, its box, its mask and its keypoints."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import (
    CopyPaste,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MixUp,
    Mosaic,
    MultiImageAugmentation,
    MultiImageMapper,
    build_detection_train_loader,
)
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks, RotatedBoxes


def rectangle(x1, y1, x2, y2):
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=float)


def make_sample(size_hw, boxes, colour, *, mask_format="bitmask", sem_seg=False):
    """An image of 0 with filled rectangles of the colours `colour`, `colour + 1`, ...; classes are the colours."""
    h, w = size_hw
    image = torch.zeros(3, h, w, dtype=torch.uint8)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), h, w, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(int).tolist()):
        image[:, y1:y2, x1:x2] = colour + i
        masks[i, y1:y2, x1:x2] = True
    instances = Instances(size_hw)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes))
    instances.gt_classes = torch.arange(colour, colour + len(boxes))
    if mask_format:
        polygons = PolygonMasks([[rectangle(*box)] for box in boxes.tolist()])
        instances.gt_masks = polygons if mask_format == "polygon" else BitMasks(masks)
    middle = torch.tensor((boxes[:, :2] + boxes[:, 2:]) / 2)
    instances.gt_keypoints = Keypoints(torch.cat([middle, torch.full((len(boxes), 1), 2.0)], 1)[:, None])
    sample = {"image": image, "instances": instances, "height": 2 * h, "width": 2 * w, "file_name": f"{colour}.png"}
    if sem_seg:
        sample["sem_seg"] = image[0].long()
    return sample


def bitmaps(instances):
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor


def snapshot(sample):
    return pickle.dumps(sample)


def four_samples(**kwargs):
    return [
        make_sample((40, 60), [(0, 0, 20, 12), (45, 25, 60, 40)], 10, **kwargs),
        make_sample((50, 30), [(10, 10, 20, 30)], 20, **kwargs),
        make_sample((30, 30), [(5, 5, 25, 25)], 30, **kwargs),
        make_sample((64, 48), [(0, 0, 24, 32), (24, 32, 48, 64)], 40, **kwargs),
    ]


def check_objects(sample, *, exact):
    """Masks lie on the pixels of their colour, boxes around masks, keypoints that are visible in boxes."""
    instances, image = sample["instances"], sample["image"][0]
    assert instances.image_size == tuple(image.shape)
    masks = bitmaps(instances)
    for i in range(len(instances)):
        is_colour = image == instances.gt_classes[i]
        if exact:
            torch.testing.assert_close(masks[i], is_colour)
        else:
            # Resized outlines are blurred, into the colours of other objects even.
            assert (masks[i] & is_colour).sum() >= 0.6 * masks[i].sum()
        x1, y1, x2, y2 = instances.gt_boxes.tensor[i].tolist()
        rows, columns = masks[i].nonzero(as_tuple=True)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([x1, y1, x2, y2], seen, atol=1e-4 if exact else 1.0)
        x, y, v = instances.gt_keypoints.tensor[i, 0].tolist()
        assert v in (0, 1, 2)
        if v == 2:
            assert x1 <= x <= x2
            assert y1 <= y <= y2


# --- mosaic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("scale_range", [None, (1.0, 1.0), (0.5, 1.5)])
def test_mosaic_keeps_objects_on_their_pixels(mask_format, scale_range):
    samples = four_samples(mask_format=mask_format, sem_seg=True)
    before = [snapshot(s) for s in samples]
    mosaic = Mosaic((70, 90), scale_range=scale_range, min_visible=0.2)
    classes = set()
    for _ in range(8):
        out = mosaic.combine(samples[0], samples[1:])
        check_objects(out, exact=scale_range is None)
        assert out["image"].shape == (3, 70, 90)
        assert out["sem_seg"].shape == (70, 90)
        assert out["sem_seg"].dtype == torch.int64
        assert (out["height"], out["width"], out["file_name"]) == (70, 90, "10.png")
        # Labels lie where the image has their colour, and 255 where there is no image; resizing blurs outlines.
        assert ((out["sem_seg"] == 255) == (out["image"][0] == 128)).float().mean() > 0.97
        if scale_range is None:
            torch.testing.assert_close(out["sem_seg"] == 20, out["image"][0] == 20)
        classes |= set(out["instances"].gt_classes.tolist())
    assert {11, 20, 30, 40} <= classes  # the others lie in corners that may be cut off
    assert [snapshot(s) for s in samples] == before


def test_mosaic_by_hand():
    samples = [make_sample((20, 20), [(0, 0, 20, 20)], colour) for colour in (10, 20, 30, 40)]
    out = Mosaic((40, 40), scale_range=None, center_range=(0.5, 0.5)).combine(samples[0], samples[1:])
    assert out["instances"].gt_boxes.tensor.tolist() == [
        [0, 0, 20, 20],
        [20, 0, 40, 20],
        [0, 20, 20, 40],
        [20, 20, 40, 40],
    ]
    assert out["image"][0, [5, 5, 35, 35], [5, 35, 5, 35]].tolist() == [10, 20, 30, 40]
    assert (out["image"] != 128).all()


def test_mosaic_leaves_out_what_is_hardly_visible():
    # Of 40 x 40 pixels 20 x 20 fit into a quarter: those that point to the middle.
    boxes = [(0, 0, 20, 20), (18, 18, 38, 38), (16, 16, 36, 36), (38, 38, 40, 40)]
    samples = [make_sample((40, 40), boxes, 10)] + [make_sample((40, 40), [], c) for c in (20, 30, 40)]
    mosaic = Mosaic(40, scale_range=None, center_range=(0.5, 0.5), min_visible=0.8)
    left = mosaic.combine(samples[0], samples[1:])["instances"]
    assert left.gt_classes.tolist() == [11, 13]  # number 12 has 16 x 16 of 20 x 20 left, which is less than 0.8
    assert left.gt_boxes.tensor.tolist() == [[0, 0, 18, 18], [18, 18, 20, 20]]


def test_mosaic_of_empty_images():
    samples = [make_sample((20, 20), [], colour) for colour in (10, 20, 30, 40)]
    out = Mosaic(30).combine(samples[0], samples[1:])
    assert len(out["instances"]) == 0
    assert out["instances"].image_size == (30, 30)
    without_masks = [make_sample((20, 20), [], c, mask_format=None) for c in (10, 20, 30)]
    one = make_sample((20, 20), [(2, 2, 18, 18)], 40)
    assert len(Mosaic(30).combine(without_masks[0], [*without_masks[1:], one])["instances"].gt_masks) == 1


def test_mosaic_may_meet_at_the_edge():
    samples = four_samples()
    for at in (0.0, 1.0):
        out = Mosaic((50, 60), scale_range=None, center_range=(at, at)).combine(samples[0], samples[1:])
        check_objects(out, exact=True)
        assert (out["instances"].gt_classes < 20).all() if at else (out["instances"].gt_classes >= 40).all()


def test_mosaic_of_label_maps_alone():
    samples = [{"image": s["image"], "sem_seg": s["sem_seg"]} for s in four_samples(sem_seg=True)]
    out = Mosaic(40).combine(samples[0], samples[1:])
    assert set(out) == {"image", "sem_seg", "height", "width"}


def test_mosaic_of_rotated_boxes():
    samples = four_samples(mask_format=None)
    for s in samples:
        boxes = s["instances"].gt_boxes.tensor
        centres, wh = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rotated = torch.cat([centres, wh, torch.full((len(boxes), 1), 30.0)], 1)
        s["instances"] = Instances(s["instances"].image_size, gt_boxes=RotatedBoxes(rotated), gt_classes=boxes[:, 0])
    out = Mosaic((140, 140), scale_range=None, center_range=(0.5, 0.5)).combine(samples[0], samples[1:])
    assert isinstance(out["instances"].gt_boxes, RotatedBoxes)
    first = samples[0]["instances"].gt_boxes.tensor  # 40 x 60 pixels with the bottom right corner at (70, 70)
    torch.testing.assert_close(out["instances"].gt_boxes.tensor[:2], first + torch.tensor([10.0, 30, 0, 0, 0]))


# --- mixup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_mixup_blends_and_keeps_all_instances(mask_format, monkeypatch):
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.25)
    a = make_sample((20, 40), [(0, 0, 40, 20)], 100, mask_format=mask_format)
    b = make_sample((30, 30), [(0, 0, 30, 10), (0, 20, 30, 30)], 200, mask_format=mask_format)
    before = snapshot(a), snapshot(b)
    out = MixUp(pad_value=60).combine(a, [b])
    image = out["image"][1].tolist()
    assert out["image"].shape == (3, 30, 40)
    assert out["image"].dtype == torch.uint8
    assert image[5][5] == 0.25 * 100 + 0.75 * 200
    assert image[15][5] == 0.25 * 100 + 0.75 * 0
    assert image[5][35] == 0.25 * 100 + 0.75 * 60
    assert image[25][5] == round(0.25 * 60 + 0.75 * 201)
    assert image[25][35] == 60
    assert out["instances"].gt_classes.tolist() == [100, 200, 201]
    assert out["instances"].gt_boxes.tensor.tolist() == [[0, 0, 40, 20], [0, 0, 30, 10], [0, 20, 30, 30]]
    torch.testing.assert_close(bitmaps(out["instances"])[0, :20], torch.ones(20, 40, dtype=torch.bool))
    assert type(out["instances"].gt_masks) is type(a["instances"].gt_masks)
    assert (out["height"], out["width"]) == (30, 40)
    assert (snapshot(a), snapshot(b)) == before


def test_mixup_without_instances_and_of_floats():
    a, b = (make_sample((20, 20), [], colour) for colour in (1, 2))
    a["image"], b["image"] = a["image"].float() + 0.5, b["image"].float() + 0.5
    out = MixUp().combine(a, [b])
    assert len(out["instances"]) == 0
    torch.testing.assert_close(out["image"], torch.full((3, 20, 20), 0.5))


# --- copy-paste ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("other_hw", [(40, 60), (30, 80), (70, 50)])
def test_copy_paste_keeps_objects_on_their_pixels(mask_format, other_hw):
    a = make_sample((40, 60), [(0, 0, 20, 12), (20, 10, 50, 35)], 10, mask_format=mask_format, sem_seg=True)
    h, w = other_hw
    boxes = [(0, 0, 12, 9), (w - 20, h - 15, w, h), (15, 15, 25, 28)]
    b = make_sample(other_hw, boxes, 20, mask_format=mask_format, sem_seg=True)
    before = snapshot(a), snapshot(b)
    counts = set()
    for _ in range(12):
        out = CopyPaste().combine(a, [b])
        check_objects(out, exact=True)
        torch.testing.assert_close(out["sem_seg"], out["image"][0].long())
        assert isinstance(out["instances"].gt_masks, BitMasks) or (out["instances"].gt_classes < 20).all()
        assert out["file_name"] == "10.png"
        counts.add(int((out["instances"].gt_classes >= 20).sum()))
    assert {1, 2} <= counts
    assert (snapshot(a), snapshot(b)) == before


def test_copy_paste_by_hand():
    """A pasted square covers the first instance wholly, the second one by half, and the third one not at all."""
    a = make_sample((20, 40), [(4, 4, 8, 8), (0, 12, 20, 16), (30, 0, 40, 10)], 10)
    b = make_sample((20, 40), [(0, 0, 10, 20)], 20)
    out = CopyPaste().combine(a, [b])["instances"]
    assert out.gt_classes.tolist() == [11, 12, 20]
    assert out.gt_boxes.tensor.tolist() == [[10, 12, 20, 16], [30, 0, 40, 10], [0, 0, 10, 20]]
    # The middle of the second instance is the corner of the square, which does not cover it any more.
    assert out.gt_keypoints.tensor[:, 0, 2].tolist() == [2, 2, 2]
    halves = CopyPaste(min_visible=0.5).combine(a, [b])["instances"]
    assert halves.gt_classes.tolist() == [12, 20]


def test_copy_paste_marks_covered_keypoints():
    a = make_sample((20, 40), [(0, 0, 40, 20)], 10)  # its keypoint is (20, 10)
    a["instances"].gt_keypoints = Keypoints(torch.tensor([[[20.0, 10, 2], [21, 10, 1], [22, 10, 0], [2, 2, 2]]]))
    b = make_sample((20, 40), [(15, 5, 25, 15)], 20)
    b["instances"].gt_keypoints = Keypoints(torch.zeros(1, 4, 3))
    out = CopyPaste().combine(a, [b])["instances"]
    assert out.gt_keypoints.tensor[0, :, 2].tolist() == [1, 1, 0, 2]
    assert out.gt_keypoints.tensor[0, :, :2].tolist() == [[20, 10], [21, 10], [22, 10], [2, 2]]


def test_copy_paste_of_nothing_and_onto_nothing():
    empty = make_sample((20, 40), [], 10, mask_format=None)
    full = make_sample((20, 40), [(0, 0, 10, 10)], 20, mask_format="polygon")
    assert CopyPaste().combine(full, [empty]) is full
    out = CopyPaste().combine(empty, [full])
    assert out["instances"].gt_classes.tolist() == [20]
    check_objects(out, exact=True)
    assert out["image"].max() == 20
    assert CopyPaste().combine(empty, [empty]) is empty


def test_copy_paste_of_few():
    a = make_sample((20, 40), [], 10)
    b = make_sample((20, 40), [(0, 0, 5, 5), (10, 0, 15, 5), (20, 0, 25, 5)], 20)
    counts = [len(CopyPaste(max_objects=2).combine(a, [b])["instances"]) for _ in range(20)]
    assert set(counts) == {1, 2}


def test_polygons_that_cover_no_pixel_are_not_pasted():
    a = make_sample((20, 40), [(0, 0, 5, 5)], 10)
    b = make_sample((20, 40), [(3, 3, 9, 9)], 20, mask_format="polygon")
    b["instances"].gt_masks = PolygonMasks([[np.array([5.1, 5.1, 5.2, 5.1, 5.2, 5.2])]])
    assert CopyPaste().combine(a, [b]) is a


# --- what cannot be combined -----------------------------------------------------------------------------------------


def test_samples_that_cannot_be_combined():
    a, b = (make_sample((20, 20), [(0, 0, 9, 9)], colour) for colour in (1, 2))
    no_masks = make_sample((20, 20), [(0, 0, 9, 9)], 1, mask_format=None)
    with pytest.raises(ValueError, match=r"CopyPaste needs masks: set MODEL\.MASK_ON"):
        CopyPaste().combine(no_masks, [b])
    with pytest.raises(ValueError, match="MixUp needs samples with 'instances'"):
        MixUp().combine({"image": a["image"]}, [b])
    with pytest.raises(ValueError, match="cannot mix label maps"):
        MixUp().combine({**a, "sem_seg": torch.zeros(20, 20)}, [{**b, "sem_seg": torch.zeros(20, 20)}])
    with pytest.raises(ValueError, match="some have 'sem_seg'"):
        CopyPaste().combine({**a, "sem_seg": torch.zeros(20, 20)}, [b])
    with pytest.raises(ValueError, match="precomputed proposals"):
        MixUp().combine({**a, "proposals": 0}, [b])
    with pytest.raises(ValueError, match=r"images of 3 channels \(torch.uint8\) and 1 \(torch.uint8\)"):
        MixUp().combine(a, [{**b, "image": b["image"][:1]}])
    for image in (b["image"][0], b["image"][:, :0], b["image"].numpy()):
        with pytest.raises(ValueError, match=r"images as tensors \(C, H, W\) with at least one pixel, got"):
            MixUp().combine(a, [{**b, "image": image}])
    with pytest.raises(TypeError, match="got a list"):
        MixUp().combine(a, [[b]])
    with pytest.raises(ValueError, match=r"instances of an image of \(height, width\) \(20, 20\) .* of \(20, 19\)"):
        MixUp().combine(a, [{**b, "image": b["image"][:, :, 1:]}])
    with pytest.raises(ValueError, match=r"'sem_seg' of shape \(9, 20\)"):
        Mosaic(8).combine(*(lambda x: (x, [x] * 3))({**a, "sem_seg": torch.zeros(9, 20)}))
    with pytest.raises(ValueError, match="without any field"):
        MixUp().combine(a, [{**b, "instances": Instances((20, 20))}])
    rotated = Instances((20, 20), gt_boxes=RotatedBoxes([[9.0, 9, 4, 4, 30]]), gt_classes=torch.zeros(1))
    with pytest.raises(ValueError, match="upright boxes"):
        CopyPaste().combine(a, [{**b, "instances": rotated}])
    a["instances"].gt_point_coords = torch.zeros(1, 5, 2)
    with pytest.raises(ValueError, match="field 'gt_point_coords'"):
        Mosaic(8).combine(a, [b] * 3)


@pytest.mark.parametrize("is_first", [True, False])
def test_objects_without_masks_do_not_take_those_of_others(is_first):
    """Whichever comes first; images without objects may lack them."""
    with_masks = make_sample((20, 20), [(0, 0, 9, 9)], 1)
    without = make_sample((20, 20), [(0, 0, 9, 9)], 2, mask_format=None)
    nothing = make_sample((20, 20), [], 3, mask_format=None)
    pair = [with_masks, without] if is_first else [without, with_masks]
    for combine in (lambda: MixUp().combine(pair[0], pair[1:]), lambda: Mosaic(40).combine(pair[0], pair[1:] * 3)):
        with pytest.raises(ValueError, match="only some have gt_masks"):
            combine()
    pair = [with_masks, nothing] if is_first else [nothing, with_masks]
    assert MixUp().combine(pair[0], pair[1:])["instances"].has("gt_masks")


@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, -1), (torch.uint8, 256), (torch.int16, 2**15)])
def test_grey_levels_that_images_cannot_have(dtype, value):
    a, b = (make_sample(size, [(0, 0, 9, 9)], 1) for size in ((20, 20), (20, 30)))
    a, b = ({**x, "image": x["image"].to(dtype)} for x in (a, b))
    with pytest.raises(ValueError, match=f"pad_value must be from .* got {value}"):
        MixUp(pad_value=value).combine(a, [b])
    with pytest.raises(ValueError, match=f"pad_value must be from .* got {value}"):
        Mosaic(40, pad_value=value).combine(a, [b] * 3)
    a["sem_seg"] = torch.zeros(20, 20, dtype=dtype)
    with pytest.raises(ValueError, match=f"seg_pad_value must be from .* got {value}"):
        Mosaic(40, seg_pad_value=value, pad_value=0).combine(a, [a] * 3)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "values", "words"),
    [
        (lambda x: Mosaic(x), (0, -5, (0, 8), (8,), (8, 8, 3), 8.0, (8.5, 8), NAN, "64", None), "Mosaic needs a size"),
        (lambda x: Mosaic(8, scale_range=x), (0.5, (0.4,), (0.5, INF), (0.5, 1, 2), "ab"), "scale_range"),
        (lambda x: Mosaic(8, center_range=x), (0.5, (0.5,), (NAN, NAN), None), "center_range"),
        (lambda x: Mosaic(8, min_visible=x), (-0.1, 1.1, NAN, None, "a"), "min_visible"),
        (lambda x: CopyPaste(min_visible=x), (-0.1, 1.1, NAN, None, "a"), "min_visible"),
        (lambda x: Mosaic(8, pad_value=x), (NAN, None, "a"), "pad_value"),
        (lambda x: MixUp(pad_value=x), (NAN, None, "a"), "pad_value"),
        (lambda x: Mosaic(8, seg_pad_value=x), (0.5, NAN, None, "a"), "seg_pad_value"),
        (lambda x: MixUp(x), (-1, NAN, INF, None, "a"), "alpha > 0"),
        (lambda x: MixUp(prob=x), (-0.1, NAN, None, "0.5"), "prob must be between 0 and 1"),
        (lambda x: CopyPaste(max_objects=x), (-1, 1.5, NAN, "a"), "max_objects of at least 1"),
        (lambda x: MultiImageAugmentation(x), (-1, 1.5, None), "num_others"),
        (lambda x: MultiImageMapper(dict, [], pool_size=x), (1.5, NAN, None), "pool_size of at least 1"),
    ],
)
def test_impossible_numbers(make, values, words):
    for value in values:
        with pytest.raises(ValueError, match=words):
            make(value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiImageMapper(None, []), "wraps a mapper"),
        (lambda: MultiImageMapper(dict, MixUp()), r"give \[augmentation\]"),
        (lambda: MultiImageMapper(dict, [], dataset="coco"), r"get_detection_dataset_dicts\(name\), got a str"),
        (lambda: MultiImageMapper(dict, [], dataset=iter([{}])), "indexed data set"),
    ],
)
def test_wrong_kinds_of_arguments(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_an_augmentation_without_return():
    class Forgetful(MultiImageAugmentation):
        def combine(self, sample, others):
            others.clear()

    with pytest.raises(TypeError, match="combine of Forgetful returned None"):
        MultiImageMapper(dict, [Forgetful(1)], dataset=[{}])({})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mosaic(8, prob=1.5), "between 0 and 1, got 1.5"),
        (lambda: Mosaic(8, scale_range=(2, 1)), "0 < min <= max"),
        (lambda: Mosaic(8, center_range=(0.5, 1.1)), "center_range"),
        (lambda: MixUp(0), "alpha > 0"),
        (lambda: CopyPaste(max_objects=0), "at least 1, or None"),
        (lambda: MultiImageMapper(dict, [], pool_size=0), "pool_size of at least 1"),
        (lambda: MultiImageMapper(dict, [], dataset=[]), "is empty"),
    ],
)
def test_wrong_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_only_augmentations_of_several_images_are_accepted():
    with pytest.raises(TypeError, match="got a RandomFlip; give augmentations of single images to the mapper"):
        MultiImageMapper(dict, [T.RandomFlip()])
    with pytest.raises(NotImplementedError, match="must define combine"):
        MultiImageAugmentation(1).combine({}, [])


# --- the mapper ------------------------------------------------------------------------------------------------------


class Names(MultiImageAugmentation):
    """Notes which samples were combined."""

    def combine(self, sample, others):
        return {**sample, "with": [o["name"] for o in others]}


def read(record):
    """A mapper that changes what it gets, as mappers may, and makes nothing of some records."""
    name = record.pop("name")
    return None if name in ("c", "d") else {"name": name}


def test_others_come_from_the_records_before():
    mapper = MultiImageMapper(read, [Names(2)], pool_size=2)
    assert mapper({"name": "a"}) == {"name": "a"}
    assert mapper({"name": "b"}) == {"name": "b", "with": ["a", "a"]}
    assert mapper({"name": "c"}) is None
    seen = {name for _ in range(20) for name in mapper({"name": "a"})["with"]}
    assert seen == {"a", "b"}  # what the mapper makes nothing of is not remembered
    mapper({"name": "e"})
    mapper({"name": "f"})
    assert {name for _ in range(1) for name in mapper({"name": "g"})["with"]} <= {"e", "f"}


def test_others_come_from_the_data_set():
    records = [{"name": name} for name in "abcd"]
    mapper = MultiImageMapper(read, [Names(3)], dataset=records)
    results = [mapper({"name": "x"}) for _ in range(20)]
    assert {name for r in results for name in r.get("with", [])} == {"a", "b"}
    assert all(len(r["with"]) == 3 for r in results if "with" in r)
    assert records == [{"name": name} for name in "abcd"]
    nothing = MultiImageMapper(read, [Names(1)], dataset=DatasetFromList([{"name": "c"}]))
    assert nothing({"name": "x"}) == {"name": "x"}


def test_probability():
    mapper = MultiImageMapper(read, [Names(1, prob=0.3)], dataset=[{"name": "a"}])
    applied = ["with" in mapper({"name": "x"}) for _ in range(500)]
    assert np.mean(applied) == pytest.approx(0.3, abs=0.08)


def test_equal_seeds_give_equal_samples():
    records = [{"name": name} for name in "efghij"]

    def draw(seed):
        mapper = MultiImageMapper(read, [Names(3)], dataset=records)
        np.random.seed(seed)
        return [mapper(dict(r))["with"] for r in records]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.fixture
def records(tmp_path):
    from PIL import Image

    out = []
    for i in range(4):
        pixels = np.zeros((30, 40, 3), np.uint8)
        pixels[5:20, 10:25] = 60 + i
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        annotation = {
            "bbox": [10, 5, 25, 20],
            "bbox_mode": BoxMode.XYXY_ABS,
            "segmentation": [rectangle(10, 5, 25, 20).tolist()],
            "category_id": i,
        }
        out.append({"file_name": str(tmp_path / f"{i}.png"), "height": 30, "width": 40, "annotations": [annotation]})
    return out


def test_with_the_default_mapper_and_loader(records):
    single = DatasetMapper(
        True, augmentations=[T.RandomFlip(), T.LargeScaleJitter(48)], image_format="RGB", use_instance_mask=True
    )
    mapper = MultiImageMapper(single, [CopyPaste(), Mosaic((32, 64), prob=0.5)], dataset=records)
    mapper = pickle.loads(pickle.dumps(mapper))
    loader = build_detection_train_loader(records, mapper=mapper, total_batch_size=2, num_workers=0)
    batches = iter(loader)
    sizes = set()
    for _ in range(6):
        for sample in next(batches):
            sizes.add(tuple(sample["image"].shape))
            assert sample["instances"].image_size == tuple(sample["image"].shape[1:])
            assert "annotations" not in sample
    assert sizes == {(3, 48, 48), (3, 32, 64)}


def test_in_a_lazy_config(records):
    config = L(DatasetMapper)(is_train=True, augmentations=[L(T.Resize)(shape=24)], image_format="RGB")
    config = L(MultiImageMapper)(mapper=config, augmentations=[L(Mosaic)(size=32)])
    dataset = MapDataset(DatasetFromList(records), instantiate(config))
    assert [tuple(dataset[i]["image"].shape) for i in range(3)] == [(3, 24, 24), (3, 32, 32), (3, 32, 32)]


class Pair(MultiImageAugmentation):
    """Adds the image id of another sample."""

    def __init__(self):
        super().__init__(1)

    def combine(self, sample, others):
        return {**sample, "other": others[0]["image_id"]}


def test_the_train_loader_lets_it_draw_from_its_data_set():
    records = [{"image_id": i} for i in range(50)]
    mapper = MultiImageMapper(dict, [Pair()])
    loader = build_detection_train_loader(
        records, mapper=mapper, sampler=range(2), total_batch_size=2, aspect_ratio_grouping=False
    )
    (batch,) = loader
    assert [sample["image_id"] for sample in batch] == [0, 1]
    assert all("other" in sample for sample in batch)  # also the first one, which has no predecessor
    assert mapper.dataset is None
    own = MultiImageMapper(dict, [Pair()], dataset=[{"image_id": 99}])
    assert own.drawing_from(records) is own


def test_the_train_loader_still_refuses_bad_data(monkeypatch):
    from detectron2.config import get_cfg
    from detectron2.data.build import _train_validator

    cfg = get_cfg()
    default = MultiImageMapper(DatasetMapper(cfg), [Pair()])
    assert _train_validator(cfg, default).keywords["raise_on_error"]
    assert not _train_validator(cfg, MultiImageMapper(dict, [Pair()])).keywords["raise_on_error"]


def _rectangles(rng, mask_format):
    """A sample of rectangles whose masks fill their boxes, and with a keypoint half a pixel inside two corners."""
    h, w, n = (int(v) for v in rng.integers((1, 1, 0), (40, 40, 4)))
    low = rng.integers(0, (w, h), (n, 2))
    high = rng.integers(low + 1, (w + 1, h + 1), (n, 2))
    instances = Instances((h, w), gt_classes=torch.arange(n))
    instances.gt_boxes = Boxes(torch.from_numpy(np.concatenate([low, high], axis=1).astype(np.float32)))
    masks = PolygonMasks(
        [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)] for (x1, y1), (x2, y2) in zip(low, high, strict=True)]
    )
    instances.gt_masks = masks if mask_format == "polygon" else BitMasks.from_polygon_masks(masks, h, w)
    points = np.stack([low + 0.5, high - 0.5], axis=1)
    instances.gt_keypoints = Keypoints(torch.from_numpy(np.insert(points, 2, 2, axis=2).astype(np.float32)))
    return {"image": torch.zeros(3, h, w, dtype=torch.uint8), "instances": instances}


@given(st.integers(0, 2**31 - 1), st.sampled_from(["polygon", "bitmask"]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_boxes_masks_and_keypoints_stay_together_and_inside(seed, mask_format, kind):
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    size = tuple(rng.integers(1, 60, 2).tolist())
    whole = Mosaic(size, scale_range=None, center_range=(0, 1), min_visible=0)
    augmentation = (Mosaic(size), whole, MixUp(), CopyPaste())[kind]
    samples = [_rectangles(rng, mask_format) for _ in range(1 + augmentation.num_others)]
    counts = [len(s["instances"]) for s in samples]
    out = augmentation.combine(samples[0], samples[1:])
    h, w = out["image"].shape[1:]
    instances = out["instances"]
    assert instances.image_size == (h, w) and len(instances) <= sum(counts)
    if len(instances) == 0:
        return
    boxes = instances.gt_boxes.tensor
    limit = torch.tensor([w, h, w, h])
    assert (boxes >= 0).all() and (boxes <= limit + 1e-3).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert instances.gt_masks.nonempty().all()
    around = instances.gt_masks.get_bounding_boxes().tensor
    assert ((around - boxes).abs() <= 1.01).all()  # a pixel of rounding
    points = instances.gt_keypoints.tensor
    seen = points[points[:, :, 2] > 0][:, :2]
    assert (seen >= 0).all() and (seen <= limit[:2]).all()
