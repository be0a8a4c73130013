"""Pooling without sorting by level, and pasting without loops, against the functions of the models."""

import pytest
import torch

from detectron2.export.graphs import GraphOptions, NotExportableError
from detectron2.export.graphs.regions import PoolerGraph, paste_masks
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes


def boxes(count, seed=0, side=120):
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(count, 2, generator=generator)
    return torch.cat((corners, corners + 1 + side * torch.rand(count, 2, generator=generator) ** 3), dim=1)


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_pools_as_the_model_does(kind, samples, levels):
    scales = [1 / 4, 1 / 8, 1 / 16][:levels]
    pooler = ROIPooler((3, 2), scales, samples, kind, canonical_box_size=32, canonical_level=3)
    maps = [1 + torch.rand(2, 3, int(128 * s), int(128 * s)) for s in scales]
    lists = [boxes(7), boxes(4, seed=1)]
    want = pooler(maps, [Boxes(x) for x in lists])
    index = torch.tensor([0] * 7 + [1] * 4)
    assert torch.equal(PoolerGraph(pooler, GraphOptions())(maps, torch.cat(lists), index), want)


@pytest.mark.parametrize("levels", [1, 2])
def test_no_regions(levels):
    pooler = ROIPooler(2, [1 / 4, 1 / 8][:levels], 0, "ROIAlignV2")
    maps = [torch.rand(1, 3, 32, 32), torch.rand(1, 3, 16, 16)][:levels]
    pooled = PoolerGraph(pooler, GraphOptions())(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 3, 2, 2)


def test_rotated_pooling_is_refused():
    with pytest.raises(NotExportableError, match="ROIAlignRotated"):
        PoolerGraph(ROIPooler(2, [1 / 4], 0, "ROIAlignRotated"), GraphOptions())


@pytest.mark.parametrize("count", [0, 12])
def test_pastes_as_the_library_does(count):
    masks = torch.rand(count, 14, 14, generator=torch.Generator().manual_seed(2))
    where = boxes(count, side=90)
    if count:
        where[0] = torch.tensor([-5.0, 20, 140, 44.5])  # reaches out of the image
        where[1] = 0.0  # a row without detection
    want = paste_masks_in_image(masks, where, (70, 110))
    got = paste_masks(masks, where, (70, 110))
    assert got.dtype == torch.uint8 and got.shape == (count, 70, 110)
    assert (got.bool() != want).sum() <= 1e-4 * want.numel()
    assert not got[1:2].any()
