"""Tiles, and detectors that see one tile at a time."""

from itertools import pairwise

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detectron2.inference.tiling import iter_tiles, merge_sem_seg, merge_tile_outputs, merge_tiles
from detectron2.layers import encode_masks
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou


def see(tile, objects, scores=None, classes=None, masks=None):
    """What a perfect detector says about a tile: the parts of all objects (x1, y1, x2, y2) within it."""
    x1, y1, x2, y2 = tile
    boxes = torch.as_tensor(objects, dtype=torch.float32).reshape(-1, 4)
    parts = boxes - torch.tensor([x1, y1, x1, y1])
    parts[:, 0::2] = parts[:, 0::2].clamp(0, x2 - x1)
    parts[:, 1::2] = parts[:, 1::2].clamp(0, y2 - y1)
    seen = ((parts[:, 2:] - parts[:, :2]) > 0).all(dim=1)
    out = Instances((y2 - y1, x2 - x1), pred_boxes=Boxes(parts[seen]))
    out.scores = (torch.full((len(boxes),), 0.9) if scores is None else torch.as_tensor(scores))[seen]
    out.pred_classes = torch.as_tensor([0] * len(boxes) if classes is None else classes)[seen]
    out.number = torch.arange(len(boxes))[seen]
    if masks is not None:
        out.pred_masks = masks[seen][:, y1:y2, x1:x2]
    return out


def found_by_tiles(objects, size_hw, tile, overlap, **kwargs):
    tiles = list(iter_tiles(size_hw[0], size_hw[1], tile, overlap))
    return merge_tiles([see(t, objects, **kwargs) for t in tiles], tiles, size_hw)


def as_set(instances):
    return sorted(map(tuple, instances.pred_boxes.tensor.tolist()))


# Tiles


@pytest.mark.parametrize(
    ("size_hw", "tile", "overlap", "expected"),
    [
        ((5, 7), 10, 0.5, [(0, 0, 7, 5)]),
        ((10, 10), 10, 0.5, [(0, 0, 10, 10)]),
        ((10, 11), 10, 0, [(0, 0, 10, 10), (1, 0, 11, 10)]),
        ((8, 20), (10, 8), 2, [(0, 0, 8, 8), (6, 0, 14, 8), (12, 0, 20, 8)]),
        ((4, 4), 2, 0.0, [(0, 0, 2, 2), (2, 0, 4, 2), (0, 2, 2, 4), (2, 2, 4, 4)]),
        ((4, 6), 4, (3, 2), [(0, 0, 4, 4), (2, 0, 6, 4)]),
        ((1, 3), 2, 0.99, [(0, 0, 2, 1), (1, 0, 3, 1)]),
    ],
)
def test_tiles(size_hw, tile, overlap, expected):
    assert list(iter_tiles(size_hw[0], size_hw[1], tile, overlap)) == expected


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.integers(1, 40),
    overlap=st.one_of(st.floats(0, 0.99), st.integers(0, 39)),
)
def test_tiles_cover_the_image_and_overlap_enough(height, width, tile, overlap):
    if isinstance(overlap, int) and overlap >= tile:
        with pytest.raises(ValueError, match="less than the tile"):
            iter_tiles(height, width, tile, overlap)
        return
    seen = np.zeros((height, width), int)
    tiles = list(iter_tiles(height, width, tile, overlap))
    assert len(set(tiles)) == len(tiles)
    for x1, y1, x2, y2 in tiles:
        assert (x2 - x1, y2 - y1) == (min(tile, width), min(tile, height))
        assert x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    least = overlap if isinstance(overlap, int) else min(round(overlap * tile), tile - 1)
    for starts, size in ((sorted({t[0] for t in tiles}), width), (sorted({t[1] for t in tiles}), height)):
        assert all(b - a <= tile - least for a, b in pairwise(starts))
        assert len(starts) == 1 or len(starts) == -(-(size - least) // (tile - least))  # no more than needed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 4), "positive whole numbers.*image 0 x 5"),
        ((5, 5, 0), "positive whole numbers.*tile 0"),
        ((5, 5, 2.5), "positive whole numbers"),
        ((5, 5, (2, 3, 4)), "positive whole numbers"),
        ((5, 5, 4, 1.0), "share of the tile from 0 to less than 1"),
        ((5, 5, 4, -0.1), "share of the tile"),
        ((5, 5, 4, float("nan")), "share of the tile"),
        ((5, 5, 4, "0.2"), "one number or a pair.*got .0.2"),
        ((5, 5, 4, True), "share of the tile"),
        ((5, 5, 4, 4), "4 pixels does not fit tiles of 4.*give a float"),
        ((5, 5, 4, -1), "at least 0"),
        ((5, 5, 4, (1, 1, 1)), "one number or a pair"),
    ],
)
def test_tiles_that_cannot_be_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        iter_tiles(*arguments)


