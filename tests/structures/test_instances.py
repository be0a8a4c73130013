import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes


def make(n=3):
    return Instances(
        (10, 20),
        boxes=Boxes(torch.arange(4.0 * n).reshape(n, 4)),
        scores=torch.arange(n) / 10,
        names=[f"n{i}" for i in range(n)],
        masks=PolygonMasks([[torch.tensor([0.0, 0, i, 1, 1, i])] for i in range(n)]),
    )


class TestFields:
    def test_no_instances(self):
        empty = make(0)
        assert len(empty) == 0 and len(empty[torch.zeros(0, dtype=torch.bool)]) == 0
        assert len(Instances.cat([empty, make(2)])) == 2

    def test_no_fields(self):
        instances = Instances((10, 20))
        assert instances.get_fields() == {}
        with pytest.raises(NotImplementedError, match="no length"):
            len(instances)
        assert "num_instances=0" in str(instances)

    def test_set_get_has_remove(self):
        instances = make()
        assert instances.image_size == (10, 20) and instances._image_size == (10, 20)
        assert instances.scores is instances.get("scores") is instances["scores"] is instances._fields["scores"]
        assert instances.has("scores") and "scores" in instances and "labels" not in instances
        instances.set("labels", [1, 2, 3])
        instances.remove("labels")
        assert not instances.has("labels")
        instances.get_fields()["labels"] = [3, 2, 1]
        assert instances.labels == [3, 2, 1]

    def test_replacing_a_field(self):
        instances = make()
        instances.scores = torch.ones(3)
        assert instances.scores.tolist() == [1, 1, 1]

    @pytest.mark.parametrize("fields", [{"scores": torch.zeros(3)}, {"scores": torch.zeros(3), "names": list("abc")}])
    def test_lengths_must_agree(self, fields):
        instances = Instances((10, 20), **fields)
        with pytest.raises(ValueError, match=r"'scores' has 2 entries.*has 3"):
            instances.scores = torch.zeros(2)
        with pytest.raises(ValueError, match=r"'extra' has 4 entries, but field 'scores'"):
            instances.extra = [1, 2, 3, 4]
        assert "extra" not in instances

    @pytest.mark.parametrize("value", [3, torch.tensor(3.0)])
    def test_a_field_needs_a_length(self, value):
        with pytest.raises(TypeError, match="'x'"):
            Instances((10, 20), x=value)

    def test_missing_fields(self):
        with pytest.raises(AttributeError, match=r"'score'; they have boxes, scores, names, masks"):
            _ = make().score
        with pytest.raises(KeyError, match="no field 'score'"):
            make().get("score")
        with pytest.raises(KeyError, match="no field 'score'; they have none"):
            Instances((1, 1)).remove("score")
        assert not hasattr(make(), "_private")

    def test_image_size_is_fixed(self):
        with pytest.raises(AttributeError, match="image_size"):
            make().image_size = (1, 2)

    def test_underscore_names_are_no_fields(self):
        instances = make()
        instances._note = 5
        assert instances._note == 5 and "_note" not in instances


class TestIndexing:
    @pytest.mark.parametrize("item", [1, np.int64(1), -1, np.int32(-1)])
    def test_one(self, item):
        tensor = torch.arange(10.0).view(2, 5)
        fields = {
            "boxes": Boxes(tensor[:, :4]),
            "rotated": RotatedBoxes(tensor),
            "keypoints": Keypoints(torch.arange(12.0).view(2, 2, 3)),
            "masks": BitMasks(torch.eye(2, dtype=torch.bool)[:, None]),
            "polygons": PolygonMasks([[np.arange(6.0)], [np.arange(6.0, 12)]]),
            "names": ["a", "b"],
        }
        one = Instances((5, 5), **fields)[item]
        assert len(one) == 1 and one.names == ["b"]
        assert one.rotated.tensor.tolist() == [[5, 6, 7, 8, 9]]
        assert fields["boxes"][item].tensor.tolist() == [[5, 6, 7, 8]]

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            (slice(0, 0), []),
            (1, [1]),
            (-1, [2]),
            (slice(1, None), [1, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.tensor([2, 0, 0]), [2, 0, 0]),
            (torch.zeros(3, dtype=torch.bool), []),
            (torch.zeros(0, dtype=torch.int64), []),
            ([2, 1], [2, 1]),
        ],
    )
    def test_all_fields_at_once(self, item, expected):
        whole, part = make(), make()[item]
        assert part.image_size == (10, 20) and len(part) == len(expected)
        assert part.boxes.tensor.tolist() == [whole.boxes.tensor[i].tolist() for i in expected]
        assert part.scores.tolist() == [whole.scores[i].item() for i in expected]
        assert part.names == [whole.names[i] for i in expected]
        assert [p[0].tolist() for p in part.masks] == [whole.masks.polygons[i][0].tolist() for i in expected]

    def test_tuples_stay_tuples(self):
        assert Instances((1, 1), t=(1, 2, 3))[torch.tensor([2, 0])].t == (3, 1)

    @pytest.mark.parametrize("item", [3, -4])
    def test_out_of_range(self, item):
        with pytest.raises(IndexError, match="there are 3"):
            make()[item]

    @pytest.mark.parametrize("item", [torch.ones(2, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)])
    def test_wrong_shape_of_a_bool_index(self, item):
        with pytest.raises(IndexError, match="3 instances"):
            make()[item]
        with pytest.raises(IndexError, match="3 instances"):
            Instances((1, 1), names=list("abc"))[item.numpy()]

    def test_not_iterable(self):
        with pytest.raises(NotImplementedError, match="iterate over a field"):
            iter(make())


