"""The comparison of an exported model with its model: what passes, and what does not."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.export.graphs import GraphOptions, build_graph
from detectron2.export.graphs.regions import PoolerGraph
from detectron2.export.verify import (
    BOUNDS,
    Case,
    Comparison,
    compare_images,
    compare_with_predictor,
    eager_results,
    make_cases,
    otherwise_rounded,
    score_threshold,
    split_outputs,
    table_of,
    verify,
)
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances
from tests.export.test_tracing import tiny_model

FP32 = BOUNDS["fp32"]


def detections(*rows):
    """Boxes, scores, classes and masks of rows (x1, score, class)."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x, _, _ in rows]).reshape(-1, 4)
    masks = torch.stack([torch.full((4, 4), s) for _, s, _ in rows]) if rows else torch.zeros(0, 4, 4)
    scores = torch.tensor([s for _, s, _ in rows])
    return {"boxes": boxes, "scores": scores, "classes": torch.tensor([c for *_, c in rows]).long(), "masks": masks}


def compared(want, have, **options):
    comparison = Comparison("case")
    compare_images(want, have, comparison, FP32, (20, 40), **options)
    return comparison


def test_nothing_is_equal_to_nothing():
    found = compared(detections(), detections())
    assert not found.faults and (found.expected, found.found, found.swapped) == (0, 0, 0)


def test_equal_in_another_order():
    a, b, c = (0.0, 0.9, 1), (5.0, 0.8, 1), (5.0, 0.8, 2)
    found = compared(detections(a, b, c), detections(c, b, a))
    assert not found.faults and set(found.differences.values()) == {0.0} and found.expected == 3


@pytest.mark.parametrize(
    ("have", "words"),
    [
        (detections(), "a detection of class 1 with score 0.9000 at (0.0, 0.0, 10.0, 10.0) is missing"),
        (detections((0.0, 0.9, 1), (20.0, 0.7, 1)), "score 0.7000 at (20.0, 0.0, 30.0, 10.0) was not expected"),
        (detections((0.0, 0.9, 2)), None),  # another class with the same score is a near-tie
        (detections((0.0, 0.95, 2)), "of class 1"),
        (detections((0.02, 0.9, 1)), "boxes differ by 0.02, more than 0.01"),
        (detections((0.0, 0.9003, 1)), "scores differ by"),
        ({**detections((0.0, 0.9, 1)), "masks": torch.full((1, 4, 4), 0.902)}, "masks differ by 0.002"),
        ({**detections((0.0, 0.9, 1)), "masks": torch.full((1, 4, 4), torch.nan)}, "masks differ by inf"),
        ({k: v for k, v in detections((0.0, 0.9, 1)).items() if k != "masks"}, "only one of the two has masks"),
        (detections((torch.nan, 0.99, 1)), "is missing"),
    ],
)
def test_what_is_off(have, words):
    found = compared(detections((0.0, 0.9, 1)), have)
    assert (words is None and not found.faults) or any(words in fault for fault in found.faults)


def test_ties():
    a, b = (0.0, 0.9, 1), (20.0, 0.5, 1)
    # At the threshold one runtime may find what the other does not.
    edge = (20.0, 0.50005, 1)
    assert not compared(detections(a, edge), detections(a), threshold=0.5).faults
    assert compared(detections(a, edge), detections(a), threshold=0.4).faults
    # So it is with the last of as many as there may be.
    other = (30.0, 0.50004, 1)
    found = compared(detections(a, b), detections(a, other), limit=2)
    assert not found.faults and found.swapped == 2
    assert compared(detections(a, b), detections(a, (30.0, 0.51, 1)), limit=2).faults


def test_few_digits_may_decide_otherwise():
    """In 16 bits detections with a tenth of all scores may be others, in 32 bits none."""
    sure = [(0.0, 0.9, 1), (20.0, 0.8, 1), (40.0, 0.7, 1)]
    want = detections(*sure, (70.0, 0.12, 2))

    def faults(precision, *rows):
        comparison = Comparison("case")
        compare_images(want, detections(*rows), comparison, BOUNDS[precision], (20, 90))
        return len(comparison.faults), comparison.swapped

    assert faults("fp16", *sure) == (0, 1)
    assert faults("fp16", *sure, (75.0, 0.1, 2)) == (0, 2)  # 0.22 of 2.52
    assert faults("fp16", *sure, (75.0, 0.3, 2)) == (2, 0)  # 0.42
    assert faults("fp16", *sure[:2], (70.0, 0.12, 2)) == (1, 0)
    assert faults("fp16", *((x + 0.6, score, c) for x, score, c in sure), (70.0, 0.12, 2)) == (6, 0)
    assert faults("fp16", *((x + 0.4, score + 0.005, c) for x, score, c in sure), (70.0, 0.12, 2)) == (0, 0)
    assert faults("fp32", *sure) == (1, 0)


