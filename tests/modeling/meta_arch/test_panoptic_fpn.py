import copy
import logging
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detectron2.modeling import GeneralizedRCNN, PanopticFPN, build_model
from detectron2.modeling.meta_arch import panoptic_fpn
from detectron2.modeling.meta_arch.panoptic_fpn import (
    _claim,
    _claim_on_cpu,
    _claim_on_device,
    _pasted,
    combine_semantic_and_instance_outputs,
)
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.structures import Boxes, Instances, ROIMasks

STUFF = 4


@pytest.fixture
def panoptic_cfg(tiny_rcnn_cfg):
    def make(*changes):
        return tiny_rcnn_cfg(
            "MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"],
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", STUFF, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 10,
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0, *changes,
        )  # fmt: skip

    return make


@pytest.fixture
def model(panoptic_cfg):
    return build_model(panoptic_cfg())


@pytest.fixture
def batch(rcnn_batch):
    def make(train=False, **arguments):
        items, generator = rcnn_batch(train, **arguments), torch.Generator().manual_seed(3)
        if train:
            for item in items:
                size_hw = tuple(item["image"].shape[1:])
                item["sem_seg"] = torch.randint(0, STUFF, size_hw, generator=generator)
        return items

    return make


# --- the model --------------------------------------------------------------------------------------------------------

LOSSES = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


@pytest.mark.parametrize("boxes", [[[], []], [[[4, 4, 40, 36]], []], None], ids=["no object", "one without", "objects"])
@pytest.mark.parametrize("labels", [None, 255], ids=["labelled", "all ignored"])
def test_training(model, batch, boxes, labels):
    items = batch(train=True, boxes=boxes)
    for item in items:
        if labels is not None:
            item["sem_seg"][:] = labels
    losses = model(items)
    assert set(losses) == LOSSES and all(torch.isfinite(v) and v.dim() == 0 for v in losses.values())
    sum(losses.values()).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_half_precision_trains_two_steps(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch(train=True))
        assert all(torch.isfinite(v) for v in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.eval()(batch())
    assert outputs[0]["panoptic_seg"][0].dtype == torch.int32


def test_output_format(model, batch):
    model.eval()
    items = batch()
    items[1]["height"], items[1]["width"] = 96, 120
    with torch.no_grad():
        outputs = model(items)
    assert [set(x) for x in outputs] == [{"sem_seg", "instances", "panoptic_seg"}] * 2
    for out, size_hw in zip(outputs, [(64, 96), (96, 120)], strict=True):
        assert out["sem_seg"].shape == (STUFF, *size_hw)
        assert out["instances"].image_size == size_hw and out["instances"].pred_masks.shape[1:] == size_hw
        ids, segments = out["panoptic_seg"]
        assert ids.shape == size_hw and ids.dtype == torch.int32 and segments
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        assert set(ids.unique().tolist()) <= set(range(len(segments) + 1))


def test_nothing_found(model, batch):
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    nn.init.zeros_(model.sem_seg_head.predictor.weight)
    nn.init.constant_(model.sem_seg_head.predictor.bias, 0.0)
    with torch.no_grad():
        model.sem_seg_head.predictor.bias[0] = 1.0  # everywhere "thing"
        outputs = model(batch())
    for out, size_hw in zip(outputs, [(64, 96), (48, 80)], strict=True):
        assert len(out["instances"]) == 0 and out["instances"].pred_masks.shape == (0, *size_hw)
        ids, segments = out["panoptic_seg"]
        assert ids.shape == size_hw and not ids.any() and segments == []


def test_raw_results(model, batch):
    model.eval()
    items = batch()
    items[0]["height"], items[0]["width"] = 128, 192
    with torch.no_grad():
        instances, scores = model.inference(items, do_postprocess=False)
        full = model(items)[0]
        detections = GeneralizedRCNN._postprocess(copy.deepcopy(instances), items, [(64, 96), (48, 80)])
    assert [x.image_size for x in instances] == [(64, 96), (48, 80)] and scores.shape == (2, STUFF, 64, 96)
    torch.testing.assert_close(full["instances"].pred_boxes.tensor, detections[0]["instances"].pred_boxes.tensor)
    assert full["sem_seg"].shape == (STUFF, 128, 192)


def test_copies_and_state_round_trip(model, panoptic_cfg, batch):
    model.eval()
    restored = build_model(panoptic_cfg()).eval()
    restored.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, segments = model(batch())[0]["panoptic_seg"]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), restored):
            ids, infos = twin(batch())[0]["panoptic_seg"]
            assert torch.equal(ids, expected) and infos == segments


