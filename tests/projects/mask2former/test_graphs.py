"""What is exported of Mask2Former gives what the model gives."""

import pytest
import torch

from detectron2.export import export_model
from detectron2.export.graphs import NotExportableError, build_graph
from tests.export.graphs.models import batch, by_graph
from tests.projects.mask2former.models import NUM_CLASSES, RESNET, tiny_config, tiny_model


@pytest.mark.parametrize("changes", [{}, RESNET])
def test_scores(changes):
    model = tiny_model(changes).eval()
    images, sizes = batch([(60, 90), (50, 40)])
    got = by_graph(build_graph(model), images, sizes)
    with torch.no_grad():
        want = model([{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes.tolist(), strict=True)])
    for mine, other, (h, w) in zip(got, want, sizes.tolist(), strict=True):
        assert mine["sem_seg"].shape == (NUM_CLASSES, 64, 96)
        torch.testing.assert_close(mine["sem_seg"][:, :h, :w], other["sem_seg"], atol=1e-5, rtol=1e-4)


def test_instances_are_refused():
    model = tiny_model({"MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}).eval()
    with pytest.raises(NotExportableError, match="belong to queries, not to boxes"):
        build_graph(model)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_verified(tmp_path, format):
    """The exporter compares results for images of other sizes, and in batches."""
    cfg = tiny_config(RESNET)
    report = export_model(tiny_model(RESNET).eval(), tmp_path / format, format=format, cfg=cfg, size=(96, 128))
    assert report.comparisons and all(not x.faults for x in report.comparisons)
