"""What all models that classify masks have in common; their own tests are in `test_hf_models.py` and the projects."""

import pytest
import torch

from detectron2.export.graphs import GraphOptions, NotExportableError, build_graph
from tests.export.graphs.models import hf_segmenter


def test_padded_sizes_and_results_of_each_image():
    graph = build_graph(hf_segmenter("mask2former"))
    images, sizes = torch.rand(2, 3, 40, 70) * 255, torch.tensor([[40, 70], [17, 33]])
    outputs = dict(zip(graph.output_names, graph(images, sizes), strict=True))
    assert outputs["padded_sizes"].tolist() == [[64, 96]] * 2  # multiples of 32
    results = graph.to_results(outputs, sizes)
    assert len(results) == 2 and all(torch.equal(results[1][name], outputs[name][1]) for name in graph.output_names)
    assert not torch.equal(results[0]["mask_logits"], results[1]["mask_logits"])


def test_what_is_around_an_image_does_not_count():
    graph = build_graph(hf_segmenter("mask2former"))
    sizes = torch.tensor([[17, 33]])
    first = torch.rand(1, 3, 40, 70) * 255
    second = first.clone()
    second[..., 17:, :] = second[..., 33:] = 9
    for a, b in zip(graph(first, sizes), graph(second, sizes), strict=True):
        torch.testing.assert_close(a, b)


def test_masks_are_not_pasted():
    with pytest.raises(NotExportableError, match=r"belong to queries and cover the whole image.* Leave out --masks"):
        build_graph(hf_segmenter("mask2former"), GraphOptions(masks="pasted"))
