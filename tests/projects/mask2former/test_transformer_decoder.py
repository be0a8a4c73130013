"""The transformer decoder: what queries look at, and what it refuses. Its numbers are compared with the whole model."""

import pytest
import torch

from detectron2.projects.mask2former import MultiScaleMaskedTransformerDecoder
from detectron2.projects.mask2former.transformer_decoder import build_transformer_decoder
from tests.projects.mask2former.models import tiny_config


def decoder(**changes):
    torch.manual_seed(0)
    arguments = {
        "num_classes": 3,
        "hidden_dim": 16,
        "num_queries": 5,
        "nheads": 2,
        "dim_feedforward": 8,
        "dec_layers": 2,
        "pre_norm": False,
        "mask_dim": 4,
        "enforce_input_project": False,
    }
    return MultiScaleMaskedTransformerDecoder(16, **{**arguments, **changes})


def maps(images=1):
    return [torch.randn(images, 16, side, side + 1) for side in (2, 4, 8)], torch.randn(images, 4, 16, 18)


@pytest.mark.parametrize("images", [1, 2])
def test_shapes(images):
    found = decoder()(*maps(images))
    assert found["pred_logits"].shape == (images, 5, 4) and found["pred_masks"].shape == (images, 5, 16, 18)
    assert [x["pred_masks"].shape for x in found["aux_outputs"]] == [(images, 5, 16, 18)] * 2


def test_without_layers_queries_do_not_see_the_levels():
    module, (levels, masks) = decoder(dec_layers=0), maps()
    found = module(levels, masks)
    assert found["aux_outputs"] == []
    assert torch.equal(found["pred_masks"], module([x + 1 for x in levels], masks)["pred_masks"])


def test_what_queries_look_at():
    masks = torch.full((1, 2, 2, 2), -1.0)
    masks[0, 0, 0, 1] = 1.0  # the second has an empty mask, and looks everywhere
    assert decoder()._visible_cells(masks, (2, 2)).tolist() == [[[[False, True, False, False], [True] * 4]]]


def test_cells_outside_the_mask_do_not_matter():
    module, (levels, masks) = decoder(dec_layers=1), maps()
    first = module(levels, masks)["aux_outputs"][0]["pred_masks"]
    visible = module._visible_cells(first, (2, 3))[0, 0].any(0)  # to any query
    assert not visible.all()
    changed = [levels[0] + ~visible.view(2, 3) * 100.0, *levels[1:]]
    assert torch.equal(module(changed, masks)["pred_logits"], module(levels, masks)["pred_logits"])


def test_a_convolution_where_channels_differ():
    assert len(list(decoder().input_proj.parameters())) == 0
    assert len(list(decoder(enforce_input_project=True).input_proj.parameters())) == 6
    assert decoder(hidden_dim=32).input_proj[0].out_channels == 32


def test_refused():
    with pytest.raises(ValueError, match="predicts a class for each query"):
        MultiScaleMaskedTransformerDecoder(tiny_config(), 32, mask_classification=False)
    with pytest.raises(ValueError, match="DEC_LAYERS must be at least 1"):
        build_transformer_decoder(tiny_config({"MODEL.MASK_FORMER.DEC_LAYERS": 0}), 32)
    with pytest.raises(KeyError, match="TRANSFORMER_DECODER_NAME is 'StandardTransformerDecoder', which is not"):
        name = {"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder"}
        build_transformer_decoder(tiny_config(name), 32)
