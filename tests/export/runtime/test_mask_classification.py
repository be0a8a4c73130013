"""Results of queries are those of the models in PyTorch, from the same classes and masks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectron2.data import Metadata
from detectron2.export.graphs import build_graph
from detectron2.export.runtime.results import postprocess
from detectron2.modeling.meta_arch import HFSegmenter
from detectron2.projects.mask2former.mask_former_model import MaskFormer
from tests.export.runtime.made_up import metadata

THINGS = {1: 0, 2: 2}
SIZES = [((64, 96), (50, 90), (50, 90)), ((64, 96), (64, 96), (211, 133)), ((64, 96), (40, 70), (23, 31))]
SQUARE = ((96, 96), (50, 96), (100, 192))
CLASSES = 4


def queries(count, seed, cells=(16, 24), surest=6.0):
    """Classes and smooth masks of queries: logits `[Q, K + 1]` and `[Q, h, w]`."""
    generator = torch.Generator().manual_seed(seed)
    classes = surest * torch.rand(count, CLASSES + 1, generator=generator)
    small = 5 * torch.randn(1, max(count, 1), 4, 5, generator=generator)
    return classes, F.interpolate(small, cells, mode="bicubic")[0, :count]


def native(**changes):
    """A Mask2Former without a network: only what makes results of queries."""
    model: MaskFormer = MaskFormer.__new__(MaskFormer)
    torch.nn.Module.__init__(model)
    facts = {
        "size_divisibility": 32, "sem_seg_postprocess_before_inference": True, "semantic_on": True, "panoptic_on": True,
        "instance_on": True, "test_topk_per_image": 12, "object_mask_threshold": 0.3, "overlap_threshold": 0.5,
        "metadata": Metadata(thing_dataset_id_to_contiguous_id=THINGS), **changes,
    }  # fmt: skip
    for name, value in facts.items():
        setattr(model, name, value)
    model.sem_seg_head = torch.nn.Module()
    model.sem_seg_head.num_classes = CLASSES
    return model.eval()


def of_transformers(task, square=0, threshold=0.0):
    """An HFSegmenter without a network."""
    model: HFSegmenter = HFSegmenter.__new__(HFSegmenter)
    torch.nn.Module.__init__(model)
    things = {"instance": CLASSES, "semantic": 0, "panoptic": 2}[task]
    facts = {
        "size_divisibility": 32, "task": task, "num_classes": CLASSES, "num_things": things, "square_size": square,
        "test_score_thresh": threshold, "max_detections_per_image": 8, "object_mask_thresh": 0.3,
        "overlap_thresh": 0.5, "network": torch.nn.Module(),
    }  # fmt: skip
    for name, value in facts.items():
        setattr(model, name, value)
    return model.eval()


def by_program(model, classes, masks, sizes, **changes):
    padded, image, original = sizes
    outputs = {"class_scores": classes.softmax(-1)[None], "mask_logits": masks[None], "padded_sizes": [padded]}
    arrays = {name: np.asarray(x) for name, x in outputs.items()}
    rules = build_graph(model).rules()
    facts = {"mask_classification": rules, "max_detections": None, "score_threshold": 0.0, **changes}
    meta = metadata("mask_classification", list(arrays), **facts)
    return postprocess(arrays, meta, 0, original, image)


def by_model(model, classes, masks, sizes):
    padded, image, original = sizes
    whole = F.interpolate(masks[None], padded, mode="bilinear", align_corners=False)[0]
    if isinstance(model, MaskFormer):
        return model._result(classes, whole, image, original)
    whole = whole[:, : image[0], : image[1]]
    whole = F.interpolate(whole[None], original, mode="bilinear", align_corners=False)[0]
    return model._result(classes.softmax(-1), whole)


def compare(result, want):
    """Equal, but for one pixel of 10,000 where two values are nearly as high as each other."""
    assert set(want) == {
        key for key, name in (("instances", "boxes"), ("sem_seg", "sem_seg"), ("panoptic_seg", "panoptic"))
        if name in result
    }  # fmt: skip
    if "instances" in want:
        found = want["instances"]
        assert np.array_equal(result["classes"], found.pred_classes.numpy())
        assert np.allclose(result["scores"], found.scores.numpy(), rtol=1e-4, atol=1e-6)
        masks = found.pred_masks.numpy()
        assert result["masks"].shape == masks.shape and result["masks"].dtype == np.bool_
        assert (result["masks"] != masks).sum() <= masks.size / 10_000
        for box, mask in zip(result["boxes"], result["masks"], strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    if "sem_seg" in want:
        labels = want["sem_seg"].argmax(0).numpy()
        assert result["sem_seg"].shape == labels.shape and (result["sem_seg"] != labels).mean() <= 1e-4
    if "panoptic_seg" in want:
        panoptic, segments = want["panoptic_seg"]
        assert result["panoptic"].dtype == np.int32 and (result["panoptic"] != panoptic.numpy()).mean() <= 1e-4
        assert [{**s, "score": pytest.approx(s["score"])} for s in segments] == result["segments"]


MODELS = {
    "all three": native,
    "semantic scores that are resized": lambda: native(
        panoptic_on=False, instance_on=False, sem_seg_postprocess_before_inference=False
    ),
    "semantic": lambda: native(panoptic_on=False, instance_on=False),
    "instances": lambda: native(panoptic_on=False, semantic_on=False),
    "panoptic alone": lambda: native(instance_on=False, semantic_on=False),
    "little is given up": lambda: native(overlap_threshold=0.0, object_mask_threshold=0.0),
    "transformers, instance": lambda: of_transformers("instance"),
    "transformers, instances with a threshold": lambda: of_transformers("instance", threshold=0.3),
    "transformers, semantic": lambda: of_transformers("semantic"),
    "transformers, panoptic": lambda: of_transformers("panoptic"),
    "EoMT, instance": lambda: of_transformers("instance", 96),
    "EoMT, panoptic": lambda: of_transformers("panoptic", 96),
}


@pytest.mark.parametrize("name", MODELS)
def test_results_are_those_of_the_model(name):
    model = MODELS[name]()
    threshold = getattr(model, "test_score_thresh", 0.0)
    limit = getattr(model, "max_detections_per_image", None)
    segments = 0
    for seed, (count, sizes) in enumerate(((9, SIZES[0]), (9, SIZES[1]), (1, SIZES[2]), (20, SQUARE))):
        classes, masks = queries(count, seed)
        result = by_program(model, classes, masks, sizes, score_threshold=threshold, max_detections=limit)
        compare(result, by_model(model, classes, masks, sizes))
        segments += len(result.get("segments", ()))
    assert segments > 1 or "panoptic" not in result


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["all three", "transformers, panoptic", "EoMT, panoptic"])
@pytest.mark.parametrize("kind", ["no object", "no pixel", "far from zero"])
def test_nothing_is_found(name, kind):
    model, (classes, masks) = MODELS[name](), queries(5, 0)
    if kind == "no object":
        classes[:, -1] = 40.0
    masks = {"no object": masks, "no pixel": -masks.abs() - 1, "far from zero": 1e4 * (-masks.abs() - 1)}[kind]
    result = by_program(model, classes, masks, SIZES[1])
    compare(result, by_model(model, classes, masks, SIZES[1]))
    assert result["segments"] == [] and not result["panoptic"].any()
    assert kind == "no object" or (len(result["scores"]) == 0 and result["masks"].shape == (0, 211, 133))


def test_threshold_and_limit():
    model, (classes, masks) = MODELS["instances"](), queries(9, 0)
    every = by_program(model, classes, masks, SIZES[0])
    threshold = float(every["scores"][4])
    few = by_program(model, classes, masks, SIZES[0], score_threshold=threshold)
    assert len(few["scores"]) == 4 and np.array_equal(few["masks"], every["masks"][:4])
    two = by_program(model, classes, masks, SIZES[0], max_detections=2)
    assert np.array_equal(two["scores"], every["scores"][:2]) and two["masks"].shape == (2, 50, 90)


def test_no_query_is_enlarged_that_is_not_in_the_result(monkeypatch):
    from detectron2.export.runtime import mask_classification

    seen = []
    of_query = mask_classification._Masks.of_query
    monkeypatch.setattr(mask_classification._Masks, "of_query", lambda *a: seen.append(a[1]) or of_query(*a))
    model, (classes, masks) = MODELS["instances"](), queries(9, 0)
    best = classes.softmax(-1)[:, :-1].amax(1)
    by_program(model, classes, masks, SIZES[0], score_threshold=float(best.sort().values[-3]))
    assert sorted(seen) == sorted(best.topk(2).indices.tolist())


def test_bands_are_whole(monkeypatch):
    from detectron2.export.runtime import mask_classification

    classes, masks = queries(9, 1)
    want = by_program(MODELS["all three"](), classes, masks, SIZES[1])
    monkeypatch.setattr(mask_classification, "_NUMBERS_AT_ONCE", 5000)
    monkeypatch.setattr(mask_classification._Masks.bands, "__defaults__", (None, 5000))
    found = by_program(MODELS["all three"](), classes, masks, SIZES[1])
    assert all(np.array_equal(found[k], want[k]) for k in ("sem_seg", "panoptic", "masks"))
