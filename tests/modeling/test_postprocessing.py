import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.modeling import detector_postprocess
from detectron2.modeling.postprocessing import areas_and_certainties, paste_predicted_masks, sem_seg_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks


def detections(boxes, **fields):
    out = Instances((40, 60), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)), **fields)
    out.scores = torch.arange(len(out.pred_boxes), dtype=torch.float32)
    return out


def test_nothing_detected():
    empty = detections([], pred_masks=torch.zeros(0, 1, 4, 4), pred_keypoints=torch.zeros(0, 5, 3))
    out = detector_postprocess(empty, 80, 90)
    assert len(out) == 0 and out.image_size == (80, 90)
    assert out.pred_masks.shape == (0, 80, 90) and out.pred_keypoints.shape == (0, 5, 3)


def test_boxes_are_scaled_clipped_and_dropped_when_empty():
    out = detector_postprocess(detections([[6, 4, 30, 20], [-9, 10, 90, 50], [70, 1, 80, 9]]), 80, 90)
    assert out.pred_boxes.tensor.tolist() == [[9, 8, 45, 40], [0, 20, 90, 80]]
    assert out.scores.tolist() == [0, 1]


def pasted(mask, box, height, width):
    """A mask's cells, with zeros around them, interpolated at the centres of the image's pixels."""

    def weights(start, stop, size, cells):
        position = (np.arange(size) + 0.5 - start) / (stop - start) * cells - 0.5
        units = np.pad(np.eye(cells), ((0, 0), (1, 1)))
        return np.stack([np.interp(position, np.arange(-1, cells + 1), row, left=0, right=0) for row in units])

    x1, y1, x2, y2 = box
    return weights(y1, y2, height, mask.shape[0]).T @ mask @ weights(x1, x2, width, mask.shape[1])


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: ROIMasks(m[:, 0])])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_masks_are_pasted_into_their_boxes(wrap, threshold):
    masks = torch.rand(3, 1, 4, 4)
    boxes = np.array([[10, 10, 30, 20], [2.5, 3, 41, 39.5], [7, 8, 8, 9]])  # the last is one pixel of the input
    out = detector_postprocess(detections(boxes.tolist(), pred_masks=wrap(masks)), 80, 90, threshold)
    assert out.pred_masks.dtype == torch.bool and out.pred_masks.shape == (3, 80, 90)
    for got, mask, box in zip(out.pred_masks.numpy(), masks[:, 0].double().numpy(), boxes, strict=True):
        expected = pasted(mask, box * [1.5, 2, 1.5, 2], 80, 90)
        clear = np.abs(expected - threshold) > 1e-5
        if threshold < 0.5:  # interpolation reaches half a cell beyond the box, which is nobody's business
            x1, y1, x2, y2 = (box * [1.5, 2, 1.5, 2]).astype(int)
            clear[:y1], clear[y2:], clear[:, :x1], clear[:, x2:] = False, False, False, False
            assert clear.any()
        np.testing.assert_array_equal(got[clear], (expected >= threshold)[clear])


def test_an_unknown_format_of_masks_is_refused():
    with pytest.raises(ValueError, match="'polygon'"):
        detector_postprocess(detections([]), 8, 9, mask_format="polygon")


@pytest.mark.parametrize("boxes", [[], [[10, 10, 30, 20], [70, 1, 80, 9], [-5, 3, 41, 39.5]]])
def test_formats_of_masks_hold_the_same_masks(boxes):
    masks = torch.rand(len(boxes), 1, 4, 4)
    results = {
        kind: detector_postprocess(detections(boxes, pred_masks=masks), 80, 90, mask_format=kind)
        for kind in ("full", "rle", "roi")
    }
    full = results["full"].pred_masks
    assert len({len(r) for r in results.values()}) == 1 and not results["rle"].has("pred_masks")
    roi = results["roi"]
    assert isinstance(roi.pred_masks, ROIMasks)
    assert torch.equal(roi.pred_masks.to_bitmasks(roi.pred_boxes, 80, 90).tensor, full)
    for rle, mask in zip(results["rle"].pred_masks_rle, full.numpy(), strict=True):
        expected = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert rle == {"size": [80, 90], "counts": expected["counts"].decode()}


