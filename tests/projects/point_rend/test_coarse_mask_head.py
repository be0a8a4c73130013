import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import ShapeSpec
from detectron2.projects.point_rend import CoarseMaskHead
from detectron2.projects.point_rend.mask_head import CoarseMaskHead as from_mask_head


def make(channels=8, conv_dim=8, output_shape=(3, 4, 4)):
    return CoarseMaskHead(
        ShapeSpec(channels=channels, height=6, width=6), conv_dim=conv_dim, fc_dims=[16, 16], output_shape=output_shape
    )


@pytest.mark.parametrize("regions", [0, 2])
@pytest.mark.parametrize("output_shape", [(3, 4, 4), (50,)])
def test_shapes(regions, output_shape):
    assert make(output_shape=output_shape)(torch.randn(regions, 8, 6, 6)).shape == (regions, *output_shape)


def test_names_and_values():
    assert from_mask_head is CoarseMaskHead
    head = make(channels=12)
    state = head.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == {
        "reduce_channel_dim_conv.weight": (8, 12, 1, 1),
        "reduce_spatial_dim_conv.weight": (8, 8, 2, 2),
        "fc1.weight": (16, 72),
        "fc2.weight": (16, 16),
        "prediction.weight": (48, 16),
    }
    assert head.prediction.weight.abs().max() < 0.01 and not head.prediction.bias.any()
    x = torch.randn(2, 12, 6, 6)
    y = F.conv2d(x, state["reduce_channel_dim_conv.weight"], state["reduce_channel_dim_conv.bias"]).relu()
    y = F.conv2d(y, state["reduce_spatial_dim_conv.weight"], state["reduce_spatial_dim_conv.bias"], stride=2).relu()
    y = y.flatten(1)
    for name in ("fc1", "fc2"):
        y = (y @ state[f"{name}.weight"].T + state[f"{name}.bias"]).relu()
    y = y @ state["prediction.weight"].T + state["prediction.bias"]
    torch.testing.assert_close(head(x), y.reshape(2, 3, 4, 4))


def test_narrow_features_are_not_reduced():
    assert "reduce_channel_dim_conv.weight" not in make(channels=4).state_dict()


def test_names_of_the_first_release_load():
    head, other = make(), make()
    old = {k.replace("fc", "coarse_mask_fc"): v for k, v in other.state_dict().items()}
    result = head.load_state_dict(old)
    assert not result.missing_keys and not result.unexpected_keys
    torch.testing.assert_close(head.fc2.weight, other.fc2.weight)


def test_input_shape_must_be_complete():
    with pytest.raises(ValueError, match="height"):
        CoarseMaskHead(ShapeSpec(channels=3), conv_dim=4, fc_dims=[4], output_shape=(1,))


def test_compiles_whole():
    head = make()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(compiled(x), head(x))
