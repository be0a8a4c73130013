"""What is exported of Mask2Former gives what the model gives."""

import numpy as np
import pytest
import torch

from detectron2.export import export_model
from detectron2.export.graphs import GraphOptions, NotExportableError, build_graph
from detectron2.export.metadata import describe, preprocessing_of
from detectron2.export.runtime.results import postprocess
from detectron2.projects.mask2former import MaskFormer
from tests.export.graphs.models import batch, mask2former
from tests.projects.mask2former.models import RESNET, tiny_config, tiny_model


@pytest.mark.parametrize("changes", [{}, RESNET])
def test_results(changes):
    """From the graph through `model.json` and the program beside an export to all three kinds of results."""
    model = mask2former(changes)
    images, sizes = batch([(60, 90), (50, 40)])
    graph = build_graph(model)
    facts = {"format": "onnx", "artifact": "a", "dynamic": ["batch"], "size": None, "precision": "fp32"}
    meta = describe(graph, model, preprocessing=preprocessing_of(model, None), **facts)
    outputs = {name: x.numpy() for name, x in zip(graph.output_names, graph(images, sizes), strict=True)}
    assert outputs["padded_sizes"].tolist() == [[64, 96]] * 2
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
    with torch.no_grad():
        wanted = model([{**x, "height": 120, "width": 100} for x in inputs])
    for i, (want, size) in enumerate(zip(wanted, sizes.tolist(), strict=True)):
        found = postprocess(outputs, meta, i, (120, 100), tuple(size))
        instances = want["instances"]
        assert len(instances) and np.array_equal(found["classes"], instances.pred_classes.numpy())
        np.testing.assert_allclose(found["scores"], instances.scores.numpy(), rtol=1e-4)
        assert (found["masks"] != instances.pred_masks.numpy()).mean() < 1e-3
        assert (found["sem_seg"] != want["sem_seg"].argmax(0).numpy()).mean() < 1e-3
        assert (found["panoptic"] != want["panoptic_seg"][0].numpy()).mean() < 1e-3


def test_what_is_not_exported():
    model = tiny_model(RESNET).eval()
    with pytest.raises(NotExportableError, match="Leave out --masks pasted"):
        build_graph(model, GraphOptions(masks="pasted"))

    class Other(MaskFormer):
        def instance_inference(self, mask_cls, mask_pred):
            return super().instance_inference(mask_cls, mask_pred)

    model.__class__ = Other
    with pytest.raises(NotExportableError, match=r"has its own instance_inference\(\)"):
        build_graph(model)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_verified(tmp_path, format):
    """The exporter compares results for images of other sizes, and in batches."""
    cfg = tiny_config(RESNET)
    report = export_model(tiny_model(RESNET).eval(), tmp_path / format, format=format, cfg=cfg, size=(96, 128))
    assert report.comparisons and all(not x.faults for x in report.comparisons)