def test_what_is_missing_is_named(model, batch):
    items = batch(train=True)
    del items[1]["sem_seg"]
    with pytest.raises(KeyError, match=r"input 1 .*'sem_seg'"):
        model(items)
    items = batch(train=True)
    del items[1]["instances"]
    with pytest.raises(ValueError, match=r"input 1 .*'instances'"):
        model(items)
    items = batch(train=True)
    items[0]["sem_seg"][3, 4] = STUFF
    with pytest.raises(ValueError, match=f"label {STUFF} .*MODEL.SEM_SEG_HEAD.NUM_CLASSES"):
        model(items)
    with pytest.raises(ValueError, match="eval"):
        model.inference(batch())


CASCADE = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)


@pytest.mark.parametrize("changes", [("MODEL.KEYPOINT_ON", True), CASCADE], ids=["keypoints", "cascade"])
def test_weight_of_the_instance_losses(panoptic_cfg, batch, changes):
    plain = build_model(panoptic_cfg(*changes))
    light = build_model(panoptic_cfg(*changes, "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", 0.25))
    light.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, light):
        torch.manual_seed(1)
        results.append(model(batch(train=True)))
    for name, loss in results[0].items():
        factor = 1.0 if name in ("loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc") else 0.25
        torch.testing.assert_close(results[1][name], loss * factor)
    assert {"loss_sem_seg", "loss_rpn_cls"} < set(results[0])


