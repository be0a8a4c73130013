"""A small Faster R-CNN in the formats of exports."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.export import export_model
from detectron2.export.runtime.images import preprocess
from detectron2.export.runtime.predict import read_metadata
from tests.export.runtime.made_up import NAMES
from tests.export.test_tracing import picture, tiny_model

SIZE = (96, 128)


@pytest.fixture(scope="session")
def photo():
    """Makes photos, uint8 `(H, W, 3)`, in which the model finds something."""

    def photo(height, width, contrast=1.0):
        pixels = picture(*SIZE, contrast, seed=5).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))

    return photo


@pytest.fixture(scope="session")
def export_detector(tmp_path_factory):
    """Exports the model to a format, once; returns the folder and a function that finds objects with the model."""
    mapper = DatasetMapper(False, augmentations=[T.ResizeShortestEdge(96, 1333, "choice")], image_format="BGR")

    @functools.cache
    def export(format):
        model = tiny_model("faster", **{"TEST.DETECTIONS_PER_IMAGE": 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.3})
        # Of equal scores each runtime would take another first; these lie between 0.3 and 0.99.
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.005)
        folder = tmp_path_factory.mktemp(format) / "exported"
        dynamic = None if format == "torchscript" else ()
        facts = {"mapper": mapper, "metadata": {"thing_classes": NAMES}, "size": SIZE, "dynamic": dynamic}
        export_model(model, folder, format, verify=False, **facts)
        meta, _ = read_metadata(folder)

        def find(rgb):
            images, sizes = preprocess(rgb, meta)
            height, width = sizes[0]
            item = {"image": torch.from_numpy(images[0, :, :height, :width])}
            with torch.no_grad():
                found = model([{**item, "height": rgb.shape[0], "width": rgb.shape[1]}])[0]["instances"]
            return {"boxes": found.pred_boxes.tensor.numpy(), "scores": found.scores, "classes": found.pred_classes}

        return folder, find

    return export
