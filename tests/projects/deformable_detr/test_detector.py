"""What the detectors share: padding, levels, the choice of detections, and errors."""

import pytest
import torch

from detectron2.modeling import build_model, optimized_for_inference
from detectron2.projects.deformable_detr import Prediction
from detectron2.projects.deformable_detr.detector import padding_mask
from detectron2.structures import Boxes, Instances

from .conftest import tiny_config, tiny_model


def test_padding():
    assert padding_mask(torch.zeros(0, 2, dtype=torch.int64), (4, 5)).shape == (0, 4, 5)
    mask = padding_mask(torch.tensor([[4, 5], [2, 3]]), (4, 5))
    assert not mask[0].any()
    assert mask[1].int().tolist() == [[0, 0, 0, 1, 1]] * 2 + [[1] * 5] * 2


def test_choice_of_detections():
    model = tiny_model("plain", "TEST.DETECTIONS_PER_IMAGE", 3)
    logits = torch.full((1, 12, 5), -5.0)
    logits[0, 2, 4], logits[0, 2, 1], logits[0, 7, 0] = 3.0, 1.0, 2.0
    boxes = torch.full((1, 12, 4), 0.5)
    boxes[0, 7] = torch.tensor([0.25, 0.5, 0.1, 0.2])
    found, scores, classes = model.select(Prediction(logits, boxes), torch.tensor([[100, 200]]))
    assert classes.tolist() == [[4, 0, 1]]
    assert torch.allclose(scores, torch.tensor([[3.0, 2.0, 1.0]]).sigmoid())
    assert torch.allclose(found[0, 1], torch.tensor([40.0, 40, 60, 60]))
    assert torch.equal(found[0, 0], found[0, 2])


def test_threshold_and_size_of_results(batch):
    model = tiny_model().eval()
    with torch.no_grad():
        every = model.inference(batch, do_postprocess=False)
        model.test_score_thresh = middle = float(every[0].scores.median())
        some, results = model.inference(batch, do_postprocess=False), model(batch)
        model.test_score_thresh = 1.0
        assert [len(x["instances"]) for x in model(batch)] == [0, 0, 0]
    assert [len(x) for x in every] == [60] * 3
    assert [len(x) for x in some] == [int((x.scores > middle).sum()) for x in every]
    assert 0 < len(some[0]) < 60
    assert [x["instances"].image_size for x in results] == [(120, 270), (128, 210), (100, 192)]


@pytest.mark.parametrize("kind", ["two_stage", "DINO"])
def test_optimized_form(kind, batch):
    model = tiny_model(kind).eval()
    fast = optimized_for_inference(model)
    with torch.no_grad():
        for wanted, found in zip(model(batch), fast(batch), strict=True):
            wanted, found = wanted["instances"], found["instances"]
            assert torch.allclose(found.scores, wanted.scores, atol=1e-5)
            assert torch.allclose(found.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2)


def test_further_levels_and_another_backbone(batch):
    """Two maps of a pyramid, four levels."""
    pyramid = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
               "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.DEFORMABLE_DETR.IN_FEATURES", ["p3", "p4"]]  # fmt: skip
    model = tiny_model("two_stage", *pyramid)
    seen = []
    model.transformer.register_forward_pre_hook(lambda module, args: seen.extend(tuple(x.shape[2:]) for x in args[0]))
    losses = model(batch)
    assert seen == [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert all(loss.isfinite() for loss in losses.values())


def test_more_objects_than_queries():
    model = tiny_model("plain", "MODEL.DEFORMABLE_DETR.NUM_OBJECT_QUERIES", 2)
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[0.0, 0, 20, 20]]).repeat(5, 1)))
    target.gt_classes = torch.arange(5)
    losses = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": target}])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("kind", ["two_stage", "DINO"])
def test_more_queries_than_cells(kind, batch):
    model = tiny_model(kind, "MODEL.DEFORMABLE_DETR.NUM_OBJECT_QUERIES", 200)
    with pytest.raises(ValueError, match=r"200 queries .* have only 128; take larger images"):
        model(batch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["MODEL.DEFORMABLE_DETR.HIDDEN_DIM", 40], "multiple of 32, got 40"),
        (["MODEL.DEFORMABLE_DETR.NUM_FEATURE_LEVELS", 2], r"2 levels \(NUM_FEATURE_LEVELS\), but there are 3"),
        (["MODEL.DEFORMABLE_DETR.IN_FEATURES", ["res2"]], r"IN_FEATURES names \['res2'\], but the backbone returns"),
        (["MODEL.DEFORMABLE_DETR.TWO_STAGE", True], "set WITH_BOX_REFINE to True"),
    ],
)
def test_what_does_not_fit_together(changes, text):
    with pytest.raises(ValueError, match=text):
        build_model(tiny_config("plain", *changes))


def test_wrong_inputs(batch):
    model = tiny_model()
    batch[0]["instances"].gt_classes[0] = 5
    with pytest.raises(ValueError, match=r"label 5, .* set MODEL.DEFORMABLE_DETR.NUM_CLASSES"):
        model(batch)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        model.inference(batch)
    with pytest.raises(ValueError, match="has no 'instances'"):
        model([{"image": batch[0]["image"]}])