# Detections


def test_nothing_found():
    found = found_by_tiles([], (100, 150), 60, 20)
    assert found.image_size == (100, 150) and len(found) == 0
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "number"}
    tiles = list(iter_tiles(100, 150, 60, 20))
    empty = [see(t, [], masks=torch.zeros(0, 100, 150, dtype=torch.bool)) for t in tiles]
    assert merge_tiles(empty, tiles, (100, 150)).pred_masks.shape == (0, 100, 150)
    for one in empty:
        one.pred_masks_rle = []
        one.remove("pred_masks")
    assert merge_tiles(empty, tiles, (100, 150)).pred_masks_rle == []


def test_one_tile_changes_nothing():
    objects = [[0, 0, 30, 30], [0, 0, 30, 29], [5, 5, 40, 40]]  # the model has told the first two apart
    found = found_by_tiles(objects, (50, 50), 50, 0.2, scores=[0.5, 0.9, 0.7])
    assert found.number.tolist() == [1, 2, 0]
    assert found.pred_boxes.tensor.tolist() == [objects[1], objects[2], objects[0]]


@st.composite
def scenes(draw):
    tile = draw(st.integers(10, 40))
    overlap = draw(st.integers(4, tile * 3 // 4))
    longest = overlap - 1  # less a fiftieth of the tile
    height, width = draw(st.integers(5, 120)), draw(st.integers(5, 120))
    side = st.integers(1, longest)
    objects = draw(st.lists(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1), side, side), max_size=12))
    kept = torch.zeros(0, 4)
    for x, y, w, h in objects:
        box = torch.tensor([[x, y, min(x + w, width), min(y + h, height)]], dtype=torch.float32)
        if pairwise_iou(Boxes(box), Boxes(kept)).max(dim=1).values.le(0.5).all() if len(kept) else True:
            kept = torch.cat([kept, box])
    classes = draw(st.lists(st.integers(0, 1), min_size=len(kept), max_size=len(kept)))
    scores = draw(st.lists(st.floats(0.125, 1, width=32), min_size=len(kept), max_size=len(kept)))
    return (height, width), tile, overlap, kept, classes, scores


@settings(max_examples=100, deadline=None)
@given(scene=scenes())
@example(  # one as long as the overlap allows, across a taller one, at a border of both tiles that see it
    scene=((100, 280), 100, 20, torch.tensor([[80.0, 30, 99, 38], [81, 26, 98, 40]]), [0, 0], [0.9, 0.8])
)
def test_each_object_is_found_once_and_whole(scene):
    size_hw, tile, overlap, objects, classes, scores = scene
    found = found_by_tiles(objects, size_hw, tile, overlap, classes=classes, scores=scores)
    assert found.number.sort().values.tolist() == list(range(len(objects)))
    assert torch.equal(found.pred_boxes.tensor, objects[found.number])
    assert found.pred_classes.tolist() == [classes[i] for i in found.number.tolist()]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@settings(max_examples=50, deadline=None)
@given(
    box=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100)),
    tile=st.integers(20, 60),
    overlap=st.floats(0.1, 0.6),
)
def test_an_object_of_any_size_is_found_once_and_whole(box, tile, overlap):
    x, y, w, h = box
    box = (float(x), float(y), float(min(x + w, 100)), float(min(y + h, 100)))
    assert as_set(found_by_tiles([box], (100, 100), tile, overlap)) == [box]


def test_long_objects_side_by_side_are_put_together_each_by_itself():
    lanes = [[5.0, 10, 195, 30], [0, 25, 200, 45], [20, 44, 180, 60]]
    assert as_set(found_by_tiles(lanes, (70, 200), 70, 20)) == sorted(map(tuple, lanes))


def test_two_that_both_reach_across_a_narrow_overlap_stay_two():
    # the last tile is moved inwards, so that the first and the third share two columns
    first, second = [20.0, 10, 52, 30], [48.0, 10, 80, 30]
    assert as_set(found_by_tiles([first, second], (40, 90), 50, 34)) == [tuple(first), tuple(second)]


