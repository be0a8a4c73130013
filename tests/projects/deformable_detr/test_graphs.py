"""Deformable DETR and DINO as graphs."""

import pytest
import torch

from detectron2.export import export_model
from detectron2.export.graphs import GraphOptions, NotExportableError, build_graph

from .conftest import tiny_model

KINDS = ["plain", "two_stage", "DINO"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_does_what_the_model_does(kind):
    """Also with what is around smaller images being anything."""
    model = tiny_model(kind, "TEST.DETECTIONS_PER_IMAGE", 6).eval()
    sizes = [(60, 90), (40, 64)]
    images = 255 * torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes, strict=True)]
    graph = build_graph(model)
    with torch.no_grad():
        middle = float(model.inference(inputs, do_postprocess=False)[0].scores[3])
    for threshold in (0.0, middle, 1.0):
        outputs = dict(
            zip(graph.output_names, graph(images, torch.tensor(sizes), torch.tensor(threshold)), strict=True)
        )
        model.test_score_thresh = threshold
        with torch.no_grad():
            wanted = model.inference(inputs, do_postprocess=False)
        for found, want in zip(graph.to_results(outputs, torch.tensor(sizes)), wanted, strict=True):
            found = found["instances"]
            assert len(found) == len(want) <= 6
            assert torch.allclose(found.scores, want.scores, atol=1e-5)
            assert torch.allclose(found.pred_boxes.tensor, want.pred_boxes.tensor, atol=1e-3)
            assert torch.equal(found.pred_classes, want.pred_classes)


def test_fewer_detections():
    graph = build_graph(tiny_model().eval(), GraphOptions(outputs="flat", max_detections=2))
    outputs = dict(zip(graph.output_names, graph(*graph.example_inputs(2, 64, 96)), strict=True))
    assert outputs["boxes"].shape == (4, 4) and outputs["image_index"].tolist() == [0, 0, 1, 1]


def test_a_model_with_its_own_inference_is_refused():
    model = tiny_model().eval()
    model.__class__ = type("Mine", (type(model),), {"inference": lambda self, *args: None})
    with pytest.raises(NotExportableError, match=r"Mine, has its own inference\(\)"):
        build_graph(model)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "format"), [("two_stage", "onnx"), ("DINO", "onnx"), ("DINO", "pt2")])
def test_files(kind, format, tmp_path):
    """The exporter compares the file with the model, for other numbers and sizes of images, too."""
    report = export_model(tiny_model(kind).eval(), tmp_path / kind, format=format)
    assert {"sample", "another size", "three images", "mixed sizes"} <= {c.case for c in report.comparisons}