def test_config_keys(panoptic_cfg, caplog):
    changes = [
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.1, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 12,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.2,
    ]  # fmt: skip
    model = build_model(panoptic_cfg(*changes))
    assert isinstance(model, PanopticFPN) and isinstance(model, GeneralizedRCNN)
    assert model.combine_overlap_thresh == 0.1
    assert model.combine_stuff_area_thresh == 12
    assert model.combine_instances_score_thresh == 0.2
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        build_model(panoptic_cfg("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False))
    assert "COMBINE.ENABLED" in caplog.text


def test_the_thresholds_reach_the_merge(model, batch, monkeypatch):
    seen = []

    def spy(instances, labels, *thresholds):
        seen.append((tuple(labels.shape), thresholds))
        return None, []

    monkeypatch.setattr(panoptic_fpn, "combine_semantic_and_instance_outputs", spy)
    model.combine_overlap_thresh, model.combine_stuff_area_thresh = 0.3, 7
    model.combine_instances_score_thresh = 0.9
    with torch.no_grad():
        model.eval()(batch())
    assert seen == [((64, 96), (0.3, 7, 0.9)), ((48, 80), (0.3, 7, 0.9))]


# --- the merge --------------------------------------------------------------------------------------------------------


def instances_of(masks, scores, classes=None):
    masks = torch.as_tensor(np.asarray(masks))
    out = Instances(tuple(masks.shape[1:]))
    out.pred_masks = masks
    out.scores = torch.tensor(scores, dtype=torch.float64)
    out.pred_classes = torch.tensor(classes if classes is not None else [0] * len(scores), dtype=torch.int64)
    return out


def rectangle(size_hw, y1, x1, y2, x2):
    mask = np.zeros(size_hw, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def merge_by_sets(masks, scores, labels, overlap, area, score):
    """The rule with sets of pixels -> (ids, [(isthing, row or label)])."""
    owner, taken = np.zeros(labels.shape, dtype=int), []
    for row in sorted(range(len(scores)), key=lambda i: -scores[i]):
        mine = {(int(y), int(x)) for y, x in np.argwhere(masks[row])}
        free = {p for p in mine if owner[p] == 0}
        if scores[row] < score or not free or len(mine - free) / len(mine) > overlap:
            continue
        taken.append((True, row))
        for p in free:
            owner[p] = len(taken)
    for label in sorted(set(labels.ravel().tolist()) - {0}):
        free = [tuple(p) for p in np.argwhere((labels == label) & (owner == 0))]
        if free and len(free) >= area:
            taken.append((False, label))
            for p in free:
                owner[p] = len(taken)
    return owner, taken


def test_by_hand():
    labels = torch.zeros(4, 6, dtype=torch.int64)
    labels[:, 3:], labels[3, :2] = 2, 1
    masks = [
        rectangle((4, 6), 0, 0, 2, 2),  # 4 pixels, best
        rectangle((4, 6), 0, 1, 2, 4),  # 6, two of them taken: keeps the rest
        rectangle((4, 6), 0, 0, 1, 2),  # covered
        rectangle((4, 6), 0, 0, 0, 0),  # nothing
        rectangle((4, 6), 3, 5, 4, 6),  # score too low
    ]
    given = instances_of(masks, [0.9, 0.8, 0.7, 0.95, 0.2], [5, 6, 7, 8, 9])
    ids, segments = combine_semantic_and_instance_outputs(given, labels, 0.5, 3, 0.5)
    assert ids.tolist() == [[1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3], [0, 0, 0, 3, 3, 3], [0, 0, 0, 3, 3, 3]]
    assert ids.dtype == torch.int32
    assert segments == [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 5, "instance_id": 0},
        {"id": 2, "isthing": True, "score": 0.8, "category_id": 6, "instance_id": 1},
        {"id": 3, "isthing": False, "category_id": 2, "area": 10},  # label 1 has two pixels only
    ]


@pytest.mark.parametrize("size_hw", [(0, 0), (3, 5)])
def test_no_instances(size_hw):
    ids, segments = combine_semantic_and_instance_outputs(
        instances_of(np.zeros((0, *size_hw), dtype=bool), []), torch.ones(size_hw, dtype=torch.int64), 0.5, 0, 0.5
    )
    assert ids.shape == size_hw and (ids == 1).all()
    expected = [{"id": 1, "isthing": False, "category_id": 1, "area": 15}] if size_hw == (3, 5) else []
    assert segments == expected


def test_masks_of_numbers_and_small_labels():
    mask = rectangle((2, 3), 0, 0, 2, 1)[None].astype(np.uint8)
    labels = torch.tensor([[3, 0, 3], [3, 3, 1]], dtype=torch.int32)
    ids, segments = combine_semantic_and_instance_outputs(instances_of(mask, [0.6]), labels, 0.5, 1, 0.5)
    assert ids.tolist() == [[1, 0, 3], [1, 3, 2]]
    assert [s["category_id"] for s in segments] == [0, 1, 3]


def test_a_segment_without_pixels_is_none():
    masks = np.stack([rectangle((3, 3), 0, 0, 2, 2)] * 2)
    _, segments = combine_semantic_and_instance_outputs(
        instances_of(masks, [0.9, 0.8]), torch.zeros(3, 3, dtype=torch.int64), 1.0, 0, 0.5
    )
    assert len(segments) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(0, 6), overlap=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    area=st.sampled_from([0, 1, 5, 100]), score=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_merge_against_sets(seed, count, overlap, area, score):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 6, 7), dtype=bool)
    for mask in masks:
        (y1, y2), (x1, x2) = np.sort(rng.integers(0, 7, 2)), np.sort(rng.integers(0, 8, 2))
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.8
    scores = rng.permutation(count) / max(count, 1)
    labels = rng.integers(0, 4, (6, 7))
    expected, taken = merge_by_sets(masks, scores, labels, overlap, area, score)
    ids, segments = combine_semantic_and_instance_outputs(
        instances_of(masks, scores.tolist()), torch.from_numpy(labels), overlap, area, score
    )
    np.testing.assert_array_equal(ids.numpy(), expected)
    found = [(s["isthing"], s["instance_id"] if s["isthing"] else s["category_id"]) for s in segments]
    assert found == taken
    rows = rng.permutation(count).tolist()
    on_cpu = _claim_on_cpu((masks[row].ravel().nonzero()[0] for row in rows), (6, 7), overlap)
    on_device = _claim_on_device((torch.from_numpy(masks[row]) for row in rows), (6, 7), torch.device("cpu"), overlap)
    assert torch.equal(on_cpu[0], on_device[0]) and on_cpu[1] == on_device[1]


