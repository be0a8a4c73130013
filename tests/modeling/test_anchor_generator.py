"""Anchors computed by hand, and the forms in which sizes and ratios may be given."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    DefaultAnchorGenerator,
    RotatedAnchorGenerator,
    TorchvisionAnchorGenerator,
    _create_grid_offsets,
    build_anchor_generator,
)
from detectron2.structures import RotatedBoxes


def generator(**kwargs) -> DefaultAnchorGenerator:
    arguments = {"sizes": [[8.0]], "aspect_ratios": [[1.0]], "strides": [4], "offset": 0.0}
    return DefaultAnchorGenerator(**{**arguments, **kwargs})


def maps(*sizes_hw):
    return [torch.zeros(2, 3, *size_hw) for size_hw in sizes_hw]


def test_empty_feature_map_has_no_anchors():
    (anchors,) = generator()(maps((0, 5)))
    assert anchors.tensor.shape == (0, 4)


def test_anchors_by_hand():
    (anchors,) = generator(aspect_ratios=[[1.0, 4.0]])(maps((2, 2)))
    # Ratio 4: height twice and width half of the size, the same area.
    expected = []
    for cy in (0, 4):
        for cx in (0, 4):
            expected += [[cx - 4, cy - 4, cx + 4, cy + 4], [cx - 2, cy - 8, cx + 2, cy + 8]]
    assert torch.equal(anchors.tensor, torch.tensor(expected, dtype=torch.float32))


def test_offset_moves_anchors_to_the_centre_of_cells():
    (anchors,) = generator(offset=0.5)(maps((1, 2)))
    assert anchors.tensor.tolist() == [[-2, -2, 6, 6], [2, -2, 10, 6]]


def test_sizes_come_before_ratios_and_keep_their_area():
    sizes, ratios = (32.0, 64.0), (0.5, 1.0, 2.0)
    cell = generator().generate_cell_anchors(sizes, ratios)
    width, height = (cell[:, 2:] - cell[:, :2]).unbind(1)
    assert torch.allclose((width * height).sqrt(), torch.tensor([32.0] * 3 + [64.0] * 3))
    assert torch.allclose(height / width, torch.tensor(ratios * 2))
    assert torch.allclose(cell[:, :2], -cell[:, 2:])


def test_default_cell_anchors():
    assert generator().generate_cell_anchors().shape == (15, 4)


@pytest.mark.parametrize("sizes", [[8, 16], [[8, 16]], [[8, 16], [8, 16]], (8, 16), ((8, 16),)])
def test_sizes_are_given_once_or_for_each_level(sizes):
    g = generator(sizes=sizes, aspect_ratios=[1.0, 2.0], strides=[4, 8])
    assert g.num_anchors == g.num_cell_anchors == [4, 4]
    assert [len(a) for a in g(maps((3, 2), (1, 2)))] == [24, 8]


def test_levels_may_differ():
    g = generator(sizes=[[8], [16, 32]], strides=[4, 8])
    assert g.num_anchors == [1, 2]
    assert g._grid_anchors([(1, 1), (1, 1)])[1].tolist() == [[-8, -8, 8, 8], [-16, -16, 16, 16]]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sizes": []}, ValueError, "sizes is empty"),
        ({"sizes": [[]]}, ValueError, "holds an empty list"),
        ({"sizes": 8}, TypeError, "must be a list"),
        ({"sizes": [[8], [16]], "strides": [4, 8, 16]}, ValueError, "2 entries for 3 feature maps"),
        ({"offset": 1.0}, ValueError, "offset"),
        ({"offset": -0.1}, ValueError, "offset"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        generator(**kwargs)


def test_number_of_feature_maps_is_checked():
    with pytest.raises(ValueError, match="made for 1 feature maps; got 2"):
        generator()(maps((2, 2), (1, 1)))


def test_state_dict_holds_no_anchors_but_they_move():
    g = generator()
    assert not g.state_dict()
    assert g.to("meta").cell_anchors[0].device.type == "meta"
    assert g.strides == [4] and g.offset == 0.0 and g.box_dim == 4


def test_grid_offsets_take_a_device_or_a_tensor():
    for target in (torch.device("cpu"), "cpu", torch.zeros(1)):
        x, y = _create_grid_offsets((2, 3), 8, 0.5, target)
        assert x.tolist() == [4, 12, 20, 4, 12, 20]
        assert y.tolist() == [4, 4, 4, 12, 12, 12]


def test_build_from_config():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    g = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=4), ShapeSpec(channels=1, stride=8)])
    assert isinstance(g, DefaultAnchorGenerator)
    assert "DefaultAnchorGenerator" in ANCHOR_GENERATOR_REGISTRY
    assert g.strides == [4, 8] and g.num_anchors == [3, 3] and g.offset == 0.0


class TestRotated:
    @staticmethod
    def generator(**kwargs) -> RotatedAnchorGenerator:
        arguments = {
            "sizes": [[8.0]], "aspect_ratios": [[1.0]], "strides": [4], "angles": [[-90.0, 0.0]], "offset": 0.0,
        }  # fmt: skip
        return RotatedAnchorGenerator(**{**arguments, **kwargs})

    def test_empty_feature_map_has_no_anchors(self):
        (anchors,) = self.generator()(maps((0, 5)))
        assert isinstance(anchors, RotatedBoxes)
        assert anchors.tensor.shape == (0, 5)

    def test_anchors_by_hand(self):
        (anchors,) = self.generator(offset=0.5)(maps((1, 2)))
        assert anchors.tensor.tolist() == [[2, 2, 8, 8, -90], [2, 2, 8, 8, 0], [6, 2, 8, 8, -90], [6, 2, 8, 8, 0]]

    def test_order_within_a_cell(self):
        cell = self.generator().generate_cell_anchors((8, 16), (0.25, 4), (0, 30, 60))
        expected = [
            (0, 0, w, h, a) for w, h in ((16, 4), (4, 16), (32, 8), (8, 32)) for a in (0, 30, 60)
        ]  # height over width
        assert cell.tolist() == [list(row) for row in expected]

    def test_levels(self):
        g = self.generator(sizes=[[8], [16, 32]], strides=[4, 8], angles=[0, 45, 90])
        assert g.num_anchors == g.num_cell_anchors == [3, 6]
        first, second = g(maps((2, 3), (1, 1)))
        assert len(first) == 18 and len(second) == 6
        assert g.box_dim == 5 and not g.state_dict()

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"angles": []}, ValueError, "angles is empty"),
            ({"angles": 30}, TypeError, "angles must be a list"),
            ({"angles": [[0], [30]]}, ValueError, "2 entries for 1 feature maps"),
            ({"offset": 1.0}, ValueError, "offset"),
        ],
    )
    def test_bad_arguments(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            self.generator(**kwargs)

    def test_number_of_feature_maps_is_checked(self):
        with pytest.raises(ValueError, match="made for 1 feature maps; got 2"):
            self.generator()(maps((2, 2), (1, 1)))

    def test_build_from_config(self):
        cfg = get_cfg()
        cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
        cfg.MODEL.ANCHOR_GENERATOR.ANGLES = [[-60, 0, 60, 90]]
        g = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=16)])
        assert isinstance(g, RotatedAnchorGenerator)
        assert g.num_anchors == [5 * 3 * 4] and g.strides == [16]


def test_anchors_of_torchvision():
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sizes, ratios = [[32, 40, 50], [64, 80, 101], [100, 200, 300]], [0.5, 1.0, 2.0]
    own = TorchvisionAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=[8, 16, 64])
    # 96 pixels are twelve cells of 8, six of 16, and two of 48 for the stride of 64
    features = maps((12, 20), (6, 10), (2, 3))
    reference = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * 3)
    (expected,) = reference(ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)]), [x[:1] for x in features])
    assert torch.equal(torch.cat([x.tensor for x in own(features)]), expected)


def test_anchors_of_torchvision_of_an_empty_map_and_with_an_offset():
    own = TorchvisionAnchorGenerator(sizes=[8.0], aspect_ratios=[1.0], strides=[4])
    assert own(maps((0, 5)))[0].tensor.shape == (0, 4)
    with pytest.raises(ValueError, match=r"OFFSET.* must be 0; got 0\.5"):
        TorchvisionAnchorGenerator(sizes=[8.0], aspect_ratios=[1.0], strides=[4], offset=0.5)
