"""What one-stage detectors share, on a toy that predicts what it is told to."""

import pytest
import torch
from torch import nn

from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch._training_pictures import image_to_rgb
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, _top_k, permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


class Identity(Backbone):
    def __init__(self):
        super().__init__()
        self._out_features = ["coarse", "fine"]
        self._out_feature_channels = {"coarse": 3, "fine": 3}
        self._out_feature_strides = {"coarse": 2, "fine": 1}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        return {"fine": x, "coarse": x[:, :, ::2, ::2]}


class Toy(DenseDetector):
    """Finds one box in the upper left quarter of every image; the loss is the mean of the input."""

    def __init__(self, **kwargs):
        super().__init__(Identity(), nn.Identity(), pixel_mean=[1.0, 2.0, 3.0], pixel_std=[1.0, 2.0, 4.0], **kwargs)
        self.box2box_transform = Box2BoxTransform((1, 1, 1, 1))

    def forward_training(self, images, features, predictions, gt_instances):
        return {"loss": features[0].mean() * len(gt_instances)}

    def forward_inference(self, images, features, predictions):
        return [
            Instances(
                (h, w),
                pred_boxes=Boxes(torch.tensor([[0.0, 0.0, w / 2, h / 2]])),
                scores=torch.ones(1),
                pred_classes=torch.zeros(1, dtype=torch.int64),
            )
            for h, w in images.image_sizes
        ]


def inputs(**extra):
    return [{"image": torch.full((3, 10, 14), 5.0), **extra}, {"image": torch.zeros(3, 6, 20), **extra}]


def test_permutation():
    n, a, k, h, w = 2, 3, 5, 4, 6
    x = torch.randn(n, a * k, h, w)
    y = permute_to_N_HWA_K(x, k)
    assert y.shape == (n, h * w * a, k)
    assert y[1, (2 * w + 4) * a + 1, 3] == x[1, 1 * k + 3, 2, 4]
    assert permute_to_N_HWA_K(x[:0], k).shape == (0, h * w * a, k)
    with pytest.raises(ValueError, match=r"\(2, 15, 4\)"):
        permute_to_N_HWA_K(x[..., 0], k)


def test_features_are_ordered_by_stride_unless_named():
    assert Toy().head_in_features == ["fine", "coarse"]
    assert Toy(head_in_features=["coarse"]).head_in_features == ["coarse"]


def test_preprocessing():
    images = Toy().preprocess_image(inputs())
    assert images.image_sizes == [(10, 14), (6, 20)] and images.tensor.shape == (2, 3, 16, 24)
    assert images.tensor[0, :, 9, 13].tolist() == [4, 1.5, 0.5]
    assert not images.tensor[0, :, 10:].any() and not images.tensor[1, :, 6:].any()


def test_output_has_the_wanted_size():
    first, second = Toy().eval()(inputs(height=20, width=7))
    assert first["instances"].image_size == second["instances"].image_size == (20, 7)
    assert first["instances"].pred_boxes.tensor.tolist() == [[0, 0, 3.5, 10]]
    first, second = Toy().eval()(inputs())
    assert first["instances"].image_size == (10, 14) and second["instances"].image_size == (6, 20)


def test_training_needs_ground_truth():
    with pytest.raises(ValueError, match="instances"):
        Toy()(inputs())
    assert Toy()(inputs(instances=Instances((10, 14))))["loss"].shape == ()


def test_statistics_are_not_part_of_the_state_dict():
    model = Toy()
    assert not model.state_dict() and model.device == torch.device("cpu")
    assert model._ema_update("average", 10.0, 100.0) == pytest.approx(91.0)
    assert model._ema_update("average", torch.tensor(1.0), 100.0, momentum=0.5) == pytest.approx(46.0)
    assert not model.state_dict() and not model.average.requires_grad


def test_top_k_prefers_the_first_of_equals():
    assert _top_k(torch.zeros(0), 3).tolist() == []
    assert _top_k(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]
    scores = torch.cat((torch.rand(500), torch.ones(5) * 2, torch.rand(500)))
    assert _top_k(scores, 3).tolist() == [500, 501, 502]
    assert _top_k(scores, 0).tolist() == []


@pytest.mark.parametrize("activation", [None, torch.sigmoid])
def test_decoding_of_a_level(activation):
    model = Toy()
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20]]))
    scores = torch.tensor([[0.1, 0.9], [0.6, 0.7], [0.2, 0.3]])
    deltas = torch.zeros(3, 4)
    deltas[1, 0] = 0.5
    arguments = (0.25, 3, (30, 30), activation)
    result = model._decode_per_level_predictions(anchors, scores, deltas, *arguments)
    expected = torch.tensor([0.9, 0.7, 0.6])
    assert torch.allclose(result.scores, expected if activation is None else expected.sigmoid())
    assert result.pred_classes.tolist() == [1, 1, 0] and result.image_size == (30, 30)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [15, 0, 25, 10], [15, 0, 25, 10]]
    none = model._decode_per_level_predictions(anchors, scores, deltas, 1.0, 3, (30, 30))
    assert len(none) == 0 and none.pred_boxes.tensor.shape == (0, 4)
    both = model._decode_multi_level_predictions([anchors] * 2, [scores] * 2, [deltas] * 2, *arguments)
    assert len(both) == 6


def test_subclasses_must_implement_both_ways():
    model = DenseDetector(Identity(), nn.Identity(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    with pytest.raises(NotImplementedError, match="forward_training"):
        model(inputs(instances=Instances((10, 14))))
    with pytest.raises(NotImplementedError, match="forward_inference"):
        model.eval()(inputs())


def test_pictures_of_training():
    model = Toy()
    model.vis_period = 2
    gt = Instances((10, 14), gt_boxes=Boxes(torch.tensor([[2.0, 2.0, 9.0, 8.0]])))
    batch = inputs(instances=gt)
    model(batch)  # nobody records: nothing is drawn
    with EventStorage(start_iter=1) as storage:
        model(batch)
        assert not storage.vis_data
        storage.iter = 2
        model(batch)
        ((name, picture, iteration),) = storage.vis_data
    assert "GT" in name and iteration == 2 and picture.shape == (3, 10, 28)
    with pytest.raises(ValueError, match="2 inputs but results of 0"):
        model.visualize_training(batch, [])


@pytest.mark.parametrize(
    ("values", "input_format", "rgb"),
    [
        ([10.0, 20.0, 30.0], "RGB", [10, 20, 30]),
        ([10.0, 20.0, 30.0], "BGR", [30, 20, 10]),
        ([10.0, 20.0, 300.0], None, [10, 20, 255]),
        ([0.5, 0.0, 0.0], "YUV-BT.601", [128, 128, 128]),
        ([40.0], "L", [40, 40, 40]),
        ([40.0, 1.0, 2.0, 3.0], "RGBT", [40, 40, 40]),
    ],
)
def test_pictures_are_rgb(values, input_format, rgb):
    image = torch.tensor(values)[:, None, None].expand(-1, 2, 3)
    pixels = image_to_rgb(image, input_format)
    assert pixels.shape == (2, 3, 3) and pixels.dtype == "uint8"
    assert pixels[1, 2].tolist() == pytest.approx(rgb, abs=1)