# --- formats of masks -------------------------------------------------------------------------------------------------


def test_merging_masks_of_each_format_gives_the_same():
    generator = torch.Generator().manual_seed(0)
    corner = torch.tensor([[2.0, 3], [0, 0], [25, 4], [8, 10], [20, 20], [30, 5]])
    given = Instances((40, 50))
    given.pred_boxes = Boxes(torch.cat([corner, corner + 12 + 8 * torch.rand(6, 2, generator=generator)], 1))
    given.scores = torch.tensor([0.9, 0.2, 0.8, 0.7, 0.95, 0.6])
    given.pred_classes = torch.arange(6)
    given.pred_masks = ROIMasks(torch.rand(6, 5, 5, generator=generator) * 0.5 + 0.45)
    labels = torch.randint(0, 4, (40, 50), generator=generator)
    arguments = labels, 0.5, 3, 0.5
    roi, full, rle = (
        combine_semantic_and_instance_outputs(paste_predicted_masks(given, kind), *arguments)
        for kind in ("roi", "full", "rle")
    )
    assert sum(segment["isthing"] for segment in full[1]) >= 3
    for ids, segments in (roi, rle):
        assert torch.equal(ids, full[0]) and segments == full[1]
    rows = given.scores.argsort(descending=True).tolist()
    masks, boxes = given.pred_masks.tensor, given.pred_boxes.tensor
    pasted = (_pasted(masks[row : row + 1], boxes[row : row + 1], (40, 50)) for row in rows)
    on_device, winners = _claim_on_device(pasted, (40, 50), torch.device("cpu"), 0.5)
    on_cpu, same_winners = _claim(given, rows, (40, 50), 0.5)
    assert torch.equal(on_device, on_cpu) and winners == same_winners
    masks = torch.stack(list(paste_predicted_masks(given, "full").pred_masks))
    expected, taken = merge_by_sets(masks.numpy(), given.scores.tolist(), labels.numpy(), 0.5, 3, 0.5)
    np.testing.assert_array_equal(full[0].numpy(), expected)
    assert [s["instance_id"] for s in full[1] if s["isthing"]] == [row for is_thing, row in taken if is_thing]


@pytest.mark.parametrize("kind", ["rle", "roi"])
def test_the_model_with_each_format_of_masks(panoptic_cfg, model, batch, kind):
    torch.manual_seed(0)
    other = build_model(panoptic_cfg("TEST.MASK_FORMAT", kind))
    assert other.mask_format == kind and model.mask_format == "full"
    other.load_state_dict(model.state_dict())
    items = batch()
    items[1]["height"], items[1]["width"] = 96, 120
    with torch.no_grad():
        expected, got = model.eval()(items), other.eval()(items)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
        assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        assert b["instances"].has("pred_masks_rle") is (kind == "rle")
        assert isinstance(b["instances"].get_fields().get("pred_masks", None), ROIMasks) is (kind == "roi")
        pasted = b["instances"] if kind == "rle" else paste_predicted_masks(b["instances"], "rle")
        masks = [mask_util.decode(rle) for rle in pasted.pred_masks_rle]
        assert len(masks) == len(a["instances"]) > 0
        np.testing.assert_array_equal(np.stack(masks), a["instances"].pred_masks.numpy())
