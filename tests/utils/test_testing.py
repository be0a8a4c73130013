import pytest
import torch

from detectron2.utils.testing import assert_instances_allclose, random_boxes


class Wrapped:
    def __init__(self, tensor):
        self.tensor = tensor


class Result:
    """Has the interface of Instances."""

    def __init__(self, image_size, **fields):
        self.image_size, self._fields = image_size, fields

    def get_fields(self):
        return self._fields


def result(**changes):
    fields = {
        "pred_boxes": Wrapped(torch.tensor([[0.0, 1.0, 100.0, 50.0]])),
        "pred_classes": torch.tensor([3]),
        "names": ["a"],
    }
    return Result((4, 5), **{**fields, **changes})


def test_equal_results():
    assert_instances_allclose(Result((4, 5)), Result((4, 5)))
    assert_instances_allclose(result(), result())
    empty = Result((1, 1), boxes=torch.zeros(0, 4))
    assert_instances_allclose(empty, empty)
    assert_instances_allclose(Result(torch.tensor([4, 5])), Result((4, 5)), size_as_tensor=True)


def test_tolerance_is_relative_to_the_field():
    near = Wrapped(torch.tensor([[0.0005, 1.0, 100.0, 50.0]]))
    assert_instances_allclose(result(pred_boxes=near), result(), rtol=1e-4)
    with pytest.raises(AssertionError, match=r"case 3: field 'pred_boxes' is off by 0\.0005"):
        assert_instances_allclose(result(pred_boxes=near), result(), rtol=1e-6, msg="case 3")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Result((5, 4)), "image size"),
        (Result((4, 5), extra=1), "fields are"),
        (result(names=["b"]), "names"),
        (result(pred_classes=torch.tensor([2])), "1 of 1"),
        (result(pred_classes=torch.tensor([3, 3])), "shape"),
        (result(pred_boxes=Wrapped(torch.full((1, 4), torch.nan))), "off by nan"),
    ],
)
def test_differences_are_named(other, message):
    with pytest.raises(AssertionError, match=message):
        assert_instances_allclose(other, result())


@pytest.mark.parametrize("count", [0, 1, 50])
def test_random_boxes(count):
    boxes = random_boxes(count, max_coord=40)
    assert boxes.shape == (count, 4)
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 0.39).all()
    assert ((boxes >= 0) & (boxes <= 40)).all()
