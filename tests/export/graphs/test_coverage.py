"""Every architecture as ONNX in onnxruntime: any batch, any size, images without objects; the same as in PyTorch."""

import copy

import pytest
import torch

from detectron2.export.graphs import GraphOptions
from detectron2.export.verify import bounds_of
from detectron2.layers import paste_masks_in_image
from tests.export.graphs.exported import ONE_SIZE, exported
from tests.export.graphs.models import MODELS, batch, by_graph, fields, in_pytorch

QUICK = ("semantic FPN",)
CASES = {
    "the sample": ([(160, 224), (120, 168)], 1.0),
    "another size": ([(192, 160)], 1.0),
    "another batch of images of three sizes": ([(97, 131), (80, 70), (64, 90)], 1.0),
    "an image without contrast": ([(96, 128)], 0.0),
}
# Differences that rounding makes: pixels, probabilities, and shares of the largest value of scores without bound.
BOUNDS = {"pred_boxes": 1e-2, "proposal_boxes": 1e-2, "scores": 1e-4, "pred_masks": 1e-3, "pred_classes": 0}
RELATIVE = 1e-4
CHOSEN_POINTS = 2e-3  # of PointRend, which may refine another of two points that are equally uncertain
MAPS = ("sem_seg", "center", "offset", "class_scores", "mask_logits", "padded_sizes")
PARAMETERS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]


def assert_alike(got, want, refines=False):
    """The results of an image agree, rows in any order; of equal scores another box may have been chosen."""
    assert got.keys() == want.keys()
    boxes = next((name for name in want if name.endswith("_boxes")), None)
    for name, x in want.items():
        assert got[name].shape == x.shape, (name, got[name].shape, x.shape)
    order = torch.arange(len(next(iter(want.values()))))
    if boxes is not None and len(order):
        # For each row of the one the row of the other with the nearest box of its class.
        apart = (got[boxes][:, None] - want[boxes]).abs().amax(dim=2)
        if "pred_classes" in want:
            apart = apart + 1e6 * (got["pred_classes"][:, None] != want["pred_classes"])
        order = apart.argmin(dim=1)
        scores = want["scores" if "scores" in want else "objectness_logits"]
        ties = ((scores[:, None] - scores).abs() < RELATIVE).sum(dim=1) > 1
        swapped = ties[order] & (apart.amin(dim=1) > BOUNDS["pred_boxes"])
        order = order[~swapped]
        assert len(order.unique()) == len(order), "a box was found twice"
        got = {name: x if name in MAPS else x[~swapped] for name, x in got.items()}
    for name, x in want.items():
        if name == "pred_keypoints":  # of those heat maps that are compared
            continue
        rows = x if name in MAPS else x[order]
        if rows.numel() == 0:
            continue
        gaps = (got[name].double() - rows.double()).abs()
        gap = gaps.max().item()
        bound = BOUNDS.get(name, RELATIVE * max(1.0, x.abs().max().item()))
        if name == "pred_masks" and refines and (gaps > bound).double().mean() < CHOSEN_POINTS:
            continue
        assert gap <= bound, (name, gap, bound)


def check(model, sizes, contrast=1.0, threshold=None):
    images, image_sizes = batch(sizes, contrast)
    want = in_pytorch(model.graph.model, images, image_sizes, threshold)
    got = by_graph(model.graph, images, image_sizes, lambda *x: model(*x, threshold))
    for g, w in zip(got, want, strict=True):
        assert_alike(fields(g), fields(w), refines=bounds_of(model.graph.model, "fp32").chosen_points > 0)
    return got


@pytest.mark.parametrize("name", PARAMETERS)
def test_onnxruntime_gives_what_the_model_gives(onnx_installed, name):
    model = exported(name)
    of_one_size = [(160, 288)] if name in ONE_SIZE else []  # in every batch, so that all have the size of the example
    for sizes, contrast in CASES.values():
        check(model, of_one_size + sizes[len(of_one_size) :], contrast)
    if model.graph.score_threshold is not None:
        none = check(
            model, [*(of_one_size or [(160, 224)]), (96, 128)], threshold=0.99999 if name != "Keypoint R-CNN" else 1.0
        )
        assert [len(x["instances"]) for x in none] == [0, 0]
        some = check(
            model,
            [*of_one_size, *CASES["the sample"][0][len(of_one_size) :]],
            threshold=model.graph.score_threshold / 2,
        )
        assert any(len(x["instances"]) for x in some)


@pytest.mark.parametrize("name", ["semantic FPN", pytest.param("panoptic FPN", marks=pytest.mark.slow)])
def test_a_file_is_as_exact_as_the_model(onnx_installed, name):
    """Both round, in other places; the file not more than the model, beside the same computed in double precision."""
    model = exported(name)
    images, sizes = batch(CASES["the sample"][0])
    exact = copy.deepcopy(model.graph.model).double()
    want = in_pytorch(exact, images.double(), sizes)
    errors = []
    for found in (in_pytorch(model.graph.model, images, sizes), by_graph(model.graph, images, sizes, model)):
        apart = [f["sem_seg"].double() - w["sem_seg"] for f, w in zip(found, want, strict=True)]
        errors.append(torch.cat([x.flatten() for x in apart]).square().mean().sqrt().item())
    assert 0 < errors[1] <= 1.2 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mask R-CNN, FPN", "RetinaNet", "PointRend"])
def test_flat_outputs(onnx_installed, name):
    model = exported(name, GraphOptions(outputs="flat"))
    for sizes, contrast in CASES.values():
        check(model, sizes, contrast)
    check(model, [(160, 224), (96, 128)], threshold=1.0)


@pytest.mark.slow
def test_pasted_masks(onnx_installed):
    raw, pasted = (exported("Mask R-CNN, FPN", options) for options in (None, GraphOptions(masks="pasted")))
    for sizes, contrast in CASES.values():
        images, image_sizes = batch(sizes, contrast)
        height, width = images.shape[2:]
        masks = dict(zip(pasted.graph.output_names, pasted(images, image_sizes), strict=True))["masks"]
        assert masks.shape == (len(sizes), 20, height, width) and masks.dtype == torch.uint8
        want = raw.graph.to_results(
            dict(zip(raw.graph.output_names, raw(images, image_sizes), strict=True)), image_sizes
        )
        for i, result in enumerate(want):
            found = result["instances"]
            whole = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, (height, width))
            assert (masks[i, : len(found)].bool() != whole).sum() <= 1e-4 * whole.numel()
            assert not masks[i, len(found) :].any()