def test_classes_are_told_apart():
    box = [[40.0, 10, 60, 30]] * 2
    found = found_by_tiles(box, (70, 110), 70, 30, classes=[3, 5])
    assert sorted(found.pred_classes.tolist()) == [3, 5]


def test_neighbours_are_merged_as_by_nms_and_not_more():
    tiles = [(0, 0, 100, 100), (40, 0, 140, 100)]
    for shift, expected in ((5, 1), (12, 2)):  # IoU 0.6 and 0.25
        one, other = [50, 10, 70, 30], [50 + shift, 10, 70 + shift, 30]
        found = merge_tiles([see(tiles[0], [one], scores=[0.8]), see(tiles[1], [other])], tiles, (100, 140))
        assert len(found) == expected
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    # both in both tiles: four detections, two objects, however much they overlap
    near = [[50, 10, 70, 30], [52, 10, 72, 30]]
    assert len(merge_tiles([see(t, near[:1]) for t in tiles], tiles, (100, 140))) == 1


def test_a_piece_goes_with_its_object_whatever_the_scores():
    tiles = [(0, 0, 100, 100), (60, 0, 160, 100)]
    whole = [70.0, 10, 130, 40]
    seen = [see(tiles[0], [whole], scores=[0.99]), see(tiles[1], [whole], scores=[0.5])]
    found = merge_tiles(seen, tiles, (100, 160))
    assert found.pred_boxes.tensor.tolist() == [whole] and found.scores.tolist() == [0.5]


def test_the_box_of_a_piece_need_not_be_exact():
    tiles = [(0, 0, 100, 100), (60, 0, 160, 100)]
    sliver = see(tiles[0], [[92, 15, 100, 30]])  # of an object that is twice as high
    found = merge_tiles([sliver, see(tiles[1], [[95.0, 10, 130, 40]])], tiles, (100, 160))
    assert found.pred_boxes.tensor.tolist() == [[95, 10, 130, 40]]
    # but something small that ends within the tile of the piece does not explain it
    small = see(tiles[1], [[80.0, 10, 95, 28]])
    assert len(merge_tiles([see(tiles[0], [[80, 10, 100, 40]]), small], tiles, (100, 160))) == 2


def test_pieces_of_a_large_object():
    tiles = list(iter_tiles(60, 150, 60, 15))
    large = [[10.0, 5, 140, 50]]
    seen = [see(t, large, scores=[s]) for t, s in zip(tiles, (0.5, 0.9, 0.7), strict=True)]
    joined = merge_tiles(seen, tiles, (60, 150))
    assert joined.pred_boxes.tensor.tolist() == large
    assert joined.scores.tolist() == pytest.approx([0.9])
    apart = merge_tiles(seen, tiles, (60, 150), join_pieces=False)
    assert apart.pred_boxes.tensor.tolist() == [[45, 5, 105, 50]] and apart.scores.tolist() == pytest.approx([0.9])
    # tiles without overlap give no hint which pieces belong together
    assert len(found_by_tiles(large, (60, 180), 60, 0)) == 3


@pytest.mark.parametrize("is_rle", [False, True])
def test_masks(is_rle):
    size_hw = (70, 130)
    y, x = np.ogrid[:70, :130]
    masks = torch.from_numpy(
        np.stack(
            [(x - 65) ** 2 + 9 * (y - 30) ** 2 < 50**2, (x - 20) ** 2 + (y - 50) ** 2 < 81, np.zeros(size_hw, bool)]
        )
    )
    boxes = torch.tensor([[16.0, 14, 115, 47], [12, 42, 29, 59], [100, 2, 110, 12]])
    tiles = list(iter_tiles(*size_hw, 60, 25))
    seen = [see(t, boxes, masks=masks) for t in tiles]
    if is_rle:
        for one in seen:
            one.pred_masks_rle = encode_masks(one.pred_masks)
            one.remove("pred_masks")
    found = merge_tiles(seen, tiles, size_hw)
    assert torch.equal(found.pred_boxes.tensor, boxes[found.number]) and len(found) == 3
    if is_rle:
        assert found.pred_masks_rle == encode_masks(masks[found.number])
        assert (mask_util.decode(found.pred_masks_rle[0]) == masks[found.number[0]].numpy()).all()
    else:
        assert found.pred_masks.dtype == torch.bool and torch.equal(found.pred_masks, masks[found.number])