def test_detections_at_wrong_places_are_not_ties():
    rows = [(20.0 * i, 0.9 - 0.1 * i, 1) for i in range(4)]
    moved = [(x + 5, score, c) for x, score, c in rows]
    found = compared(detections(*rows), detections(*moved))
    assert len(found.faults) == 8 and found.swapped == 0
    assert compared(detections(*rows), detections(*rows[:3], moved[3])).swapped == 2  # of a single one nobody knows
    equal = [(x, 0.9, c) for x, _, c in rows]
    assert not compared(detections(*equal), detections(*((x + 5, s, c) for x, s, c in equal))).faults


A, B, C = (0.0, 0.9, 1), (20.0, 0.5, 1), (40.0, 0.4, 2)
OTHER = (30.0, 0.6, 1)  # what comes of another proposal in the place of B


@pytest.mark.parametrize(
    ("have", "rounded", "is_fine"),
    [
        ([A, OTHER, C], [[A, OTHER, C]], True),
        ([A, OTHER, C], [[A, B, C], [A, OTHER, C]], True),
        ([A, OTHER, C], [[A, C], [A, B, OTHER, C]], True),
        ([A, C], [[A, OTHER, C]], False),  # B is gone, and nothing came in its place
        ([A, C], [[A, C]], True),
        ([A, B, OTHER, C], [[A, B, OTHER, C]], True),
        ([A, (20.0, 0.5002, 1), C], [[A, (20.0, 0.5002, 1), C]], True),  # scores of another box at the same place
        ([A, OTHER, C], [[A, B, C]], False),  # the model has always the same detections
        ([A, OTHER, C], [], False),
        ([A, OTHER], [[A, OTHER, C]], False),  # C is in all results of the model
        ([OTHER, C], [[A, OTHER, C], [B, OTHER, C]], False),  # fewer than in any result of the model
        ([A, (30.02, 0.6, 1), C], [[A, OTHER, C]], False),
        ([A, (30.0, 0.6, 2), C], [[A, OTHER, C]], False),
        ([(0.02, 0.9, 1), OTHER, C], [[A, OTHER, C]], False),
        ([A, (20.0, 0.50015, 1), C], [[A, (20.0, 0.50008, 1), C]], False),  # a score that is off is no decision
    ],
)
def test_a_decision_that_the_model_takes_too_when_it_rounds_otherwise(have, rounded, is_fine):
    others = [detections(*rows) for rows in rounded]
    found = compared(detections(A, B, C), detections(*have), rounded=lambda: others)
    assert bool(found.faults) != is_fine
    assert (found.expected, found.found) == (3, len(have)) and (not is_fine or found.swapped >= 1)


def test_the_model_is_not_asked_again_without_need():
    want, have = detections(A, B), {**detections(A, B), "masks": torch.ones(2, 4, 4)}
    compared(want, want, rounded=lambda: 1 / 0)
    assert compared(want, have, rounded=lambda: 1 / 0).faults


class Tied(torch.nn.Module):
    """A model that keeps one of two proposals whose scores are equal up to the last place."""

    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([1.0 + 2e-7, 1.0]))

    def kept(self):
        return detections(A, (OTHER, B)[int(self.scores[0] >= self.scores[1])], C)


@pytest.mark.parametrize(
    ("rows", "is_fine"),
    [([A, B, C], True), ([A, OTHER, C], True), ([A, C], False), ([A, (30.0, 0.61, 1), C], False), ([OTHER, C], False)],
)
def test_a_tie_at_a_limit_inside_the_model(rows, is_fine):
    model = Tied().eval()
    before = model.scores.detach().clone()

    def run(inputs):
        return {**detections(*rows), "image_index": torch.zeros(len(rows), dtype=torch.int64)}

    def roundings():
        return ((lambda images, threshold, other=other: [other.kept()]) for other in otherwise_rounded(model))

    case = Case("sample", [torch.zeros(3, 20, 40)], 0.1)
    (found,) = verify(run, lambda images, threshold: [model.kept()], [case], FP32, roundings=roundings)
    assert bool(found.faults) != is_fine
    assert torch.equal(model.scores, before)


def test_models_that_round_otherwise():
    model = torch.nn.Linear(300, 200).train()
    others = list(otherwise_rounded(model))
    assert len({tuple(other.bias.tolist()) for other in others}) == len(others) > 1
    for other, again in zip(others, otherwise_rounded(model), strict=True):
        change = (other.weight / model.weight - 1).abs().detach()
        assert 0 < change.mean() < change.max() < 1e-6 and not other.training and model.training
        assert torch.equal(other.weight, again.weight)