def test_full_masks_fill_their_boxes_but_for_the_corners():
    out = detector_postprocess(detections([[10, 10, 30, 20]], pred_masks=torch.ones(1, 1, 4, 4)), 80, 60)
    inside = out.pred_masks[0, 20:40, 10:30]
    assert out.pred_masks.sum() == inside.sum() and inside[2:-2].all() and inside[:, 2:-2].all()


def test_keypoints_are_scaled_without_their_scores():
    keypoints = torch.tensor([[[6.0, 4, 0.5], [12, 8, 0.25]]])
    given = detections([[0, 0, 10, 10]], pred_keypoints=keypoints.clone())
    out = detector_postprocess(given, 80, 90)
    assert out.pred_keypoints.tolist() == [[[9, 8, 0.5], [18, 16, 0.25]]]
    assert torch.equal(given.pred_keypoints, keypoints)


def test_proposals_too():
    given = Instances((40, 60), proposal_boxes=Boxes(torch.tensor([[6.0, 4, 30, 20]])))
    assert detector_postprocess(given, 20, 30).proposal_boxes.tensor.tolist() == [[3, 2, 15, 10]]


def test_results_without_boxes_are_refused():
    with pytest.raises(ValueError, match="pred_boxes"):
        detector_postprocess(Instances((4, 4), scores=torch.zeros(1)), 4, 4)


def test_semantic_scores_lose_their_padding_and_are_resized():
    scores = torch.full((3, 8, 12), 99.0)
    scores[:, :4, :6] = torch.arange(3.0)[:, None, None]
    out = sem_seg_postprocess(scores, (4, 6), 10, 9)
    assert out.shape == (3, 10, 9)
    torch.testing.assert_close(out, torch.arange(3.0)[:, None, None].expand(3, 10, 9))  # no padding bleeds in


def test_semantic_scores_by_hand():
    ramp = torch.tensor([[[0.0, 1.0]]])
    out = sem_seg_postprocess(ramp, (1, 2), 1, 4)  # pixel centres at 0.25, 0.75, 1.25, 1.75 of the input
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


@pytest.mark.parametrize("boxes", [[], [[10, 10, 30, 20], [5, 3, 41, 39.5]]])
def test_masks_are_pasted_later(boxes):
    raw = detections(boxes, pred_masks=ROIMasks(torch.rand(len(boxes), 4, 4)))
    full = paste_predicted_masks(raw, "full", 0.4)
    assert torch.equal(full.pred_masks, raw.pred_masks.to_bitmasks(raw.pred_boxes, 40, 60, 0.4).tensor)
    rle = paste_predicted_masks(raw, "rle", 0.4)
    assert not rle.has("pred_masks") and len(rle.pred_masks_rle) == len(boxes)
    for mask, encoded in zip(full.pred_masks.numpy(), rle.pred_masks_rle, strict=True):
        np.testing.assert_array_equal(mask_util.decode(encoded), mask)
    for other in (full, rle):
        assert torch.equal(other.scores, raw.scores) and other.image_size == (40, 60)
    assert isinstance(raw.pred_masks, ROIMasks)  # as it was
    assert paste_predicted_masks(raw, "roi") is raw and paste_predicted_masks(full, "rle") is full


def test_masks_in_other_boxes_than_the_predicted_ones():
    raw = detections([[0, 0, 1, 1]], pred_masks=ROIMasks(torch.ones(1, 4, 4)))
    raw.windows = Boxes(torch.tensor([[10.0, 10, 30, 20]]))
    assert paste_predicted_masks(raw, "full", 0.5, "windows").pred_masks[0, 12:18, 12:28].all()
    with pytest.raises(ValueError, match="'polygon'"):
        paste_predicted_masks(raw, "polygon")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_areas_and_certainties(dtype):
    areas, certainties = areas_and_certainties(torch.zeros(3, 4, 5, dtype=dtype), torch.zeros(0, dtype=torch.int64))
    assert areas.tolist() == certainties.tolist() == []
    logits = torch.randn(4, 30, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1] = -1
    rows = torch.tensor([2, 0, 2, 1])
    areas, certainties = areas_and_certainties(logits, rows)
    for row, area, certainty in zip(rows.tolist(), areas.tolist(), certainties.tolist(), strict=True):
        inside = logits[row].double()[logits[row] > 0]
        expected = (1 / (1 + (-inside).exp())).mean().item() if len(inside) else 0.0
        assert area == len(inside) and certainty == pytest.approx(
            expected, rel=1e-5 if dtype == torch.float32 else 1e-2
        )