def test_run_lengths_of_a_large_image_take_the_memory_of_an_object():
    tracemalloc = pytest.importorskip("tracemalloc")
    size_hw = (6000, 8000)
    tiles = list(iter_tiles(*size_hw, 1000, 200))
    seen = [see(t, [[t[0] + 300, t[1] + 300, t[0] + 400, t[1] + 380]]) for t in tiles]
    tile_mask = torch.zeros(1, 1000, 1000, dtype=torch.bool)
    tile_mask[0, 300:380, 300:400] = True
    for one in seen:
        one.pred_masks_rle = encode_masks(tile_mask)
    tracemalloc.start()
    try:
        found = merge_tiles(seen, tiles, size_hw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == len(tiles) == 80
    assert all(rle["size"] == [6000, 8000] for rle in found.pred_masks_rle)
    assert mask_util.toBbox(found.pred_masks_rle[5:6]).tolist() == [
        [*found.pred_boxes.tensor[5, :2].tolist(), 100, 80],
    ]
    assert peak < 20 * 2**20  # one whole mask takes 46 MiB


def test_keypoints():
    tiles = [(0, 0, 60, 60), (40, 0, 100, 60)]
    person = [[10.0, 10, 90, 50]]
    seen = [see(t, person) for t in tiles]
    seen[0].pred_keypoints = torch.tensor([[[12.0, 20, 0.9], [59, 30, 0.1]]])
    seen[1].pred_keypoints = torch.tensor([[[1.0, 22, 0.2], [45, 31, 0.8]]])
    before = [one.pred_keypoints.clone() for one in seen]
    found = merge_tiles(seen, tiles, (60, 100))
    expected = torch.tensor([[[12.0, 20, 0.9], [85, 31, 0.8]]])
    assert torch.equal(found.pred_keypoints, expected)
    assert all(torch.equal(one.pred_keypoints, b) for one, b in zip(seen, before, strict=True))


def test_rotated_boxes():
    tiles = [(0, 0, 100, 100), (60, 0, 160, 100)]

    def turned(*boxes, scores):
        return Instances((100, 100), pred_boxes=RotatedBoxes(torch.tensor(boxes)), scores=torch.tensor(scores))

    left = turned([80.0, 50, 24, 8, 30], [94.0, 20, 12, 8, 0], scores=[0.8, 0.95])  # the second is cut
    right = turned([20.0, 50, 24, 8, 32], [38.0, 20, 20, 8, 0], [20.0, 50, 24, 8, 120], scores=[0.9, 0.7, 0.6])
    found = merge_tiles([left, right], tiles, (100, 160))
    assert isinstance(found.pred_boxes, RotatedBoxes)
    expected = [[80, 50, 24, 8, 32], [98, 20, 20, 8, 0], [80, 50, 24, 8, 120]]
    assert found.pred_boxes.tensor.tolist() == expected


def test_other_fields_follow_and_the_input_stays():
    tiles = [(0, 0, 60, 60), (40, 0, 100, 60)]
    seen = [see(t, [[10.0, 10, 20, 20], [70, 10, 80, 20]]) for t in tiles]
    for one, name in zip(seen, "ab", strict=True):
        one.tile_name = [name]
        one.anchors = Boxes(one.pred_boxes.tensor.clone())
    found = merge_tiles(seen, tiles, (60, 100))
    assert found.tile_name == ["a", "b"]
    assert torch.equal(found.anchors.tensor, found.pred_boxes.tensor)
    assert seen[1].pred_boxes.tensor.tolist() == [[30, 10, 40, 20]]


def test_what_does_not_fit_is_refused():
    tiles = [(0, 0, 60, 60), (40, 0, 100, 60)]
    seen = [see(t, [[10.0, 10, 20, 20]]) for t in tiles]
    for outputs, places, message in (
        ([], [], "at least one; got 0 for 0"),
        (seen, tiles[:1], "got 2 for 1 tiles"),
        (seen, [(0, 0, 60, 60), (41, 0, 101, 60)], r"tile \(41, 0, 101, 60\).*60 x 100"),
        (seen, [(0, 0, 60, 60), (40, 0, 99, 60)], r"tile 1 are for \(60, 60\).*\(60, 59\)"),
        ([Instances((60, 60), scores=torch.ones(1))] * 2, tiles, "tile 0 have no.*pred_boxes"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_tiles(outputs, places, (60, 100))
    with pytest.raises(ValueError, match="between 0 and 1"):
        merge_tiles(seen, tiles, (60, 100), threshold=1.5)
    seen[0].pred_masks = Boxes(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="mask_format='rle'"):
        merge_tiles(seen[:1], tiles[:1], (60, 100))
    seen[0].remove("pred_masks")
    seen[0].other = ("a",)
    with pytest.raises(ValueError, match=r"'other'.*tuple.*remove"):
        merge_tiles(seen[:1], tiles[:1], (60, 100))


def test_many_objects():
    generator = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(0, 3960, 40), np.arange(0, 2960, 40)), axis=-1).reshape(-1, 2)
    objects = np.concatenate([xy, xy + generator.integers(5, 40, xy.shape)], axis=1)
    found = found_by_tiles(objects, (3000, 4000), 500, 0.2)
    assert found.number.sort().values.tolist() == list(range(len(objects)))
    assert torch.equal(found.pred_boxes.tensor, torch.as_tensor(objects[found.number]).float())


# Semantic scores and dictionaries


def test_semantic_scores_of_one_tile_and_of_a_constant():
    scores = torch.rand(3, 20, 30)
    assert torch.allclose(merge_sem_seg([scores], [(0, 0, 30, 20)], (20, 30)), scores)
    tiles = list(iter_tiles(20, 30, 12, 5))
    merged = merge_sem_seg((torch.full((2, 12, 12), 0.25, dtype=torch.float16) for _ in tiles), tiles, (20, 30))
    assert merged.dtype == torch.float32 and torch.allclose(merged, torch.tensor(0.25))


def test_semantic_scores_are_those_of_the_image_where_all_tiles_agree():
    scores = torch.rand(3, 40, 50)
    tiles = list(iter_tiles(40, 50, (16, 20), 0.3))
    merged = merge_sem_seg((scores[:, y1:y2, x1:x2] for x1, y1, x2, y2 in tiles), tiles, (40, 50))
    assert torch.allclose(merged, scores, atol=1e-6)
    assert torch.equal(merged.argmax(dim=0), scores.argmax(dim=0))


def test_what_a_tile_sees_at_its_border_counts_little():
    tiles = [(0, 0, 10, 1), (6, 0, 16, 1)]
    merged = merge_sem_seg([torch.zeros(1, 1, 10), torch.ones(1, 1, 10)], tiles, (1, 16))[0, 0]
    assert merged[6:10].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert merged[:6].eq(0).all() and merged[10:].eq(1).all()


def test_semantic_scores_that_do_not_fit_are_refused():
    tiles = [(0, 0, 10, 1), (6, 0, 16, 1)]
    for scores, message in (
        ([], "got 0"),
        ([torch.zeros(1, 1, 10)], "of 2 tiles, got 1"),
        ([torch.zeros(1, 1, 10)] * 3, "of 2 tiles; number 3"),
        ([torch.zeros(1, 1, 10), torch.zeros(2, 1, 10)], r"number 2 has the shape \(2, 1, 10\).*\(1, 1, 10\)"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_sem_seg(scores, tiles, (1, 16))
    with pytest.raises(ValueError, match="do not cover"):
        merge_sem_seg([torch.zeros(1, 1, 10)] * 2, tiles, (2, 16))


def test_dictionaries_of_models():
    tiles = list(iter_tiles(20, 30, 20, 10))
    scores = torch.rand(3, 20, 30)
    outputs = [{"instances": see(t, [[12.0, 2, 25, 9]]), "sem_seg": scores[:, :, t[0] : t[2]]} for t in tiles]
    merged = merge_tile_outputs(outputs, tiles, (20, 30))
    assert as_set(merged["instances"]) == [(12, 2, 25, 9)]
    assert torch.allclose(merged["sem_seg"], scores, atol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        merge_tile_outputs([], [], (20, 30))
    with pytest.raises(ValueError, match=r"\['panoptic_seg'\].*predict the whole image"):
        merge_tile_outputs([{**o, "panoptic_seg": None} for o in outputs], tiles, (20, 30))
    with pytest.raises(ValueError, match="same outputs"):
        merge_tile_outputs([outputs[0], {}], tiles, (20, 30))
