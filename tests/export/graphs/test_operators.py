"""Suppression with a result of fixed shape and the best of many scores, in every form, against plain loops."""

import pytest
import torch

from detectron2.export.graphs.operators import (
    first_k,
    first_k_aten,
    nms_keep,
    nms_keep_torchvision,
    onnx_translations,
)

FORMS = [nms_keep, nms_keep_torchvision]


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / total if total else 0.0


def greedy(boxes, scores, threshold):
    """Indices of the boxes that stay, by the definition; scores of minus infinity take no part."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if scores[i] > -torch.inf and all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def some(sets, lists, count, seed=0, empty=0.3):
    """Random boxes that overlap a good deal, and scores of which some are missing and some equal."""
    generator = torch.Generator().manual_seed(seed)
    corners = 20 * torch.rand(sets, count, 2, generator=generator)
    boxes = torch.cat((corners, corners + 2 + 15 * torch.rand(sets, count, 2, generator=generator)), dim=2)
    scores = (10 * torch.rand(sets, lists, count, generator=generator)).round() / 10
    scores[torch.rand(scores.shape, generator=generator) < empty] = -torch.inf
    return boxes, scores


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("sets", "lists", "count"), [(1, 1, 1), (2, 1, 40), (1, 3, 40), (2, 3, 25)])
def test_keeps_what_the_definition_keeps(form, sets, lists, count):
    boxes, scores = some(sets, lists, count, empty=0.3 if count > 1 else 0.0)
    keep = form(boxes, scores, 0.4)
    assert keep.shape == scores.shape and keep.dtype == torch.bool
    for b in range(sets):
        for c in range(lists):
            want = greedy(boxes[b].tolist(), scores[b, c].tolist(), 0.4)
            assert keep[b, c].nonzero()[:, 0].tolist() == sorted(want)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_keep(form):
    boxes, scores = some(2, 3, 7, empty=2.0)
    assert not form(boxes, scores, 0.5).any()
    assert form(boxes[:, :1], torch.zeros(2, 3, 1), 0.5).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_overlap_of_just_the_threshold_stays(form):
    boxes = torch.tensor([[[0.0, 0, 4, 1], [0, 0, 2, 1], [0, 0, 2, 1.001]]])
    assert form(boxes, torch.tensor([[[0.9, 0.8, 0.7]]]), 0.5).tolist() == [[[True, True, False]]]
    apart = torch.tensor([[[0.0, 0, 0, 0], [0, 0, 0, 0]]])  # without area they do not overlap
    assert form(apart, torch.tensor([[[0.9, 0.8]]]), 0.5).all()


def test_lists_do_not_touch_each_other():
    boxes, scores = some(1, 1, 30)
    many = nms_keep_torchvision(boxes.expand(3, -1, -1), scores.expand(3, 2, -1), 0.4)
    assert (many == nms_keep(boxes, scores, 0.4)).all()


@pytest.mark.parametrize("function", [first_k, first_k_aten])
def test_the_first_of_equal_scores(function):
    scores = torch.tensor([[0.5, 1.0, 0.5, 1.0, -torch.inf], [-0.0, 0.0, -1.0, torch.inf, -torch.inf]])
    values, index = function(scores, 4)
    assert index.tolist() == [[1, 3, 0, 2], [3, 0, 1, 2]]
    assert torch.equal(values, scores.gather(1, index))
    assert function(scores, 0)[1].shape == (2, 0)
    assert function(scores, 5)[1].tolist() == [[1, 3, 0, 2, 4], [3, 0, 1, 2, 4]]


@pytest.mark.parametrize("function", [first_k, first_k_aten])
def test_the_best_of_many_scores_in_the_order_of_a_stable_sort(function):
    scores = (torch.randn(3, 2000, generator=torch.Generator().manual_seed(1)) * 20).round()
    want = scores.sort(dim=1, descending=True, stable=True)
    values, index = function(scores, 150)
    assert torch.equal(values, want.values[:, :150]) and torch.equal(index, want.indices[:, :150])


def test_operators_are_sound():
    boxes, scores = some(2, 2, 6)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.detectron2.nms_keep.default, (boxes, scores, 0.4), test_utils=checks)
    torch.library.opcheck(torch.ops.detectron2.first_k.default, (scores, 4), test_utils=checks)


class Both(torch.nn.Module):
    def forward(self, boxes, scores):
        return nms_keep(boxes, scores, 0.4), *first_k(scores, 4)


@pytest.mark.filterwarnings("ignore")
def test_the_same_in_onnx(onnx_installed, tmp_path):
    import onnxruntime

    batch, lists = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    torch.onnx.export(
        Both(),
        some(2, 3, 20),
        tmp_path / "both.onnx",
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: batch}, {0: batch, 1: lists}),
        input_names=["boxes", "scores"],
        opset_version=18,
        custom_translation_table=onnx_translations(),
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "both.onnx"), providers=["CPUExecutionProvider"])
    for sets, lists, empty in ((2, 3, 0.3), (1, 2, 0.0), (3, 4, 2.0)):
        boxes, scores = some(sets, lists, 20, seed=5, empty=empty)
        got = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
        for x, want in zip(got, Both()(boxes, scores), strict=True):
            assert torch.equal(torch.from_numpy(x), want)


def test_without_onnxscript_the_error_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"detectron2\[onnx\]"):
        onnx_translations()
