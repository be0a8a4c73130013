"""Results of an exported model are those of the library's own post-processing, from the same outputs."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detectron2.export.runtime.results import class_name, find_keypoints, paste_masks, postprocess, regions, to_json
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.projects.panoptic_deeplab.post_processing import get_panoptic_segmentation, instances_of_panoptic
from detectron2.structures import Instances, heatmaps_to_keypoints
from tests.export.runtime.made_up import detections, flattened, metadata, padded

BOXES = {
    "none": [],
    "one pixel": [[5, 6, 6, 7]],
    "a part of a pixel": [[5.2, 6.1, 5.4, 6.3], [0, 0, 0.5, 80]],
    "without area": [[5, 6, 5, 9], [9, 9, 3, 3], [2, 2, 9, 9]],
    "outside": [[-30, -40, -5, -6], [500, 5, 600, 9], [-20, -20, 30, 20], [40, 50, 900, 800]],
    "whole image": [[0, 0, 120, 80]],
    "several": [[10, 12, 60, 70], [3.3, 2.7, 40.9, 30.1], [60, 10, 119.5, 79.5], [0, 40, 120, 44]],
}
SIZE = (80, 120)  # of the model's input
ORIGINAL = [(80, 120), (211, 317), (40, 61), (1, 1)]


def compare(result, want, boxes="pred_boxes"):
    """A result, and the instances of the library: equal; of the pixels of masks at most one in 10,000 is not."""
    assert np.array_equal(result["boxes"], want.get(boxes).tensor.numpy())
    assert np.array_equal(result["scores"], want.scores.numpy())
    assert np.array_equal(result["classes"], want.pred_classes.numpy())
    if want.has("pred_masks"):
        masks = want.pred_masks.numpy()
        assert result["masks"].shape == masks.shape and result["masks"].dtype == np.bool_
        assert (result["masks"] != masks).sum() <= masks.size / 10_000


@pytest.mark.parametrize("original", ORIGINAL, ids=str)
@pytest.mark.parametrize("name", BOXES)
def test_detections_are_those_of_the_library(name, original):
    meta = metadata(outputs=("boxes", "scores", "classes", "count", "masks"))
    batch = [detections(BOXES[name], SIZE, mask_side=28), detections(BOXES["several"], SIZE, mask_side=28, seed=1)]
    outputs = padded(batch, rows=6)
    for i, found in enumerate(batch):
        want = detector_postprocess(found, *original)
        compare(postprocess(outputs, meta, i, original, SIZE), want)
        compare(postprocess(flattened(outputs), meta, i, original, SIZE), want)


@pytest.mark.parametrize("count", [0, 1])
def test_dropped_detections_take_their_keypoints_along(count):
    found = detections([[9, 9, 3, 3], [2, 2, 9, 9]][: count + 1], SIZE, keypoints=3)
    result = postprocess(padded([found], 5), metadata("keypoints"), 0, (160, 240), SIZE)
    assert result["keypoints"].shape == (count, 3, 3) and len(result["boxes"]) == count


def test_size_of_the_input_follows_from_that_of_the_image():
    meta = metadata(short_edge=80)
    found = detections(BOXES["several"], SIZE)
    given_size = postprocess(padded([found], 5), meta, 0, (160, 240), SIZE)
    result = postprocess(padded([found], 5), meta, 0, (160, 240))
    assert all(np.array_equal(result[key], given_size[key]) for key in given_size)


def test_proposals():
    found = detections(BOXES["outside"] + BOXES["several"], SIZE)
    outputs = padded([found], 10)
    outputs.pop("classes")
    result = postprocess(outputs, metadata("proposals", ("boxes", "scores", "count")), 0, (160, 240), SIZE)
    want = detector_postprocess(Instances(SIZE, proposal_boxes=found.pred_boxes, scores=found.scores), 160, 240)
    assert np.array_equal(result["boxes"], want.proposal_boxes.tensor.numpy()) and set(result) == {"boxes", "scores"}
    assert np.array_equal(result["scores"], want.scores.numpy())


coordinate = st.floats(-50, 200, width=32)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=5),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([(1, 1), (14, 14), (28, 28), (5, 9)]),
    st.sampled_from([0.5, 0.3, 0.9]),
)
@example([(0.0, 0.0, 0.0, 1.1754943508222875e-38)], (1, 1), (14, 14), 0.5)
@example([(0.0, 0.0, 1.1754943508222875e-38, 2.0)], (3, 2), (14, 14), 0.5)
def test_masks_are_pasted_like_those_of_the_library(boxes, size, sides, threshold):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.rand(len(boxes), *sides, generator=torch.Generator().manual_seed(0))
    want = paste_masks_in_image(masks, boxes, size, threshold).numpy()
    got = paste_masks(masks.numpy(), boxes.numpy(), size, threshold)
    assert got.shape == want.shape and (got != want).sum() <= want.size / 10_000


@pytest.mark.parametrize("original", [SIZE, (160, 240), (40, 60)], ids=str)
def test_pasted_masks_are_resized(original):
    found = detections(BOXES["several"], SIZE, mask_side=28)
    found.pred_masks = torch.ones_like(found.pred_masks)
    outputs = padded([found], 6)
    pasted = np.zeros((1, 6, 96, 128), np.uint8)  # the input is padded
    pasted[0, :4, :80, :120] = paste_masks(np.ones((4, 28, 28)), outputs["boxes"][0, :4], SIZE)
    result = postprocess({**outputs, "masks": pasted}, metadata(masks="pasted"), 0, original, SIZE)
    want = detector_postprocess(found, *original).pred_masks.numpy()
    assert result["masks"].shape == want.shape
    # A border may lie half a pixel of the input elsewhere.
    assert (result["masks"] != want).mean() < (0 if original == SIZE else 0.02) + 1e-9


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(coordinate, coordinate, st.floats(-2, 90, width=32), st.floats(0, 90, width=32)), max_size=4),
    st.integers(1, 17),
    st.sampled_from([1, 7, 56]),
    st.integers(0, 1000),
)
def test_keypoints_are_those_of_the_library(xywh, points, side, seed):
    boxes = torch.tensor(xywh, dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    maps = 4 * torch.randn(len(boxes), points, side, side, generator=torch.Generator().manual_seed(seed))
    want = heatmaps_to_keypoints(maps, boxes)[:, :, [0, 1, 3]].numpy()
    got = find_keypoints(maps.numpy(), boxes.numpy())
    assert got.shape == want.shape
    # Where two cells are as high as each other in single precision, either is the peak.
    same_peak = np.abs(got[:, :, :2] - want[:, :, :2]).max(axis=2, initial=0) <= 1e-3
    assert np.allclose(got[:, :, 2], want[:, :, 2], rtol=1e-4, atol=1e-6)
    assert side == 1 or same_peak.all()


@pytest.mark.filterwarnings("error")
def test_peak_far_above_all_cells():
    maps = torch.full((1, 1, 4, 4), -1e4)
    maps[0, 0, 1:3, 1:3] = 1e4
    maps[0, 0, 1, 2] = 2e4  # no other peak is as high
    boxes = torch.tensor([[0.0, 0, 40, 40]])
    want = heatmaps_to_keypoints(maps, boxes)[:, :, [0, 1, 3]].numpy()
    assert np.isinf(want[..., 2]).all() and np.array_equal(find_keypoints(maps.numpy(), boxes.numpy()), want)


@pytest.mark.parametrize("original", [SIZE, (211, 317), (40, 61), (1, 1)], ids=str)
def test_semantic_labels_are_those_of_the_library(original):
    scores = torch.randn(2, 5, 96, 128, generator=torch.Generator().manual_seed(0))
    want = sem_seg_postprocess(scores[1], SIZE, *original).argmax(dim=0).numpy()
    meta = metadata("semantic", ["sem_seg"], classes=None, stuff_classes=["road", "sky"])
    result = postprocess({"sem_seg": scores.numpy()}, meta, 1, original, SIZE)
    assert set(result) == {"sem_seg"} and result["sem_seg"].shape == original
    assert (result["sem_seg"] != want).sum() <= want.size / 10_000
    names = [class_name(meta, label, thing) for thing, label, _, _ in regions(result)]
    assert names == [["road", "sky", "class 2", "class 3", "class 4"][i] for i in np.unique(want)]


OVERLAPPING = [[0, 0, 70, 70], [5, 5, 60, 60], [50, 10, 119, 79], [0, 40, 120, 50], [3, 3, 3, 9]]


@pytest.mark.parametrize("boxes", [[], OVERLAPPING], ids=["none", "overlapping"])
@pytest.mark.parametrize("limits", [(0.5, 300, 0.2), (1.0, 0, 0.0), (0.0, 10**6, 0.99)], ids=str)
def test_panoptic_map_is_that_of_the_library(boxes, limits):
    overlap, area, least = limits
    found = detections(boxes, SIZE, mask_side=28)
    found.pred_masks = found.pred_masks.clamp(min=0.49)
    scores = torch.nn.functional.interpolate(
        torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0)), size=(96, 128), mode="bicubic"
    )
    options = {"overlap_threshold": overlap, "stuff_area": area, "instance_threshold": least}
    meta = metadata("panoptic", panoptic=options)
    outputs = {**padded([found], 8), "sem_seg": scores.numpy()}
    result = postprocess(outputs, meta, 0, (160, 240), SIZE)
    instances = detector_postprocess(found, 160, 240)
    instances.pred_masks = torch.from_numpy(result["masks"])  # one pixel of a mask may differ, and counts with it
    want, segments = combine_semantic_and_instance_outputs(
        instances, torch.from_numpy(result["sem_seg"]).long(), overlap, area, least
    )
    assert result["panoptic"].dtype == np.int32 and np.array_equal(result["panoptic"], want.numpy())
    assert result["segments"] == segments


def deeplab_outputs(seed, centers):
    generator = torch.Generator().manual_seed(seed)
    size = (96, 128)
    scores = torch.nn.functional.interpolate(torch.randn(1, 5, 6, 8, generator=generator), size=size, mode="bicubic")
    center = torch.rand(1, 1, *size, generator=generator) * 0.05
    for _ in range(centers):
        y, x = (int(v) for v in torch.rand(2, generator=generator) * torch.tensor([79.0, 119.0]))
        center[0, 0, y, x] += 0.3 + torch.rand((), generator=generator)
    return {"sem_seg": 3 * scores, "center": center, "offset": 5 * torch.randn(1, 2, *size, generator=generator)}


@pytest.mark.parametrize("original", [SIZE, (160, 240)], ids=str)
@pytest.mark.parametrize("centers", [0, 1, 12])
@pytest.mark.parametrize(("top_k", "stuff_area"), [(200, 100), (5, 10**6), (200, 0)])
def test_map_of_panoptic_deeplab_is_that_of_the_library(centers, original, top_k, stuff_area):
    outputs = deeplab_outputs(centers, centers)
    options = {"thing_ids": [1, 3], "label_divisor": 1000, "stuff_area": stuff_area, "center_threshold": 0.1}
    options.update(nms_kernel=7, top_k=top_k)
    meta = metadata("panoptic_deeplab", list(outputs), panoptic=options)
    result = postprocess({name: x.numpy() for name, x in outputs.items()}, meta, 0, original, SIZE)

    scores, center, offset = (sem_seg_postprocess(x[0], SIZE, *original) for x in outputs.values())
    offset = offset * offset.new_tensor([original[0] / SIZE[0], original[1] / SIZE[1]])[:, None, None]
    want, _ = get_panoptic_segmentation(
        scores.argmax(dim=0, keepdim=True), center, offset, [1, 3], 1000, stuff_area, -1, 0.1, 7, top_k
    )
    different = (result["panoptic"] != want[0].numpy()).sum()
    assert result["panoptic"].dtype == np.int32 and different <= want.numel() / 10_000
    if different:
        return  # what follows counts pixels
    instances = instances_of_panoptic(want[0], scores, center[0], [1, 3], 1000)
    assert len(instances) == len(result["boxes"]) and (centers == 0) == (len(instances) == 0)
    assert np.array_equal(result["boxes"], instances.pred_boxes.tensor.numpy())
    assert np.array_equal(result["classes"], instances.pred_classes.numpy())
    assert np.array_equal(result["masks"], instances.pred_masks.numpy())
    assert np.allclose(result["scores"], instances.scores.numpy(), rtol=1e-4, atol=1e-6)
    ids = [i for i in np.unique(want) if i >= 0]
    assert [s["id"] for s in result["segments"]] == ids
    assert [s["category_id"] for s in result["segments"]] == [i // 1000 for i in ids]
    assert [s["instance_id"] for s in result["segments"] if s["isthing"]] == list(range(len(instances)))


def test_json_of_no_result():
    assert to_json(postprocess(padded([detections([], SIZE)], 3), metadata(), 0, SIZE, SIZE), metadata()) == {
        "instances": []
    }


def test_json_holds_names_and_masks():
    meta = metadata(outputs=("boxes", "scores", "classes", "count", "masks"))
    found = detections(BOXES["several"], SIZE, mask_side=28, keypoints=2)
    result = postprocess(padded([found], 6), meta, 0, SIZE, SIZE)
    written = to_json(result, meta)["instances"]
    assert [w["name"] for w in written] == [meta["classes"][i] for i in found.pred_classes]
    for i, w in enumerate(written):
        assert np.allclose(w["box"], result["boxes"][i]) and np.allclose(w["keypoints"], result["keypoints"][i])
        lengths = pycocotools.mask.frPyObjects(w["mask"], *w["mask"]["size"])
        assert np.array_equal(pycocotools.mask.decode(lengths), result["masks"][i])


@pytest.mark.parametrize("bits", [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 0], [0, 1]]], ids=str)
def test_run_lengths_begin_with_pixels_outside(bits):
    result = {"sem_seg": np.array(bits), "segments": [{"isthing": False, "category_id": 0, "id": 1}]}
    mask = to_json({**result, "panoptic": np.array(bits)}, metadata())["segments"][0]["mask"]
    assert np.array_equal(pycocotools.mask.decode(pycocotools.mask.frPyObjects(mask, 2, 2)), bits)
    assert sum(mask["counts"]) == 4 and 0 not in mask["counts"][1:]