def test_maps_count_where_the_image_is():
    want, have = {"sem_seg": torch.zeros(2, 32, 48)}, {"sem_seg": torch.zeros(2, 32, 48)}
    have["sem_seg"][:, 20:] = 1
    assert not compared(want, have).faults
    have["sem_seg"][1, 19, 39] = 0.002
    assert "sem_seg differ by 0.002" in compared(want, have).faults[0]
    assert "has shape" in compared(want, {"sem_seg": torch.zeros(2, 32, 40)}).faults[0]


def test_pasted_masks_may_differ_in_one_pixel_of_ten_thousand():
    want = {**detections((0.0, 0.9, 1)), "masks": torch.zeros(1, 200, 200, dtype=torch.bool)}
    have = {**want, "masks": torch.zeros(1, 200, 208, dtype=torch.uint8)}
    have["masks"][0, 0, :4] = 1
    assert not compared(want, have).faults
    have["masks"][0, 0, 4] = 1
    assert "share of differing pixels" in compared(want, have).faults[0]


def test_outputs_are_split_by_image():
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7]])
    padded = split_outputs({"scores": scores, "count": torch.tensor([1, 2]), "sem_seg": torch.arange(2)}, 2)
    assert [r["scores"].tolist() for r in padded] == [pytest.approx([0.9]), pytest.approx([0.8, 0.7])]
    assert [int(r["sem_seg"]) for r in padded] == [0, 1]
    flat = {"scores": torch.tensor([0.8, 0.7]), "image_index": torch.tensor([1, 1])}
    assert [len(r["scores"]) for r in split_outputs(flat, 2)] == [0, 2]


def test_cases_fit_what_was_exported(tmp_path):
    names = [c.name for c in make_cases((64, 96), folder=tmp_path / "a", threshold=0.5)]
    assert names == [
        *("sample", "another size", "one image", "three images", "mixed sizes", "blank image", "no detections")
    ]
    cases = {c.name: c for c in make_cases((64, 96), folder=tmp_path / "b", dynamic=(), batch=1)}
    assert all(len(c.images) == 1 for c in cases.values())
    assert all(i.shape[1] <= 64 and i.shape[2] <= 96 for c in cases.values() for i in c.images)
    assert cases["another size"].images[0].shape[1:] != (64, 96)
    cases = make_cases((64, 64), folder=tmp_path / "c", limit=64)
    assert max(max(i.shape[1:]) for c in cases for i in c.images) == 64
    mixed = next(c for c in make_cases((64, 96), folder=tmp_path / "d") if c.name == "mixed sizes")
    assert len({i.shape for i in mixed.images}) == 3


def test_the_threshold_comes_back(mask_rcnn):
    predictor = mask_rcnn.roi_heads.box_predictor
    own = predictor.test_score_thresh
    with pytest.raises(KeyError), score_threshold(mask_rcnn, 0.1):
        assert predictor.test_score_thresh == 0.1
        raise KeyError
    assert predictor.test_score_thresh == own


def test_a_runtime_that_gives_up_is_a_fault():
    def run(inputs):
        raise RuntimeError("\n[ONNXRuntimeError] no such kernel\nmore")

    case = Case("sample", [torch.zeros(3, 20, 40)], 0.5)
    (found,) = verify(run, lambda images, threshold: [detections()], [case], FP32)
    assert found.faults == ["RuntimeError in the runtime: [ONNXRuntimeError] no such kernel"]
    text = table_of([found])
    assert "fails" in text and "sample: RuntimeError" in text


def test_a_model_of_the_users_has_no_reference():
    assert eager_results(torch.nn.Identity(), [torch.zeros(3, 20, 40)]) is None


def run_of(model, **options):
    graph = build_graph(model, GraphOptions(**options))
    return lambda inputs: dict(zip(graph.output_names, graph(*inputs), strict=True))


@pytest.fixture
def cases(tmp_path):
    return make_cases((64, 96), folder=tmp_path, threshold=0.6)


def check(model, run, cases, size_hw=None):
    def reference(model):
        return lambda images, threshold: eager_results(model, images, threshold)

    def roundings():
        return map(reference, otherwise_rounded(model))

    return verify(run, reference(model), cases, FP32, size_hw=size_hw, limit=100, roundings=roundings)


@pytest.mark.parametrize("outputs", ["padded", "flat"])
def test_a_right_graph_passes(mask_rcnn, cases, outputs):
    found = check(mask_rcnn, run_of(mask_rcnn, outputs=outputs), cases)
    assert not [c.faults for c in found if c.faults] and sum(c.expected for c in found) > 20


