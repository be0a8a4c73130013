"""Results made of the outputs of a detector, padded or flat."""

import torch

from detectron2.export.graphs import GraphOptions
from detectron2.export.graphs.rcnn import instances_of_outputs
from detectron2.layers import paste_masks_in_image
from tests.export.graphs.models import batch, by_graph, difference, graph_of

TWO = [(160, 224), (96, 128)]


def test_rows_become_instances():
    outputs = {
        "boxes": torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        "scores": torch.tensor([[0.5, 0], [0, 0]]),
        "classes": torch.tensor([[3, -1], [-1, -1]]),
        "count": torch.tensor([1, 0]),
    }
    first, second = instances_of_outputs(outputs, torch.tensor([[10, 20], [30, 40]]))
    assert first.image_size == (10, 20) and first.pred_boxes.tensor.tolist() == [[1, 2, 3, 4]]
    assert first.pred_classes.tolist() == [3] and not first.has("pred_masks")
    assert second.image_size == (30, 40) and len(second) == 0
    flat = {name: outputs[name][0, :1] for name in ("boxes", "scores", "classes")}
    flat["image_index"] = torch.tensor([1])
    first, second = instances_of_outputs(flat, torch.tensor([[10, 20], [30, 40]]))
    assert len(first) == 0 and second.scores.tolist() == [0.5]


def test_pasted_masks_of_both_layouts():
    images, sizes = batch(TWO)
    raw = by_graph(graph_of("Mask R-CNN, FPN"), images, sizes)
    padded, flat = (
        by_graph(graph_of("Mask R-CNN, FPN", GraphOptions(masks="pasted", outputs=outputs)), images, sizes)
        for outputs in ("padded", "flat")
    )
    for i, (x, size) in enumerate(zip(raw, TWO, strict=True)):
        found = x["instances"]
        want = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, size)
        got = padded[i]["instances"].pred_masks
        assert got.shape == want.shape == (len(found), *size) and len(found) > 3
        assert (got != want).sum() <= 1e-4 * want.numel()
        assert (flat[i]["instances"].pred_masks != got).sum() <= 1e-4 * want.numel()


def test_flat_proposals():
    images, sizes = batch(TWO)
    padded, flat = (
        by_graph(graph_of("proposals", GraphOptions(outputs=outputs)), images, sizes) for outputs in ("padded", "flat")
    )
    assert set(difference(flat, padded).values()) == {0.0}