class TestCat:
    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one"):
            Instances.cat([])

    def test_one_is_returned(self):
        one = make()
        assert Instances.cat([one]) is one

    def test_several(self):
        both = Instances.cat([make(2), make(0), make(3)])
        assert len(both) == 5 and both.names == ["n0", "n1", "n0", "n1", "n2"]
        assert torch.equal(both.scores, torch.tensor([0, 0.1, 0, 0.1, 0.2]))
        assert type(both.boxes) is Boxes and type(both.masks) is PolygonMasks

    @pytest.mark.parametrize(
        ("second", "error", "words"),
        [
            (Instances((20, 10), x=[1]), ValueError, r"\(10, 20\) and \(20, 10\)"),
            (Instances((10, 20), y=[1]), ValueError, "'x'"),
            ("x", TypeError, "str"),
        ],
    )
    def test_errors(self, second, error, words):
        with pytest.raises(error, match=words):
            Instances.cat([Instances((10, 20), x=[1]), second])

    def test_a_type_without_cat(self):
        with pytest.raises(ValueError, match="'x' holds str"):
            Instances.cat([Instances((1, 1), x="a"), Instances((1, 1), x="b")])


def test_to():
    moved = make().to("meta")
    assert moved.scores.device.type == moved.boxes.device.type == "meta"
    assert moved.names == ["n0", "n1", "n2"] and moved.image_size == (10, 20)


def test_repr():
    text = repr(Instances((10, 20), x=[1, 2]))
    assert text == "Instances(num_instances=2, image_height=10, image_width=20, fields=[x: [1, 2]])"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate):
    other = duplicate(make())
    assert other.image_size == (10, 20) and other.names == ["n0", "n1", "n2"]
    assert torch.equal(other.boxes.tensor, make().boxes.tensor)


def test_a_tensor_that_is_gathered_on_demand_is_not_asked_for():
    class Costly:
        def __init__(self, n):
            self.n = n

        @property
        def tensor(self):
            raise AssertionError("gathered")

        def __len__(self):
            return self.n

        def __getitem__(self, item):
            return Costly(len(range(self.n)[item]))

    instances = Instances((10, 20), masks=Costly(3), scores=torch.arange(3))
    assert len(instances) == 3 and len(instances[:2].masks) == 2
    with pytest.raises(ValueError, match="'masks' of the same Instances has 3"):
        instances.more = torch.zeros(2)


def test_symbolic_lengths_become_assertions():
    class Model(torch.nn.Module):
        def forward(self, x):
            keep = x[x > 0]
            instances = Instances((1, 1), scores=keep)
            instances.boxes = Boxes(keep[:, None].expand(-1, 4))
            instances = instances[instances.scores > 1]
            return instances.scores, instances.boxes.tensor

    exported = torch.export.export(Model(), (torch.tensor([1.0, -1, 2]),), strict=False).module()
    scores, boxes = exported(torch.tensor([3.0, 4, -5]))
    assert scores.tolist() == [3, 4] and boxes.tolist() == [[3] * 4, [4] * 4]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 5), r"field 'x' .* got \(1, 4\), \(1, 5\)"),
        (torch.zeros(1, 4), [5], r"field 'x' .* got \(1, 4\), list"),
        ([5], torch.zeros(1), "field 'x' of instances: it is a list in some of them, a tensor in others"),
    ],
    ids=["shapes", "tensor and list", "list and tensor"],
)
def test_cat_of_fields_that_do_not_fit(first, second, message):
    with pytest.raises(ValueError, match=message):
        Instances.cat([Instances((1, 1), x=first), Instances((1, 1), x=second)])