def test_a_fixed_frame_is_that_of_the_model_too(mask_rcnn, tmp_path):
    cases = make_cases((64, 96), folder=tmp_path, dynamic=(), batch=1, threshold=0.6)
    found = check(mask_rcnn, run_of(mask_rcnn), cases, size_hw=(64, 96))
    assert not [c.faults for c in found if c.faults]


def test_a_wrong_overlap_is_caught(mask_rcnn, cases, monkeypatch):
    run = run_of(mask_rcnn)

    def run_wrongly(inputs):
        with monkeypatch.context() as patched:
            patched.setattr(mask_rcnn.roi_heads.box_predictor, "test_nms_thresh", 0.1)
            return run(inputs)

    assert any(c.faults for c in check(mask_rcnn, run_wrongly, cases))


def test_an_output_that_is_off_by_one_row_is_caught(mask_rcnn, cases):
    run = run_of(mask_rcnn)

    def shifted(inputs):
        outputs = run(inputs)
        return {**outputs, "masks": outputs["masks"].roll(1, dims=1)}

    assert any("masks differ" in fault for c in check(mask_rcnn, shifted, cases) for fault in c.faults)


def summed_over_levels(self, maps, boxes, image_index):
    """Pooling that adds the levels without leaving out those that a region is not on: right with samples by size."""
    pooler, index = self.module, image_index[:, None].to(boxes.dtype)
    on = assign_boxes_to_levels(
        [Boxes(boxes)], pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    levels = enumerate(zip(pooler.level_poolers, maps, strict=True))
    parts = [p(f, torch.cat((index, torch.where((on == i)[:, None], boxes, 0.0)), dim=1)) for i, (p, f) in levels]
    return torch.stack(parts).sum(dim=0)


def test_pooling_that_is_wrong_with_a_fixed_number_of_samples_is_caught(mask_rcnn, cases, monkeypatch):
    ratio = {f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO": 2 for head in ("BOX", "MASK")}
    fixed, cases = tiny_model("mask", **ratio), cases[:1]
    assert not any(c.faults for c in check(fixed, run_of(fixed), cases))
    monkeypatch.setattr(PoolerGraph, "__call__", summed_over_levels)
    assert not any(c.faults for c in check(mask_rcnn, run_of(mask_rcnn), cases))
    assert any(c.faults for c in check(fixed, run_of(fixed), cases))


def test_a_chosen_point_may_differ():
    from detectron2.export.verify import bounds_of
    from tests.export.graphs.models import model_of

    assert bounds_of(model_of("Mask R-CNN, FPN"), "fp32") == FP32
    bounds = bounds_of(model_of("PointRend"), "fp32")
    want = {"sem_seg": torch.zeros(1, 100, 100)}
    for count, is_fine in ((20, True), (21, False)):
        have = {"sem_seg": want["sem_seg"].clone()}
        have["sem_seg"].view(-1)[:count] = 0.5
        for each, fine in ((bounds, is_fine), (FP32, False)):
            comparison = Comparison("x")
            compare_images(want, have, comparison, each, (100, 100))
            assert (not comparison.faults) == fine and comparison.differences["maps"] == 0.5
    have = {"sem_seg": torch.full((1, 100, 100), float("nan"))}
    comparison = Comparison("x")
    compare_images(want, have, comparison, bounds, (100, 100))
    assert comparison.faults


class Undecided(torch.nn.Module):
    """Finds a second object unless its weight is rounded down; pads nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        count = 2 if self.weight >= 1 else 1
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])[:count]
        fields = {"pred_boxes": Boxes(boxes), "scores": torch.tensor([0.9, 0.8])[:count]}
        instances = Instances((8, 8), **fields, pred_classes=torch.arange(2)[:count])
        return [{"instances": instances} for x in inputs if x["image"].dim() == 3]


@pytest.mark.parametrize("room", [None, [8, 8]])
@pytest.mark.parametrize(("rows", "right"), [([0, 1], True), ([0], True), ([1], False), ([], False)])
def test_the_program_may_decide_as_the_model_with_other_rounding(tmp_path, monkeypatch, room, rows, right):
    class Program:
        meta = {"size": room, "task": "instances"}

        def __init__(self, folder):
            pass

        def __call__(self, image, threshold):
            boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8]], np.float32)
            found = {"boxes": boxes, "scores": np.array([0.9, 0.8], np.float32), "classes": np.arange(2)}
            return {name: value[rows] for name, value in found.items()}

    monkeypatch.setattr("detectron2.export.verify.Predictor", Program)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = (lambda _: {"image": torch.zeros(3, 8, 8)}, tmp_path / "a.png", FP32, 0.5)
    found = compare_with_predictor(tmp_path, Undecided().eval(), *arguments)
    assert (not found.faults) == right
