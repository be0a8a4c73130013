"""Taking objects apart and putting them together, and models as functions of tensors."""

import json
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import dump_dataclass, instantiate
from detectron2.export import TracingAdapter
from detectron2.export.flatten import flatten_to_tuple
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, ROIMasks, RotatedBoxes
from detectron2.utils.analysis import TracingAdapter as AnotherPlace
from detectron2.utils.testing import assert_instances_allclose

SEGMENTS = [
    {"id": 1, "isthing": True, "category_id": 0, "score": 0.1, "instance_id": 3},
    {"id": 2, "isthing": False, "category_id": 5, "area": 70},
]
Pair = namedtuple("Pair", "first second")


def instances(n=2):
    return Instances(
        (30, 40), pred_boxes=Boxes(torch.rand(n, 4)), scores=torch.rand(n), pred_masks=ROIMasks(torch.rand(n, 7, 7))
    )


def same(a, b):
    """Whether two objects are the same, found out without taking them apart as the code does."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, Instances):
        return a.image_size == b.image_size and same(a.get_fields(), b.get_fields())
    if isinstance(a, ImageList):
        return same(a.tensor, b.tensor) and a.image_sizes == b.image_sizes
    if isinstance(a, (Boxes, RotatedBoxes, ROIMasks, BitMasks)):
        return same(a.tensor, b.tensor)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ((), 0),
        ([], 0),
        ({}, 0),
        (None, 1),
        (torch.zeros(2), 1),
        ("word", 1),
        (torch.Size([2, 3]), 1),
        ([torch.zeros(1), (torch.ones(1), {"a": 3, "b": []})], 3),
        (Pair(torch.zeros(1), [torch.ones(2)]), 2),
        (Boxes(torch.rand(0, 4)), 1),
        (RotatedBoxes(torch.rand(3, 5)), 1),
        (BitMasks(torch.rand(2, 4, 5) > 0.5), 1),
        (instances(0), 4),  # the size of the image is one
        ([{"instances": instances()}], 4),
        (ImageList(torch.rand(2, 3, 8, 8), [(8, 7), (6, 8)]), 3),
        ({"panoptic_seg": (torch.rand(4, 5), [])}, 2),
        ({"panoptic_seg": (torch.rand(4, 5), SEGMENTS), "sem_seg": torch.rand(3, 4, 5)}, 3),
        ({"panoptic_seg": (torch.rand(4, 5), None)}, 1),
        ({"panoptic_seg": (torch.rand(4, 5), [{"id": 1, "isthing": True, "name": "cat"}])}, 4),  # no table
        ({"panoptic_seg": 3}, 1),
    ],
)
def test_round_trip(value, count):
    leaves, schema = flatten_to_tuple(value)
    assert len(leaves) == schema.num_leaves == count
    assert same(schema(leaves), value)
    assert schema == flatten_to_tuple(value)[1]
    with pytest.raises(ValueError, match=f"has {count} leaves, got {count + 1}"):
        schema((*leaves, torch.zeros(1)))


def test_leaves_come_by_sorted_names_and_the_image_size_last():
    size = torch.tensor([5, 8])
    inst = Instances(size, pred_masks=torch.tensor([3]), pred_boxes=Boxes(torch.ones(1, 4)))
    leaves, schema = flatten_to_tuple([3, ([5, None], {"b": "word", "a": inst})])
    assert leaves[:3] == (3, 5, None) and leaves[-1] == "word"
    expected = (inst.pred_boxes.tensor, inst.pred_masks, inst.image_size)
    assert all(leaf is wanted for leaf, wanted in zip(leaves[3:-1], expected, strict=True))
    again = schema(leaves)[1][1]["a"]
    assert_instances_allclose(again, inst, rtol=0.0, size_as_tensor=True)


def test_a_class_inside_a_function_is_kept_as_it_is():
    local = namedtuple("local", "a b")
    local.__qualname__ = "test.<locals>.local"
    leaves, schema = flatten_to_tuple(local(1, [2]))
    assert schema(leaves) == local(1, [2]) and type(schema(leaves)) is local


def test_schemas_survive_json():
    value = [
        {"x": (1, None), "y": instances()},
        Pair(Boxes([]), RotatedBoxes(torch.rand(1, 5))),
        BitMasks(torch.zeros(0, 4, 5)),
    ]
    leaves, schema = flatten_to_tuple(value)
    again = instantiate(json.loads(json.dumps(dump_dataclass(schema))))
    assert again == schema and hash(again) == hash(schema)
    assert type(again(leaves)[1]) is Pair


def test_structures_differ():
    schemas = [
        flatten_to_tuple(x)[1] for x in ([1, 2], (1, 2), [[1], 2], {"a": 1, "b": 2}, {"a": 1, "c": 2}, instances())
    ]
    assert len(set(schemas)) == len(schemas)


class Model(nn.Module):
    """Boxes whose number and scale depend on the input."""

    def forward(self, inputs):
        image = inputs[0]["image"]
        boxes = image.flatten(1).mean(dim=1, keepdim=True).expand(-1, 4) * 2
        return [{"instances": Instances((5, 6), pred_boxes=Boxes(boxes), scores=boxes[:, 0])}]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are checked
def test_traced_model():
    model = Model()
    adapter = TracingAdapter(model, [{"image": torch.rand(3, 4, 5)}])
    assert adapter.outputs_schema is None
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for shape in ((3, 4, 5), (7, 2, 2)):  # another size, and another number of boxes
        image = torch.rand(shape)
        found, expected = adapter.outputs_schema(traced(image)), model([{"image": image}])
        assert same(found, expected)


def test_own_function_and_several_arguments():
    adapter = TracingAdapter(
        nn.Linear(2, 2), (torch.ones(1, 2), {"scale": torch.tensor(3.0)}), lambda m, x, o: m(x) * o["scale"]
    )
    (found,) = adapter(*adapter.flattened_inputs)
    torch.testing.assert_close(found, adapter.model(torch.ones(1, 2)) * 3)
    assert not found.requires_grad


def test_leaves_that_are_no_tensors():
    inputs = [{"image": torch.rand(3, 4, 5), "height": 480}]
    with pytest.raises(ValueError, match=r"inputs .* must only contain tensors; \[0\]\[0\]\['height'\] is a int"):
        TracingAdapter(Model(), inputs)
    adapter = TracingAdapter(Model(), inputs, allow_non_tensor=True)
    assert adapter.inputs_schema is None and len(adapter.flattened_inputs) == 1
    assert len(adapter(*adapter.flattened_inputs)) == 3 and adapter.outputs_schema is None
    with pytest.raises(ValueError, match=r"with adapter\.flattened_inputs"):
        adapter(torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match=r"outputs .*; \['n'\] is a int"):
        TracingAdapter(nn.Identity(), torch.ones(1), lambda m, x: {"x": x, "n": 3})(torch.ones(1))


def test_outputs_of_another_structure():
    adapter = TracingAdapter(nn.Identity(), torch.ones(2), lambda m, x: [x] * len(x))
    adapter(torch.ones(2))
    with pytest.raises(ValueError, match="another structure"):
        adapter(torch.ones(3))


def test_wrapped_model():
    model = Model()
    assert TracingAdapter(nn.DataParallel(model), [{"image": torch.rand(3, 4, 5)}]).model is model


def test_arrays_are_no_tensors():
    with pytest.raises(ValueError, match="is a ndarray"):
        TracingAdapter(Model(), [{"image": np.zeros((3, 4, 5))}])


def test_its_other_place():
    assert AnotherPlace is TracingAdapter
