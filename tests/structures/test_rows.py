"""Tests of how structures are indexed; what is selected comes from Python's lists."""

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, ROIMasks, RotatedBoxes
from detectron2.structures._rows import indices_of, rows_of

COUNT = 4
NUMBERS = torch.arange(COUNT)


def make(name):
    if name == "instances":
        fields = {n: make(n) for n in KINDS if n != "instances"}
        return Instances((3, 3), **fields, names=list("abcd"), pair=tuple("abcd"), array=np.arange(COUNT))
    values = NUMBERS.float()
    return {
        "boxes": lambda: Boxes(values[:, None].expand(-1, 4)),
        "rotated": lambda: RotatedBoxes(values[:, None].expand(-1, 5)),
        "keypoints": lambda: Keypoints(values[:, None, None].expand(-1, 2, 3)),
        "bitmaps": lambda: BitMasks(torch.eye(COUNT)[:, None] > 0),
        "polygons": lambda: PolygonMasks([[np.full(6, float(i))] for i in range(COUNT)]),
        "regions": lambda: ROIMasks(values[:, None, None].expand(-1, 2, 2)),
    }[name]()


KINDS = ("boxes", "rotated", "keypoints", "bitmaps", "polygons", "regions", "instances")


def numbers_of(value):
    """Which of the entries 0, 1, ... an object has."""
    if isinstance(value, Instances):
        every = [numbers_of(v) for v in value.get_fields().values()]
        assert all(numbers == every[0] for numbers in every)
        return every[0]
    if isinstance(value, PolygonMasks):
        return [int(p[0][0]) for p in value.polygons]
    if isinstance(value, BitMasks):
        return value.tensor[:, 0].int().argmax(1).tolist()
    if isinstance(value, (list, tuple)):
        return ["abcd".index(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.tensor.flatten(1)[:, 0].int().tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ([], []),
        (torch.tensor([]), []),
        (np.array([]), []),
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (np.array(1), [1]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (slice(3, 0, -2), [3, 1]),
        (slice(1, None, 2), [1, 3]),
        (slice(9, None), []),
        (Ellipsis, [0, 1, 2, 3]),
        (range(2, 4), [2, 3]),
        ([True, False, True, False], [0, 2]),
        (torch.tensor([1, 0, 1, 0], dtype=torch.uint8), [0, 2]),
        (np.array([True, False, False, True]), [0, 3]),
        (torch.tensor([-1, 0], dtype=torch.int32), [3, 0]),
        (np.array([3, 1], np.uint16), [3, 1]),
        (np.array([0, 1, 3])[::-1], [3, 1, 0]),
        (torch.where(NUMBERS > 1), [2, 3]),
    ],
    ids=repr,
)
def test_every_structure_selects_the_same(kind, item, expected):
    assert numbers_of(make(kind)[item]) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "item",
    [4, -5, [4], [True, False], torch.ones(5, dtype=torch.bool), 1.0, [0.5], None, True, np.True_, (0, 1), {1}, b"a"],
    ids=repr,
)
def test_an_impossible_index_is_refused(kind, item):
    with pytest.raises(IndexError):
        make(kind)[item]


def test_the_error_says_what_came():
    with pytest.raises(IndexError, match=r"Boxes are indexed .*; got torch.float32 of shape \(1,\) for 2 boxes"):
        Boxes(torch.zeros(2, 4))[[0.5]]
    with pytest.raises(IndexError, match="Index 7 is out of range: there are 2 boxes"):
        Boxes(torch.zeros(2, 4))[7]


def test_an_integer_and_a_slice_share_storage():
    boxes = Boxes(torch.zeros(3, 4))
    boxes[1].tensor[:], boxes[2:].tensor[:] = 1, 2
    assert boxes.tensor[:, 0].tolist() == [0, 1, 2]


def test_instances_without_fields_stay_empty():
    assert Instances((3, 3))[[True]].get_fields() == {}


def test_positions():
    assert indices_of(torch.tensor([True, False, True]), 3, "masks") == [0, 2]
    assert rows_of(slice(1, 2), 3, "masks") == slice(1, 2)
