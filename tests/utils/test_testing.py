import types

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.utils.testing import (
    assert_instances_allclose,
    convert_scripted_instances,
    get_model_no_weights,
    get_sample_coco_image,
    has_dynamic_axes,
    min_torch_version,
    random_boxes,
    reload_lazy_config,
    reload_script_model,
)


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


@pytest.mark.parametrize(
    "name", ["COCO-Detection/rpn_R_50_C4_1x.yaml", "common/models/retinanet.py", "COCO-Detection/fcos_R_50_FPN_1x.py"]
)
def test_a_model_of_the_zoo_without_weights(name):
    model = get_model_no_weights(name)
    assert any(key.startswith("backbone.") for key in model.state_dict())


def test_the_sample_image_is_always_the_same():
    image, pixels = get_sample_coco_image(), get_sample_coco_image(tensor=False)
    assert (image.dtype, tuple(image.shape), pixels.dtype) == (torch.float32, (3, 480, 640), "uint8")
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float())


def test_fields_of_scripted_instances():
    scripted = types.SimpleNamespace(image_size=(4, 5), _field_names=["scores", "masks"], _scores=torch.ones(2))
    found = convert_scripted_instances(scripted)
    assert found.image_size == (4, 5) and list(found.get_fields()) == ["scores"] and len(found) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reloading():
    linear = torch.nn.Linear(2, 3)
    again = reload_script_model(torch.jit.trace(linear, torch.ones(1, 2)))
    assert torch.equal(again(torch.ones(1, 2)), linear(torch.ones(1, 2)))
    cfg = OmegaConf.create({"a": {"_target_": "torch.nn.ReLU"}})
    assert reload_lazy_config(cfg) == cfg


def test_versions_of_torch():
    assert min_torch_version("1.8") and min_torch_version(torch.__version__.split("+")[0])
    assert not min_torch_version("99.0")


def test_dynamic_axes():
    def model(*sides):
        dims = [types.SimpleNamespace(dim_value=v, dim_param=p) for v, p in sides]
        shape = types.SimpleNamespace(tensor_type=types.SimpleNamespace(shape=types.SimpleNamespace(dim=dims)))
        return types.SimpleNamespace(graph=types.SimpleNamespace(input=[types.SimpleNamespace(type=shape)]))

    assert has_dynamic_axes(model((0, "height"), (0, "width")))
    assert not has_dynamic_axes(model((0, "height"), (640, "")))
